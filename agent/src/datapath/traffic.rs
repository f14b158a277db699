//! What the programs count of backends: whose each record is, and what became of those that were
//! others' before (`mizzen_ebpf_abi::traffic`).
//!
//! The one writer of the tables says here which backend gets which id. A record changes hands in
//! this order: it is nobody's, what it counted goes to its service, it is the next one's. Programs
//! add to a record only where they find the owner that they know.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    thread,
};

use mizzen_ebpf_abi::{
    addr::Addr,
    traffic::{
        BackendCounts, CHUNK_IDS, CHUNKS, LANES_MAX, PacketCounts, ServiceCounts, owner, place,
    },
};

use super::{
    counters::cpus,
    layout::{self, MapLayout},
    mapped::MappedArray,
    pin::{PinError, Pins},
    sys::{self, BatchError},
    walk::{self, Batch},
};
use crate::traffic::{Counted, Tenant, Traffic};

/// 64-bit words of a [`BackendCounts`] behind the one that says whose it is.
const BACKEND_WORDS: usize = size_of::<BackendCounts>() / 8 - 1;
/// Those of a [`PacketCounts`].
const PACKET_WORDS: usize = size_of::<PacketCounts>() / 8 - 1;

/// How many lanes packets are counted in, and whether CPUs share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lanes {
    /// A power of two.
    pub count: u32,
    /// Whether there are more CPUs.
    pub shared: bool,
}

impl Lanes {
    /// Those of this machine.
    pub(super) fn of_machine() -> io::Result<Self> {
        cpus().map(|cpus| Self::of(u32::try_from(cpus).unwrap_or(u32::MAX)))
    }

    fn of(cpus: u32) -> Self {
        let count = cpus.clamp(1, LANES_MAX).next_power_of_two();
        Self { count, shared: cpus > count }
    }

    /// The shape of a chunk of packet counters.
    fn chunk(self) -> MapLayout {
        MapLayout { entries: CHUNK_IDS * self.count, ..layout::PACKET_CHUNK }
    }
}

/// Records by chunks of ids.
///
/// A chunk that is mapped is memory of this process, all of it: only a few are at a time.
#[derive(Debug)]
struct Chunks {
    outer: OwnedFd,
    layout: MapLayout,
    open: BTreeMap<u32, OwnedFd>,
    /// Those that were looked at last, the latest behind the others.
    mapped: Mutex<VecDeque<(u32, Arc<MappedArray>)>>,
}

/// How many chunks of a kind are mapped at a time.
const MAPPED_MAX: usize = 4;

impl Chunks {
    /// Those that there are among the first `ids` of each family.
    fn open(
        pins: &Pins,
        outer: &MapLayout,
        layout: MapLayout,
        ids: [u32; 2],
    ) -> Result<Self, PinError> {
        let fd = pins.open_map(outer)?;
        let (open, mapped) = (BTreeMap::new(), Mutex::default());
        let mut chunks = Self { outer: fd, layout, open, mapped };
        for (family, ids) in ids.into_iter().enumerate() {
            let first = if family == 0 { 0 } else { CHUNKS / 2 };
            for chunk in first..first + ids.div_ceil(CHUNK_IDS) {
                let found = chunks.find(chunk);
                let found = found.map_err(|error| PinError::Open(pins.map(outer.name), error))?;
                if let Some((found, map)) = found {
                    if found != layout {
                        let (path, found) = (pins.map(outer.name), found.to_string());
                        return Err(PinError::Layout { path, found, expected: layout.to_string() });
                    }
                    chunks.open.insert(chunk, map);
                }
            }
        }
        Ok(chunks)
    }

    fn find(&self, chunk: u32) -> io::Result<Option<(MapLayout, OwnedFd)>> {
        let Some(id) = sys::lookup::<u32, u32>(self.outer.as_fd(), &chunk)? else {
            return Ok(None);
        };
        let map = sys::map_by_id(id)?;
        let found = MapLayout::of(map.as_fd(), &self.layout)?;
        Ok(Some((found, map)))
    }

    /// A chunk's records; none where there is no such chunk, or no memory to map it.
    fn array(&self, chunk: u32) -> Option<Arc<MappedArray>> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, array)) = mapped.iter().find(|(of, _)| *of == chunk) {
            return Some(Arc::clone(array));
        }
        let record = self.layout.value_size as usize / 4;
        let map = self.open.get(&chunk)?.try_clone();
        let array = map.and_then(|map| MappedArray::new(map, record, self.layout.entries));
        match array.map(Arc::new) {
            Ok(array) => {
                if mapped.len() >= MAPPED_MAX {
                    mapped.pop_front();
                }
                mapped.push_back((chunk, Arc::clone(&array)));
                Some(array)
            }
            Err(error) => {
                tracing::warn!(%error, chunk, "counters of backends can't be mapped");
                None
            }
        }
    }

    /// Whether some of these chunks are not there.
    fn lacks(&self, chunks: &BTreeSet<u32>) -> bool {
        chunks.iter().any(|chunk| !self.open.contains_key(chunk))
    }

    /// Makes those chunks that there are not, all by one call where the kernel can: for each that
    /// changes a table of tables it waits until no program runs any more that ran before.
    fn make(&mut self, chunks: &BTreeSet<u32>) -> io::Result<()> {
        let missing: Vec<u32> =
            chunks.iter().copied().filter(|chunk| !self.open.contains_key(chunk)).collect();
        if missing.is_empty() {
            return Ok(()); // it would wait for nothing too
        }
        let maps: Vec<OwnedFd> =
            missing.iter().map(|_| sys::create_map(&self.layout)).collect::<io::Result<_>>()?;
        let fds: Vec<u32> = maps.iter().map(|map| map.as_raw_fd().cast_unsigned()).collect();
        let done = match sys::update_batch(self.outer.as_fd(), &missing, &fds) {
            Ok(()) => missing.len(),
            Err(BatchError { done, .. }) => done,
        };
        for (chunk, fd) in missing.iter().zip(&fds).skip(done) {
            sys::update(self.outer.as_fd(), chunk, fd)?;
        }
        for (chunk, map) in missing.into_iter().zip(maps) {
            self.open.insert(chunk, map);
        }
        Ok(())
    }
}

/// The counters of backends.
#[derive(Debug)]
pub(super) struct TrafficTables {
    backends: Chunks,
    packets: Chunks,
    services: OwnedFd,
    lanes: u32,
    /// Sets that some record is of.
    known: BTreeSet<u32>,
}

impl TrafficTables {
    /// Opens those of the first `ids` ids of IPv4 and of IPv6.
    pub(super) fn open(pins: &Pins, ids: [u32; 2]) -> Result<Self, PinError> {
        let failed = |map: &MapLayout| {
            let path = pins.map(map.name);
            move |error| PinError::Open(path, error)
        };
        let lanes = Lanes::of_machine().map_err(failed(&layout::PACKET_COUNTS))?;
        let services = pins.open_map(&layout::SERVICE_COUNTS)?;
        let mut known = BTreeSet::new();
        walk::visit(services.as_fd(), |batch: &Batch<'_, u32, ServiceCounts>| {
            known.extend(batch.keys);
        })
        .map_err(failed(&layout::SERVICE_COUNTS))?;
        let outer = &layout::BACKEND_COUNTS;
        let backends = Chunks::open(pins, outer, layout::BACKEND_CHUNK, ids)?;
        let packets = Chunks::open(pins, &layout::PACKET_COUNTS, lanes.chunk(), ids)?;
        let mut tables = Self { backends, packets, services, lanes: lanes.count, known };
        let mut known = std::mem::take(&mut tables.known);
        tables.visit_records(|_, _, set| {
            known.insert(set);
        });
        tables.known = known;
        Ok(tables)
    }

    /// Makes room for the counters of ids, each with whether it is one of IPv4's.
    pub(super) fn make_room(&mut self, ids: impl Iterator<Item = (u32, bool)>) -> io::Result<()> {
        let chunks: BTreeSet<u32> = ids.map(|(id, v4)| place(id, v4).0).collect();
        let Self { backends, packets, .. } = self;
        if !backends.lacks(&chunks) && !packets.lacks(&chunks) {
            return Ok(()); // as with nearly every change: no thread is worth it
        }
        // Both wait for running programs, at once.
        thread::scope(|scope| {
            let packets = scope.spawn(|| packets.make(&chunks));
            backends.make(&chunks)?;
            packets.join().map_err(|_| io::Error::other("the thread that made room panicked"))?
        })
    }

    /// From now on the id, which there is room for, is this backend's; nothing happens where it was
    /// before.
    pub(super) fn assign(
        &mut self,
        id: u32,
        set: u32,
        addr: &Addr,
        port: [u8; 2],
    ) -> io::Result<()> {
        let (chunk, index) = place(id, addr.is_v4());
        let owner = owner(set, addr, port);
        let held = self.owner(chunk, index);
        if held == (owner, set) {
            return Ok(());
        }
        if held != (0, 0) {
            self.write_owner(chunk, index, 0, held.1);
            let counted = self.take(chunk, index);
            self.keep(held.1, &counted)?;
        }
        self.write_owner(chunk, index, owner, set);
        self.known.insert(set);
        Ok(())
    }

    /// These sets are new ones, though their numbers may have been others': nothing that was
    /// counted under them is theirs.
    pub(super) fn begin(&mut self, sets: &[u32]) -> io::Result<()> {
        let sets: BTreeSet<u32> =
            sets.iter().copied().filter(|set| self.known.remove(set)).collect();
        if sets.is_empty() {
            return Ok(());
        }
        let mut former = Vec::new();
        self.visit_records(|chunk, index, set| {
            if sets.contains(&set) {
                former.push((chunk, index));
            }
        });
        for (chunk, index) in former {
            self.write_owner(chunk, index, 0, 0);
            let _former = self.take(chunk, index);
        }
        for set in &sets {
            sys::delete(self.services.as_fd(), set)?;
        }
        Ok(())
    }

    /// Shows every id's counters, and those of former backends.
    pub(super) fn visit(&self, visit: &mut dyn FnMut(Counted)) -> io::Result<()> {
        self.visit_records(|chunk, index, set| {
            let (id, ipv6) = (chunk % (CHUNKS / 2) * CHUNK_IDS + index, chunk >= CHUNKS / 2);
            let (owner, _) = self.owner(chunk, index);
            let backend = Some(Tenant { id, ipv6, owner });
            visit(Counted { set, backend, traffic: self.read(chunk, index) });
        });
        walk::visit(self.services.as_fd(), |batch: &Batch<'_, u32, ServiceCounts>| {
            for (set, record) in batch.iter() {
                visit(Counted { set: *set, backend: None, traffic: record.into() });
            }
        })
    }

    /// Calls `visit` with chunk, place and set of every record that is or was somebody's.
    fn visit_records(&self, mut visit: impl FnMut(u32, u32, u32)) {
        for chunk in self.backends.open.keys() {
            let Some(array) = self.backends.array(*chunk) else { continue };
            for index in 0..array.capacity() {
                let (_, set) = halves(array.long(index, 0).load(Relaxed));
                if set != 0 {
                    visit(*chunk, index, set);
                }
            }
        }
    }

    /// Whose a record is: the owner, the set.
    fn owner(&self, chunk: u32, index: u32) -> (u32, u32) {
        let Some(array) = self.backends.array(chunk) else { return (0, 0) };
        let word = array.long(index, 0).load(Relaxed);
        halves(word)
    }

    fn write_owner(&self, chunk: u32, index: u32, owner: u32, set: u32) {
        if let Some(array) = self.packets.array(chunk) {
            for lane in 0..self.lanes {
                array.long(index * self.lanes + lane, 0).store(owner.into(), Relaxed);
            }
        }
        if let Some(array) = self.backends.array(chunk) {
            array.long(index, 0).store(u64::from(set) << 32 | u64::from(owner), Relaxed);
        }
    }

    /// What a record counts.
    fn read(&self, chunk: u32, index: u32) -> Traffic {
        self.sum(chunk, index, |array, index, word| array.long(index, word).load(Relaxed))
    }

    /// What a record counted; it counts from 0.
    fn take(&self, chunk: u32, index: u32) -> Traffic {
        self.sum(chunk, index, |array, index, word| array.long(index, word).swap(0, Relaxed))
    }

    fn sum(&self, chunk: u32, index: u32, of: impl Fn(&MappedArray, u32, usize) -> u64) -> Traffic {
        let mut sum = ServiceCounts::default();
        if let Some(array) = self.backends.array(chunk) {
            const { assert!(BACKEND_WORDS == 7 && PACKET_WORDS == 4) };
            for (word, value) in sum.connections.iter_mut().enumerate() {
                *value = of(&array, index, word + 1);
            }
        }
        if let Some(array) = self.packets.array(chunk) {
            for lane in 0..self.lanes {
                for (word, value) in sum.packets.iter_mut().enumerate() {
                    let more = of(&array, index * self.lanes + lane, word + 1);
                    *value = value.wrapping_add(more);
                }
            }
        }
        Traffic::from(&sum)
    }

    /// Adds to what is kept for a set.
    fn keep(&self, set: u32, counted: &Traffic) -> io::Result<()> {
        if counted.is_none() {
            return Ok(());
        }
        let held: Option<ServiceCounts> = sys::lookup(self.services.as_fd(), &set)?;
        let mut sum = held.as_ref().map(Traffic::from).unwrap_or_default();
        sum += *counted;
        sys::update(self.services.as_fd(), &set, &sum.to_record())
    }
}

/// The first word of a [`BackendCounts`]: the owner, the set.
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is asked for")]
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_has_a_lane_up_to_a_bound() {
        let lanes = |cpus| (Lanes::of(cpus).count, Lanes::of(cpus).shared);
        assert_eq!([1, 2, 3, 8].map(lanes), [(1, false), (2, false), (4, false), (8, false)]);
        assert_eq!(lanes(9), (8, true));
        assert_eq!(lanes(192), (8, true));
    }
}
