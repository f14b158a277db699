//! What a replica set makes of its pods, as tables.

use super::*;
use serde_json::{Value, json};

use crate::controllers::write::Deletion;

fn set(replicas: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "metadata": {
            "name": "web-abc", "namespace": "default", "uid": "rs", "generation": 3,
            "resourceVersion": "50",
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}, "annotations": {"note": "1"}},
                "spec": {"containers": [{"name": "c", "image": "hello"}]},
            },
        },
    }))
    .unwrap()
}

fn pod(name: &str, change: &Value) -> Arc<Pod> {
    let mut object = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "resourceVersion": "9",
            "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc",
                "uid": "rs", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {"containers": [], "nodeName": "n1"},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ]},
    });
    json_patch::merge(&mut object, change);
    Arc::new(serde_json::from_value(object).unwrap())
}

fn look(set: &ReplicaSet, pods: &[Arc<Pod>]) -> Outcome {
    look_after(set, pods, None)
}

fn look_after(set: &ReplicaSet, pods: &[Arc<Pod>], failure: Option<&Failure>) -> Outcome {
    let siblings = BTreeSet::from(["rs".to_owned()]);
    let now = "2026-01-01T00:00:10Z".parse().unwrap();
    reconcile(&Seen { set, pods, siblings: &siblings, failure, now })
}

fn status_of(outcome: &Outcome) -> k8s_openapi::api::apps::v1::ReplicaSetStatus {
    let first = outcome.writes.first().unwrap();
    let Write::ReplaceSubresource("status", Object::ReplicaSet(set)) = first else {
        panic!("{first:?}")
    };
    set.status.clone().unwrap()
}

#[test]
fn inv_64_missing_pods_are_created_from_the_template() {
    let outcome = look(&set(3), &[pod("a", &json!({}))]);
    let Write::SlowStart(created, _) = &outcome.writes[0] else { panic!("{outcome:?}") };
    assert_eq!(created.len(), 2);
    let Object::Pod(created) = &created[0] else { panic!("{created:?}") };
    assert_eq!(created.metadata.generate_name.as_deref(), Some("web-abc-"));
    assert_eq!(created.metadata.labels.as_ref().unwrap()["app"], "web");
    assert_eq!(created.metadata.annotations.as_ref().unwrap()["note"], "1");
    let owner = &created.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("ReplicaSet", "rs"));
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(true)));
    assert_eq!(created.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("hello"));
}

#[test]
fn inv_64_surplus_pods_are_deleted_in_rank_order() {
    let pods = [
        pod("a", &json!({})),
        pod("b", &json!({"status": {"phase": "Pending", "conditions": null}})),
        pod("c", &json!({})),
    ];
    let outcome = look(&set(2), &pods);
    let Write::Together(deletions) = &outcome.writes[0] else { panic!("{outcome:?}") };
    let [Write::Delete(Deletion { target, uid, .. })] = &deletions[..] else {
        panic!("{deletions:?}")
    };
    assert_eq!((target.key.name.as_str(), uid.as_str()), ("b", "b"));
}

#[test]
fn ended_and_leaving_pods_do_not_count() {
    let pods = [
        pod("a", &json!({})),
        pod("b", &json!({"status": {"phase": "Failed"}})),
        pod("c", &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
    ];
    let outcome = look(&set(2), &pods);
    let Write::SlowStart(created, _) = &outcome.writes[0] else { panic!("{outcome:?}") };
    assert_eq!(created.len(), 1);
    let status = status_of(&look(&set(1), &pods));
    assert_eq!((status.replicas, status.terminating_replicas), (1, Some(1)));
}

#[test]
fn inv_65_adopts_orphans_and_releases_strangers_before_counting() {
    let orphan = pod("orphan", &json!({"metadata": {"ownerReferences": null}}));
    let stranger = pod("stranger", &json!({"metadata": {"labels": {"app": "other"}}}));
    let foreign = pod(
        "foreign",
        &json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "x",
         "controller": true}]}}),
    );
    let outcome = look(&set(0), &[orphan, stranger, foreign]);
    let [Write::Together(claims)] = &outcome.writes[..] else { panic!("{outcome:?}") };
    let patches: Vec<_> = claims
        .iter()
        .map(|write| match write {
            Write::MergePatch { target, patch, .. } => {
                let owners = patch["metadata"]["ownerReferences"].as_array().unwrap().len();
                assert_eq!(patch["metadata"]["resourceVersion"], "9");
                (target.key.name.as_str(), owners)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(patches, [("orphan", 1), ("stranger", 0)]);
}

#[test]
fn status_counts_ready_available_and_fully_labeled() {
    let mut set = set(4);
    let spec = set.spec.as_mut().unwrap();
    spec.min_ready_seconds = Some(15);
    let template = spec.template.as_mut().unwrap().metadata.as_mut().unwrap();
    template.labels.as_mut().unwrap().insert("tier".into(), "front".into());
    let long_ready = json!({"metadata": {"labels": {"tier": "front"}}, "status": {"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2025-12-31T00:00:00Z"}]}});
    let pods = [
        pod("a", &long_ready),
        pod("b", &json!({})),
        pod("c", &json!({"status": {"conditions": null}})),
        pod("d", &json!({"status": {"conditions": null}})),
    ];
    let outcome = look(&set, &pods);
    let status = status_of(&outcome);
    assert_eq!(status.replicas, 4);
    assert_eq!(status.ready_replicas, Some(2));
    assert_eq!(status.available_replicas, Some(1));
    assert_eq!(status.fully_labeled_replicas, Some(1));
    assert_eq!(status.observed_generation, Some(3));
    // b has been ready for 10 of 15 seconds.
    assert_eq!(outcome.again_after, Some(Duration::from_secs(5)));
    set.status = Some(status);
    assert!(look(&set, &pods).writes.is_empty(), "a second look finds nothing to do");
}

#[test]
fn a_failed_creation_is_a_condition_until_the_count_is_right() {
    let failure =
        Failure { verb: "create", already_exists: false, message: "exceeded quota".to_owned() };
    let mut wanting = set(1);
    let outcome = look_after(&wanting, &[], Some(&failure));
    let status = status_of(&outcome);
    let condition = &status.conditions.as_ref().unwrap()[0];
    assert_eq!(condition.reason.as_deref(), Some("FailedCreate"));
    assert_eq!(condition.message.as_deref(), Some("exceeded quota"));
    assert!(matches!(&outcome.writes[1], Write::SlowStart(..)), "and it is tried again");
    wanting.status = Some(status);
    let outcome = look(&wanting, &[pod("a", &json!({}))]);
    assert_eq!(status_of(&outcome).conditions, None);
}

#[test]
fn a_set_that_is_being_deleted_only_reports() {
    let mut set = set(3);
    set.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    let outcome = look(&set, &[]);
    assert!(matches!(&outcome.writes[..], [Write::ReplaceSubresource("status", _)]));
}
