//! The scheduler: gives pods their nodes.
//!
//! ```text
//!  watch of pods and nodes ──> cluster ──> filter ──> score ──> assume ──> bind
//!                                 ^                                          │
//!                                 └────────────── forget, if it fails ───────┘
//! ```
//!
//! One task decides, pod after pod, on [`cluster::Cluster`]; [`filter`] and [`score`] are pure.
//! Bindings go out beside it. A pod that fits nowhere is told why in its condition PodScheduled
//! and parked until a node or a pod changes in a way that may help.

pub(crate) mod affinity;
mod cluster;
mod filter;
mod pending;
pub(crate) mod resources;
mod score;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::cluster::{Cluster, Needs};
use self::filter::Unschedulable;
use self::pending::Pending;
use crate::controllers::interpreter::{Interpreter, WriteError};
use crate::controllers::key::Key;
use crate::controllers::pod_facts::{self, whole_seconds};
use crate::controllers::queue::Queue;
use crate::controllers::world::{Neighbours, World};
use crate::controllers::write::{Target, Write};

/// The name that pods give in `spec.schedulerName` to be placed by us.
const NAME: &str = "default-scheduler";
/// The most bindings and status writes under way.
const WRITES_MAX: usize = 64;
/// The least time between two wakings of parked pods: many changes that come together cost one
/// attempt.
const WAKE_INTERVAL: Duration = Duration::from_millis(20);

/// Something that has changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Changed {
    Pod(Key),
    Node(Key),
}

/// Runs the scheduler until `cancel`. Trouble with the API server is logged and tried again.
pub async fn run(client: Client, neighbours: &Neighbours, cancel: CancellationToken) {
    let mut world = World::default();
    let changes: Arc<Queue<Changed>> = Arc::default();
    let queue = Arc::clone(&changes);
    world.subscribe::<Pod>(move |_, change| {
        queue.add_all(change.key().map(Changed::Pod));
    });
    let queue = Arc::clone(&changes);
    world.subscribe::<Node>(move |_, change| {
        queue.add_all(change.key().map(Changed::Node));
    });
    let world = world.beside(neighbours);
    let mut watches = JoinSet::new();
    world.watch::<Pod>(&client, &mut watches, &cancel);
    world.watch::<Node>(&client, &mut watches, &cancel);
    let synced = async {
        world.cache::<Node>().synced().await;
        world.cache::<Pod>().synced().await;
    };
    tokio::select! {
        () = synced => {}
        () = cancel.cancelled() => return,
    }
    let scheduler = Scheduler {
        interpreter: Interpreter::new(client, Arc::clone(&world)),
        world,
        changes,
        cluster: Cluster::default(),
        pending: Pending::default(),
        writes: JoinSet::new(),
        wake_at: None,
        woken: Instant::now(),
    };
    tokio::select! {
        () = scheduler.run() => {}
        () = cancel.cancelled() => {}
    }
}

/// What came of a write for a pod.
struct Written {
    key: Key,
    result: Result<(), WriteError>,
}

struct Scheduler {
    world: Arc<World>,
    interpreter: Interpreter,
    changes: Arc<Queue<Changed>>,
    cluster: Cluster,
    pending: Pending,
    writes: JoinSet<Written>,
    /// When parked pods are to be tried again.
    wake_at: Option<Instant>,
    /// When they last were.
    woken: Instant,
}

impl Scheduler {
    async fn run(mut self) {
        loop {
            while let Some(changed) = self.changes.try_next() {
                self.take_in(&changed);
            }
            if self.wake_at.is_some_and(|at| at <= Instant::now()) {
                self.wake_at = None;
                self.woken = Instant::now();
                self.pending.wake();
            }
            if self.writes.len() < WRITES_MAX
                && let Some(key) = self.pending.pop()
            {
                self.schedule(&key);
                // Let bindings go out and changes come in between two pods.
                tokio::task::yield_now().await;
                continue;
            }
            self.wait().await;
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) {
        let wake_at = self.wake_at;
        let wake = async {
            match wake_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.changes.next() => self.take_in(&changed),
            Some(written) = self.writes.join_next() => {
                // A task that panicked has left no word; the pod's next change brings it back.
                if let Ok(written) = written {
                    self.written(written);
                }
            }
            () = wake => {}
        }
    }

    fn take_in(&mut self, changed: &Changed) {
        let helps = match changed {
            Changed::Node(key) => {
                let node = self.world.get::<Node>(key);
                self.cluster.set_node(&key.name, node)
            }
            Changed::Pod(key) => {
                let pod = self.world.get::<Pod>(key);
                let freed = self.cluster.set_pod(key, pod.as_deref());
                match pod.filter(|pod| waits_for_us(pod)) {
                    Some(pod) if !self.cluster.is_assumed(key) => self.pending.add(key, &pod),
                    _ => self.pending.remove(key),
                }
                freed
            }
        };
        self.changes.put_down(changed);
        if helps && self.pending.has_parked() && self.wake_at.is_none() {
            self.wake_at = Some(self.woken + WAKE_INTERVAL);
        }
    }

    /// Places a pod, or says why it cannot be.
    fn schedule(&mut self, key: &Key) {
        let Some(pod) = self.world.get::<Pod>(key).filter(|pod| waits_for_us(pod)) else {
            self.pending.remove(key);
            return;
        };
        match place(&pod, &self.cluster) {
            Ok((node, needs)) => {
                tracing::debug!(pod = %key, node, "pod placed");
                self.cluster.assume(key.clone(), pod.metadata.uid.clone(), &node, needs);
                self.pending.remove(key);
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let message = format!("Successfully assigned {key} to {node}");
                let told = Write::tell(&*pod, NAME, "Scheduled", message);
                self.perform(key, vec![Write::Bind { target: Target::of(&*pod), uid, node }, told]);
            }
            Err(reason) => {
                if let Some(write) = explain(&pod, &reason, Timestamp::now()) {
                    let told = Write::warn(&*pod, NAME, "FailedScheduling", reason.message);
                    self.perform(key, vec![write, told]);
                }
                self.pending.park(key.clone(), pod);
            }
        }
    }

    fn perform(&mut self, key: &Key, writes: Vec<Write>) {
        let (interpreter, key) = (self.interpreter.clone(), key.clone());
        self.writes.spawn(async move {
            let result = interpreter.perform(writes).await;
            Written { key, result }
        });
    }

    /// A write that failed: the pod comes back, by a change that is on its way, or after a wait.
    fn written(&mut self, written: Written) {
        let Written { key, result } = written;
        let changed = Changed::Pod(key.clone());
        let Err(error) = result else {
            self.changes.done(&changed);
            return;
        };
        tracing::warn!(pod = %key, %error, "pod could not be bound or told");
        self.cluster.forget(&key);
        self.pending.remove(&key);
        self.changes.failed(&changed);
    }
}

/// Whether the pod is ours to place, and may be placed now.
fn waits_for_us(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let name = spec.scheduler_name.as_deref().unwrap_or(NAME);
    pod_facts::node_name(pod).is_none()
        && pod_facts::is_active(pod)
        && (name.is_empty() || name == NAME)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// The node for a pod, and what the pod takes from it.
fn place(pod: &Pod, cluster: &Cluster) -> Result<(String, Needs), Unschedulable> {
    let needs = Needs::of(pod);
    let spec = pod.spec.clone().unwrap_or_default();
    let nodes = filter::feasible(&spec, &needs, cluster)?;
    match score::best(&spec, &needs, &nodes) {
        Some(node) => Ok((node.to_owned(), needs)),
        None => Err(Unschedulable { message: "no nodes available to schedule pods".to_owned() }),
    }
}

/// The write that says why the pod has no node, unless it says so already.
fn explain(pod: &Pod, reason: &Unschedulable, now: Timestamp) -> Option<Write> {
    let known = pod_facts::condition(pod, "PodScheduled").filter(|known| known.status == "False");
    if known.is_some_and(|known| {
        known.reason.as_deref() == Some("Unschedulable")
            && known.message.as_deref() == Some(&reason.message)
    }) {
        return None;
    }
    let since = known.and_then(|known| known.last_transition_time.clone());
    Some(Write::StrategicPatch {
        target: Target::of(pod),
        subresource: Some("status"),
        patch: json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": reason.message,
                "lastTransitionTime": since.unwrap_or(Time(whole_seconds(now))),
            }]},
        }),
    })
}

#[cfg(test)]
mod tests;
