//! Endpoints that are deleted when no service or no slice has them any more.

use super::*;

/// Last octets of the endpoints of TCP that a change says are deleted: those of UDP go with their
/// service (B106).
fn of_tcp(change: &Change) -> Vec<u8> {
    let of_tcp = change.deleted.iter().filter(|(key, _)| key.protocol == Protocol::Tcp);
    let all: Vec<Vec<u8>> = of_tcp
        .map(|(key, endpoints)| {
            assert!(change.sets.contains_key(key), "a set that is not looked at");
            let is = |(addr, _): &(IpAddr, u16)| {
                let all = [ONE, TWO].into_iter();
                all.filter(|last| *addr == address(key.ipv6, *last)).sum()
            };
            endpoints.iter().map(is).collect()
        })
        .collect();
    assert!(matches!(&all[..], [] | [_, _]) && all.windows(2).all(|two| two[0] == two[1]));
    all.into_iter().next().unwrap_or_default()
}

impl Cluster {
    fn follow_tcp(&mut self) -> Vec<u8> {
        self.snapshot.revision += 1;
        of_tcp(&self.desired.update(&self.snapshot, &NodeFacts::default()))
    }

    /// As [`Cluster::settled`], of TCP.
    fn settled_tcp(&mut self) -> Vec<u8> {
        assert_eq!(self.follow_tcp(), NOTHING);
        assert_eq!(of_tcp(&self.desired.settle()), NOTHING, "it may have moved");
        of_tcp(&self.desired.settle())
    }

    fn released_tcp(&mut self, last: u8) -> Vec<u8> {
        of_tcp(&self.desired.released(&[false, true].map(|ipv6| address(ipv6, last)).into()))
    }

    /// Whether nothing is remembered of sets.
    fn keeps_nothing(&self) -> bool {
        self.desired.everything().sets.is_empty()
    }
}

/// What happens to the service and its slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    Service,
    Slices,
    /// The endpoint leaves its slice.
    Endpoint,
}

fn happens(cluster: &mut Cluster, events: &[Goes]) {
    for event in events {
        match event {
            Goes::Service => cluster.snapshot.services.clear(),
            Goes::Slices => cluster.snapshot.slices.clear(),
            Goes::Endpoint => cluster.set("a", &[(TWO, Ready)]),
        }
    }
}

#[test]
fn v8_what_terminated_is_deleted_whether_its_service_or_its_slices_go_first() {
    use Goes::{Endpoint, Service, Slices};
    for steps in [
        &[&[Service][..], &[Slices]][..],
        &[&[Slices], &[Service]],
        &[&[Service, Slices]],
        &[&[Service], &[Endpoint], &[Slices]],
        &[&[Endpoint], &[Service], &[Slices]],
    ] {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, Terminating), (TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        for events in steps {
            happens(&mut cluster, events);
            assert_eq!(cluster.follow_tcp(), NOTHING, "{steps:?}");
        }
        assert_eq!(cluster.settled_tcp(), [ONE], "{steps:?}");
        assert_eq!(cluster.settled_tcp(), NOTHING, "{steps:?}: once is enough");
        assert!(!cluster.desired.unsettled());
        assert!(cluster.keeps_nothing(), "{steps:?}");
    }
}

#[test]
fn v8_a_service_that_goes_while_its_endpoint_only_terminates_resets_nobody() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Terminating), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.snapshot.services.clear();
    assert_eq!(cluster.settled_tcp(), NOTHING);
    assert!(!cluster.keeps_nothing());
    // It is back, and they are its again.
    let back = Cluster::new().service();
    cluster.set_service(back);
    assert_eq!(cluster.settled_tcp(), NOTHING);
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.settled_tcp(), [ONE]);
}

#[test]
fn v8_a_port_that_a_service_has_no_more_is_remembered_likewise() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Terminating), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    let mut service = cluster.service();
    service.ports.retain(|port| port.protocol == Protocol::Udp);
    cluster.set_service(service);
    assert_eq!(cluster.settled_tcp(), NOTHING);
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.settled_tcp(), [ONE]);
}

#[test]
fn v8_a_service_that_opted_out_before_it_went_is_not_remembered() {
    let mut cluster = Cluster::new();
    cluster.set_service(Service { reset_on_delete: false, ..cluster.service() });
    cluster.set("a", &[(ONE, Terminating), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.snapshot.services.clear();
    assert_eq!(cluster.settled_tcp(), NOTHING);
    assert!(cluster.keeps_nothing());
    cluster.snapshot.slices.clear();
    assert_eq!(cluster.settled_tcp(), NOTHING);
}

#[test]
fn v8_what_left_and_lived_is_deleted_when_its_address_is_released() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[]);
    assert_eq!(cluster.settled(), NOTHING, "changes of labels");
    assert_eq!(cluster.released(TWO), NOTHING, "it was on another node");
    assert_eq!(cluster.released(ONE), [ONE]);
    assert_eq!(cluster.released(ONE), NOTHING, "once is enough");
    // It came back, and left by being terminated.
    cluster.set("a", &[(ONE, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[]);
    assert_eq!(cluster.settled(), NOTHING);
    cluster.set("a", &[(ONE, Terminating)]);
    assert_eq!(cluster.settled(), NOTHING);
    cluster.set("a", &[]);
    assert_eq!(cluster.settled(), [ONE]);
    assert_eq!(cluster.released(ONE), NOTHING);
}

#[test]
fn v8_what_outlived_its_service_is_deleted_when_its_address_is_released() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.snapshot.services.clear();
    assert_eq!(cluster.settled_tcp(), NOTHING);
    cluster.snapshot.slices.clear();
    assert_eq!(cluster.settled_tcp(), NOTHING);
    assert_eq!(cluster.released_tcp(ONE), [ONE]);
    assert!(cluster.keeps_nothing());
}

#[test]
fn v8_what_left_and_lived_is_deleted_when_another_pod_has_its_address() {
    let another = |cluster: &mut Cluster, service: &ObjectKey, pod: &str| {
        for slice in slices("heirs", &[(ONE, Ready, pod.into())]) {
            let slice = EndpointSlice { service: service.clone(), ..slice };
            let key = (service.clone(), slice.key.name.clone());
            cluster.snapshot.slices.insert(key, Arc::new(slice));
        }
    };
    for service in [service_key(), ObjectKey::new("default", "other")] {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        cluster.set("a", &[(TWO, Ready)]);
        assert_eq!(cluster.settled(), NOTHING);
        if service != service_key() {
            another(&mut cluster, &service, "pod-1");
            assert_eq!(cluster.settled(), NOTHING, "the same pod, in another service");
        }
        another(&mut cluster, &service, "heir");
        assert_eq!(cluster.follow(), [ONE], "{service}");
        assert_eq!(cluster.settled(), NOTHING, "{service}: the heir lives");
    }
}

/// Pods in the node's network come and go at one address, and none of them tells of another.
#[test]
fn v8_what_shares_the_nodes_address_is_not_remembered() {
    let addresses = [false, true].map(|ipv6| address(ipv6, ONE));
    let local = |addr| LocalAddress { addr, ifindex: 2 };
    let facts = NodeFacts { addresses: addresses.map(local).into(), ..NodeFacts::default() };
    let mut cluster = Cluster::new();
    let mut see = |endpoints: &[(u8, State, String)]| {
        cluster.set_pods("a", endpoints);
        cluster.snapshot.revision += 1;
        octets(&cluster.desired.update(&cluster.snapshot, &facts))
    };
    assert_eq!(see(&[(ONE, Ready, "old".into())]), NOTHING);
    assert_eq!(see(&[]), NOTHING);
    assert_eq!(see(&[(ONE, Ready, "new".into())]), NOTHING);
}
