//! The node's own tables: its addresses, the ranges of the cluster's pods and services, its record.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use mizzen_ebpf_abi::{
    addr::Addr,
    node::{NodeAddr, NodeConfig, cluster_range_flags, node_addr_flags, node_config_flags},
};

use super::{NodeFacts, NodePortAddresses, PodDetection, Settings};
use crate::{
    apply::maps::AddrRange,
    model::{
        node::{Cidr, Node},
        snapshot::Snapshot,
    },
};

/// Bits that an IPv4 prefix is longer in the 16-byte form of addresses.
const V4_MAPPED_BITS: u8 = 96;
/// Bits of that form.
const ADDR_BITS: u8 = 128;
/// The loopback interface, which comes first in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

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

impl DesiredNode {
    /// The addresses that take node ports.
    pub fn node_port_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let open =
            self.addrs.iter().filter(|(_, addr)| addr.flags & node_addr_flags::NODE_PORTS != 0);
        open.map(|(addr, _)| IpAddr::from(*addr))
    }

    /// The addresses by which others reach this node, whose interfaces are uplinks: those of its
    /// Node object, and those that take node ports. Not among these are addresses in the node's
    /// own pod ranges: they are on bridges to pods.
    pub fn uplink_addresses(&self, node: Option<&Node>) -> BTreeSet<IpAddr> {
        let named = node.map_or(&[][..], |node| &node.internal_ips);
        let ranges = node.map_or(&[][..], |node| &node.pod_cidrs);
        let of_pods = |addr: &IpAddr| ranges.iter().any(|range| range.contains(*addr));
        let open = self.node_port_addresses().filter(|addr| !addr.is_loopback() && !of_pods(addr));
        open.chain(named.iter().copied()).collect()
    }
}

/// The node's tables, from its Node object, the cluster's ranges, and its interfaces. `foreign` are
/// cluster IPs that are another proxy's business.
pub fn desired_node(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    settings: &Settings,
    foreign: impl Iterator<Item = IpAddr>,
) -> DesiredNode {
    let node = snapshot.nodes.get(&settings.node_name);
    let primary = |ipv6: bool| node.and_then(|node| primary_ip(node, ipv6));
    let cluster_ranges = cluster_ranges(snapshot, settings, foreign);
    let mut flags = 0;
    if settings.masquerade_all {
        flags |= node_config_flags::MASQUERADE_ALL;
    }
    // Without a family's range of pods nobody is one by it: as kube-proxy without a way to tell, which
    // has a detector for each family.
    for v4 in [true, false] {
        let of_pods = |(range, uses): (&AddrRange, &u32)| {
            range.addr.is_v4() == v4 && uses & cluster_range_flags::PODS != 0
        };
        if !cluster_ranges.iter().any(of_pods) {
            flags |= node_config_flags::no_pod_detection(v4);
        }
    }
    if settings.masquerade_pods {
        flags |= node_config_flags::MASQUERADE_PODS;
    }
    let addrs = addresses(node, facts, settings);
    for v4 in [true, false] {
        let from = addrs.keys().filter(|addr| addr.is_v4() == v4);
        if from.filter(|addr| leads_out(**addr, node, &cluster_ranges)).count() > 1 {
            flags |= node_config_flags::several_sources(v4);
        }
    }
    // Unset is all zero, in both fields.
    let source = |ipv6| primary(ipv6).map_or(Addr::default(), Addr::from);
    let config = NodeConfig {
        ipv4: source(false),
        ipv6: source(true),
        snat_port_min: settings.snat_ports.0,
        snat_port_max: settings.snat_ports.1,
        flags,
        tunnel_port: settings.tunnel_port,
        padding: 0,
        reserved: 0,
    };
    DesiredNode { addrs, cluster_ranges, config }
}

/// Whether what the node sends to a load balancer's address may have this one of its own. Not one of
/// its range of pods, which a plugin's bridge or tunnel has, nor a cluster IP, which a resolver of the
/// node has for its pods: no route but to pods has these as its source.
fn leads_out(
    addr: Addr,
    node: Option<&Arc<Node>>,
    cluster_ranges: &BTreeMap<AddrRange, u32>,
) -> bool {
    let of_pods = node.map_or(&[][..], |node| &node.pod_cidrs);
    let of_pods = of_pods.iter().any(|range| range.contains(addr.into()));
    let of_services = cluster_ranges
        .iter()
        .any(|(range, uses)| uses & cluster_range_flags::SERVICES != 0 && range.holds(&addr));
    !addr.is_loopback() && !of_pods && !of_services
}

/// The node's addresses, and which of them take node ports.
fn addresses(
    node: Option<&Arc<Node>>,
    facts: &NodeFacts,
    settings: &Settings,
) -> BTreeMap<Addr, NodeAddr> {
    let primary = |ipv6: bool| node.and_then(|node| primary_ip(node, ipv6));
    let primaries = [primary(false), primary(true)];
    let takes_node_ports = |addr: IpAddr| match &settings.node_port_addresses {
        NodePortAddresses::Primary => primaries.contains(&Some(addr)),
        NodePortAddresses::Within(ranges) => ranges.iter().any(|range| range.contains(addr)),
    };
    let internal_ips = node.map_or(&[][..], |node| &node.internal_ips);
    let named = internal_ips.iter().map(|ip| (*ip, 0));
    let present = facts.addresses.iter().map(|local| (local.addr, local.ifindex));
    let of_node = named.chain(present).map(|(addr, ifindex)| {
        let flags = if takes_node_ports(addr) { node_addr_flags::NODE_PORTS } else { 0 };
        (addr, NodeAddr { flags, ifindex })
    });
    // Loopback addresses concern the node's own sockets only, and are here where they take ports.
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]
        .into_iter()
        .filter_map(|addr| {
            let open = settings.localhost_node_ports || takes_node_ports(addr);
            let flags = if open { node_addr_flags::NODE_PORTS } else { 0 };
            let ifindex = LOOPBACK_IFINDEX;
            (open || !facts.host_ports.is_empty()).then_some((addr, NodeAddr { flags, ifindex }))
        });
    of_node.chain(loopback).map(|(addr, value)| (Addr::from(addr), value)).collect()
}

/// What the cluster's ranges are for. A range of pods that lies in one of services, or the other
/// way round, goes before it for being longer.
fn cluster_ranges(
    snapshot: &Snapshot,
    settings: &Settings,
    foreign: impl Iterator<Item = IpAddr>,
) -> BTreeMap<AddrRange, u32> {
    let of_nodes = snapshot.nodes.values().flat_map(|node| &node.pod_cidrs);
    let pods: Vec<&Cidr> = match &settings.pod_detection {
        PodDetection::PodCidrs => of_nodes.collect(),
        PodDetection::ClusterCidrs(ranges) => ranges.iter().collect(),
        PodDetection::Nothing => Vec::new(),
    };
    let of_cluster = snapshot.service_cidrs.values().flat_map(|object| &object.cidrs);
    let mut services: Vec<&Cidr> = of_cluster.collect();
    if services.is_empty() {
        services.extend(&settings.service_cidrs);
    }
    // Addresses that are another's, or a listener's on this node, are no unallocated ones: for
    // being the longest their ranges take them out.
    let own = settings.prefer_local.iter().map(SocketAddr::ip);
    let taken = foreign.chain(own).filter(|ip| services.iter().any(|range| range.contains(*ip)));
    let known = cluster_range_flags::KNOWS_PODS;
    let taken = taken.map(|ip| (AddrRange { addr: ip.into(), prefix_len: ADDR_BITS }, known));
    let mut ranges: BTreeMap<AddrRange, u32> = taken.collect();
    for (cidrs, purpose) in
        [(&pods, cluster_range_flags::PODS), (&services, cluster_range_flags::SERVICES)]
    {
        for cidr in cidrs {
            *ranges.entry(addr_range(cidr)).or_insert(0) |= purpose;
        }
    }
    for cidr in &settings.non_masquerade_cidrs {
        // Being longer it would go before the range that it lies in, and so says what that says.
        let of = |ranges: &[&Cidr], purpose| {
            let inside = |range: &&&Cidr| {
                range.contains(cidr.address) && range.prefix_len <= cidr.prefix_len
            };
            if ranges.iter().any(|range| inside(&range)) { purpose } else { 0 }
        };
        let within =
            of(&pods, cluster_range_flags::PODS) | of(&services, cluster_range_flags::SERVICES);
        *ranges.entry(addr_range(cidr)).or_insert(0) |= known | within;
    }
    ranges
}

/// The node's first InternalIP of a family.
fn primary_ip(node: &Node, ipv6: bool) -> Option<IpAddr> {
    node.internal_ips.iter().copied().find(|ip| ip.is_ipv6() == ipv6)
}

/// A range as the longest-prefix maps key it.
pub fn addr_range(cidr: &Cidr) -> AddrRange {
    let mapped = if cidr.address.is_ipv4() { V4_MAPPED_BITS } else { 0 };
    AddrRange { addr: cidr.address.into(), prefix_len: cidr.prefix_len + mapped }
}

#[cfg(test)]
mod tests {
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
                kube_proxy: None,
                names_asked: None,
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
            ..NodeFacts::default()
        };
        let settings = Settings {
            node_name: "a".into(),
            node_port_addresses: settings,
            ..Settings::default()
        };
        let desired = desired_node(&snapshot(), &facts, &settings, [].into_iter());
        let known = desired.addrs.keys().filter(|addr| !addr.is_loopback());
        assert_eq!(known.count(), 4, "all addresses are known");
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
        assert_eq!(
            open(&[range("0.0.0.0", 0)]),
            ["127.0.0.1", "192.0.2.1", "192.0.2.9", "198.51.100.7"]
        );
        assert_eq!(open(&[range("::", 0)]), ["::1", "2001:db8::1"]);
        assert_eq!(open(&[range("127.0.0.0", 8)]), ["127.0.0.1"], "v4");
    }

    #[test]
    fn b47_pods_are_told_by_the_families_that_have_ranges_of_them() {
        use node_config_flags::{NO_POD_DETECTION_V4 as NO_V4, NO_POD_DETECTION_V6 as NO_V6};
        let (v4, v6) = (("10.244.0.0", 16), ("fd00:244::", 48));
        for (ranges, flags) in
            [(vec![v4, v6], 0), (vec![v4], NO_V6), (vec![v6], NO_V4), (vec![], NO_V4 | NO_V6)]
        {
            let ranges: Vec<_> = ranges
                .into_iter()
                .map(|(at, prefix_len)| Cidr { address: ip(at), prefix_len })
                .collect();
            let settings = Settings {
                pod_detection: PodDetection::ClusterCidrs(ranges),
                ..Settings::default()
            };
            let facts = NodeFacts::default();
            let desired = desired_node(&snapshot(), &facts, &settings, [].into_iter());
            assert_eq!(desired.config.flags, flags, "{settings:?}");
        }
    }

    #[test]
    fn b53_a_node_may_send_from_several_addresses_of_a_family() {
        use node_config_flags::{SEVERAL_SOURCES_V4 as V4, SEVERAL_SOURCES_V6 as V6};
        let mut snapshot = snapshot();
        let mut node = Node::clone(&snapshot.nodes["a"]);
        node.internal_ips = vec![ip("192.0.2.1"), ip("2001:db8::1")];
        snapshot.nodes.insert("a".into(), Arc::new(node));
        let settings = Settings {
            node_name: "a".into(),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            non_masquerade_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
            localhost_node_ports: true,
            ..Settings::default()
        };
        for (more, flags) in [
            (vec![], 0),
            (vec!["192.0.2.1", "2001:db8::1"], 0),
            // A plugin's bridge, and a resolver at the cluster's DNS address.
            (vec!["10.244.0.1", "fd00:244::1", "10.96.0.10"], 0),
            (vec!["192.0.2.99"], V4),
            (vec!["198.51.100.7"], V4),
            (vec!["2001:db8::99"], V6),
            (vec!["192.0.2.99", "2001:db8:1::1"], V4 | V6),
        ] {
            let local = |text: &&str| LocalAddress { addr: ip(text), ifindex: 2 };
            let addresses = more.iter().map(local).collect();
            let facts = NodeFacts { addresses, ..NodeFacts::default() };
            let desired = desired_node(&snapshot, &facts, &settings, [].into_iter());
            assert_eq!(desired.config.flags & (V4 | V6), flags, "{more:?}");
        }
    }

    #[test]
    fn pod_ranges_of_all_nodes_are_known_in_the_16_byte_form() {
        let settings = Settings { node_name: "b".into(), ..Settings::default() };
        let desired = desired_node(&snapshot(), &NodeFacts::default(), &settings, [].into_iter());
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
