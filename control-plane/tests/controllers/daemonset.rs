//! Daemon sets, by the names of Kubernetes' conformance tests ("Daemon set [Serial] should …") where
//! there are such.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, until};

const HASH: &str = "controller-revision-hash";

fn daemon_set(change: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "each"},
        "spec": {
            "selector": {"matchLabels": {"app": "each"}},
            "template": {
                "metadata": {"labels": {"app": "each"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "c", "image": "v1"}],
                },
            },
        },
    });
    json_patch::merge(&mut object, change);
    object
}

fn image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

/// Waits until every node of the set has a pod of its present template that is available.
async fn rolled_out(cluster: &Cluster, nodes: i32) -> DaemonSet {
    until("the pods of the daemon set", async || {
        let set: DaemonSet = cluster.get("each").await;
        let status = set.status.clone().unwrap_or_default();
        let done = status.observed_generation >= set.metadata.generation
            && status.desired_number_scheduled == nodes
            && status.current_number_scheduled == nodes
            && status.updated_number_scheduled.unwrap_or(0) == nodes
            && status.number_available.unwrap_or(0) == nodes
            && status.number_misscheduled == 0;
        let pods = pods(cluster).await.len();
        if done && i32::try_from(pods) == Ok(nodes) {
            Ok(set)
        } else {
            Err(format!("{pods}: {status:?}"))
        }
    })
    .await
}

/// The pods of the set by name, with their node, image and hash.
async fn pods(cluster: &Cluster) -> BTreeMap<String, (String, String, String)> {
    let pods: Vec<Pod> = cluster.list().await;
    let facts = |pod: &Pod| {
        let spec = pod.spec.as_ref().unwrap();
        let image = spec.containers[0].image.clone().unwrap();
        (spec.node_name.clone().unwrap_or_default(), image, pod.labels()[HASH].clone())
    };
    pods.iter().map(|pod| (pod.name_any(), facts(pod))).collect()
}

async fn nodes_with_pods(cluster: &Cluster) -> BTreeSet<String> {
    pods(cluster).await.into_values().map(|(node, ..)| node).collect()
}

async fn on_nodes(cluster: &Cluster, wanted: &[&str]) {
    until("pods on the nodes that should have them", async || {
        let found = nodes_with_pods(cluster).await;
        if found.iter().eq(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

async fn patch(cluster: &Cluster, change: &Value) {
    let sets: Api<DaemonSet> = cluster.api();
    sets.patch("each", &PatchParams::default(), &Patch::Strategic(change)).await.unwrap();
}

async fn revisions(cluster: &Cluster) -> Vec<i64> {
    let mut found: Vec<i64> =
        cluster.list::<ControllerRevision>().await.iter().map(|one| one.revision).collect();
    found.sort_unstable();
    found
}

/// Deletes the set, and waits until its pods and revisions are gone too.
async fn goes_with_all_it_made(cluster: &Cluster) {
    cluster.delete::<DaemonSet>("each").await;
    until("everything to be gone", async || {
        let left = (pods(cluster).await.len(), revisions(cluster).await.len());
        if left == (0, 0) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_set_should_run_and_stop_simple_daemon() {
    let cluster = Cluster::start(3).await;
    cluster.create::<DaemonSet>(daemon_set(&json!({}))).await;
    rolled_out(&cluster, 3).await;
    on_nodes(&cluster, &["n1", "n2", "n3"]).await;
    // One that is deleted is revived on its node.
    let (first, (node, ..)) = pods(&cluster).await.into_iter().next().unwrap();
    cluster.delete::<Pod>(&first).await;
    until("another pod", async || {
        let now = pods(&cluster).await;
        let revived = !now.contains_key(&first) && now.values().any(|(on, ..)| *on == node);
        if revived { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    // A node that comes gets one.
    cluster.add_node("n4").await;
    rolled_out(&cluster, 4).await;
    goes_with_all_it_made(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_set_should_run_and_stop_complex_daemon() {
    let cluster = Cluster::start(2).await;
    let select =
        |color: &str| json!({"spec": {"template": {"spec": {"nodeSelector": {"color": color}}}}});
    cluster.create::<DaemonSet>(daemon_set(&select("blue"))).await;
    rolled_out(&cluster, 0).await;
    let paint = |color: &str| json!({"metadata": {"labels": {"color": color}}});
    cluster.change_node("n2", paint("blue")).await;
    rolled_out(&cluster, 1).await;
    on_nodes(&cluster, &["n2"]).await;
    cluster.change_node("n2", paint("green")).await;
    rolled_out(&cluster, 0).await;
    patch(&cluster, &select("green")).await;
    rolled_out(&cluster, 1).await;
    on_nodes(&cluster, &["n2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_set_should_retry_creating_failed_daemon_pods() {
    let cluster = Cluster::start(2).await;
    cluster.create::<DaemonSet>(daemon_set(&json!({}))).await;
    rolled_out(&cluster, 2).await;
    let failed = pods(&cluster).await.into_keys().next().unwrap();
    let api: Api<Pod> = cluster.api();
    let status = Patch::Merge(json!({"status": {"phase": "Failed", "conditions": []}}));
    api.patch_status(&failed, &PatchParams::default(), &status).await.unwrap();
    until("another pod", async || {
        let now = pods(&cluster).await;
        if now.len() == 2 && !now.contains_key(&failed) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    rolled_out(&cluster, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_set_should_update_pod_when_spec_was_updated_and_update_strategy_is_rolling_update()
{
    let cluster = Cluster::start(3).await;
    for strategy in
        [json!({"maxUnavailable": 1, "maxSurge": 0}), json!({"maxUnavailable": 0, "maxSurge": 1})]
    {
        let change = json!({"spec": {"updateStrategy": {"rollingUpdate": strategy}}});
        cluster.create::<DaemonSet>(daemon_set(&change)).await;
        rolled_out(&cluster, 3).await;
        let before = pods(&cluster).await;
        patch(&cluster, &image("v2")).await;
        rolled_out(&cluster, 3).await;
        let after = pods(&cluster).await;
        assert!(after.values().all(|(_, image, _)| image == "v2"), "{after:?}");
        assert!(after.keys().all(|name| !before.contains_key(name)), "{after:?}");
        assert_eq!(revisions(&cluster).await, [1, 2]);
        goes_with_all_it_made(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_set_should_not_update_pod_when_spec_was_updated_and_update_strategy_is_on_delete() {
    let cluster = Cluster::start(2).await;
    let on_delete = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
    cluster.create::<DaemonSet>(daemon_set(&on_delete)).await;
    rolled_out(&cluster, 2).await;
    let before = pods(&cluster).await;
    patch(&cluster, &image("v2")).await;
    until("the revision and the status", async || {
        let set: DaemonSet = cluster.get("each").await;
        let status = set.status.unwrap();
        let told = status.observed_generation == set.metadata.generation
            && status.updated_number_scheduled.is_none();
        if told { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    assert_eq!(pods(&cluster).await, before);
    for pod in before.keys() {
        cluster.delete::<Pod>(pod).await;
    }
    rolled_out(&cluster, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_set_should_rollback_without_unnecessary_restarts() {
    let cluster = Cluster::start(3).await;
    cluster.create::<DaemonSet>(daemon_set(&json!({}))).await;
    rolled_out(&cluster, 3).await;
    let before = pods(&cluster).await;
    cluster.unready.store(true, Ordering::Relaxed);
    patch(&cluster, &image("broken")).await;
    until("the first pod of the broken version", async || {
        let set: DaemonSet = cluster.get("each").await;
        let status = set.status.unwrap();
        let stalled = status.updated_number_scheduled == Some(1)
            && status.number_unavailable == Some(1)
            && status.current_number_scheduled == 3;
        if stalled { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    cluster.unready.store(false, Ordering::Relaxed);
    patch(&cluster, &image("v1")).await;
    rolled_out(&cluster, 3).await;
    let after = pods(&cluster).await;
    let kept = before.keys().filter(|name| after.contains_key(*name)).count();
    assert_eq!(kept, 2, "{before:?} {after:?}");
    assert_eq!(revisions(&cluster).await, [2, 3], "the first revision is used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_set_should_list_and_delete_a_collection_of_daemon_sets() {
    let cluster = Cluster::start(1).await;
    let labels = json!({"metadata": {"labels": {"team": "a"}}});
    cluster.create::<DaemonSet>(daemon_set(&labels)).await;
    rolled_out(&cluster, 1).await;
    let sets: Api<DaemonSet> = cluster.api();
    let of_team = ListParams::default().labels("team=a");
    assert_eq!(sets.list(&of_team).await.unwrap().items.len(), 1);
    let _ = sets.delete_collection(&DeleteParams::default(), &of_team).await.unwrap();
    until("everything to be gone", async || {
        let left = (sets.list(&of_team).await.unwrap().items.len(), pods(&cluster).await.len());
        if left == (0, 0) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_set_should_verify_changes_to_a_daemon_set_status() {
    let cluster = Cluster::start(1).await;
    cluster.create::<DaemonSet>(daemon_set(&json!({}))).await;
    rolled_out(&cluster, 1).await;
    let sets: Api<DaemonSet> = cluster.api();
    let condition =
        json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set"});
    let status = Patch::Merge(json!({"status": {"conditions": [condition]}}));
    let patched = sets.patch_status("each", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(patched.status.unwrap().conditions.unwrap()[0].reason.as_deref(), Some("E2E"));
    // The controller leaves it be.
    patch(&cluster, &image("v2")).await;
    let set = rolled_out(&cluster, 1).await;
    assert_eq!(set.status.unwrap().conditions.unwrap()[0].type_, "StatusUpdate");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_rollout_of_daemon_sets() {
    let cluster = Cluster::start(2).await;
    cluster.create::<DaemonSet>(daemon_set(&json!({}))).await;
    rolled_out(&cluster, 2).await;
    let Some(status) = cluster.kubectl("rollout status ds/each --timeout=30s").await else {
        return;
    };
    assert_eq!(status, "daemon set \"each\" successfully rolled out\n");
    let kubectl = async |line: &str| cluster.kubectl(line).await.unwrap();
    kubectl("annotate ds each kubernetes.io/change-cause=second").await;
    kubectl("set image ds/each c=v2").await;
    let status = kubectl("rollout status ds/each --timeout=30s").await;
    assert!(status.ends_with("daemon set \"each\" successfully rolled out\n"), "{status}");
    assert_eq!(
        kubectl("rollout history ds/each").await,
        "daemonset.apps/each \nREVISION  CHANGE-CAUSE\n1         <none>\n2         second\n\n"
    );
    let first = kubectl("rollout history ds/each --revision=1").await;
    assert!(first.contains("    Image:\tv1\n"), "{first}");
    assert_eq!(kubectl("rollout undo ds/each").await, "daemonset.apps/each rolled back\n");
    rolled_out(&cluster, 2).await;
    let now = pods(&cluster).await;
    assert!(now.values().all(|(_, image, _)| image == "v1"), "{now:?}");
    assert_eq!(
        kubectl("rollout history ds/each").await,
        "daemonset.apps/each \nREVISION  CHANGE-CAUSE\n2         second\n3         <none>\n\n"
    );
    assert_eq!(
        kubectl("rollout undo ds/each --to-revision=2").await,
        "daemonset.apps/each rolled back\n"
    );
    rolled_out(&cluster, 2).await;
    assert_eq!(kubectl("rollout restart ds/each").await, "daemonset.apps/each restarted\n");
    rolled_out(&cluster, 2).await;
    let row = kubectl("get ds each --no-headers").await;
    let row: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(row[..7], ["each", "2", "2", "2", "2", "2", "<none>"]);
    let described = kubectl("describe ds each").await;
    for line in [
        "Desired Number of Nodes Scheduled: 2",
        "Current Number of Nodes Scheduled: 2",
        "Number of Nodes Scheduled with Up-to-date Pods: 2",
        "Number of Nodes Scheduled with Available Pods: 2",
        "Number of Nodes Misscheduled: 0",
        "Pods Status:  2 Running / 0 Waiting / 0 Succeeded / 0 Failed",
    ] {
        assert!(described.lines().any(|told| told == line), "{line}: {described}");
    }
}
