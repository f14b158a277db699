//! Blocks and options for parts of the cluster's names and of the trees of addresses.

use super::*;
use crate::dns::{
    name::LowerName,
    route::Routes,
    zone::parts::{Part, Parts},
};

/// What holds for a name, where that is something else than for the whole.
fn part(said: &Said, text: &str) -> Option<Part> {
    said.parts.of(&LowerName::of(&name(text))).map(|(part, _)| part)
}

#[test]
fn a_block_that_forwards_a_part_has_its_names() {
    let said = meaning(
        ". {\n kubernetes cluster.local in-addr.arpa\n forward . 192.0.2.1\n}\n\
         lab.svc.cluster.local 192.168.0.0/16 fd00:96::/64 {\n forward . 192.0.2.2\n}\n\
         one.lab.svc.cluster.local {\n kubernetes cluster.local\n}\n\
         two.svc.cluster.local {\n log\n}\n\
         three.svc.cluster.local {\n forward . 10.96.0.10\n}\n\
         four.svc.cluster.local {\n forward corp 192.0.2.3\n}\n",
    );
    for (text, expected) in [
        ("a.lab.svc.cluster.local.", Some(Part::Elsewhere)),
        ("1.168.192.in-addr.arpa.", Some(Part::Elsewhere)),
        ("a.one.lab.svc.cluster.local.", Some(Part::Denied)),
        // They have nobody to ask: what they do is beside looking names up.
        ("a.two.svc.cluster.local.", None),
        ("a.three.svc.cluster.local.", None),
        ("a.four.svc.cluster.local.", None),
        ("a.default.svc.cluster.local.", None),
        ("1.10.in-addr.arpa.", None),
    ] {
        assert_eq!(part(&said, text), expected, "{text}");
    }
    assert_eq!(part(&said, &reverse("fd00:96::7")), Some(Part::Elsewhere));
    assert!(!said.falls_through().1.v4, "of all others the tree is kept");
}

/// The name of an address.
fn reverse(address: &str) -> String {
    Name::from(address.parse::<std::net::IpAddr>().unwrap()).to_string()
}

#[test]
fn the_whole_is_no_part() {
    let said = meaning(
        "cluster.local {\n forward . 192.0.2.2\n}\nin-addr.arpa {\n forward . 192.0.2.3\n}\n\
         . {\n kubernetes cluster.local in-addr.arpa ip6.arpa\n forward . 192.0.2.1\n}\n",
    );
    assert_eq!(said.parts, Parts::default());
}

/// dns_17: as kubeadm's range of Services, and as a range below a tree that is kept.
#[test]
fn a_range_is_kept_or_let_through_by_itself() {
    let with = |through: &str| {
        meaning(&format!(
            ". {{\n kubernetes cluster.local 10.96.0.0/12 fd00:96::/112 {{\n  {through}\n }}\n \
             forward . 192.0.2.1\n}}\n"
        ))
    };
    for (through, v4, v6) in [
        ("ttl 5", Part::Denied, Part::Denied),
        ("fallthrough in-addr.arpa", Part::FallsThrough, Part::Denied),
        ("fallthrough 10.96.0.0/12", Part::FallsThrough, Part::Denied),
        ("fallthrough", Part::FallsThrough, Part::FallsThrough),
    ] {
        let said = with(through);
        assert_eq!(part(&said, &reverse("10.111.0.1")), Some(v4), "{through}");
        assert_eq!(part(&said, &reverse("fd00:96::1")), Some(v6), "{through}");
        assert_eq!(part(&said, &reverse("10.112.0.1")), None, "{through}");
        assert_eq!(said.falls_through().1, Trees::BOTH, "what is not its own: {through}");
    }
    let below = with("fallthrough 10.97.0.0/16 svc.cluster.local");
    assert_eq!(part(&below, &reverse("10.96.0.1")), Some(Part::Denied));
    assert_eq!(part(&below, &reverse("10.97.0.1")), Some(Part::FallsThrough));
    assert_eq!(part(&below, "nope.default.svc.cluster.local."), Some(Part::FallsThrough));
    assert_eq!(part(&below, "nope.cluster.local."), None);
    assert!(!below.falls_through().0);
    let tree = meaning(
        ". {\n kubernetes cluster.local in-addr.arpa {\n  fallthrough 10.in-addr.arpa\n }\n \
         forward . 192.0.2.1\n}\n",
    );
    assert_eq!(part(&tree, &reverse("10.1.0.1")), Some(Part::FallsThrough));
    assert_eq!((part(&tree, &reverse("11.1.0.1")), tree.falls_through().1.v4), (None, false));
}

/// What a block says of names that another one has says nothing.
#[test]
fn parts_are_those_of_the_block_that_has_the_names() {
    let said = meaning(
        ". {\n kubernetes cluster.local in-addr.arpa {\n  fallthrough 10.in-addr.arpa\n }\n}\n\
         10.0.0.0/8 {\n kubernetes cluster.local in-addr.arpa\n}\n",
    );
    assert_eq!(part(&said, &reverse("10.1.0.1")), Some(Part::Denied));
}

/// dns_17: no name of a block leaves by the upstreams of another one.
#[test]
fn what_falls_through_a_block_without_upstreams_is_nobodys() {
    let said = meaning(
        "10.0.0.0/8 {\n hosts {\n  fallthrough\n }\n}\n\
         cluster.local ip6.arpa {\n kubernetes cluster.local ip6.arpa {\n  fallthrough\n }\n}\n\
         lab.svc.cluster.local {\n forward x.lab.svc.cluster.local 192.0.2.2\n}\n\
         192.168.0.0/16 {\n forward . 10.96.0.10\n}\n\
         . {\n forward . 192.0.2.1\n}\n",
    );
    let Meaning { routes, blocks, .. } = said.meaning;
    let routes = Routes::new(routes, &blocks, &name("cluster.local."));
    for (text, upstream) in [
        (&*reverse("10.9.9.9"), None),
        (&*reverse("fd00:9::9"), None),
        ("nope.default.svc.cluster.local.", None),
        ("a.x.lab.svc.cluster.local.", Some("192.0.2.2")),
        ("a.lab.svc.cluster.local.", None),
        (&*reverse("11.9.9.9"), Some("192.0.2.1")),
        // It led to cluster DNS, which is here and passes on what nobody here has.
        (&*reverse("192.168.9.9"), Some("192.0.2.1")),
        ("www.example.org.", Some("192.0.2.1")),
    ] {
        let lower = LowerName::of(&name(text));
        let (place, route) = routes.find(&lower).unwrap();
        let asked = routes.asks_for(place, &lower).then(|| route.upstreams.clone());
        assert_eq!(asked, upstream.map(|upstream| at(&[upstream])), "{text}");
    }
}
