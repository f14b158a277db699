//! The status of a daemon set: nodes counted by what they have.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};

use super::eligible::Fit;
use super::step::{Facts, Place};
use crate::controllers::pod_facts::{self, Availability};
use crate::controllers::write::Write;

/// The write of the status, unless it says so already.
pub(super) fn write(set: &DaemonSet, facts: &Facts<'_>, places: &[Place<'_>]) -> Option<Write> {
    let status = compute(set, facts, places);
    if set.status.as_ref() == Some(&status) {
        return None;
    }
    let mut set = set.clone();
    set.status = Some(status);
    Some(Write::replace_status(set))
}

fn compute(set: &DaemonSet, facts: &Facts<'_>, places: &[Place<'_>]) -> DaemonSetStatus {
    let before = set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        collision_count: before.collision_count,
        conditions: before.conditions,
        observed_generation: set.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for place in places {
        let oldest = place.pods.first();
        if place.fit != Fit::Wanted {
            status.number_misscheduled += i32::from(oldest.is_some());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(pod) = oldest else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(pod_facts::is_ready(pod));
        available += i32::from(facts.is_available(pod));
        updated += i32::from(facts.is_updated(pod));
    }
    // Counts of none are left out as Kubernetes does, but for those that its type demands.
    let some = |count: i32| (count != 0).then_some(count);
    status.updated_number_scheduled = some(updated);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status
}

/// When the next ready pod becomes available by the passing of time.
pub(super) fn next_availability(facts: &Facts<'_>, places: &[Place<'_>]) -> Option<Duration> {
    let pods = places.iter().flat_map(|place| &place.pods);
    pods.filter_map(|pod| match facts.availability(pod) {
        Availability::In(wait) => Some(wait),
        Availability::No | Availability::Yes => None,
    })
    .min()
}
