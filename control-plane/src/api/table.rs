//! `Table` and `PartialObjectMetadata` (meta.k8s.io/v1).

use serde_json::{Value, json};

use super::{Call, clock};
use crate::registry::{Kind, Object};

/// What a row holds besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Include {
    /// The object's metadata.
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    Nothing,
}

impl Include {
    /// What the request asks for.
    pub(super) fn asked(call: &Call) -> Self {
        match call.params.text("includeObject") {
            "Object" => Self::Object,
            "None" => Self::Nothing,
            _ => Self::Metadata,
        }
    }
}

/// The object's metadata alone.
pub(super) fn partial(object: &Object) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.at("/metadata"),
    })
}

/// One row.
pub(super) fn row(kind: &Kind, object: &Object, include: Include) -> Value {
    let now = clock::now();
    let cells: Vec<Value> = kind.columns.iter().map(|column| (column.cell)(object, now)).collect();
    let mut row = json!({"cells": cells});
    match include {
        Include::Metadata => row["object"] = partial(object),
        Include::Object => row["object"] = object.value().clone(),
        Include::Nothing => {}
    }
    row
}

/// The definitions of a kind's columns.
pub(super) fn definitions(kind: &Kind) -> Value {
    let definition = |column: &crate::registry::columns::Column| {
        let format = if column.name == "Name" { "name" } else { "" };
        json!({
            "name": column.name,
            "type": column.kind,
            "format": format,
            "description": "",
            "priority": column.priority,
        })
    };
    kind.columns.iter().map(definition).collect()
}

/// A table of these rows. Watches leave the definitions out after the first event.
pub(super) fn table(metadata: &Value, definitions: &Value, rows: &[Value]) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

/// A table of one object.
pub(super) fn of_one(kind: &Kind, object: &Object, include: Include) -> Value {
    let metadata = json!({"resourceVersion": object.resource_version()});
    table(&metadata, &definitions(kind), &[row(kind, object, include)])
}
