//! Starting a cluster, or what is missing of one.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    Layout, Runtime, api::Api, cgroup, containerd, identities, layout::Host, network, process,
    resolvers,
};
use crate::{checkout, image, step::step};

/// How long any part may take until it serves.
const LIMIT: Duration = Duration::from_mins(1);

/// Name of the control plane's process.
pub const CONTROL_PLANE: &str = "control-plane";

/// Name of a node's agent process.
pub fn agent(node: &str) -> String {
    format!("agent-{node}")
}

/// Name of a node's node part process.
pub fn node_part(node: &str) -> String {
    format!("node-{node}")
}

/// Starts what is missing and waits until every node is ready. Can be repeated.
pub fn up(layout: &Layout) -> Result<Api> {
    fs::create_dir_all(&layout.dir)
        .with_context(|| format!("can't make {}", layout.dir.display()))?;
    step("making network namespaces", || {
        super::ensure_bpffs()?;
        network::make(layout)
    })?;
    layout.remember_runtime()?;
    let api = step("starting the control plane", || start_control_plane(layout))?;
    if layout.runtime == Runtime::Containerd {
        step("starting containerd", || start_containerd(layout))?;
    }
    step("starting the nodes", || {
        for host in layout.node_hosts() {
            identities::node_part(layout, &api, &host.name)?;
            process::ensure(layout, &node_spec(layout, &host)?)?;
            start_agent(layout, &host)?;
        }
        Ok(())
    })?;
    step("waiting for the nodes to be ready", || {
        wait(layout, "every node to be Ready", || nodes_ready(layout, &api))
    })?;
    step("leading cluster DNS to the nodes", || resolvers::apply(layout, &api))?;
    Ok(api)
}

/// Starts every node's containerd where it does not run, with the images that were built.
fn start_containerd(layout: &Layout) -> Result<()> {
    let images = image::all(&layout.bin_dir.join("images"))?;
    layout.node_hosts().iter().try_for_each(|host| containerd::ensure(layout, host, &images))
}

/// Applies the example and waits until all its pods are ready.
pub fn apply_hello(layout: &Layout, api: &Api) -> Result<()> {
    let path = checkout().join("deploy/examples/hello.yaml");
    let yaml =
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    api.apply(&yaml)?;
    wait(layout, "the pods of hello to be ready", || deployment_ready(api, "hello"))
}

/// Starts a node's agent where it does not run.
pub fn start_agent(layout: &Layout, host: &Host) -> Result<process::Started> {
    process::ensure(layout, &agent_spec(layout, host)?)
}

/// Starts the control plane where it does not run, waits until it serves, and lets agents in.
pub fn start_control_plane(layout: &Layout) -> Result<Api> {
    let (v4, v6) = layout.machine();
    let mut argv = words(layout, "mizzen-control-plane", &["serve"]);
    argv.extend(["--data-dir".into(), layout.control_plane_dir().display().to_string()]);
    argv.extend(["--listen".into(), layout.api_address()]);
    if layout.loopback_api {
        argv.extend(["--listen".into(), "127.0.0.1:6443".into()]);
    }
    argv.extend(["--advertise-address".into(), v4.to_string()]);
    argv.extend(["--advertise-address".into(), v6.to_string()]);
    let spec = process::Spec {
        name: CONTROL_PLANE.into(),
        netns: None,
        cgroup: cgroup::cluster_dir(layout)?.join(CONTROL_PLANE),
        argv,
        env: Vec::new(),
    };
    process::ensure(layout, &spec)?;
    let api = wait(layout, "the API server to be ready", || {
        alive(layout, CONTROL_PLANE)?;
        let written = layout.control_plane_dir().join("admin.kubeconfig");
        if !written.exists() {
            return Ok(Err("it has written no kubeconfig".into()));
        }
        fs::copy(&written, layout.kubeconfig())?;
        let api = Api::from_kubeconfig(layout)?;
        Ok(match api.request("GET", "/readyz", None) {
            Ok(answer) if answer.status == 200 => Ok(api),
            Ok(answer) => Err(format!("/readyz answers {}", answer.status)),
            Err(error) => Err(format!("{error:#}")),
        })
    })?;
    identities::agent(layout, &api)?;
    Ok(api)
}

fn agent_spec(layout: &Layout, host: &Host) -> Result<process::Spec> {
    let node = &host.name;
    let mut argv = words(layout, "mizzen-agent", &["run", "--node-name", node]);
    for (flag, value) in [
        ("--kubeconfig", layout.agent_kubeconfig()),
        ("--cgroup-root", cgroup::node_dir(layout, node)?),
        ("--bpffs", layout.bpffs(node)),
        ("--state-dir", layout.state_dir(node)),
        ("--data-dir", layout.data_dir(node)),
        ("--cni-conf-dir", layout.cni_conf_dir(node)),
        ("--cni-bin-dir", layout.cni_bin_dir(node)),
    ] {
        argv.extend([flag.to_owned(), value.display().to_string()]);
    }
    Ok(process::Spec {
        name: agent(node),
        netns: Some(host.netns.clone()),
        cgroup: cgroup::node_dir(layout, node)?.join("agent"),
        argv,
        env: vec![("RUST_LOG".into(), log_level())],
    })
}

fn node_spec(layout: &Layout, host: &Host) -> Result<process::Spec> {
    let node = &host.name;
    let mut argv = words(layout, "mizzen-control-plane", &["node", "--name", node]);
    match layout.runtime {
        Runtime::Process => argv.extend(["--runtime", "process"].map(str::to_owned)),
        Runtime::Containerd => {
            let socket = layout.containerd_socket(node);
            argv.extend(["--runtime", "cri", "--cri-endpoint"].map(str::to_owned));
            argv.push(format!("unix://{}", socket.display()));
        }
    }
    for (flag, value) in [
        ("--kubeconfig", layout.node_kubeconfig(node).display().to_string()),
        ("--node-ip", host.ipv4.to_string()),
        ("--node-ip", host.ipv6.to_string()),
        ("--state-dir", layout.state_dir(node).display().to_string()),
        ("--volume-dir", layout.volume_dir(node).display().to_string()),
        ("--cgroup-root", cgroup::node_dir(layout, node)?.display().to_string()),
        ("--cni-conf-dir", layout.cni_conf_dir(node).display().to_string()),
        ("--cni-bin-dir", layout.cni_bin_dir(node).display().to_string()),
        ("--cluster-dns", "10.96.0.10".into()),
        ("--cluster-dns", "fd00:96::a".into()),
        ("--cluster-domain", "cluster.local".into()),
        // All nodes share this machine's disk: what fills it is hardly the pods' doing.
        ("--disk-short-percent", "0".into()),
    ] {
        argv.extend([flag.to_owned(), value]);
    }
    Ok(process::Spec {
        name: node_part(node),
        netns: Some(host.netns.clone()),
        cgroup: cgroup::node_dir(layout, node)?.join("node-part"),
        argv,
        env: vec![("RUST_LOG".into(), log_level())],
    })
}

fn log_level() -> String {
    std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into())
}

fn words(layout: &Layout, program: &str, args: &[&str]) -> Vec<String> {
    std::iter::once(layout.binary(program).display().to_string())
        .chain(args.iter().map(|&arg| arg.to_owned()))
        .collect()
}

fn nodes_ready(layout: &Layout, api: &Api) -> Result<Result<(), String>> {
    for host in layout.node_hosts() {
        alive(layout, &agent(&host.name))?;
        alive(layout, &node_part(&host.name))?;
    }
    let list = api.get("/api/v1/nodes")?;
    let ready = |node: &Value| {
        node["status"]["conditions"].as_array().is_some_and(|conditions| {
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
    };
    let nodes = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let count = nodes.iter().filter(|node| ready(node)).count();
    let wanted = layout.node_hosts().len();
    Ok(if count >= wanted { Ok(()) } else { Err(format!("{count} of {wanted} are")) })
}

/// Whether all replicas of a deployment of the default namespace are available.
pub fn deployment_ready(api: &Api, name: &str) -> Result<Result<(), String>> {
    let deployment = api.get(&format!("/apis/apps/v1/namespaces/default/deployments/{name}"))?;
    let count = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let (wanted, available) = (count("/spec/replicas"), count("/status/availableReplicas"));
    let seen = count("/status/observedGeneration") >= count("/metadata/generation");
    let done = seen
        && available == wanted
        && count("/status/updatedReplicas") == wanted
        && count("/status/replicas") == wanted;
    Ok(if done { Ok(()) } else { Err(format!("{available} of {wanted} are available")) })
}

/// Fails where a process of the cluster has ended, and quotes its log.
pub fn alive(layout: &Layout, name: &str) -> Result<()> {
    if process::running(layout, name).is_some() {
        return Ok(());
    }
    let log = process::log_file(layout, name);
    bail!("{name} ended; {} ends with:\n{}", log.display(), process::log_tail(layout, name))
}

/// Repeats `check` until it gives a value. An outer error ends the wait at once.
pub fn wait<T>(
    layout: &Layout,
    what: &str,
    mut check: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match check()? {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() > deadline => bail!(
                "waited {} s for {what}: {reason}; logs are in {}",
                LIMIT.as_secs(),
                layout.log_dir().display()
            ),
            Err(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}
