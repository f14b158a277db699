//! The programs on packets of our own (`BPF_PROG_TEST_RUN`): what they leave alone, what they make
//! of a packet, bit by bit, and how long they take.

use std::net::SocketAddr;

use mizzen_agent::datapath::TestRun;
use mizzen_ebpf_abi::{
    conntrack::FlowKey,
    counters::Counter,
    frame::{Frame, checksums_are_right, key},
    node::node_config_flags::MASQUERADE_PODS,
    packet::{ETHERNET_HEADER, Packet, parse, parse_quoted, tcp_flags},
};
use mizzen_tests::{
    echo::{TRANSPORTS, Transport},
    lab::{CLIENT, FAMILIES, Family, Lab, LabNode},
};

use super::{EXTERNAL, LOCAL, NODE_PORT, cluster_ip, node_port};

/// The next program decides.
pub(super) const UNSPEC: i32 = -1;
pub(super) const SHOT: i32 = 2;
pub(super) const REDIRECT: i32 = 7;

pub(super) fn run(node: &LabNode, program: &str, frame: &[u8]) -> TestRun {
    let program = node.datapath.programs().get(program).unwrap();
    node.node.netns.run(|| program.test_run(frame, 1)).unwrap()
}

pub(super) fn read(frame: &[u8]) -> Packet {
    let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
    parse(frame, ethertype, ETHERNET_HEADER).unwrap()
}

/// From the client to node 1's node port.
pub(super) fn dialled(lab: &Lab, family: Family, transport: Transport, port: u16) -> FlowKey {
    let to = (lab.address_of_node(0, family), NODE_PORT);
    key(transport.number(), (family.wire(CLIENT), port), to)
}

#[test]
fn b132_a_packet_there_and_its_answer_back_are_right_to_the_last_bit() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let sent = Frame::new(dialled(&lab, family, transport, 40_001));
            let there = run(&lab.nodes[0], "tc_uplink_ingress", &sent.bytes());
            assert_eq!(there.verdict, REDIRECT);
            assert!(checksums_are_right(&there.packet), "{family:?} {transport:?}");
            let packet = read(&there.packet);
            assert_eq!(packet.key.destination, backend.ip().into());
            assert_eq!(packet.key.destination_port, backend.port().to_be_bytes());
            assert_eq!(packet.key.source, lab.address_of_node(0, family).into());
            assert_eq!(packet.hop_limit(), sent.hop_limit - 1);

            let answer = Frame {
                tcp_flags: tcp_flags::SYN | tcp_flags::ACK,
                ..Frame::new(packet.key.reversed())
            };
            let back = run(&lab.nodes[0], "tc_uplink_ingress", &answer.bytes());
            assert_eq!(back.verdict, REDIRECT);
            assert!(checksums_are_right(&back.packet), "{family:?} {transport:?}");
            assert_eq!(read(&back.packet).key, sent.key.reversed());
        }
    }
}

#[test]
fn b104_what_opens_no_flow_passes_untouched() {
    let mut lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[0].server(family);
        node_port(&mut lab.nodes[0], family, Transport::Tcp, &[backend], EXTERNAL);
        let syn = Frame::new(dialled(&lab, family, Transport::Tcp, 40_002));
        for flags in [0, tcp_flags::ACK, tcp_flags::RST, tcp_flags::FIN | tcp_flags::ACK, 0xff] {
            let frame = Frame { tcp_flags: flags, ..syn.clone() }.bytes();
            let run = run(&lab.nodes[0], "tc_uplink_ingress", &frame);
            assert_eq!((run.verdict, run.packet), (UNSPEC, frame), "{flags:#x}");
        }
    }
    assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), 0);
}

/// What Linux' connection tracking calls INVALID and kube-proxy drops, lest it leave under the pod's
/// own address (k8s#74839): nobody looks at its numbers here, and it is translated like any other.
/// Whose it is nobody knows any more when its flow is forgotten (ADR 21).
#[test]
fn b104_a_backends_late_segment_is_translated_for_as_long_as_its_flow_is_known() {
    let mut lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[0].server(family);
        let l4 = if family == Family::V4 { 34 } else { 54 };
        for (flags, port) in [(LOCAL, 40_030), (EXTERNAL, 40_031)] {
            node_port(&mut lab.nodes[0], family, Transport::Tcp, &[backend], flags);
            let node = &lab.nodes[0];
            let syn = Frame::new(dialled(&lab, family, Transport::Tcp, port));
            let there = run(node, "tc_uplink_ingress", &syn.bytes());
            let answers = read(&there.packet).key.reversed();
            let segment = |tcp_flags, sequence: u32| {
                let mut frame = Frame { tcp_flags, ..Frame::new(answers) }.bytes();
                frame[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
                frame
            };
            run(node, "tc_pod_ingress", &segment(tcp_flags::SYN | tcp_flags::ACK, 0));
            let ack = Frame { tcp_flags: tcp_flags::ACK, ..syn.clone() }.bytes();
            assert_eq!(run(node, "tc_uplink_ingress", &ack).verdict, REDIRECT);
            for sequence in [1, 0x4000_0000, u32::MAX] {
                let ran = run(node, "tc_pod_ingress", &segment(tcp_flags::ACK, sequence));
                assert_eq!(ran.verdict, REDIRECT, "{family:?} {sequence}");
                assert_eq!(read(&ran.packet).key, syn.key.reversed(), "{family:?} {sequence}");
            }
            node.age_flows(2 * 24 * 60 * 60);
            let late = segment(tcp_flags::ACK, 1);
            let ran = run(node, "tc_pod_ingress", &late);
            assert_eq!((ran.verdict, ran.packet), (UNSPEC, late), "{family:?}");
        }
    }
}

#[test]
fn b135_malformed_packets_pass_untouched() {
    let mut lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[0].server(family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let good = Frame::new(dialled(&lab, family, transport, 40_003)).bytes();
            let transport_at = if family == Family::V4 { 34 } else { 54 };
            for length in transport_at..transport_at + 4 {
                let frame = &good[..length];
                let run = run(&lab.nodes[0], "tc_uplink_ingress", frame);
                assert_eq!(
                    (run.verdict, run.packet.as_slice()),
                    (UNSPEC, frame),
                    "cut at {length}"
                );
            }
            let mut wrong = good.clone();
            wrong[14] = 0x55;
            assert_eq!(run(&lab.nodes[0], "tc_uplink_ingress", &wrong).verdict, UNSPEC);
        }
    }
    assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), 0);
}

/// RFC 768: an all-zero checksum says that there is none.
#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let mut lab = Lab::new([1, 0]);
    let family = Family::V4;
    let backend = lab.nodes[0].pods[0].server(family);
    node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], EXTERNAL);
    let flow = dialled(&lab, family, Transport::Udp, 40_011);
    let frame = Frame { no_checksum: true, ..Frame::new(flow) };
    let ran = run(&lab.nodes[0], "tc_uplink_ingress", &frame.bytes());
    assert_eq!((ran.verdict, &ran.packet[40..42]), (REDIRECT, &[0, 0][..]));
}

/// The kernel says the same of it as of the node itself.
#[test]
fn what_has_no_route_ends_here() {
    let mut lab = Lab::new([0, 0]);
    for family in FAMILIES {
        let ip = if family == Family::V6 { "-6 " } else { "" };
        lab.nodes[0].node.netns.ip(&format!("{ip}route del default dev lo"));
        let nowhere = SocketAddr::new(family.load_balancer(9), 80);
        node_port(&mut lab.nodes[0], family, Transport::Udp, &[nowhere], EXTERNAL);
        let dropped = lab.nodes[0].counted(Counter::DropNoRoute);
        let sent = Frame::new(dialled(&lab, family, Transport::Udp, 40_015)).bytes();
        assert_eq!(run(&lab.nodes[0], "tc_uplink_ingress", &sent).verdict, SHOT, "{family:?}");
        assert_eq!(lab.nodes[0].counted(Counter::DropNoRoute), dropped + 1, "{family:?}");
    }
}

/// One sum in 65,536 is zero, which says that there is none in UDP's field alone.
#[test]
fn b132_a_sum_of_zero_is_mended_as_any_other() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        let transport_at = if family == Family::V4 { 34 } else { 54 };
        let backend = lab.nodes[1].pods[0].server(family);
        node_port(&mut lab.nodes[0], family, Transport::Tcp, &[backend], EXTERNAL);
        let sent = Frame::new(dialled(&lab, family, Transport::Tcp, 40_014)).bytes();
        let sent = with_sum_of_zero(sent, transport_at + 16);
        let there = run(&lab.nodes[0], "tc_uplink_ingress", &sent);
        assert_eq!(there.verdict, REDIRECT);
        assert!(checksums_are_right(&there.packet), "{family:?}");

        let error = with_sum_of_zero(too_big(&there.packet, family), transport_at + 2);
        let back = run(&lab.nodes[0], "tc_uplink_ingress", &error);
        assert_eq!(back.verdict, REDIRECT);
        assert!(checksums_are_right(&back.packet), "an error, {family:?}");
    }
}

/// The frame with another end, by which the checksum at an offset becomes zero.
fn with_sum_of_zero(mut frame: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let word = |at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let last = frame.len() - 2;
    let sum = word(checksum_at) + word(last);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[last..].copy_from_slice(&sum.to_be_bytes());
    frame[checksum_at..checksum_at + 2].fill(0);
    assert!(checksums_are_right(&frame));
    frame
}

#[test]
fn b11_a_refused_syn_becomes_its_reset() {
    let mut lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let vip = cluster_ip(&mut lab.nodes[0], family, Transport::Tcp, &[]);
        let pod = family.pod(1, 2);
        let syn = Frame {
            payload: Vec::new(),
            ..Frame::new(key(6, (pod, 40_006), (vip.ip(), vip.port())))
        };
        let run = run(&lab.nodes[0], "tc_pod_ingress", &syn.bytes());
        assert_eq!(run.verdict, REDIRECT);
        assert!(checksums_are_right(&run.packet));
        let reset = read(&run.packet);
        assert_eq!(reset.key, syn.key.reversed());
        assert_eq!(reset.tcp_flags, tcp_flags::RST | tcp_flags::ACK);
        assert_eq!(run.packet[..6], syn.bytes()[6..12], "back to where it came from");
    }
}

#[test]
fn b12_a_refused_datagram_becomes_an_icmp_error() {
    let mut lab = Lab::new([1, 0]);
    for (family, kind) in [(Family::V4, [3, 3]), (Family::V6, [1, 4])] {
        let vip = cluster_ip(&mut lab.nodes[0], family, Transport::Udp, &[]);
        let pod = family.pod(1, 2);
        for payload in [Vec::new(), vec![7; 1_000]] {
            let sent =
                Frame { payload, ..Frame::new(key(17, (pod, 40_007), (vip.ip(), vip.port()))) };
            let run = run(&lab.nodes[0], "tc_pod_ingress", &sent.bytes());
            assert_eq!(run.verdict, REDIRECT);
            assert!(checksums_are_right(&run.packet));
            let at = if family == Family::V4 { 34 } else { 54 };
            assert_eq!(run.packet[at..at + 2], kind);
            let quoted = &run.packet[at + 8..];
            assert_eq!(*quoted, sent.bytes()[14..14 + quoted.len()], "quotes what was sent");
        }
    }
}

/// An error on the way to the backend reaches the client about the packet that it sent (B65).
#[test]
fn b65_packet_too_big_is_translated_back() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        let backend: SocketAddr = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let sent = Frame::new(dialled(&lab, family, transport, 40_008));
            let there = run(&lab.nodes[0], "tc_uplink_ingress", &sent.bytes()).packet;
            let error = too_big(&there, family);
            assert!(checksums_are_right(&error));
            let back = run(&lab.nodes[0], "tc_uplink_ingress", &error);
            assert_eq!(back.verdict, REDIRECT);
            assert!(checksums_are_right(&back.packet), "{family:?} {transport:?}");
            let outer = read(&back.packet);
            assert_eq!(outer.key.destination, sent.key.source, "to the client");
            assert_eq!(outer.key.source, family.wire(99).into(), "from the router");
            let inner = parse_quoted(back.packet.as_slice(), family == Family::V4, outer.l4 + 8);
            assert_eq!(inner.unwrap().key, sent.key, "about what the client sent");
        }
    }
}

/// The error of a router on the wire about a packet that it would have to forward.
fn too_big(frame: &[u8], family: Family) -> Vec<u8> {
    use mizzen_ebpf_abi::{
        packet::Bytes as _,
        reject::{IcmpError, Quoted, icmp_v4, icmp_v6},
    };
    let router = family.wire(99).into();
    let source = read(frame).key.source;
    let mut padded = frame[14..].to_vec();
    let octets = u32::try_from(padded.len()).unwrap();
    padded.resize(128, 0);
    let quoted = Quoted { words: padded.as_slice().words(0).unwrap(), octets };
    // Our own headers, which have tests of their own.
    let error = IcmpError::packet_too_big(1_400);
    let mut out = frame[..14].to_vec();
    if family == Family::V4 {
        let headers = icmp_v4(error, &quoted, &router, &source);
        out.extend(headers.map(u32::to_ne_bytes).as_flattened());
    } else {
        let headers = icmp_v6(error, &quoted, &router, &source);
        out.extend(headers.map(u32::to_ne_bytes).as_flattened());
    }
    out.extend(&frame[14..]);
    out
}

/// Whatever a device in promiscuous mode sees of the traffic between others, and its answers.
#[test]
fn frames_for_other_hosts_are_left_alone() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let node = &lab.nodes[0];
            let created = node.counted(Counter::FlowCreated);
            let sent = Frame::new(dialled(&lab, family, transport, 40_012)).bytes();
            let mut others = sent.clone();
            others[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
            let seen = run(node, "tc_uplink_ingress", &others);
            assert_eq!((seen.verdict, &seen.packet), (UNSPEC, &others), "{family:?} {transport:?}");
            assert_eq!(node.counted(Counter::FlowCreated), created);

            let there = run(node, "tc_uplink_ingress", &sent);
            assert_eq!(there.verdict, REDIRECT);
            let answer = Frame {
                tcp_flags: tcp_flags::SYN | tcp_flags::ACK,
                ..Frame::new(read(&there.packet).key.reversed())
            };
            for mut frame in [sent, answer.bytes()] {
                frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
                let seen = run(node, "tc_uplink_ingress", &frame);
                assert_eq!((seen.verdict, &seen.packet), (UNSPEC, &frame), "of a known flow");
            }
        }
    }
}

/// Straight from a pod into another of its node: one program meets a packet, and no forwarding.
#[test]
fn packets_between_pods_of_a_node_meet_one_program() {
    let lab = Lab::new([2, 0]);
    lab.nodes[0].attach_pods();
    let netns = &lab.nodes[0].node.netns;
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        mizzen_tests::lab::set(netns, setting, "0");
    }
    let [from, to] = lab.nodes[0].pods.as_slice() else { panic!("two pods") };
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let answer = mizzen_tests::echo::ask(&from.netns, transport, to.server(family));
            let seen = answer.unwrap().client.ip();
            assert_eq!(seen, from.address(family), "{family:?} {transport:?}");
        }
        let ends = ((from.address(family), 40_001), (to.address(family), 80));
        let sent = Frame::new(key(17, ends.0, ends.1));
        let there = run(&lab.nodes[0], "tc_pod_ingress", &sent.bytes());
        assert_eq!(there.verdict, REDIRECT);
        assert!(checksums_are_right(&there.packet), "{family:?}");
        let packet = read(&there.packet);
        assert_eq!((packet.key, packet.hop_limit()), (sent.key, sent.hop_limit - 1));
        // Its sender is told by the stack.
        let last = Frame { hop_limit: 1, ..sent.clone() };
        let large = Frame { payload: vec![0; 1_500], ..sent.clone() };
        for frame in [last.bytes(), large.bytes()] {
            let passed = run(&lab.nodes[0], "tc_pod_ingress", &frame);
            assert_eq!((passed.verdict, passed.packet), (UNSPEC, frame));
        }
    }
}

/// Not a benchmark: the figures are printed, and only what would be a mistake fails.
#[test]
fn p06_what_a_packet_costs() {
    let mut lab = Lab::new([0, 0]);
    lab.nodes[0].configure(MASQUERADE_PODS);
    for name in [
        "tc_uplink_ingress",
        "tc_uplink_egress",
        "tc_pod_ingress",
        "tc_pod_egress",
        "tc_tunnel_ingress",
        "tc_tunnel_egress",
    ] {
        let program = lab.nodes[0].datapath.programs().get(name).unwrap();
        println!("{name}: {} instructions verified", program.verified_instructions);
        assert!((1..300_000).contains(&program.verified_instructions), "{name}");
    }
    for family in FAMILIES {
        let to = (lab.address_of_node(0, family), NODE_PORT);
        // To itself, at the same port: each run finds the packet as the one before found it.
        node_port(&mut lab.nodes[0], family, Transport::Udp, &[to.into()], LOCAL);
        let identity = dialled(&lab, family, Transport::Udp, 40_009);
        let strange = key(17, (family.wire(CLIENT), 40_010), (to.0, NODE_PORT + 1));
        // As all are of connections that sockets translated: the most there is.
        let segment = key(6, (family.wire(CLIENT), 40_011), (to.0, NODE_PORT + 1));
        // What most of a cluster's packets are: from a pod here to one of another node.
        let (pod, other) = (family.pod(1, 2), family.pod(2, 2));
        let pods = key(17, (pod, 40_012), (other, 53));
        let opens = key(6, (pod, 40_013), (other, 80));
        let (ack, syn) = (tcp_flags::ACK, tcp_flags::SYN);
        for (what, program, flow, tcp_flags) in [
            ("no service's", "tc_uplink_ingress", strange, ack),
            ("segment of no flow", "tc_uplink_ingress", segment, ack),
            ("translated", "tc_uplink_ingress", identity, ack),
            ("a pod's datagram to another", "tc_pod_ingress", pods, ack),
            ("a pod's SYN to another", "tc_pod_ingress", opens, syn),
        ] {
            let frame = Frame { hop_limit: 255, tcp_flags, ..Frame::new(flow) }.bytes();
            let program = lab.nodes[0].datapath.programs().get(program).unwrap();
            let ran = lab.nodes[0].node.netns.run(|| program.test_run(&frame, 100_000)).unwrap();
            println!("{family:?} {what}: {:?} a packet", ran.duration);
            assert!(ran.duration.as_nanos() < 20_000);
        }
    }
}
