//! Evicts pods that don't tolerate a taint of the effect NoExecute of their node, at once or after
//! the time for which they do.
//!
//! The time runs from when this controller sees pod and taints together, and not from when the
//! taint was added: after a restart of the control plane nodes have the time to speak up again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
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

/// The effect of taints that pods have to leave for.
const NO_EXECUTE: &str = "NoExecute";
/// Who tells of evictions.
const COMPONENT: &str = "taint-eviction-controller";

/// The controller of evictions for taints.
pub(crate) struct TaintEviction {
    world: Arc<World>,
    /// Pods whose time runs: uid, and since when.
    running: Mutex<HashMap<Key, (String, Instant)>>,
}

impl TaintEviction {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, running: Mutex::default() }
    }

    /// Has the pods that a change concerns looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let pods = Arc::clone(queue);
        world.subscribe::<Pod>(move |_, change| {
            if concerns(change) {
                pods.add_all(change.key());
            }
        });
        let pods = Arc::clone(queue);
        world.subscribe::<Node>(move |world, change| {
            let before = change.old.as_deref().map(no_execute).unwrap_or_default();
            let after = change.new.as_deref().map(no_execute).unwrap_or_default();
            let Some(node) = change.key().filter(|_| before != after) else { return };
            let on_node = |pod: &Pod| pod_facts::node_name(pod) == Some(&node.name);
            let on_node = world.cache::<Pod>().matching(on_node);
            pods.add_all(on_node.iter().map(|pod| Key::of(&**pod)));
        });
    }

    /// For how long the pod's time has run; begins it.
    fn since(&self, key: &Key, pod: &Pod, now: Instant) -> Duration {
        let uid = pod.uid().unwrap_or_default();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let began = running.entry(key.clone()).or_insert_with(|| (uid.clone(), now));
        if began.0 != uid {
            *began = (uid, now);
        }
        now - began.1
    }

    fn stop(&self, key: &Key) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Whether a pod's change is one of its node, its tolerations, or its presence.
fn concerns(change: &Change<Pod>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    let facts = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        spec.map(|spec| (spec.node_name.clone(), spec.tolerations.clone()))
    };
    old.metadata.uid != new.metadata.uid || facts(old) != facts(new)
}

impl Controller for TaintEviction {
    type Key = Key;
    const NAME: &'static str = "taint-eviction";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        Ok(self.look_at(key, Instant::now()))
    }
}

impl TaintEviction {
    fn look_at(&self, key: &Key, now: Instant) -> Outcome {
        let pod = self.world.get::<Pod>(key).filter(|pod| !pod_facts::is_terminating(pod));
        let node = pod
            .as_ref()
            .and_then(|pod| self.world.get::<Node>(&Key::new("", pod_facts::node_name(pod)?)));
        let (Some(pod), Some(node)) = (pod, node) else {
            self.stop(key);
            return Outcome::default();
        };
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
        let Some(stay) = stay(&no_execute(&node), tolerations.unwrap_or_default()) else {
            self.stop(key);
            return Outcome::default();
        };
        let passed = self.since(key, &pod, now);
        match stay.checked_sub(passed).filter(|left| !left.is_zero()) {
            Some(left) => Outcome { writes: Vec::new(), again_after: Some(left) },
            None => evict(&pod, Timestamp::now()).into(),
        }
    }
}

/// The taints of a node that pods have to leave for.
fn no_execute(node: &Node) -> Vec<Taint> {
    taints::of(node).iter().filter(|taint| taint.effect == NO_EXECUTE).cloned().collect()
}

/// How long a pod with these tolerations may stay under these taints; `None` for ever.
fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Option<Duration> {
    let under = |taint: &Taint| -> Option<Duration> {
        let covering: Vec<&Toleration> =
            tolerations.iter().filter(|one| taints::tolerates(one, taint)).collect();
        if covering.is_empty() {
            return Some(Duration::ZERO);
        }
        // Of several tolerations the shortest time counts; one without a time sets none.
        let seconds = covering.iter().filter_map(|one| one.toleration_seconds).min()?;
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    };
    taints.iter().filter_map(under).min()
}

/// Says why the pod goes, and deletes it.
fn evict(pod: &Arc<Pod>, now: Timestamp) -> Vec<Write> {
    let message = format!("Marking for deletion Pod {}", Key::of(&**pod));
    vec![
        Write::tell(&**pod, COMPONENT, "TaintManagerEviction", message),
        Write::StrategicPatch {
            target: Target::of(&**pod),
            subresource: Some("status"),
            patch: json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [{
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "DeletionByTaintManager",
                    "message": "Taint manager: deleting due to NoExecute taint",
                    "lastTransitionTime": Time(whole_seconds(now)),
                }]},
            }),
        },
        Write::delete(&**pod),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn taint(key: &str) -> Taint {
        Taint { key: key.into(), effect: NO_EXECUTE.into(), ..Taint::default() }
    }

    fn tolerations(value: &Value) -> Vec<Toleration> {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn a_pod_stays_as_long_as_its_least_patient_toleration() {
        let for_seconds = |key: &str, seconds: i64| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        let forever = |key: &str| json!({"key": key, "operator": "Exists"});
        // Taints, tolerations, seconds that the pod stays.
        let table = [
            (vec![], json!([]), None),
            (vec!["a"], json!([]), Some(0)),
            (vec!["a"], json!([forever("a")]), None),
            (vec!["a"], json!([{"operator": "Exists"}]), None),
            (vec!["a"], json!([for_seconds("a", 300)]), Some(300)),
            (vec!["a"], json!([for_seconds("a", -5)]), Some(0)),
            (vec!["a"], json!([for_seconds("a", 300), for_seconds("a", 20)]), Some(20)),
            (vec!["a"], json!([forever("a"), for_seconds("a", 20)]), Some(20)),
            (vec!["a", "b"], json!([for_seconds("a", 300), for_seconds("b", 20)]), Some(20)),
            (vec!["a", "b"], json!([forever("a")]), Some(0)),
            (vec!["a", "b"], json!([forever("a"), for_seconds("b", 7)]), Some(7)),
            (
                vec!["a"],
                json!([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]),
                Some(0),
            ),
        ];
        for (keys, tolerated, expected) in table {
            let taints: Vec<Taint> = keys.iter().map(|key| taint(key)).collect();
            let stay = stay(&taints, &tolerations(&tolerated));
            assert_eq!(stay.map(|stay| stay.as_secs()), expected, "{keys:?} {tolerated}");
        }
    }

    #[test]
    fn time_runs_from_the_first_look_and_stops_when_the_taint_is_gone() {
        let mut world = World::default();
        let queue = Arc::new(Queue::default());
        TaintEviction::subscribe(&mut world, &queue);
        let controller = TaintEviction::new(Arc::new(world));
        let node = |version: u64, taints: &[Taint]| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n1", "resourceVersion": version.to_string()},
                "spec": {"taints": taints},
            }))
            .unwrap()
        };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u", "resourceVersion": "1"},
            "spec": {"nodeName": "n1", "containers": [], "tolerations": [
                {"key": "a", "operator": "Exists", "tolerationSeconds": 60}]},
        }))
        .unwrap();
        controller.world.written(node(2, &[]));
        controller.world.written(pod);
        let start = Instant::now();
        let look = |second: u64| {
            let key = queue.try_next().expect("a change concerns the pod");
            let outcome = controller.look_at(&key, start + Duration::from_secs(second));
            queue.done(&key);
            outcome
        };
        assert_eq!(look(0), Outcome::default());
        controller.world.written(node(3, &[taint("a")]));
        assert_eq!(look(0).again_after, Some(Duration::from_mins(1)));
        // Another taint that the pod tolerates no worse: the time goes on.
        controller.world.written(node(4, &[taint("a"), taint("a")]));
        assert_eq!(look(50).again_after, Some(Duration::from_secs(10)));
        controller.world.written(node(5, &[]));
        assert_eq!(look(50), Outcome::default());
        controller.world.written(node(6, &[taint("a")]));
        assert_eq!(look(50).again_after, Some(Duration::from_mins(1)), "it began anew");
        controller.world.written(node(7, &[taint("a"), taint("a")]));
        let writes = look(110).writes;
        let [Write::Tell(_), Write::StrategicPatch { patch, .. }, Write::Delete(_)] = &writes[..]
        else {
            panic!("{writes:?}")
        };
        assert_eq!(patch["status"]["conditions"][0]["type"], "DisruptionTarget");
    }
}
