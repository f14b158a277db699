//! A deployment with its replica sets, as the strategies work on them.
//!
//! The sets are working copies: a strategy sets replicas and annotations, and [`Family::writes`]
//! tells what has become different.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt;

use super::{revision, template};
use crate::controllers::share::{self, Round};
use crate::controllers::write::Write;

/// Annotation with the deployment's replicas when a set was last scaled.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation with the most pods that the deployment could have when a set was last scaled.
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

/// A replica set under work.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) set: ReplicaSet,
    /// The set as it was seen; `None` if it is yet to be created.
    seen: Option<Arc<ReplicaSet>>,
}

/// A deployment and its sets.
#[derive(Debug, Clone)]
pub(super) struct Family<'a> {
    pub(super) deployment: &'a Deployment,
    /// The set of the present template.
    pub(super) new: Option<Member>,
    /// All others, oldest first.
    pub(super) old: Vec<Member>,
}

/// How many pods more and fewer than wanted a rolling update may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leeway {
    pub(super) surge: i32,
    pub(super) unavailable: i32,
}

impl Member {
    /// `spec.replicas`.
    pub(super) fn replicas(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    /// `status.replicas`.
    pub(super) fn actual(&self) -> i32 {
        self.set.status.as_ref().map_or(0, |status| status.replicas)
    }

    /// `status.readyReplicas`.
    pub(super) fn ready(&self) -> i32 {
        self.set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
    }

    /// `status.availableReplicas`.
    pub(super) fn available(&self) -> i32 {
        self.set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    /// The deployment's replicas when the set was last scaled.
    pub(super) fn desired_before(&self) -> Option<i32> {
        self.set.annotations().get(DESIRED)?.parse().ok()
    }

    /// The deployment's largest number of pods when the set was last scaled.
    pub(super) fn maximum_before(&self) -> Option<i32> {
        self.set.annotations().get(MAXIMUM)?.parse().ok()
    }

    /// Whether the set is yet to be created.
    pub(super) fn is_created_now(&self) -> bool {
        self.seen.is_none()
    }

    fn scale(&mut self, replicas: i32, desired: i32, maximum: i32) {
        self.set.spec.get_or_insert_default().replicas = Some(replicas);
        let annotations = self.set.annotations_mut();
        annotations.insert(DESIRED.to_owned(), desired.to_string());
        annotations.insert(MAXIMUM.to_owned(), maximum.to_string());
    }

    fn writes(&self, deployment: &Deployment) -> Vec<Write> {
        let before = match &self.seen {
            None => 0,
            Some(seen) => seen.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        };
        let write = match &self.seen {
            None => Some(Write::Create(self.set.clone().into())),
            Some(seen) if **seen != self.set => Some(Write::Replace(self.set.clone().into())),
            Some(_) => None,
        };
        let after = self.replicas();
        let told = (before != after).then(|| {
            let direction = if after > before { "up" } else { "down" };
            let name = self.set.name_any();
            let message = format!("Scaled {direction} replica set {name} from {before} to {after}");
            Write::tell(deployment, "deployment-controller", "ScalingReplicaSet", message)
        });
        write.into_iter().chain(told).collect()
    }
}

impl<'a> Family<'a> {
    /// Sorts the deployment's sets into the one of the present template and the others.
    pub(super) fn new(deployment: &'a Deployment, sets: &[Arc<ReplicaSet>]) -> Self {
        let mut sets: Vec<&Arc<ReplicaSet>> = sets.iter().collect();
        let age = |set: &Arc<ReplicaSet>| (set.creation_timestamp(), set.name_any());
        sets.sort_by_key(|set| age(set));
        // Of several sets of one template the oldest is kept: all controllers agree on it.
        let current = sets.iter().position(|set| template::is_current(set, deployment));
        let current = current.map(|index| sets.remove(index));
        let member =
            |set: &Arc<ReplicaSet>| Member { set: (**set).clone(), seen: Some(Arc::clone(set)) };
        Self { deployment, new: current.map(member), old: sets.into_iter().map(member).collect() }
    }

    /// The new set, made if there is none. Its revision follows the highest of the old ones.
    pub(super) fn ensure_new(&mut self) {
        let revision = revision::next(self.old.iter().map(|member| &member.set));
        let created = self.new.is_none();
        let member = self.new.get_or_insert_with(|| Member {
            set: template::new_replica_set(self.deployment),
            seen: None,
        });
        revision::annotate(&mut member.set, self.deployment, revision);
        let min_ready = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        member.set.spec.get_or_insert_default().min_ready_seconds = min_ready;
        if created {
            let replicas = super::rolling::new_replicas(self);
            self.scale_new(replicas);
        }
    }

    /// `spec.replicas` of the deployment.
    pub(super) fn wanted(&self) -> i32 {
        self.deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    /// Whether pods are replaced step by step; else all old ones go first.
    pub(super) fn is_rolling(&self) -> bool {
        let strategy = self.deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("Recreate")
    }

    /// `maxSurge` and `maxUnavailable` in pods. Percentages of surge are rounded up, those of
    /// unavailability down; if both come to zero, one pod may be unavailable, or nothing would
    /// ever move.
    pub(super) fn leeway(&self) -> Leeway {
        let wanted = self.wanted();
        if !self.is_rolling() {
            return Leeway { surge: 0, unavailable: 0 };
        }
        let quarter = |round| share::percent(25, wanted, round);
        let strategy = self.deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let surge = share::of(surge, wanted, Round::Up).unwrap_or_else(|| quarter(Round::Up));
        let unavailable =
            share::of(unavailable, wanted, Round::Down).unwrap_or_else(|| quarter(Round::Down));
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Leeway { surge, unavailable: unavailable.min(wanted) }
    }

    /// All sets, the new one last.
    pub(super) fn all(&self) -> impl Iterator<Item = &Member> {
        self.old.iter().chain(&self.new)
    }

    /// The sum of a number over all sets.
    pub(super) fn sum(&self, number: impl Fn(&Member) -> i32) -> i32 {
        self.all().map(number).sum()
    }

    /// Scales the new set.
    pub(super) fn scale_new(&mut self, replicas: i32) {
        let (desired, maximum) = (self.wanted(), self.maximum());
        if let Some(new) = &mut self.new {
            new.scale(replicas, desired, maximum);
        }
    }

    /// Scales the old set of that index.
    pub(super) fn scale_old(&mut self, index: usize, replicas: i32) {
        let (desired, maximum) = (self.wanted(), self.maximum());
        if let Some(old) = self.old.get_mut(index) {
            old.scale(replicas, desired, maximum);
        }
    }

    /// The largest number of pods that the deployment may have.
    pub(super) fn maximum(&self) -> i32 {
        self.wanted().saturating_add(self.leeway().surge)
    }

    /// What has become different from what was seen. The new set is written first, so that a
    /// surge is under way before anything goes.
    pub(super) fn writes(&self) -> Vec<Write> {
        let members = self.new.iter().chain(&self.old);
        members.flat_map(|member| member.writes(self.deployment)).collect()
    }
}
