//! The cluster on containerd: what a real container runtime does to pods and to us.

use std::{
    fs,
    io::{Seek as _, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::{
    cluster::{
        cgroup, containerd,
        exec::{self, Place},
        process, traffic, up,
    },
    invoke,
};

use super::{
    Check, World,
    containers::{busybox, delete_pod, run_pod},
    restart::{finish_loads, start_loads},
    streams,
    traffic::pod,
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("a_killed_runtime_leaves_pods_alone_and_is_met_again", killed_runtime),
    ("pods_of_a_runtime_have_addresses_of_their_nodes_ranges", addresses),
    ("a_deleted_pod_leaves_nothing_at_the_runtime", deleted_pod),
    ("what_comes_by_standard_input_reaches_a_command_with_its_end", standard_input),
];

/// Ids and restarts of the pods of `hello`.
fn containers(world: &World) -> Result<Vec<(String, u64)>> {
    let list = world.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dhello")?;
    let pods = list["items"].as_array().context("no pods")?;
    let mut all: Vec<_> = pods
        .iter()
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            let id = status["containerID"].as_str().unwrap_or_default().to_owned();
            (id, status["restartCount"].as_u64().unwrap_or_default())
        })
        .collect();
    all.sort();
    Ok(all)
}

fn killed_runtime(world: &World) -> Result<()> {
    let before = containers(world)?;
    ensure!(before.iter().all(|(id, _)| id.starts_with("containerd://")), "{before:?}");
    let loads = start_loads(world)?;
    let hosts = world.layout.node_hosts();
    // A command asks whether this one lives, and nobody can run it while the runtime is away.
    let mut asked = busybox(&hosts[0].name);
    asked["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 1});
    run_pod(world, "asked", &asked, "Ready")?;
    for host in &hosts {
        let name = containerd::name(&host.name);
        let running = process::running(&world.layout, &name).context("no containerd runs")?;
        process::kill_hard(&running);
    }
    // Nobody runs the pods, and they answer, for the time of a few probes.
    let (client, killed) = (pod(world)?, Instant::now());
    while killed.elapsed() < Duration::from_secs(4) {
        traffic::get(&world.layout, &client, "http://hello.default.svc.cluster.local/")?;
    }
    for host in &hosts {
        containerd::start(&world.layout, host)?;
    }
    // A pod that is made now proves that the node parts have met their runtimes again.
    for host in &hosts {
        let name = format!("later-{}", host.name);
        run_pod(world, &name, &busybox(&host.name), "Ready")?;
        delete_pod(world, &name)?;
    }
    finish_loads(loads)?;
    up::wait(&world.layout, "hello", || up::deployment_ready(&world.api, "hello"))?;
    let after = containers(world)?;
    ensure!(before == after, "containers changed: {before:?} became {after:?}");
    let asked = world.api.get("/api/v1/namespaces/default/pods/asked")?;
    let status = &asked["status"]["containerStatuses"][0];
    ensure!(status["restartCount"] == 0 && status["ready"] == true, "{status}");
    delete_pod(world, "asked")
}

/// More than fits any buffer on the way; `cat` ends when there is no more.
fn standard_input(world: &World) -> Result<()> {
    run_pod(world, "reader", &busybox("node-2"), "Ready")?;
    let outcome = input_of_reader(world);
    delete_pod(world, "reader")?;
    outcome
}

fn input_of_reader(world: &World) -> Result<()> {
    let words = ["exec", "-i", "reader", "--", "sh", "-c", "cat; echo done >&2; exit 4"];
    let Some(mut command) = streams::kubectl(world, &words) else { return Ok(()) };
    let sent = "more than any buffer on the way holds\n".repeat(60_000);
    let mut file = tempfile::tempfile()?;
    file.write_all(sent.as_bytes())?;
    file.rewind()?;
    let output = command.stdin(file).output()?;
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(4), "{}: {complained}", output.status);
    ensure!(complained.starts_with("done\n"), "{complained:?}");
    ensure!(output.stdout == sent.as_bytes(), "{} octets came back", output.stdout.len());
    // Without any, too.
    let words = ["exec", "-i", "reader", "--", "cat"];
    let (code, said, error) = streams::run(streams::kubectl(world, &words).context("gone")?)?;
    ensure!((code, said.as_str()) == (0, ""), "{code}: {said:?}, {error:?}");
    Ok(())
}

fn addresses(world: &World) -> Result<()> {
    for host in world.layout.node_hosts() {
        let name = format!("ranges-{}", host.name);
        let pod = run_pod(world, &name, &busybox(&host.name), "Ready")?;
        let node = world.api.get(&format!("/api/v1/nodes/{}", host.name))?;
        let ranges = node["spec"]["podCIDRs"].as_array().context("no podCIDRs")?;
        let ips = pod["status"]["podIPs"].as_array().context("no podIPs")?;
        ensure!(ips.len() == 2, "the pod is not dual-stack: {ips:?}");
        for (ip, range) in ips.iter().zip(ranges) {
            let (ip, range) =
                (ip["ip"].as_str().unwrap_or_default(), range.as_str().unwrap_or_default());
            // /24 and /64: up to the last dot, up to the double colon.
            let network = range.split_once("::").or_else(|| range.rsplit_once('.'));
            let network = network.map_or(range, |(network, _)| network);
            ensure!(ip.starts_with(network), "{ip} is not in {range}");
        }
        delete_pod(world, &name)?;
    }
    Ok(())
}

fn deleted_pod(world: &World) -> Result<()> {
    let made = run_pod(world, "short", &busybox("node-1"), "Ready")?;
    let uid = made["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    let (sandbox, node) = exec::sandbox(&world.layout, "short")?;
    let etc = sandbox.etc.context("a pod of containerd has files of its own")?;
    // Somebody looks into the pod: that must not keep anything.
    exec::capture(&world.layout, &Place::Pod("short".into()), &["true"])?;
    let there = everything(world, &node, &uid);
    ensure!(there.len() >= 2, "the pod has no cgroup or no logs: {there:?}");
    let (links, spaces) = (host_links(world, &node)?, namespaces(world, &node));
    delete_pod(world, "short")?;
    let left = everything(world, &node, &uid);
    ensure!(left.is_empty(), "still there: {left:?}");
    ensure!(!etc.exists(), "{} is still there", etc.display());
    ensure!(host_links(world, &node)? < links, "the pod's link is still there");
    ensure!(namespaces(world, &node) < spaces, "the pod's namespace is still there");
    let socket = world.layout.containerd_socket(&node).display().to_string();
    let id = etc.file_name().context("no name")?.to_string_lossy().into_owned();
    let list = ["--address", &socket, "--namespace", "k8s.io", "containers", "list", "--quiet"];
    let listed = invoke::capture(&mut invoke::command("ctr", list))?;
    ensure!(!listed.contains(&id), "containerd still has {id}");
    Ok(())
}

/// Every folder whose name has the pod's uid: cgroups, logs, volumes.
fn everything(world: &World, node: &str, uid: &str) -> Vec<PathBuf> {
    let prefix = world.layout.prefix();
    let mut roots = cgroup::mounts_v1();
    roots.extend(cgroup::mount_point().ok());
    let mut folders: Vec<_> =
        roots.into_iter().map(|root| root.join(&prefix).join(node).join("pods")).collect();
    folders.extend(["logs", "volumes"].map(|name| world.layout.state_dir(node).join(name)));
    folders.push(world.layout.volume_dir(node));
    let entries = folders.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.display().to_string().contains(uid)).collect()
}

/// How many links the node has.
fn host_links(world: &World, node: &str) -> Result<usize> {
    let said = exec::capture(&world.layout, &Place::Host(node.into()), &["ip", "-o", "link"])?;
    Ok(said.lines().count())
}

/// How many network namespaces of pods the node's containerd holds.
fn namespaces(world: &World, node: &str) -> usize {
    let dir = world.layout.run_dir().join(node).join("containerd/io.containerd.grpc.v1.cri/netns");
    fs::read_dir(dir).map_or(0, Iterator::count)
}
