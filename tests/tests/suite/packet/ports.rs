//! Source ports of source NAT against the ports that the node's own sockets have (U4): who has a
//! port first keeps it. The range is two ports, one of them a socket's.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use mizzen_ebpf_abi::{counters::Counter, node::node_config_flags::NO_POD_DETECTION};
use mizzen_tests::{
    echo::{Client, Echo, TRANSPORTS, Transport, ask_in_vain},
    lab::{FAMILIES, Lab},
};

use super::{EXTERNAL, NODE_PORT, cluster_ip, node_port, sane};

/// The port of the node's own.
const TAKEN: u16 = 20_000;
/// The only other one of the range.
const FREE: u16 = 20_001;

/// That the first client gets the free port, the second none; the address as whom the first is
/// seen is the node's.
fn one_port_is_left(lab: &Lab, transport: Transport, node: IpAddr) -> Client {
    let to = SocketAddr::new(node, NODE_PORT);
    let client = Client::dial(&lab.client, transport, to, 0).unwrap();
    assert_eq!(client.ask().unwrap().client, SocketAddr::new(node, FREE), "{transport:?}");
    let dropped = lab.nodes[0].counted(Counter::DropNoSourcePort);
    let silence = ask_in_vain(&lab.client, transport, to);
    assert_eq!(silence, ErrorKind::TimedOut, "{transport:?} {node}");
    assert!(lab.nodes[0].counted(Counter::DropNoSourcePort) > dropped);
    client
}

#[test]
fn u04_a_port_of_a_connection_of_the_nodes_is_not_taken() {
    let mut lab = Lab::new([0, 1]);
    lab.nodes[0].source_ports(TAKEN, FREE);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        let node = lab.address_of_node(0, family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let own = Client::dial(&lab.nodes[0].node.netns, transport, backend, TAKEN).unwrap();
            let before = own.ask().unwrap();
            assert_eq!(before.client, SocketAddr::new(node, TAKEN));
            let client = one_port_is_left(&lab, transport, node);
            assert_eq!(own.ask().unwrap(), before, "{family:?} {transport:?}");
            client.ask().unwrap();
        }
    }
    sane(&lab);
}

#[test]
fn u04_a_port_that_the_node_listens_on_is_not_taken() {
    let mut lab = Lab::new([0, 1]);
    lab.nodes[0].source_ports(TAKEN, FREE);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        let node = lab.address_of_node(0, family);
        let listens = SocketAddr::new(family.any(), TAKEN);
        let _listener = Echo::start(&lab.nodes[0].node.netns, listens, "host");
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            one_port_is_left(&lab, transport, node);
        }
    }
}

/// A socket of the node talks to the backend, another with the same port to its service, and is
/// not masqueraded: it keeps its address, but not the port.
#[test]
fn u14_b140_direct_and_by_the_service_from_one_port_of_the_nodes() {
    let mut lab = Lab::new([0, 1]);
    lab.route_out();
    lab.nodes[0].configure(NO_POD_DETECTION);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            let case = format!("{family:?} {transport:?}");
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            let node = &lab.nodes[0].node.netns;
            let direct = Client::dial(node, transport, backend, 45_690).unwrap();
            let before = direct.ask().unwrap();
            let by_service = Client::dial(node, transport, vip, 45_690).unwrap();
            for _ in 0..3 {
                let seen = by_service.ask().unwrap().client;
                assert_eq!(seen.ip(), before.client.ip(), "{case}");
                assert!((10_000..30_000).contains(&seen.port()), "{case}");
                assert_eq!(direct.ask().unwrap(), before, "{case}");
            }
            // Where nothing collides, the port is kept.
            let alone = Client::dial(node, transport, vip, 45_691).unwrap();
            assert_eq!(alone.ask().unwrap().client.port(), 45_691, "{case}");
        }
    }
}
