//! `DefaultIngressClass` and `DefaultStorageClass`: an Ingress, or a claim, that names no class gets
//! the one that is marked as default.

use crate::api::status::Result;
use crate::api::{Api, encode};
use crate::registry::Object;
use crate::store::Query;

/// How objects of a kind have their class.
pub(super) struct Class {
    /// The field with its name. An empty name is one too: none is wanted.
    field: &'static str,
    /// The annotation that named it before there was a field.
    old_way: &'static str,
    /// The annotation by which a class is marked.
    mark: &'static str,
    /// The prefix of the store's keys of classes.
    prefix: &'static str,
}

/// Of Ingresses.
pub(super) const INGRESS: Class = Class {
    field: "/spec/ingressClassName",
    old_way: "kubernetes.io/ingress.class",
    mark: "ingressclass.kubernetes.io/is-default-class",
    prefix: "networking.k8s.io/ingressclasses/",
};

/// Of PersistentVolumeClaims.
pub(super) const STORAGE: Class = Class {
    field: "/spec/storageClassName",
    old_way: "volume.beta.kubernetes.io/storage-class",
    mark: "storageclass.kubernetes.io/is-default-class",
    prefix: "storage.k8s.io/storageclasses/",
};

fn annotation<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.at("/metadata/annotations")?.get(key)?.as_str()
}

impl Api {
    /// Gives a new object its class. Of several defaults the newest counts, as in Kubernetes.
    pub(super) async fn admit_class(&self, class: &Class, new: &mut Object) -> Result<()> {
        if new.at(class.field).is_some() || annotation(new, class.old_way).is_some() {
            return Ok(());
        }
        let query = Query { prefix: class.prefix, after: None, limit: None, at: None };
        let page = self.store.range(query).await?;
        let classes = page.entries.iter().filter_map(|(_, entry)| encode::object(entry).ok());
        let mut defaults: Vec<Object> =
            classes.filter(|one| annotation(one, class.mark) == Some("true")).collect();
        defaults.sort_by(|one, other| {
            let made = |class: &Object| class.text("/metadata/creationTimestamp").to_owned();
            made(other).cmp(&made(one)).then_with(|| one.name().cmp(other.name()))
        });
        if let Some(default) = defaults.first() {
            new.set(class.field, default.name().to_owned());
        }
        Ok(())
    }
}
