//! A rolling update under load: pods go and come, and no client notices; who follows is told of it as it
//! happens, and who asks hears that the nodes are healthy.

use anyhow::{Context as _, Result, ensure};
use mizzen_tests::soak;
use serde_json::{Value, json};
use xtask::cluster::{exec::Place, traffic, up};

use super::{
    Check, World, explain,
    followed::{self, Followed},
    polled::Polled,
    soak::{finish_loads, start_load},
    traffic::hello,
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("soak_b89_r08_a_rolling_update_fails_no_request", no_request_fails),
    ("soak_b89_r08_by_policy_local_a_rolling_update_fails_no_request", no_request_fails_by_local),
];

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";
/// New connections a second of each load; there are four.
const OPTIONS: [&str; 4] = ["--rate", "200", "--lasting", "0"];

/// By cluster IP and node port, both families, TCP by new connections and UDP by one socket.
fn no_request_fails(world: &World) -> Result<()> {
    let (ips, port) = hello(world)?;
    let nodes = world.layout.node_hosts();
    let client = Place::Host("client".into());
    let followed: Vec<Followed> =
        nodes.iter().map(|node| Followed::start(world, &node.name)).collect::<Result<_>>()?;
    let polled: Vec<_> = nodes.iter().map(|node| Polled::start(world, &node.name)).collect();
    let mut loads = Vec::new();
    for (ip, node) in ips.iter().zip(&nodes) {
        let target = format!("{}:80", traffic::host(ip));
        loads.push(start_load(world, &Place::Host(node.name.clone()), &target, &OPTIONS)?);
    }
    let outside = [nodes[0].ipv4.to_string(), nodes[1].ipv6.to_string()]
        .map(|ip| format!("{}:{port}", traffic::host(&ip)));
    for target in &outside {
        loads.push(start_load(world, &client, target, &OPTIONS)?);
    }
    let rolled = roll_all(world, &["hello".to_owned()], "hello");
    let finished = finish_loads(loads);
    let told: Result<Vec<_>> = followed.into_iter().map(|it| it.finish(world)).collect();
    let healthy: Result<Vec<()>> = polled.into_iter().map(Polled::finish).collect();
    let made = rolled.and(finished)?;
    healthy?;
    for (node, events) in told?.iter().enumerate() {
        followed::agrees(events, &format!("{}:80", traffic::host(&ips[node])), made[node])?;
        followed::tells_of_packets(events, &outside[node])?;
    }
    Ok(())
}

/// The name of the service with the policies Local, and the label of its pods.
const NEAR: &str = "rolled-near";
/// Its node port.
const NEAR_PORT: u16 = 30_504;

/// With both traffic policies Local each node's clients have its own pod alone, which is replaced:
/// at no time may it have none. A deployment for each node stands for a daemon set that surges.
fn no_request_fails_by_local(world: &World) -> Result<()> {
    let hello = world.api.get(&format!("{DEPLOYMENTS}/hello"))?;
    let nodes = world.layout.node_hosts();
    let names: Vec<String> = nodes.iter().map(|node| format!("{NEAR}-{}", node.name)).collect();
    for (name, node) in names.iter().zip(&nodes) {
        world.api.apply(&deployment_on(&hello, name, &node.name).to_string())?;
    }
    world.api.apply(&near().to_string())?;
    let outcome = names
        .iter()
        .try_for_each(|name| {
            up::wait(&world.layout, "each node to have its pod", || {
                up::deployment_ready(&world.api, name)
            })
        })
        .and_then(|()| rolled_near(world, &names));
    world.api.expect("DELETE", &format!("{SERVICES}/{NEAR}"), None)?;
    for name in &names {
        world.api.expect("DELETE", &format!("{DEPLOYMENTS}/{name}"), None)?;
    }
    up::wait(&world.layout, "its pods to be gone", || {
        let left = pods(world, NEAR)?.len();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} are there")) })
    })?;
    outcome
}

/// Each node at its cluster IP, and clients outside at each node's port.
fn rolled_near(world: &World, names: &[String]) -> Result<()> {
    let service = world.api.get(&format!("{SERVICES}/{NEAR}"))?;
    let ips = service["spec"]["clusterIPs"].as_array().context("no clusterIPs")?;
    let nodes = world.layout.node_hosts();
    for host in &nodes {
        up::wait(&world.layout, "the node to have its endpoint", || {
            let question = format!("default/{NEAR}");
            let answers = match explain::why(world, &host.name, "node", &question) {
                Ok(answers) => answers,
                Err(error) => return Ok(Err(format!("{error:#}"))), // not known yet
            };
            let none = answers.iter().find_map(|answer| explain::candidates(answer).err());
            Ok(none.map_or(Ok(()), |error| Err(format!("{error:#}"))))
        })?;
    }
    let mut loads = Vec::new();
    for (ip, node) in ips.iter().zip(&nodes) {
        let target = format!("{}:80", traffic::host(ip.as_str().context("an address")?));
        loads.push(start_load(world, &Place::Host(node.name.clone()), &target, &OPTIONS)?);
    }
    for ip in [nodes[0].ipv4.to_string(), nodes[1].ipv6.to_string()] {
        let target = format!("{}:{NEAR_PORT}", traffic::host(&ip));
        loads.push(start_load(world, &Place::Host("client".into()), &target, &OPTIONS)?);
    }
    let rolled = roll_all(world, names, NEAR);
    let finished = finish_loads(loads);
    rolled.and(finished).map(drop)
}

/// A deployment of one pod on a node, which is replaced before it goes.
fn deployment_on(hello: &Value, name: &str, node: &str) -> Value {
    let mut template = hello["spec"]["template"].clone();
    template["metadata"] = json!({"labels": {"app": NEAR, "on": node}});
    template["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": {"app": NEAR, "on": node}},
            "template": template,
        },
    })
}

fn near() -> Value {
    let port = |protocol: &str| {
        json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80,
               "targetPort": 8080, "nodePort": NEAR_PORT})
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NEAR},
        "spec": {
            "type": "NodePort",
            "ipFamilyPolicy": "RequireDualStack",
            "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Local",
            "selector": {"app": NEAR},
            "ports": [port("TCP"), port("UDP")],
        },
    })
}

/// Replaces all pods of some deployments again and again.
fn roll_all(world: &World, deployments: &[String], app: &str) -> Result<()> {
    // The last one leaves the deployments as they were.
    let rollouts = if soak::in_full() { 10 } else { 2 };
    (1..=rollouts).try_for_each(|rollout| {
        let mark = if rollout == rollouts { "null".to_owned() } else { format!("\"{rollout}\"") };
        roll(world, deployments, app, &mark)
    })
}

/// Replaces every pod, and waits until none of the old ones is left.
fn roll(world: &World, deployments: &[String], app: &str, mark: &str) -> Result<()> {
    let before = pods(world, app)?;
    ensure!(!before.is_empty(), "{app} has no pods");
    let body =
        format!(r#"{{"spec":{{"template":{{"metadata":{{"annotations":{{"mark":{mark}}}}}}}}}}}"#);
    for name in deployments {
        let merge = Some(("application/merge-patch+json", &*body));
        world.api.expect("PATCH", &format!("{DEPLOYMENTS}/{name}"), merge)?;
    }
    up::wait(&world.layout, "every pod to be another", || {
        let now = pods(world, app)?;
        let old = now.iter().filter(|uid| before.contains(uid)).count();
        if old > 0 || now.len() != before.len() {
            return Ok(Err(format!("{} pods, {old} of them old", now.len())));
        }
        for name in deployments {
            if let Err(why) = up::deployment_ready(&world.api, name)? {
                return Ok(Err(why));
            }
        }
        Ok(Ok(()))
    })
}

/// The uids of pods with this label, those that go included.
fn pods(world: &World, app: &str) -> Result<Vec<String>> {
    let list =
        world.api.get(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}"))?;
    let pods = list["items"].as_array().into_iter().flatten();
    Ok(pods.filter_map(|pod| pod["metadata"]["uid"].as_str()).map(str::to_owned).collect())
}
