//! Tests of the choice of ways: the rules by example.

use super::*;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(name: &str, internal_ips: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        name: name.into(),
        internal_ips: internal_ips.iter().map(|text| ip(text)).collect(),
        pod_cidrs: pod_cidrs.iter().map(|text| cidr(text)).collect(),
        zone: None,
        to_be_deleted: false,
        kube_proxy: None,
        names_asked: None,
    }
}

fn nodes(nodes: &[Node]) -> OrdMap<Arc<str>, Arc<Node>> {
    nodes.iter().map(|node| (node.name.clone(), Arc::new(node.clone()))).collect()
}

fn on_link() -> Vec<OnLink> {
    vec![
        OnLink { prefix: cidr("172.30.0.0/24"), ifindex: 2 },
        OnLink { prefix: cidr("fd00:30::/64"), ifindex: 2 },
    ]
}

const OWN: &str = "node-1";

fn own() -> Node {
    node(OWN, &["172.30.0.11", "fd00:30::11"], &["10.244.1.0/24", "fd00:244:1::/64"])
}

fn found(others: &[Node], links: &[OnLink], tunnels: bool) -> Ways {
    ways(&nodes(&[&[own()], others].concat()), OWN, links, tunnels)
}

const TUNNEL: u32 = 9;

#[test]
fn both_families_go_by_the_nodes_internal_ips() {
    let other =
        node("node-2", &["172.30.0.12", "fd00:30::12"], &["10.244.2.0/24", "fd00:244:2::/64"]);
    let found = found(&[other], &on_link(), true);
    assert_eq!(found.problems().count(), 0);
    let expected = BTreeMap::from([
        (cidr("10.244.1.0/24"), Via::Unreachable),
        (cidr("fd00:244:1::/64"), Via::Unreachable),
        (cidr("10.244.2.0/24"), Via::Gateway(ip("172.30.0.12"), 2)),
        (cidr("fd00:244:2::/64"), Via::Gateway(ip("fd00:30::12"), 2)),
    ]);
    assert_eq!(found.routes(None), expected);
    assert_eq!((found.need_tunnel(), found.overhead()), (false, 0));
    assert!(found.tunnelled(Some(TUNNEL)).is_empty());
}

#[test]
fn a_node_on_no_link_is_reached_by_a_tunnel() {
    let far = node("far", &["192.0.2.9", "2001:db8::9"], &["10.244.3.0/24", "fd00:244:3::/64"]);
    let found = found(&[far], &on_link(), true);
    let (v4, v6) = (ip("192.0.2.9"), ip("2001:db8::9"));
    let kinds: Vec<_> = found.ways.iter().map(|way| way.kind.clone().unwrap()).collect();
    assert_eq!(kinds, [Kind::Tunnel { endpoint: v4 }, Kind::Tunnel { endpoint: v6 }]);
    let (from4, from6) = (ip("172.30.0.11"), ip("fd00:30::11"));
    let routes = found.routes(Some(TUNNEL));
    assert_eq!(routes[&cidr("10.244.3.0/24")], Via::From(TUNNEL, from4));
    assert_eq!(routes[&cidr("fd00:244:3::/64")], Via::From(TUNNEL, from6));
    assert_eq!(routes.len(), 4, "the node itself is reached without it, but by pods");
    let by_pods = ["10.244.3.0/24", "fd00:244:3::/64", "192.0.2.9/32", "2001:db8::9/128"].map(cidr);
    assert_eq!(found.tunnelled(Some(TUNNEL)), by_pods.map(|range| (range, TUNNEL)).into());
    assert!(found.tunnelled(None).is_empty(), "there is no device");
    let peers = [
        ("10.244.3.0/24", v4),
        ("192.0.2.9/32", v4),
        ("2001:db8::9/128", v6),
        ("fd00:244:3::/64", v6),
    ];
    assert_eq!(found.peers, peers.map(|(range, ip)| (cidr(range), ip)).into());
    assert_eq!(found.overhead(), OVERHEAD_V6);
    assert_eq!((OVERHEAD_V4, OVERHEAD_V6), (50, 70));
}

#[test]
fn a_tunnel_may_be_of_the_other_family() {
    let far = node("far", &["192.0.2.9"], &["10.244.3.0/24", "fd00:244:3::/64"]);
    let found = found(&[far], &on_link(), true);
    assert_eq!(found.peers[&cidr("fd00:244:3::/64")], ip("192.0.2.9"));
    assert_eq!(found.overhead(), OVERHEAD_V4);
}

#[test]
fn peers_are_known_whichever_way_they_are_reached() {
    let near = node("near", &["172.30.0.12"], &["10.244.2.0/24"]);
    let peers = found(&[near], &on_link(), true).peers;
    assert_eq!(peers[&cidr("10.244.2.0/24")], ip("172.30.0.12"));
    assert_eq!(peers[&cidr("172.30.0.12/32")], ip("172.30.0.12"));
}

#[test]
fn what_can_not_be_reached_is_said_by_name() {
    let far = node("far", &["192.0.2.9"], &["10.244.3.0/24"]);
    let v4_only = node("v4-only", &["172.30.0.13"], &["fd00:244:4::/64"]);
    let thief = node("thief", &["172.30.0.14"], &["10.244.1.0/24"]);
    let found = found(&[far, v4_only, thief], &on_link(), false);
    let problems = found.problems().cloned().collect::<Vec<_>>().join("\n");
    assert!(problems.contains("node far shares no link"), "{problems}");
    assert!(
        problems.contains("node v4-only has podCIDR fd00:244:4::/64 and no IPv6"),
        "{problems}"
    );
    assert!(problems.contains("node thief has the podCIDR 10.244.1.0/24"), "{problems}");
    let routes = found.routes(None);
    assert_eq!(routes[&cidr("10.244.1.0/24")], Via::Unreachable);
    assert_eq!(routes.len(), 2);
    let peers: Vec<_> = found.peers.keys().map(ToString::to_string).collect();
    assert_eq!(peers, [""; 0], "what is not reached sends nothing either");
}

/// A host that was given another name leaves a Node with its addresses behind.
#[test]
fn a_node_with_this_nodes_own_addresses_is_led_nowhere_and_named() {
    let own = ["172.30.0.11", "fd00:30::11"];
    let stale = node("earlier", &own, &["10.244.7.0/24", "fd00:244:7::/64"]);
    let near = node("near", &["172.30.0.12"], &["10.244.2.0/24"]);
    // On a link, and as the end of a tunnel.
    for links in [on_link(), vec![]] {
        let found = found(&[stale.clone(), near.clone()], &links, true);
        let problems: Vec<_> = found.problems().collect();
        assert_eq!(problems.len(), 2, "{problems:?}");
        for (problem, address) in problems.iter().zip(own) {
            let said = format!("node earlier has the InternalIP {address} of this node, node-1");
            assert!(problem.contains(&said), "{problem}");
        }
        let ranges: Vec<_> = found.peers.keys().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.244.2.0/24", "172.30.0.12/32"]);
        assert!(!found.routes(Some(TUNNEL)).contains_key(&cidr("10.244.7.0/24")));
    }
    // One that is shared, beside one that is not: that one leads there.
    let both = node("both", &["172.30.0.11", "172.30.0.13"], &["10.244.8.0/24"]);
    let routes = found(&[both], &on_link(), true).routes(None);
    assert_eq!(routes[&cidr("10.244.8.0/24")], Via::Gateway(ip("172.30.0.13"), 2));
}

#[test]
fn the_longest_prefix_says_which_link() {
    let mut links = on_link();
    links.push(OnLink { prefix: cidr("172.30.0.12/31"), ifindex: 7 });
    let other = node("node-2", &["192.0.2.9", "172.30.0.12"], &["10.244.2.0/24"]);
    let routes = found(&[other], &links, true).routes(None);
    assert_eq!(routes[&cidr("10.244.2.0/24")], Via::Gateway(ip("172.30.0.12"), 7));
}
