//! The two strategies: RollingUpdate and Recreate.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::family::{Family, Leeway, Member};
use crate::controllers::ownership;
use crate::controllers::pod_facts;

/// How many replicas the new set may have now.
pub(super) fn new_replicas(family: &Family<'_>) -> i32 {
    let wanted = family.wanted();
    let present = family.new.as_ref().map_or(0, Member::replicas);
    if !family.is_rolling() || present > wanted {
        return wanted;
    }
    let room = family.maximum() - family.sum(Member::replicas);
    present + room.min(wanted - present).max(0)
}

/// One step of a rolling update: first the new set up, as far as the surge allows; if there is
/// nothing to do for it, the old ones down, as far as enough pods stay available.
pub(super) fn roll(family: &mut Family<'_>) {
    family.ensure_new();
    let present = family.new.as_ref().map_or(0, Member::replicas);
    let next = new_replicas(family);
    if next != present {
        family.scale_new(next);
        return;
    }
    let Leeway { unavailable, .. } = family.leeway();
    let minimum = family.wanted() - unavailable;
    shrink_unhealthy(family, minimum);
    shrink_available(family, minimum);
}

/// Takes replicas that are not available from old sets: they serve nobody, and may be stuck.
fn shrink_unhealthy(family: &mut Family<'_>, minimum: i32) {
    let coming = family.new.as_ref().map_or(0, |new| new.replicas() - new.available());
    let mut room = family.sum(Member::replicas) - minimum - coming;
    for index in 0..family.old.len() {
        let old = &family.old[index];
        let unhealthy = old.replicas() - old.available();
        let step = unhealthy.min(room);
        if step > 0 {
            let rest = old.replicas() - step;
            family.scale_old(index, rest);
            room -= step;
        }
    }
}

/// Takes available replicas from old sets, as many as are available above the minimum.
fn shrink_available(family: &mut Family<'_>, minimum: i32) {
    // What the step before took was not available; what is left of a set may be fewer.
    let coming = family.new.as_ref().map_or(0, |new| new.replicas() - new.available());
    let room = family.sum(Member::replicas) - minimum - coming;
    let mut room = (family.sum(Member::available) - minimum).min(room);
    for index in 0..family.old.len() {
        let replicas = family.old[index].replicas();
        let step = replicas.min(room);
        if step > 0 {
            family.scale_old(index, replicas - step);
            room -= step;
        }
    }
}

/// One step of Recreate: all old sets to zero; when their last pod is gone, the new set up.
pub(super) fn recreate(family: &mut Family<'_>, pods: &[Arc<Pod>]) {
    let mut shrunk = false;
    for index in 0..family.old.len() {
        if family.old[index].replicas() > 0 {
            family.scale_old(index, 0);
            shrunk = true;
        }
    }
    let runs = |pod: &&Arc<Pod>| {
        !pod_facts::is_terminal(pod)
            && family
                .old
                .iter()
                .any(|old| ownership::is_controlled_by(&pod.metadata, &old.set.metadata))
    };
    if shrunk || pods.iter().any(|pod| runs(&pod)) {
        return;
    }
    family.ensure_new();
    let wanted = family.wanted();
    if family.new.as_ref().is_some_and(|new| new.replicas() != wanted) {
        family.scale_new(wanted);
    }
}
