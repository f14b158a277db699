//! The worker of a pod: it looks, lets [`state::step`] decide, does what was decided, and waits
//! for something to change. There is one per pod, and it ends when nothing of the pod is left.
//!
//! Calls of the runtime and the API run beside it, one at a time for each object, so that a pod
//! that is deleted while its network is being made is not waited for.

mod calls;
mod hook;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    jiff::Timestamp,
};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::calls::{Calls, Done};
use super::{
    pod::{
        backoff,
        facts::NodeFacts,
        observed::{Failure, InFlight, Object, Observed, Pull, past_of, probes_of},
        state::{self, Action, Step},
    },
    probe::{Change, Probes},
    report::{self, Written},
    runtime::{NetworkState, PodIdentity, Runtime},
    volumes::PodVolumes,
};

/// Sandboxes that are made at a time on this node.
pub(super) const SANDBOXES_AT_A_TIME: usize = 8;
/// A status that the server keeps differently from how it was written is not written again before.
const REWRITE_AFTER: Duration = Duration::from_secs(10);

/// What all workers share.
pub(super) struct Shared<R> {
    /// What runs the pods.
    pub runtime: Arc<R>,
    /// The API.
    pub client: kube::Client,
    /// What pods are told of the node.
    pub facts: NodeFacts,
    /// See [`SANDBOXES_AT_A_TIME`].
    pub sandbox_slots: Arc<Semaphore>,
}

impl<R> Shared<R> {
    /// The volumes of a pod.
    pub(super) fn volumes_of(&self, uid: &str) -> PodVolumes {
        PodVolumes::of(&self.facts.volume_dir, uid)
    }
}

/// The pod as the API has it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The pod; the last that was seen, where it is gone.
    pub pod: Arc<Pod>,
    /// The API has no such pod any more.
    pub gone: bool,
    /// Who is told the status instead of the API, of a static pod.
    pub statuses: Option<watch::Sender<PodStatus>>,
}

/// Runs the pod until nothing of it is left, or `stop`, at which everything goes on running.
pub(super) async fn run<R: Runtime>(
    shared: Arc<Shared<R>>,
    mut wanted: watch::Receiver<Wanted>,
    stop: CancellationToken,
) {
    let mut worker = Worker::new(shared, wanted.borrow_and_update().clone());
    let missing = super::pod::unenforced(&worker.pod, worker.shared.facts.abilities);
    if !missing.is_empty() && worker.seen.gone_since.is_none() {
        tracing::warn!(pod = worker.name(), fields = ?missing, "the process runtime does not enforce what the pod asks for");
    }
    loop {
        worker.look().await;
        let step = worker.step();
        if step.over {
            tracing::info!(pod = worker.name(), "pod is over");
            return;
        }
        let wake = worker.apply(step);
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => worker.take(wanted.borrow_and_update().clone()),
                // Nobody watches for us any more: the node part ends.
                Err(_) => return,
            },
            () = worker.something(wake) => {}
            () = stop.cancelled() => return,
        }
    }
}

struct Worker<R> {
    shared: Arc<Shared<R>>,
    pod: Arc<Pod>,
    identity: PodIdentity,
    seen: Observed,
    network: watch::Receiver<NetworkState>,
    /// The changes of the sandbox of this id.
    changes: Option<(String, watch::Receiver<u64>)>,
    calls: Calls,
    probes: Probes,
    /// The version of the pod that `seen.reported` belongs to.
    reported_version: Option<String>,
    /// The status that was written last, in essence, and when.
    written: Option<(Value, Timestamp)>,
    /// A status is being written.
    writing: bool,
    write_failure: Option<Failure>,
    /// See [`Wanted::statuses`].
    statuses: Option<watch::Sender<PodStatus>>,
}

impl<R: Runtime> Worker<R> {
    fn new(shared: Arc<Shared<R>>, wanted: Wanted) -> Self {
        let (pod, statuses) = (wanted.pod, wanted.statuses);
        let identity = super::pod::identity(&pod);
        let network = shared.runtime.network();
        let reported = pod.status.clone().unwrap_or_default();
        let now = Timestamp::now();
        let seen = Observed {
            first_seen: now,
            gone_since: wanted.gone.then_some(now),
            delete_confirmed: false,
            past: past_of(&reported),
            probes: probes_of(&reported),
            reported,
            network: network.borrow().clone(),
            sandboxes: Vec::new(),
            sandboxes_before: 0,
            containers: Vec::new(),
            images: Vec::new(),
            failed_hooks: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            failures: BTreeMap::new(),
            inputs: None,
            refreshed_at: None,
            volumes_left: false,
        };
        Self {
            changes: None,
            calls: Calls::new(),
            probes: Probes::new(),
            reported_version: pod.metadata.resource_version.clone(),
            written: None,
            writing: false,
            write_failure: None,
            statuses,
            shared,
            pod,
            identity,
            seen,
            network,
        }
    }

    fn name(&self) -> String {
        format!("{}/{}", self.identity.namespace, self.identity.name)
    }

    /// Takes in a newer version of the pod.
    fn take(&mut self, wanted: Wanted) {
        if wanted.gone && self.seen.gone_since.is_none() {
            self.seen.gone_since = Some(Timestamp::now());
        }
        self.reported(&wanted.pod);
        self.pod = wanted.pod;
    }

    /// Takes in what the API has as the status, unless that is older than what we know.
    fn reported(&mut self, pod: &Pod) {
        let version = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
        let (new, known) = (
            version(pod.metadata.resource_version.as_deref()),
            version(self.reported_version.as_deref()),
        );
        if new.is_some() && new < known {
            return;
        }
        self.reported_version.clone_from(&pod.metadata.resource_version);
        self.seen.reported = pod.status.clone().unwrap_or_default();
    }

    /// Looks at the runtime.
    async fn look(&mut self) {
        self.seen.network.clone_from(&self.network.borrow_and_update());
        // Marked as seen before it is looked at: what changes meanwhile is looked at again.
        if let Some((_, changes)) = &mut self.changes {
            changes.mark_unchanged();
        }
        let runtime = Arc::clone(&self.shared.runtime);
        match runtime.sandboxes(Some(&self.identity.uid)).await {
            Ok(sandboxes) => self.seen.sandboxes = sandboxes,
            Err(error) => tracing::warn!(pod = self.name(), %error, "sandboxes not listed"),
        }
        self.seen.volumes_left = self.shared.volumes_of(&self.identity.uid).exist();
        let Some(sandbox) = self.seen.sandbox() else {
            self.changes = None;
            return self.seen.containers.clear();
        };
        if self.changes.as_ref().is_none_or(|(id, _)| *id != sandbox.id) {
            let changes = runtime.changes(&sandbox.id).map(|mut changes| {
                // What was listed above may be older than the subscription.
                changes.mark_changed();
                (sandbox.id.clone(), changes)
            });
            self.changes = changes;
        }
        match runtime.containers(&sandbox.id).await {
            Ok(containers) => self.seen.containers = containers,
            Err(error) => tracing::warn!(pod = self.name(), %error, "containers not listed"),
        }
        let containers = &self.seen.containers;
        let known = |id: &String| containers.iter().any(|container| container.id == *id);
        self.seen.probes.retain(|id, _| known(id));
        self.seen.failed_hooks.retain(known);
    }

    fn step(&self) -> Step {
        state::step(&self.pod, &self.shared.facts, &self.seen, Timestamp::now())
    }

    /// Does what was decided. Gives the time of the next look, if nothing happens before.
    fn apply(&mut self, step: Step) -> Option<Timestamp> {
        let mut wake = step.wake;
        let told = self.tell(&step.status, &mut wake);
        for action in step.actions {
            // The last word on a pod is its final status.
            if action != Action::DeletePod || told {
                self.calls.begin(&self.shared, &self.identity, &mut self.seen, action);
            }
        }
        self.probes.set(&self.shared.runtime, step.probes);
        wake
    }

    /// Writes the status where it differs from what is known to be there. True where it does not.
    fn tell(&mut self, status: &PodStatus, wake: &mut Option<Timestamp>) -> bool {
        if self.seen.gone_since.is_some() {
            return true;
        }
        if let Some(statuses) = &self.statuses {
            self.seen.reported.clone_from(status);
            statuses.send_if_modified(|known| {
                let changed = report::essence(known) != report::essence(status);
                known.clone_from(status);
                changed
            });
            return true;
        }
        let essence = report::essence(status);
        if essence == report::essence(&self.seen.reported) {
            return true;
        }
        let now = Timestamp::now();
        let mut not_before = Timestamp::MIN;
        if let Some(failure) = &self.write_failure {
            not_before = backoff::later(failure.at, backoff::call(failure.attempts));
        }
        if let Some((written, at)) = &self.written
            && *written == essence
        {
            not_before = not_before.max(backoff::later(*at, REWRITE_AFTER));
        }
        if not_before > now {
            *wake = Some(wake.map_or(not_before, |wake| wake.min(not_before)));
        } else if !self.writing {
            self.writing = true;
            self.written = Some((essence, now));
            let version = self.reported_version.clone();
            self.calls.write(&self.shared, &self.identity, version, status.clone());
        }
        false
    }

    /// Waits until something has changed, and takes it in.
    async fn something(&mut self, wake: Option<Timestamp>) {
        let sleep = wake.map(|wake| {
            let left = wake.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or_default()
        });
        tokio::select! {
            done = self.calls.next() => self.done(done),
            change = self.probes.changed() => self.probed(&change),
            () = changed(self.changes.as_mut().map(|(_, changes)| changes)) => {}
            () = changed(Some(&mut self.network)) => {}
            () = async {
                match sleep {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }

    fn probed(&mut self, change: &Change) {
        use state::ProbeKind::{Liveness, Readiness, Startup};
        let Change { container, kind, success } = change;
        tracing::debug!(pod = self.name(), container, ?kind, success, "probe result changed");
        let results = self.seen.probes.entry(container.clone()).or_default();
        let result = match kind {
            Startup => &mut results.startup,
            Readiness => &mut results.readiness,
            Liveness => &mut results.liveness,
        };
        *result = Some(*success);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Call { object, outcome } => {
                self.seen.in_flight.remove(&object);
                self.settle(&object, outcome);
            }
            Done::Started { object, outcome, post_start } => {
                self.seen.in_flight.remove(&object);
                // The next start finds what is there then.
                self.seen.inputs = None;
                if outcome.is_ok() {
                    self.seen.refreshed_at = Some(Timestamp::now());
                }
                self.settle(&object, outcome);
                if let Some(post_start) = post_start {
                    self.calls.begin_hook(&self.shared, &mut self.seen, object, post_start);
                }
            }
            Done::PostStarted { object, container, outcome } => {
                // A stop that took its place goes on.
                if self.seen.in_flight.get(&object) == Some(&InFlight::PostStart) {
                    self.seen.in_flight.remove(&object);
                }
                if let Err(reason) = outcome {
                    tracing::warn!(pod = self.name(), container, reason, "postStart hook failed");
                    self.seen.failed_hooks.insert(container);
                }
            }
            Done::Fetched { inputs } => {
                self.seen.in_flight.remove(&Object::Inputs);
                // What was found is used; for the rest it is asked again, after a pause that grows.
                let unknown = inputs.unknown.values().next().cloned();
                self.seen.inputs = Some(inputs);
                self.settle(&Object::Inputs, unknown.map_or(Ok(()), Err));
            }
            Done::Refreshed { outcome } => {
                self.seen.in_flight.remove(&Object::Volumes);
                self.seen.inputs = None;
                self.seen.refreshed_at = Some(Timestamp::now());
                self.settle(&Object::Volumes, outcome);
            }
            Done::SandboxRemoved { outcome } => {
                self.seen.in_flight.remove(&Object::Sandbox);
                if outcome.is_ok() {
                    self.seen.remember_containers(Timestamp::now());
                    self.seen.sandboxes_before += 1;
                }
                self.settle(&Object::Sandbox, outcome);
            }
            Done::Pulled { request, outcome } => {
                self.seen.in_flight.remove(&Object::Image);
                let before = match self.seen.pull(&request) {
                    Some(Pull::Failed(failure)) => failure.attempts,
                    _ => 0,
                };
                let pull = match outcome {
                    Ok(image) => Pull::Present(image),
                    Err(error) => Pull::Failed(failure(before, error.message)),
                };
                self.seen.images.retain(|(known, _)| *known != request);
                self.seen.images.push((request, pull));
            }
            Done::Deleted { outcome } => {
                self.seen.in_flight.remove(&Object::Pod);
                self.seen.delete_confirmed = outcome.is_ok();
                self.settle(&Object::Pod, outcome);
            }
            Done::Written { outcome } => self.wrote(outcome),
        }
    }

    fn settle(&mut self, object: &Object, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => drop(self.seen.failures.remove(object)),
            Err(message) => {
                tracing::warn!(pod = self.name(), ?object, error = message, "call failed");
                let before = self.seen.failures.get(object).map_or(0, |one| one.attempts);
                self.seen.failures.insert(object.clone(), failure(before, message));
            }
        }
    }

    fn wrote(&mut self, outcome: Result<Written, kube::Error>) {
        self.writing = false;
        let before = self.write_failure.take().map_or(0, |failure| failure.attempts);
        match outcome {
            Ok(Written::Now(pod)) => self.reported(&pod),
            Ok(Written::Stale(pod)) => {
                self.written = None;
                self.reported(&pod);
                self.pod = Arc::new(*pod);
            }
            Ok(Written::Gone) => {
                self.seen.gone_since.get_or_insert_with(Timestamp::now);
            }
            Err(error) => {
                self.written = None;
                let message = error.to_string();
                tracing::warn!(pod = self.name(), error = message, "status not written");
                self.write_failure = Some(failure(before, message));
            }
        }
    }
}

fn failure(attempts_before: u32, message: String) -> Failure {
    Failure { attempts: attempts_before.saturating_add(1), at: Timestamp::now(), message }
}

/// The next change; never, where there is nothing to watch.
async fn changed<T>(receiver: Option<&mut watch::Receiver<T>>) {
    match receiver {
        Some(receiver) => match receiver.changed().await {
            Ok(()) => {}
            Err(_nobody_sends) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
