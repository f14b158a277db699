//! What is translated packet by packet is counted for backends: flows, packets and octets in both
//! directions (issue 3, semantics 6).

use std::net::SocketAddr;

use mizzen_agent::{
    apply::maps::Maps as _,
    traffic::{Counted, PacketTraffic, SocketTraffic},
};
use mizzen_ebpf_abi::counters::Counter;
use mizzen_tests::{
    echo::{Client, Transport},
    lab::{FAMILIES, Family, Lab, LabNode},
};

use super::{EXTERNAL, NODE_PORT, PORT, sane};

fn counted(node: &mut LabNode) -> Vec<Counted> {
    let mut all = Vec::new();
    node.tables.maps.visit_traffic(&mut |counted| all.push(counted)).unwrap();
    all.retain(|counted: &Counted| !counted.traffic.is_none());
    all
}

/// Octets of the headers of a datagram.
fn headers(family: Family) -> u64 {
    8 + if family == Family::V4 { 20 } else { 40 }
}

/// Octets of an echo's answer.
fn answer(name: &str, client: SocketAddr) -> u64 {
    format!("{name} {client}\n").len() as u64
}

#[test]
fn packets_are_counted_exactly_in_both_directions() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        super::node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], EXTERNAL);
        let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let set = u32::from(family == Family::V6) + 1;
        let client = Client::dial(&lab.client, Transport::Udp, to, 0).unwrap();
        let mut expected = PacketTraffic { flows: 1, ..PacketTraffic::default() };
        for n in 1..=5 {
            let heard = client.ask_with(n).unwrap();
            expected.sent_packets += 1;
            expected.sent_bytes += headers(family) + n as u64;
            expected.received_packets += 1;
            expected.received_bytes += headers(family) + answer("pod-2-1", heard.client);
            let all = counted(&mut lab.nodes[0]);
            let found = all.iter().find(|counted| counted.set == set).unwrap();
            assert_eq!(found.traffic.packets, expected, "{family:?}");
            assert_eq!(found.traffic.sockets, SocketTraffic::default());
        }
    }
    assert!(counted(&mut lab.nodes[1]).is_empty(), "the other node only routes");
    sane(&lab);
}

#[test]
fn packets_of_no_service_are_not_counted() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[0].server(family);
        super::node_port(&mut lab.nodes[0], family, Transport::Tcp, &[backend], EXTERNAL);
        let pod = &lab.nodes[1].pods[0];
        let direct = Client::dial(&pod.netns, Transport::Tcp, backend, 0).unwrap();
        assert_eq!(direct.ask().unwrap().name, "pod-1-1");
    }
    assert!(counted(&mut lab.nodes[0]).is_empty());
}

/// A flow outlives its backend's place in the service (B135), and then its backend's id.
#[test]
fn packets_of_a_former_backend_are_not_the_next_ones() {
    let mut lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let pods = [lab.nodes[0].pods[0].server(family), lab.nodes[1].pods[0].server(family)];
        let vip = SocketAddr::new(family.service(10), PORT);
        let tables = &mut lab.nodes[0].tables;
        let set = tables.set();
        let id = tables.backend(set, pods[1]);
        let range = tables.range(set, &[id], super::Windows::all(1));
        tables.flip(set, range);
        tables.frontend(vip, Transport::Tcp.number(), set, 0);
        let netns = &lab.nodes[0].pods[0].netns;
        let client = Client::dial(netns, Transport::Tcp, vip, 0).unwrap();
        client.ask().unwrap();
        let of = |lab: &mut Lab| {
            let all = counted(&mut lab.nodes[0]);
            let of_id = |counted: &&Counted| {
                let its = counted.backend.map(|found| (found.id, found.ipv6));
                its == Some((id, pods[0].is_ipv6()))
            };
            let mine = all.iter().find(of_id).map(|counted| counted.traffic.packets);
            let mut sum = mizzen_agent::traffic::Traffic::default();
            all.iter().filter(|counted| counted.set == set).for_each(|of| sum += of.traffic);
            (mine.unwrap_or_default(), sum.packets)
        };
        let (before, _) = of(&mut lab);
        assert_eq!(before.flows, 1);
        // It left; what it still gets is its own.
        lab.nodes[0].tables.free_backend(id, pods[1]);
        client.ask().unwrap();
        let (left, _) = of(&mut lab);
        assert!(left.sent_bytes > before.sent_bytes && left.received_bytes > before.received_bytes);

        // Another pod of the same service has the id now.
        lab.nodes[0].tables.write_backend(id, set, pods[0]);
        let former = lab.nodes[0].counted(Counter::TrafficOfFormerBackend);
        client.ask().unwrap();
        assert!(lab.nodes[0].counted(Counter::TrafficOfFormerBackend) >= former + 2);
        assert_eq!(of(&mut lab), (PacketTraffic::default(), left), "{family:?}");
    }
    sane(&lab);
}
