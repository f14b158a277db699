//! What a watch gives: a value of the model instead of the object that it was made from.
//!
//! An object becomes a value while its text is read ([`super::objects`]), so that a list of ten
//! thousand is never held as anything else. The client sees just what it needs of an object: where
//! the API server has its kind, and the resource version.

use std::{borrow::Cow, fmt::Debug, sync::Arc};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use super::{
    convert::{self, Warnings},
    names::{self, Shared},
    objects::{self, Meta, Object, Text},
    state::{Change, Event},
};
use crate::model::{
    ObjectKey,
    endpoints::EndpointSlice,
    namespace::Namespace,
    node::Node,
    pod::OptedOutPod,
    service::{Service, ServiceCidr},
};

/// A kind of object of which the model has values.
pub trait Modelled: Shared + Clone + Debug + Send + Sync + Sized + 'static {
    /// What identifies the object among its kind.
    type Key: FromMeta;
    /// The kind, as the API names it.
    type Kind: Resource<DynamicType = ()>;
    /// The object as it is read.
    type Object<'a>: Deserialize<'a> + Object;

    /// The value of an object; none where the agent has no use for it.
    fn of(object: &Self::Object<'_>) -> (Option<Self>, Warnings);

    /// The event as a change of the snapshot.
    fn change(event: Event<Self, Self::Key>) -> Change;
}

/// Makes a value of the model known to watches.
macro_rules! modelled {
    ($($value:ident, $key:ty: $kind:ty, $object:ident, $of:path => $change:ident;)*) => {$(
        impl Modelled for $value {
            type Key = $key;
            type Kind = $kind;
            type Object<'a> = objects::$object<'a>;

            fn of(object: &Self::Object<'_>) -> (Option<Self>, Warnings) {
                $of(object)
            }

            fn change(event: Event<Self, Self::Key>) -> Change {
                Change::$change(event)
            }
        }
    )*};
}

modelled! {
    Service, ObjectKey: core::Service, Service, convert::service => Services;
    EndpointSlice, ObjectKey: discovery::EndpointSlice, EndpointSlice, convert::endpoint_slice
        => Slices;
    Node, Arc<str>: core::Node, Node, convert::node => Nodes;
    ServiceCidr, Arc<str>: networking::ServiceCIDR, ServiceCidr, convert::service_cidr
        => ServiceCidrs;
    OptedOutPod, ObjectKey: core::Pod, Pod, convert::opted_out_pod => Pods;
    Namespace, Arc<str>: core::Namespace, Namespace, convert::namespace => Namespaces;
}

/// The key that a deletion names, from the object's metadata.
pub trait FromMeta: Send {
    /// The key.
    fn from_meta(meta: &ObjectMeta) -> Self;
}

impl FromMeta for ObjectKey {
    fn from_meta(meta: &ObjectMeta) -> Self {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        Self::new(namespace, meta.name.as_deref().unwrap_or_default())
    }
}

impl FromMeta for Arc<str> {
    fn from_meta(meta: &ObjectMeta) -> Self {
        meta.name.as_deref().unwrap_or_default().into()
    }
}

/// An object that was read.
#[derive(Clone, Debug)]
pub struct Seen<T> {
    /// Name, namespace and resource version.
    pub meta: ObjectMeta,
    /// What the agent has a use for.
    pub value: Option<T>,
    /// What was left out.
    pub warnings: Warnings,
}

impl<'de, T: Modelled> Deserialize<'de> for Seen<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = T::Object::deserialize(deserializer)?;
        let (mut value, warnings) = T::of(&object);
        value.iter_mut().for_each(names::share);
        Ok(Self { meta: identity(object.metadata()), value, warnings })
    }
}

fn identity(meta: &Meta<'_>) -> ObjectMeta {
    let own = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
    ObjectMeta {
        name: own(&meta.name),
        namespace: own(&meta.namespace),
        resource_version: own(&meta.resource_version),
        ..ObjectMeta::default()
    }
}

impl<T: Modelled> Resource for Seen<T> {
    type DynamicType = ();
    type Scope = <T::Kind as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        T::Kind::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        T::Kind::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        T::Kind::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::Kind::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<T: Modelled>(text: &str) -> Seen<T> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_the_agent_has_no_use_for_is_skipped() {
        let text = r#"{"kind":"EndpointSlice","metadata":{"name":"s","namespace":"b",
            "uid":"x","resourceVersion":"7","labels":{"kubernetes.io/service-name":"a\u002d1"},
            "managedFields":[{"manager":"m","fieldsV1":{"f:ports":{}}}],"ownerReferences":null},
            "addressType":"IPv4","ports":null,"unheard":[{"of":{}}],
            "endpoints":[{"addresses":["10.0.0.1"],"deprecatedTopology":{"a":"b"},
            "targetRef":{"kind":"Pod","name":"p","uid":"u"}}]}"#;
        let seen: Seen<EndpointSlice> = seen(text);
        let slice = seen.value.unwrap();
        assert_eq!((&slice.service, slice.endpoints.len()), (&ObjectKey::new("b", "a-1"), 1));
        assert!(slice.is_pod(&slice.endpoints[0], &ObjectKey::new("b", "p")));
        assert_eq!(ObjectKey::from_meta(&seen.meta), ObjectKey::new("b", "s"));
        assert_eq!(seen.meta.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn an_object_of_no_use_still_has_its_name() {
        let text = r#"{"metadata":{"name":"s","namespace":"b","resourceVersion":"7"},
            "addressType":"FQDN","endpoints":[{"addresses":["a.example"]}]}"#;
        let seen: Seen<EndpointSlice> = seen(text);
        assert!(seen.value.is_none());
        assert_eq!(ObjectKey::from_meta(&seen.meta), ObjectKey::new("b", "s"));
    }

    #[test]
    fn an_object_that_lacks_what_it_must_have_ends_no_watch() {
        assert!(seen::<EndpointSlice>("{}").value.is_none());
        let text = r#"{"metadata":{"labels":{"kubernetes.io/service-name":"a"}},
            "addressType":"IPv4","endpoints":[{"addresses":null},{"addresses":["10.0.0.1"]}]}"#;
        let odd: Seen<EndpointSlice> = seen(text);
        assert_eq!((odd.value.unwrap().endpoints.len(), odd.warnings.len()), (1, 1));
        let text = r#"{"spec":{"clusterIP":"10.96.0.1","ports":[{"name":"x"},{"port":80}]}}"#;
        let odd: Seen<Service> = seen(text);
        assert_eq!((odd.value.unwrap().ports.len(), odd.warnings.len()), (1, 1));
    }

    #[test]
    fn what_can_not_be_an_object_is_an_error() {
        for text in [
            "[]",
            r#"{"metadata":[],"addressType":"IPv4"}"#,
            r#"{"metadata":{"labels":{"a":1}},"addressType":"IPv4"}"#,
            r#"{"metadata":{},"addressType":"IPv4","endpoints":[{"addresses":"10.0.0.1"}]}"#,
        ] {
            assert!(serde_json::from_str::<Seen<EndpointSlice>>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn kinds_are_found_where_the_api_has_them() {
        let path = |path: String, expected: &str| assert_eq!(path, expected);
        path(Seen::<Service>::url_path(&(), None), "/api/v1/services");
        let slices = "/apis/discovery.k8s.io/v1/endpointslices";
        path(Seen::<EndpointSlice>::url_path(&(), None), slices);
        path(Seen::<Node>::url_path(&(), None), "/api/v1/nodes");
        let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
        path(Seen::<ServiceCidr>::url_path(&(), None), ranges);
        path(Seen::<OptedOutPod>::url_path(&(), None), "/api/v1/pods");
        path(Seen::<Namespace>::url_path(&(), None), "/api/v1/namespaces");
    }
}
