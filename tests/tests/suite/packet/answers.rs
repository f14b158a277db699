//! Packets that the programs make: resets of flows whose backend was deleted, ICMP errors about
//! what can't go on, and how many of them.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use mizzen_ebpf_abi::{
    addr::Addr,
    counters::Counter,
    frame::{Frame, checksums_are_right, key},
    packet::tcp_flags,
};
use mizzen_tests::{
    echo::{Client, TRANSPORTS, Transport, ask},
    lab::{CLIENT, FAMILIES, Family, Lab, LabNode},
    tables::Windows,
};
use socket2::{Domain, Socket, Type};

use super::{
    EXTERNAL, LOCAL, NODE_PORT, cluster_ip, node_port,
    programs::{REDIRECT, SHOT, dialled, read, run},
};

/// Lets the node port lead to one backend; the ids of its set and of its record.
fn one_backend(
    node: &mut LabNode,
    family: Family,
    transport: Transport,
    to: SocketAddr,
) -> (u32, u32) {
    let tables = &mut node.tables;
    let set = tables.set();
    let backend = tables.backend(set, to);
    let range = tables.range(set, &[backend], Windows::all(1));
    tables.flip(set, range);
    let any = SocketAddr::new(family.any(), NODE_PORT);
    tables.frontend(any, transport.number(), set, EXTERNAL);
    (set, backend)
}

/// Takes a set's backends out of service.
pub(super) fn empty(node: &mut LabNode, set: u32) {
    let range = node.tables.range(set, &[], Windows::all(0));
    node.tables.flip(set, range);
}

#[test]
fn v8_r9_a_connection_to_a_deleted_backend_is_reset_by_its_next_segment() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let node = lab.address_of_node(0, family);
        for backend in [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)] {
            let (set, id) = one_backend(&mut lab.nodes[0], family, Transport::Tcp, backend);
            let to = SocketAddr::new(node, NODE_PORT);
            let client = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
            client.ask().unwrap();
            empty(&mut lab.nodes[0], set);
            client.ask().expect("it is only out of service");
            let reset = lab.nodes[0].counted(Counter::ResetGone);
            lab.nodes[0].tables.backend_is_gone(id, backend);
            let error = client.ask().unwrap_err().kind();
            assert_eq!(error, ErrorKind::ConnectionReset, "{family:?} {backend}");
            assert!(lab.nodes[0].counted(Counter::ResetGone) > reset);
        }
    }
}

/// An idle connection: when it goes on, another backend has the id of the one that was deleted.
#[test]
fn v8_a_connection_to_a_deleted_backend_is_reset_though_its_id_is_used_again() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let [first, second] = [0, 1].map(|node: usize| lab.nodes[node].pods[0].server(family));
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let (set, id) = one_backend(&mut lab.nodes[0], family, Transport::Tcp, first);
        let idle = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
        idle.ask().unwrap();
        let mut sweeper = lab.nodes[0].datapath.flow_sweeper().unwrap();
        assert_eq!(sweeper.run(usize::MAX).unwrap().marked, 0, "{family:?}");
        empty(&mut lab.nodes[0], set);
        lab.nodes[0].tables.backend_is_gone(id, first);
        let marked = [0, 1].map(|_| sweeper.run(usize::MAX).unwrap().marked);
        assert_eq!(marked, [1, 0], "{family:?}: once");

        let tables = &mut lab.nodes[0].tables;
        tables.write_backend(id, set, second);
        let range = tables.range(set, &[id], Windows::all(1));
        tables.flip(set, range);
        let other = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
        assert_eq!(other.ask().unwrap().name, "pod-2-1");
        assert_eq!(idle.ask().unwrap_err().kind(), ErrorKind::ConnectionReset, "{family:?}");
        assert_eq!(sweeper.run(usize::MAX).unwrap().marked, 0);
        assert_eq!(other.ask().unwrap().name, "pod-2-1", "{family:?}");
    }
}

/// V7: a record that was merely freed, or whose id another has, says nothing of the endpoint; and
/// a datagram goes to another backend (B105).
#[test]
fn v7_only_flows_to_the_deleted_backend_are_reset() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let [first, second] = [0, 1].map(|node: usize| lab.nodes[node].pods[0].server(family));
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let (set, id) = one_backend(&mut lab.nodes[0], family, Transport::Tcp, first);
        let client = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
        client.ask().unwrap();
        empty(&mut lab.nodes[0], set);
        let other_port = SocketAddr::new(first.ip(), first.port() + 1);
        lab.nodes[0].tables.free_backend(id, first);
        client.ask().expect("freed");
        for gone in [second, other_port] {
            lab.nodes[0].tables.backend_is_gone(id, gone);
            client.ask().expect("the id is another's");
        }

        let (set, id) = one_backend(&mut lab.nodes[0], family, Transport::Udp, first);
        let datagrams = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
        assert_eq!(datagrams.ask().unwrap().name, "pod-1-1");
        let next = lab.nodes[0].tables.backend(set, second);
        let range = lab.nodes[0].tables.range(set, &[next], Windows::all(1));
        lab.nodes[0].tables.flip(set, range);
        lab.nodes[0].tables.backend_is_gone(id, first);
        assert_eq!(datagrams.ask().unwrap().name, "pod-2-1");
    }
    assert_eq!(lab.nodes[0].counted(Counter::ResetGone), 0);
}

/// RFC 9293 section 3.10.7.1, bit by bit. A reset that got lost is followed by another, and a SYN
/// opens a new flow.
#[test]
fn v8_a_reset_has_the_number_that_the_client_expects() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        let (set, id) = one_backend(&mut lab.nodes[0], family, Transport::Tcp, backend);
        let node = &lab.nodes[0];
        let syn = Frame::new(dialled(&lab, family, Transport::Tcp, 40_020));
        let there = run(node, "tc_uplink_ingress", &syn.bytes());
        let answers = read(&there.packet).key.reversed();
        let answer =
            Frame { tcp_flags: tcp_flags::SYN | tcp_flags::ACK, ..Frame::new(answers) }.bytes();
        assert_eq!(run(node, "tc_uplink_ingress", &answer).verdict, REDIRECT);
        lab.nodes[0].tables.backend_is_gone(id, backend);
        let node = &lab.nodes[0];

        let ack = Frame { tcp_flags: tcp_flags::ACK, payload: vec![9; 700], ..syn.clone() };
        let mut sent = ack.bytes();
        let l4 = if family == Family::V4 { 34 } else { 54 };
        sent[l4 + 8..l4 + 12].copy_from_slice(&0x1122_3344_u32.to_be_bytes());
        for _ in 0..2 {
            let ran = run(node, "tc_uplink_ingress", &sent);
            assert_eq!(ran.verdict, REDIRECT, "{family:?}");
            assert!(checksums_are_right(&ran.packet), "{family:?}");
            let reset = read(&ran.packet);
            assert_eq!(reset.key, syn.key.reversed(), "from the service to the client");
            assert_eq!(reset.tcp_flags, tcp_flags::RST);
            assert_eq!(ran.packet[l4 + 4..l4 + 8], 0x1122_3344_u32.to_be_bytes());
            assert_eq!(ran.packet.len(), l4 + 20, "no data");
            assert_eq!(ran.packet[..6], sent[6..12], "back to where it came from");
        }
        let rst = Frame { tcp_flags: tcp_flags::RST, ..ack }.bytes();
        let ran = run(node, "tc_uplink_ingress", &rst);
        assert_eq!(read(&ran.packet).key.destination, Addr::from(backend.ip()), "no answer to it");
        lab.nodes[0].tables.write_backend(id, set, backend); // another pod has the address
        let node = &lab.nodes[0];
        let created = node.counted(Counter::FlowCreated);
        assert_eq!(run(node, "tc_uplink_ingress", &syn.bytes()).verdict, REDIRECT);
        assert_eq!(node.counted(Counter::FlowCreated), created + 1, "chosen anew");
    }
}

/// Narrows the way from node 1 to the pods of node 2; as for any router, what a route says of the
/// MTU counts where it is locked.
pub(super) fn narrow(lab: &Lab, family: Family, mtu: u16) {
    let node = &lab.nodes[0].node.netns;
    let via = family.wire(12);
    match family {
        Family::V4 => node.ip(&format!("route replace 10.244.2.0/24 via {via} mtu lock {mtu}")),
        Family::V6 => {
            node.ip(&format!("-6 route replace fd00:244:0:2::/64 via {via} mtu lock {mtu}"))
        }
    };
}

/// The way behind the node is narrower than the one to it: the client learns it, and everything
/// arrives, segments of a large buffer and datagrams alike.
#[test]
fn b65_a_narrow_link_behind_a_node_port() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        narrow(&lab, family, 1_300);
        let backend = lab.nodes[1].pods[0].server(family);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let told = lab.nodes[0].counted(Counter::DropPacketTooBig);
            let client = Client::dial(&lab.client, transport, to, 0).unwrap();
            client.ask_with(1_400).unwrap();
            if transport == Transport::Tcp {
                // Many segments in one buffer.
                for _ in 0..4 {
                    client.ask_with(60_000).unwrap();
                }
            }
            let told = lab.nodes[0].counted(Counter::DropPacketTooBig) - told;
            // A client that knows the way's MTU from before needs no telling.
            assert!(transport == Transport::Udp || told > 0, "{family:?}");
            assert!(told < 10, "{told} times: what fits is not refused");
        }
    }
}

/// A pod whose own link is narrow.
#[test]
fn b65_a_narrow_link_to_a_pod() {
    let mut lab = Lab::new([1, 0]);
    lab.nodes[0].node.netns.ip("link set veth1 mtu 1300");
    lab.nodes[0].pods[0].netns.ip("link set eth0 mtu 1300");
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[0].server(family);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], LOCAL);
        let told = lab.nodes[0].counted(Counter::DropPacketTooBig);
        let client = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
        client.ask_with(1_200).unwrap();
        assert_eq!(lab.nodes[0].counted(Counter::DropPacketTooBig), told);
        client.ask_with(1_400).unwrap();
        assert_eq!(lab.nodes[0].counted(Counter::DropPacketTooBig), told + 1, "{family:?}");
    }
}

/// Both directions: a client is told about its packet, and so is a backend.
#[test]
fn b65_too_big_quotes_the_packet_as_it_was_sent() {
    let mut lab = Lab::new([0, 1]);
    for (family, kind, l4) in [(Family::V4, [3, 4], 34), (Family::V6, [2, 0], 54)] {
        let backend = lab.nodes[1].pods[0].server(family);
        node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], EXTERNAL);
        let opening = Frame::new(dialled(&lab, family, Transport::Udp, 40_021));
        let there = run(&lab.nodes[0], "tc_uplink_ingress", &opening.bytes());
        narrow(&lab, family, 1_300);
        let headers = l4 - 14 + 8;
        let fits = Frame { payload: vec![7; 1_300 - headers], ..opening.clone() };
        assert_eq!(
            read(&run(&lab.nodes[0], "tc_uplink_ingress", &fits.bytes()).packet).key.destination,
            backend.ip().into()
        );
        let sent = Frame { payload: vec![7; 1_301 - headers], ..opening.clone() };
        let ran = run(&lab.nodes[0], "tc_uplink_ingress", &sent.bytes());
        told(&ran, &sent, kind, lab.address_of_node(0, family));
        assert_eq!(ran.packet[l4 + 4..l4 + 8], 1_300_u32.to_be_bytes(), "the MTU");

        // The way to the client becomes narrow: the backend is told, by the node.
        let (flag, length) = if family == Family::V4 { ("", 32) } else { ("-6 ", 128) };
        let client = family.wire(CLIENT);
        let node = &lab.nodes[0].node.netns;
        node.ip(&format!("{flag}route add {client}/{length} dev eth0 mtu lock 1290"));
        let answer = Frame {
            payload: vec![8; 1_291 - headers],
            ..Frame::new(read(&there.packet).key.reversed())
        };
        let ran = run(&lab.nodes[0], "tc_uplink_ingress", &answer.bytes());
        told(&ran, &answer, kind, lab.address_of_node(0, family));
        assert_eq!(ran.packet[l4 + 4..l4 + 8], 1_290_u32.to_be_bytes());
        node.ip(&format!("{flag}route del {client}/{length} dev eth0"));
    }
}

/// That an ICMP error goes to a packet's sender, and quotes what it sent.
fn told(ran: &mizzen_agent::datapath::TestRun, sent: &Frame, kind: [u8; 2], from: IpAddr) {
    assert_eq!(ran.verdict, REDIRECT);
    assert!(checksums_are_right(&ran.packet));
    let error = read(&ran.packet);
    assert_eq!((error.key.source, error.key.destination), (from.into(), sent.key.source));
    let at = usize::try_from(error.l4).unwrap();
    assert_eq!(ran.packet[at..at + 2], kind);
    let quoted = &ran.packet[at + 8..];
    assert_eq!(*quoted, sent.bytes()[14..14 + quoted.len()]);
    assert!(quoted.len() >= 28);
}

/// What traceroute shows: the node is a hop on the way through a node port.
#[test]
fn b135_a_hop_limit_that_runs_out_is_reported() {
    let mut lab = Lab::new([1, 0]);
    for (family, kind) in [(Family::V4, [11, 0]), (Family::V6, [3, 0])] {
        let backend = lab.nodes[0].pods[0].server(family);
        let node = lab.address_of_node(0, family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let flow = dialled(&lab, family, transport, 40_004);
            let last = Frame { hop_limit: 1, ..Frame::new(flow) };
            let counted = lab.nodes[0].counted(Counter::DropHopLimit);
            let ran = run(&lab.nodes[0], "tc_uplink_ingress", &last.bytes());
            told(&ran, &last, kind, node);
            assert_eq!(lab.nodes[0].counted(Counter::DropHopLimit), counted + 1);
        }
        // A connection attempt that may make one hop: its client learns why it fails.
        let to = SocketAddr::new(node, NODE_PORT);
        let attempt = lab.client.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            match family {
                Family::V4 => socket.set_ttl_v4(1).unwrap(),
                Family::V6 => socket.set_unicast_hops_v6(1).unwrap(),
            }
            socket.connect_timeout(&to.into(), std::time::Duration::from_secs(3))
        });
        assert_eq!(attempt.unwrap_err().kind(), ErrorKind::HostUnreachable, "{family:?}");
        ask(&lab.client, Transport::Tcp, to).expect("two hops are enough");
    }
}

/// Who asks for errors of one kind in a flood takes nothing from those who need another. Limits are
/// a processor's own.
#[test]
fn a_flood_of_one_kind_of_answers_leaves_the_others() {
    for family in FAMILIES {
        for flooded in 0..3 {
            flood(family, flooded);
        }
    }
}

/// Has one of three kinds of answers made as often as it may be: the other two still are.
fn flood(family: Family, flooded: usize) {
    use nix::{sched, unistd::Pid};
    let mut lab = Lab::new([1, 0]);
    let backend = lab.nodes[0].pods[0].server(family);
    let [no_tcp, no_udp] = TRANSPORTS.map(|transport| {
        let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[]);
        key(transport.number(), (family.pod(1, 2), 40_023), (vip.ip(), vip.port()))
    });
    node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], EXTERNAL);
    let through = dialled(&lab, family, Transport::Udp, 40_024);
    let last_hop = Frame { hop_limit: 1, ..Frame::new(through) };
    let kinds = [Frame::new(no_tcp), Frame::new(no_udp), last_hop].map(|frame| frame.bytes());
    let node = &lab.nodes[0];
    let program = node.datapath.programs().get("tc_uplink_ingress").unwrap();
    let verdicts: Vec<i32> = node.node.netns.run(|| {
        let mut here = sched::CpuSet::new();
        here.set(sched::sched_getcpu().unwrap()).unwrap();
        sched::sched_setaffinity(Pid::from_raw(0), &here).unwrap();
        let run = |kind: usize| program.test_run(&kinds[kind], 1).unwrap().verdict;
        let limit = (0..50_000).find(|_| run(flooded) == SHOT);
        assert!(limit.is_some(), "{family:?} {flooded}");
        (0..kinds.len()).filter(|kind| *kind != flooded).map(run).collect()
    });
    assert_eq!(verdicts, [REDIRECT; 2], "{family:?} {flooded}");
}

/// Questions with forged sources are not answered at any rate.
#[test]
fn answers_are_limited() {
    let mut lab = Lab::new([0, 0]);
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[]);
            let flow = key(transport.number(), (family.pod(1, 2), 40_022), (vip.ip(), vip.port()));
            let frame = Frame::new(flow).bytes();
            let node = &lab.nodes[0];
            let program = node.datapath.programs().get("tc_pod_ingress").unwrap();
            let before =
                [Counter::Rejected, Counter::DropAnswerLimit].map(|counter| node.counted(counter));
            let verdicts = node.node.netns.run(|| {
                let run = || program.test_run(&frame, 1).unwrap().verdict;
                (0..50_000).map(|_| run()).take_while(|verdict| *verdict != SHOT).count() as u64
            });
            let after =
                [Counter::Rejected, Counter::DropAnswerLimit].map(|counter| node.counted(counter));
            assert_eq!(after[0] - before[0], verdicts, "answered");
            assert_eq!(after[1] - before[1], 1, "and one not: {family:?} {transport:?}");
        }
    }
}
