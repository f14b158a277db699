//! One consistent view of the cluster, cheap to copy and never changed once published.

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use super::{
    ObjectKey,
    endpoints::{Endpoint, EndpointSlice},
    namespace::Namespace,
    node::Node,
    pod::OptedOutPod,
    service::{Service, ServiceCidr},
};

/// Which kinds have been listed completely since the agent started. Nothing is removed from the
/// kernel, and no negative answer is given, before what it depends on is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each kind")]
pub struct Synced {
    /// Services.
    pub services: bool,
    /// EndpointSlices.
    pub slices: bool,
    /// Nodes.
    pub nodes: bool,
    /// ServiceCIDRs; also true where the API server has none to list.
    pub service_cidrs: bool,
    /// This node's pods, where they are watched.
    pub pods: bool,
    /// Namespaces, where they are watched; also true where the API server does not show them.
    pub namespaces: bool,
}

impl Synced {
    /// Every kind.
    pub const ALL: Self = Self {
        services: true,
        slices: true,
        nodes: true,
        service_cidrs: true,
        pods: true,
        namespaces: true,
    };

    /// Whether every kind that the tables come from is complete.
    pub fn all(self) -> bool {
        self.services && self.slices && self.nodes && self.service_cidrs
    }
}

/// What led to a snapshot from the one that was published before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The revision of the one before.
    pub from: u64,
    /// The services that may differ, by themselves or by their slices: all others do not.
    pub services: BTreeSet<ObjectKey>,
}

/// The cluster as this agent knows it. Persistent maps: a copy shares all that did not change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Grows with every published change.
    pub revision: u64,
    /// What changed at last, where that is known and little.
    pub step: Option<Arc<Step>>,
    /// What is complete.
    pub synced: Synced,
    /// Services by key.
    pub services: OrdMap<ObjectKey, Arc<Service>>,
    /// Slices by (service key, slice name): the slices of a service are a range.
    pub slices: OrdMap<(ObjectKey, Arc<str>), Arc<EndpointSlice>>,
    /// Nodes by name.
    pub nodes: OrdMap<Arc<str>, Arc<Node>>,
    /// Ranges of cluster IPs by name.
    pub service_cidrs: OrdMap<Arc<str>, Arc<ServiceCidr>>,
    /// This node's pods whose sockets are left alone, by key.
    pub opted_out_pods: OrdMap<ObjectKey, Arc<OptedOutPod>>,
    /// Namespaces by name, where they are watched.
    pub namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    /// Endpoints that left their service while they were terminating, by the revision that this
    /// was: for those who saw neither, because both came with one publication or because they
    /// missed some. The last few thousand.
    pub departed: OrdMap<(ObjectKey, IpAddr), u64>,
}

impl Snapshot {
    /// Whether nothing differs but EndpointSlices; told by identity, as of snapshots that follow one
    /// another.
    pub fn same_but_for_slices(&self, other: &Self) -> bool {
        self.synced == other.synced
            && self.services.ptr_eq(&other.services)
            && self.nodes.ptr_eq(&other.nodes)
            && self.service_cidrs.ptr_eq(&other.service_cidrs)
            && self.opted_out_pods.ptr_eq(&other.opted_out_pods)
            && self.namespaces.ptr_eq(&other.namespaces)
    }

    /// Whether nodes or ranges of cluster IPs differ.
    pub fn nodes_differ(&self, other: &Self) -> bool {
        let (nodes, ranges) = (&other.nodes, &other.service_cidrs);
        !self.nodes.ptr_eq(nodes) && self.nodes.diff(nodes).next().is_some()
            || !self.service_cidrs.ptr_eq(ranges)
                && self.service_cidrs.diff(ranges).next().is_some()
    }

    /// The services that may differ from those of a snapshot that was published before, by
    /// themselves or by their slices.
    ///
    /// Who follows every snapshot is told; who missed some compares. To compare persistent maps is
    /// to look at a part of all nodes on the way to what differs: some twenty microseconds among ten
    /// thousand services, where nothing of them is in the processor's caches.
    pub fn changed_services(&self, before: &Self) -> Cow<'_, BTreeSet<ObjectKey>> {
        match self.step.as_deref().filter(|step| step.from == before.revision) {
            Some(step) => {
                debug_assert!(self.differing_services(before).is_subset(&step.services));
                Cow::Borrowed(&step.services)
            }
            None => Cow::Owned(self.differing_services(before)),
        }
    }

    /// The services that differ, found without a look at what both snapshots share.
    fn differing_services(&self, before: &Self) -> BTreeSet<ObjectKey> {
        use DiffItem::{Add, Remove, Update};
        let services = before.services.diff(&self.services).map(|item| match item {
            Add(key, _) | Remove(key, _) | Update { new: (key, _), .. } => key.clone(),
        });
        let slices = before.slices.diff(&self.slices).map(|item| match item {
            Add(key, _) | Remove(key, _) | Update { new: (key, _), .. } => key.0.clone(),
        });
        services.chain(slices).collect()
    }

    /// Whether an endpoint left its service while it was terminating since a snapshot of before.
    pub fn departed_since(&self, before: &Self, service: &ObjectKey, address: IpAddr) -> bool {
        !self.departed.is_empty()
            && self
                .departed
                .get(&(service.clone(), address))
                .is_some_and(|revision| *revision > before.revision)
    }

    /// The addresses by which services know a pod.
    pub fn addresses_of(&self, pod: &ObjectKey) -> impl Iterator<Item = IpAddr> {
        let endpoints = self.slices.values().flat_map(move |slice| {
            slice.endpoints.iter().filter(move |endpoint| slice.is_pod(endpoint, pod))
        });
        endpoints.map(|endpoint| endpoint.address)
    }

    /// The keys of a namespace's services.
    pub fn services_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &ObjectKey> {
        let first = ObjectKey::of(Arc::clone(namespace), Arc::from(""));
        let from = self.services.range(first..).map(|(key, _)| key);
        from.take_while(move |key| key.namespace == *namespace)
    }

    /// The slices of a service, in the order of their names.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let first = (service.clone(), Arc::from(""));
        self.slices
            .range(first..)
            .take_while(move |((key, _), _)| key == service)
            .map(|(_, slice)| slice)
    }

    /// The endpoints of a service, each with its slice.
    pub fn endpoints_of(
        &self,
        service: &ObjectKey,
    ) -> impl Iterator<Item = (&EndpointSlice, &Endpoint)> {
        let slices = self.slices_of(service).map(Arc::as_ref);
        slices.flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)))
    }
}
