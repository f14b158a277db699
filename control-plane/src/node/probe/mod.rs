//! Probes: a task per probe of a running container, from the node's own network.
//!
//! A task asks at its period, counts by [`count::Counter`], and sends a result only when that has
//! changed.

mod attempt;
mod count;
mod grpc;
mod tls;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use tokio::{sync::mpsc, task::AbortHandle, task::JoinSet};

pub(super) use self::attempt::attempt;
use self::count::Counter;
use super::{
    pod::state::{ProbeKind, ProbeTarget},
    runtime::Runtime,
};

/// Results that a pod's worker has not looked at yet.
const RESULTS_MAX: usize = 64;

/// A probe's result has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Id of the container.
    pub container: String,
    /// Which probe.
    pub kind: ProbeKind,
    /// Its result now.
    pub success: bool,
}

/// The probes of a pod.
pub(super) struct Probes {
    tasks: JoinSet<()>,
    running: BTreeMap<(String, ProbeKind), AbortHandle>,
    sender: mpsc::Sender<Change>,
    changes: mpsc::Receiver<Change>,
}

impl Probes {
    /// None runs yet.
    pub(super) fn new() -> Self {
        let (sender, changes) = mpsc::channel(RESULTS_MAX);
        Self { tasks: JoinSet::new(), running: BTreeMap::new(), sender, changes }
    }

    /// Lets exactly these probes run.
    pub(super) fn set<R: Runtime>(&mut self, runtime: &Arc<R>, targets: Vec<ProbeTarget>) {
        let key = |target: &ProbeTarget| (target.container.clone(), target.kind);
        self.running.retain(|key_of, task| {
            let wanted = targets.iter().any(|target| key(target) == *key_of);
            if !wanted {
                task.abort();
            }
            wanted
        });
        while self.tasks.try_join_next().is_some() {}
        for target in targets {
            let (runtime, sender) = (Arc::clone(runtime), self.sender.clone());
            let tasks = &mut self.tasks;
            self.running
                .entry(key(&target))
                .or_insert_with(|| tasks.spawn(run(runtime, target, sender)));
        }
    }

    /// The next result that has changed.
    pub(super) async fn changed(&mut self) -> Change {
        match self.changes.recv().await {
            Some(change) => change,
            // Never, since we hold a sender ourselves.
            None => std::future::pending().await,
        }
    }
}

/// Asks at the probe's period until it is aborted.
async fn run<R: Runtime>(runtime: Arc<R>, target: ProbeTarget, sender: mpsc::Sender<Change>) {
    let probe = &target.probe;
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|value| value.try_into().ok()).unwrap_or(default))
    };
    let delay = seconds(probe.initial_delay_seconds, 0);
    let since = Timestamp::now().duration_since(target.started_at);
    let since = Duration::try_from(since).unwrap_or_default();
    tokio::time::sleep(delay.saturating_sub(since)).await;

    let period = seconds(probe.period_seconds.filter(|&period| period > 0), 10);
    let timeout = seconds(probe.timeout_seconds.filter(|&timeout| timeout > 0), 1);
    let mut counter = Counter::new(probe.success_threshold, probe.failure_threshold);
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let begun = Instant::now();
        let outcome = attempt(runtime.as_ref(), &target, timeout).await;
        if let Err(reason) = &outcome {
            let elapsed_ms = begun.elapsed().as_millis();
            let (container, kind) = (&target.container, target.kind);
            tracing::debug!(container, ?kind, reason, elapsed_ms, "probe failed");
        }
        if let Some(success) = counter.count(outcome.is_ok()) {
            let change = Change { container: target.container.clone(), kind: target.kind, success };
            if sender.send(change).await.is_err() {
                return;
            }
        }
    }
}
