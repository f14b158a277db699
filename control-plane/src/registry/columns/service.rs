//! Columns of Services and EndpointSlices.

use serde_json::Value;

use super::{AGE, Column, NAME, Object, labels, or_none, shortened, text, wide};

/// Services.
pub const SERVICE: &[Column] = &[
    NAME,
    text("Type", |service, _| service.text("/spec/type").into()),
    text("Cluster-IP", |service, _| or_none(service.text("/spec/clusterIP"))),
    text("External-IP", |service, _| external(service)),
    text("Port(s)", |service, _| ports(service)),
    AGE,
    wide("Selector", |service, _| labels(service.at("/spec/selector").and_then(Value::as_object))),
];

fn external(service: &Object) -> Value {
    let given = service.list("/spec/externalIPs").iter().filter_map(Value::as_str);
    match service.text("/spec/type") {
        "ExternalName" => service.text("/spec/externalName").into(),
        "LoadBalancer" => {
            let ingress = service.list("/status/loadBalancer/ingress").iter();
            let ingress = ingress.filter_map(|one| one["ip"].as_str().or(one["hostname"].as_str()));
            let all: Vec<&str> = ingress.chain(given).collect();
            if all.is_empty() { "<pending>".into() } else { all.join(",").into() }
        }
        _ => or_none(&given.collect::<Vec<_>>().join(",")),
    }
}

fn ports(service: &Object) -> Value {
    let port = |port: &Value| match port["nodePort"].as_i64() {
        Some(node) => {
            format!("{}:{node}/{}", port["port"], port["protocol"].as_str().unwrap_or_default())
        }
        None => format!("{}/{}", port["port"], port["protocol"].as_str().unwrap_or_default()),
    };
    or_none(&service.list("/spec/ports").iter().map(port).collect::<Vec<_>>().join(","))
}

/// Entries that a cell of an EndpointSlice shows.
const SHOWN: usize = 3;

/// EndpointSlices.
pub const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    text("AddressType", |slice, _| slice.text("/addressType").into()),
    text("Ports", |slice, _| slice_ports(slice).into()),
    text("Endpoints", |slice, _| endpoints(slice).into()),
    AGE,
];

fn slice_ports(slice: &Object) -> String {
    let port = |port: &Value| match (port["port"].as_i64(), port["name"].as_str()) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) if !name.is_empty() => name.to_owned(),
        _ => "*".to_owned(),
    };
    shortened(&slice.list("/ports").iter().map(port).collect::<Vec<_>>(), SHOWN)
}

fn endpoints(slice: &Object) -> String {
    let addresses = slice.list("/endpoints").iter().filter_map(|one| one["addresses"].as_array());
    let addresses = addresses.flatten().filter_map(Value::as_str).map(str::to_owned);
    shortened(&addresses.collect::<Vec<_>>(), SHOWN)
}
