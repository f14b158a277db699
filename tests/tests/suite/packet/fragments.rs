//! Packets in fragments, and packets that become some: what comes in order, out of order, from the
//! node itself, and what is too large for a narrow link.

use std::{fs, net::SocketAddr};

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    counters::Counter,
    frame::{Frame, checksums_are_right, key},
    service::frontend_flags,
};
use mizzen_tests::{
    echo::{Client, Echo, Transport},
    lab::{CLIENT, FAMILIES, Family, Lab},
};

use super::{
    EXTERNAL, LOCAL, NODE_PORT, cluster_ip, node_port,
    programs::{REDIRECT, SHOT, UNSPEC, dialled, read, run},
};

/// A part of a datagram: the first, or one that begins sixteen octets later and is the last.
fn part(of: &Frame, first: bool) -> Vec<u8> {
    let part = if of.key.destination.is_v4() {
        Frame { fragment: if first { 0x2000 } else { 0x0002 }, ..of.clone() }
    } else {
        let field = if first { 0x01 } else { 0x10 };
        let options = vec![protocol::UDP, 0, 0, field, 0, 0, 0, 7];
        Frame { options, first_extension: 44, ..of.clone() }
    };
    part.bytes()
}

/// A stack would never put them together, for their first goes elsewhere.
#[test]
fn f38_a_fragment_ahead_of_the_first_is_dropped_where_it_is_for_a_service() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        let vip = cluster_ip(&mut lab.nodes[0], family, Transport::Udp, &[backend]);
        let pod = family.pod(1, 2);
        let whole = Frame::new(key(17, (pod, 40_030), (vip.ip(), vip.port())));
        let dropped = lab.nodes[0].counted(Counter::DropFragmentAhead);
        let later = part(&whole, false);
        assert_eq!(run(&lab.nodes[0], "tc_pod_ingress", &later).verdict, SHOT, "{family:?}");
        assert_eq!(lab.nodes[0].counted(Counter::DropFragmentAhead), dropped + 1);
        assert_eq!(run(&lab.nodes[0], "tc_pod_ingress", &part(&whole, true)).verdict, REDIRECT);
        let ran = run(&lab.nodes[0], "tc_pod_ingress", &later);
        assert_eq!(ran.verdict, REDIRECT, "{family:?}");
        assert_eq!(read(&ran.packet).key.destination, Addr::from(backend.ip()));
        assert_eq!(lab.nodes[0].counted(Counter::DropFragmentAhead), dropped + 1);
    }
}

/// The node's own packets in fragments come there too, and answers of a backend under the address
/// that masquerades are told from them by the first.
#[test]
fn f38_a_fragment_ahead_of_the_first_passes_where_it_may_be_the_stacks() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], EXTERNAL);
        let set = lab.nodes[0].tables.set_of(&[backend]);
        let balancer = SocketAddr::new(family.load_balancer(1), 53);
        let udp = Transport::Udp.number();
        lab.nodes[0].tables.frontend(balancer, udp, set, frontend_flags::EXTERNAL);
        let flow = dialled(&lab, family, Transport::Udp, 40_031);
        let outside = (family.wire(CLIENT), 40_032);
        let balanced = Frame::new(key(17, outside, (balancer.ip(), balancer.port())));
        let there = run(&lab.nodes[0], "tc_uplink_ingress", &Frame::new(flow).bytes());
        let answer = Frame::new(read(&there.packet).key.reversed());
        let strange = Frame::new(key(17, (family.wire(CLIENT), 1), (family.pod(2, 9), 2)));
        for (whole, unknown) in
            [(Frame::new(flow), 1), (answer.clone(), 1), (balanced, 1), (strange, 0)]
        {
            let later = part(&whole, false);
            let before = lab.nodes[0].counted(Counter::FragmentUnknown);
            let ran = run(&lab.nodes[0], "tc_uplink_ingress", &later);
            assert_eq!((ran.verdict, ran.packet), (UNSPEC, later), "{family:?}");
            let counted = lab.nodes[0].counted(Counter::FragmentUnknown) - before;
            assert_eq!(counted, unknown, "{:?}", whole.key);
        }
        assert_eq!(run(&lab.nodes[0], "tc_uplink_ingress", &part(&answer, true)).verdict, REDIRECT);
        let later = part(&answer, false);
        let ran = run(&lab.nodes[0], "tc_uplink_ingress", &later);
        assert_eq!(read(&ran.packet).key.destination, Addr::from(family.wire(CLIENT)));
        let behind = if family == Family::V4 { 34 } else { 62 };
        assert_eq!(ran.packet[behind..], later[behind..], "{family:?}: no transport header in it");
    }
    assert_eq!(lab.nodes[0].counted(Counter::DropFragmentAhead), 0);
}

/// Past its socket programs, to a pod of its own, to one elsewhere, to itself.
#[test]
fn b64_d16_fragments_of_the_node_itself() {
    let mut lab = Lab::new([1, 1]);
    lab.route_out();
    for family in FAMILIES {
        let host = SocketAddr::new(lab.address_of_node(0, family), 6443);
        let _server = Echo::start(&lab.nodes[0].node.netns, host, "host");
        let pods = [0, 1].map(|node: usize| lab.nodes[node].pods[0].server(family));
        for backend in [pods[0], pods[1], host] {
            let vip = cluster_ip(&mut lab.nodes[0], family, Transport::Udp, &[backend]);
            let node = &lab.nodes[0].node.netns;
            let client = Client::dial(node, Transport::Udp, vip, 0).unwrap();
            for size in [1_000, 4_000, 9_000] {
                let answer = client.ask_with(size).map(|answer| answer.length);
                assert_eq!(answer.ok(), Some(size), "to {backend}");
            }
        }
    }
}

/// Where nothing but the destination changes, the stack can fragment what allows it (RFC 791).
#[test]
fn b65_what_may_be_fragmented_is() {
    let mut lab = Lab::new([1, 0]);
    lab.nodes[0].node.netns.ip("link set veth1 mtu 1300");
    lab.nodes[0].pods[0].netns.ip("link set eth0 mtu 1300");
    let family = Family::V4;
    let backend = lab.nodes[0].pods[0].server(family);
    node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], LOCAL);
    let flow = dialled(&lab, family, Transport::Udp, 40_032);
    let sent = Frame { payload: vec![7; 1_300], ..Frame::new(flow) };
    let ran = run(&lab.nodes[0], "tc_uplink_ingress", &sent.bytes());
    assert_eq!(ran.verdict, UNSPEC, "to the stack");
    assert!(checksums_are_right(&ran.packet));
    let packet = read(&ran.packet);
    assert_eq!(packet.key.destination, Addr::from(backend.ip()));
    assert_eq!(packet.key.source, sent.key.source);
    assert_eq!(packet.hop_limit(), sent.hop_limit, "which the stack counts");
    assert_eq!(lab.nodes[0].counted(Counter::DropPacketTooBig), 0);
    let whole = Frame { fragment: 0x4000, ..sent };
    assert_eq!(run(&lab.nodes[0], "tc_uplink_ingress", &whole.bytes()).verdict, REDIRECT);
    assert_eq!(lab.nodes[0].counted(Counter::DropPacketTooBig), 1, "the sender is told");

    // Sockets of a client that doesn't look for the way's MTU.
    lab.client.run(|| fs::write("/proc/sys/net/ipv4/ip_no_pmtu_disc", "1")).unwrap();
    let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
    let client = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
    for size in [1_400, 4_000] {
        assert_eq!(client.ask_with(size).unwrap().length, size);
    }
    assert_eq!(lab.nodes[0].counted(Counter::DropPacketTooBig), 1);
}
