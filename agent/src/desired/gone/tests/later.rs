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

    /// What is remembered of the sets of a family that nothing leads to.
    fn tombs(&self, ipv6: bool) -> Vec<(Protocol, u8, Idle)> {
        let mut tombs = Vec::new();
        for (key, set) in self.desired.everything().sets {
            let Some(set) = set.filter(|set| key.ipv6 == ipv6 && set.is_unled()) else { continue };
            for (at, why) in &set.idle {
                let last = [ONE, TWO].into_iter().find(|last| address(ipv6, *last) == at.0);
                tombs.push((key.protocol, last.unwrap(), *why));
            }
        }
        tombs
    }

    /// Whether no endpoint of any set is idle.
    fn has_no_idle(&self) -> bool {
        self.desired.everything().sets.values().flatten().all(|set| set.idle.is_empty())
    }

    /// Has its service want resets or not, and gives what that deletes of TCP.
    fn opts(&mut self, service: Service, reset_on_delete: bool) -> Vec<u8> {
        self.set_service(Service { reset_on_delete, ..service });
        self.follow_tcp()
    }

    /// Adds a pod with the address of the first endpoint to a service.
    fn add_another(&mut self, service: &ObjectKey, pod: &str) {
        for slice in slices("heirs", &[(ONE, Ready, pod.into())]) {
            let slice = EndpointSlice { service: service.clone(), ..slice };
            let key = (service.clone(), slice.key.name.clone());
            self.snapshot.slices.insert(key, Arc::new(slice));
        }
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
    assert_eq!(cluster.follow_tcp(), NOTHING);
    assert!(!cluster.desired.unsettled());
    assert_eq!(cluster.settled_tcp(), NOTHING);
}

/// What left its service before it opted out, however it left.
#[test]
fn v8_what_is_remembered_is_forgotten_when_its_service_opts_out() {
    for state in [Ready, Terminating] {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, state), (TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        cluster.set("a", &[(TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        assert!(!cluster.has_no_idle(), "it is remembered");
        // To want them again brings nothing back.
        for wants in [false, true] {
            let service = cluster.service();
            assert_eq!(cluster.opts(service, wants), NOTHING);
            assert!(!cluster.desired.unsettled() && cluster.has_no_idle());
            assert_eq!(cluster.settled(), NOTHING);
            assert_eq!(cluster.released(ONE), NOTHING);
        }
    }
}

/// An endpoint that was given up, and is in its slice yet.
#[test]
fn v8_a_doom_is_forgotten_when_the_service_opts_out() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    assert_eq!(cluster.released(ONE), [ONE]);
    for wants in [false, true] {
        let service = cluster.service();
        assert_eq!(cluster.opts(service, wants), NOTHING);
    }
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.settled(), NOTHING, "a change of labels, for all that is known");
}

#[test]
fn v8_sets_that_are_kept_are_dropped_when_their_service_opts_out() {
    // It lost a port, or it went and is back.
    for goes in [false, true] {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, Terminating), (TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        let mut service = cluster.service();
        service.ports.retain(|port| port.protocol == Protocol::Udp);
        if goes {
            cluster.snapshot.services.clear();
        } else {
            cluster.set_service(service.clone());
        }
        assert_eq!(cluster.settled_tcp(), NOTHING);
        let kept = [(Protocol::Tcp, ONE, Idle::Terminating), (Protocol::Tcp, TWO, Idle::Unready)];
        assert_eq!([false, true].map(|ipv6| cluster.tombs(ipv6)), [kept, kept]);
        for wants in [false, true] {
            assert_eq!(cluster.opts(service.clone(), wants), NOTHING);
            assert!([false, true].iter().all(|ipv6| cluster.tombs(*ipv6).is_empty()));
        }
        cluster.set("a", &[(TWO, Ready)]);
        assert_eq!(cluster.settled_tcp(), NOTHING, "goes: {goes}");
    }
}

/// The service opts out by the very snapshot that shows somebody else at the address, whichever of
/// the two services is looked at first.
#[test]
fn v8_a_service_that_opts_out_as_its_strays_are_inherited_has_none_reset() {
    for service in ["another", "s", "z"].map(|name| ObjectKey::new("default", name)) {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        cluster.set("a", &[(TWO, Ready)]);
        assert_eq!(cluster.settled(), NOTHING);
        cluster.add_another(&service, "heir");
        cluster.set_service(Service { reset_on_delete: false, ..cluster.service() });
        assert_eq!(cluster.follow(), NOTHING, "{service}");
        assert_eq!(cluster.released(ONE), NOTHING, "{service}");
    }
}

/// The record of each tells the next agent.
#[test]
fn v8_what_a_service_leaves_behind_says_why_it_is_kept() {
    for (state, leaves, why) in [
        (Terminating, false, Idle::Terminating),
        (Ready, false, Idle::Unready),
        (Unready, false, Idle::Unready),
        (Terminating, true, Idle::Terminating),
        (Ready, true, Idle::Stray),
    ] {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, state)]);
        assert_eq!(cluster.follow(), NOTHING);
        cluster.snapshot.services.clear();
        assert_eq!(cluster.follow_tcp(), NOTHING);
        if leaves {
            cluster.snapshot.slices.clear();
            assert_eq!(cluster.follow_tcp(), NOTHING);
        }
        for ipv6 in [false, true] {
            assert_eq!(cluster.tombs(ipv6), [(Protocol::Tcp, ONE, why)], "leaves: {leaves}");
        }
    }
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
    for service in [service_key(), ObjectKey::new("default", "other")] {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        cluster.set("a", &[(TWO, Ready)]);
        assert_eq!(cluster.settled(), NOTHING);
        if service != service_key() {
            cluster.add_another(&service, "pod-1");
            assert_eq!(cluster.settled(), NOTHING, "the same pod, in another service");
        }
        cluster.add_another(&service, "heir");
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

/// The addresses of the node are others than that of the pod.
#[test]
fn v8_a_pod_with_an_address_of_its_own_is_remembered_beside_those_of_the_node() {
    for last in [0, 200] {
        let own = [false, true].map(|ipv6| LocalAddress { addr: address(ipv6, last), ifindex: 2 });
        let facts = NodeFacts { addresses: own.into(), ..NodeFacts::default() };
        let mut cluster = Cluster::new();
        for endpoints in [&[(ONE, Ready)][..], &[]] {
            cluster.set("a", endpoints);
            cluster.snapshot.revision += 1;
            assert_eq!(octets(&cluster.desired.update(&cluster.snapshot, &facts)), NOTHING);
        }
        assert_eq!(cluster.released(ONE), [ONE], "{last}");
    }
}

#[test]
fn v8_another_pod_is_one_of_which_all_names_differ() {
    for (before, after, is_another) in [
        (&["a"][..], &["b"][..], true),
        (&["a"], &["a"], false),
        (&["a"], &["a", "b"], false),
        (&["a"], &[], false),
        (&[], &["a"], false),
        (&[], &[], false),
    ] {
        let names = |pods: &[&'static str]| -> BTreeSet<PodName<'static>> {
            pods.iter().copied().map(PodName::from).collect()
        };
        assert_eq!(another_pod(&names(before), &names(after)), is_another, "{before:?}, {after:?}");
    }
}
