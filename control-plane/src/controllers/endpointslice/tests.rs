//! What slices a service has, as tables and properties.

use super::*;
use k8s_openapi::api::discovery::v1::EndpointPort;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::controllers::write::Object;

fn service(change: &Value) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "svc",
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "selector": {"app": "web"}, "ipFamilies": ["IPv4"], "clusterIP": "10.96.0.5",
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}],
        },
    });
    json_patch::merge(&mut object, change);
    serde_json::from_value(object).unwrap()
}

fn pod(index: usize, change: &Value) -> Arc<Pod> {
    let mut object = json!({
        "metadata": {"name": format!("p{index}"), "namespace": "default",
                     "uid": format!("uid-{index}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {
            "phase": "Running", "podIP": format!("10.244.0.{index}"),
            "podIPs": [{"ip": format!("10.244.0.{index}")}, {"ip": format!("fd00:244::{index:x}")}],
            "conditions": [{"type": "Ready", "status": "True",
                            "lastTransitionTime": "2026-01-01T00:00:05Z"}],
        },
    });
    json_patch::merge(&mut object, change);
    Arc::new(serde_json::from_value(object).unwrap())
}

/// Slices in a cluster of one Service, to which writes are applied.
#[derive(Default, Clone)]
struct Slices {
    slices: Vec<Arc<EndpointSlice>>,
    made: usize,
}

impl Slices {
    /// Looks once, applies the writes, and returns them.
    fn look(&mut self, service: &Service, pods: &[Arc<Pod>]) -> Vec<Write> {
        let zones = HashMap::from([("n1".to_owned(), "zone-a".to_owned())]);
        let trigger = Some("2026-01-01T00:00:05Z".parse().unwrap());
        let seen = Seen { service, pods, slices: &self.slices, zones: &zones, trigger };
        let writes: Vec<Write> = reconcile(&seen)
            .into_iter()
            .flat_map(|write| match write {
                Write::Together(writes) => writes,
                other => vec![other],
            })
            .collect();
        for write in &writes {
            match write {
                Write::Create(Object::EndpointSlice(slice)) => {
                    let mut slice = (**slice).clone();
                    self.made += 1;
                    let name = format!("{}{}", slice.metadata.generate_name.unwrap(), self.made);
                    slice.metadata.generate_name = None;
                    slice.metadata.uid = Some(name.clone());
                    slice.metadata.name = Some(name);
                    self.slices.push(Arc::new(slice));
                }
                Write::Replace(Object::EndpointSlice(slice)) => {
                    let known =
                        |known: &&mut Arc<EndpointSlice>| known.name_any() == slice.name_any();
                    *self.slices.iter_mut().find(known).unwrap() = Arc::new((**slice).clone());
                }
                Write::Delete(deletion) => {
                    self.slices.retain(|slice| slice.metadata.uid.as_ref() != Some(&deletion.uid));
                }
                other => panic!("{other:?}"),
            }
        }
        writes
    }

    fn addresses(&self) -> Vec<String> {
        let endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
        let mut all: Vec<_> = endpoints.flat_map(|endpoint| endpoint.addresses.clone()).collect();
        all.sort();
        all
    }
}

fn only(slices: &Slices) -> &EndpointSlice {
    assert_eq!(slices.slices.len(), 1);
    &slices.slices[0]
}

#[test]
fn inv_84_a_slice_has_the_labels_owner_and_time_that_others_look_for() {
    let mut slices = Slices::default();
    let labelled = json!({"metadata": {"labels": {"team": "a"}}});
    slices.look(&service(&labelled), &[pod(1, &json!({}))]);
    let slice = only(&slices);
    assert_eq!(slice.name_any(), "web-1");
    assert_eq!(slice.address_type, "IPv4");
    assert_eq!(slice.labels()["kubernetes.io/service-name"], "web");
    assert_eq!(
        slice.labels()["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    assert_eq!(slice.labels()["team"], "a");
    assert_eq!(
        slice.annotations()["endpoints.kubernetes.io/last-change-trigger-time"],
        "2026-01-01T00:00:05Z"
    );
    let owner = &slice.owner_references()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Service", "svc"));
    let endpoint = &slice.endpoints[0];
    assert_eq!(endpoint.addresses, ["10.244.0.1"]);
    assert_eq!(endpoint.node_name.as_deref(), Some("n1"));
    assert_eq!(endpoint.zone.as_deref(), Some("zone-a"));
    let target = endpoint.target_ref.as_ref().unwrap();
    assert_eq!((target.kind.as_deref(), target.name.as_deref()), (Some("Pod"), Some("p1")));
    assert_eq!(
        slice.ports.as_deref(),
        Some(
            &[EndpointPort {
                name: Some("http".into()),
                port: Some(8080),
                protocol: Some("TCP".into()),
                app_protocol: None,
            }][..]
        )
    );
    assert!(slices.look(&service(&labelled), &[pod(1, &json!({}))]).is_empty(), "nothing to do");
}

#[test]
fn inv_45_conditions_follow_readiness_and_deletion() {
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let publish = json!({"spec": {"publishNotReadyAddresses": true}});
    let both = |mut one: Value, other: &Value| {
        json_patch::merge(&mut one, other);
        one
    };
    // (pod, service) -> (ready, serving, terminating)
    let table = [
        (json!({}), json!({}), (true, true, false)),
        (not_ready.clone(), json!({}), (false, false, false)),
        (leaving.clone(), json!({}), (false, true, true)),
        (both(leaving.clone(), &not_ready), json!({}), (false, false, true)),
        (not_ready, publish.clone(), (true, false, false)),
        (leaving, publish, (true, true, true)),
    ];
    for (pod_change, service_change, expected) in table {
        let mut slices = Slices::default();
        slices.look(&service(&service_change), &[pod(1, &pod_change)]);
        let conditions = only(&slices).endpoints[0].conditions.clone().unwrap();
        let found = (
            conditions.ready.unwrap(),
            conditions.serving.unwrap(),
            conditions.terminating.unwrap(),
        );
        assert_eq!(found, expected, "{pod_change} {service_change}");
    }
}

#[test]
fn ended_pods_and_pods_without_address_are_no_endpoints() {
    let mut slices = Slices::default();
    let pods = [
        pod(1, &json!({"status": {"phase": "Succeeded"}})),
        pod(2, &json!({"status": {"phase": "Failed"}})),
        pod(3, &json!({"status": {"podIP": null, "podIPs": null}})),
    ];
    slices.look(&service(&json!({})), &pods);
    let slice = only(&slices);
    assert!(slice.endpoints.is_empty(), "an empty slice, as Kubernetes has it");
    assert_eq!(slice.ports.as_deref(), Some(&[][..]));
    assert!(slices.look(&service(&json!({})), &pods).is_empty());
    // The first endpoint goes into the empty slice.
    slices.look(&service(&json!({})), &[pod(4, &json!({}))]);
    assert_eq!(only(&slices).endpoints.len(), 1);
    slices.look(&service(&json!({})), &[]);
    assert_eq!(only(&slices).endpoints.len(), 0);
}

#[test]
fn each_family_has_its_slices() {
    let mut slices = Slices::default();
    let dual = service(&json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}}));
    slices.look(&dual, &[pod(1, &json!({}))]);
    let mut found: Vec<_> = slices
        .slices
        .iter()
        .map(|slice| (slice.address_type.clone(), slice.endpoints[0].addresses[0].clone()))
        .collect();
    found.sort();
    assert_eq!(
        found,
        [("IPv4".into(), "10.244.0.1".into()), ("IPv6".into(), "fd00:244::1".to_owned())]
    );
    // The Service loses a family: its slice goes.
    slices.look(&service(&json!({})), &[pod(1, &json!({}))]);
    assert_eq!(only(&slices).address_type, "IPv4");
}

#[test]
fn inv_81_a_named_target_port_is_looked_up_in_every_pod() {
    let mut slices = Slices::default();
    let other = json!({"spec": {"containers": [
        {"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}]}});
    let udp = json!({"spec": {"containers": [
        {"name": "c", "ports": [{"name": "web", "containerPort": 53, "protocol": "UDP"}]}]}});
    slices.look(&service(&json!({})), &[pod(1, &json!({})), pod(2, &other), pod(3, &udp)]);
    let mut found: Vec<_> = slices
        .slices
        .iter()
        .map(|slice| {
            let ports: Vec<_> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
            (slice.endpoints[0].addresses[0].clone(), ports)
        })
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            ("10.244.0.1".to_owned(), vec![8080]),
            ("10.244.0.2".to_owned(), vec![9090]),
            ("10.244.0.3".to_owned(), vec![]),
        ]
    );
}

#[test]
fn inv_80_headless_slices_carry_the_label_and_hostnames() {
    let mut slices = Slices::default();
    let named = json!({"spec": {"hostname": "web-0", "subdomain": "web"}});
    let elsewhere = json!({"spec": {"hostname": "web-1", "subdomain": "other"}});
    let headless = service(&json!({"spec": {"clusterIP": "None"}}));
    slices.look(&headless, &[pod(1, &named), pod(2, &elsewhere)]);
    let slice = only(&slices);
    assert_eq!(slice.labels()["service.kubernetes.io/headless"], "");
    assert_eq!(slice.endpoints[0].hostname.as_deref(), Some("web-0"));
    assert_eq!(slice.endpoints[1].hostname, None);
}

/// The hints of the only slice's endpoints, in order.
fn hints(service_change: &Value, pods: &[Arc<Pod>]) -> Vec<Value> {
    let mut slices = Slices::default();
    slices.look(&service(service_change), pods);
    let endpoints = only(&slices).endpoints.iter();
    endpoints.map(|endpoint| serde_json::to_value(&endpoint.hints).unwrap()).collect()
}

/// KEP-4444 and KEP-3015: each ready endpoint is meant for where it is.
#[test]
fn b97_b98_traffic_distribution_makes_hints() {
    let zone = json!({"forZones": [{"name": "zone-a"}]});
    let node = json!({"forZones": [{"name": "zone-a"}], "forNodes": [{"name": "n1"}]});
    // `n9` has no label with its zone.
    let elsewhere = json!({"spec": {"nodeName": "n9"}});
    let pods = [pod(1, &json!({})), pod(2, &elsewhere)];
    let node_alone = json!({"forNodes": [{"name": "n9"}]});
    for (distribution, here, without_zone) in [
        (json!("PreferSameZone"), &zone, &Value::Null),
        (json!("PreferClose"), &zone, &Value::Null),
        (json!("PreferSameNode"), &node, &node_alone),
        (Value::Null, &Value::Null, &Value::Null),
    ] {
        let asked = json!({"spec": {"trafficDistribution": distribution}});
        assert_eq!(hints(&asked, &pods), [here.clone(), without_zone.clone()], "{distribution}");
    }
}

/// Only what may get new connections is hinted at: what terminates or is not ready is none's.
#[test]
fn b99_endpoints_that_are_not_ready_have_no_hints() {
    let asked = json!({"spec": {"trafficDistribution": "PreferSameNode"}});
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let terminating = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:01:00Z"}});
    let said = hints(&asked, &[pod(1, &unready), pod(2, &terminating), pod(3, &json!({}))]);
    let given: Vec<bool> = said.iter().map(|hints| !hints.is_null()).collect();
    assert_eq!(given, [false, false, true]);
}

/// What begins to be asked for, and what is asked for no more, shows in slices that are there.
#[test]
fn b97_hints_follow_the_service() {
    let mut slices = Slices::default();
    let pods = [pod(1, &json!({}))];
    let asked = service(&json!({"spec": {"trafficDistribution": "PreferClose"}}));
    for (service, hinted) in [(&service(&json!({})), false), (&asked, true)] {
        slices.look(service, &pods);
        assert_eq!(only(&slices).endpoints[0].hints.is_some(), hinted);
    }
    assert_eq!(slices.look(&service(&json!({})), &pods).len(), 1);
    assert!(only(&slices).endpoints[0].hints.is_none());
}

/// A sidecar runs as long as the pod does: its ports are the pod's. Other init containers' are not.
#[test]
fn b125_a_named_port_may_be_a_sidecars() {
    let init = |restart: &str| {
        let containers = json!([{"name": "side", "restartPolicy": restart,
            "ports": [{"name": "web", "containerPort": 9090}]}]);
        json!({"spec": {"initContainers": containers, "containers": [{"name": "main"}]}})
    };
    for (restart, ports) in [("Always", vec![Some(9090)]), ("", vec![])] {
        let mut slices = Slices::default();
        slices.look(&service(&json!({})), &[pod(1, &init(restart))]);
        let found = only(&slices).ports.iter().flatten().map(|port| port.port);
        assert_eq!(found.collect::<Vec<_>>(), ports, "{restart:?}");
    }
}

#[test]
fn a_change_of_one_endpoint_writes_one_slice() {
    let pods: Vec<_> = (1..=250).map(|index| pod(index, &json!({}))).collect();
    let mut slices = Slices::default();
    assert_eq!(slices.look(&service(&json!({})), &pods).len(), 3);
    let sizes: Vec<_> = slices.slices.iter().map(|slice| slice.endpoints.len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    let mut changed = pods.clone();
    changed[120] = pod(121, &json!({"status": {"conditions": null}}));
    let writes = slices.look(&service(&json!({})), &changed);
    assert!(matches!(&writes[..], [Write::Replace(_)]), "{writes:?}");
    // One goes, one comes: still one write, into the slice that changes anyway.
    changed.remove(0);
    changed.push(pod(251, &json!({})));
    let writes = slices.look(&service(&json!({})), &changed);
    assert!(matches!(&writes[..], [Write::Replace(_)]), "{writes:?}");
}

#[test]
fn new_endpoints_go_into_slices_that_are_written_anyway() {
    let ready = |index| pod(index, &json!({}));
    let mut slices = Slices::default();
    slices.look(&service(&json!({})), &(1..=160).map(ready).collect::<Vec<_>>());
    let mut pods: Vec<_> = (51..=160).map(ready).collect();
    slices.look(&service(&json!({})), &pods);
    let sizes: Vec<_> = slices.slices.iter().map(|slice| slice.endpoints.len()).collect();
    assert_eq!(sizes, [50, 60]);
    // The smaller slice changes, and so takes the new endpoint.
    pods[0] = pod(51, &json!({"status": {"conditions": null}}));
    pods.push(ready(161));
    let writes = slices.look(&service(&json!({})), &pods);
    assert!(matches!(&writes[..], [Write::Replace(_)]), "{writes:?}");
}

#[test]
fn services_without_a_selector_are_not_ours() {
    assert!(selector_of(&service(&json!({}))).is_some());
    assert!(selector_of(&service(&json!({"spec": {"selector": null}}))).is_none());
    assert!(selector_of(&service(&json!({"spec": {"type": "ExternalName"}}))).is_none());
}

#[test]
fn the_trigger_is_the_oldest_change_that_is_not_shown_yet() {
    let mut triggers = Triggers::default();
    let at = |time: &str| {
        json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": time}]}})
    };
    let service = service(&json!({}));
    let time = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    let first = pod(1, &at("2026-01-01T00:00:09Z"));
    assert_eq!(triggers.next(&service, &[Arc::clone(&first)]), time("2026-01-01T00:00:00Z"));
    assert_eq!(triggers.next(&service, &[Arc::clone(&first)]), None);
    let later = [first, pod(2, &at("2026-01-01T00:00:30Z")), pod(3, &at("2026-01-01T00:00:20Z"))];
    assert_eq!(triggers.next(&service, &later), time("2026-01-01T00:00:20Z"));
}

proptest! {
    #[test]
    fn slices_hold_exactly_the_pods_whatever_happened_before(
        rounds in proptest::collection::vec(
            proptest::collection::btree_set(1..240_usize, 0..240), 1..6),
        odd in 2..9_usize,
    ) {
        let mut slices = Slices::default();
        let none = json!({});
        let other = json!({"spec": {"containers": [
            {"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}]}});
        for round in rounds {
            let pods: Vec<_> = round
                .iter()
                .map(|index| pod(*index, if index % odd == 0 { &other } else { &none }))
                .collect();
            slices.look(&service(&json!({})), &pods);
            let mut expected: Vec<_> = pods
                .iter()
                .map(|pod| pod.status.as_ref().unwrap().pod_ip.clone().unwrap())
                .collect();
            expected.sort();
            prop_assert_eq!(slices.addresses(), expected);
            prop_assert!(!slices.slices.is_empty());
            prop_assert!(slices.slices.iter().all(|slice| slice.endpoints.len() <= 100));
            let settled = slices.look(&service(&json!({})), &pods).is_empty();
            prop_assert!(settled, "a second look finds nothing to do");
        }
    }
}
