//! Says in the status of PodDisruptionBudgets how many of their pods may be evicted now. The API
//! server counts down what it says with each eviction, and asks again here by doing so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::ownership::controller_of;
use super::queue::Queue;
use super::share::{self, Round};
use super::world::{Kind, World};
use super::write::{Outcome, Write};
use super::{pod_facts, selector};

/// How long a pod whose eviction was allowed counts as gone although it is still there.
const EVICTION_TIME: Duration = Duration::from_mins(2);
/// The condition that says whether there may be a disruption.
const ALLOWED: &str = "DisruptionAllowed";

/// The controller of budgets.
pub(crate) struct Disruption {
    world: Arc<World>,
}

impl Disruption {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Has the budgets that a change concerns looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let budgets = Arc::clone(queue);
        world.subscribe::<PodDisruptionBudget>(move |_, change| budgets.add_all(change.key()));
        let budgets = Arc::clone(queue);
        world.subscribe::<Pod>(move |world, change| {
            let states = || change.old.iter().chain(&change.new);
            let Some(key) = change.key() else { return };
            let near = world.cache::<PodDisruptionBudget>().in_namespace(&key.namespace);
            let concerned = near.iter().filter(|budget| states().any(|pod| covers(budget, pod)));
            budgets.add_all(concerned.map(|budget| Key::of(&**budget)));
        });
        // How many replicas there have to be.
        Self::follow::<ReplicaSet>(world, queue);
        Self::follow::<Deployment>(world, queue);
        Self::follow::<StatefulSet>(world, queue);
        Self::follow::<ReplicationController>(world, queue);
    }

    fn follow<K: Kind>(world: &mut World, queue: &Arc<Queue<Key>>) {
        let budgets = Arc::clone(queue);
        world.subscribe::<K>(move |world, change| {
            let Some(key) = change.key() else { return };
            let near = world.cache::<PodDisruptionBudget>().in_namespace(&key.namespace);
            budgets.add_all(near.iter().map(|budget| Key::of(&**budget)));
        });
    }

    /// The replicas that the controllers of these pods are asked for, each controller once.
    fn expected(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<i32, String> {
        let mut scales = BTreeMap::new();
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else { continue };
            let (uid, replicas) = self.scale(namespace, owner).ok_or_else(|| {
                format!("found no controller ref for pod {:?}: {}", pod.name_any(), owner.name)
            })?;
            scales.insert(uid, replicas);
        }
        Ok(scales.values().sum())
    }

    /// Identity and replicas of a controller, or of the Deployment above it.
    fn scale(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let key = Key::new(namespace, owner.name.as_str());
        let one = |replicas: Option<i32>| Some((owner.uid.clone(), replicas.unwrap_or(1)));
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.world.get::<ReplicaSet>(&key)?;
                match controller_of(&set.metadata).filter(|above| above.kind == "Deployment") {
                    Some(above) => self.scale(namespace, above),
                    None => one(set.spec.as_ref()?.replicas),
                }
            }
            "Deployment" => one(self.world.get::<Deployment>(&key)?.spec.as_ref()?.replicas),
            "StatefulSet" => one(self.world.get::<StatefulSet>(&key)?.spec.as_ref()?.replicas),
            "ReplicationController" => {
                one(self.world.get::<ReplicationController>(&key)?.spec.as_ref()?.replicas)
            }
            _ => None,
        }
    }
}

impl Controller for Disruption {
    type Key = Key;
    const NAME: &'static str = "disruption";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let Some(budget) = self.world.get::<PodDisruptionBudget>(key) else {
            return Ok(Outcome::default());
        };
        let mut pods = self.world.cache::<Pod>().in_namespace(&key.namespace);
        pods.retain(|pod| covers(&budget, pod));
        let expected = self.expected(&key.namespace, &pods);
        Ok(reconcile(&budget, &pods, expected, Timestamp::now()))
    }
}

/// Whether the budget is about the pod.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    budget.metadata.namespace == pod.metadata.namespace
        && wanted.is_some_and(|wanted| selector::selects(wanted, Some(pod.labels())))
}

/// How many pods there have to be, and how many of them healthy.
fn bounds(
    budget: &PodDisruptionBudget,
    pods: usize,
    replicas: Result<i32, String>,
) -> Result<(i32, i32), String> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let Some(spec) = &budget.spec else { return Ok((0, 0)) };
    if spec.max_unavailable.is_some() {
        let expected = replicas?;
        let most = share::of(spec.max_unavailable.as_ref(), expected, Round::Up).unwrap_or(0);
        return Ok((expected, (expected - most).max(0)));
    }
    match &spec.min_available {
        Some(IntOrString::Int(least)) => Ok((i32::try_from(pods).unwrap_or(i32::MAX), *least)),
        least => {
            let expected = replicas?;
            Ok((expected, share::of(least.as_ref(), expected, Round::Up).unwrap_or(0)))
        }
    }
}

/// The write that makes the status say how things stand, unless it does.
fn reconcile(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    replicas: Result<i32, String>,
    now: Timestamp,
) -> Outcome {
    let old = budget.status.clone().unwrap_or_default();
    let (evicted, again_after) = evicted(&old, pods, now);
    let healthy = pods.iter().filter(|pod| {
        let gone = pod_facts::is_terminating(pod) || evicted.contains_key(&pod.name_any());
        !gone && pod_facts::is_ready(pod)
    });
    let current_healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let (bounds, failure) = match bounds(budget, pods.len(), replicas) {
        Ok(bounds) => (bounds, None),
        // What nobody can count is left alone.
        Err(why) => ((old.expected_pods, old.desired_healthy), Some(why)),
    };
    let (expected_pods, desired_healthy) = bounds;
    let allowed = if failure.is_some() || expected_pods <= 0 {
        0
    } else {
        (current_healthy - desired_healthy).max(0)
    };
    let generation = budget.metadata.generation;
    let condition = condition(&old, allowed, failure, generation, now);
    let conditions = old.conditions.iter().flatten().filter(|one| one.type_ != ALLOWED).cloned();
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions.chain([condition]).collect()),
        current_healthy,
        desired_healthy,
        disrupted_pods: (!evicted.is_empty()).then_some(evicted),
        disruptions_allowed: allowed,
        expected_pods,
        observed_generation: generation,
    };
    if budget.status.as_ref() == Some(&status) {
        return Outcome { writes: Vec::new(), again_after };
    }
    let new = PodDisruptionBudget { status: Some(status), ..budget.clone() };
    Outcome { writes: vec![Write::replace_status(new)], again_after }
}

/// The condition, whose time is that of its last change.
fn condition(
    old: &PodDisruptionBudgetStatus,
    allowed: i32,
    failure: Option<String>,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let (status, reason) = match (&failure, allowed) {
        (Some(_), _) => ("False", "SyncFailed"),
        (None, 0) => ("False", "InsufficientPods"),
        (None, _) => ("True", "SufficientPods"),
    };
    let before = old.conditions.iter().flatten().find(|one| one.type_ == ALLOWED);
    let same = before.filter(|before| before.status == status);
    let now = || Time(pod_facts::whole_seconds(now));
    Condition {
        last_transition_time: same.map_or_else(now, |same| same.last_transition_time.clone()),
        message: failure.unwrap_or_default(),
        observed_generation: generation,
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: ALLOWED.to_owned(),
    }
}

/// Pods whose eviction was allowed and that are still there, and when to look at them again.
fn evicted(
    status: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let there: BTreeSet<String> = pods
        .iter()
        .filter(|pod| !pod_facts::is_terminating(pod))
        .map(|pod| pod.name_any())
        .collect();
    let mut kept = BTreeMap::new();
    let mut again: Option<Duration> = None;
    for (name, since) in status.disrupted_pods.iter().flatten() {
        let passed = Duration::try_from(now.duration_since(since.0)).unwrap_or_default();
        let Some(left) = EVICTION_TIME.checked_sub(passed).filter(|left| !left.is_zero()) else {
            continue;
        };
        if there.contains(name) {
            kept.insert(name.clone(), since.clone());
            again = Some(again.map_or(left, |again| again.min(left)));
        }
    }
    (kept, again)
}

#[cfg(test)]
mod tests {
    use super::super::write::Object;
    use super::*;
    use serde_json::{Value, json};

    fn budget(spec: &Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": {"name": "b", "namespace": "default", "generation": 3},
            "spec": spec,
        }))
        .unwrap()
    }

    fn pods(ready: usize, unready: usize) -> Vec<Arc<Pod>> {
        let pod = |number: usize| {
            let status = if number < ready { "True" } else { "False" };
            let pod = json!({"metadata": {"name": format!("p{number}"), "namespace": "default"},
                "status": {"conditions": [{"type": "Ready", "status": status}]}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        (0..ready + unready).map(pod).collect()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    /// Expected, desired, current, allowed, and the condition's reason.
    fn said(
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
        replicas: Result<i32, String>,
    ) -> (i32, i32, i32, i32, String) {
        let outcome = reconcile(budget, pods, replicas, now());
        let [Write::ReplaceSubresource("status", object)] = &outcome.writes[..] else {
            panic!("{outcome:?}")
        };
        let Object::PodDisruptionBudget(new) = object else { panic!() };
        let status = new.status.as_ref().unwrap();
        assert_eq!(status.observed_generation, Some(3));
        let reason = status.conditions.as_ref().unwrap()[0].reason.clone();
        (
            status.expected_pods,
            status.desired_healthy,
            status.current_healthy,
            status.disruptions_allowed,
            reason,
        )
    }

    #[test]
    fn bounds_are_counts_and_shares() {
        let enough = "SufficientPods".to_owned();
        let few = "InsufficientPods".to_owned();
        for (spec, ready, unready, expected) in [
            (json!({"minAvailable": 2}), 3, 0, (3, 2, 3, 1, enough.clone())),
            (json!({"minAvailable": 2}), 2, 1, (3, 2, 2, 0, few.clone())),
            (json!({"minAvailable": 2}), 0, 0, (0, 2, 0, 0, few.clone())),
            (json!({"minAvailable": "50%"}), 5, 0, (5, 3, 5, 2, enough.clone())),
            (json!({"maxUnavailable": 1}), 5, 0, (5, 4, 5, 1, enough.clone())),
            (json!({"maxUnavailable": 1}), 4, 1, (5, 4, 4, 0, few.clone())),
            (json!({"maxUnavailable": "30%"}), 5, 0, (5, 3, 5, 2, enough.clone())),
            (json!({"maxUnavailable": 9}), 5, 0, (5, 0, 5, 5, enough)),
        ] {
            assert_eq!(said(&budget(&spec), &pods(ready, unready), Ok(5)), expected, "{spec}");
        }
    }

    #[test]
    fn what_nobody_can_count_is_left_alone() {
        let asked = budget(&json!({"maxUnavailable": 1}));
        let told = said(&asked, &pods(5, 0), Err("no controller".to_owned()));
        assert_eq!((told.3, told.4.as_str()), (0, "SyncFailed"));
    }

    #[test]
    fn an_eviction_that_was_allowed_counts_until_the_pod_goes_or_its_time_is_over() {
        let mut asked = budget(&json!({"minAvailable": 1}));
        let since = |seconds: i64| Time(Timestamp::from_second(1_000_000 - seconds).unwrap());
        asked.status = Some(PodDisruptionBudgetStatus {
            disrupted_pods: Some(
                [
                    ("p0".to_owned(), since(10)),
                    ("p1".to_owned(), since(200)),
                    ("gone".to_owned(), since(1)),
                ]
                .into(),
            ),
            ..PodDisruptionBudgetStatus::default()
        });
        let outcome = reconcile(&asked, &pods(3, 0), Ok(3), now());
        assert_eq!(outcome.again_after, Some(Duration::from_secs(110)));
        assert_eq!(said(&asked, &pods(3, 0), Ok(3)).3, 1);
        let Write::ReplaceSubresource(_, object) = &outcome.writes[0] else { panic!() };
        let Object::PodDisruptionBudget(new) = object else { panic!() };
        assert!(reconcile(new, &pods(3, 0), Ok(3), now()).writes.is_empty(), "it writes for ever");
    }
}
