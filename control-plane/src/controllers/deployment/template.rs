//! Pod templates of a deployment: equality, the hash in names, the replica set made from one.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::ResourceExt;

use crate::controllers::ownership;
use crate::controllers::template_hash::hash;

/// Label of replica sets and their pods that tells the sets of a deployment apart.
pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// Whether the set was made from the deployment's present template.
pub(super) fn is_current(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let present = deployment.spec.as_ref().map(|spec| &spec.template);
    let made = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    match (made, present) {
        (Some(made), Some(present)) => without_hash(made) == without_hash(present),
        _ => false,
    }
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    if template.metadata.as_ref().is_some_and(|meta| {
        *meta
            == ObjectMeta {
                labels: Some(std::collections::BTreeMap::new()),
                ..ObjectMeta::default()
            }
    }) {
        template.metadata = None;
    }
    template
}

/// A replica set for the deployment's present template, without replicas.
pub(super) fn new_replica_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash(&spec.template, collisions);
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    let mut match_labels = spec.selector.match_labels.unwrap_or_default();
    match_labels.insert(HASH_LABEL.to_owned(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.metadata.namespace.clone(),
            labels: meta.labels.clone(),
            owner_references: Some(vec![ownership::controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: Some(match_labels),
                match_expressions: spec.selector.match_expressions,
            },
            template: Some(template),
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        }))
        .unwrap()
    }

    #[test]
    fn inv_72_set_selector_and_pods_carry_the_hash() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template("a"),
                     "minReadySeconds": 7},
        }))
        .unwrap();
        let set = new_replica_set(&deployment);
        let hash = hash(&template("a"), None);
        assert_eq!(set.name_any(), format!("web-{hash}"));
        assert_eq!(set.labels()[HASH_LABEL], hash);
        assert_eq!(set.labels()["app"], "web");
        let spec = set.spec.as_ref().unwrap();
        assert_eq!(spec.selector.match_labels.as_ref().unwrap()[HASH_LABEL], hash);
        let labels = spec.template.as_ref().unwrap().metadata.as_ref().unwrap().labels.as_ref();
        assert_eq!(labels.unwrap()[HASH_LABEL], hash);
        assert_eq!(spec.min_ready_seconds, Some(7));
        assert!(is_current(&set, &deployment));
        let mut changed = deployment.clone();
        changed.spec.as_mut().unwrap().template = template("b");
        assert!(!is_current(&set, &changed));
    }
}
