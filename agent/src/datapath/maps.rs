//! The tables in the kernel: [`Maps`] over the pinned maps.
//!
//! Arrays are written through mapped memory, hashes by batches. A set's word is stored behind
//! everything that it leads to (release), so that a program that reads the word finds the range.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya::Pod;
use mizzen_ebpf_abi::{
    addr::Addr,
    node::{Endpoint, NodeAddr, NodeConfig, PodNetns},
    service::{Backend4, Backend6, Frontend, FrontendKey, NO_SET, SetWord, reserved_for},
};

use super::{
    allocated::AllocatedAddrs,
    barrier::Barrier,
    growing::{self, GrowingArray, GrowingHash},
    layout::{self, MapLayout, PrefixKey, SourceRangeKey},
    pin::{PinError, Pins},
    sys::{self, BatchError},
    traffic::TrafficTables,
    walk::{self, Batch},
};
use crate::{
    apply::maps::{
        AddrRange, BarrierCall, Capacities, Growing, Maps, MapsError, NodeTables, SourceRange,
        Tables, Usage,
    },
    traffic::Counted,
};

/// Elements of one batched call: bounds how long the kernel is busy with it.
const BATCH: usize = 4096;

/// The tables of this node's programs.
#[derive(Debug)]
pub struct KernelMaps {
    frontends: GrowingHash<FrontendKey, Frontend>,
    allocated: AllocatedAddrs,
    sets: GrowingArray,
    slots: GrowingArray,
    backends4: GrowingArray,
    backends6: GrowingArray,
    node_addrs: OwnedFd,
    cluster_ranges: OwnedFd,
    source_ranges: OwnedFd,
    endpoints: OwnedFd,
    pod_netns: OwnedFd,
    node_config: OwnedFd,
    barrier: Arc<Barrier>,
    /// What backends are counted in, for who writes the tables.
    traffic: Option<TrafficTables>,
    calls: u64,
    writes: u64,
    bytes: u64,
}

impl KernelMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        Ok(Self {
            frontends: GrowingHash::open(pins, &layout::FRONTENDS)?,
            allocated: AllocatedAddrs::open(pins)?,
            sets: GrowingArray::open(pins, &layout::SETS)?,
            slots: GrowingArray::open(pins, &layout::SLOTS)?,
            backends4: GrowingArray::open(pins, &layout::BACKENDS4)?,
            backends6: GrowingArray::open(pins, &layout::BACKENDS6)?,
            node_addrs: pins.open_map(&layout::NODE_ADDRS)?,
            cluster_ranges: pins.open_map(&layout::CLUSTER_RANGES)?,
            source_ranges: pins.open_map(&layout::SOURCE_RANGES)?,
            endpoints: pins.open_map(&layout::ENDPOINTS)?,
            pod_netns: pins.open_map(&layout::POD_NETNS)?,
            node_config: pins.open_map(&layout::NODE_CONFIG)?,
            barrier: Barrier::open(pins)?,
            traffic: None,
            calls: 0,
            writes: 0,
            bytes: 0,
        })
    }

    /// Says from now on to the counters which backend has which id; of those that the tables hold,
    /// at once.
    pub(super) fn counting(mut self, pins: &Pins) -> Result<Self, PinError> {
        let ids = [&self.backends4, &self.backends6].map(|table| table.array().capacity());
        self.traffic = Some(TrafficTables::open(pins, ids)?);
        let (mut four, mut six) = (Vec::new(), Vec::new());
        self.backends4.array().read_all(|id, words| four.push((id, record::<_, 3>(words))));
        self.backends6.array().read_all(|id, words| six.push((id, record::<_, 6>(words))));
        self.count_for(four.into_iter().map(endpoint4));
        self.count_for(six.into_iter().map(endpoint6));
        Ok(self)
    }

    /// Gives ids' counters to those that have the ids. Traffic is more important than its
    /// counters: what fails is told, and left.
    fn count_for(&mut self, backends: impl Iterator<Item = Counting> + Clone) {
        let Some(traffic) = &mut self.traffic else { return };
        let is_live = |set: u32| set != NO_SET && reserved_for(set).is_none();
        let backends = backends.filter(|backend| is_live(backend.set));
        let ids = backends.clone().map(|backend| (backend.id, backend.addr.is_v4()));
        let counted = traffic.make_room(ids).and_then(|()| {
            for Counting { id, set, addr, port } in backends {
                traffic.assign(id, set, &addr, port)?;
            }
            Ok(())
        });
        if let Err(error) = counted {
            tracing::warn!(%error, "traffic to backends is not counted");
        }
    }

    /// Counts writes of elements of one type.
    fn count<Element>(&mut self, calls: usize, writes: usize) {
        self.calls += calls as u64;
        self.writes += writes as u64;
        self.bytes += (writes * size_of::<Element>()) as u64;
    }
}

impl Maps for KernelMaps {
    fn dump(&mut self) -> Result<Tables, MapsError> {
        let NodeTables { addrs, cluster_ranges, config } = self.node_tables()?;
        let mut tables =
            Tables { node_addrs: addrs, cluster_ranges, node_config: config, ..Tables::default() };
        self.visit_frontends(&mut |key, value| {
            tables.frontends.insert(*key, *value);
        })?;
        self.visit_source_ranges(&mut |range| {
            tables.source_ranges.insert(*range);
        })?;
        self.sets.array().read_all(|set, words| {
            let word = u64::from(words[1]) << 32 | u64::from(words[0]);
            tables.sets.insert(set, SetWord(word));
        });
        self.slots.array().read_all(|index, words| {
            tables.slots.resize(index as usize, 0);
            tables.slots.push(words[0]);
        });
        self.backends4.array().read_all(|id, words| {
            tables.backends4.insert(id, record::<_, 3>(words));
        });
        self.backends6.array().read_all(|id, words| {
            tables.backends6.insert(id, record::<_, 6>(words));
        });
        Ok(tables)
    }

    fn visit_frontends(
        &mut self,
        visit: &mut dyn FnMut(&FrontendKey, &Frontend),
    ) -> Result<(), MapsError> {
        let visited =
            self.frontends.visit(|batch| batch.iter().for_each(|(key, value)| visit(key, value)));
        visited.map_err(kernel("read", &layout::FRONTENDS.inner, &"its entries"))?;
        self.allocated.visit(visit).map_err(kernel(
            "read",
            &layout::ALLOCATED.inner,
            &"its entries",
        ))
    }

    fn visit_source_ranges(
        &mut self,
        visit: &mut dyn FnMut(&SourceRange),
    ) -> Result<(), MapsError> {
        let map = self.source_ranges.as_fd();
        let batches = walk::visit(map, |batch: &Batch<'_, SourceRangeKey, u32>| {
            for key in batch.keys {
                visit(&SourceRange::from(*key));
            }
        });
        match batches {
            // Longest-prefix maps can be read in batches since Linux 5.14.
            Err(error) if error.raw_os_error() == Some(sys::ENOTSUPP) => {
                let entries: BTreeMap<SourceRangeKey, u32> =
                    read(&self.source_ranges, &layout::SOURCE_RANGES)?;
                for key in entries.into_keys() {
                    visit(&SourceRange::from(key));
                }
                Ok(())
            }
            batches => batches.map_err(kernel("read", &layout::SOURCE_RANGES, &"its entries")),
        }
    }

    fn word(&self, set: u32) -> SetWord {
        let mut words = [0; 2];
        self.sets.array().read(set, &mut words);
        SetWord(u64::from(words[1]) << 32 | u64::from(words[0]))
    }

    fn read_slots(&self, offset: u32, words: &mut [u32]) {
        for (index, word) in (offset..).zip(words) {
            self.slots.array().read(index, std::slice::from_mut(word));
        }
    }

    fn backend4(&self, id: u32) -> Backend4 {
        let mut words = [0; 3];
        self.backends4.array().read(id, &mut words);
        record::<_, 3>(&words)
    }

    fn backend6(&self, id: u32) -> Backend6 {
        let mut words = [0; 6];
        self.backends6.array().read(id, &mut words);
        record::<_, 6>(&words)
    }

    fn node_tables(&mut self) -> Result<NodeTables, MapsError> {
        let ranges: BTreeMap<PrefixKey, u32> = read(&self.cluster_ranges, &layout::CLUSTER_RANGES)?;
        let config = sys::lookup(self.node_config.as_fd(), &0_u32).map_err(kernel(
            "read",
            &layout::NODE_CONFIG,
            &"its record",
        ))?;
        Ok(NodeTables {
            addrs: read(&self.node_addrs, &layout::NODE_ADDRS)?,
            cluster_ranges: ranges.into_iter().map(|(key, flags)| (key.into(), flags)).collect(),
            config: config.unwrap_or_default(),
        })
    }

    fn others(&mut self) -> Result<Vec<Usage>, MapsError> {
        Ok(vec![
            usage::<Addr, Endpoint>(&self.endpoints, &layout::ENDPOINTS)?,
            usage::<u64, PodNetns>(&self.pod_netns, &layout::POD_NETNS)?,
        ])
    }

    fn capacities(&self) -> Capacities {
        Capacities {
            frontends: self.frontends.capacity(),
            sets: self.sets.array().capacity(),
            slot_words: self.slots.array().capacity(),
            backends4: self.backends4.array().capacity(),
            backends6: self.backends6.array().capacity(),
            ..Capacities::default()
        }
    }

    /// Side by side: each table's change waits for running programs, and all wait at once.
    fn grow(&mut self, tables: &[(Growing, u32)]) -> Result<(), MapsError> {
        let now = self.capacities();
        let larger: Vec<_> =
            tables.iter().copied().filter(|(table, capacity)| *capacity > now.of(*table)).collect();
        let capacity = |table| larger.iter().find(|(of, _)| *of == table).map(|(_, to)| *to);
        let Self { frontends, sets, slots, backends4, backends6, .. } = self;
        let arrays = [
            (Growing::Sets, sets),
            (Growing::Slots, slots),
            (Growing::Backends4, backends4),
            (Growing::Backends6, backends6),
        ];
        let arrays = arrays.into_iter().filter_map(|(of, array)| Some((of, array, capacity(of)?)));
        let hash = capacity(Growing::Frontends).map(|to| (Growing::Frontends, frontends, to));
        let grown = growing::side_by_side(hash, arrays);
        for (table, copied) in grown {
            let copied = copied.map_err(|source| MapsError::Kernel {
                operation: "make room in",
                map: table.name(),
                object: format!("{} entries", capacity(table).unwrap_or_default()),
                source: Box::new(source),
            })?;
            self.count::<(FrontendKey, Frontend)>(copied + 1, copied);
        }
        Ok(())
    }

    fn put_frontends(&mut self, entries: &[(FrontendKey, Frontend)]) -> Result<(), MapsError> {
        let (marks, others): (Vec<_>, Vec<_>) =
            entries.iter().copied().partition(|(key, _)| key.is_guard());
        let marked = self.allocated.set(marks.iter().map(|(key, _)| key), true);
        let written = marked
            .map_err(kernel("write to", &layout::ALLOCATED.inner, &"marks of cluster IPs"))
            .and_then(|()| put(self.frontends.as_fd(), &self.frontends.layout(), &others));
        self.count::<(FrontendKey, Frontend)>(entries.len(), entries.len());
        written
    }

    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Result<(), MapsError> {
        let (marks, others): (Vec<_>, Vec<_>) =
            keys.iter().copied().partition(FrontendKey::is_guard);
        let unmarked = self.allocated.set(marks.iter(), false);
        let removed = unmarked
            .map_err(kernel("write to", &layout::ALLOCATED.inner, &"marks of cluster IPs"))
            .and_then(|()| remove(self.frontends.as_fd(), &layout::FRONTENDS.inner, &others));
        self.count::<FrontendKey>(keys.len(), keys.len());
        removed
    }

    fn write_slots(&mut self, offset: u32, words: &[u32]) -> Result<(), MapsError> {
        let Ok(length) = u32::try_from(words.len()) else {
            return check(&self.slots, u32::MAX);
        };
        check(&self.slots, offset.saturating_add(length.saturating_sub(1)))?;
        for (index, word) in (offset..).zip(words) {
            self.slots.array().write(index, &[*word]);
        }
        self.count::<u32>(0, words.len());
        Ok(())
    }

    fn write_backends4(&mut self, backends: &[(u32, Backend4)]) -> Result<(), MapsError> {
        self.count_for(backends.iter().copied().map(endpoint4));
        for (id, backend) in backends {
            check(&self.backends4, *id)?;
            self.backends4.array().write(*id, &words::<_, 3>(backend));
        }
        self.count::<Backend4>(0, backends.len());
        Ok(())
    }

    fn write_backends6(&mut self, backends: &[(u32, Backend6)]) -> Result<(), MapsError> {
        self.count_for(backends.iter().copied().map(endpoint6));
        for (id, backend) in backends {
            check(&self.backends6, *id)?;
            self.backends6.array().write(*id, &words::<_, 6>(backend));
        }
        self.count::<Backend6>(0, backends.len());
        Ok(())
    }

    fn flip(&mut self, words: &[(u32, SetWord)]) -> Result<(), MapsError> {
        for (set, word) in words {
            check(&self.sets, *set)?;
            self.sets.array().publish(*set, word.0);
        }
        self.count::<SetWord>(0, words.len());
        Ok(())
    }

    fn barrier_call(&mut self) -> BarrierCall {
        self.count::<()>(1, 0);
        self.barrier.call()
    }

    fn put_node_addrs(&mut self, addrs: &[(Addr, NodeAddr)]) -> Result<(), MapsError> {
        let written = put(self.node_addrs.as_fd(), &layout::NODE_ADDRS, addrs);
        self.count::<(Addr, NodeAddr)>(addrs.len(), addrs.len());
        written
    }

    fn remove_node_addrs(&mut self, addrs: &[Addr]) -> Result<(), MapsError> {
        let removed = remove(self.node_addrs.as_fd(), &layout::NODE_ADDRS, addrs);
        self.count::<Addr>(addrs.len(), addrs.len());
        removed
    }

    fn put_cluster_ranges(&mut self, ranges: &[(AddrRange, u32)]) -> Result<(), MapsError> {
        for (range, flags) in ranges {
            sys::update(self.cluster_ranges.as_fd(), &PrefixKey::from(*range), flags)
                .map_err(refused("write to", &layout::CLUSTER_RANGES, range))?;
        }
        self.count::<(PrefixKey, u32)>(ranges.len(), ranges.len());
        Ok(())
    }

    fn remove_cluster_ranges(&mut self, ranges: &[AddrRange]) -> Result<(), MapsError> {
        for range in ranges {
            sys::delete(self.cluster_ranges.as_fd(), &PrefixKey::from(*range)).map_err(kernel(
                "remove from",
                &layout::CLUSTER_RANGES,
                range,
            ))?;
        }
        self.count::<PrefixKey>(ranges.len(), ranges.len());
        Ok(())
    }

    fn put_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError> {
        for range in ranges {
            sys::update(self.source_ranges.as_fd(), &SourceRangeKey::from(*range), &1_u32)
                .map_err(refused("write to", &layout::SOURCE_RANGES, range))?;
        }
        self.count::<(SourceRangeKey, u32)>(ranges.len(), ranges.len());
        Ok(())
    }

    fn remove_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError> {
        for range in ranges {
            sys::delete(self.source_ranges.as_fd(), &SourceRangeKey::from(*range))
                .map_err(kernel("remove from", &layout::SOURCE_RANGES, range))?;
        }
        self.count::<SourceRangeKey>(ranges.len(), ranges.len());
        Ok(())
    }

    fn set_node_config(&mut self, config: &NodeConfig) -> Result<(), MapsError> {
        sys::update(self.node_config.as_fd(), &0_u32, config).map_err(kernel(
            "write to",
            &layout::NODE_CONFIG,
            &"its record",
        ))?;
        self.count::<NodeConfig>(1, 1);
        Ok(())
    }

    fn begin_traffic(&mut self, sets: &[u32]) {
        if let Some(traffic) = &mut self.traffic
            && let Err(error) = traffic.begin(sets)
        {
            tracing::warn!(%error, "counters of a former service are not reset");
        }
    }

    fn visit_traffic(&mut self, visit: &mut dyn FnMut(Counted)) -> Result<(), MapsError> {
        let Some(traffic) = &self.traffic else { return Ok(()) };
        traffic.visit(visit).map_err(kernel("read", &layout::SERVICE_COUNTS, &"its entries"))
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

/// A backend, as its counters know it.
struct Counting {
    id: u32,
    set: u32,
    addr: Addr,
    port: [u8; 2],
}

fn endpoint4((id, backend): (u32, Backend4)) -> Counting {
    let Backend4 { addr, port, set, .. } = backend;
    Counting { id, set, addr: Addr::from_v4(addr), port }
}

fn endpoint6((id, backend): (u32, Backend6)) -> Counting {
    let Backend6 { addr, port, set, .. } = backend;
    Counting { id, set, addr: Addr::from_v6(addr), port }
}

/// A refusal in words: the map, and the element in question.
pub(super) fn kernel<E: Debug>(
    operation: &'static str,
    layout: &MapLayout,
    element: &E,
) -> impl FnOnce(io::Error) -> MapsError {
    let object = format!("{element:?}");
    let map = layout.name;
    move |source| MapsError::Kernel { operation, map, object, source: Box::new(source) }
}

/// As [`kernel`], where the map may be full.
fn refused<E: Debug>(
    operation: &'static str,
    layout: &MapLayout,
    element: &E,
) -> impl FnOnce(io::Error) -> MapsError {
    let (map, capacity) = (layout.name, layout.entries);
    let object = format!("{element:?}");
    move |source| match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => MapsError::Full { map, capacity, object },
        _ => MapsError::Kernel { operation, map, object, source: Box::new(source) },
    }
}

fn read<K: Pod + Default + Ord, V: Pod + Default>(
    map: &OwnedFd,
    layout: &MapLayout,
) -> Result<BTreeMap<K, V>, MapsError> {
    let mut entries = BTreeMap::new();
    let mut next = sys::next_key::<K>(map.as_fd(), None);
    loop {
        let key = match next.map_err(kernel("read", layout, &"its keys"))? {
            // A key seen before: the kernel began anew behind a key that was removed meanwhile.
            Some(key) if !entries.contains_key(&key) => key,
            _ => return Ok(entries),
        };
        let value = sys::lookup(map.as_fd(), &key).map_err(kernel("read", layout, &"a value"))?;
        next = sys::next_key(map.as_fd(), Some(&key));
        if let Some(value) = value {
            entries.insert(key, value);
        }
    }
}

/// How many entries a hash holds.
fn usage<K: Pod + Default, V: Pod + Default>(
    map: &OwnedFd,
    layout: &MapLayout,
) -> Result<Usage, MapsError> {
    let mut used = 0;
    walk::visit(map.as_fd(), |batch: &Batch<'_, K, V>| used += batch.keys.len())
        .map_err(kernel("count the entries of", layout, &"all"))?;
    let used = u32::try_from(used).unwrap_or(u32::MAX);
    Ok(Usage { map: layout.name, used, now: layout.entries, max: layout.entries })
}

/// Writes entries in order, a batch at a time.
fn put<K: Pod + Debug, V: Pod>(
    map: BorrowedFd<'_>,
    layout: &MapLayout,
    entries: &[(K, V)],
) -> Result<(), MapsError> {
    for batch in entries.chunks(BATCH) {
        let (keys, values): (Vec<K>, Vec<V>) = batch.iter().copied().unzip();
        sys::update_batch(map, &keys, &values).map_err(|BatchError { done, error }| {
            refused("write to", layout, &keys.get(done))(error)
        })?;
    }
    Ok(())
}

/// Removes keys in order, a batch at a time; a batch ends at a missing key and goes on behind it.
fn remove<K: Pod + Debug>(
    map: BorrowedFd<'_>,
    layout: &MapLayout,
    keys: &[K],
) -> Result<(), MapsError> {
    for mut batch in keys.chunks(BATCH) {
        while !batch.is_empty() {
            match sys::delete_batch(map, batch) {
                Ok(()) => break,
                Err(BatchError { done, error }) if error.raw_os_error() == Some(libc::ENOENT) => {
                    batch = batch.get(done + 1..).unwrap_or_default();
                }
                Err(BatchError { done, error }) => {
                    return Err(kernel("remove from", layout, &batch.get(done))(error));
                }
            }
        }
    }
    Ok(())
}

/// Whether an index is inside an array.
fn check(array: &GrowingArray, index: u32) -> Result<(), MapsError> {
    let (map, capacity) = (array.name(), array.array().capacity());
    if index < capacity { Ok(()) } else { Err(MapsError::OutOfRange { map, capacity, index }) }
}

/// A record as words in memory order.
fn words<R: Pod, const N: usize>(record: &R) -> [u32; N] {
    const { assert!(size_of::<R>() == N * 4 && align_of::<R>() == 4) };
    // SAFETY: of that size and alignment, and made of bytes of which any are a word.
    unsafe { *std::ptr::from_ref(record).cast() }
}

/// Words in memory order as a record; `words` has `N` of them.
pub(super) fn record<R: Pod + Default, const N: usize>(words: &[u32]) -> R {
    const { assert!(size_of::<R>() == N * 4 && align_of::<R>() == 4) };
    let Some(words) = words.first_chunk::<N>() else { return R::default() };
    // SAFETY: of that size and alignment, and any bytes are an `R`.
    unsafe { *words.as_ptr().cast() }
}

impl From<AddrRange> for PrefixKey {
    fn from(range: AddrRange) -> Self {
        Self { prefix_len: range.prefix_len.into(), addr: range.addr }
    }
}

impl From<PrefixKey> for AddrRange {
    fn from(key: PrefixKey) -> Self {
        Self { addr: key.addr, prefix_len: u8::try_from(key.prefix_len).unwrap_or(u8::MAX) }
    }
}

impl From<SourceRange> for SourceRangeKey {
    fn from(SourceRange { set, range }: SourceRange) -> Self {
        Self { prefix_len: 32 + u32::from(range.prefix_len), set, addr: range.addr }
    }
}

impl From<SourceRangeKey> for SourceRange {
    fn from(key: SourceRangeKey) -> Self {
        let prefix_len = u8::try_from(key.prefix_len.saturating_sub(32)).unwrap_or(u8::MAX);
        Self { set: key.set, range: AddrRange { addr: key.addr, prefix_len } }
    }
}
