//! How fast nodes that are not well lose their pods, zone by zone. One node that is silent is a
//! broken node; if most of a zone is, it is rather the network between, and to start everything
//! anew elsewhere would do more harm than good.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use tokio::time::Instant;

/// The time between two nodes of a zone (`--node-eviction-rate` of Kubernetes, 0.1 a second).
const EVERY: Duration = Duration::from_secs(10);
/// The same where much of a large zone is not well (`--secondary-node-eviction-rate`, 0.01).
const EVERY_DISRUPTED: Duration = Duration::from_secs(100);
/// A zone of more nodes is large (`--large-cluster-size-threshold`); small ones wait.
const LARGE: usize = 50;
/// The part of a zone's nodes, in percent, that makes it disrupted
/// (`--unhealthy-zone-threshold`).
const UNHEALTHY_PERCENT: usize = 55;
/// Fewer nodes than these disrupt no zone.
const UNHEALTHY_MIN: usize = 3;

/// How a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Most of its nodes are well.
    Normal,
    /// Many of its nodes are not.
    Partial,
    /// None of its nodes is.
    Full,
}

/// Whether a node may lose its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Now.
    Now,
    /// It is another one's turn; after that time one may ask again.
    In(Duration),
    /// Not as things are.
    Never,
}

/// How many nodes of a zone are well, and how many are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) ready: usize,
    pub(super) unready: usize,
}

impl Count {
    fn state(self) -> State {
        let all = self.ready + self.unready;
        if self.ready == 0 && self.unready > 0 {
            State::Full
        } else if self.unready >= UNHEALTHY_MIN && self.unready * 100 >= all * UNHEALTHY_PERCENT {
            State::Partial
        } else {
            State::Normal
        }
    }
}

/// The zones of a cluster as its nodes are.
#[derive(Debug, Default)]
pub(super) struct Census(BTreeMap<String, Count>);

impl Census {
    /// Counts nodes, each with whether it is well.
    pub(super) fn of<'a>(nodes: impl Iterator<Item = (&'a Node, bool)>) -> Self {
        let mut zones: BTreeMap<String, Count> = BTreeMap::new();
        for (node, ready) in nodes {
            let count = zones.entry(zone(node)).or_default();
            *(if ready { &mut count.ready } else { &mut count.unready }) += 1;
        }
        Self(zones)
    }

    /// Whether not one node of the cluster is well: then it is the control plane that sees none.
    pub(super) fn is_blind(&self) -> bool {
        !self.0.is_empty() && self.0.values().all(|count| count.state() == State::Full)
    }
}

/// Which node of a zone had the last turn, and when the next one has its own.
#[derive(Debug, Default)]
pub(super) struct Turns(HashMap<String, (String, Instant)>);

impl Turns {
    /// Whether it is the node's turn; if so the next one's is a while off.
    pub(super) fn take(&mut self, node: &Node, census: &Census, now: Instant) -> Turn {
        let zone = zone(node);
        let count = census.0.get(&zone).copied().unwrap_or_default();
        if census.is_blind() {
            return Turn::Never;
        }
        let every = match count.state() {
            State::Normal | State::Full => EVERY,
            State::Partial if count.ready + count.unready > LARGE => EVERY_DISRUPTED,
            State::Partial => return Turn::Never,
        };
        let (last, next) = self.0.entry(zone).or_insert_with(|| (String::new(), now));
        match next.checked_duration_since(now).filter(|wait| !wait.is_zero()) {
            // The write may have failed.
            Some(_) if *last == node.name_any() => Turn::Now,
            Some(wait) => Turn::In(wait),
            None => {
                (*last, *next) = (node.name_any(), now + every);
                Turn::Now
            }
        }
    }
}

/// Region and zone of a node.
fn zone(node: &Node) -> String {
    let label = |name: &str| {
        node.labels().get(&format!("topology.kubernetes.io/{name}")).map_or("", String::as_str)
    };
    format!("{}/{}", label("region"), label("zone"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(zone: &str) -> Node {
        named("n", zone)
    }

    fn named(name: &str, zone: &str) -> Node {
        let labels = json!({"topology.kubernetes.io/zone": zone});
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
    }

    fn census(zones: &[(&str, usize, usize)]) -> Census {
        let count = |(zone, ready, unready): &(&str, usize, usize)| {
            (format!("/{zone}"), Count { ready: *ready, unready: *unready })
        };
        Census(zones.iter().map(count).collect())
    }

    #[test]
    fn nodes_are_counted_by_zone() {
        let (a, b) = (node("a"), node("b"));
        let counted = Census::of([(&a, true), (&a, false), (&b, false)].into_iter());
        assert_eq!(counted.0, census(&[("a", 1, 1), ("b", 0, 1)]).0);
        assert!(!counted.is_blind());
        assert!(Census::of([(&a, false), (&b, false)].into_iter()).is_blind());
        assert!(!Census::default().is_blind());
    }

    #[test]
    fn a_zone_is_disrupted_by_many_silent_nodes() {
        for (ready, unready, state) in [
            (5, 0, State::Normal),
            (1, 2, State::Normal),
            (3, 3, State::Normal),
            (2, 3, State::Partial),
            (9, 11, State::Partial),
            (0, 1, State::Full),
        ] {
            assert_eq!(Count { ready, unready }.state(), state, "{ready} {unready}");
        }
    }

    #[test]
    fn nodes_take_turns() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        let mut number = 0;
        let mut take = |zone: &str, zones: &[(&str, usize, usize)], second| {
            number += 1;
            let node = named(&format!("n{number}"), zone);
            turns.take(&node, &census(zones), start + Duration::from_secs(second))
        };
        let normal = [("a", 9, 2), ("b", 9, 1)];
        assert_eq!(take("a", &normal, 0), Turn::Now);
        assert_eq!(take("a", &normal, 4), Turn::In(Duration::from_secs(6)));
        assert_eq!(take("b", &normal, 4), Turn::Now, "zones do not wait for each other");
        assert_eq!(take("a", &normal, 10), Turn::Now);
        // A zone that is lost, of a cluster that is not.
        assert_eq!(take("c", &[("a", 9, 0), ("c", 0, 5)], 10), Turn::Now);
        // A small zone that is disrupted, and a large one.
        assert_eq!(take("d", &[("a", 9, 0), ("d", 2, 5)], 10), Turn::Never);
        let large = [("a", 9, 0), ("e", 20, 40)];
        assert_eq!(take("e", &large, 10), Turn::Now);
        assert_eq!(take("e", &large, 20), Turn::In(Duration::from_secs(90)));
        // Nobody is well: it is us.
        assert_eq!(take("a", &[("a", 0, 9), ("b", 0, 9)], 1000), Turn::Never);
    }

    #[test]
    fn a_node_whose_write_failed_keeps_its_turn() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        let normal = census(&[("a", 9, 2)]);
        for _ in 0..2 {
            assert_eq!(turns.take(&named("one", "a"), &normal, now), Turn::Now);
        }
        assert_eq!(turns.take(&named("other", "a"), &normal, now), Turn::In(EVERY));
    }
}
