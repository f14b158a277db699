//! Which objects have names, and which: the options of CoreDNS's `kubernetes` that narrow or change
//! what the cluster's objects are called.

use std::{collections::BTreeSet, sync::Arc};

use super::hosts::Host;
use crate::model::{
    ObjectKey,
    endpoints::{Endpoint, EndpointSlice},
    labels::Selector,
    service::Service,
    snapshot::Snapshot,
};

/// How objects are named. The default is the specification's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// The only namespaces that have names; all where there is none.
    pub namespaces: BTreeSet<Arc<str>>,
    /// The only namespaces that have names, by their labels; all where there is none.
    pub namespace_labels: Option<Selector>,
    /// The only Services that have names, by their labels.
    pub labels: Selector,
    /// An endpoint without a hostname is called as its pod is, not as its address.
    pub endpoint_pod_names: bool,
    /// Endpoints have no names, and headless Services, which have nothing else, neither.
    pub no_endpoints: bool,
    /// A Service with cluster IPs and without a ready endpoint has no name: a client goes on in its
    /// search list.
    pub ignore_empty_services: bool,
}

impl Naming {
    /// Whether what is in `namespace` has names.
    pub fn has(&self, namespace: &str, all: &Snapshot) -> bool {
        let named = self.namespaces.is_empty() || self.namespaces.contains(namespace);
        let selected = |selector: &Selector| {
            all.namespaces.get(namespace).is_some_and(|of| selector.selects(&of.labels))
        };
        named && self.namespace_labels.as_ref().is_none_or(selected)
    }

    /// Whether there is such a namespace, and what is in it has names.
    pub(super) fn has_namespace(&self, namespace: &str, all: &Snapshot) -> bool {
        all.namespaces.contains_key(namespace) && self.has(namespace, all)
    }

    /// The Service with that key, where it has names.
    pub(super) fn service<'a>(&self, key: &ObjectKey, all: &'a Snapshot) -> Option<&'a Service> {
        let service = all.services.get(key).filter(|_| self.has(&key.namespace, all))?;
        self.labels.selects(&service.labels).then_some(service)
    }

    /// Why this can't be meant, where it can't.
    pub fn contradiction(&self) -> Option<&'static str> {
        if !self.namespaces.is_empty() && self.namespace_labels.is_some() {
            return Some(
                "namespaces are named (namespaces) or selected by their labels \
                 (namespace_labels), not both",
            );
        }
        (self.no_endpoints && self.ignore_empty_services).then_some(
            "without endpoints (noendpoints) every Service is empty, and none would have a name \
             (ignore empty_service)",
        )
    }

    /// An endpoint of a slice with its label.
    pub(super) fn host(&self, slice: &EndpointSlice, endpoint: &Endpoint) -> Host {
        let is_label = |name: &str| (1..=63).contains(&name.len()) && !name.contains('.');
        let hostname = slice.hostname(endpoint).filter(|name| is_label(name)).map(Arc::from);
        let of_pod = || {
            let pod = slice.pod(endpoint).filter(|_| self.endpoint_pod_names);
            pod.map(|pod| pod.to_string()).filter(|name| is_label(name)).map(Arc::from)
        };
        Host { hostname: hostname.or_else(of_pod), address: endpoint.address }
    }
}
