//! What an autoscaler goes by: metrics of five kinds, each with its own description and target.

use serde_json::Value;

use crate::registry::NameRule;
use crate::registry::invalid::Errors;
use crate::registry::names;
use crate::schema::quantity;

/// A kind of metric.
struct Source {
    /// `type` of the metric.
    kind: &'static str,
    /// The field that describes it.
    field: &'static str,
    /// Checks what the field holds.
    check: fn(&Value, &str, &mut Errors),
}

/// The kinds, in the order in which Kubernetes looks for them.
const SOURCES: &[Source] = &[
    Source { kind: "Object", field: "object", check: check_object },
    Source { kind: "External", field: "external", check: check_external },
    Source { kind: "Pods", field: "pods", check: check_pods },
    Source { kind: "Resource", field: "resource", check: check_resource },
    Source { kind: "ContainerResource", field: "containerResource", check: check_container },
];
const KINDS: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];

/// Checks one metric: it has the description of its kind and no other.
pub(super) fn check(metric: &Value, place: &str, errors: &mut Errors) {
    let kind = metric["type"].as_str().unwrap_or_default();
    if kind.is_empty() {
        errors.required(format!("{place}.type"), "must specify a metric source type");
    }
    if !KINDS.contains(&kind) {
        errors.not_supported(format!("{place}.type"), kind, KINDS);
    }
    let present: Vec<&Source> =
        SOURCES.iter().filter(|source| metric.get(source.field).is_some()).collect();
    if let Some(first) = present.first() {
        (first.check)(&metric[first.field], &format!("{place}.{}", first.field), errors);
    }
    for source in SOURCES.iter().filter(|source| source.kind == kind) {
        if metric.get(source.field).is_none() {
            let why = "must populate information for the given metric source";
            errors.required(format!("{place}.{}", source.field), why);
        }
    }
    if !KINDS.contains(&kind) {
        // Kubernetes looks twice.
        errors.not_supported(format!("{place}.type"), kind, KINDS);
    }
    if present.len() == 1 {
        return;
    }
    for other in present.iter().filter(|source| source.kind != kind) {
        let why = "must populate the given metric source only";
        errors.forbidden(format!("{place}.{}", other.field), why);
    }
}

fn check_object(source: &Value, place: &str, errors: &mut Errors) {
    for part in ["kind", "name"] {
        let field = format!("{place}.describedObject.{part}");
        check_segment(&source["describedObject"][part], &field, "", errors);
    }
    check_name(source, place, errors);
    check_target(source, place, errors);
    if !has(source, "value") && !has(source, "averageValue") {
        let why = "must set either a target value or averageValue";
        errors.required(format!("{place}.target.averageValue"), why);
    }
}

fn check_external(source: &Value, place: &str, errors: &mut Errors) {
    check_name(source, place, errors);
    check_target(source, place, errors);
    match (has(source, "value"), has(source, "averageValue")) {
        (false, false) => {
            let why = "must set either a target value for metric or a per-pod target";
            errors.required(format!("{place}.target.averageValue"), why);
        }
        (true, true) => {
            let why = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(format!("{place}.target.value"), why);
        }
        _ => {}
    }
}

fn check_pods(source: &Value, place: &str, errors: &mut Errors) {
    check_name(source, place, errors);
    check_target(source, place, errors);
    if !has(source, "averageValue") {
        let why = "must specify a positive target averageValue";
        errors.required(format!("{place}.target.averageValue"), why);
    }
}

fn check_container(source: &Value, place: &str, errors: &mut Errors) {
    check_resource_name(source, place, errors);
    let container = source["container"].as_str().unwrap_or_default();
    let field = format!("{place}.container");
    if container.is_empty() {
        errors.required(field, "must specify a container");
    } else if let Some(fault) = names::fault(container, NameRule::Label) {
        errors.invalid(field, container, fault);
    }
    check_amount(source, place, errors);
}

fn check_resource(source: &Value, place: &str, errors: &mut Errors) {
    check_resource_name(source, place, errors);
    check_amount(source, place, errors);
}

fn check_resource_name(source: &Value, place: &str, errors: &mut Errors) {
    if source["name"].as_str().unwrap_or_default().is_empty() {
        errors.required(format!("{place}.name"), "must specify a resource name");
    }
}

/// A target in the resource's own unit, or as a part of what is asked for.
fn check_amount(source: &Value, place: &str, errors: &mut Errors) {
    check_target(source, place, errors);
    match (has(source, "averageUtilization"), has(source, "averageValue")) {
        (false, false) => {
            let why = "must set either a target raw value or a target utilization";
            errors.required(format!("{place}.target.averageUtilization"), why);
        }
        (true, true) => {
            let why = "may not set both a target raw value and a target utilization";
            errors.forbidden(format!("{place}.target.averageValue"), why);
        }
        _ => {}
    }
}

/// Whether the target of a metric says that.
fn has(source: &Value, field: &str) -> bool {
    source["target"].get(field).is_some()
}

fn check_name(source: &Value, place: &str, errors: &mut Errors) {
    let why = "must specify a metric name";
    check_segment(&source["metric"]["name"], &format!("{place}.metric.name"), why, errors);
}

/// A name that is there and can be a segment of a path.
fn check_segment(name: &Value, field: &str, missing: &str, errors: &mut Errors) {
    match name.as_str().unwrap_or_default() {
        "" => errors.required(field, missing),
        name => {
            if let Some(fault) = names::fault(name, NameRule::PathSegment) {
                errors.invalid(field, name, fault);
            }
        }
    }
}

fn check_target(source: &Value, place: &str, errors: &mut Errors) {
    let target = &source["target"];
    let at = |field: &str| format!("{place}.target.{field}");
    let kind = target["type"].as_str().unwrap_or_default();
    if kind.is_empty() {
        errors.required(at("type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errors.invalid(at("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    for field in ["value", "averageValue"] {
        let text = target[field].as_str().unwrap_or_default();
        if quantity::nanos(text).is_some_and(|amount| amount <= 0) {
            errors.invalid(at(field), text, "must be positive");
        }
    }
    if let Some(percent) = target["averageUtilization"].as_i64().filter(|percent| *percent < 1) {
        errors.invalid(at("averageUtilization"), percent, "must be greater than 0");
    }
}
