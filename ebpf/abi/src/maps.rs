//! Names of the maps, the version of their layout, and where they are pinned.
//!
//! Below the bpffs folder of a node (`--bpffs`, by default `/sys/fs/bpf/mizzen`):
//! `v<ABI_VERSION>/maps/<name>`, `v<ABI_VERSION>/links/<hook>`.

/// Version of every layout in this crate. An agent never opens maps of another version.
pub const ABI_VERSION: u32 = 1;

/// Hash: [`crate::service::FrontendKey`] -> [`crate::service::Frontend`].
pub const FRONTENDS: &str = "FRONTENDS";
/// Array: set id -> [`crate::service::SetWord`], flipped by one aligned 8-byte store.
pub const SETS: &str = "SETS";
/// Array of `u32`: the slot ranges, each a header and then backend ids.
pub const SLOTS: &str = "SLOTS";
/// Array: backend id -> [`crate::service::Backend4`].
pub const BACKENDS4: &str = "BACKENDS4";
/// Array: backend id -> [`crate::service::Backend6`].
pub const BACKENDS6: &str = "BACKENDS6";
/// Hash: [`crate::addr::Addr`] -> [`crate::node::NodeAddr`].
pub const NODE_ADDRS: &str = "NODE_ADDRS";
/// Hash: [`crate::addr::Addr`] -> [`crate::node::Endpoint`].
pub const ENDPOINTS: &str = "ENDPOINTS";
/// Longest-prefix match over 16-byte addresses -> `u32` flags: where the cluster's pods live.
pub const POD_RANGES: &str = "POD_RANGES";
/// Array of one: [`crate::node::NodeConfig`].
pub const NODE_CONFIG: &str = "NODE_CONFIG";
/// Hash: [`crate::conntrack::FlowKey`] -> [`crate::conntrack::Flow`].
pub const FLOWS: &str = "FLOWS";
/// Socket storage: [`crate::socket::SocketPeers`].
pub const SOCKET_PEERS: &str = "SOCKET_PEERS";
/// Per-CPU array of `u64`, indexed by [`crate::counters::Counter`].
pub const COUNTERS: &str = "COUNTERS";
/// Array-of-maps of one entry, whose update waits for running programs: the barrier that
/// separates a flip from the reuse of what it unlinked.
pub const BARRIER: &str = "BARRIER";
