//! The packet path: two nodes, pods, a client outside, real sockets, each case for IPv4 and IPv6
//! and, where it makes a difference, TCP and UDP. B… are numbers of the behaviours' list.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use mizzen_ebpf_abi::{
    counters::Counter,
    service::{frontend_flags, range_flags},
};
use mizzen_tests::{
    echo::{Answer, TRANSPORTS, Transport, ask, ask_in_vain},
    lab::{CLIENT, FAMILIES, Family, Lab, LabNode},
    tables::Windows,
};

mod addresses;
mod admission;
mod affinity;
mod answers;
mod endpoints;
mod flows;
mod followed;
mod fragments;
mod headers;
pub(crate) mod kube_proxy;
mod lifetimes;
mod loopback;
mod masquerade;
mod node;
mod objects;
mod outward;
mod ports;
mod programs;
mod traffic;

/// A node port of every test.
pub(crate) const NODE_PORT: u16 = 30_080;
/// A service's port of every test.
pub(crate) const PORT: u16 = 80;

const EXTERNAL: u32 = frontend_flags::EXTERNAL | frontend_flags::NODE_PORT;
const LOCAL: u32 = EXTERNAL | frontend_flags::KEEP_SOURCE;

/// Lets a node port lead to backends.
fn node_port(
    node: &mut LabNode,
    family: Family,
    transport: Transport,
    to: &[SocketAddr],
    flags: u32,
) {
    let set = node.tables.set_of(to);
    let any = SocketAddr::new(family.any(), NODE_PORT);
    node.tables.frontend(any, transport.number(), set, flags);
}

/// Lets a ClusterIP lead to backends; its address.
fn cluster_ip(
    node: &mut LabNode,
    family: Family,
    transport: Transport,
    to: &[SocketAddr],
) -> SocketAddr {
    let set = node.tables.set_of(to);
    let vip = SocketAddr::new(family.service(10), PORT);
    node.tables.frontend(vip, transport.number(), set, 0);
    vip
}

/// All that several new flows say: names, and the addresses that servers saw.
fn answers(lab: &Lab, transport: Transport, to: SocketAddr, count: usize) -> Vec<Answer> {
    (0..count).map(|_| ask(&lab.client, transport, to).unwrap()).collect()
}

fn names(answers: &[Answer]) -> BTreeSet<&str> {
    answers.iter().map(|answer| answer.name.as_str()).collect()
}

fn clients(answers: &[Answer]) -> BTreeSet<IpAddr> {
    answers.iter().map(|answer| answer.client.ip()).collect()
}

fn sane(lab: &Lab) {
    for node in &lab.nodes {
        for counter in [Counter::ForeignRange, Counter::ForeignBackend] {
            assert_eq!(node.counted(counter), 0, "{}", counter.name());
        }
    }
}

#[test]
fn b27_b62_a_node_port_leads_to_backends_on_any_node_under_the_nodes_address() {
    let mut lab = Lab::new([1, 1]);
    // By the masquerading port: a client may open a socket with the port of one that it closed,
    // and a datagram then belongs to the flow that is there.
    let mut flows = 0;
    for family in FAMILIES {
        let pods = [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)];
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &pods, EXTERNAL);
            let node = lab.address_of_node(0, family);
            let answers = answers(&lab, transport, SocketAddr::new(node, NODE_PORT), 20);
            assert_eq!(names(&answers), ["pod-1-1", "pod-2-1"].into(), "{family:?} {transport:?}");
            assert_eq!(clients(&answers), [node].into(), "{family:?} {transport:?}");
            let ports = answers.iter().map(|answer| answer.client.port());
            assert!(ports.into_iter().all(|port| (10_000..30_000).contains(&port)));
            let seen = answers.iter().map(|answer| (answer.name.as_str(), answer.client));
            flows += seen.collect::<BTreeSet<_>>().len() as u64;
        }
    }
    assert!(flows > 40, "{flows} flows of 80 questions");
    assert!(lab.nodes[0].counted(Counter::FlowCreated) >= flows);
    assert_eq!(lab.nodes[1].counted(Counter::PacketTranslated), 0, "the other node routes");
    sane(&lab);
}

#[test]
fn b36_policy_local_keeps_the_clients_address_and_stays_on_the_node() {
    let mut lab = Lab::new([2, 1]);
    for family in FAMILIES {
        let pods: Vec<_> = lab.nodes[0].pods.iter().map(|pod| pod.server(family)).collect();
        let remote = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            // The external window holds the local ones only, as the agent makes it.
            let tables = &mut lab.nodes[0].tables;
            let set = tables.set();
            let ids: Vec<u32> =
                pods.iter().chain([&remote]).map(|addr| tables.backend(set, *addr)).collect();
            let windows = Windows { external: (0, 2), ..Windows::all(3) };
            let range = tables.range(set, &ids, windows);
            tables.flip(set, range);
            let any = SocketAddr::new(family.any(), NODE_PORT);
            tables.frontend(any, transport.number(), set, LOCAL);

            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            let answers = answers(&lab, transport, to, 20);
            assert_eq!(names(&answers), ["pod-1-1", "pod-1-2"].into(), "{family:?} {transport:?}");
            assert_eq!(clients(&answers), [family.wire(CLIENT)].into());
        }
    }
    sane(&lab);
}

#[test]
fn b30_policy_local_does_not_bind_pods() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let remote = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            let tables = &mut lab.nodes[0].tables;
            let set = tables.set();
            let id = tables.backend(set, remote);
            let windows =
                Windows { external: (0, 0), flags: range_flags::EXTERNAL_DROP, ..Windows::all(1) };
            let range = tables.range(set, &[id], windows);
            tables.flip(set, range);
            let any = SocketAddr::new(family.any(), NODE_PORT);
            tables.frontend(any, transport.number(), set, LOCAL);

            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            let pod = &lab.nodes[0].pods[0];
            let answer = ask(&pod.netns, transport, to).unwrap();
            assert_eq!(answer.name, "pod-2-1");
            assert_eq!(answer.client.ip(), pod.address(family), "source kept");

            let dropped = lab.nodes[0].counted(Counter::DropNoLocalEndpoint);
            assert_eq!(ask_in_vain(&lab.client, transport, to), io::ErrorKind::TimedOut);
            assert!(lab.nodes[0].counted(Counter::DropNoLocalEndpoint) > dropped);
        }
    }
}

/// A packet of another node's pod comes in with that pod's address: a backend that is elsewhere would
/// answer it past the node that was dialled.
#[test]
fn b30_b36_policy_local_binds_pods_of_other_nodes() {
    let mut lab = Lab::new([2, 1]);
    for family in FAMILIES {
        let backends = [lab.nodes[1].pods[0].server(family), lab.nodes[0].pods[1].server(family)];
        let to = SocketAddr::new(lab.address_of_node(1, family), NODE_PORT);
        for transport in TRANSPORTS {
            let tables = &mut lab.nodes[1].tables;
            let set = tables.set();
            let ids = backends.map(|addr| tables.backend(set, addr));
            let windows = Windows { external: (0, 1), ..Windows::all(2) };
            let range = tables.range(set, &ids, windows);
            tables.flip(set, range);
            let any = SocketAddr::new(family.any(), NODE_PORT);
            tables.frontend(any, transport.number(), set, LOCAL);
            for _ in 0..40 {
                let pod = &lab.nodes[0].pods[0];
                let answer = ask(&pod.netns, transport, to).unwrap();
                assert_eq!(answer.name, "pod-2-1", "{family:?} {transport:?}");
                assert_eq!(answer.client.ip(), pod.address(family), "source kept");
            }

            let tables = &mut lab.nodes[1].tables;
            let windows =
                Windows { external: (0, 0), flags: range_flags::EXTERNAL_DROP, ..Windows::all(1) };
            let range = tables.range(set, &ids[1..], windows);
            tables.flip(set, range);
            let dropped = lab.nodes[1].counted(Counter::DropNoLocalEndpoint);
            let pod = &lab.nodes[0].pods[0];
            assert_eq!(ask_in_vain(&pod.netns, transport, to), io::ErrorKind::TimedOut);
            assert!(lab.nodes[1].counted(Counter::DropNoLocalEndpoint) > dropped);
        }
    }
    sane(&lab);
}

#[test]
fn b20_b21_b26_who_is_masqueraded() {
    let mut lab = Lab::new([2, 1]);
    lab.route_services();
    for family in FAMILIES {
        for backend in [lab.nodes[0].pods[1].server(family), lab.nodes[1].pods[0].server(family)] {
            for transport in TRANSPORTS {
                let case = format!("{family:?} {transport:?} {backend}");
                let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
                node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
                let node = lab.address_of_node(0, family);
                let pod = &lab.nodes[0].pods[0];
                let seen = |from, to| ask(from, transport, to).unwrap().client.ip();
                assert_eq!(seen(&pod.netns, vip), pod.address(family), "B20 {case}");
                let node_port = SocketAddr::new(node, NODE_PORT);
                assert_eq!(seen(&pod.netns, node_port), node, "B21 {case}");
                assert_eq!(seen(&lab.client, vip), node, "B26 {case}");
            }
        }
    }
    sane(&lab);
}

#[test]
fn b02_b123_a_pod_reaches_itself_through_its_service() {
    let mut lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[0].server(family);
        for transport in TRANSPORTS {
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            let answer = ask(&lab.nodes[0].pods[0].netns, transport, vip).unwrap();
            assert_eq!(answer.name, "pod-1-1");
            assert_eq!(answer.client.ip(), lab.address_of_node(0, family), "masqueraded");
        }
    }
}

#[test]
fn b48_masquerade_all_hides_pods_behind_the_node() {
    let mut lab = Lab::new([1, 1]);
    lab.nodes[0].configure(mizzen_ebpf_abi::node::node_config_flags::MASQUERADE_ALL);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            let answer = ask(&lab.nodes[0].pods[0].netns, transport, vip).unwrap();
            assert_eq!(answer.client.ip(), lab.address_of_node(0, family));
        }
    }
}

#[test]
fn b11_b14_without_endpoints_clients_are_refused_at_once() {
    let mut lab = Lab::new([1, 0]);
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[]);
            node_port(&mut lab.nodes[0], family, transport, &[], EXTERNAL);
            let node = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            for (from, to) in [(&lab.nodes[0].pods[0].netns, vip), (&lab.client, node)] {
                let rejected = lab.nodes[0].counted(Counter::Rejected);
                let refused = ask_in_vain(from, transport, to);
                assert_eq!(refused, io::ErrorKind::ConnectionRefused, "{transport:?} {to}");
                if transport == Transport::Tcp {
                    let answers = lab.nodes[0].counted(Counter::Rejected) - rejected;
                    assert_eq!(answers, 1, "{to}: the first SYN is answered, and believed");
                }
            }
        }
    }
    assert!(lab.nodes[0].counted(Counter::Rejected) >= 8);
    assert_eq!(lab.nodes[0].counted(Counter::DropNoEndpoints), 0);
}

#[test]
fn what_is_no_service_passes_untouched() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let remote = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            let answer = ask(&lab.nodes[0].pods[0].netns, transport, remote).unwrap();
            assert_eq!(answer.client.ip(), lab.nodes[0].pods[0].address(family));
            node_port(&mut lab.nodes[0], family, transport, &[remote], EXTERNAL);
            let other = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT + 1);
            let refused = ask_in_vain(&lab.client, transport, other);
            assert_eq!(refused, io::ErrorKind::ConnectionRefused, "by the node itself");
        }
    }
    assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), 0);
}
