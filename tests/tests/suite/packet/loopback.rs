//! The program of the loopback interface: questions of the node's own sockets to an address that is the
//! node's, where nobody listens, go to a backend elsewhere (ADR 45). All else is left alone.

use mizzen_ebpf_abi::{
    conntrack::FlowKey,
    frame::{Frame, checksums_are_right, key},
};
use mizzen_tests::echo::{Client, Echo};

use super::{
    programs::{REDIRECT, UNSPEC, read, run},
    *,
};

const PROGRAM: &str = "tc_loopback_egress";

/// An address of the first node's own, at which a service answers that prefers a local listener.
fn own_service(lab: &mut Lab, family: Family, backends: &[SocketAddr]) -> SocketAddr {
    let vip = SocketAddr::new(family.service(10), 53);
    let node = &mut lab.nodes[0];
    let set = node.tables.set_of(backends);
    for transport in TRANSPORTS {
        node.tables.frontend(vip, transport.number(), set, frontend_flags::PREFER_LOCAL);
    }
    let (length, nodad) = if vip.is_ipv4() { (32, "") } else { (128, " nodad") };
    node.node.netns.ip(&format!("addr replace {}/{length} dev lo{nodad}", vip.ip()));
    node.node.netns.run(|| node.datapath.attach_loopback(true)).unwrap();
    vip
}

/// One socket, to the end; who answers changes.
#[test]
fn a_connected_socket_of_the_node_is_answered_by_a_backend_while_nobody_listens_here() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        for node in [1, 0] {
            let pod = &lab.nodes[node].pods[0];
            let (backend, name) = (pod.server(family), pod.name.clone());
            let vip = own_service(&mut lab, family, &[backend]);
            let node = &lab.nodes[0];
            let netns = &node.node.netns;
            let client = Client::dial(netns, Transport::Udp, vip, 0).unwrap();
            let translated = node.counted(Counter::PacketTranslated);
            for _ in 0..2 {
                let case = format!("{family:?} {name}");
                for length in [10, 1_200] {
                    let answer = client.ask_with(length).expect(&case);
                    assert_eq!((&answer.name, answer.server), (&name, vip), "{case}");
                    assert_eq!(answer.client.ip(), lab.address_of_node(0, family), "{case}");
                    assert!((10_000..30_000).contains(&answer.client.port()), "{answer:?}");
                }
                let listener = Echo::start(netns, vip, "itself");
                let answer = client.ask().expect(&case);
                assert_eq!((answer.name.as_str(), answer.server), ("itself", vip), "{case}");
                assert_eq!(answer.client.port(), client.port(), "{case}");
                drop(listener);
            }
            // More, where a question was put again.
            assert!(node.counted(Counter::PacketTranslated) - translated >= 8, "there and back");
        }
    }
    sane(&lab);
}

/// The backend's stack says that nobody listens there, and this node's says so where there is none.
#[test]
fn a_connected_socket_of_the_node_is_told_that_nobody_listens_anywhere() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let closed = [0, 1].map(|node| SocketAddr::new(lab.nodes[node].pods[0].address(family), 9));
        for backends in [&closed[..1], &closed[1..], &[]] {
            let vip = own_service(&mut lab, family, backends);
            let refused = ask_in_vain(&lab.nodes[0].node.netns, Transport::Udp, vip);
            assert_eq!(refused, io::ErrorKind::ConnectionRefused, "{family:?} {backends:?}");
        }
    }
    sane(&lab);
}

#[test]
fn what_is_no_question_in_vain_passes_the_loopback_interface_untouched() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        let vip = own_service(&mut lab, family, &[backend]);
        let (own, node) = (vip.ip(), lab.address_of_node(0, family));
        let loopback = if own.is_ipv4() { "127.0.0.1" } else { "::1" }.parse().unwrap();
        let source = if own.is_ipv4() { own } else { node };
        let question = key(17, (source, 40_100), (own, 53));
        let lab = &lab.nodes[0];
        let verdict = |key: FlowKey| {
            let frame = Frame::new(key).bytes();
            let run = run(lab, PROGRAM, &frame);
            (run.verdict, run.packet == frame)
        };
        for (what, key) in [
            ("another port", key(17, (source, 40_100), (own, 5_353))),
            ("TCP", key(6, (source, 40_100), (own, 53))),
            ("an answer", question.reversed()),
            ("to the node", key(17, (node, 40_100), (node, 53))),
            ("to itself", key(17, (loopback, 40_100), (loopback, 53))),
        ] {
            assert_eq!(verdict(key), (UNSPEC, true), "{family:?} {what}");
        }
        assert_eq!(lab.counted(Counter::FlowCreated), u64::from(family == Family::V6));
        let listener = Echo::start(&lab.node.netns, vip, "itself");
        assert_eq!(verdict(question), (UNSPEC, true), "{family:?} somebody listens");
        drop(listener);
        let led = run(lab, PROGRAM, &Frame::new(question).bytes());
        assert_eq!(led.verdict, REDIRECT, "{family:?}");
        assert!(checksums_are_right(&led.packet), "{family:?}");
        let led = read(&led.packet).key;
        assert_eq!((led.destination, led.source), (backend.ip().into(), node.into()));
    }
}

/// IPv4 answers have no way to an address that the socket chose for itself, so it is refused.
#[test]
fn a_question_from_another_address_of_the_node_is_refused_at_once() {
    let mut lab = Lab::new([0, 1]);
    let backend = lab.nodes[1].pods[0].server(Family::V4);
    let vip = own_service(&mut lab, Family::V4, &[backend]);
    let node = SocketAddr::new(lab.address_of_node(0, Family::V4), 0);
    let refused = lab.nodes[0].node.netns.run(|| {
        let socket = std::net::UdpSocket::bind(node).unwrap();
        socket.connect(vip).unwrap();
        socket.send(b"anybody?").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        socket.recv(&mut [0; 8]).unwrap_err()
    });
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), 0);
}
