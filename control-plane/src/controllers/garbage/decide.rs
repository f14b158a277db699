//! What becomes of an object whose owners go, and of an owner that waits for its dependents.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PropagationPolicy;
use serde_json::json;

use crate::controllers::ownership;
use crate::controllers::write::{Deletion, Report, Target, Write};

/// Who tells of references that lead nowhere.
const COMPONENT: &str = "garbage-collector-controller";
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
    /// Nobody can say: an object of the cluster names it, and it is of a kind that lives in
    /// namespaces.
    Misplaced,
}

impl Owner {
    /// The state of an owner that is there.
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        if waits_in_foreground(meta) { Self::Waiting } else { Self::Present }
    }
}

/// An object that names an owner.
pub(super) struct Dependent {
    pub(super) target: Target,
    pub(super) meta: ObjectMeta,
}

/// Whether the object goes after its dependents.
fn waits_in_foreground(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && has_finalizer(meta, FOREGROUND)
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
    let references = || meta.owner_references.iter().flatten().zip(owners);
    if let Some((reference, _)) = references().find(|(_, owner)| **owner == Owner::Misplaced) {
        return Some(Write::Tell(misplaced(target, meta, reference)));
    }
    if owners.contains(&Owner::Present) {
        let solid: Vec<OwnerReference> = references()
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

/// That a reference leads nowhere, ever.
fn misplaced(target: &Target, meta: &ObjectMeta, reference: &OwnerReference) -> Report {
    let OwnerReference { api_version, kind, name, uid, .. } = reference;
    let namespace = &target.key.namespace;
    Report {
        about: ObjectReference {
            api_version: Some(target.resource.api_version.clone()),
            kind: Some(target.resource.kind.clone()),
            name: Some(target.key.name.clone()),
            namespace: Some(namespace.clone()).filter(|namespace| !namespace.is_empty()),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        },
        warning: true,
        reason: "OwnerRefInvalidNamespace",
        message: format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace {namespace:?}"
        ),
        component: COMPONENT,
    }
}

/// Whether the object goes as soon as those of its dependents are gone that block it, and one of
/// them waits for it, over any number of others: none of them would ever go.
pub(super) fn is_in_circle(
    meta: &ObjectMeta,
    dependents: &dyn Fn(&ObjectMeta) -> Vec<Dependent>,
) -> bool {
    let mut seen = HashSet::new();
    let mut next: Vec<ObjectMeta> = vec![meta.clone()];
    while let Some(owner) = next.pop() {
        for Dependent { meta: dependent, .. } in dependents(&owner) {
            if !blocks(&dependent, &owner) || !waits_in_foreground(&dependent) {
                continue;
            }
            if dependent.uid == meta.uid {
                return true;
            }
            if seen.insert(dependent.uid.clone()) {
                next.push(dependent);
            }
        }
    }
    false
}

/// The object's references without the right to keep their owners.
pub(super) fn unblocked(target: &Target, meta: &ObjectMeta) -> Option<Write> {
    let mut references = meta.owner_references.clone().unwrap_or_default();
    let mut changed = false;
    for reference in references.iter_mut().filter(|one| one.block_owner_deletion == Some(true)) {
        (reference.block_owner_deletion, changed) = (Some(false), true);
    }
    changed.then(|| ownership::set_owners(target, meta, &references))
}

/// Whether the dependent has to go before that owner.
fn blocks(dependent: &ObjectMeta, owner: &ObjectMeta) -> bool {
    let references = dependent.owner_references.iter().flatten();
    references
        .filter(|reference| Some(&reference.uid) == owner.uid.as_ref())
        .any(|reference| reference.block_owner_deletion == Some(true))
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
    if !dependents.iter().any(|dependent| blocks(&dependent.meta, meta)) {
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
    fn an_object_of_the_cluster_stays_whatever_it_names_in_a_namespace() {
        let owners = [Owner::Absent, Owner::Misplaced];
        let write = dependent(&target("p"), &owned_by(&["a", "b"]), &owners);
        let Some(Write::Tell(report)) = write else { panic!("{write:?}") };
        assert_eq!((report.warning, report.reason), (true, "OwnerRefInvalidNamespace"));
        assert!(report.message.contains("name: b, uid: b] does not exist in namespace"));
    }

    /// Objects that wait, by name, each with its owner.
    fn waiting(owners: &[(&str, &str)]) -> Vec<(String, ObjectMeta)> {
        let one = |(name, owner): &(&str, &str)| {
            let mut waits = owned_by(&[owner]);
            waits.uid = Some((*name).into());
            waits.finalizers = Some(vec![FOREGROUND.into()]);
            waits.deletion_timestamp =
                meta(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})).deletion_timestamp;
            ((*name).to_owned(), waits)
        };
        owners.iter().map(one).collect()
    }

    fn in_circle(all: &[(String, ObjectMeta)], name: &str) -> bool {
        let dependents = |owner: &ObjectMeta| {
            let names = |meta: &&ObjectMeta| {
                let references = meta.owner_references.iter().flatten();
                references.map(|one| &one.uid).any(|uid| Some(uid) == owner.uid.as_ref())
            };
            let found = all.iter().map(|(_, meta)| meta).filter(names);
            found.map(|meta| Dependent { target: target("p"), meta: meta.clone() }).collect()
        };
        let (_, meta) = all.iter().find(|(own, _)| own == name).unwrap();
        is_in_circle(meta, &dependents)
    }

    #[test]
    fn a_circle_is_seen_and_a_chain_is_none() {
        let circle = waiting(&[("1", "3"), ("2", "1"), ("3", "2"), ("leaf", "3")]);
        for (name, expected) in [("1", true), ("2", true), ("3", true), ("leaf", false)] {
            assert_eq!(in_circle(&circle, name), expected, "{name}");
        }
        let chain = waiting(&[("set", "deployment"), ("a", "set"), ("b", "set")]);
        assert!(!in_circle(&chain, "set") && !in_circle(&chain, "a"));
        // One of them is not on its way yet: it will be.
        let mut open = waiting(&[("1", "2"), ("2", "1")]);
        open[1].1.deletion_timestamp = None;
        assert!(!in_circle(&open, "1"));
        let write = unblocked(&target("p"), &circle[0].1);
        let Some(Write::MergePatch { patch, .. }) = write else { panic!("{write:?}") };
        assert_eq!(patch["metadata"]["ownerReferences"][0]["blockOwnerDeletion"], false);
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
