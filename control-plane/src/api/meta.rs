//! Discovery: which groups, versions and resources there are, in the legacy and in the
//! aggregated form, and the server's version.

use http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::status::{Failure, Result};
use super::{Body, Call};
use crate::registry::{Kind, Registry, Subresource, api_version};

/// Media type of aggregated discovery; clients look for its parameters in the answer.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The version of Kubernetes' API that is served.
pub(super) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "35",
        "emulationMajor": "1",
        "emulationMinor": "35",
        "gitVersion": concat!("v1.35.0+mizzen.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": concat!("linux/", "amd64"),
    })
}

/// Answers requests about the API itself; `None` if the request is for an object.
pub(super) fn answer(registry: &Registry, call: &Call) -> Option<Result<Response<Body>>> {
    let segments: Vec<&str> = call.path.trim_matches('/').split('/').collect();
    let value = match segments.as_slice() {
        ["api"] if wants_aggregated(call) => return Some(Ok(aggregated(registry, true))),
        ["apis"] if wants_aggregated(call) => return Some(Ok(aggregated(registry, false))),
        [""] => paths(registry),
        ["api"] => {
            json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
        }
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(registry)}),
        ["apis", name] => {
            let mut group = groups(registry).into_iter().find(|group| group["name"] == *name)?;
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }
        ["api", version] => resources(registry, "", version)?,
        ["apis", group, version] => resources(registry, group, version)?,
        _ => return None,
    };
    Some(match call.method {
        Method::GET | Method::HEAD => Ok(super::json(StatusCode::OK, &value)),
        _ => Err(Failure::method_not_allowed()),
    })
}

fn wants_aggregated(call: &Call) -> bool {
    let accept =
        call.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|item| {
        let has = |parameter: &str| item.split(';').any(|part| part.trim() == parameter);
        has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
    })
}

fn paths(registry: &Registry) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, version) in
        registry.group_versions().into_iter().filter(|(group, _)| !group.is_empty())
    {
        paths.extend([format!("/apis/{group}"), format!("/apis/{group}/{version}")]);
    }
    paths.extend(["/healthz", "/livez", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    json!({"paths": paths})
}

fn groups(registry: &Registry) -> Vec<Value> {
    let group = |group: &str| {
        let version =
            |version| json!({"groupVersion": api_version(group, version), "version": version});
        let versions: Vec<Value> = registry.versions(group).into_iter().map(version).collect();
        json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
    };
    registry.groups().into_iter().filter(|group| !group.is_empty()).map(group).collect()
}

/// Group, version and kind of a subresource's body, and what can be done with it.
fn subresource_kind(
    kind: &Kind,
    subresource: Subresource,
) -> (&'static str, &'static str, &'static str, &'static [&'static str]) {
    match subresource {
        Subresource::Status | Subresource::Approval => {
            (kind.group, kind.version, kind.kind, &["get", "patch", "update"])
        }
        Subresource::Scale => ("autoscaling", "v1", "Scale", &["get", "patch", "update"]),
        Subresource::Binding => ("", "v1", "Binding", &["create"]),
        Subresource::Eviction => ("policy", "v1", "Eviction", &["create"]),
        Subresource::Log => (kind.group, kind.version, kind.kind, &["get"]),
        Subresource::Exec => ("", "v1", "PodExecOptions", &["create", "get"]),
        Subresource::Finalize => (kind.group, kind.version, kind.kind, &["update"]),
        Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
    }
}

fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in registry.of_version(group, version) {
        let mut resource = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.is_namespaced(),
            "kind": kind.kind,
            "verbs": kind.verbs,
        });
        if kind.review.is_none() {
            resource["storageVersionHash"] = "".into();
        }
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        resources.push(resource);
        for subresource in kind.subresources {
            let (group, version, name, verbs) = subresource_kind(kind, *subresource);
            let mut resource = json!({
                "name": format!("{}/{}", kind.plural, subresource.name()),
                "singularName": "",
                "namespaced": kind.is_namespaced(),
                "kind": name,
                "verbs": verbs,
            });
            if (group, version) != (kind.group, kind.version) {
                resource["group"] = group.into();
                resource["version"] = version.into();
            }
            resources.push(resource);
        }
    }
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": api_version(group, version),
            "resources": resources,
        })
    })
}

fn aggregated(registry: &Registry, core: bool) -> Response<Body> {
    let of_version = |group: &str, version: &str| {
        let kinds = registry.of_version(group, version).into_iter();
        let resources: Vec<Value> = kinds.map(aggregated_resource).collect();
        json!({"version": version, "resources": resources, "freshness": "Current"})
    };
    let item = |group: &str| {
        let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
        let versions = registry.versions(group).into_iter();
        let versions: Vec<Value> = versions.map(|version| of_version(group, version)).collect();
        json!({"metadata": metadata, "versions": versions})
    };
    let groups = registry.groups().into_iter().filter(|group| group.is_empty() == core);
    let items: Vec<Value> = groups.map(item).collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let mut response = super::json(StatusCode::OK, &list);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(AGGREGATED));
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
    response
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response_kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresource = |subresource: &Subresource| {
        let (group, version, name, verbs) = subresource_kind(kind, *subresource);
        json!({"subresource": subresource.name(), "responseKind": response_kind(group, version, name), "verbs": verbs})
    };
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": response_kind(kind.group, kind.version, kind.kind),
        "scope": if kind.is_namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        resource["subresources"] = kind.subresources.iter().map(subresource).collect();
    }
    resource
}
