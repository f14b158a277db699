//! What pods are told of the node and the cluster.

use std::{net::IpAddr, path::PathBuf};

use super::super::runtime::Abilities;

/// Facts that do not change while the node part runs; its files are as they were at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name of the node.
    pub name: String,
    /// Name of the runtime, before the `://` of container ids.
    pub runtime: String,
    /// What the runtime can give.
    pub abilities: Abilities,
    /// Its processors, in thousandths.
    pub cpu_millis: i64,
    /// Bytes of its memory.
    pub memory_bytes: i64,
    /// Folder of the pods' volumes.
    pub volume_dir: PathBuf,
    /// Its addresses, the primary family first.
    pub addresses: Vec<IpAddr>,
    /// The cluster's DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// The node's /etc/resolv.conf.
    pub resolv_conf: String,
    /// The node's /etc/hosts.
    pub hosts: String,
}

impl NodeFacts {
    /// The addresses of a pod in the order of its status: the node's primary family first, for
    /// what reads only `podIP`.
    pub fn in_order(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let primary_is_ipv6 = self.addresses.first().is_some_and(IpAddr::is_ipv6);
        let mut addresses = addresses.to_vec();
        addresses.sort_by_key(|address| address.is_ipv6() != primary_is_ipv6);
        addresses
    }
}
