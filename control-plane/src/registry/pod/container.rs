//! What the containers of a pod may be: names, ports, environment, mounts, resources.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::handler;
use super::spec::{ID, SECCOMP, Within, items};
use crate::registry::NameRule;
use crate::registry::invalid::Errors;
use crate::registry::names;
use crate::registry::rules::{self, Rule, Test};
use crate::schema::quantity;

/// What a container is checked within.
pub(super) struct Context<'a> {
    pub(super) spec: &'a Value,
    /// The volumes of the pod, by their names.
    pub(super) volumes: &'a BTreeMap<&'a str, &'a Value>,
    pub(super) of: Within,
}

const RULES: &[Rule] = &[
    Rule("name", Test::Required("")),
    Rule("name", Test::Name(NameRule::Label)),
    Rule("image", Test::Required("")),
    Rule("terminationMessagePolicy", Test::OneOf(&["File", "FallbackToLogsOnError"])),
    Rule("imagePullPolicy", Test::OneOf(&["Always", "IfNotPresent", "Never"])),
    Rule("ports[*].name", Test::Check(port_name_fault)),
    Rule("ports[*].containerPort", Test::Required("")),
    Rule("ports[*].containerPort", Test::Port),
    Rule("ports[*].hostPort", Test::Port),
    Rule("ports[*].protocol", Test::OneOf(&["SCTP", "TCP", "UDP"])),
    Rule("env[*].name", Test::Required("")),
    Rule("env[*].name", Test::Text(variable_fault)),
    Rule("env[*].valueFrom.fieldRef.fieldPath", Test::Required("")),
    Rule("env[*].valueFrom.resourceFieldRef.resource", Test::Required("")),
    Rule("env[*].valueFrom.configMapKeyRef.name", Test::Name(NameRule::Subdomain)),
    Rule("env[*].valueFrom.configMapKeyRef.key", Test::Required("")),
    Rule("env[*].valueFrom.secretKeyRef.name", Test::Name(NameRule::Subdomain)),
    Rule("env[*].valueFrom.secretKeyRef.key", Test::Required("")),
    Rule("envFrom[*].prefix", Test::Text(variable_fault)),
    Rule("envFrom[*].configMapRef.name", Test::Required("")),
    Rule("envFrom[*].configMapRef.name", Test::Name(NameRule::Subdomain)),
    Rule("envFrom[*].secretRef.name", Test::Required("")),
    Rule("envFrom[*].secretRef.name", Test::Name(NameRule::Subdomain)),
    Rule("volumeMounts[*].name", Test::Required("")),
    Rule("volumeMounts[*].mountPath", Test::Required("")),
    Rule(
        "volumeMounts[*].mountPropagation",
        Test::OneOf(&["Bidirectional", "HostToContainer", "None"]),
    ),
    Rule("volumeDevices[*].name", Test::Required("")),
    Rule("volumeDevices[*].devicePath", Test::Required("")),
    Rule("resources.limits{*}", Test::Quantity),
    Rule("resources.requests{*}", Test::Quantity),
    Rule("securityContext.runAsUser", ID),
    Rule("securityContext.runAsGroup", ID),
    Rule("securityContext.procMount", Test::OneOf(&["Default", "Unmasked"])),
    Rule("securityContext.seccompProfile.type", Test::OneOf(SECCOMP)),
];

/// The sources of a variable's value.
const VALUES: &[&str] = &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"];

/// Checks the containers of the spec at `field`.
pub(super) fn validate(context: &Context<'_>, field: &str, errors: &mut Errors) {
    let (spec, mut names, mut host_ports) = (context.spec, HashSet::new(), HashSet::new());
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        errors.required(format!("{field}.containers"), "");
    }
    for (index, container) in items(&spec["containers"]) {
        let at = format!("{field}.containers[{index}]");
        check(context, container, &at, errors);
        check_name(container, &at, &mut names, errors);
        handler::validate(spec, container, &at, errors);
        if container.get("restartPolicy").is_some() {
            let why = "may not be set for non-init containers";
            errors.forbidden(format!("{at}.restartPolicy"), why);
        }
        check_host_ports(container, &at, &mut host_ports, errors);
    }
    for (index, container) in items(&spec["initContainers"]) {
        let at = format!("{field}.initContainers[{index}]");
        check(context, container, &at, errors);
        check_name(container, &at, &mut names, errors);
        match container["restartPolicy"].as_str() {
            None => handler::forbid(container, &at, errors),
            Some("Always") => handler::validate(spec, container, &at, errors),
            Some(other) => {
                errors.not_supported(format!("{at}.restartPolicy"), other, &["Always"]);
            }
        }
        // They run one after the other.
        check_host_ports(container, &at, &mut HashSet::new(), errors);
    }
}

fn check(context: &Context<'_>, container: &Value, at: &str, errors: &mut Errors) {
    rules::check_at(at, RULES, container, errors);
    let image = container["image"].as_str().unwrap_or_default();
    if context.of == Within::Pod && image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        errors.invalid(format!("{at}.image"), image, why);
    }
    let mut seen = HashSet::new();
    for (index, port) in items(&container["ports"]) {
        let name = port["name"].as_str().unwrap_or_default();
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(format!("{at}.ports[{index}].name"), name);
        }
    }
    check_environment(container, at, errors);
    check_mounts(context.volumes, container, at, errors);
    check_resources(&container["resources"], &format!("{at}.resources"), errors);
}

fn check_name<'a>(
    container: &'a Value,
    at: &str,
    seen: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    let name = container["name"].as_str().unwrap_or_default();
    if !name.is_empty() && !seen.insert(name) {
        errors.duplicate(format!("{at}.name"), name);
    }
}

fn check_host_ports(container: &Value, at: &str, seen: &mut HashSet<String>, errors: &mut Errors) {
    for (index, port) in items(&container["ports"]) {
        let Some(number) = port["hostPort"].as_i64().filter(|number| *number != 0) else {
            continue;
        };
        let text = |name: &str| port[name].as_str().unwrap_or_default();
        let held = format!("{}/{}/{number}", text("protocol"), text("hostIP"));
        if !seen.insert(held.clone()) {
            errors.duplicate(format!("{at}.ports[{index}].hostPort"), held);
        }
    }
}

fn port_name_fault(name: &Value) -> Option<&'static str> {
    names::port_fault(name.as_str().unwrap_or_default())
}

/// What is wrong with the name of a variable.
fn variable_fault(name: &str) -> Option<String> {
    let allowed = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
    (!name.bytes().all(allowed)).then(|| {
        "a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()
    })
}

fn check_environment(container: &Value, at: &str, errors: &mut Errors) {
    for (index, variable) in items(&container["env"]) {
        let Some(from) = variable.get("valueFrom") else { continue };
        let sources = VALUES.iter().filter(|name| from.get(**name).is_some()).count();
        let said = variable["value"].as_str().is_some_and(|value| !value.is_empty());
        let why = match (sources, said) {
            (0, _) => {
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
            }
            (_, true) => "may not be specified when `value` is not empty",
            (1, false) => continue,
            (_, false) => "may not have more than one field specified at a time",
        };
        errors.invalid(format!("{at}.env[{index}].valueFrom"), "", why);
    }
    for (_, source) in items(&container["envFrom"]) {
        let why = match (source.get("configMapRef").is_some(), source.get("secretRef").is_some()) {
            (false, false) => "must specify one of: `configMapRef` or `secretRef`",
            (true, true) => "may not have more than one field specified at a time",
            _ => continue,
        };
        errors.invalid(format!("{at}.envFrom"), "", why);
    }
}

/// Mounts and devices are of volumes that there are, each at a place of its own.
fn check_mounts(
    volumes: &BTreeMap<&str, &Value>,
    container: &Value,
    at: &str,
    errors: &mut Errors,
) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut paths = HashSet::new();
    let devices = || items(&container["volumeDevices"]).map(|(_, device)| device);
    for (index, mount) in items(&container["volumeMounts"]) {
        let at = format!("{at}.volumeMounts[{index}]");
        let (name, path) = (text(&mount["name"]), text(&mount["mountPath"]));
        if !volumes.contains_key(name.as_str()) {
            errors.not_found(format!("{at}.name"), name.clone());
        }
        if !paths.insert(path.clone()) {
            errors.invalid(format!("{at}.mountPath"), path.clone(), "must be unique");
        }
        if devices().any(|device| device["name"] == name.as_str()) {
            let why = "must not already exist in volumeDevices";
            errors.invalid(format!("{at}.name"), name, why);
        }
        if devices().any(|device| device["devicePath"] == path.as_str()) {
            let why = "must not already exist as a path in volumeDevices";
            errors.invalid(format!("{at}.mountPath"), path, why);
        }
        check_sub_path(mount, &at, errors);
    }
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for (index, device) in items(&container["volumeDevices"]) {
        let at = format!("{at}.volumeDevices[{index}]");
        let (name, path) = (text(&device["name"]), text(&device["devicePath"]));
        match volumes.get(name.as_str()) {
            None => errors.not_found(format!("{at}.name"), name.clone()),
            Some(volume) => {
                let claim = ["persistentVolumeClaim", "ephemeral"];
                if !claim.iter().any(|source| volume.get(*source).is_some()) {
                    let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    errors.invalid(format!("{at}.name"), name.clone(), why);
                }
            }
        }
        if !names.insert(name.clone()) {
            errors.invalid(format!("{at}.name"), name, "must be unique");
        }
        if !paths.insert(path.clone()) {
            errors.invalid(format!("{at}.devicePath"), path, "must be unique");
        }
    }
}

/// A path below a volume stays below it.
fn check_sub_path(mount: &Value, at: &str, errors: &mut Errors) {
    for field in ["subPath", "subPathExpr"] {
        let path = mount[field].as_str().unwrap_or_default();
        if path.starts_with('/') {
            errors.invalid(format!("{at}.{field}"), path, "must be a relative path");
        }
        if path.split('/').any(|part| part == "..") {
            errors.invalid(format!("{at}.{field}"), path, "must not contain '..'");
        }
    }
    if mount.get("subPath").is_some() && mount.get("subPathExpr").is_some() {
        let why = "subPathExpr and subPath are mutually exclusive";
        errors.invalid(format!("{at}.subPathExpr"), mount["subPathExpr"].clone(), why);
    }
}

/// Requests are no more than limits; of what can't be shared they are the same.
fn check_resources(resources: &Value, at: &str, errors: &mut Errors) {
    let limits = resources["limits"].as_object();
    let requests = resources["requests"].as_object();
    for (list, amounts) in [("limits", limits), ("requests", requests)] {
        for (name, amount) in amounts.into_iter().flatten() {
            check_resource(name, amount, &format!("{at}.{list}[{name}]"), errors);
        }
    }
    for (name, request) in requests.into_iter().flatten() {
        let Some(limit) = limits.and_then(|limits| limits.get(name)) else {
            if !is_shared(name) {
                let why = "Limit must be set for non overcommitable resources";
                errors.required(format!("{at}.limits"), why);
            }
            continue;
        };
        let amount = |value: &Value| value.as_str().and_then(quantity::nanos);
        let (Some(asked), Some(most)) = (amount(request), amount(limit)) else { continue };
        let limit = limit.as_str().unwrap_or_default();
        let field = format!("{at}.requests");
        if asked != most && !is_shared(name) {
            let why = format!("must be equal to {name} limit of {limit}");
            errors.invalid(field, request.clone(), why);
        } else if asked > most {
            let why = format!("must be less than or equal to {name} limit of {limit}");
            errors.invalid(field, request.clone(), why);
        }
    }
}

fn check_resource(name: &str, amount: &Value, at: &str, errors: &mut Errors) {
    if let Some(fault) = names::key_fault(name) {
        errors.invalid(at, name, fault);
        return;
    }
    let known =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !known {
        errors.invalid(at, name, "must be a standard resource for containers");
    }
    let nanos = amount.as_str().and_then(quantity::nanos).unwrap_or(0);
    if name.contains('/') && nanos % 1_000_000_000 != 0 {
        errors.invalid(at, amount.clone(), "must be an integer");
    }
}

/// Whether containers may be given more of the resource than there is.
fn is_shared(name: &str) -> bool {
    !name.starts_with("hugepages-") && !name.contains('/')
}
