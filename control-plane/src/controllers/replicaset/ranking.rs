//! Which pods go first when there are too many.
//!
//! In this order: not bound to a node; pending before unknown before running; not ready; a lower
//! `pod-deletion-cost`; on a node with more replicas of the same owner; ready for a shorter time;
//! more restarts; younger. Times are compared by their order of magnitude (powers of two of a
//! second), so that among pods of about the same age the choice is spread instead of always
//! hitting the newest (KEP-2185); the uid decides between equals.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::controllers::pod_facts;

/// Annotation with the cost of deleting a pod, relative to others of its set (KEP-2255).
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Everything that the order depends on.
struct Rank<'a> {
    pod: &'a Arc<Pod>,
    bound: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    neighbors: usize,
    ready_age: Option<u32>,
    restarts: i32,
    age: Option<u32>,
    uid: &'a str,
}

/// `pods` in the order in which they have to go. `related` are the active pods of the same owner,
/// those of its other sets included.
pub(super) fn first_to_go<'a>(
    pods: &[&'a Arc<Pod>],
    related: impl Iterator<Item = &'a Arc<Pod>>,
    now: Timestamp,
) -> Vec<&'a Pod> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for node in related.filter_map(|pod| pod_facts::node_name(pod)) {
        *on_node.entry(node).or_insert(0) += 1;
    }
    let mut ranks: Vec<Rank<'a>> = pods
        .iter()
        .map(|pod| {
            let node = pod_facts::node_name(pod);
            let neighbors = node.and_then(|node| on_node.get(node)).copied().unwrap_or(0);
            rank(pod, neighbors, now)
        })
        .collect();
    ranks.sort_by(compare);
    ranks.into_iter().map(|rank| &**rank.pod).collect()
}

fn rank(pod: &Arc<Pod>, neighbors: usize, now: Timestamp) -> Rank<'_> {
    let annotations = pod.metadata.annotations.as_ref();
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    Rank {
        pod,
        bound: pod_facts::node_name(pod).is_some(),
        phase: match pod_facts::phase(pod) {
            "Running" => 2,
            "Unknown" => 1,
            _ => 0,
        },
        ready: pod_facts::is_ready(pod),
        cost: annotations
            .and_then(|annotations| annotations.get(DELETION_COST)?.parse().ok())
            .unwrap_or(0),
        neighbors,
        ready_age: pod_facts::ready_since(pod).map(|since| magnitude(since, now)),
        restarts: statuses
            .unwrap_or_default()
            .iter()
            .map(|status| status.restart_count)
            .max()
            .unwrap_or(0),
        age: created.map(|created| magnitude(created, now)),
        uid: pod.metadata.uid.as_deref().unwrap_or(""),
    }
}

fn compare(one: &Rank<'_>, other: &Rank<'_>) -> Ordering {
    let order = (one.bound, one.phase, one.ready, one.cost, Reverse(one.neighbors)).cmp(&(
        other.bound,
        other.phase,
        other.ready,
        other.cost,
        Reverse(other.neighbors),
    ));
    // An unknown time counts as the youngest.
    order
        .then_with(|| one.ready_age.cmp(&other.ready_age))
        .then_with(|| other.restarts.cmp(&one.restarts))
        .then_with(|| one.age.cmp(&other.age))
        .then_with(|| one.uid.cmp(other.uid))
}

/// The number of bits of the seconds that have passed since then.
fn magnitude(since: Timestamp, now: Timestamp) -> u32 {
    let seconds = u64::try_from(now.as_second() - since.as_second()).unwrap_or(0);
    u64::BITS - seconds.leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, change: &serde_json::Value) -> Arc<Pod> {
        let mut object = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [], "nodeName": "n1"},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            ]},
        });
        json_patch::merge(&mut object, change);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn ready_at(time: &str) -> serde_json::Value {
        json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": time}
        ]}})
    }

    /// Pods in the order in which they must go, each for another reason.
    #[test]
    fn each_criterion_in_its_place() {
        let pods = [
            pod("unbound", &json!({"spec": {"nodeName": null}})),
            pod("pending", &json!({"status": {"phase": "Pending"}})),
            pod("unknown", &json!({"status": {"phase": "Unknown"}})),
            pod("not-ready", &json!({"status": {"conditions": null}})),
            pod("cheap", &json!({"metadata": {"annotations": {DELETION_COST: "-5"}}})),
            pod("crowded", &json!({"spec": {"nodeName": "n2"}})),
            pod("ready-late", &ready_at("2026-01-01T00:59:00Z")),
            pod(
                "restarted",
                &json!({"status": {"containerStatuses": [{
                "name": "c", "restartCount": 3, "ready": true, "image": "", "imageID": ""}]}}),
            ),
            pod("young", &json!({"metadata": {"creationTimestamp": "2026-01-01T00:59:30Z"}})),
            pod("z-uid", &json!({})),
            pod("zz-uid", &json!({})),
            pod("dear", &json!({"metadata": {"annotations": {DELETION_COST: "100"}}})),
        ];
        // Others of the owner crowd n2.
        let crowd: Vec<_> = (0..12)
            .map(|index| pod(&format!("other-{index}"), &json!({"spec": {"nodeName": "n2"}})))
            .collect();
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let shuffled: Vec<&Arc<Pod>> = pods.iter().rev().collect();
        let order = first_to_go(&shuffled, pods.iter().chain(&crowd), now);
        let order: Vec<_> = order.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect();
        let expected: Vec<_> =
            pods.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn about_the_same_age_is_no_reason() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let old = pod("a", &ready_at("2026-01-01T00:00:00Z"));
        let hardly_younger = pod("b", &ready_at("2026-01-01T00:10:00Z"));
        let order = first_to_go(&[&hardly_younger, &old], std::iter::empty(), now);
        assert_eq!(order[0].metadata.name.as_deref(), Some("a"));
    }
}
