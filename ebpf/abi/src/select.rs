//! From what is dialled to a backend: frontend, set word, range header, window, slot, backend.
//!
//! One implementation for sockets, for packets, and for `mizzen why`, which walks the same tables
//! from user space: what reads them is a [`Tables`].

use crate::{
    addr::Addr,
    nat::Origin,
    node::{NodeConfig, cluster_range_flags, node_addr_flags, node_config_flags},
    service::{
        Frontend, FrontendKey, NO_SET, RANGE_HEADER_WORDS, SetWord, frontend_flags, header,
        range_flags, slot_index,
    },
};

/// The tables, as a reader reads them.
pub trait Tables {
    /// The value under exactly this key; all zero where there is none, or where it is not of this
    /// key ([`Frontend::is_of`]). Not an `Option`: the compiler carries the contents of a `None`
    /// about, and the verifier objects to what was never written.
    fn frontend(&self, key: &FrontendKey) -> Frontend;
    /// Whether a service has this cluster IP.
    #[inline(always)]
    fn is_allocated(&self, addr: &Addr) -> bool {
        self.frontend(&FrontendKey::guard(*addr)).flags & frontend_flags::GUARD != 0
    }
    /// The flags of an address of this node.
    fn node_addr_flags(&self, addr: &Addr) -> Option<u32>;
    /// What the longest range that holds the address is for; 0 where there is none.
    fn cluster_range_flags(&self, addr: &Addr) -> u32;
    /// Whether a set's source ranges hold the address.
    fn source_ranges_hold(&self, set: u32, addr: &Addr) -> bool;
    /// The word of a set, by one load; 0 where there is none.
    fn set_word(&self, set: u32) -> SetWord;
    /// One word of the slot array; 0, which names nothing, outside it.
    fn slot(&self, index: u32) -> u32;
    /// The backend with this id, if it belongs to the set.
    fn backend(&self, set: u32, id: u32, v4: bool) -> Option<Backend>;
}

/// Which window of a range a new flow takes its backend from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Traffic to a ClusterIP.
    Internal,
    /// Traffic from outside the cluster to a node port, external or load balancer address.
    External,
    /// Traffic of this node and its pods to the same.
    Nearby,
}

impl Window {
    /// The window for a client on this node (B30, B31, B33).
    #[inline(always)]
    pub fn nearby(frontend: &Frontend) -> Self {
        if frontend.flags & frontend_flags::EXTERNAL == 0 { Self::Internal } else { Self::Nearby }
    }

    /// The window for a client that is neither this node nor one of its pods.
    #[inline(always)]
    pub fn outside(frontend: &Frontend) -> Self {
        if frontend.flags & frontend_flags::EXTERNAL == 0 { Self::Internal } else { Self::External }
    }

    /// Word of the range header that holds the start; the length is in the next one.
    #[inline(always)]
    const fn start_word(self) -> u32 {
        match self {
            Self::Internal => header::INTERNAL_START,
            Self::External => header::EXTERNAL_START,
            Self::Nearby => header::NEARBY_START,
        }
    }

    /// The flag that turns the refusal of an empty window into silence.
    #[inline(always)]
    const fn drop_flag(self) -> u32 {
        match self {
            Self::Internal => range_flags::INTERNAL_DROP,
            Self::External => range_flags::EXTERNAL_DROP,
            Self::Nearby => 0,
        }
    }
}

/// The slots that a flow may choose from, as one flip of its set left them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The set.
    pub set: u32,
    /// The flip that this is the outcome of.
    pub generation: u32,
    /// First slot, an index into the whole array.
    pub first: u32,
    /// How many; not 0.
    pub count: u32,
    /// Seconds for which a client keeps its backend; 0 where it does not.
    pub affinity_s: u32,
}

/// A chosen backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its id.
    pub id: u32,
    /// Its address.
    pub addr: Addr,
    /// Its port, network byte order.
    pub port: [u8; 2],
}

impl Backend {
    /// Whether it has this address and port.
    #[inline(always)]
    pub fn is_at(&self, addr: &Addr, port: [u8; 2]) -> bool {
        self.addr.is(addr) && self.port == port
    }
}

/// Why there is no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBackend {
    /// The service has no endpoints: refuse.
    Reject,
    /// It has, but the traffic policy asks for a local one and there is none: drop.
    Drop,
    /// A proxy above layer 4 answers for the service: leave it alone.
    Proxy,
    /// The set's word names a range of another: the next attempt sees the tables whole.
    ForeignRange,
    /// A slot names a backend of another: as above.
    ForeignBackend,
}

/// What an address without a frontend is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// No address of services: leave it alone.
    Foreign,
    /// A service's cluster IP, dialled at a port that is none of the service's: refuse (B8, B9).
    UnknownPort,
    /// In a range of services, and no service's: drop (B10).
    Unallocated,
}

/// The frontend of an address: its own, or a node port's where the address is one of the node's that
/// takes them, or a host port's where it is any of the node's. None of the unspecified address, under
/// which these two are filed: who dials it reaches another ([`Addr::reached`]).
#[inline(always)]
pub fn frontend(tables: &impl Tables, addr: Addr, port: [u8; 2], protocol: u8) -> Option<Frontend> {
    let key = FrontendKey { addr, port, protocol, pad: 0 };
    let mut found = tables.frontend(&key);
    if found.set == NO_SET {
        let flags = tables.node_addr_flags(&addr)?;
        found = tables.frontend(&FrontendKey { addr: addr.any_of_family(), ..key });
        if flags & node_addr_flags::NODE_PORTS == 0 && found.flags & frontend_flags::HOST_PORT == 0
        {
            return None;
        }
    } else if addr.is_unspecified() {
        return None;
    }
    (found.set != NO_SET).then_some(found)
}

/// What an address is that [`frontend`] found nothing for. One that the node itself holds is its
/// own business, whatever range it is from (a resolver of the node at the cluster's DNS address).
/// A service's cluster IP is told by what is allocated, whatever ranges are known (B9); only that an
/// address is nobody's takes its range (B10).
#[inline(always)]
pub fn unserved(tables: &impl Tables, addr: Addr) -> Unserved {
    if refuses_other_ports(tables, addr) {
        return Unserved::UnknownPort;
    }
    if tables.cluster_range_flags(&addr) & cluster_range_flags::SERVICES == 0
        || tables.node_addr_flags(&addr).is_some()
    {
        return Unserved::Foreign;
    }
    Unserved::Unallocated
}

/// Whether an address that [`frontend`] found nothing for is a service's: [`Unserved::UnknownPort`],
/// which is all that sockets ask.
#[inline(always)]
pub fn refuses_other_ports(tables: &impl Tables, addr: Addr) -> bool {
    tables.is_allocated(&addr) && tables.node_addr_flags(&addr).is_none()
}

/// Whether an address is in a range of pods. One of the node's that is has a way to other nodes' pods
/// behind it, as another plugin's tunnel: what is masqueraded on that way has that address.
#[inline(always)]
pub fn is_of_pods(tables: &impl Tables, addr: &Addr) -> bool {
    tables.cluster_range_flags(addr) & cluster_range_flags::PODS != 0
}

/// Where a flow comes from, by its source address, and by whether its packets come in from other
/// hosts.
#[inline(always)]
pub fn origin(tables: &impl Tables, source: Addr, from_elsewhere: bool) -> Origin {
    if is_of_pods(tables, &source) {
        if from_elsewhere { Origin::PodElsewhere } else { Origin::Pod }
    } else if tables.node_addr_flags(&source).is_some() {
        Origin::Node
    } else {
        Origin::Outside
    }
}

/// The address that packets of a socket of the node will have, as far as it is known where the
/// socket dials: the one that it is bound to (`bound`, else unspecified), else the node's own where it
/// has no other. Which of several it is, its routes tell when the packets leave; but that to an
/// address of its own the node sends from that.
#[inline(always)]
pub fn source_of_node(
    tables: &impl Tables,
    config: &NodeConfig,
    bound: &Addr,
    dialled: &Addr,
) -> Option<Addr> {
    let v4 = dialled.is_v4();
    if !bound.is_unspecified() {
        Some(*bound)
    } else if config.flags & node_config_flags::several_sources(v4) == 0 {
        Some(*config.own(v4)).filter(|own| !own.is(&Addr::default()))
    } else if tables.node_addr_flags(dialled).is_some() {
        Some(*dialled)
    } else {
        None
    }
}

/// Whether a client may use the frontend at all. What this node sends may carry the dialled address
/// as its source, where an interface has that: it is admitted where the node is, by its address
/// `own` (B54). Of nobody else's packets an `own` is given: a source is easily forged.
#[inline(always)]
pub fn admits(
    tables: &impl Tables,
    frontend: &Frontend,
    (client, dialled): (&Addr, &Addr),
    own: Option<&Addr>,
) -> bool {
    frontend.flags & frontend_flags::SOURCE_RANGES == 0
        || tables.source_ranges_hold(frontend.set, client)
        || own.is_some_and(|own| client.is(dialled) && tables.source_ranges_hold(frontend.set, own))
}

/// The slots of a window of the frontend's set.
#[inline(always)]
pub fn slots(
    tables: &impl Tables,
    frontend: &Frontend,
    window: Window,
) -> Result<Slots, NoBackend> {
    let set = frontend.set;
    let word = tables.set_word(set);
    let offset = word.offset();
    if offset == 0 {
        return Err(none(frontend, 0, window));
    }
    if tables.slot(offset + header::OWNER) != set {
        return Err(NoBackend::ForeignRange);
    }
    let start = tables.slot(offset + window.start_word());
    let count = tables.slot(offset + window.start_word() + 1);
    if count == 0 {
        return Err(none(frontend, tables.slot(offset + header::FLAGS), window));
    }
    Ok(Slots {
        set,
        generation: word.generation(),
        first: offset + RANGE_HEADER_WORDS + start,
        count,
        affinity_s: tables.slot(offset + header::AFFINITY_S),
    })
}

impl Slots {
    /// A fold of what these slots are: the flip of the set, and which of its windows. Two that
    /// follow each other differ; that any two are the same is as likely as a hash collision.
    #[inline(always)]
    pub const fn view(&self) -> u32 {
        self.generation.wrapping_mul(0x9e37_79b1) ^ self.first
    }

    /// The backend that `hash` leads to.
    #[inline(always)]
    pub fn choose(&self, tables: &impl Tables, hash: u32, v4: bool) -> Result<Backend, NoBackend> {
        let id = tables.slot(self.first + slot_index(hash, self.count));
        tables.backend(self.set, id, v4).ok_or(NoBackend::ForeignBackend)
    }
}

/// The answer of an empty window.
#[inline(always)]
fn none(frontend: &Frontend, flags: u32, window: Window) -> NoBackend {
    if frontend.flags & frontend_flags::L7 != 0 {
        NoBackend::Proxy
    } else if flags & window.drop_flag() != 0 {
        NoBackend::Drop
    } else {
        NoBackend::Reject
    }
}
