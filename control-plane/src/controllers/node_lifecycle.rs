//! Watches over nodes: a node whose Lease is not renewed is Unknown; what is wrong with a node
//! becomes taints, which the scheduler honours; pods of a silent node serve nobody.
//!
//! Nodes of a zone lose their pods one after the other ([`zones`]).
//!
//! Whether a Lease is renewed is judged by our own clock, from when we saw it change: the clocks
//! of the nodes need not agree with ours.

mod zones;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use tokio::time::Instant;

use self::zones::{Census, Turn, Turns};
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::pod_facts::{self, whole_seconds};
use super::queue::Queue;
use super::taints;
use super::world::World;
use super::write::{Outcome, Target, Write};

/// The namespace of the nodes' Leases.
const LEASES: &str = "kube-node-lease";
/// How long a node may be silent (`--node-monitor-grace-period` of Kubernetes as of 1.32 is 50 s;
/// 40 s are four renewals).
const GRACE: Duration = Duration::from_secs(40);

/// The effect of taints that pods have to leave for.
const NO_EXECUTE: &str = "NoExecute";
/// Taints that this controller gives and takes.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that keep new pods away while they are True, and the taints that say so.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that nobody can vouch for while a node is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The last renewal of a Lease, and when we saw it.
type Renewals = HashMap<String, (Option<MicroTime>, Instant)>;

/// The controller of node conditions and taints.
pub(crate) struct NodeLifecycle {
    world: Arc<World>,
    renewals: Mutex<Renewals>,
    turns: Mutex<Turns>,
}

impl NodeLifecycle {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, renewals: Mutex::default(), turns: Mutex::default() }
    }

    /// Has the nodes that a change concerns looked at. Every renewal of a Lease is one: silence is
    /// counted from when we saw the last, not from the next look that finds it. Of how many nodes
    /// are well depends what becomes of those that are not.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let nodes = Arc::clone(queue);
        world.subscribe::<Node>(move |world, change| {
            nodes.add_all(change.key());
            let well = |node: &Option<Arc<Node>>| node.as_deref().map(is_well);
            if well(&change.old) != well(&change.new) {
                let others = world.cache::<Node>().matching(|node| !is_well(node));
                nodes.add_all(others.iter().map(|node| Key::of(&**node)));
            }
        });
        let nodes = Arc::clone(queue);
        world.subscribe::<Lease>(move |_, change| {
            let lease = change.key().filter(|lease| lease.namespace == LEASES);
            nodes.add_all(lease.map(|lease| Key::new("", lease.name)));
        });
    }

    /// Whether a node that is not well loses its pods. One that does already goes on, unless not
    /// a single node is well.
    fn eviction(&self, node: &Node, now: Instant) -> Turn {
        if is_well(node) || ready(node).is_none() {
            return Turn::Never;
        }
        let nodes = self.world.cache::<Node>().matching(|_| true);
        let census = Census::of(nodes.iter().map(|node| (&**node, is_well(node))));
        if evicts(node) {
            return if census.is_blind() { Turn::Never } else { Turn::Now };
        }
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).take(node, &census, now)
    }

    /// For how long the node has been silent. A node seen for the first time is given the full
    /// grace period, whatever its Lease says.
    fn silence(&self, node: &Node, now: Instant) -> Duration {
        let name = node.name_any();
        let lease = self.world.get::<Lease>(&Key::new(LEASES, &name));
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
        let mut renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, since) = renewals.entry(name).or_insert_with(|| (renewed.clone(), now));
        if *known != renewed {
            (*known, *since) = (renewed, now);
        }
        now - *since
    }
}

impl Controller for NodeLifecycle {
    type Key = Key;
    const NAME: &'static str = "node-lifecycle";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let Some(node) = self.world.get::<Node>(key) else {
            self.renewals.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name);
            return Ok(Outcome::default());
        };
        let silence = self.silence(&node, Instant::now());
        let on_node = |pod: &Pod| pod_facts::node_name(pod) == Some(&key.name);
        let mut pods = Vec::new();
        if silence >= GRACE {
            pods = self.world.cache::<Pod>().matching(on_node);
        }
        let eviction = self.eviction(&node, Instant::now());
        Ok(reconcile(&Seen { node: &node, silence, eviction, pods: &pods, now: Timestamp::now() }))
    }
}

/// What a look at a node sees.
struct Seen<'a> {
    node: &'a Node,
    /// For how long the node has not renewed its Lease.
    silence: Duration,
    /// Whether it loses its pods if it is not well.
    eviction: Turn,
    /// The pods of the node, if it is silent.
    pods: &'a [Arc<Pod>],
    now: Timestamp,
}

fn reconcile(seen: &Seen<'_>) -> Outcome {
    let silent = seen.silence >= GRACE;
    let again_after = GRACE.checked_sub(seen.silence).filter(|_| !silent);
    if silent && ready(seen.node).is_some_and(|status| status != "Unknown") {
        // The answer brings us back for the taints.
        return Outcome { writes: vec![unknown(seen)], again_after };
    }
    let waits = match seen.eviction {
        Turn::In(wait) => Some(wait),
        _ => None,
    };
    let again_after = again_after.into_iter().chain(waits).min();
    let evict = seen.eviction == Turn::Now;
    let mut writes: Vec<Write> = taint(seen.node, evict, seen.now).into_iter().collect();
    // A node that says itself that it is not ready goes on to tell how its pods are, and so does
    // one that renews again: only for a silent one somebody else has to speak.
    if silent && ready(seen.node) == Some("Unknown") {
        let unready = seen.pods.iter().filter(|pod| pod_facts::is_ready(pod));
        let unready: Vec<Write> = unready.map(|pod| not_ready(pod, seen.now)).collect();
        writes.extend((!unready.is_empty()).then_some(Write::Together(unready)));
    }
    Outcome { writes, again_after }
}

/// The status of the node's condition of that type.
fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    let found: Option<&NodeCondition> = conditions.iter().find(|found| found.type_ == type_);
    found.map(|found| found.status.as_str())
}

fn ready(node: &Node) -> Option<&str> {
    condition(node, "Ready")
}

/// Whether the node is ready; one that has not reported yet is not.
fn is_well(node: &Node) -> bool {
    ready(node) == Some("True")
}

/// Whether the node has a taint of ours that pods leave for.
fn evicts(node: &Node) -> bool {
    let ours = |taint: &Taint| taint.key == NOT_READY || taint.key == UNREACHABLE;
    taints::of(node).iter().any(|taint| ours(taint) && taint.effect == NO_EXECUTE)
}

/// Says that nobody knows how the node is.
fn unknown(seen: &Seen<'_>) -> Write {
    let now = Time(whole_seconds(seen.now));
    let conditions =
        REPORTED.iter().filter(|type_| **type_ == "Ready" || condition(seen.node, type_).is_some());
    let conditions: Vec<_> = conditions
        .map(|type_| {
            json!({
                "type": type_,
                "status": "Unknown",
                "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
                "lastTransitionTime": now,
            })
        })
        .collect();
    Write::StrategicPatch {
        target: Target::of(seen.node),
        subresource: Some("status"),
        patch: json!({
            "metadata": {"resourceVersion": seen.node.metadata.resource_version},
            "status": {"conditions": conditions},
        }),
    }
}

/// Key and effect of the taints that the node should have of those that are ours; whether those
/// are among them that pods leave for, is said by `evict`.
fn wanted_taints(node: &Node, evict: bool) -> Vec<(&'static str, &'static str)> {
    let key = match ready(node) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        Some(_) | None => Some(NOT_READY),
    };
    let mut taints: Vec<_> = key.map(|key| (key, "NoSchedule")).into_iter().collect();
    // One that has not reported yet has no pods.
    let leave = key.filter(|_| evict && ready(node).is_some());
    taints.extend(leave.map(|key| (key, NO_EXECUTE)));
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        taints.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let pressures = PRESSURES.iter().filter(|(type_, _)| condition(node, type_) == Some("True"));
    taints.extend(pressures.map(|(_, taint)| (*taint, "NoSchedule")));
    taints
}

/// The write that gives the node the taints that it should have, unless it has them.
fn taint(node: &Node, evict: bool, now: Timestamp) -> Option<Write> {
    let present = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let wanted = wanted_taints(node, evict);
    let ours = |key: &str| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key)
            || PRESSURES.iter().any(|(_, taint)| *taint == key)
    };
    let stays = |taint: &&Taint| {
        !ours(&taint.key) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str()))
    };
    let mut taints: Vec<Taint> = present.iter().filter(stays).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: (effect == NO_EXECUTE).then(|| Time(whole_seconds(now))),
                value: None,
            });
        }
    }
    (taints != present).then(|| Write::MergePatch {
        target: Target::of(node),
        subresource: None,
        patch: json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        }),
    })
}

/// Takes a pod out of service whose node cannot vouch for it.
fn not_ready(pod: &Arc<Pod>, now: Timestamp) -> Write {
    Write::StrategicPatch {
        target: Target::of(&**pod),
        subresource: Some("status"),
        patch: json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "Ready",
                "status": "False",
                "reason": "NodeNotReady",
                "message": "Node is not ready",
                "lastTransitionTime": Time(whole_seconds(now)),
            }]},
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn node(change: &Value) -> Node {
        let mut object = json!({
            "metadata": {"name": "n1", "resourceVersion": "5"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        json_patch::merge(&mut object, change);
        serde_json::from_value(object).unwrap()
    }

    fn ready_is(status: &str) -> Value {
        json!({"status": {"conditions": [{"type": "Ready", "status": status}]}})
    }

    fn look(node: &Node, silence: u64, pods: &[Arc<Pod>]) -> Outcome {
        let silence = Duration::from_secs(silence);
        turned(node, silence, pods, Turn::Now)
    }

    fn turned(node: &Node, silence: Duration, pods: &[Arc<Pod>], eviction: Turn) -> Outcome {
        reconcile(&Seen { node, silence, eviction, pods, now: Timestamp::UNIX_EPOCH })
    }

    /// `key:effect` of the taints that are written.
    fn taints(outcome: &Outcome) -> Vec<String> {
        let [Write::MergePatch { patch, subresource: None, .. }, ..] = &outcome.writes[..] else {
            panic!("{outcome:?}")
        };
        let taints: Vec<Taint> = serde_json::from_value(patch["spec"]["taints"].clone()).unwrap();
        taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
    }

    #[test]
    fn inv_29_a_silent_node_becomes_unknown_after_the_grace_period() {
        let outcome = look(&node(&json!({})), 39, &[]);
        assert!(outcome.writes.is_empty(), "{outcome:?}");
        assert_eq!(outcome.again_after, Some(Duration::from_secs(1)));
        let outcome = look(&node(&json!({})), 40, &[]);
        let [Write::StrategicPatch { subresource: Some("status"), patch, .. }] =
            &outcome.writes[..]
        else {
            panic!("{outcome:?}")
        };
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["status"]),
            (&json!("Ready"), &json!("Unknown"))
        );
        assert_eq!(condition["reason"], "NodeStatusUnknown");
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn taints_follow_the_condition_and_leave_others_alone() {
        let unknown = look(&node(&ready_is("Unknown")), 60, &[]);
        assert_eq!(
            taints(&unknown),
            [
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        let mut change = ready_is("True");
        change["spec"] = json!({"taints": [
            {"key": "dedicated", "value": "db", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
        ]});
        assert_eq!(taints(&look(&node(&change), 1, &[])), ["dedicated:NoSchedule"]);
        let mut change = ready_is("False");
        change["spec"] = json!({"unschedulable": true});
        assert_eq!(
            taints(&look(&node(&change), 1, &[])),
            [
                "node.kubernetes.io/not-ready:NoSchedule",
                "node.kubernetes.io/not-ready:NoExecute",
                "node.kubernetes.io/unschedulable:NoSchedule"
            ]
        );
    }

    #[test]
    fn a_node_loses_its_pods_when_it_is_its_turn() {
        let silent = node(&ready_is("Unknown"));
        let wait = Duration::from_secs(7);
        let look = |turn| turned(&silent, GRACE, &[], turn);
        let outcome = look(Turn::In(wait));
        assert_eq!(taints(&outcome), ["node.kubernetes.io/unreachable:NoSchedule"]);
        assert_eq!(outcome.again_after, Some(wait));
        let outcome = look(Turn::Never);
        assert_eq!(taints(&outcome), ["node.kubernetes.io/unreachable:NoSchedule"]);
        assert_eq!(outcome.again_after, None);
        assert_eq!(taints(&look(Turn::Now)).len(), 2);
    }

    #[test]
    fn nobody_loses_pods_when_no_node_is_well() {
        let (mut world, queue) = (World::default(), Arc::new(Queue::default()));
        NodeLifecycle::subscribe(&mut world, &queue);
        let controller = NodeLifecycle::new(Arc::new(world));
        let named = |name: &str, version: u64, status: &str| {
            let mut change = ready_is(status);
            change["metadata"] = json!({"name": name, "resourceVersion": version.to_string()});
            node(&change)
        };
        let silent = named("n1", 6, "Unknown");
        controller.world.written(silent.clone());
        controller.world.written(named("n2", 7, "True"));
        let now = Instant::now();
        assert_eq!(controller.eviction(&silent, now), Turn::Now);
        let mut leaving = silent;
        leaving.spec =
            serde_json::from_value(json!({"taints": [{"key": UNREACHABLE, "effect": NO_EXECUTE}]}))
                .unwrap();
        assert_eq!(controller.eviction(&leaving, now), Turn::Now, "it goes on");
        while let Some(key) = queue.try_next() {
            queue.done(&key);
        }
        controller.world.written(named("n2", 8, "Unknown"));
        assert_eq!(controller.eviction(&leaving, now), Turn::Never);
        let mut looked: Vec<String> =
            std::iter::from_fn(|| queue.try_next()).map(|key| key.name).collect();
        looked.sort();
        assert_eq!(looked, ["n1", "n2"], "the others are looked at too");
    }

    #[test]
    fn pods_of_a_silent_node_are_taken_out_of_service() {
        let pod = |status: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": "p", "namespace": "default"},
                    "spec": {"nodeName": "n1", "containers": []},
                    "status": {"conditions": [{"type": "Ready", "status": status}]},
                }))
                .unwrap(),
            )
        };
        let outcome = look(&node(&ready_is("Unknown")), 60, &[pod("True"), pod("False")]);
        let [_, Write::Together(patches)] = &outcome.writes[..] else { panic!("{outcome:?}") };
        assert_eq!(patches.len(), 1);
        // What a node that speaks says of its pods holds: contradicting it would never end.
        for (status, silence) in [("True", 1), ("False", 1), ("Unknown", 1)] {
            let outcome = look(&node(&ready_is(status)), silence, &[pod("True")]);
            let pods = outcome.writes.iter().any(|write| matches!(write, Write::Together(_)));
            assert!(!pods, "{status}: {outcome:?}");
        }
    }

    #[test]
    fn silence_is_counted_from_the_last_renewal() {
        let mut world = World::default();
        let queue = Arc::new(Queue::default());
        NodeLifecycle::subscribe(&mut world, &queue);
        let controller = NodeLifecycle::new(Arc::new(world));
        let (node, start) = (node(&json!({})), Instant::now());
        let silence =
            |second| controller.silence(&node, start + Duration::from_secs(second)).as_secs();
        for second in [0, 10] {
            let lease = json!({
                "metadata": {"name": "n1", "namespace": LEASES, "resourceVersion": format!("{}", second + 10)},
                "spec": {"renewTime": format!("2026-01-01T00:00:{second:02}.000000Z")},
            });
            controller.world.written::<Lease>(serde_json::from_value(lease).unwrap());
            // A renewal has the node looked at now: a later look would count from itself.
            let key = queue.try_next().expect("a renewal concerns its node");
            assert_eq!((key.name.as_str(), silence(second)), ("n1", 0));
            queue.done(&key);
        }
        assert_eq!(silence(50), 40);
    }
}
