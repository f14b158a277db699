//! What this node's tables should say: a pure function of the snapshot, the node's own facts and
//! the settings. No I/O, no clock, no ids: those are chosen by `crate::diff`.
//!
//! ```text
//! service + its slices ──service──> sets (slots in order, windows) and the frontends they ask for
//! all services         ──claims───> which set gets a frontend that several ask for
//! host ports of pods    ──host_ports─> sets of one backend, and the frontends they ask for
//! slices before and after ──gone──> endpoints that are deleted, whose flows are to be reset
//! endpoints without a slot ─idle──> why, which the tables tell the next agent
//! nodes + node facts   ──node─────> node addresses, the cluster's ranges, the node's record
//! ```
//! [`Desired`] keeps the result by service, so that a change costs what it touches.

pub mod claims;
pub mod gone;
pub mod host_ports;
pub mod idle;
pub mod index;
pub mod node;
pub mod service;
pub mod topology;
pub mod windows;

pub use idle::Idle;
pub use index::{Change, Desired, WithoutLocalEndpoints};

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mizzen_ebpf_abi::service::FrontendKey;

use crate::{
    apply::maps::AddrRange,
    model::{ObjectKey, node::Cidr, pod::HostPortPods, service::Protocol},
};

/// Identity of a backend set: one port of a service in one family, or one host port of a pod
/// ([`host_ports::owner`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetKey {
    /// The service.
    pub service: ObjectKey,
    /// Name of the service's port; empty where it has none.
    pub port: Arc<str>,
    /// The port's protocol: two ports may share a name only if this differs.
    pub protocol: Protocol,
    /// The family of its frontends and backends.
    pub ipv6: bool,
}

impl std::fmt::Display for SetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = if self.ipv6 { "ipv6" } else { "ipv4" };
        let Self { service, port, protocol, .. } = self;
        if port.is_empty() {
            write!(f, "{service}/{protocol}/{family}")
        } else {
            write!(f, "{service}:{port}/{protocol}/{family}")
        }
    }
}

/// A backend at its place in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The endpoint's address.
    pub addr: IpAddr,
    /// The endpoint's port, host byte order.
    pub port: u16,
    /// Bits of [`mizzen_ebpf_abi::service::backend_flags`].
    pub flags: u16,
}

/// A set of backends, and who asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredSet {
    /// The frontends that the service asks for, with their
    /// [`mizzen_ebpf_abi::service::frontend_flags`].
    pub frontends: Vec<(FrontendKey, u32)>,
    /// The backends in the order of their slots: those that are ready or that some window holds.
    /// Shared with what is known of the tables, once they hold them.
    pub slots: Arc<[Slot]>,
    /// Which of them take which traffic.
    pub windows: windows::Windows,
    /// Seconds for which a client keeps its backend; 0 where it does not.
    pub affinity_s: u32,
    /// Who may use those of its frontends that have
    /// [`mizzen_ebpf_abi::service::frontend_flags::SOURCE_RANGES`]; empty where none has.
    pub source_ranges: BTreeSet<AddrRange>,
    /// Endpoints that are there and have no slot, by address and port, and why: the ids that flows
    /// to them name stay theirs for as long.
    pub idle: BTreeMap<(IpAddr, u16), Idle>,
}

impl DesiredSet {
    /// A set that nothing leads to, whose endpoints keep the ids that they had.
    fn idle(endpoints: BTreeMap<(IpAddr, u16), Idle>) -> Self {
        Self {
            frontends: Vec::new(),
            slots: Arc::default(),
            windows: windows::Windows::default(),
            affinity_s: 0,
            source_ranges: BTreeSet::new(),
            idle: endpoints,
        }
    }

    /// Whether no frontend leads to it.
    pub fn is_unled(&self) -> bool {
        self.frontends.is_empty()
    }

    /// Whether this is one of its endpoints.
    pub fn has(&self, at: (IpAddr, u16)) -> bool {
        self.idle.contains_key(&at) || self.slots.iter().any(|slot| (slot.addr, slot.port) == at)
    }

    /// Address and port of every endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.slots.iter().map(|slot| (slot.addr, slot.port)).chain(self.idle.keys().copied())
    }
}

/// The sets of a service, in the order of their keys. Most services have one or two, for which a tree
/// would take the memory of eleven.
pub(crate) type Sets = Box<[(SetKey, Arc<DesiredSet>)]>;

/// The set with this key.
fn set_of<'a>(sets: &'a [(SetKey, Arc<DesiredSet>)], key: &SetKey) -> Option<&'a Arc<DesiredSet>> {
    let at = sets.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
    Some(&sets[at].1)
}

/// Which addresses of the node take node ports (kube-proxy's `nodePortAddresses`).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum NodePortAddresses {
    /// The first InternalIP of each family, as kube-proxy's nftables mode (reference V3, B60).
    #[default]
    Primary,
    /// Every address of the node inside of one of these ranges.
    Within(Vec<Cidr>),
}

/// How pods are told from everything else by their addresses (kube-proxy's `detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum PodDetection {
    /// By the pod ranges of all nodes.
    #[default]
    PodCidrs,
    /// By these ranges.
    ClusterCidrs(Vec<Cidr>),
    /// Not at all (reference B47).
    Nothing,
}

/// What the configuration says about the tables.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// Name of this node, as its Node object has it.
    pub node_name: Arc<str>,
    /// Which addresses take node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Whether the loopback addresses take node ports of this node's own sockets, whatever
    /// `node_port_addresses` says (reference V4).
    pub localhost_node_ports: bool,
    /// How pods are known.
    pub pod_detection: PodDetection,
    /// Ranges of cluster IPs where the cluster has no ServiceCIDR objects.
    pub service_cidrs: Vec<Cidr>,
    /// Service addresses and ports for which the listener on this node comes first (cluster DNS,
    /// where this agent serves it).
    pub prefer_local: BTreeSet<SocketAddr>,
    /// The port at which that listener is an endpoint of the service, too: on this node it is none,
    /// because it is away when endpoints are asked.
    pub own_resolver_port: Option<u16>,
    /// Masquerade every translated packet.
    pub masquerade_all: bool,
    /// First and last source port of source NAT.
    pub snat_ports: (u16, u16),
    /// Whether what pods send out of the cluster is masqueraded.
    pub masquerade_pods: bool,
    /// UDP port of the tunnels to other nodes; 0: there are none.
    pub tunnel_port: u16,
    /// Ranges outside of the cluster where pods are known: what pods send there is not.
    pub non_masquerade_cidrs: Vec<Cidr>,
}

/// An address on an interface of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address.
    pub addr: IpAddr,
    /// Index of the interface that has it.
    pub ifindex: u32,
}

/// Facts of this node that no API object tells.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// The addresses on its interfaces.
    pub addresses: BTreeSet<LocalAddress>,
    /// Its pods with host ports.
    pub host_ports: Arc<HostPortPods>,
}

/// Something in the cluster's objects that can't be done as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The service in question.
    pub service: ObjectKey,
    /// What was left out, and why.
    pub message: String,
}
