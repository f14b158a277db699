//! Endpoints from pods: addresses, conditions, ports by name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::Seen;
use crate::controllers::pod_facts;

/// An IP family, as a slice names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// The `addressType` of slices.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    /// The families of a Service. A Service that does not say has those of its cluster addresses;
    /// a headless one without either has both.
    pub(crate) fn of_service(service: &Service) -> Vec<Self> {
        let Some(spec) = &service.spec else { return Vec::new() };
        let named = spec.ip_families.as_deref().unwrap_or_default();
        let mut families: Vec<Self> = named
            .iter()
            .filter_map(|name| match name.as_str() {
                "IPv4" => Some(Self::Ipv4),
                "IPv6" => Some(Self::Ipv6),
                _ => None,
            })
            .collect();
        if families.is_empty() {
            let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
            families.extend(addresses.filter_map(|address| Self::of_address(address)));
        }
        if families.is_empty() {
            families = vec![Self::Ipv4, Self::Ipv6];
        }
        families.dedup();
        families.truncate(2);
        families
    }

    /// The family of an address in text.
    pub(crate) fn of_address(address: &str) -> Option<Self> {
        let address: std::net::IpAddr = address.parse().ok()?;
        Some(if address.is_ipv6() { Self::Ipv6 } else { Self::Ipv4 })
    }
}

/// The ports of an endpoint in an order that makes equal ones equal: name, protocol, number and
/// application protocol.
pub(crate) type Ports = Vec<(String, String, Option<i32>, Option<String>)>;

/// The endpoints of a family, grouped by their ports: a slice has one list of ports for all.
pub(super) fn by_ports(seen: &Seen<'_>, family: Family) -> BTreeMap<Ports, Vec<Endpoint>> {
    let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for pod in seen.pods {
        if pod_facts::is_terminal(pod) {
            continue;
        }
        if let Some(endpoint) = endpoint(seen, pod, family) {
            groups.entry(ports(seen.service, pod)).or_default().push(endpoint);
        }
    }
    groups
}

/// The ports of a slice as the API has them.
pub(super) fn to_api(ports: &Ports) -> Vec<EndpointPort> {
    let port = |(name, protocol, port, app): &(String, String, Option<i32>, Option<String>)| {
        EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: *port,
            app_protocol: app.clone(),
        }
    };
    ports.iter().map(port).collect()
}

/// The ports of a slice in the order of [`Ports`].
pub(super) fn from_api(ports: Option<&[EndpointPort]>) -> Ports {
    let mut ports: Ports = ports
        .unwrap_or_default()
        .iter()
        .map(|port| {
            let name = port.name.clone().unwrap_or_default();
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            (name, protocol, port.port, port.app_protocol.clone())
        })
        .collect();
    ports.sort();
    ports
}

/// Whether a pod's change shows in no endpoint.
pub(super) fn looks_the_same(old: &Pod, new: &Pod) -> bool {
    let addresses = |pod: &Pod| {
        pod.status.as_ref().map(|status| (status.pod_ip.clone(), status.pod_ips.clone()))
    };
    let names = |pod: &Pod| {
        pod.spec
            .as_ref()
            .map(|spec| (spec.node_name.clone(), spec.hostname.clone(), spec.subdomain.clone()))
    };
    old.metadata.uid == new.metadata.uid
        && old.metadata.labels == new.metadata.labels
        && pod_facts::is_ready(old) == pod_facts::is_ready(new)
        && pod_facts::is_terminal(old) == pod_facts::is_terminal(new)
        && pod_facts::is_terminating(old) == pod_facts::is_terminating(new)
        && addresses(old) == addresses(new)
        && names(old) == names(new)
}

fn endpoint(seen: &Seen<'_>, pod: &Pod, family: Family) -> Option<Endpoint> {
    let address = address(pod, family)?;
    let serving = pod_facts::is_ready(pod);
    let terminating = pod_facts::is_terminating(pod);
    let spec = seen.service.spec.as_ref();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let ready = publish || (serving && !terminating);
    let node_name = pod_facts::node_name(pod).map(str::to_owned);
    let zone = node_name.as_ref().and_then(|node| seen.zones.get(node)).cloned();
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: if ready {
            hints(seen.service, zone.as_deref(), node_name.as_deref())
        } else {
            None
        },
        hostname: hostname(seen.service, pod),
        target_ref: Some(reference(pod)),
        node_name,
        zone,
        ..Endpoint::default()
    })
}

/// What says which pod an address is of.
pub(crate) fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The pod's address of that family.
pub(crate) fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let many = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    many.chain(&status.pod_ip).find(|address| Family::of_address(address) == Some(family)).cloned()
}

/// The name by which a pod that asked for one is found below a headless Service.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let below = spec.subdomain.as_deref() == Some(service.name_any().as_str());
    spec.hostname.clone().filter(|name| below && !name.is_empty())
}

/// For whom the endpoint is meant under the Service's `trafficDistribution` (KEP-4444, KEP-3015).
fn hints(service: &Service, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let zones = || Some(vec![ForZone { name: zone?.to_owned() }]);
    match service.spec.as_ref()?.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => {
            zones().map(|zones| EndpointHints { for_zones: Some(zones), for_nodes: None })
        }
        "PreferSameNode" => node.map(|node| EndpointHints {
            for_zones: zones(),
            for_nodes: Some(vec![ForNode { name: node.to_owned() }]),
        }),
        _ => None,
    }
}

/// The Service's ports as they are on that pod. A port that the pod does not have is left out.
pub(crate) fn ports(service: &Service, pod: &Pod) -> Ports {
    let wanted = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let mut ports: Ports = wanted
        .iter()
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let number = number(port, &protocol, pod)?;
            let name = port.name.clone().unwrap_or_default();
            Some((name, protocol, Some(number), port.app_protocol.clone()))
        })
        .collect();
    ports.sort();
    ports
}

/// The number of the Service's target port on that pod.
fn number(port: &ServicePort, protocol: &str, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let named = |container: &&ContainerPort| {
                container.name.as_ref() == Some(name)
                    && container.protocol.as_deref().unwrap_or("TCP") == protocol
            };
            container_ports(pod).find(named).map(|container| container.container_port)
        }
    }
}

/// The ports of everything in the pod that runs for as long as the pod: containers and sidecars.
fn container_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let sidecars =
        init.iter().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten())
}
