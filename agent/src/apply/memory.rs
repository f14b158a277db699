//! The tables in memory: for tests, scenarios and `mizzen diff`.
//!
//! It proves the logic of plans, not the kernel: a reader here sees each element change at once,
//! and the barrier returns at once. Capacities are the kernel's, or smaller ones that a
//! test sets; calls count as in the kernel's implementation, where arrays are mapped memory: stores
//! into them are no calls. A test can make any write fail, see [`MemoryMaps::fail_after`].

use std::collections::BTreeMap;

use mizzen_ebpf_abi::{
    addr::Addr,
    maps,
    node::{NodeAddr, NodeConfig},
    service::{Backend4, Backend6, Frontend, FrontendKey, SetWord},
};

use super::maps::{
    AddrRange, BarrierCall, Capacities, Growing, Maps, MapsError, NodeTables, SourceRange, Tables,
    Usage,
};

/// A key of a longest-prefix map over addresses: a length and an address.
type Prefix = [u32; 5];
/// As [`Prefix`], behind a set's id.
type SetPrefix = [u32; 6];

/// Tables in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryMaps {
    tables: Tables,
    capacities: Capacities,
    calls: u64,
    writes: u64,
    bytes: u64,
    writes_left: Option<u64>,
}

impl MemoryMaps {
    /// Empty tables of the given capacities.
    pub fn new(capacities: Capacities) -> Self {
        Self { capacities, ..Self::default() }
    }

    /// Tables that hold `tables`, as those that an agent finds when it starts.
    pub fn with_tables(tables: Tables) -> Self {
        let mut capacities = Capacities::default();
        let beyond = |last: Option<&u32>| last.map_or(0, |last| last + 1);
        let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        for (table, held) in [
            (Growing::Frontends, len(tables.frontends.len())),
            (Growing::Sets, beyond(tables.sets.keys().next_back())),
            (Growing::Slots, len(tables.slots.len())),
            (Growing::Backends4, beyond(tables.backends4.keys().next_back())),
            (Growing::Backends6, beyond(tables.backends6.keys().next_back())),
        ] {
            let capacity = capacities.of_mut(table);
            *capacity = held.max(*capacity);
        }
        Self { tables, capacities, ..Self::default() }
    }

    /// What they hold.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Lets `writes` more element writes succeed and every later one fail, inside of a batch too;
    /// `None` ends that.
    pub fn fail_after(&mut self, writes: Option<u64>) {
        self.writes_left = writes;
    }

    /// The number of frontends below which there is room for one more. Marks of cluster IPs are
    /// bits elsewhere.
    fn room_for(&self, key: &FrontendKey) -> u32 {
        let (held, capacity) = (&self.tables.frontends, self.capacities.frontends);
        if key.is_guard() {
            u32::MAX
        } else if held.len() < capacity as usize {
            capacity
        } else {
            let marks = held.keys().filter(|key| key.is_guard()).count();
            capacity.saturating_add(u32::try_from(marks).unwrap_or(u32::MAX))
        }
    }

    /// Counts the write of an element of this type.
    fn count<Element>(&mut self, map: &'static str, calls: u64) -> Result<(), MapsError> {
        if let Some(left) = &mut self.writes_left {
            *left = left.checked_sub(1).ok_or_else(|| MapsError::Kernel {
                operation: "write to",
                map,
                object: "an element".to_owned(),
                source: "injected fault".into(),
            })?;
        }
        self.calls += calls;
        self.writes += 1;
        self.bytes += size_of::<Element>() as u64;
        Ok(())
    }
}

fn check_index(map: &'static str, capacity: u32, index: u32) -> Result<(), MapsError> {
    if index < capacity { Ok(()) } else { Err(MapsError::OutOfRange { map, capacity, index }) }
}

fn insert<K: Ord + std::fmt::Debug, V>(
    table: &mut BTreeMap<K, V>,
    map: &'static str,
    capacity: u32,
    key: K,
    value: V,
) -> Result<(), MapsError> {
    if table.len() >= capacity as usize && !table.contains_key(&key) {
        return Err(MapsError::Full { map, capacity, object: format!("{key:?}") });
    }
    table.insert(key, value);
    Ok(())
}

impl Maps for MemoryMaps {
    fn dump(&mut self) -> Result<Tables, MapsError> {
        let mut tables = self.tables.clone();
        tables.sets.retain(|_, word| word.0 != 0);
        let words = tables.slots.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        tables.slots.truncate(words);
        tables.backends4.retain(|_, backend| *backend != Backend4::default());
        tables.backends6.retain(|_, backend| *backend != Backend6::default());
        Ok(tables)
    }

    fn visit_frontends(
        &mut self,
        visit: &mut dyn FnMut(&FrontendKey, &Frontend),
    ) -> Result<(), MapsError> {
        self.tables.frontends.iter().for_each(|(key, value)| visit(key, value));
        Ok(())
    }

    fn visit_source_ranges(
        &mut self,
        visit: &mut dyn FnMut(&SourceRange),
    ) -> Result<(), MapsError> {
        self.tables.source_ranges.iter().for_each(visit);
        Ok(())
    }

    fn word(&self, set: u32) -> SetWord {
        self.tables.sets.get(&set).copied().unwrap_or_default()
    }

    fn read_slots(&self, offset: u32, words: &mut [u32]) {
        for (index, word) in (offset as usize..).zip(words) {
            *word = self.tables.slots.get(index).copied().unwrap_or(0);
        }
    }

    fn backend4(&self, id: u32) -> Backend4 {
        self.tables.backends4.get(&id).copied().unwrap_or_default()
    }

    fn backend6(&self, id: u32) -> Backend6 {
        self.tables.backends6.get(&id).copied().unwrap_or_default()
    }

    fn node_tables(&mut self) -> Result<NodeTables, MapsError> {
        let Tables { node_addrs, cluster_ranges, node_config, .. } = &self.tables;
        Ok(NodeTables {
            addrs: node_addrs.clone(),
            cluster_ranges: cluster_ranges.clone(),
            config: *node_config,
        })
    }

    fn others(&mut self) -> Result<Vec<Usage>, MapsError> {
        Ok(Vec::new())
    }

    fn capacities(&self) -> Capacities {
        self.capacities
    }

    fn grow(&mut self, tables: &[(Growing, u32)]) -> Result<(), MapsError> {
        for (table, capacity) in tables.iter().copied() {
            if capacity <= self.capacities.of(table) {
                continue;
            }
            if table == Growing::Frontends {
                for _ in 0..self.tables.frontends.len() {
                    self.count::<(FrontendKey, Frontend)>(table.name(), 1)?;
                }
            }
            *self.capacities.of_mut(table) = capacity;
            self.calls += 1;
        }
        Ok(())
    }

    fn put_frontends(&mut self, entries: &[(FrontendKey, Frontend)]) -> Result<(), MapsError> {
        for (key, value) in entries {
            self.count::<(FrontendKey, Frontend)>(maps::FRONTENDS, 1)?;
            let (room, held) = (self.room_for(key), &mut self.tables.frontends);
            if held.len() >= room as usize && !held.contains_key(key) {
                let (map, capacity) = (maps::FRONTENDS, self.capacities.frontends);
                return Err(MapsError::Full { map, capacity, object: format!("{key:?}") });
            }
            held.insert(*key, *value);
        }
        Ok(())
    }

    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Result<(), MapsError> {
        for key in keys {
            self.count::<FrontendKey>(maps::FRONTENDS, 1)?;
            self.tables.frontends.remove(key);
        }
        Ok(())
    }

    fn write_slots(&mut self, offset: u32, words: &[u32]) -> Result<(), MapsError> {
        for (index, word) in (offset..).zip(words) {
            check_index(maps::SLOTS, self.capacities.slot_words, index)?;
            self.count::<u32>(maps::SLOTS, 0)?;
            let index = index as usize;
            if self.tables.slots.len() <= index {
                self.tables.slots.resize(index + 1, 0);
            }
            self.tables.slots[index] = *word;
        }
        Ok(())
    }

    fn write_backends4(&mut self, backends: &[(u32, Backend4)]) -> Result<(), MapsError> {
        for (id, backend) in backends {
            check_index(maps::BACKENDS4, self.capacities.backends4, *id)?;
            self.count::<Backend4>(maps::BACKENDS4, 0)?;
            self.tables.backends4.insert(*id, *backend);
        }
        Ok(())
    }

    fn write_backends6(&mut self, backends: &[(u32, Backend6)]) -> Result<(), MapsError> {
        for (id, backend) in backends {
            check_index(maps::BACKENDS6, self.capacities.backends6, *id)?;
            self.count::<Backend6>(maps::BACKENDS6, 0)?;
            self.tables.backends6.insert(*id, *backend);
        }
        Ok(())
    }

    fn flip(&mut self, words: &[(u32, SetWord)]) -> Result<(), MapsError> {
        for (set, word) in words {
            check_index(maps::SETS, self.capacities.sets, *set)?;
            self.count::<SetWord>(maps::SETS, 0)?;
            self.tables.sets.insert(*set, *word);
        }
        Ok(())
    }

    fn barrier_call(&mut self) -> BarrierCall {
        self.calls += 1;
        Box::new(|| Ok(()))
    }

    fn put_node_addrs(&mut self, addrs: &[(Addr, NodeAddr)]) -> Result<(), MapsError> {
        for (addr, value) in addrs {
            self.count::<(Addr, NodeAddr)>(maps::NODE_ADDRS, 1)?;
            let capacity = self.capacities.node_addrs;
            insert(&mut self.tables.node_addrs, maps::NODE_ADDRS, capacity, *addr, *value)?;
        }
        Ok(())
    }

    fn remove_node_addrs(&mut self, addrs: &[Addr]) -> Result<(), MapsError> {
        for addr in addrs {
            self.count::<Addr>(maps::NODE_ADDRS, 1)?;
            self.tables.node_addrs.remove(addr);
        }
        Ok(())
    }

    fn put_cluster_ranges(&mut self, ranges: &[(AddrRange, u32)]) -> Result<(), MapsError> {
        for (range, flags) in ranges {
            self.count::<(Prefix, u32)>(maps::CLUSTER_RANGES, 1)?;
            let capacity = self.capacities.cluster_ranges;
            insert(
                &mut self.tables.cluster_ranges,
                maps::CLUSTER_RANGES,
                capacity,
                *range,
                *flags,
            )?;
        }
        Ok(())
    }

    fn remove_cluster_ranges(&mut self, ranges: &[AddrRange]) -> Result<(), MapsError> {
        for range in ranges {
            self.count::<Prefix>(maps::CLUSTER_RANGES, 1)?;
            self.tables.cluster_ranges.remove(range);
        }
        Ok(())
    }

    fn put_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError> {
        for range in ranges {
            self.count::<(SetPrefix, u32)>(maps::SOURCE_RANGES, 1)?;
            let (held, capacity) = (&mut self.tables.source_ranges, self.capacities.source_ranges);
            if held.len() >= capacity as usize && !held.contains(range) {
                let (map, object) = (maps::SOURCE_RANGES, format!("{range:?}"));
                return Err(MapsError::Full { map, capacity, object });
            }
            held.insert(*range);
        }
        Ok(())
    }

    fn remove_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError> {
        for range in ranges {
            self.count::<SetPrefix>(maps::SOURCE_RANGES, 1)?;
            self.tables.source_ranges.remove(range);
        }
        Ok(())
    }

    fn set_node_config(&mut self, config: &NodeConfig) -> Result<(), MapsError> {
        self.count::<NodeConfig>(maps::NODE_CONFIG, 1)?;
        self.tables.node_config = *config;
        Ok(())
    }

    fn calls(&self) -> u64 {
        self.calls
    }

    fn writes(&self) -> u64 {
        self.writes
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
