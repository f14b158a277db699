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
                "detach Mizzen's programs and forget its tables: what sockets translated \
                             goes on, connections of the packet path (node ports from outside) end"
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
    /// The way to Mizzen alone.
    pub fn apply(seen: &Seen) -> Self {
        let leftovers = Leftovers::of(&seen.ruleset);
        let mut steps = Vec::new();
        if !leftovers.is_empty() {
            // Held also where no connection is seen: one may begin before the rules are gone.
            steps.push(Step::Hold { connections: seen.translated });
            steps.push(Step::Remove { words: leftovers.words(), removal: leftovers.removal() });
        }
        let obstacles = if steps.is_empty() && seen.processes.is_empty() {
            Vec::new()
        } else {
            obstacles(seen)
        };
        Self { processes: seen.processes.clone(), steps, obstacles, notes: notes(seen, &leftovers) }
    }

    /// The way back to kube-proxy, where Mizzen's datapath is in force or not.
    pub fn rollback(seen: &Seen, in_force: bool) -> Self {
        let mut obstacles = Vec::new();
        if in_force && Leftovers::of(&seen.ruleset).is_empty() {
            obstacles.push(Obstacle {
                what: "kube-proxy's rules are not there: without Mizzen this node would have no \
                       services"
                    .to_owned(),
                remedy: "have kube-proxy run on this node again: `mizzen migrate rollback \
                         --kubeconfig FILE` does so, or apply its DaemonSet"
                    .to_owned(),
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

fn obstacles(seen: &Seen) -> Vec<Obstacle> {
    let mut obstacles: Vec<_> = seen.processes.iter().map(still_runs).collect();
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
            "take it off this node: `mizzen migrate apply --kubeconfig FILE` does so, or delete \
                 its DaemonSet"
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
             `iptables-legacy-save | grep KUBE-` shows any, and have `kube-proxy --cleanup` remove \
             them",
            seen.legacy.join(", ")
        ));
    }
    if seen.ipvs {
        notes.push(
            "the kernel has virtual servers of ipvs: where they are kube-proxy's, have \
             `kube-proxy --cleanup` remove them once it is stopped"
                .to_owned(),
        );
    }
    notes
}
