//! Addresses and ports of services: on no interface, handed over, shared by protocols, of another
//! node.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mizzen_agent::{apply::maps::Maps as _, desired::node::DesiredNode};
use mizzen_ebpf_abi::{counters::Counter, service::frontend_flags};
use mizzen_tests::{
    echo::{Client, Echo, TRANSPORTS, Transport, ask, ask_in_vain},
    lab::{CLIENT, FAMILIES, Lab, set},
    netns::Netns,
    wait,
};

use super::{EXTERNAL, LOCAL, NODE_PORT, PORT, cluster_ip, node_port, sane};

/// External IPs are on no interface, and go from one service to another at once.
#[test]
fn b118_b127_an_external_ip_on_no_interface_changes_its_service() {
    let mut lab = Lab::new([1, 1]);
    lab.route_services();
    lab.route_out();
    for family in FAMILIES {
        let to = SocketAddr::new(family.load_balancer(250), PORT);
        let pods = [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)];
        for transport in TRANSPORTS {
            for (backend, name) in pods.iter().zip(["pod-1-1", "pod-2-1"]) {
                let set = lab.nodes[0].tables.set_of(&[*backend]);
                let external = frontend_flags::EXTERNAL;
                lab.nodes[0].tables.frontend(to, transport.number(), set, external);
                let inside = [&lab.nodes[0].pods[0].netns, &lab.nodes[0].node.netns];
                for from in inside.into_iter().chain([&lab.client]) {
                    let answer = ask(from, transport, to).unwrap();
                    assert_eq!(answer.name, name, "{family:?} {transport:?}");
                }
            }
        }
    }
    sane(&lab);
}

/// A client that never changes its port is led to whoever has the address: while the service that had
/// it is still there, with the backend that it went to.
#[test]
fn b106_b127_datagrams_follow_an_address_to_its_next_service() {
    let mut lab = Lab::new([1, 1]);
    lab.route_services();
    lab.route_out();
    for family in FAMILIES {
        let to = SocketAddr::new(family.load_balancer(251), PORT);
        let pods = [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)];
        let udp = Transport::Udp.number();
        let sets = pods.map(|backend| lab.nodes[0].tables.set_of(&[backend]));
        lab.nodes[0].tables.frontend(to, udp, sets[0], frontend_flags::EXTERNAL);
        let client = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
        assert_eq!(client.ask().unwrap().name, "pod-1-1", "{family:?}");
        lab.nodes[0].tables.frontend(to, udp, sets[1], frontend_flags::EXTERNAL);
        wait::until("the next service's answer", Duration::from_secs(10), || {
            let answer = client.ask().map_err(|error| error.to_string())?;
            if answer.name == "pod-2-1" { Ok(()) } else { Err(answer.name) }
        });
    }
    sane(&lab);
}

/// B70: nor does it matter that a load balancer's port is in the range of node ports.
#[test]
fn b70_b117_protocols_and_addresses_share_a_port_number() {
    let mut lab = Lab::new([2, 1]);
    lab.route_services();
    for family in FAMILIES {
        let [first, second] = [0, 1].map(|pod: usize| lab.nodes[0].pods[pod].server(family));
        let remote = lab.nodes[1].pods[0].server(family);
        let node = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let balancer = SocketAddr::new(family.load_balancer(1), NODE_PORT);
        node_port(&mut lab.nodes[0], family, Transport::Tcp, &[first], EXTERNAL);
        let refused = ask_in_vain(&lab.client, Transport::Udp, node);
        assert_eq!(refused, ErrorKind::ConnectionRefused, "{family:?}: by the node itself");
        node_port(&mut lab.nodes[0], family, Transport::Udp, &[second], EXTERNAL);
        let tables = &mut lab.nodes[0].tables;
        let set = tables.set_of(&[remote]);
        tables.frontend(balancer, Transport::Tcp.number(), set, frontend_flags::EXTERNAL);
        for (transport, to, name) in [
            (Transport::Tcp, node, "pod-1-1"),
            (Transport::Udp, node, "pod-1-2"),
            (Transport::Tcp, balancer, "pod-2-1"),
        ] {
            assert_eq!(ask(&lab.client, transport, to).unwrap().name, name, "{family:?} {to}");
        }
    }
}

/// The node has a second link, with no default route, whose addresses take node ports: clients
/// behind it, and pods, reach backends on any node.
#[test]
fn b62_b137_a_node_port_at_an_address_of_a_second_link() {
    let mut lab = Lab::new([1, 1]);
    let (outside, node) = (Netns::new("second"), &lab.nodes[0].node.netns);
    for netns in [&outside, node] {
        set(netns, "ipv6/conf/default/accept_dad", "0");
    }
    node.veth("eth1", &outside, "eth0");
    let addresses: [(IpAddr, IpAddr, &str); 2] = [
        ([198, 51, 100, 7].into(), [198, 51, 100, 100].into(), "/24"),
        ("fd00:51::7".parse().unwrap(), "fd00:51::100".parse().unwrap(), "/64 nodad"),
    ];
    for (own, clients, length) in addresses {
        node.ip(&format!("addr add {} dev eth1", length.replacen('/', &format!("{own}/"), 1)));
        let theirs = length.replacen('/', &format!("{clients}/"), 1);
        outside.ip(&format!("addr add {theirs} dev eth0"));
    }
    let backends =
        FAMILIES.map(|family| [0, 1].map(|node: usize| lab.nodes[node].pods[0].server(family)));
    for ((family, backends), (own, ..)) in FAMILIES.into_iter().zip(backends).zip(addresses) {
        lab.nodes[0].tables.node_address(own);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &backends, EXTERNAL);
        }
    }
    let take_node_ports = DesiredNode {
        addrs: lab.nodes[0].tables.maps.dump().unwrap().node_addrs,
        ..DesiredNode::default()
    };
    lab.nodes[0].attach_at(&take_node_ports.uplink_addresses(None).into_iter().collect::<Vec<_>>());
    for (family, (own, ..)) in FAMILIES.into_iter().zip(addresses) {
        let to = SocketAddr::new(own, NODE_PORT);
        for transport in TRANSPORTS {
            for from in [&outside, &lab.nodes[0].pods[0].netns] {
                let answers = (0..20).map(|_| ask(from, transport, to).unwrap());
                let names: BTreeSet<String> = answers.map(|answer| answer.name).collect();
                let both = ["pod-1-1", "pod-2-1"].map(str::to_owned).into();
                assert_eq!(names, both, "{family:?} {transport:?}");
            }
        }
    }
    sane(&lab);
}

/// A node dials another's node port; the backend is a pod of its own, so that packets go there and
/// come back twice.
#[test]
fn b67_a_node_reaches_its_own_pod_by_a_node_port_of_another() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let own = lab.nodes[0].pods[0].server(family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[1], family, transport, &[own], EXTERNAL);
            let to = SocketAddr::new(lab.address_of_node(1, family), NODE_PORT);
            let client = Client::dial(&lab.nodes[0].node.netns, transport, to, 0).unwrap();
            for _ in 0..3 {
                let answer = client.ask().unwrap();
                assert_eq!(answer.name, "pod-1-1", "{family:?} {transport:?}");
                assert_eq!(answer.client.ip(), lab.address_of_node(1, family));
            }
        }
    }
    sane(&lab);
}

/// Host-network clients and backends on both ends, and a pod: all reach a backend in the other
/// node's own network.
#[test]
fn b88_host_network_clients_and_backends() {
    let mut lab = Lab::new([1, 0]);
    lab.route_out();
    for family in FAMILIES {
        let backend = SocketAddr::new(lab.address_of_node(1, family), 6443);
        let _server = Echo::start(&lab.nodes[1].node.netns, backend, "host");
        for transport in TRANSPORTS {
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            node_port(&mut lab.nodes[1], family, transport, &[backend], LOCAL);
            let port = SocketAddr::new(backend.ip(), NODE_PORT);
            let node = lab.address_of_node(0, family);
            let pod = &lab.nodes[0].pods[0];
            for (from, to, seen) in [
                (&*lab.nodes[0].node.netns, vip, node),
                (&*lab.nodes[0].node.netns, port, node),
                (&pod.netns, vip, pod.address(family)),
                (&lab.client, port, family.wire(CLIENT)),
            ] {
                let answer = ask(from, transport, to).unwrap();
                assert_eq!(answer.name, "host", "{family:?} {transport:?} {to}");
                assert_eq!(answer.client.ip(), seen, "{family:?} {transport:?} {to}");
            }
        }
    }
}

/// A service whose backend is an address that no route leads to but the default one, by which the
/// packet came: it is sent back once, and not again and again.
#[test]
fn b66_what_leads_back_to_where_it_came_from_ends() {
    let mut lab = Lab::new([0, 0]);
    lab.route_services();
    lab.route_out();
    for family in FAMILIES {
        let nowhere = SocketAddr::new(family.load_balancer(77), PORT);
        node_port(&mut lab.nodes[0], family, Transport::Udp, &[nowhere], EXTERNAL);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let before = lab.nodes[0].counted(Counter::PacketTranslated);
        let _lost = ask_in_vain(&lab.client, Transport::Udp, to);
        let translated = lab.nodes[0].counted(Counter::PacketTranslated) - before;
        // Two questions, and at most an error about each.
        assert!((1..=4).contains(&translated), "{family:?}: {translated}");
    }
}

/// A pod talks to a backend directly and by a node port from one port, whichever comes first:
/// answers are told apart.
#[test]
fn b140_a_direct_flow_and_one_by_a_node_port_from_the_same_port() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        let node = lab.address_of_node(0, family);
        let by_node_port = SocketAddr::new(node, NODE_PORT);
        let orders = [[backend, by_node_port], [by_node_port, backend]];
        let cases = TRANSPORTS.into_iter().flat_map(|transport| orders.map(|to| (transport, to)));
        for ((transport, order), port) in cases.zip(45_681..) {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let pod = &lab.nodes[0].pods[0].netns;
            let clients = order.map(|to| Client::dial(pod, transport, to, port).unwrap());
            for _ in 0..3 {
                for client in &clients {
                    assert_eq!(client.ask().unwrap().name, "pod-2-1", "{family:?} {transport:?}");
                }
            }
        }
    }
}
