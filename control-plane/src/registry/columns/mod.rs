//! Columns of the tables that `kubectl get` prints.

use serde_json::Value;

use super::object::Object;

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

pub const CONFIG_MAP: &[Column] = &[NAME, AGE];
pub const EVENT: &[Column] = &[NAME, AGE];
pub const NAMESPACE: &[Column] = &[NAME, AGE];
pub const NODE: &[Column] = &[NAME, AGE];
pub const POD: &[Column] = &[NAME, AGE];
pub const SECRET: &[Column] = &[NAME, AGE];
pub const SERVICE: &[Column] = &[NAME, AGE];
pub const DEPLOYMENT: &[Column] = &[NAME, AGE];
pub const REPLICA_SET: &[Column] = &[NAME, AGE];
pub const LEASE: &[Column] = &[NAME, AGE];
pub const ENDPOINT_SLICE: &[Column] = &[NAME, AGE];
