//! Keeps the Endpoints of Services that select pods: what slices say, in one object of one family,
//! for clients that have not learned of slices.
//!
//! Endpoints of a Service without a selector are their maker's, and are mirrored into slices by
//! [`super::endpointslice::mirroring`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::endpointslice::endpoint::{self, Family, Ports};
use super::endpointslice::trigger::Triggers;
use super::endpointslice::{self, HEADLESS, OVER_CAPACITY, TRIGGER_TIME};
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::pod_facts;
use super::queue::Queue;
use super::selector::{self, Labels};
use super::world::World;
use super::write::{Outcome, Write};

/// Label of Endpoints with the name of who keeps them, and this controller's.
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
/// The most addresses that an object names.
const MAX_ADDRESSES: usize = 1000;

/// The controller of Endpoints.
pub(crate) struct EndpointsOfServices {
    world: Arc<World>,
    triggers: Mutex<HashMap<Key, Triggers>>,
    /// Services that we saw go, whose Endpoints go too, whoever made them.
    gone: Arc<Mutex<HashSet<Key>>>,
}

impl EndpointsOfServices {
    /// A controller that reads from `world` what [`Self::subscribe`] prepared.
    pub(crate) fn new(world: Arc<World>, gone: Arc<Mutex<HashSet<Key>>>) -> Self {
        Self { world, triggers: Mutex::default(), gone }
    }

    /// Has the Services that a change concerns looked at. Returns where it notes those that go.
    pub(crate) fn subscribe(
        world: &mut World,
        queue: &Arc<Queue<Key>>,
    ) -> Arc<Mutex<HashSet<Key>>> {
        let gone: Arc<Mutex<HashSet<Key>>> = Arc::default();
        let (services, noted) = (Arc::clone(queue), Arc::clone(&gone));
        world.subscribe::<Service>(move |_, change| {
            let Some(key) = change.key() else { return };
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            if change.is_removal() {
                noted.insert(key.clone());
            } else {
                noted.remove(&key);
            }
            services.add(key);
        });
        let services = Arc::clone(queue);
        world.subscribe::<Pod>(move |world, change| {
            services.add_all(endpointslice::concerned(world, change));
        });
        let services = Arc::clone(queue);
        world.subscribe::<Endpoints>(move |_, change| {
            services.add_all(change.key());
        });
        gone
    }
}

impl Controller for EndpointsOfServices {
    type Key = Key;
    const NAME: &'static str = "endpoint";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let found = self.world.get::<Endpoints>(key);
        let mut triggers = self.triggers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(service) = self.world.get::<Service>(key) else {
            triggers.remove(key);
            let saw_it_go = self.gone.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            let left = found.filter(|found| saw_it_go || is_ours(found));
            return Ok(left.iter().map(|one| Write::delete(&**one)).collect::<Vec<_>>().into());
        };
        let Some(selector) = endpointslice::selector_of(&service) else {
            return Ok(Outcome::default());
        };
        let mut pods = self.world.cache::<Pod>().in_namespace(&key.namespace);
        pods.retain(|pod| selector::contains(Some(pod.labels()), selector));
        let trigger = triggers.entry(key.clone()).or_default().next(&service, &pods);
        drop(triggers);
        let write = reconcile(&service, &pods, found.as_deref(), trigger);
        Ok(write.into_iter().collect::<Vec<_>>().into())
    }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1)
}

/// The write that makes the Endpoints show the pods, unless they do.
fn reconcile(
    service: &Service,
    pods: &[Arc<Pod>],
    found: Option<&Endpoints>,
    trigger: Option<Timestamp>,
) -> Option<Write> {
    if service.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let (subsets, truncated) = subsets(service, pods);
    let labels = labels(service);
    let annotations = |before: Option<&BTreeMap<String, String>>| {
        let mut annotations = before.cloned().unwrap_or_default();
        if let Some(trigger) = trigger {
            annotations.insert(TRIGGER_TIME.to_owned(), trigger.to_string());
        }
        annotations.remove(OVER_CAPACITY);
        if truncated {
            annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
        }
        (!annotations.is_empty()).then_some(annotations)
    };
    let subsets = (!subsets.is_empty()).then_some(subsets);
    let Some(found) = found else {
        let metadata = ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: annotations(None),
            ..ObjectMeta::default()
        };
        return Some(Write::Create(Endpoints { metadata, subsets }.into()));
    };
    let marked = found.annotations().contains_key(OVER_CAPACITY);
    if found.subsets == subsets && *found.labels() == labels && marked == truncated {
        return None;
    }
    let mut new = found.clone();
    new.metadata.labels = Some(labels);
    new.metadata.annotations = annotations(found.metadata.annotations.as_ref());
    new.subsets = subsets;
    Some(Write::Replace(new.into()))
}

/// The labels of the Service, and those that say what the object is.
fn labels(service: &Service) -> Labels {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    if address == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    labels
}

/// Addresses in their order: by number, and by pod where two have the same.
type Addresses = BTreeMap<(Option<IpAddr>, String), EndpointAddress>;

/// The addresses of the Service's first family by their ports, and whether there are too many.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let Some(family) = Family::of_service(service).first().copied() else {
        return (Vec::new(), false);
    };
    let spec = service.spec.as_ref();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let portless = spec.is_none_or(|spec| spec.ports.iter().flatten().next().is_none());
    let mut groups: BTreeMap<Ports, (Addresses, Addresses)> = BTreeMap::new();
    let mut count = 0;
    for pod in pods {
        let leaves = pod_facts::is_terminating(pod) && !publish;
        let address =
            endpoint::address(pod, family).filter(|_| !pod_facts::is_terminal(pod) && !leaves);
        let Some(ip) = address else { continue };
        let ports = endpoint::ports(service, pod);
        if ports.is_empty() && !portless {
            continue;
        }
        count += 1;
        if count > MAX_ADDRESSES {
            continue;
        }
        let order = (ip.parse().ok(), pod.uid().unwrap_or_default());
        let address = EndpointAddress {
            ip,
            hostname: endpoint::hostname(service, pod),
            node_name: pod_facts::node_name(pod).map(str::to_owned),
            target_ref: Some(endpoint::reference(pod)),
        };
        let (ready, not_ready) = groups.entry(ports).or_default();
        let list = if publish || pod_facts::is_ready(pod) { ready } else { not_ready };
        list.insert(order, address);
    }
    let subsets = groups.into_iter().map(|(ports, (ready, not_ready))| EndpointSubset {
        addresses: listed(ready),
        not_ready_addresses: listed(not_ready),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
    });
    (subsets.collect(), count > MAX_ADDRESSES)
}

fn listed(addresses: Addresses) -> Option<Vec<EndpointAddress>> {
    (!addresses.is_empty()).then(|| addresses.into_values().collect())
}

fn port((name, protocol, port, app_protocol): <Ports as IntoIterator>::Item) -> EndpointPort {
    EndpointPort {
        name: (!name.is_empty()).then_some(name),
        port: port.unwrap_or_default(),
        protocol: Some(protocol),
        app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    use crate::controllers::write::Object;

    fn service(change: &Value) -> Service {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"a": "b"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9",
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]},
        });
        json_patch::merge(&mut object, change);
        serde_json::from_value(object).unwrap()
    }

    fn pod(index: u8, change: &Value) -> Arc<Pod> {
        let mut object = json!({
            "metadata": {"name": format!("p{index}"), "namespace": "default",
                "uid": index.to_string(), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": format!("10.244.0.{index}"),
                "podIPs": [{"ip": format!("10.244.0.{index}")}, {"ip": format!("fd00::{index}")}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        json_patch::merge(&mut object, change);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn made(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
        match reconcile(service, pods, None, Some(Timestamp::UNIX_EPOCH)) {
            Some(Write::Create(Object::Endpoints(made))) => *made,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn inv_83_ready_and_other_addresses_of_the_first_family() {
        let unready = json!({"status": {"conditions": null}});
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let ended = json!({"status": {"phase": "Failed"}});
        let pods = [
            pod(10, &json!({})),
            pod(9, &json!({})),
            pod(3, &unready),
            pod(4, &leaving),
            pod(5, &ended),
            pod(6, &json!({"status": {"podIP": null, "podIPs": null}})),
        ];
        let made = made(&service(&json!({})), &pods);
        assert_eq!(made.name_any(), "web");
        assert_eq!(made.labels()["a"], "b");
        assert!(is_ours(&made));
        assert_eq!(made.annotations()[TRIGGER_TIME], "1970-01-01T00:00:00Z");
        let address = |index: u8| {
            json!({"ip": format!("10.244.0.{index}"), "nodeName": "n1", "targetRef": {
                "kind": "Pod", "namespace": "default", "name": format!("p{index}"),
                "uid": index.to_string()}})
        };
        assert_eq!(
            serde_json::to_value(&made.subsets).unwrap(),
            json!([{
                "addresses": [address(9), address(10)],
                "notReadyAddresses": [address(3)],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            }])
        );
        // Nothing to write where it says so already, whenever the change was.
        let again = reconcile(&service(&json!({})), &pods, Some(&made), Some(Timestamp::MAX));
        assert_eq!(again, None);
    }

    #[test]
    fn inv_83_ports_by_pod_and_services_without_ports() {
        let other = json!({"spec": {"containers": [{"name": "c", "ports": [
            {"name": "http", "containerPort": 9090}]}]}});
        let none = json!({"spec": {"containers": [{"name": "c"}]}});
        let pods = [pod(1, &json!({})), pod(2, &other), pod(3, &none)];
        let subsets = made(&service(&json!({})), &pods).subsets.unwrap();
        let ports: Vec<_> =
            subsets.iter().map(|subset| subset.ports.as_ref().unwrap()[0].port).collect();
        assert_eq!(ports, [8080, 9090], "the pod without the port serves nobody");
        let headless = service(&json!({"spec": {"clusterIP": "None", "ports": null}}));
        let made = made(&headless, &pods);
        assert_eq!(made.labels()[HEADLESS], "");
        let subsets = made.subsets.unwrap();
        assert_eq!((subsets.len(), &subsets[0].ports), (1, &None));
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 3);
    }

    #[test]
    fn inv_83_addresses_beyond_a_thousand_are_left_out_and_told() {
        let pods: Vec<_> = (0..1001_u16)
            .map(|index| {
                let [high, low] = index.to_be_bytes();
                let status = json!({"metadata": {"uid": index.to_string()}, "status": {
                    "podIP": format!("10.1.{high}.{low}"), "podIPs": null}});
                pod(0, &status)
            })
            .collect();
        let made = made(&service(&json!({})), &pods);
        assert_eq!(made.annotations()[OVER_CAPACITY], "truncated");
        assert_eq!(made.subsets.as_ref().unwrap()[0].addresses.as_ref().unwrap().len(), 1000);
        let Some(Write::Replace(Object::Endpoints(fewer))) =
            reconcile(&service(&json!({})), &pods[..1], Some(&made), None)
        else {
            panic!("not written")
        };
        assert!(!fewer.annotations().contains_key(OVER_CAPACITY));
    }
}
