//! The API server's side of the agent: watches -> values of `crate::model` -> snapshots.
//!
//! ```text
//! watch (Services)       ─┐
//! watch (EndpointSlices) ─┼─ mpsc<Change> ─> state ─ watch<Arc<Snapshot>> ─> services, dns, podnet
//! watch (Nodes)          ─┤
//! watch (ServiceCIDRs)   ─┤
//! watch (own Pods)       ─┘
//! ```
//! [`convert`] is pure and turns what can't be understood into warnings; [`watch`] knows errors,
//! back-off and relists; [`state`] alone owns the snapshot. Nothing else in the agent knows the
//! `kube` crate.

pub mod client;
pub mod convert;
mod names;
pub mod state;
pub mod watch;

use std::sync::Arc;

use tokio::sync::{mpsc, watch as channel};

use crate::{metrics::Metrics, model::snapshot::Snapshot, status::Board, supervisor::Tasks};
use client::ApiServers;

/// Changes that wait for the state task before a watch waits for it.
const CHANGES_MAX: usize = 1024;

/// Starts the watches and the task that owns the snapshot; its changes arrive at the receiver, and
/// when they did is noted in `metrics`.
/// Pods are watched where the name of the node that they are on is given.
pub fn start(
    servers: &ApiServers,
    pods_of: Option<&str>,
    board: &Arc<Board>,
    metrics: &Arc<Metrics>,
    tasks: &mut Tasks,
) -> channel::Receiver<Arc<Snapshot>> {
    let (changes, receiver) = mpsc::channel(CHANGES_MAX);
    let (publish, snapshots) = channel::channel(Arc::new(Snapshot::default()));
    let cancel = tasks.token();
    let spawn = |kind: &'static watch::Kind, tasks: &mut Tasks| watch::Watch {
        kind,
        fields: None,
        servers: servers.clone(),
        changes: changes.clone(),
        board: board.clone(),
        staleness: metrics.staleness.clone(),
        cancel: tasks.token(),
    };
    let services = spawn(&watch::SERVICES, tasks);
    tasks.spawn("watch services", services.run(convert::service));
    let slices = spawn(&watch::ENDPOINT_SLICES, tasks);
    tasks.spawn("watch endpointslices", slices.run(convert::endpoint_slice));
    let nodes = spawn(&watch::NODES, tasks);
    tasks.spawn("watch nodes", nodes.run(convert::node));
    let service_cidrs = spawn(&watch::SERVICE_CIDRS, tasks);
    tasks.spawn("watch servicecidrs", service_cidrs.run(convert::service_cidr));
    if let Some(node) = pods_of {
        let mut pods = spawn(&watch::PODS, tasks);
        pods.fields = Some(format!("spec.nodeName={node}"));
        tasks.spawn("watch pods", pods.run(convert::opted_out_pod));
    }
    tasks.spawn("cluster state", state::run(receiver, publish, metrics.clone(), cancel));
    snapshots
}
