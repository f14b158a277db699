//! Kinds that keep pods running: defaults, and a selector that fits the template and never changes.

use serde_json::{Value, json};

use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::pod;
use super::pod::spec::Within;
use super::rules::{Rule, Test};
use super::selector::Selector;
use super::strategy::Strategy;

/// Rules of deployments: they may make more pods in addition than there are, but not miss more.
pub(super) const DEPLOYMENT_RULES: &[Rule] = &[
    Rule("spec.strategy.rollingUpdate.maxUnavailable", Test::CountOrPercent),
    Rule("spec.strategy.rollingUpdate.maxSurge", Test::CountOrAnyPercent),
];

/// [`Strategy`] of deployments.
pub(super) struct Deployments;
/// [`Strategy`] of replica sets.
pub(super) struct ReplicaSets;
/// [`Strategy`] of replication controllers.
pub(super) struct ReplicationControllers;
/// [`Strategy`] of daemon sets.
pub(super) struct DaemonSets;
/// [`Strategy`] of stateful sets.
pub(super) struct StatefulSets;

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

    fn prepare_status(&self, object: &mut Object, old: &Object) {
        object.copy("/metadata/labels", old);
    }

    fn moves_generation(&self, object: &Object, old: &Object) -> bool {
        // What annotations say goes on to the replica sets.
        let annotations = "/metadata/annotations";
        object.at(annotations) != old.at(annotations)
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        validate_workload(object, errors);
        let ready = object.integer("/spec/minReadySeconds").unwrap_or(0);
        if let Some(deadline) = object.integer("/spec/progressDeadlineSeconds")
            && deadline <= ready
        {
            let why = "must be greater than minReadySeconds";
            errors.invalid("spec.progressDeadlineSeconds", deadline, why);
        }
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

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Object) {
        object.default("/spec/replicas", 1);
        let labels = object.at("/spec/template/metadata/labels").cloned();
        if let Some(labels) = labels {
            object.default("/spec/selector", labels.clone());
            object.default("/metadata/labels", labels);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"replicas": 0}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let labels = object.at("/spec/template/metadata/labels");
        let has = |(key, value): (&String, &Value)| labels.is_some_and(|all| all[key] == *value);
        let selector = object.at("/spec/selector").and_then(Value::as_object);
        if object.at("/spec/template").is_some() && !selector.into_iter().flatten().all(has) {
            errors.invalid(
                "spec.template.metadata.labels",
                labels.cloned().unwrap_or_else(|| json!({})),
                "`selector` does not match template `labels`",
            );
        }
    }
}

/// Annotation of daemon sets with how often their template has changed; nobody else sets it.
const TEMPLATE_GENERATION: &str = "/metadata/annotations/deprecated.daemonset.template.generation";

impl Strategy for DaemonSets {
    fn default(&self, object: &mut Object) {
        if object.text("/spec/updateStrategy/type") == "RollingUpdate" {
            object.default("/spec/updateStrategy/rollingUpdate/maxUnavailable", 1);
            object.default("/spec/updateStrategy/rollingUpdate/maxSurge", 0);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set(TEMPLATE_GENERATION, "1");
        let zeros = [
            "currentNumberScheduled",
            "desiredNumberScheduled",
            "numberMisscheduled",
            "numberReady",
        ];
        object.set(
            "/status",
            zeros.map(|name| (name.to_owned(), json!(0))).into_iter().collect::<Value>(),
        );
    }

    fn prepare_update(&self, object: &mut Object, old: &Object) {
        let before = old.text(TEMPLATE_GENERATION).parse::<i64>().unwrap_or(1);
        let changed = object.at("/spec/template") != old.at("/spec/template");
        object.set(TEMPLATE_GENERATION, (before + i64::from(changed)).to_string());
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        validate_selector(object, "daemonset", errors);
        let rolling = "/spec/updateStrategy/rollingUpdate";
        let Some(strategy) = object.at(rolling) else { return };
        let some = |field: &str| {
            let value = &strategy[field];
            !value.is_null() && *value != json!(0) && *value != json!("0%")
        };
        let at = |field: &str| format!("{}.{field}", super::invalid::field_of(rolling));
        match (some("maxUnavailable"), some("maxSurge")) {
            (true, true) => errors.invalid(
                at("maxSurge"),
                strategy["maxSurge"].clone(),
                "may not be set when maxUnavailable is non-zero",
            ),
            (false, false) => errors.invalid(
                at("maxUnavailable"),
                strategy["maxUnavailable"].clone(),
                "cannot be 0 when maxSurge is 0",
            ),
            _ => {}
        }
    }
}

/// What may change of a stateful set.
const CHANGEABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

impl Strategy for StatefulSets {
    fn default(&self, object: &mut Object) {
        if object.text("/spec/updateStrategy/type") == "RollingUpdate" {
            object.default("/spec/updateStrategy/rollingUpdate/partition", 0);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"replicas": 0, "availableReplicas": 0}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        validate_selector(object, "statefulset", errors);
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        let mut hidden = object.clone();
        for field in CHANGEABLE {
            hidden.copy(&format!("/spec/{field}"), old);
        }
        if hidden.at("/spec") != old.at("/spec") {
            let names: Vec<String> = CHANGEABLE.iter().map(|name| format!("'{name}'")).collect();
            let (last, first) =
                names.split_last().map_or((String::new(), String::new()), |(last, first)| {
                    (last.clone(), first.join(", "))
                });
            errors.forbidden(
                "spec",
                format!("updates to statefulset spec for fields other than {first} and {last} are forbidden"),
            );
        }
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
    validate_selector(object, "deployment", errors);
    validate_template(object, errors);
}

/// Checks that the selector selects something, and the template's pods.
fn validate_selector(object: &Object, kind: &str, errors: &mut Errors) {
    if object.at("/spec/selector").is_none() {
        return;
    }
    let labels = object.at("/spec/template/metadata/labels");
    match Selector::from_object(object.at("/spec/selector").unwrap_or(&Value::Null)) {
        Err(error) => errors.invalid(
            "spec.selector",
            object.at("/spec/selector").cloned().unwrap_or_default(),
            error.to_string(),
        ),
        Ok(selector) if selector.is_everything() => {
            let why = format!("empty selector is invalid for {kind}");
            errors.invalid("spec.selector", json!({}), why);
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
}

fn validate_template(object: &Object, errors: &mut Errors) {
    match object.at("/spec/template/spec") {
        Some(spec) => {
            pod::spec::validate(spec, "spec.template.spec", Within::Template, errors);
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
