//! Revisions of a deployment: the numbers that `kubectl rollout history` and `undo` go by.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt;
use serde_json::json;

use super::family::Family;
use crate::controllers::write::{Target, Write};

/// Annotation with the revision, on replica sets and on the deployment.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation with the earlier revisions of a set that was rolled back to.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The longest such history in bytes.
const HISTORY_MAX: usize = 2000;

/// Annotations of a deployment that say nothing about its template, or are the set's own.
const NOT_COPIED: [&str; 5] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
];

/// The revision of a set; 0 if it has none.
pub(super) fn of(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The revision that follows the highest of those sets.
pub(super) fn next<'a>(sets: impl Iterator<Item = &'a ReplicaSet>) -> i64 {
    sets.map(of).max().unwrap_or(0) + 1
}

/// Copies the deployment's annotations to its new set and numbers it. A set keeps a revision that
/// is higher; one that is used again after a rollback remembers its former numbers.
pub(super) fn annotate(set: &mut ReplicaSet, deployment: &Deployment, revision: i64) {
    let former = of(set);
    let annotations = set.annotations_mut();
    for (key, value) in deployment.annotations() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if former >= revision {
        return;
    }
    annotations.insert(REVISION.to_owned(), revision.to_string());
    if former > 0 {
        let history = annotations.get(HISTORY).map(String::as_str).unwrap_or_default();
        let mut numbers: Vec<String> =
            history.split(',').filter(|number| !number.is_empty()).map(str::to_owned).collect();
        numbers.push(former.to_string());
        while numbers.len() > 1 && numbers.join(",").len() > HISTORY_MAX {
            numbers.remove(0);
        }
        annotations.insert(HISTORY.to_owned(), numbers.join(","));
    }
}

/// The write that gives the deployment the revision of its new set, unless it has it.
pub(super) fn number_deployment(family: &Family<'_>) -> Option<Write> {
    let set = family.new.as_ref()?;
    let revision = set.set.annotations().get(REVISION)?;
    let deployment = family.deployment;
    if deployment.annotations().get(REVISION) == Some(revision) {
        return None;
    }
    Some(Write::MergePatch {
        target: Target::of(deployment),
        subresource: None,
        patch: json!({"metadata": {
            "resourceVersion": deployment.metadata.resource_version,
            "annotations": {REVISION: revision},
        }}),
    })
}

/// The old sets beyond `revisionHistoryLimit` (by default 10), lowest revision first. Only sets
/// without pods are forgotten.
pub(super) fn surplus_history(family: &Family<'_>) -> Vec<Write> {
    let limit = family.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let mut kept: Vec<_> = family
        .old
        .iter()
        .filter(|member| member.set.metadata.deletion_timestamp.is_none())
        .collect();
    kept.sort_by_key(|member| of(&member.set));
    let surplus = kept.len().saturating_sub(limit);
    let forgotten = kept.into_iter().take(surplus).filter(|member| {
        let observed = member.set.status.as_ref().and_then(|status| status.observed_generation);
        member.replicas() == 0
            && member.actual() == 0
            && member.set.metadata.generation.unwrap_or(0) <= observed.unwrap_or(0)
    });
    forgotten.map(|member| Write::delete(&member.set)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn set(annotations: &Value) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap()
    }

    fn deployment(annotations: &Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap()
    }

    #[test]
    fn inv_70_a_new_set_follows_the_highest_revision() {
        let old = [set(&json!({REVISION: "3"})), set(&json!({REVISION: "7"})), set(&json!({}))];
        assert_eq!(next(old.iter()), 8);
        assert_eq!(next(std::iter::empty()), 1);
    }

    #[test]
    fn inv_71_a_set_that_is_used_again_remembers_its_numbers() {
        let mut reused = set(&json!({REVISION: "1"}));
        annotate(&mut reused, &deployment(&json!({})), 3);
        assert_eq!((of(&reused), reused.annotations()[HISTORY].as_str()), (3, "1"));
        annotate(&mut reused, &deployment(&json!({})), 3);
        assert_eq!((of(&reused), reused.annotations()[HISTORY].as_str()), (3, "1"));
        annotate(&mut reused, &deployment(&json!({})), 5);
        assert_eq!((of(&reused), reused.annotations()[HISTORY].as_str()), (5, "1,3"));
    }

    #[test]
    fn inv_59_annotations_are_copied_but_for_those_of_the_tools() {
        let mut new = set(&json!({}));
        let from = deployment(&json!({
            "kubernetes.io/change-cause": "v2",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            REVISION: "9",
        }));
        annotate(&mut new, &from, 1);
        assert_eq!(new.annotations()["kubernetes.io/change-cause"], "v2");
        assert_eq!(new.annotations().len(), 2);
        assert_eq!(of(&new), 1);
    }
}
