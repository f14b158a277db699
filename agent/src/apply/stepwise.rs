//! Tables that are written element by element, with someone beside who sees each step and may end
//! it before: for tests of what readers meet in the middle of a plan, and of writers that die there.

use mizzen_ebpf_abi::{
    addr::Addr,
    node::{NodeAddr, NodeConfig},
    service::{Backend4, Backend6, Frontend, FrontendKey, SetWord},
};

use super::maps::{
    AddrRange, BarrierCall, Capacities, Growing, Maps, MapsError, NodeTables, SourceRange, Tables,
    Usage,
};
use crate::traffic::Counted;

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One element is written or removed, or one table grows.
    Write,
    /// Running programs are waited for.
    Barrier,
}

/// Who sees the steps.
pub trait Witness<M>: Send {
    /// Called before each step; an error is that of the step, which is not made.
    fn before(&mut self, _step: Step, _maps: &M) -> Result<(), MapsError> {
        Ok(())
    }

    /// Called after each step.
    fn after(&mut self, _step: Step, _maps: &M) {}
}

/// Tables and their witness.
#[derive(Debug)]
pub struct Stepwise<M, W> {
    /// The tables.
    pub maps: M,
    /// Who sees the steps.
    pub witness: W,
}

impl<M: Maps, W: Witness<M>> Stepwise<M, W> {
    fn step(
        &mut self,
        step: Step,
        make: impl FnOnce(&mut M) -> Result<(), MapsError>,
    ) -> Result<(), MapsError> {
        self.witness.before(step, &self.maps)?;
        make(&mut self.maps)?;
        self.witness.after(step, &self.maps);
        Ok(())
    }

    fn each<T>(
        &mut self,
        elements: &[T],
        write: impl Fn(&mut M, &[T]) -> Result<(), MapsError>,
    ) -> Result<(), MapsError> {
        let mut elements = elements.chunks(1);
        elements.try_for_each(|element| self.step(Step::Write, |maps| write(maps, element)))
    }
}

impl<M: Maps, W: Witness<M>> Maps for Stepwise<M, W> {
    fn dump(&mut self) -> Result<Tables, MapsError> {
        self.maps.dump()
    }
    fn visit_frontends(
        &mut self,
        visit: &mut dyn FnMut(&FrontendKey, &Frontend),
    ) -> Result<(), MapsError> {
        self.maps.visit_frontends(visit)
    }
    fn visit_source_ranges(
        &mut self,
        visit: &mut dyn FnMut(&SourceRange),
    ) -> Result<(), MapsError> {
        self.maps.visit_source_ranges(visit)
    }
    fn word(&self, set: u32) -> SetWord {
        self.maps.word(set)
    }
    fn read_slots(&self, offset: u32, words: &mut [u32]) {
        self.maps.read_slots(offset, words);
    }
    fn backend4(&self, id: u32) -> Backend4 {
        self.maps.backend4(id)
    }
    fn backend6(&self, id: u32) -> Backend6 {
        self.maps.backend6(id)
    }
    fn node_tables(&mut self) -> Result<NodeTables, MapsError> {
        self.maps.node_tables()
    }
    fn others(&mut self) -> Result<Vec<Usage>, MapsError> {
        self.maps.others()
    }
    fn capacities(&self) -> Capacities {
        self.maps.capacities()
    }
    fn grow(&mut self, tables: &[(Growing, u32)]) -> Result<(), MapsError> {
        self.each(tables, M::grow)
    }
    fn put_frontends(&mut self, entries: &[(FrontendKey, Frontend)]) -> Result<(), MapsError> {
        self.each(entries, M::put_frontends)
    }
    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Result<(), MapsError> {
        self.each(keys, M::remove_frontends)
    }
    fn write_slots(&mut self, offset: u32, words: &[u32]) -> Result<(), MapsError> {
        let words: Vec<(u32, u32)> = (offset..).zip(words.iter().copied()).collect();
        self.each(&words, |maps, word| maps.write_slots(word[0].0, &[word[0].1]))
    }
    fn write_backends4(&mut self, backends: &[(u32, Backend4)]) -> Result<(), MapsError> {
        self.each(backends, M::write_backends4)
    }
    fn write_backends6(&mut self, backends: &[(u32, Backend6)]) -> Result<(), MapsError> {
        self.each(backends, M::write_backends6)
    }
    fn flip(&mut self, words: &[(u32, SetWord)]) -> Result<(), MapsError> {
        self.each(words, M::flip)
    }
    fn barrier(&mut self) -> Result<(), MapsError> {
        self.step(Step::Barrier, M::barrier)
    }
    /// Over when it begins: who runs plans beside a barrier is not seen to wait for it.
    fn barrier_call(&mut self) -> BarrierCall {
        let over = self.barrier();
        Box::new(move || over)
    }
    fn put_node_addrs(&mut self, addrs: &[(Addr, NodeAddr)]) -> Result<(), MapsError> {
        self.each(addrs, M::put_node_addrs)
    }
    fn remove_node_addrs(&mut self, addrs: &[Addr]) -> Result<(), MapsError> {
        self.each(addrs, M::remove_node_addrs)
    }
    fn put_cluster_ranges(&mut self, ranges: &[(AddrRange, u32)]) -> Result<(), MapsError> {
        self.each(ranges, M::put_cluster_ranges)
    }
    fn remove_cluster_ranges(&mut self, ranges: &[AddrRange]) -> Result<(), MapsError> {
        self.each(ranges, M::remove_cluster_ranges)
    }
    fn put_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError> {
        self.each(ranges, M::put_source_ranges)
    }
    fn remove_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError> {
        self.each(ranges, M::remove_source_ranges)
    }
    fn set_node_config(&mut self, config: &NodeConfig) -> Result<(), MapsError> {
        self.step(Step::Write, |maps| maps.set_node_config(config))
    }
    fn begin_traffic(&mut self, sets: &[u32]) {
        self.maps.begin_traffic(sets);
    }
    fn visit_traffic(&mut self, visit: &mut dyn FnMut(Counted)) -> Result<(), MapsError> {
        self.maps.visit_traffic(visit)
    }
    fn calls(&self) -> u64 {
        self.maps.calls()
    }
    fn writes(&self) -> u64 {
        self.maps.writes()
    }
    fn bytes(&self) -> u64 {
        self.maps.bytes()
    }
}
