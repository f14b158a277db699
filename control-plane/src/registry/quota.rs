//! ResourceQuotas: what can be counted, and which scopes go with what.

use serde_json::Value;

use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::rules::NOT_NEGATIVE;
use super::strategy::Strategy;
use crate::schema::quantity;

/// [`Strategy`] of quotas.
pub(super) struct Quotas;

/// What a pod uses, by the names that quotas have for it.
const COMPUTE: &[&str] =
    &["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
/// What else can be limited without a domain in front.
const OTHERS: &[&str] = &[
    "ephemeral-storage",
    "limits.ephemeral-storage",
    "requests.ephemeral-storage",
    "requests.storage",
];
/// What is counted in whole numbers.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// Scopes that exclude each other.
const CONFLICTS: [[&str; 2]; 2] =
    [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

impl Strategy for Quotas {
    fn validate(&self, object: &Object, errors: &mut Errors) {
        for place in ["spec.hard", "status.hard", "status.used"] {
            check_amounts(object, place, errors);
        }
        check_scopes(object, errors);
    }

    fn validate_status(&self, object: &Object, _old: &Object, errors: &mut Errors) {
        for place in ["status.hard", "status.used"] {
            check_amounts(object, place, errors);
        }
    }
}

fn amounts<'a>(object: &'a Object, place: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let found = object.at(&format!("/{}", place.replace('.', "/")));
    found.and_then(Value::as_object).into_iter().flatten()
}

fn check_amounts(object: &Object, place: &str, errors: &mut Errors) {
    for (name, amount) in amounts(object, place) {
        let field = format!("{place}[{name}]");
        if let Some(fault) = names::key_fault(name) {
            errors.invalid(field.as_str(), name.as_str(), fault);
        } else if !name.contains('/') && !is_standard(name) {
            let why = "must be a standard resource for quota";
            errors.invalid(field.as_str(), name.as_str(), why);
        }
        let nanos = amount.as_str().and_then(quantity::nanos).unwrap_or(0);
        if nanos < 0 {
            errors.invalid(field.as_str(), amount.clone(), NOT_NEGATIVE);
        }
        if COUNTED.contains(&name.as_str()) && nanos % 1_000_000_000 != 0 {
            errors.invalid(field, amount.clone(), "must be an integer");
        }
    }
}

/// Whether quotas know a name that has no domain.
fn is_standard(name: &str) -> bool {
    let huge = name.strip_prefix("requests.").unwrap_or(name).starts_with("hugepages-");
    huge || [COMPUTE, OTHERS, COUNTED].iter().any(|known| known.contains(&name))
}

fn check_scopes(object: &Object, errors: &mut Errors) {
    let scopes = object.list("/spec/scopes");
    let all = || Value::from(scopes.to_vec());
    let names: Vec<&str> = scopes.iter().filter_map(Value::as_str).collect();
    for scope in &names {
        let limits: fn(&str) -> bool = match *scope {
            "BestEffort" => |name| name == "pods",
            "CrossNamespacePodAffinity"
            | "NotBestEffort"
            | "NotTerminating"
            | "PriorityClass"
            | "Terminating" => |name| name == "pods" || COMPUTE.contains(&name),
            "VolumeAttributesClass" => {
                |name| matches!(name, "persistentvolumeclaims" | "requests.storage")
            }
            _ => {
                errors.invalid("spec.scopes", all(), "unsupported scope");
                continue;
            }
        };
        for (name, _) in amounts(object, "spec.hard") {
            if is_standard(name) && !limits(name) {
                let why = "unsupported scope applied to resource";
                errors.invalid("spec.scopes", all(), why);
            }
        }
    }
    for pair in CONFLICTS {
        if pair.iter().all(|scope| names.contains(scope)) {
            errors.invalid("spec.scopes", all(), "conflicting scopes");
        }
    }
}
