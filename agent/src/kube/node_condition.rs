//! Tells the cluster that this node's network serves: the condition `NetworkUnavailable` becomes
//! False, and the taint that keeps pods from a node whose agent has never served,
//! `mizzen.dev/agent-not-ready`, is removed. Nothing is said before, and nothing is taken back: an
//! agent that is away costs no pod its network.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::Node,
    jiff::{Timestamp, fmt::temporal::DateTimePrinter},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use super::client::{Clients, limited};
use crate::{
    model::snapshot::Snapshot,
    status::{Board, State},
    supervisor::TaskError,
};

/// The part on the board.
pub const PART: &str = "node-condition";
/// The taint with which a node may be registered, so that no pod comes before its network.
pub const TAINT: &str = "mizzen.dev/agent-not-ready";
/// How often it is looked whether the parts serve, until they do.
const LOOK: Duration = Duration::from_millis(200);
/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// How often the Node is read though nothing is known to have changed: an object that was deleted
/// and made again at once is a new one, and looks the same.
const REVIEW: Duration = Duration::from_mins(10);

const CONDITION: &str = "NetworkUnavailable";
/// Why it is False.
const REASON: &str = "AgentServes";

/// What it is about.
pub struct Config {
    /// The Node that this is.
    pub node_name: String,
    /// The parts that have to serve first.
    pub parts: Vec<&'static str>,
}

/// A change of the Node.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A strategic merge of its status.
    Status(Value),
    /// A merge of the object.
    Object(Value),
}

/// Says it as soon as the parts serve, and again when the Node was made anew, until cancelled.
pub async fn run(
    config: Config,
    servers: Clients,
    mut snapshots: channel::Receiver<Arc<Snapshot>>,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let node = config.node_name.as_str();
    let mut failures = 0;
    loop {
        let pause = if !serve(&board, &config.parts) {
            LOOK
        } else if !snapshots.borrow_and_update().nodes.contains_key(node) {
            REVIEW // until it is there
        } else {
            match tell(node, &servers, failures).await {
                Ok(()) => {
                    failures = 0;
                    board.report(PART, State::Ready);
                    REVIEW
                }
                Err(error) => {
                    failures += 1;
                    servers.look_again().await;
                    board.report(PART, State::Degraded(explain(node, &error)));
                    RETRY
                }
            }
        };
        let here = snapshots.borrow().nodes.contains_key(node);
        let changed = async {
            let other = |snapshot: &Arc<Snapshot>| snapshot.nodes.contains_key(node) != here;
            if snapshots.wait_for(other).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = changed => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether none of the parts waits for something. One that serves not all of it serves.
fn serve(board: &Board, parts: &[&'static str]) -> bool {
    let states = board.parts();
    parts.iter().all(|part| matches!(states.get(part), Some(State::Ready | State::Degraded(_))))
}

async fn tell(node: &str, servers: &Clients, failures: usize) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(servers.pick(failures).client);
    let object = limited(api.get(node)).await?;
    for write in writes(&object, Timestamp::now()) {
        tracing::info!(node, ?write, "telling the cluster that the network serves");
        let params = PatchParams::default();
        match write {
            Write::Status(patch) => {
                limited(api.patch_status(node, &params, &Patch::Strategic(patch))).await?;
            }
            Write::Object(patch) => {
                limited(api.patch(node, &params, &Patch::Merge(patch))).await?;
            }
        }
    }
    Ok(())
}

fn explain(node: &str, error: &kube::Error) -> String {
    let remedy = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "; the agent's role must allow get and patch of nodes, and patch of nodes/status"
        }
        _ => "",
    };
    format!("tell that the network of node {node} serves: {error}{remedy}; it is tried again")
}

/// Whether an agent has said of the Node that it connects its pods.
pub(super) fn is_said(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|it| it.type_ == CONDITION && it.reason.as_deref() == Some(REASON))
}

/// What the Node lacks. Who else changed its taints meanwhile makes the write fail, and it is
/// looked at again.
pub fn writes(node: &Node, now: Timestamp) -> Vec<Write> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut named = conditions.filter(|condition| condition.type_ == CONDITION);
    let mut writes = Vec::new();
    if !named.any(|condition| condition.status == "False") {
        let now = DateTimePrinter::new().precision(Some(0)).timestamp_to_string(&now);
        writes.push(Write::Status(json!({"status": {"conditions": [{
            "type": CONDITION,
            "status": "False",
            "reason": REASON,
            "message": "mizzen-agent connects pods",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }]}})));
    }
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let (ours, others): (Vec<_>, Vec<_>) = taints.partition(|taint| taint.key == TAINT);
    if !ours.is_empty() {
        writes.push(Write::Object(json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": others},
        })));
    }
    // The taint last: it is what lets pods come.
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_a_node_lacks_is_said_and_nothing_else() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let other = json!({"key": "other", "effect": "NoSchedule"});
        let before = node(json!({
            "metadata": {"name": "n", "resourceVersion": "7"},
            "spec": {"taints": [
                {"key": TAINT, "effect": "NoSchedule"}, other, {"key": TAINT, "effect": "NoExecute"},
            ]},
            "status": {"conditions": [{"type": CONDITION, "status": "True"}]},
        }));
        let [Write::Status(status), Write::Object(object)] = &writes(&before, now)[..] else {
            panic!("{:?}", writes(&before, now))
        };
        let condition = &status["status"]["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["status"]),
            (&json!(CONDITION), &json!("False"))
        );
        assert_eq!(condition["lastTransitionTime"], "2027-01-15T08:00:00Z");
        assert_eq!(object["spec"]["taints"], json!([other]));
        assert_eq!(object["metadata"]["resourceVersion"], "7");
        // It has been said.
        let after = node(json!({
            "metadata": {"name": "n"}, "spec": {"taints": [other]},
            "status": {"conditions": [{"type": CONDITION, "status": "False"}]},
        }));
        assert_eq!(writes(&after, now), []);
        assert_eq!(writes(&node(json!({"metadata": {"name": "n"}})), now).len(), 1);
    }

    #[test]
    fn a_part_that_waits_or_has_said_nothing_does_not_serve() {
        let board = Board::default();
        let parts = ["cni", "services"];
        assert!(!serve(&board, &parts));
        board.report("cni", State::Ready);
        assert!(!serve(&board, &parts));
        board.report("services", State::Waiting("x".into()));
        assert!(!serve(&board, &parts));
        board.report("services", State::Degraded("x".into()));
        assert!(serve(&board, &parts));
    }
}
