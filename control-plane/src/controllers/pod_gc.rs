//! Removes pods that nobody will ever remove: bound to a node that is gone or out of service,
//! deleted before they were bound to any, and of those that have ended the oldest, when there are
//! too many.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use tokio::time::Instant;

use super::cache::Change;
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::pod_facts::{self, whole_seconds};
use super::queue::Queue;
use super::taints;
use super::world::World;
use super::write::{Outcome, Target, Write};

/// How long a node has to be gone before its pods go too: it may be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
/// How many pods that have ended are kept (`--terminated-pod-gc-threshold` of Kubernetes).
const ENDED_MAX: usize = 12_500;
/// The taint by which people say that a node will not come back.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The garbage collector of pods.
pub(crate) struct PodGc {
    world: Arc<World>,
    ended: Ended,
    /// Since when nodes that pods name have been missing.
    missing: Mutex<HashMap<String, Instant>>,
}

impl PodGc {
    /// A collector that reads from `world`, over the list that [`PodGc::subscribe`] made.
    pub(crate) fn new(world: Arc<World>, ended: Ended) -> Self {
        Self { world, ended, missing: Mutex::default() }
    }

    /// Has the pods that a change concerns looked at, and lists those that have ended.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) -> Ended {
        let ended = Ended::default();
        let (pods, list) = (Arc::clone(queue), ended.clone());
        world.subscribe::<Pod>(move |world, change| {
            pods.add_all(list.changed(change));
            if let Some(pod) = &change.new
                && (is_unbound_leaver(pod)
                    || names_missing_node(world, pod)
                    || is_given_up(world, pod))
            {
                pods.add(Key::of(&**pod));
            }
        });
        let pods = Arc::clone(queue);
        world.subscribe::<Node>(move |world, change| {
            let lost = change.is_removal() || change.new.as_deref().is_some_and(is_out_of_service);
            if let Some(node) = change.latest().filter(|_| lost) {
                let name = node.name_any();
                let bound = |pod: &Pod| pod_facts::node_name(pod) == Some(&name);
                let bound = world.cache::<Pod>().matching(bound);
                pods.add_all(bound.iter().map(|pod| Key::of(&**pod)));
            }
        });
        ended
    }

    /// For how long the node of that name has been missing; `None` if it is there.
    fn missing_for(&self, name: &str) -> Option<Duration> {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.world.get::<Node>(&Key::new("", name)).is_some() {
            missing.remove(name);
            return None;
        }
        Some(missing.entry(name.to_owned()).or_insert_with(Instant::now).elapsed())
    }
}

impl Controller for PodGc {
    type Key = Key;
    const NAME: &'static str = "pod-garbage-collector";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let Some(pod) = self.world.get::<Pod>(key) else { return Ok(Outcome::default()) };
        let lot = match pod_facts::node_name(&pod).and_then(|name| self.missing_for(name)) {
            Some(time) => Lot::Orphan(time),
            None if self.ended.has_too_many_before(&pod) => Lot::Surplus,
            None if is_unbound_leaver(&pod) => Lot::Unbound,
            None if is_given_up(&self.world, &pod) => Lot::GivenUp,
            None => return Ok(Outcome::default()),
        };
        Ok(reconcile(&pod, lot, Timestamp::now()))
    }
}

/// The pods that have ended, those first that go first: the evicted ones, then by age.
#[derive(Clone, Default)]
pub(crate) struct Ended(Arc<Mutex<BTreeSet<Rank>>>);

/// Whether it was not evicted, when it was made, and which it is.
type Rank = (bool, Option<Timestamp>, Key);

impl Ended {
    fn rank(pod: &Pod) -> Option<Rank> {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        let evicted = pod_facts::phase(pod) == "Failed" && reason == Some("Evicted");
        let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        pod_facts::is_terminal(pod).then(|| (!evicted, made, Key::of(pod)))
    }

    /// Takes in a change of a pod; returns the pod that goes because of it.
    fn changed(&self, change: &Change<Pod>) -> Option<Key> {
        let rank = |pod: &Option<Arc<Pod>>| pod.as_deref().and_then(Self::rank);
        let (old, new) = (rank(&change.old), rank(&change.new));
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if old == new {
            return None;
        }
        if let Some(old) = old {
            list.remove(&old);
        }
        list.extend(new);
        list.first().filter(|_| list.len() > ENDED_MAX).map(|(_, _, key)| key.clone())
    }

    /// Whether the pod is one of those that are too many.
    fn has_too_many_before(&self, pod: &Pod) -> bool {
        let Some(rank) = Self::rank(pod) else { return false };
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = list.len().saturating_sub(ENDED_MAX);
        list.iter().take(surplus).any(|other| *other == rank)
    }
}

/// Why a pod goes.
#[derive(Clone, Copy)]
enum Lot {
    /// Its node has been missing for that long.
    Orphan(Duration),
    /// It was deleted before it was bound.
    Unbound,
    /// It was deleted on a node that will not come back.
    GivenUp,
    /// It has ended, and there are enough others.
    Surplus,
}

fn is_unbound_leaver(pod: &Pod) -> bool {
    pod_facts::is_terminating(pod) && pod_facts::node_name(pod).is_none()
}

fn names_missing_node(world: &World, pod: &Pod) -> bool {
    pod_facts::node_name(pod).is_some_and(|name| world.get::<Node>(&Key::new("", name)).is_none())
}

/// Whether the pod waits for a node to confirm its deletion that people have given up.
fn is_given_up(world: &World, pod: &Pod) -> bool {
    let node = pod_facts::node_name(pod).and_then(|name| world.get::<Node>(&Key::new("", name)));
    pod_facts::is_terminating(pod) && node.is_some_and(|node| is_out_of_service(&node))
}

fn is_out_of_service(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    let ready = conditions.any(|found| found.type_ == "Ready" && found.status == "True");
    !ready && taints::of(node).iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// What to do about a pod that goes: whoever counts pods sees that it failed before it is gone.
fn reconcile(pod: &Pod, lot: Lot, now: Timestamp) -> Outcome {
    if let Lot::Orphan(gone) = lot
        && gone < QUARANTINE
    {
        return Outcome { writes: Vec::new(), again_after: QUARANTINE.checked_sub(gone) };
    }
    let failed = (!pod_facts::is_terminal(pod)).then(|| fail(pod, lot, now));
    failed.into_iter().chain([Write::delete_now(pod)]).collect::<Vec<_>>().into()
}

fn fail(pod: &Pod, lot: Lot, now: Timestamp) -> Write {
    let mut status = json!({"phase": "Failed"});
    if matches!(lot, Lot::Orphan(_)) {
        status["conditions"] = json!([{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
            "lastTransitionTime": Time(whole_seconds(now)),
        }]);
    }
    Write::StrategicPatch {
        target: Target::of(pod),
        subresource: Some("status"),
        patch: json!({"metadata": {"uid": pod.metadata.uid}, "status": status}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn pod(change: &Value) -> Pod {
        let mut object = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"containers": [], "nodeName": "n1"}, "status": {"phase": "Running"}});
        json_patch::merge(&mut object, change);
        serde_json::from_value(object).unwrap()
    }

    fn writes(pod: &Pod, lot: Lot) -> Vec<Write> {
        reconcile(pod, lot, Timestamp::UNIX_EPOCH).writes
    }

    #[test]
    fn inv_15_pods_of_a_node_that_is_gone_fail_and_go_after_the_quarantine() {
        let early = Lot::Orphan(Duration::from_secs(10));
        let early = reconcile(&pod(&json!({})), early, Timestamp::UNIX_EPOCH);
        assert_eq!(early.again_after, Some(Duration::from_secs(30)));
        assert!(early.writes.is_empty());
        let late = writes(&pod(&json!({})), Lot::Orphan(QUARANTINE));
        let [Write::StrategicPatch { patch, .. }, Write::Delete(deletion)] = &late[..] else {
            panic!("{late:?}")
        };
        assert_eq!(patch["status"]["phase"], "Failed");
        assert_eq!(patch["status"]["conditions"][0]["reason"], "DeletionByPodGC");
        assert_eq!((deletion.grace_period_seconds, deletion.uid.as_str()), (Some(0), "u"));
        // What has ended keeps its end.
        let ended = pod(&json!({"status": {"phase": "Succeeded"}}));
        let ended = writes(&ended, Lot::Orphan(QUARANTINE));
        assert!(matches!(&ended[..], [Write::Delete(_)]), "{ended:?}");
    }

    #[test]
    fn a_pod_deleted_before_it_was_bound_has_nobody_to_confirm() {
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(!is_unbound_leaver(&pod(&leaving)), "the kubelet confirms");
        let mut unbound = leaving;
        unbound["spec"] = json!({"nodeName": null});
        assert!(is_unbound_leaver(&pod(&unbound)));
        assert!(!is_unbound_leaver(&pod(&json!({"spec": {"nodeName": null}}))));
        let writes = writes(&pod(&unbound), Lot::Unbound);
        let [Write::StrategicPatch { patch, .. }, Write::Delete(_)] = &writes[..] else {
            panic!("{writes:?}")
        };
        assert_eq!(patch["status"], json!({"phase": "Failed"}));
    }

    #[test]
    fn nobody_waits_for_a_node_that_is_out_of_service() {
        let node = |ready: &str, taint: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n1", "resourceVersion": "1"},
                "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let (mut world, queue) = (World::default(), Arc::new(Queue::default()));
        PodGc::subscribe(&mut world, &queue);
        let leaving = pod(&json!({"metadata": {
            "resourceVersion": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        for (node, given_up) in [
            (node("Unknown", OUT_OF_SERVICE), true),
            (node("True", OUT_OF_SERVICE), false),
            (node("Unknown", "other"), false),
        ] {
            assert_eq!(is_out_of_service(&node), given_up, "{node:?}");
        }
        world.written(leaving.clone());
        while let Some(key) = queue.try_next() {
            queue.done(&key);
        }
        assert!(!is_given_up(&world, &leaving));
        world.written(node("Unknown", OUT_OF_SERVICE));
        assert!(is_given_up(&world, &leaving));
        assert_eq!(queue.try_next().map(|key| key.name), Some("p".to_owned()));
        assert!(!is_given_up(&world, &pod(&json!({}))), "it may stay as long as it is wanted");
    }

    #[test]
    fn of_pods_that_have_ended_the_evicted_and_the_oldest_go_first() {
        let ended = |name: &str, hour: usize, reason: &str| {
            Arc::new(pod(&json!({
                "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T{hour:02}:00:00Z")},
                "status": {"phase": "Failed", "reason": reason},
            })))
        };
        let list = Ended::default();
        let made = |pod: &Arc<Pod>| {
            list.changed(&Change { old: None, new: Some(Arc::clone(pod)) }).map(|key| key.name)
        };
        for index in 0..ENDED_MAX - 2 {
            assert_eq!(made(&ended(&format!("p{index}"), 10, "Error")), None);
        }
        let (old, evicted) = (ended("old", 9, "Error"), ended("evicted", 23, "Evicted"));
        assert_eq!((made(&old), made(&evicted)), (None, None));
        assert!(!list.has_too_many_before(&old) && !list.has_too_many_before(&evicted));
        let last = ended("last", 11, "Error");
        assert_eq!(made(&last), Some("evicted".to_owned()));
        assert!(list.has_too_many_before(&evicted) && !list.has_too_many_before(&old));
        assert_eq!(made(&ended("very-last", 11, "Error")), Some("evicted".to_owned()));
        assert!(list.has_too_many_before(&old));
        let gone = Change { old: Some(Arc::clone(&evicted)), new: None };
        assert_eq!(list.changed(&gone).map(|key| key.name), Some("old".to_owned()));
        let running = pod(&json!({"metadata": {"name": "old"}}));
        assert!(!list.has_too_many_before(&running));
    }
}
