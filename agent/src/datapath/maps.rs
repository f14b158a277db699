//! The tables in the kernel: [`Maps`] over the pinned maps.
//!
//! Arrays are written through mapped memory, hashes by batches. A set's word is stored behind
//! everything that it leads to (release), so that a program that reads the word finds the range.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::Pod;
use mizzen_ebpf_abi::{
    addr::Addr,
    node::{NodeAddr, NodeConfig},
    service::{Backend4, Backend6, Frontend, FrontendKey, SetWord},
};

use super::{
    layout::{self, MapLayout, PrefixKey, SourceRangeKey},
    mapped::MappedArray,
    pin::{PinError, Pins},
    sys::{self, BatchError},
};
use crate::apply::maps::{AddrRange, Maps, MapsError, SourceRange, Tables};

/// Elements of one batched call: bounds how long the kernel is busy with it.
const BATCH: usize = 4096;

/// The tables of this node's programs.
#[derive(Debug)]
pub struct KernelMaps {
    frontends: OwnedFd,
    sets: MappedArray,
    slots: MappedArray,
    backends4: MappedArray,
    backends6: MappedArray,
    node_addrs: OwnedFd,
    cluster_ranges: OwnedFd,
    source_ranges: OwnedFd,
    node_config: OwnedFd,
    barrier: OwnedFd,
    inside_barrier: OwnedFd,
    calls: u64,
    writes: u64,
}

impl KernelMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        let mapped = |layout: MapLayout| Ok(MappedArray::new(pins.open_map(&layout)?, layout));
        let inside_barrier = sys::create_small_array()
            .map_err(|source| PinError::Open(pins.map(layout::BARRIER.name), source))?;
        Ok(Self {
            frontends: pins.open_map(&layout::FRONTENDS)?,
            sets: mapped(layout::SETS)?,
            slots: mapped(layout::SLOTS)?,
            backends4: mapped(layout::BACKENDS4)?,
            backends6: mapped(layout::BACKENDS6)?,
            node_addrs: pins.open_map(&layout::NODE_ADDRS)?,
            cluster_ranges: pins.open_map(&layout::CLUSTER_RANGES)?,
            source_ranges: pins.open_map(&layout::SOURCE_RANGES)?,
            node_config: pins.open_map(&layout::NODE_CONFIG)?,
            barrier: pins.open_map(&layout::BARRIER)?,
            inside_barrier,
            calls: 0,
            writes: 0,
        })
    }

    fn count(&mut self, calls: usize, writes: usize) {
        self.calls += calls as u64;
        self.writes += writes as u64;
    }
}

impl Maps for KernelMaps {
    fn dump(&mut self) -> Result<Tables, MapsError> {
        let ranges: BTreeMap<PrefixKey, u32> = read(&self.cluster_ranges, &layout::CLUSTER_RANGES)?;
        let source_ranges: BTreeMap<SourceRangeKey, u32> =
            read(&self.source_ranges, &layout::SOURCE_RANGES)?;
        let mut tables = Tables {
            source_ranges: source_ranges.into_keys().map(SourceRange::from).collect(),
            frontends: read(&self.frontends, &layout::FRONTENDS)?,
            node_addrs: read(&self.node_addrs, &layout::NODE_ADDRS)?,
            cluster_ranges: ranges.into_iter().map(|(key, flags)| (key.into(), flags)).collect(),
            ..Tables::default()
        };
        tables.node_config = sys::lookup(self.node_config.as_fd(), &0_u32)
            .map_err(kernel("read", &layout::NODE_CONFIG, &"its record"))?
            .unwrap_or_default();
        read_array(&self.sets, |set, words| {
            let word = u64::from(words[1]) << 32 | u64::from(words[0]);
            tables.sets.insert(set, SetWord(word));
        })?;
        read_array(&self.slots, |index, words| {
            tables.slots.resize(index as usize, 0);
            tables.slots.push(words[0]);
        })?;
        read_array(&self.backends4, |id, words| {
            tables.backends4.insert(id, record::<_, 4>(words));
        })?;
        read_array(&self.backends6, |id, words| {
            tables.backends6.insert(id, record::<_, 6>(words));
        })?;
        Ok(tables)
    }

    fn put_frontends(&mut self, entries: &[(FrontendKey, Frontend)]) -> Result<(), MapsError> {
        let written = put(&self.frontends, &layout::FRONTENDS, entries);
        self.count(entries.len(), entries.len());
        written
    }

    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Result<(), MapsError> {
        let removed = remove(&self.frontends, &layout::FRONTENDS, keys);
        self.count(keys.len(), keys.len());
        removed
    }

    fn write_slots(&mut self, offset: u32, words: &[u32]) -> Result<(), MapsError> {
        let Ok(length) = u32::try_from(words.len()) else {
            return check(&self.slots, u32::MAX);
        };
        check(&self.slots, offset.saturating_add(length.saturating_sub(1)))?;
        for (index, word) in (offset..).zip(words) {
            write(&mut self.slots, index, &[*word])?;
        }
        self.count(0, words.len());
        Ok(())
    }

    fn write_backends4(&mut self, backends: &[(u32, Backend4)]) -> Result<(), MapsError> {
        for (id, backend) in backends {
            check(&self.backends4, *id)?;
            write(&mut self.backends4, *id, &words::<_, 4>(backend))?;
        }
        self.count(0, backends.len());
        Ok(())
    }

    fn write_backends6(&mut self, backends: &[(u32, Backend6)]) -> Result<(), MapsError> {
        for (id, backend) in backends {
            check(&self.backends6, *id)?;
            write(&mut self.backends6, *id, &words::<_, 6>(backend))?;
        }
        self.count(0, backends.len());
        Ok(())
    }

    fn flip(&mut self, words: &[(u32, SetWord)]) -> Result<(), MapsError> {
        for (set, word) in words {
            check(&self.sets, *set)?;
            self.sets.publish(*set, word.0).map_err(kernel(
                "map into memory",
                &layout::SETS,
                set,
            ))?;
        }
        self.count(0, words.len());
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), MapsError> {
        let inside = descriptor(&self.inside_barrier);
        sys::update(self.barrier.as_fd(), &0_u32, &inside).map_err(kernel(
            "write to",
            &layout::BARRIER,
            &"its entry",
        ))?;
        self.count(1, 0);
        Ok(())
    }

    fn put_node_addrs(&mut self, addrs: &[(Addr, NodeAddr)]) -> Result<(), MapsError> {
        let written = put(&self.node_addrs, &layout::NODE_ADDRS, addrs);
        self.count(addrs.len(), addrs.len());
        written
    }

    fn remove_node_addrs(&mut self, addrs: &[Addr]) -> Result<(), MapsError> {
        let removed = remove(&self.node_addrs, &layout::NODE_ADDRS, addrs);
        self.count(addrs.len(), addrs.len());
        removed
    }

    fn put_cluster_ranges(&mut self, ranges: &[(AddrRange, u32)]) -> Result<(), MapsError> {
        for (range, flags) in ranges {
            sys::update(self.cluster_ranges.as_fd(), &PrefixKey::from(*range), flags)
                .map_err(refused("write to", &layout::CLUSTER_RANGES, range))?;
        }
        self.count(ranges.len(), ranges.len());
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
        self.count(ranges.len(), ranges.len());
        Ok(())
    }

    fn put_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError> {
        for range in ranges {
            sys::update(self.source_ranges.as_fd(), &SourceRangeKey::from(*range), &1_u32)
                .map_err(refused("write to", &layout::SOURCE_RANGES, range))?;
        }
        self.count(ranges.len(), ranges.len());
        Ok(())
    }

    fn remove_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError> {
        for range in ranges {
            sys::delete(self.source_ranges.as_fd(), &SourceRangeKey::from(*range))
                .map_err(kernel("remove from", &layout::SOURCE_RANGES, range))?;
        }
        self.count(ranges.len(), ranges.len());
        Ok(())
    }

    fn set_node_config(&mut self, config: &NodeConfig) -> Result<(), MapsError> {
        sys::update(self.node_config.as_fd(), &0_u32, config).map_err(kernel(
            "write to",
            &layout::NODE_CONFIG,
            &"its record",
        ))?;
        self.count(1, 1);
        Ok(())
    }

    fn calls(&self) -> u64 {
        self.calls
    }

    fn writes(&self) -> u64 {
        self.writes
    }
}

/// A refusal in words: the map, and the element in question.
fn kernel<E: Debug>(
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

fn read_array(array: &MappedArray, visit: impl FnMut(u32, &[u32])) -> Result<(), MapsError> {
    array.read_all(visit).map_err(kernel("read", array.layout(), &"the whole"))
}

/// Writes entries in order, a batch at a time.
fn put<K: Pod + Debug, V: Pod>(
    map: &OwnedFd,
    layout: &MapLayout,
    entries: &[(K, V)],
) -> Result<(), MapsError> {
    for batch in entries.chunks(BATCH) {
        let (keys, values): (Vec<K>, Vec<V>) = batch.iter().copied().unzip();
        sys::update_batch(map.as_fd(), &keys, &values).map_err(|BatchError { done, error }| {
            refused("write to", layout, &keys.get(done))(error)
        })?;
    }
    Ok(())
}

/// Removes keys in order, a batch at a time; a batch ends at a missing key and goes on behind it.
fn remove<K: Pod + Debug>(map: &OwnedFd, layout: &MapLayout, keys: &[K]) -> Result<(), MapsError> {
    for mut batch in keys.chunks(BATCH) {
        while !batch.is_empty() {
            match sys::delete_batch(map.as_fd(), batch) {
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
fn check(array: &MappedArray, index: u32) -> Result<(), MapsError> {
    let MapLayout { name: map, entries: capacity, .. } = *array.layout();
    if index < capacity { Ok(()) } else { Err(MapsError::OutOfRange { map, capacity, index }) }
}

fn write(array: &mut MappedArray, index: u32, words: &[u32]) -> Result<(), MapsError> {
    let layout = *array.layout();
    array.write(index, words).map_err(kernel("map into memory", &layout, &index))
}

/// A record as words in memory order.
fn words<R: Pod, const N: usize>(record: &R) -> [u32; N] {
    const { assert!(size_of::<R>() == N * 4 && align_of::<R>() == 4) };
    // SAFETY: of that size and alignment, and made of bytes of which any are a word.
    unsafe { *std::ptr::from_ref(record).cast() }
}

/// Words in memory order as a record; `words` has `N` of them.
fn record<R: Pod + Default, const N: usize>(words: &[u32]) -> R {
    const { assert!(size_of::<R>() == N * 4 && align_of::<R>() == 4) };
    let Some(words) = words.first_chunk::<N>() else { return R::default() };
    // SAFETY: of that size and alignment, and any bytes are an `R`.
    unsafe { *words.as_ptr().cast() }
}

fn descriptor(fd: &OwnedFd) -> u32 {
    use std::os::fd::AsRawFd as _;
    fd.as_raw_fd().cast_unsigned()
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
