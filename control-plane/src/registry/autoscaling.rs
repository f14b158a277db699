//! HorizontalPodAutoscalers: stored as autoscaling/v2; autoscaling/v1 is a view of them.

mod behavior;
mod metrics;

use serde_json::{Value, json};

use super::columns;
use super::counters;
use super::invalid::Errors;
use super::kinds::NAMESPACED;
use super::object::Object;
use super::rules::{Default, Fill, Rule, Test};
use super::strategy::Strategy;
use super::view::View;
use super::{Kind, NameRule, Subresource};

/// What the rows of both versions say.
pub(super) const AUTOSCALER: Kind = Kind {
    group: "autoscaling",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    rules: &[
        Rule("spec.scaleTargetRef.kind", Test::Required("")),
        Rule("spec.scaleTargetRef.kind", Test::Name(NameRule::PathSegment)),
        Rule("spec.scaleTargetRef.name", Test::Required("")),
        Rule("spec.scaleTargetRef.name", Test::Name(NameRule::PathSegment)),
    ],
    counters: counters::AUTOSCALER,
    defaults: &[Default("spec.minReplicas", Fill::Number(1))],
    columns: columns::AUTOSCALER,
    strategy: &Autoscalers,
    ..NAMESPACED
};

/// [`Strategy`] of autoscalers.
struct Autoscalers;

impl Strategy for Autoscalers {
    fn default(&self, object: &mut Object) {
        if object.list("/spec/metrics").is_empty() {
            object.set("/spec/metrics", json!([cpu(80)]));
        }
        behavior::default(object);
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"currentMetrics": null, "desiredReplicas": 0}));
        object.remove("/status/currentMetrics");
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let least = object.integer("/spec/minReplicas").unwrap_or(1);
        let most = object.integer("/spec/maxReplicas").unwrap_or(0);
        if least < 1 {
            errors.invalid("spec.minReplicas", least, "must be greater than or equal to 1");
        }
        if most < 1 {
            errors.invalid("spec.maxReplicas", most, "must be greater than 0");
        }
        if most < least {
            let why = "must be greater than or equal to `minReplicas`";
            errors.invalid("spec.maxReplicas", most, why);
        }
        for (index, metric) in object.list("/spec/metrics").iter().enumerate() {
            metrics::check(metric, &format!("spec.metrics[{index}]"), errors);
        }
        for direction in ["scaleUp", "scaleDown"] {
            if let Some(rules) = object.at(&format!("/spec/behavior/{direction}")) {
                behavior::check(rules, &format!("spec.behavior.{direction}"), errors);
            }
        }
    }
}

/// autoscaling/v1: a target for the CPU where v2 has metrics.
pub(super) static FIRST: View =
    View { group: "autoscaling", version: "v2", show: to_first, store: to_second };

/// The annotation in which v1 keeps metrics that it has no fields for.
const METRICS: &str = "/metadata/annotations/autoscaling.alpha.kubernetes.io~1metrics";

fn cpu(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn is_cpu(metric: &Value) -> bool {
    metric.pointer("/resource/name") == Some(&json!("cpu"))
        && metric["type"] == "Resource"
        && metric.pointer("/resource/target/averageUtilization").is_some()
}

fn to_first(object: &mut Object) {
    let metrics = object.remove("/spec/metrics").unwrap_or_default();
    let (mut first, mut others) = (None, Vec::new());
    for metric in metrics.as_array().into_iter().flatten() {
        if first.is_none() && is_cpu(metric) {
            first = metric.pointer("/resource/target/averageUtilization").cloned();
        } else {
            others.push(metric.clone());
        }
    }
    if let Some(percent) = first {
        object.set("/spec/targetCPUUtilizationPercentage", percent);
    }
    if !others.is_empty() {
        object.set(METRICS, json!(others).to_string());
    }
    object.remove("/spec/behavior");
    let current = object.remove("/status/currentMetrics").unwrap_or_default();
    let percent = current
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|metric| metric.pointer("/resource/current/averageUtilization").cloned());
    if let Some(percent) = percent {
        object.set("/status/currentCPUUtilizationPercentage", percent);
    }
    object.remove("/status/conditions");
    if object.at("/status").is_some() {
        object.default("/status/currentReplicas", 0);
        object.default("/status/desiredReplicas", 0);
    }
}

fn to_second(object: &mut Object) {
    let mut metrics: Vec<Value> = object
        .remove(METRICS)
        .and_then(|text| serde_json::from_str(text.as_str()?).ok())
        .unwrap_or_default();
    if object.at("/metadata/annotations") == Some(&json!({})) {
        object.remove("/metadata/annotations");
    }
    if let Some(percent) = object.remove("/spec/targetCPUUtilizationPercentage") {
        metrics.insert(0, cpu(percent.as_i64().unwrap_or(0)));
    }
    if !metrics.is_empty() {
        object.set("/spec/metrics", metrics);
    }
    if let Some(percent) = object.remove("/status/currentCPUUtilizationPercentage") {
        object.set(
            "/status/currentMetrics",
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_version_is_a_view_of_the_second() {
        let second = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "metrics": [
            {"type": "Pods", "pods": {"metric": {"name": "x"}}}, cpu(70)]}});
        let mut object = Object::new(second).unwrap();
        to_first(&mut object);
        assert_eq!(object.integer("/spec/targetCPUUtilizationPercentage"), Some(70));
        assert!(object.text(METRICS).contains("\"Pods\""));
        to_second(&mut object);
        assert_eq!(object.list("/spec/metrics")[0], cpu(70));
        assert_eq!(object.list("/spec/metrics").len(), 2);
        assert!(object.at("/metadata/annotations").is_none());
    }
}
