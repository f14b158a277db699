//! The whole product, started by `up`'s own code: two nodes, an agent and a node part on each, the
//! control plane, and real traffic; then once more on containerd, with those checks that a runtime
//! makes a difference to, and at last on both where cgroup2 is all that there is.
//!
//! The checks of a cluster run one after another; a check leaves it as it found it, and after one
//! that failed whatever does not run is started again, so that it fails alone. At the end the
//! cluster is removed, and that nothing is left is the last check.

mod agent_daemon_set;
mod agent_image;
mod console;
mod containerd;
mod containers;
mod explain;
mod follow;
mod followed;
mod input;
mod insight;
mod kubectl;
mod leftovers;
mod names;
mod pod_network;
mod pods;
mod polled;
mod pure;
mod restart;
mod rollout;
mod soak;
mod starve;
mod streams;
mod takeover;
mod traffic;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Result, ensure};
use xtask::{
    cluster::{self, Layout, Runtime, api::Api, down, layout::NODES_MAX},
    commands::up,
    product::{Profile, bin_dir},
    target_dir, toolchain,
};

/// What every check is given.
pub(crate) struct World {
    /// Names and addresses.
    pub(crate) layout: Layout,
    /// The API server.
    pub(crate) api: Api,
}

/// A check: its name says the fact that it proves.
pub(crate) type Check = (&'static str, fn(&World) -> Result<()>);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == pure::ARGUMENT) {
        return match pure::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let alone = filter.is_none_or(|filter| pure::NAME.contains(filter));
    let clusters: Vec<(Runtime, Vec<(String, Check)>)> =
        [(Runtime::Process, all_checks()), (Runtime::Containerd, containerd_checks())]
            .map(|(runtime, checks)| {
                let named = checks.into_iter().map(|check| (full_name(check.0, runtime), check));
                let wanted =
                    named.filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter)));
                (runtime, wanted.collect())
            })
            .into_iter()
            .filter(|(_, checks): &(Runtime, Vec<_>)| !checks.is_empty())
            .collect();
    if (clusters.is_empty() && !alone) || args.iter().any(|arg| arg == "--list") {
        println!("\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored");
        return ExitCode::SUCCESS;
    }
    let count: usize = clusters.iter().map(|(_, checks)| checks.len() + 2).sum();
    println!("\nrunning {} tests", count + usize::from(alone));
    let start = Instant::now();
    let mut tally = Tally::default();
    for (runtime, checks) in clusters {
        run_cluster(runtime, &checks, &mut tally);
    }
    if alone {
        tally.run(pure::NAME, pure::apart);
    }
    tally.close(start)
}

/// The name of a check on a runtime, by which it is asked for too.
fn full_name(name: &str, runtime: Runtime) -> String {
    match runtime {
        Runtime::Process => name.to_owned(),
        Runtime::Containerd => format!("containerd::{name}"),
    }
}

fn run_cluster(runtime: Runtime, checks: &[(String, Check)], tally: &mut Tally) {
    let layout = layout(runtime);
    let before = leftovers::cni_results();
    let name = full_name("up_brings_a_cluster_with_traffic_by_every_way", runtime);
    if let Some(world) = tally.run(&name, || bring_up(&layout)) {
        for (name, (_, check)) in checks {
            if tally.run(name, || check(&world)).is_none()
                && let Err(error) = start_missing(&world)
            {
                println!("    the cluster could not be mended: {error:#}");
            }
        }
    }
    tally.run(&full_name("down_leaves_nothing_behind", runtime), || {
        down::down(&layout)?;
        leftovers::none(&layout, &before)
    });
}

/// What a container runtime makes a difference to.
fn containerd_checks() -> Vec<Check> {
    [
        traffic::CHECKS,
        names::CHECKS,
        pod_network::CHECKS,
        restart::CHECKS,
        pods::CHECKS,
        streams::CHECKS,
        containerd::CHECKS,
        containers::CHECKS,
        agent_image::CHECKS,
        agent_daemon_set::CHECKS,
    ]
    .concat()
}

fn all_checks() -> Vec<Check> {
    [
        traffic::CHECKS,
        names::CHECKS,
        pod_network::CHECKS,
        explain::CHECKS,
        insight::CHECKS,
        follow::CHECKS,
        kubectl::CHECKS,
        console::CHECKS,
        restart::CHECKS,
        rollout::CHECKS,
        soak::CHECKS,
        starve::CHECKS,
        takeover::CHECKS,
        streams::CHECKS,
        pods::CHECKS,
        containers::CHECKS,
        input::CHECKS,
    ]
    .concat()
}

fn layout(runtime: Runtime) -> Layout {
    Layout {
        name: "test".into(),
        subnet: (31, 0),
        nodes: 2,
        runtime,
        dir: target_dir().join("test-cluster"),
        bin_dir: bin_dir(Profile::Debug),
        loopback_api: false,
    }
}

/// A cluster from nothing: what an earlier run may have left goes first.
fn bring_up(layout: &Layout) -> Result<World> {
    toolchain::require_root("the cluster test")?;
    down::down(&Layout { nodes: NODES_MAX, ..layout.clone() })?;
    for check in up::bring_up(layout)? {
        let nodes: Vec<_> = check.nodes.iter().map(String::as_str).collect();
        ensure!(nodes == ["node-1", "node-2"], "{}: pods on {nodes:?} answered", check.way);
    }
    Ok(World { layout: layout.clone(), api: Api::from_kubeconfig(layout)? })
}

/// Starts what a failed check may have left dead.
fn start_missing(world: &World) -> Result<()> {
    cluster::up::up(&world.layout)?;
    world.layout.node_hosts().iter().try_for_each(|host| restart::wait_ready(world, &host.name))
}

/// What passed and what did not.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
}

impl Tally {
    fn run<T>(&mut self, name: &str, check: impl FnOnce() -> Result<T>) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(check))
            .unwrap_or_else(|panic| Err(anyhow::anyhow!("{}", panic_text(&*panic))));
        match result {
            Ok(value) => {
                println!("test {name} ... ok");
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                println!("test {name} ... FAILED\n    {error:#}");
                self.failed.push(name.to_owned());
                None
            }
        }
    }

    fn close(self, start: Instant) -> ExitCode {
        let (verdict, code) = if self.failed.is_empty() {
            ("ok", ExitCode::SUCCESS)
        } else {
            println!("\nfailures:\n    {}", self.failed.join("\n    "));
            ("FAILED", ExitCode::from(101))
        };
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in {:.2}s\n",
            self.passed,
            self.failed.len(),
            start.elapsed().as_secs_f64()
        );
        code
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
