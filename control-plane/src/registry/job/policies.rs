//! Policies of jobs: what a failed pod means for the job, when it has succeeded before all pods
//! have, and when a pod is replaced.

use serde_json::{Value, json};

use super::INDEXED;
use crate::registry::invalid::Errors;
use crate::registry::names;
use crate::registry::object::Object;
use crate::registry::rules;

/// The most rules of a policy, and conditions in a rule.
const RULES_MAX: usize = 20;
/// The most exit codes in a rule.
const CODES_MAX: usize = 255;
const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: &[&str] = &["In", "NotIn"];
const STATUSES: &[&str] = &["False", "True", "Unknown"];

/// Fills in what conditions of pods are by default, in the job's spec at `spec`.
pub(in crate::registry) fn default(object: &mut Object, spec: &str) {
    let rules = format!("{spec}/podFailurePolicy/rules");
    let Some(Value::Array(rules)) = object.at_mut(&rules) else { return };
    for condition in rules
        .iter_mut()
        .filter_map(|rule| rule.get_mut("onPodConditions")?.as_array_mut())
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        condition.entry("status").or_insert_with(|| json!("True"));
    }
}

/// Checks the policies of a job's spec.
pub(super) fn check(spec: &Value, place: &str, errors: &mut Errors) {
    let failure = spec.get("podFailurePolicy");
    if let Some(policy) = failure {
        check_failure(policy, spec, &format!("{place}.podFailurePolicy"), errors);
        let restart = &spec["template"]["spec"]["restartPolicy"];
        if restart == "OnFailure" {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            let field = format!("{place}.template.spec.restartPolicy");
            errors.invalid(field, restart.clone(), why);
        }
    }
    if let Some(policy) = spec.get("successPolicy") {
        let field = format!("{place}.successPolicy");
        if spec["completionMode"] == INDEXED {
            check_success(policy, spec, &field, errors);
        } else {
            errors.invalid(field, policy.clone(), "requires indexed completion mode");
        }
    }
    let allowed: &[&str] =
        if failure.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    if let Some(policy) = spec["podReplacementPolicy"].as_str()
        && !allowed.contains(&policy)
    {
        errors.not_supported(format!("{place}.podReplacementPolicy"), policy, allowed);
    }
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// Names as Go writes a list of them.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

/// Checks that a field is one of these texts.
fn check_one_of(value: &Value, allowed: &[&str], field: &str, errors: &mut Errors) {
    match value.as_str().unwrap_or_default() {
        "" => errors.required(field, &listed(allowed)),
        text if !allowed.contains(&text) => errors.not_supported(field, text, allowed),
        _ => {}
    }
}

fn check_failure(policy: &Value, spec: &Value, place: &str, errors: &mut Errors) {
    let found = items(policy, "rules");
    if found.len() > RULES_MAX {
        errors.too_many(format!("{place}.rules"), found.len(), RULES_MAX);
    }
    for (index, rule) in found.iter().enumerate() {
        let place = format!("{place}.rules[{index}]");
        let action = format!("{place}.action");
        if rule["action"] == "FailIndex" && spec.get("backoffLimitPerIndex").is_none() {
            errors.invalid(action, "FailIndex", "requires the backoffLimitPerIndex to be set");
        } else {
            check_one_of(&rule["action"], ACTIONS, &action, errors);
        }
        let (codes, conditions) = (rule.get("onExitCodes"), items(rule, "onPodConditions"));
        if let Some(codes) = codes {
            check_codes(codes, spec, &format!("{place}.onExitCodes"), errors);
        }
        check_conditions(conditions, &format!("{place}.onPodConditions"), errors);
        match (codes.is_some(), conditions.is_empty()) {
            (true, false) => errors
                .wrong(place, "specifying both OnExitCodes and OnPodConditions is not supported"),
            (false, true) => {
                errors
                    .wrong(place, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
    }
}

fn check_codes(codes: &Value, spec: &Value, place: &str, errors: &mut Errors) {
    check_one_of(&codes["operator"], OPERATORS, &format!("{place}.operator"), errors);
    if let Some(name) = codes["containerName"].as_str() {
        let mut known = false;
        for containers in
            ["template.spec.containers[*].name", "template.spec.initContainers[*].name"]
        {
            rules::each(spec, containers, &mut |_, found| {
                known |= found.and_then(Value::as_str) == Some(name);
            });
        }
        if !known {
            let why = "must be one of the container or initContainer names in the pod template";
            errors.invalid(format!("{place}.containerName"), name, why);
        }
    }
    let values = items(codes, "values");
    let at = format!("{place}.values");
    if values.is_empty() {
        errors.invalid(at.as_str(), codes["values"].clone(), "at least one value is required");
    } else if values.len() > CODES_MAX {
        errors.too_many(at.as_str(), values.len(), CODES_MAX);
    }
    for (index, value) in values.iter().enumerate() {
        if codes["operator"] == "In" && *value == 0 {
            errors.invalid(format!("{at}[{index}]"), 0, "must not be 0 for the In operator");
        }
        if values[..index].contains(value) {
            errors.duplicate(format!("{at}[{index}]"), value.clone());
        }
    }
    if !values.iter().map(Value::as_i64).is_sorted() {
        errors.invalid(at, codes["values"].clone(), "must be ordered");
    }
}

fn check_conditions(conditions: &[Value], place: &str, errors: &mut Errors) {
    if conditions.len() > RULES_MAX {
        errors.too_many(place, conditions.len(), RULES_MAX);
    }
    for (index, condition) in conditions.iter().enumerate() {
        let named = condition["type"].as_str().unwrap_or_default();
        if let Some(fault) = names::key_fault(named) {
            errors.invalid(format!("{place}[{index}].type"), named, fault);
        }
        check_one_of(&condition["status"], STATUSES, &format!("{place}[{index}].status"), errors);
    }
}

fn check_success(policy: &Value, spec: &Value, place: &str, errors: &mut Errors) {
    let found = items(policy, "rules");
    let at = format!("{place}.rules");
    if found.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.required(at.as_str(), why);
    } else if found.len() > RULES_MAX {
        errors.too_many(at.as_str(), found.len(), RULES_MAX);
    }
    let completions = spec["completions"].as_i64().unwrap_or(0);
    for (index, rule) in found.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let (indexes, count) = (rule["succeededIndexes"].as_str(), rule["succeededCount"].as_i64());
        if indexes.is_none() && count.is_none() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            errors.required(at.as_str(), why);
        }
        let total = indexes.map(|text| count_indexes(text, completions));
        if let (Some(text), Some(Err(fault))) = (indexes, &total) {
            let why = format!("error parsing succeededIndexes: {fault}");
            errors.invalid(format!("{at}.succeededIndexes"), text, why);
        }
        let Some(count) = count else { continue };
        let field = format!("{at}.succeededCount");
        if count < 0 {
            errors.invalid(field.as_str(), count, rules::NOT_NEGATIVE);
        }
        if count > completions {
            let why = format!(
                "must be less than or equal to {completions} (the number of specified completions)"
            );
            errors.invalid(field.as_str(), count, why);
        }
        if let Some(total) = total.map(Result::unwrap_or_default).filter(|total| count > *total) {
            let why = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.invalid(field, count, why);
        }
    }
}

/// How many indexes a list such as `1,3-5` names, of a job with so many completions.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let order =
        |last: i64, next: i64| format!("non-increasing order, previous: {last}, current: {next}");
    let number = |text: &str| match text.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
        Ok(index) if index >= completions => Err(format!("too large index: {text:?}")),
        Ok(index) => Ok(index),
    };
    let (mut total, mut last) = (0, None);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let limits: Vec<&str> = interval.split('-').collect();
        let (first, end) = match limits[..] {
            [one] => (number(one)?, number(one)?),
            [first, end] => (number(first)?, number(end)?),
            _ => {
                return Err(format!(
                    "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if limits.len() == 2 && first >= end {
            return Err(order(first, end));
        }
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(order(last, first));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        for (text, expected) in [
            ("", Ok(0)),
            ("0", Ok(1)),
            ("1,3-5,7", Ok(5)),
            ("0-9", Ok(10)),
            ("10", Err("too large index: \"10\"")),
            ("5-10", Err("too large index: \"10\"")),
            ("x", Err("cannot convert string to integer for index: \"x\"")),
            ("1,", Err("cannot convert string to integer for index: \"\"")),
            ("5-3", Err("non-increasing order, previous: 5, current: 3")),
            ("3-3", Err("non-increasing order, previous: 3, current: 3")),
            ("3,3", Err("non-increasing order, previous: 3, current: 3")),
            (
                "1-2-3",
                Err(
                    "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
                ),
            ),
        ] {
            assert_eq!(count_indexes(text, 10), expected.map_err(str::to_owned), "{text}");
        }
    }
}
