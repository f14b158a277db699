//! Commands of daily work whose answers need controllers, as `kubectl` prints them on Kubernetes.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use crate::cluster::{Cluster, deployment, service, until};
use crate::rolled_out;

/// A line as its words.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_of_what_serves() {
    let cluster = Cluster::start(1).await;
    cluster.create::<Service>(service()).await;
    cluster.create::<Deployment>(deployment(2)).await;
    rolled_out(&cluster, 2).await;
    let Some(_) = cluster.kubectl("version").await else { return };
    let kubectl = async |line: &str| cluster.kubectl(line).await.unwrap();
    let info = kubectl("cluster-info").await;
    assert!(info.contains("Kubernetes control plane") && info.contains("is running at"), "{info}");
    let described = until("the endpoints in the description", async || {
        let described = kubectl("describe svc web").await;
        let line = described.lines().find(|line| line.starts_with("Endpoints:"));
        let line = line.unwrap_or_default().to_owned();
        // Two of each family, of which three are shown.
        if line.ends_with(" + 1 more...") { Ok(described) } else { Err(line) }
    })
    .await;
    for (field, value) in [
        ("Name:", "web"),
        ("Selector:", "app=web"),
        ("Type:", "ClusterIP"),
        ("TargetPort:", "http/TCP"),
    ] {
        let told = described.lines().any(|line| words(line) == [field, value]);
        assert!(told, "{field} {value} in {described}");
    }
    let endpoints = kubectl("get endpoints web --no-headers").await;
    assert_eq!(words(&endpoints)[1].matches(":8080").count(), 2, "{endpoints}");
    let node = kubectl("describe node n1").await;
    for part in
        ["Non-terminated Pods:          (2 in total)", "Taints:             <none>", "PodCIDRs:"]
    {
        assert!(node.contains(part), "{part} in {node}");
    }
    let events = kubectl("get events --field-selector reason=ScalingReplicaSet").await;
    assert_eq!(words(&events)[..5], ["LAST", "SEEN", "TYPE", "REASON", "OBJECT"]);
    assert!(events.contains("deployment/web"), "{events}");
    let set = kubectl("describe rs -l app=web").await;
    assert!(set.contains("Controlled By:  Deployment/web"), "{set}");
    let pods = kubectl("get pods -l app=web -o name").await;
    for pod in pods.lines() {
        let told = format!("Created {}", pod.replace('/', ": "));
        assert!(set.contains(&told), "{told} in {set}");
    }
    let pod = pods.lines().next().unwrap();
    let told = kubectl(&format!("describe {pod}")).await;
    assert!(told.contains("Successfully assigned default/"), "{told}");
    assert_eq!(
        kubectl("wait --for=condition=Available deploy/web --timeout=30s").await,
        "deployment.apps/web condition met\n"
    );
    assert_eq!(
        kubectl("delete deploy web --cascade=foreground --timeout=60s").await,
        "deployment.apps \"web\" deleted\n"
    );
    assert_eq!(kubectl("get pods -o name").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn taint_and_drain() {
    let cluster = Cluster::start(2).await;
    cluster.create::<Deployment>(deployment(4)).await;
    rolled_out(&cluster, 4).await;
    cluster
        .create::<DaemonSet>(json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "each"},
            "spec": {
                "selector": {"matchLabels": {"app": "each"}},
                "template": {
                    "metadata": {"labels": {"app": "each"}},
                    "spec": {"terminationGracePeriodSeconds": 1,
                             "containers": [{"name": "c", "image": "v1"}]},
                },
            },
        }))
        .await;
    let Some(_) = cluster.kubectl("rollout status ds/each --timeout=30s").await else { return };
    let kubectl = async |line: &str| cluster.kubectl(line).await.unwrap();
    let refused = cluster.refused("drain n1").await;
    assert!(
        refused.contains("cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): default/each-"),
        "{refused}"
    );
    let drained = kubectl("drain n1 --ignore-daemonsets --timeout=60s").await;
    assert!(drained.starts_with("node/n1 already cordoned\n"), "{drained}");
    assert_eq!(drained.matches("evicting pod default/web-").count(), 2, "{drained}");
    assert!(drained.ends_with("node/n1 drained\n"), "{drained}");
    rolled_out(&cluster, 4).await;
    let placement = cluster.placement().await;
    assert_eq!((placement["n1"].len(), placement["n2"].len()), (1, 5), "{placement:?}");
    assert_eq!(kubectl("uncordon n1").await, "node/n1 uncordoned\n");
    assert_eq!(kubectl("taint node n2 a=b:NoExecute").await, "node/n2 tainted\n");
    until("everything to be on n1", async || {
        let placement = cluster.placement().await;
        if placement.keys().eq(["n1"]) && placement["n1"].len() == 5 {
            Ok(())
        } else {
            Err(format!("{placement:?}"))
        }
    })
    .await;
    assert_eq!(kubectl("taint node n2 a-").await, "node/n2 untainted\n");
    assert_eq!(
        kubectl("rollout status ds/each --timeout=30s").await.lines().last(),
        Some("daemon set \"each\" successfully rolled out")
    );
}
