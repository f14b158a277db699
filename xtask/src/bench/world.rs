//! The benchmark's cluster: an API server with the catalogue's services, and the contenders at
//! their triples.

use anyhow::{Context, Result, bail};

use super::{
    catalogue::{self, ENDPOINTS},
    contender::{Contender, Seat},
    interrupt, objects,
    triple::{Triple, is_server},
};
use crate::{
    cluster::{
        Layout,
        api::Api,
        bulk::{self, Pace},
        down,
        layout::{Host, NODES_MAX},
        network, process, up,
    },
    product::{self, Profile},
    target_dir,
};

/// The cluster of all benchmarks.
pub fn layout(profile: Profile) -> Layout {
    Layout {
        name: "bench".into(),
        subnet: (29, 0),
        nodes: 2,
        runtime: crate::cluster::Runtime::Process,
        dir: target_dir().join("bench-cluster"),
        bin_dir: product::bin_dir(profile),
        loopback_api: false,
    }
}

/// Removes what an earlier run left, runs, and removes everything, whatever came of it. Where it
/// failed, the logs stay until the next run.
pub fn within<T>(layout: &Layout, run: impl FnOnce(&Layout) -> Result<T>) -> Result<T> {
    let largest = Layout { nodes: NODES_MAX, ..layout.clone() };
    down::down(&largest)?;
    let outcome = run(layout);
    if outcome.is_err() {
        save_logs(layout);
    }
    // Some of them take their time over SIGTERM, and there are many.
    for server in process::started(layout).iter().filter(|process| is_server(&process.name)) {
        process::kill_hard(server);
    }
    down::down(&largest)?;
    outcome
}

/// Best effort: the error itself is what is reported.
fn save_logs(layout: &Layout) {
    let kept = layout.dir.with_extension("logs");
    let _absent = std::fs::remove_dir_all(&kept);
    if std::fs::rename(layout.log_dir(), &kept).is_ok() {
        crate::step::note(&format!("logs are kept in {}", kept.display()));
    }
}

/// The cluster with its contenders.
#[derive(Debug)]
pub struct World {
    /// What everything is called.
    pub layout: Layout,
    /// The API server.
    pub api: Api,
    /// How many services there are.
    pub services: u32,
}

impl World {
    /// Starts the API server.
    pub fn start(layout: &Layout) -> Result<Self> {
        let layout = Layout { nodes: 0, ..layout.clone() };
        std::fs::create_dir_all(&layout.dir)?;
        crate::cluster::ensure_bpffs()?;
        network::make(&layout)?;
        let api = up::start_control_plane(&layout)?;
        Ok(Self { layout, api, services: 0 })
    }

    /// Creates services until there are `size`.
    pub fn grow(&mut self, size: u32) -> Result<()> {
        interrupt::check()?;
        let requests: Vec<_> = (self.services..size)
            .flat_map(|number| objects::create(&catalogue::service(number, ENDPOINTS)))
            .collect();
        bulk::send(&self.api, &self.layout.dir, &requests, Pace::Fast)
            .with_context(|| format!("creating {size} services"))?;
        self.services = self.services.max(size);
        Ok(())
    }

    /// Makes a triple for a contender and has it serve the first `size` services.
    pub fn seat(&mut self, contender: &dyn Contender, size: u32) -> Result<Seat> {
        interrupt::check()?;
        let host = self.next_host()?;
        let triple = Triple::make(&self.layout, &host)?;
        let label = contender.label();
        contender
            .settle(self, &triple, size)
            .with_context(|| format!("{label} at {size} services, {}", host.name))?;
        Ok(Seat { label, size, triple })
    }

    /// Makes one more host.
    pub fn next_host(&mut self) -> Result<Host> {
        if self.layout.nodes == NODES_MAX {
            bail!("there are no more than {NODES_MAX} triples");
        }
        self.layout.nodes += 1;
        network::make(&self.layout)?;
        self.layout.node_hosts().pop().context("no host was made")
    }
}
