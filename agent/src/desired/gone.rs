//! Endpoints that are deleted, as against those that merely leave their service (reference V8).
//!
//! An endpoint is *deleted* when it left every slice of its service after having been terminating
//! there; when this node's CNI plugin released its address; or when its node is gone, that is when
//! the Node object was deleted and is not back within half a second. Nothing is behind its address
//! any more, so that flows to it are reset. An endpoint that leaves otherwise, by a change of
//! labels, keeps its flows, and so does one that only terminates. The node that asks is never gone.
//!
//! Snapshots are gathered, and some are missed: that an endpoint was terminating when it left is
//! told by a snapshot too ([`Snapshot::departed`]), for it may never be seen to be.
//!
//! What is not known is not deleted: an agent that starts knows only by its tables what was there
//! before (`diff::late` asks them), and of two objects that may be one pod it takes them for one.
//!
//! What may be deleted later is remembered though no slice has it ([`strays`]), or no service
//! ([`tombs`]).

mod strays;
mod tombs;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::ordmap::DiffItem;

use strays::Strays;
use tombs::Tombs;

use super::{DesiredSet, Idle, LocalAddress, SetKey, Sets, set_of};
use crate::model::{ObjectKey, endpoints::PodName, service::Protocol, snapshot::Snapshot};

/// Addresses of endpoints by service.
pub type Addresses = BTreeMap<ObjectKey, BTreeSet<IpAddr>>;

/// Addresses and ports of endpoints by set.
pub type Deleted = BTreeMap<SetKey, BTreeSet<(IpAddr, u16)>>;

/// Calls of [`Departures::settle`] after which a node without its object is gone: objects of nodes
/// that live are deleted and made anew, by hand or by a kubelet that registers again.
const NODE_ROUNDS: u64 = 2;

/// What has to be remembered between two snapshots.
#[derive(Clone, Debug, Default)]
pub struct Departures {
    /// Endpoints that left while they were terminating. Who writes slices may move an endpoint
    /// from one to another in two steps, so that they are not given up before some time passed.
    left: BTreeMap<ObjectKey, BTreeMap<IpAddr, Left>>,
    /// Endpoints that are in a slice though nothing is behind them: their node is gone, or their
    /// address was released, where no node is named.
    doomed: BTreeMap<ObjectKey, BTreeMap<IpAddr, Option<Arc<str>>>>,
    /// Endpoints on this node that left and live.
    strays: Strays,
    /// Sets of services that are gone.
    tombs: Tombs,
    /// Nodes whose object is deleted and that are not given up yet, since when.
    absent: BTreeMap<Arc<str>, u64>,
    /// Counts calls of [`Self::settle`].
    round: u64,
}

/// This node.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// Its name.
    pub node: &'a Arc<str>,
    /// The addresses on its interfaces.
    pub addresses: &'a BTreeSet<LocalAddress>,
}

impl Here<'_> {
    /// Whether an endpoint is a pod of this node with an address of its own. Those in the node's
    /// network share its address, which says nothing of any of them.
    fn has_pod(&self, was: &Presence<'_>, address: IpAddr) -> bool {
        let lowest = LocalAddress { addr: address, ifindex: 0 };
        let of_node = self.addresses.range(lowest..).next();
        was.nodes.contains(&**self.node) && of_node.is_none_or(|next| next.addr != address)
    }
}

/// An endpoint that left.
#[derive(Clone, Debug)]
struct Left {
    round: u64,
    pods: BTreeSet<Box<str>>,
}

/// What the slices of a service say of an address.
#[derive(Debug, Default)]
struct Presence<'a> {
    /// Whether any of them says that it is terminating.
    terminating: bool,
    /// The pods that are named for it; those in the node's network share its address.
    pods: BTreeSet<PodName<'a>>,
    /// The nodes that it is on: one.
    nodes: BTreeSet<&'a str>,
}

impl Departures {
    /// Takes in what became of a service's endpoints. Gives the addresses whose endpoint is
    /// deleted, of this service or of others that had it; one of them may be another pod's by now.
    pub fn follow(
        &mut self,
        service: &ObjectKey,
        (before, after): (&Snapshot, &Snapshot),
        here: Here<'_>,
    ) -> Addresses {
        let now = presences(service, after);
        let mut deleted = self.strays.meet(service, &now);
        // Of those who had the address one may opt out by the same snapshot, and not be asked yet.
        deleted.retain(|of, _| self.resets(of, before, after));
        if !self.resets(service, before, after) {
            self.forget(service);
            return deleted;
        }
        let mut own = self.returned(service, &now);
        for (address, was) in presences(service, before) {
            let is = now.get(&address);
            if is.is_some_and(|is| !another_pod(&was.pods, &is.pods)) {
                continue;
            }
            let doomed = self.forget_doom(service, address);
            let terminated = was.terminating || after.departed_since(before, service, address);
            let dead = match is {
                // To one that was doomed nothing led since but what is the new pod's.
                Some(_) => terminated && !doomed,
                None => doomed,
            };
            if dead {
                own.insert(address);
            } else if is.is_none() {
                self.leaves(service, address, &was, terminated, here);
            }
        }
        if !own.is_empty() {
            deleted.entry(service.clone()).or_default().extend(own);
        }
        deleted
    }

    /// Takes note of an endpoint that is in no slice any more, and that may be deleted.
    fn leaves(
        &mut self,
        service: &ObjectKey,
        address: IpAddr,
        was: &Presence<'_>,
        terminated: bool,
        here: Here<'_>,
    ) {
        let pods = was.pods.iter().map(|pod| pod.to_string().into()).collect();
        if terminated || self.is_absent(&was.nodes) {
            let left = Left { round: self.round, pods };
            self.left.entry(service.clone()).or_default().insert(address, left);
        } else if here.has_pod(was, address) {
            self.strays.add(service, address, pods);
        }
    }

    /// Whether flows to deleted endpoints of a service shall be reset. One that is gone is asked no
    /// more: what it said holds for what is remembered of it.
    pub fn resets(&self, service: &ObjectKey, before: &Snapshot, after: &Snapshot) -> bool {
        let object = after.services.get(service).or_else(|| before.services.get(service));
        object.map_or_else(|| self.tombs.has(service), |service| service.reset_on_delete)
    }

    /// Forgets what was remembered of a service's endpoints.
    fn forget(&mut self, service: &ObjectKey) {
        self.left.remove(service);
        self.doomed.remove(service);
        self.strays.forget(service);
    }

    /// Of the endpoints that had left, those whose address is back: as the same pod, which only
    /// moved, or as another.
    fn returned(
        &mut self,
        service: &ObjectKey,
        now: &BTreeMap<IpAddr, Presence<'_>>,
    ) -> BTreeSet<IpAddr> {
        let mut deleted = BTreeSet::new();
        let Some(left) = self.left.get_mut(service) else { return deleted };
        left.retain(|address, left| {
            let Some(is) = now.get(address) else { return true };
            let same = left.pods.iter().any(|pod| is.pods.contains(&PodName::from(&**pod)));
            if !is.terminating && !same {
                deleted.insert(*address);
            }
            false
        });
        if left.is_empty() {
            self.left.remove(service);
        }
        deleted
    }

    /// Whether the object of one of these nodes is deleted.
    fn is_absent(&self, nodes: &BTreeSet<&str>) -> bool {
        nodes.iter().any(|node| self.absent.contains_key(*node))
    }

    /// Whether there are endpoints that left, or nodes, and they are not given up yet: then
    /// [`Self::settle`] is to be called after a while.
    pub fn unsettled(&self) -> bool {
        !self.left.is_empty() || !self.absent.is_empty()
    }

    /// Gives up the endpoints that left before the last call, and those in `snapshot` that are on
    /// nodes which are gone for longer.
    pub fn settle(&mut self, snapshot: &Snapshot) -> Addresses {
        let round = self.round;
        self.round += 1;
        let gone = self.absent.iter().filter(|(_, since)| *since + NODE_ROUNDS <= round);
        let gone: BTreeSet<Arc<str>> = gone.map(|(node, _)| node.clone()).collect();
        self.absent.retain(|node, _| !gone.contains(node));
        let mut deleted = if gone.is_empty() {
            Addresses::new()
        } else {
            self.doom(snapshot, |_, node| {
                node.filter(|node| gone.contains(*node)).map(|node| Some(node.clone()))
            })
        };
        self.left.retain(|service, left| {
            let over = left.iter().filter(|(_, left)| left.round < round).map(|(addr, _)| *addr);
            let over: BTreeSet<_> = over.collect();
            left.retain(|address, _| !over.contains(address));
            if !over.is_empty() {
                deleted.entry(service.clone()).or_default().extend(over);
            }
            !left.is_empty()
        });
        deleted
    }

    /// Takes in which nodes came and went. Endpoints of one that went are given up by
    /// [`Self::settle`].
    pub fn follow_nodes(&mut self, before: &Snapshot, after: &Snapshot) {
        if before.nodes.ptr_eq(&after.nodes) {
            return;
        }
        for item in before.nodes.diff(&after.nodes) {
            match item {
                DiffItem::Remove(name, _) => drop(self.absent.insert(name.clone(), self.round)),
                DiffItem::Add(name, _) => self.node_is_back(name),
                DiffItem::Update { .. } => {}
            }
        }
    }

    fn node_is_back(&mut self, name: &Arc<str>) {
        self.absent.remove(name);
        self.doomed.retain(|_, doomed| {
            doomed.retain(|_, node| node.as_ref() != Some(name));
            !doomed.is_empty()
        });
    }

    /// The endpoints on node `here` that have one of these addresses, which were released, and those
    /// that had them when they left.
    pub fn released(
        &mut self,
        snapshot: &Snapshot,
        here: &Arc<str>,
        addresses: &BTreeSet<IpAddr>,
    ) -> Addresses {
        let mut deleted = self.doom(snapshot, |address, node| {
            (node == Some(here) && addresses.contains(&address)).then_some(None)
        });
        for (service, strays) in self.strays.released(addresses) {
            deleted.entry(service).or_default().extend(strays);
        }
        deleted
    }

    /// Finds the endpoints that `cause` names a reason for to take them for dead.
    fn doom(
        &mut self,
        snapshot: &Snapshot,
        cause: impl Fn(IpAddr, Option<&Arc<str>>) -> Option<Option<Arc<str>>>,
    ) -> Addresses {
        let mut deleted = Addresses::new();
        for ((service, _), slice) in &snapshot.slices {
            for endpoint in &slice.endpoints {
                let Some(node) = cause(endpoint.address, endpoint.node()) else { continue };
                if self.resets(service, snapshot, snapshot) {
                    let doomed = self.doomed.entry(service.clone()).or_default();
                    doomed.insert(endpoint.address, node);
                    deleted.entry(service.clone()).or_default().insert(endpoint.address);
                }
            }
        }
        deleted
    }

    fn forget_doom(&mut self, service: &ObjectKey, address: IpAddr) -> bool {
        let Some(doomed) = self.doomed.get_mut(service) else { return false };
        let was = doomed.remove(&address).is_some();
        if doomed.is_empty() {
            self.doomed.remove(service);
        }
        was
    }

    /// Keeps the endpoints that left and may be deleted yet in a service's sets, idle: what they had
    /// stays theirs.
    pub fn keep_idle(&self, service: &ObjectKey, before: &Sets, sets: &mut Sets) {
        if !self.waits_for_any(service) {
            return;
        }
        for (key, set) in sets {
            let had = set_of(before, key).into_iter().flat_map(|set| set.endpoints());
            let waiting: Vec<_> =
                had.filter_map(|at| Some((at, self.waits_for(service, at.0)?))).collect();
            if !waiting.is_empty() {
                Arc::make_mut(set).idle.extend(waiting);
            }
        }
    }

    fn waits_for_any(&self, service: &ObjectKey) -> bool {
        self.left.contains_key(service) || self.strays.of(service).is_some()
    }

    /// As what an endpoint that left is waited for, if it is.
    fn waits_for(&self, service: &ObjectKey, address: IpAddr) -> Option<Idle> {
        if self.left.get(service).is_some_and(|left| left.contains_key(&address)) {
            return Some(Idle::Terminating);
        }
        let strays = self.strays.of(service)?;
        strays.contains_key(&address).then_some(Idle::Stray)
    }

    /// Keeps sets that a service had `before` and has no more, with those of their endpoints that
    /// may be deleted yet: they are in a slice, or waited for. Gives the sets that are kept otherwise
    /// than before.
    ///
    /// Those of UDP are not kept: nothing leads to an endpoint of theirs ([`of_withdrawn`]).
    pub fn entomb(
        &mut self,
        service: &ObjectKey,
        (before, after): (&Sets, &[(SetKey, Arc<DesiredSet>)]),
        snapshot: &Snapshot,
        dead: &BTreeSet<IpAddr>,
    ) -> Vec<SetKey> {
        let mut changed: Vec<SetKey> = self.tombs.open(service).into_keys().collect();
        let is_kept = |key: &SetKey| key.protocol != Protocol::Udp && set_of(after, key).is_none();
        let withdrawn: Vec<_> = before.iter().filter(|(key, _)| is_kept(key)).collect();
        if withdrawn.is_empty() {
            return changed;
        }
        let there = presences(service, snapshot);
        for (key, set) in withdrawn {
            let may_go = |at: (IpAddr, u16)| {
                let terminates = there.get(&at.0).map(|is| is.terminating);
                let why = match terminates {
                    Some(true) => Idle::Terminating,
                    Some(false) => Idle::Unready,
                    None => self.waits_for(service, at.0)?,
                };
                (!dead.contains(&at.0)).then_some((at, why))
            };
            let idle: BTreeMap<_, _> = set.endpoints().filter_map(may_go).collect();
            if !idle.is_empty() && self.tombs.put(key, DesiredSet::idle(idle)) {
                changed.push(key.clone());
            }
        }
        changed
    }

    /// Drops the sets that are kept of a service.
    pub fn unbury(&mut self, service: &ObjectKey) -> Vec<SetKey> {
        self.tombs.open(service).into_keys().collect()
    }

    /// The sets that are kept though no service has them.
    pub fn tombs(&self) -> impl Iterator<Item = (&SetKey, &Arc<DesiredSet>)> {
        self.tombs.all()
    }

    /// Those of one service.
    pub fn tombs_of(
        &self,
        service: &ObjectKey,
    ) -> impl Iterator<Item = (&SetKey, &Arc<DesiredSet>)> {
        self.tombs.of(service)
    }

    /// The one with this key.
    pub fn tomb(&self, key: &SetKey) -> Option<&Arc<DesiredSet>> {
        self.tombs.get(key)
    }
}

/// Whether an address was one pod's and is another's. Of what names no pod nothing is known.
fn another_pod(before: &BTreeSet<PodName<'_>>, after: &BTreeSet<PodName<'_>>) -> bool {
    !before.is_empty() && !after.is_empty() && before.is_disjoint(after)
}

fn presences<'a>(service: &ObjectKey, snapshot: &'a Snapshot) -> BTreeMap<IpAddr, Presence<'a>> {
    let mut presences: BTreeMap<IpAddr, Presence<'a>> = BTreeMap::new();
    for (slice, endpoint) in snapshot.endpoints_of(service) {
        let presence = presences.entry(endpoint.address).or_default();
        presence.terminating |= endpoint.terminating;
        presence.pods.extend(slice.pod(endpoint));
        presence.nodes.extend(endpoint.node().map(|node| &**node));
    }
    presences
}

/// What was led to by UDP ports that a service has no more, or that went with it: who goes on sending
/// there may reach somebody else one day, and no connection is lost (B106; kube-proxy forgets their
/// conntrack entries for the same reason). What is connected by TCP stays.
pub fn of_withdrawn(before: &Sets, after: &[(SetKey, Arc<DesiredSet>)]) -> Deleted {
    let withdrawn = before
        .iter()
        .filter(|(key, _)| key.protocol == Protocol::Udp && set_of(after, key).is_none());
    let all = withdrawn.map(|(key, set)| (key.clone(), set.endpoints().collect()));
    all.filter(|(_, endpoints): &(_, BTreeSet<_>)| !endpoints.is_empty()).collect()
}

/// What a service's sets had at these addresses.
pub fn of_sets(sets: &Sets, addresses: &BTreeSet<IpAddr>) -> Deleted {
    let of_set = |(key, set): &(SetKey, Arc<DesiredSet>)| {
        let dead: BTreeSet<_> =
            set.endpoints().filter(|(address, _)| addresses.contains(address)).collect();
        (!dead.is_empty()).then(|| (key.clone(), dead))
    };
    sets.iter().filter_map(of_set).collect()
}

#[cfg(test)]
mod tests;
