//! The agent as `deploy/mizzen.yaml` has it on a whole cluster: daemon sets install it, roll a new
//! version out and go, under load all the while, and no client notices.
//!
//! The nodes of this cluster share a machine's folders, so each has a daemon set of its own, with
//! its folders in the places of a machine's. Everything else is the manifest's: the rights, the
//! token of the service account, the update strategy.

use std::process::Child;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::{
    cluster::{containerd, exec::Place, layout::Host, process, traffic, up},
    deploy, image,
};

use super::{
    Check, World,
    agent_image::{Shared, config, healthy, name_config, on_node},
    restart::wait_ready,
    soak::{finish_loads, start_load},
    traffic::hello,
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[(
    "the_manifests_daemon_set_is_installed_rolled_out_and_removed_and_loses_nothing",
    installed_rolled_out_and_removed,
)];

/// Where the manifest puts everything.
const NAMESPACE: &str = "kube-system";
/// New connections a second of each load, of which there are four, and connections that last.
const OPTIONS: [&str; 4] = ["--rate", "50", "--lasting", "5"];
/// Label that tells the sets' pods apart.
const NODE: &str = "node";
/// What selects the slices that the controller made for cluster DNS.
const MANAGED: &str = "labelSelector=kubernetes.io%2Fservice-name%3Dkube-dns,\
                       endpointslice.kubernetes.io%2Fmanaged-by%3Dendpointslice-controller.k8s.io";
/// The image of the version that is rolled out.
const NEXT: &str = "docker.io/library/mizzen-agent:next";

fn installed_rolled_out_and_removed(world: &World) -> Result<()> {
    let _shared = Shared::make()?;
    let hosts = world.layout.node_hosts();
    for host in &hosts {
        for image in image::all(&world.layout.bin_dir.join("image"))? {
            containerd::import(&world.layout, &host.name, &image)?;
            containerd::tag(&world.layout, &host.name, &image.name, NEXT)?;
        }
    }
    let loads = start_loads(world)?;
    let done = install(world, &hosts)
        .and_then(|()| serve_names(world, &hosts))
        .and_then(|()| roll_out(world, &hosts))
        .and_then(|()| remove(world, &hosts));
    // What a failure left in place goes, or the next check meets it.
    let gone = if done.is_err() { remove(world, &hosts) } else { Ok(()) };
    let finished = finish_loads(loads);
    done.and(gone).and(finished).map(drop)
}

/// By cluster IP on the nodes and by node port from outside, both families.
fn start_loads(world: &World) -> Result<Vec<(String, Child)>> {
    let (ips, port) = hello(world)?;
    let nodes = world.layout.node_hosts();
    let inside = ips.iter().zip(&nodes);
    let inside = inside.map(|(ip, node)| (node.name.clone(), format!("{}:80", traffic::host(ip))));
    let outside = [nodes[0].ipv4.to_string(), nodes[1].ipv6.to_string()];
    let outside = outside.map(|ip| ("client".to_owned(), format!("{}:{port}", traffic::host(&ip))));
    inside
        .chain(outside)
        .map(|(from, target)| start_load(world, &Place::Host(from), &target, &OPTIONS))
        .collect()
}

/// The daemon sets take over from the agents that run on the nodes.
fn install(world: &World, hosts: &[Host]) -> Result<()> {
    for host in hosts {
        let name = name(host);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "data": {"agent.yaml": config(world, host)?.to_string()},
        });
        world.api.apply(&map.to_string())?;
        world.api.apply(&daemon_set(world, host)?.to_string())?;
    }
    for host in hosts {
        rolled_out(world, host)?;
        ensure!(
            process::running(&world.layout, &up::agent(&host.name)).is_none(),
            "the agent on {} goes on though the pod is ready",
            host.name
        );
        healthy(world, host)?;
    }
    Ok(())
}

/// The manifest's Service of cluster DNS in the place of the one that is there: it keeps its
/// addresses, and all resolvers are behind it.
fn serve_names(world: &World, hosts: &[Host]) -> Result<()> {
    let service = format!("/api/v1/namespaces/{NAMESPACE}/services/kube-dns");
    let before = world.api.get(&service)?;
    let put = |object: &Value| {
        world.api.expect("PUT", &service, Some(("application/json", &*object.to_string())))
    };
    let replaced = put(&deploy::cluster_dns()).and_then(|_| {
        let now = world.api.get(&service)?;
        ensure!(now["spec"]["clusterIPs"] == before["spec"]["clusterIPs"], "{now} {before}");
        up::wait(&world.layout, "every resolver to be behind cluster DNS", || {
            let found = resolvers(world)?;
            let missing = hosts.iter().find(|host| !found.contains(&host.ipv4.to_string()));
            Ok(missing.map_or(Ok(()), |host| Err(format!("{} is not: {found:?}", host.name))))
        })
    });
    // The cluster's own slices stand for its agents, which are no pods.
    let mut back = before;
    if let Some(metadata) = back["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    put(&back)?;
    world.api.expect("DELETE", &format!("{}?{MANAGED}", slice_path()), None)?;
    replaced
}

/// The addresses that the controller's slices have for cluster DNS, at the port for the clients of
/// other nodes.
fn resolvers(world: &World) -> Result<Vec<String>> {
    let list = world.api.get(&format!("{}?{MANAGED}", slice_path()))?;
    let slices = list["items"].as_array().into_iter().flatten();
    let mut addresses = Vec::new();
    for slice in slices {
        let ports = slice["ports"].as_array().into_iter().flatten();
        ensure!(
            ports.clone().count() == 2 && ports.clone().all(|it| it["port"] == 8053),
            "{slice}"
        );
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let found = endpoint["addresses"].as_array().into_iter().flatten();
            addresses.extend(found.filter_map(Value::as_str).map(str::to_owned));
        }
    }
    Ok(addresses)
}

fn slice_path() -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")
}

/// A new version: the new pod is ready before the old one goes.
fn roll_out(world: &World, hosts: &[Host]) -> Result<()> {
    let before: Vec<Vec<String>> =
        hosts.iter().map(|host| pods(world, host)).collect::<Result<_>>()?;
    let change = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "agent", "image": NEXT}]}}}});
    for host in hosts {
        let patch = ("application/strategic-merge-patch+json", &*change.to_string());
        world.api.expect("PATCH", &path("daemonsets", &name(host)), Some(patch))?;
    }
    for (host, before) in hosts.iter().zip(&before) {
        rolled_out(world, host)?;
        let now = pods(world, host)?;
        ensure!(now.len() == 1 && before.len() == 1 && now != *before, "{before:?} {now:?}");
        healthy(world, host)?;
    }
    Ok(())
}

/// The daemon sets go; what they left in the kernel goes on until the nodes' own agents are back.
fn remove(world: &World, hosts: &[Host]) -> Result<()> {
    for host in hosts {
        for kind in ["daemonsets", "configmaps"] {
            // A failure may have come before they were made.
            world.api.request("DELETE", &path(kind, &name(host)), None)?;
        }
    }
    for host in hosts {
        up::wait(&world.layout, "the agent's pods to be gone", || {
            let left = pods(world, host)?;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })?;
        up::start_agent(&world.layout, host)?;
        wait_ready(world, &host.name)?;
    }
    Ok(())
}

fn name(host: &Host) -> String {
    format!("mizzen-agent-{}", host.name)
}

fn path(kind: &str, name: &str) -> String {
    let group = if kind == "configmaps" { "api/v1" } else { "apis/apps/v1" };
    format!("/{group}/namespaces/{NAMESPACE}/{kind}/{name}")
}

/// The manifest's daemon set for one node.
fn daemon_set(world: &World, host: &Host) -> Result<Value> {
    let objects = deploy::agent_objects();
    let set = objects.into_iter().find(|object| object["kind"] == "DaemonSet");
    let mut set = set.context("no DaemonSet")?;
    set["metadata"]["name"] = name(host).into();
    set["spec"]["selector"]["matchLabels"][NODE] = host.name.as_str().into();
    let template = &mut set["spec"]["template"];
    template["metadata"]["labels"][NODE] = host.name.as_str().into();
    template["spec"] = on_node(world, host)?;
    template["spec"]["nodeSelector"]["kubernetes.io/hostname"] = host.name.as_str().into();
    name_config(&mut template["spec"], &name(host))?;
    Ok(set)
}

/// Waits as `kubectl rollout status` does, and until no pod of another version is left.
fn rolled_out(world: &World, host: &Host) -> Result<()> {
    let path = path("daemonsets", &name(host));
    up::wait(&world.layout, &format!("the daemon set of {} to be rolled out", host.name), || {
        let set = world.api.get(&path)?;
        let status = &set["status"];
        let all = ["updatedNumberScheduled", "numberAvailable", "desiredNumberScheduled"];
        let done = status["observedGeneration"] == set["metadata"]["generation"]
            && all.iter().all(|count| status[*count] == 1)
            && pods(world, host)?.len() == 1;
        Ok(if done { Ok(()) } else { Err(format!("{status}; {}", told(world, host)?)) })
    })
}

/// The uids of the agent's pods on a node, those that go included.
fn pods(world: &World, host: &Host) -> Result<Vec<String>> {
    let list = world.api.get(&format!("{}?labelSelector={NODE}%3D{}", pod_path(), host.name))?;
    let pods = list["items"].as_array().into_iter().flatten();
    Ok(pods.filter_map(|pod| pod["metadata"]["uid"].as_str()).map(str::to_owned).collect())
}

/// What the pods say of themselves, for a failure's message.
fn told(world: &World, host: &Host) -> Result<String> {
    let list = world.api.get(&format!("{}?labelSelector={NODE}%3D{}", pod_path(), host.name))?;
    let statuses = list["items"].as_array().into_iter().flatten().map(|pod| &pod["status"]);
    Ok(statuses.map(|status| status["containerStatuses"].to_string()).collect())
}

fn pod_path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods")
}
