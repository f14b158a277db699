//! Numbers in statuses, and what moves `metadata.generation`.

use serde_json::{Value, json};

use crate::bed::Bed;

fn workload(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "a", "image": "hello"}]},
        },
    }})
}

#[tokio::test]
async fn numbers_in_statuses_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let negative = "must be greater than or equal to 0";
    let all = "cannot be greater than status.replicas";
    let apps = "/apis/apps/v1/namespaces/default";
    for kind in ["deployments", "replicasets", "statefulsets", "daemonsets"] {
        bed.post(&format!("{apps}/{kind}"), &workload("w")).await.unwrap();
    }
    let budget = json!({"metadata": {"name": "w"}, "spec": {"minAvailable": 1}});
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    bed.post(budgets, &budget).await.unwrap();
    for (kind, status, field, value, why) in [
        ("deployments", json!({"unavailableReplicas": -1}), "unavailableReplicas", -1, negative),
        ("deployments", json!({"replicas": 1, "readyReplicas": 2}), "readyReplicas", 2, all),
        ("deployments", json!({"replicas": 1, "updatedReplicas": 2}), "updatedReplicas", 2, all),
        (
            "deployments",
            json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 2}),
            "availableReplicas",
            2,
            "cannot be greater than readyReplicas",
        ),
        (
            "replicasets",
            json!({"replicas": 1, "fullyLabeledReplicas": 2}),
            "fullyLabeledReplicas",
            2,
            all,
        ),
        ("replicasets", json!({"observedGeneration": -1}), "observedGeneration", -1, negative),
        ("statefulsets", json!({"replicas": 1, "currentReplicas": 2}), "currentReplicas", 2, all),
        (
            "statefulsets",
            json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 2}),
            "availableReplicas",
            2,
            "cannot be greater than status.readyReplicas",
        ),
        ("daemonsets", json!({"numberReady": -1}), "numberReady", -1, negative),
    ] {
        let path = format!("{apps}/{kind}/w/status");
        let found = bed.refused_change(&path, &json!({"status": status})).await;
        assert_eq!(
            found,
            [format!("status.{field}: Invalid value: {value}: {why}")],
            "{kind} {status}"
        );
    }
    let fewer = json!({"status": {"expectedPods": -1}});
    let found = bed.refused_change(&format!("{budgets}/w/status"), &fewer).await;
    assert_eq!(found, [format!("status.expectedPods: Invalid value: -1: {negative}")]);
    // How often names have collided is never forgotten.
    let path = format!("{apps}/deployments/w/status");
    let collided = |count: i64| json!({"status": {"collisionCount": count}});
    bed.patch("merge", &path, &collided(2)).await.unwrap();
    assert_eq!(
        bed.refused_change(&path, &collided(1)).await,
        ["status.collisionCount: Invalid value: 1: cannot be decremented"]
    );
}

#[tokio::test]
async fn annotations_move_the_generation_of_deployments_alone() {
    let bed = Bed::start().await;
    for (kind, moves) in [("deployments", 1), ("replicasets", 0), ("statefulsets", 0)] {
        let path = format!("/apis/apps/v1/namespaces/default/{kind}");
        bed.post(&path, &workload("w")).await.unwrap();
        let path = format!("{path}/w");
        let mut expected = 1;
        for (change, by) in [
            (json!({"metadata": {"annotations": {"a": "b"}}}), moves),
            (json!({"metadata": {"annotations": {"a": "b"}}}), 0),
            (json!({"metadata": {"labels": {"a": "b"}}}), 0),
            (json!({"spec": {"replicas": 3}}), 1),
        ] {
            expected += by;
            let changed = bed.patch("merge", &path, &change).await.unwrap();
            assert_eq!(changed["metadata"]["generation"], expected, "{kind} {change}");
        }
        let status = json!({"metadata": {"annotations": {"a": "c"}}, "status": {"replicas": 1}});
        let written = bed.patch("merge", &format!("{path}/status"), &status).await.unwrap();
        assert_eq!(written["metadata"]["generation"], expected, "{kind}: a status moves nothing");
    }
}
