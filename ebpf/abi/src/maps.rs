//! Names of the maps, the version of their layout, and where they are pinned.
//!
//! Below the bpffs folder of a node (`--bpffs`, by default `/sys/fs/bpf/mizzen`):
//! `v<ABI_VERSION>/maps/<name>`, `v<ABI_VERSION>/links/<hook>`.

/// Version of every layout in this crate. An agent never opens maps of another version.
pub const ABI_VERSION: u32 = 2;

/// Hash that grows: [`crate::service::FrontendKey`] -> [`crate::service::Frontend`].
///
/// A table that grows is pinned as an array of one map, the present one. To grow, the agent fills
/// a larger map with the same contents and puts it in the place of the other: programs, which look
/// for the present map with each lookup, find the same in either.
pub const FRONTENDS: &str = "FRONTENDS";
/// Array that grows: set id -> [`crate::service::SetWord`], flipped by one aligned 8-byte store.
pub const SETS: &str = "SETS";
/// Array that grows, of `u32`, two to an element, since the kernel rounds elements up to 8 octets:
/// the slot ranges, each a header and then backend ids.
pub const SLOTS: &str = "SLOTS";
/// Array that grows: backend id -> [`crate::service::Backend4`], two to an element.
pub const BACKENDS4: &str = "BACKENDS4";
/// Array that grows: backend id -> [`crate::service::Backend6`].
pub const BACKENDS6: &str = "BACKENDS6";
/// Hash that grows: first address of a block of 256 -> [`crate::service::Allocated`]: which
/// addresses are services' cluster IPs.
pub const ALLOCATED: &str = "ALLOCATED";
/// Hash: [`crate::addr::Addr`] -> [`crate::node::NodeAddr`].
pub const NODE_ADDRS: &str = "NODE_ADDRS";
/// Hash: [`crate::addr::Addr`] -> [`crate::node::Endpoint`].
pub const ENDPOINTS: &str = "ENDPOINTS";
/// Longest-prefix match over 16-byte addresses -> bits of
/// [`crate::node::cluster_range_flags`]: what the cluster's address ranges are for.
pub const CLUSTER_RANGES: &str = "CLUSTER_RANGES";
/// Longest-prefix match over 16-byte addresses -> [`crate::node::Peer`]: behind which other node an
/// address is.
pub const PEERS: &str = "PEERS";
/// Longest-prefix match over 16-byte addresses -> index of the tunnel's device: what pods send
/// through the tunnel.
pub const TUNNELLED: &str = "TUNNELLED";
/// Longest-prefix match over a set's id and a 16-byte address -> 1: who may use the set's frontends
/// that have [`crate::service::frontend_flags::SOURCE_RANGES`].
pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
/// Hash: cookie of a network namespace (`SO_NETNS_COOKIE`) -> [`crate::node::PodNetns`].
pub const POD_NETNS: &str = "POD_NETNS";
/// Hash: index of the host's end of a pod's veth -> [`crate::pod_rate::PodRate`]: how much a pod
/// may send whose bandwidth is limited.
pub const POD_RATES: &str = "POD_RATES";
/// Array of one `u32`: bits of [`crate::node::socket_options`].
pub const SOCKET_OPTIONS: &str = "SOCKET_OPTIONS";
/// Hash: [`crate::affinity::AffinityKey`] -> [`crate::affinity::Affinity`].
pub const AFFINITY: &str = "AFFINITY";
/// Array of one: [`crate::node::NodeConfig`].
pub const NODE_CONFIG: &str = "NODE_CONFIG";
/// Hash: [`crate::conntrack::FlowKey`] -> [`crate::conntrack::Flow`].
pub const FLOWS: &str = "FLOWS";
/// Socket storage of UDP: [`crate::socket::SocketPeers`].
pub const SOCKET_PEERS: &str = "SOCKET_PEERS";
/// Per-CPU array of `u64`, indexed by [`crate::counters::Counter`].
pub const COUNTERS: &str = "COUNTERS";
/// Array of arrays, one for each chunk of backend ids that are in use:
/// [`crate::traffic::BackendCounts`].
pub const BACKEND_COUNTS: &str = "BACKEND_COUNTS";
/// Array of arrays likewise, with a lane for each CPU: [`crate::traffic::PacketCounts`].
pub const PACKET_COUNTS: &str = "PACKET_COUNTS";
/// Hash: set id -> [`crate::traffic::ServiceCounts`]; the agent's alone.
pub const SERVICE_COUNTS: &str = "SERVICE_COUNTS";
/// Socket storage of TCP: [`crate::socket::SocketPeer`].
pub const TCP_PEERS: &str = "TCP_PEERS";
/// Array-of-maps of one entry, whose update waits for running programs: the barrier that
/// separates a flip from the reuse of what it unlinked.
pub const BARRIER: &str = "BARRIER";
/// Array of one ring buffer of [`crate::event::FlowEvent`]; empty while nobody follows.
pub const FLOW_EVENTS: &str = "FLOW_EVENTS";
