//! Removes pods that nobody will ever remove: bound to a node that is gone, or deleted before
//! they were bound to any.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use tokio::time::Instant;

use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::pod_facts;
use super::queue::Queue;
use super::world::World;
use super::write::{Outcome, Write};

/// How long a node has to be gone before its pods go too: it may be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);

/// The garbage collector of pods.
pub(crate) struct PodGc {
    world: Arc<World>,
    /// Since when nodes that pods name have been missing.
    missing: Mutex<HashMap<String, Instant>>,
}

impl PodGc {
    /// A collector that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, missing: Mutex::default() }
    }

    /// Has the pods that a change concerns looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let pods = Arc::clone(queue);
        world.subscribe::<Pod>(move |world, change| {
            if let Some(pod) = &change.new
                && (is_unbound_leaver(pod) || names_missing_node(world, pod))
            {
                pods.add(Key::of(&**pod));
            }
        });
        let pods = Arc::clone(queue);
        world.subscribe::<Node>(move |world, change| {
            for node in change.old.iter().filter(|_| change.is_removal()) {
                let name = node.name_any();
                let bound = |pod: &Pod| pod_facts::node_name(pod) == Some(&name);
                let bound = world.cache::<Pod>().matching(bound);
                pods.add_all(bound.iter().map(|pod| Key::of(&**pod)));
            }
        });
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
        let missing = pod_facts::node_name(&pod).and_then(|name| self.missing_for(name));
        Ok(reconcile(&pod, missing))
    }
}

fn is_unbound_leaver(pod: &Pod) -> bool {
    pod_facts::is_terminating(pod) && pod_facts::node_name(pod).is_none()
}

fn names_missing_node(world: &World, pod: &Pod) -> bool {
    pod_facts::node_name(pod).is_some_and(|name| world.get::<Node>(&Key::new("", name)).is_none())
}

/// What to do about a pod whose node has been missing for that long, if it has one.
fn reconcile(pod: &Pod, missing_for: Option<Duration>) -> Outcome {
    match missing_for {
        None if is_unbound_leaver(pod) => vec![Write::delete_now(pod)].into(),
        None => Outcome::default(),
        Some(gone) if gone >= QUARANTINE => vec![Write::delete_now(pod)].into(),
        Some(gone) => Outcome { writes: Vec::new(), again_after: QUARANTINE.checked_sub(gone) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(change: &Value) -> Pod {
        let mut object = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"containers": [], "nodeName": "n1"}});
        json_patch::merge(&mut object, change);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn inv_15_pods_of_a_node_that_is_gone_go_after_the_quarantine() {
        assert_eq!(reconcile(&pod(&json!({})), None), Outcome::default());
        let early = reconcile(&pod(&json!({})), Some(Duration::from_secs(10)));
        assert_eq!(early.again_after, Some(Duration::from_secs(30)));
        assert!(early.writes.is_empty());
        let late = reconcile(&pod(&json!({})), Some(QUARANTINE));
        let [Write::Delete(deletion)] = &late.writes[..] else { panic!("{late:?}") };
        assert_eq!((deletion.grace_period_seconds, deletion.uid.as_str()), (Some(0), "u"));
    }

    #[test]
    fn a_pod_deleted_before_it_was_bound_has_nobody_to_confirm() {
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(reconcile(&pod(&leaving), None).writes.is_empty(), "the kubelet confirms");
        let mut unbound = leaving;
        unbound["spec"] = json!({"nodeName": null});
        assert_eq!(reconcile(&pod(&unbound), None).writes.len(), 1);
        assert!(reconcile(&pod(&json!({"spec": {"nodeName": null}})), None).writes.is_empty());
    }
}
