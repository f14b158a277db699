//! Columns of nodes, namespaces, configuration and other small kinds.

use serde_json::Value;

use super::{AGE, Column, NAME, NONE, Object, age, number, or_none, text, wide};

/// Label prefix of the roles of a node.
const ROLE: &str = "node-role.kubernetes.io/";

/// Nodes.
pub const NODE: &[Column] = &[
    NAME,
    text("Status", |node, _| status(node).into()),
    text("Roles", |node, _| roles(node)),
    AGE,
    text("Version", |node, _| node.text("/status/nodeInfo/kubeletVersion").into()),
    wide("Internal-IP", |node, _| address(node, "InternalIP")),
    wide("External-IP", |node, _| address(node, "ExternalIP")),
    wide("OS-Image", |node, _| info(node, "osImage")),
    wide("Kernel-Version", |node, _| info(node, "kernelVersion")),
    wide("Container-Runtime", |node, _| info(node, "containerRuntimeVersion")),
];

fn status(node: &Object) -> String {
    let ready = node.list("/status/conditions").iter().find(|one| one["type"] == "Ready");
    let status = match ready.map(|condition| condition["status"] == "True") {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    };
    let cordoned = if node.flag("/spec/unschedulable") { ",SchedulingDisabled" } else { "" };
    format!("{status}{cordoned}")
}

fn roles(node: &Object) -> Value {
    let labels = node.at("/metadata/labels").and_then(Value::as_object);
    let roles = labels.into_iter().flatten().filter_map(|(key, value)| {
        if key == "kubernetes.io/role" { value.as_str() } else { key.strip_prefix(ROLE) }
    });
    or_none(&roles.filter(|role| !role.is_empty()).collect::<Vec<_>>().join(","))
}

fn address(node: &Object, kind: &str) -> Value {
    let found = node.list("/status/addresses").iter().find(|one| one["type"] == kind);
    or_none(found.and_then(|one| one["address"].as_str()).unwrap_or_default())
}

fn info(node: &Object, field: &str) -> Value {
    match node.text(&format!("/status/nodeInfo/{field}")) {
        "" => "<unknown>".into(),
        text => text.into(),
    }
}

/// Namespaces.
pub const NAMESPACE: &[Column] =
    &[NAME, text("Status", |namespace, _| namespace.text("/status/phase").into()), AGE];

fn size(object: &Object, fields: &[&str]) -> Value {
    fields
        .iter()
        .filter_map(|field| object.at(field)?.as_object())
        .map(serde_json::Map::len)
        .sum::<usize>()
        .into()
}

/// ConfigMaps.
pub const CONFIG_MAP: &[Column] =
    &[NAME, number("Data", |map, _| size(map, &["/data", "/binaryData"])), AGE];

/// Secrets.
pub const SECRET: &[Column] = &[
    NAME,
    text("Type", |secret, _| secret.text("/type").into()),
    number("Data", |secret, _| size(secret, &["/data"])),
    AGE,
];

/// ServiceAccounts.
pub const SERVICE_ACCOUNT: &[Column] =
    &[NAME, number("Secrets", |account, _| account.list("/secrets").len().into()), AGE];

/// Leases.
pub const LEASE: &[Column] =
    &[NAME, text("Holder", |lease, _| lease.text("/spec/holderIdentity").into()), AGE];

/// ServiceCIDRs.
pub const SERVICE_CIDR: &[Column] = &[NAME, text("CIDRs", |range, _| cidrs(range)), AGE];

fn cidrs(range: &Object) -> Value {
    let cidrs = range.list("/spec/cidrs").iter().filter_map(Value::as_str);
    cidrs.collect::<Vec<_>>().join(",").into()
}

/// Events.
pub const EVENT: &[Column] = &[
    text("Last Seen", |event, now| {
        seen(
            event,
            &["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp"],
            now,
        )
    }),
    text("Type", |event, _| event.text("/type").into()),
    text("Reason", |event, _| event.text("/reason").into()),
    text("Object", |event, _| involved(event).into()),
    wide("Subobject", |event, _| event.text("/involvedObject/fieldPath").into()),
    wide("Source", |event, _| source(event).into()),
    text("Message", |event, _| event.text("/message").trim().into()),
    wide("First Seen", |event, now| seen(event, &["/firstTimestamp", "/eventTime"], now)),
    wide("Count", |event, _| {
        event.integer("/series/count").or(event.integer("/count")).unwrap_or(1).to_string().into()
    }),
    wide("Name", |event, _| event.name().into()),
];

fn seen(event: &Object, fields: &[&str], now: i64) -> Value {
    let time = fields.iter().map(|field| event.text(field)).find(|text| !text.is_empty());
    age(time.unwrap_or_default(), now).into()
}

fn involved(event: &Object) -> String {
    let kind = event.text("/involvedObject/kind").to_lowercase();
    match event.text("/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Object) -> String {
    let component = [event.text("/source/component"), event.text("/reportingComponent")];
    let component = component.into_iter().find(|text| !text.is_empty()).unwrap_or(NONE);
    match event.text("/source/host") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}
