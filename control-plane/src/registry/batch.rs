//! CronJobs: schedules, and the jobs that are made of them.

use serde_json::{Value, json};

use super::invalid::Errors;
use super::job;
use super::names;
use super::object::Object;
use super::strategy::Strategy;

/// [`Strategy`] of cron jobs.
pub(super) struct CronJobs;

/// The longest name of a CronJob: its jobs get eleven characters more.
const CRON_JOB_NAME_MAX: usize = 52;

impl Strategy for CronJobs {
    fn default(&self, object: &mut Object) {
        job::policies::default(object, "/spec/jobTemplate/spec");
    }

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
        match object.at("/spec/timeZone").and_then(Value::as_str) {
            Some("") => {
                let why = "timeZone must be nil or non-empty string";
                errors.invalid("spec.timeZone", "", why);
            }
            Some(zone) if zone.eq_ignore_ascii_case("local") => {
                let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
                errors.invalid("spec.timeZone", zone, why);
            }
            _ => {}
        }
        check_template(object, errors);
    }
}

/// Checks what jobs are made of: they get selectors of their own.
fn check_template(object: &Object, errors: &mut Errors) {
    let place = "spec.jobTemplate.spec";
    let Some(spec) = object.at("/spec/jobTemplate/spec") else { return };
    job::check_spec(spec, place, errors);
    if let Some(selector) = spec.get("selector") {
        let why = "`selector` will be auto-generated";
        errors.invalid(format!("{place}.selector"), selector.clone(), why);
    }
    if spec["manualSelector"] == true {
        errors.not_supported(format!("{place}.manualSelector"), true, &["nil", "false"]);
    }
}

/// A field of a schedule: its bounds, and the names of its numbers from the least on.
struct Field {
    least: u64,
    most: u64,
    names: &'static [&'static str],
}

/// Minute, hour, day of the month, month, day of the week.
const FIELDS: [Field; 5] = [
    Field { least: 0, most: 59, names: &[] },
    Field { least: 0, most: 23, names: &[] },
    Field { least: 1, most: 31, names: &[] },
    Field { least: 1, most: 12, names: MONTHS },
    Field { least: 0, most: 6, names: DAYS },
];
const MONTHS: &[&str] =
    &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Field {
    fn number(&self, text: &str) -> Option<u64> {
        match self.names.iter().position(|name| text.eq_ignore_ascii_case(name)) {
            Some(index) => u64::try_from(index).ok().map(|index| self.least + index),
            None => text.parse().ok(),
        }
    }

    /// Whether a part of the field (`*`, `5`, `MON`, `1-5`, `*/15`) is within bounds.
    fn allows(&self, part: &str) -> bool {
        let (range, step) =
            part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (from, to) = range.split_once('-').map_or((range, None), |(from, to)| (from, Some(to)));
        if step.is_some_and(|step| step.parse::<u64>().unwrap_or(0) == 0) {
            return false;
        }
        if matches!(from, "*" | "?") {
            return true;
        }
        let first = self.number(from);
        let last = match to {
            Some(to) => self.number(to),
            None if step.is_some() => Some(self.most),
            None => first,
        };
        let (Some(first), Some(last)) = (first, last) else { return false };
        self.least <= first && first <= last && last <= self.most
    }
}

/// Whether `text` is a time as Go writes it: `90m`, `1h30m`, `1.5s`.
fn is_duration(text: &str) -> bool {
    const UNITS: &[&str] = &["ns", "us", "\u{b5}s", "\u{3bc}s", "ms", "s", "m", "h"];
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut found = false;
    while !rest.is_empty() {
        let (number, after) =
            rest.split_at(rest.find(|c: char| !is_of_number(c)).unwrap_or(rest.len()));
        let (unit, after) = after.split_at(after.find(is_of_number).unwrap_or(after.len()));
        if number.parse::<f64>().is_err() || !UNITS.contains(&unit) {
            return false;
        }
        rest = after;
        found = true;
    }
    found
}

/// What is wrong with a schedule: five fields of numbers, ranges, steps and names, or a word.
pub(super) fn schedule_fault(value: &Value) -> Option<&'static str> {
    const WORDS: &[&str] =
        &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    let text = value.as_str().unwrap_or_default();
    if text.contains("TZ") {
        return Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    }
    if WORDS.contains(&text) || text.strip_prefix("@every ").is_some_and(is_duration) {
        return None;
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Some("expected exactly 5 fields");
    }
    let fits = fields.iter().zip(&FIELDS).all(|(text, field)| {
        text.split(',').filter(|part| !part.is_empty()).all(|part| field.allows(part))
    });
    (!fits).then_some("failed to parse: a field is no number, range or step within its bounds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in [
            "*/5 * * * *",
            "0 0 1,15 * MON-FRI",
            "@hourly",
            "30 4 * jan 0",
            "0 0 ? * 6",
            "5/10 * * * *",
            "@every 1h30m",
            "@every 1.5s",
        ] {
            assert_eq!(schedule_fault(&good.into()), None, "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "0 0 ? * 7",
            "*/0 * * * *",
            "*/x * * * *",
            "30-10 * * * *",
            "1-2-3 * * * *",
            "mon * * * *",
            "0 0 * mon *",
            "0 0 * * jan",
            "0 0 * * fri-mon",
            "@never",
            "@every ",
            "@every soon",
            "@every 90",
            "@every 1.2.3s",
            "TZ=UTC * * * * *",
        ] {
            assert!(schedule_fault(&bad.into()).is_some(), "{bad}");
        }
    }
}
