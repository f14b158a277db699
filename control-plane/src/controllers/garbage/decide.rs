//! What becomes of an object whose owners go, and of an owner that waits for its dependents.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PropagationPolicy;
use serde_json::json;

use crate::controllers::ownership;
use crate::controllers::write::{Deletion, Target, Write};

/// Finalizer of an owner that goes after its dependents.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents stay.
const ORPHAN: &str = "orphan";

/// The state of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// It is there.
    Present,
    /// It is being deleted and waits for its dependents.
    Waiting,
    /// It is gone.
    Absent,
}

impl Owner {
    /// The state of an owner that is there.
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let waits = meta.deletion_timestamp.is_some() && has_finalizer(meta, FOREGROUND);
        if waits { Self::Waiting } else { Self::Present }
    }
}

/// An object that names an owner.
pub(super) struct Dependent {
    pub(super) target: Target,
    pub(super) meta: ObjectMeta,
}

/// Whether the object is an owner on its way out that has to deal with its dependents first.
pub(super) fn waits_for_dependents(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
        && (has_finalizer(meta, FOREGROUND) || has_finalizer(meta, ORPHAN))
}

/// What to do about an object with these owners, in the order of its references: as long as one
/// is there it stays, without the references that lead nowhere; else it goes.
pub(super) fn dependent(target: &Target, meta: &ObjectMeta, owners: &[Owner]) -> Option<Write> {
    if owners.is_empty() || meta.deletion_timestamp.is_some() {
        return None;
    }
    if owners.contains(&Owner::Present) {
        let references = meta.owner_references.iter().flatten().zip(owners);
        let solid: Vec<OwnerReference> = references
            .filter(|(_, owner)| **owner == Owner::Present)
            .map(|(reference, _)| reference.clone())
            .collect();
        return (solid.len() < owners.len()).then(|| ownership::set_owners(target, meta, &solid));
    }
    // With an owner that waits, the dependent goes the same way: its own dependents first.
    let foreground = owners.contains(&Owner::Waiting);
    let propagation =
        if foreground { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
    Some(delete(target, meta, propagation))
}

/// What to do about an owner that waits: with `orphan` its dependents lose the reference, with
/// `foregroundDeletion` they are deleted; when none is left to wait for, it loses the finalizer.
pub(super) fn leaving_owner(
    target: &Target,
    meta: &ObjectMeta,
    dependents: &[Dependent],
) -> Vec<Write> {
    let together = |writes: Vec<Write>| {
        if writes.is_empty() { Vec::new() } else { vec![Write::Together(writes)] }
    };
    if has_finalizer(meta, ORPHAN) {
        if dependents.is_empty() {
            return vec![without_finalizer(target, meta, ORPHAN)];
        }
        return together(dependents.iter().map(|dependent| orphan(dependent, meta)).collect());
    }
    let blocking = |dependent: &Dependent| {
        let references = dependent.meta.owner_references.iter().flatten();
        references
            .filter(|reference| Some(&reference.uid) == meta.uid.as_ref())
            .any(|reference| reference.block_owner_deletion == Some(true))
    };
    if !dependents.iter().any(blocking) {
        return vec![without_finalizer(target, meta, FOREGROUND)];
    }
    let staying = dependents.iter().filter(|dependent| dependent.meta.deletion_timestamp.is_none());
    together(
        staying
            .map(|dependent| {
                let others = dependent.meta.owner_references.iter().flatten();
                if others.clone().count() > 1 {
                    // Other owners may want it: it only loses this one.
                    return orphan(dependent, meta);
                }
                delete(&dependent.target, &dependent.meta, PropagationPolicy::Foreground)
            })
            .collect(),
    )
}

fn orphan(dependent: &Dependent, owner: &ObjectMeta) -> Write {
    let mut references = dependent.meta.owner_references.clone().unwrap_or_default();
    references.retain(|reference| Some(&reference.uid) != owner.uid.as_ref());
    ownership::set_owners(&dependent.target, &dependent.meta, &references)
}

fn delete(target: &Target, meta: &ObjectMeta, propagation: PropagationPolicy) -> Write {
    Write::Delete(Deletion {
        target: target.clone(),
        uid: meta.uid.clone().unwrap_or_default(),
        grace_period_seconds: None,
        propagation: Some(propagation),
    })
}

fn has_finalizer(meta: &ObjectMeta, name: &str) -> bool {
    meta.finalizers.iter().flatten().any(|finalizer| finalizer == name)
}

fn without_finalizer(target: &Target, meta: &ObjectMeta, name: &str) -> Write {
    let finalizers = meta.finalizers.iter().flatten().filter(|finalizer| *finalizer != name);
    let finalizers: Vec<&String> = finalizers.collect();
    Write::MergePatch {
        target: target.clone(),
        subresource: None,
        patch: json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "finalizers": finalizers,
        }}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::Value;

    fn meta(value: Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    fn target(name: &str) -> Target {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("default".into());
        pod.metadata.name = Some(name.into());
        Target::of(&pod)
    }

    fn owned_by(uids: &[&str]) -> ObjectMeta {
        let owners: Vec<_> = uids
            .iter()
            .map(|uid| {
                json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": uid, "uid": uid,
                       "blockOwnerDeletion": true})
            })
            .collect();
        meta(json!({"name": "p", "uid": "p", "resourceVersion": "3", "ownerReferences": owners}))
    }

    fn propagation(write: Option<&Write>) -> Option<PropagationPolicy> {
        match write {
            Some(Write::Delete(deletion)) => deletion.propagation.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn inv_65_a_dependent_goes_with_its_last_owner() {
        let write = dependent(&target("p"), &owned_by(&["a"]), &[Owner::Absent]);
        assert!(matches!(propagation(write.as_ref()), Some(PropagationPolicy::Background)));
        assert_eq!(dependent(&target("p"), &owned_by(&["a"]), &[Owner::Present]), None);
        assert_eq!(dependent(&target("p"), &owned_by(&[]), &[]), None);
        let waiting = [Owner::Absent, Owner::Waiting];
        let write = dependent(&target("p"), &owned_by(&["a", "b"]), &waiting);
        assert!(matches!(propagation(write.as_ref()), Some(PropagationPolicy::Foreground)));
    }

    #[test]
    fn references_that_lead_nowhere_are_taken_off() {
        let owners = [Owner::Absent, Owner::Present, Owner::Waiting];
        let write = dependent(&target("p"), &owned_by(&["a", "b", "c"]), &owners);
        let Some(Write::MergePatch { patch, .. }) = write else { panic!("{write:?}") };
        let left = patch["metadata"]["ownerReferences"].as_array().unwrap();
        assert_eq!((left.len(), &left[0]["uid"]), (1, &json!("b")));
    }

    #[test]
    fn foreground_waits_for_what_blocks() {
        let owner = meta(json!({"name": "a", "uid": "a", "finalizers": ["x", FOREGROUND],
                                "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert!(waits_for_dependents(&owner));
        let dependents = [Dependent { target: target("p"), meta: owned_by(&["a"]) }];
        let writes = leaving_owner(&target("a"), &owner, &dependents);
        let [Write::Together(deletions)] = &writes[..] else { panic!("{writes:?}") };
        assert!(matches!(propagation(deletions.first()), Some(PropagationPolicy::Foreground)));
        let writes = leaving_owner(&target("a"), &owner, &[]);
        let [Write::MergePatch { patch, .. }] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!(patch["metadata"]["finalizers"], json!(["x"]));
    }

    #[test]
    fn orphaning_takes_the_reference_off_before_the_owner_goes() {
        let owner = meta(json!({"name": "a", "uid": "a", "finalizers": [ORPHAN],
                                "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let dependents = [Dependent { target: target("p"), meta: owned_by(&["a", "b"]) }];
        let writes = leaving_owner(&target("a"), &owner, &dependents);
        let [Write::Together(patches)] = &writes[..] else { panic!("{writes:?}") };
        let [Write::MergePatch { patch, .. }] = &patches[..] else { panic!("{patches:?}") };
        assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "b");
        let writes = leaving_owner(&target("a"), &owner, &[]);
        let [Write::MergePatch { patch, .. }] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!(patch["metadata"]["finalizers"], json!([]));
    }
}
