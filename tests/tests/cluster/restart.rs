//! The agent dies: nobody notices.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use xtask::cluster::{
    exec::{self, Place},
    process, traffic, up,
};

use super::{
    Check, World,
    traffic::{hello, pod},
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("r1_killed_agents_lose_no_connection_and_write_nothing_when_they_return", killed_agents),
    ("a_killed_control_plane_has_lost_nothing_and_traffic_goes_on", killed_control_plane),
    ("a_killed_node_part_finds_its_pods_again", killed_node_part),
];

/// How long the load runs: long enough for the agents to die and to come back.
const LOAD_MILLIS: &str = "8000";

/// Loads over every path that outlives the agent.
pub(crate) fn start_loads(world: &World) -> Result<Vec<(String, Child)>> {
    let (ips, port) = hello(world)?;
    let socket_path = pod(world)?;
    let mut targets: Vec<_> =
        ips.iter().map(|ip| (socket_path.clone(), format!("{}:80", traffic::host(ip)))).collect();
    for node in world.layout.node_hosts() {
        for ip in [node.ipv4.to_string(), node.ipv6.to_string()] {
            let target = format!("{}:{port}", traffic::host(&ip));
            targets.push((Place::Host("client".into()), target));
        }
    }
    let load = world.layout.binary("xtask").display().to_string();
    targets
        .into_iter()
        .map(|(place, target)| {
            let argv = [&load, "load", "http", &target, "--millis", LOAD_MILLIS];
            let argv: Vec<_> = argv.iter().map(|&word| word.to_owned()).collect();
            let child = exec::command(&world.layout, &place, &argv)?
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("can't start the load")?;
            Ok((format!("{place:?} -> {target}"), child))
        })
        .collect()
}

/// Fails where any of them failed.
pub(crate) fn finish_loads(loads: Vec<(String, Child)>) -> Result<()> {
    for (what, child) in loads {
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{what}: {said}");
        let requests: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        ensure!(requests > 0, "{what}: the load made no request");
    }
    Ok(())
}

/// A metric of a node's agent.
pub(crate) fn metric(world: &World, node: &str, name: &str) -> Result<f64> {
    let argv = ["curl", "--silent", "--fail", "http://127.0.0.1:10249/metrics"];
    let text = exec::capture(&world.layout, &Place::Host(node.to_owned()), &argv)?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .with_context(|| format!("the agent has no metric {name}"))
}

pub(crate) fn wait_ready(world: &World, node: &str) -> Result<()> {
    let argv = ["curl", "--silent", "--fail", "http://127.0.0.1:10249/readyz"];
    up::wait(&world.layout, "the agent to be ready", || {
        let said = exec::capture(&world.layout, &Place::Host(node.to_owned()), &argv);
        Ok(said.map(drop).map_err(|error| format!("{error:#}")))
    })
}

fn killed_agents(world: &World) -> Result<()> {
    let loads = start_loads(world)?;
    let hosts = world.layout.node_hosts();
    for host in &hosts {
        let name = up::agent(&host.name);
        let agent = process::running(&world.layout, &name).context("no agent runs")?;
        process::kill_hard(&agent);
        ensure!(!agent.alive(), "{name} is still alive");
    }
    // Nobody is there, and new connections work.
    let (ips, port) = hello(world)?;
    for ip in &ips {
        traffic::get(&world.layout, &pod(world)?, &format!("http://{}/", traffic::host(ip)))?;
    }
    for host in &hosts {
        for ip in [host.ipv4.to_string(), host.ipv6.to_string()] {
            let url = format!("http://{}:{port}/", traffic::host(&ip));
            traffic::get(&world.layout, &Place::Host("client".into()), &url)?;
        }
    }
    for host in &hosts {
        up::start_agent(&world.layout, host)?;
        wait_ready(world, &host.name)?;
        let writes = metric(world, &host.name, "mizzen_map_writes_total")?;
        ensure!(writes == 0.0, "{} wrote {writes} entries with nothing changed", host.name);
    }
    finish_loads(loads)
}

fn killed_control_plane(world: &World) -> Result<()> {
    let loads = start_loads(world)?;
    let config =
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kept"},"data":{"a":"b"}}"#;
    world.api.apply(config)?;
    let before = world.api.get("/api/v1/namespaces/default/configmaps/kept")?;
    let control_plane =
        process::running(&world.layout, up::CONTROL_PLANE).context("no control plane runs")?;
    process::kill_hard(&control_plane);
    up::start_control_plane(&world.layout)?;
    let after = world.api.get("/api/v1/namespaces/default/configmaps/kept")?;
    ensure!(before == after, "an acknowledged object changed: {before} became {after}");
    world.api.expect("DELETE", "/api/v1/namespaces/default/configmaps/kept", None)?;
    finish_loads(loads)?;
    for host in world.layout.node_hosts() {
        wait_ready(world, &host.name)?;
    }
    Ok(())
}

fn killed_node_part(world: &World) -> Result<()> {
    let Place::Pod(name) = pod(world)? else { unreachable!("a pod was asked for") };
    let (before, node) = exec::sandbox(&world.layout, &name)?;
    let part = up::node_part(&node);
    let running = process::running(&world.layout, &part).context("no node part runs")?;
    process::kill_hard(&running);
    up::up(&world.layout)?;
    up::wait(&world.layout, "hello", || up::deployment_ready(&world.api, "hello"))?;
    let (after, _) = exec::sandbox(&world.layout, &name)?;
    ensure!(before.pid == after.pid, "the pod was started anew");
    traffic::get(&world.layout, &pod(world)?, "http://hello.default.svc.cluster.local/").map(drop)
}
