//! How long flows hold what they have: source ports, and room in the table.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use mizzen_ebpf_abi::{
    conntrack::FlowKey,
    counters::Counter,
    frame::{Frame, key},
    packet::tcp_flags::{ACK, RST, SYN},
};
use mizzen_tests::{
    echo::{Client, TRANSPORTS, Transport, ask, ask_in_vain},
    lab::{CLIENT, FAMILIES, Family, Lab},
    node::TestNode,
    wait::until,
};

use super::{
    EXTERNAL, LOCAL, NODE_PORT, node_port,
    programs::{REDIRECT, SHOT, read, run},
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

/// How many entries a sweep of node 1's flows removes.
fn swept(lab: &Lab) -> usize {
    let mut sweeper = lab.nodes[0].datapath.flow_sweeper().unwrap();
    sweeper.run(usize::MAX).unwrap().removed
}

/// That there is no port for anyone else.
fn is_full(lab: &Lab, transport: Transport, to: SocketAddr, case: &str) {
    let silence = ask_in_vain(&lab.client, transport, to);
    assert_eq!(silence, ErrorKind::TimedOut, "{transport:?} {to}: {case}");
}

/// The SYNs' addresses are forged: the backend answers, and nobody hears it.
#[test]
fn u03_forged_syns_that_were_answered_are_soon_forgotten() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        let to = two_ports(&mut lab, family, Transport::Tcp);
        let forged = |last| key(6, (family.wire(last), 40_020), (to.ip(), to.port()));
        let answered = |last| {
            let opened = passes(&lab, forged(last), SYN);
            passes(&lab, opened.reversed(), SYN | ACK);
        };
        [201, 202].into_iter().for_each(answered);
        lab.nodes[0].age_flows(50);
        assert_eq!(swept(&lab), 0, "{family:?}: they may yet go on");
        lab.nodes[0].age_flows(11);
        assert_eq!(swept(&lab), 4, "{family:?}");

        for last in [203, 204] {
            answered(last);
            passes(&lab, forged(last), ACK);
        }
        lab.nodes[0].age_flows(86_000);
        assert_eq!(swept(&lab), 0, "{family:?}: two connections");
        is_full(&lab, Transport::Tcp, to, "two connections have the ports");
        lab.nodes[0].age_flows(401);
        assert_eq!(swept(&lab), 4, "{family:?}");
    }
}

/// Many clients that ask one question each, as of a DNS server.
#[test]
fn u03_a_question_and_its_answer_are_remembered_for_half_a_minute() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        let to = two_ports(&mut lab, family, Transport::Udp);
        let ask_from = |last| {
            let asked = passes(&lab, key(17, (family.wire(last), 40_021), (to.ip(), to.port())), 0);
            passes(&lab, asked.reversed(), 0);
        };
        // Who goes on after two seconds has more to say.
        for after_s in [0, 5] {
            lab.nodes[0].age_flows(after_s);
            [201, 202].into_iter().for_each(ask_from);
        }
        lab.nodes[0].age_flows(110);
        assert_eq!(swept(&lab), 0, "{family:?}: two streams");
        is_full(&lab, Transport::Udp, to, "two streams have the ports");
        lab.nodes[0].age_flows(11);
        assert_eq!(swept(&lab), 4, "{family:?}");

        // Of a resolver that asks for addresses of both families.
        for _ in 0..2 {
            [203, 204].into_iter().for_each(ask_from);
        }
        lab.nodes[0].age_flows(20);
        assert_eq!(swept(&lab), 0, "{family:?}: late answers may come");
        lab.nodes[0].age_flows(11);
        assert_eq!(swept(&lab), 4, "{family:?}");
    }
}

/// As many flows that came to nothing as there are ports: others get these after a few seconds.
#[test]
fn u03_whoever_finds_no_free_port_gets_that_of_a_flow_that_came_to_nothing() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let to = two_ports(&mut lab, family, transport);
            let forged =
                |last| key(transport.number(), (family.wire(last), 40_022), (to.ip(), to.port()));
            let opened = [201, 202].map(|last| passes(&lab, forged(last), SYN));
            passes(&lab, opened[0].reversed(), SYN | ACK);
            is_full(&lab, transport, to, "they are young");
            lab.nodes[0].age_flows(11);
            ask(&lab.client, transport, to).unwrap_or_else(|error| panic!("{to}: {error}"));
            lab.nodes[0].age_flows(301);
            swept(&lab);
        }
    }
}

/// More connections than there is room for, all of them forged, and then what they leave.
#[test]
fn u03_a_table_that_fills_up_is_seen_in_time_and_gives_up_what_came_to_nothing() {
    const FLOWS: u32 = 1_024;
    let mut lab = Lab::with_flows([1, 0], Some(FLOWS));
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[0].server(family);
        node_port(&mut lab.nodes[0], family, Transport::Tcp, &[backend], LOCAL);
        let to = (lab.address_of_node(0, family), NODE_PORT);
        let dials = |port: u16| {
            let frame = Frame::new(key(6, (family.wire(CLIENT), port), to));
            run(&lab.nodes[0], "tc_uplink_ingress", &frame.bytes()).verdict
        };
        let mut sweeper = lab.nodes[0].datapath.flow_sweeper().unwrap();
        assert_eq!(sweeper.capacity(), 2 * FLOWS);
        sweeper.run(usize::MAX).unwrap();
        assert!(!sweeper.may_be_tight());
        for port in 1..=800 {
            assert_eq!(dials(port), REDIRECT, "{family:?}");
        }
        assert!(sweeper.may_be_tight(), "{family:?}: by what was opened since");
        assert_eq!(sweeper.run(usize::MAX).unwrap().removed, 0);
        assert_eq!(sweeper.usage().unwrap().used, 1_600);
        assert!(!sweeper.may_be_tight(), "nothing came since: the part of before will do");

        let full = (801..=2_000).find(|port| dials(*port) == SHOT);
        assert!(full.is_some_and(|port| u32::from(port) > FLOWS), "{family:?} {full:?}");
        assert!(lab.nodes[0].counted(Counter::DropFlowTableFull) > 0);
        lab.nodes[0].age_flows(11);
        let removed = sweeper.run(usize::MAX).unwrap().removed;
        assert_eq!(
            removed,
            2 * FLOWS as usize,
            "{family:?}: a minute is too long where it is full"
        );
        ask(&lab.client, Transport::Tcp, to.into()).unwrap();
        lab.nodes[0].age_flows(86_401);
        swept(&lab);
    }
}

/// The programs write to the table all the time: the next agent takes it as it is.
#[test]
fn u03_the_next_agent_keeps_the_table_of_flows_whatever_it_is_told() {
    let mut node = TestNode::new("node");
    for asked in [2_000, 1_500, 3_000] {
        node.flows = Some(asked);
        let datapath = node.open();
        assert_eq!(datapath.flow_sweeper().unwrap().capacity(), 4_000);
    }
}

/// Somebody who sees no packet of the connection forges a reset in the client's name. The backend
/// drops it for its sequence number.
#[test]
fn b140_an_idle_connection_survives_a_forged_reset() {
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        let to = two_ports(&mut lab, family, Transport::Tcp);
        let client = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
        let before = client.ask().unwrap();
        let dialled = key(6, (family.wire(CLIENT), client.port()), (to.ip(), to.port()));
        let answers = passes(&lab, dialled, ACK).reversed();
        for forged in [dialled, answers] {
            lab.nodes[0].age_flows(80_000);
            passes(&lab, forged, RST);
            lab.nodes[0].age_flows(250);
            assert_eq!(swept(&lab), 0, "{family:?} {forged:?}");
            assert_eq!(client.ask().unwrap(), before, "{family:?} {forged:?}");
        }
        lab.nodes[0].age_flows(86_401);
        assert_eq!(swept(&lab), 2, "{family:?}");
    }
}

/// What a reset left behind goes, though no packet comes any more.
#[test]
fn b140_the_sweep_removes_what_is_silent_and_nothing_else() {
    let mut lab = Lab::new([1, 0]);
    let family = FAMILIES[1];
    let backend = lab.nodes[0].pods[0].server(family);
    node_port(&mut lab.nodes[0], family, Transport::Tcp, &[backend], EXTERNAL);
    let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
    let [alive, reset] = [0, 1].map(|_| {
        let client = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
        client.ask().unwrap();
        client
    });
    reset.abort();
    let mut sweeper = lab.nodes[0].datapath.flow_sweeper().unwrap();
    assert_eq!(sweeper.run(usize::MAX).unwrap().removed, 0, "the reset may be forged");
    let removed = until("the sweep to find it silent", Duration::from_secs(20), || {
        lab.nodes[0].age_flows(301);
        let swept = sweeper.run(usize::MAX).unwrap();
        if swept.removed > 0 { Ok(swept.removed) } else { Err(format!("{swept:?}")) }
    });
    assert_eq!(removed, 2, "both entries");
    assert_eq!(alive.ask().unwrap().name, "pod-1-1");
    assert_eq!(sweeper.run(usize::MAX).unwrap().seen, 2, "those of the other flow");
}
