//! LimitRanges: what follows of a container's most and least, and that the bounds go together.

use serde_json::{Map, Value, json};

use super::invalid::Errors;
use super::object::Object;
use super::rules::{Rule, Test};
use super::strategy::Strategy;
use crate::schema::quantity;

/// [`Strategy`] of limit ranges.
pub(super) struct LimitRanges;

/// Rules of limit ranges.
pub(super) const RULES: &[Rule] = &[
    Rule("spec.limits[*].type", Test::Required("")),
    Rule("spec.limits[*].max{*}", Test::Quantity),
    Rule("spec.limits[*].min{*}", Test::Quantity),
    Rule("spec.limits[*].default{*}", Test::Quantity),
    Rule("spec.limits[*].defaultRequest{*}", Test::Quantity),
];

/// Bounds that are no more than others, and what each is called.
const ORDER: &[(&str, &str, &str, &str)] = &[
    ("min", "min", "max", "max"),
    ("defaultRequest", "default request", "max", "max"),
    ("default", "default", "max", "max"),
    ("min", "min", "defaultRequest", "default request"),
    ("min", "min", "default", "default"),
    ("defaultRequest", "default request", "default", "default limit"),
];

impl Strategy for LimitRanges {
    fn default(&self, object: &mut Object) {
        let Some(Value::Array(limits)) = object.at_mut("/spec/limits") else { return };
        for limit in limits.iter_mut().filter_map(Value::as_object_mut) {
            if limit.get("type").is_some_and(|kind| kind == "Container") {
                follow(limit, "max", "default");
                follow(limit, "default", "defaultRequest");
                follow(limit, "min", "defaultRequest");
            }
        }
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let limits = object.list("/spec/limits");
        for (index, limit) in limits.iter().enumerate() {
            let at = format!("spec.limits[{index}]");
            if limits[..index].iter().any(|other| other["type"] == limit["type"]) {
                errors.duplicate(format!("{at}.type"), limit["type"].clone());
            }
            for field in ["default", "defaultRequest"] {
                if limit["type"] == "Pod" && limit.get(field).is_some() {
                    let why = "may not be specified when `type` is 'Pod'";
                    errors.forbidden(format!("{at}.{field}"), why);
                }
            }
            for order in ORDER {
                check_order(limit, &at, *order, errors);
            }
        }
    }
}

/// Fills what `to` does not say with what `from` does.
fn follow(limit: &mut Map<String, Value>, from: &str, to: &str) {
    let Some(Value::Object(amounts)) = limit.get(from).cloned() else { return };
    if let Value::Object(filled) = limit.entry(to).or_insert_with(|| json!({})) {
        for (name, amount) in amounts {
            filled.entry(name).or_insert(amount);
        }
    }
}

fn check_order(
    limit: &Value,
    at: &str,
    (low, low_name, high, high_name): (&str, &str, &str, &str),
    errors: &mut Errors,
) {
    let amount = |value: &Value| value.as_str().and_then(quantity::nanos);
    for (name, least) in limit[low].as_object().into_iter().flatten() {
        let most = &limit[high][name];
        let (Some(less), Some(more)) = (amount(least), amount(most)) else { continue };
        if less > more {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let why = format!(
                "{low_name} value {} is greater than {high_name} value {}",
                text(least),
                text(most)
            );
            errors.invalid(format!("{at}.{low}[{name}]"), least.clone(), why);
        }
    }
}
