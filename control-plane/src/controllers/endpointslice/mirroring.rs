//! Mirrors Endpoints that somebody made for a Service without a selector into slices, which are
//! what everybody else reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::endpoint::{Family, Ports};
use super::slices::{self, Template};
use super::{LAST_APPLIED, MANAGED_BY, OVER_CAPACITY, SERVICE_NAME};
use crate::controllers::engine::{Controller, Failure, LookError};
use crate::controllers::key::Key;
use crate::controllers::ownership;
use crate::controllers::queue::Queue;
use crate::controllers::world::World;
use crate::controllers::write::{Outcome, Write};

/// The name of this controller in the label of slices, the same as Kubernetes'.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints that are not to be mirrored.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that are no endpoints but the lock of an election.
const LOCK: &str = "control-plane.alpha.kubernetes.io/leader";
/// The most addresses of a subset that are mirrored.
const MAX_PER_SUBSET: usize = 1000;

/// The controller of mirrored slices.
pub(crate) struct Mirroring {
    world: Arc<World>,
}

impl Mirroring {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Has the Endpoints that a change concerns looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let keys = Arc::clone(queue);
        world.subscribe::<Endpoints>(move |_, change| {
            keys.add_all(change.key());
        });
        let keys = Arc::clone(queue);
        world.subscribe::<Service>(move |_, change| {
            keys.add_all(change.key());
        });
        let keys = Arc::clone(queue);
        world.subscribe::<EndpointSlice>(move |_, change| {
            for slice in change.old.iter().chain(&change.new).filter(|slice| is_mirror(slice)) {
                if let Some(service) = slice.labels().get(SERVICE_NAME) {
                    keys.add(Key::new(slice.namespace().unwrap_or_default(), service));
                }
            }
        });
    }
}

impl Controller for Mirroring {
    type Key = Key;
    const NAME: &'static str = "endpointslice-mirroring";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let mut slices = self.world.cache::<EndpointSlice>().in_namespace(&key.namespace);
        slices.retain(|slice| {
            is_mirror(slice) && slice.labels().get(SERVICE_NAME) == Some(&key.name)
        });
        let service = self.world.get::<Service>(key);
        let endpoints = self.world.get::<Endpoints>(key).filter(|endpoints| {
            service.as_deref().is_some_and(|service| is_mirrored(endpoints, service))
        });
        Ok(reconcile(endpoints.as_deref(), &slices).into())
    }
}

fn is_mirror(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
}

fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let selects = service.spec.as_ref().is_some_and(|spec| spec.selector.is_some());
    !selects
        && endpoints.metadata.deletion_timestamp.is_none()
        && endpoints.labels().get(SKIP).map(String::as_str) != Some("true")
        && !endpoints.annotations().contains_key(LOCK)
}

/// The writes that make the slices show the Endpoints; none are left where there is nothing to
/// mirror.
fn reconcile(endpoints: Option<&Endpoints>, slices: &[Arc<EndpointSlice>]) -> Vec<Write> {
    let mut writes = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let of_family: Vec<&Arc<EndpointSlice>> =
            slices.iter().filter(|slice| slice.address_type == family.name()).collect();
        let Some(endpoints) = endpoints else {
            let there = of_family.iter().filter(|one| one.metadata.deletion_timestamp.is_none());
            writes.extend(there.map(|slice| Write::delete(&***slice)));
            continue;
        };
        let template = Template::of(metadata(endpoints), family);
        writes.extend(slices::fit(&template, &of_family, by_ports(endpoints, family)));
    }
    if writes.is_empty() { writes } else { vec![Write::Together(writes)] }
}

fn metadata(endpoints: &Endpoints) -> ObjectMeta {
    let name = endpoints.name_any();
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.annotations().clone();
    annotations.remove(LAST_APPLIED);
    annotations.remove(OVER_CAPACITY);
    ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: endpoints.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![ownership::controller_reference(endpoints)]),
        ..ObjectMeta::default()
    }
}

/// The addresses of a family by their ports.
fn by_ports(endpoints: &Endpoints, family: Family) -> BTreeMap<Ports, Vec<Endpoint>> {
    let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Ports = subset
            .ports
            .iter()
            .flatten()
            .map(|port| {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                let name = port.name.clone().unwrap_or_default();
                (name, protocol, Some(port.port), port.app_protocol.clone())
            })
            .collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let others = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let of_family = ready
            .chain(others)
            .take(MAX_PER_SUBSET)
            .filter(|(address, _)| Family::of_address(&address.ip) == Some(family));
        let mirrored: Vec<Endpoint> =
            of_family.map(|(address, ready)| mirrored(address, ready)).collect();
        if !mirrored.is_empty() {
            let group = groups.entry(ports).or_default();
            let known: BTreeSet<Vec<String>> =
                group.iter().map(|endpoint| endpoint.addresses.clone()).collect();
            group.extend(mirrored.into_iter().filter(|one| !known.contains(&one.addresses)));
        }
    }
    groups
}

fn mirrored(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    use crate::controllers::write::Object;

    fn endpoints(change: &Value) -> Endpoints {
        let mut object = json!({
            "metadata": {"name": "db", "namespace": "default", "uid": "e",
                "labels": {"a": "b"}, "annotations": {LAST_APPLIED: "{}", "c": "d"}},
            "subsets": [{
                "addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2", "hostname": "two"}],
                "ports": [{"port": 5432, "protocol": "TCP"}],
            }],
        });
        json_patch::merge(&mut object, change);
        serde_json::from_value(object).unwrap()
    }

    /// The slices as the API would have them.
    fn made(writes: &[Write]) -> Vec<Arc<EndpointSlice>> {
        let [Write::Together(writes)] = writes else { panic!("{writes:?}") };
        let slices = writes.iter().enumerate().map(|(index, write)| match write {
            Write::Create(Object::EndpointSlice(slice)) => {
                let mut slice = (**slice).clone();
                slice.metadata.name = Some(format!("db-{index}"));
                slice.metadata.uid = Some(index.to_string());
                Arc::new(slice)
            }
            other => panic!("{other:?}"),
        });
        slices.collect()
    }

    #[test]
    fn each_family_has_a_slice_with_the_addresses_and_labels() {
        let of = endpoints(&json!({}));
        let slices = made(&reconcile(Some(&of), &[]));
        let [v4, v6] = &slices[..] else { panic!("{slices:?}") };
        assert_eq!((v4.address_type.as_str(), v6.address_type.as_str()), ("IPv4", "IPv6"));
        assert_eq!(
            serde_json::to_value(&v4.endpoints).unwrap(),
            json!([
                {"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
                {"addresses": ["192.0.2.2"], "conditions": {"ready": false}, "hostname": "two"},
            ])
        );
        assert_eq!(v4.ports.as_ref().unwrap()[0].port, Some(5432));
        assert_eq!(v4.labels()["a"], "b");
        assert_eq!(v4.labels()[MANAGED_BY], MANAGER);
        assert_eq!(v4.labels()[SERVICE_NAME], "db");
        assert_eq!(v4.annotations().keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!(v4.owner_references()[0].kind, "Endpoints");
        assert!(reconcile(Some(&of), &slices).is_empty(), "written once");
        // Another address: one slice is written.
        let moved = endpoints(&json!({"subsets": [{
            "addresses": [{"ip": "192.0.2.7"}, {"ip": "2001:db8::1"}],
            "ports": [{"port": 5432, "protocol": "TCP"}]}]}));
        let writes = reconcile(Some(&moved), &slices);
        let [Write::Together(writes)] = &writes[..] else { panic!("{writes:?}") };
        let [Write::Replace(Object::EndpointSlice(slice))] = &writes[..] else {
            panic!("{writes:?}")
        };
        assert_eq!(slice.endpoints[0].addresses, ["192.0.2.7"]);
        // Nothing to mirror any more.
        for nothing in [None, Some(&endpoints(&json!({"subsets": null})))] {
            let writes = reconcile(nothing, &slices);
            let [Write::Together(writes)] = &writes[..] else { panic!("{writes:?}") };
            assert!(matches!(writes[..], [Write::Delete(_), Write::Delete(_)]), "{writes:?}");
        }
    }

    #[test]
    fn whose_endpoints_are_mirrored() {
        let service = |selector: &Value| -> Service {
            serde_json::from_value(json!({"metadata": {}, "spec": {"selector": selector}})).unwrap()
        };
        let own = service(&Value::Null);
        assert!(is_mirrored(&endpoints(&json!({})), &own));
        assert!(!is_mirrored(&endpoints(&json!({})), &service(&json!({"app": "db"}))));
        for metadata in [
            json!({"labels": {SKIP: "true"}}),
            json!({"annotations": {LOCK: "{}"}}),
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        ] {
            assert!(!is_mirrored(&endpoints(&json!({"metadata": metadata})), &own), "{metadata}");
        }
        let allowed = json!({"metadata": {"labels": {SKIP: "false"}}});
        assert!(is_mirrored(&endpoints(&allowed), &own));
    }
}
