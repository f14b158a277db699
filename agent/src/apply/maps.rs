//! The seam between decisions and the kernel: [`Maps`] is everything that the agent's control flow
//! asks of the datapath's tables. Implemented in memory by [`super::memory::MemoryMaps`] and for
//! the kernel by `crate::datapath`, which alone knows aya.
//!
//! Every call is idempotent: writing what is there and removing what is not there succeed.
//! No call decides anything; the order of calls is the plan's business (`crate::diff::plan`).

use std::collections::{BTreeMap, BTreeSet};

use mizzen_ebpf_abi::{
    addr::Addr,
    limits, maps,
    node::{NodeAddr, NodeConfig},
    service::{Backend4, Backend6, Frontend, FrontendKey, SetWord},
};

use crate::traffic::Counted;

/// A range of addresses as the longest-prefix maps key it: over the 16-byte form of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrRange {
    /// The network address; host bits are zero.
    pub addr: Addr,
    /// Length of the prefix in bits of the 16-byte form: 96 more than an IPv4 prefix says.
    pub prefix_len: u8,
}

/// As people write it: an IPv4 range with the length of its own prefix.
impl std::fmt::Display for AddrRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mapped = if self.addr.is_v4() { 96 } else { 0 };
        write!(f, "{}/{}", self.addr, self.prefix_len.saturating_sub(mapped))
    }
}

/// A range of addresses from which a set's load balancer addresses may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange {
    /// The set.
    pub set: u32,
    /// The range.
    pub range: AddrRange,
}

/// Everything that the tables hold, ids included: what an agent that starts finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Hash `FRONTENDS`.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Array `SETS`, without words that are 0. A word with offset 0 and a generation is a set that
    /// has no range at present.
    pub sets: BTreeMap<u32, SetWord>,
    /// Array `SLOTS` up to its last word that is not 0.
    pub slots: Vec<u32>,
    /// Array `BACKENDS4`, without records that are all zero. A record whose set is
    /// [`mizzen_ebpf_abi::service::NO_SET`] was freed; it tells that its id was in use once. So was
    /// one that is [`mizzen_ebpf_abi::service::RESERVED`], whose id is some endpoint's yet.
    pub backends4: BTreeMap<u32, Backend4>,
    /// Array `BACKENDS6`, likewise.
    pub backends6: BTreeMap<u32, Backend6>,
    /// Hash `NODE_ADDRS`.
    pub node_addrs: BTreeMap<Addr, NodeAddr>,
    /// Longest-prefix map `CLUSTER_RANGES`; the value is its flags.
    pub cluster_ranges: BTreeMap<AddrRange, u32>,
    /// Longest-prefix map `SOURCE_RANGES`.
    pub source_ranges: BTreeSet<SourceRange>,
    /// The record of `NODE_CONFIG`.
    pub node_config: NodeConfig,
}

/// The tables that tell of the node, whole: they are small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTables {
    /// Hash `NODE_ADDRS`.
    pub addrs: BTreeMap<Addr, NodeAddr>,
    /// Longest-prefix map `CLUSTER_RANGES`.
    pub cluster_ranges: BTreeMap<AddrRange, u32>,
    /// The record of `NODE_CONFIG`.
    pub config: NodeConfig,
}

/// A table that grows as it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Growing {
    /// `FRONTENDS`.
    Frontends,
    /// `SETS`.
    Sets,
    /// `SLOTS`.
    Slots,
    /// `BACKENDS4`.
    Backends4,
    /// `BACKENDS6`.
    Backends6,
}

impl Growing {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Frontends, Self::Sets, Self::Slots, Self::Backends4, Self::Backends6];

    /// The map's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frontends => maps::FRONTENDS,
            Self::Sets => maps::SETS,
            Self::Slots => maps::SLOTS,
            Self::Backends4 => maps::BACKENDS4,
            Self::Backends6 => maps::BACKENDS6,
        }
    }
}

/// How many elements each table has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Frontends.
    pub frontends: u32,
    /// Set ids, 0 included.
    pub sets: u32,
    /// Words of slots, word 0 included.
    pub slot_words: u32,
    /// Ids of IPv4 backends, 0 included.
    pub backends4: u32,
    /// Ids of IPv6 backends, 0 included.
    pub backends6: u32,
    /// Addresses of the node.
    pub node_addrs: u32,
    /// Ranges of the cluster's addresses.
    pub cluster_ranges: u32,
    /// Source ranges of all sets together.
    pub source_ranges: u32,
}

impl Capacities {
    /// What no table outgrows.
    pub const MAX: Self = Self {
        frontends: limits::FRONTENDS_MAX,
        sets: limits::SETS_MAX,
        slot_words: limits::SLOT_WORDS_MAX,
        backends4: limits::BACKENDS_MAX,
        backends6: limits::BACKENDS_MAX,
        node_addrs: limits::NODE_ADDRS_MAX,
        cluster_ranges: limits::CLUSTER_RANGES_MAX,
        source_ranges: limits::SOURCE_RANGES_MAX,
    };

    /// That of one table.
    pub fn of(&self, table: Growing) -> u32 {
        match table {
            Growing::Frontends => self.frontends,
            Growing::Sets => self.sets,
            Growing::Slots => self.slot_words,
            Growing::Backends4 => self.backends4,
            Growing::Backends6 => self.backends6,
        }
    }

    /// That of one table, to be changed.
    pub fn of_mut(&mut self, table: Growing) -> &mut u32 {
        match table {
            Growing::Frontends => &mut self.frontends,
            Growing::Sets => &mut self.sets,
            Growing::Slots => &mut self.slot_words,
            Growing::Backends4 => &mut self.backends4,
            Growing::Backends6 => &mut self.backends6,
        }
    }
}

/// What tables have room for at first.
impl Default for Capacities {
    fn default() -> Self {
        Self {
            frontends: limits::FRONTENDS_MIN,
            sets: limits::SETS_MIN,
            slot_words: limits::SLOT_WORDS_MIN,
            backends4: limits::BACKENDS_MIN,
            backends6: limits::BACKENDS_MIN,
            ..Self::MAX
        }
    }
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The map.
    pub map: &'static str,
    /// Elements in use.
    pub used: u32,
    /// Elements that there is room for at present.
    pub now: u32,
    /// Elements that there can be room for.
    pub max: u32,
}

/// What tables have room for, and what they may grow to.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// At present.
    pub now: Capacities,
    /// At most.
    pub max: Capacities,
}

impl Default for Room {
    fn default() -> Self {
        Self { now: Capacities::default(), max: Capacities::MAX }
    }
}

impl Room {
    /// That of tables that can't grow.
    pub fn fixed(capacities: Capacities) -> Self {
        Self { now: capacities, max: capacities }
    }
}

/// Waits for the programs that run when it is called.
pub type BarrierCall = Box<dyn FnOnce() -> Result<(), MapsError> + Send>;

/// The tables of one node's datapath.
///
/// A batch is applied in its order; when it fails, an unknown first part of it was applied, and
/// the caller learns what by [`Maps::dump`].
pub trait Maps: Send {
    /// Reads everything. Not counted by [`Maps::calls`].
    fn dump(&mut self) -> Result<Tables, MapsError>;

    /// Calls `visit` with every frontend, in any order.
    fn visit_frontends(
        &mut self,
        visit: &mut dyn FnMut(&FrontendKey, &Frontend),
    ) -> Result<(), MapsError>;
    /// Calls `visit` with every source range, in any order.
    fn visit_source_ranges(&mut self, visit: &mut dyn FnMut(&SourceRange))
    -> Result<(), MapsError>;
    /// The word of a set; 0 beyond the end.
    fn word(&self, set: u32) -> SetWord;
    /// Reads words of slots; zeros beyond the end.
    fn read_slots(&self, offset: u32, words: &mut [u32]);
    /// The record of an IPv4 backend; all zero beyond the end.
    fn backend4(&self, id: u32) -> Backend4;
    /// The record of an IPv6 backend; all zero beyond the end.
    fn backend6(&self, id: u32) -> Backend6;
    /// The node's tables.
    fn node_tables(&mut self) -> Result<NodeTables, MapsError>;
    /// How many entries those maps hold that other parts of the agent write.
    fn others(&mut self) -> Result<Vec<Usage>, MapsError>;

    /// How many elements each table has room for at present.
    fn capacities(&self) -> Capacities;
    /// Gives each of these tables room for at least so many elements; nothing where it has that.
    /// Readers find what they hold at every moment. Each entry of a hash that is copied counts as a
    /// call and a write.
    fn grow(&mut self, tables: &[(Growing, u32)]) -> Result<(), MapsError>;

    /// Adds or replaces frontends.
    fn put_frontends(&mut self, entries: &[(FrontendKey, Frontend)]) -> Result<(), MapsError>;
    /// Removes frontends.
    fn remove_frontends(&mut self, keys: &[FrontendKey]) -> Result<(), MapsError>;

    /// Writes a slot range that no set's word names yet: never a live one. The words need not
    /// become visible in order, but all of them before this returns.
    fn write_slots(&mut self, offset: u32, words: &[u32]) -> Result<(), MapsError>;
    /// Writes IPv4 backends by id.
    fn write_backends4(&mut self, backends: &[(u32, Backend4)]) -> Result<(), MapsError>;
    /// Writes IPv6 backends by id.
    fn write_backends6(&mut self, backends: &[(u32, Backend6)]) -> Result<(), MapsError>;
    /// Stores the words of sets, each by one aligned 8-byte store.
    fn flip(&mut self, words: &[(u32, SetWord)]) -> Result<(), MapsError>;
    /// Returns when every program that ran at the time of the call is done: what was unlinked
    /// before may be reused after.
    fn barrier(&mut self) -> Result<(), MapsError> {
        self.barrier_call()()
    }
    /// The call that does so, for another thread to make while the tables are written.
    fn barrier_call(&mut self) -> BarrierCall;

    /// Adds or replaces addresses of this node.
    fn put_node_addrs(&mut self, addrs: &[(Addr, NodeAddr)]) -> Result<(), MapsError>;
    /// Removes addresses of this node.
    fn remove_node_addrs(&mut self, addrs: &[Addr]) -> Result<(), MapsError>;
    /// Adds or replaces ranges of the cluster's addresses: bits of
    /// [`mizzen_ebpf_abi::node::cluster_range_flags`].
    fn put_cluster_ranges(&mut self, ranges: &[(AddrRange, u32)]) -> Result<(), MapsError>;
    /// Removes ranges of the cluster's addresses.
    fn remove_cluster_ranges(&mut self, ranges: &[AddrRange]) -> Result<(), MapsError>;
    /// Adds source ranges of sets.
    fn put_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError>;
    /// Removes source ranges of sets.
    fn remove_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapsError>;
    /// Writes the node's own record.
    fn set_node_config(&mut self, config: &NodeConfig) -> Result<(), MapsError>;

    /// These sets are new: what was counted under their numbers is not theirs. Counters are no
    /// reason to fail.
    fn begin_traffic(&mut self, _sets: &[u32]) {}
    /// Calls `visit` with what the programs counted of backends; with nothing where nothing counts.
    fn visit_traffic(&mut self, _visit: &mut dyn FnMut(Counted)) -> Result<(), MapsError> {
        Ok(())
    }

    /// `bpf()` calls made so far to change the tables or to wait. An element of a batched call
    /// counts as one call; a store through mapped memory counts as none. What backends are counted
    /// in is not counted here.
    fn calls(&self) -> u64;
    /// Elements written or removed so far, by whatever means: slot words, records, entries.
    fn writes(&self) -> u64;
    /// Bytes of those elements, keys included.
    fn bytes(&self) -> u64;
}

/// Why a table could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// There is no room.
    #[error("map {map} is full with its {capacity} entries, no room for {object}")]
    Full {
        /// The map's name.
        map: &'static str,
        /// How many entries it holds.
        capacity: u32,
        /// What was to be written.
        object: String,
    },
    /// An index beyond the end of an array.
    #[error("index {index} is outside of map {map}, which has {capacity} entries")]
    OutOfRange {
        /// The map's name.
        map: &'static str,
        /// How many entries it has.
        capacity: u32,
        /// The index asked for.
        index: u32,
    },
    /// The kernel refused.
    #[error("{operation} map {map}, {object}")]
    Kernel {
        /// What was tried: `read`, `write to`, `remove from`, ….
        operation: &'static str,
        /// The map's name.
        map: &'static str,
        /// The element or elements in question.
        object: String,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
