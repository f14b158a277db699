//! `cargo xtask up`: a running cluster with real traffic through it.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    cluster::{self, Layout, Runtime, layout::NODES_MAX, network, traffic},
    product::{self, Profile},
    step::{seconds, step},
    toolchain,
};

/// Options of `up`.
#[derive(Args, Debug)]
pub struct Up {
    /// How many nodes (a cluster that is up keeps its nodes; more can be added)
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX)))]
    nodes: u32,
    /// What runs the containers (a cluster that is up keeps it)
    #[arg(long, value_enum, default_value = "process")]
    runtime: Runtime,
    /// Run what `cargo xtask build --debug` builds: quick to build, slow to run
    #[arg(long)]
    debug: bool,
}

/// Builds, starts, applies the example, checks it with real traffic, and says where everything is.
pub fn run(options: &Up) -> Result<()> {
    toolchain::require_root("`cargo xtask up`")?;
    toolchain::ensure_tools(toolchain::CLUSTER_TOOLS)?;
    let profile = if options.debug { Profile::Debug } else { Profile::Release };
    product::build(profile)?;
    if options.runtime == Runtime::Containerd {
        product::build_images(profile)?;
    }
    let layout = super::users_cluster(options.nodes, options.runtime, profile);
    let removed = super::users_cluster(NODES_MAX, options.runtime, profile)
        .node_hosts()
        .into_iter()
        .skip(options.nodes as usize)
        .any(|host| network::netns_exists(&host.netns));
    if removed {
        bail!(
            "the cluster that is up has more than {} nodes; `cargo xtask down` first",
            options.nodes
        );
    }
    let start = Instant::now();
    let checked = bring_up(&layout)?;
    print_result(&layout, &checked, &seconds(start.elapsed()));
    Ok(())
}

/// Everything after the build: what a test or a benchmark starts is what a user starts.
pub fn bring_up(layout: &Layout) -> Result<Vec<traffic::Checked>> {
    let api = cluster::up::up(layout)?;
    layout.remember_binaries()?;
    step("applying deploy/examples/hello.yaml", || cluster::up::apply_hello(layout, &api))?;
    step("checking live traffic", || traffic::check_hello(layout, &api))
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print_result(layout: &Layout, checked: &[traffic::Checked], took: &str) {
    println!("The cluster is up ({took} after the build). `hello` answers by:");
    for check in checked {
        let nodes: Vec<_> = check.nodes.iter().map(String::as_str).collect();
        let first = check.first.as_millis();
        println!("  {}  <- pods on {} (first after {first} ms)", check.way, nodes.join(", "));
    }
    println!("Try:");
    println!("  kubectl --kubeconfig {} get pods -o wide", layout.kubeconfig().display());
    println!("  cargo xtask exec node-1 -- mizzen status");
    println!("  cargo xtask exec client -- ip route");
    println!("Logs: {}. `cargo xtask down` removes everything.", layout.log_dir().display());
}
