//! Jobs: the selector that the server makes, and what of a job's spec goes together. What CronJobs
//! make jobs of is checked the same way.

pub(super) mod policies;

use serde_json::{Value, json};

use super::NameRule;
use super::invalid::{Errors, IMMUTABLE};
use super::names;
use super::object::Object;
use super::rules::{self, Rule, Test};
use super::selector::Selector;
use super::strategy::Strategy;

/// [`Strategy`] of jobs.
pub(super) struct Jobs;

/// Rules of a job's spec.
const SPEC_RULES: &[Rule] = &[
    Rule("template", Test::Required("")),
    Rule("parallelism", Test::NotNegative),
    Rule("completions", Test::NotNegative),
    Rule("activeDeadlineSeconds", Test::NotNegative),
    Rule("backoffLimit", Test::NotNegative),
    Rule("backoffLimitPerIndex", Test::NotNegative),
    Rule("maxFailedIndexes", Test::NotNegative),
    Rule("ttlSecondsAfterFinished", Test::NotNegative),
    Rule("completionMode", Test::OneOf(&["NonIndexed", INDEXED])),
];

const INDEXED: &str = "Indexed";
/// The most pods at a time of an indexed job, and the most completions that need no further bound.
const INDEXES_MAX: i64 = 100_000;
/// The most pods at a time, and failed indexes, of one with more completions.
const INDEXES_MAX_OF_MANY: i64 = 10_000;

/// Labels of a job's pods: those of today, and what they were called before.
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
/// Where they are.
const LABELS: &str = "/spec/template/metadata/labels";

/// The labels that a job's pods have, unless somebody else looks after the selector.
fn own_labels(job: &Object) -> impl Iterator<Item = (&'static str, String)> {
    let (uid, name) = (job.uid().to_owned(), job.name().to_owned());
    let uids = UID_LABELS.into_iter().map(move |key| (key, uid.clone()));
    uids.chain(NAME_LABELS.into_iter().map(move |key| (key, name.clone())))
}

/// A key as a part of a JSON pointer.
fn escaped(key: &str) -> String {
    key.replace('/', "~1")
}

impl Strategy for Jobs {
    fn default(&self, object: &mut Object) {
        // Without either number a job is one pod; with parallelism alone it is a queue.
        if object.at("/spec/completions").is_none() && object.at("/spec/parallelism").is_none() {
            object.set("/spec/completions", 1);
        }
        object.default("/spec/parallelism", 1);
        // Where each index has a limit of its own, there is none of all.
        let by_index = object.at("/spec/backoffLimitPerIndex").is_some();
        object.default("/spec/backoffLimit", if by_index { i32::MAX } else { 6 });
        let strict = object.at("/spec/podFailurePolicy").is_some();
        let policy = if strict { "Failed" } else { "TerminatingOrFailed" };
        object.default("/spec/podReplacementPolicy", policy);
        policies::default(object, "/spec");
        if let Some(labels) = object.at(LABELS).cloned() {
            object.default("/metadata/labels", labels);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({}));
        if object.flag("/spec/manualSelector") {
            return;
        }
        // What somebody has written there is checked, not overwritten.
        for (key, value) in own_labels(object).collect::<Vec<_>>() {
            object.default(&format!("{LABELS}/{}", escaped(key)), value);
        }
        let uid = object.uid().to_owned();
        object.default(&format!("/spec/selector/matchLabels/{}", escaped(UID_LABELS[1])), uid);
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        check_generated(object, errors);
        check_hostnames(object, errors);
        if let Some(spec) = object.at("/spec") {
            check_spec(spec, "spec", errors);
        }
        let labels = object.at(LABELS).cloned().unwrap_or_else(|| json!({}));
        let selector = object.at("/spec/selector");
        let selects = match selector.map(Selector::from_object) {
            None => {
                errors.required("spec.selector", "");
                false
            }
            Some(Ok(selector)) => selector.matches(labels.as_object()),
            Some(Err(fault)) => {
                let value = selector.cloned().unwrap_or_default();
                errors.invalid("spec.selector", value, fault.to_string());
                true
            }
        };
        if !selects {
            let why = "`selector` does not match template `labels`";
            errors.invalid("spec.template.metadata.labels", labels, why);
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        check_completions(object, old, errors);
        let template = |object: &Object| object.at("/spec/template").cloned().unwrap_or_default();
        let mut before = old.clone();
        // A job that has not begun may be told anew where its pods go.
        if old.flag("/spec/suspend") && old.at("/status/startTime").is_none() {
            take_directives(&mut before, object);
        }
        if template(object) != template(&before) {
            errors.invalid("spec.template", template(object), IMMUTABLE);
        }
    }
}

/// Checks that what the server makes of selector and labels is there.
fn check_generated(object: &Object, errors: &mut Errors) {
    let Some(selector) = object.at("/spec/selector") else { return };
    if object.flag("/spec/manualSelector") {
        return;
    }
    let labels = object.at(LABELS).cloned().unwrap_or_else(|| json!({}));
    for (key, value) in own_labels(object) {
        let field = format!("spec.template.metadata.labels[{key}]");
        match labels[key].as_str() {
            None => errors.required(field, &format!("must be '{value}'")),
            Some(found) if found != value => {
                errors.invalid(field, labels.clone(), format!("must be '{value}'"));
            }
            Some(_) => {}
        }
    }
    let own: Value =
        own_labels(object).map(|(key, value)| (key.to_owned(), json!(value))).collect();
    let generated = Selector::from_object(selector).map(|it| it.matches(own.as_object()));
    if generated == Ok(false) {
        errors.invalid("spec.selector", selector.clone(), "`selector` not auto-generated");
    }
}

/// Checks that the last pod of an indexed job has a name for its host.
fn check_hostnames(object: &Object, errors: &mut Errors) {
    let completions = object.integer("/spec/completions").filter(|number| *number > 0);
    let Some(completions) = completions else { return };
    let last = format!("{}-{}", object.name(), completions - 1);
    if is_indexed(object) && names::fault(&last, NameRule::Label).is_some() {
        let why = format!("will not able to create pod with invalid DNS label: {last}");
        errors.invalid("metadata.name", object.name(), why);
    }
}

fn is_indexed(object: &Object) -> bool {
    object.text("/spec/completionMode") == INDEXED
}

/// Completions change only of an indexed job, and only with its parallelism.
fn check_completions(object: &Object, old: &Object, errors: &mut Errors) {
    let completions = object.at("/spec/completions");
    if completions == old.at("/spec/completions") {
        return;
    }
    let value = completions.cloned().unwrap_or_default();
    if !is_indexed(object) {
        errors.invalid("spec.completions", value, IMMUTABLE);
    } else if completions.is_none() {
        errors.required("spec.completions", "cannot set completions to nil");
    } else if completions != object.at("/spec/parallelism") {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.invalid("spec.completions", value, why);
    }
}

/// Where a template has it.
const AFFINITY: &str = "/spec/template/spec/affinity";

/// Takes over what of a template says on which nodes its pods run.
fn take_directives(job: &mut Object, from: &Object) {
    for field in [
        "spec/nodeSelector",
        "spec/tolerations",
        "spec/schedulingGates",
        "metadata/annotations",
        "metadata/labels",
    ] {
        job.copy(&format!("/spec/template/{field}"), from);
    }
    if from.at(AFFINITY).is_some() || job.at(AFFINITY).is_some() {
        job.copy(&format!("{AFFINITY}/nodeAffinity"), from);
    }
    if from.at(AFFINITY).is_none() && job.at(AFFINITY) == Some(&json!({})) {
        job.remove(AFFINITY);
    }
}

/// Checks the spec of a job, or of those that a CronJob makes, which users write as `place`.
pub(super) fn check_spec(spec: &Value, place: &str, errors: &mut Errors) {
    rules::check_at(place, SPEC_RULES, spec, errors);
    let at = |field: &str| format!("{place}.{field}");
    let number = |field: &str| spec[field].as_i64();
    if number("maxFailedIndexes").is_some() && number("backoffLimitPerIndex").is_none() {
        errors.required(at("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if spec["completionMode"] == INDEXED {
        check_indexed(spec, place, errors);
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(value) = number(field) {
                errors.invalid(at(field), value, "requires indexed completion mode");
            }
        }
    }
    if let Some(by) = spec["managedBy"].as_str() {
        check_manager(by, &at("managedBy"), errors);
    }
    policies::check(spec, place, errors);
}

fn check_indexed(spec: &Value, place: &str, errors: &mut Errors) {
    let at = |field: &str| format!("{place}.{field}");
    let number = |field: &str| spec[field].as_i64();
    let (pods, failed) = (number("parallelism"), number("maxFailedIndexes"));
    let over = |value: Option<i64>, most: i64| value.filter(|value| *value > most);
    if let Some(pods) = over(pods, INDEXES_MAX) {
        let why = format!(
            "must be less than or equal to {INDEXES_MAX} when completion mode is {INDEXED}"
        );
        errors.invalid(at("parallelism"), pods, why);
    }
    let Some(completions) = number("completions") else {
        errors.required(at("completions"), &format!("when completion mode is {INDEXED}"));
        return;
    };
    if let Some(failed) = over(failed, completions) {
        errors.invalid(at("maxFailedIndexes"), failed, "must be less than or equal to completions");
    }
    if let Some(failed) = over(failed, INDEXES_MAX) {
        let why = format!("must be less than or equal to {INDEXES_MAX}");
        errors.invalid(at("maxFailedIndexes"), failed, why);
    }
    if completions <= INDEXES_MAX || number("backoffLimitPerIndex").is_none() {
        return;
    }
    if failed.is_none() {
        let why = format!("must be specified when completions is above {INDEXES_MAX}");
        errors.required(at("maxFailedIndexes"), &why);
    }
    let why = format!(
        "must be less than or equal to {INDEXES_MAX_OF_MANY} when completions are above {INDEXES_MAX} and used with backoff limit per index"
    );
    for (field, value) in [("parallelism", pods), ("maxFailedIndexes", failed)] {
        if let Some(value) = over(value, INDEXES_MAX_OF_MANY) {
            errors.invalid(at(field), value, why.as_str());
        }
    }
}

/// Longest name of who looks after a job.
const MANAGER_MAX: usize = 63;

fn check_manager(by: &str, field: &str, errors: &mut Errors) {
    let shape = by.split_once('/').filter(|(domain, path)| {
        names::fault(domain, NameRule::Subdomain).is_none() && !path.is_empty()
    });
    if by.is_empty() {
        errors.required(field, "");
    } else if shape.is_none() {
        errors.invalid(field, by, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    }
    if by.len() > MANAGER_MAX {
        errors.too_long(field, MANAGER_MAX);
    }
}
