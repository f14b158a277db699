//! Services, and the ranges of their addresses.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::{
    Warnings, keep_good, object_key,
    objects::{self, Meta, ServiceSpec},
    parse_ips, port_number, protocol, range, text,
};
use crate::model::{
    node::Cidr,
    service::{Service, ServiceCidr, ServicePort, TrafficPolicy},
};

/// Names another implementation of Services (KEP-2447).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Asked for topology hints before `spec.trafficDistribution` (KEP-2433), with `Auto`.
const TOPOLOGY_MODE_ANNOTATION: &str = "service.kubernetes.io/topology-mode";
/// The name that it had first.
const TOPOLOGY_HINTS_ANNOTATION: &str = "service.kubernetes.io/topology-aware-hints";
/// What `spec.loadBalancerSourceRanges` was before it was a field. Cloud providers read it, for what
/// they have before the node; kube-proxy does not.
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// For how long a client keeps its backend where the service does not say: three hours.
const AFFINITY_DEFAULT_S: u32 = 10_800;
/// The longest time that the API allows for it: a day.
const AFFINITY_MAX_S: u32 = 86_400;
/// With the value `false`, flows to deleted endpoints of a service are not reset.
const RESET_ON_DELETE_ANNOTATION: &str = "mizzen.dev/reset-on-delete";
/// Keeps a service away from proxies, whatever its address.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// A Service.
pub fn service(object: &objects::Service<'_>) -> (Option<Service>, Warnings) {
    let mut warnings = Vec::new();
    let meta = &object.metadata;
    let none = ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&none);
    let external_name = (spec.type_.as_deref() == Some("ExternalName"))
        .then(|| Arc::from(text(spec.external_name.as_ref())));
    // The list where there is one; else the field that came before it.
    let single = spec.cluster_ip.as_ref().filter(|_| spec.cluster_ips.is_none());
    let cluster_ips = || spec.cluster_ips.iter().flatten().chain(single).map(|ip| &**ip);
    let headless = cluster_ips().any(|ip| ip == "None");
    // An ExternalName service may have kept an address that it no longer owns (reference B121).
    let addressed = !headless && external_name.is_none();
    let cluster_ips = cluster_ips().filter(|ip| addressed && !ip.is_empty());
    let external_ips = spec.external_ips.iter().flatten().map(|ip| &**ip);
    let ingress = object.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let load_balancer_ips = ingress
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref());
    let value = Service {
        key: object_key(meta),
        created_s: created_s(meta),
        cluster_ips: parse_ips(cluster_ips, "spec.clusterIPs", &mut warnings),
        headless,
        external_name,
        external_ips: parse_ips(external_ips, "spec.externalIPs", &mut warnings),
        load_balancer_ips: parse_ips(load_balancer_ips, "status.loadBalancer", &mut warnings),
        source_ranges: source_ranges(meta, spec, &mut warnings),
        ports: service_ports(spec, &mut warnings),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        affinity_s: affinity(spec, &mut warnings),
        topology: asks_for_topology(meta, spec),
        health_check_node_port: health_check_node_port(spec, &mut warnings),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        reset_on_delete: meta.annotation(RESET_ON_DELETE_ANNOTATION) != Some("false"),
        foreign_proxy: meta.label(PROXY_NAME_LABEL).is_some()
            || meta.label(HEADLESS_LABEL).is_some(),
        labels: meta.labels().collect(),
    };
    (Some(value), warnings)
}

/// When it was created, in seconds since 1970; 0 where it does not say.
fn created_s(meta: &Meta<'_>) -> i64 {
    let time = meta.creation_timestamp.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    time.map_or(0, Timestamp::as_second)
}

/// Seconds for which a client keeps its backend.
fn affinity(spec: &ServiceSpec<'_>, warnings: &mut Warnings) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let Some(timeout) = client_ip.and_then(|config| config.timeout_seconds) else {
        return AFFINITY_DEFAULT_S;
    };
    match u32::try_from(timeout) {
        Ok(timeout) if (1..=AFFINITY_MAX_S).contains(&timeout) => timeout,
        _ => {
            warnings.push(format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds {timeout} is not between 1 \
                 and {AFFINITY_MAX_S}: {AFFINITY_DEFAULT_S} counts"
            ));
            AFFINITY_DEFAULT_S
        }
    }
}

/// Who may use the load balancer addresses; `None` is everyone. Where nothing of what is named can
/// be read, nobody may: a restriction that is misspelt is not taken for none.
fn source_ranges(
    meta: &Meta<'_>,
    spec: &ServiceSpec<'_>,
    warnings: &mut Warnings,
) -> Option<Vec<Cidr>> {
    const FIELD: &str = "spec.loadBalancerSourceRanges";
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if !texts.is_empty() {
        return Some(keep_good(texts, FIELD, range, warnings));
    }
    let annotation = meta.annotation(SOURCE_RANGES_ANNOTATION).unwrap_or_default();
    if annotation.split(',').any(|text| !text.trim().is_empty()) {
        warnings.push(format!(
            "annotation {SOURCE_RANGES_ANNOTATION} binds nobody on this node, as with kube-proxy: \
             name the ranges in {FIELD}"
        ));
    }
    None
}

/// Whether the service asks for topology, so that the hints of its endpoints count (reference
/// B90).
fn asks_for_topology(meta: &Meta<'_>, spec: &ServiceSpec<'_>) -> bool {
    let mode = meta
        .annotation(TOPOLOGY_HINTS_ANNOTATION)
        .or_else(|| meta.annotation(TOPOLOGY_MODE_ANNOTATION));
    matches!(mode, Some("auto" | "Auto"))
        || spec.traffic_distribution.as_ref().is_some_and(|preference| !preference.is_empty())
}

/// The port of the health check, which only a load balancer that tells nodes apart asks for.
fn health_check_node_port(spec: &ServiceSpec<'_>, warnings: &mut Warnings) -> Option<u16> {
    let local = policy(spec.external_traffic_policy.as_deref()) == TrafficPolicy::Local;
    if spec.type_.as_deref() != Some("LoadBalancer") || !local {
        return None;
    }
    let port = spec.health_check_node_port.filter(|port| *port != 0)?;
    let good = port_number(port);
    if let Err(why) = &good {
        warnings.push(format!("spec.healthCheckNodePort is left out: {why}"));
    }
    good.ok()
}

fn service_ports(spec: &ServiceSpec<'_>, warnings: &mut Warnings) -> Vec<ServicePort> {
    let convert = |port: &objects::ServicePort<'_>| -> Result<ServicePort, String> {
        Ok(ServicePort {
            name: text(port.name.as_ref()).into(),
            protocol: protocol(port.protocol.as_deref())?,
            port: port_number(port.port.ok_or("no port number")?)?,
            node_port: port.node_port.filter(|n| *n != 0).map(port_number).transpose()?,
        })
    };
    keep_good(spec.ports.iter().flatten(), "spec.ports", convert, warnings)
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// A range of cluster IPs.
pub fn service_cidr(object: &objects::ServiceCidr<'_>) -> (Option<ServiceCidr>, Warnings) {
    let mut warnings = Vec::new();
    let cidrs = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    let value = ServiceCidr {
        name: text(object.metadata.name.as_ref()).into(),
        cidrs: keep_good(cidrs, "spec.cidrs", range, &mut warnings),
    };
    (Some(value), warnings)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn service_of(yaml: &str) -> (Service, Warnings) {
        let (value, warnings) = service(&serde_yaml_ng::from_str(yaml).unwrap());
        (value.unwrap(), warnings)
    }

    #[test]
    fn b121_external_name_ignores_a_cluster_ip() {
        let (value, _) = service_of(
            "{metadata: {name: a, namespace: b}, spec: {type: ExternalName, externalName: x.example,
              clusterIP: 10.96.0.7}}",
        );
        assert_eq!(value.external_name.as_deref(), Some("x.example"));
        assert!(value.cluster_ips.is_empty() && !value.headless);
    }

    #[test]
    fn b55_a_balancer_in_proxy_mode_keeps_its_address() {
        let (value, _) = service_of(
            "{metadata: {name: a, namespace: b}, spec: {type: LoadBalancer, clusterIP: 10.96.0.7},
              status: {loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: Proxy},
              {ip: 192.0.2.2, ipMode: VIP}, {ip: 192.0.2.3}, {hostname: x}]}}}",
        );
        let ips: Vec<String> = value.load_balancer_ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["192.0.2.2", "192.0.2.3"]);
    }

    #[test]
    fn bad_fields_become_warnings_and_the_rest_counts() {
        let (value, warnings) = service_of(
            "{metadata: {name: a, namespace: b}, spec: {clusterIPs: [10.96.0.7, bogus],
              externalIPs: [300.1.1.1], ports: [{port: 80}, {port: 70000}, {port: 81, protocol: X}]}}",
        );
        assert_eq!(value.cluster_ips, [IpAddr::from([10, 96, 0, 7])]);
        assert_eq!(value.ports.len(), 1);
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert!(warnings.iter().any(|w| w.contains("spec.ports[1]") && w.contains("70000")));
    }

    #[test]
    fn b122_services_of_another_proxy_are_marked() {
        for (label, foreign) in [(PROXY_NAME_LABEL, true), (HEADLESS_LABEL, true), ("x", false)] {
            let (value, _) = service_of(&format!(
                "{{metadata: {{name: a, namespace: b, labels: {{{label}: \"\"}}}}, spec: {{}}}}"
            ));
            assert_eq!(value.foreign_proxy, foreign, "{label}");
        }
    }

    #[test]
    fn v8_a_service_may_ask_that_flows_are_not_reset() {
        for (value, resets) in [("\"false\"", false), ("\"true\"", true), ("\"\"", true)] {
            let (service, _) = service_of(&format!(
                "{{metadata: {{name: a, namespace: b, annotations: {{{RESET_ON_DELETE_ANNOTATION}: \
                 {value}}}}}, spec: {{}}}}"
            ));
            assert_eq!(service.reset_on_delete, resets, "{value}");
        }
    }

    #[test]
    fn b71_affinity_has_the_timeout_that_the_api_allows() {
        let affinity = |config: &str| {
            let (value, warnings) = service_of(&format!(
                "{{metadata: {{name: a, namespace: b}}, spec: {{sessionAffinity: ClientIP,
                  sessionAffinityConfig: {config}}}}}"
            ));
            (value.affinity_s, warnings.len())
        };
        assert_eq!(affinity("null"), (10_800, 0));
        assert_eq!(affinity("{}"), (10_800, 0));
        assert_eq!(affinity("{clientIP: {}}"), (10_800, 0));
        for (timeout, expected) in [
            (-1, (10_800, 1)),
            (0, (10_800, 1)),
            (1, (1, 0)),
            (86_400, (86_400, 0)),
            (86_401, (10_800, 1)),
        ] {
            assert_eq!(affinity(&format!("{{clientIP: {{timeoutSeconds: {timeout}}}}}")), expected);
        }
        let (without, _) = service_of(
            "{metadata: {name: a, namespace: b}, spec: {sessionAffinity: None,
              sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}}}",
        );
        assert_eq!(without.affinity_s, 0);
    }

    #[test]
    fn b19_source_ranges_lose_their_blanks_and_the_bad_ones() {
        let ranges = |annotation: &str, field: &str| {
            let (value, warnings) = service_of(&format!(
                "{{metadata: {{name: a, namespace: b, annotations: {{{SOURCE_RANGES_ANNOTATION}:
                  '{annotation}'}}}}, spec: {{loadBalancerSourceRanges: {field}}}}}"
            ));
            let texts = |ranges: Vec<Cidr>| ranges.iter().map(ToString::to_string).collect();
            (value.source_ranges.map(texts), warnings.len())
        };
        let some = |texts: &[&str]| Some(texts.iter().map(|t| (*t).to_owned()).collect());
        let check = |annotation, field, expected: (Option<Vec<String>>, usize)| {
            assert_eq!(ranges(annotation, field), expected, "{annotation:?} {field}");
        };
        check("", "[]", (None, 0));
        check(" , ", "null", (None, 0));
        check("", "[' 1.2.3.0/24', '10.1.2.3/8 ']", (some(&["1.2.3.0/24", "10.0.0.0/8"]), 0));
        check("", "[1.2.3.4/33, x, 'fd00::1/64']", (some(&["fd00::/64"]), 2));
        check("", "[1.2.3.4]", (some(&[]), 1));
        check("1.2.3.0/24", "[0.0.0.0/0]", (some(&["0.0.0.0/0"]), 0));
    }

    #[test]
    fn b19_source_ranges_of_the_annotation_bind_nobody_and_are_warned_of() {
        let (value, warnings) = service_of(&format!(
            "{{metadata: {{name: a, annotations: {{{SOURCE_RANGES_ANNOTATION}: '1.2.3.0/24, x'}}}},
              spec: {{type: LoadBalancer}}}}"
        ));
        assert_eq!((value.source_ranges, warnings.len()), (None, 1), "{warnings:?}");
        assert!(warnings[0].contains("spec.loadBalancerSourceRanges"), "{}", warnings[0]);
    }

    #[test]
    fn b90_hints_count_where_the_service_asks_for_topology() {
        let topology = |metadata: &str, spec: &str| {
            let text = format!("{{metadata: {{name: a, {metadata}}}, spec: {{{spec}}}}}");
            service_of(&text).0.topology
        };
        for name in [TOPOLOGY_MODE_ANNOTATION, TOPOLOGY_HINTS_ANNOTATION] {
            for (mode, expected) in
                [("auto", true), ("Auto", true), ("disabled", false), ("", false), ("aUto", false)]
            {
                let got = topology(&format!("annotations: {{{name}: '{mode}'}}"), "");
                assert_eq!(got, expected, "{name}: {mode}");
            }
        }
        assert!(!topology("", ""));
        for preference in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
            assert!(topology("", &format!("trafficDistribution: {preference}")), "{preference}");
        }
    }

    #[test]
    fn f20_only_a_local_load_balancer_has_a_health_check_port() {
        let port = |kind: &str, policy: &str, port: i32| {
            let text = format!(
                "{{metadata: {{name: a}}, spec: {{type: {kind}, externalTrafficPolicy: {policy},
                  healthCheckNodePort: {port}}}}}"
            );
            let (value, warnings) = service_of(&text);
            (value.health_check_node_port, warnings.len())
        };
        assert_eq!(port("LoadBalancer", "Local", 32_000), (Some(32_000), 0));
        assert_eq!(port("LoadBalancer", "Local", 0), (None, 0));
        assert_eq!(port("LoadBalancer", "Local", 70_000), (None, 1));
        assert_eq!(port("LoadBalancer", "Cluster", 32_000), (None, 0));
        assert_eq!(port("NodePort", "Local", 32_000), (None, 0));
    }

    #[test]
    fn a_service_has_its_age() {
        let (value, _) = service_of(
            "{metadata: {name: a, creationTimestamp: '1970-01-02T00:00:01Z'}, spec: {}}",
        );
        assert_eq!(value.created_s, 86_401);
        assert_eq!(service_of("{metadata: {name: a}}").0.created_s, 0);
    }

    #[test]
    fn b17_ranges_of_services_are_read() {
        let text =
            "{metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16, 'fd00:96::/112', x]}}";
        let (value, warnings) = service_cidr(&serde_yaml_ng::from_str(text).unwrap());
        let value = value.unwrap();
        let texts: Vec<String> = value.cidrs.iter().map(ToString::to_string).collect();
        assert_eq!((&*value.name, warnings.len()), ("kubernetes", 1));
        assert_eq!(texts, ["10.96.0.0/16", "fd00:96::/112"]);
    }
}
