//! What a pod may say of where it runs: tolerations, affinity, spread, gates.

use std::collections::HashSet;

use serde_json::Value;

use super::spec::{Within, items};
use crate::registry::NameRule;
use crate::registry::invalid::Errors;
use crate::registry::names;
use crate::registry::rules::{self, Rule, Test};

/// Effects of taints.
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

const AFFINITIES: [&str; 2] = ["podAffinity", "podAntiAffinity"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// What a term about other pods may be.
const TERM_RULES: &[Rule] = &[
    Rule("labelSelector", Test::Selector),
    Rule("namespaceSelector", Test::Selector),
    Rule("namespaces[*]", Test::Name(NameRule::Label)),
    Rule("topologyKey", Test::Required("can not be empty")),
    Rule("topologyKey", Test::Text(names::key_fault)),
];

const SPREAD_RULES: &[Rule] = &[
    Rule("topologyKey", Test::Required("can not be empty")),
    Rule("topologyKey", Test::Text(names::key_fault)),
    Rule("labelSelector", Test::Selector),
    Rule("nodeAffinityPolicy", Test::OneOf(&["Honor", "Ignore"])),
    Rule("nodeTaintsPolicy", Test::OneOf(&["Honor", "Ignore"])),
];

/// Checks what the spec at `field` says of where it runs.
pub(super) fn validate(spec: &Value, field: &str, of: Within, errors: &mut Errors) {
    check_tolerations(&spec["tolerations"], &format!("{field}.tolerations"), errors);
    check_affinity(&spec["affinity"], &format!("{field}.affinity"), errors);
    let spread = &spec["topologySpreadConstraints"];
    check_spread(spread, &format!("{field}.topologySpreadConstraints"), errors);
    let gates = &spec["schedulingGates"];
    check_gates(gates, &format!("{field}.schedulingGates"), errors);
    let bound = spec["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    if of == Within::Pod && bound && items(gates).next().is_some() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden(format!("{field}.nodeName"), why);
    }
}

fn check_gates(gates: &Value, field: &str, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, gate) in items(gates) {
        let name = gate["name"].as_str().unwrap_or_default();
        if let Some(fault) = names::key_fault(name) {
            errors.invalid(format!("{field}[{index}]"), name, fault);
        }
        if !seen.insert(name) {
            errors.duplicate(format!("{field}[{index}]"), name);
        }
    }
}

fn check_tolerations(tolerations: &Value, field: &str, errors: &mut Errors) {
    for (index, toleration) in items(tolerations) {
        let at = format!("{field}[{index}]");
        let text = |name: &str| toleration[name].as_str().unwrap_or_default();
        let (key, operator, value, effect) =
            (text("key"), text("operator"), text("value"), text("effect"));
        if !key.is_empty()
            && let Some(fault) = names::key_fault(key)
        {
            errors.invalid(format!("{at}.key"), key, fault);
        }
        if key.is_empty() && operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(format!("{at}.operator"), operator, why);
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(format!("{at}.effect"), effect, why);
        }
        match operator {
            "" | "Equal" => {
                if let Some(fault) = names::label_value_fault(value) {
                    errors.invalid(format!("{at}.operator"), value, fault);
                }
            }
            "Exists" if value.is_empty() => {}
            "Exists" => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.invalid(format!("{at}.operator"), value, why);
            }
            other => {
                errors.not_supported(format!("{at}.operator"), other, &["Equal", "Exists"]);
            }
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.not_supported(format!("{at}.effect"), effect, EFFECTS);
        }
    }
}

fn check_affinity(affinity: &Value, field: &str, errors: &mut Errors) {
    let nodes = &affinity["nodeAffinity"];
    let at = format!("{field}.nodeAffinity.{REQUIRED}");
    if let Some(required) = nodes.get(REQUIRED) {
        let terms = &required["nodeSelectorTerms"];
        if items(terms).next().is_none() {
            let why = "must have at least one node selector term";
            errors.required(format!("{at}.nodeSelectorTerms"), why);
        }
        for (index, term) in items(terms) {
            check_node_term(term, &format!("{at}.nodeSelectorTerms[{index}]"), true, errors);
        }
    }
    for (index, term) in items(&nodes[PREFERRED]) {
        let at = format!("{field}.nodeAffinity.{PREFERRED}[{index}]");
        check_weight(term, &at, errors);
        check_node_term(&term["preference"], &format!("{at}.preference"), false, errors);
    }
    for name in AFFINITIES {
        for (index, term) in items(&affinity[name][REQUIRED]) {
            let at = format!("{field}.{name}.{REQUIRED}[{index}]");
            rules::check_at(&at, TERM_RULES, term, errors);
        }
        for (index, term) in items(&affinity[name][PREFERRED]) {
            let at = format!("{field}.{name}.{PREFERRED}[{index}]");
            check_weight(term, &at, errors);
            let at = format!("{at}.podAffinityTerm");
            rules::check_at(&at, TERM_RULES, &term["podAffinityTerm"], errors);
        }
    }
}

fn check_weight(term: &Value, at: &str, errors: &mut Errors) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(format!("{at}.weight"), weight, "must be in the range 1-100");
    }
}

/// Checks a term about nodes; `strict` where the values have to be ones that labels can have.
fn check_node_term(term: &Value, at: &str, strict: bool, errors: &mut Errors) {
    for (index, requirement) in items(&term["matchExpressions"]) {
        let at = format!("{at}.matchExpressions[{index}]");
        check_operator(requirement, &at, errors);
        let key = requirement["key"].as_str().unwrap_or_default();
        if let Some(fault) = names::key_fault(key) {
            errors.invalid(format!("{at}.key"), key, fault);
        }
        for (number, value) in items(&requirement["values"]).filter(|_| strict) {
            let text = value.as_str().unwrap_or_default();
            if let Some(fault) = names::label_value_fault(text) {
                errors.invalid(format!("{at}.values[{number}]"), text, fault);
            }
        }
    }
    for (index, requirement) in items(&term["matchFields"]) {
        let at = format!("{at}.matchFields[{index}]");
        match requirement["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if items(&requirement["values"]).count() == 1 => {}
            "In" | "NotIn" => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.required(format!("{at}.values"), why);
            }
            other => {
                errors.invalid(format!("{at}.operator"), other, "not a valid selector operator");
            }
        }
        let key = requirement["key"].as_str().unwrap_or_default();
        if key != "metadata.name" {
            errors.invalid(format!("{at}.key"), key, "not a valid field selector key");
        }
    }
}

fn check_operator(requirement: &Value, at: &str, errors: &mut Errors) {
    let values = items(&requirement["values"]).count();
    let field = format!("{at}.values");
    match (requirement["operator"].as_str().unwrap_or_default(), values) {
        ("In" | "NotIn", 0) => {
            errors.required(field, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        ("Exists" | "DoesNotExist", 1..) => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(field, why);
        }
        ("Gt" | "Lt", 1) | ("In" | "NotIn", _) | ("Exists" | "DoesNotExist", 0) => {}
        ("Gt" | "Lt", _) => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.required(field, why);
        }
        (other, _) => {
            errors.invalid(format!("{at}.operator"), other, "not a valid selector operator");
        }
    }
}

fn check_spread(constraints: &Value, field: &str, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, constraint) in items(constraints) {
        let at = format!("{field}[{index}]");
        let skew = constraint["maxSkew"].as_i64().unwrap_or(0);
        if skew <= 0 {
            errors.invalid(format!("{at}.maxSkew"), skew, "must be greater than zero");
        }
        rules::check_at(&at, SPREAD_RULES, constraint, errors);
        let action = constraint["whenUnsatisfiable"].as_str().unwrap_or_default();
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            let allowed = ["DoNotSchedule", "ScheduleAnyway"];
            errors.not_supported(format!("{at}.whenUnsatisfiable"), action, &allowed);
        }
        if let Some(least) = constraint["minDomains"].as_i64() {
            let at = format!("{at}.minDomains");
            if least <= 0 {
                errors.invalid(at.as_str(), least, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let why = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                );
                errors.invalid(at, least, why);
            }
        }
        let key = constraint["topologyKey"].as_str().unwrap_or_default();
        if !seen.insert((key, action)) {
            let both = format!("{{{key}, {action}}}");
            errors.duplicate(format!("{at}.{{topologyKey, whenUnsatisfiable}}"), both);
        }
    }
}
