//! Keeps the EndpointSlices of Services that select pods.
//!
//! [`endpoint`] makes endpoints from pods, grouped by their ports; [`slices`] fits them into the
//! slices that exist with as few writes as it can. Services without a selector, and slices that
//! somebody else manages, are left alone.

pub(super) mod endpoint;
pub(super) mod mirroring;
mod slices;
pub(super) mod trigger;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use self::endpoint::Family;
use self::trigger::Triggers;
use super::cache::Change;
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::queue::Queue;
use super::selector;
use super::world::World;
use super::write::{Outcome, Write};

/// Label of slices with the name of their Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of slices with the name of who keeps them.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The name of this controller in that label, the same as Kubernetes'.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Label of slices and Endpoints of headless Services.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation with the time of the change that slices or Endpoints show.
pub(super) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Annotation of Endpoints that have more addresses than they may name.
pub(super) const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Annotation with what `kubectl apply` was given.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Label of nodes with their zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The controller of EndpointSlices.
pub(crate) struct EndpointSlices {
    world: Arc<World>,
    triggers: Mutex<HashMap<Key, Triggers>>,
}

impl EndpointSlices {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, triggers: Mutex::default() }
    }

    /// Has the Services that a change concerns looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let services = Arc::clone(queue);
        world.subscribe::<Service>(move |_, change| {
            services.add_all(change.key());
        });
        let services = Arc::clone(queue);
        world.subscribe::<Pod>(move |world, change| {
            services.add_all(concerned(world, change));
        });
        let services = Arc::clone(queue);
        world.subscribe::<EndpointSlice>(move |_, change| {
            for slice in change.old.iter().chain(&change.new) {
                if let Some(service) = slice.labels().get(SERVICE_NAME) {
                    services.add(Key::new(slice.namespace().unwrap_or_default(), service));
                }
            }
        });
        let services = Arc::clone(queue);
        world.subscribe::<Node>(move |world, change| {
            let zone = |node: &Option<Arc<Node>>| node.as_ref().and_then(|node| zone_of(node));
            if zone(&change.old) != zone(&change.new) {
                let all = world.cache::<Service>().all();
                services.add_all(all.iter().map(|service| Key::of(&**service)));
            }
        });
    }
}

impl Controller for EndpointSlices {
    type Key = Key;
    const NAME: &'static str = "endpointslice";
    const WORKERS: usize = 8;

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let mut triggers = self.triggers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(service) = self.world.get::<Service>(key) else {
            // The slices go with their owner: that is the garbage collector's.
            triggers.remove(key);
            return Ok(Outcome::default());
        };
        let Some(selector) = selector_of(&service) else { return Ok(Outcome::default()) };
        let mut pods = self.world.cache::<Pod>().in_namespace(&key.namespace);
        pods.retain(|pod| selector::contains(Some(pod.labels()), selector));
        let mut slices = self.world.cache::<EndpointSlice>().in_namespace(&key.namespace);
        slices.retain(|slice| {
            slice.labels().get(SERVICE_NAME) == Some(&key.name)
                && slice.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
        });
        let zones = zones(&self.world, &pods);
        let trigger = triggers.entry(key.clone()).or_default().next(&service, &pods);
        drop(triggers);
        let seen = Seen { service: &service, pods: &pods, slices: &slices, zones: &zones, trigger };
        Ok(reconcile(&seen).into())
    }
}

/// The selector of a Service whose slices are ours to keep.
pub(super) fn selector_of(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then_some(selector)
}

/// The Services that a pod's change concerns, by its labels before and now. A change that no
/// endpoint shows concerns nobody.
pub(super) fn concerned(world: &World, change: &Change<Pod>) -> BTreeSet<Key> {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && endpoint::looks_the_same(old, new)
    {
        return BTreeSet::new();
    }
    let Some(namespace) = change.latest().and_then(|pod| pod.namespace()) else {
        return BTreeSet::new();
    };
    let services = world.cache::<Service>().in_namespace(&namespace);
    let selecting = services.iter().filter(|service| {
        let selects = |pod: &Arc<Pod>| {
            selector_of(service)
                .is_some_and(|selector| selector::contains(Some(pod.labels()), selector))
        };
        change.old.iter().chain(&change.new).any(selects)
    });
    selecting.map(|service| Key::of(&**service)).collect()
}

fn zone_of(node: &Node) -> Option<String> {
    node.labels().get(ZONE).cloned()
}

/// The zones of the nodes that the pods are on, by node name.
fn zones(world: &World, pods: &[Arc<Pod>]) -> HashMap<String, String> {
    let names: BTreeSet<&str> =
        pods.iter().filter_map(|pod| super::pod_facts::node_name(pod)).collect();
    let zone = |name: &str| zone_of(&*world.get::<Node>(&Key::new("", name))?);
    names.into_iter().filter_map(|name| Some((name.to_owned(), zone(name)?))).collect()
}

/// What a look at a Service sees.
pub(crate) struct Seen<'a> {
    pub(crate) service: &'a Service,
    /// The pods that the Service selects.
    pub(crate) pods: &'a [Arc<Pod>],
    /// The slices of the Service that this controller keeps.
    pub(crate) slices: &'a [Arc<EndpointSlice>],
    /// Zones by node name.
    pub(crate) zones: &'a HashMap<String, String>,
    /// When the oldest change happened that the slices do not show yet.
    pub(crate) trigger: Option<Timestamp>,
}

/// The writes that make the slices show the pods.
pub(crate) fn reconcile(seen: &Seen<'_>) -> Vec<Write> {
    if seen.service.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let wanted = Family::of_service(seen.service);
    let mut writes = Vec::new();
    for family in &wanted {
        let mut groups = endpoint::by_ports(seen, *family);
        let slices: Vec<&Arc<EndpointSlice>> =
            seen.slices.iter().filter(|slice| slice.address_type == family.name()).collect();
        if groups.is_empty() {
            // A slice without endpoints says that the Service is known and has none.
            groups.insert(Vec::new(), Vec::new());
        }
        let template = slices::Template::new(seen, *family);
        writes.extend(slices::fit(&template, &slices, groups));
    }
    let stale = seen.slices.iter().filter(|slice| {
        wanted.iter().all(|family| family.name() != slice.address_type)
            && slice.metadata.deletion_timestamp.is_none()
    });
    writes.extend(stale.map(|slice| Write::delete(&**slice)));
    if writes.is_empty() { writes } else { vec![Write::Together(writes)] }
}

#[cfg(test)]
mod tests;
