//! Budgets that evictions have to keep to, by the names of Kubernetes' conformance tests.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::EvictParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, deployment, until};
use crate::rolled_out;

fn budget(spec: &Value) -> Value {
    let mut budget = json!({"metadata": {"name": "web"}, "spec": spec});
    budget["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
    budget
}

/// Waits until the budget has been looked at and allows so many disruptions.
async fn allows(cluster: &Cluster, disruptions: i32) -> PodDisruptionBudget {
    until("the budget's status", async || {
        let budget: PodDisruptionBudget = cluster.get("web").await;
        let status = budget.status.clone().unwrap_or_default();
        let current = status.observed_generation == budget.metadata.generation;
        if current && status.disruptions_allowed == disruptions && status.disrupted_pods.is_none() {
            Ok(budget)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn disruption_controller_should_block_an_eviction_until_the_pdb_is_updated_to_allow_it() {
    let cluster = Cluster::start(1).await;
    cluster.create::<Deployment>(deployment(3)).await;
    rolled_out(&cluster, 3).await;
    cluster.create::<PodDisruptionBudget>(budget(&json!({"minAvailable": 3}))).await;
    let status = allows(&cluster, 0).await.status.unwrap();
    assert_eq!((status.expected_pods, status.current_healthy, status.desired_healthy), (3, 3, 3));
    let condition = &status.conditions.unwrap()[0];
    assert_eq!(
        (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_str()),
        ("DisruptionAllowed", "False", "InsufficientPods")
    );
    let pods: Api<Pod> = Api::namespaced(cluster.impatient.clone(), "default");
    let first = cluster.list::<Pod>().await[0].name_any();
    let Err(kube::Error::Api(refused)) = pods.evict(&first, &EvictParams::default()).await else {
        panic!("the pod may go")
    };
    assert_eq!((refused.code, refused.reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(
        refused.message,
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    let causes = refused.details.unwrap().causes;
    assert_eq!(
        (causes[0].reason.as_str(), causes[0].message.as_str()),
        ("DisruptionBudget", "The disruption budget web needs 3 healthy pods and has 3 currently")
    );
    assert!(pods.get(&first).await.unwrap().metadata.deletion_timestamp.is_none());

    cluster.merge::<PodDisruptionBudget>("web", json!({"spec": {"minAvailable": 2}})).await;
    allows(&cluster, 1).await;
    pods.evict(&first, &EvictParams::default()).await.unwrap();
    until("the pod to go", async || {
        let found = pods.get_opt(&first).await.unwrap();
        found.map_or(Ok(()), |pod| Err(format!("{:?}", pod.metadata)))
    })
    .await;
    // Another one takes its place, and gives it back.
    rolled_out(&cluster, 3).await;
    allows(&cluster, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disruption_controller_should_observe_pod_disruption_budget_status_updated() {
    let cluster = Cluster::start(1).await;
    cluster.create::<PodDisruptionBudget>(budget(&json!({"maxUnavailable": "50%"}))).await;
    assert_eq!(allows(&cluster, 0).await.status.unwrap().expected_pods, 0);
    cluster.create::<Deployment>(deployment(5)).await;
    rolled_out(&cluster, 5).await;
    let status = allows(&cluster, 3).await.status.unwrap();
    assert_eq!((status.expected_pods, status.desired_healthy), (5, 2));
    cluster.merge::<Deployment>("web", json!({"spec": {"replicas": 2}})).await;
    let status = allows(&cluster, 1).await.status.unwrap();
    assert_eq!((status.expected_pods, status.desired_healthy), (2, 1));
}

/// A node is emptied as far as its budget lets go of pods, and `kubectl` waits for the rest.
#[tokio::test(flavor = "multi_thread")]
async fn kubectl_drain_keeps_to_budgets() {
    let cluster = Cluster::start(1).await;
    cluster.create::<Deployment>(deployment(3)).await;
    rolled_out(&cluster, 3).await;
    cluster.create::<PodDisruptionBudget>(budget(&json!({"maxUnavailable": 0}))).await;
    allows(&cluster, 0).await;
    let Some(table) = cluster.kubectl("get pdb --no-headers").await else { return };
    let row: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(row[..4], ["web", "N/A", "0", "0"]);
    let refused = cluster.refused("drain n1 --timeout=8s").await;
    assert!(
        refused.contains("(will retry after 5s): Cannot evict pod as it would violate the pod's disruption budget."),
        "{refused}"
    );
    assert_eq!(cluster.placement().await["n1"].len(), 3);
    cluster.add_node("n2").await;
    cluster.merge::<PodDisruptionBudget>("web", json!({"spec": {"maxUnavailable": 1}})).await;
    allows(&cluster, 1).await;
    let drained = cluster.kubectl("drain n1 --timeout=120s").await.unwrap();
    assert!(drained.ends_with("node/n1 drained\n"), "{drained}");
    assert_eq!(cluster.placement().await.keys().next_back().unwrap(), "n2");
    rolled_out(&cluster, 3).await;
}
