//! A control plane for one test, and raw requests to it.

use http::{Method, Request};
use kube::Client;
use mizzen_control_plane::ControlPlane;
use serde_json::{Value, json};

/// The pods of the namespace `default`.
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";

/// A control plane without controllers, whose pods need no service account.
pub(crate) struct Bed {
    pub(crate) client: Client,
    _control_plane: ControlPlane,
}

impl Bed {
    pub(crate) async fn start() -> Self {
        let builder = ControlPlane::builder().without_controllers().without_account_admission();
        Self::of(builder.start().await.unwrap())
    }

    /// The same with controllers.
    pub(crate) async fn controlled() -> Self {
        let builder = ControlPlane::builder().without_account_admission();
        Self::of(builder.start().await.unwrap())
    }

    /// Without controllers, and with other ranges of Service addresses.
    pub(crate) async fn of_ranges(ranges: &[&str]) -> Self {
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let builder = ControlPlane::builder().without_controllers().service_cidrs(ranges);
        Self::of(builder.start().await.unwrap())
    }

    fn of(control_plane: ControlPlane) -> Self {
        Self { client: control_plane.client(), _control_plane: control_plane }
    }

    /// Sends a request; returns the answer or the `Status` of the failure.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<Value, Value> {
        let request =
            Request::builder().method(method).uri(path).header("content-type", content_type);
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        match self.client.request::<Value>(request.body(body).unwrap()).await {
            Ok(value) => Ok(value),
            Err(kube::Error::Api(status)) => Err(serde_json::to_value(status).unwrap()),
            Err(other) => panic!("{other}"),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Value> {
        self.send(Method::GET, path, "application/json", &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Value> {
        self.send(Method::POST, path, "application/json", body).await
    }

    /// The causes for which a change (a merge patch) is refused.
    pub(crate) async fn refused_change(&self, path: &str, change: &Value) -> Vec<String> {
        causes(&self.patch("merge", path, change).await.expect_err("it is refused"))
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, Value> {
        self.send(Method::PUT, path, "application/json", body).await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Result<Value, Value> {
        self.send(Method::DELETE, path, "application/json", options).await
    }

    /// PATCH in one of the formats: `json`, `merge`, `strategic-merge`.
    pub(crate) async fn patch(
        &self,
        format: &str,
        path: &str,
        body: &Value,
    ) -> Result<Value, Value> {
        let content_type = format!("application/{format}-patch+json");
        self.send(Method::PATCH, path, &content_type, body).await
    }

    /// The causes for which an object is refused: `field: message` of each.
    pub(crate) async fn refused(&self, path: &str, object: &Value) -> Vec<String> {
        causes(&self.post(path, object).await.expect_err("it is refused"))
    }
}

/// What is wrong, field by field.
pub(crate) fn causes(status: &Value) -> Vec<String> {
    assert_eq!(status["reason"], "Invalid", "{status}");
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    causes.map(|cause| format!("{}: {}", text(&cause["field"]), text(&cause["message"]))).collect()
}

/// The code of a failure.
pub(crate) fn code(status: &Value) -> u64 {
    status["code"].as_u64().unwrap()
}

/// A pod of one container with these changes to its spec.
pub(crate) fn pod(name: &str, change: &Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "a", "image": "hello"}]},
    });
    merge(&mut pod["spec"], change);
    pod
}

/// Merges `change` into `value`; lists are replaced.
pub(crate) fn merge(value: &mut Value, change: &Value) {
    match (value, change) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                merge(fields.entry(name.as_str()).or_insert(Value::Null), change);
            }
        }
        (value, change) => *value = change.clone(),
    }
}
