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
    for (interface, leads) in devices {
        if let Err(error) = attach(programs, &interface, leads) {
            problems.push(format!("{}: {error}", interface.name));
        }
    }
    Ok(problems)
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
