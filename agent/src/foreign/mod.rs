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

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    datapath::{Interface, Leads, Outcome, PacketPrograms},
    kube::convert::SOCKET_TRANSLATION_ANNOTATION,
    metrics::Metrics,
    model::snapshot::Snapshot,
    podnet::{monitor::Monitor, nodes_changed},
    status::{Board, State},
    supervisor::TaskError,
};
use choose::{Places, Ranges, places};

/// The part on the board.
pub const PART: &str = "foreign-cni";
/// How often everything is looked at though nothing is known to have changed.
const REVIEW: Duration = Duration::from_secs(5);
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

/// Attaches programs until cancelled. What others detached is counted in `metrics`.
pub async fn run(
    config: Config,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    programs: PacketPrograms,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let monitor = Monitor::start(read::matters)?;
    let mut attached = Devices::new();
    while !cancel.is_cancelled() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if snapshot.synced.nodes {
            let follow = || follow(&config, &snapshot, &programs, &mut attached);
            let outcome = tokio::task::block_in_place(follow).map(|Followed { problems, lost }| {
                if lost > 0 {
                    tracing::warn!(programs = lost, "somebody else detached programs");
                    metrics.tables.healed("program", lost as u64);
                }
                problems
            });
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

/// Devices with programs, and where they lead.
type Devices = BTreeMap<Interface, Leads>;

/// What became of a look at the devices.
struct Followed {
    /// What can't be had, for people.
    problems: Vec<String>,
    /// Programs that were put back.
    lost: usize,
}

/// Puts the programs into their places. `attached` are the devices that have them from the last
/// time.
fn follow(
    config: &Config,
    snapshot: &Snapshot,
    programs: &PacketPrograms,
    attached: &mut Devices,
) -> Result<Followed, TaskError> {
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
    let before = std::mem::take(attached);
    let mut lost = 0;
    for (interface, leads) in devices {
        match attach(programs, &interface, leads) {
            Ok(new) => {
                lost += if before.get(&interface) == Some(&leads) { new } else { 0 };
                attached.insert(interface, leads);
            }
            Err(error) => problems.push(format!("{}: {error}", interface.name)),
        }
    }
    Ok(Followed { problems, lost })
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

/// How many programs were not there.
fn attach(
    programs: &PacketPrograms,
    interface: &Interface,
    leads: Leads,
) -> Result<usize, TaskError> {
    let mut new = 0;
    for (hook, outcome) in programs.attach(interface, leads)? {
        tracing::debug!(hook, interface = interface.name, ?outcome, "attached");
        new += usize::from(outcome == Outcome::Attached);
    }
    Ok(new)
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
