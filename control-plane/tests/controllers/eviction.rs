//! Taints that pods have to leave for, by the names of Kubernetes' conformance tests where there are
//! such.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, deployment, until};

fn pod(name: &str, tolerations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1, "nodeName": "n1", "tolerations": tolerations,
            "containers": [{"name": "c", "image": "v1"}],
        },
    })
}

fn tainted(taints: &Value) -> Value {
    json!({"spec": {"taints": taints}})
}

async fn names(cluster: &Cluster) -> Vec<String> {
    cluster.list::<Pod>().await.iter().map(ResourceExt::name_any).collect()
}

async fn left(cluster: &Cluster, wanted: &[&str]) {
    until("the pods that stay", async || {
        let found = names(cluster).await;
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_execute_taint_manager_multiple_pods_evicts_pods_with_min_toleration_seconds() {
    let cluster = Cluster::start(1).await;
    let for_seconds = |seconds: i64| {
        json!([{"key": "evict", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds}])
    };
    let table = [
        ("a-at-once", json!([])),
        ("b-soon", for_seconds(1)),
        ("c-late", for_seconds(3600)),
        ("d-never", json!([{"operator": "Exists"}])),
    ];
    for (name, tolerations) in &table {
        cluster.create::<Pod>(pod(name, tolerations)).await;
    }
    let taint = json!([{"key": "evict", "value": "yes", "effect": "NoExecute"}]);
    cluster.change_node("n1", tainted(&taint)).await;
    left(&cluster, &["c-late", "d-never"]).await;
    let events: Vec<Event> = cluster.list().await;
    let told = events.iter().find(|event| event.reason.as_deref() == Some("TaintManagerEviction"));
    let message = told.and_then(|event| event.message.as_deref());
    assert_eq!(message, Some("Marking for deletion Pod default/a-at-once"));
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_15_pods_of_a_node_that_dies_come_back_elsewhere() {
    let cluster = Cluster::start(2).await;
    let patient = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1});
    let mut web = deployment(4);
    web["spec"]["template"]["spec"]["tolerations"] =
        json!([patient("node.kubernetes.io/not-ready"), patient("node.kubernetes.io/unreachable")]);
    cluster.create::<Deployment>(web).await;
    let spread = async |wanted: &[(&str, usize)]| {
        until("pods on the nodes", async || {
            let placement = cluster.placement().await;
            let found: Vec<(&str, usize)> =
                placement.iter().map(|(node, pods)| (node.as_str(), pods.len())).collect();
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    spread(&[("n1", 2), ("n2", 2)]).await;
    // What the node's own report, or the monitor of its lease, says.
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let dead = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let patch = kube::api::Patch::Strategic(dead);
    nodes.patch_status("n1", &kube::api::PatchParams::default(), &patch).await.unwrap();
    spread(&[("n2", 4)]).await;
}
