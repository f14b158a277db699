//! The masquerade matrix B20-B48 with real packets: who reaches which backends, and as whom.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

use mizzen_agent::why;
use mizzen_ebpf_abi::{
    node::node_config_flags::{
        MASQUERADE_ALL, NO_POD_DETECTION, NO_POD_DETECTION_V4, no_pod_detection,
    },
    service::frontend_flags,
};
use mizzen_tests::{
    actor::Actor,
    echo::{Client, TRANSPORTS, Transport, ask},
    lab::{CLIENT, FAMILIES, Family, Lab},
    tables::Windows,
};

use super::{EXTERNAL, LOCAL, NODE_PORT, node_port, sane};

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialler {
    Pod,
    /// A pod of the other node, by which no socket is translated here.
    Elsewhere,
    Node,
    Outside,
}

/// What is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// A service's traffic policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Cluster,
    ExternalLocal,
    InternalLocal,
}

/// Which backends answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    All,
    Local,
}

/// As whom a backend sees the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// As the node.
    Masqueraded,
    /// As itself.
    Itself,
}

use Dialler::{Elsewhere, Node, Outside, Pod};
use Policy::{Cluster, ExternalLocal, InternalLocal};
use Reach::{All, Local};
use Seen::{Itself, Masqueraded};
use To::{ClusterIp, LoadBalancer, NodePort};

type Row = (u8, Dialler, To, Policy, Reach, Seen);

/// B20-B46, as the reference lists them, and pods of the other node beside those of this one.
const MATRIX: [Row; 30] = [
    (20, Pod, ClusterIp, Cluster, All, Itself),
    (21, Pod, NodePort, Cluster, All, Masqueraded),
    (21, Elsewhere, NodePort, Cluster, All, Masqueraded),
    (22, Pod, LoadBalancer, Cluster, All, Masqueraded),
    (23, Node, ClusterIp, Cluster, All, Masqueraded),
    (24, Node, NodePort, Cluster, All, Masqueraded),
    (25, Node, LoadBalancer, Cluster, All, Masqueraded),
    (26, Outside, ClusterIp, Cluster, All, Masqueraded),
    (27, Outside, NodePort, Cluster, All, Masqueraded),
    (28, Outside, LoadBalancer, Cluster, All, Masqueraded),
    (29, Pod, ClusterIp, ExternalLocal, All, Itself),
    (30, Pod, NodePort, ExternalLocal, All, Itself),
    (30, Elsewhere, NodePort, ExternalLocal, Local, Itself),
    (31, Pod, LoadBalancer, ExternalLocal, All, Itself),
    (32, Node, ClusterIp, ExternalLocal, All, Masqueraded),
    (33, Node, NodePort, ExternalLocal, All, Masqueraded),
    (34, Node, LoadBalancer, ExternalLocal, All, Masqueraded),
    (35, Outside, ClusterIp, ExternalLocal, All, Masqueraded),
    (36, Outside, NodePort, ExternalLocal, Local, Itself),
    (37, Outside, LoadBalancer, ExternalLocal, Local, Itself),
    (38, Pod, ClusterIp, InternalLocal, Local, Itself),
    (39, Pod, NodePort, InternalLocal, All, Masqueraded),
    (39, Elsewhere, NodePort, InternalLocal, All, Masqueraded),
    (40, Pod, LoadBalancer, InternalLocal, All, Masqueraded),
    (41, Node, ClusterIp, InternalLocal, Local, Masqueraded),
    (42, Node, NodePort, InternalLocal, All, Masqueraded),
    (43, Node, LoadBalancer, InternalLocal, All, Masqueraded),
    (44, Outside, ClusterIp, InternalLocal, Local, Masqueraded),
    (45, Outside, NodePort, InternalLocal, All, Masqueraded),
    (46, Outside, LoadBalancer, InternalLocal, All, Masqueraded),
];

/// What a row says of a family with a node's configuration.
fn expected((_, from, to, policy, reach, seen): Row, family: Family, config: u32) -> (Reach, Seen) {
    let (mut reach, mut seen) = (reach, seen);
    if config & no_pod_detection(family == Family::V4) != 0 {
        // B47
        if to == ClusterIp {
            seen = Itself;
        } else if from == Pod && policy == ExternalLocal {
            reach = Local;
        }
    }
    if config & MASQUERADE_ALL != 0 && to == ClusterIp {
        seen = Masqueraded; // B48
    }
    (reach, seen)
}

/// The service of a policy.
#[derive(Clone, Copy)]
struct Service {
    number: u8,
    policy: Policy,
}

impl Service {
    fn address(self, lab: &Lab, family: Family, to: To) -> SocketAddr {
        match to {
            ClusterIp => SocketAddr::new(family.service(self.number), 80),
            LoadBalancer => SocketAddr::new(family.load_balancer(self.number), 80),
            NodePort => SocketAddr::new(lab.address_of_node(0, family), self.node_port()),
        }
    }

    fn node_port(self) -> u16 {
        30_000 + u16::from(self.number)
    }

    /// Writes it as the agent of node 1 would: its local backend first.
    fn write(self, lab: &mut Lab, family: Family, transport: Transport) {
        let backends = [lab.nodes[0].pods[1].server(family), lab.nodes[1].pods[0].server(family)];
        let frontends = [ClusterIp, LoadBalancer].map(|to| self.address(lab, family, to));
        let tables = &mut lab.nodes[0].tables;
        let set = tables.set();
        let ids = backends.map(|addr| tables.backend(set, addr));
        let local = (0, 1);
        let windows = match self.policy {
            Cluster => Windows::all(2),
            ExternalLocal => Windows { external: local, ..Windows::all(2) },
            InternalLocal => Windows { internal: local, ..Windows::all(2) },
        };
        let range = tables.range(set, &ids, windows);
        tables.flip(set, range);
        let external = if self.policy == ExternalLocal { LOCAL } else { EXTERNAL };
        let number = transport.number();
        tables.frontend(frontends[0], number, set, 0);
        tables.frontend(frontends[1], number, set, external & !frontend_flags::NODE_PORT);
        let any = SocketAddr::new(family.any(), self.node_port());
        tables.frontend(any, number, set, external);
    }
}

/// Who answers one new flow, and whom it sees: its address, and whether the port is of the
/// client's own choice, where that can be told.
fn answer(
    lab: &Lab,
    actor: &mut Actor,
    row: Row,
    transport: Transport,
    to: SocketAddr,
) -> (String, IpAddr, Option<Seen>) {
    let netns = match (row.1, row.2) {
        // By the loopback interface, where only sockets are translated.
        (Node, NodePort) => {
            let (name, client) = ask_by_actor(actor, transport, to);
            return (name, client.ip(), None);
        }
        (Pod, _) => &lab.nodes[0].pods[0].netns,
        (Elsewhere, _) => &lab.nodes[1].pods[1].netns,
        (Node, _) => &lab.nodes[0].node.netns,
        (Outside, _) => &lab.client,
    };
    let client = Client::dial(netns, transport, to, fresh_port()).unwrap();
    let answer = client.ask().unwrap();
    let own_port = answer.client.port() == client.port();
    let seen = if own_port { Itself } else { Masqueraded };
    (answer.name, answer.client.ip(), Some(seen))
}

/// A source port that no flow of the same test had: one that had gone to the same backend by
/// another address would make this one's port the node's choice.
fn fresh_port() -> u16 {
    static ASKED: AtomicU16 = AtomicU16::new(0);
    61_000 + ASKED.fetch_add(1, Ordering::Relaxed) % 4_500
}

fn ask_by_actor(actor: &mut Actor, transport: Transport, to: SocketAddr) -> (String, SocketAddr) {
    let kind = match (transport, to.is_ipv4()) {
        (Transport::Tcp, true) => "tcp4",
        (Transport::Tcp, false) => "tcp6",
        (Transport::Udp, true) => "udp4",
        (Transport::Udp, false) => "udp6",
    };
    let socket = actor.open(kind);
    actor.connect(socket, to).unwrap();
    actor.send(socket, "?");
    let said = actor.receive(socket);
    actor.close(socket);
    let (name, client) = said.trim().split_once(' ').unwrap();
    (name.to_owned(), client.parse().unwrap())
}

fn check(
    lab: &Lab,
    actor: &mut Actor,
    row: Row,
    config: u32,
    transport: Transport,
    to: SocketAddr,
) {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let case = format!("B{row:?} {config:#b} {transport:?} {to}");
    let (reach, seen) = expected(row, family, config);
    let itself = match row.1 {
        Pod => lab.nodes[0].pods[0].address(family),
        Elsewhere => lab.nodes[1].pods[1].address(family),
        Node => lab.address_of_node(0, family),
        Outside => family.wire(CLIENT),
    };
    let address = if seen == Itself { itself } else { lab.address_of_node(0, family) };
    let mut names = BTreeSet::new();
    // That one of two backends is never chosen has a chance of 2^-12 (2^-40 where both answer).
    let flows = if reach == Local { 12 } else { 40 };
    for _ in 0..flows {
        let (name, client, port) = answer(lab, actor, row, transport, to);
        assert_eq!(client, address, "{case}");
        assert!(port.is_none_or(|port| port == seen), "{case}: {port:?}");
        names.insert(name);
        if reach == All && names.len() == 2 {
            break;
        }
    }
    let all = ["pod-1-2".to_owned(), "pod-2-1".to_owned()];
    let expected = if reach == All { &all[..] } else { &all[..1] };
    assert!(names.iter().eq(expected), "{case}: {names:?}");
}

fn matrix(config: u32) {
    let mut lab = Lab::new([2, 2]);
    lab.route_services();
    lab.route_out();
    // What is not masqueraded has to find its way back through node 1.
    for family in FAMILIES {
        let (client, node) = (family.wire(CLIENT), lab.address_of_node(0, family));
        let ip = if family == Family::V6 { "-6 " } else { "" };
        lab.nodes[1].node.netns.ip(&format!("{ip}route add {client} via {node}"));
    }
    lab.nodes[0].configure(config);
    lab.nodes[0].datapath.attach_sockets().unwrap();
    let mut actor = lab.nodes[0].node.actor();
    let services = [(10, Cluster), (20, ExternalLocal), (30, InternalLocal)]
        .map(|(number, policy)| Service { number, policy });
    for family in FAMILIES {
        for transport in TRANSPORTS {
            for service in services {
                service.write(&mut lab, family, transport);
            }
            for row in MATRIX {
                let service = services.iter().find(|service| service.policy == row.3).unwrap();
                let to = service.address(&lab, family, row.2);
                check(&lab, &mut actor, row, config, transport, to);
            }
        }
    }
    sane(&lab);
}

#[test]
fn b20_to_b46_who_reaches_which_backends_and_as_whom() {
    matrix(0);
}

#[test]
fn b47_without_detection_of_pods() {
    matrix(NO_POD_DETECTION);
}

/// Of IPv4 alone: each row of the other family is as ever.
#[test]
fn b47_without_detection_of_pods_of_one_family() {
    matrix(NO_POD_DETECTION_V4);
}

#[test]
fn b48_masquerading_all() {
    matrix(MASQUERADE_ALL);
}

#[test]
fn b47_b48_masquerading_all_without_detection_of_pods() {
    matrix(MASQUERADE_ALL | NO_POD_DETECTION);
}

/// As whom a backend sees the client outside, as `mizzen why` tells it on node 1.
fn told_source(lab: &Lab, transport: Transport, to: SocketAddr, backend: SocketAddr) -> IpAddr {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let addr = family.wire(CLIENT).into();
    let client = why::Client { addr, port: None, here: false, bound: true };
    let (addr, port) = (to.ip().into(), to.port());
    let dialled = why::Dialled { addr, port, protocol: transport.number() };
    let node = &lab.nodes[0];
    let ask = || node.datapath.table_readers().ask(|live| why::explain(live, &client, &dialled));
    let masquerade = node.node.netns.run(ask).unwrap().packet.masquerade.unwrap();
    let exception = masquerade.exceptions.iter().find(|of| of.candidate == backend.to_string());
    exception.map_or(&masquerade.address, |of| &of.address).parse().unwrap()
}

/// Another plugin's tunnel, as flannel makes it: what comes out of it is from an address behind it, or
/// strict reverse path filters drop it.
#[test]
fn u05_what_is_masqueraded_into_an_overlay_is_from_there() {
    let mut lab = Lab::new([1, 1]);
    let overlay = |node: usize, family: Family| family.pod(u8::try_from(node + 1).unwrap(), 0);
    for (node, other) in [(0, 1), (1, 0)] {
        let netns = &lab.nodes[node].node.netns;
        let wire = lab.address_of_node(node, Family::V4);
        netns.ip(&format!(
            "link add flannel.1 address 02:00:00:00:01:0{node} type vxlan id 1 local {wire} \
             dstport 8472 nolearning"
        ));
        netns.ip("link set flannel.1 up");
        let peer = format!("02:00:00:00:01:0{other}");
        for (family, ip, own, range) in [(Family::V4, "", 32, 24), (Family::V6, "-6 ", 128, 64)] {
            let (here, there) = (overlay(node, family), overlay(other, family));
            let nodad = if family == Family::V6 { "nodad" } else { "" };
            netns.ip(&format!("addr add {here}/{own} dev flannel.1 {nodad}"));
            netns.ip(&format!("neigh add {there} lladdr {peer} dev flannel.1 nud permanent"));
            netns.ip(&format!("{ip}route del {there}/{range}"));
            netns.ip(&format!("{ip}route add {there}/{range} via {there} dev flannel.1 onlink"));
        }
        let at = lab.address_of_node(other, Family::V4);
        netns.bridge(&format!("fdb append {peer} dev flannel.1 dst {at}"));
        let devices = ["eth0", "flannel.1"].map(str::to_owned);
        lab.nodes[node].attach_to(&devices);
    }
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let answer = ask(&lab.client, transport, to).unwrap();
            assert_eq!(answer.client.ip(), overlay(0, family), "{family:?} {transport:?}");
            assert_eq!(told_source(&lab, transport, to, backend), overlay(0, family));
        }
    }
    sane(&lab);
}
