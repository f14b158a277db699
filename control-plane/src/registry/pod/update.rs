//! What may change of a pod: images, a shorter deadline, more tolerations, fewer gates; and while it
//! has gates, narrower nodes.

use serde_json::Value;

use super::spec::items;
use crate::registry::invalid::Errors;
use crate::registry::object::Object;

const FROZEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Where a spec has its containers.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// Checks that only what may change has changed.
pub(super) fn validate(object: &Object, old: &Object, errors: &mut Errors) {
    for list in CONTAINERS {
        let count = |object: &Object| object.list(&format!("/spec/{list}")).len();
        if count(object) != count(old) {
            let why = "pod updates may not add or remove containers";
            errors.forbidden(format!("spec.{list}"), why);
            return;
        }
    }
    check_deadline(object, old, errors);
    check_tolerations(object, old, errors);
    check_gates(object, old, errors);
    let mut rest = settled(object, old);
    if !old.list("/spec/schedulingGates").is_empty() {
        narrow(&mut rest, old, errors);
    }
    if rest.at("/spec") != old.at("/spec") {
        errors.forbidden("spec", FROZEN);
    }
}

/// The pod with `old`'s values where an update may change them.
fn settled(object: &Object, old: &Object) -> Object {
    let mut settled = object.clone();
    for list in CONTAINERS {
        let place = format!("/spec/{list}");
        let images: Vec<Value> =
            old.list(&place).iter().map(|container| container["image"].clone()).collect();
        if let Some(Value::Array(containers)) = settled.at_mut(&place) {
            for (container, image) in containers.iter_mut().zip(images) {
                container["image"] = image;
            }
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        settled.copy(&format!("/spec/{field}"), old);
    }
    let grace = "/spec/terminationGracePeriodSeconds";
    if old.integer(grace).is_some_and(|was| was < 0) && object.integer(grace) == Some(1) {
        settled.copy(grace, old);
    }
    settled
}

fn check_deadline(object: &Object, old: &Object, errors: &mut Errors) {
    let at = "/spec/activeDeadlineSeconds";
    let field = "spec.activeDeadlineSeconds";
    match (object.integer(at), old.integer(at)) {
        (Some(now), Some(was)) if was < now => {
            errors.invalid(field, now, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            errors.invalid(field, Value::Null, why);
        }
        _ => {}
    }
}

/// Tolerations may be added, and be given another time.
fn check_tolerations(object: &Object, old: &Object, errors: &mut Errors) {
    let timeless = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration.as_object_mut().map(|fields| fields.remove("tolerationSeconds"));
        toleration
    };
    let now: Vec<Value> = object.list("/spec/tolerations").iter().map(timeless).collect();
    if old.list("/spec/tolerations").iter().any(|kept| !now.contains(&timeless(kept))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden("spec.tolerations", why);
    }
}

fn check_gates(object: &Object, old: &Object, errors: &mut Errors) {
    let before = old.list("/spec/schedulingGates");
    for (index, gate) in object.list("/spec/schedulingGates").iter().enumerate() {
        if !before.iter().any(|known| known["name"] == gate["name"]) {
            let name = gate["name"].as_str().unwrap_or_default();
            errors.forbidden(
                format!("spec.schedulingGates[{index}].name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            );
        }
    }
}

/// A pod with gates may come to ask for fewer nodes. Takes these changes out of `rest`.
fn narrow(rest: &mut Object, old: &Object, errors: &mut Errors) {
    const SELECTOR: &str = "/spec/nodeSelector";
    const AFFINITY: &str = "/spec/affinity/nodeAffinity";
    if rest.at(SELECTOR) != old.at(SELECTOR) {
        let kept = old.at(SELECTOR).and_then(Value::as_object).into_iter().flatten();
        let now = rest.at(SELECTOR).cloned().unwrap_or_default();
        if kept.into_iter().any(|(key, value)| now[key] != *value) {
            let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.invalid("spec.nodeSelector", now, why);
        }
        rest.copy(SELECTOR, old);
    }
    if rest.at(AFFINITY) != old.at(AFFINITY) {
        check_node_affinity(rest.at(AFFINITY), old.at(AFFINITY), errors);
        rest.copy(AFFINITY, old);
        let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
        if old.at("/spec/affinity").is_none() && rest.at("/spec/affinity").is_some_and(empty) {
            rest.remove("/spec/affinity");
        }
    }
}

/// Preferences may change as they like; of required terms only new demands may be added to each.
fn check_node_affinity(new: Option<&Value>, old: Option<&Value>, errors: &mut Errors) {
    let field = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    let terms = |affinity: Option<&Value>| -> Vec<Value> {
        let required = "/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
        let terms = affinity.and_then(|affinity| affinity.pointer(required));
        terms.and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let (now, before) = (terms(new), terms(old));
    if before.is_empty() {
        return;
    }
    let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
    if now.len() != before.len() {
        errors.invalid(format!("{field}.nodeSelectorTerms"), Value::from(now), why);
        return;
    }
    for (index, (term, kept)) in now.iter().zip(&before).enumerate() {
        let begins = |list: &str| {
            let kept = items(&kept[list]).map(|(_, requirement)| requirement);
            let now = items(&term[list]).map(|(_, requirement)| requirement);
            let kept: Vec<&Value> = kept.collect();
            now.take(kept.len()).eq(kept.iter().copied())
        };
        if !begins("matchExpressions") || !begins("matchFields") {
            let why = "only additions are allowed (no mutations or deletions)";
            errors.invalid(format!("{field}.nodeSelectorTerms[{index}]"), term.clone(), why);
        }
    }
}
