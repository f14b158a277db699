//! The node as a client, and as a backend.

use super::{
    super::resolve::{Names, cases},
    *,
};

/// The node is one client, by whichever of its addresses it sends.
#[test]
fn d12_whichever_address_the_node_sends_from_it_keeps_one_backend() {
    let mut live = memory(false);
    for (primary, second, vip) in
        [(NODE, SECOND[0], "10.96.0.11:80"), (NODE_V6, SECOND[1], "[fd00:96::b]:80")]
    {
        let at: SocketAddr = vip.parse().unwrap();
        let key = FrontendKey::new(at.ip().into(), at.port(), protocol::TCP);
        let set = live.tables.frontends[&key].set;
        let v4 = live.tables.backends4.iter().find(|(_, b)| b.set == set).map(|(id, _)| *id);
        let v6 = live.tables.backends6.iter().find(|(_, b)| b.set == set).map(|(id, _)| *id);
        let backend = if at.is_ipv4() { v4 } else { v6 }.unwrap();
        let kept = Affinity { backend, seen_s: NOW_S, ..Affinity::default() };
        live.affinity.insert(AffinityKey { client: ip(primary).into(), set }, kept);
        for from in [primary, second] {
            let explained = tcp(&live, from, vip);
            assert_eq!(explained.origin, Origin::Node, "{from}");
            for path in [&explained.socket, &explained.packet] {
                assert_eq!(path.outcome, Outcome::Pinned, "{from} {:?}", path.path);
            }
        }
    }
}

/// As `b53_source_ranges_bind_the_node_by_the_address_that_its_socket_has` meets it with sockets.
#[test]
fn b53_why_judges_the_node_by_the_address_that_it_sends_from() {
    let mut live = memory(false);
    for (first, second, vip, cluster_ip) in [
        (NODE, SECOND[0], "203.0.113.80:80", "10.96.0.7:80"),
        (NODE_V6, SECOND[1], "[2001:db8:ffff::80]:80", "[fd00:96::7]:80"),
    ] {
        let [to, behind] = [vip, cluster_ip].map(|text| {
            let at: SocketAddr = text.parse().unwrap();
            FrontendKey::new(at.ip().into(), at.port(), protocol::TCP)
        });
        let set = live.tables.frontends[&behind].set;
        let flags = frontend_flags::EXTERNAL | frontend_flags::SOURCE_RANGES;
        live.tables.frontends.insert(to, Frontend::new(&to, set, flags));
        let range = AddrRange { addr: ip(second).into(), prefix_len: 128 };
        live.tables.source_ranges.insert(SourceRange { set, range });
        let outcomes = |live: &Memory, source: &str| {
            let (snapshot, pods) = (snapshot(), BTreeMap::new());
            let names = Names { node: "a", snapshot: &snapshot, pods: &pods };
            let cases = cases(live, &names, &source.parse().unwrap(), &vip.parse().unwrap());
            let [case] = &cases.unwrap()[..] else { panic!("one address of the family") };
            let explained = explain(live, &case.client, &case.dialled);
            (explained.socket.outcome, explained.packet.outcome)
        };
        let (untouched, balanced) = (Outcome::Untouched, Outcome::Balanced);
        assert_eq!(outcomes(&live, first), (untouched, Outcome::Dropped), "bound to it");
        assert_eq!(outcomes(&live, second), (balanced, balanced), "bound to it");
        for (source, packet) in [(first, Outcome::Dropped), (second, balanced)] {
            let way = Way { next_hop: ip(OUTSIDE).into(), source: ip(source).into() };
            live.ways.insert(IpAddr::from(to.addr), way);
            assert_eq!(outcomes(&live, "node"), (untouched, packet), "routed by {source}");
        }
    }
}

/// As `b88_the_node_reaches_a_backend_in_its_own_network` meets it by packets.
#[test]
fn b88_towards_a_backend_in_its_own_network_the_service_stands_for_the_node() {
    let live = memory(false);
    let masquerade = tcp(&live, NODE, "10.96.0.13:80").packet.masquerade.unwrap();
    assert_eq!(masquerade.address, NODE, "for the backend of another node");
    let [exception] = &masquerade.exceptions[..] else { panic!("{masquerade:?}") };
    assert_eq!(exception.candidate, "192.0.2.1:8080");
    assert_eq!(exception.address, "10.96.0.13");
    // A pod keeps its address towards it.
    let pod = tcp(&live, POD, "10.96.0.13:80").packet.masquerade.unwrap();
    assert_eq!((&*pod.address, pod.exceptions.len()), ("", 0));
}

/// As `u05_what_is_masqueraded_into_an_overlay_is_from_there` meets it by packets.
#[test]
fn u05_towards_pods_behind_another_plugins_tunnel_the_node_has_its_address_there() {
    const THERE: &str = "10.244.0.0";
    let mut live = memory(false);
    let range = AddrRange { addr: ip("10.244.0.0").into(), prefix_len: 96 + 16 };
    live.tables.cluster_ranges.insert(range, cluster_range_flags::PODS);
    let told = |live: &Memory| {
        let masquerade = tcp(live, OUTSIDE, "192.0.2.1:30080").packet.masquerade.unwrap();
        assert_eq!(masquerade.address, NODE);
        let told = masquerade.exceptions.into_iter().map(|of| (of.candidate, of.address));
        told.collect::<Vec<_>>()
    };
    let way = |next_hop, source| Way { next_hop: ip(next_hop).into(), source: ip(source).into() };
    for (next_hop, source) in [("192.0.2.2", NODE), (REMOTE, THERE)] {
        live.ways.insert(ip(REMOTE), way(next_hop, source));
        assert_eq!(told(&live), [], "by a router of the wire, or on the link");
    }
    live.ways.insert(ip(REMOTE), way("10.244.1.0", THERE));
    assert_eq!(told(&live), [("10.244.1.5:8080".to_owned(), THERE.to_owned())]);
    // Who keeps its address keeps it there, too.
    let kept = tcp(&live, POD, "10.96.0.7:80").packet.masquerade.unwrap();
    assert_eq!((&*kept.address, kept.exceptions.len()), ("", 0));
}
