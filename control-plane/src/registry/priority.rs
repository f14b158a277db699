//! Priority classes: their values, and which names are the system's.

use super::invalid::Errors;
use super::object::Object;
use super::strategy::Strategy;

/// Highest value of a class that users may make.
const HIGHEST: i64 = 1_000_000_000;
/// What the names of the system's classes begin with.
const SYSTEM_PREFIX: &str = "system-";

/// The system's classes: name, value and what they are for.
pub const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// [`Strategy`] of priority classes.
pub(super) struct PriorityClasses;

impl Strategy for PriorityClasses {
    fn default(&self, object: &mut Object) {
        object.default("/preemptionPolicy", "PreemptLowerPriority");
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let value = object.integer("/value").unwrap_or(0);
        if object.name().starts_with(SYSTEM_PREFIX) {
            let known = SYSTEM.iter().any(|(name, own, _)| *name == object.name() && *own == value);
            if !known {
                let why = "priority class names with 'system-' prefix are reserved for system use only. error: only predefined system priority classes may have it";
                errors.forbidden("metadata.name", why);
            }
        } else if value > HIGHEST {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            errors.forbidden("value", why);
        }
        let policy = object.text("/preemptionPolicy");
        let known = ["PreemptLowerPriority", "Never"];
        if !known.contains(&policy) {
            errors.not_supported("preemptionPolicy", policy, &known);
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        if object.integer("/value") != old.integer("/value") {
            errors.forbidden("value", "may not be changed in an update.");
        }
        if object.text("/preemptionPolicy") != old.text("/preemptionPolicy") {
            let value = object.text("/preemptionPolicy").to_owned();
            errors.invalid("preemptionPolicy", value, "field is immutable");
        }
    }
}
