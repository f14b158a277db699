//! The node's own tables: its addresses, the ranges of the cluster's pods, its record.

use std::{collections::BTreeMap, net::IpAddr};

use mizzen_ebpf_abi::{
    addr::Addr,
    node::{NodeAddr, NodeConfig, cluster_range_flags, node_addr_flags, node_config_flags},
};

use super::{NodeFacts, NodePortAddresses, Settings};
use crate::{
    apply::maps::AddrRange,
    model::{
        node::{Cidr, Node},
        snapshot::Snapshot,
    },
};

/// Bits that an IPv4 prefix is longer in the 16-byte form of addresses.
const V4_MAPPED_BITS: u8 = 96;

/// What the node's tables should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredNode {
    /// `NODE_ADDRS`.
    pub addrs: BTreeMap<Addr, NodeAddr>,
    /// `CLUSTER_RANGES`.
    pub cluster_ranges: BTreeMap<AddrRange, u32>,
    /// The record of `NODE_CONFIG`.
    pub config: NodeConfig,
}

/// The node's tables, from its Node object, all nodes' pod ranges, and its interfaces.
pub fn desired_node(snapshot: &Snapshot, facts: &NodeFacts, settings: &Settings) -> DesiredNode {
    let node = snapshot.nodes.get(&settings.node_name);
    let primary = |ipv6: bool| node.and_then(|node| primary_ip(node, ipv6));
    let primaries: Vec<IpAddr> = [primary(false), primary(true)].into_iter().flatten().collect();

    let mut addrs = BTreeMap::new();
    let internal_ips = node.map_or(&[][..], |node| &node.internal_ips);
    let named = internal_ips.iter().map(|ip| (*ip, 0));
    let present = facts.addresses.iter().map(|local| (local.addr, local.ifindex));
    for (addr, ifindex) in named.chain(present) {
        let takes_node_ports = match &settings.node_port_addresses {
            NodePortAddresses::Primary => primaries.contains(&addr),
            NodePortAddresses::Within(ranges) => ranges.iter().any(|range| contains(range, addr)),
        };
        let flags = if takes_node_ports { node_addr_flags::NODE_PORTS } else { 0 };
        addrs.insert(Addr::from(addr), NodeAddr { flags, ifindex });
    }
    let cluster_ranges = snapshot
        .nodes
        .values()
        .flat_map(|node| &node.pod_cidrs)
        .map(|cidr| (pod_range(cidr), cluster_range_flags::PODS))
        .collect();
    let masquerade = if settings.masquerade_all { node_config_flags::MASQUERADE_ALL } else { 0 };
    // Unset is all zero, in both fields.
    let source = |ipv6| primary(ipv6).map_or(Addr::default(), Addr::from);
    let config = NodeConfig {
        ipv4: source(false),
        ipv6: source(true),
        snat_port_min: settings.snat_ports.0,
        snat_port_max: settings.snat_ports.1,
        flags: masquerade,
        reserved: [0; 2],
    };
    DesiredNode { addrs, cluster_ranges, config }
}

/// The node's first InternalIP of a family.
fn primary_ip(node: &Node, ipv6: bool) -> Option<IpAddr> {
    node.internal_ips.iter().copied().find(|ip| ip.is_ipv6() == ipv6)
}

fn pod_range(cidr: &Cidr) -> AddrRange {
    let mapped = if cidr.address.is_ipv4() { V4_MAPPED_BITS } else { 0 };
    AddrRange { addr: cidr.address.into(), prefix_len: cidr.prefix_len + mapped }
}

/// Whether `addr` is inside of `range`; never across families.
pub fn contains(range: &Cidr, addr: IpAddr) -> bool {
    if range.address.is_ipv6() != addr.is_ipv6() {
        return false;
    }
    let bits = |ip: IpAddr| u128::from_be_bytes(Addr::from(ip).octets);
    let prefix_len = u32::from(pod_range(range).prefix_len);
    let mask = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
    bits(range.address) & mask == bits(addr) & mask
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::desired::LocalAddress;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, ips, cidr) in [
            ("a", ["192.0.2.1", "192.0.2.9", "2001:db8::1"], "10.244.0.0"),
            ("b", ["192.0.2.2", "192.0.2.8", "2001:db8::2"], "10.244.1.0"),
        ] {
            let node = Node {
                name: name.into(),
                internal_ips: ips.map(ip).to_vec(),
                pod_cidrs: vec![
                    Cidr { address: ip(cidr), prefix_len: 24 },
                    Cidr { address: ip("fd00:244::"), prefix_len: 64 },
                ],
                zone: None,
                to_be_deleted: false,
            };
            snapshot.nodes.insert(name.into(), Arc::new(node));
        }
        snapshot
    }

    fn node_port_addresses(settings: NodePortAddresses) -> Vec<String> {
        let local = |text, ifindex| LocalAddress { addr: ip(text), ifindex };
        let facts = NodeFacts {
            addresses: [local("192.0.2.1", 2), local("198.51.100.7", 3), local("2001:db8::1", 2)]
                .into(),
        };
        let settings = Settings {
            node_name: "a".into(),
            node_port_addresses: settings,
            ..Settings::default()
        };
        let desired = desired_node(&snapshot(), &facts, &settings);
        assert_eq!(desired.addrs.len(), 4, "all addresses are known");
        assert_eq!(desired.addrs[&ip("192.0.2.1").into()].ifindex, 2);
        desired
            .addrs
            .iter()
            .filter(|(_, value)| value.flags == node_addr_flags::NODE_PORTS)
            .map(|(addr, _)| addr.to_string())
            .collect()
    }

    #[test]
    fn b60_by_default_only_primary_addresses_take_node_ports() {
        assert_eq!(node_port_addresses(NodePortAddresses::Primary), ["192.0.2.1", "2001:db8::1"]);
    }

    #[test]
    fn b60_ranges_open_other_addresses() {
        let range = |text, prefix_len| Cidr { address: ip(text), prefix_len };
        let open = |ranges: &[Cidr]| node_port_addresses(NodePortAddresses::Within(ranges.into()));
        assert_eq!(open(&[range("198.51.100.0", 24)]), ["198.51.100.7"]);
        assert_eq!(open(&[range("0.0.0.0", 0)]), ["192.0.2.1", "192.0.2.9", "198.51.100.7"]);
        assert_eq!(open(&[range("::", 0)]), ["2001:db8::1"]);
    }

    #[test]
    fn pod_ranges_of_all_nodes_are_known_in_the_16_byte_form() {
        let settings = Settings { node_name: "b".into(), ..Settings::default() };
        let desired = desired_node(&snapshot(), &NodeFacts::default(), &settings);
        let ranges: Vec<String> = desired
            .cluster_ranges
            .keys()
            .map(|range| format!("{}/{}", range.addr, range.prefix_len))
            .collect();
        assert_eq!(ranges, ["10.244.0.0/120", "10.244.1.0/120", "fd00:244::/64"]);
        assert_eq!(desired.config.ipv4, ip("192.0.2.2").into());
        assert_eq!(desired.config.ipv6, ip("2001:db8::2").into());
    }
}
