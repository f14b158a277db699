//! Pod templates of a deployment: equality, the hash in names, the replica set made from one.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::ResourceExt;

use crate::controllers::ownership;

/// Label of replica sets and their pods that tells the sets of a deployment apart.
pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// Characters of hashes in names: no vowels and nothing that looks like them, so that no words
/// come out (the alphabet of `rand.SafeEncodeString` in k8s.io/apimachinery).
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a template, different for each collision count. FNV-1a (32 bits) over the
/// template as JSON: the order of fields is that of the types and of sorted maps, so that it is
/// the same in every run; a field that is not set does not count, so that types may grow.
pub(super) fn hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    // The types have no map with keys other than text and no failing serializer.
    let json = serde_json::to_vec(template).unwrap_or_default();
    let collisions = collision_count.map(i32::to_be_bytes);
    let bytes = json.into_iter().chain(collisions.into_iter().flatten());
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let safe = |digit: u8| char::from(SAFE[usize::from(digit) % SAFE.len()]);
    hash.to_string().bytes().map(safe).collect()
}

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
    fn inv_72_the_hash_tells_templates_and_collisions_apart_and_is_safe_in_names() {
        let hashes = [
            hash(&template("a"), None),
            hash(&template("b"), None),
            hash(&template("a"), Some(1)),
            hash(&template("a"), Some(2)),
        ];
        for (index, hash) in hashes.iter().enumerate() {
            assert!(hash.bytes().all(|byte| SAFE.contains(&byte)), "{hash}");
            assert!(!hash.is_empty() && hash.len() <= 10, "{hash}");
            assert!(!hashes[..index].contains(hash), "{hashes:?}");
        }
        assert_eq!(hash(&template("a"), None), hashes[0], "the same in every run");
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
