//! Jobs and CronJobs: selectors that the server makes, and schedules.

use serde_json::{Value, json};

use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::rules::{Rule, Test};
use super::strategy::Strategy;

/// [`Strategy`] of jobs.
pub(super) struct Jobs;
/// [`Strategy`] of cron jobs.
pub(super) struct CronJobs;

/// Rules of jobs.
pub(super) const JOB_RULES: &[Rule] = &[
    Rule("spec.template", Test::Required("")),
    Rule("spec.parallelism", Test::NotNegative),
    Rule("spec.completions", Test::NotNegative),
    Rule("spec.activeDeadlineSeconds", Test::NotNegative),
    Rule("spec.backoffLimit", Test::NotNegative),
    Rule("spec.backoffLimitPerIndex", Test::NotNegative),
    Rule("spec.maxFailedIndexes", Test::NotNegative),
    Rule("spec.ttlSecondsAfterFinished", Test::NotNegative),
    Rule("spec.completionMode", Test::OneOf(&["Indexed", "NonIndexed"])),
    Rule("spec.podReplacementPolicy", Test::OneOf(&["Failed", "TerminatingOrFailed"])),
];

/// The longest name of a CronJob: its jobs get eleven characters more.
const CRON_JOB_NAME_MAX: usize = 52;

impl Strategy for Jobs {
    fn default(&self, object: &mut Object) {
        // Without either number a job is one pod; with parallelism alone it is a queue.
        if object.at("/spec/completions").is_none() && object.at("/spec/parallelism").is_none() {
            object.set("/spec/completions", 1);
        }
        object.default("/spec/parallelism", 1);
        let strict = object.at("/spec/podFailurePolicy").is_some();
        let policy = if strict { "Failed" } else { "TerminatingOrFailed" };
        object.default("/spec/podReplacementPolicy", policy);
        if let Some(labels) = object.at("/spec/template/metadata/labels").cloned() {
            object.default("/metadata/labels", labels);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({}));
        if object.flag("/spec/manualSelector") {
            return;
        }
        let (uid, name) = (object.uid().to_owned(), object.name().to_owned());
        let labels = "/spec/template/metadata/labels";
        for (key, value) in [
            ("batch.kubernetes.io~1controller-uid", &uid),
            ("batch.kubernetes.io~1job-name", &name),
            ("controller-uid", &uid),
            ("job-name", &name),
        ] {
            object.set(&format!("{labels}/{key}"), value.as_str());
        }
        object.set(
            "/spec/selector",
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}),
        );
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        if object.text("/spec/completionMode") == "Indexed"
            && object.at("/spec/completions").is_none()
        {
            errors.required("spec.completions", "when completion mode is Indexed");
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        let suspended = old.flag("/spec/suspend");
        let template = |object: &Object| object.at("/spec/template").cloned().unwrap_or_default();
        if !suspended && template(object) != template(old) {
            errors.invalid("spec.template", template(object), "field is immutable");
        }
        let indexed = object.text("/spec/completionMode") == "Indexed"
            && object.at("/spec/completions") == object.at("/spec/parallelism");
        let completions = object.at("/spec/completions");
        if completions != old.at("/spec/completions") && !indexed {
            let value = completions.cloned().unwrap_or_default();
            errors.invalid("spec.completions", value, "field is immutable");
        }
    }
}

impl Strategy for CronJobs {
    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        if object.name().len() > CRON_JOB_NAME_MAX {
            let why = format!("must be no more than {CRON_JOB_NAME_MAX} characters");
            errors.invalid("metadata.name", object.name(), why);
        }
        let labels = object.at("/spec/jobTemplate/metadata/labels");
        names::check_labels(labels, "spec.jobTemplate.metadata.labels", errors);
    }
}

/// What is wrong with a schedule: five fields of numbers, ranges, steps and names, or a word.
pub(super) fn schedule_fault(value: &Value) -> Option<&'static str> {
    const WORDS: &[&str] =
        &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    let text = value.as_str().unwrap_or_default();
    if text.contains("TZ") {
        return Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    }
    if WORDS.contains(&text) || text.strip_prefix("@every ").is_some_and(|rest| !rest.is_empty()) {
        return None;
    }
    let bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != bounds.len() {
        return Some("expected exactly 5 fields");
    }
    let fits = fields.iter().zip(bounds).all(|(field, (least, most))| {
        field.split(',').all(|part| schedule_part(part, least, most))
    });
    (!fits).then_some("failed to parse: a field is no number, range or step within its bounds")
}

/// Whether a part of a field (`*`, `5`, `MON`, `1-5`, `*/15`) is within bounds.
fn schedule_part(part: &str, least: u32, most: u32) -> bool {
    const NAMES: &[&str] = &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", "sun",
        "mon", "tue", "wed", "thu", "fri", "sat",
    ];
    let (range, step) =
        part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    let step_fits = step.is_none_or(|step| step.parse::<u32>().is_ok_and(|step| step > 0));
    let bound = |text: &str| {
        text.parse::<u32>().is_ok_and(|number| (least..=most).contains(&number))
            || NAMES.contains(&text.to_lowercase().as_str())
    };
    let range_fits = matches!(range, "*" | "?")
        || match range.split_once('-') {
            Some((from, to)) => bound(from) && bound(to),
            None => bound(range),
        };
    step_fits && range_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["*/5 * * * *", "0 0 1,15 * MON-FRI", "@hourly", "30 4 * jan 0", "0 0 ? * 7"] {
            assert_eq!(schedule_fault(&good.into()), None, "{good}");
        }
        for bad in
            ["", "* * * *", "60 * * * *", "* * * * 8", "*/0 * * * *", "@never", "TZ=UTC * * * * *"]
        {
            assert!(schedule_fault(&bad.into()).is_some(), "{bad}");
        }
    }
}
