//! Pods: defaults of the pod spec, quality of service, graceful deletion, what may change.

use serde_json::{Map, Value, json};

use super::NameRule;
use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::strategy::Strategy;

/// Seconds that a pod gets to end when nothing else is said.
const GRACE_SECONDS: i64 = 30;
/// Seconds that a pod stays on a node that is not ready, unless it tolerates it otherwise
/// (the DefaultTolerationSeconds admission plugin).
const TOLERATION_SECONDS: i64 = 300;

const FROZEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// [`Strategy`] of pods.
pub(super) struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Object) {
        if let Some(Value::Object(spec)) = object.at_mut("/spec") {
            default_spec(spec);
            or(spec, "enableServiceLinks", true);
            tolerate_for_a_while(spec);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        let class = quality_of_service(object);
        object.set("/status", json!({"phase": "Pending", "qosClass": class}));
    }

    fn prepare_status(&self, object: &mut Object, old: &Object) {
        object.copy("/status/qosClass", old);
        object.copy("/metadata/ownerReferences", old);
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        match object.at("/spec") {
            Some(spec) => validate_spec(spec, "spec", errors),
            None => errors.required("spec.containers", ""),
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        if changeable_hidden(object, old) != changeable_hidden(old, old) {
            errors.forbidden("spec", FROZEN);
        }
        let tolerations = object.list("/spec/tolerations");
        if old.list("/spec/tolerations").iter().any(|kept| !tolerations.contains(kept)) {
            errors.forbidden(
                "spec.tolerations",
                "existing toleration can not be modified except its tolerationSeconds",
            );
        }
    }

    fn grace_period(&self, object: &Object, requested: Option<i64>) -> Option<i64> {
        // Nobody has to end anything for a pod that no node runs, or that has ended.
        let ended = matches!(object.text("/status/phase"), "Succeeded" | "Failed");
        if object.text("/spec/nodeName").is_empty() || ended {
            return Some(0);
        }
        let own = object.integer("/spec/terminationGracePeriodSeconds").unwrap_or(GRACE_SECONDS);
        let period = requested.unwrap_or(own);
        // A negative period means the least that is not "at once".
        Some(if period < 0 { 1 } else { period })
    }
}

/// The pod's spec with `old`'s values where an update may change them.
fn changeable_hidden(object: &Object, old: &Object) -> Value {
    let mut hidden = object.clone();
    for list in ["containers", "initContainers"] {
        let Some(Value::Array(containers)) = hidden.at_mut(&format!("/spec/{list}")) else {
            continue;
        };
        for container in containers {
            container["image"] = Value::Null;
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
        hidden.copy(&format!("/spec/{field}"), old);
    }
    hidden.at("/spec").cloned().unwrap_or_default()
}

/// Writes `value` at `key` unless there is something.
pub(super) fn or(fields: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    fields.entry(key).or_insert_with(|| value.into());
}

/// Calls `visit` with each object of the list at `key`.
fn each(
    fields: &mut Map<String, Value>,
    key: &str,
    mut visit: impl FnMut(&mut Map<String, Value>),
) {
    if let Some(Value::Array(items)) = fields.get_mut(key) {
        items.iter_mut().filter_map(Value::as_object_mut).for_each(&mut visit);
    }
}

/// Fills in the defaults of a pod spec, in a pod or in a template.
pub(super) fn default_spec(spec: &mut Map<String, Value>) {
    or(spec, "restartPolicy", "Always");
    or(spec, "dnsPolicy", "ClusterFirst");
    or(spec, "terminationGracePeriodSeconds", GRACE_SECONDS);
    or(spec, "securityContext", json!({}));
    or(spec, "schedulerName", "default-scheduler");
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        each(spec, list, |container| default_container(container, host_network));
    }
    each(spec, "volumes", default_volume);
}

fn default_container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    or(container, "imagePullPolicy", policy);
    or(container, "terminationMessagePath", "/dev/termination-log");
    or(container, "terminationMessagePolicy", "File");
    or(container, "resources", json!({}));
    each(container, "ports", |port| {
        or(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            or(port, "hostPort", number);
        }
    });
    each(container, "env", |variable| {
        if let Some(Value::Object(source)) =
            variable.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef"))
        {
            or(source, "apiVersion", "v1");
        }
    });
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(Value::Object(probe)) = container.get_mut(probe) {
            default_probe(probe);
        }
    }
    default_requests(container);
}

/// Limits are the requests of what has no request.
fn default_requests(container: &mut Map<String, Value>) {
    let Some(Value::Object(resources)) = container.get_mut("resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Value::Object(requests) = requests {
        for (name, quantity) in limits {
            or(requests, &name, quantity);
        }
    }
}

fn default_probe(probe: &mut Map<String, Value>) {
    or(probe, "timeoutSeconds", 1);
    or(probe, "periodSeconds", 10);
    or(probe, "successThreshold", 1);
    or(probe, "failureThreshold", 3);
    if let Some(Value::Object(get)) = probe.get_mut("httpGet") {
        or(get, "path", "/");
        or(get, "scheme", "HTTP");
    }
}

fn default_volume(volume: &mut Map<String, Value>) {
    if volume.len() == 1 && volume.contains_key("name") {
        or(volume, "emptyDir", json!({}));
    }
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(Value::Object(source)) = volume.get_mut(source) {
            or(source, "defaultMode", 0o644);
        }
    }
    if let Some(Value::Object(path)) = volume.get_mut("hostPath") {
        or(path, "type", "");
    }
}

/// Whether an image reference has the tag `latest`, said or unsaid.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// Adds the tolerations that every pod has for the node conditions that pass.
fn tolerate_for_a_while(spec: &mut Map<String, Value>) {
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Value::Array(tolerations) = list else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = tolerations.iter().any(|one| {
            let any_effect = matches!(one["effect"].as_str(), None | Some("" | "NoExecute"));
            let any_key = matches!(one["key"].as_str(), None | Some(""));
            any_effect && (any_key || one["key"] == key)
        });
        if !tolerated {
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}));
        }
    }
}

/// The pod's class: Guaranteed if all containers have equal CPU and memory requests and limits,
/// BestEffort if none has any, Burstable otherwise.
fn quality_of_service(object: &Object) -> &'static str {
    let containers =
        object.list("/spec/containers").iter().chain(object.list("/spec/initContainers"));
    let (mut any, mut all) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let request = container.pointer(&format!("/resources/requests/{resource}"));
            let limit = container.pointer(&format!("/resources/limits/{resource}"));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request == limit;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Checks a pod spec at `field`.
pub(super) fn validate_spec(spec: &Value, field: &str, errors: &mut Errors) {
    let containers = spec["containers"].as_array().map_or(&[][..], Vec::as_slice);
    if containers.is_empty() {
        errors.required(format!("{field}.containers"), "");
    }
    let mut seen = Vec::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            validate_container(container, &format!("{field}.{list}[{index}]"), &mut seen, errors);
        }
    }
    one_of(spec, field, "restartPolicy", &["Always", "OnFailure", "Never"], errors);
    one_of(
        spec,
        field,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    if let Some(labels) = spec.get("nodeSelector") {
        names::check_labels(Some(labels), &format!("{field}.nodeSelector"), errors);
    }
}

fn one_of(fields: &Value, path: &str, key: &str, allowed: &[&str], errors: &mut Errors) {
    if let Some(value) = fields.get(key)
        && !value.as_str().is_some_and(|text| allowed.contains(&text))
    {
        errors.not_supported(format!("{path}.{key}"), value.clone(), allowed);
    }
}

fn validate_container<'a>(
    container: &'a Value,
    field: &str,
    seen: &mut Vec<&'a str>,
    errors: &mut Errors,
) {
    match container["name"].as_str().unwrap_or_default() {
        "" => errors.required(format!("{field}.name"), ""),
        name => {
            if let Some(fault) = names::fault(name, NameRule::Label) {
                errors.invalid(format!("{field}.name"), name, fault);
            }
            if seen.contains(&name) {
                errors.duplicate(format!("{field}.name"), name);
            }
            seen.push(name);
        }
    }
    if container["image"].as_str().unwrap_or_default().is_empty() {
        errors.required(format!("{field}.image"), "");
    }
    one_of(container, field, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], errors);
    for (index, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{field}.ports[{index}]");
        match port["containerPort"].as_i64() {
            None => errors.required(format!("{at}.containerPort"), ""),
            Some(1..=65535) => {}
            Some(other) => errors.invalid(
                format!("{at}.containerPort"),
                other,
                "must be between 1 and 65535, inclusive",
            ),
        }
        one_of(port, &at, "protocol", &["SCTP", "TCP", "UDP"], errors);
    }
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        if variable["name"].as_str().unwrap_or_default().is_empty() {
            errors.required(format!("{field}.env[{index}].name"), "");
        }
    }
}
