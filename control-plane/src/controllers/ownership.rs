//! Who controls what: adoption and release of dependents by ownerReference and selector.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::json;

use super::selector;
use super::write::{Target, Write};

/// The relation of an owner that selects and an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The object is controlled by the owner and selected by it.
    Mine,
    /// Nobody controls the object and the owner selects it.
    Adopt,
    /// The owner controls the object but does not select it any more.
    Release,
    /// None of the owner's business.
    Foreign,
}

/// The reference of the object's controller, of which there is at most one.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| owner.controller == Some(true))
}

/// Whether the object is controlled by the owner of that uid.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, owner: &ObjectMeta) -> bool {
    owner.uid.is_some() && controller_of(meta).map(|owner| &owner.uid) == owner.uid.as_ref()
}

/// What `owner`, which selects with `wanted`, has to do with `object`.
///
/// Neither an owner nor an object that is being deleted starts a new relation.
pub(crate) fn claim(owner: &ObjectMeta, wanted: &LabelSelector, object: &ObjectMeta) -> Claim {
    let selected = !selector::is_empty(wanted) && selector::selects(wanted, object.labels.as_ref());
    let leaving = owner.deletion_timestamp.is_some();
    match (controller_of(object).is_some(), is_controlled_by(object, owner)) {
        (true, true) if selected => Claim::Mine,
        (true, true) if !leaving => Claim::Release,
        (false, _) if selected && !leaving && object.deletion_timestamp.is_none() => Claim::Adopt,
        _ => Claim::Foreign,
    }
}

/// The reference that makes `owner` the controller of what carries it.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Adds `reference` to an object that has no controller.
pub(crate) fn adopt<K: Resource<DynamicType = ()>>(object: &K, reference: OwnerReference) -> Write {
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.push(reference);
    set_owners(&Target::of(object), object.meta(), &owners)
}

/// Takes the reference to the owner of that uid from an object.
pub(crate) fn release<K: Resource<DynamicType = ()>>(object: &K, owner: &ObjectMeta) -> Write {
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|reference| Some(&reference.uid) != owner.uid.as_ref());
    set_owners(&Target::of(object), object.meta(), &owners)
}

/// Sets the owner references, provided that the object is still as it was seen: merge patches
/// replace a list as a whole.
pub(crate) fn set_owners(target: &Target, meta: &ObjectMeta, owners: &[OwnerReference]) -> Write {
    Write::MergePatch {
        target: target.clone(),
        subresource: None,
        patch: json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "ownerReferences": owners,
        }}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    fn meta(uid: &str, app: &str, controller: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.into()),
            labels: Some([("app".to_owned(), app.to_owned())].into()),
            owner_references: controller.map(|uid| {
                vec![OwnerReference {
                    uid: uid.into(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn inv_65_claims_follow_reference_and_labels() {
        let wanted = LabelSelector {
            match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
            match_expressions: None,
        };
        let owner = meta("owner", "", None);
        let table = [
            (meta("1", "web", Some("owner")), Claim::Mine),
            (meta("2", "api", Some("owner")), Claim::Release),
            (meta("3", "web", None), Claim::Adopt),
            (meta("4", "api", None), Claim::Foreign),
            (meta("5", "web", Some("other")), Claim::Foreign),
        ];
        for (object, expected) in &table {
            assert_eq!(claim(&owner, &wanted, object), *expected, "{object:?}");
        }
        let mut dying = meta("6", "web", None);
        dying.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(claim(&owner, &wanted, &dying), Claim::Foreign);
        let mut leaving = owner.clone();
        leaving.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(claim(&leaving, &wanted, &table[2].0), Claim::Foreign);
        assert_eq!(claim(&leaving, &wanted, &table[0].0), Claim::Mine);
        assert_eq!(claim(&leaving, &wanted, &table[1].0), Claim::Foreign);
    }

    #[test]
    fn an_empty_selector_adopts_nothing() {
        let none = LabelSelector::default();
        assert_eq!(claim(&meta("owner", "", None), &none, &meta("1", "web", None)), Claim::Foreign);
    }
}
