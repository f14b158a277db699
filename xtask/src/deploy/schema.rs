//! Whether the Kubernetes API has what an object says: it is read by the API's types and written
//! again, and what it has lost they don't know.

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Service, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What is wrong with an object.
pub(super) fn complaint(object: &Value) -> Option<String> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let again = match kind {
        "ClusterRole" => again::<ClusterRole>(object),
        "ClusterRoleBinding" => again::<ClusterRoleBinding>(object),
        "ConfigMap" => again::<ConfigMap>(object),
        "DaemonSet" => again::<DaemonSet>(object),
        "Service" => again::<Service>(object),
        "ServiceAccount" => again::<ServiceAccount>(object),
        // Prometheus' own: there are no types here.
        "ServiceMonitor" => return None,
        other => return Some(format!("the kind {other} is not checked")),
    };
    match again {
        Ok(again) => lost(object, &again, kind),
        Err(error) => Some(format!("{kind}: {error}")),
    }
}

fn again<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(object.clone())?)
}

/// The first field of `object` that `known` lacks or has otherwise, below `path`.
fn lost(object: &Value, known: &Value, path: &str) -> Option<String> {
    match (object, known) {
        (Value::Object(fields), Value::Object(known)) => fields.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match known.get(name) {
                Some(known) => lost(value, known, &path),
                // An empty list and none are one to the API.
                None if value.as_array().is_some_and(Vec::is_empty) => None,
                None => Some(format!("{path} is no field that the API has")),
            }
        }),
        (Value::Array(items), Value::Array(known)) => items
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(at, (item, known))| lost(item, known, &format!("{path}[{at}]"))),
        _ => (object != known).then(|| format!("{path} is {object}, and read as {known}")),
    }
}
