//! Nodes: a node may register with its status, and what identifies it can't be changed.

use serde_json::{Value, json};

use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::rules::{self, Rule, Test};
use super::strategy::Strategy;

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
    fn default(&self, object: &mut Object) {
        // Each of the two follows from the other.
        let first = object.at("/spec/podCIDRs/0").cloned();
        match (first, object.at("/spec/podCIDR").cloned()) {
            (Some(first), None) => object.set("/spec/podCIDR", first),
            (None, Some(range)) => object.set("/spec/podCIDRs", json!([range])),
            _ => {}
        }
    }

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
        check_ranges(object, errors);
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        let (now, before) = (object.list("/spec/podCIDRs"), old.list("/spec/podCIDRs"));
        if !before.is_empty() {
            let changed = if now.len() == before.len() {
                now.iter().zip(before).filter(|(now, before)| now != before).count()
            } else {
                1
            };
            let why = "node updates may not change podCIDR except from \"\" to valid";
            (0..changed).for_each(|_| errors.forbidden("spec.podCIDRs", why));
        }
        let provider = old.text("/spec/providerID");
        if !provider.is_empty() && object.text("/spec/providerID") != provider {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.forbidden("spec.providerID", why);
        }
        check_addresses(object, errors);
    }

    fn validate_status(&self, object: &Object, _old: &Object, errors: &mut Errors) {
        check_addresses(object, errors);
    }
}

/// Checks the ranges of a node's pods: one, or one of each family, of which `podCIDR` is the first.
fn check_ranges(object: &Object, errors: &mut Errors) {
    let ranges = object.list("/spec/podCIDRs");
    let texts = || ranges.iter().map(|range| range.as_str().unwrap_or_default());
    let mut valid = true;
    for (index, text) in texts().enumerate().filter(|(_, text)| !rules::is_cidr(text)) {
        valid = false;
        errors.invalid(format!("spec.podCIDRs[{index}]"), text, rules::NO_CIDR);
    }
    let families = texts().filter(|text| text.contains(':')).count();
    if valid && ranges.len() > 1 && (ranges.len(), families) != (2, 1) {
        let why = "may specify no more than one CIDR for each IP family";
        errors.invalid("spec.podCIDRs", Value::from(ranges.to_vec()), why);
    }
    let (first, said) = (ranges.first().and_then(Value::as_str), object.text("/spec/podCIDR"));
    if first.is_some_and(|first| first != said) {
        let why = "must be the first of `podCIDRs`";
        errors.invalid("spec.podCIDR", said, why);
    }
}

fn check_addresses(object: &Object, errors: &mut Errors) {
    let addresses = object.list("/status/addresses");
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            errors.duplicate(format!("status.addresses[{index}]"), address.clone());
        }
    }
}
