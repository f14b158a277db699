//! Records of endpoints that are deleted, by the in-memory tables.

use std::net::{IpAddr, SocketAddr};

use mizzen_ebpf_abi::service::{Backend4, RESERVED, backend_flags};

use super::*;
use crate::{
    diff::{plan::Reset, restore::Record},
    model::{
        ObjectKey,
        endpoints::{EndpointSlice, Site},
        service::{Protocol, Service},
    },
};

/// The cluster of [`one_service`] with the states of its first endpoints given: `r`eady,
/// `u`nready, `n`ot serving, `t`erminating, or absent.
pub(super) fn cluster(states: &str) -> Snapshot {
    cluster_of(states, false)
}

/// The same in a family.
pub(super) fn cluster_of(states: &str, ipv6: bool) -> Snapshot {
    let count = u8::try_from(states.len()).unwrap();
    let mut snapshot = World::of_one_service(count, ipv6).snapshot();
    let edit = |slice: &Arc<EndpointSlice>| {
        let mut slice = EndpointSlice::clone(slice);
        let mut states = states.chars();
        slice.endpoints.retain_mut(|endpoint| {
            let state = states.next().unwrap();
            endpoint.ready = state == 'r';
            endpoint.serving = state != 'n';
            endpoint.terminating = state == 't';
            state != '-'
        });
        Arc::new(slice)
    };
    let filled = snapshot.slices.iter().filter(|(_, slice)| !slice.endpoints.is_empty());
    let filled: Vec<_> = filled.map(|(key, slice)| (key.clone(), edit(slice))).collect();
    assert_eq!(filled.len(), 1);
    snapshot.slices.extend(filled);
    snapshot
}

/// How a cluster differs from [`cluster_of`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) ipv6: bool,
    pub(super) protocol: Protocol,
    /// Whether the endpoints are on this node.
    pub(super) local: bool,
    /// Whether the service wants its flows left alone.
    pub(super) spares: bool,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = {
        let tcp = Self { ipv6: false, protocol: Protocol::Tcp, local: false, spares: false };
        let udp = Self { protocol: Protocol::Udp, ..tcp };
        [tcp, udp, Self { ipv6: true, ..tcp }, Self { ipv6: true, ..udp }]
    };

    pub(super) fn cluster(self, states: &str) -> Snapshot {
        let mut snapshot = cluster_of(states, self.ipv6);
        let services = snapshot.services.iter().map(|(key, service)| {
            let mut service = Service::clone(service);
            service.reset_on_delete = !self.spares;
            service.ports.iter_mut().for_each(|port| port.protocol = self.protocol);
            (key.clone(), Arc::new(service))
        });
        snapshot.services = services.collect();
        let slices = snapshot.slices.iter().map(|(key, slice)| {
            let mut slice = EndpointSlice::clone(slice);
            slice.ports.iter_mut().for_each(|port| port.protocol = self.protocol);
            for endpoint in slice.endpoints.iter_mut().filter(|_| self.local) {
                endpoint.site = Site::on("node-0");
            }
            (key.clone(), Arc::new(slice))
        });
        snapshot.slices = slices.collect();
        snapshot
    }

    /// An agent that brought empty tables to this.
    pub(super) fn following(self, states: &str) -> Agent {
        let mut agent = Agent::start(MemoryMaps::default(), &self.cluster(states));
        let _ = agent.resync();
        agent
    }
}

/// The record with id 1.
pub(super) fn first(agent: &Agent) -> Record {
    records(agent.maps.tables()).find(|record| record.id == 1).unwrap()
}

impl Agent {
    /// Follows a snapshot; whom that resets.
    pub(super) fn meet(&mut self, snapshot: &Snapshot) -> Vec<Reset> {
        let change = self.desired.update(snapshot, &NodeFacts::default());
        self.execute(&change)
    }

    /// The records of all ids that were in use, in order.
    fn records(&self) -> Vec<Backend4> {
        self.maps.tables().backends4.values().copied().collect()
    }

    fn execute(&mut self, change: &Change) -> Vec<Reset> {
        let plan = self.plan(change);
        apply(&plan, &mut self.maps).unwrap();
        assert_exact(self);
        plan.resets
    }

    fn see(&mut self, states: &str) -> Vec<Reset> {
        self.meet(&cluster(states))
    }

    pub(super) fn settle(&mut self) -> Vec<Reset> {
        let _ = self.desired.settle();
        let change = self.desired.settle();
        self.execute(&change)
    }

    fn generation(&self) -> u32 {
        self.maps.tables().sets[&1].generation()
    }
}

fn following(states: &str) -> Agent {
    let mut agent = Agent::start(MemoryMaps::default(), &cluster(states));
    let _ = agent.resync();
    agent
}

const GONE: u16 = backend_flags::FREED | backend_flags::GONE;

#[test]
fn v8_the_record_of_a_deleted_endpoint_says_so() {
    let mut agent = following("rr");
    let first = agent.records()[0];
    assert_eq!(agent.see("tr"), [], "it is out of the windows, and no more");
    let flags = backend_flags::FREED | backend_flags::TERMINATING;
    assert_eq!(agent.records()[0], Backend4 { flags, set: first.set | RESERVED, ..first });
    assert_eq!(agent.see("-r"), []);
    let (calls, generation) = (agent.maps.calls(), agent.generation());
    let resets = agent.settle();
    let endpoint = SocketAddr::new(IpAddr::from(first.addr), u16::from_be_bytes(first.port));
    let (set, protocol, backend) = (first.set, Protocol::Tcp, Some(1));
    let expected = Reset { set, protocol, endpoint, generation, backend };
    assert_eq!(resets, [expected]);
    assert_eq!(agent.records()[0], Backend4 { flags: GONE, set: NO_SET, ..first });
    assert_eq!(agent.maps.calls(), calls, "nothing reads it as a backend: no barrier");

    // The next agent takes the id for free, and the last to be used again.
    let mut next = Agent::start(agent.maps, &cluster("-r"));
    assert!(next.resync().is_empty());
    assert_exact(&next);
}

#[test]
fn v8_the_record_of_one_that_leaves_otherwise_does_not() {
    for states in ["rr", "ur"] {
        let mut agent = following("rr");
        assert_eq!(agent.see(states), []);
        assert_eq!(agent.see("-r"), []);
        assert_eq!(agent.settle(), []);
        assert_eq!(agent.records()[0].flags, backend_flags::FREED);
    }
}

#[test]
fn v8_an_id_waits_for_an_endpoint_that_may_come_back() {
    let mut agent = following("rr");
    let before = agent.records();
    for states in ["ur", "rr", "tr", "tu"] {
        assert_eq!(agent.see(states), []);
    }
    assert_eq!(agent.records()[0].addr, before[0].addr, "the only one that serves is used again");
    assert_eq!(agent.records().len(), 2, "with the id that it had");
    assert_eq!(agent.see("rr"), []);
    assert_eq!(agent.records(), before);
}

#[test]
fn v8_a_deleted_endpoint_in_use_gets_another_id() {
    let mut agent = following("rr");
    let first = agent.records()[0];
    let generation = agent.generation();
    let set = agent.desired.sets().next().map(|(key, _)| key.clone()).unwrap();
    let at = (IpAddr::from(first.addr), u16::from_be_bytes(first.port));
    let change = Change { deleted: [(set, [at].into())].into(), ..agent.desired.everything() };
    let resets = agent.execute(&change);
    assert_eq!(resets.len(), 1);
    assert_eq!(resets[0].generation, generation);
    assert_eq!(agent.generation(), generation + 1, "what is dialled now is told from it");
    assert_eq!(agent.records()[0], Backend4 { flags: GONE, set: NO_SET, ..first });
    assert_eq!(agent.records()[2], first, "whoever has the address now");
    assert!(agent.resync().is_empty());
}

#[test]
fn v8_ids_of_deleted_endpoints_are_used_again() {
    let limits = Capacities { backends4: 4, ..Capacities::default() };
    let mut agent = following("rr");
    agent.maps = MemoryMaps::new(limits);
    agent.known = Known::empty(Room::fixed(limits));
    let _ = agent.resync();
    for _ in 0..10 {
        for states in ["tr", "-r"] {
            let _ = agent.see(states);
        }
        assert_eq!(agent.settle().len(), 1);
        assert_eq!(agent.see("rr"), []);
    }
    let service = ObjectKey::new("default", "only");
    assert!(agent.desired.sets().all(|(key, _)| key.service == service));
}

/// The set of a service that goes before its slices keeps its number, and its endpoints their ids,
/// until they are deleted.
#[test]
fn v8_a_deletion_behind_that_of_the_service_names_what_it_was() {
    let mut agent = following("rr");
    let first = agent.records()[0];
    let without = |agent: &mut Agent, states: &str| {
        let mut snapshot = cluster(states);
        snapshot.services.clear();
        let change = agent.desired.update(&snapshot, &NodeFacts::default());
        agent.execute(&change)
    };
    assert_eq!(without(&mut agent, "rr"), []);
    assert_eq!(without(&mut agent, "tr"), []);
    assert_eq!(without(&mut agent, "-r"), []);
    let generation = agent.generation();
    let resets = agent.settle();
    let endpoint = SocketAddr::new(IpAddr::from(first.addr), u16::from_be_bytes(first.port));
    let (set, protocol, backend) = (first.set, Protocol::Tcp, Some(1));
    assert_eq!(resets, [Reset { set, protocol, endpoint, generation, backend }]);
    assert_eq!(agent.records()[0], Backend4 { flags: GONE, set: NO_SET, ..first });

    // The other one left as it was, on another node: nothing is kept.
    let change = agent.desired.update(&Snapshot::default(), &NodeFacts::default());
    assert_eq!(agent.execute(&change), []);
    assert_eq!(agent.known.sets_len(), 0);
    assert!(agent.resync().is_empty());
}

/// What is kept of such a set does not outlive tables that were read anew.
#[test]
fn v8_a_set_that_nothing_leads_to_is_not_made() {
    let mut agent = following("rr");
    let mut snapshot = cluster("tr");
    snapshot.services.clear();
    let change = agent.desired.update(&snapshot, &NodeFacts::default());
    assert_eq!(agent.execute(&change), []);
    assert_eq!(agent.known.sets_len(), 1);
    let tables = agent.maps.dump().unwrap();
    let everything = agent.desired.everything();
    let room = Room { now: agent.maps.capacities(), ..Room::default() };
    agent.known = restore(&tables, &everything, room);
    assert!(agent.resync().is_empty());
    assert_eq!(agent.known.sets_len(), 0);
}
