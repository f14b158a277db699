//! Keeps a pod of each daemon set on every node that should have one.
//!
//! A look makes one step ([`step`]): pods for nodes that lack theirs, or the next pods of a rolling
//! update. Pods are made for one node each and bound there by the scheduler, which judges room and
//! ports. What templates there were, is in [`history`].

mod backoff;
mod eligible;
mod history;
mod pod;
mod status;
mod step;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use self::backoff::Backoff;
use self::eligible::Eligible;
use self::history::History;
use self::step::{Facts, Place, Step};
use super::cache::Change;
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::ownership::{self, Claim};
use super::pod_facts;
use super::queue::Queue;
use super::selector;
use super::world::{Kind, World};
use super::write::{Object, Outcome, Owner, Write};

/// The most pods that one look creates, and the most that it deletes.
const BURST: usize = 250;
/// Who tells of daemon sets.
const COMPONENT: &str = "daemonset-controller";

/// The controller of DaemonSets.
pub(crate) struct DaemonSets {
    world: Arc<World>,
    backoff: Mutex<Backoff>,
}

impl DaemonSets {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, backoff: Mutex::default() }
    }

    /// Has the sets that a change concerns looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let sets = Arc::clone(queue);
        world.subscribe::<DaemonSet>(move |_, change| {
            sets.add_all(change.key());
        });
        let sets = Arc::clone(queue);
        world.subscribe::<Pod>(move |world, change| {
            sets.add_all(concerned(world, change));
        });
        let sets = Arc::clone(queue);
        world.subscribe::<ControllerRevision>(move |world, change| {
            sets.add_all(concerned(world, change));
        });
        let sets = Arc::clone(queue);
        world.subscribe::<Node>(move |world, change| {
            if !looks_the_same(change) {
                let all = world.cache::<DaemonSet>().all();
                sets.add_all(all.iter().map(|set| Key::of(&**set)));
            }
        });
    }
}

impl Controller for DaemonSets {
    type Key = Key;
    const NAME: &'static str = "daemonset";

    async fn look(&self, key: &Key, failure: Option<&Failure>) -> Result<Outcome, LookError> {
        let mut backoff = self.backoff.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(set) = self.world.get::<DaemonSet>(key) else {
            let all = self.world.cache::<DaemonSet>().all();
            let uids: Vec<&str> =
                all.iter().filter_map(|set| set.metadata.uid.as_deref()).collect();
            backoff.keep(&uids);
            return Ok(Outcome::default());
        };
        let uid = set.uid().unwrap_or_default();
        let waits = backoff.waits(&uid, set.metadata.generation, Instant::now());
        let revisions = self.world.cache::<ControllerRevision>().in_namespace(&key.namespace);
        let seen = Seen {
            set: &set,
            revisions: &revisions,
            pods: &self.world.cache::<Pod>().in_namespace(&key.namespace),
            nodes: &self.world.cache::<Node>().all(),
            waits: &waits,
            failure,
            now: Timestamp::now(),
        };
        let Plan { outcome, replaced } = reconcile(&seen);
        backoff.replaced(&uid, &replaced, Instant::now());
        Ok(outcome)
    }
}

/// Whether a node's change is nothing that decides about pods.
fn looks_the_same(change: &Change<Node>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return false };
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels == new.metadata.labels && taints(old) == taints(new)
}

/// The sets that a change of a pod or a revision concerns: its controller, before and now, and
/// where nobody controls it every set that selects it.
fn concerned<K: Kind>(world: &World, change: &Change<K>) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for object in change.old.iter().chain(&change.new) {
        let namespace = object.namespace().unwrap_or_default();
        match ownership::controller_of(object.meta()) {
            Some(owner) if owner.kind == "DaemonSet" => {
                keys.insert(Key::new(namespace, &owner.name));
            }
            Some(_) => {}
            None => {
                let sets = world.cache::<DaemonSet>().in_namespace(&namespace);
                let selecting = sets.iter().filter(|set| {
                    set.spec.as_ref().is_some_and(|spec| {
                        ownership::claim(&set.metadata, &spec.selector, object.meta())
                            == Claim::Adopt
                    })
                });
                keys.extend(selecting.map(|set| Key::of(&**set)));
            }
        }
    }
    keys
}

/// What a look at a set sees.
pub(crate) struct Seen<'a> {
    pub(crate) set: &'a DaemonSet,
    /// The revisions of the set's namespace.
    pub(crate) revisions: &'a [Arc<ControllerRevision>],
    /// The pods of the set's namespace.
    pub(crate) pods: &'a [Arc<Pod>],
    pub(crate) nodes: &'a [Arc<Node>],
    /// Nodes whose failed pod has to wait for its replacement.
    pub(crate) waits: &'a HashMap<String, Duration>,
    pub(crate) failure: Option<&'a Failure>,
    pub(crate) now: Timestamp,
}

/// What comes of a look.
pub(crate) struct Plan {
    pub(crate) outcome: Outcome,
    /// The nodes whose failed pods are deleted.
    pub(crate) replaced: Vec<String>,
}

impl From<Outcome> for Plan {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, replaced: Vec::new() }
    }
}

/// The next step of a daemon set.
pub(crate) fn reconcile(seen: &Seen<'_>) -> Plan {
    let set = seen.set;
    let empty = set.spec.as_ref().is_none_or(|spec| selector::is_empty(&spec.selector));
    // An empty selector would select everything; the API refuses it. The pods of a set that goes
    // are the garbage collector's.
    if empty || set.metadata.deletion_timestamp.is_some() {
        return Outcome::default().into();
    }
    let claims = claims(seen);
    if !claims.is_empty() {
        // The changed objects bring us back here.
        return Outcome::from(vec![Write::Together(claims)]).into();
    }
    let history = History::new(set, seen.revisions);
    let due = history.due(seen);
    let Some(hash) = history.hash().filter(|_| due.is_none()) else {
        return Outcome::from(due.into_iter().collect::<Vec<_>>()).into();
    };
    let mine: Vec<&Arc<Pod>> = seen
        .pods
        .iter()
        .filter(|pod| ownership::is_controlled_by(&pod.metadata, &set.metadata))
        .collect();
    let facts = Facts { set, hash, waits: seen.waits, now: seen.now };
    let places = places(seen, &mine);
    let mut step = step::manage(&facts, &places);
    step.delete.extend(lost(seen, &mine));
    if step.is_empty() && step::rolls(set) {
        step = Step { wait: step.wait, ..step::roll(&facts, &places) };
    }
    let status = status::write(set, &facts, &places);
    let mut writes = writes(seen, hash, &step);
    if writes.is_empty() {
        writes.extend(status);
        writes.extend(history.surplus(set, &mine));
    } else if seen.failure.is_some() {
        // Told before the next attempt, which may fail again. Else the pods that change bring us
        // back here, and the status waits until then.
        writes.splice(0..0, status);
    }
    let again = [step.wait, status::next_availability(&facts, &places)];
    let replaced = step.failed.iter().map(|(node, _)| (*node).to_owned()).collect();
    let outcome = Outcome { writes, again_after: again.into_iter().flatten().min() };
    Plan { outcome, replaced }
}

fn claims(seen: &Seen<'_>) -> Vec<Write> {
    let Some(spec) = &seen.set.spec else { return Vec::new() };
    let owner = &seen.set.metadata;
    let reference = || ownership::controller_reference(seen.set);
    let pods = seen.pods.iter().filter_map(|pod| {
        match ownership::claim(owner, &spec.selector, &pod.metadata) {
            Claim::Adopt if pod_facts::is_active(pod) => {
                Some(ownership::adopt(&**pod, reference()))
            }
            Claim::Release => Some(ownership::release(&**pod, owner)),
            Claim::Mine | Claim::Foreign | Claim::Adopt => None,
        }
    });
    let revisions = seen.revisions.iter().filter_map(|one| {
        match ownership::claim(owner, &spec.selector, &one.metadata) {
            Claim::Adopt => Some(ownership::adopt(&**one, reference())),
            Claim::Release => Some(ownership::release(&**one, owner)),
            Claim::Mine | Claim::Foreign => None,
        }
    });
    pods.chain(revisions).collect()
}

/// Every node with the set's pods for it.
fn places<'a>(seen: &Seen<'a>, mine: &[&'a Arc<Pod>]) -> Vec<Place<'a>> {
    let mut pods: HashMap<&str, Vec<&'a Arc<Pod>>> = HashMap::new();
    for pod in mine {
        if let Some(node) = pod::node_of(pod) {
            pods.entry(node).or_default().push(pod);
        }
    }
    let eligible = Eligible::new(seen.set);
    let place = |node: &'a Arc<Node>| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut pods = pods.remove(name).unwrap_or_default();
        let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        pods.sort_by_key(|pod| (created(pod), pod.name_any()));
        Place { node: name, fit: eligible.on(node), pods }
    };
    seen.nodes.iter().map(place).collect()
}

/// Pods that wait for a node that is gone. Those that were bound to it are the pod garbage
/// collector's.
fn lost<'a>(seen: &Seen<'_>, mine: &[&'a Arc<Pod>]) -> Vec<&'a Arc<Pod>> {
    let known = |name: &str| seen.nodes.iter().any(|node| node.name_any() == name);
    let waits = |pod: &&&'a Arc<Pod>| {
        pod_facts::node_name(pod).is_none()
            && !pod_facts::is_terminating(pod)
            && pod::node_of(pod).is_some_and(|node| !known(node))
    };
    mine.iter().filter(waits).copied().collect()
}

fn writes(seen: &Seen<'_>, hash: &str, step: &Step<'_>) -> Vec<Write> {
    let set = seen.set;
    let mut writes: Vec<Write> = step
        .failed
        .iter()
        .map(|(node, pod)| {
            let pod = Key::of(&***pod);
            let message =
                format!("Found failed daemon pod {pod} on node {node}, will try to kill it");
            Write::warn(set, COMPONENT, "FailedDaemonPod", message)
        })
        .collect();
    writes.extend(step.ended.iter().map(|pod| {
        let pod = Key::of(&***pod);
        let message = format!("Found succeeded daemon pod {pod}, will try to delete it");
        Write::tell(set, COMPONENT, "SucceededDaemonPod", message)
    }));
    let owner = Owner::of(set, COMPONENT);
    writes.extend(Write::delete_pods(step.delete.iter().take(BURST).map(|pod| &***pod), &owner));
    let pods: Vec<Object> =
        step.create.iter().take(BURST).map(|node| pod::new(set, hash, node).into()).collect();
    writes.extend((!pods.is_empty()).then_some(Write::SlowStart(pods, owner)));
    writes
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
