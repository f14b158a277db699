//! `mizzen migrate`: from kube-proxy to Mizzen and back, on this node or in a whole cluster
//! ([`cluster`]).

mod cluster;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::inspect::{Format, Outcome, get};
use crate::{
    datapath, foreign,
    kube::migration::plan::Way,
    migrate::{
        carry_out::{carry_out, verify},
        look::{Agent, Process, Seen},
        plan::{Obstacle, Plan, Step},
    },
    podnet, reconcile,
    serve::wire,
};

/// Shown below the flags.
const EXAMPLES: &str = "\
On this node:
  mizzen migrate plan          what of kube-proxy is on this node, and what `apply` would do
  mizzen migrate apply         remove what kube-proxy left; its connections go on
  mizzen migrate rollback      take Mizzen out of force where kube-proxy is back

In a whole cluster, from anywhere, a node after another:
  mizzen migrate plan --kubeconfig admin.kubeconfig
  mizzen migrate apply --kubeconfig admin.kubeconfig --node node-1
  mizzen migrate apply --kubeconfig admin.kubeconfig
  mizzen migrate apply --kubeconfig admin.kubeconfig --dns    CoreDNS too
  mizzen migrate rollback --kubeconfig admin.kubeconfig

Exit codes: 0 done or nothing to do, 1 failure, 2 usage, 3 something is in the way (and named)";

/// The way.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Migrate {
    #[command(flatten)]
    cluster: cluster::Cluster,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// What is there, what `apply` would do, and what is in the way; changes nothing
    Plan(Known),
    /// Remove kube-proxy's rules once Mizzen serves in its stead; of a cluster, have it end before
    Apply(Known),
    /// Take Mizzen's services out of force once kube-proxy serves; of a cluster, have it run before
    Rollback {
        /// The folder of Mizzen's pins
        #[arg(long, default_value = "/sys/fs/bpf/mizzen")]
        bpffs: PathBuf,
        /// That kube-proxy serves on this node, where its rules of iptables-legacy can't be read
        #[arg(long)]
        kube_proxy_serves: bool,
    },
}

/// What the operator knows.
#[derive(Clone, Debug, Args)]
struct Known {
    /// That no kube-proxy runs on this node, where its processes can't be seen from here
    #[arg(long)]
    kube_proxy_is_stopped: bool,
}

/// What is printed with `-o json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Running kube-proxies of this node.
    processes: &'a [Process],
    /// What is to be done, or was.
    steps: Vec<String>,
    /// How many of the steps were done.
    done: usize,
    /// What is in the way.
    obstacles: &'a [Obstacle],
    /// What else is to be known.
    notes: &'a [String],
}

impl Migrate {
    /// Does what the command line says.
    pub(super) fn execute(&self, state_dir: &Path, format: Format) -> anyhow::Result<Outcome> {
        if self.cluster.is_meant() {
            let (way, act) = match &self.verb {
                Verb::Plan(_) => (Way::There, false),
                Verb::Apply(_) => (Way::There, true),
                Verb::Rollback { .. } => (Way::Back, true),
            };
            return self.cluster.execute(way, act, format);
        }
        let seen = Seen::now(agent(state_dir))?;
        let (plan, bpffs) = match &self.verb {
            Verb::Plan(known) | Verb::Apply(known) => {
                (Plan::apply(&seen, known.kube_proxy_is_stopped), Path::new(""))
            }
            Verb::Rollback { bpffs, kube_proxy_serves } => {
                let services = datapath::services_in_force(bpffs)?;
                let plan = Plan::rollback(&seen, services.as_deref(), *kube_proxy_serves);
                (plan, bpffs.as_path())
            }
        };
        let act = plan.obstacles.is_empty() && !matches!(self.verb, Verb::Plan(_));
        let is_text = format == Format::Text;
        if is_text {
            print(&heading(&seen, &plan, act));
        }
        let mut done = 0;
        if act {
            carry_out(&plan, bpffs, |step| {
                done += 1;
                if is_text {
                    print(&format!("  done: {}\n", step.words()));
                }
            })?;
            if matches!(self.verb, Verb::Apply(_)) && done > 0 {
                verify(agent(state_dir))?;
            }
        }
        if is_text {
            print(&ending(&plan, act));
        } else {
            let report = Report {
                processes: &plan.processes,
                steps: plan.steps.iter().map(Step::words).collect(),
                done,
                obstacles: &plan.obstacles,
                notes: &plan.notes,
            };
            print(&format!("{}\n", serde_json::to_string(&report)?));
        }
        Ok(if plan.obstacles.is_empty() { Outcome::Ok } else { Outcome::Degraded })
    }
}

/// A reader that has seen enough, such as `head`, is no failure.
fn print(text: &str) {
    let _seen = std::io::stdout().write_all(text.as_bytes());
}

/// How this node's agent says that it is.
fn agent(state_dir: &Path) -> Agent {
    let status = get(state_dir, "/v1/status")
        .and_then(|body| Ok(serde_json::from_str::<wire::Status>(&body)?));
    let status = match status {
        Ok(status) => status,
        Err(error) => return Agent::Away(format!("{error:#}")),
    };
    if !status.parts.iter().any(|part| part.name == reconcile::PART) {
        return Agent::Waits("it does not have the role `services`".to_owned());
    }
    // What pods' packets meet, whoever connects them.
    let needed = [reconcile::PART, podnet::PART, foreign::PART];
    let mut parts = status.parts.into_iter();
    match parts.find(|part| needed.contains(&&*part.name) && part.state != "ready") {
        Some(part) => Agent::Waits(format!("{}: {}", part.name, part.reason)),
        None => Agent::Serves { node: status.node },
    }
}

/// What is there.
fn heading(seen: &Seen, plan: &Plan, act: bool) -> String {
    let running = plan.processes.iter();
    let mut lines: Vec<_> = running
        .map(|Process { pid, command }| format!("kube-proxy runs: process {pid}, {command}"))
        .collect();
    lines.push(match &seen.agent {
        Agent::Serves { node } => format!("Mizzen serves on {node}."),
        Agent::Waits(why) => format!("Mizzen does not serve: {why}"),
        Agent::Away(_) => "Mizzen does not run here.".to_owned(),
    });
    if plan.steps.is_empty() {
        lines.push("There is nothing to do on this node.".to_owned());
    } else if !act {
        lines.push("To be done:".to_owned());
        let steps = plan.steps.iter().enumerate();
        lines.extend(steps.map(|(nth, step)| format!("  {}. {}", nth + 1, step.words())));
    }
    text(lines)
}

/// What is in the way, and what is to be known.
fn ending(plan: &Plan, acted: bool) -> String {
    let obstacles = plan.obstacles.iter();
    let mut lines: Vec<_> = obstacles
        .map(|Obstacle { what, remedy }| format!("in the way: {what}\n  -> {remedy}"))
        .collect();
    lines.extend(plan.notes.iter().map(|note| format!("note: {note}")));
    if !acted && plan.obstacles.is_empty() && !plan.steps.is_empty() {
        lines.push("Nothing is in the way: `mizzen migrate apply` does it.".to_owned());
    }
    text(lines)
}

fn text(lines: Vec<String>) -> String {
    lines.into_iter().map(|line| line + "\n").collect()
}
