//! The maps, as `mizzen_ebpf_abi::maps` documents them. The loader pins them by these names.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use mizzen_ebpf_abi::{
    addr::Addr,
    affinity::{Affinity, AffinityKey},
    conntrack::{Flow, FlowKey},
    counters::Counter,
    event::FlowEvent,
    limits,
    node::{Endpoint, NodeAddr, NodeConfig, Peer, PodNetns},
    pod_rate::PodRate,
    service::{Allocated, Backend4, Backend6, Frontend, FrontendKey},
    socket::{SocketPeer, SocketPeers},
    traffic::{self, BackendCounts, PacketCounts, ServiceCounts},
};

/// Flag of a hash that takes memory as it fills.
const AS_IT_FILLS: usize = BPF_F_NO_PREALLOC as usize;
/// Flags of an array that grows: user space writes it through a mapping, since a plain aligned
/// store there is one store here, which `bpf_map_update_elem`, a `memcpy` of unknown width, doesn't
/// promise; and another of any size may take its place.
const MAPPED: usize = (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize;

/// A table that grows: an array of the one map that is the table at present. What its declaration
/// says of the number of entries is a beginning.
type Growing<Map> = ArrayOfMaps<Map, 1>;
/// Where in a [`Growing`] the map is.
pub(crate) const PRESENT: u32 = 0;

/// What is dialled -> set.
#[btf_map]
pub(crate) static FRONTENDS: Growing<
    HashMap<FrontendKey, Frontend, { limits::FRONTENDS_MIN as usize }, AS_IT_FILLS>,
> = ArrayOfMaps::new();

/// Set -> the word that says where its range is (`SetWord`).
#[btf_map]
pub(crate) static SETS: Growing<Array<u64, { limits::SETS_MIN as usize }, MAPPED>> =
    ArrayOfMaps::new();

/// The ranges: header, backend ids. Two words to an element, which would take 8 octets anyway.
#[btf_map]
pub(crate) static SLOTS: Growing<Array<[u32; 2], { limits::SLOT_WORDS_MIN as usize / 2 }, MAPPED>> =
    ArrayOfMaps::new();

/// IPv4 backends by id, two to an element.
#[btf_map]
pub(crate) static BACKENDS4: Growing<
    Array<[Backend4; 2], { limits::BACKENDS_MIN as usize / 2 }, MAPPED>,
> = ArrayOfMaps::new();

/// IPv6 backends by id.
#[btf_map]
pub(crate) static BACKENDS6: Growing<Array<Backend6, { limits::BACKENDS_MIN as usize }, MAPPED>> =
    ArrayOfMaps::new();

/// Which addresses are services' cluster IPs, by block of 256.
#[btf_map]
pub(crate) static ALLOCATED: Growing<
    HashMap<Addr, Allocated, { limits::ALLOCATED_MIN as usize }, AS_IT_FILLS>,
> = ArrayOfMaps::new();

/// The node's own addresses.
#[btf_map]
pub(crate) static NODE_ADDRS: HashMap<Addr, NodeAddr, { limits::NODE_ADDRS_MAX as usize }> =
    HashMap::new();

/// The node's pods.
#[btf_map]
pub(crate) static ENDPOINTS: HashMap<Addr, Endpoint, { limits::ENDPOINTS_MAX as usize }> =
    HashMap::new();

/// What the cluster's address ranges are for. IPv4 prefixes are v4-mapped: their length plus 96.
#[btf_map]
pub(crate) static CLUSTER_RANGES: LpmTrie<Addr, u32, { limits::CLUSTER_RANGES_MAX as usize }> =
    LpmTrie::new();

/// Behind which other node an address is.
#[btf_map]
pub(crate) static PEERS: LpmTrie<Addr, Peer, { limits::PEERS_MAX as usize }> = LpmTrie::new();

/// What pods send through the tunnel -> index of the tunnel's device.
#[btf_map]
pub(crate) static TUNNELLED: LpmTrie<Addr, u32, { limits::PEERS_MAX as usize }> = LpmTrie::new();

/// A set, and an address of those who may use it: what a source range is matched against.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SourceRange {
    /// The set.
    pub(crate) set: u32,
    /// The address.
    pub(crate) addr: Addr,
}

/// Who may use a set's load balancer addresses. Prefixes are 32 longer than those of addresses.
#[btf_map]
pub(crate) static SOURCE_RANGES: LpmTrie<SourceRange, u32, { limits::SOURCE_RANGES_MAX as usize }> =
    LpmTrie::new();

/// Cookie of a network namespace -> the pod in it.
#[btf_map]
pub(crate) static POD_NETNS: HashMap<u64, PodNetns, { limits::POD_NETNS_MAX as usize }> =
    HashMap::new();

/// The host's end of a pod's veth -> how much the pod may send.
#[btf_map]
pub(crate) static POD_RATES: HashMap<u32, PodRate, { limits::POD_RATES_MAX as usize }> =
    HashMap::new();

/// What the socket programs have to look at.
#[btf_map]
pub(crate) static SOCKET_OPTIONS: Array<u32, 1> = Array::new();

/// Clients that keep their backends.
#[btf_map]
pub(crate) static AFFINITY: HashMap<
    AffinityKey,
    Affinity,
    { limits::AFFINITY_MAX as usize },
    AS_IT_FILLS,
> = HashMap::new();

/// The node's facts.
#[btf_map]
pub(crate) static NODE_CONFIG: Array<NodeConfig, 1> = Array::new();

/// Flows that the packet path translates. Preallocated: an insertion in interrupt context can't
/// fail for want of memory, only for want of room. How much of that there is, the loader says.
#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, Flow, { limits::FLOWS_LEAST as usize * 2 }> =
    HashMap::new();

/// What a UDP socket remembers.
#[btf_map]
pub(crate) static SOCKET_PEERS: SkStorage<SocketPeers> = SkStorage::new();

/// What a TCP socket remembers.
#[btf_map]
pub(crate) static TCP_PEERS: SkStorage<SocketPeer> = SkStorage::new();

/// What happened, counted per CPU.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// What backends were sent, by chunks of their ids. No other size takes a chunk's place, so that
/// lookups are inlined.
#[btf_map]
pub(crate) static BACKEND_COUNTS: ArrayOfMaps<
    Array<BackendCounts, { traffic::CHUNK_IDS as usize }, { BPF_F_MMAPABLE as usize }>,
    { traffic::CHUNKS as usize },
> = ArrayOfMaps::new();

/// Packets translated for backends, by chunks of their ids; as many lanes as this node needs.
#[btf_map]
pub(crate) static PACKET_COUNTS: ArrayOfMaps<
    Array<PacketCounts, { traffic::CHUNK_IDS as usize }, MAPPED>,
    { traffic::CHUNKS as usize },
> = ArrayOfMaps::new();

/// What former backends were sent; written and read by user space alone.
#[btf_map]
pub(crate) static SERVICE_COUNTS: HashMap<
    u32,
    ServiceCounts,
    { limits::SETS_MAX as usize },
    AS_IT_FILLS,
> = HashMap::new();

/// Never read: an update from user space waits for all programs that run meanwhile.
#[btf_map]
pub(crate) static BARRIER: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();

/// Where those who follow connections read; empty while there are none, which is all that it costs
/// then. One look-up, which the kernel inlines.
#[btf_map]
pub(crate) static FLOW_EVENTS: ArrayOfMaps<
    RingBuf<FlowEvent, { limits::FLOW_EVENTS_BYTES as usize }>,
    1,
> = ArrayOfMaps::new();

/// Counts one.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own, and programs don't migrate while they run.
        unsafe { *value += 1 };
    }
}
