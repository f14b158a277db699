//! Services whose endpoints are not there, come, go and change, as a client by packet meets them.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use mizzen_agent::apply::maps::Maps as _;
use mizzen_ebpf_abi::{
    addr::Addr,
    counters::Counter,
    node::NodeAddr,
    service::{FrontendKey, frontend_flags},
};
use mizzen_tests::{
    echo::{Client, Echo, TRANSPORTS, Transport, ask, ask_in_vain},
    lab::{FAMILIES, Family, Lab},
    tables::Windows,
    wait::until,
};

use super::{EXTERNAL, LOCAL, NODE_PORT, PORT, cluster_ip, node_port, sane};

/// A load balancer's address and an external IP are the same to the tables; both with each policy.
#[test]
fn b12_b13_b15_b16_addresses_of_every_kind_without_endpoints_refuse() {
    let mut lab = Lab::new([1, 0]);
    lab.route_services();
    for family in FAMILIES {
        for transport in TRANSPORTS {
            node_port(&mut lab.nodes[0], family, transport, &[], EXTERNAL);
            let tables = &mut lab.nodes[0].tables;
            let set = tables.set_of(&[]);
            let addresses = [3, 4].map(|last| SocketAddr::new(family.load_balancer(last), PORT));
            for (address, policy) in addresses.into_iter().zip([0, frontend_flags::KEEP_SOURCE]) {
                let flags = frontend_flags::EXTERNAL | policy;
                tables.frontend(address, transport.number(), set, flags);
            }
            let node = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            for from in [&lab.nodes[0].pods[0].netns, &lab.client] {
                for to in [addresses[0], addresses[1], node] {
                    let refused = ask_in_vain(from, transport, to);
                    assert_eq!(refused, ErrorKind::ConnectionRefused, "{transport:?} {to}");
                }
            }
        }
    }
    assert!(lab.nodes[0].counted(Counter::Rejected) >= 24);
}

/// A way to a service: who dials, what, and the frontend that it is.
struct Way {
    from_pod: bool,
    to: SocketAddr,
    frontend: SocketAddr,
    flags: u32,
}

fn ways(lab: &Lab, family: Family) -> [Way; 4] {
    let vip = SocketAddr::new(family.service(10), PORT);
    let balancer = SocketAddr::new(family.load_balancer(1), PORT);
    let keeping = SocketAddr::new(family.load_balancer(2), PORT);
    let port = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
    let any = SocketAddr::new(family.any(), NODE_PORT);
    let local = frontend_flags::EXTERNAL | frontend_flags::KEEP_SOURCE;
    [
        Way { from_pod: true, to: vip, frontend: vip, flags: 0 },
        Way { from_pod: false, to: balancer, frontend: balancer, flags: frontend_flags::EXTERNAL },
        Way { from_pod: false, to: keeping, frontend: keeping, flags: local },
        Way { from_pod: false, to: port, frontend: any, flags: LOCAL },
    ]
}

/// Asks until this one answers; the port stays the same.
fn answered_by(client: &Client, name: &str, case: &str) {
    until("an answer", Duration::from_secs(10), || match client.ask() {
        Ok(answer) if answer.name == name => Ok(()),
        other => Err(format!("{case}: {other:?} instead of {name}")),
    });
}

/// One datagram socket, from before its service is there until after it is gone: nothing that an
/// earlier datagram met is held against a later one. Endpoints are on this node, so that the
/// policies Local go the same way.
#[test]
fn b101_b102_b103_b105_b106_b107_b109_a_datagram_socket_follows_its_service() {
    let mut lab = Lab::new([3, 0]);
    lab.route_services();
    for family in FAMILIES {
        for way in ways(&lab, family) {
            let case = format!("{family:?} {}", way.to);
            let from = if way.from_pod { &lab.nodes[0].pods[0].netns } else { &lab.client };
            let client = Client::dial_in_vain(from, Transport::Udp, way.to).unwrap();
            let backends = [1, 2].map(|pod: usize| lab.nodes[0].pods[pod].server(family));
            client.ask().expect_err("B109: no service has the address yet");

            let tables = &mut lab.nodes[0].tables;
            let set = tables.set();
            let lead = |lab: &mut Lab, to: Option<usize>| {
                let tables = &mut lab.nodes[0].tables;
                let ids: Vec<u32> =
                    to.into_iter().map(|pod| tables.backend(set, backends[pod])).collect();
                let range = tables.range(set, &ids, Windows::all(ids.len()));
                tables.flip(set, range);
                ids.first().copied()
            };
            lead(&mut lab, None);
            lab.nodes[0].tables.frontend(way.frontend, 17, set, way.flags);
            let refused = client.ask().expect_err("B102: no endpoint is ready").kind();
            assert_eq!(refused, ErrorKind::ConnectionRefused, "{case}");

            let first = lead(&mut lab, Some(0)).unwrap();
            answered_by(&client, "pod-1-2", &case);
            let second = lead(&mut lab, Some(1)).unwrap();
            lab.nodes[0].tables.free_backend(first, backends[0]);
            answered_by(&client, "pod-1-3", &format!("B101, B103, B107 {case}"));
            lead(&mut lab, None);
            lab.nodes[0].tables.free_backend(second, backends[1]);
            until("the refusal", Duration::from_secs(10), || match client.ask() {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => Err(format!("{case}: {other:?}")),
            });
            let third = lead(&mut lab, Some(0)).unwrap();
            answered_by(&client, "pod-1-2", &format!("B105 {case}"));

            // The service goes, its pod stays: whoever has that address next is not to be met.
            let key = FrontendKey::new(Addr::from(way.frontend.ip()), way.frontend.port(), 17);
            let tables = &mut lab.nodes[0].tables;
            tables.maps.remove_frontends(&[key]).unwrap();
            tables.free_backend(third, backends[0]);
            let before = lab.nodes[0].counted(Counter::PacketTranslated);
            client.ask().expect_err("B106: the service is gone");
            assert_eq!(lab.nodes[0].counted(Counter::PacketTranslated), before, "B106 {case}");
        }
    }
    sane(&lab);
}

/// As with a DNS cache on the node: it listens at the cluster's DNS address, which a device of its
/// own has, at ports that the service lacks. Those are its own business, the service's ports the
/// service's.
#[test]
fn f50_a_cluster_ip_that_the_node_holds_is_its_own_at_other_ports() {
    let mut lab = Lab::new([2, 0]);
    lab.nodes[0].node.netns.ip("link add nodelocaldns type bridge");
    lab.nodes[0].node.netns.ip("link set nodelocaldns up");
    for family in FAMILIES {
        let backend = lab.nodes[0].pods[1].server(family);
        let held = family.service(10);
        let (own, unused) = (SocketAddr::new(held, 9253), SocketAddr::new(held, 9254));
        let (length, nodad) = if family == Family::V4 { (32, "") } else { (128, "nodad") };
        let node = &lab.nodes[0].node.netns;
        node.ip(&format!("addr add {held}/{length} dev nodelocaldns {nodad}"));
        let _cache = Echo::start(node, own, "node");
        lab.nodes[0].tables.guard(held);
        for transport in TRANSPORTS {
            let vip = cluster_ip(&mut lab.nodes[0], family, transport, &[backend]);
            let pod = &lab.nodes[0].pods[0];
            let refused = ask_in_vain(&pod.netns, transport, own);
            assert_eq!(refused, ErrorKind::ConnectionRefused, "while the agent knows it not");

            let before = lab.nodes[0].counted(Counter::Rejected);
            lab.nodes[0].tables.maps.put_node_addrs(&[(held.into(), NodeAddr::default())]).unwrap();
            let answer = ask(&pod.netns, transport, own).unwrap();
            assert_eq!(answer.name, "node", "{family:?} {transport:?}");
            assert_eq!(answer.client.ip(), pod.address(family));
            let refused = ask_in_vain(&pod.netns, transport, unused);
            assert_eq!(refused, ErrorKind::ConnectionRefused, "by the node's own stack");
            assert_eq!(lab.nodes[0].counted(Counter::Rejected), before);
            assert_eq!(ask(&pod.netns, transport, vip).unwrap().name, "pod-1-2");
            lab.nodes[0].tables.maps.remove_node_addrs(&[held.into()]).unwrap();
        }
    }
    sane(&lab);
}
