//! Session affinity by packet: a client is the address that its packets come from.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use mizzen_ebpf_abi::{counters::Counter, service::frontend_flags};
use mizzen_tests::{
    echo::{Client, TRANSPORTS, Transport, ask},
    lab::{CLIENT, FAMILIES, Family, Lab},
    netns::Netns,
    tables::{TestTables, Windows},
    wait::until,
};

use super::{EXTERNAL, NODE_PORT, PORT, sane};

/// kube-proxy's default.
const THREE_HOURS: u32 = 10_800;

/// A set of which clients keep their backends, and its backends' ids.
struct Sticky {
    set: u32,
    ids: Vec<u32>,
}

impl Sticky {
    fn new(tables: &mut TestTables, backends: &[SocketAddr], affinity_s: u32) -> Self {
        let set = tables.set();
        let ids = backends.iter().map(|addr| tables.backend(set, *addr)).collect();
        let this = Self { set, ids };
        this.offer(tables, &this.ids, this.ids.len(), affinity_s);
        this
    }

    /// Makes these the slots, of which new flows may choose the first `count`.
    fn offer(&self, tables: &mut TestTables, ids: &[u32], count: usize, affinity_s: u32) {
        let windows = Windows { affinity_s, ..Windows::all(count) };
        let range = tables.range(self.set, ids, windows);
        tables.flip(self.set, range);
    }
}

fn backends(lab: &Lab, family: Family) -> Vec<SocketAddr> {
    lab.nodes.iter().flat_map(|node| &node.pods).map(|pod| pod.server(family)).collect()
}

/// The names that so many new flows get to.
fn names(from: &Netns, transport: Transport, to: SocketAddr, flows: usize) -> BTreeSet<String> {
    (0..flows).map(|_| ask(from, transport, to).unwrap().name).collect()
}

/// Whoever is not translated at its sockets: clients outside and pods that opted out. TCP and UDP
/// are service ports of their own (B74).
#[test]
fn b71_b74_b77_a_client_keeps_its_backend_of_each_service_port() {
    let mut lab = Lab::new([3, 3]);
    for family in FAMILIES {
        let all = backends(&lab, family);
        let vip = SocketAddr::new(family.service(10), PORT);
        let node = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        for transport in TRANSPORTS {
            let tables = &mut lab.nodes[0].tables;
            let sticky = Sticky::new(tables, &all, THREE_HOURS);
            tables.frontend(vip, transport.number(), sticky.set, 0);
            let any = SocketAddr::new(family.any(), NODE_PORT);
            tables.frontend(any, transport.number(), sticky.set, EXTERNAL);
        }
        for transport in TRANSPORTS {
            let case = format!("{family:?} {transport:?}");
            assert_eq!(names(&lab.client, transport, node, 12).len(), 1, "{case}");
            for pod in &lab.nodes[0].pods {
                let kept = names(&pod.netns, transport, vip, 12);
                assert_eq!(kept.len(), 1, "{case}");
                let by_node_port = names(&pod.netns, transport, node, 3);
                assert_eq!(by_node_port, kept, "{case}: of the port, whichever address is dialled");
            }
        }
    }
    assert_eq!(lab.nodes[0].counted(Counter::AffinityTableFull), 0);
    sane(&lab);
}

/// Six clients of six backends: that all are led to one has a chance of 1 in 7,776.
#[test]
fn b71_clients_are_told_apart() {
    let mut lab = Lab::new([6, 0]);
    for family in FAMILIES {
        let all = backends(&lab, family);
        let vip = SocketAddr::new(family.service(10), PORT);
        let tables = &mut lab.nodes[0].tables;
        let sticky = Sticky::new(tables, &all, THREE_HOURS);
        tables.frontend(vip, Transport::Tcp.number(), sticky.set, 0);
        let of = |pod: &mizzen_tests::lab::Pod| ask(&pod.netns, Transport::Tcp, vip).unwrap().name;
        let kept: BTreeSet<String> = lab.nodes[0].pods.iter().map(of).collect();
        assert!(kept.len() > 1, "{family:?}: {kept:?}");
    }
}

/// The node has two addresses on its way out, and sends from the second. It is one client on both
/// paths: what its sockets keep, its packets are led to. Six backends: that all agree by chance has
/// a chance of 1 in 6^9.
#[test]
fn d12_b79b_the_node_is_one_client_whichever_address_it_sends_from() {
    let mut lab = Lab::new([3, 3]);
    lab.route_out();
    lab.nodes[0].datapath.attach_sockets().unwrap();
    for family in FAMILIES {
        let second = family.wire(77);
        let node = &lab.nodes[0].node.netns;
        let (ip, length) = if family == Family::V4 { ("", 24) } else { ("-6 ", 64) };
        let nodad = if family == Family::V4 { "" } else { "nodad" };
        node.ip(&format!("addr add {second}/{length} dev eth0 {nodad}"));
        let router = family.wire(CLIENT);
        node.ip(&format!("{ip}route replace default via {router} src {second}"));
        lab.nodes[0].tables.node_address(second);
        let all = backends(&lab, family);
        let vip = SocketAddr::new(family.service(10), PORT);
        for transport in TRANSPORTS {
            let case = format!("{family:?} {transport:?}");
            let tables = &mut lab.nodes[0].tables;
            let sticky = Sticky::new(tables, &all, THREE_HOURS);
            tables.frontend(vip, transport.number(), sticky.set, 0);
            // Of the node's cgroup, so that its sockets are translated.
            let mut actor = lab.nodes[0].node.actor();
            let kind = match (transport, family) {
                (Transport::Tcp, Family::V4) => "tcp4",
                (Transport::Tcp, Family::V6) => "tcp6",
                (Transport::Udp, Family::V4) => "udp4",
                (Transport::Udp, Family::V6) => "udp6",
            };
            let socket = actor.open(kind);
            actor.connect(socket, vip).unwrap();
            actor.send(socket, "?");
            let said = actor.receive(socket);
            let (kept, seen) = said.split_once(' ').unwrap();
            let seen: SocketAddr = seen.parse().unwrap();
            // By packet, under the other address.
            let by_packet = names(&lab.nodes[0].node.netns, transport, vip, 9);
            assert_eq!(by_packet, [kept.to_owned()].into(), "{case}, by socket from {seen}");
        }
    }
    assert!(lab.nodes[0].counted(Counter::FlowCreated) >= 36, "by packet");
    sane(&lab);
}

/// Each new flow counts anew; without any, the choice is forgotten.
#[test]
fn b72_affinity_ends_with_its_timeout_and_flows_prolong_it() {
    let mut lab = Lab::new([4, 4]);
    let mut dialled = Vec::new();
    for family in FAMILIES {
        let all = backends(&lab, family);
        let tables = &mut lab.nodes[0].tables;
        let sticky = Sticky::new(tables, &all, 5);
        let any = SocketAddr::new(family.any(), NODE_PORT);
        tables.frontend(any, Transport::Udp.number(), sticky.set, EXTERNAL);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        dialled.push((to, ask(&lab.client, Transport::Udp, to).unwrap().name));
    }
    // Time is what this is about.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(2));
        for (to, name) in &dialled {
            assert_eq!(ask(&lab.client, Transport::Udp, *to).unwrap().name, *name);
        }
    }
    until("another choice", Duration::from_mins(1), || {
        std::thread::sleep(Duration::from_secs(6));
        dialled.retain(|(to, name)| ask(&lab.client, Transport::Udp, *to).unwrap().name == *name);
        if dialled.is_empty() { Ok(()) } else { Err(format!("{dialled:?} stay")) }
    });
}

#[test]
fn b73_affinity_is_switched_off_and_on_again() {
    let mut lab = Lab::new([2, 2]);
    for family in FAMILIES {
        let all = backends(&lab, family);
        for transport in TRANSPORTS {
            let sticky = Sticky::new(&mut lab.nodes[0].tables, &all, THREE_HOURS);
            let any = SocketAddr::new(family.any(), NODE_PORT);
            lab.nodes[0].tables.frontend(any, transport.number(), sticky.set, EXTERNAL);
            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            assert_eq!(names(&lab.client, transport, to, 8).len(), 1);
            sticky.offer(&mut lab.nodes[0].tables, &sticky.ids, 4, 0);
            until("another backend", Duration::from_secs(5), || {
                let seen = names(&lab.client, transport, to, 8).len();
                if seen > 1 { Ok(()) } else { Err(format!("{seen} backends")) }
            });
            sticky.offer(&mut lab.nodes[0].tables, &sticky.ids, 4, THREE_HOURS);
            assert_eq!(names(&lab.client, transport, to, 8).len(), 1, "{family:?} {transport:?}");
        }
    }
}

/// The backend that a client keeps is taken out of the service (B75), or terminates and so leaves
/// the window while flows to it go on (B76): new flows go elsewhere, and stay there.
#[test]
fn b75_b76_a_backend_that_leaves_gets_no_new_flows_by_affinity() {
    let mut lab = Lab::new([2, 2]);
    for family in FAMILIES {
        let all = backends(&lab, family);
        for (transport, terminates) in
            TRANSPORTS.into_iter().flat_map(|transport| [(transport, false), (transport, true)])
        {
            let case = format!("{family:?} {transport:?}, terminates: {terminates}");
            let sticky = Sticky::new(&mut lab.nodes[0].tables, &all, THREE_HOURS);
            let any = SocketAddr::new(family.any(), NODE_PORT);
            lab.nodes[0].tables.frontend(any, transport.number(), sticky.set, EXTERNAL);
            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            let long_lived = Client::dial(&lab.client, transport, to, 0).unwrap();
            let first = long_lived.ask().unwrap().name;
            let is_first = |pod: &mizzen_tests::lab::Pod| pod.name == first;
            let pods = lab.nodes.iter().flat_map(|node| &node.pods);
            let leaving = pods.clone().position(is_first).unwrap();

            // Last in the range, and outside of its windows.
            let mut ids = sticky.ids.clone();
            let gone = ids.remove(leaving);
            ids.push(gone);
            let ids = if terminates { &ids[..] } else { &ids[..3] };
            sticky.offer(&mut lab.nodes[0].tables, ids, 3, THREE_HOURS);
            if !terminates {
                lab.nodes[0].tables.free_backend(gone, all[leaving]);
            }
            let next = names(&lab.client, transport, to, 8);
            assert_eq!(next.len(), 1, "{case}");
            assert!(!next.contains(&first), "{case}");
            if terminates {
                assert_eq!(long_lived.ask().unwrap().name, first, "{case}");
            }
        }
    }
    sane(&lab);
}

#[test]
fn b78_affinity_and_source_ranges_go_together() {
    let mut lab = Lab::new([2, 2]);
    lab.route_services();
    for family in FAMILIES {
        let all = backends(&lab, family);
        let to = SocketAddr::new(family.load_balancer(1), PORT);
        for transport in TRANSPORTS {
            let tables = &mut lab.nodes[0].tables;
            let sticky = Sticky::new(tables, &all, THREE_HOURS);
            let flags = frontend_flags::EXTERNAL | frontend_flags::SOURCE_RANGES;
            tables.frontend(to, transport.number(), sticky.set, flags);
            let length = if family == Family::V4 { 32 } else { 128 };
            tables.source_ranges(sticky.set, &[(family.wire(CLIENT), length)]);
            assert_eq!(names(&lab.client, transport, to, 8).len(), 1, "{family:?} {transport:?}");
        }
    }
}
