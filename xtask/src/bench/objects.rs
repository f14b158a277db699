//! The services of the catalogue as objects of the API.

use serde_json::{Value, json};

use super::catalogue::Service;
use crate::cluster::bulk::Request;

/// The namespace that they live in.
const NAMESPACE: &str = "default";

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

fn endpoints(service: &Service) -> Value {
    let endpoint = |address| json!({"addresses": [address], "conditions": {"ready": true}});
    service.endpoints.iter().map(endpoint).collect()
}

/// A node with an address, for an agent that runs without the node part.
pub fn node(name: &str, address: std::net::Ipv4Addr) -> (Value, Value) {
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
