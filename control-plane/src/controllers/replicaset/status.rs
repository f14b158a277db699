//! The status of a ReplicaSet: counts of pods and the condition ReplicaFailure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Seen, wanted_replicas};
use crate::controllers::pod_facts::{self, Availability};
use crate::controllers::selector;
use crate::controllers::write::Write;

/// The write of the status, unless it says so already. `mine` are all pods of the set, `active`
/// those that count as replicas.
pub(super) fn write(seen: &Seen<'_>, mine: &[&Arc<Pod>], active: &[&Arc<Pod>]) -> Option<Write> {
    let status = compute(seen, mine, active);
    if seen.set.status.as_ref() == Some(&status) {
        return None;
    }
    let mut set = seen.set.clone();
    set.status = Some(status);
    Some(Write::replace_status(set))
}

/// `spec.minReadySeconds`, by default 0.
pub(super) fn min_ready_seconds(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

fn compute(seen: &Seen<'_>, mine: &[&Arc<Pod>], active: &[&Arc<Pod>]) -> ReplicaSetStatus {
    let template = seen.set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let labels = template.and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let min_ready = min_ready_seconds(seen.set);
    let terminating = mine
        .iter()
        .filter(|pod| pod_facts::is_terminating(pod) && !pod_facts::is_terminal(pod))
        .count();
    let fully_labeled = active.iter().filter(|pod| {
        labels.is_none_or(|labels| selector::contains(pod.metadata.labels.as_ref(), labels))
    });
    let available = active
        .iter()
        .filter(|pod| pod_facts::availability(pod, min_ready, seen.now) == Availability::Yes);
    ReplicaSetStatus {
        // Counts of none are left out as Kubernetes does, but for these two.
        replicas: count(active.len()),
        terminating_replicas: Some(count(terminating)),
        fully_labeled_replicas: some(fully_labeled.count()),
        ready_replicas: some(active.iter().filter(|pod| pod_facts::is_ready(pod)).count()),
        available_replicas: some(available.count()),
        observed_generation: seen.set.metadata.generation,
        conditions: conditions(seen, active.len()),
    }
}

/// The set's conditions with ReplicaFailure put in, kept or taken out.
fn conditions(seen: &Seen<'_>, active: usize) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions =
        seen.set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let known = conditions.iter().position(|condition| condition.type_ == "ReplicaFailure");
    let wanted = wanted_replicas(seen.set);
    match (seen.failure, known) {
        (Some(failure), None) if active != wanted && failure.verb != "update" => {
            let reason = if active < wanted { "FailedCreate" } else { "FailedDelete" };
            conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(failure.message.clone()),
                last_transition_time: Some(Time(pod_facts::whole_seconds(seen.now))),
            });
        }
        (None, Some(index)) if active == wanted => drop(conditions.remove(index)),
        _ => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

fn some(pods: usize) -> Option<i32> {
    (pods > 0).then(|| count(pods))
}

fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}
