//! What to do about a pod. See [`super::state`].

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container as Spec, Pod, PodSpec, Probe},
    jiff::Timestamp,
};

use super::{
    super::runtime::{Container, ContainerState},
    backoff, config,
    facts::NodeFacts,
    observed::{Object, Observed, Pull},
    state::{Action, ProbeKind, ProbeTarget},
};

/// What a pod that was deleted without grace is given before it is killed, as by the kubelet.
const GONE_GRACE: Duration = Duration::from_secs(1);
/// A stop under way is made shorter only if that matters.
const SHORTER_BY: Duration = Duration::from_secs(1);
/// The grace of a pod that names none.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

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
    } else if context.decision.outcome.is_some() {
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
    let init = spec.init_containers.iter().flatten();
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

    /// The pod has no future: every container is ended by `deadline`, then its sandbox goes, and
    /// last the API is told.
    fn terminate(&mut self, deadline: Timestamp) {
        self.plan_probes(true);
        let running: Vec<Container> = self.running().cloned().collect();
        for container in &running {
            self.stop(container, deadline);
        }
        let busy = self.specs().any(|spec| self.seen.busy(&Object::Container(spec.name.clone())));
        if !running.is_empty() || busy {
            return;
        }
        if let Some(sandbox) = self.seen.sandboxes.first() {
            if self.free(&Object::Sandbox) {
                self.act(Action::RemoveSandbox { id: sandbox.id.clone() });
            }
        } else if self.seen.busy(&Object::Sandbox) {
            // What is being made is removed when it is there.
        } else if self.seen.gone_since.is_some() {
            self.decision.over = true;
        } else if !self.seen.delete_confirmed && self.free(&Object::Pod) {
            self.act(Action::DeletePod);
        }
    }

    /// The pod has come to its end by itself: what still runs is stopped, the network is freed,
    /// and what is known is kept until the pod is deleted.
    fn finish(&mut self) {
        let running: Vec<Container> = self.running().cloned().collect();
        let deadline = backoff::later(self.now, self.grace());
        for container in &running {
            self.stop(container, deadline);
        }
        if running.is_empty()
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

    fn grace(&self) -> Duration {
        let seconds = self.spec.termination_grace_period_seconds;
        seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(DEFAULT_GRACE, Duration::from_secs)
    }

    /// Stops a container by `deadline`; shortens a stop that is under way.
    fn stop(&mut self, container: &Container, deadline: Timestamp) {
        let object = Object::Container(container.name.clone());
        match self.seen.in_flight.get(&object) {
            Some(call) => match call.kill_at {
                Some(kill_at) if kill_at > backoff::later(deadline, SHORTER_BY) => {}
                _ => return,
            },
            None if !self.free(&object) => return,
            None => {}
        }
        let grace = Duration::try_from(deadline.duration_since(self.now)).unwrap_or_default();
        self.act(Action::StopContainer {
            sandbox: container.sandbox.clone(),
            id: container.id.clone(),
            name: container.name.clone(),
            grace,
            kill_at: deadline,
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
        let mut initialized = true;
        for spec in init.unwrap_or_default() {
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

    /// Sees to it that a container runs, or has run to its end.
    fn keep_running(&mut self, spec: &Spec, policy: RestartPolicy, addresses: &[IpAddr]) {
        let Some(latest) = self.seen.latest(&spec.name) else {
            return self.start(spec, addresses, 0, Duration::ZERO);
        };
        match &latest.state {
            // A crash between the two calls: the second is made now.
            ContainerState::Created => {
                self.start(spec, addresses, latest.attempt, latest.backoff);
            }
            ContainerState::Running { .. } => {
                if let Some(probe) = self.must_restart(spec, latest) {
                    let grace = probe.termination_grace_period_seconds;
                    let grace = grace.and_then(|seconds| u64::try_from(seconds).ok());
                    let grace = grace.map_or_else(|| self.grace(), Duration::from_secs);
                    self.stop(latest, backoff::later(self.now, grace));
                }
            }
            ContainerState::Exited { started_at, finished_at, exit_code, .. } => {
                // An init container is run again in a new sandbox, whatever its end before.
                let of_present = self.seen.present(&spec.name).is_some();
                let is_init = !self.spec.containers.iter().any(|one| one.name == spec.name);
                if !policy.restarts(*exit_code) && (of_present || !is_init) {
                    return;
                }
                let restart = backoff::restart(*started_at, *finished_at, latest.backoff);
                if restart.at > self.now {
                    self.wake(restart.at);
                    let message = format!(
                        "back-off {} restarting failed container={} pod={}",
                        backoff::text(restart.wait),
                        spec.name,
                        full_name(self.pod)
                    );
                    return self.wait(&spec.name, "CrashLoopBackOff", Some(message));
                }
                self.start(spec, addresses, latest.attempt + 1, restart.next_wait);
            }
        }
    }

    /// The probe that says that the container has to be restarted.
    fn must_restart<'s>(&self, spec: &'s Spec, container: &Container) -> Option<&'s Probe> {
        let results = self.seen.probes_of(container);
        let startup = spec.startup_probe.as_ref().filter(|_| results.startup == Some(false));
        let liveness = spec.liveness_probe.as_ref().filter(|_| results.liveness == Some(false));
        startup.or(liveness)
    }

    fn start(&mut self, spec: &Spec, addresses: &[IpAddr], attempt: u32, next_wait: Duration) {
        let name = spec.name.as_str();
        if !self.image_is_there(spec) {
            return;
        }
        let made = config::container(self.pod, self.node, spec, addresses, attempt, next_wait);
        let config = match made {
            Ok(config) => config,
            Err(message) => {
                return self.wait(name, "CreateContainerConfigError", Some(message));
            }
        };
        let object = Object::Container(name.to_owned());
        let sandbox = self.seen.ready_sandbox().map(|sandbox| sandbox.id.clone());
        if let (true, Some(sandbox)) = (self.free(&object), sandbox) {
            self.act(Action::StartContainer { sandbox, config: Box::new(config) });
        } else if let Some(failure) = self.seen.failures.get(&object) {
            self.wait(name, "RunContainerError", Some(failure.message.clone()));
        }
    }

    /// True where the container's image is there; else has it pulled, or waits for the next try.
    fn image_is_there(&mut self, spec: &Spec) -> bool {
        let request = config::image_request(spec);
        match self.seen.pull(&request) {
            Some(Pull::Present(_)) => return true,
            Some(Pull::Failed(failure)) => {
                let wait = backoff::pull(failure.attempts);
                let (again, half) =
                    (backoff::later(failure.at, wait), backoff::later(failure.at, wait / 2));
                // The fresh failure is shown for a while, then that the next try is awaited.
                let message = failure.message.clone();
                if self.now < half {
                    self.wake(half);
                    self.wait(&spec.name, "ErrImagePull", Some(message));
                } else {
                    let message = format!(
                        "Back-off pulling image {:?}: ErrImagePull: {message}",
                        request.reference
                    );
                    self.wait(&spec.name, "ImagePullBackOff", Some(message));
                }
                if again > self.now {
                    self.wake(again);
                    return false;
                }
            }
            None => {}
        }
        let asked = Action::PullImage(request);
        if !self.seen.busy(&Object::Image) && !self.decision.actions.contains(&asked) {
            self.act(asked);
        }
        false
    }

    /// The probes to run: those of running containers; only readiness while the pod terminates;
    /// only startup until that succeeded.
    fn plan_probes(&mut self, terminating: bool) {
        let running: Vec<Container> = self.running().cloned().collect();
        for container in running {
            let Some(spec) = self.spec.containers.iter().find(|one| one.name == container.name)
            else {
                continue;
            };
            let results = self.seen.probes_of(&container);
            let started = spec.startup_probe.is_none() || results.startup == Some(true);
            for (kind, probe, wanted) in [
                (ProbeKind::Startup, &spec.startup_probe, !started && !terminating),
                (ProbeKind::Liveness, &spec.liveness_probe, started && !terminating),
                (ProbeKind::Readiness, &spec.readiness_probe, started),
            ] {
                if let (Some(probe), true) = (probe, wanted) {
                    let target = self.probe_target(spec, &container, kind, probe);
                    self.decision.probes.extend(target);
                }
            }
        }
    }

    fn probe_target(
        &self,
        spec: &Spec,
        container: &Container,
        kind: ProbeKind,
        probe: &Probe,
    ) -> Option<ProbeTarget> {
        let ContainerState::Running { started_at } = container.state else { return None };
        let sandbox = self.seen.ready_sandbox()?;
        let addresses = if config::host_network(self.pod) {
            self.node.addresses.clone()
        } else {
            self.node.in_order(&sandbox.addresses)
        };
        let ports = spec.ports.iter().flatten();
        let named = |port: &k8s_openapi::api::core::v1::ContainerPort| {
            Some((port.name.clone()?, u16::try_from(port.container_port).ok()?))
        };
        Some(ProbeTarget {
            container: container.id.clone(),
            sandbox: sandbox.id.clone(),
            kind,
            probe: probe.clone(),
            address: addresses.first().copied(),
            ports: ports.filter_map(named).collect(),
            started_at,
        })
    }
}

/// The pod as messages name it: `name_namespace(uid)`.
fn full_name(pod: &Pod) -> String {
    let identity = config::identity(pod);
    format!("{}_{}({})", identity.name, identity.namespace, identity.uid)
}
