//! Who may use a load balancer's address, and what becomes of packets to addresses and ports that
//! no service has.

use std::{io::ErrorKind, net::SocketAddr};

use mizzen_ebpf_abi::{
    counters::Counter,
    frame::{Frame, key},
    packet::tcp_flags,
    service::frontend_flags,
};
use mizzen_tests::{
    echo::{TRANSPORTS, Transport, ask, ask_in_vain},
    lab::{CLIENT, FAMILIES, Family, Lab},
};

use super::{
    EXTERNAL, NODE_PORT, PORT, cluster_ip,
    programs::{REDIRECT, SHOT, UNSPEC, run},
};

const GUARDED: u32 = frontend_flags::EXTERNAL | frontend_flags::SOURCE_RANGES;

/// Bits of a whole address.
fn whole(family: Family) -> u8 {
    if family == Family::V4 { 32 } else { 128 }
}

/// A node port and two load balancer addresses, all of one set.
fn load_balancer(lab: &mut Lab, family: Family, transport: Transport) -> (u32, [SocketAddr; 3]) {
    let backend = lab.nodes[1].pods[0].server(family);
    let node = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
    let tables = &mut lab.nodes[0].tables;
    let set = tables.set_of(&[backend]);
    let any = SocketAddr::new(family.any(), NODE_PORT);
    tables.frontend(any, transport.number(), set, EXTERNAL);
    let addresses = [1, 2].map(|last| SocketAddr::new(family.load_balancer(last), PORT));
    for address in addresses {
        tables.frontend(address, transport.number(), set, GUARDED);
    }
    (set, [addresses[0], addresses[1], node])
}

#[test]
fn b49_b50_b51_b52_source_ranges_bind_load_balancer_addresses_and_nothing_else() {
    let mut lab = Lab::new([1, 1]);
    lab.route_services();
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let case = format!("{family:?} {transport:?}");
            let (set, [first, second, node_port]) = load_balancer(&mut lab, family, transport);
            lab.nodes[0].tables.source_ranges(set, &[(family.wire(CLIENT), whole(family))]);
            for to in [first, second] {
                assert_eq!(ask(&lab.client, transport, to).unwrap().name, "pod-2-1", "B50 {case}");
            }
            let pod = &lab.nodes[0].pods[0].netns;
            let dropped = || lab.nodes[0].counted(Counter::DropSourceRange);
            let before = dropped();
            assert_eq!(ask_in_vain(pod, transport, first), ErrorKind::TimedOut, "B52 {case}");
            assert!(dropped() > before, "{case}");
            assert_eq!(ask(pod, transport, node_port).unwrap().name, "pod-2-1", "B49 {case}");

            // Of another set, as if the ranges had been changed.
            let (set, [first, _, node_port]) = load_balancer(&mut lab, family, transport);
            lab.nodes[0].tables.source_ranges(set, &[(family.pod(1, 2), whole(family))]);
            let refused = ask_in_vain(&lab.client, transport, first);
            assert_eq!(refused, ErrorKind::TimedOut, "B51 {case}");
            assert_eq!(ask(&lab.client, transport, node_port).unwrap().name, "pod-2-1");
            let pod = &lab.nodes[0].pods[0].netns;
            assert_eq!(ask(pod, transport, first).unwrap().name, "pod-2-1", "{case}");
        }
    }
}

#[test]
fn b57_a_range_of_all_addresses_admits_all() {
    let mut lab = Lab::new([1, 1]);
    lab.route_services();
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let (set, [to, ..]) = load_balancer(&mut lab, family, transport);
            assert_eq!(ask_in_vain(&lab.client, transport, to), ErrorKind::TimedOut, "none yet");
            lab.nodes[0].tables.source_ranges(set, &[(family.any(), 0)]);
            for from in [&lab.client, &lab.nodes[0].pods[0].netns] {
                assert_eq!(ask(from, transport, to).unwrap().name, "pod-2-1", "{family:?}");
            }
        }
    }
}

/// What the node sends to a load balancer's address may carry that very address as its source: it is
/// admitted where the node is. From anywhere else it is forged.
#[test]
fn b54_the_load_balancers_own_address_is_admitted_where_the_node_is() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let node = lab.address_of_node(0, family);
        for transport in TRANSPORTS {
            for (range, open) in [(family.wire(CLIENT), false), (node, true)] {
                let (set, [first, second, _]) = load_balancer(&mut lab, family, transport);
                lab.nodes[0].tables.source_ranges(set, &[(range, whole(family))]);
                let verdict = |program, source: SocketAddr| {
                    let to = (first.ip(), first.port());
                    let flow = key(transport.number(), (source.ip(), 40_012), to);
                    run(&lab.nodes[0], program, &Frame::new(flow).bytes()).verdict
                };
                let case = format!("{family:?} {transport:?}, the node is admitted: {open}");
                for program in ["tc_uplink_ingress", "tc_pod_ingress"] {
                    assert_eq!(verdict(program, first), SHOT, "{case}, {program}");
                }
                assert_eq!(verdict("tc_uplink_egress", second), SHOT, "{case}");
                let expected = if open { REDIRECT } else { SHOT };
                assert_eq!(verdict("tc_uplink_egress", first), expected, "{case}");
            }
        }
    }
}

#[test]
fn b08_b09_v5_other_ports_of_a_cluster_ip_are_refused_at_once() {
    let mut lab = Lab::new([1, 1]);
    lab.route_services();
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        // TCP only, and another service that has the other port.
        let vip = cluster_ip(&mut lab.nodes[0], family, Transport::Tcp, &[backend]);
        let other = SocketAddr::new(family.service(11), PORT + 1);
        let tables = &mut lab.nodes[0].tables;
        let set = tables.set_of(&[backend]);
        for transport in TRANSPORTS {
            tables.frontend(other, transport.number(), set, 0);
        }
        for addr in [vip, other] {
            tables.guard(addr.ip());
        }
        let wrong_port = SocketAddr::new(vip.ip(), other.port());
        for from in [&lab.nodes[0].pods[0].netns, &lab.client] {
            assert_eq!(ask(from, Transport::Tcp, vip).unwrap().name, "pod-2-1");
            let refused = ask_in_vain(from, Transport::Udp, vip);
            assert_eq!(refused, ErrorKind::ConnectionRefused, "B8 {family:?}");
            for transport in TRANSPORTS {
                let refused = ask_in_vain(from, transport, wrong_port);
                assert_eq!(refused, ErrorKind::ConnectionRefused, "B9 {family:?} {transport:?}");
            }
        }
    }
    assert_eq!(lab.nodes[0].counted(Counter::DropUnallocated), 0);
}

#[test]
fn b10_an_address_that_no_service_has_is_silent() {
    let mut lab = Lab::new([1, 0]);
    lab.route_services();
    for family in FAMILIES {
        lab.nodes[0].tables.guard(family.service(10));
        let unallocated = SocketAddr::new(family.service(12), PORT);
        for transport in TRANSPORTS {
            for from in [&lab.nodes[0].pods[0].netns, &lab.client] {
                let before = lab.nodes[0].counted(Counter::DropUnallocated);
                let silence = ask_in_vain(from, transport, unallocated);
                assert_eq!(silence, ErrorKind::TimedOut, "{family:?} {transport:?}");
                assert!(lab.nodes[0].counted(Counter::DropUnallocated) > before);
            }
        }
    }
}

/// A cluster IP is told by its service, not by a range: API servers before 1.33 name none, and a
/// ServiceCIDR may go while services have addresses from it.
#[test]
fn b09_u13_a_cluster_ip_of_no_known_range_is_refused_at_other_ports() {
    let mut lab = Lab::new([1, 0]);
    for (family, cluster_ip, other) in [
        (Family::V4, "203.0.113.9", "203.0.113.10"),
        (Family::V6, "2001:db8:9::9", "2001:db8:9::10"),
    ] {
        let [cluster_ip, other] = [cluster_ip, other].map(|addr| addr.parse().unwrap());
        lab.nodes[0].tables.guard(cluster_ip);
        let echo_request = if family == Family::V4 { (1, 8 << 8) } else { (58, 128 << 8) };
        for (protocol, port) in [(6, 40_014), (17, 40_014), echo_request] {
            let verdict = |to, program| {
                let to = (to, if protocol == echo_request.0 { 0 } else { PORT });
                let flow = key(protocol, (family.pod(1, 2), port), to);
                run(&lab.nodes[0], program, &Frame::new(flow).bytes()).verdict
            };
            assert_eq!(verdict(cluster_ip, "tc_pod_ingress"), REDIRECT, "{family:?} {protocol}");
            assert_eq!(verdict(other, "tc_pod_ingress"), UNSPEC, "{family:?} {protocol}");
        }
    }
}

/// Only what opens a flow is judged: the rest of a connection that is not ours is not.
#[test]
fn b10_segments_of_a_connection_pass() {
    let lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let flow = key(6, (family.pod(1, 2), 40_013), (family.service(12), PORT));
        let frame = |flags| Frame { tcp_flags: flags, ..Frame::new(flow) }.bytes();
        let verdict = |flags| run(&lab.nodes[0], "tc_pod_ingress", &frame(flags)).verdict;
        assert_eq!(verdict(tcp_flags::SYN), SHOT);
        assert_eq!(verdict(tcp_flags::ACK), UNSPEC);
        assert_eq!(verdict(tcp_flags::SYN | tcp_flags::ACK), UNSPEC);
    }
}

/// Nobody answers an echo request to a cluster IP; nor may it leave by the default route.
#[test]
fn u13_echo_requests_to_services_end_here() {
    let mut lab = Lab::new([1, 0]);
    for (family, protocol, echo_request) in [(Family::V4, 1, 8_u16), (Family::V6, 58, 128)] {
        lab.nodes[0].tables.guard(family.service(10));
        let node = lab.address_of_node(0, family);
        // The node itself may hold an address of the range, and then answers for it.
        lab.nodes[0].tables.node_address(family.service(13));
        for (to, verdict) in [
            (family.service(10), REDIRECT),
            (family.service(12), SHOT),
            (family.service(13), UNSPEC),
            (node, UNSPEC),
            // A pod of this node, to which it goes straight.
            (family.pod(1, 2), REDIRECT),
        ] {
            // The first two octets of an ICMP header are its type and code.
            let flow = key(protocol, (family.pod(1, 2), echo_request << 8), (to, 0));
            let ran = run(&lab.nodes[0], "tc_pod_ingress", &Frame::new(flow).bytes());
            assert_eq!(ran.verdict, verdict, "{to}");
        }
    }
}
