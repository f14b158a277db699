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
use crate::registry::{Kind, Registry, api_version};
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
        paths.insert(format!("{collection}/{{name}}"), on_object(kind));
        paths.insert(collection, on_collection(kind));
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
        named.push(kind);
    }
    let mut schemas = generator.take_definitions(true);
    schemas.extend(lists);
    for (name, schema) in &mut schemas {
        describe_merges(name, schema);
    }
    for kind in named {
        if let Some(schema) = schemas.get_mut(&schema_name(kind)) {
            schema["x-kubernetes-group-version-kind"] = json!([gvk(kind)]);
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

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

/// One operation.
fn operation(kind: &Kind, action: &str, parameters: &[&str], body: Option<&[&str]>) -> Value {
    let reference = reference(&schema_name(kind));
    let answer = match action {
        "list" => self::reference(&format!("{}List", schema_name(kind))),
        "delete" => self::reference("io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
        _ => reference.clone(),
    };
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
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(kind),
    });
    if let Some(types) = body {
        operation["requestBody"] = json!({"content": content(types), "required": true});
    }
    operation
}

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "pretty"];
const JSON: &[&str] =
    &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];

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
