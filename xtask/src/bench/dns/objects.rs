//! Endpoints as the slice controller writes them: each a pod on a node, in a zone.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::{
    bench::{catalogue, objects},
    cluster::bulk::Request,
};

/// How many endpoints a service has in a large cluster.
pub const ENDPOINTS: u32 = 10;

/// The address of a service's endpoint.
pub fn endpoint(service: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + service * 16 + number)
}

/// The request that gives a service's slice so many endpoints.
pub fn replace_endpoints(service: u32, endpoints: u32) -> Request {
    let all: Vec<Value> = (0..endpoints).map(|number| object(service, number)).collect();
    let mut request = objects::replace_endpoints(&catalogue::service(service, 0));
    request.body = json!({"endpoints": all}).to_string();
    request
}

/// The request that has a service's first endpoint be ready, or not: as little as a change can be.
pub fn set_ready(service: u32, ready: bool) -> Request {
    let place = "/endpoints/0/conditions/ready";
    let mut request = objects::replace_endpoints(&catalogue::service(service, 0));
    request.content_type = "application/json-patch+json";
    request.body = json!([{"op": "replace", "path": place, "value": ready}]).to_string();
    request
}

fn object(service: u32, number: u32) -> Value {
    let node = (service + number) % 100;
    json!({
        "addresses": [endpoint(service, number)],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": format!("node-{node:03}"),
        "targetRef": {
            "kind": "Pod",
            "namespace": "default",
            "name": format!("{}-7d4f8b9c6d-{number:05}", objects::name(service)),
            "uid": format!("{service:08x}-0000-4000-8000-{number:012x}"),
        },
        "zone": format!("zone-{}", node % 3),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_of_an_endpoint_that_is_there() {
        let request = set_ready(7, false);
        let patch: Value = serde_json::from_str(&request.body).expect("JSON");
        let slice: Value = serde_json::from_str(&replace_endpoints(7, 1).body).expect("JSON");
        let place = patch[0]["path"].as_str().expect("a path");
        assert_eq!(slice.pointer(place), Some(&Value::Bool(true)));
        assert_eq!(request.path, replace_endpoints(7, 1).path);
    }

    #[test]
    fn endpoints_are_the_catalogue_s_and_name_their_pods() {
        let request = replace_endpoints(7, 3);
        let body: Value = serde_json::from_str(&request.body).expect("JSON");
        assert_eq!(body["endpoints"].as_array().map(Vec::len), Some(3));
        assert_eq!(body["endpoints"][2]["targetRef"]["kind"], "Pod");
        let theirs = catalogue::service(7, 3).endpoints;
        assert_eq!((0..3).map(|n| endpoint(7, n)).collect::<Vec<_>>(), theirs);
    }
}
