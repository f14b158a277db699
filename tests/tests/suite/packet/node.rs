//! What the node itself sends to services past its socket programs: the sockets of these tests
//! belong to no cgroup of the node's. Reverse paths are checked strictly.

use std::{io::ErrorKind, net::SocketAddr};

use mizzen_ebpf_abi::{
    counters::Counter,
    frame::{Frame, key},
    packet::tcp_flags,
    service::{frontend_flags, range_flags},
};
use mizzen_tests::{
    echo::{Client, Echo, TRANSPORTS, Transport, ask, ask_in_vain},
    lab::{FAMILIES, Lab},
    tables::Windows,
};

use super::{
    EXTERNAL, NODE_PORT, PORT,
    answers::{empty, narrow},
    cluster_ip, node_port,
    programs::{SHOT, UNSPEC, run},
    sane,
};

/// A lab whose first node has a way out.
fn lab(pods: [u8; 2]) -> Lab {
    let lab = Lab::new(pods);
    lab.route_out();
    lab
}

#[test]
fn d16_b23_b32_the_node_reaches_services_without_its_socket_programs() {
    let mut lab = lab([1, 1]);
    for family in FAMILIES {
        for backend in [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)] {
            for transport in TRANSPORTS {
                let case = format!("{family:?} {transport:?} {backend}");
                let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
                let node = &lab.nodes[0].node.netns;
                let client = Client::dial(node, transport, vip, 0).unwrap();
                let first = client.ask().unwrap();
                assert_eq!(first.client.ip(), lab.address_of_node(0, family), "{case}");
                assert!((10_000..30_000).contains(&first.client.port()), "masqueraded, {case}");
                for length in [2, 1_000] {
                    let next = client.ask_with(length).unwrap();
                    assert_eq!((&next.name, next.client), (&first.name, first.client), "{case}");
                }
            }
        }
    }
    assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), 8);
    sane(&lab);
}

/// The reset comes in by the uplink, from the service, as if the backend had sent it.
#[test]
fn v8_the_nodes_own_connection_to_a_deleted_backend_is_reset_by_its_next_segment() {
    let mut lab = lab([1, 1]);
    let mut number = 20;
    for family in FAMILIES {
        for backend in [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)] {
            let case = format!("{family:?} {backend}");
            number += 1;
            let vip = SocketAddr::new(family.service(number), PORT);
            let tables = &mut lab.nodes[0].tables;
            let set = tables.set();
            let id = tables.backend(set, backend);
            let range = tables.range(set, &[id], Windows::all(1));
            tables.flip(set, range);
            tables.frontend(vip, Transport::Tcp.number(), set, 0);
            let client = Client::dial(&lab.nodes[0].node.netns, Transport::Tcp, vip, 0).unwrap();
            client.ask().unwrap();
            empty(&mut lab.nodes[0], set);
            client.ask().expect("it is only out of service");
            let reset = lab.nodes[0].counted(Counter::ResetGone);
            lab.nodes[0].tables.backend_is_gone(id, backend);
            let error = client.ask_with(1_000).unwrap_err().kind();
            assert_eq!(error, ErrorKind::ConnectionReset, "{case}");
            assert!(lab.nodes[0].counted(Counter::ResetGone) > reset, "{case}");
        }
    }
    sane(&lab);
}

/// Its own address can't come in from outside: the service's stands for it.
#[test]
fn b88_the_node_reaches_a_backend_in_its_own_network() {
    let mut lab = lab([0, 0]);
    for family in FAMILIES {
        let backend = SocketAddr::new(lab.address_of_node(0, family), 6443);
        let _server = Echo::start(&lab.nodes[0].node.netns, backend, "host");
        for transport in TRANSPORTS {
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            let client = Client::dial(&lab.nodes[0].node.netns, transport, vip, 0).unwrap();
            for _ in 0..3 {
                let answer = client.ask().unwrap();
                assert_eq!((answer.name.as_str(), answer.client.ip()), ("host", vip.ip()));
            }
        }
    }
}

#[test]
fn b08_b09_b10_b11_the_node_is_refused_or_gets_silence() {
    let mut lab = lab([1, 0]);
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[0].server(family);
        let empty = SocketAddr::new(family.service(11), PORT);
        let vip = cluster_ip(&mut lab.nodes[0], family, Transport::Tcp, &[backend]);
        let tables = &mut lab.nodes[0].tables;
        let set = tables.set_of(&[]);
        for transport in TRANSPORTS {
            tables.frontend(empty, transport.number(), set, 0);
        }
        tables.guard(vip.ip());
        tables.guard(empty.ip());
        let node = &lab.nodes[0].node.netns;
        let other = SocketAddr::new(vip.ip(), PORT + 1);
        let unallocated = SocketAddr::new(family.service(12), PORT);
        assert_eq!(ask_in_vain(node, Transport::Udp, vip), ErrorKind::ConnectionRefused, "B8");
        for transport in TRANSPORTS {
            let case = format!("{family:?} {transport:?}");
            for to in [other, empty] {
                let refused = ask_in_vain(node, transport, to);
                assert_eq!(refused, ErrorKind::ConnectionRefused, "{case} {to}");
            }
            let silence = ask_in_vain(node, transport, unallocated);
            assert_eq!(silence, ErrorKind::TimedOut, "B10 {case}");
        }
    }
    assert!(lab.nodes[0].counted(Counter::DropUnallocated) > 0);
}

#[test]
fn b53_source_ranges_bind_the_node() {
    let mut lab = lab([0, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        let to = SocketAddr::new(family.load_balancer(1), PORT);
        for transport in TRANSPORTS {
            let node_addr = lab.address_of_node(0, family);
            let tables = &mut lab.nodes[0].tables;
            let set = tables.set_of(&[backend]);
            let flags = frontend_flags::EXTERNAL | frontend_flags::SOURCE_RANGES;
            tables.frontend(to, transport.number(), set, flags);
            let node = &lab.nodes[0].node.netns;
            assert_eq!(ask_in_vain(node, transport, to), ErrorKind::TimedOut);
            let length = if node_addr.is_ipv4() { 32 } else { 128 };
            lab.nodes[0].tables.source_ranges(set, &[(node_addr, length)]);
            assert_eq!(ask(&lab.nodes[0].node.netns, transport, to).unwrap().name, "pod-2-1");
        }
    }
}

#[test]
fn b82_policy_local_without_a_local_endpoint_is_silent() {
    let mut lab = lab([0, 1]);
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let vip = SocketAddr::new(family.service(10), PORT);
            let backend = lab.nodes[1].pods[0].server(family);
            let tables = &mut lab.nodes[0].tables;
            let set = tables.set();
            let id = tables.backend(set, backend);
            let windows =
                Windows { internal: (0, 0), flags: range_flags::INTERNAL_DROP, ..Windows::all(1) };
            let range = tables.range(set, &[id], windows);
            tables.flip(set, range);
            tables.frontend(vip, transport.number(), set, 0);
            let silence = ask_in_vain(&lab.nodes[0].node.netns, transport, vip);
            assert_eq!(silence, ErrorKind::TimedOut, "{family:?} {transport:?}");
        }
    }
    assert!(lab.nodes[0].counted(Counter::DropNoLocalEndpoint) > 0);
}

/// A pod of this node says that nobody listens: the error comes in by the pod's veth, and reaches
/// the socket that dialled the service.
#[test]
fn d18_errors_about_what_the_node_sent_reach_its_sockets() {
    let mut lab = lab([1, 1]);
    for family in FAMILIES {
        for node in [0, 1] {
            let closed = SocketAddr::new(lab.nodes[node].pods[0].address(family), 9);
            for transport in TRANSPORTS {
                let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[closed]);
                let refused = ask_in_vain(&lab.nodes[0].node.netns, transport, vip);
                let case = format!("{family:?} {transport:?} {closed}");
                assert_eq!(refused, ErrorKind::ConnectionRefused, "{case}");
            }
        }
    }
}

/// The node's own stack says that nobody listens, about packets that came translated: to clients
/// outside, to pods, and to the node's own sockets.
#[test]
fn b88_errors_of_a_backend_in_the_nodes_own_network_reach_clients() {
    let mut lab = lab([1, 0]);
    for family in FAMILIES {
        let closed = SocketAddr::new(lab.address_of_node(0, family), 9);
        let transport = Transport::Udp;
        let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[closed]);
        node_port(&mut lab.nodes[0], family, transport, &[closed], EXTERNAL);
        let port = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let node = &lab.nodes[0];
        for (who, from, to) in [
            ("outside", &lab.client, port),
            ("pod", &node.pods[0].netns, vip),
            ("node", &node.node.netns, vip),
        ] {
            let refused = ask_in_vain(from, transport, to);
            assert_eq!(refused, ErrorKind::ConnectionRefused, "{family:?} {who}");
        }
    }
}

/// A link behind its own that is narrower: the socket learns it, and everything arrives.
#[test]
fn b65_d16_a_narrow_link_on_the_nodes_own_way_to_a_backend() {
    let mut lab = lab([1, 1]);
    lab.nodes[0].node.netns.ip("link set veth1 mtu 1300");
    lab.nodes[0].pods[0].netns.ip("link set eth0 mtu 1300");
    let mut number = 20;
    for family in FAMILIES {
        narrow(&lab, family, 1_300);
        let own = lab.nodes[0].pods[0].server(family);
        for backend in [own, lab.nodes[1].pods[0].server(family)] {
            for transport in TRANSPORTS {
                let case = format!("{family:?} {transport:?} {backend}");
                let told = lab.nodes[0].counted(Counter::DropPacketTooBig);
                // An address of its own for each: the node remembers the MTU of the way to it.
                number += 1;
                let set = lab.nodes[0].tables.set_of(&[backend]);
                let vip = SocketAddr::new(family.service(number), PORT);
                lab.nodes[0].tables.frontend(vip, transport.number(), set, 0);
                let client = Client::dial(&lab.nodes[0].node.netns, transport, vip, 0).unwrap();
                client.ask_with(1_400).expect(&case);
                if transport == Transport::Tcp {
                    client.ask_with(60_000).expect(&case);
                }
                let told = lab.nodes[0].counted(Counter::DropPacketTooBig) - told;
                assert!(told < 10, "{case}: told {told} times");
                // Segments fit a pod that says what its own link takes.
                let fits = transport == Transport::Tcp && backend == own;
                assert_eq!(told > 0, !fits, "{case}: told {told} times");
            }
        }
    }
}

/// A backend's address that is a service's too is no reason to go round.
#[test]
fn b66_what_was_translated_is_not_translated_again() {
    let mut lab = lab([0, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            let tables = &mut lab.nodes[0].tables;
            let nowhere = tables.set_of(&[]);
            tables.frontend(backend, transport.number(), nowhere, frontend_flags::EXTERNAL);
            let node = &lab.nodes[0].node.netns;
            assert_eq!(ask(node, transport, vip).unwrap().name, "pod-2-1", "{family:?}");
            // And one that leads to its own address.
            let itself = lab.nodes[0].tables.set_of(&[backend]);
            let external = frontend_flags::EXTERNAL;
            lab.nodes[0].tables.frontend(backend, transport.number(), itself, external);
            let node = &lab.nodes[0].node.netns;
            assert_eq!(ask(node, transport, backend).unwrap().name, "pod-2-1", "{family:?}");
        }
    }
    assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), 8);
}

#[test]
fn what_the_node_sends_elsewhere_is_left_alone() {
    let lab = lab([1, 1]);
    for family in FAMILIES {
        for transport in TRANSPORTS {
            for pod in [&lab.nodes[0].pods[0], &lab.nodes[1].pods[0]] {
                let client =
                    Client::dial(&lab.nodes[0].node.netns, transport, pod.server(family), 0)
                        .unwrap();
                let answer = client.ask().unwrap();
                assert_eq!(answer.client.port(), client.port(), "{family:?} {transport:?}");
            }
        }
        // A connection to a service's address that is older than all of this.
        let node = lab.address_of_node(0, family);
        let flow = key(6, (node, 40_014), (family.service(12), PORT));
        let verdict = |tcp_flags| {
            let frame = Frame { tcp_flags, ..Frame::new(flow) }.bytes();
            run(&lab.nodes[0], "tc_uplink_egress", &frame).verdict
        };
        assert_eq!(verdict(tcp_flags::ACK), UNSPEC);
        assert_eq!(verdict(tcp_flags::SYN), SHOT);
    }
    assert_eq!(lab.nodes[0].counted(Counter::PacketTranslated), 0);
    assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), 0);
}
