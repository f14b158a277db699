//! Controllers and scheduler against the real API server, with a fake kubelet.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod accounts;
mod cluster;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod eviction;
mod kube_rs;
mod kubectl;
mod replicaset;
mod service_cidrs;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use cluster::{Cluster, deployment, service, until};

/// Waits for a rollout as `kubectl rollout status` does.
pub(crate) async fn rolled_out(cluster: &Cluster, replicas: i32) -> Deployment {
    until("the rollout", async || {
        let web: Deployment = cluster.get("web").await;
        let status = web.status.clone().unwrap_or_default();
        let done = status.observed_generation >= web.metadata.generation
            && status.updated_replicas.unwrap_or(0) == replicas
            && status.replicas.unwrap_or(0) == replicas
            && status.available_replicas.unwrap_or(0) == replicas;
        if done { Ok(web) } else { Err(format!("{status:?}")) }
    })
    .await
}

/// Addresses of the ready endpoints of the Service `web`, by family.
async fn endpoints(cluster: &Cluster, family: &str) -> BTreeSet<String> {
    let slices: Vec<EndpointSlice> = cluster.list().await;
    let web = slices.iter().filter(|slice| {
        slice.labels().get("kubernetes.io/service-name").map(String::as_str) == Some("web")
            && slice.address_type == family
    });
    let ready = web.flat_map(|slice| &slice.endpoints).filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
    });
    ready.flat_map(|endpoint| endpoint.addresses.clone()).collect()
}

async fn count_endpoints(cluster: &Cluster, wanted: usize) {
    for family in ["IPv4", "IPv6"] {
        until("endpoints", async || {
            let found = endpoints(cluster, family).await;
            if found.len() == wanted { Ok(()) } else { Err(format!("{family}: {found:?}")) }
        })
        .await;
    }
}

fn progressing(deployment: &Deployment) -> String {
    let conditions = deployment.status.as_ref().unwrap().conditions.as_ref().unwrap();
    let progressing = conditions.iter().find(|condition| condition.type_ == "Progressing");
    progressing.unwrap().reason.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_63_a_deployment_of_ten_becomes_available_and_scales() {
    let cluster = Cluster::start(2).await;
    cluster.create::<Service>(service()).await;
    cluster.create::<Deployment>(deployment(10)).await;
    let web = rolled_out(&cluster, 10).await;
    assert_eq!(progressing(&web), "NewReplicaSetAvailable");
    let placement = cluster.placement().await;
    let sizes: Vec<_> = placement.iter().map(|(node, pods)| (node.as_str(), pods.len())).collect();
    assert_eq!(sizes, [("n1", 5), ("n2", 5)], "spread over the nodes");
    count_endpoints(&cluster, 10).await;
    let sets: Vec<ReplicaSet> = cluster.list().await;
    assert_eq!(sets.len(), 1);
    let hash = &sets[0].labels()["pod-template-hash"];
    assert_eq!(sets[0].name_any(), format!("web-{hash}"));
    for replicas in [3, 7, 0, 2] {
        cluster.merge::<Deployment>("web", json!({"spec": {"replicas": replicas}})).await;
        rolled_out(&cluster, replicas).await;
        count_endpoints(&cluster, usize::try_from(replicas).unwrap()).await;
    }
    assert_eq!(cluster.list::<ReplicaSet>().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_66_71_updates_roll_and_can_be_undone() {
    let cluster = Cluster::start(2).await;
    cluster.create::<Deployment>(deployment(6)).await;
    rolled_out(&cluster, 6).await;
    let image = |image: &str| -> Value {
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
    };
    let strategic = async |change: Value| {
        let api: Api<Deployment> = cluster.api();
        api.patch("web", &PatchParams::default(), &Patch::Strategic(change)).await.unwrap();
    };
    for (version, revision) in [("v2", "2"), ("v3", "3")] {
        strategic(image(version)).await;
        rolled_out(&cluster, 6).await;
        let numbered = until("the revision", async || {
            let web: Deployment = cluster.get("web").await;
            let found = web.annotations().get("deployment.kubernetes.io/revision").cloned();
            if found.as_deref() == Some(revision) { Ok(web) } else { Err(format!("{found:?}")) }
        })
        .await;
        assert_eq!(progressing(&numbered), "NewReplicaSetAvailable");
    }
    // What `kubectl rollout undo` does: the template of the set of revision 1.
    let sets: Vec<ReplicaSet> = cluster.list().await;
    assert_eq!(sets.len(), 3, "old sets are kept");
    strategic(image("v1")).await;
    rolled_out(&cluster, 6).await;
    let sets: Vec<ReplicaSet> = cluster.list().await;
    assert_eq!(sets.len(), 3, "the old set is used again");
    for set in &sets {
        let spec = set.spec.as_ref().unwrap();
        let template = spec.template.as_ref().unwrap().spec.as_ref().unwrap();
        let image = template.containers[0].image.as_deref();
        let revision = set.annotations()["deployment.kubernetes.io/revision"].as_str();
        let expected = match image {
            Some("v1") => ("4", Some(6)),
            Some("v2") => ("2", Some(0)),
            Some("v3") => ("3", Some(0)),
            other => panic!("{other:?}"),
        };
        assert_eq!((revision, spec.replicas), expected, "{image:?}");
    }
    for pod in cluster.list::<Pod>().await {
        if pod.metadata.deletion_timestamp.is_none() {
            assert_eq!(pod.spec.unwrap().containers[0].image.as_deref(), Some("v1"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_67_a_broken_version_stops_at_the_limits() {
    let cluster = Cluster::start(2).await;
    cluster.create::<Service>(service()).await;
    cluster.create::<Deployment>(deployment(4)).await;
    rolled_out(&cluster, 4).await;
    cluster.unready.store(true, Ordering::Relaxed);
    let broken = json!({"spec": {"template": {"metadata": {"labels": {"version": "broken"}}}}});
    cluster.merge::<Deployment>("web", broken).await;
    // 25 % of 4: one more, one less.
    let web = until("the rollout to stall", async || {
        let web: Deployment = cluster.get("web").await;
        let status = web.status.clone().unwrap();
        let stalled = (status.updated_replicas, status.available_replicas) == (Some(2), Some(3))
            && status.replicas == Some(5);
        if stalled { Ok(web) } else { Err(format!("{status:?}")) }
    })
    .await;
    assert_eq!(progressing(&web), "ReplicaSetUpdated");
    count_endpoints(&cluster, 3).await;
    // Undone: all four serve again.
    let undone = json!({"spec": {"template": {"metadata": {"labels": {"version": null}}}}});
    cluster.merge::<Deployment>("web", undone).await;
    cluster.unready.store(false, Ordering::Relaxed);
    rolled_out(&cluster, 4).await;
    count_endpoints(&cluster, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_15_deleted_pods_come_back_and_deletion_cascades() {
    let cluster = Cluster::start(2).await;
    cluster.create::<Service>(service()).await;
    cluster.create::<Deployment>(deployment(4)).await;
    rolled_out(&cluster, 4).await;
    let first = cluster.list::<Pod>().await.remove(0).name_any();
    cluster.delete::<Pod>(&first).await;
    until("another pod", async || {
        let pods: Vec<_> = cluster.list::<Pod>().await.iter().map(ResourceExt::name_any).collect();
        if pods.len() == 4 && !pods.contains(&first) { Ok(()) } else { Err(format!("{pods:?}")) }
    })
    .await;
    count_endpoints(&cluster, 4).await;
    cluster.delete::<Deployment>("web").await;
    cluster.delete::<Service>("web").await;
    until("everything to be gone", async || {
        let sets = cluster.list::<ReplicaSet>().await.len();
        let pods = cluster.list::<Pod>().await.len();
        let slices: Vec<EndpointSlice> = cluster.list().await;
        let slices = slices.iter().filter(|slice| slice.name_any().starts_with("web")).count();
        if (sets, pods, slices) == (0, 0, 0) {
            Ok(())
        } else {
            Err(format!("{sets} {pods} {slices}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_stay_and_are_adopted_again() {
    let cluster = Cluster::start(1).await;
    cluster.create::<Deployment>(deployment(2)).await;
    rolled_out(&cluster, 2).await;
    let names = async || -> BTreeSet<String> {
        cluster.list::<Pod>().await.iter().map(ResourceExt::name_any).collect()
    };
    let before = names().await;
    let api: Api<Deployment> = cluster.api();
    let _ = api.delete("web", &DeleteParams::orphan()).await.unwrap();
    until("the deployment to go", async || match api.get_opt("web").await.unwrap() {
        None => Ok(()),
        Some(web) => Err(format!("{:?}", web.metadata.finalizers)),
    })
    .await;
    let sets: Vec<ReplicaSet> = cluster.list().await;
    assert!(sets[0].owner_references().is_empty(), "{:?}", sets[0].owner_references());
    cluster.create::<Deployment>(deployment(2)).await;
    rolled_out(&cluster, 2).await;
    assert_eq!(cluster.list::<ReplicaSet>().await.len(), 1);
    assert_eq!(names().await, before, "no pod was restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_deletion_goes_from_the_leaves() {
    let cluster = Cluster::start(1).await;
    cluster.create::<Deployment>(deployment(2)).await;
    rolled_out(&cluster, 2).await;
    let api: Api<Deployment> = cluster.api();
    let _ = api.delete("web", &DeleteParams::foreground()).await.unwrap();
    until("the deployment to go", async || match api.get_opt("web").await.unwrap() {
        None => Ok(()),
        Some(web) => Err(format!("{:?}", web.metadata.finalizers)),
    })
    .await;
    assert!(cluster.list::<ReplicaSet>().await.is_empty());
    assert!(cluster.list::<Pod>().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_45_endpoints_follow_readiness_at_once() {
    let cluster = Cluster::start(1).await;
    cluster.create::<Service>(service()).await;
    cluster.create::<Deployment>(deployment(3)).await;
    rolled_out(&cluster, 3).await;
    count_endpoints(&cluster, 3).await;
    let pod = cluster.list::<Pod>().await.remove(0).name_any();
    let api: Api<Pod> = cluster.api();
    for (ready, wanted) in [("False", 2), ("True", 3)] {
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let began = Instant::now();
        let patch = Patch::Strategic(status);
        api.patch_status(&pod, &PatchParams::default(), &patch).await.unwrap();
        count_endpoints(&cluster, wanted).await;
        // Milliseconds on an idle machine; the bound leaves room for a busy one.
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_25_pods_that_fit_nowhere_say_why_and_are_tried_again() {
    let cluster = Cluster::start(2).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let cordon = async |node: &str, cordoned: bool| {
        let patch = Patch::Merge(json!({"spec": {"unschedulable": cordoned}}));
        nodes.patch(node, &PatchParams::default(), &patch).await.unwrap();
    };
    cordon("n1", true).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "big"},
        "spec": {"containers": [{"name": "c", "image": "v1", "resources": {
            "requests": {"cpu": "7"}}}]},
    });
    cluster.create::<Pod>(pod.clone()).await;
    until("the pod on n2", async || {
        let placement = cluster.placement().await;
        if placement.contains_key("n2") { Ok(()) } else { Err(format!("{placement:?}")) }
    })
    .await;
    let mut second = pod;
    second["metadata"]["name"] = json!("second");
    cluster.create::<Pod>(second).await;
    until("the reason", async || {
        let second: Pod = cluster.get("second").await;
        let conditions = second.status.and_then(|status| status.conditions).unwrap_or_default();
        let scheduled = conditions.into_iter().find(|one| one.type_ == "PodScheduled");
        let scheduled = scheduled.ok_or("no condition")?;
        let told = (scheduled.status, scheduled.reason.unwrap(), scheduled.message.unwrap());
        let message =
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.".to_owned();
        let wanted = ("False".to_owned(), "Unschedulable".to_owned(), message);
        if told == wanted { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    cordon("n1", false).await;
    until("the pod on n1", async || {
        let placement = cluster.placement().await;
        if placement.contains_key("n1") { Ok(()) } else { Err(format!("{placement:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_26_a_burst_never_over_commits_a_node() {
    let cluster = Cluster::start(2).await;
    let mut burst = deployment(40);
    burst["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "500m"}});
    cluster.create::<Deployment>(burst).await;
    // 8 cores a node: 16 pods each, 8 wait.
    until("32 pods to be placed", async || {
        let placement = cluster.placement().await;
        let size = |node: &str| placement.get(node).map_or(0, Vec::len);
        let sizes = (size(""), size("n1"), size("n2"));
        assert!(sizes.1 <= 16 && sizes.2 <= 16, "{sizes:?}");
        if sizes == (8, 16, 16) { Ok(()) } else { Err(format!("{sizes:?}")) }
    })
    .await;
    cluster.add_node("n3").await;
    rolled_out(&cluster, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_ranges_of_both_families_that_do_not_overlap() {
    let cluster = Cluster::start(5).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let ranges = until("ranges", async || {
        let all = nodes.list(&kube::api::ListParams::default()).await.unwrap();
        let ranges: Vec<_> = all
            .iter()
            .filter_map(|node| node.spec.as_ref()?.pod_cidrs.clone())
            .filter(|ranges| ranges.len() == 2)
            .collect();
        if ranges.len() == 5 { Ok(ranges) } else { Err(format!("{ranges:?}")) }
    })
    .await;
    for family in 0..2 {
        let distinct: BTreeSet<_> = ranges.iter().map(|both| &both[family]).collect();
        assert_eq!(distinct.len(), 5, "{ranges:?}");
    }
    assert!(ranges.iter().all(|both| both[0].starts_with("10.244.") && both[0].ends_with("/24")));
    assert!(ranges.iter().all(|both| both[1].starts_with("fd00:244:") && both[1].ends_with("/64")));
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_60_a_deleted_namespace_takes_its_content_along() {
    let cluster = Cluster::start(1).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let created = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &created).await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "team");
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "team");
    let web = serde_json::from_value(deployment(3)).unwrap();
    deployments.create(&PostParams::default(), &web).await.unwrap();
    until("pods", async || {
        let count = pods.list(&kube::api::ListParams::default()).await.unwrap().items.len();
        if count == 3 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    let _ = namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    until("the namespace to go", async || match namespaces.get_opt("team").await.unwrap() {
        None => Ok(()),
        Some(namespace) => Err(format!("{:?}", namespace.status)),
    })
    .await;
    let left = pods.list(&kube::api::ListParams::default()).await.unwrap().items.len();
    assert_eq!(left, 0);
}
