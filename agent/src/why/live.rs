//! What an explanation reads beside the service tables. Implemented by `crate::datapath` for the
//! kernel's maps.

use std::ops::ControlFlow;

use mizzen_ebpf_abi::{
    addr::Addr,
    affinity::{Affinity, AffinityKey},
    conntrack::{Flow, FlowKey},
    node::{NodeConfig, PodNetns},
};

use crate::apply::lookup::Records;

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The neighbour that they are sent to: the address itself where that is on the link.
    pub next_hop: Addr,
    /// The node's address for it.
    pub source: Addr,
}

/// The tables of a node at work.
pub trait Live: Records {
    /// The node's record.
    fn node_config(&self) -> NodeConfig;
    /// Whether the address is that of a pod that this node's agent connected.
    fn is_pod_here(&self, addr: &Addr) -> bool;
    /// What the socket programs know of the pod with this address.
    fn pod_netns(&self, addr: &Addr) -> Option<PodNetns>;
    /// What a client keeps.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// An entry of the packet path's connection table.
    fn flow(&self, key: &FlowKey) -> Option<Flow>;
    /// Shows every entry of that table until `visit` has seen enough.
    fn each_flow(&self, visit: &mut dyn FnMut(&FlowKey, &Flow) -> ControlFlow<()>);
    /// Whether a socket of the node takes what comes to this address and port from anyone.
    fn listens(&self, addr: &Addr, port: u16, protocol: u8) -> bool;
    /// The way to an address as programs find it; none where there is no route, and on kernels that
    /// don't tell programs the source of one.
    fn way(&self, to: &Addr) -> Option<Way>;
    /// Seconds since boot, without suspend: the clock of flows and affinities.
    fn now_s(&self) -> u32;
}
