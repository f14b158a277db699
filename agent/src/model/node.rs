//! Nodes: their addresses and the ranges of their pods.

use std::{net::IpAddr, sync::Arc};

/// A range of addresses; `address` has no host bits set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// The network address.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix_len: u8,
}

/// A Node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP, in order; the first of a family is the primary.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Cidr>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}
