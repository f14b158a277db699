//! What the cluster is told of a node whose network serves, with the real API server.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use mizzen_agent::{
    kube::{
        client::ApiServers,
        node_condition::{self, Config, PART, TAINT},
    },
    model::{node::Node as ModelNode, snapshot::Snapshot},
    status::{Board, State},
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::watch::serve;

const LIMIT: Duration = Duration::from_secs(20);

fn registered() -> Node {
    let object = json!({
        "metadata": {"name": "node-1"},
        "spec": {"taints": [
            {"key": TAINT, "effect": "NoSchedule"}, {"key": "other", "effect": "NoExecute"},
        ]},
    });
    serde_json::from_value(object).unwrap()
}

/// Status of the condition, and keys of the taints.
async fn said(api: &Api<Node>) -> (Option<String>, Vec<String>) {
    let node = api.get("node-1").await.unwrap();
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let condition = conditions.into_iter().find(|one| one.type_ == "NetworkUnavailable");
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    (condition.map(|one| one.status), taints.into_iter().map(|taint| taint.key).collect())
}

/// Whether it is told within this time.
async fn is_told(api: &Api<Node>, limit: Duration) -> bool {
    let told = async {
        while said(api).await != (Some("False".into()), vec!["other".into()]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, told).await.is_ok()
}

fn snapshot(there: bool) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    if there {
        snapshot.nodes.insert("node-1".into(), Arc::new(ModelNode::named("node-1")));
    }
    Arc::new(snapshot)
}

#[test]
fn a_node_is_said_to_have_a_network_when_its_agent_serves_and_not_before() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(folder.path(), ([127, 0, 0, 1], 0).into()).await;
        let servers = ApiServers::new(Some(&server.kubeconfig), &[]).await.unwrap();
        let clients = servers.clients().unwrap();
        let api: Api<Node> = Api::all(clients.pick(0).client);
        api.create(&PostParams::default(), &registered()).await.unwrap();
        let before = (None, vec![TAINT.to_owned(), "other".to_owned()]);
        assert_eq!(said(&api).await, before);

        let board: Arc<Board> = Arc::default();
        board.report("cni", State::Waiting("the test".into()));
        let (publish, snapshots) = watch::channel(snapshot(true));
        let cancel = CancellationToken::new();
        let config = Config { node_name: "node-1".into(), parts: vec!["cni"] };
        let task = node_condition::run(config, clients, snapshots, board.clone(), cancel.clone());
        let task = tokio::spawn(task);
        // Several looks find it waiting.
        assert!(!is_told(&api, Duration::from_millis(700)).await, "it does not serve");
        assert_eq!(said(&api).await, before);
        board.report("cni", State::Ready);
        assert!(is_told(&api, LIMIT).await, "{:?}", said(&api).await);
        assert_eq!(board.parts().get(PART), Some(&State::Ready));

        // An agent that stops serving takes nothing back, and a Node that was made anew is told.
        board.report("cni", State::Degraded("the test".into()));
        api.delete("node-1", &DeleteParams::default()).await.unwrap();
        publish.send_replace(snapshot(false));
        api.create(&PostParams::default(), &registered()).await.unwrap();
        publish.send_replace(snapshot(true));
        assert!(is_told(&api, LIMIT).await, "{:?}", said(&api).await);
        cancel.cancel();
        task.await.unwrap().unwrap();
        server.stop().await;
    });
}
