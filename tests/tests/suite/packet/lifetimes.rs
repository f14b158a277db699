//! How long flows hold what they have: source ports, and room in the table.

use std::{io::ErrorKind, net::SocketAddr};

use mizzen_ebpf_abi::{
    conntrack::FlowKey,
    frame::{Frame, key},
    packet::tcp_flags::{ACK, SYN},
};
use mizzen_tests::{
    echo::{Transport, ask, ask_in_vain},
    lab::{FAMILIES, Family, Lab},
};

use super::{
    EXTERNAL, NODE_PORT, node_port,
    programs::{REDIRECT, read, run},
};

/// Lets node 1's port lead to a pod of the other node, by two source ports.
fn two_ports(lab: &mut Lab, family: Family, transport: Transport) -> SocketAddr {
    lab.nodes[0].source_ports(20_000, 20_001);
    let backend = lab.nodes[1].pods[0].server(family);
    node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
    SocketAddr::new(lab.address_of_node(0, family), NODE_PORT)
}

/// A packet that comes in by node 1's uplink; its flow as it leaves.
fn passes(lab: &Lab, key: FlowKey, tcp_flags: u8) -> FlowKey {
    let frame = Frame { tcp_flags, ..Frame::new(key) }.bytes();
    let ran = run(&lab.nodes[0], "tc_uplink_ingress", &frame);
    assert_eq!(ran.verdict, REDIRECT, "{key:?} {tcp_flags:#x}");
    read(&ran.packet).key
}

/// The SYNs' addresses are forged: the backend answers, and nobody hears it.
#[test]
fn u03_forged_syns_that_were_answered_give_their_ports_back() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        let to = two_ports(&mut lab, family, Transport::Tcp);
        let forged = |last| key(6, (family.wire(last), 40_020), (to.ip(), to.port()));
        let answered = |last| {
            let opened = passes(&lab, forged(last), SYN);
            passes(&lab, opened.reversed(), SYN | ACK);
        };
        for last in [201, 202] {
            answered(last);
            passes(&lab, forged(last), ACK);
        }
        lab.nodes[0].age_flows(61);
        let silence = ask_in_vain(&lab.client, Transport::Tcp, to);
        assert_eq!(silence, ErrorKind::TimedOut, "{family:?}: two connections have the ports");
        lab.nodes[0].age_flows(86_400);

        [203, 204].into_iter().for_each(answered);
        let silence = ask_in_vain(&lab.client, Transport::Tcp, to);
        assert_eq!(silence, ErrorKind::TimedOut, "{family:?}: both ports are taken");
        lab.nodes[0].age_flows(61);
        ask(&lab.client, Transport::Tcp, to).expect("the ports are free");
    }
}

/// Many clients that ask one question each, as of a DNS server.
#[test]
fn u03_a_question_and_its_answer_hold_a_port_for_half_a_minute() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        let to = two_ports(&mut lab, family, Transport::Udp);
        let ask_from = |last| {
            let asked = passes(&lab, key(17, (family.wire(last), 40_021), (to.ip(), to.port())), 0);
            passes(&lab, asked.reversed(), 0);
        };
        let is_full = |case: &str| {
            let silence = ask_in_vain(&lab.client, Transport::Udp, to);
            assert_eq!(silence, ErrorKind::TimedOut, "{family:?} {case}");
        };
        // Who goes on after two seconds has more to say.
        for after_s in [0, 5] {
            lab.nodes[0].age_flows(after_s);
            [201, 202].into_iter().for_each(ask_from);
        }
        lab.nodes[0].age_flows(118);
        is_full("two streams have the ports");
        lab.nodes[0].age_flows(3);

        // Of a resolver that asks for addresses of both families.
        for _ in 0..2 {
            [203, 204].into_iter().for_each(ask_from);
        }
        lab.nodes[0].age_flows(28);
        is_full("late answers may come");
        lab.nodes[0].age_flows(3);
        ask(&lab.client, Transport::Udp, to).expect("the ports are free");
        lab.nodes[0].age_flows(31);
    }
}
