//! The status of a container.

use k8s_openapi::{
    api::core::v1::{
        Container as Spec, ContainerState as ApiState, ContainerStateRunning,
        ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    super::runtime::{Container, ContainerState},
    config,
    decide::{Decision, Waiting},
    facts::NodeFacts,
    observed::{Observed, Pull, STATUS_UNKNOWN},
};

/// Which of a pod's lists a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `initContainers`.
    Init,
    /// `containers`; `blocked` while init containers have work to do.
    Main {
        /// See above.
        blocked: bool,
    },
}

/// The status of a container.
pub(super) fn build(
    spec: &Spec,
    role: Role,
    node: &NodeFacts,
    seen: &Observed,
    decision: &Decision,
) -> ContainerStatus {
    let latest = seen.latest(&spec.name);
    let (state, last_state) = states(spec, role, node, seen, decision);
    let started = latest.is_some_and(|latest| started(spec, latest, seen));
    let ready = match role {
        // Done in a sandbox that is gone does not count, but for a pod that is at its end.
        Role::Init if !config::is_sidecar(spec) => {
            let at_end = seen.ready_sandbox().is_none();
            let done = seen.present(&spec.name).or(latest.filter(|_| at_end));
            done.is_some_and(|one| matches!(one.state, ContainerState::Exited { exit_code: 0, .. }))
        }
        Role::Init | Role::Main { .. } => {
            let readiness = latest.and_then(|latest| seen.probes_of(latest).readiness);
            started && (spec.readiness_probe.is_none() || readiness == Some(true))
        }
    };
    let image_id = match seen.pull(&config::image_request(spec)) {
        Some(Pull::Present(image)) => image.id.clone(),
        _ => String::new(),
    };
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        image_id,
        container_id: latest.map(|latest| container_id(node, latest)),
        restart_count: latest.map_or(0, |latest| i32::try_from(latest.attempt).unwrap_or(i32::MAX)),
        ready,
        started: Some(started),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

/// It runs, and has come up if there is a probe for that.
fn started(spec: &Spec, container: &Container, seen: &Observed) -> bool {
    matches!(container.state, ContainerState::Running { .. })
        && (spec.startup_probe.is_none() || seen.probes_of(container).startup == Some(true))
}

fn container_id(node: &NodeFacts, container: &Container) -> String {
    format!("{}://{}", node.runtime, container.id)
}

/// `state` and `lastState`.
fn states(
    spec: &Spec,
    role: Role,
    node: &NodeFacts,
    seen: &Observed,
    decision: &Decision,
) -> (ApiState, Option<ApiState>) {
    let before = || {
        let before = seen.before_latest(&spec.name)?;
        ended(node, seen, before)
    };
    let waiting = decision.waiting.get(&spec.name);
    match (seen.latest(&spec.name), waiting) {
        (Some(latest), _) if matches!(latest.state, ContainerState::Running { .. }) => {
            let ContainerState::Running { started_at } = latest.state else {
                return (ApiState::default(), None);
            };
            let running = ContainerStateRunning { started_at: Some(Time(started_at)) };
            (ApiState { running: Some(running), ..ApiState::default() }, before())
        }
        (Some(latest), Some(waiting)) => (wait(waiting), ended(node, seen, latest).or_else(before)),
        (Some(latest), None) => match ended(node, seen, latest) {
            Some(state) => (state, before()),
            None => (wait(&default_waiting(role)), before()),
        },
        (None, Some(waiting)) => (wait(waiting), None),
        (None, None) => (wait(&default_waiting(role)), None),
    }
}

fn default_waiting(role: Role) -> Waiting {
    let reason = match role {
        Role::Main { blocked: false } => "ContainerCreating",
        Role::Main { blocked: true } | Role::Init => "PodInitializing",
    };
    Waiting { reason, message: None }
}

fn wait(waiting: &Waiting) -> ApiState {
    let waiting = ContainerStateWaiting {
        reason: Some(waiting.reason.to_owned()),
        message: waiting.message.clone(),
    };
    ApiState { waiting: Some(waiting), ..ApiState::default() }
}

/// The end of a container; `None` where it has not ended.
fn ended(node: &NodeFacts, seen: &Observed, container: &Container) -> Option<ApiState> {
    let ContainerState::Exited { started_at, finished_at, exit_code, reason, message } =
        &container.state
    else {
        return None;
    };
    let container_id = container_id(node, container);
    if reason.as_deref() == Some(STATUS_UNKNOWN)
        && let Some(known) = reported_end(&seen.reported, &container_id)
    {
        return Some(known);
    }
    let by_code = if *exit_code == 0 { "Completed" } else { "Error" };
    let terminated = ContainerStateTerminated {
        container_id: Some(container_id),
        exit_code: *exit_code,
        reason: Some(reason.clone().unwrap_or_else(|| by_code.to_owned())),
        message: message.clone(),
        started_at: Some(Time(*started_at)),
        finished_at: Some(Time(*finished_at)),
        ..ContainerStateTerminated::default()
    };
    Some(ApiState { terminated: Some(terminated), ..ApiState::default() })
}

/// The end of this very container, where it was reported while it was still known.
fn reported_end(reported: &PodStatus, container_id: &str) -> Option<ApiState> {
    let statuses = reported.init_container_statuses.iter().chain(&reported.container_statuses);
    let of_it = |state: &&ApiState| {
        let ended = state.terminated.as_ref();
        ended.and_then(|ended| ended.container_id.as_deref()) == Some(container_id)
    };
    statuses
        .flatten()
        .flat_map(|status| [status.state.as_ref(), status.last_state.as_ref()])
        .flatten()
        .find(of_it)
        .cloned()
}
