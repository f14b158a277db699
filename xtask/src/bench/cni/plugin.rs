//! A plugin at its place: the namespace of a node in which a runtime calls it, and what it is told.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::{
    bench::{objects, triple::ip, world::World},
    cluster::{Layout, layout::Host, up},
};

/// Where Debian's package puts its plugins.
const DEBIAN: &str = "/usr/lib/cni";
/// What Mizzen is called in the figures.
pub const MIZZEN: &str = "mizzen";

/// A plugin of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A veth for each pod, routed.
    Ptp,
    /// A veth for each pod, on a bridge.
    Bridge,
}

/// A plugin at its place.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// What it is called in the figures.
    pub label: &'static str,
    /// The node that it connects pods of.
    pub host: Host,
    program: PathBuf,
    conf: String,
}

/// A pod: a namespace and a container ID.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The namespace's name.
    pub netns: String,
    id: String,
}

impl Plugin {
    /// Debian's plugin at a node of its own. It gives IPv4 addresses alone: with IPv6 it waits for
    /// duplicate address detection, for a second and more.
    pub fn of_peer(world: &mut World, peer: Peer) -> Result<Self> {
        let host = world.next_host()?;
        let (label, kind) = match peer {
            Peer::Ptp => ("ptp", "ptp"),
            Peer::Bridge => ("bridge", "bridge"),
        };
        let folder = world.layout.run_dir().join(&host.name);
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": kind,
            "ipam": {
                "type": "host-local", "dataDir": folder, "ranges": [[{"subnet": "10.243.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        });
        if peer == Peer::Bridge {
            (conf["bridge"], conf["isGateway"]) = ("cni0".into(), true.into());
        }
        let program = PathBuf::from(DEBIAN).join(kind);
        Ok(Self { label, host, program, conf: conf.to_string() })
    }

    /// The agent with all its roles, and its plugin, as a runtime finds it.
    pub fn of_mizzen(world: &mut World) -> Result<Self> {
        let host = world.next_host()?;
        let (layout, address) = (world.layout.clone(), host.ipv4);
        Self::start_mizzen(world, &layout, host, address)
    }

    /// The same for a node that others know by this address.
    pub fn start_mizzen(
        world: &World,
        layout: &Layout,
        host: Host,
        address: Ipv4Addr,
    ) -> Result<Self> {
        const JSON: &str = "application/json";
        let (object, status) = objects::node(&host.name, address);
        world.api.expect("POST", "/api/v1/nodes", Some((JSON, &object.to_string())))?;
        let path = format!("/api/v1/nodes/{}/status", host.name);
        let patch = Some(("application/merge-patch+json", status.to_string()));
        world.api.expect(
            "PATCH",
            &path,
            patch.as_ref().map(|(kind, text)| (*kind, text.as_str())),
        )?;
        up::start_agent(layout, &host)?;
        let list = layout.cni_conf_dir(&host.name).join("10-mizzen.conflist");
        let text = up::wait(layout, "the agent's CNI configuration", || {
            Ok(fs::read_to_string(&list).map_err(|error| format!("{}: {error}", list.display())))
        })?;
        let list: Value = serde_json::from_str(&text)?;
        let mut conf = list["plugins"][0].clone();
        conf["cniVersion"] = "1.0.0".into();
        conf["name"] = list["name"].clone();
        let program = layout.cni_bin_dir(&host.name).join("mizzen-cni");
        Ok(Self { label: MIZZEN, host, program, conf: conf.to_string() })
    }

    /// Pods that are not connected yet.
    pub fn pods(&self, count: usize) -> Result<Vec<Pod>> {
        let pod = |number| -> Result<Pod> {
            let netns = format!("{}-p{number}", self.host.netns);
            if !std::path::Path::new("/run/netns").join(&netns).exists() {
                ip(&format!("netns add {netns}"))?;
            }
            Ok(Pod { id: format!("{netns}-{:032}", 0), netns })
        };
        (0..count).map(pod).collect()
    }

    /// Calls the plugin for each pod, one after the other; how long each call took.
    pub fn each(&self, command: &str, pods: &[Pod]) -> Result<Vec<Duration>> {
        self.at_node(|| pods.iter().map(|pod| Ok(self.call(command, pod)?.1)).collect())
    }

    /// Calls the plugin for all pods at once; how long until the last has its answer.
    pub fn at_once(&self, command: &str, pods: &[Pod]) -> Result<Duration> {
        let start = Instant::now();
        thread::scope(|scope| {
            let calls: Vec<_> = pods
                .iter()
                .map(|pod| scope.spawn(|| self.at_node(|| self.call(command, pod))))
                .collect();
            for call in calls {
                call.join().map_err(|_| anyhow::anyhow!("a call panicked"))??;
            }
            Ok(start.elapsed())
        })
    }

    /// Connects a pod; its IPv4 address.
    pub fn connect(&self, pod: &Pod) -> Result<Ipv4Addr> {
        let (answer, _) = self.at_node(|| self.call("ADD", pod))?;
        let ips = answer["ips"].as_array().context("no addresses")?;
        let mut texts = ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next());
        texts.find_map(|text| text.parse().ok()).context("no IPv4 address")
    }

    /// Runs `body` in a thread of its own in the node's namespace, which processes inherit.
    fn at_node<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.host.netns);
        let netns = File::open(&path).with_context(|| format!("can't open {path}"))?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                body()
            });
            thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
        })
    }

    /// A call, as a runtime makes it.
    fn call(&self, command: &str, pod: &Pod) -> Result<(Value, Duration)> {
        let start = Instant::now();
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", format!("/run/netns/{}", pod.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", DEBIAN)
            .env("CNI_ARGS", "IgnoreUnknown=1")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("can't start {}", self.program.display()))?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(self.conf.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let took = start.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{command} of {} for {} failed: {text}", self.label, pod.netns);
        }
        ensure!(command != "ADD" || !text.is_empty(), "{} answered nothing", self.label);
        Ok((serde_json::from_str(&text).unwrap_or_default(), took))
    }
}
