//! Mizzen as a contender: the agent in a triple's node, with the cluster's API server.

use anyhow::{Context, Result};

use super::{
    contender::{Contender, Seat},
    objects,
    scrape::Metrics,
    triple::{At, Triple},
    world::World,
};
use crate::cluster::{
    Layout, cgroup,
    process::{self, Started},
    up,
};

/// Mizzen in place of kube-proxy.
///
/// One that is not `live` ends when its tables are filled and leaves its datapath: it goes on to
/// serve as many services as there were, whatever is created later.
#[derive(Clone, Copy, Debug)]
pub struct Mizzen {
    /// Whether the agent stays and follows.
    pub live: bool,
}

impl Contender for Mizzen {
    fn label(&self) -> String {
        "mizzen".into()
    }

    fn settle(&self, world: &World, triple: &Triple, size: u32) -> Result<()> {
        register(world, triple)?;
        let agent = start(triple)?;
        filled(triple, size)?;
        if !self.live {
            process::end(&agent)?;
        }
        Ok(())
    }
}

/// Makes the Node object: there is no node part here that would.
pub fn register(world: &World, triple: &Triple) -> Result<()> {
    const JSON: &str = "application/json";
    let name = &triple.host.name;
    let (object, status) = objects::node(name, triple.host.ipv4);
    world.api.expect("POST", "/api/v1/nodes", Some((JSON, &object.to_string())))?;
    let path = format!("/api/v1/nodes/{name}/status");
    let patch = Some(("application/merge-patch+json", status.to_string()));
    let patch = patch.as_ref().map(|(kind, text)| (*kind, text.as_str()));
    world.api.expect("PATCH", &path, patch).map(drop)
}

/// Starts the agent.
pub fn start(triple: &Triple) -> Result<Started> {
    let (layout, node) = (&triple.layout, &triple.host.name);
    let cgroup_root = cgroup::node_dir(layout, node)?;
    let mut argv = vec![layout.binary("mizzen-agent").display().to_string(), "run".into()];
    argv.extend(["--cni=false", "--dns=false", "--node-name", node].map(str::to_owned));
    // Pods' links have packet programs: without a CNI plugin that tells of pods, as uplinks.
    for link in ["eth0", "b0", "c0"] {
        argv.extend(["--uplink".to_owned(), link.to_owned()]);
    }
    for (flag, value) in [
        ("--kubeconfig", layout.kubeconfig()),
        ("--cgroup-root", cgroup_root.clone()),
        ("--bpffs", layout.bpffs(node)),
        ("--state-dir", layout.state_dir(node)),
        ("--data-dir", layout.data_dir(node)),
        ("--cni-conf-dir", layout.cni_conf_dir(node)),
        ("--cni-bin-dir", layout.cni_bin_dir(node)),
    ] {
        argv.extend([flag.to_owned(), value.display().to_string()]);
    }
    let spec = process::Spec {
        name: up::agent(node),
        netns: Some(triple.netns(At::Node)),
        cgroup: cgroup_root.join("agent"),
        argv,
        env: vec![("RUST_LOG".into(), std::env::var("RUST_LOG").unwrap_or("info".into()))],
    };
    process::ensure(layout, &spec)
}

/// Waits until the node serves the first `size` services, seen from its client too.
fn filled(triple: &Triple, size: u32) -> Result<()> {
    follow(triple, size)?;
    if size == 0 {
        return Ok(());
    }
    let seat = Seat { label: "mizzen".into(), size, triple: triple.clone() };
    seat.await_answer()
}

/// Waits until the agent has followed to so many services.
pub fn follow(triple: &Triple, size: u32) -> Result<()> {
    up::wait(&triple.layout, "the agent's tables", || {
        alive(triple)?;
        Ok(match metrics(triple).and_then(|metrics| metrics.get("mizzen_services")) {
            Ok(services) if services >= f64::from(size) => Ok(()),
            Ok(services) => Err(format!("{services} services of {size}")),
            Err(error) => Err(format!("{error:#}")),
        })
    })
}

/// The agent's metrics.
pub fn metrics(triple: &Triple) -> Result<Metrics> {
    let argv = ["curl", "--silent", "--fail", "http://127.0.0.1:10249/metrics"];
    Ok(Metrics::parse(&triple.capture(At::Node, &argv)?))
}

/// The agent that runs there.
pub fn running(triple: &Triple) -> Result<Started> {
    process::running(&triple.layout, &up::agent(&triple.host.name)).context("no agent runs")
}

fn alive(triple: &Triple) -> Result<()> {
    let name = up::agent(&triple.host.name);
    running(triple).map(drop).with_context(|| {
        format!("{name} ended; its log: {}", process::log_tail(&triple.layout, &name))
    })
}

/// Ends the agent and removes its pins: the next one starts as on a new machine.
pub fn forget(triple: &Triple) -> Result<()> {
    process::end(&running(triple)?)?;
    let pins = Layout::bpffs(&triple.layout, &triple.host.name);
    std::fs::remove_dir_all(&pins).with_context(|| format!("can't remove {}", pins.display()))
}
