//! Capacities and bounds of the datapath, and the relations between them.

/// Most frontends: (address, port, protocol) entries that name a set.
pub const FRONTENDS_MAX: u32 = 1 << 18;
/// Most sets of backends: one per service port and family.
pub const SETS_MAX: u32 = 1 << 17;
/// Most words of all slot ranges together, headers included.
pub const SLOT_WORDS_MAX: u32 = 1 << 22;
/// Most backends of each family.
pub const BACKENDS_MAX: u32 = 1 << 20;

/// Frontends that there is room for at first. These four tables grow as they fill.
pub const FRONTENDS_MIN: u32 = 1 << 10;
/// Sets that there is room for at first.
pub const SETS_MIN: u32 = 1 << 10;
/// Words of slot ranges that there is room for at first.
pub const SLOT_WORDS_MIN: u32 = 1 << 14;
/// Backends of each family that there is room for at first.
pub const BACKENDS_MIN: u32 = 1 << 12;
/// Blocks of 256 addresses with cluster IPs in them that there is room for at first.
pub const ALLOCATED_MIN: u32 = 1 << 8;

/// Addresses of this node.
pub const NODE_ADDRS_MAX: u32 = 1 << 10;
/// Pods of this node, an entry per address.
pub const ENDPOINTS_MAX: u32 = 1 << 12;
/// Ranges from which the cluster's pods and services have their addresses.
pub const CLUSTER_RANGES_MAX: u32 = 1 << 12;
/// Ranges and addresses of the other nodes: four for each of a dual-stack cluster.
pub const PEERS_MAX: u32 = 1 << 15;
/// Source ranges of all sets together.
pub const SOURCE_RANGES_MAX: u32 = 1 << 16;
/// Network namespaces of this node's pods.
pub const POD_NETNS_MAX: u32 = 1 << 11;
/// Pods of a node whose bandwidth is limited.
pub const POD_RATES_MAX: u32 = POD_NETNS_MAX;
/// Clients that keep their backends, of all sets together.
pub const AFFINITY_MAX: u32 = 1 << 18;
/// Flows that the packet path remembers by default, for each CPU: as kube-proxy's
/// `conntrack.maxPerCore`. A flow has two entries in the table.
pub const FLOWS_PER_CPU: u32 = 1 << 15;
/// How many of them at least: as its `conntrack.min`.
pub const FLOWS_LEAST: u32 = 1 << 17;
/// How many of them at most, by default: what Linux' own tracking holds on a large machine. The
/// table's memory is taken at once.
pub const FLOWS_MOST: u32 = 1 << 18;
/// Fewest flows that can be asked for.
pub const FLOWS_LEAST_CONFIGURED: u32 = 1 << 10;
/// Most flows that can be asked for.
pub const FLOWS_MAX: u32 = 1 << 22;
/// Packets in fragments whose ports are remembered at a time.
pub const FRAGMENTS_MAX: u32 = 1 << 13;
/// Translations that an unconnected UDP socket remembers for the way back.
pub const SOCKET_PEERS_MAX: usize = 4;
/// Ports that source NAT tries before it gives up and drops, counted.
pub const SNAT_PROBES_MAX: u32 = 32;
/// Ports whose flows are looked at for one that is over where the flow table is full.
pub const ROOM_PROBES_MAX: u32 = 8;
/// Packets of their own that the programs send on each processor in a second, of each kind (resets,
/// and three of ICMP errors).
pub const ANSWERS_PER_SECOND: u64 = 1_000;
/// How many of them at once, after a pause.
pub const ANSWERS_BURST: u64 = 1_000;
/// Octets of the ring buffer by which connections are followed: what ten thousand of them take. It is
/// there while somebody follows.
pub const FLOW_EVENTS_BYTES: u32 = 1 << 20;
/// IPv6 extension headers that a packet may carry before it is left to the stack.
pub const IPV6_EXTENSIONS_MAX: u32 = 6;

/// First of the source ports that source NAT uses by default: below Linux' ephemeral range
/// (32768-60999) and Kubernetes' node ports (30000-32767), so that it meets neither.
pub const SNAT_PORT_MIN: u16 = 10_000;
/// Last of the source ports that source NAT uses by default.
pub const SNAT_PORT_MAX: u16 = 29_999;

const _: () = assert!(SETS_MAX <= FRONTENDS_MAX);
const _: () = assert!(FLOWS_LEAST < FLOWS_MOST && FLOWS_MOST < FLOWS_MAX);
const _: () = assert!(FRONTENDS_MIN < FRONTENDS_MAX && SETS_MIN < SETS_MAX);
const _: () = assert!(SLOT_WORDS_MIN < SLOT_WORDS_MAX && BACKENDS_MIN < BACKENDS_MAX);
const _: () = assert!(SLOT_WORDS_MAX >= SETS_MAX * crate::service::RANGE_HEADER_WORDS);
const _: () = assert!(SNAT_PORT_MIN < SNAT_PORT_MAX && SNAT_PORT_MAX < 30_000);
const _: () = assert!((SNAT_PORT_MAX - SNAT_PORT_MIN) as u32 > SNAT_PROBES_MAX);
