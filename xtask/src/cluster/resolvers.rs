//! The endpoints of the Service `kube-dns`: the nodes' resolvers at their peer ports, as the
//! EndpointSlice controller would make them of agents that are pods. Here agents are processes.

use anyhow::Result;
use serde_json::json;

use super::{Layout, api::Api, layout::Host};

/// Where a node's resolver answers the clients of other nodes (`dnsPeerPort`).
const PEER_PORT: u16 = 8053;

/// Has cluster DNS lead to every node's resolver. Can be repeated.
pub fn apply(layout: &Layout, api: &Api) -> Result<()> {
    let hosts = layout.node_hosts();
    api.apply(&slice("IPv4", &hosts, |host| host.ipv4.to_string()))?;
    api.apply(&slice("IPv6", &hosts, |host| host.ipv6.to_string()))
}

/// A slice of a family, as YAML (which JSON is).
fn slice(family: &str, hosts: &[Host], address: impl Fn(&Host) -> String) -> String {
    let endpoints: Vec<_> = hosts
        .iter()
        .map(|host| {
            json!({
                "addresses": [address(host)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": host.name,
            })
        })
        .collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("kube-dns-nodes-{}", family.to_lowercase()),
            "namespace": "kube-system",
            "labels": {
                "kubernetes.io/service-name": "kube-dns",
                "endpointslice.kubernetes.io/managed-by": "xtask.mizzen.dev",
            },
        },
        "addressType": family,
        "ports": [
            {"name": "dns", "port": PEER_PORT, "protocol": "UDP"},
            {"name": "dns-tcp", "port": PEER_PORT, "protocol": "TCP"},
        ],
        "endpoints": endpoints,
    });
    slice.to_string()
}
