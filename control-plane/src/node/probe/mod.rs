//! Probes: a task per probe of a running container, from the node's own network.
//!
//! A task asks at its period, counts by [`count::Counter`], and sends a result only when that has
//! changed.

mod attempt;
mod count;
mod grpc;
mod http;
mod tls;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use tokio::{sync::mpsc, task::AbortHandle, task::JoinSet};

pub(super) use self::attempt::attempt;
use self::{attempt::AttemptError, count::Counter};
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
    let mut warned = None;
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let begun = Instant::now();
        let outcome = attempt(runtime.as_ref(), &target, timeout).await;
        let (container, kind) = (&target.container, target.kind);
        match &outcome {
            Ok(warning) if *warning == warned => {}
            Ok(warning) => {
                if let Some(warning) = warning {
                    tracing::warn!(container, ?kind, warning, "probe succeeded");
                }
                warned.clone_from(warning);
            }
            Err(reason) => {
                let elapsed_ms = begun.elapsed().as_millis();
                tracing::debug!(container, ?kind, ?reason, elapsed_ms, "probe failed");
            }
        }
        let counted = verdict(&outcome).and_then(|success| counter.count(success));
        if let Some(success) = counted {
            let change = Change { container: target.container.clone(), kind: target.kind, success };
            if sender.send(change).await.is_err() {
                return;
            }
        }
    }
}

/// Whether the container is well, where the attempt says anything of that.
fn verdict(outcome: &Result<Option<String>, AttemptError>) -> Option<bool> {
    match outcome {
        Ok(_warning) => Some(true),
        Err(AttemptError::Failed(_)) => Some(false),
        Err(AttemptError::Unknown(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_before_and_after_an_outage_of_the_runtime_are_in_a_row_and_the_outage_is_none() {
        let failed = || Err(AttemptError::Failed("x".into()));
        let unknown = || Err(AttemptError::Unknown("x".into()));
        let mut counter = Counter::new(None, Some(2));
        let outcomes = [Ok(None), unknown(), unknown(), unknown(), failed(), unknown(), failed()];
        let seen = outcomes.map(|outcome| verdict(&outcome).and_then(|one| counter.count(one)));
        assert_eq!(seen, [Some(true), None, None, None, None, None, Some(false)]);
    }
}
