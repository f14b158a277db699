//! What to do about a pod. See [`super::state`].

mod probes;
mod start;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container as Spec, Pod, PodSpec},
    jiff::Timestamp,
};

use super::{
    super::runtime::{Container, ContainerState},
    backoff, config,
    environment::Sources,
    facts::NodeFacts,
    inputs::{self, Inputs},
    observed::{InFlight, Object, Observed},
    state::{Action, ProbeTarget},
    volumes,
};

/// How often the volumes of running containers are brought up to date with their objects.
const REFRESH: Duration = Duration::from_mins(1);

/// What a pod that was deleted without grace is given before it is killed, as by the kubelet.
const GONE_GRACE: Duration = Duration::from_secs(1);
/// A stop under way is made shorter only if that matters.
const SHORTER_BY: Duration = Duration::from_secs(1);
/// The grace of a pod that names none.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// What the kubelet says of a pod that ran for longer than its spec lets it.
const OVERDUE: (&str, &str) =
    ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline");

/// What was decided, with what the status needs to know of why.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// See [`super::state::Step`].
    pub actions: Vec<Action>,
    /// See [`super::state::Step`].
    pub wake: Option<Timestamp>,
    /// See [`super::state::Step`].
    pub probes: Vec<ProbeTarget>,
    /// See [`super::state::Step`].
    pub over: bool,
    /// Why a container waits, by its name.
    pub waiting: BTreeMap<String, Waiting>,
    /// The pod has come to its end.
    pub outcome: Option<Outcome>,
    /// Why, where its containers don't say it: a word, and for people.
    pub why: Option<(&'static str, &'static str)>,
}

/// Why a container waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// A word, such as `CrashLoopBackOff`.
    pub reason: &'static str,
    /// For people.
    pub message: Option<String>,
}

/// How a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every container did what it had to.
    Succeeded,
    /// One did not, and is not to be tried again.
    Failed,
}

/// When containers are started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    /// The pod's policy.
    pub(super) fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// What is looked at while deciding, and what was decided so far.
struct Context<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    node: &'a NodeFacts,
    seen: &'a Observed,
    now: Timestamp,
    policy: RestartPolicy,
    decision: Decision,
}

/// Decides.
pub(super) fn decide(pod: &Pod, node: &NodeFacts, seen: &Observed, now: Timestamp) -> Decision {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let policy = RestartPolicy::of(spec);
    let decision = Decision::default();
    let mut context = Context { pod, spec, node, seen, now, policy, decision };
    let deleted_at = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    context.decision.outcome = outcome(spec, policy, seen);
    if let Some(since) = seen.gone_since {
        let last = backoff::later(since, GONE_GRACE);
        context.terminate(deleted_at.map_or(last, |deadline| deadline.min(last)));
    } else if let Some(deadline) = deleted_at {
        context.terminate(deadline);
    } else if context.is_overdue() || context.decision.outcome.is_some() {
        context.finish();
    } else {
        context.run();
    }
    context.decision
}

/// How the pod ended, if it did. What was reported once is not taken back.
fn outcome(spec: &PodSpec, policy: RestartPolicy, seen: &Observed) -> Option<Outcome> {
    match seen.reported.phase.as_deref() {
        Some("Succeeded") => return Some(Outcome::Succeeded),
        Some("Failed") => return Some(Outcome::Failed),
        _ => {}
    }
    let exit_code = |container: &Container| match container.state {
        ContainerState::Exited { exit_code, .. } => Some(exit_code),
        _ => None,
    };
    let init = spec.init_containers.iter().flatten().filter(|one| !config::is_sidecar(one));
    let of_init = init.filter_map(|spec| seen.present(&spec.name).and_then(exit_code));
    if of_init.into_iter().any(|code| code != 0 && !policy.restarts(code)) {
        return Some(Outcome::Failed);
    }
    let mut codes = Vec::new();
    for container in &spec.containers {
        let code = seen.latest(&container.name).and_then(exit_code)?;
        if policy.restarts(code) {
            return None;
        }
        codes.push(code);
    }
    let all_zero = codes.iter().all(|&code| code == 0);
    (!codes.is_empty()).then_some(if all_zero { Outcome::Succeeded } else { Outcome::Failed })
}

impl Context<'_> {
    fn act(&mut self, action: Action) {
        self.decision.actions.push(action);
    }

    /// Looks again at `at`, if nothing is to be looked at before.
    fn wake(&mut self, at: Timestamp) {
        if at > self.now {
            self.decision.wake = Some(self.decision.wake.map_or(at, |wake| wake.min(at)));
        }
    }

    fn wait(&mut self, name: &str, reason: &'static str, message: Option<String>) {
        self.decision.waiting.insert(name.to_owned(), Waiting { reason, message });
    }

    /// True where nothing is under way for the object and its last failure is long enough ago.
    fn free(&mut self, object: &Object) -> bool {
        if self.seen.busy(object) {
            return false;
        }
        let Some(failure) = self.seen.failures.get(object) else { return true };
        let again = backoff::later(failure.at, backoff::call(failure.attempts));
        self.wake(again);
        again <= self.now
    }

    fn specs(&self) -> impl Iterator<Item = &Spec> + use<'_> {
        self.spec.init_containers.iter().flatten().chain(&self.spec.containers)
    }

    /// Whether the pod was to run no longer than until now (`activeDeadlineSeconds`). It has failed
    /// when nothing of it runs any more: who waits for its end may begin another then.
    fn is_overdue(&mut self) -> bool {
        let seconds = self.spec.active_deadline_seconds.and_then(|all| u64::try_from(all).ok());
        let ended = matches!(self.seen.reported.phase.as_deref(), Some("Succeeded" | "Failed"));
        let Some(seconds) = seconds.filter(|_| !ended) else { return false };
        let start = self.seen.reported.start_time.as_ref();
        let start = start.map_or(self.seen.first_seen, |time| time.0);
        let deadline = backoff::later(start, Duration::from_secs(seconds));
        self.wake(deadline);
        if deadline > self.now {
            return false;
        }
        let runs = self.running().next().is_some();
        self.decision.outcome = (!runs).then_some(Outcome::Failed);
        self.decision.why = (!runs).then_some(OVERDUE);
        true
    }

    /// The pod has no future: every container is ended by `deadline`, then its sandbox goes, and
    /// last the API is told.
    fn terminate(&mut self, deadline: Timestamp) {
        self.plan_probes(true);
        let running = self.running().count();
        for container in self.next_to_stop() {
            self.stop(&container, deadline);
        }
        // A hook of a container that ended by itself has nothing left to do.
        let busy = |name: &String| {
            self.seen.busy(&Object::Container(name.clone())) && !self.seen.in_post_start(name)
        };
        if running > 0 || self.specs().any(|spec| busy(&spec.name)) {
            return;
        }
        if let Some(sandbox) = self.seen.sandboxes.first() {
            if self.free(&Object::Sandbox) {
                self.act(Action::RemoveSandbox { id: sandbox.id.clone() });
            }
        } else if self.seen.busy(&Object::Sandbox) {
            // What is being made is removed when it is there.
        } else if self.seen.volumes_left {
            if self.free(&Object::Volumes) {
                self.act(Action::RemoveVolumes);
            }
        } else if self.seen.gone_since.is_some() {
            self.decision.over = true;
        } else if !self.seen.delete_confirmed && self.free(&Object::Pod) {
            self.act(Action::DeletePod);
        }
    }

    /// The pod has come to its end by itself: what still runs is stopped, the network is freed,
    /// and what is known is kept until the pod is deleted.
    fn finish(&mut self) {
        let deadline = backoff::later(self.now, self.grace());
        let running = self.running().count();
        for container in self.next_to_stop() {
            self.stop(&container, deadline);
        }
        if running == 0
            && let Some(sandbox) = self.seen.ready_sandbox()
            && self.free(&Object::Sandbox)
        {
            self.act(Action::StopSandbox { id: sandbox.id.clone() });
        }
    }

    fn running(&self) -> impl Iterator<Item = &Container> + use<'_> {
        let alive = self.seen.ready_sandbox().is_some();
        self.seen
            .containers
            .iter()
            .filter(move |one| alive && matches!(one.state, ContainerState::Running { .. }))
    }

    /// The running containers that are to be stopped now: sidecars only when nothing else runs, the
    /// last that was started first.
    fn next_to_stop(&self) -> Vec<Container> {
        let sidecars: Vec<&Spec> = self.specs().filter(|one| config::is_sidecar(one)).collect();
        let is_sidecar =
            |container: &Container| sidecars.iter().any(|one| one.name == container.name);
        let others: Vec<Container> =
            self.running().filter(|one| !is_sidecar(one)).cloned().collect();
        if !others.is_empty() {
            return others;
        }
        let last = sidecars
            .iter()
            .rev()
            .find_map(|spec| self.running().find(|container| container.name == spec.name).cloned());
        last.into_iter().collect()
    }

    fn grace(&self) -> Duration {
        let seconds = self.spec.termination_grace_period_seconds;
        seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(DEFAULT_GRACE, Duration::from_secs)
    }

    /// Stops a container by `deadline`; shortens a stop that is under way, and does not wait for
    /// its hook after the start, which may take longer than its grace.
    fn stop(&mut self, container: &Container, deadline: Timestamp) {
        let object = Object::Container(container.name.clone());
        let pre_stop = match self.seen.in_flight.get(&object) {
            // Its hook was begun by the stop that this one takes the place of.
            Some(InFlight::Stop { kill_at }) if *kill_at > backoff::later(deadline, SHORTER_BY) => {
                None
            }
            Some(InFlight::Stop { .. } | InFlight::Call) => return,
            None if !self.free(&object) => return,
            None | Some(InFlight::PostStart) => self.pre_stop(container).map(Box::new),
        };
        let grace = Duration::try_from(deadline.duration_since(self.now)).unwrap_or_default();
        self.act(Action::StopContainer {
            sandbox: container.sandbox.clone(),
            id: container.id.clone(),
            name: container.name.clone(),
            grace,
            kill_at: deadline,
            pre_stop,
        });
    }

    /// The pod is to run.
    fn run(&mut self) {
        let Some(sandbox) = self.sandbox() else {
            let names: Vec<String> = self.specs().map(|spec| spec.name.clone()).collect();
            let message = self.why_no_sandbox();
            for name in names {
                self.wait(&name, "ContainerCreating", message.clone());
            }
            return;
        };
        let addresses = self.node.in_order(&sandbox.addresses);
        self.plan_probes(false);
        self.forget_old();
        let (init, containers) = (self.spec.init_containers.as_deref(), &self.spec.containers);
        // Once the pod's own containers were started, a sidecar that ends keeps nobody waiting.
        let began = containers.iter().any(|spec| self.seen.present(&spec.name).is_some());
        let mut initialized = true;
        for spec in init.unwrap_or_default() {
            if config::is_sidecar(spec) {
                if initialized {
                    self.keep_running(spec, RestartPolicy::Always, &addresses);
                }
                initialized = initialized && (began || self.is_up(spec));
                continue;
            }
            let state = self.seen.present(&spec.name).map(|container| &container.state);
            if matches!(state, Some(ContainerState::Exited { exit_code: 0, .. })) {
                continue;
            }
            if initialized {
                self.keep_running(spec, self.policy, &addresses);
            }
            initialized = false;
        }
        if initialized {
            for spec in containers {
                self.keep_running(spec, self.policy, &addresses);
            }
        }
        self.refresh_volumes(&addresses);
    }

    /// What the pod refers to; has it looked for where that was not done since the last start.
    fn inputs(&mut self) -> Option<&Inputs> {
        let seen = self.seen;
        if seen.inputs.is_none() {
            self.fetch_inputs();
        }
        seen.inputs.as_ref()
    }

    fn fetch_inputs(&mut self) {
        let asked = |action: &Action| matches!(action, Action::FetchInputs(_));
        if !self.decision.actions.iter().any(asked) && self.free(&Object::Inputs) {
            let wanted = inputs::wanted(self.pod).holding(self.seen.inputs.as_ref(), self.now);
            self.act(Action::FetchInputs(Box::new(wanted)));
        }
    }

    fn sources<'s>(&self, addresses: &'s [IpAddr], inputs: &'s Inputs) -> Sources<'s>
    where
        Self: 's,
    {
        Sources { pod: self.pod, node: self.node, addresses, inputs }
    }

    /// Volumes follow their objects while containers run.
    fn refresh_volumes(&mut self, addresses: &[IpAddr]) {
        let of_pod = self.spec.volumes.as_deref().unwrap_or_default();
        if !volumes::follow_objects(of_pod) || self.running().next().is_none() {
            return;
        }
        let next = self.seen.refreshed_at.map(|at| backoff::later(at, REFRESH));
        match next {
            Some(next) if next > self.now => self.wake(next),
            _ => match &self.seen.inputs {
                Some(inputs) if backoff::later(inputs.at, REFRESH) > self.now => {
                    let plans = config::mounted_volumes(self.sources(addresses, inputs));
                    if self.free(&Object::Volumes) {
                        self.act(Action::RefreshVolumes(plans));
                    }
                }
                _ => self.fetch_inputs(),
            },
        }
    }

    /// The sandbox that runs, or the first step to one.
    fn sandbox(&mut self) -> Option<super::super::runtime::Sandbox> {
        let (last, stale) = match self.seen.sandboxes.split_last() {
            Some((last, stale)) if last.ready => (Some(last), stale),
            _ => (None, &self.seen.sandboxes[..]),
        };
        if let Some(old) = stale.first() {
            if self.free(&Object::Sandbox) {
                self.act(Action::RemoveSandbox { id: old.id.clone() });
            }
        } else if last.is_none()
            && (self.seen.network.is_ok() || config::host_network(self.pod))
            && self.free(&Object::Sandbox)
        {
            let config = config::sandbox(self.pod, self.node, self.seen.sandboxes_before);
            self.act(Action::RunSandbox(Box::new(config)));
        }
        last.cloned()
    }

    fn why_no_sandbox(&self) -> Option<String> {
        let failure = self.seen.failures.get(&Object::Sandbox);
        match (failure, &self.seen.network) {
            (_, Err(why)) if !config::host_network(self.pod) => {
                Some(format!("network not ready: {why}"))
            }
            (Some(failure), _) => Some(failure.message.clone()),
            _ => None,
        }
    }

    /// Of each name the last container and the one before it are kept.
    fn forget_old(&mut self) {
        for container in &self.seen.containers {
            let object = Object::Container(container.name.clone());
            let latest = self.seen.present(&container.name).map_or(0, |latest| latest.attempt);
            if container.attempt + 1 < latest && self.free(&object) {
                self.act(Action::RemoveContainer {
                    sandbox: container.sandbox.clone(),
                    id: container.id.clone(),
                    name: container.name.clone(),
                });
            }
        }
    }
}

/// The pod as messages name it: `name_namespace(uid)`.
fn full_name(pod: &Pod) -> String {
    let identity = config::identity(pod);
    format!("{}_{}({})", identity.name, identity.namespace, identity.uid)
}
