//! The API server's side of the agent: watches -> values of `crate::model` -> snapshots.
//!
//! ```text
//! watch (Services)       ─┐
//! watch (EndpointSlices) ─┼─ mpsc<Change> ─> state ─ watch<Arc<Snapshot>> ─> services, dns, podnet
//! watch (Nodes)          ─┤
//! watch (ServiceCIDRs)   ─┤
//! watch (own Pods)       ─┤
//! watch (Namespaces)     ─┘
//! ```
//! [`client`] reaches the API server, by [`bootstrap`] where Services don't work yet.
//! [`node_condition`], [`notices`] and [`migration`] are all that the agent writes.
//! [`convert`] is pure and turns what can't be understood into warnings; [`watch`] knows errors,
//! back-off and relists; [`state`] alone owns the snapshot. Nothing else in the agent knows the
//! `kube` crate.

pub mod bootstrap;
pub mod client;
pub mod convert;
mod counted;
mod credentials;
pub mod migration;
mod names;
pub mod node_condition;
pub mod notices;
pub mod objects;
pub mod seen;
pub mod state;
pub mod watch;

use std::sync::Arc;

use tokio::sync::{mpsc, watch as channel};

use crate::{
    metrics::Metrics,
    model::{
        endpoints::EndpointSlice,
        namespace::Namespace,
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

/// Whether a kubelet started this process, in a container of a pod: each has this variable.
pub fn is_in_a_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// The way to the snapshots. The latest counts; what was published between is gone.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// Each of them.
    pub all: channel::Receiver<Arc<Snapshot>>,
    /// Only those in which something other than EndpointSlices changed: these change a thousand
    /// times a second where the rest rests, and whoever waits for a node is not woken for each.
    pub calm: channel::Receiver<Arc<Snapshot>>,
}

/// What is watched beside what every role needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// The pods of the node with that name.
    pub pods_of: Option<&'a str>,
    /// Namespaces.
    pub namespaces: bool,
}

/// Starts the watches and the task that owns the snapshot, all on one thread; its changes arrive at
/// the receiver, and when they did is noted in `metrics`.
pub fn start(
    servers: &ApiServers,
    beside: Beside<'_>,
    board: &Arc<Board>,
    metrics: &Arc<Metrics>,
    (tasks, thread): (&mut Tasks, &Thread),
) -> Result<Snapshots, ClientError> {
    let (changes, receiver) = mpsc::channel(CHANGES_MAX);
    let (all, every) = channel::channel(Arc::new(Snapshot::default()));
    let (calm, calmer) = channel::channel(Arc::new(Snapshot::default()));
    let publish = state::Publish { all, calm };
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
    if let Some(node) = beside.pods_of {
        let fields = Some(format!("spec.nodeName={node}"));
        let pods = watch::Watch { fields, ..watch(&watch::PODS) };
        tasks.spawn_on(thread, "watch pods", pods.run::<OptedOutPod>());
    }
    if beside.namespaces {
        let namespaces = watch(&watch::NAMESPACES).run::<Namespace>();
        tasks.spawn_on(thread, "watch namespaces", namespaces);
    }
    let state = state::run(receiver, publish, metrics.clone(), token.clone());
    tasks.spawn_on(thread, "cluster state", state);
    Ok(Snapshots { all: every, calm: calmer })
}
