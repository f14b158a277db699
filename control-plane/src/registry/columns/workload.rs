//! Columns of the kinds that keep pods running.

use serde_json::Value;

use super::{AGE, Column, NAME, Object, labels, number, or_none, text, wide};
use crate::registry::selector::Selector;

pub(super) fn count(object: &Object, pointer: &str) -> i64 {
    object.integer(pointer).unwrap_or(0)
}

/// One field of all containers of the template at a pointer, joined.
pub(super) fn containers(object: &Object, template: &str, field: &str) -> Value {
    let containers = object.list(&format!("{template}/spec/containers")).iter();
    let values = containers.filter_map(|one| one[field].as_str());
    values.collect::<Vec<_>>().join(",").into()
}

pub(super) fn selector(object: &Object) -> Value {
    let selector = object.at("/spec/selector").and_then(|one| Selector::from_object(one).ok());
    or_none(&selector.map(|one| one.to_string()).unwrap_or_default())
}

const TEMPLATE: &str = "/spec/template";
const CONTAINERS: Column = wide("Containers", |object, _| containers(object, TEMPLATE, "name"));
const IMAGES: Column = wide("Images", |object, _| containers(object, TEMPLATE, "image"));
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

/// ReplicationControllers.
pub const REPLICATION_CONTROLLER: &[Column] = &[
    NAME,
    number("Desired", |object, _| count(object, "/spec/replicas").into()),
    number("Current", |object, _| count(object, "/status/replicas").into()),
    number("Ready", |object, _| count(object, "/status/readyReplicas").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    wide("Selector", |object, _| labels(object.at("/spec/selector").and_then(Value::as_object))),
];

/// StatefulSets.
pub const STATEFUL_SET: &[Column] = &[
    NAME,
    text("Ready", |object, _| {
        format!("{}/{}", count(object, "/status/readyReplicas"), count(object, "/spec/replicas"))
            .into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
];

/// DaemonSets.
pub const DAEMON_SET: &[Column] = &[
    NAME,
    number("Desired", |object, _| count(object, "/status/desiredNumberScheduled").into()),
    number("Current", |object, _| count(object, "/status/currentNumberScheduled").into()),
    number("Ready", |object, _| count(object, "/status/numberReady").into()),
    number("Up-to-date", |object, _| count(object, "/status/updatedNumberScheduled").into()),
    number("Available", |object, _| count(object, "/status/numberAvailable").into()),
    text("Node Selector", |object, _| {
        labels(object.at("/spec/template/spec/nodeSelector").and_then(Value::as_object))
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
