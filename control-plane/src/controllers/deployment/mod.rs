//! Rolls pod templates out: one ReplicaSet per template, the new one up as the old ones go down.
//!
//! A look at a deployment makes one step; the sets' answers bring it back for the next. The steps
//! are in [`rolling`] (RollingUpdate and Recreate) and [`scale`]; they work on copies in a
//! [`family::Family`], which then tells what to write.

mod family;
mod revision;
mod rolling;
mod scale;
mod status;
mod template;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use self::family::Family;
use super::cache::Change;
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::ownership::{self, Claim};
use super::queue::Queue;
use super::selector;
use super::world::World;
use super::write::{Outcome, Write};

/// The controller of Deployments.
pub(crate) struct Deployments {
    world: Arc<World>,
}

impl Deployments {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Has the deployments that a change concerns looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let keys = Arc::clone(queue);
        world.subscribe::<Deployment>(move |_, change| {
            keys.add_all(change.key());
        });
        let keys = Arc::clone(queue);
        world.subscribe::<ReplicaSet>(move |world, change| {
            keys.add_all(concerned(world, change));
        });
        let keys = Arc::clone(queue);
        // Recreate waits for the last old pod; everything else shows in the sets' status.
        world.subscribe::<Pod>(move |world, change| {
            let gone = change.old.as_ref().filter(|_| change.is_removal());
            keys.add_all(gone.and_then(|pod| owner_of_set(world, pod)));
        });
    }
}

impl Controller for Deployments {
    type Key = Key;
    const NAME: &'static str = "deployment";

    async fn look(&self, key: &Key, failure: Option<&Failure>) -> Result<Outcome, LookError> {
        let Some(deployment) = self.world.get::<Deployment>(key) else {
            return Ok(Outcome::default());
        };
        let sets = self.world.cache::<ReplicaSet>().in_namespace(&key.namespace);
        let pods = self.world.cache::<Pod>().in_namespace(&key.namespace);
        let now = Timestamp::now();
        Ok(reconcile(&Seen { deployment: &deployment, sets: &sets, pods: &pods, failure, now }))
    }
}

/// The deployments that a set's change concerns.
fn concerned(world: &World, change: &Change<ReplicaSet>) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for set in change.old.iter().chain(&change.new) {
        let namespace = set.namespace().unwrap_or_default();
        match ownership::controller_of(&set.metadata) {
            Some(owner) if owner.kind == "Deployment" => {
                keys.insert(Key::new(namespace, &owner.name));
            }
            Some(_) => {}
            None => {
                let deployments = world.cache::<Deployment>().in_namespace(&namespace);
                let selecting = deployments.iter().filter(|deployment| {
                    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
                    selector.is_some_and(|selector| {
                        ownership::claim(&deployment.metadata, selector, &set.metadata)
                            == Claim::Adopt
                    })
                });
                keys.extend(selecting.map(|deployment| Key::of(&**deployment)));
            }
        }
    }
    keys
}

fn owner_of_set(world: &World, pod: &Pod) -> Option<Key> {
    let namespace = pod.namespace()?;
    let set = ownership::controller_of(&pod.metadata)?;
    let set = world.get::<ReplicaSet>(&Key::new(&namespace, &set.name))?;
    let owner = ownership::controller_of(&set.metadata)?;
    (owner.kind == "Deployment").then(|| Key::new(namespace, &owner.name))
}

/// What a look at a deployment sees.
pub(crate) struct Seen<'a> {
    pub(crate) deployment: &'a Deployment,
    /// The replica sets of the deployment's namespace.
    pub(crate) sets: &'a [Arc<ReplicaSet>],
    /// The pods of the deployment's namespace.
    pub(crate) pods: &'a [Arc<Pod>],
    pub(crate) failure: Option<&'a Failure>,
    pub(crate) now: Timestamp,
}

/// The next step of a deployment.
pub(crate) fn reconcile(seen: &Seen<'_>) -> Outcome {
    let deployment = seen.deployment;
    let Some(spec) = &deployment.spec else { return Outcome::default() };
    if selector::is_empty(&spec.selector) {
        // It would select everything; the API refuses such a deployment.
        return Outcome::default();
    }
    let claims = claims(seen);
    if !claims.is_empty() {
        return vec![Write::Together(claims)].into();
    }
    let mine: Vec<Arc<ReplicaSet>> = seen
        .sets
        .iter()
        .filter(|set| ownership::is_controlled_by(&set.metadata, &deployment.metadata))
        .cloned()
        .collect();
    let mut family = Family::new(deployment, &mine);
    if let Some(collision) = collision(seen, &family) {
        return vec![collision].into();
    }
    let leaving = deployment.metadata.deletion_timestamp.is_some();
    let paused = spec.paused == Some(true);
    let rolling_out = !leaving && !paused && !scale::is_due(&family);
    if rolling_out {
        if family.is_rolling() {
            rolling::roll(&mut family);
        } else {
            rolling::recreate(&mut family, seen.pods);
        }
    } else if !leaving {
        scale::scale(&mut family);
    }
    conclude(seen, &family, rolling_out, paused)
}

/// Puts the writes of a step together: the sets, then the deployment's own number and status.
fn conclude(seen: &Seen<'_>, family: &Family<'_>, rolling_out: bool, paused: bool) -> Outcome {
    let (status, again_after) = status::write(family, seen.failure, rolling_out, seen.now);
    let sets = family.writes();
    let mut writes = Vec::new();
    if seen.failure.is_some() {
        // Told before the next attempt, which may fail again.
        writes.extend(status.into_iter().chain(sets));
        return Outcome { writes, again_after };
    }
    let settled = sets.is_empty();
    writes.extend(sets);
    // Both change the resourceVersion, so one at a time; the first brings us back for the other.
    writes.extend(status.or_else(|| revision::number_deployment(family).filter(|_| rolling_out)));
    if settled && (paused || (rolling_out && status::is_complete(family))) {
        writes.extend(revision::surplus_history(family));
    }
    Outcome { writes, again_after }
}

fn claims(seen: &Seen<'_>) -> Vec<Write> {
    let deployment = seen.deployment;
    let Some(spec) = &deployment.spec else { return Vec::new() };
    let claim = |set: &Arc<ReplicaSet>| match ownership::claim(
        &deployment.metadata,
        &spec.selector,
        &set.metadata,
    ) {
        Claim::Adopt => Some(ownership::adopt(&**set, ownership::controller_reference(deployment))),
        Claim::Release => Some(ownership::release(&**set, &deployment.metadata)),
        Claim::Mine | Claim::Foreign => None,
    };
    seen.sets.iter().filter_map(claim).collect()
}

/// If the name of the set to be made is taken by another one: a higher collision count, which
/// gives the next attempt another name.
fn collision(seen: &Seen<'_>, family: &Family<'_>) -> Option<Write> {
    if family.new.is_some() || !seen.failure.is_some_and(|failure| failure.already_exists) {
        return None;
    }
    let name = template::new_replica_set(seen.deployment).name_any();
    seen.sets.iter().find(|set| set.name_any() == name)?;
    let mut deployment = seen.deployment.clone();
    let status = deployment.status.get_or_insert_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    Some(Write::replace_status(deployment))
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
