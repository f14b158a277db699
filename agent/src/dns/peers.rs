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
    /// Those in `snapshot`, and pods in `ranges`: where nodes' own ranges are not those that pods
    /// have their addresses of, the configuration names these (`clusterCidr`).
    pub fn of(snapshot: &Snapshot, ranges: &[Cidr]) -> Self {
        let nodes = || snapshot.nodes.values();
        let of_nodes = nodes().flat_map(|node| &node.pod_cidrs);
        Self {
            nodes: nodes().flat_map(|node| node.internal_ips.iter().copied()).collect(),
            pods: of_nodes.chain(ranges).copied().collect(),
        }
    }

    /// Whether `source` is one of them.
    pub fn admit(&self, source: IpAddr) -> bool {
        self.nodes.contains(&source) || self.pods.iter().any(|range| range.contains(source))
    }

    /// Whether it is known where pods are.
    pub fn know_pods(&self) -> bool {
        !self.pods.is_empty()
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
            names_asked: None,
        };
        let mut snapshot = Snapshot::default();
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
        let peers = Peers::of(&snapshot, &[]);
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
        assert!(peers.know_pods() && !Peers::default().know_pods());
        // Pods have their addresses of elsewhere, as the configuration says.
        let ranges = [cidr("10.42.0.0", 16), cidr("fd00:42::", 48)];
        let peers = Peers::of(&snapshot, &ranges);
        for peer in ["172.30.0.11", "10.244.1.9", "10.42.7.1", "fd00:42::9"] {
            assert!(peers.admit(peer.parse().unwrap()), "{peer}");
        }
        assert!(!peers.admit("10.43.0.1".parse().unwrap()));
        assert!(Peers::of(&Snapshot::default(), &ranges).know_pods());
    }
}
