//! Packets: between pods, between nodes, and between the two, in both families.

use std::net::IpAddr;

use mizzen_tests::wait::until;

use super::bed::{LIMIT, Node, Pod, model, reach, snapshot, two_nodes};

#[test]
fn cni_23_pods_of_a_node_reach_each_other() {
    let node = Node::alone();
    let (mut first, mut second) = (Pod::new(), Pod::new());
    node.add(&mut first);
    node.add(&mut second);
    for (address, source) in second.addresses.iter().zip(&first.addresses) {
        assert_eq!(reach(first.netns(), second.netns(), *address), *source);
    }
}

#[test]
fn pods_and_nodes_reach_each_other_across_nodes() {
    let (a, b) = two_nodes();
    let (mut on_a, mut on_b) = (Pod::new(), Pod::new());
    a.add(&mut on_a);
    b.add(&mut on_b);
    let node_a: Vec<IpAddr> = model("a", 1).internal_ips;
    let node_b: Vec<IpAddr> = model("b", 2).internal_ips;
    for family in [0, 1] {
        let (pod_a, pod_b) = (on_a.addresses[family], on_b.addresses[family]);
        // Pod to pod, and no address is translated.
        assert_eq!(reach(on_a.netns(), on_b.netns(), pod_b), pod_a);
        assert_eq!(reach(on_b.netns(), on_a.netns(), pod_a), pod_b);
        // Pod to its own node and to the other, and back.
        assert_eq!(reach(on_a.netns(), &a.netns, node_a[family]), pod_a);
        assert_eq!(reach(on_a.netns(), &b.netns, node_b[family]), pod_a);
        assert_eq!(reach(&a.netns, on_a.netns(), pod_a), node_a[family]);
        assert_eq!(reach(&b.netns, on_a.netns(), pod_a), node_b[family]);
    }
}

#[test]
fn routes_follow_the_nodes() {
    let (a, _b) = two_nodes();
    let routes = || a.netns.ip("route show proto 77") + &a.netns.ip("-6 route show proto 77");
    let expected = [
        "10.244.2.0/24 via 172.30.0.12 dev eth0",
        "fd00:244:2::/64 via fd00:30::12 dev eth0",
        "unreachable 10.244.1.0/24",
        "unreachable fd00:244:1::/64",
    ];
    let has_all = || {
        let present = routes();
        match expected.iter().find(|route| !present.contains(*route)) {
            None => Ok(()),
            Some(route) => Err(format!("no {route} in:\n{present}")),
        }
    };
    has_all().unwrap();
    // Removed by hand: healed.
    a.netns.ip("route del 10.244.2.0/24");
    a.netns.ip("-6 route del fd00:244:2::/64");
    until("healed routes", LIMIT, has_all);
    // The node has gone: its routes go.
    a.snapshots.send_replace(snapshot(&[model("a", 1)]).into());
    until("removed routes", LIMIT, || match routes() {
        text if text.contains("10.244.2.0") || text.contains("fd00:244:2::") => Err(text),
        _ => Ok(()),
    });
    // It is back with another address on the link.
    let mut moved = model("b", 2);
    moved.internal_ips = vec!["172.30.0.77".parse().unwrap(), "fd00:30::77".parse().unwrap()];
    a.snapshots.send_replace(snapshot(&[model("a", 1), moved]).into());
    until("routes to the new address", LIMIT, || match routes() {
        text if text.contains("via 172.30.0.77") && text.contains("via fd00:30::77") => Ok(()),
        text => Err(text),
    });
}

#[test]
fn a_route_of_somebody_else_is_left_and_reported() {
    let mut a = Node::new("a", &[model("a", 1), model("b", 2)]);
    a.netns.ip("link add eth0 type bridge");
    a.netns.ip("link set eth0 up");
    a.netns.ip("addr add 172.30.0.11/24 dev eth0");
    a.netns.ip("addr add fd00:30::11/64 dev eth0 nodad");
    a.netns.ip("route add 10.244.2.0/24 via 172.30.0.99");
    a.start();
    a.wait_state("a report of the route", |state| format!("{state:?}").contains("10.244.2.0/24"));
    assert!(a.netns.ip("route show 10.244.2.0/24").contains("via 172.30.0.99"));
    assert!(a.netns.ip("-6 route show fd00:244:2::/64").contains("via fd00:30::12"));
}

#[test]
fn an_address_without_a_pod_is_unreachable_at_once() {
    let (node, _other) = two_nodes();
    let mut pod = Pod::new();
    node.add(&mut pod);
    // The kernel answers an unreachable route with "host unreachable" in IPv4 (RFC 792) and with
    // "no route" in IPv6 (RFC 4443, 3.1).
    let expected = [("10.244.1.200", libc::EHOSTUNREACH), ("fd00:244:1::200", libc::ENETUNREACH)];
    for (address, errno) in expected {
        let address: IpAddr = address.parse().unwrap();
        let error = pod.netns().run(|| {
            std::net::TcpStream::connect_timeout(&(address, 80).into(), LIMIT).unwrap_err()
        });
        assert_eq!(error.raw_os_error(), Some(errno), "{address}: {error}");
    }
}
