//! The life of flows: who shares ports, who stays where, what survives the agent.

use std::{collections::BTreeSet, io::ErrorKind, net::SocketAddr, time::Duration};

use mizzen_agent::{apply::maps::Maps as _, datapath::Outcome};
use mizzen_ebpf_abi::counters::Counter;
use mizzen_tests::{
    echo::{Client, Echo, TRANSPORTS, Transport, ask},
    lab::{FAMILIES, Lab, LabNode},
    netns::Netns,
    wait::until,
};

use super::{EXTERNAL, LOCAL, NODE_PORT, Windows, cluster_ip, node_port, sane};

/// Two clients behind the same node port with the same source port, to one backend.
#[test]
fn b63_clients_with_the_same_source_port_do_not_collide() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            let outside = Client::dial(&lab.client, transport, to, 45_678).unwrap();
            let pod = Client::dial(&lab.nodes[0].pods[0].netns, transport, to, 45_678).unwrap();
            for _ in 0..3 {
                let seen = [&outside, &pod].map(|client| client.ask().unwrap().client);
                assert_ne!(seen[0], seen[1], "{family:?} {transport:?}");
                assert_eq!(seen[0].ip(), seen[1].ip());
            }
        }
    }
    sane(&lab);
}

/// A pod uses one source port for two services with the same backend: without another source
/// port for the second, answers could not be told apart.
#[test]
fn u14_two_services_with_one_backend_and_the_same_source_port() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            let first = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            let set = lab.nodes[0].tables.set_of(&[backend]);
            let second = SocketAddr::new(family.service(11), 80);
            lab.nodes[0].tables.frontend(second, transport.number(), set, 0);
            let pod = &lab.nodes[0].pods[0];
            let clients =
                [first, second].map(|to| Client::dial(&pod.netns, transport, to, 45_679).unwrap());
            for _ in 0..3 {
                let [a, b] = [0, 1].map(|index| clients[index].ask().unwrap());
                assert_eq!((a.client.ip(), a.client.port()), (pod.address(family), 45_679));
                assert_eq!(b.client.ip(), pod.address(family), "the address is kept");
                assert_ne!(b.client.port(), 45_679);
            }
        }
    }
}

#[test]
fn b135_a_flow_stays_with_its_backend_when_the_service_changes() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let pods = [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)];
        for transport in TRANSPORTS {
            let tables = &mut lab.nodes[0].tables;
            let set = tables.set();
            let ids = pods.map(|addr| tables.backend(set, addr));
            let range = tables.range(set, &ids[..1], Windows::all(1));
            tables.flip(set, range);
            let any = SocketAddr::new(family.any(), NODE_PORT);
            tables.frontend(any, transport.number(), set, EXTERNAL);
            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            let client = Client::dial(&lab.client, transport, to, 0).unwrap();
            assert_eq!(client.ask().unwrap().name, "pod-1-1");

            let tables = &mut lab.nodes[0].tables;
            let range = tables.range(set, &ids[1..], Windows::all(1));
            tables.flip(set, range);
            assert_eq!(client.ask().unwrap().name, "pod-1-1", "{family:?} {transport:?}");
            assert_eq!(ask(&lab.client, transport, to).unwrap().name, "pod-2-1", "a new flow");
        }
    }
}

/// The first SYN goes to a backend that does not answer; its repetitions go nowhere else, though
/// nine of ten backends would answer.
#[test]
fn b135_a_repeated_syn_goes_to_the_same_backend() {
    let mut lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let alive = lab.nodes[0].pods[0].server(family);
        let silent = SocketAddr::new(family.pod(1, 77), 8080);
        let backends = [[silent].as_slice(), &[alive; 9]].concat();
        node_port(&mut lab.nodes[0], family, Transport::Tcp, &backends, EXTERNAL);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let created = lab.nodes[0].counted(Counter::FlowCreated);
        let mut silenced = 0;
        let mut asked = 0_u32;
        // Each attempt waits for two repetitions (after 1 s); stop at the first silent one.
        while silenced == 0 && asked < 200 {
            asked += 1;
            silenced += u32::from(ask(&lab.client, Transport::Tcp, to).is_err());
        }
        assert_eq!(silenced, 1, "one in ten is silent, and no repetition went elsewhere");
        let made = lab.nodes[0].counted(Counter::FlowCreated) - created;
        assert_eq!(made, u64::from(asked), "a repetition opens nothing");
    }
}

/// Dials from a port whose last connection to the same place was just closed. A process that
/// another test starts holds that connection's descriptor too until it is another program.
fn redial(from: &Netns, to: SocketAddr, port: u16) -> Client {
    until("the port to be free", Duration::from_secs(5), || {
        match Client::dial(from, Transport::Tcp, to, port) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Err(error.to_string()),
            dialled => Ok(dialled.unwrap()),
        }
    })
}

#[test]
fn b135_a_closed_connections_ports_open_a_new_flow() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let pods = [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)];
        node_port(&mut lab.nodes[0], family, Transport::Tcp, &pods, EXTERNAL);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let mut seen = BTreeSet::new();
        let created = lab.nodes[0].counted(Counter::FlowCreated);
        for _ in 0..20 {
            let client = redial(&lab.client, to, 45_680);
            seen.insert(client.ask().unwrap().name);
            client.abort();
        }
        assert_eq!(seen.len(), 2, "{family:?}: each is chosen anew, {seen:?}");
        assert_eq!(lab.nodes[0].counted(Counter::FlowCreated) - created, 20);
    }
}

/// A datagram client that never changes its port follows the service (B101, B105, B106, B110).
#[test]
fn b100_b105_b110_datagrams_leave_a_backend_that_is_gone() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let pods = [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)];
        let tables = &mut lab.nodes[0].tables;
        let set = tables.set();
        let first = tables.backend(set, pods[0]);
        let range = tables.range(set, &[first], Windows::all(1));
        tables.flip(set, range);
        let any = SocketAddr::new(family.any(), NODE_PORT);
        tables.frontend(any, 17, set, EXTERNAL);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let client = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
        assert_eq!(client.ask().unwrap().name, "pod-1-1");

        // Scaled to zero: refused, and nothing reaches the pod that was.
        let tables = &mut lab.nodes[0].tables;
        let empty = tables.range(set, &[], Windows::all(0));
        tables.flip(set, empty);
        tables.free_backend(first, pods[0]);
        let refused = client.ask().unwrap_err().kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused);

        // And up again, elsewhere.
        let second = tables.backend(set, pods[1]);
        let range = tables.range(set, &[second], Windows::all(1));
        tables.flip(set, range);
        assert_eq!(client.ask().unwrap().name, "pod-2-1", "{family:?}");
    }
}

/// As kube-proxy keeps their conntrack entries: a server that topology gives no new clients keeps the
/// sessions that it has. It has a slot before the first window.
#[test]
fn b83_b100_datagrams_stay_with_a_backend_for_as_long_as_it_serves() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let pods = [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)];
        let tables = &mut lab.nodes[0].tables;
        let set = tables.set();
        let ids = pods.map(|pod| tables.backend(set, pod));
        let range = tables.range(set, &ids[..1], Windows::all(1));
        tables.flip(set, range);
        tables.frontend(SocketAddr::new(family.any(), NODE_PORT), 17, set, EXTERNAL);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let client = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
        assert_eq!(client.ask().unwrap().name, "pod-1-1", "{family:?}");

        let second = (1, 1);
        let windows =
            Windows { internal: second, external: second, nearby: second, ..Windows::all(1) };
        let tables = &mut lab.nodes[0].tables;
        let range = tables.range(set, &ids, windows);
        tables.flip(set, range);
        assert_eq!(client.ask().unwrap().name, "pod-1-1", "{family:?}: it still serves");
        let new = super::answers(&lab, Transport::Udp, to, 5);
        assert!(new.iter().all(|answer| answer.name == "pod-2-1"), "{family:?}: {new:?}");

        lab.nodes[0].tables.free_backend(ids[0], pods[0]);
        assert_eq!(client.ask().unwrap().name, "pod-2-1", "{family:?}: it does not");
    }
}

/// Datagrams larger than the wire takes, in fragments there and back.
#[test]
fn b64_fragments_go_through_a_node_port() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        for backend in backends_of(&lab, family) {
            node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], EXTERNAL);
            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            let client = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
            for size in [1_000, 1_800, 4_000, 9_000] {
                let answer = client.ask_with(size).unwrap();
                assert_eq!(answer.length, size, "{family:?} {backend}");
            }
        }
    }
}

fn backends_of(lab: &Lab, family: mizzen_tests::lab::Family) -> [SocketAddr; 2] {
    [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)]
}

#[test]
fn b108_r01_r03_flows_go_on_without_an_agent_and_through_the_next_ones_start() {
    let mut lab = Lab::new([1, 1]);
    let mut long_lived = Vec::new();
    for family in FAMILIES {
        let pods = backends_of(&lab, family);
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &pods, EXTERNAL);
            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            let client = Client::dial(&lab.client, transport, to, 0).unwrap();
            let name = client.ask().unwrap().name;
            long_lived.push((client, name, transport, to));
        }
    }
    let [first, second] = lab.nodes;
    let client = &lab.client;
    let check = |when: &str| {
        for (flow, name, transport, to) in &long_lived {
            assert_eq!(flow.ask().unwrap().name, *name, "{when}");
            ask(client, *transport, *to).unwrap();
        }
    };
    let LabNode { node, datapath, tables, pods, .. } = first;
    drop((datapath, tables));
    check("no agent");
    let datapath = node.open();
    let mut tables = mizzen_tests::tables::TestTables::new(datapath.maps().unwrap());
    let before = tables.maps.dump().unwrap();
    let attach = || {
        node.netns.run(|| {
            let uplinks: Vec<_> = mizzen_agent::datapath::find_uplinks(&["eth0".into()], &[])
                .unwrap()
                .devices
                .into_iter()
                .collect();
            let outcomes = datapath.attach_uplinks(&uplinks).unwrap();
            outcomes.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>()
        })
    };
    assert_eq!(attach(), [Outcome::Replaced; 2]);
    assert_eq!(attach(), [Outcome::Unchanged; 2]);
    assert_eq!(tables.maps.dump().unwrap(), before);
    check("the next agent");
    drop((pods, second));
}

/// A backend on the node itself, in the host's network: its packets go through the stack, its
/// answers get the service's address on their way out.
#[test]
fn b88_a_backend_in_the_nodes_own_network() {
    let mut lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let node = lab.address_of_node(0, family);
        let backend = SocketAddr::new(node, 6443);
        let _server = Echo::start(&lab.nodes[0].node.netns, backend, "host");
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            let to = SocketAddr::new(node, NODE_PORT);
            for (from, to) in [(&lab.client, to), (&lab.nodes[0].pods[0].netns, vip)] {
                let flow = Client::dial(from, transport, to, 0).unwrap();
                for _ in 0..3 {
                    assert_eq!(flow.ask().unwrap().name, "host", "{family:?} {transport:?} {to}");
                }
            }
        }
    }
}

#[test]
fn an_interface_that_appears_is_attached_and_one_that_goes_leaves_no_pin() {
    let lab = Lab::new([0, 0]);
    let node = &lab.nodes[0];
    let names = ["late0".to_owned()];
    let datapath = &node.datapath;
    let attach = || {
        node.node.netns.run(|| {
            let found = mizzen_agent::datapath::find_uplinks(&names, &[]).unwrap();
            let found: Vec<_> = found.devices.into_iter().collect();
            datapath.attach_uplinks(&found).unwrap().len()
        })
    };
    let pins = || std::fs::read_dir(node.datapath.pins().links()).unwrap().count();
    assert_eq!(attach(), 0);
    let before = pins();
    let missed = || {
        let places = node.datapath.places().read().unwrap();
        let packets = places.into_iter().filter(|place| place.interface.is_some());
        packets.filter(|place| !place.in_force).count()
    };
    node.node.netns.ip("link add late0 type veth peer name late1");
    assert_eq!(attach(), 2);
    assert_eq!(pins(), before + 2);
    assert_eq!(missed(), 0);
    node.node.netns.ip("link del late0");
    until("the pins to go", Duration::from_secs(5), || {
        attach();
        if pins() == before { Ok(()) } else { Err(format!("{} pins", pins())) }
    });
}

#[test]
fn the_sweep_counts_what_lives_and_leaves_it() {
    let mut lab = Lab::new([1, 0]);
    let family = FAMILIES[0];
    let backend = lab.nodes[0].pods[0].server(family);
    node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], LOCAL);
    let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let client = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
            client.ask().unwrap();
            client
        })
        .collect();
    let mut sweeper = lab.nodes[0].datapath.flow_sweeper().unwrap();
    let mut seen = 0;
    loop {
        let swept = sweeper.run(1).unwrap();
        assert_eq!(swept.removed, 0);
        seen += swept.seen;
        if swept.finished {
            break;
        }
    }
    assert_eq!(seen, 20, "two entries a flow");
    let usage = sweeper.usage().unwrap();
    assert_eq!((usage.map, usage.used), ("FLOWS", 20));
    drop(clients);
}
