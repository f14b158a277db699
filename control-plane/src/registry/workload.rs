//! Deployments and ReplicaSets: defaults, and a selector that fits the template and never changes.

use serde_json::{Value, json};

use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::pod;
use super::selector::Selector;
use super::strategy::Strategy;

/// [`Strategy`] of deployments.
pub(super) struct Deployments;
/// [`Strategy`] of replica sets.
pub(super) struct ReplicaSets;

impl Strategy for Deployments {
    fn default(&self, object: &mut Object) {
        default_workload(object);
        object.default("/spec/revisionHistoryLimit", 10);
        object.default("/spec/progressDeadlineSeconds", 600);
        object.default("/spec/strategy/type", "RollingUpdate");
        if object.text("/spec/strategy/type") == "RollingUpdate" {
            object.default("/spec/strategy/rollingUpdate/maxUnavailable", "25%");
            object.default("/spec/strategy/rollingUpdate/maxSurge", "25%");
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        validate_workload(object, errors);
        let kind = object.text("/spec/strategy/type");
        if !matches!(kind, "Recreate" | "RollingUpdate") {
            errors.not_supported("spec.strategy.type", kind, &["Recreate", "RollingUpdate"]);
        }
        if kind == "Recreate" && object.at("/spec/strategy/rollingUpdate").is_some() {
            errors.forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            );
        }
        let none = |field: &str| {
            let value = object.at(&format!("/spec/strategy/rollingUpdate/{field}"));
            value.is_some_and(|value| *value == json!(0) || *value == json!("0%"))
        };
        if none("maxUnavailable") && none("maxSurge") {
            errors.invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                object
                    .at("/spec/strategy/rollingUpdate/maxUnavailable")
                    .cloned()
                    .unwrap_or_default(),
                "may not be 0 when `maxSurge` is 0",
            );
        }
    }
}

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Object) {
        default_workload(object);
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"replicas": 0}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        validate_workload(object, errors);
    }
}

fn default_workload(object: &mut Object) {
    object.default("/spec/replicas", 1);
    if let Some(Value::Object(spec)) = object.at_mut("/spec/template/spec") {
        pod::default_spec(spec);
    }
}

fn validate_workload(object: &Object, errors: &mut Errors) {
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"]
    {
        if let Some(value) = object.at(&format!("/spec/{field}"))
            && !value.as_i64().is_some_and(|number| (0..=i64::from(i32::MAX)).contains(&number))
        {
            errors.invalid(
                format!("spec.{field}"),
                value.clone(),
                "must be greater than or equal to 0",
            );
        }
    }
    let labels = object.at("/spec/template/metadata/labels");
    names::check_labels(labels, "spec.template.metadata.labels", errors);
    match Selector::from_object(object.at("/spec/selector").unwrap_or(&Value::Null)) {
        Err(error) => errors.invalid(
            "spec.selector",
            object.at("/spec/selector").cloned().unwrap_or_default(),
            error.to_string(),
        ),
        Ok(selector) if selector.is_everything() => {
            errors.invalid("spec.selector", json!({}), "empty selector is invalid for deployment");
        }
        Ok(selector) => {
            let labels = labels.cloned().unwrap_or_else(|| json!({}));
            if !selector.matches(labels.as_object()) {
                errors.invalid(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                );
            }
        }
    }
    match object.at("/spec/template/spec") {
        Some(spec) => {
            pod::validate_spec(spec, "spec.template.spec", errors);
            if spec["restartPolicy"] != "Always" {
                errors.not_supported(
                    "spec.template.spec.restartPolicy",
                    spec["restartPolicy"].clone(),
                    &["Always"],
                );
            }
        }
        None => errors.required("spec.template.spec.containers", ""),
    }
}
