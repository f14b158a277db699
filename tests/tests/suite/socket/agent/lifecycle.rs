//! Objects that come, change and go, and sockets that are there all the while.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc};

use mizzen_agent::{
    apply::maps::Maps as _,
    desired::{LocalAddress, NodeFacts},
    model::{
        ObjectKey,
        endpoints::{EndpointSlice, Site},
        node::Node,
        service::{Service, TrafficPolicy},
        snapshot::Snapshot,
    },
};
use mizzen_ebpf_abi::{counters::Counter, node::NodeAddr};
use mizzen_tests::backend::Backend;

use super::{
    super::{Bench, FAMILIES, Family},
    Agent, NODE, cluster,
};

/// The snapshot after the service and its endpoints were deleted.
fn without_service(of: &Snapshot) -> Snapshot {
    let mut gone = of.clone();
    gone.revision += 1;
    gone.services.remove(&ObjectKey::new("default", "hello"));
    gone.slices.clear();
    gone
}

/// A newer snapshot, in which the second endpoint terminates, and serves on.
fn with_the_second_terminating(of: &Snapshot) -> Snapshot {
    let mut ending = of.clone();
    ending.revision += 1;
    let (key, slice) = ending.slices.iter().next().unwrap();
    let (key, mut slice) = (key.clone(), (**slice).clone());
    slice.endpoints[1].ready = false;
    slice.endpoints[1].terminating = true;
    ending.slices.insert(key, Arc::new(slice));
    ending
}

fn node_port(family: Family) -> SocketAddr {
    family.dialled(SocketAddr::new(family.node(), 30080))
}

/// That nobody but the stack refuses a connection.
fn refused_by_the_stack(bench: &mut Bench, to: SocketAddr, why: &str) {
    let before = bench.counted(Counter::SocketRefused);
    let refused = bench.ask(to).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{why}: {to}");
    assert_eq!(bench.counted(Counter::SocketRefused), before, "{why}: {to}");
}

#[test]
fn b61_node_ports_follow_the_nodes_addresses() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let next = family.ip([172, 30, 0, 77], [0xfd00, 0x30, 0, 0, 0, 0, 0, 0x77]);
        bench.node.add_address(next);
        let [old, new] = [family.node(), next].map(|ip| family.dialled(SocketAddr::new(ip, 30080)));
        let mut agent = Agent::start(&bench.datapath, family);
        let mut objects = cluster(family, &[bench.a]);
        agent.follow(&objects);
        assert_eq!(bench.ask(old).unwrap().0, "a");
        refused_by_the_stack(&mut bench, new, "not the node's yet");

        let moved = Node { internal_ips: vec![next], ..Node::named(NODE) };
        objects.nodes.insert(NODE.into(), Arc::new(moved));
        objects.revision += 1;
        let address = LocalAddress { addr: next, ifindex: 1 };
        agent.facts = NodeFacts { addresses: [address].into(), ..NodeFacts::default() };
        agent.follow(&objects);
        assert_eq!(bench.ask(new).unwrap(), ("a".to_owned(), new), "{family:?}");
        assert_eq!(bench.ask_udp(new), ("a".to_owned(), new), "{family:?}");
        refused_by_the_stack(&mut bench, old, "the node's no more");
    }
}

/// Nothing holds the port: whoever binds it has it.
#[test]
fn b68_the_port_of_a_deleted_service_is_the_nodes_again() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let port = node_port(family);
        let mut agent = Agent::start(&bench.datapath, family);
        let objects = cluster(family, &[bench.a]);
        agent.follow(&objects);
        assert_eq!(bench.ask(port).unwrap().0, "a");
        agent.follow(&without_service(&objects));
        refused_by_the_stack(&mut bench, port, "the service is gone");
        let own = SocketAddr::new(family.node(), 30080);
        let _server = Backend::start(&bench.node.netns, own, "the node's own");
        assert_eq!(bench.ask(port).unwrap(), ("the node's own".to_owned(), port));
        assert_eq!(bench.ask_udp(port), ("the node's own".to_owned(), port));
    }
}

/// What was deleted, and what began to terminate, while there was no agent.
#[test]
fn b113_b130_what_went_while_no_agent_ran_goes_when_one_starts() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = family.dialled(SocketAddr::new(family.vip(10), 80));
        let both = cluster(family, &[bench.a, bench.b]);
        Agent::start(&bench.datapath, family).follow(&both);

        // `b` begins to terminate, and serves on: `a` gets everything that is new.
        let terminating = with_the_second_terminating(&both);
        let old = bench.actor.open(family.tcp());
        bench.actor.connect(old, vip).unwrap();
        Agent::start(&bench.datapath, family).follow(&terminating);
        for _ in 0..20 {
            assert_eq!(bench.ask(vip).unwrap(), ("a".to_owned(), vip), "{family:?}");
        }
        assert_eq!(bench.actor.peer(old), vip, "what was connected stays so");
        bench.actor.receive(old);

        Agent::start(&bench.datapath, family).follow(&without_service(&both));
        assert!(bench.tables.maps.dump().unwrap().frontends.is_empty(), "{family:?}");
        refused_by_the_stack(&mut bench, node_port(family), "the service went with no agent there");
    }
}

/// A socket that names its destination each time has no session with an endpoint that is about to go,
/// and may go before the slices say so.
#[test]
fn b83_b101_a_datagram_socket_leaves_an_endpoint_that_terminates() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = family.dialled(SocketAddr::new(family.vip(10), 80));
        let socket = bench.actor.open(family.udp());
        let mut agent = Agent::start(&bench.datapath, family);
        let (a, b) = (bench.a, bench.b);
        let answer = |bench: &mut Bench| {
            bench.actor.send_to(socket, vip, "?");
            bench.actor.receive_from(socket).1
        };
        agent.follow(&cluster(family, &[b]));
        assert_eq!(answer(&mut bench), "b", "{family:?}");
        agent.follow(&with_the_second_terminating(&cluster(family, &[a, b])));
        assert_eq!(answer(&mut bench), "a", "{family:?}");
    }
}

/// The application never changes its socket, nor what it writes there.
#[test]
fn b101_b102_b105_b106_a_datagram_socket_follows_its_service() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = family.dialled(SocketAddr::new(family.vip(10), 80));
        let socket = bench.actor.open(family.udp());
        let mut agent = Agent::start(&bench.datapath, family);
        let (a, b) = (bench.a, bench.b);
        let mut revision = 0;
        let mut follow = |endpoints: &[SocketAddr]| {
            revision += 1;
            agent.follow(&Snapshot { revision, ..cluster(family, endpoints) });
        };
        let nobody = |bench: &mut Bench, case: &str| {
            let before = bench.counted(Counter::SocketTranslated);
            bench.actor.send_to(socket, vip, "?");
            assert_eq!(bench.counted(Counter::SocketTranslated), before, "{case} {family:?}");
        };
        let answers = |bench: &mut Bench, name: &str, case: &str| {
            bench.actor.send_to(socket, vip, "?");
            let answer = bench.actor.receive_from(socket);
            assert_eq!(answer, (vip, name.to_owned()), "{case} {family:?}");
        };
        nobody(&mut bench, "no service yet");
        follow(&[]);
        nobody(&mut bench, "B102: not ready yet");
        follow(&[a]);
        answers(&mut bench, "a", "B102");
        follow(&[b]);
        answers(&mut bench, "b", "B101");
        follow(&[]);
        nobody(&mut bench, "B105: scaled to zero");
        follow(&[a]);
        answers(&mut bench, "a", "B105");
        agent.follow(&without_service(&cluster(family, &[a])));
        nobody(&mut bench, "B106: deleted");
    }
}

/// With the internal policy Local, while another node has an endpoint all the time: a socket that
/// stays the same is led to the node's own endpoint, or left to its packets, which are dropped.
#[test]
fn b107_a_datagram_socket_follows_the_nodes_own_endpoint() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = family.dialled(SocketAddr::new(family.vip(10), 80));
        let socket = bench.actor.open(family.udp());
        let mut agent = Agent::start(&bench.datapath, family);
        let (a, b) = (bench.a, bench.b);
        let mut revision = 0;
        let elsewhere = (SocketAddr::new(a.ip(), a.port() + 1), "node-2"); // where nobody answers
        let mut follow = |endpoints: &[(SocketAddr, &str)]| {
            revision += 1;
            let addrs: Vec<SocketAddr> = endpoints.iter().map(|(addr, _)| *addr).collect();
            let mut objects = Snapshot { revision, ..cluster(family, &addrs) };
            let (key, service) = objects.services.iter().next().unwrap();
            let (key, mut service) = (key.clone(), Service::clone(service));
            service.internal_policy = TrafficPolicy::Local;
            objects.services.insert(key, Arc::new(service));
            let (key, slice) = objects.slices.iter().next().unwrap();
            let (key, mut slice) = (key.clone(), EndpointSlice::clone(slice));
            for (endpoint, (_, node)) in slice.endpoints.iter_mut().zip(endpoints) {
                endpoint.site = Site::on(node);
            }
            objects.slices.insert(key, Arc::new(slice));
            agent.follow(&objects);
        };
        let answers = |bench: &mut Bench, name: &str| {
            for _ in 0..5 {
                bench.actor.send_to(socket, vip, "?");
                let answer = bench.actor.receive_from(socket);
                assert_eq!(answer, (vip, name.to_owned()), "{family:?}");
            }
        };
        follow(&[(a, NODE), elsewhere]);
        answers(&mut bench, "a");
        follow(&[(b, NODE), elsewhere]);
        answers(&mut bench, "b");
        follow(&[elsewhere]);
        let before = bench.counted(Counter::SocketTranslated);
        bench.actor.send_to(socket, vip, "?");
        assert_eq!(bench.counted(Counter::SocketTranslated), before, "no endpoint of the node's");
        follow(&[elsewhere, (a, NODE)]);
        answers(&mut bench, "a");
    }
}

/// See `f50_a_cluster_ip_that_the_node_holds_is_its_own_at_other_ports` of the packet path.
#[test]
fn f50_sockets_reach_the_nodes_own_ports_at_a_cluster_ip_that_it_holds() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let held = family.vip(10);
        bench.node.add_address(held);
        let own = SocketAddr::new(held, 9253);
        let _cache = Backend::start(&bench.node.netns, own, "the node's own");
        let mut agent = Agent::start(&bench.datapath, family);
        let objects = cluster(family, &[bench.a]);
        agent.follow(&objects);
        let [own, unused, service] =
            [9253, 9254, 80].map(|port| family.dialled(SocketAddr::new(held, port)));
        let refused = bench.counted(Counter::SocketRefused);
        bench.ask(own).expect_err("the agent does not know that the node holds it");
        assert_eq!(bench.counted(Counter::SocketRefused), refused + 1);

        agent.facts.addresses.insert(LocalAddress { addr: held, ifindex: 1 });
        agent.follow(&objects);
        let held = bench.tables.maps.node_tables().unwrap().addrs[&held.into()];
        assert_eq!(held, NodeAddr { ifindex: 1, ..NodeAddr::default() }, "takes no node ports");
        assert_eq!(bench.ask(own).unwrap(), ("the node's own".to_owned(), own));
        assert_eq!(bench.ask_udp(own), ("the node's own".to_owned(), own));
        refused_by_the_stack(&mut bench, unused, "nobody listens there");
        assert_eq!(bench.ask(service).unwrap(), ("a".to_owned(), service));
        assert_eq!(bench.ask_udp(service), ("a".to_owned(), service));
    }
}
