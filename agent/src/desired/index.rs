//! The desired state of all services, kept by service, so that a change costs what it touches.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use mizzen_ebpf_abi::service::{FrontendKey, range_flags};

use super::{
    DesiredSet, NodeFacts, SetKey, Sets, Settings, Warning,
    claims::{Claimant, Claims, place_of_host_ports, place_of_service},
    gone::{self, Deleted, Departures, Here},
    host_ports,
    node::{DesiredNode, desired_node},
    service::desired_sets,
    set_of,
    topology::Place,
};
use crate::{
    heap,
    model::{ObjectKey, pod::HostPortPods, snapshot::Snapshot},
};

/// What is to become of sets and frontends: the input of `crate::diff`.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Whether this is everything: what is not named shall not exist.
    pub complete: bool,
    /// Sets that may have changed; `None` is a set that shall not exist. A set exists when it has
    /// a frontend.
    pub sets: BTreeMap<SetKey, Option<Arc<DesiredSet>>>,
    /// Frontends that may have changed, with the set that they lead to and their flags.
    pub frontends: BTreeMap<FrontendKey, Option<(SetKey, u32)>>,
    /// The node's own tables, whole.
    pub node: Arc<DesiredNode>,
    /// Endpoints that were deleted: nothing that led to one of them leads anywhere now, whatever
    /// has its address today.
    pub deleted: Deleted,
}

impl Change {
    /// Whether nothing may have changed but the node's tables.
    pub fn is_empty(&self) -> bool {
        !self.complete && self.sets.is_empty() && self.frontends.is_empty()
    }
}

/// What a service asks for, or a pod with host ports.
#[derive(Clone, Debug)]
struct Served {
    /// Its place among those who ask for the same.
    place: i64,
    sets: Sets,
}

/// The desired state, built up from snapshots.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    settings: Settings,
    services: BTreeMap<ObjectKey, Served>,
    /// Cluster IPs of services that are another proxy's.
    foreign: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// The zone of this node.
    zone: Option<Arc<str>>,
    claims: Claims,
    warnings: BTreeMap<ObjectKey, Vec<Warning>>,
    without_local: WithoutLocalEndpoints,
    node: Arc<DesiredNode>,
    departures: Departures,
    own_node_deleted: bool,
    seen: Snapshot,
    facts: NodeFacts,
}

impl Desired {
    /// The desired state of an empty cluster.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes in a newer snapshot and the node's facts, and says what that changes. The work is
    /// proportional to the difference to the snapshot before.
    pub fn update(&mut self, snapshot: &Snapshot, facts: &NodeFacts) -> Change {
        let touched = self.take_in(snapshot, facts);
        self.resolve(touched)
    }

    /// As [`Self::update`], for who knows nothing of what was before: everything.
    pub fn renew(&mut self, snapshot: &Snapshot, facts: &NodeFacts) -> Change {
        let deleted = self.take_in(snapshot, facts).deleted;
        Change { deleted, ..self.everything() }
    }

    /// Has it take no more memory than it must. Worth it once all is taken in for the first time.
    pub fn pack(&mut self) {
        heap::pack(&mut self.services);
        self.claims.pack();
    }

    fn take_in(&mut self, snapshot: &Snapshot, facts: &NodeFacts) -> Touched {
        let snapshot = &*self.keep_own_node(snapshot);
        let mut touched = Touched::default();
        self.departures.follow_nodes(&self.seen, snapshot);
        let mut changed = snapshot.changed_services(&self.seen).into_owned();
        let zone = snapshot.nodes.get(&self.settings.node_name).and_then(|node| node.zone.clone());
        if self.zone != zone {
            self.zone = zone;
            let topological = snapshot.services.values().filter(|service| service.topology);
            changed.extend(topological.map(|service| service.key.clone()));
        }
        let here = Here { node: &self.settings.node_name, addresses: &facts.addresses };
        let mut dead = gone::Addresses::new();
        for service in &changed {
            let deleted = self.departures.follow(service, (&self.seen, snapshot), here);
            for (service, addresses) in deleted {
                dead.entry(service).or_default().extend(addresses);
            }
        }
        changed.extend(dead.keys().cloned());
        for service in changed {
            let dead = dead.remove(&service).unwrap_or_default();
            self.follow(&service, snapshot, &dead, &mut touched);
        }
        let before = std::mem::replace(&mut self.facts, facts.clone());
        let mut node_changed = false;
        if touched.foreign
            || before != *facts
            || self.seen.revision == 0
            || self.seen.nodes_differ(snapshot)
        {
            let foreign = self.foreign.values().flatten().copied();
            let node = Arc::new(desired_node(snapshot, facts, &self.settings, foreign));
            node_changed = self.node.addrs != node.addrs;
            self.node = node;
        }
        self.follow_host_ports(&before.host_ports, node_changed, &mut touched);
        self.seen = snapshot.clone();
        touched
    }

    /// The snapshot, with this node's own object as it was seen last where that was deleted: the
    /// node that runs this agent lives, whatever somebody did to its object, and so do its node
    /// ports and its pods. It counts again as soon as it is back.
    fn keep_own_node<'a>(&mut self, snapshot: &'a Snapshot) -> Cow<'a, Snapshot> {
        let own = &self.settings.node_name;
        let kept = self.seen.nodes.get(own).filter(|_| !snapshot.nodes.contains_key(own));
        self.own_node_deleted = kept.is_some();
        let Some(node) = kept else { return Cow::Borrowed(snapshot) };
        let mut whole = snapshot.clone();
        whole.nodes.insert(own.clone(), node.clone());
        Cow::Owned(whole)
    }

    /// Whether this node's own object was deleted: what it said counts on.
    pub fn own_node_deleted(&self) -> bool {
        self.own_node_deleted
    }

    /// The addresses whose interfaces are this node's uplinks.
    pub fn uplink_addresses(&self) -> Vec<IpAddr> {
        let node = self.seen.nodes.get(&self.settings.node_name);
        self.node.uplink_addresses(node.map(|node| &**node)).into_iter().collect()
    }

    /// Takes note that this node's pods have these addresses no more; what that changes.
    pub fn released(&mut self, addresses: &BTreeSet<IpAddr>) -> Change {
        let dead = self.departures.released(&self.seen, &self.settings.node_name, addresses);
        self.bury(&dead)
    }

    /// Whether endpoints left of which it will be known in a moment that they are deleted:
    /// [`Self::settle`] is to be called then, until there are none.
    pub fn unsettled(&self) -> bool {
        self.departures.unsettled()
    }

    /// Gives up the endpoints that left before the last call; what that changes.
    pub fn settle(&mut self) -> Change {
        let dead = self.departures.settle(&self.seen);
        self.bury(&dead)
    }

    /// What changes where these endpoints are deleted.
    fn bury(&mut self, dead: &gone::Addresses) -> Change {
        let (mut touched, snapshot) = (Touched::default(), self.seen.clone());
        for (service, addresses) in dead {
            self.follow(service, &snapshot, addresses, &mut touched);
        }
        self.resolve(touched)
    }

    /// All of it, as one change.
    pub fn everything(&self) -> Change {
        let frontends = self.claims.winners();
        let frontends =
            frontends.map(|(frontend, (set, flags))| (*frontend, Some((set.clone(), flags))));
        let sets = self.sets().map(|(key, set)| {
            let set = Some(set).filter(|set| self.is_reachable(key, set));
            (key.clone(), set.cloned())
        });
        let tombs = self.departures.tombs().map(|(key, set)| (key.clone(), Some(set.clone())));
        Change {
            complete: true,
            sets: sets.chain(tombs).collect(),
            frontends: frontends.collect(),
            node: self.node.clone(),
            deleted: Deleted::default(),
        }
    }

    /// What is wrong with the objects of the cluster, by service.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings: Vec<Warning> = self.warnings.values().flatten().cloned().collect();
        // The mark of an address goes with the frontends on it.
        for (frontend, loser, winner) in self.claims.losers().filter(|(f, ..)| !f.is_guard()) {
            let (addr, port) = (frontend.addr, u16::from_be_bytes(frontend.port));
            warnings.push(Warning {
                service: loser.service.clone(),
                message: format!(
                    "{addr} port {port} is left out: {} has it and goes before {}",
                    winner.service, loser.service
                ),
            });
        }
        warnings
    }

    /// How many frontends of host ports somebody else has: a service, or a later pod.
    pub fn host_ports_left_out(&self) -> u64 {
        let losers = self.claims.losers();
        losers.filter(|(_, loser, _)| host_ports::is_owner(&loser.service)).count() as u64
    }

    /// Whether flows to deleted endpoints of a service are left alone, by its own wish.
    pub fn spares(&self, service: &ObjectKey) -> bool {
        self.seen.services.get(service).is_some_and(|service| !service.reset_on_delete)
    }

    /// The sets of every service.
    pub fn sets(&self) -> impl Iterator<Item = (&SetKey, &Arc<DesiredSet>)> {
        let sets = self.services.values().flat_map(|service| &service.sets);
        sets.map(|(key, set)| (key, set))
    }

    /// The set that has a frontend, of all that ask for it.
    pub fn owner(&self, frontend: &FrontendKey) -> Option<&SetKey> {
        self.claims.winner(frontend).map(|(set, _)| set)
    }

    /// How many sets a traffic policy Local leaves without an endpoint on this node.
    pub fn without_local_endpoints(&self) -> WithoutLocalEndpoints {
        self.without_local
    }

    /// What the configuration says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The snapshot that this state was made from.
    pub fn snapshot(&self) -> &Snapshot {
        &self.seen
    }

    /// Brings a service to what a snapshot says of it; its endpoints at the addresses `dead` are
    /// deleted.
    fn follow(
        &mut self,
        service: &ObjectKey,
        snapshot: &Snapshot,
        dead: &BTreeSet<IpAddr>,
        touched: &mut Touched,
    ) {
        let before = self.sets_of(service);
        self.replace(service, snapshot, touched);
        if let Some(served) = self.services.get_mut(service) {
            self.departures.keep_idle(service, &before, &mut served.sets);
        }
        touched.deleted.extend(gone::of_sets(&before, dead));
        let after = self.services.get(service).map_or(&[][..], |served| &served.sets);
        if self.departures.resets(service, &self.seen, snapshot) {
            touched.deleted.extend(gone::of_withdrawn(&before, after));
            touched.sets.extend(self.departures.entomb(service, (&before, after), snapshot, dead));
        } else {
            touched.sets.extend(self.departures.unbury(service));
        }
    }

    /// The sets of a service, with those that are kept though it has them no more.
    fn sets_of(&self, service: &ObjectKey) -> Sets {
        let mut sets = self.services.get(service).map_or_else(Sets::default, |of| of.sets.clone());
        let mut kept = self.departures.tombs_of(service).peekable();
        if kept.peek().is_some() {
            let all = sets.into_iter().chain(kept.map(|(key, set)| (key.clone(), set.clone())));
            sets = all.collect();
            sets.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        sets
    }

    /// Puts the sets of one service in the place of those that it had.
    fn replace(&mut self, service: &ObjectKey, snapshot: &Snapshot, touched: &mut Touched) {
        let Some(object) = snapshot.services.get(service) else {
            self.withdraw(service, touched);
            return;
        };
        let slices = snapshot.slices_of(service).map(Arc::as_ref).collect::<Vec<_>>();
        let place = Place { node: &self.settings.node_name, zone: self.zone.as_deref() };
        let mut asked = desired_sets(object, &slices, place, &self.settings);
        asked.0.sort_by(|(one, _), (other, _)| one.cmp(other));
        let place = place_of_service(object.created_s);
        let Some(asked) = self.renew_backends(service, place, asked, touched) else { return };
        self.withdraw(service, touched);
        if object.foreign_proxy && !object.cluster_ips.is_empty() {
            self.foreign.insert(service.clone(), object.cluster_ips.clone());
            touched.foreign = true;
        }
        self.enter(service, place, asked, touched);
    }

    /// Where a service asks for the same frontends as before, as when only its endpoints changed,
    /// its sets are all there is to follow: who has which frontend stays as it is. Gives back what it
    /// asks for where that is not so.
    fn renew_backends(
        &mut self,
        service: &ObjectKey,
        place: i64,
        asked: Asked,
        touched: &mut Touched,
    ) -> Option<Asked> {
        let (sets, warnings) = &asked;
        let Some(served) = self.services.get_mut(service) else { return Some(asked) };
        let same = served.place == place
            && served.sets.len() == sets.len()
            && served.sets.iter().zip(sets).all(|((held_key, held), (key, set))| {
                held_key == key && held.frontends == set.frontends
            });
        if !same || !warnings.is_empty() || self.warnings.contains_key(service) {
            return Some(asked);
        }
        for ((key, held), (_, set)) in served.sets.iter_mut().zip(asked.0) {
            self.without_local.count(key, held, u64::wrapping_sub);
            self.without_local.count(key, &set, u64::wrapping_add);
            *held = Arc::new(set);
            touched.sets.insert(key.clone());
        }
        None
    }

    /// Follows the pods' host ports; anew all of them, where the node's addresses changed.
    fn follow_host_ports(&mut self, before: &HostPortPods, anew: bool, touched: &mut Touched) {
        let now = Arc::clone(&self.facts.host_ports);
        let pods: BTreeSet<&ObjectKey> = before.keys().chain(now.keys()).collect();
        for pod in pods {
            let (was, is) = (before.get(pod), now.get(pod));
            if was == is && !anew {
                continue;
            }
            let owner = host_ports::owner(pod);
            let had = self.services.get(&owner).map_or_else(Sets::default, |of| of.sets.clone());
            self.withdraw(&owner, touched);
            if let Some(is) = is {
                let asked = host_ports::desired_sets(&owner, is, &self.node.addrs);
                self.enter(&owner, place_of_host_ports(is.serial), asked, touched);
            }
            // Another pod's by name is another pod.
            let left = was.filter(|was| is.is_none_or(|is| is.addresses != was.addresses));
            let dead = left.into_iter().flat_map(|was| was.addresses.iter().copied()).collect();
            touched.deleted.extend(gone::of_sets(&had, &dead));
        }
    }

    /// Enters what a service or a pod asks for, of which nothing is there.
    fn enter(
        &mut self,
        owner: &ObjectKey,
        place: i64,
        (sets, warnings): Asked,
        touched: &mut Touched,
    ) {
        if !warnings.is_empty() {
            self.warnings.insert(owner.clone(), warnings);
        }
        if sets.is_empty() {
            return;
        }
        for (key, set) in &sets {
            let claimant = Claimant { place, set: key.clone() };
            for (frontend, flags) in &set.frontends {
                self.claims.enter(*frontend, claimant.clone(), *flags);
                touched.frontends.insert(*frontend);
            }
            self.without_local.count(key, set, u64::wrapping_add);
            touched.sets.insert(key.clone());
        }
        // In their order, and of several with one key the last.
        let sets: BTreeMap<_, _> =
            sets.into_iter().map(|(key, set)| (key, Arc::new(set))).collect();
        let sets = sets.into_iter().collect();
        self.services.insert(owner.clone(), Served { place, sets });
    }

    /// Forgets all that a service asked for.
    fn withdraw(&mut self, service: &ObjectKey, touched: &mut Touched) {
        touched.foreign |= self.foreign.remove(service).is_some();
        self.warnings.remove(service);
        let Some(Served { place, sets }) = self.services.remove(service) else { return };
        for (key, set) in sets {
            let claimant = Claimant { place, set: key };
            for (frontend, _) in &set.frontends {
                self.claims.withdraw(frontend, &claimant);
                touched.frontends.insert(*frontend);
            }
            self.without_local.count(&claimant.set, &set, u64::wrapping_sub);
            touched.sets.insert(claimant.set);
        }
    }

    /// Whether a frontend leads to a set.
    fn is_reachable(&self, key: &SetKey, set: &DesiredSet) -> bool {
        let mut winners = set.frontends.iter().filter_map(|(f, _)| self.claims.winner(f));
        winners.any(|(winner, _)| winner == key)
    }

    /// What the touched sets and frontends are now. A set that lost or won a frontend to another
    /// service is touched as well: without a frontend it does not exist.
    fn resolve(&self, mut touched: Touched) -> Change {
        let mut frontends = BTreeMap::new();
        let dependents: Vec<_> = touched
            .frontends
            .iter()
            .flat_map(|frontend| self.claims.dependents(frontend))
            .collect();
        touched.frontends.extend(dependents);
        for frontend in touched.frontends {
            touched.sets.extend(self.claims.claimants(&frontend).map(|(set, _)| set.clone()));
            let winner = self.claims.winner(&frontend);
            frontends.insert(frontend, winner.map(|(set, flags)| (set.clone(), flags)));
        }
        let sets = touched.sets.into_iter().map(|key| {
            let set = self.services.get(&key.service).and_then(|of| set_of(&of.sets, &key));
            let set = match set {
                Some(set) => Some(set).filter(|set| self.is_reachable(&key, set)),
                None => self.departures.tomb(&key),
            };
            let set = set.cloned();
            (key, set)
        });
        let (sets, node) = (sets.collect(), self.node.clone());
        Change { complete: false, sets, frontends, node, deleted: touched.deleted }
    }
}

/// Sets whose endpoints are all elsewhere while a traffic policy of their service is Local, so that
/// traffic is dropped; those without any endpoint don't count (reference B87). By family: IPv4,
/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocalEndpoints {
    /// Where the internal traffic policy is Local.
    pub internal: [u64; 2],
    /// Where the external traffic policy is Local.
    pub external: [u64; 2],
}

impl WithoutLocalEndpoints {
    fn count(&mut self, key: &SetKey, set: &DesiredSet, to: fn(u64, u64) -> u64) {
        let family = usize::from(key.ipv6);
        for (counts, flag) in [
            (&mut self.internal, range_flags::INTERNAL_DROP),
            (&mut self.external, range_flags::EXTERNAL_DROP),
        ] {
            counts[family] = to(counts[family], u64::from(set.windows.flags & flag != 0));
        }
    }
}

/// The sets that somebody asks for, and what can't be had of what it asks for.
type Asked = (Vec<(SetKey, DesiredSet)>, Vec<Warning>);

/// What an update may have changed.
#[derive(Default)]
struct Touched {
    sets: BTreeSet<SetKey>,
    frontends: BTreeSet<FrontendKey>,
    deleted: Deleted,
    /// Whether a service that is another proxy's came or went.
    foreign: bool,
}
