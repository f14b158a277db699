//! Endpoints and maps follow what happens to pods.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::cluster::{
    exec::{self, Place},
    traffic, up,
};

use super::{Check, World};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("scaling_is_followed_by_slices_and_maps", scaling_is_followed),
    ("a_deleted_pod_leaves_the_maps_and_is_replaced", deleted_pod_is_replaced),
    ("b11_a_service_without_endpoints_refuses_at_once", no_endpoints_refuse),
    ("b97_b98_traffic_distribution_keeps_connections_near", distribution_is_followed),
];

/// The addresses of hello's ready pods of one family.
fn pod_ips(world: &World) -> Result<BTreeSet<String>> {
    let pods = world.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dhello")?;
    Ok(pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|pod| pod["status"]["podIP"].as_str())
        .map(str::to_owned)
        .collect())
}

/// The addresses that hello's IPv4 ClusterIP leads to in the maps of a node, by its own command
/// line.
fn backends(world: &World, node: &str) -> Result<BTreeSet<String>> {
    let place = Place::Host(node.to_owned());
    let argv = ["mizzen", "backends", "-o", "json"];
    let said: Value = serde_json::from_str(&exec::capture(&world.layout, &place, &argv)?)?;
    let frontends = said.as_array().context("`mizzen backends -o json` is no list")?;
    for frontend in frontends {
        ensure!(frontend["fault"] == "", "a fault in the tables: {frontend}");
    }
    let (ips, _) = super::traffic::hello(world)?;
    let dialled = format!("{}:80/TCP", ips[0]);
    Ok(frontends
        .iter()
        .filter(|frontend| frontend["frontend"] == dialled.as_str())
        .flat_map(|frontend| frontend["internal"].as_array().into_iter().flatten())
        .filter_map(|backend| backend.as_str()?.rsplit_once(':'))
        .map(|(address, _)| address.to_owned())
        .collect())
}

fn wait_followed(world: &World, replicas: usize) -> Result<()> {
    up::wait(&world.layout, "hello", || up::deployment_ready(&world.api, "hello"))?;
    up::wait(&world.layout, "the maps of both nodes to follow", || {
        let wanted = pod_ips(world)?;
        for host in world.layout.node_hosts() {
            let held = backends(world, &host.name)?;
            if held != wanted || held.len() != replicas {
                return Ok(Err(format!("{} has {held:?}, wanted {wanted:?}", host.name)));
            }
        }
        Ok(Ok(()))
    })
}

fn scaling_is_followed(world: &World) -> Result<()> {
    for replicas in [5, 1, 4] {
        world.api.scale("hello", replicas)?;
        wait_followed(world, replicas as usize)?;
    }
    Ok(())
}

fn deleted_pod_is_replaced(world: &World) -> Result<()> {
    let name = traffic::first_pod(&world.api)?;
    world.api.expect("DELETE", &format!("/api/v1/namespaces/default/pods/{name}"), None)?;
    wait_followed(world, 4)?;
    ensure!(traffic::first_pod(&world.api)? != name, "the pod is still there");
    Ok(())
}

fn no_endpoints_refuse(world: &World) -> Result<()> {
    let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"nobody"},
        "spec":{"selector":{"app":"nobody"},"ipFamilyPolicy":"RequireDualStack","ports":[{"port":80}]}}"#;
    world.api.apply(service)?;
    let object = world.api.get("/api/v1/namespaces/default/services/nobody")?;
    for ip in object["spec"]["clusterIPs"].as_array().context("no clusterIPs")? {
        let url = format!("http://{}/", traffic::host(ip.as_str().unwrap_or_default()));
        let place = Place::Pod(traffic::first_pod(&world.api)?);
        up::wait(&world.layout, "the refusal", || {
            let argv = ["curl", "--silent", "--show-error", "--max-time", "5", &url];
            Ok(match exec::capture(&world.layout, &place, &argv) {
                // curl's 7: could not connect; 28 would be a time-out.
                Err(error) if format!("{error}").contains("exit status: 7") => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })?;
    }
    world.api.expect("DELETE", "/api/v1/namespaces/default/services/nobody", None)?;
    Ok(())
}

/// From the field of the service by the controller's hints to what a pod of the node may reach:
/// the nodes are in a zone each.
fn distribution_is_followed(world: &World) -> Result<()> {
    let zones = |zone: &dyn Fn(usize) -> String| {
        for (number, host) in world.layout.node_hosts().iter().enumerate() {
            let label = zone(number);
            let body =
                format!(r#"{{"metadata":{{"labels":{{"topology.kubernetes.io/zone":{label}}}}}}}"#);
            let merge = Some(("application/merge-patch+json", &*body));
            world.api.expect("PATCH", &format!("/api/v1/nodes/{}", host.name), merge)?;
        }
        Ok::<(), anyhow::Error>(())
    };
    zones(&|number| format!("\"zone-{number}\""))?;
    for host in world.layout.node_hosts() {
        world.api.apply(&pod_on(&host.name))?;
    }
    let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"near"},
        "spec":{"selector":{"app":"near"},"ipFamilyPolicy":"RequireDualStack",
        "ports":[{"port":80,"targetPort":8080}]}}"#;
    world.api.apply(service)?;
    let outcome = near(world);
    world.api.expect("DELETE", SERVICE, None)?;
    for host in world.layout.node_hosts() {
        let path = format!("/api/v1/namespaces/default/pods/near-{}", host.name);
        world.api.expect("DELETE", &path, None)?;
    }
    zones(&|_| "null".to_owned())?;
    outcome
}

/// A server that no scheduler had to place.
fn pod_on(node: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"near-{node}",
            "labels":{{"app":"near"}}}},"spec":{{"nodeName":"{node}","containers":[{{"name":"near",
            "image":"hello","env":[{{"name":"POD_NAME","value":"near-{node}"}}]}}]}}}}"#
    )
}

const SERVICE: &str = "/api/v1/namespaces/default/services/near";

fn near(world: &World) -> Result<()> {
    // With a distribution, each node's clients stay on their node: it is the zone's only one.
    for (distribution, stays) in [
        ("\"PreferSameZone\"", true),
        ("null", false),
        ("\"PreferSameNode\"", true),
        ("\"PreferClose\"", true),
    ] {
        let body = format!(r#"{{"spec":{{"trafficDistribution":{distribution}}}}}"#);
        let merge = Some(("application/merge-patch+json", &*body));
        world.api.expect("PATCH", SERVICE, merge)?;
        for host in world.layout.node_hosts() {
            let nodes = world.layout.node_hosts().into_iter().map(|node| node.name);
            let wanted: BTreeSet<String> = nodes
                .filter(|node| !stays || *node == host.name)
                .map(|node| format!("default/near-{node}"))
                .collect();
            up::wait(&world.layout, "connections to stay near", || {
                let answers =
                    super::explain::why(world, &host.name, "node", "default/near:80/tcp")?;
                for answer in &answers {
                    // At first the service has no endpoints, and an answer no candidates.
                    match super::explain::candidates(answer) {
                        Ok(found) if found == wanted && answers.len() == 2 => {}
                        other => {
                            let node = &host.name;
                            return Ok(Err(format!("{distribution} on {node}: {other:?}")));
                        }
                    }
                }
                Ok(Ok(()))
            })?;
        }
    }
    Ok(())
}
