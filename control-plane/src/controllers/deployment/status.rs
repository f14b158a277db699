//! The status of a deployment: counts and the conditions Available, Progressing, ReplicaFailure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::family::{Family, Member};
use crate::controllers::engine::Failure;
use crate::controllers::pod_facts::whole_seconds;
use crate::controllers::write::Write;

/// `progressDeadlineSeconds` that means none.
const NO_DEADLINE: i32 = i32::MAX;

/// The status to write, if it differs, and when the progress deadline has to be looked at.
pub(super) fn write(
    family: &Family<'_>,
    failure: Option<&Failure>,
    rolling_out: bool,
    now: Timestamp,
) -> (Option<Write>, Option<Duration>) {
    let before = family.deployment.status.clone().unwrap_or_default();
    let mut after = counts(family, &before);
    let mut conditions = Conditions { all: before.conditions.clone().unwrap_or_default(), now };
    conditions.availability(family, &after);
    if rolling_out {
        conditions.progress(family, &before, &after, failure);
    } else {
        conditions.pause(family.deployment);
    }
    conditions.replica_failure(family);
    let deadline = conditions.time_to_deadline(family.deployment, rolling_out);
    after.conditions = (!conditions.all.is_empty()).then_some(conditions.all);
    if family.deployment.status.as_ref() == Some(&after) {
        return (None, deadline);
    }
    let mut deployment = family.deployment.clone();
    deployment.status = Some(after);
    (Some(Write::replace_status(deployment)), deadline)
}

/// Whether all replicas are of the present template, available, and no other is left.
pub(super) fn is_complete(family: &Family<'_>) -> bool {
    complete(family, &counts(family, &DeploymentStatus::default()))
}

fn complete(family: &Family<'_>, status: &DeploymentStatus) -> bool {
    let all = |count: Option<i32>| count.unwrap_or(0) == family.wanted();
    all(status.updated_replicas) && all(status.replicas) && all(status.available_replicas)
}

fn counts(family: &Family<'_>, before: &DeploymentStatus) -> DeploymentStatus {
    let available = family.sum(Member::available);
    let terminating = |member: &Member| {
        member.set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0)
    };
    DeploymentStatus {
        observed_generation: family.deployment.metadata.generation,
        replicas: count(family.sum(Member::actual)),
        updated_replicas: count(family.new.as_ref().map_or(0, Member::actual)),
        ready_replicas: count(family.sum(Member::ready)),
        available_replicas: count(available),
        unavailable_replicas: count((family.sum(Member::replicas) - available).max(0)),
        terminating_replicas: Some(family.sum(terminating)),
        collision_count: before.collision_count,
        conditions: None,
    }
}

/// A count as the API has it: none is left out.
fn count(replicas: i32) -> Option<i32> {
    (replicas != 0).then_some(replicas)
}

/// The deadline of a deployment for the next sign of progress.
fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds);
    let seconds = seconds.unwrap_or(600);
    (seconds != NO_DEADLINE).then(|| SignedDuration::from_secs(i64::from(seconds)))
}

struct Conditions {
    all: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.all.iter().find(|condition| condition.type_ == type_)
    }

    fn reason(&self, type_: &str) -> Option<&str> {
        self.get(type_).and_then(|condition| condition.reason.as_deref())
    }

    /// Sets a condition, unless status and reason are the same. The transition time changes with
    /// the status only.
    fn set(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let known = self.get(type_);
        if known
            .is_some_and(|known| known.status == status && known.reason.as_deref() == Some(reason))
        {
            return;
        }
        self.force(type_, status, reason, message);
    }

    fn force(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let now = Some(Time(whole_seconds(self.now)));
        let known = self.get(type_).filter(|known| known.status == status);
        let since = known.and_then(|known| known.last_transition_time.clone());
        let condition = DeploymentCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: now.clone(),
            last_transition_time: since.or(now),
        };
        self.all.retain(|known| known.type_ != type_);
        self.all.push(condition);
    }

    fn availability(&mut self, family: &Family<'_>, status: &DeploymentStatus) {
        let minimum = family.wanted() - family.leeway().unavailable;
        if status.available_replicas.unwrap_or(0) >= minimum {
            let message = "Deployment has minimum availability.";
            self.set("Available", "True", "MinimumReplicasAvailable", message);
        } else {
            let message = "Deployment does not have minimum availability.";
            self.set("Available", "False", "MinimumReplicasUnavailable", message);
        }
    }

    /// What a pause, or its end, does to Progressing. A deployment that has timed out stays so.
    fn pause(&mut self, deployment: &Deployment) {
        let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        if deadline(deployment).is_none()
            || self.reason("Progressing") == Some("ProgressDeadlineExceeded")
        {
            return;
        }
        if paused {
            self.set("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused");
        } else if self.reason("Progressing") == Some("DeploymentPaused") {
            self.set("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed");
        }
    }

    fn progress(
        &mut self,
        family: &Family<'_>,
        before: &DeploymentStatus,
        after: &DeploymentStatus,
        failure: Option<&Failure>,
    ) {
        let Some(deadline) = deadline(family.deployment) else {
            self.all.retain(|condition| condition.type_ != "Progressing");
            return;
        };
        self.pause(family.deployment);
        let subject = match &family.new {
            Some(new) => format!("ReplicaSet {:?}", new.set.name_any()),
            None => format!("Deployment {:?}", family.deployment.name_any()),
        };
        let created = family.new.as_ref().filter(|new| new.is_created_now());
        if let (Some(new), None) = (created, failure) {
            let message = format!("Created new replica set {:?}", new.set.name_any());
            self.force("Progressing", "True", "NewReplicaSetCreated", &message);
            return;
        }
        let completed_before = after.replicas == after.updated_replicas
            && self.reason("Progressing") == Some("NewReplicaSetAvailable");
        if completed_before {
            return;
        }
        if complete(family, after) {
            let message = format!("{subject} has successfully progressed.");
            self.set("Progressing", "True", "NewReplicaSetAvailable", &message);
        } else if let Some(failure) = failure.filter(|failure| failure.verb == "create") {
            self.set("Progressing", "False", "ReplicaSetCreateError", &failure.message);
        } else if self.get("Progressing").is_none() || is_progress(before, after) {
            // Forced: the time of the update is what the deadline counts from.
            let message = format!("{subject} is progressing.");
            self.force("Progressing", "True", "ReplicaSetUpdated", &message);
        } else if self.is_late(deadline) {
            let message = format!("{subject} has timed out progressing.");
            self.set("Progressing", "False", "ProgressDeadlineExceeded", &message);
        }
    }

    fn is_late(&self, deadline: SignedDuration) -> bool {
        self.left(deadline).is_some_and(|left| left.is_zero() || left.is_negative())
    }

    /// The time from now to the deadline, counted from the last sign of progress.
    fn left(&self, deadline: SignedDuration) -> Option<SignedDuration> {
        let progressing = self.get("Progressing")?;
        let from = progressing.last_update_time.as_ref()?.0;
        match progressing.reason.as_deref() {
            Some("NewReplicaSetAvailable" | "DeploymentPaused") => None,
            _ => Some(deadline - self.now.duration_since(from)),
        }
    }

    fn time_to_deadline(&self, deployment: &Deployment, rolling_out: bool) -> Option<Duration> {
        if !rolling_out || self.reason("Progressing") == Some("ProgressDeadlineExceeded") {
            return None;
        }
        let left = Duration::try_from(self.left(deadline(deployment)?)?).unwrap_or(Duration::ZERO);
        // A little later, so that the clock is past the deadline and not just before it.
        Some(left + Duration::from_secs(1))
    }

    /// The new set's ReplicaFailure, or that of the first old one that has it.
    fn replica_failure(&mut self, family: &Family<'_>) {
        let failure = family.new.iter().chain(&family.old).find_map(|member| {
            let conditions = member.set.status.as_ref()?.conditions.as_deref()?;
            conditions.iter().find(|condition| condition.type_ == "ReplicaFailure")
        });
        match failure {
            None => self.all.retain(|condition| condition.type_ != "ReplicaFailure"),
            Some(failure) => {
                let reason = failure.reason.as_deref().unwrap_or_default();
                let message = failure.message.as_deref().unwrap_or_default();
                self.set("ReplicaFailure", &failure.status, reason, message);
            }
        }
    }
}

/// Whether something has moved: more updated, ready or available pods, or fewer old ones.
fn is_progress(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let old = |status: &DeploymentStatus| {
        status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
    };
    after.updated_replicas.unwrap_or(0) > before.updated_replicas.unwrap_or(0)
        || old(after) < old(before)
        || after.ready_replicas.unwrap_or(0) > before.ready_replicas.unwrap_or(0)
        || after.available_replicas.unwrap_or(0) > before.available_replicas.unwrap_or(0)
}
