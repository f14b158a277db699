//! Connections by packet to endpoints that are deleted when no service or no slice has them any
//! more (reference V8).

use std::time::Instant;

use mizzen_ebpf_abi::counters::Counter;

use super::*;

/// Lets time pass, until it is known that nothing turns up again.
fn settle(cluster: &mut Cluster) {
    let now = Instant::now();
    for seconds in 0..4 {
        cluster.agent.settle(now + Duration::from_secs(seconds));
        cluster.agent.finish();
    }
}

/// The next segment is answered with a reset, and counted.
fn is_reset(lab: &Lab, client: &Client, case: &str) {
    let before = lab.nodes[0].counted(Counter::ResetGone);
    assert_eq!(client.ask().unwrap_err().kind(), ErrorKind::ConnectionReset, "{case}");
    assert!(lab.nodes[0].counted(Counter::ResetGone) > before, "{case}");
}

/// A namespace is deleted, or a manifest: the service goes while its pod terminates.
#[test]
fn v8_connections_by_packet_outlive_their_service_until_their_endpoint_is_deleted() {
    let lab = Lab::new([1, 1]);
    for family in FAMILIES {
        for node in [1, 2] {
            let case = format!("{family:?}, a pod of node {node}");
            let pod = &lab.nodes[usize::from(node) - 1].pods[0];
            let mut cluster = Cluster::new(&lab, family, |_| {});
            cluster.lead_to(&[(node, pod)]);
            let to = SocketAddr::new(family.wire(OWN), NODE_PORT);
            let client = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
            client.ask().expect(&case);
            let terminating =
                |endpoint| Endpoint { ready: false, serving: true, terminating: true, ..endpoint };
            cluster.say(&[(node, pod)], terminating);
            cluster.follow();
            cluster.snapshot.services.clear();
            cluster.follow();
            settle(&mut cluster);
            client.ask().expect("it only terminates");
            cluster.snapshot.slices.clear();
            cluster.follow();
            settle(&mut cluster);
            is_reset(&lab, &client, &case);
        }
    }
    sane(&lab);
}

/// Somebody changed the labels of a pod, and deletes it later.
#[test]
fn v8_connections_by_packet_to_a_pod_that_left_and_lived_end_when_it_is_deleted() {
    let lab = Lab::new([1, 0]);
    for family in FAMILIES {
        let case = format!("{family:?}");
        let pod = &lab.nodes[0].pods[0];
        let mut cluster = Cluster::new(&lab, family, |_| {});
        cluster.lead_to(&[(1, pod)]);
        let to = SocketAddr::new(family.wire(OWN), NODE_PORT);
        let client = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
        client.ask().expect(&case);
        cluster.lead_to(&[]);
        settle(&mut cluster);
        client.ask().expect("it lives");
        cluster.agent.released(&[pod.address(family)].into());
        cluster.agent.finish();
        is_reset(&lab, &client, &case);
    }
    sane(&lab);
}

/// The agent ends while the pod drains, and another one sees it go; or nobody does.
#[test]
fn v8_connections_by_packet_to_a_pod_that_drains_end_with_it_whichever_agent_runs() {
    let lab = Lab::new([1, 1]);
    let (pod, other) = (&lab.nodes[0].pods[0], &lab.nodes[1].pods[0]);
    for family in FAMILIES {
        for seen in [true, false] {
            let case = format!("{family:?}, seen: {seen}");
            let mut cluster = Cluster::new(&lab, family, |_| {});
            cluster.lead_to(&[(1, pod)]);
            let to = SocketAddr::new(family.wire(OWN), NODE_PORT);
            let client = Client::dial(&lab.client, Transport::Tcp, to, 0).unwrap();
            client.ask().expect(&case);
            cluster.say(&[(1, pod), (2, other)], |endpoint| {
                let terminating = endpoint.address == pod.address(family);
                Endpoint { ready: !terminating, serving: true, terminating, ..endpoint }
            });
            cluster.follow();
            cluster.restart(&lab);
            if seen {
                cluster.follow();
                settle(&mut cluster);
                client.ask().expect("it only terminates");
            }
            cluster.lead_to(&[(2, other)]);
            if seen {
                settle(&mut cluster);
            }
            is_reset(&lab, &client, &case);
        }
    }
    sane(&lab);
}
