//! Tests of the plans of routes.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
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
