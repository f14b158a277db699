//! The next step of a daemon set: which pods are made and which go, as node names and pods.
//!
//! First every node gets what it should have ([`manage`]); when they all have, the pods of old
//! templates are replaced ([`roll`]), as many at a time as the set allows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::eligible::Fit;
use super::history::HASH_LABEL;
use crate::controllers::pod_facts::{self, Availability};
use crate::controllers::share::{self, Round};

/// A node and the set's pods for it, those included that go.
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    pub(super) fit: Fit,
    /// Oldest first.
    pub(super) pods: Vec<&'a Arc<Pod>>,
}

/// What the steps go by.
pub(super) struct Facts<'a> {
    pub(super) set: &'a DaemonSet,
    /// The hash of the present template's revision.
    pub(super) hash: &'a str,
    /// Nodes whose failed pod has to wait for its replacement.
    pub(super) waits: &'a HashMap<String, Duration>,
    pub(super) now: Timestamp,
}

/// Pods to make and to delete.
#[derive(Default)]
pub(super) struct Step<'a> {
    /// The nodes that get a pod.
    pub(super) create: Vec<&'a str>,
    pub(super) delete: Vec<&'a Arc<Pod>>,
    /// Those of `delete` that failed, with their nodes.
    pub(super) failed: Vec<(&'a str, &'a Arc<Pod>)>,
    /// Those of `delete` that ended without need.
    pub(super) ended: Vec<&'a Arc<Pod>>,
    /// When a failed pod is due that has to wait.
    pub(super) wait: Option<Duration>,
}

impl Step<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
    }
}

impl Facts<'_> {
    /// Whether a pod is of the present template.
    pub(super) fn is_updated(&self, pod: &Pod) -> bool {
        pod.labels().get(HASH_LABEL).map(String::as_str) == Some(self.hash)
    }

    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        self.availability(pod) == Availability::Yes
    }

    /// A pod's availability under the set's `minReadySeconds`.
    pub(super) fn availability(&self, pod: &Pod) -> Availability {
        let wanted = self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        pod_facts::availability(pod, wanted.unwrap_or(0), self.now)
    }

    /// `maxSurge` and `maxUnavailable` in pods, of the nodes that should have one. Percentages of
    /// both are rounded up; if both come to zero, one may be unavailable, or nothing would move.
    fn leeway(&self, nodes: usize) -> (usize, usize) {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let nodes = i32::try_from(nodes).unwrap_or(i32::MAX);
        let pods = |limit, default| {
            let pods = share::of(limit, nodes, Round::Up).unwrap_or(default);
            usize::try_from(pods).unwrap_or(0)
        };
        let surge = pods(rolling.and_then(|rolling| rolling.max_surge.as_ref()), 0);
        let unavailable = pods(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), 1);
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    /// Whether new pods may stand beside old ones.
    fn surges(&self) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let surge =
            strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_surge.as_ref());
        rolls(self.set) && share::of(surge, 100, Round::Up).unwrap_or(0) > 0
    }
}

/// Whether pods of old templates are replaced; else somebody has to delete them.
pub(super) fn rolls(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

fn stays(pod: &Pod) -> bool {
    !pod_facts::is_terminating(pod)
}

/// One pod for each node that should have one, none for others.
pub(super) fn manage<'a>(facts: &Facts<'_>, places: &'a [Place<'a>]) -> Step<'a> {
    let mut step = Step::default();
    for place in places {
        match place.fit {
            Fit::Unwanted => {
                step.delete.extend(place.pods.iter().filter(|pod| stays(pod)));
            }
            // A pod that goes is waited for: the node has no room for two.
            Fit::Wanted if place.pods.is_empty() => step.create.push(place.node),
            Fit::Wanted | Fit::Tolerated => keep_one(facts, place, &mut step),
        }
    }
    step
}

/// Replaces pods that have ended, and takes those away that are too many.
fn keep_one<'a>(facts: &Facts<'_>, place: &'a Place<'a>, step: &mut Step<'a>) {
    let mut running = Vec::new();
    for &pod in place.pods.iter().filter(|pod| stays(pod)) {
        match (pod_facts::phase(pod), facts.waits.get(place.node)) {
            ("Failed", Some(wait)) => {
                step.wait = Some(step.wait.map_or(*wait, |shortest| shortest.min(*wait)));
            }
            ("Failed", None) => {
                step.failed.push((place.node, pod));
                step.delete.push(pod);
            }
            ("Succeeded", _) => {
                step.ended.push(pod);
                step.delete.push(pod);
            }
            _ => running.push(pod),
        }
    }
    if !facts.surges() {
        step.delete.extend(running.into_iter().skip(1));
        return;
    }
    // The oldest of each template stay, the old one until the new one can be relied on.
    let (mut new, mut old): (Vec<_>, Vec<_>) =
        running.into_iter().partition(|pod| facts.is_updated(pod));
    step.delete.extend(new.drain(1.min(new.len())..));
    step.delete.extend(old.drain(1.min(old.len())..));
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pod_facts::is_ready(old) || facts.is_available(new))
    {
        step.delete.push(old);
    }
}

/// The pods of a node that stay: of the present template and of another. `None` if there are
/// several of a sort, which [`manage`] will see to.
type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

fn pair<'a>(facts: &Facts<'_>, place: &'a Place<'a>) -> Option<Pair<'a>> {
    let there = place.pods.iter().copied().filter(|pod| stays(pod));
    let (new, old): (Vec<_>, Vec<_>) = there.partition(|pod| facts.is_updated(pod));
    (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
}

/// One step of a rolling update.
pub(super) fn roll<'a>(facts: &Facts<'_>, places: &'a [Place<'a>]) -> Step<'a> {
    let wanted = places.iter().filter(|place| place.fit == Fit::Wanted).count();
    let (surge, unavailable) = facts.leeway(wanted);
    // Nodes without any business here have neither pods nor should they.
    let concerned = || {
        let concerns = |place: &&Place<'_>| place.fit == Fit::Wanted || !place.pods.is_empty();
        places.iter().filter(concerns)
    };
    if surge > 0 {
        make_room(facts, concerned(), surge)
    } else {
        take_turns(facts, concerned(), unavailable)
    }
}

/// Old pods go first, as many as may be missing; those that serve nobody go at once.
fn take_turns<'a>(
    facts: &Facts<'_>,
    places: impl Iterator<Item = &'a Place<'a>>,
    unavailable: usize,
) -> Step<'a> {
    let mut step = Step::default();
    let mut missing = 0;
    let mut candidates = Vec::new();
    for place in places {
        match pair(facts, place) {
            Some((None, Some(old))) if facts.is_available(old) => candidates.push(old),
            Some((None, Some(old))) => {
                missing += 1;
                step.delete.push(old);
            }
            Some((Some(new), None)) if facts.is_available(new) => {}
            _ => missing += 1,
        }
    }
    let room = unavailable.saturating_sub(missing);
    step.delete.extend(candidates.into_iter().take(room));
    step
}

/// New pods come first, beside old ones on as many nodes as may have two; where the new one can be
/// relied on, the old one goes.
fn make_room<'a>(
    facts: &Facts<'_>,
    places: impl Iterator<Item = &'a Place<'a>>,
    surge: usize,
) -> Step<'a> {
    let mut step = Step::default();
    let mut surging = 0;
    let mut candidates = Vec::new();
    for place in places {
        match pair(facts, place) {
            Some((_, None)) => {}
            Some((None, Some(_))) if place.fit != Fit::Wanted => {}
            Some((None, Some(old))) if facts.is_available(old) => candidates.push(place.node),
            Some((None, Some(_))) => step.create.push(place.node),
            Some((Some(new), Some(old))) if facts.is_available(new) => step.delete.push(old),
            _ => surging += 1,
        }
    }
    let room = surge.saturating_sub(surging);
    step.create.extend(candidates.into_iter().take(room));
    step
}
