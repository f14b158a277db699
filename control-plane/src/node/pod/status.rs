//! What is reported of a pod.

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, HostIP, Pod, PodIP, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

use super::{
    conditions::{self, Basis},
    config,
    container_status::{self, Role},
    decide::{Decision, Outcome, RestartPolicy},
    facts::NodeFacts,
    observed::Observed,
};

/// The status. The QoS class is the server's.
pub(super) fn build(
    pod: &Pod,
    node: &NodeFacts,
    seen: &Observed,
    decision: &Decision,
    now: Timestamp,
) -> PodStatus {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let init: Vec<ContainerStatus> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|one| container_status::build(one, Role::Init, node, seen, decision))
        .collect();
    let incomplete = incomplete(spec, seen, &init);
    let blocked = !incomplete.is_empty();
    let containers: Vec<ContainerStatus> = spec
        .containers
        .iter()
        .map(|one| container_status::build(one, Role::Main { blocked }, node, seen, decision))
        .collect();
    let outcome = decision.outcome.or_else(|| ended_by_deletion(pod, seen, &containers));
    let is_sidecar = |status: &&ContainerStatus| {
        let mut specs = spec.init_containers.iter().flatten();
        specs.any(|one| one.name == status.name && config::is_sidecar(one))
    };
    let sidecars: Vec<ContainerStatus> = init.iter().filter(is_sidecar).cloned().collect();
    let basis = Basis {
        pod,
        seen,
        outcome,
        incomplete: &incomplete,
        sidecars: &sidecars,
        containers: &containers,
    };
    let conditions = conditions::build(&basis, now);
    let reported = &seen.reported;
    let start_time = reported.start_time.clone().unwrap_or(Time(seen.first_seen));
    let (reason, message) =
        decision.why.map(|(reason, message)| (reason.into(), message.into())).unzip();
    let address = |address: &std::net::IpAddr| address.to_string();
    let pod_ips = pod_ips(pod, node, seen);
    PodStatus {
        phase: Some(phase(spec, outcome, blocked, &containers).to_owned()),
        conditions: Some(conditions),
        host_ip: node.addresses.first().map(address),
        host_ips: Some(node.addresses.iter().map(|ip| HostIP { ip: address(ip) }).collect()),
        pod_ip: pod_ips.first().map(|one| one.ip.clone()),
        pod_ips: (!pod_ips.is_empty()).then_some(pod_ips),
        start_time: Some(start_time),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(containers),
        observed_generation: pod.metadata.generation,
        reason: reason.or_else(|| reported.reason.clone()),
        message: message.or_else(|| reported.message.clone()),
        ..PodStatus::default()
    }
}

/// The init containers that the pod's own still wait for. A sidecar is waited for until it has come
/// up, and once they were started no more.
fn incomplete<'a>(spec: &'a PodSpec, seen: &Observed, init: &[ContainerStatus]) -> Vec<&'a str> {
    let began = spec.containers.iter().any(|one| seen.present(&one.name).is_some());
    let waits = |(one, status): (&'a Container, &ContainerStatus)| {
        let done = if config::is_sidecar(one) {
            began || status.started == Some(true)
        } else {
            status.ready
        };
        (!done).then_some(one.name.as_str())
    };
    spec.init_containers.iter().flatten().zip(init).filter_map(waits).collect()
}

/// The addresses of the sandbox; without one, what was reported last.
fn pod_ips(pod: &Pod, node: &NodeFacts, seen: &Observed) -> Vec<PodIP> {
    let addresses = match seen.ready_sandbox() {
        Some(_) if config::host_network(pod) => node.addresses.clone(),
        Some(sandbox) => node.in_order(&sandbox.addresses),
        None => return seen.reported.pod_ips.clone().unwrap_or_default(),
    };
    addresses.iter().map(|address| PodIP { ip: address.to_string() }).collect()
}

/// A deleted pod whose containers have all ended has come to an end, whatever its policy.
fn ended_by_deletion(
    pod: &Pod,
    seen: &Observed,
    containers: &[ContainerStatus],
) -> Option<Outcome> {
    if pod.metadata.deletion_timestamp.is_none() && seen.gone_since.is_none() {
        return None;
    }
    let mut outcome = Outcome::Succeeded;
    for container in containers {
        let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref())?;
        if ended.exit_code != 0 {
            outcome = Outcome::Failed;
        }
    }
    Some(outcome)
}

/// The phase, by what the containers do.
fn phase(
    spec: &PodSpec,
    outcome: Option<Outcome>,
    initializing: bool,
    containers: &[ContainerStatus],
) -> &'static str {
    match outcome {
        Some(Outcome::Succeeded) => return "Succeeded",
        Some(Outcome::Failed) => return "Failed",
        None => {}
    }
    let states = containers.iter().map(|one| (one.state.as_ref(), one.last_state.as_ref()));
    let (mut running, mut stopped, mut waiting) = (0, 0, 0);
    for (state, last) in states {
        let is_running = state.is_some_and(|state| state.running.is_some());
        let ended = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
            state.is_some_and(|state| state.terminated.is_some())
        };
        if is_running {
            running += 1;
        } else if ended(state) || ended(last) {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    let restarts = RestartPolicy::of(spec) != RestartPolicy::Never;
    if initializing || waiting > 0 {
        "Pending"
    } else if running > 0 || (stopped > 0 && restarts) {
        "Running"
    } else {
        "Pending"
    }
}
