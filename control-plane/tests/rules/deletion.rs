//! Deletion: times that no clock shows, and what becomes of dependents.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};

use crate::bed::{Bed, PODS, code, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

async fn running(bed: &Bed, name: &str) -> String {
    bed.post(PODS, &pod(name, &json!({}))).await.unwrap();
    let path = format!("{PODS}/{name}");
    let binding = json!({"target": {"name": "n1"}});
    bed.post(&format!("{path}/binding"), &binding).await.unwrap();
    path
}

#[tokio::test]
async fn no_grace_period_leaves_the_calendar() {
    let bed = Bed::start().await;
    let path = running(&bed, "patient").await;
    let forever = json!({"gracePeriodSeconds": i64::MAX});
    let marked = bed.delete(&path, &forever).await.unwrap();
    assert_eq!(marked["metadata"]["deletionTimestamp"], "9999-12-30T22:00:00Z");
    // Whoever reads it by type can.
    let pods: Api<Pod> = Api::default_namespaced(bed.client.clone());
    assert!(pods.get("patient").await.unwrap().metadata.deletion_timestamp.is_some());
    let shorter = bed.delete(&path, &json!({"gracePeriodSeconds": 5})).await.unwrap();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    assert!(pods.list(&ListParams::default()).await.is_ok());
    let long = json!({"terminationGracePeriodSeconds": 9_000_000_000_000_i64});
    bed.post(PODS, &pod("long", &long)).await.unwrap();
    let path = format!("{PODS}/long");
    bed.post(&format!("{path}/binding"), &json!({"target": {"name": "n1"}})).await.unwrap();
    let marked = bed.delete(&path, &Value::Null).await.unwrap();
    assert_eq!(marked["metadata"]["deletionTimestamp"], "9999-12-30T22:00:00Z");
}

#[tokio::test]
async fn a_negative_grace_period_is_one_second() {
    let bed = Bed::start().await;
    for (name, grace) in [("a", -1), ("b", i64::MIN)] {
        let path = running(&bed, name).await;
        let marked = bed.delete(&path, &json!({"gracePeriodSeconds": grace})).await.unwrap();
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 1);
    }
    let path = running(&bed, "c").await;
    let marked = bed.delete(&format!("{path}?gracePeriodSeconds=-7"), &Value::Null).await.unwrap();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 1);
    let path = running(&bed, "d").await;
    let refused = bed.delete(&format!("{path}?gracePeriodSeconds=soon"), &Value::Null).await;
    assert_eq!(code(&refused.unwrap_err()), 400);
}

/// The finalizers that a deletion leaves on a new ConfigMap, which one of its own keeps.
async fn left(bed: &Bed, name: &str, deletions: &[Value]) -> Value {
    let map = json!({"metadata": {"name": name, "finalizers": ["example.com/stay"]}});
    bed.post(MAPS, &map).await.unwrap();
    let path = format!("{MAPS}/{name}");
    for options in deletions {
        bed.delete(&path, options).await.unwrap();
    }
    bed.get(&path).await.unwrap()["metadata"]["finalizers"].clone()
}

#[tokio::test]
async fn the_last_policy_counts_and_no_policy_changes_none() {
    let bed = Bed::start().await;
    let policy = |policy: &str| json!({"propagationPolicy": policy});
    let stay = "example.com/stay";
    let table = [
        (vec![json!({})], json!([stay])),
        (vec![policy("Foreground")], json!([stay, "foregroundDeletion"])),
        (vec![policy("Foreground"), json!({})], json!([stay, "foregroundDeletion"])),
        (vec![policy("Foreground"), policy("Orphan")], json!([stay, "orphan"])),
        (vec![policy("Orphan"), policy("Foreground")], json!([stay, "foregroundDeletion"])),
        (vec![policy("Orphan"), policy("Background")], json!([stay])),
        (vec![json!({"orphanDependents": true})], json!([stay, "orphan"])),
        (vec![policy("Foreground"), json!({"orphanDependents": false})], json!([stay])),
    ];
    for (index, (deletions, expected)) in table.into_iter().enumerate() {
        let found = left(&bed, &format!("m{index}"), &deletions).await;
        assert_eq!(found, expected, "{deletions:?}");
    }
    let both = json!({"orphanDependents": true, "propagationPolicy": "Orphan"});
    let refused = bed.delete(&format!("{MAPS}/m0"), &both).await.unwrap_err();
    assert_eq!(
        refused["message"],
        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set"
    );
}

#[tokio::test]
async fn pods_of_a_replication_controller_and_of_a_job_stay_unless_told_to_go() {
    let bed = Bed::start().await;
    let template = json!({"metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "a", "image": "hello"}]}});
    let mut once = template.clone();
    once["spec"]["restartPolicy"] = json!("Never");
    let rows = [
        ("/api/v1/namespaces/default/replicationcontrollers", json!({"template": template})),
        ("/apis/batch/v1/namespaces/default/jobs", json!({"template": once})),
    ];
    for (path, spec) in rows {
        for name in ["a", "b"] {
            let object = json!({"metadata": {"name": name}, "spec": spec});
            bed.post(path, &object).await.unwrap();
        }
        bed.delete(&format!("{path}/a"), &json!({})).await.unwrap();
        let kept = bed.get(&format!("{path}/a")).await.unwrap();
        assert_eq!(kept["metadata"]["finalizers"], json!(["orphan"]), "{path}");
        let go = json!({"propagationPolicy": "Background"});
        bed.delete(&format!("{path}/b"), &go).await.unwrap();
        assert_eq!(code(&bed.get(&format!("{path}/b")).await.unwrap_err()), 404);
    }
}

/// Makes a pod that names another as its owner.
async fn own(bed: &Bed, name: &str, owner: &Value) {
    let reference = json!({
        "apiVersion": "v1", "kind": "Pod", "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    });
    let patch = json!({"metadata": {"ownerReferences": [reference]}});
    bed.patch("merge", &format!("{PODS}/{name}"), &patch).await.unwrap();
}

#[tokio::test]
async fn garbage_collector_should_not_be_blocked_by_dependency_circle() {
    let bed = Bed::controlled().await;
    let mut made = Vec::new();
    for name in ["pod1", "pod2", "pod3"] {
        made.push(bed.post(PODS, &pod(name, &json!({}))).await.unwrap());
    }
    own(&bed, "pod1", &made[2]).await;
    own(&bed, "pod2", &made[0]).await;
    own(&bed, "pod3", &made[1]).await;
    let foreground = json!({"propagationPolicy": "Foreground"});
    bed.delete(&format!("{PODS}/pod1"), &foreground).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(bed.client.clone());
    for name in ["pod1", "pod2", "pod3"] {
        let gone = await_condition(pods.clone(), name, |pod: Option<&Pod>| pod.is_none());
        let gone = tokio::time::timeout(LIMIT, gone).await;
        let left = pods.list(&ListParams::default()).await.unwrap();
        gone.unwrap_or_else(|_| panic!("{name} stays: {left:?}")).unwrap();
    }
}

#[tokio::test]
async fn garbage_collector_leaves_objects_of_the_cluster_that_name_an_owner_in_a_namespace() {
    let bed = Bed::controlled().await;
    let owned = |name: &str, kind: &str| {
        json!({"metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": kind, "name": "x", "uid": "0-0"}]}})
    };
    let nodes = "/api/v1/nodes";
    bed.post(nodes, &owned("misplaced", "ConfigMap")).await.unwrap();
    // One that the collector takes away afterwards shows that it has seen the first.
    let events: Api<Event> = Api::default_namespaced(bed.client.clone());
    let told = async {
        loop {
            let found = events.list(&ListParams::default()).await.unwrap();
            let about = |event: &&Event| event.involved_object.name.as_deref() == Some("misplaced");
            let told = found.items.iter().find(about).and_then(|event| event.reason.clone());
            if told.as_deref() == Some("OwnerRefInvalidNamespace") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, told).await.expect("the event in time");
    bed.post(nodes, &owned("orphan", "Node")).await.unwrap();
    let gone = async {
        while bed.get("/api/v1/nodes/orphan").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("the orphan goes");
    bed.get("/api/v1/nodes/misplaced").await.unwrap();
}
