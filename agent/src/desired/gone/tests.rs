//! Sequences of snapshots, and what is deleted by each.

mod later;

use super::*;
use crate::{
    desired::{Change, Desired, NodeFacts, Settings},
    kube::state::{self, ClusterState},
    model::{
        endpoints::{Endpoint, EndpointPort, EndpointSlice, Site, SliceNames},
        node::Node,
        service::{Protocol, Service, ServicePort},
    },
};

/// The pod's state as its slice has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Unready,
    Terminating,
    TerminatingUnready,
}
use State::{Ready, Terminating, TerminatingUnready, Unready};

const HERE: &str = "node-1";
const ONE: u8 = 1;
const TWO: u8 = 2;

/// A cluster with the service `s`, whose endpoints the test sets.
struct Cluster {
    desired: Desired,
    snapshot: Snapshot,
}

fn service_key() -> ObjectKey {
    ObjectKey::new("default", "s")
}

fn address(ipv6: bool, last: u8) -> IpAddr {
    if ipv6 { [0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into() } else { [10, 0, 0, last].into() }
}

impl Cluster {
    fn new() -> Self {
        let settings = Settings { node_name: HERE.into(), ..Settings::default() };
        let mut this = Self { desired: Desired::new(settings), snapshot: Snapshot::default() };
        for name in ["node-1", "node-2"] {
            this.add_node(name);
        }
        let port = |name: &str, protocol| ServicePort {
            name: name.into(),
            protocol,
            port: 80,
            node_port: None,
        };
        this.set_service(Service {
            cluster_ips: vec!["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()],
            ports: vec![port("t", Protocol::Tcp), port("u", Protocol::Udp)],
            ..Service::new(service_key())
        });
        this
    }

    fn add_node(&mut self, name: &str) {
        self.snapshot.nodes.insert(name.into(), Arc::new(Node::named(name)));
    }

    fn service(&self) -> Service {
        Service::clone(&self.snapshot.services[&service_key()])
    }

    fn set_service(&mut self, service: Service) {
        self.snapshot.services.insert(service_key(), Arc::new(service));
    }

    /// Writes slice `slice` of each family: endpoints by last octet and state, each of the pod
    /// `pod-OCTET` on `node-OCTET`.
    fn set(&mut self, slice: &str, endpoints: &[(u8, State)]) {
        let named: Vec<_> =
            endpoints.iter().map(|(last, state)| (*last, *state, format!("pod-{last}"))).collect();
        self.set_pods(slice, &named);
    }

    fn set_pods(&mut self, slice: &str, endpoints: &[(u8, State, String)]) {
        for value in slices(slice, endpoints) {
            let key = (service_key(), value.key.name.clone());
            self.snapshot.slices.insert(key, Arc::new(value));
        }
    }

    /// Last octets of the endpoints that are deleted by the snapshot as it is now.
    fn follow(&mut self) -> Vec<u8> {
        self.snapshot.revision += 1;
        octets(&self.desired.update(&self.snapshot, &NodeFacts::default()))
    }

    /// As [`Self::follow`], with time enough for an endpoint to turn up elsewhere.
    fn settled(&mut self) -> Vec<u8> {
        assert_eq!(self.follow(), NOTHING);
        assert_eq!(octets(&self.desired.settle()), NOTHING, "it may have moved");
        octets(&self.desired.settle())
    }

    fn released(&mut self, last: u8) -> Vec<u8> {
        octets(&self.desired.released(&[false, true].map(|ipv6| address(ipv6, last)).into()))
    }
}

/// A slice of each family: endpoints by last octet, state and pod.
fn slices(slice: &str, endpoints: &[(u8, State, String)]) -> [EndpointSlice; 2] {
    [false, true].map(|ipv6| {
        let mut names = SliceNames::default();
        let endpoint = |(last, state, pod): &(u8, State, String)| Endpoint {
            ready: *state == Ready,
            serving: matches!(state, Ready | Terminating),
            terminating: matches!(state, Terminating | TerminatingUnready),
            site: Site::on(&format!("node-{last}")),
            names: names.add(pod, ""),
            ..Endpoint::ready_at(address(ipv6, *last))
        };
        let port = |name: &str, protocol| EndpointPort { name: name.into(), protocol, port: 8080 };
        let name: Arc<str> = format!("{slice}-{ipv6}").into();
        let endpoints = endpoints.iter().map(endpoint).collect();
        EndpointSlice {
            key: ObjectKey::new("default", &name),
            service: service_key(),
            ipv6,
            ports: vec![port("t", Protocol::Tcp), port("u", Protocol::Udp)],
            endpoints,
            names,
            trigger_time: None,
        }
    })
}

const NOTHING: [u8; 0] = [];

/// The endpoints that a change says are deleted: the same in both families and protocols.
fn octets(change: &Change) -> Vec<u8> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for (key, endpoints) in &change.deleted {
        assert!(change.sets.contains_key(key), "a set that is not looked at");
        let last = |(addr, port): &(IpAddr, u16)| {
            assert_eq!((addr.is_ipv6(), *port), (key.ipv6, 8080));
            match addr {
                IpAddr::V4(v4) => v4.octets()[3],
                IpAddr::V6(v6) => v6.octets()[15],
            }
        };
        all.push(endpoints.iter().map(last).collect());
    }
    assert!(all.is_empty() || all.len() == 4, "{:?}", change.deleted);
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
    all.pop().unwrap_or_default()
}

#[test]
fn v8_what_left_after_terminating_is_deleted_and_not_before() {
    for last_state in [Terminating, TerminatingUnready] {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        cluster.set("a", &[(ONE, last_state), (TWO, Ready)]);
        assert_eq!(cluster.settled(), NOTHING, "it only terminates");
        cluster.set("a", &[(TWO, Ready)]);
        assert_eq!(cluster.settled(), [ONE]);
        assert!(!cluster.desired.unsettled());
        assert_eq!(cluster.settled(), NOTHING, "once is enough");
    }
}

#[test]
fn v8_what_leaves_otherwise_keeps_its_flows() {
    for state in [Ready, Unready] {
        let mut cluster = Cluster::new();
        cluster.set("a", &[(ONE, state), (TWO, Ready)]);
        assert_eq!(cluster.follow(), NOTHING);
        cluster.set("a", &[(TWO, Ready)]);
        assert_eq!(cluster.settled(), NOTHING);
    }
}

#[test]
fn v8_an_endpoint_that_moves_between_slices_has_not_left() {
    // At once.
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Terminating), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[(TWO, Ready)]);
    cluster.set("b", &[(ONE, Terminating)]);
    assert_eq!(cluster.settled(), NOTHING);
    // In two steps, the worse order.
    cluster.set("b", &[]);
    assert_eq!(cluster.follow(), NOTHING);
    assert_eq!(octets(&cluster.desired.settle()), NOTHING);
    cluster.set("a", &[(ONE, TerminatingUnready), (TWO, Ready)]);
    assert_eq!(cluster.settled(), NOTHING);
    // It is in two at a time, as while slices are merged.
    cluster.set("b", &[(ONE, Terminating)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.settled(), NOTHING);
    // And then it really leaves.
    cluster.set("b", &[]);
    assert_eq!(cluster.settled(), [ONE]);
}

#[test]
fn v8_a_pod_that_takes_the_address_over_ends_the_wait() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Terminating), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set_pods("a", &[(ONE, Ready, "heir".into()), (TWO, Ready, "pod-2".into())]);
    assert_eq!(cluster.follow(), [ONE]);
    assert!(!cluster.desired.unsettled());
    assert_eq!(cluster.settled(), NOTHING, "the heir lives");
    // The same in one step.
    cluster.set_pods("a", &[(ONE, Terminating, "heir".into()), (TWO, Ready, "pod-2".into())]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set_pods("a", &[(ONE, Ready, "heir-2".into()), (TWO, Ready, "pod-2".into())]);
    assert_eq!(cluster.follow(), [ONE]);
    assert_eq!(cluster.settled(), NOTHING);
}

#[test]
fn v8_pods_in_the_network_of_their_node_share_its_address() {
    let mut cluster = Cluster::new();
    let both = [(ONE, Terminating, "old".to_owned()), (ONE, Ready, "new".to_owned())];
    cluster.set_pods("a", &both);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set_pods("a", &both[1..]);
    assert_eq!(cluster.settled(), NOTHING, "the address is still an endpoint's");
}

#[test]
fn v8_endpoints_of_a_node_that_is_gone_are_deleted() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.snapshot.nodes.remove("node-2");
    assert_eq!(cluster.settled(), NOTHING, "it may come back");
    assert_eq!(octets(&cluster.desired.settle()), [TWO]);
    assert!(!cluster.desired.unsettled());
    // The collector of garbage takes it out of the slice later, without another word.
    cluster.set("a", &[(ONE, Ready)]);
    assert_eq!(cluster.follow(), [TWO]);
    assert_eq!(cluster.settled(), NOTHING);
}

#[test]
fn v8_what_leaves_with_its_node_is_deleted_without_another_wait() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.snapshot.nodes.remove("node-2");
    cluster.set("a", &[(ONE, Ready)]);
    assert_eq!(cluster.settled(), [TWO]);
    assert_eq!(octets(&cluster.desired.settle()), NOTHING, "once is enough");
}

#[test]
fn v8_a_node_object_that_is_made_anew_was_of_a_node_that_lives() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.snapshot.nodes.remove("node-2");
    assert_eq!(cluster.settled(), NOTHING);
    cluster.add_node("node-2");
    assert_eq!(cluster.settled(), NOTHING);
    assert!(!cluster.desired.unsettled());
    // The next time is no continuation of the first.
    cluster.snapshot.nodes.remove("node-2");
    assert_eq!(cluster.settled(), NOTHING);
    assert_eq!(octets(&cluster.desired.settle()), [TWO]);
}

#[test]
fn v8_this_node_lives_whatever_became_of_its_object() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.snapshot.nodes.remove(HERE);
    assert_eq!(cluster.follow(), NOTHING);
    assert!(!cluster.desired.unsettled() && cluster.desired.own_node_deleted());
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.settled(), NOTHING, "a change of labels");
    cluster.add_node(HERE);
    assert_eq!(cluster.follow(), NOTHING);
    assert!(!cluster.desired.own_node_deleted());
}

#[test]
fn v8_a_node_that_was_never_known_tells_nothing() {
    let mut cluster = Cluster::new();
    cluster.snapshot.nodes.remove("node-2");
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[(ONE, Ready)]);
    assert_eq!(cluster.settled(), NOTHING);
}

#[test]
fn v8_a_node_that_comes_back_brings_its_endpoints_back() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.snapshot.nodes.remove("node-2");
    assert_eq!(cluster.settled(), NOTHING);
    assert_eq!(octets(&cluster.desired.settle()), [TWO]);
    cluster.add_node("node-2");
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[(ONE, Ready)]);
    assert_eq!(cluster.settled(), NOTHING, "a change of labels");
}

#[test]
fn v8_an_address_that_this_node_released_is_nobodys() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(ONE, Ready), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    assert_eq!(cluster.released(TWO), NOTHING, "an endpoint of another node");
    assert_eq!(cluster.released(ONE), [ONE]);
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.follow(), [ONE], "whoever dialled it meanwhile");
    // Another pod got it before the slice was written.
    cluster.set("a", &[(ONE, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    assert_eq!(cluster.released(ONE), [ONE]);
    cluster.set_pods("a", &[(ONE, Ready, "heir".into())]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[]);
    assert_eq!(cluster.settled(), NOTHING, "the heir left by a change of labels");
}

#[test]
fn v8_a_service_may_opt_out() {
    let mut cluster = Cluster::new();
    cluster.set_service(Service { reset_on_delete: false, ..cluster.service() });
    cluster.set("a", &[(ONE, Terminating), (TWO, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.settled(), NOTHING);
    cluster.snapshot.nodes.remove("node-2");
    assert_eq!(cluster.settled(), NOTHING);
    assert_eq!(octets(&cluster.desired.settle()), NOTHING);
    cluster.set("a", &[(ONE, Ready)]);
    assert_eq!(cluster.follow(), NOTHING);
    assert_eq!(cluster.released(ONE), NOTHING);
}

#[test]
fn v8_an_agent_that_starts_knows_of_no_endpoint_that_left() {
    let mut cluster = Cluster::new();
    cluster.set("a", &[(TWO, Ready)]);
    assert_eq!(cluster.settled(), NOTHING);
    assert!(!cluster.desired.unsettled());
}

/// A cluster whose events the test says, and an agent that takes in what is published.
struct Told {
    state: ClusterState,
    desired: Desired,
}

impl Told {
    fn new() -> Self {
        let Cluster { desired, snapshot } = Cluster::new();
        let mut state = ClusterState::default();
        let service = Service::clone(&snapshot.services[&service_key()]);
        state.apply(state::Change::Services(state::Event::Apply(service)));
        let mut told = Self { state, desired };
        told.say(&[(ONE, Ready, "pod-1"), (TWO, Ready, "pod-2")]);
        assert_eq!(told.follow(), NOTHING);
        told
    }

    fn say(&mut self, endpoints: &[(u8, State, &str)]) {
        let named: Vec<_> =
            endpoints.iter().map(|(last, state, pod)| (*last, *state, (*pod).into())).collect();
        for slice in slices("a", &named) {
            self.state.apply(state::Change::Slices(state::Event::Apply(slice)));
        }
    }

    fn follow(&mut self) -> Vec<u8> {
        octets(&self.desired.update(&self.state.publication(), &NodeFacts::default()))
    }

    fn settled(&mut self) -> Vec<u8> {
        assert_eq!(self.follow(), NOTHING);
        assert_eq!(octets(&self.desired.settle()), NOTHING, "it may have moved");
        octets(&self.desired.settle())
    }
}

#[test]
fn v8_an_endpoint_that_was_never_seen_to_terminate_is_deleted_all_the_same() {
    // Both events are gathered into one publication, or the one between them is missed.
    for missed in [false, true] {
        let mut told = Told::new();
        told.say(&[(ONE, Terminating, "pod-1"), (TWO, Ready, "pod-2")]);
        if missed {
            told.state.publication();
        }
        told.say(&[(TWO, Ready, "pod-2")]);
        if missed {
            told.state.publication();
        }
        assert_eq!(told.settled(), [ONE], "missed: {missed}");
        // A label change of a later one is none.
        told.say(&[(ONE, Ready, "pod-3"), (TWO, Ready, "pod-2")]);
        assert_eq!(told.follow(), NOTHING);
        told.say(&[(TWO, Ready, "pod-2")]);
        assert_eq!(told.settled(), NOTHING);
    }
}

#[test]
fn v8_an_heir_that_comes_with_the_same_publication_is_told_apart() {
    let mut told = Told::new();
    told.say(&[(ONE, Terminating, "pod-1"), (TWO, Ready, "pod-2")]);
    told.say(&[(ONE, Ready, "heir"), (TWO, Ready, "pod-2")]);
    assert_eq!(told.follow(), [ONE]);
    assert_eq!(told.settled(), NOTHING, "the heir lives");
}

#[test]
fn v8_what_is_gathered_is_no_deletion_where_steps_would_be_none() {
    let mut told = Told::new();
    // It only leaves; it terminates and goes on; another of its address goes on.
    told.say(&[(TWO, Terminating, "pod-2")]);
    told.say(&[(TWO, Ready, "pod-2")]);
    assert_eq!(told.settled(), NOTHING);
    told.say(&[(ONE, Ready, "pod-1"), (ONE, Ready, "same"), (TWO, Ready, "pod-2")]);
    assert_eq!(told.follow(), NOTHING);
    told.say(&[(ONE, Terminating, "pod-1"), (ONE, Ready, "same"), (TWO, Ready, "pod-2")]);
    told.say(&[(ONE, Ready, "same"), (TWO, Ready, "pod-2")]);
    told.say(&[(TWO, Ready, "pod-2")]);
    assert_eq!(told.settled(), NOTHING);
}
