//! Replica sets, by the names of Kubernetes' conformance tests ("ReplicaSet should …").

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, until};

fn set(replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": "set", "labels": {"team": "a"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"name": "adoption"}},
            "template": {
                "metadata": {"labels": {"name": "adoption"}},
                "spec": {"terminationGracePeriodSeconds": 1,
                         "containers": [{"name": "c", "image": "v1"}]},
            },
        },
    })
}

async fn ready(cluster: &Cluster, replicas: i32) {
    until("the pods of the set", async || {
        let set: ReplicaSet = cluster.get("set").await;
        let status = set.status.clone().unwrap_or_default();
        let done = status.replicas == replicas
            && status.available_replicas.unwrap_or(0) == replicas
            && status.observed_generation == set.metadata.generation;
        if done { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_set_should_adopt_matching_pods_on_creation_and_release_no_longer_matching_pods() {
    let cluster = Cluster::start(1).await;
    let orphan = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orphan", "labels": {"name": "adoption"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "v1"}]},
    });
    cluster.create::<Pod>(orphan).await;
    cluster.create::<ReplicaSet>(set(1)).await;
    ready(&cluster, 1).await;
    let orphan: Pod = cluster.get("orphan").await;
    assert_eq!(orphan.owner_references()[0].name, "set");
    assert_eq!(cluster.list::<Pod>().await.len(), 1, "none was made");
    cluster.merge::<Pod>("orphan", json!({"metadata": {"labels": {"name": "other"}}})).await;
    until("the pod to be released and replaced", async || {
        let orphan: Pod = cluster.get("orphan").await;
        let pods = cluster.list::<Pod>().await.len();
        let owners = orphan.owner_references().len();
        if owners == 0 && pods == 2 { Ok(()) } else { Err(format!("{owners} {pods}")) }
    })
    .await;
    ready(&cluster, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_set_should_have_a_working_scale_subresource() {
    let cluster = Cluster::start(1).await;
    cluster.create::<ReplicaSet>(set(1)).await;
    ready(&cluster, 1).await;
    let sets: Api<ReplicaSet> = cluster.api();
    assert_eq!(sets.get_scale("set").await.unwrap().spec.unwrap().replicas, Some(1));
    let four = Patch::Merge(json!({"spec": {"replicas": 4}}));
    sets.patch_scale("set", &PatchParams::default(), &four).await.unwrap();
    ready(&cluster, 4).await;
    assert_eq!(cluster.list::<Pod>().await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_set_should_list_and_delete_a_collection_of_replica_sets() {
    let cluster = Cluster::start(1).await;
    cluster.create::<ReplicaSet>(set(3)).await;
    ready(&cluster, 3).await;
    let sets: Api<ReplicaSet> = cluster.api();
    let of_team = ListParams::default().labels("team=a");
    assert_eq!(sets.list(&of_team).await.unwrap().items.len(), 1);
    let _ = sets.delete_collection(&DeleteParams::default(), &of_team).await.unwrap();
    until("everything to be gone", async || {
        let left =
            (sets.list(&of_team).await.unwrap().items.len(), cluster.list::<Pod>().await.len());
        if left == (0, 0) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}
