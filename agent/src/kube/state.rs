//! The one owner of the snapshot: changes in, snapshots out.
//!
//! A first change is published at once; what follows within a millisecond is published together.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    ops::BitOrAssign,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    arrivals::{Arrival, Kind},
    heap,
    metrics::Metrics,
    model::{
        ObjectKey,
        endpoints::EndpointSlice,
        namespace::Namespace,
        node::Node,
        pod::OptedOutPod,
        service::{Service, ServiceCidr},
        snapshot::{Snapshot, Step},
    },
    supervisor::TaskError,
};

/// How long changes are gathered after one was published.
const GATHER: Duration = Duration::from_millis(1);
/// Changes that one publication gathers at most.
const GATHERED_MAX: usize = 4096;

/// Services that a step names at most: where more changed, to compare costs less.
const STEP_MAX: usize = 1024;

/// Departed endpoints that are remembered at most, the newest: more than leave in a second of any
/// rollout, for those who are behind by that much.
const DEPARTED_MAX: usize = 4096;

/// How long after a list the memory that nobody needs any more is given back: by then everyone has
/// taken in what it brought.
const DIGESTED: Duration = Duration::from_secs(1);

/// What became of objects of one kind.
#[derive(Clone, Debug)]
pub enum Event<T, K> {
    /// One is as given.
    Apply(T),
    /// One is gone.
    Delete(K),
    /// These are all: what is not among them is gone.
    Replace(Vec<T>),
}

/// A change of the cluster.
#[derive(Clone, Debug)]
pub enum Change {
    /// Of Services.
    Services(Event<Service, ObjectKey>),
    /// Of EndpointSlices.
    Slices(Event<EndpointSlice, ObjectKey>),
    /// Of Nodes.
    Nodes(Event<Node, Arc<str>>),
    /// Of ServiceCIDRs.
    ServiceCidrs(Event<ServiceCidr, Arc<str>>),
    /// Of this node's Pods.
    Pods(Event<OptedOutPod, ObjectKey>),
    /// Of Namespaces.
    Namespaces(Event<Namespace, Arc<str>>),
}

/// A change with the time of its arrival.
#[derive(Clone, Debug)]
pub struct Arrived {
    at: std::time::Instant,
    change: Change,
}

impl From<Change> for Arrived {
    /// A change that arrives now.
    fn from(change: Change) -> Self {
        Self { at: std::time::Instant::now(), change }
    }
}

impl Arrived {
    /// What it will be remembered as; its revision comes with the snapshot.
    fn arrival(&self) -> Arrival {
        let (kind, listed, trigger) = match &self.change {
            Change::Services(event) => (Kind::Services, event.is_list(), None),
            Change::Slices(event) => {
                let trigger = match event {
                    Event::Apply(slice) => slice.trigger_time,
                    Event::Delete(_) | Event::Replace(_) => None,
                };
                (Kind::Slices, event.is_list(), trigger)
            }
            Change::Nodes(event) => (Kind::Others, event.is_list(), None),
            Change::ServiceCidrs(event) => (Kind::Others, event.is_list(), None),
            Change::Pods(event) => (Kind::Others, event.is_list(), None),
            Change::Namespaces(event) => (Kind::Others, event.is_list(), None),
        };
        Arrival { revision: 0, kind, at: self.at, listed, trigger }
    }
}

impl<T, K> Event<T, K> {
    fn is_list(&self) -> bool {
        matches!(self, Self::Replace(_))
    }
}

/// The cluster, as told by changes.
#[derive(Debug)]
pub struct ClusterState {
    snapshot: Snapshot,
    /// What changed since the last publication, as long as that is little.
    step: Option<Step>,
    /// Which service each slice is filed under: its label may change, and a deletion names the
    /// slice alone.
    filed: BTreeMap<ObjectKey, ObjectKey>,
    /// What [`Snapshot::departed`] has, the oldest first, by revision.
    departed: VecDeque<(u64, (ObjectKey, IpAddr))>,
}

impl Default for ClusterState {
    fn default() -> Self {
        let step = Some(Step::default());
        let (filed, departed) = (BTreeMap::new(), VecDeque::new());
        Self { snapshot: Snapshot::default(), step, filed, departed }
    }
}

impl ClusterState {
    /// The cluster as it is now.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The cluster as it is now, for publication: it knows what changed since the one before.
    pub fn publication(&mut self) -> Arc<Snapshot> {
        let next = Step { from: self.snapshot.revision, ..Step::default() };
        let step = self.step.replace(next).map(Arc::new);
        Arc::new(Snapshot { step, ..self.snapshot.clone() })
    }

    /// Notes that a service changed, or one of its slices.
    fn touch(&mut self, service: &ObjectKey) {
        if let Some(step) = &mut self.step {
            step.services.insert(service.clone());
        }
        self.step.take_if(|step| step.services.len() > STEP_MAX);
    }

    /// Takes in a change. False where it says nothing new.
    pub fn apply(&mut self, change: Change) -> bool {
        let Snapshot { nodes, service_cidrs, opted_out_pods, namespaces, synced, .. } =
            &mut self.snapshot;
        let changed = match change {
            Change::Services(event) => self.apply_services(event),
            Change::Slices(event) => self.apply_slices(event),
            Change::Nodes(event) => {
                apply(nodes, &mut synced.nodes, event, |node| node.name.clone())
            }
            Change::ServiceCidrs(event) => {
                apply(service_cidrs, &mut synced.service_cidrs, event, |range| range.name.clone())
            }
            Change::Pods(event) => {
                apply(opted_out_pods, &mut synced.pods, event, |pod| pod.key.clone())
            }
            Change::Namespaces(event) => {
                apply(namespaces, &mut synced.namespaces, event, |of| of.name.clone())
            }
        };
        if changed {
            self.snapshot.revision += 1;
        }
        changed
    }

    fn apply_services(&mut self, event: Event<Service, ObjectKey>) -> bool {
        match &event {
            Event::Apply(service) => self.touch(&service.key),
            Event::Delete(key) => self.touch(key),
            Event::Replace(_) => self.step = None,
        }
        let Snapshot { services, synced, .. } = &mut self.snapshot;
        apply(services, &mut synced.services, event, |service| service.key.clone())
    }

    fn apply_slices(&mut self, event: Event<EndpointSlice, ObjectKey>) -> bool {
        match event {
            Event::Apply(slice) => self.file(slice),
            Event::Delete(key) => self.unfile(&key),
            Event::Replace(all) => {
                self.step = None;
                let listed: BTreeSet<&ObjectKey> = all.iter().map(|slice| &slice.key).collect();
                let gone: Vec<ObjectKey> =
                    self.filed.keys().filter(|key| !listed.contains(key)).cloned().collect();
                let mut changed = !std::mem::replace(&mut self.snapshot.synced.slices, true);
                for key in gone {
                    changed |= self.unfile(&key);
                }
                for slice in heap::packing(all) {
                    changed |= self.file(slice);
                }
                heap::pack(&mut self.filed);
                changed
            }
        }
    }

    /// Files a slice under its service, and no longer under another.
    fn file(&mut self, slice: EndpointSlice) -> bool {
        let service = slice.service.clone();
        self.touch(&service);
        let filed = self.filed.get(&slice.key);
        let (stays, moved) = (filed == Some(&service), filed.is_some_and(|held| *held != service));
        if moved {
            self.unfile(&slice.key);
        }
        if !stays {
            self.filed.insert(slice.key.clone(), service.clone());
        }
        let key = (service, slice.key.name.clone());
        let before = self.snapshot.slices.get(&key).map(Arc::clone);
        if !insert(&mut self.snapshot.slices, key, slice) {
            return moved;
        }
        if let Some(before) = before {
            self.note_departed(&before);
        }
        true
    }

    fn unfile(&mut self, key: &ObjectKey) -> bool {
        let Some(service) = self.filed.remove(key) else { return false };
        self.touch(&service);
        let removed = self.snapshot.slices.remove(&(service, key.name.clone()));
        if let Some(before) = &removed {
            self.note_departed(before);
        }
        removed.is_some()
    }

    /// Notes the endpoints of a slice as it was that were terminating there, and that no slice of
    /// the service has now, though their address may be a new pod's.
    fn note_departed(&mut self, before: &EndpointSlice) {
        let service = &before.service;
        let revision = self.snapshot.revision + 1;
        for endpoint in before.endpoints.iter().filter(|endpoint| endpoint.terminating) {
            let address = endpoint.address;
            let were = before.endpoints.iter().filter(|other| other.address == address);
            let were: Vec<_> = were.map(|other| before.pod(other)).collect();
            let stays = self.snapshot.endpoints_of(service).any(|(slice, other)| {
                let pod = slice.pod(other);
                other.address == address
                    && (pod.is_none() || were.contains(&pod) || were.contains(&None))
            });
            if !stays {
                let key = (service.clone(), address);
                self.snapshot.departed.insert(key.clone(), revision);
                self.departed.push_back((revision, key));
            }
        }
        while self.departed.len() > DEPARTED_MAX {
            let Some((revision, key)) = self.departed.pop_front() else { break };
            if self.snapshot.departed.get(&key) == Some(&revision) {
                self.snapshot.departed.remove(&key);
            }
        }
    }
}

/// Takes in what became of a kind's objects. False where that says nothing new.
fn apply<K: Ord + Clone, T: PartialEq>(
    held: &mut imbl::OrdMap<K, Arc<T>>,
    synced: &mut bool,
    event: Event<T, K>,
    key: impl Fn(&T) -> K,
) -> bool {
    match event {
        Event::Apply(value) => insert(held, key(&value), value),
        Event::Delete(key) => held.remove(&key).is_some(),
        Event::Replace(all) => {
            let changed =
                replace(held, all.into_iter().map(|value| (key(&value), value)).collect());
            !std::mem::replace(synced, true) || changed
        }
    }
}

/// Puts a value in its place; false where an equal one is there, which then stays: consumers see
/// by identity that nothing changed.
fn insert<K: Ord + Clone, T: PartialEq>(
    held: &mut imbl::OrdMap<K, Arc<T>>,
    key: K,
    value: T,
) -> bool {
    let news = held.get(&key).is_none_or(|held| **held != value);
    if news {
        held.insert(key, Arc::new(value));
    }
    news
}

fn replace<K: Ord + Clone, T: PartialEq>(
    held: &mut imbl::OrdMap<K, Arc<T>>,
    all: Vec<(K, T)>,
) -> bool {
    let listed: BTreeSet<&K> = all.iter().map(|(key, _)| key).collect();
    let gone: Vec<K> = held.keys().filter(|key| !listed.contains(key)).cloned().collect();
    let mut changed = !gone.is_empty();
    for key in gone {
        held.remove(&key);
    }
    for (key, value) in heap::packing(all) {
        changed |= insert(held, key, value);
    }
    changed
}

/// Where snapshots go: to all, and to those who don't wait for EndpointSlices.
#[derive(Debug)]
pub struct Publish {
    pub(super) all: watch::Sender<Arc<Snapshot>>,
    pub(super) calm: watch::Sender<Arc<Snapshot>>,
}

impl Publish {
    fn publish(&self, snapshot: Arc<Snapshot>) {
        self.all.send_replace(Arc::clone(&snapshot));
        self.calm.send_if_modified(|known| {
            let differs = !known.same_but_for_slices(&snapshot);
            *known = snapshot;
            differs
        });
    }
}

/// Publishes snapshots until told to stop or until no watch is left.
pub async fn run(
    mut changes: mpsc::Receiver<Arrived>,
    publish: Publish,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let mut state = ClusterState::default();
    let take = |arrived: Arrived, state: &mut ClusterState| {
        let arrival = arrived.arrival();
        let changed = state.apply(arrived.change);
        if changed {
            metrics.arrivals.note(Arrival { revision: state.snapshot().revision, ..arrival });
        }
        Taken { changed, listed: arrival.listed }
    };
    let (mut gathered, mut digested) = (Instant::now(), None);
    loop {
        let first = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            first = changes.recv() => first,
            () = sleep_until(digested.unwrap_or(gathered)), if digested.is_some() => {
                digested = None;
                heap::give_back();
                continue;
            }
        };
        let Some(first) = first else { return Ok(()) };
        let mut taken = take(first, &mut state);
        if taken.changed {
            sleep_until(gathered).await;
        }
        for _ in 0..GATHERED_MAX {
            let Ok(next) = changes.try_recv() else { break };
            taken |= take(next, &mut state);
        }
        if taken.changed {
            publish.publish(state.publication());
            gathered = Instant::now() + GATHER;
        }
        if taken.listed {
            digested = Some(Instant::now() + DIGESTED);
        }
    }
}

/// What there was among changes.
#[derive(Clone, Copy)]
struct Taken {
    /// Something new.
    changed: bool,
    /// A whole list.
    listed: bool,
}

impl BitOrAssign for Taken {
    fn bitor_assign(&mut self, other: Self) {
        self.changed |= other.changed;
        self.listed |= other.listed;
    }
}

#[cfg(test)]
mod tests {
    use imbl::OrdMap;

    use super::*;
    use crate::model::endpoints::Endpoint;

    fn slice(name: &str, service: &str) -> EndpointSlice {
        EndpointSlice::new(ObjectKey::new("default", service), name, false)
    }

    fn slices_of(state: &ClusterState, service: &str) -> Vec<String> {
        let service = ObjectKey::new("default", service);
        state.snapshot().slices_of(&service).map(|slice| slice.key.name.to_string()).collect()
    }

    #[test]
    fn a_slice_that_changes_its_service_moves() {
        let mut state = ClusterState::default();
        assert!(state.apply(Change::Slices(Event::Apply(slice("x", "a")))));
        assert!(!state.apply(Change::Slices(Event::Apply(slice("x", "a")))), "nothing new");
        assert!(state.apply(Change::Slices(Event::Apply(slice("x", "b")))));
        assert_eq!(slices_of(&state, "a"), [""; 0]);
        assert_eq!(slices_of(&state, "b"), ["x"]);
        assert!(state.apply(Change::Slices(Event::Delete(ObjectKey::new("default", "x")))));
        assert!(state.snapshot().slices.is_empty());
    }

    #[test]
    fn what_a_relist_lacks_is_removed() {
        let mut state = ClusterState::default();
        for name in ["x", "y"] {
            state.apply(Change::Slices(Event::Apply(slice(name, "a"))));
        }
        assert!(!state.snapshot().synced.slices);
        assert!(
            state.apply(Change::Slices(Event::Replace(vec![slice("y", "a"), slice("z", "a")])))
        );
        assert_eq!(slices_of(&state, "a"), ["y", "z"]);
        assert!(state.snapshot().synced.slices);
        let again = vec![slice("z", "a"), slice("y", "a")];
        assert!(!state.apply(Change::Slices(Event::Replace(again))), "a relist with no news");
    }

    /// What differs between publications, as they tell it, and whether they were asked to compare.
    fn told(before: &Snapshot, after: &Snapshot) -> (Vec<String>, bool) {
        let changed = after.changed_services(before);
        let compared = matches!(changed, std::borrow::Cow::Owned(_));
        (changed.iter().map(|service| service.name.to_string()).collect(), compared)
    }

    #[test]
    fn a_publication_tells_what_changed_since_the_one_before() {
        let mut state = ClusterState::default();
        state.apply(Change::Slices(Event::Replace(vec![slice("x", "a"), slice("y", "b")])));
        let listed = state.publication();
        assert_eq!(told(&Snapshot::default(), &listed), (vec!["a".into(), "b".into()], true));

        state.apply(Change::Slices(Event::Apply(slice("x", "c"))));
        let moved = state.publication();
        assert_eq!(told(&listed, &moved), (vec!["a".into(), "c".into()], false));

        state.apply(Change::Slices(Event::Delete(ObjectKey::new("default", "y"))));
        state.apply(Change::Services(Event::Delete(ObjectKey::new("default", "z"))));
        let deleted = state.publication();
        assert_eq!(told(&moved, &deleted).0, ["b", "z"]);
        let missed = (vec!["a".into(), "b".into(), "c".into()], true);
        assert_eq!(told(&listed, &deleted), missed, "who missed one compares");
    }

    #[test]
    fn where_much_changed_publications_are_compared() {
        let mut state = ClusterState::default();
        let before = state.publication();
        for service in 0..=STEP_MAX {
            state.apply(Change::Slices(Event::Apply(slice("x", &service.to_string()))));
        }
        let many = state.publication();
        assert_eq!(told(&before, &many), (vec![STEP_MAX.to_string()], true));
        state.apply(Change::Slices(Event::Apply(slice("y", "a"))));
        assert_eq!(told(&many, &state.publication()), (vec!["a".into()], false));
    }

    #[test]
    fn departed_endpoints_are_remembered_up_to_a_limit() {
        let mut state = ClusterState::default();
        let mut say = |endpoints: Vec<Endpoint>| {
            let slice = EndpointSlice { endpoints, ..slice("x", "a") };
            state.apply(Change::Slices(Event::Apply(slice)));
            let departed = &state.snapshot().departed;
            assert_eq!(departed.len().min(DEPARTED_MAX), departed.len());
            departed.clone()
        };
        let addresses = 0..u32::try_from(DEPARTED_MAX).unwrap() + 2;
        let mut departed = OrdMap::new();
        for last in addresses {
            let address = IpAddr::V4(last.into());
            let terminating = true;
            say(vec![Endpoint { terminating, ..Endpoint::ready_at(address) }]);
            departed = say(Vec::new());
        }
        assert_eq!(departed.len(), DEPARTED_MAX);
        let oldest = departed.keys().map(|(_, address)| *address).next();
        assert_eq!(oldest, Some(IpAddr::V4(2.into())), "the oldest make room");
    }

    #[test]
    fn an_empty_list_is_news_once() {
        let mut state = ClusterState::default();
        assert!(state.apply(Change::Nodes(Event::Replace(Vec::new()))));
        assert!(!state.apply(Change::Nodes(Event::Replace(Vec::new()))));
        assert!(!state.snapshot().synced.all());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_change_goes_at_once_and_what_follows_goes_together() {
        let (changes, receiver) = mpsc::channel(16);
        let (all, mut snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let (calm, calmer) = watch::channel(Arc::new(Snapshot::default()));
        let cancel = CancellationToken::new();
        let publish = Publish { all, calm };
        let task = tokio::spawn(run(receiver, publish, Arc::default(), cancel.clone()));
        let send = |name: &'static str| {
            changes.send(Change::Slices(Event::Apply(slice(name, "a"))).into())
        };
        let start = Instant::now();
        send("w").await.unwrap();
        snapshots.changed().await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        for name in ["x", "y", "z"] {
            send(name).await.unwrap();
        }
        snapshots.changed().await.unwrap();
        assert_eq!(snapshots.borrow().slices.len(), 4);
        assert!(start.elapsed() <= 2 * GATHER);
        assert!(!calmer.has_changed().unwrap(), "slices concern few");
        assert_eq!(calmer.borrow().slices.len(), 4);
        changes.send(Change::Nodes(Event::Replace(Vec::new())).into()).await.unwrap();
        snapshots.changed().await.unwrap();
        assert!(calmer.has_changed().unwrap());
        cancel.cancel();
        task.await.unwrap().unwrap();
    }
}
