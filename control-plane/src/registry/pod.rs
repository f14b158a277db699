//! Pods: defaults of the pod spec, quality of service, graceful deletion. What a spec may be is in
//! [`spec`] and below, what may change of it in [`update`].

mod container;
mod handler;
mod scheduling;
pub(super) mod spec;
mod update;
pub(super) mod volume;

use serde_json::{Map, Value, json};

use self::spec::Within;
use super::invalid::Errors;
use super::object::Object;
use super::strategy::Strategy;
use crate::schema::quantity;

/// Seconds that a pod gets to end when nothing else is said.
const GRACE_SECONDS: i64 = 30;
/// Seconds that a pod stays on a node that is not ready, unless it tolerates it otherwise
/// (the DefaultTolerationSeconds admission plugin).
const TOLERATION_SECONDS: i64 = 300;

/// [`Strategy`] of pods.
pub(super) struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Object) {
        if let Some(Value::Object(spec)) = object.at_mut("/spec") {
            default_spec(spec);
            default_pod(spec);
            or(spec, "enableServiceLinks", true);
            tolerate_for_a_while(spec);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        let class = quality_of_service(object);
        object.set("/status", json!({"phase": "Pending", "qosClass": class}));
        if !object.list("/spec/schedulingGates").is_empty() {
            let gated = json!({
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            });
            object.set("/status/conditions", json!([gated]));
        }
    }

    fn prepare_status(&self, object: &mut Object, old: &Object) {
        object.copy("/status/qosClass", old);
        object.copy("/metadata/ownerReferences", old);
    }

    fn validate_create(&self, object: &Object, errors: &mut Errors) {
        if !object.list("/spec/ephemeralContainers").is_empty() {
            errors.forbidden("spec.ephemeralContainers", "cannot be set on create");
        }
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        match object.at("/spec") {
            Some(spec) => spec::validate(spec, "spec", Within::Pod, errors),
            None => errors.required("spec.containers", ""),
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        update::validate(object, old, errors);
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
    for list in ["initContainers", "containers"] {
        each(spec, list, default_container);
    }
    each(spec, "volumes", default_volume);
}

/// Fills in what no template has: who changes a limit there shall not meet the request that was
/// made of the limit before.
fn default_pod(spec: &mut Map<String, Value>) {
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        each(spec, list, |container| {
            if host_network {
                each(container, "ports", default_host_port);
            }
            default_requests(container);
        });
    }
}

/// On the node's network a port of a container is one of the node.
fn default_host_port(port: &mut Map<String, Value>) {
    let unset = port.get("hostPort").is_none_or(|number| *number == 0);
    if let Some(number) = port.get("containerPort").filter(|_| unset).cloned() {
        port.insert("hostPort".to_owned(), number);
    }
}

fn default_container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    or(container, "imagePullPolicy", policy);
    or(container, "terminationMessagePath", "/dev/termination-log");
    or(container, "terminationMessagePolicy", "File");
    or(container, "resources", json!({}));
    each(container, "ports", |port| {
        or(port, "protocol", "TCP");
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
    if let Some(Value::Object(lifecycle)) = container.get_mut("lifecycle") {
        lifecycle.values_mut().filter_map(Value::as_object_mut).for_each(default_get);
    }
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
    default_get(probe);
}

fn default_get(handler: &mut Map<String, Value>) {
    if let Some(Value::Object(get)) = handler.get_mut("httpGet") {
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
/// BestEffort if none has any, Burstable otherwise. Who asks for 0 asks for nothing.
fn quality_of_service(object: &Object) -> &'static str {
    let containers =
        object.list("/spec/containers").iter().chain(object.list("/spec/initContainers"));
    let amount = |container: &Value, list: &str, resource: &str| {
        let found = container.pointer(&format!("/resources/{list}/{resource}"));
        found.and_then(Value::as_str).and_then(quantity::nanos).filter(|amount| *amount > 0)
    };
    let (mut any, mut all) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let request = amount(container, "requests", resource);
            let limit = amount(container, "limits", resource);
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
