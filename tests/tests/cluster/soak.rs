//! Agents die at any moment while endpoints change and everything is in use: nobody notices.

use std::{
    io::Write as _,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use mizzen_tests::soak::{Dice, share};
use serde_json::{Value, json};
use xtask::cluster::{
    exec::{self, Place},
    process, traffic, up,
};

use super::{Check, World, restart::wait_ready};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] =
    &[("soak_r01_agents_killed_at_any_moment_under_churn_lose_nothing", kills_under_churn)];

/// The two services, and the ports of the node that lead to them.
const SERVICES: [(&str, u16); 2] = [("storm-x", 30_501), ("storm-y", 30_502)];
/// New connections a second of each load; there are four.
const RATE: &str = "500";

/// A pod of the example: its name, its node and its addresses.
struct Pod {
    name: String,
    node: String,
    addresses: Vec<String>,
}

/// How a pod is as an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Ready,
    /// It still serves. What was so and is gone was deleted.
    Terminating,
}

fn kills_under_churn(world: &World) -> Result<()> {
    under_churn(world, |seed| kill_agents(world, share(200), seed))
}

/// Does something to the agents while four loads run and the endpoints that they meet change: none
/// of them may notice, and afterwards the tables are as they should be.
pub(super) fn under_churn(world: &World, harm: impl FnOnce(u64) -> Result<()>) -> Result<()> {
    let seed = Dice::new().seed;
    let pods = pods(world)?;
    ensure!(pods.len() == 4, "hello has {} pods", pods.len());
    let pools = [&pods[..2], &pods[2..]];
    for ((name, port), pool) in SERVICES.into_iter().zip(pools) {
        world.api.apply(&service(name, port).to_string())?;
        endpoints(world, name, &ready(pool))?;
    }
    let outcome = storm(world, pools, seed, harm).with_context(|| format!("seed {seed}"));
    for (name, _) in SERVICES {
        for family in ["ipv4", "ipv6"] {
            let path = format!("{SLICES}/{name}-{family}");
            world.api.expect("DELETE", &path, None)?;
        }
        let path = format!("/api/v1/namespaces/default/services/{name}");
        world.api.expect("DELETE", &path, None)?;
    }
    outcome
}

/// Loads while agents are harmed and endpoints change.
fn storm(
    world: &World,
    pools: [&[Pod]; 2],
    seed: u64,
    harm: impl FnOnce(u64) -> Result<()>,
) -> Result<()> {
    for host in world.layout.node_hosts() {
        up::wait(&world.layout, "the tables to be as they should", || {
            Ok(in_step(world, &host.name))
        })?;
    }
    let loads = start_loads(world, pools)?;
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let churning = scope.spawn(|| churn(world, pools, seed, &over));
        let harmed = harm(seed);
        over.store(true, Relaxed);
        let churned = churning.join().unwrap_or_else(|_| bail!("the churn panicked"));
        harmed.and(churned)
    });
    let finished = finish_loads(loads);
    outcome.and(finished)?;
    for host in world.layout.node_hosts() {
        wait_ready(world, &host.name)?;
        up::wait(&world.layout, "the tables to be as they should", || {
            Ok(in_step(world, &host.name))
        })?;
    }
    Ok(())
}

/// Whether the agent's tables are what they should be, by its own word.
fn in_step(world: &World, node: &str) -> Result<(), String> {
    let place = Place::Host(node.to_owned());
    let said = exec::capture(&world.layout, &place, &["mizzen", "diff"]);
    said.map(drop).map_err(|error| format!("{error:#}"))
}

fn kill_agents(world: &World, kills: u64, seed: u64) -> Result<()> {
    let mut dice = Dice::seeded(seed);
    let hosts = world.layout.node_hosts();
    for kill in 0..kills {
        // The moment is the point: in the middle of anything.
        std::thread::sleep(Duration::from_micros(dice.roll() % 300_000));
        let host = &hosts[dice.below(hosts.len())];
        let name = up::agent(&host.name);
        if let Some(agent) = process::running(&world.layout, &name) {
            process::kill_hard(&agent);
        }
        up::start_agent(&world.layout, host)?;
        // Half of them die again before they are ready.
        if dice.roll() & 1 == 0 || kill + 1 == kills {
            wait_ready(world, &host.name)?;
        }
    }
    for host in &hosts {
        up::start_agent(&world.layout, host)?;
    }
    Ok(())
}

fn churn(world: &World, pools: [&[Pod]; 2], seed: u64, over: &AtomicBool) -> Result<()> {
    let mut dice = Dice::seeded(seed ^ 1);
    while !over.load(Relaxed) {
        for ((name, _), pool) in SERVICES.into_iter().zip(pools) {
            let certain = dice.below(pool.len());
            let phase = |(index, pod): (usize, _)| match dice.roll() % 4 {
                _ if index == certain => Some((pod, Phase::Ready)),
                0 | 1 => Some((pod, Phase::Ready)),
                2 => Some((pod, Phase::Terminating)),
                _ => None,
            };
            let chosen: Vec<_> = pool.iter().enumerate().filter_map(phase).collect();
            endpoints(world, name, &chosen)?;
        }
        std::thread::sleep(Duration::from_millis(dice.roll() % 20));
    }
    for ((name, _), pool) in SERVICES.into_iter().zip(pools) {
        endpoints(world, name, &ready(pool))?;
    }
    Ok(())
}

fn ready(pool: &[Pod]) -> Vec<(&Pod, Phase)> {
    pool.iter().map(|pod| (pod, Phase::Ready)).collect()
}

/// From a pod by ClusterIP, and from outside by node port; both families.
fn start_loads(world: &World, pools: [&[Pod]; 2]) -> Result<Vec<(String, Child)>> {
    let object = |name: &str| world.api.get(&format!("/api/v1/namespaces/default/services/{name}"));
    let inside = Place::Pod(traffic::first_pod(&world.api)?);
    let outside = Place::Host("client".into());
    let hosts = world.layout.node_hosts();
    let node = [hosts[0].ipv4.to_string(), hosts[1].ipv6.to_string()];
    let mut targets = Vec::new();
    for (index, (name, port)) in SERVICES.into_iter().enumerate() {
        let service = object(name)?;
        let ip = service["spec"]["clusterIPs"][index].as_str().context("no ClusterIP")?;
        targets.push((&inside, format!("{}:80", traffic::host(ip)), pools[index]));
        let ip = traffic::host(&node[index]);
        targets.push((&outside, format!("{ip}:{port}"), pools[index]));
    }
    let start = |(place, target, pool): (&Place, String, &[Pod])| {
        let pods = pool.iter().flat_map(|pod| ["--pod", &pod.name]);
        let options: Vec<&str> = ["--rate", RATE].into_iter().chain(pods).collect();
        start_load(world, place, &target, &options)
    };
    targets.into_iter().map(start).collect()
}

/// Starts `xtask load storm` at a place.
pub(super) fn start_load(
    world: &World,
    place: &Place,
    target: &str,
    options: &[&str],
) -> Result<(String, Child)> {
    let load = world.layout.binary("xtask").display().to_string();
    let argv = [&load, "load", "storm", target].into_iter().chain(options.iter().copied());
    let argv: Vec<String> = argv.map(str::to_owned).collect();
    let child = exec::command(&world.layout, place, &argv)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't start the load")?;
    Ok((format!("{place:?} -> {target}"), child))
}

/// Ends loads, of which none may have failed; how many connections each made.
pub(super) fn finish_loads(loads: Vec<(String, Child)>) -> Result<Vec<u64>> {
    let mut connections = Ok(Vec::new());
    for (what, mut child) in loads {
        if let Some(mut input) = child.stdin.take() {
            // It may have ended by itself, which its answer tells.
            let _ended = input.flush();
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let done = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("    {what}: {}", done.trim());
        if !output.status.success() && connections.is_ok() {
            connections = Err(anyhow::anyhow!("{what}: {said}"));
        } else if let Ok(connections) = &mut connections {
            let first = done.split(' ').next().unwrap_or_default();
            connections.push(first.parse().with_context(|| format!("{what}: {done}"))?);
        }
    }
    connections
}

fn pods(world: &World) -> Result<Vec<Pod>> {
    let list = world.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dhello")?;
    let pod = |pod: &Value| {
        let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
        Pod {
            name: pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            node: pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
            addresses: ips.filter_map(|ip| ip["ip"].as_str()).map(str::to_owned).collect(),
        }
    };
    Ok(list["items"].as_array().into_iter().flatten().map(pod).collect())
}

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// A service without a selector: its endpoints are written by hand. Pods go on that were deleted by
/// their endpoints' word, and so do their connections.
fn service(name: &str, node_port: u16) -> Value {
    let port = |protocol: &str| {
        json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80,
               "nodePort": node_port})
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": {"mizzen.dev/reset-on-delete": "false"}},
        "spec": {
            "type": "NodePort",
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [port("TCP"), port("UDP")],
        },
    })
}

/// Makes these pods the service's endpoints, in both families.
fn endpoints(world: &World, service: &str, pods: &[(&Pod, Phase)]) -> Result<()> {
    for (family, kind) in [("ipv4", "IPv4"), ("ipv6", "IPv6")] {
        let of_family = |ip: &&String| ip.contains(':') == (kind == "IPv6");
        let endpoints: Vec<Value> = pods
            .iter()
            .filter_map(|(pod, phase)| {
                let ip = pod.addresses.iter().find(of_family)?;
                let (ready, terminating) = (*phase == Phase::Ready, *phase == Phase::Terminating);
                let conditions =
                    json!({"ready": ready, "serving": true, "terminating": terminating});
                Some(json!({"addresses": [ip], "conditions": conditions, "nodeName": pod.node}))
            })
            .collect();
        let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 8080});
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{family}"),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": kind,
            "ports": [port("TCP"), port("UDP")],
            "endpoints": endpoints,
        });
        let path = format!("{SLICES}/{service}-{family}");
        let merge = ("application/merge-patch+json", &*slice.to_string());
        let answer = world.api.request("PATCH", &path, Some(merge))?;
        match answer.status {
            200 => {}
            404 => world.api.apply(&slice.to_string())?,
            status => bail!("changing {path}: {status}"),
        }
    }
    Ok(())
}
