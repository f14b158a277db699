//! A pod's conditions.

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

use super::{decide::Outcome, observed::Observed};

/// A condition without its times.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

/// What the conditions follow from.
pub(super) struct Basis<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What is seen of it.
    pub seen: &'a Observed,
    /// How it ended, if it did.
    pub outcome: Option<Outcome>,
    /// The names of the init containers that others wait for.
    pub incomplete: &'a [&'a str],
    /// The statuses of its sidecars.
    pub sidecars: &'a [ContainerStatus],
    /// The statuses of its containers.
    pub containers: &'a [ContainerStatus],
}

/// The conditions: ours in Kubernetes' order, then those of others as they were reported.
pub(super) fn build(basis: &Basis<'_>, now: Timestamp) -> Vec<PodCondition> {
    let reported = basis.seen.reported.conditions.clone().unwrap_or_default();
    let generation = basis.pod.metadata.generation;
    let containers_ready = containers_ready(basis);
    let ready = ready(basis, &containers_ready, &reported);
    let ours = [sandbox_ready(basis), initialized(basis), ready, containers_ready, scheduled()];
    let mut conditions: Vec<PodCondition> =
        ours.into_iter().map(|verdict| dated(verdict, &reported, generation, now)).collect();
    for other in reported {
        match conditions.iter_mut().find(|one| one.type_ == other.type_) {
            // The scheduler's word on it is kept.
            Some(own) if other.type_ == "PodScheduled" && other.status == "True" => *own = other,
            Some(_) => {}
            None => conditions.push(other),
        }
    }
    conditions
}

fn dated(
    verdict: Verdict,
    reported: &[PodCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = reported.iter().find(|one| one.type_ == verdict.kind && one.status == status);
    let since = before.and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(since.unwrap_or(Time(now))),
        observed_generation: generation,
        ..PodCondition::default()
    }
}

fn holds(kind: &'static str) -> Verdict {
    Verdict { kind, holds: true, reason: None, message: None }
}

fn fails(kind: &'static str, reason: &'static str, message: Option<String>) -> Verdict {
    Verdict { kind, holds: false, reason: Some(reason), message }
}

fn scheduled() -> Verdict {
    holds("PodScheduled")
}

fn sandbox_ready(basis: &Basis<'_>) -> Verdict {
    let holds = basis.seen.ready_sandbox().is_some();
    Verdict { holds, ..self::holds("PodReadyToStartContainers") }
}

fn initialized(basis: &Basis<'_>) -> Verdict {
    let kind = "Initialized";
    if basis.outcome == Some(Outcome::Succeeded) {
        return Verdict { reason: Some("PodCompleted"), ..holds(kind) };
    }
    if basis.incomplete.is_empty() {
        return holds(kind);
    }
    let message = format!("containers with incomplete status: [{}]", basis.incomplete.join(" "));
    fails(kind, "ContainersNotInitialized", Some(message))
}

fn containers_ready(basis: &Basis<'_>) -> Verdict {
    let kind = "ContainersReady";
    match basis.outcome {
        Some(Outcome::Succeeded) => return fails(kind, "PodCompleted", None),
        Some(Outcome::Failed) => return fails(kind, "PodFailed", None),
        None => {}
    }
    let all = basis.sidecars.iter().chain(basis.containers);
    let unready: Vec<&str> = all.filter(|one| !one.ready).map(|one| one.name.as_str()).collect();
    if unready.is_empty() {
        return holds(kind);
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    fails(kind, "ContainersNotReady", Some(message))
}

/// As the containers, and every readiness gate.
fn ready(basis: &Basis<'_>, containers: &Verdict, reported: &[PodCondition]) -> Verdict {
    let kind = "Ready";
    if !containers.holds {
        return fails(
            kind,
            containers.reason.unwrap_or("ContainersNotReady"),
            containers.message.clone(),
        );
    }
    let gates = basis.pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
    let complaint = |kind: &str| match reported.iter().find(|one| one.type_ == kind) {
        None => {
            Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist."))
        }
        Some(condition) if condition.status != "True" => Some(format!(
            "the status of pod readiness gate {kind:?} is not \"True\", but {}",
            condition.status
        )),
        Some(_) => None,
    };
    let complaints: Vec<String> =
        gates.into_iter().flatten().filter_map(|gate| complaint(&gate.condition_type)).collect();
    if complaints.is_empty() {
        return holds(kind);
    }
    fails(kind, "ReadinessGatesNotReady", Some(complaints.join(", ")))
}
