//! How long the failed pod of a node stays before another takes its place: a second at first,
//! twice as long after each further failure, a quarter of an hour at most. A pod that fails at
//! once would otherwise be made anew as fast as the cluster can.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// The wait after the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_mins(15);

/// Failures on nodes, by the uid of a daemon set, its generation, and the node's name: a change of
/// the set begins anew.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    sets: HashMap<String, Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    generation: Option<i64>,
    nodes: HashMap<String, Failed>,
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    at: Instant,
    wait: Duration,
}

impl Backoff {
    /// Nodes whose failed pod has to wait for its replacement, and how much longer.
    pub(super) fn waits(
        &mut self,
        uid: &str,
        generation: Option<i64>,
        now: Instant,
    ) -> HashMap<String, Duration> {
        let failures = self.sets.entry(uid.to_owned()).or_default();
        if failures.generation != generation {
            *failures = Failures { generation, nodes: HashMap::new() };
        }
        // Who has not failed for twice the longest wait is forgiven.
        failures.nodes.retain(|_, failed| now.duration_since(failed.at) < LONGEST * 2);
        let left = |failed: &Failed| (failed.at + failed.wait).checked_duration_since(now);
        let waiting = failures.nodes.iter().filter_map(|(node, failed)| {
            Some((node.clone(), left(failed).filter(|left| !left.is_zero())?))
        });
        waiting.collect()
    }

    /// The failed pods of these nodes are being replaced.
    pub(super) fn replaced(&mut self, uid: &str, nodes: &[String], now: Instant) {
        let Some(failures) = self.sets.get_mut(uid) else { return };
        for node in nodes {
            let before = failures.nodes.get(node).map(|failed| failed.wait);
            let wait = before.map_or(FIRST, |wait| (wait * 2).min(LONGEST));
            failures.nodes.insert(node.clone(), Failed { at: now, wait });
        }
    }

    /// Forgets all but these sets.
    pub(super) fn keep(&mut self, uids: &[&str]) {
        self.sets.retain(|uid, _| uids.contains(&uid.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_waits_twice_as_long_after_each_failure_and_a_new_generation_begins_anew() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        let node = ["n1".to_owned()];
        let mut seen = Vec::new();
        for _ in 0..12 {
            assert!(backoff.waits("u", Some(1), now).is_empty());
            backoff.replaced("u", &node, now);
            let wait = backoff.waits("u", Some(1), now)["n1"];
            seen.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        backoff.replaced("u", &node, now);
        assert!(backoff.waits("u", Some(2), now).is_empty());
        backoff.replaced("u", &node, now);
        assert_eq!(backoff.waits("u", Some(2), now)["n1"], FIRST);
        // Long after.
        now += LONGEST * 2;
        backoff.waits("u", Some(2), now);
        backoff.replaced("u", &node, now);
        assert_eq!(backoff.waits("u", Some(2), now)["n1"], FIRST);
        backoff.keep(&["other"]);
        assert!(backoff.sets.is_empty());
    }
}
