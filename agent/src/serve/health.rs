//! `/healthz` and `/livez` as in KEP-3836: may load balancers send new connections to this node,
//! and does the agent do its work.
//!
//! The work is done while changes get into the tables: an agent whose oldest change is pending for
//! longer than [`STALE_AFTER`] is stuck, for whatever reason. Before everything is known for the
//! first time nothing is pending, and the agent is alive all the same. Load balancers have to wait
//! until then, but not where the tables and programs of an agent before are in force: they go on.
//! A node that is about to be removed (taint `ToBeDeletedByClusterAutoscaler`, or deleted) gets no new
//! connections, while those that it has go on.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyper::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::http::Answer;
use crate::{
    metrics::Metrics,
    model::snapshot::Snapshot,
    reconcile,
    status::{Board, State},
};

/// How long a change may be pending: twice kube-proxy's default for `syncPeriod`, as there.
const STALE_AFTER: Duration = Duration::from_mins(1);
/// How long who asks an agent that takes over may be kept waiting for it to serve: about as long as
/// load balancers wait.
const TAKING_OVER: Duration = Duration::from_secs(5);
/// How often it is looked meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// What health is made of. Cheap to copy.
#[derive(Clone)]
pub struct Health {
    /// Name of the node.
    pub node: Arc<str>,
    /// How the parts are.
    pub board: Arc<Board>,
    /// The agent's counters.
    pub metrics: Arc<Metrics>,
    /// The cluster.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether an agent before this one filled the node's tables, and its programs are in force.
    pub inherited: bool,
}

/// The body of an answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

impl Health {
    /// Whether the services of this node are balanced as the cluster asks for.
    pub fn is_serving(&self) -> bool {
        !self.is_waiting() && !self.is_stuck()
    }

    /// Whether not everything is known yet.
    fn is_waiting(&self) -> bool {
        matches!(self.board.parts().get(reconcile::PART), Some(State::Waiting(_)))
    }

    /// Returns when this agent serves as the one before it does, or should.
    pub(super) async fn until_serving(&self, cancel: &CancellationToken) {
        let serving = async {
            while !self.is_serving() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            _late = tokio::time::timeout(TAKING_OVER, serving) => {}
        }
    }

    /// Whether a change has been pending for too long.
    fn is_stuck(&self) -> bool {
        let since = self.metrics.arrivals.waiting_since();
        since.is_some_and(|since| since.elapsed() >= STALE_AFTER)
    }

    /// Whether load balancers may use the node; yes as long as nothing is known of it.
    fn is_eligible(&self) -> bool {
        let snapshot = self.snapshots.borrow();
        snapshot.nodes.get(&self.node).is_none_or(|node| !node.to_be_deleted)
    }

    /// `/healthz`.
    pub(super) fn healthz(&self) -> Answer {
        let eligible = self.is_eligible();
        let balances = self.inherited || !self.is_waiting();
        let healthy = eligible && balances && !self.is_stuck();
        self.metrics.proxy.healthz(healthy);
        self.answer(healthy, Some(eligible))
    }

    /// `/livez`.
    pub(super) fn livez(&self) -> Answer {
        let alive = !self.is_stuck();
        self.metrics.proxy.livez(alive);
        self.answer(alive, None)
    }

    fn answer(&self, good: bool, node_eligible: Option<bool>) -> Answer {
        let now = SystemTime::now();
        // As kube-proxy has it: what is healthy is up to date.
        let updated = if good { Some(now) } else { self.metrics.arrivals.last_updated() };
        let body = Body {
            last_updated: text(updated.unwrap_or(SystemTime::UNIX_EPOCH)),
            current_time: text(now),
            node_eligible,
        };
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Answer::json(&body).with(status).header("x-content-type-options", "nosniff")
    }
}

/// A time as in RFC 3339.
fn text(at: SystemTime) -> String {
    Timestamp::try_from(at).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        arrivals::{Arrival, Kind},
        model::node::Node,
    };

    fn health(node: Option<Node>) -> Health {
        let mut snapshot = Snapshot::default();
        if let Some(node) = node {
            snapshot.nodes.insert(node.name.clone(), Arc::new(node));
        }
        // A receiver keeps its last value without a sender.
        let (_, snapshots) = watch::channel(Arc::new(snapshot));
        let (board, metrics) = (Arc::default(), Arc::default());
        Health { node: "n".into(), board, metrics, snapshots, inherited: false }
    }

    fn statuses(health: &Health) -> (u16, u16) {
        (health.healthz().status.as_u16(), health.livez().status.as_u16())
    }

    #[test]
    fn f21_a_node_that_goes_fails_healthz_and_not_livez() {
        let ready = health(Some(Node::named("n")));
        assert_eq!(statuses(&ready), (200, 200));
        let goes = health(Some(Node { to_be_deleted: true, ..Node::named("n") }));
        assert_eq!(statuses(&goes), (503, 200));
        assert!(goes.is_serving(), "service health checks go on");
        let other = health(Some(Node { to_be_deleted: true, ..Node::named("m") }));
        assert_eq!(statuses(&other), (200, 200));
        assert_eq!(statuses(&health(None)), (200, 200), "a node that is not known yet");
        let body: serde_json::Value = serde_json::from_str(&goes.healthz().body).unwrap();
        assert_eq!(body["nodeEligible"], false);
        let time = |field: &str| body[field].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert!(time("lastUpdated") < time("currentTime"));
        let text = goes.metrics.render(None);
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"503\"} 2",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn f21_healthz_waits_for_the_first_tables_and_livez_does_not() {
        let health = health(None);
        health.board.report("cni", State::Waiting("no podCIDRs".into()));
        assert_eq!(statuses(&health), (200, 200), "other parts don't matter");
        health.board.report(reconcile::PART, State::Waiting("not known yet".into()));
        assert_eq!(statuses(&health), (503, 200));
        health.board.report(reconcile::PART, State::Degraded("a map is full".into()));
        assert_eq!(statuses(&health), (200, 200));
    }

    #[test]
    fn f21_the_tables_of_an_agent_before_count_while_the_lists_are_awaited() {
        let health = Health { inherited: true, ..health(None) };
        health.board.report(reconcile::PART, State::Waiting("not known yet".into()));
        assert_eq!(statuses(&health), (200, 200));
        assert!(!health.is_serving(), "which endpoints are local is not known");
        let goes = Some(Node { to_be_deleted: true, ..Node::named("n") });
        let snapshots = tests::health(goes).snapshots;
        let goes = Health { snapshots, ..health };
        assert_eq!(statuses(&goes), (503, 200));
    }

    /// A change of the given age.
    fn arrive(health: &Health, age: Duration) {
        let at = ago(age);
        let (kind, listed, trigger) = (Kind::Slices, false, None);
        health.metrics.arrivals.note(Arrival { revision: 1, kind, at, listed, trigger });
    }

    fn ago(age: Duration) -> Instant {
        Instant::now().checked_sub(age).unwrap()
    }

    #[test]
    fn f21_an_agent_that_only_waits_for_its_lists_is_alive() {
        let health = health(None);
        health.metrics.arrivals.await_tables();
        health.board.report(reconcile::PART, State::Waiting("not known yet".into()));
        arrive(&health, STALE_AFTER * 2);
        assert_eq!(statuses(&health), (503, 200));
        // The others came: the changes from before are pending since now.
        health.metrics.arrivals.begin_to_follow(ago(STALE_AFTER / 2));
        assert_eq!(statuses(&health), (503, 200));
        health.board.report(reconcile::PART, State::Degraded("a plan failed".into()));
        assert_eq!(statuses(&health), (200, 200));
    }

    #[test]
    fn f21_changes_that_get_nowhere_fail_both() {
        let health = health(None);
        health.metrics.arrivals.await_tables();
        health.metrics.arrivals.begin_to_follow(ago(STALE_AFTER));
        let arrive = |age| arrive(&health, age);
        arrive(STALE_AFTER / 2);
        assert_eq!(statuses(&health), (200, 200), "late, and not too late");
        health.metrics.arrivals.shown(1);
        arrive(STALE_AFTER);
        assert_eq!(statuses(&health), (503, 503));
        health.metrics.arrivals.shown(1);
        assert_eq!(statuses(&health), (200, 200));
    }
}
