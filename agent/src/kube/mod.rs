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
pub mod objects;
pub mod seen;
pub mod state;
pub mod watch;

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch as channel},
    time::sleep,
};

use crate::{
    metrics::Metrics,
    model::{
        endpoints::EndpointSlice,
        node::Node,
        pod::OptedOutPod,
        service::{Service, ServiceCidr},
        snapshot::Snapshot,
    },
    status::Board,
    supervisor::{Tasks, Thread},
};
use client::{ApiServers, ClientError};

/// Changes that wait for the state task before a watch waits for it.
const CHANGES_MAX: usize = 1024;

/// How long those who care for few changes let the others pass by after one.
const CALM: Duration = Duration::from_millis(50);

/// Starts the watches and the task that owns the snapshot, all on one thread; its changes arrive at
/// the receiver, and when they did is noted in `metrics`.
/// Pods are watched where the name of the node that they are on is given.
pub fn start(
    servers: &ApiServers,
    pods_of: Option<&str>,
    board: &Arc<Board>,
    metrics: &Arc<Metrics>,
    (tasks, thread): (&mut Tasks, &Thread),
) -> Result<channel::Receiver<Arc<Snapshot>>, ClientError> {
    let (changes, receiver) = mpsc::channel(CHANGES_MAX);
    let (publish, snapshots) = channel::channel(Arc::new(Snapshot::default()));
    let (servers, token) = (thread.enter(|| servers.clients())?, tasks.token());
    let watch = |kind: &'static watch::Kind| watch::Watch {
        kind,
        fields: None,
        servers: servers.clone(),
        changes: changes.clone(),
        board: board.clone(),
        staleness: metrics.staleness.clone(),
        cancel: token.clone(),
    };
    let slices = watch(&watch::ENDPOINT_SLICES).run::<EndpointSlice>();
    tasks.spawn_on(thread, "watch services", watch(&watch::SERVICES).run::<Service>());
    tasks.spawn_on(thread, "watch endpointslices", slices);
    tasks.spawn_on(thread, "watch nodes", watch(&watch::NODES).run::<Node>());
    let service_cidrs = watch(&watch::SERVICE_CIDRS).run::<ServiceCidr>();
    tasks.spawn_on(thread, "watch servicecidrs", service_cidrs);
    if let Some(node) = pods_of {
        let fields = Some(format!("spec.nodeName={node}"));
        let pods = watch::Watch { fields, ..watch(&watch::PODS) };
        tasks.spawn_on(thread, "watch pods", pods.run::<OptedOutPod>());
    }
    let state = state::run(receiver, publish, metrics.clone(), token.clone());
    tasks.spawn_on(thread, "cluster state", state);
    Ok(snapshots)
}

/// Returns when a snapshot is other than what is known, or soon after. Most changes are of endpoints,
/// a thousand a second of them: whoever waits for other ones is not woken for each. Never, where no
/// more snapshots come.
pub async fn until_other(
    snapshots: &mut channel::Receiver<Arc<Snapshot>>,
    is_other: impl Fn(&Snapshot) -> bool,
) {
    while !is_other(&snapshots.borrow_and_update()) {
        if snapshots.changed().await.is_err() {
            pending::<()>().await;
        }
        if !is_other(&snapshots.borrow()) {
            sleep(CALM).await;
        }
    }
}
