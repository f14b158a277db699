//! Tests of the routes: the rules by example, and that plans reach what is wanted.

use proptest::prelude::*;

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

#[test]
fn both_families_go_by_the_nodes_internal_ips() {
    let other =
        node("node-2", &["172.30.0.12", "fd00:30::12"], &["10.244.2.0/24", "fd00:244:2::/64"]);
    let wanted = wanted(&nodes(&[own(), other]), OWN, &on_link());
    assert_eq!(wanted.problems, [""; 0]);
    let expected = BTreeMap::from([
        (cidr("10.244.1.0/24"), Via::Unreachable),
        (cidr("fd00:244:1::/64"), Via::Unreachable),
        (cidr("10.244.2.0/24"), Via::Gateway(ip("172.30.0.12"), 2)),
        (cidr("fd00:244:2::/64"), Via::Gateway(ip("fd00:30::12"), 2)),
    ]);
    assert_eq!(wanted.routes, expected);
}

#[test]
fn what_can_not_be_reached_is_said_by_name() {
    let far = node("far", &["192.0.2.9"], &["10.244.3.0/24"]);
    let v4_only = node("v4-only", &["172.30.0.13"], &["fd00:244:4::/64"]);
    let thief = node("thief", &["172.30.0.14"], &["10.244.1.0/24"]);
    let wanted = wanted(&nodes(&[own(), far, v4_only, thief]), OWN, &on_link());
    let problems = wanted.problems.join("\n");
    assert!(problems.contains("node far shares no link"), "{problems}");
    assert!(
        problems.contains("node v4-only has podCIDR fd00:244:4::/64 and no IPv6"),
        "{problems}"
    );
    assert!(problems.contains("node thief has the podCIDR 10.244.1.0/24"), "{problems}");
    assert_eq!(wanted.routes[&cidr("10.244.1.0/24")], Via::Unreachable);
    assert_eq!(wanted.routes.len(), 2);
}

#[test]
fn the_longest_prefix_says_which_link() {
    let mut links = on_link();
    links.push(OnLink { prefix: cidr("172.30.0.12/31"), ifindex: 7 });
    let other = node("node-2", &["192.0.2.9", "172.30.0.12"], &["10.244.2.0/24"]);
    let wanted = wanted(&nodes(&[own(), other]), OWN, &links);
    assert_eq!(wanted.routes[&cidr("10.244.2.0/24")], Via::Gateway(ip("172.30.0.12"), 7));
}

#[test]
fn foreign_routes_and_pod_routes_are_left_alone() {
    let gateway = Via::Gateway(ip("172.30.0.12"), 2);
    let want = BTreeMap::from([(cidr("10.244.2.0/24"), gateway)]);
    let foreign = Present { destination: cidr("10.244.2.0/24"), via: Some(gateway), ours: false };
    let pod = Present { destination: cidr("10.244.1.7/32"), via: Some(Via::Link(9)), ours: true };
    let default = Present { destination: cidr("0.0.0.0/0"), via: Some(gateway), ours: false };
    let other = Present { destination: cidr("192.0.2.0/24"), via: None, ours: false };
    let plan = plan(&want, &[foreign, pod, default, other]);
    assert_eq!((plan.set, plan.remove), (vec![], vec![]));
    assert!(plan.problems[0].contains("10.244.2.0/24"));
}

fn routes() -> impl Strategy<Value = BTreeMap<Cidr, Via>> {
    let via = prop_oneof![
        Just(Via::Unreachable),
        (1..4_u8, 2..4_u32).prop_map(|(host, ifindex)| {
            Via::Gateway(IpAddr::from([172, 30, 0, host]), ifindex)
        }),
    ];
    let range = (0..6_u8).prop_map(|index| Cidr::holding([10, 244, index, 0].into(), 24).unwrap());
    prop::collection::btree_map(range, via, 0..6)
}

proptest! {
    /// Carried out, the plan makes what is present what is wanted, and a second one is empty.
    #[test]
    fn a_plan_reaches_what_is_wanted(before in routes(), want in routes()) {
        let present = |routes: &BTreeMap<Cidr, Via>| -> Vec<Present> {
            let ours = |(destination, via): (&Cidr, &Via)| Present {
                destination: *destination, via: Some(*via), ours: true,
            };
            routes.iter().map(ours).collect()
        };
        let mut routes = before.clone();
        let first = plan(&want, &present(&before));
        for (destination, via) in first.remove {
            prop_assert_eq!(routes.remove(&destination), Some(via));
        }
        routes.extend(first.set);
        prop_assert_eq!(&routes, &want);
        prop_assert_eq!(plan(&want, &present(&routes)), Plan::default());
    }
}
