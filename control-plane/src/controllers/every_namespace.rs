//! What every namespace has: the service account `default`, and the ConfigMap `kube-root-ca.crt`
//! with the certificate by which its pods know the API server. Both are made anew where somebody
//! removes them, and the certificate is put right where somebody changes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::queue::Queue;
use super::world::{Kind, World};
use super::write::{Outcome, Write};

/// The account of pods that name none.
const ACCOUNT: &str = "default";
/// The ConfigMap with the CA's certificate.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
/// The key of the certificate in it.
const CERTIFICATE: &str = "ca.crt";
/// What tells people what the ConfigMap is.
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

/// The service account controller.
pub(crate) struct ServiceAccounts {
    world: Arc<World>,
}

/// The root CA publisher.
pub(crate) struct RootCa {
    world: Arc<World>,
    certificate: String,
}

/// Has a namespace looked at when it comes or changes, and when its object of that name does.
fn subscribe<K: Kind>(world: &mut World, queue: &Arc<Queue<Key>>, name: &'static str) {
    let namespaces = Arc::clone(queue);
    world.subscribe::<Namespace>(move |_, change| {
        namespaces.add_all(change.new.iter().map(|namespace| Key::of(&**namespace)));
    });
    let objects = Arc::clone(queue);
    world.subscribe::<K>(move |_, change| {
        let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { return };
        if object.name_any() == name {
            objects.add(Key::new("", object.namespace().unwrap_or_default()));
        }
    });
}

/// Whether a namespace is there to stay.
fn stays(world: &World, name: &str) -> bool {
    let namespace = world.get::<Namespace>(&Key::new("", name));
    namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
}

fn metadata(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    }
}

impl ServiceAccounts {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Has namespaces looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        subscribe::<ServiceAccount>(world, queue, ACCOUNT);
    }
}

impl Controller for ServiceAccounts {
    type Key = Key;
    const NAME: &'static str = "service-account";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let account = Key::new(key.name.as_str(), ACCOUNT);
        if !stays(&self.world, &key.name) || self.world.get::<ServiceAccount>(&account).is_some() {
            return Ok(Outcome::default());
        }
        let account =
            ServiceAccount { metadata: metadata(&key.name, ACCOUNT), ..ServiceAccount::default() };
        Ok(vec![Write::Create(account.into())].into())
    }
}

impl RootCa {
    /// A controller that reads from `world` and publishes `certificate`.
    pub(crate) fn new(world: Arc<World>, certificate: String) -> Self {
        Self { world, certificate }
    }

    /// Has namespaces looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        subscribe::<ConfigMap>(world, queue, ROOT_CA);
    }
}

impl Controller for RootCa {
    type Key = Key;
    const NAME: &'static str = "root-ca-certificate-publisher";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        if !stays(&self.world, &key.name) || self.certificate.is_empty() {
            return Ok(Outcome::default());
        }
        let found = self.world.get::<ConfigMap>(&Key::new(key.name.as_str(), ROOT_CA));
        Ok(publish(&key.name, found.as_deref(), &self.certificate)
            .into_iter()
            .collect::<Vec<_>>()
            .into())
    }
}

/// What has to be written so that a namespace has the certificate.
fn publish(namespace: &str, found: Option<&ConfigMap>, certificate: &str) -> Option<Write> {
    let data = BTreeMap::from([(CERTIFICATE.to_owned(), certificate.to_owned())]);
    let annotation = (DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned());
    match found {
        Some(found) if found.data.as_ref() == Some(&data) => None,
        Some(found) => {
            let map = ConfigMap { data: Some(data), binary_data: None, ..found.clone() };
            Some(Write::Replace(map.into()))
        }
        None => {
            let mut metadata = metadata(namespace, ROOT_CA);
            metadata.annotations = Some(BTreeMap::from([annotation]));
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            Some(Write::Create(map.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_published_once_and_put_right() {
        let Some(Write::Create(super::super::write::Object::ConfigMap(made))) =
            publish("a", None, "PEM")
        else {
            panic!("not made")
        };
        assert_eq!(made.data.as_ref().unwrap()[CERTIFICATE], "PEM");
        assert_eq!(publish("a", Some(&made), "PEM"), None);
        assert!(matches!(publish("a", Some(&made), "NEW"), Some(Write::Replace(_))));
    }
}
