//! What a deployment makes of its replica sets, as tables, and a simulated rollout as a property.

use super::*;
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use serde_json::{Value, json};

use crate::controllers::write::Object;

const NOW: &str = "2026-01-01T01:00:00Z";

fn deployment(change: &Value) -> Deployment {
    let mut object = json!({
        "metadata": {
            "name": "web", "namespace": "default", "uid": "d", "generation": 1,
            "resourceVersion": "100",
        },
        "spec": {
            "replicas": 10,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "v2"}]},
            },
        },
    });
    json_patch::merge(&mut object, change);
    serde_json::from_value(object).unwrap()
}

/// A set of the deployment, made from the template with that image.
fn set(name: &str, image: &str, replicas: i32, available: i32, change: &Value) -> Arc<ReplicaSet> {
    let mut object = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "generation": 1,
            "labels": {"app": "web", template::HASH_LABEL: name},
            "annotations": {
                revision::REVISION: "1",
                "deployment.kubernetes.io/desired-replicas": "10",
                "deployment.kubernetes.io/max-replicas": "13",
            },
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web",
                "uid": "d", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web", template::HASH_LABEL: name}},
            "template": {
                "metadata": {"labels": {"app": "web", template::HASH_LABEL: name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
        "status": {"replicas": replicas, "readyReplicas": available,
                   "availableReplicas": available, "observedGeneration": 1},
    });
    json_patch::merge(&mut object, change);
    Arc::new(serde_json::from_value(object).unwrap())
}

fn look(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Outcome {
    let now = NOW.parse().unwrap();
    reconcile(&Seen { deployment, sets, pods: &[], failure: None, now })
}

/// Name and replicas of the sets that are created or replaced.
fn sizes(outcome: &Outcome) -> Vec<(String, i32)> {
    let sets = outcome.writes.iter().filter_map(|write| match write {
        Write::Create(Object::ReplicaSet(set)) => Some(("new".to_owned(), set)),
        Write::Replace(Object::ReplicaSet(set)) => Some((set.name_any(), set)),
        _ => None,
    });
    sets.map(|(name, set)| (name, set.spec.as_ref().unwrap().replicas.unwrap())).collect()
}

fn status_of(outcome: &Outcome) -> DeploymentStatus {
    let status = outcome.writes.iter().find_map(|write| match write {
        Write::ReplaceSubresource("status", Object::Deployment(it)) => it.status.clone(),
        _ => None,
    });
    status.unwrap()
}

fn condition(status: &DeploymentStatus, type_: &str) -> DeploymentCondition {
    let all = status.conditions.as_ref().unwrap();
    all.iter().find(|condition| condition.type_ == type_).unwrap().clone()
}

/// Status and reason of Progressing.
fn progressing(status: &DeploymentStatus) -> (String, String) {
    let condition = condition(status, "Progressing");
    (condition.status, condition.reason.unwrap())
}

fn rolling(surge: &Value, unavailable: &Value) -> Value {
    json!({"spec": {"strategy": {"rollingUpdate": {
        "maxSurge": surge, "maxUnavailable": unavailable}}}})
}

#[test]
fn inv_63_a_new_deployment_makes_a_set_with_all_replicas() {
    let outcome = look(&deployment(&json!({})), &[]);
    assert_eq!(sizes(&outcome), [("new".to_owned(), 10)]);
    let Write::Create(Object::ReplicaSet(set)) = &outcome.writes[0] else { panic!("{outcome:?}") };
    assert_eq!(set.annotations()[revision::REVISION], "1");
    let status = status_of(&outcome);
    assert_eq!(progressing(&status), ("True".into(), "NewReplicaSetCreated".into()));
    assert_eq!(condition(&status, "Available").reason.unwrap(), "MinimumReplicasUnavailable");
    assert_eq!(status.observed_generation, Some(1));
}

#[test]
fn inv_67_rounding_of_surge_and_unavailability() {
    // (maxSurge, maxUnavailable, replicas) -> pods
    let table = [
        (json!("25%"), json!("25%"), 10, (3, 2)),
        (json!("25%"), json!("25%"), 1, (1, 0)),
        (json!("25%"), json!("25%"), 4, (1, 1)),
        (json!("10%"), json!("0%"), 3, (1, 0)),
        (json!("0%"), json!("10%"), 3, (0, 1)),
        (json!(0), json!(0), 5, (0, 1)),
        (json!(2), json!(7), 3, (2, 3)),
        (json!("100%"), json!("100%"), 3, (3, 3)),
        (Value::Null, Value::Null, 10, (3, 2)),
    ];
    for (surge, unavailable, replicas, expected) in table {
        let mut deployment = deployment(&rolling(&surge, &unavailable));
        deployment.spec.as_mut().unwrap().replicas = Some(replicas);
        let leeway = Family::new(&deployment, &[]).leeway();
        assert_eq!(
            (leeway.surge, leeway.unavailable),
            expected,
            "{surge} {unavailable} {replicas}"
        );
    }
}

#[test]
fn inv_66_a_rollout_goes_up_by_the_surge_and_down_by_what_may_be_missing() {
    let deployment = deployment(&rolling(&json!(1), &json!(1)));
    let outcome = look(&deployment, &[set("old", "v1", 10, 10, &json!({}))]);
    // 11 pods at most, 9 available at least: the new set has one, and the old may lose one.
    assert_eq!(sizes(&outcome), [("new".to_owned(), 1), ("old".to_owned(), 9)]);
    let sets = [set("old", "v1", 9, 9, &json!({})), set("new", "v2", 1, 0, &json!({}))];
    assert_eq!(sizes(&look(&deployment, &sets))[0], ("new".to_owned(), 2));
    let sets = [set("old", "v1", 9, 9, &json!({})), set("new", "v2", 2, 0, &json!({}))];
    let outcome = look(&deployment, &sets);
    // No more room above, and nothing to spare below.
    assert!(sizes(&outcome).iter().all(|(name, size)| name == "new" && *size == 2), "{outcome:?}");
}

#[test]
fn inv_66_replicas_of_old_sets_that_serve_nobody_go_first() {
    let sets = [
        set(
            "older",
            "v0",
            2,
            0,
            &json!({"metadata": {"creationTimestamp": "2025-01-01T00:00:00Z"}}),
        ),
        set("old", "v1", 8, 8, &json!({"metadata": {"creationTimestamp": "2025-01-02T00:00:00Z"}})),
        set("new", "v2", 3, 3, &json!({"metadata": {"annotations": {revision::REVISION: "3"}}})),
    ];
    let outcome = look(&deployment(&json!({})), &sets);
    // 13 pods, 8 must stay available, 11 are: both that serve nobody go, and three that do.
    assert_eq!(sizes(&outcome), [("older".to_owned(), 0), ("old".to_owned(), 5)]);
}

#[test]
fn inv_67_recreate_waits_until_the_old_pods_are_gone() {
    let change = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}});
    let deployment = deployment(&change);
    let now = NOW.parse().unwrap();
    let outcome = look(&deployment, &[set("old", "v1", 10, 10, &json!({}))]);
    assert_eq!(sizes(&outcome), [("old".to_owned(), 0)]);
    let sets = [set("old", "v1", 0, 0, &json!({}))];
    let pod = |phase: &str| -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "default", "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "old", "uid": "old",
                     "controller": true}]},
                "status": {"phase": phase},
            }))
            .unwrap(),
        )
    };
    for (phase, expected) in [("Running", vec![]), ("Failed", vec![("new".to_owned(), 10)])] {
        let pods = [pod(phase)];
        let seen = Seen { deployment: &deployment, sets: &sets, pods: &pods, failure: None, now };
        assert_eq!(sizes(&reconcile(&seen)), expected, "{phase}");
    }
}

#[test]
fn inv_69_a_paused_deployment_scales_but_does_not_roll() {
    let mut paused = deployment(&json!({"spec": {"paused": true}}));
    let sets = [set("old", "v1", 10, 10, &json!({}))];
    let outcome = look(&paused, &sets);
    assert!(sizes(&outcome).is_empty(), "{outcome:?}");
    let status = status_of(&outcome);
    assert_eq!(progressing(&status), ("Unknown".into(), "DeploymentPaused".into()));
    assert_eq!(condition(&status, "Available").reason.unwrap(), "MinimumReplicasAvailable");
    assert_eq!((status.updated_replicas, status.replicas), (None, Some(10)));
    paused.spec.as_mut().unwrap().replicas = Some(12);
    assert_eq!(sizes(&look(&paused, &sets)), [("old".to_owned(), 12)]);
    // Resumed: the rollout goes on.
    paused.status = Some(status);
    let spec = paused.spec.as_mut().unwrap();
    (spec.paused, spec.replicas) = (None, Some(10));
    let outcome = look(&paused, &sets);
    assert_eq!(sizes(&outcome)[0].0, "new");
}

#[test]
fn inv_74_scaling_in_the_middle_of_a_rollout_is_proportional() {
    // The example of the Kubernetes documentation: 10 replicas, surge 3, scaled to 15 while
    // 8 are old and 5 are new: 3 of the 5 further pods go to the larger set, 2 to the other.
    let change = json!({"spec": {"replicas": 15, "strategy": {"rollingUpdate": {
        "maxSurge": 3, "maxUnavailable": 2}}}});
    let sets = [set("old", "v1", 8, 8, &json!({})), set("new", "v2", 5, 0, &json!({}))];
    let mut sizes = sizes(&look(&deployment(&change), &sets));
    sizes.sort();
    assert_eq!(sizes, [("new".to_owned(), 7), ("old".to_owned(), 11)]);
}

#[test]
fn inv_74_what_rounding_leaves_goes_to_the_largest() {
    // 11 replicas and a surge of 3 make 14; a fourteenth pod is less than half of a set's share.
    let change = json!({"spec": {"replicas": 11, "strategy": {"rollingUpdate": {
        "maxSurge": 3, "maxUnavailable": 2}}}});
    let sets = [
        set("a", "v0", 4, 4, &json!({})),
        set("b", "v1", 5, 5, &json!({})),
        set("c", "v2", 4, 0, &json!({})),
    ];
    let mut sizes = sizes(&look(&deployment(&change), &sets));
    sizes.sort();
    assert_eq!(sizes, [("a".to_owned(), 4), ("b".to_owned(), 6), ("c".to_owned(), 4)]);
}

#[test]
fn inv_74_scaling_a_settled_deployment() {
    for (replicas, name) in [(15, "up"), (3, "down"), (0, "to zero")] {
        let deployment = deployment(&json!({"spec": {"replicas": replicas}}));
        let sets = [set("current", "v2", 10, 10, &json!({}))];
        assert_eq!(sizes(&look(&deployment, &sets)), [("current".to_owned(), replicas)], "{name}");
    }
}

#[test]
fn inv_70_the_deployment_gets_the_number_of_its_set() {
    let mut deployment = deployment(&json!({}));
    let sets = [
        set("old", "v1", 0, 0, &json!({})),
        set("new", "v2", 10, 10, &json!({"metadata": {"annotations": {revision::REVISION: "2"}}})),
    ];
    let status = status_of(&look(&deployment, &sets));
    assert_eq!(progressing(&status), ("True".into(), "NewReplicaSetAvailable".into()));
    deployment.status = Some(status);
    let outcome = look(&deployment, &sets);
    let [Write::MergePatch { patch, .. }] = &outcome.writes[..] else { panic!("{outcome:?}") };
    assert_eq!(patch["metadata"]["annotations"][revision::REVISION], "2");
    deployment.annotations_mut().insert(revision::REVISION.into(), "2".into());
    assert_eq!(look(&deployment, &sets), Outcome::default(), "settled: nothing to do");
}

#[test]
fn inv_71_a_rollback_uses_the_old_set_again_with_a_new_number() {
    let deployment = deployment(&json!({}));
    let sets = [
        set("first", "v2", 0, 0, &json!({})),
        set(
            "second",
            "v1",
            10,
            10,
            &json!({"metadata": {"annotations": {revision::REVISION: "2"}}}),
        ),
    ];
    let outcome = look(&deployment, &sets);
    let Write::Replace(Object::ReplicaSet(first)) = &outcome.writes[0] else {
        panic!("{outcome:?}")
    };
    assert_eq!(first.name_any(), "first");
    assert_eq!(first.annotations()[revision::REVISION], "3");
    assert_eq!(first.annotations()["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!(first.spec.as_ref().unwrap().replicas, Some(3));
}

#[test]
fn inv_68_history_beyond_the_limit_is_forgotten_when_the_rollout_is_done() {
    let mut deployment = deployment(&json!({"spec": {"revisionHistoryLimit": 1},
        "metadata": {"annotations": {revision::REVISION: "4"}}}));
    let numbered =
        |number: &str| json!({"metadata": {"annotations": {revision::REVISION: number}}});
    let sets = [
        set("r1", "a", 0, 0, &numbered("1")),
        set("r2", "b", 0, 0, &numbered("2")),
        set("r3", "c", 0, 0, &numbered("3")),
        set("r4", "v2", 10, 10, &numbered("4")),
    ];
    deployment.status = Some(status_of(&look(&deployment, &sets)));
    let outcome = look(&deployment, &sets);
    let gone: Vec<_> = outcome
        .writes
        .iter()
        .map(|write| match write {
            Write::Delete(deletion) => deletion.target.key.name.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(gone, ["r1", "r2"]);
}

#[test]
fn inv_68_the_deadline_counts_from_the_last_progress() {
    let since = |time: &str, replicas: i32| {
        json!({"spec": {"progressDeadlineSeconds": 300}, "status": {
            "observedGeneration": 1, "replicas": 10, "updatedReplicas": replicas,
            "readyReplicas": 9, "availableReplicas": 9, "conditions": [
                {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
                 "lastUpdateTime": time, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let sets = [set("new", "v2", 10, 9, &json!({}))];
    let late = deployment(&since("2026-01-01T00:55:00Z", 10));
    let status = status_of(&look(&late, &sets));
    assert_eq!(progressing(&status), ("False".into(), "ProgressDeadlineExceeded".into()));
    let in_time = deployment(&since("2026-01-01T00:56:00Z", 10));
    let outcome = look(&in_time, &sets);
    assert_eq!(outcome.again_after, Some(std::time::Duration::from_secs(61)));
    // One more updated replica than before: the clock starts again.
    let moved = deployment(&since("2026-01-01T00:00:00Z", 9));
    let status = status_of(&look(&moved, &sets));
    let condition = condition(&status, "Progressing");
    assert_eq!(condition.reason.as_deref(), Some("ReplicaSetUpdated"));
    let time = |text: &str| text.parse::<Timestamp>().unwrap();
    assert_eq!(condition.last_update_time.unwrap().0, time(NOW));
    assert_eq!(condition.last_transition_time.unwrap().0, time("2026-01-01T00:00:00Z"));
}

#[test]
fn inv_68_each_kind_of_progress_counts() {
    // Updated, ready and available pods before; all but the first are progress to (10, 9, 9).
    let table = [
        ((10, 9, 9), "ProgressDeadlineExceeded"),
        ((9, 9, 9), "ReplicaSetUpdated"),
        ((10, 8, 9), "ReplicaSetUpdated"),
        ((10, 9, 8), "ReplicaSetUpdated"),
    ];
    for ((updated, ready, available), reason) in table {
        let before = deployment(&json!({"status": {
            "replicas": 10, "updatedReplicas": updated, "readyReplicas": ready,
            "availableReplicas": available, "conditions": [
                {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
                 "lastUpdateTime": "2026-01-01T00:00:00Z"}]}}));
        let status = status_of(&look(&before, &[set("new", "v2", 10, 9, &json!({}))]));
        assert_eq!(progressing(&status).1, reason, "{updated} {ready} {available}");
    }
}

#[test]
fn a_taken_name_raises_the_collision_count() {
    let deployment = deployment(&json!({}));
    let name = template::new_replica_set(&deployment).name_any();
    let stranger = set(
        &name,
        "other",
        1,
        1,
        &json!({"metadata": {"labels": null, "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x", "uid": "x", "controller": true}]}}),
    );
    let failure =
        Failure { verb: "create", already_exists: true, message: "already exists".into() };
    let now = NOW.parse().unwrap();
    let seen = Seen {
        deployment: &deployment,
        sets: &[stranger],
        pods: &[],
        failure: Some(&failure),
        now,
    };
    let outcome = reconcile(&seen);
    assert_eq!(status_of(&outcome).collision_count, Some(1));
    let mut next = deployment.clone();
    next.status = Some(status_of(&outcome));
    assert_ne!(template::new_replica_set(&next).name_any(), name);
}
