//! Keeps the number of pods that a ReplicaSet asks for.
//!
//! Pods belong to a set by ownerReference; a pod that nobody controls and that the set selects is
//! adopted, one that lost the labels is released. Missing pods are created in slow start batches,
//! surplus ones deleted in the order of [`ranking`].

mod ranking;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::cache::Change;
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::ownership::{self, Claim};
use super::pod_facts;
use super::queue::Queue;
use super::world::World;
use super::write::{Object, Outcome, Owner, Write};

/// The most pods that one look creates or deletes.
const BURST: usize = 500;
/// Who tells of replica sets.
const COMPONENT: &str = "replicaset-controller";

/// The controller of ReplicaSets.
pub(crate) struct ReplicaSets {
    world: Arc<World>,
}

impl ReplicaSets {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Has the sets that a change concerns looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let sets = Arc::clone(queue);
        world.subscribe::<ReplicaSet>(move |_, change| {
            sets.add_all(change.key());
        });
        let sets = Arc::clone(queue);
        world.subscribe::<Pod>(move |world, change| {
            sets.add_all(concerned(world, change));
        });
    }
}

impl Controller for ReplicaSets {
    type Key = Key;
    const NAME: &'static str = "replicaset";
    const WORKERS: usize = 8;

    async fn look(&self, key: &Key, failure: Option<&Failure>) -> Result<Outcome, LookError> {
        let Some(set) = self.world.get::<ReplicaSet>(key) else { return Ok(Outcome::default()) };
        let pods = self.world.cache::<Pod>().in_namespace(&key.namespace);
        let siblings = siblings(&self.world, &set);
        let now = Timestamp::now();
        Ok(reconcile(&Seen { set: &set, pods: &pods, siblings: &siblings, failure, now }))
    }
}

/// The sets that a pod's change concerns: its controller's, before and now, and for a pod that
/// nobody controls every set that selects it.
fn concerned(world: &World, change: &Change<Pod>) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for pod in change.old.iter().chain(&change.new) {
        let namespace = pod.namespace().unwrap_or_default();
        match ownership::controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "ReplicaSet" => {
                keys.insert(Key::new(namespace, &owner.name));
            }
            Some(_) => {}
            None => {
                let sets = world.cache::<ReplicaSet>().in_namespace(&namespace);
                let selecting = sets.iter().filter(|set| {
                    let selector = set.spec.as_ref().map(|spec| &spec.selector);
                    selector.is_some_and(|selector| {
                        ownership::claim(&set.metadata, selector, &pod.metadata) == Claim::Adopt
                    })
                });
                keys.extend(selecting.map(|set| Key::of(&**set)));
            }
        }
    }
    keys
}

/// The uids of the sets that share the set's controller, itself among them.
fn siblings(world: &World, set: &ReplicaSet) -> BTreeSet<String> {
    let own = set.metadata.uid.clone();
    let Some(owner) = ownership::controller_of(&set.metadata) else {
        return own.into_iter().collect();
    };
    let sets = world.cache::<ReplicaSet>().in_namespace(&set.namespace().unwrap_or_default());
    let related = sets.iter().filter(|other| {
        ownership::controller_of(&other.metadata).is_some_and(|other| other.uid == owner.uid)
    });
    related.filter_map(|other| other.metadata.uid.clone()).chain(own).collect()
}

/// What a look at a set sees.
pub(crate) struct Seen<'a> {
    pub(crate) set: &'a ReplicaSet,
    /// The pods of the set's namespace.
    pub(crate) pods: &'a [Arc<Pod>],
    /// The uids of all sets of the same deployment, for the ranking.
    pub(crate) siblings: &'a BTreeSet<String>,
    pub(crate) failure: Option<&'a Failure>,
    pub(crate) now: Timestamp,
}

/// The writes that bring the pods and the status nearer to the spec.
pub(crate) fn reconcile(seen: &Seen<'_>) -> Outcome {
    let set = seen.set;
    let Some(spec) = &set.spec else { return Outcome::default() };
    let claims = seen.pods.iter().filter_map(|pod| {
        match ownership::claim(&set.metadata, &spec.selector, &pod.metadata) {
            Claim::Adopt if pod_facts::is_active(pod) => {
                Some(ownership::adopt(&**pod, ownership::controller_reference(set)))
            }
            Claim::Release => Some(ownership::release(&**pod, &set.metadata)),
            Claim::Mine | Claim::Foreign | Claim::Adopt => None,
        }
    });
    let claims: Vec<Write> = claims.collect();
    if !claims.is_empty() {
        // The changed pods bring us back here.
        return vec![Write::Together(claims)].into();
    }
    let mine: Vec<&Arc<Pod>> = seen
        .pods
        .iter()
        .filter(|pod| ownership::is_controlled_by(&pod.metadata, &set.metadata))
        .collect();
    let active: Vec<&Arc<Pod>> =
        mine.iter().copied().filter(|pod| pod_facts::is_active(pod)).collect();
    let leaving = set.metadata.deletion_timestamp.is_some();
    let mut writes = if leaving { Vec::new() } else { scale(seen, &active) };
    // The pods that change bring us back here; the status waits until then. After a failure it is
    // told before the next attempt, which may fail again.
    if writes.is_empty() || seen.failure.is_some() {
        writes.splice(0..0, status::write(seen, &mine, &active));
    }
    Outcome { writes, again_after: next_availability(seen, &active) }
}

fn scale(seen: &Seen<'_>, active: &[&Arc<Pod>]) -> Vec<Write> {
    let owner = Owner::of(seen.set, COMPONENT);
    let wanted = wanted_replicas(seen.set);
    if let Some(missing) = wanted.checked_sub(active.len()).filter(|missing| *missing > 0) {
        let pods = vec![Object::from(new_pod(seen.set)); missing.min(BURST)];
        return vec![Write::SlowStart(pods, owner)];
    }
    let surplus = active.len().saturating_sub(wanted);
    if surplus == 0 {
        return Vec::new();
    }
    let related = seen.pods.iter().filter(|pod| {
        pod_facts::is_active(pod)
            && ownership::controller_of(&pod.metadata)
                .is_some_and(|owner| seen.siblings.contains(&owner.uid))
    });
    let ranked = ranking::first_to_go(active, related, seen.now);
    Write::delete_pods(ranked.into_iter().take(surplus.min(BURST)), &owner)
}

/// `spec.replicas`, by default 1.
fn wanted_replicas(set: &ReplicaSet) -> usize {
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

/// A pod made from the set's template.
fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let from = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.metadata.namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![ownership::controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// When the next ready pod becomes available by the passing of time.
fn next_availability(seen: &Seen<'_>, active: &[&Arc<Pod>]) -> Option<Duration> {
    let min_ready = status::min_ready_seconds(seen.set);
    let waits = active.iter().map(|pod| pod_facts::availability(pod, min_ready, seen.now));
    waits
        .filter_map(|availability| match availability {
            pod_facts::Availability::In(wait) => Some(wait),
            pod_facts::Availability::No | pod_facts::Availability::Yes => None,
        })
        .min()
}

#[cfg(test)]
mod tests;
