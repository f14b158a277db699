//! What pods send out of the cluster: it leaves under the node's address, and what comes back, errors
//! among it, finds its way to the pod.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mizzen_agent::{
    apply::maps::{AddrRange, Maps as _},
    podnet::datapath::PodDatapath as _,
};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    counters::Counter,
    frame::{key, pseudo_checksum},
    node::{cluster_range_flags::KNOWS_PODS, node_config_flags::MASQUERADE_PODS},
};
use mizzen_tests::{
    echo::{Client, Echo, TRANSPORTS, ask, ask_in_vain},
    lab::{CLIENT, FAMILIES, Family, Lab},
    netns::Netns,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::sane;

/// Port of the server outside.
const OUTSIDE: u16 = 7_007;

/// A lab whose first node has two pods that are masqueraded.
fn lab() -> Lab {
    let mut lab = Lab::new([2, 1]);
    lab.nodes[0].configure(MASQUERADE_PODS);
    lab.nodes[0].attach_pods();
    lab
}

fn outside(family: Family) -> SocketAddr {
    SocketAddr::new(family.wire(CLIENT), OUTSIDE)
}

#[test]
fn pods_reach_hosts_outside_as_their_node() {
    let lab = lab();
    let pod = &lab.nodes[0].pods[0];
    for family in FAMILIES {
        let _server = Echo::start(&lab.client, outside(family), "outside");
        for transport in TRANSPORTS {
            let client = Client::dial(&pod.netns, transport, outside(family), 0).unwrap();
            for _ in 0..3 {
                let seen = client.ask().unwrap().client;
                assert_eq!(seen.ip(), lab.address_of_node(0, family), "{transport:?}");
                assert!((10_000..30_000).contains(&seen.port()), "{seen}");
            }
            // Datagrams in fragments, there and back.
            if transport == mizzen_tests::echo::Transport::Udp {
                assert!(client.ask_with(4_000).unwrap().length >= 4_000);
            }
        }
    }
    sane(&lab);
}

#[test]
fn without_the_setting_pods_keep_their_address_outside() {
    let mut lab = lab();
    lab.nodes[0].configure(0);
    let pod = &lab.nodes[0].pods[0];
    for family in FAMILIES {
        let _server = Echo::start(&lab.client, outside(family), "outside");
        for transport in TRANSPORTS {
            // Nobody there knows the way back.
            ask_in_vain(&pod.netns, transport, outside(family));
        }
    }
    assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), 0);
}

#[test]
fn ranges_where_pods_are_known_see_their_address() {
    let mut lab = lab();
    for family in FAMILIES {
        let (ip, length, prefix_len) = match family {
            Family::V4 => ("", 24, 96 + 24),
            Family::V6 => ("-6 ", 64, 64),
        };
        let pods = family.pod(1, 0);
        let node = lab.address_of_node(0, family);
        lab.client.ip(&format!("{ip}route add {pods}/{length} via {node}"));
        let addr = Addr::from(family.wire(0));
        let range = (AddrRange { addr, prefix_len }, KNOWS_PODS);
        lab.nodes[0].tables.maps.put_cluster_ranges(&[range]).unwrap();
        let _server = Echo::start(&lab.client, outside(family), "outside");
        for transport in TRANSPORTS {
            let pod = &lab.nodes[0].pods[0];
            let seen = ask(&pod.netns, transport, outside(family)).unwrap().client.ip();
            assert_eq!(seen, pod.address(family));
        }
    }
}

#[test]
fn pods_and_nodes_of_the_cluster_see_their_address() {
    let lab = lab();
    let peers = FAMILIES.map(|family| {
        let node = lab.address_of_node(1, family);
        (mizzen_agent::podnet::message::host_route(node), node)
    });
    lab.nodes[0].datapath.pods().unwrap().sync_peers(&peers.into()).unwrap();
    let pod = &lab.nodes[0].pods[0];
    for family in FAMILIES {
        let at_node = SocketAddr::new(lab.address_of_node(1, family), OUTSIDE);
        let _server = Echo::start(&lab.nodes[1].node.netns, at_node, "node");
        let neighbours = [lab.nodes[0].pods[1].server(family), lab.nodes[1].pods[0].server(family)];
        for transport in TRANSPORTS {
            for server in neighbours.into_iter().chain([at_node]) {
                let seen = ask(&pod.netns, transport, server).unwrap().client.ip();
                assert_eq!(seen, pod.address(family), "{server}");
            }
        }
    }
}

#[test]
fn a_port_that_a_socket_of_the_node_has_is_left_to_it() {
    let mut lab = lab();
    for family in FAMILIES {
        let _server = Echo::start(&lab.client, outside(family), "outside");
        for transport in TRANSPORTS {
            let first = 20_000;
            let node = &lab.nodes[0].node.netns;
            let own = Client::dial(node, transport, outside(family), first).unwrap();
            own.ask().unwrap();
            lab.nodes[0].write_config(MASQUERADE_PODS, (first, first + 1));
            let pod = &lab.nodes[0].pods[0];
            let client = Client::dial(&pod.netns, transport, outside(family), 0).unwrap();
            assert_eq!(client.ask().unwrap().client.port(), first + 1);
            assert_eq!(own.ask().unwrap().client.port(), first, "it goes on undisturbed");
            lab.nodes[0].age_flows(100_000);
        }
    }
}

#[test]
fn errors_from_outside_reach_the_pod() {
    let lab = lab();
    let pod = &lab.nodes[0].pods[0];
    for family in FAMILIES {
        // Where nobody listens.
        let told = ask_in_vain(&pod.netns, mizzen_tests::echo::Transport::Udp, outside(family));
        assert_eq!(told, io::ErrorKind::ConnectionRefused, "{family:?}");
    }
}

/// A socket for ICMP in a namespace.
fn raw(netns: &Netns, family: Family) -> Socket {
    let (domain, protocol) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = netns.run(|| Socket::new(domain, Type::RAW, Some(protocol))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// An echo request with a right checksum over IPv4; over IPv6 the kernel makes it.
fn request(family: Family, identifier: u16, text: u8) -> Vec<u8> {
    let kind = if family == Family::V4 { 8 } else { 128 };
    let [high, low] = identifier.to_be_bytes();
    let mut bytes = vec![kind, 0, 0, 0, high, low, 0, 1, text, text];
    let sum = bytes
        .chunks(2)
        .fold(0_u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The identifier by which a pod's request has a sum of zero: the sum that it has without one.
fn identifier_of_sum_zero(pod: IpAddr, family: Family, text: u8) -> u16 {
    let mut bytes = request(family, 0, text);
    match family {
        Family::V4 => u16::from_be_bytes([bytes[2], bytes[3]]),
        Family::V6 => {
            bytes[2..4].fill(0);
            let flow = key(protocol::ICMPV6, (pod, 0), (family.wire(CLIENT), 0));
            pseudo_checksum(&flow, &bytes)
        }
    }
}

/// The reply with this identifier: what it carries.
fn reply(mut socket: &Socket, family: Family, identifier: u16) -> Option<u8> {
    let (kind, skip) = if family == Family::V4 { (0, 20) } else { (129, 0) };
    for _ in 0..20 {
        let mut buffer = [0; 256];
        let length = socket.read(&mut buffer).ok()?;
        let message = buffer.get(skip..length)?;
        if message[0] == kind && message[4..6] == identifier.to_be_bytes() {
            return message.get(8).copied();
        }
    }
    None
}

/// Two pods have the same identifier, as the first process in each container likes to.
#[test]
fn pods_ping_hosts_outside() {
    let lab = lab();
    for family in FAMILIES {
        let to = SockAddr::from(SocketAddr::new(family.wire(CLIENT), 0));
        let sockets: Vec<Socket> =
            lab.nodes[0].pods.iter().map(|pod| raw(&pod.netns, family)).collect();
        for (socket, text) in sockets.iter().zip([7, 9]) {
            socket.send_to(&request(family, 1, text), &to).unwrap();
        }
        for (socket, text) in sockets.iter().zip([7, 9]) {
            assert_eq!(reply(socket, family, 1), Some(text), "{family:?}");
        }
        // One whose sum is zero is a request like any other.
        let pod = &lab.nodes[0].pods[0];
        let identifier = identifier_of_sum_zero(pod.address(family), family, 11);
        sockets[0].send_to(&request(family, identifier, 11), &to).unwrap();
        assert_eq!(reply(&sockets[0], family, identifier), Some(11), "{family:?}");
        // The node's own go on.
        let own = raw(&lab.nodes[0].node.netns, family);
        own.send_to(&request(family, 1, 5), &to).unwrap();
        assert_eq!(reply(&own, family, 1), Some(5), "{family:?}");
    }
}
