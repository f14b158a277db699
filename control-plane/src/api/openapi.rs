//! OpenAPI v3: an index, and a document per group and version with the operations on its kinds.
//!
//! kubectl wants to know from it that the server validates fields. Schemas say only which kind
//! they are; no operation claims that they could be used to compute a strategic merge patch, so
//! that clients use the types that they know.

use serde_json::{Map, Value, json};

use crate::registry::{Kind, Registry, api_version};
use crate::store::checksum;

/// The index or a document; `None` if the path is neither.
pub(super) fn answer(registry: &Registry, path: &str) -> Option<Value> {
    let rest = path.strip_prefix("/openapi/v3")?.trim_matches('/');
    if rest.is_empty() {
        return Some(index(registry));
    }
    let mut versions = registry.group_versions().into_iter();
    let (group, version) = versions.find(|(group, version)| root(group, version) == rest)?;
    Some(document(registry, group, version))
}

/// `api/v1` or `apis/apps/v1`.
fn root(group: &str, version: &str) -> String {
    let prefix = if group.is_empty() { "api" } else { "apis" };
    format!("{prefix}/{}", api_version(group, version))
}

fn index(registry: &Registry) -> Value {
    let entry = |(group, version): (&'static str, &'static str)| {
        let root = root(group, version);
        // Clients keep documents by their hash.
        let hash = checksum(document(registry, group, version).to_string().as_bytes());
        let url = format!("/openapi/v3/{root}?hash={hash:08X}");
        (root, json!({"serverRelativeURL": url}))
    };
    let paths: Map<String, Value> = registry.group_versions().into_iter().map(entry).collect();
    json!({"paths": paths})
}

fn document(registry: &Registry, group: &str, version: &str) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for kind in registry.kinds().filter(|kind| kind.group == group && kind.version == version) {
        let place = if kind.is_namespaced() { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{place}/{}", root(group, version), kind.plural);
        paths.insert(format!("{collection}/{{name}}"), on_object(kind));
        paths.insert(collection, on_collection(kind));
        schemas.insert(schema_name(kind), schema(kind));
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// `io.k8s.api.apps.v1.Deployment`.
fn schema_name(kind: &Kind) -> String {
    let group = if kind.group.is_empty() {
        "core"
    } else {
        kind.group.split('.').next().unwrap_or_default()
    };
    format!("io.k8s.api.{group}.{}.{}", kind.version, kind.kind)
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn schema(kind: &Kind) -> Value {
    json!({
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        },
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-group-version-kind": [gvk(kind)],
    })
}

/// One operation.
fn operation(kind: &Kind, action: &str, parameters: &[&str], body: Option<&[&str]>) -> Value {
    let reference = json!({"$ref": format!("#/components/schemas/{}", schema_name(kind))});
    let content = |types: &[&str]| -> Map<String, Value> {
        types
            .iter()
            .map(|media_type| ((*media_type).to_owned(), json!({"schema": reference})))
            .collect()
    };
    let parameter = |name: &&str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let mut operation = json!({
        "operationId": format!("{action}{}{}", kind.version.to_uppercase(), kind.kind),
        "parameters": parameters.iter().map(parameter).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": content(&["application/json"])}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(kind),
    });
    if let Some(types) = body {
        operation["requestBody"] = json!({"content": content(types), "required": true});
    }
    operation
}

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "pretty"];
const JSON: &[&str] = &["application/json", "application/yaml"];

fn on_object(kind: &Kind) -> Value {
    let delete = ["dryRun", "gracePeriodSeconds", "propagationPolicy", "pretty"];
    let patches = ["application/json-patch+json", "application/merge-patch+json"];
    let mut path = json!({
        "get": operation(kind, "get", &["pretty"], None),
        "put": operation(kind, "put", WRITE, Some(JSON)),
        "patch": operation(kind, "patch", WRITE, Some(&patches)),
        "delete": operation(kind, "delete", &delete, None),
    });
    path["parameters"] = path_parameters(kind, true);
    path
}

fn on_collection(kind: &Kind) -> Value {
    let list = [
        "allowWatchBookmarks",
        "continue",
        "fieldSelector",
        "labelSelector",
        "limit",
        "resourceVersion",
        "resourceVersionMatch",
        "sendInitialEvents",
        "timeoutSeconds",
        "watch",
    ];
    let mut path = json!({
        "get": operation(kind, "list", &list, None),
        "post": operation(kind, "post", WRITE, Some(JSON)),
    });
    path["parameters"] = path_parameters(kind, false);
    path
}

fn path_parameters(kind: &Kind, named: bool) -> Value {
    let namespace = kind.is_namespaced().then_some("namespace");
    let names = named.then_some("name").into_iter().chain(namespace);
    names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})).collect()
}
