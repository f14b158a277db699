//! Nodes: a node may register with its status, and what identifies it can't be changed.

use serde_json::{Value, json};

use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::rules::{Rule, Test};
use super::strategy::{Strategy, address};

/// [`Strategy`] of nodes.
pub(super) struct Nodes;

/// Rules of nodes.
pub(super) const RULES: &[Rule] = &[
    Rule("spec.taints[*].key", Test::Required("")),
    Rule("spec.taints[*].key", Test::Text(names::key_fault)),
    Rule("spec.taints[*].value", Test::Text(names::label_value_fault)),
    Rule("spec.taints[*].effect", Test::Required("")),
    Rule("spec.taints[*].effect", Test::OneOf(&["NoSchedule", "PreferNoSchedule", "NoExecute"])),
];

impl Strategy for Nodes {
    fn prepare_create(&self, object: &mut Object) {
        object.default("/spec", json!({}));
        object.default("/status", json!({}));
    }

    fn keeps_status_on_create(&self) -> bool {
        true
    }

    fn prepare_status(&self, object: &mut Object, _old: &Object) {
        // kubectl and schedulers read allocatable; Kubernetes defaults it to the capacity.
        if let Some(capacity) = object.at("/status/capacity").cloned() {
            object.default("/status/allocatable", capacity);
        }
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let taints = object.list("/spec/taints");
        for (index, taint) in taints.iter().enumerate() {
            let same = |other: &Value| ["key", "effect"].iter().all(|of| other[of] == taint[of]);
            if taints[..index].iter().any(same) {
                errors.duplicate(format!("spec.taints[{index}]"), taint.clone());
            }
        }
        for (index, range) in object.list("/spec/podCIDRs").iter().enumerate() {
            let text = range.as_str().unwrap_or_default();
            let valid = text.split_once('/').is_some_and(|(base, bits)| {
                address(base).is_some_and(|base| {
                    let most = if base.is_ipv4() { 32 } else { 128 };
                    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
                })
            });
            if !valid {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.invalid(format!("spec.podCIDRs[{index}]"), range.clone(), detail);
            }
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        for (pointer, field) in [
            ("/spec/podCIDR", "spec.podCIDR"),
            ("/spec/podCIDRs", "spec.podCIDRs"),
            ("/spec/providerID", "spec.providerID"),
        ] {
            if old.at(pointer).is_some_and(|set| Some(set) != object.at(pointer)) {
                errors.forbidden(field, "node updates may not change it except from \"\" to valid");
            }
        }
    }
}
