//! Columns of the tables that `kubectl get` prints.

mod batch;
mod cluster;
mod networking;
mod pod;
mod rbac;
mod service;
mod storage;
#[cfg(test)]
mod tests;
mod workload;

use serde_json::{Map, Value};

use super::object::Object;

pub use batch::{AUTOSCALER, CRON_JOB, JOB, POD_DISRUPTION_BUDGET};
pub use cluster::{
    CONFIG_MAP, EVENT, LEASE, NAMESPACE, NODE, SECRET, SERVICE_ACCOUNT, SERVICE_CIDR,
};
pub use networking::{
    CERTIFICATE_SIGNING_REQUEST, CONTROLLER_REVISION, ENDPOINTS, INGRESS, INGRESS_CLASS,
    IP_ADDRESS, NAME_AND_CREATED, NETWORK_POLICY, POD_TEMPLATE, RESOURCE_QUOTA, RUNTIME_CLASS,
};
pub use pod::POD;
pub use rbac::{PRIORITY_CLASS, ROLE, ROLE_BINDING};
pub use service::{ENDPOINT_SLICE, SERVICE};
pub use storage::{
    CSI_DRIVER, CSI_NODE, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, STORAGE_CLASS,
    VOLUME_ATTACHMENT, VOLUME_ATTRIBUTES_CLASS,
};
pub use workload::{DAEMON_SET, DEPLOYMENT, REPLICA_SET, REPLICATION_CONTROLLER, STATEFUL_SET};

/// One column.
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type of the cells: `string`, `integer`.
    pub kind: &'static str,
    /// 0 is always printed, 1 with `-o wide`.
    pub priority: i32,
    /// The cell of an object. Ages are relative to the second argument (seconds since 1970).
    pub cell: fn(&Object, i64) -> Value,
}

/// The object's name.
pub const NAME: Column =
    Column { name: "Name", kind: "string", priority: 0, cell: |object, _| object.name().into() };

/// Time since the object was created.
pub const AGE: Column = Column {
    name: "Age",
    kind: "string",
    priority: 0,
    cell: |object, now| age(object.text("/metadata/creationTimestamp"), now).into(),
};

/// Time since a timestamp, as kubectl writes it.
pub fn age(timestamp: &str, now: i64) -> String {
    match crate::api::clock::parse(timestamp) {
        Some(then) => duration(now - then),
        None => "<unknown>".to_owned(),
    }
}

/// A duration in seconds as kubectl writes it: two units at most, the finer one only while it
/// matters.
pub fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let with = |big: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{rest}{small}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => with(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => with(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => with(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => with(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// What stands in a cell that has nothing to show.
const NONE: &str = "<none>";

/// A column of texts.
const fn text(name: &'static str, cell: fn(&Object, i64) -> Value) -> Column {
    Column { name, kind: "string", priority: 0, cell }
}

/// A column of texts that only `-o wide` prints.
const fn wide(name: &'static str, cell: fn(&Object, i64) -> Value) -> Column {
    Column { name, kind: "string", priority: 1, cell }
}

/// A column of numbers.
const fn number(name: &'static str, cell: fn(&Object, i64) -> Value) -> Column {
    Column { name, kind: "integer", priority: 0, cell }
}

/// A column of truth values.
const fn flag(name: &'static str, cell: fn(&Object, i64) -> Value) -> Column {
    Column { name, kind: "boolean", priority: 0, cell }
}

/// The text, or what says that there is none.
fn or_none(text: &str) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// Labels as `a=b,c=d`.
fn labels(labels: Option<&Map<String, Value>>) -> Value {
    let pair =
        |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
    or_none(&labels.into_iter().flatten().map(pair).collect::<Vec<_>>().join(","))
}

/// The first `most` of a list, and how many more there are.
fn shortened(items: &[String], most: usize) -> String {
    match items {
        [] => "<unset>".to_owned(),
        items if items.len() > most => {
            format!("{} + {} more...", items[..most].join(","), items.len() - most)
        }
        items => items.join(","),
    }
}
