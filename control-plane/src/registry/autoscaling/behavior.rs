//! How fast an autoscaler scales, in each direction.

use serde_json::{Value, json};

use crate::registry::invalid::Errors;
use crate::registry::object::Object;
use crate::registry::rules::{self, Rule, Test};

/// The longest time in seconds that is looked back on.
const WINDOW_MAX: i64 = 3600;
/// The longest time in seconds that a policy speaks of.
const PERIOD_MAX: i64 = 1800;

const RULES: &[Rule] = &[
    Rule("selectPolicy", Test::OneOf(&["Disabled", "Max", "Min"])),
    Rule("policies[*].type", Test::OneOf(&["Percent", "Pods"])),
];

/// Fills in what is not said of either direction, where something is said of one.
pub(super) fn default(object: &mut Object) {
    if object.at("/spec/behavior").is_none() {
        return;
    }
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    object.default("/spec/behavior/scaleUp/stabilizationWindowSeconds", 0);
    object.default("/spec/behavior/scaleUp/policies", json!([pods, percent]));
    object.default("/spec/behavior/scaleDown/policies", json!([percent]));
    for direction in ["scaleUp", "scaleDown"] {
        object.default(&format!("/spec/behavior/{direction}/selectPolicy"), "Max");
    }
}

/// Checks what is said of one direction.
pub(super) fn check(scaling: &Value, place: &str, errors: &mut Errors) {
    let at = |field: &str| format!("{place}.{field}");
    if let Some(window) = scaling["stabilizationWindowSeconds"].as_i64() {
        let field = at("stabilizationWindowSeconds");
        if window < 0 {
            errors.invalid(field, window, "must be greater than or equal to zero");
        } else if window > WINDOW_MAX {
            errors.invalid(field, window, format!("must be less than or equal to {WINDOW_MAX}"));
        }
    }
    let policies = scaling["policies"].as_array().map_or(&[][..], Vec::as_slice);
    if policies.is_empty() {
        errors.required(at("policies"), "must specify at least one Policy");
    }
    rules::check_at(place, RULES, scaling, errors);
    for (index, policy) in policies.iter().enumerate() {
        let at = |field: &str| format!("{place}.policies[{index}].{field}");
        for field in ["value", "periodSeconds"] {
            let number = policy[field].as_i64().unwrap_or(0);
            if number <= 0 {
                errors.invalid(at(field), number, "must be greater than zero");
            }
        }
        let period = policy["periodSeconds"].as_i64().unwrap_or(0);
        if period > PERIOD_MAX {
            let why = format!("must be less than or equal to {PERIOD_MAX}");
            errors.invalid(at("periodSeconds"), period, why);
        }
    }
}
