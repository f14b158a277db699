//! API objects -> values of the model. Pure. Bad input is data: what can't be understood is left
//! out and becomes a warning, and the rest of the object counts.

mod service;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::SystemTime,
};

use k8s_openapi::jiff::Timestamp;

pub use self::service::{service, service_cidr};
use super::{
    migration,
    objects::{self, Meta, Text},
};
use crate::model::{
    ObjectKey,
    endpoints::{Endpoint, EndpointPort, EndpointSlice, Hints, Site, SliceNames},
    namespace::Namespace,
    node::{Cidr, KubeProxy, Node},
    pod::OptedOutPod,
    service::Protocol,
};

/// The service of an EndpointSlice.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// When the change that a slice was written for happened.
const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The taint of a node that the cluster autoscaler is about to remove (KEP-3836).
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// On a pod: `"false"` leaves its sockets alone (reference U6).
pub const SOCKET_TRANSLATION_ANNOTATION: &str = "mizzen.dev/socket-translation";
/// The zone of a node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Fields that were left out, and why.
pub type Warnings = Vec<String>;

/// The key of an object with a namespace.
pub fn object_key(meta: &Meta<'_>) -> ObjectKey {
    ObjectKey::new(text(meta.namespace.as_ref()), text(meta.name.as_ref()))
}

/// A text, or an empty one where there is none.
fn text<'a>(text: Option<&'a Text<'_>>) -> &'a str {
    text.map_or("", |text| text)
}

/// A pod whose sockets are left alone; none of all others.
pub fn opted_out_pod(object: &objects::Pod<'_>) -> (Option<OptedOutPod>, Warnings) {
    let key = || object_key(&object.metadata);
    match object.metadata.annotation(SOCKET_TRANSLATION_ANNOTATION) {
        None | Some("true") => (None, Vec::new()),
        Some("false") => (Some(OptedOutPod { key: key() }), Vec::new()),
        Some(other) => {
            let warning = format!(
                "annotation {SOCKET_TRANSLATION_ANNOTATION} is {other:?}, neither \"true\" nor \
                 \"false\": the pod's sockets are translated"
            );
            (None, vec![warning])
        }
    }
}

/// A Namespace.
pub fn namespace(object: &objects::Namespace<'_>) -> (Option<Namespace>, Warnings) {
    let meta = &object.metadata;
    let (name, labels) = (text(meta.name.as_ref()).into(), meta.labels().collect());
    (Some(Namespace { name, labels }), Vec::new())
}

/// An EndpointSlice; none where it belongs to no service or names hosts instead of addresses.
pub fn endpoint_slice(object: &objects::EndpointSlice<'_>) -> (Option<EndpointSlice>, Warnings) {
    let mut warnings = Vec::new();
    let ipv6 = match text(object.address_type.as_ref()) {
        "IPv4" => false,
        "IPv6" => true,
        _ => return (None, warnings),
    };
    let Some(service) = object.metadata.label(SERVICE_NAME_LABEL) else {
        return (None, warnings);
    };
    let port = |port: &objects::EndpointPort<'_>| -> Result<EndpointPort, String> {
        Ok(EndpointPort {
            name: text(port.name.as_ref()).into(),
            protocol: protocol(port.protocol.as_deref())?,
            port: port_number(port.port.ok_or("no port number")?)?,
        })
    };
    let ports = keep_good(object.ports.iter().flatten(), "ports", port, &mut warnings);
    let key = object_key(&object.metadata);
    let mut names = Names::default();
    let endpoints = keep_good(
        object.endpoints.iter().flatten(),
        "endpoints",
        |of| endpoint(of, ipv6, &key.namespace, &mut names),
        &mut warnings,
    );
    let trigger_time = trigger_time(&object.metadata);
    let service = ObjectKey::of(key.namespace.clone(), service.into());
    let names = names.all.complete();
    let value = EndpointSlice { key, service, ipv6, ports, endpoints, names, trigger_time };
    (Some(value), warnings)
}

/// The time in a slice's annotation; a time that can't be read measures nothing, and harms nobody.
fn trigger_time(meta: &Meta<'_>) -> Option<SystemTime> {
    let text = meta.annotation(TRIGGER_TIME_ANNOTATION)?;
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// The names of a slice's endpoints.
#[derive(Default)]
struct Names {
    /// The site of the endpoint before, which often is that of the next.
    site: Arc<Site>,
    all: SliceNames,
}

fn endpoint(
    object: &objects::Endpoint<'_>,
    ipv6: bool,
    namespace: &str,
    names: &mut Names,
) -> Result<Endpoint, String> {
    let text = object.addresses.iter().flatten().next().ok_or("no address")?;
    let address = parse_ip(text).ok_or_else(|| format!("{:?} is no IP address", &**text))?;
    if address.is_ipv6() != ipv6 {
        return Err(format!("{address} is of another family than the slice"));
    }
    let conditions = object.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    // A pod of another namespace would be nobody's whom the service may select.
    let is_pod = |target: &&objects::ObjectReference<'_>| {
        target.kind.as_deref() == Some("Pod")
            && target.namespace.as_deref().is_none_or(|of| of == namespace)
    };
    let target = object.target_ref.as_ref().filter(is_pod);
    let pod = target.and_then(|target| target.name.as_deref()).unwrap_or_default();
    let hostname = object.hostname.as_deref().unwrap_or_default();
    let hints = object.hints.as_ref().map(hints).unwrap_or_default();
    if names.site.node.as_deref() != object.node_name.as_deref() || names.site.hints != hints {
        names.site = Arc::new(Site { node: object.node_name.as_deref().map(Arc::from), hints });
    }
    Ok(Endpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        site: Arc::clone(&names.site),
        names: names.all.add(pod, hostname),
    })
}

fn hints(object: &objects::EndpointHints<'_>) -> Hints {
    let names = |of: &Option<Vec<objects::Hint<'_>>>| {
        of.iter().flatten().map(|hint| Arc::from(text(hint.name.as_ref()))).collect()
    };
    Hints { zones: names(&object.for_zones), nodes: names(&object.for_nodes) }
}

/// A Node.
pub fn node(object: &objects::Node<'_>) -> (Option<Node>, Warnings) {
    let mut warnings = Vec::new();
    let of_type = |of_type: &'static str| {
        let addresses = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
        addresses
            .filter(move |address| address.type_.as_deref() == Some(of_type))
            .map(|address| text(address.address.as_ref()))
    };
    let mut node_ips = parse_ips(of_type("InternalIP"), "status.addresses", &mut warnings);
    // Of a family without one, as kube-proxy does.
    let external = parse_ips(of_type("ExternalIP"), "status.addresses", &mut warnings);
    let without = |external: &IpAddr| node_ips.iter().all(|ip| ip.is_ipv6() != external.is_ipv6());
    let instead: Vec<IpAddr> = external.into_iter().filter(without).collect();
    node_ips.extend(instead);
    let spec = object.spec.as_ref();
    // The list where there is one; else the field that came before it.
    let list = spec.and_then(|spec| spec.pod_cidrs.as_deref());
    let single = spec.and_then(|spec| spec.pod_cidr.as_ref()).filter(|_| list.is_none());
    let cidrs = list.into_iter().flatten().chain(single);
    let taints = spec.into_iter().flat_map(|spec| spec.taints.iter().flatten());
    let value = Node {
        name: text(object.metadata.name.as_ref()).into(),
        internal_ips: node_ips,
        pod_cidrs: keep_good(cidrs, "spec.podCIDRs", range, &mut warnings),
        zone: object.metadata.label(ZONE_LABEL).map(Arc::from),
        to_be_deleted: object.metadata.deletion_timestamp.is_some()
            || taints.into_iter().any(|taint| taint.key.as_deref() == Some(TO_BE_DELETED_TAINT)),
        kube_proxy: object.metadata.label(migration::LABEL).and_then(KubeProxy::of_value),
        names_asked: object.metadata.label(migration::NAMES_ASKED).and_then(|at| at.parse().ok()),
    };
    (Some(value), warnings)
}

/// Converts each, leaves out what can't be, and says so.
fn keep_good<'a, T: 'a, U>(
    items: impl IntoIterator<Item = &'a T>,
    field: &str,
    mut convert: impl FnMut(&T) -> Result<U, String>,
    warnings: &mut Warnings,
) -> Vec<U> {
    let mut good = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match convert(item) {
            Ok(value) => good.push(value),
            Err(why) => warnings.push(format!("{field}[{index}] is left out: {why}")),
        }
    }
    // It is kept for as long as the object is there.
    good.shrink_to_fit();
    good
}

fn parse_ips<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    field: &str,
    warnings: &mut Warnings,
) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for text in texts {
        match parse_ip(text) {
            Some(ip) => ips.push(ip),
            None => warnings.push(format!("{field}: {text:?} is no IP address and is left out")),
        }
    }
    ips
}

/// An address as Kubernetes reads it: octets of IPv4 may have leading zeros and are decimal
/// nevertheless (reference B129).
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// A range of addresses; host bits are cleared.
pub fn parse_cidr(text: &str) -> Option<Cidr> {
    let (address, prefix_len) = text.trim().split_once('/')?;
    Cidr::holding(parse_ip(address.trim())?, prefix_len.parse().ok()?)
}

fn range<T: AsRef<str>>(text: &T) -> Result<Cidr, String> {
    let text = text.as_ref();
    parse_cidr(text).ok_or_else(|| format!("{text:?} is no range of addresses"))
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{other:?} is no protocol that Services know")),
    }
}

fn port_number(n: i32) -> Result<u16, String> {
    u16::try_from(n).ok().filter(|n| *n != 0).ok_or_else(|| format!("{n} is no port number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b129_addresses_with_leading_zeros_are_decimal() {
        assert_eq!(parse_ip("010.000.001.009"), Some(IpAddr::from([10, 0, 1, 9])));
        assert_eq!(parse_ip("::ffff:10.0.0.1"), Some(IpAddr::from([10, 0, 0, 1])));
        for bad in ["10.0.0", "10.0.0.256", "10.0.0.1.1", "10.0.0.x", "", "None", "10..0.1"] {
            assert_eq!(parse_ip(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_lose_their_host_bits() {
        let range = |address: &str, prefix_len| {
            Some(Cidr { address: address.parse().unwrap(), prefix_len })
        };
        assert_eq!(parse_cidr("10.244.1.7/24"), range("10.244.1.0", 24));
        assert_eq!(parse_cidr("fd00:244::5/64"), range("fd00:244::", 64));
        assert_eq!(parse_cidr("0.0.0.0/0"), range("0.0.0.0", 0));
        assert_eq!(parse_cidr("::/0"), range("::", 0));
        for bad in ["10.244.0.0", "10.244.0.0/33", "::/129", "x/8", "10.244.0.0/-1"] {
            assert_eq!(parse_cidr(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_family_without_an_internal_ip_has_the_external_one() {
        let text = r#"{"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "ExternalIP", "address": "203.0.113.9"}, {"type": "Hostname", "address": "n"},
            {"type": "InternalIP", "address": "172.30.0.11"},
            {"type": "ExternalIP", "address": "2001:db8::9"}]}}"#;
        let object: objects::Node<'_> = serde_json::from_str(text).unwrap();
        let (node, warnings) = node(&object);
        let addresses = ["172.30.0.11", "2001:db8::9"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(node.unwrap().internal_ips, addresses);
        assert_eq!(warnings, Warnings::new());
    }

    #[test]
    fn conditions_have_the_defaults_of_the_api() {
        let slice = "{metadata: {name: s, namespace: b, labels: {kubernetes.io/service-name: a}},
            addressType: IPv4, ports: [{name: '', port: 80}], endpoints: [{addresses: [10.0.0.1]},
            {addresses: [10.0.0.2], conditions: {ready: false}}, {addresses: ['fd00::1']},
            {addresses: []}, {addresses: [10.0.0.3], nodeName: n, conditions: {ready: false,
            serving: true, terminating: true}}, {addresses: [10.0.0.4], conditions: {ready: false,
            terminating: true}}, {addresses: [10.0.0.5], conditions: {serving: false}}]}";
        let (value, warnings) = endpoint_slice(&serde_yaml_ng::from_str(slice).unwrap());
        let value = value.unwrap();
        let states: Vec<_> =
            value.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        let [ready, unready] = [(true, true, false), (false, true, false)];
        let [terminating, odd] = [(false, true, true), (true, false, false)];
        assert_eq!(states, [ready, unready, terminating, terminating, odd]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert_eq!(value.endpoints[2].node().map(|node| &**node), Some("n"));
    }

    #[test]
    fn the_time_of_a_change_is_read_and_nonsense_is_not() {
        let time_of = |text: &str| {
            let slice = format!(
                "{{metadata: {{name: s, namespace: b, labels: {{kubernetes.io/service-name: a}},
                  annotations: {{{TRIGGER_TIME_ANNOTATION}: {text:?}}}}}, addressType: IPv4,
                  endpoints: []}}"
            );
            let (value, warnings) = endpoint_slice(&serde_yaml_ng::from_str(&slice).unwrap());
            assert!(warnings.is_empty(), "{warnings:?}");
            value.unwrap().trigger_time
        };
        let millis = |millis| SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(millis);
        assert_eq!(time_of("2026-01-02T03:04:05Z"), Some(millis(1_767_323_045_000)));
        assert_eq!(time_of("2026-01-02T04:04:05.25+01:00"), Some(millis(1_767_323_045_250)));
        assert_eq!(time_of("yesterday"), None);
    }

    #[test]
    fn f21_nodes_that_go_are_told_by_their_taint_or_deletion() {
        let goes = |yaml: &str| {
            let (value, _) = node(&serde_yaml_ng::from_str(yaml).unwrap());
            value.unwrap().to_be_deleted
        };
        assert!(!goes("{metadata: {name: a}, spec: {taints: [{key: other, effect: NoExecute}]}}"));
        let taint = TO_BE_DELETED_TAINT;
        assert!(goes(&format!(
            "{{metadata: {{name: a}}, spec: {{taints: [{{key: {taint}, effect: NoSchedule}}]}}}}"
        )));
        assert!(goes("{metadata: {name: a, deletionTimestamp: '2026-01-02T03:04:05Z'}}"));
    }
}
