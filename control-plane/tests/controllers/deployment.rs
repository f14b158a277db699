//! Deployments as `kubectl` shows and changes them, and by the names of Kubernetes' conformance tests
//! where there are such. What `kubectl` is expected to print is written from Kubernetes'.

use std::sync::atomic::Ordering;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, deployment, until};
use crate::rolled_out;

fn image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

async fn patch(cluster: &Cluster, change: &Value) {
    let deployments: Api<Deployment> = cluster.api();
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(change)).await.unwrap();
}

/// Status and reason of a condition of `web`.
fn condition(web: &Deployment, type_: &str) -> (String, String) {
    let conditions = web.status.as_ref().unwrap().conditions.as_ref().unwrap();
    let found = conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_71_history_and_undo_by_kubectl() {
    let cluster = Cluster::start(2).await;
    cluster.create::<Deployment>(deployment(3)).await;
    rolled_out(&cluster, 3).await;
    let Some(status) = cluster.kubectl("rollout status deploy/web --timeout=30s").await else {
        return;
    };
    assert_eq!(status, "deployment \"web\" successfully rolled out\n");
    let kubectl = async |line: &str| cluster.kubectl(line).await.unwrap();
    assert_eq!(kubectl("set image deploy/web c=v2").await, "deployment.apps/web image updated\n");
    let status = kubectl("rollout status deploy/web --timeout=30s").await;
    assert!(status.ends_with("deployment \"web\" successfully rolled out\n"), "{status}");
    let revision = async |wanted: &str| {
        until("the revision", async || {
            let web: Deployment = cluster.get("web").await;
            let found = web.annotations().get("deployment.kubernetes.io/revision").cloned();
            if found.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    revision("2").await;
    kubectl("annotate deploy web kubernetes.io/change-cause=second").await;
    until("the cause in the history", async || {
        let history = kubectl("rollout history deploy/web").await;
        if history.contains("second") { Ok(()) } else { Err(history) }
    })
    .await;
    assert_eq!(
        kubectl("rollout history deploy/web").await,
        "deployment.apps/web \nREVISION  CHANGE-CAUSE\n1         <none>\n2         second\n\n"
    );
    let second = kubectl("rollout history deploy/web --revision=2").await;
    assert!(second.contains("    Image:\tv2\n"), "{second}");
    assert_eq!(
        kubectl("rollout undo deploy/web --to-revision=1").await,
        "deployment.apps/web rolled back\n"
    );
    rolled_out(&cluster, 3).await;
    revision("3").await;
    let sets = kubectl("get rs --no-headers").await;
    let mut sizes: Vec<&str> =
        sets.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, ["0", "3"], "{sets}");
    let web: Deployment = cluster.get("web").await;
    let containers = web.spec.unwrap().template.spec.unwrap().containers;
    assert_eq!(containers[0].image.as_deref(), Some("v1"));
    // The first is the third now.
    let history = kubectl("rollout history deploy/web").await;
    let numbers: Vec<&str> =
        history.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(numbers, ["2", "3"], "{history}");
    assert_eq!(kubectl("rollout restart deploy/web").await, "deployment.apps/web restarted\n");
    rolled_out(&cluster, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_69_pause_and_resume_by_kubectl() {
    let cluster = Cluster::start(2).await;
    let mut web = deployment(10);
    web["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    cluster.create::<Deployment>(web).await;
    rolled_out(&cluster, 10).await;
    // New pods don't become ready, so that the rollout stands while it is paused.
    cluster.unready.store(true, Ordering::Relaxed);
    patch(&cluster, &image("v2")).await;
    until("two new pods", async || {
        let web: Deployment = cluster.get("web").await;
        let status = web.status.unwrap();
        if status.updated_replicas == Some(2) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    let Some(paused) = cluster.kubectl("rollout pause deploy/web").await else { return };
    assert_eq!(paused, "deployment.apps/web paused\n");
    let web = until("the pause to be told", async || {
        let web: Deployment = cluster.get("web").await;
        let told = condition(&web, "Progressing");
        if told.1 == "DeploymentPaused" { Ok(web) } else { Err(format!("{told:?}")) }
    })
    .await;
    assert_eq!(condition(&web, "Progressing").0, "Unknown");
    assert_eq!(condition(&web, "Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    // What would have come next does not.
    cluster.unready.store(false, Ordering::Relaxed);
    let pods: Api<Pod> = cluster.api();
    let ready =
        Patch::Strategic(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
    for pod in cluster.list::<Pod>().await {
        if pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("v2") {
            pods.patch_status(&pod.name_any(), &PatchParams::default(), &ready).await.unwrap();
        }
    }
    until("the new pods to be available", async || {
        let web: Deployment = cluster.get("web").await;
        let status = web.status.unwrap();
        if status.available_replicas == Some(11) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    let described = cluster.kubectl("describe deploy web").await.unwrap();
    let replicas =
        "Replicas:               10 desired | 2 updated | 11 total | 11 available | 0 unavailable";
    assert!(described.lines().any(|line| line == replicas), "{described}");
    assert!(
        described.lines().any(|line| line == "  Progressing    Unknown  DeploymentPaused"),
        "{described}"
    );
    assert_eq!(
        cluster.kubectl("rollout resume deploy/web").await.unwrap(),
        "deployment.apps/web resumed\n"
    );
    rolled_out(&cluster, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_73_describe_says_what_a_deployment_is() {
    let cluster = Cluster::start(2).await;
    let mut web = deployment(2);
    web["metadata"]["annotations"] = json!({"note": "1"});
    web["spec"]["minReadySeconds"] = json!(1);
    cluster.create::<Deployment>(web).await;
    rolled_out(&cluster, 2).await;
    let name = cluster.list::<ReplicaSet>().await[0].name_any();
    until("the revision", async || {
        let web: Deployment = cluster.get("web").await;
        web.annotations().get("deployment.kubernetes.io/revision").cloned().ok_or("none".to_owned())
    })
    .await;
    let Some(described) = cluster.kubectl("describe deployment web").await else { return };
    for line in [
        "Name:                   web".to_owned(),
        "Namespace:              default".to_owned(),
        "Annotations:            deployment.kubernetes.io/revision: 1".to_owned(),
        "                        note: 1".to_owned(),
        "Selector:               app=web".to_owned(),
        "Replicas:               2 desired | 2 updated | 2 total | 2 available | 0 unavailable"
            .to_owned(),
        "StrategyType:           RollingUpdate".to_owned(),
        "MinReadySeconds:        1".to_owned(),
        "RollingUpdateStrategy:  25% max unavailable, 25% max surge".to_owned(),
        "  Available      True    MinimumReplicasAvailable".to_owned(),
        "  Progressing    True    NewReplicaSetAvailable".to_owned(),
        "OldReplicaSets:  <none>".to_owned(),
        format!("NewReplicaSet:   {name} (2/2 replicas created)"),
    ] {
        assert!(described.lines().any(|told| told.trim_end() == line), "{line:?} in {described}");
    }
    let told = format!("Scaled up replica set {name} from 0 to 2");
    assert!(described.lines().any(|line| line.ends_with(&told)), "{described}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inv_62_a_manifest_names_its_namespace_and_goes_in_any_order() {
    const MANIFEST: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shield}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shield}
---
apiVersion: v1
kind: Service
metadata: {name: the-bus, namespace: shield}
spec:
  type: NodePort
  ports: [{nodePort: 31112, port: 8080, targetPort: 8080}]
  selector: {env: marvel}
---
apiVersion: v1
kind: Pod
metadata: {name: triskelion, namespace: shield, labels: {env: marvel}}
spec:
  containers: [{image: hello, name: bus-ctr, ports: [{containerPort: 8080}]}]
";
    let cluster = Cluster::start(1).await;
    let file = cluster.write("shield.yaml", MANIFEST);
    let Some(_) = cluster.kubectl("version --client").await else { return };
    let kubectl = async |line: &str| cluster.kubectl(line).await.unwrap();
    let applied = cluster.applied(&file).await;
    let told: Vec<&str> =
        applied.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(
        told,
        ["namespace/shield", "serviceaccount/default", "service/the-bus", "pod/triskelion"]
    );
    kubectl("wait --for=condition=Ready pod/triskelion -n shield --timeout=30s").await;
    let port = "get svc the-bus -n shield -o jsonpath={.spec.ports[0].nodePort}";
    assert_eq!(kubectl(port).await, "31112");
    // Without a type a Service has no node port, whatever common manifests say.
    let untyped = MANIFEST.replace("  type: NodePort\n", "").replace("the-bus", "untyped");
    let untyped = cluster.write("untyped.yaml", untyped.split("---").nth(2).unwrap());
    let refused = cluster.refused(&format!("create -f {untyped}")).await;
    assert!(
        refused.contains(
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"
        ),
        "{refused}"
    );
    // The namespace goes first, and its content with it, perhaps before kubectl comes to that.
    let gone = kubectl(&format!("delete -f {file} --ignore-not-found --timeout=60s")).await;
    assert!(gone.starts_with("namespace \"shield\" deleted\n"), "{gone}");
    let left = cluster.refused("get namespace shield").await;
    assert_eq!(left, "Error from server (NotFound): namespaces \"shield\" not found\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_deployment_should_delete_old_pods_and_create_new_ones() {
    let cluster = Cluster::start(2).await;
    let mut web = deployment(3);
    web["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create::<Deployment>(web).await;
    rolled_out(&cluster, 3).await;
    patch(&cluster, &image("v2")).await;
    until("the pods of the new version", async || {
        let pods: Vec<Pod> = cluster.list().await;
        let mut images: Vec<_> = pods
            .iter()
            .map(|pod| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap())
            .collect();
        images.sort();
        images.dedup();
        // Never both.
        assert!(images.len() < 2, "{images:?}");
        if images == ["v2"] && pods.len() == 3 { Ok(()) } else { Err(format!("{images:?}")) }
    })
    .await;
    rolled_out(&cluster, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deployment_should_support_rollover() {
    let cluster = Cluster::start(2).await;
    cluster.create::<Deployment>(deployment(4)).await;
    rolled_out(&cluster, 4).await;
    cluster.unready.store(true, Ordering::Relaxed);
    patch(&cluster, &image("broken")).await;
    until("the broken version to be under way", async || {
        let web: Deployment = cluster.get("web").await;
        let updated = web.status.unwrap().updated_replicas;
        if updated.is_some() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    cluster.unready.store(false, Ordering::Relaxed);
    patch(&cluster, &image("v3")).await;
    rolled_out(&cluster, 4).await;
    let sizes = cluster.list::<ReplicaSet>().await;
    let mut sizes: Vec<i32> =
        sizes.iter().map(|set| set.spec.as_ref().unwrap().replicas.unwrap()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 0, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deployment_should_delete_old_replica_sets() {
    let cluster = Cluster::start(1).await;
    let mut web = deployment(1);
    web["spec"]["revisionHistoryLimit"] = json!(0);
    cluster.create::<Deployment>(web).await;
    rolled_out(&cluster, 1).await;
    patch(&cluster, &image("v2")).await;
    rolled_out(&cluster, 1).await;
    until("one replica set", async || {
        let sets = cluster.list::<ReplicaSet>().await.len();
        if sets == 1 { Ok(()) } else { Err(sets.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deployment_should_have_a_working_scale_subresource() {
    let cluster = Cluster::start(1).await;
    cluster.create::<Deployment>(deployment(1)).await;
    rolled_out(&cluster, 1).await;
    let deployments: Api<Deployment> = cluster.api();
    let scale = deployments.get_scale("web").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(1));
    assert_eq!(scale.status.unwrap().selector.as_deref(), Some("app=web"));
    let two = Patch::Merge(json!({"spec": {"replicas": 2}}));
    deployments.patch_scale("web", &PatchParams::default(), &two).await.unwrap();
    rolled_out(&cluster, 2).await;
    let scale = deployments.get_scale("web").await.unwrap();
    assert_eq!(scale.status.unwrap().replicas, 2);
}
