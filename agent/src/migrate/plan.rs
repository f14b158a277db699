//! What follows from what there is: steps, and what is in their way. Pure.

use serde::{Deserialize, Serialize};

use super::{
    leftovers::Leftovers,
    look::{Agent, Process, Seen},
};
use crate::netfilter::ruleset::Removal;

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep the connections of kube-proxy's rules translated.
    Hold {
        /// How many there are.
        connections: usize,
    },
    /// Remove its rules.
    Remove {
        /// In words, a piece each.
        words: Vec<String>,
        /// What the kernel is told.
        removal: Removal,
    },
    /// Take Mizzen's datapath out of force.
    Detach,
}

impl Step {
    /// As the operator reads it.
    pub fn words(&self) -> String {
        match self {
            Self::Hold { connections } => format!(
                "keep the {connections} connections translated that kube-proxy's rules made (nftables \
                 table {}, which the agent removes when the last is over)",
                super::hold::TABLE
            ),
            Self::Remove { words, .. } => {
                format!("remove kube-proxy's rules: {}", words.join("; "))
            }
            Self::Detach => {
                "detach all of Mizzen's programs and forget its tables: what sockets translated goes \
                 on, connections of the packet path (node ports from outside) end; pods that Mizzen \
                 connects lose tunnels, masquerading and host ports until an agent with services \
                 runs again"
                    .to_owned()
            }
        }
    }
}

/// Something that has to be seen to first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// What is in the way.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What would be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Running kube-proxies.
    pub processes: Vec<Process>,
    /// In order.
    pub steps: Vec<Step>,
    /// Nothing is done where there are any.
    pub obstacles: Vec<Obstacle>,
    /// What an operator should know besides.
    pub notes: Vec<String>,
}

impl Plan {
    /// The way to Mizzen alone. `stopped` says that the operator knows that no kube-proxy runs here.
    pub fn apply(seen: &Seen, stopped: bool) -> Self {
        let leftovers = Leftovers::of(&seen.ruleset);
        let mut steps = Vec::new();
        let legacy = !seen.legacy.is_empty() && seen.translated > 0 && !seen.held;
        if !leftovers.is_empty() || legacy {
            // Held also where no connection is seen: one may begin before the rules are gone. And
            // where others will remove the rules.
            steps.push(Step::Hold { connections: seen.translated });
        }
        if !leftovers.is_empty() {
            steps.push(Step::Remove { words: leftovers.words(), removal: leftovers.removal() });
        }
        let obstacles = if steps.is_empty() && seen.processes.is_empty() {
            Vec::new()
        } else {
            obstacles(seen, stopped)
        };
        Self { processes: seen.processes.clone(), steps, obstacles, notes: notes(seen, &leftovers) }
    }

    /// The way back to kube-proxy, where Mizzen's datapath is in force or not.
    pub fn rollback(seen: &Seen, in_force: bool) -> Self {
        let mut obstacles = Vec::new();
        let other_modes = seen.ipvs || !seen.legacy.is_empty();
        if in_force && Leftovers::of(&seen.ruleset).serves.is_empty() && !other_modes {
            obstacles.push(Obstacle {
                what: "kube-proxy's rules are not there: without Mizzen this node would have no \
                       services"
                    .to_owned(),
                remedy: "have kube-proxy run on this node again, and wait for its rules".to_owned(),
            });
        }
        if in_force && seen.processes.is_empty() && seen.sees_processes {
            obstacles.push(Obstacle {
                what: "no kube-proxy runs on this node: its rules would lead to pods that are gone"
                    .to_owned(),
                remedy: "have it run on this node again".to_owned(),
            });
        }
        if in_force && let Agent::Serves { .. } = seen.agent {
            obstacles.push(Obstacle {
                what: "this node's agent runs and keeps its services in force".to_owned(),
                remedy:
                    "stop it: delete Mizzen's DaemonSet, or set `services: false` where it stays \
                         for pods or DNS"
                        .to_owned(),
            });
        }
        let steps = if in_force { vec![Step::Detach] } else { Vec::new() };
        Self { processes: seen.processes.clone(), steps, obstacles, notes: Vec::new() }
    }

    /// Whether nothing of kube-proxy is left, and nothing is to be done.
    pub fn is_done(&self) -> bool {
        self.steps.is_empty() && self.obstacles.is_empty()
    }
}

fn obstacles(seen: &Seen, stopped: bool) -> Vec<Obstacle> {
    let mut obstacles: Vec<_> = seen.processes.iter().map(still_runs).collect();
    if !seen.sees_processes && !stopped {
        obstacles.push(Obstacle {
            what:
                "the processes of this node can't be seen from here, and a kube-proxy among them \
                   would write its rules again"
                    .to_owned(),
            remedy: "run this on the node itself or in a pod with `hostPID: true`, or say \
                     `--kube-proxy-is-stopped` where you know it"
                .to_owned(),
        });
    }
    match &seen.agent {
        Agent::Serves { .. } => {}
        Agent::Waits(why) => obstacles.push(Obstacle {
            what: format!("this node's agent does not serve yet: {why}"),
            remedy: "see `mizzen status` and `mizzen check`; services go on by kube-proxy's rules \
                     meanwhile"
                .to_owned(),
        }),
        Agent::Away(why) => obstacles.push(Obstacle {
            what: format!("this node's agent does not answer: {why}"),
            remedy: "install Mizzen on this node first; services go on by kube-proxy's rules \
                     meanwhile"
                .to_owned(),
        }),
    }
    obstacles
}

fn still_runs(process: &Process) -> Obstacle {
    Obstacle {
        what: format!(
            "kube-proxy still runs (process {}) and would write its rules again",
            process.pid
        ),
        remedy:
            "take it off this node: delete its DaemonSet, or keep it away by a node selector or an \
             affinity"
                .to_owned(),
    }
}

fn notes(seen: &Seen, leftovers: &Leftovers) -> Vec<String> {
    let mut notes = Vec::new();
    if seen.held {
        notes.push(format!(
            "{} connections that kube-proxy's rules translated go on without them",
            seen.translated
        ));
    }
    if leftovers.keeps_forward {
        notes.push(
            "FORWARD drops what no rule accepts: kube-proxy's chain KUBE-FORWARD stays, since \
             connections that go on need it; remove it when they are over"
                .to_owned(),
        );
    }
    for rule in &leftovers.in_use {
        notes.push(format!(
            "chain {} of table {} {} is not kube-proxy's and leads to {}: that stays, with what it \
             needs",
            rule.chain.name,
            rule.chain.family.name(),
            rule.chain.table,
            rule.leads_to.join(", ")
        ));
    }
    if !seen.legacy.is_empty() {
        notes.push(format!(
            "iptables-legacy has tables ({}), which are not looked into: see whether \
             `iptables-legacy-save | grep KUBE-` shows any, and after `apply` have `kube-proxy --cleanup` \
             remove them",
            seen.legacy.join(", ")
        ));
    }
    if seen.ipvs {
        notes.push(
            "the kernel has virtual servers of ipvs: where they are kube-proxy's, have \
             `kube-proxy --cleanup` remove them once it is stopped; their connections end with them"
                .to_owned(),
        );
    }
    notes
}
