//! What the pinned maps are: what `ebpf/programs/src/maps.rs` declares, as the kernel reports it.
//! A pinned map of another shape is never used, and a declaration that differs never loads.

use std::{io, os::fd::BorrowedFd};

use mizzen_ebpf_abi::{
    addr::Addr,
    affinity::{Affinity, AffinityKey},
    conntrack::{Flow, FlowKey},
    counters::Counter,
    limits, maps,
    node::{Endpoint, NodeAddr, NodeConfig, Peer, PodNetns},
    pod_rate::PodRate,
    service::{Allocated, Backend4, Backend6, Frontend, FrontendKey, SetWord},
    socket::{SocketPeer, SocketPeers},
    traffic::{BackendCounts, CHUNK_IDS, CHUNKS, PacketCounts, ServiceCounts},
};

use super::sys;

/// The shape of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapLayout {
    /// Its name, which is that of its pin.
    pub name: &'static str,
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Flags it is created with.
    pub flags: u32,
    /// How many entries it holds; [`ANY`] where that is said when it is made.
    pub entries: u32,
}

/// As many entries as a map has.
const ANY: u32 = 0;

pub(super) const HASH: u32 = 1;
pub(super) const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LPM_TRIE: u32 = 11;
const ARRAY_OF_MAPS: u32 = 12;
const SK_STORAGE: u32 = 24;
const RINGBUF: u32 = 27;

pub(super) const NO_PREALLOC: u32 = 1 << 0;
pub(super) const MMAPABLE: u32 = 1 << 10;
/// Another of any size may take its place in a map of maps (Linux 5.10).
const INNER_MAP: u32 = 1 << 12;

#[expect(clippy::cast_possible_truncation, reason = "sizes of small records")]
pub(super) const fn layout<K, V>(
    name: &'static str,
    kind: u32,
    flags: u32,
    entries: u32,
) -> MapLayout {
    let (key_size, value_size) = (size_of::<K>() as u32, size_of::<V>() as u32);
    MapLayout { name, kind, key_size, value_size, flags, entries }
}

/// A key of the longest-prefix map: `struct bpf_lpm_trie_key_u8` over 16 octets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PrefixKey {
    /// Length of the prefix in bits.
    pub prefix_len: u32,
    /// The network address.
    pub addr: Addr,
}

// SAFETY: integers and octets without padding, as the assertion proves: any bytes are a value.
unsafe impl aya::Pod for PrefixKey {}
const _: () = assert!(size_of::<PrefixKey>() == 20);

/// A key of the source ranges: a prefix over a set's id, in native order, and 16 octets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SourceRangeKey {
    /// Length of the prefix in bits, the set's 32 included.
    pub prefix_len: u32,
    /// The set.
    pub set: u32,
    /// The network address.
    pub addr: Addr,
}

// SAFETY: integers and octets without padding, as the assertion proves: any bytes are a value.
unsafe impl aya::Pod for SourceRangeKey {}
const _: () = assert!(size_of::<SourceRangeKey>() == 24);

/// The shape of a table that grows: of the pinned array of one map, and of the map in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct GrowingLayout {
    /// The map at first.
    pub inner: MapLayout,
    /// Records in one element of the map.
    pub records: u32,
}

impl GrowingLayout {
    /// The shape of what is pinned.
    pub(super) const fn outer(&self) -> MapLayout {
        layout::<u32, u32>(self.inner.name, ARRAY_OF_MAPS, 0, 1)
    }

    /// The shape of a map that holds at least `capacity` records.
    pub(super) fn holding(&self, capacity: u32) -> MapLayout {
        MapLayout { entries: capacity.div_ceil(self.records), ..self.inner }
    }

    /// How many records such a map holds.
    pub(super) fn capacity(&self, entries: u32) -> u32 {
        entries.saturating_mul(self.records)
    }
}

const fn growing_array<V>(name: &'static str, records: u32, capacity: u32) -> GrowingLayout {
    let inner = layout::<u32, V>(name, ARRAY, MMAPABLE | INNER_MAP, capacity / records);
    GrowingLayout { inner, records }
}

/// The shapes by name.
pub(super) const FRONTENDS: GrowingLayout = GrowingLayout {
    inner: layout::<FrontendKey, Frontend>(
        maps::FRONTENDS,
        HASH,
        NO_PREALLOC,
        limits::FRONTENDS_MIN,
    ),
    records: 1,
};
pub(super) const SETS: GrowingLayout = growing_array::<SetWord>(maps::SETS, 1, limits::SETS_MIN);
pub(super) const SLOTS: GrowingLayout =
    growing_array::<[u32; 2]>(maps::SLOTS, 2, limits::SLOT_WORDS_MIN);
pub(super) const BACKENDS4: GrowingLayout =
    growing_array::<[Backend4; 2]>(maps::BACKENDS4, 2, limits::BACKENDS_MIN);
pub(super) const BACKENDS6: GrowingLayout =
    growing_array::<Backend6>(maps::BACKENDS6, 1, limits::BACKENDS_MIN);
pub(super) const ALLOCATED: GrowingLayout = GrowingLayout {
    inner: layout::<Addr, Allocated>(maps::ALLOCATED, HASH, NO_PREALLOC, limits::ALLOCATED_MIN),
    records: 1,
};
/// All tables that grow.
pub(super) const GROWING: [GrowingLayout; 6] =
    [FRONTENDS, SETS, SLOTS, BACKENDS4, BACKENDS6, ALLOCATED];
pub(super) const NODE_ADDRS: MapLayout =
    layout::<Addr, NodeAddr>(maps::NODE_ADDRS, HASH, 0, limits::NODE_ADDRS_MAX);
pub(super) const ENDPOINTS: MapLayout =
    layout::<Addr, Endpoint>(maps::ENDPOINTS, HASH, 0, limits::ENDPOINTS_MAX);
pub(super) const CLUSTER_RANGES: MapLayout = layout::<PrefixKey, u32>(
    maps::CLUSTER_RANGES,
    LPM_TRIE,
    NO_PREALLOC,
    limits::CLUSTER_RANGES_MAX,
);
pub(super) const PEERS: MapLayout =
    layout::<PrefixKey, Peer>(maps::PEERS, LPM_TRIE, NO_PREALLOC, limits::PEERS_MAX);
pub(super) const TUNNELLED: MapLayout =
    layout::<PrefixKey, u32>(maps::TUNNELLED, LPM_TRIE, NO_PREALLOC, limits::PEERS_MAX);
pub(super) const SOURCE_RANGES: MapLayout = layout::<SourceRangeKey, u32>(
    maps::SOURCE_RANGES,
    LPM_TRIE,
    NO_PREALLOC,
    limits::SOURCE_RANGES_MAX,
);
pub(super) const POD_NETNS: MapLayout =
    layout::<u64, PodNetns>(maps::POD_NETNS, HASH, 0, limits::POD_NETNS_MAX);
pub(super) const POD_RATES: MapLayout =
    layout::<u32, PodRate>(maps::POD_RATES, HASH, 0, limits::POD_RATES_MAX);
pub(super) const SOCKET_OPTIONS: MapLayout = layout::<u32, u32>(maps::SOCKET_OPTIONS, ARRAY, 0, 1);
pub(super) const AFFINITY: MapLayout =
    layout::<AffinityKey, Affinity>(maps::AFFINITY, HASH, NO_PREALLOC, limits::AFFINITY_MAX);
pub(super) const NODE_CONFIG: MapLayout = layout::<u32, NodeConfig>(maps::NODE_CONFIG, ARRAY, 0, 1);
pub(super) const FLOWS: MapLayout = layout::<FlowKey, Flow>(maps::FLOWS, HASH, 0, ANY);
pub(super) const SOCKET_PEERS: MapLayout =
    layout::<i32, SocketPeers>(maps::SOCKET_PEERS, SK_STORAGE, NO_PREALLOC, 0);
pub(super) const TCP_PEERS: MapLayout =
    layout::<i32, SocketPeer>(maps::TCP_PEERS, SK_STORAGE, NO_PREALLOC, 0);
#[expect(clippy::cast_possible_truncation, reason = "a short list")]
pub(super) const COUNTERS: MapLayout =
    layout::<u32, u64>(maps::COUNTERS, PERCPU_ARRAY, 0, Counter::ALL.len() as u32);
pub(super) const BACKEND_COUNTS: MapLayout =
    layout::<u32, u32>(maps::BACKEND_COUNTS, ARRAY_OF_MAPS, 0, CHUNKS);
/// What is put into [`BACKEND_COUNTS`].
pub(super) const BACKEND_CHUNK: MapLayout =
    layout::<u32, BackendCounts>(maps::BACKEND_COUNTS, ARRAY, MMAPABLE, CHUNK_IDS);
pub(super) const PACKET_COUNTS: MapLayout =
    layout::<u32, u32>(maps::PACKET_COUNTS, ARRAY_OF_MAPS, 0, CHUNKS);
/// What is put into [`PACKET_COUNTS`], with one lane.
pub(super) const PACKET_CHUNK: MapLayout =
    layout::<u32, PacketCounts>(maps::PACKET_COUNTS, ARRAY, MMAPABLE | INNER_MAP, CHUNK_IDS);
pub(super) const SERVICE_COUNTS: MapLayout =
    layout::<u32, ServiceCounts>(maps::SERVICE_COUNTS, HASH, NO_PREALLOC, limits::SETS_MAX);
pub(super) const BARRIER: MapLayout = layout::<u32, u32>(maps::BARRIER, ARRAY_OF_MAPS, 0, 1);
/// What is put into [`BARRIER`].
pub(super) const INSIDE_BARRIER: MapLayout = layout::<u32, u32>(maps::BARRIER, ARRAY, 0, 1);

pub(super) const FLOW_EVENTS: MapLayout =
    layout::<u32, u32>(maps::FLOW_EVENTS, ARRAY_OF_MAPS, 0, 1);
/// What is put into [`FLOW_EVENTS`].
pub(super) const FLOW_RING: MapLayout = MapLayout {
    name: maps::FLOW_EVENTS,
    kind: RINGBUF,
    key_size: 0,
    value_size: 0,
    flags: 0,
    entries: limits::FLOW_EVENTS_BYTES,
};

/// All maps that are pinned.
pub(super) const PINNED: &[MapLayout] = &[
    FRONTENDS.outer(),
    SETS.outer(),
    SLOTS.outer(),
    BACKENDS4.outer(),
    BACKENDS6.outer(),
    ALLOCATED.outer(),
    NODE_ADDRS,
    ENDPOINTS,
    CLUSTER_RANGES,
    PEERS,
    TUNNELLED,
    SOURCE_RANGES,
    POD_NETNS,
    POD_RATES,
    SOCKET_OPTIONS,
    AFFINITY,
    NODE_CONFIG,
    FLOWS,
    SOCKET_PEERS,
    TCP_PEERS,
    COUNTERS,
    BACKEND_COUNTS,
    PACKET_COUNTS,
    SERVICE_COUNTS,
    BARRIER,
    FLOW_EVENTS,
];

impl MapLayout {
    /// Whether a map of the shape `found` is what is asked for. There may be counters that only a
    /// later agent has.
    pub(super) fn admits(&self, found: &Self) -> bool {
        let enough = match self.name {
            maps::COUNTERS => found.entries >= self.entries,
            _ => self.entries == ANY || found.entries == self.entries,
        };
        enough && self.differs_in_entries_at_most(found)
    }

    /// Whether a map of the shape `found` is as asked for, but for the number of its elements.
    pub(super) fn differs_in_entries_at_most(&self, found: &Self) -> bool {
        Self { entries: found.entries, ..*self } == *found
    }

    /// The shape of a map in the kernel, under the name of the expected one.
    pub(super) fn of(map: BorrowedFd<'_>, expected: &Self) -> io::Result<Self> {
        let info = sys::map_info(map)?;
        Ok(Self {
            name: expected.name,
            kind: info.kind,
            key_size: info.key_size,
            value_size: info.value_size,
            flags: info.flags,
            entries: info.max_entries,
        })
    }
}

impl std::fmt::Display for MapLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name: _, kind, key_size, value_size, flags, entries } = self;
        write!(
            f,
            "type {kind}, keys of {key_size} and values of {value_size} bytes, {entries} entries, \
             flags {flags:#x}"
        )
    }
}
