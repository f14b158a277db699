//! OpenAPI v3: an index, and a document per group and version with the operations on its kinds and
//! the schemas of their types.
//!
//! kubectl wants to know from it that the server validates fields, and what to explain. No
//! operation claims that it could be used to compute a strategic merge patch, so that clients use
//! the types that they know. Documents are made when somebody first asks and kept.

mod types;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use http::{Response, StatusCode};
use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Body;
use crate::registry::{Kind, Registry, Subresource, api_version};
use crate::schema::{self, Merge};
use crate::store::checksum;

/// The index and the documents by their paths, as text.
static DOCUMENTS: OnceLock<BTreeMap<String, Bytes>> = OnceLock::new();

/// The index or a document; `None` if the path is neither.
pub(super) fn answer(registry: &Registry, path: &str) -> Option<Response<Body>> {
    let rest = path.strip_prefix("/openapi/v3")?.trim_matches('/');
    let documents = DOCUMENTS.get_or_init(|| documents(registry));
    Some(super::respond(StatusCode::OK, documents.get(rest)?.clone()))
}

fn documents(registry: &Registry) -> BTreeMap<String, Bytes> {
    let text = |(group, version): (&'static str, &'static str)| {
        (root(group, version), Bytes::from(document(registry, group, version).to_string()))
    };
    let mut documents: BTreeMap<String, Bytes> =
        registry.group_versions().into_iter().map(text).collect();
    let entry = |(root, text): (&String, &Bytes)| {
        // Clients keep documents by their hash.
        let url = format!("/openapi/v3/{root}?hash={:08X}", checksum(text));
        (root.clone(), json!({"serverRelativeURL": url}))
    };
    let paths: Map<String, Value> = documents.iter().map(entry).collect();
    documents.insert(String::new(), Bytes::from(json!({"paths": paths}).to_string()));
    documents
}

/// `api/v1` or `apis/apps/v1`.
fn root(group: &str, version: &str) -> String {
    let prefix = if group.is_empty() { "api" } else { "apis" };
    format!("{prefix}/{}", api_version(group, version))
}

fn document(registry: &Registry, group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let kinds = || registry.kinds().filter(|kind| kind.group == group && kind.version == version);
    for kind in kinds() {
        let place = if kind.is_namespaced() { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{place}/{}", root(group, version), kind.plural);
        for &subresource in kind.subresources {
            if let Some(operations) = on_subresource(kind, subresource) {
                let path = format!("{collection}/{{name}}/{}", subresource.name());
                paths.insert(path, operations);
            }
        }
        if kind.review.is_some() {
            let operations = json!({
                "post": operation(&Of::kind(kind), "post", WRITE, Some(JSON)),
                "parameters": path_parameters(kind, false),
            });
            paths.insert(collection, operations);
            continue;
        }
        paths.insert(format!("{collection}/{{name}}"), on_object(kind));
        paths.insert(collection, on_collection(kind));
        if kind.is_namespaced() {
            let everywhere = format!("/{}/{}", root(group, version), kind.plural);
            paths
                .insert(everywhere, json!({"get": operation(&Of::kind(kind), "list", LIST, None)}));
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": paths,
        "components": {"schemas": schemas(kinds())},
    })
}

/// The schemas of kinds, of their lists and of all that they refer to.
fn schemas(kinds: impl Iterator<Item = &'static Kind>) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let (mut lists, mut named) = (Map::new(), Vec::new());
    for name in ["meta.v1.DeleteOptions", "meta.v1.ListMeta", "meta.v1.Status"] {
        types::add(name, &mut generator);
    }
    for kind in kinds {
        let known = schema::of(kind).is_some_and(|of| types::add(&of.name, &mut generator));
        if !known {
            lists.insert(schema_name(kind), json!({"type": "object"}));
        }
        lists.insert(schema_name(kind) + "List", list_schema(kind));
        named.push(Of::kind(kind));
        for of in kind.subresources.iter().filter_map(|subresource| Of::other(*subresource)) {
            types::add(of.name, &mut generator);
            named.push(of);
        }
    }
    let mut schemas = generator.take_definitions(true);
    schemas.extend(lists);
    for (name, schema) in &mut schemas {
        describe_merges(name, schema);
    }
    for of in named {
        if let Some(schema) = schemas.get_mut(&of.schema) {
            schema["x-kubernetes-group-version-kind"] = json!([of.gvk]);
        }
    }
    schemas
}

/// Says of each list how patches merge it.
fn describe_merges(name: &str, schema: &mut Value) {
    let short = name
        .strip_prefix("io.k8s.api.")
        .or_else(|| name.strip_prefix("io.k8s.apimachinery.pkg.apis."));
    let Some(of) = short.and_then(schema::named) else { return };
    for (name, property) in schema["properties"].as_object_mut().into_iter().flatten() {
        let Some(field) = of.field(name) else { continue };
        let (strategy, key) = match field.merge {
            Merge::Plain => continue,
            Merge::Retain => ("retainKeys", None),
            Merge::Set => ("merge", None),
            Merge::Key(key) => ("merge", Some(key)),
            Merge::KeyRetain(key) => ("merge,retainKeys", Some(key)),
        };
        property["x-kubernetes-patch-strategy"] = strategy.into();
        if let Some(key) = key {
            property["x-kubernetes-patch-merge-key"] = key.into();
        }
    }
}

fn list_schema(kind: &Kind) -> Value {
    let list = format!("{}List", kind.kind);
    json!({
        "type": "object",
        "description": format!("{list} is a list of {}.", kind.kind),
        "properties": {
            "apiVersion": {"type": "string"},
            "items": {"type": "array", "items": reference(&schema_name(kind))},
            "kind": {"type": "string"},
            "metadata": reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"),
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind":
            [{"group": kind.group, "version": kind.version, "kind": list}],
    })
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
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

/// What an operation reads and writes.
struct Of {
    /// As [`types`] knows it, where it is no kind of the registry.
    name: &'static str,
    /// Name of its schema.
    schema: String,
    /// Version and kind, for the operation's name.
    id: String,
    gvk: Value,
}

impl Of {
    fn kind(kind: &Kind) -> Self {
        let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let id = format!("{}{}", kind.version.to_uppercase(), kind.kind);
        Self { name: "", schema: schema_name(kind), id, gvk }
    }

    /// What a subresource reads and writes, if that is not the object itself.
    fn other(subresource: Subresource) -> Option<Self> {
        let (group, version, kind, name) = match subresource {
            Subresource::Scale => ("autoscaling", "v1", "Scale", "autoscaling.v1.Scale"),
            Subresource::Binding => ("", "v1", "Binding", "core.v1.Binding"),
            Subresource::Eviction => ("policy", "v1", "Eviction", "policy.v1.Eviction"),
            Subresource::Token => {
                let name = "authentication.v1.TokenRequest";
                ("authentication.k8s.io", "v1", "TokenRequest", name)
            }
            _ => return None,
        };
        let gvk = json!({"group": group, "version": version, "kind": kind});
        let id = format!("{}{kind}", version.to_uppercase());
        Some(Self { name, schema: format!("io.k8s.api.{name}"), id, gvk })
    }
}

/// One operation.
fn operation(of: &Of, action: &str, parameters: &[&str], body: Option<&[&str]>) -> Value {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
    let answer = match action {
        "list" => reference(&format!("{}List", of.schema)),
        "delete" | "deletecollection" => reference(&format!("{META}.Status")),
        _ => reference(&of.schema),
    };
    let deleting = action.starts_with("delete");
    let sent = if deleting { format!("{META}.DeleteOptions") } else { of.schema.clone() };
    let content = |types: &[&str]| -> Map<String, Value> {
        let schema = json!({"schema": reference(&sent)});
        types.iter().map(|media_type| ((*media_type).to_owned(), schema.clone())).collect()
    };
    let parameter = |name: &&str| json!({"name": name, "in": "query", "schema": {"type": type_of(name), "uniqueItems": true}});
    let mut operation = json!({
        "operationId": format!("{action}{}", of.id),
        "parameters": parameters.iter().map(parameter).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": of.gvk,
    });
    if let Some(types) = body {
        operation["requestBody"] = json!({"content": content(types), "required": !deleting});
    }
    operation
}

/// What a query parameter holds.
fn type_of(parameter: &str) -> &'static str {
    match parameter {
        "gracePeriodSeconds" | "limit" | "timeoutSeconds" => "integer",
        "allowWatchBookmarks" | "orphanDependents" | "sendInitialEvents" | "watch" => "boolean",
        _ => "string",
    }
}

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "pretty"];
const DELETE: &[&str] =
    &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy", "pretty"];
const LIST: &[&str] = &[
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
const JSON: &[&str] =
    &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];
const PATCHES: &[&str] = &["application/json-patch+json", "application/merge-patch+json"];

fn on_object(kind: &Kind) -> Value {
    let of = Of::kind(kind);
    json!({
        "get": operation(&of, "get", &["pretty"], None),
        "put": operation(&of, "put", WRITE, Some(JSON)),
        "patch": operation(&of, "patch", WRITE, Some(PATCHES)),
        "delete": operation(&of, "delete", DELETE, Some(JSON)),
        "parameters": path_parameters(kind, true),
    })
}

/// Operations on a subresource; `None` for those that are streams.
fn on_subresource(kind: &Kind, subresource: Subresource) -> Option<Value> {
    let mut of = Of::other(subresource).unwrap_or_else(|| Of::kind(kind));
    of.id += subresource.name();
    let mut path = match subresource {
        Subresource::Log | Subresource::Exec => return None,
        Subresource::Finalize => json!({"put": operation(&of, "put", WRITE, Some(JSON))}),
        Subresource::Binding | Subresource::Eviction | Subresource::Token => {
            json!({"post": operation(&of, "post", WRITE, Some(JSON))})
        }
        Subresource::Status | Subresource::Scale | Subresource::Approval => json!({
            "get": operation(&of, "get", &["pretty"], None),
            "put": operation(&of, "put", WRITE, Some(JSON)),
            "patch": operation(&of, "patch", WRITE, Some(PATCHES)),
        }),
    };
    path["parameters"] = path_parameters(kind, true);
    Some(path)
}

fn on_collection(kind: &Kind) -> Value {
    let of = Of::kind(kind);
    let mut path = json!({
        "get": operation(&of, "list", LIST, None),
        "post": operation(&of, "post", WRITE, Some(JSON)),
        "parameters": path_parameters(kind, false),
    });
    if kind.verbs.contains(&"deletecollection") {
        path["delete"] = operation(&of, "deletecollection", &[DELETE, LIST].concat(), Some(JSON));
    }
    path
}

fn path_parameters(kind: &Kind, named: bool) -> Value {
    let namespace = kind.is_namespaced().then_some("namespace");
    let names = named.then_some("name").into_iter().chain(namespace);
    names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})).collect()
}
