//! Who may ask at the peer port: the cluster's nodes and pods, and nobody else, because it stands
//! on the node's own address.

use std::{collections::BTreeSet, net::IpAddr};

use crate::model::{node::Cidr, snapshot::Snapshot};

/// The addresses of nodes and pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    nodes: BTreeSet<IpAddr>,
    pods: BTreeSet<Cidr>,
}

impl Peers {
    /// Those in `snapshot`.
    pub fn of(snapshot: &Snapshot) -> Self {
        let nodes = || snapshot.nodes.values();
        Self {
            nodes: nodes().flat_map(|node| node.internal_ips.iter().copied()).collect(),
            pods: nodes().flat_map(|node| node.pod_cidrs.iter().copied()).collect(),
        }
    }

    /// Whether `source` is one of them.
    pub fn admit(&self, source: IpAddr) -> bool {
        self.nodes.contains(&source) || self.pods.iter().any(|range| contains(*range, source))
    }
}

fn contains(range: Cidr, address: IpAddr) -> bool {
    // A prefix of length zero leaves no bit to compare: the shift is as wide as the value.
    let host_bits = |width: u32| width.saturating_sub(range.prefix_len.into());
    match (range.address, address) {
        (IpAddr::V4(range), IpAddr::V4(address)) => {
            let differing = range.to_bits() ^ address.to_bits();
            differing.checked_shr(host_bits(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(range), IpAddr::V6(address)) => {
            let differing = range.to_bits() ^ address.to_bits();
            differing.checked_shr(host_bits(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::node::Node;

    #[test]
    fn nodes_and_pods_are_peers() {
        let cidr =
            |address: &str, prefix_len| Cidr { address: address.parse().unwrap(), prefix_len };
        let node = Node {
            name: "node-1".into(),
            internal_ips: vec!["172.30.0.11".parse().unwrap(), "fd00:30::11".parse().unwrap()],
            pod_cidrs: vec![cidr("10.244.1.0", 24), cidr("fd00:244:0:1::", 64)],
            zone: None,
            to_be_deleted: false,
            kube_proxy: None,
        };
        let mut snapshot = Snapshot::default();
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
        let peers = Peers::of(&snapshot);
        for peer in ["172.30.0.11", "fd00:30::11", "10.244.1.9", "10.244.1.255", "fd00:244:0:1::7"]
        {
            assert!(peers.admit(peer.parse().unwrap()), "{peer}");
        }
        for other in
            ["172.30.0.12", "10.244.2.1", "fd00:244:0:2::1", "8.8.8.8", "::ffff:10.244.1.9"]
        {
            assert!(!peers.admit(other.parse().unwrap()), "{other}");
        }
        assert!(!Peers::default().admit("10.244.1.9".parse().unwrap()));
        assert!(contains(cidr("0.0.0.0", 0), "8.8.8.8".parse().unwrap()));
        assert!(contains(cidr("::", 0), "ffff::1".parse().unwrap()));
    }
}
