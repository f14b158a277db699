//! Numbers in a status: a row lists them, with which of them another bounds and which never fall.

use super::invalid::Errors;
use super::object::Object;
use super::rules::NOT_NEGATIVE;

/// What must hold for a number of the status.
pub enum Counter {
    /// It is not negative.
    Natural(&'static str),
    /// It is not above another one; what the message says.
    Within(&'static str, &'static str, &'static str),
    /// It is not below what it was.
    Rising(&'static str),
}

use Counter::{Natural, Rising, Within};

const ALL: &str = "cannot be greater than status.replicas";
const READY: &str = "cannot be greater than readyReplicas";

/// Of deployments.
pub(super) const DEPLOYMENT: &[Counter] = &[
    Natural("observedGeneration"),
    Natural("replicas"),
    Natural("updatedReplicas"),
    Natural("readyReplicas"),
    Natural("availableReplicas"),
    Natural("unavailableReplicas"),
    Natural("terminatingReplicas"),
    Natural("collisionCount"),
    Within("updatedReplicas", "replicas", ALL),
    Within("readyReplicas", "replicas", ALL),
    Within("availableReplicas", "replicas", ALL),
    Within("availableReplicas", "readyReplicas", READY),
    Rising("collisionCount"),
];

/// Of replica sets and replication controllers.
pub(super) const REPLICA_SET: &[Counter] = &[
    Natural("replicas"),
    Natural("fullyLabeledReplicas"),
    Natural("readyReplicas"),
    Natural("availableReplicas"),
    Natural("observedGeneration"),
    Natural("terminatingReplicas"),
    Within("fullyLabeledReplicas", "replicas", ALL),
    Within("readyReplicas", "replicas", ALL),
    Within("availableReplicas", "replicas", ALL),
    Within("availableReplicas", "readyReplicas", READY),
];

/// Of stateful sets.
pub(super) const STATEFUL_SET: &[Counter] = &[
    Natural("replicas"),
    Natural("readyReplicas"),
    Natural("currentReplicas"),
    Natural("updatedReplicas"),
    Natural("availableReplicas"),
    Natural("observedGeneration"),
    Natural("collisionCount"),
    Within("readyReplicas", "replicas", ALL),
    Within("currentReplicas", "replicas", ALL),
    Within("updatedReplicas", "replicas", ALL),
    Within("availableReplicas", "replicas", ALL),
    Within("availableReplicas", "readyReplicas", "cannot be greater than status.readyReplicas"),
    Rising("collisionCount"),
];

/// Of daemon sets.
pub(super) const DAEMON_SET: &[Counter] = &[
    Natural("currentNumberScheduled"),
    Natural("numberMisscheduled"),
    Natural("desiredNumberScheduled"),
    Natural("numberReady"),
    Natural("observedGeneration"),
    Natural("updatedNumberScheduled"),
    Natural("numberAvailable"),
    Natural("numberUnavailable"),
    Natural("collisionCount"),
    Rising("collisionCount"),
];

/// Of jobs.
pub(super) const JOB: &[Counter] = &[
    Natural("active"),
    Natural("succeeded"),
    Natural("failed"),
    Natural("ready"),
    Natural("terminating"),
];

/// Of autoscalers.
pub(super) const AUTOSCALER: &[Counter] = &[Natural("currentReplicas"), Natural("desiredReplicas")];

/// Of disruption budgets.
pub(super) const BUDGET: &[Counter] = &[
    Natural("disruptionsAllowed"),
    Natural("currentHealthy"),
    Natural("desiredHealthy"),
    Natural("expectedPods"),
];

/// Checks the numbers of a status that takes the place of another.
pub fn check(counters: &[Counter], object: &Object, old: &Object, errors: &mut Errors) {
    let of = |object: &Object, name: &str| object.integer(&format!("/status/{name}")).unwrap_or(0);
    let now = |name: &str| of(object, name);
    for counter in counters {
        match counter {
            Natural(name) if now(name) < 0 => {
                errors.invalid(format!("status.{name}"), now(name), NOT_NEGATIVE);
            }
            Within(name, most, why) if now(name) > now(most) => {
                errors.invalid(format!("status.{name}"), now(name), *why);
            }
            Rising(name) if now(name) < of(old, name) => {
                errors.invalid(format!("status.{name}"), now(name), "cannot be decremented");
            }
            _ => {}
        }
    }
}
