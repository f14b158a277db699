//! The services of the catalogue as objects of the API.

use std::{net::Ipv4Addr, time::SystemTime};

use serde_json::{Value, json};

use super::catalogue::Service;
use crate::cluster::bulk::Request;

/// The namespace that they live in.
const NAMESPACE: &str = "default";
/// How many nodes and zones the pods behind them are said to be on.
const NODES: u32 = 100;
const ZONES: u32 = 3;

/// The requests that make a service and its slice.
pub fn create(service: &Service) -> [Request; 2] {
    let post = |path: String, body: &Value| Request {
        method: "POST",
        path,
        content_type: "application/json",
        body: body.to_string(),
    };
    [
        post(format!("/api/v1/namespaces/{NAMESPACE}/services"), &service_object(service)),
        post(slices_path(), &slice_object(service)),
    ]
}

/// The request that gives the service's slice the endpoints that `service` has.
pub fn replace_endpoints(service: &Service) -> Request {
    Request {
        method: "PATCH",
        path: format!("{}/{}", slices_path(), name(service.number)),
        content_type: "application/merge-patch+json",
        body: json!({"endpoints": endpoints(service)}).to_string(),
    }
}

/// The same, with the time of the cause of the change, as the slice controller notes it.
pub fn replace_endpoints_caused_at(service: &Service, at: SystemTime) -> Request {
    const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
    let body = json!({
        "metadata": {"annotations": {TRIGGER: rfc3339(at)}},
        "endpoints": endpoints(service),
    });
    Request { body: body.to_string(), ..replace_endpoints(service) }
}

/// The request that has all endpoints of the service terminate, while they serve.
pub fn end_endpoints(service: &Service) -> Request {
    let mut body = json!({"endpoints": endpoints(service)});
    for endpoint in body["endpoints"].as_array_mut().into_iter().flatten() {
        endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    }
    Request { body: body.to_string(), ..replace_endpoints(service) }
}

/// A time as RFC 3339 has it, to the millisecond, in UTC.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a number of days since the beginning of 1970.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        let centuries = !year.is_multiple_of(100) || year.is_multiple_of(400);
        u64::from(year.is_multiple_of(4) && centuries)
    };
    let mut year = 1970;
    while days >= 365 + leap(year) {
        days -= 365 + leap(year);
        year += 1;
    }
    let lengths = [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// A service's name.
pub fn name(number: u32) -> String {
    format!("bench-{number:05}")
}

fn slices_path() -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")
}

fn service_object(service: &Service) -> Value {
    let outside = service.ports.iter().any(|port| port.node_port.is_some());
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let mut object = json!({
                "name": port.name, "port": port.number, "targetPort": port.number,
                "protocol": port.protocol.upper(),
            });
            if let Some(node_port) = port.node_port {
                object["nodePort"] = node_port.into();
            }
            object
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name(service.number)},
        "spec": {
            "type": if outside { "NodePort" } else { "ClusterIP" },
            "clusterIP": service.cluster_ip, "clusterIPs": [service.cluster_ip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": ports,
        },
    })
}

fn slice_object(service: &Service) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            json!({"name": port.name, "port": port.number, "protocol": port.protocol.upper()})
        })
        .collect();
    let name = name(service.number);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": endpoints(service),
        "ports": ports,
    })
}

/// With all that the slice controller writes of a pod.
fn endpoints(service: &Service) -> Value {
    let endpoint = |address: &Ipv4Addr| {
        let number = address.to_bits();
        // As of a Deployment: its ReplicaSet's hash and five letters.
        let pod =
            format!("{}-{:010x}-{:05x}", name(service.number), number / 16, number & 0xf_ffff);
        json!({
            "addresses": [address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", number % NODES),
            "targetRef": {
                "kind": "Pod", "namespace": NAMESPACE, "name": pod,
                "uid": format!("00000000-0000-4000-8000-{number:012x}"),
            },
            "zone": format!("zone-{}", number % ZONES),
        })
    };
    service.endpoints.iter().map(endpoint).collect()
}

/// A node with an address, for an agent that runs without the node part.
pub fn node(name: &str, address: Ipv4Addr) -> (Value, Value) {
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    let status = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name},
    ]}});
    (object, status)
}

#[cfg(test)]
mod tests {
    use super::{super::catalogue, *};

    #[test]
    fn times_are_written_in_utc() {
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(seconds);
        assert_eq!(rfc3339(at(0)), "1970-01-01T00:00:00.000Z");
        // From the examples of RFC 3339, 5.8: a leap day's neighbour and a time before it.
        assert_eq!(rfc3339(at(482_196_050_520)), "1985-04-12T23:20:50.520Z");
        assert_eq!(rfc3339(at(951_782_400_000)), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(at(1_735_689_599_999)), "2024-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_slice_names_its_service_and_has_its_ports() {
        let [service, slice] = create(&catalogue::service(0, 2))
            .map(|request| serde_json::from_str::<Value>(&request.body).expect("JSON"));
        assert_eq!(
            slice["metadata"]["labels"]["kubernetes.io/service-name"],
            service["metadata"]["name"]
        );
        assert_eq!(slice["ports"].as_array().map(Vec::len), Some(4));
        assert_eq!(service["spec"]["type"], "NodePort");
        assert_eq!(slice["endpoints"][1]["addresses"], json!(["10.244.2.3"]));
    }
}
