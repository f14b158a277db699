//! Columns of Deployments and ReplicaSets.

use serde_json::Value;

use super::{AGE, Column, NAME, Object, number, or_none, text, wide};
use crate::registry::selector::Selector;

fn count(object: &Object, pointer: &str) -> i64 {
    object.integer(pointer).unwrap_or(0)
}

/// One field of all containers of the template, joined.
fn containers(object: &Object, field: &str) -> Value {
    let values =
        object.list("/spec/template/spec/containers").iter().filter_map(|one| one[field].as_str());
    values.collect::<Vec<_>>().join(",").into()
}

fn selector(object: &Object) -> Value {
    let selector = object.at("/spec/selector").and_then(|one| Selector::from_object(one).ok());
    or_none(&selector.map(|one| one.to_string()).unwrap_or_default())
}

const CONTAINERS: Column = wide("Containers", |object, _| containers(object, "name"));
const IMAGES: Column = wide("Images", |object, _| containers(object, "image"));
const SELECTOR: Column = wide("Selector", |object, _| selector(object));

/// Deployments.
pub const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", |object, _| {
        format!("{}/{}", count(object, "/status/readyReplicas"), count(object, "/spec/replicas"))
            .into()
    }),
    number("Up-to-date", |object, _| count(object, "/status/updatedReplicas").into()),
    number("Available", |object, _| count(object, "/status/availableReplicas").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// ReplicaSets.
pub const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired", |object, _| count(object, "/spec/replicas").into()),
    number("Current", |object, _| count(object, "/status/replicas").into()),
    number("Ready", |object, _| count(object, "/status/readyReplicas").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
