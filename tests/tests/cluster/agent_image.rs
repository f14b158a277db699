//! The agent as a pod, from its own image, as `deploy/mizzen.yaml` describes it: with these
//! capabilities, this root file system, these folders of the node. It takes over from the agent that
//! runs on the node, connects pods, and gives its place back.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::{
    cluster::{
        cgroup, containerd,
        exec::{self, Place},
        layout::Host,
        process, traffic, up,
    },
    deploy, image,
};

use super::{
    Check, World,
    containers::{busybox, delete_pod, run_pod},
    restart::{finish_loads, start_loads, wait_ready},
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[(
    "the_agents_image_takes_over_with_the_manifests_rights_and_connects_pods",
    image_takes_over,
)];

/// The pod's name.
const POD: &str = "agent";

/// Mounts of this machine that follow into containers, as a kubelet's machine has them: where no
/// systemd made them shared, until this is dropped.
pub(crate) struct Shared(Vec<&'static str>);

impl Shared {
    pub(crate) fn make() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let is_private = |path: &&str| {
            let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            lines.any(|words| {
                words.get(4) == Some(path) && !words.iter().any(|word| word.starts_with("shared:"))
            })
        };
        let private = ["/sys/fs/bpf", "/sys/fs/cgroup"].into_iter().filter(is_private).collect();
        let this = Self(private);
        this.0.iter().try_for_each(|path| set("--make-shared", path))?;
        Ok(this)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for path in &self.0 {
            let _as_before = set("--make-private", path);
        }
    }
}

fn set(propagation: &str, path: &str) -> Result<()> {
    let done = Command::new("mount").args([propagation, path]).status()?;
    ensure!(done.success(), "mount {propagation} {path}");
    Ok(())
}

fn image_takes_over(world: &World) -> Result<()> {
    let _shared = Shared::make()?;
    let host = world.layout.node_hosts().remove(0);
    for image in image::all(&world.layout.bin_dir.join("image"))? {
        containerd::import(&world.layout, &host.name, &image)?;
    }
    let mut config = config(world, &host)?;
    // Agents of this cluster have their token in a file of the node.
    config["kubeconfig"] = json!(world.layout.agent_kubeconfig());
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": POD},
        "data": {"agent.yaml": config.to_string()},
    });
    world.api.apply(&config.to_string())?;
    let loads = start_loads(world)?;
    run_pod(world, POD, &pod(world, &host)?, "Ready")?;
    let on_node = up::agent(&host.name);
    ensure!(
        process::running(&world.layout, &on_node).is_none(),
        "the agent on the node goes on though the pod is ready"
    );
    // It connects pods, and has them served.
    run_pod(world, "connected", &busybox(&host.name), "Ready")?;
    let connected = Place::Pod("connected".into());
    traffic::get(&world.layout, &connected, "http://hello.default.svc.cluster.local/")?;
    healthy(world, &host)?;
    // The other way round.
    up::start_agent(&world.layout, &host)?;
    wait_ready(world, &host.name)?;
    ensure!(process::running(&world.layout, &on_node).is_some(), "the agent on the node ended");
    delete_pod(world, "connected")?;
    delete_pod(world, POD)?;
    world.api.expect("DELETE", "/api/v1/namespaces/default/configmaps/agent", None)?;
    finish_loads(loads)
}

/// Every part works with the rights that it has.
pub(crate) fn healthy(world: &World, host: &Host) -> Result<()> {
    let argv = ["mizzen", "status", "-o", "json"];
    let said = exec::capture(&world.layout, &Place::Host(host.name.clone()), &argv)?;
    let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let parts = status["parts"].as_array().context("no parts")?;
    let unwell: Vec<_> = parts.iter().filter(|part| part["state"] != "ready").collect();
    ensure!(unwell.is_empty(), "not ready: {unwell:?}");
    Ok(())
}

/// The configuration for a node of this cluster, whose folders are its own.
pub(crate) fn config(world: &World, host: &Host) -> Result<Value> {
    let (layout, node) = (&world.layout, host.name.as_str());
    Ok(json!({
        "apiVersion": "mizzen.dev/v1alpha1", "kind": "AgentConfiguration",
        "apiServer": [format!("https://{}", layout.api_address())],
        "cgroupRoot": cgroup::node_dir(layout, node)?,
        "bpffs": layout.bpffs(node),
        "stateDir": layout.state_dir(node),
        "dataDir": layout.data_dir(node),
        "cniConfDir": layout.cni_conf_dir(node),
        "cniBinDir": layout.cni_bin_dir(node),
    }))
}

/// The manifest's pod by itself, on a node, with the token of the node's own agent.
fn pod(world: &World, host: &Host) -> Result<Value> {
    let dir = &world.layout.dir;
    let mut spec = on_node(world, host)?;
    spec.as_object_mut().context("no spec")?.remove("serviceAccountName");
    spec["nodeName"] = host.name.as_str().into();
    let mounts = spec["containers"][0]["volumeMounts"].as_array_mut().context("no mounts")?;
    mounts.insert(0, json!({"name": "token", "mountPath": dir, "readOnly": true}));
    let volumes = spec["volumes"].as_array_mut().context("no volumes")?;
    volumes.push(json!({"name": "token", "hostPath": {"path": dir}}));
    name_config(&mut spec, POD)?;
    Ok(spec)
}

/// Has the agent's configuration come from that ConfigMap.
pub(crate) fn name_config(spec: &mut Value, name: &str) -> Result<()> {
    let volumes = spec["volumes"].as_array_mut().context("no volumes")?;
    let config = volumes.iter_mut().find(|one| one["name"] == "config").context("no config")?;
    config["configMap"]["name"] = name.into();
    Ok(())
}

/// The manifest's pod, with the folders of this node in the places of a machine's.
pub(crate) fn on_node(world: &World, host: &Host) -> Result<Value> {
    let (layout, node) = (&world.layout, host.name.as_str());
    let objects = deploy::agent_objects();
    let set =
        objects.iter().find(|object| object["kind"] == "DaemonSet").context("no DaemonSet")?;
    let mut spec = set["spec"]["template"]["spec"].clone();
    let mut place = |name: &str, path: &Path| -> Result<()> {
        let find = |list: &mut Value| -> Option<usize> {
            list.as_array()?.iter().position(|one| one["name"] == name)
        };
        let volume = find(&mut spec["volumes"]).with_context(|| format!("no volume {name}"))?;
        spec["volumes"][volume] =
            json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
        let mounts = &mut spec["containers"][0]["volumeMounts"];
        let mount = find(mounts).with_context(|| format!("no mount {name}"))?;
        mounts[mount]["mountPath"] = json!(path);
        Ok(())
    };
    place("run", &layout.state_dir(node))?;
    place("data", &layout.data_dir(node))?;
    place("cni-conf", &layout.cni_conf_dir(node))?;
    place("cni-bin", &layout.cni_bin_dir(node))?;
    let state = layout.state_dir(node).display().to_string();
    for probe in ["readinessProbe", "livenessProbe"] {
        let command = &mut spec["containers"][0][probe]["exec"]["command"];
        ensure!(command[2] == "--state-dir", "{probe}: {command}");
        command[3] = state.as_str().into();
    }
    Ok(spec)
}
