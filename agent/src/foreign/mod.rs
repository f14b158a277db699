//! Services in a cluster whose pods another CNI plugin connects: puts the packet programs where
//! the packets of those pods pass.
//!
//! ```text
//! links, routes ──read──┐
//! pod ranges of nodes ──┴─choose─> places ──> datapath
//! ```
//! Followed as devices come and go. What a program was put on keeps it until it goes.

pub mod choose;
pub mod read;

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    datapath::{Interface, Leads, PacketPrograms},
    kube::convert::SOCKET_TRANSLATION_ANNOTATION,
    model::snapshot::Snapshot,
    podnet::{monitor::Monitor, nodes_changed},
    status::{Board, State},
    supervisor::TaskError,
};
use choose::{Places, Ranges, places};

/// The part on the board.
pub const PART: &str = "foreign-cni";
/// How often everything is looked at though nothing is known to have changed.
const REVIEW: Duration = Duration::from_secs(10);
/// How long to wait for what comes together with a change.
const SWARM: Duration = Duration::from_millis(20);

/// Pods that are named where something can't be done for them.
const PODS_NAMED: usize = 3;

/// Where the other plugin's pods are.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node that this is.
    pub node_name: String,
    /// Devices that lead to this node's pods, beside those that routes name.
    pub pod_devices: Vec<String>,
}

/// Attaches programs until cancelled.
pub async fn run(
    config: Config,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    programs: PacketPrograms,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let monitor = Monitor::start(read::matters)?;
    while !cancel.is_cancelled() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if snapshot.synced.nodes {
            let outcome = tokio::task::block_in_place(|| follow(&config, &snapshot, &programs));
            board.report(PART, state(outcome));
        } else {
            board.report(PART, State::Waiting("Nodes are not known yet".into()));
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = nodes_changed(&mut snapshots, &snapshot) => {}
            () = monitor.told() => sleep(SWARM).await,
            () = sleep(REVIEW) => {}
        }
    }
    Ok(())
}

/// Puts the programs into their places. What can't be had, for people.
fn follow(
    config: &Config,
    snapshot: &Snapshot,
    programs: &PacketPrograms,
) -> Result<Vec<String>, TaskError> {
    let ranges = ranges(snapshot, &config.node_name);
    let Places { devices, mut problems } = places(&read::read()?, &ranges, &config.pod_devices);
    if ranges.own.is_empty() && config.pod_devices.is_empty() {
        problems.push(format!(
            "Node {} has no podCIDRs, so its pods' devices can't be told: name them with \
             --pod-device",
            config.node_name
        ));
    }
    problems.extend(unmet_wishes(snapshot));
    for (interface, leads) in devices {
        if let Err(error) = attach(programs, &interface, leads) {
            problems.push(format!("{}: {error}", interface.name));
        }
    }
    Ok(problems)
}

/// That pods asked to have their sockets left alone: which network namespace is whose only the plugin
/// knows that connected them.
fn unmet_wishes(snapshot: &Snapshot) -> Option<String> {
    let pods = &snapshot.opted_out_pods;
    let mut named: Vec<String> = pods.keys().take(PODS_NAMED).map(ToString::to_string).collect();
    let more = pods.len() - named.len();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    (!pods.is_empty()).then(|| {
        format!(
            "the sockets of {} are translated though {SOCKET_TRANSLATION_ANNOTATION} says \"false\": \
             that needs Mizzen's own CNI plugin (cni: true); without it, take the annotation away",
            named.join(", ")
        )
    })
}

fn attach(programs: &PacketPrograms, interface: &Interface, leads: Leads) -> Result<(), TaskError> {
    for (hook, outcome) in programs.attach(interface, leads)? {
        tracing::debug!(hook, interface = interface.name, ?outcome, "attached");
    }
    Ok(())
}

/// The pod ranges of this node, and of all others.
fn ranges(snapshot: &Snapshot, node_name: &str) -> Ranges {
    let (own, others): (Vec<_>, Vec<_>) =
        snapshot.nodes.values().partition(|node| &*node.name == node_name);
    let of = |nodes: Vec<_>| {
        let ranges = |node: &Arc<crate::model::node::Node>| node.pod_cidrs.clone();
        nodes.into_iter().flat_map(ranges).collect()
    };
    Ranges { own: of(own), others: of(others) }
}

fn state(outcome: Result<Vec<String>, TaskError>) -> State {
    match outcome {
        Ok(problems) if problems.is_empty() => State::Ready,
        Ok(problems) => State::Degraded(problems.join("; ")),
        Err(error) => State::Degraded(format!("the node's links and routes: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectKey, pod::OptedOutPod};

    #[test]
    fn u06_pods_whose_wish_can_not_be_met_are_named() {
        let mut snapshot = Snapshot::default();
        assert_eq!(unmet_wishes(&snapshot), None);
        let mut ask = |name: &str| {
            let key = ObjectKey::new("default", name);
            snapshot.opted_out_pods.insert(key.clone(), Arc::new(OptedOutPod { key }));
            unmet_wishes(&snapshot).unwrap()
        };
        let one = ask("a");
        assert!(one.starts_with("the sockets of default/a are translated though"), "{one}");
        assert!(one.contains("mizzen.dev/socket-translation"), "{one}");
        let [.., four] = ["b", "c", "d"].map(ask);
        assert!(four.contains("of default/a, default/b, default/c, 1 more are"), "{four}");
    }
}
