//! What a Service may be, and what may change of it.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{family, has_cluster_ip, has_health_check, is_external, is_headless};
use crate::registry::NameRule;
use crate::registry::invalid::Errors;
use crate::registry::names;
use crate::registry::object::Object;
use crate::registry::rules::{self, NO_ADDRESS, NO_CIDR, Rule, Test};

/// The longest that client affinity lasts, in seconds.
const AFFINITY_MAX: i64 = 86_400;
/// The annotation that does what `loadBalancerSourceRanges` does.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

const RULES: &[Rule] = &[
    Rule("spec.type", Test::OneOf(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"])),
    Rule("spec.sessionAffinity", Test::OneOf(&["ClientIP", "None"])),
    Rule("spec.internalTrafficPolicy", Test::OneOf(&["Cluster", "Local"])),
    Rule("spec.externalTrafficPolicy", Test::OneOf(&["Cluster", "Local"])),
    Rule(
        "spec.ipFamilyPolicy",
        Test::OneOf(&["PreferDualStack", "RequireDualStack", "SingleStack"]),
    ),
    Rule("spec.ipFamilies[*]", Test::OneOf(&["IPv4", "IPv6"])),
    Rule("spec.selector", Test::Labels),
    Rule("spec.externalIPs[*]", Test::Reachable),
    Rule("spec.healthCheckNodePort", Test::Port),
    Rule(
        "spec.trafficDistribution",
        Test::OneOf(&["PreferClose", "PreferSameNode", "PreferSameZone"]),
    ),
];

const PORT_RULES: &[Rule] = &[
    Rule("name", Test::Name(NameRule::Label)),
    Rule("protocol", Test::OneOf(&["SCTP", "TCP", "UDP"])),
    Rule("targetPort", Test::PortOrName),
    Rule("appProtocol", Test::Text(names::key_fault)),
];

/// Checks a Service.
pub(super) fn service(object: &Object, errors: &mut Errors) {
    rules::check(RULES, object.value(), errors);
    check_type(object, errors);
    check_ports(object, errors);
    check_affinity(object, errors);
    check_addresses(object, errors);
    check_load_balancer(object, errors);
    check_external_traffic(object, errors);
}

fn check_type(object: &Object, errors: &mut Errors) {
    let kind = object.text("/spec/type");
    if is_headless(object) && kind != "ClusterIP" {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.invalid("spec.clusterIPs[0]", "None", why);
    }
    if kind != "ExternalName" {
        return;
    }
    match object.text("/spec/externalName").trim_end_matches('.') {
        "" => errors.required("spec.externalName", ""),
        name => {
            if let Some(fault) = names::fault(name, NameRule::Subdomain) {
                errors.invalid("spec.externalName", name, fault);
            }
        }
    }
    let none = |pointer: &str| match object.at(pointer) {
        None => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(value) => value == "",
    };
    let addresses = none("/spec/clusterIPs") && none("/spec/clusterIP");
    for (field, absent) in [
        ("clusterIPs", addresses),
        ("ipFamilies", none("/spec/ipFamilies")),
        ("ipFamilyPolicy", none("/spec/ipFamilyPolicy")),
    ] {
        if !absent {
            errors.forbidden(format!("spec.{field}"), "may not be set for ExternalName services");
        }
    }
}

fn check_ports(object: &Object, errors: &mut Errors) {
    let ports = object.list("/spec/ports");
    if ports.is_empty() && has_cluster_ip(object) && !is_headless(object) {
        errors.required("spec.ports", "");
    }
    let kind = object.text("/spec/type");
    let on_nodes = matches!(kind, "NodePort" | "LoadBalancer");
    let (mut names_seen, mut numbers_seen, mut on_nodes_seen) = (vec![], vec![], vec![]);
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        match port["name"].as_str().unwrap_or_default() {
            "" if ports.len() > 1 => errors.required(format!("{field}.name"), ""),
            "" => {}
            name if names_seen.contains(&name) => errors.duplicate(format!("{field}.name"), name),
            name => names_seen.push(name),
        }
        if !matches!(port["port"].as_i64(), Some(1..=65_535)) {
            let value = port.get("port").cloned().unwrap_or(json!(0));
            let why = "must be between 1 and 65535, inclusive";
            errors.invalid(format!("{field}.port"), value, why);
        }
        rules::check_at(&field, PORT_RULES, port, errors);
        if let Some(number) = port["nodePort"].as_i64() {
            if !on_nodes {
                let why = format!("may not be used when `type` is '{kind}'");
                errors.forbidden(format!("{field}.nodePort"), why);
            }
            if on_nodes_seen.contains(&(number, &port["protocol"])) {
                errors.duplicate(format!("{field}.nodePort"), number);
            }
            on_nodes_seen.push((number, &port["protocol"]));
        }
        let number = (&port["port"], &port["protocol"]);
        if numbers_seen.contains(&number) {
            errors.duplicate(field, json!({"port": port["port"], "protocol": port["protocol"]}));
        }
        numbers_seen.push(number);
    }
}

fn check_affinity(object: &Object, errors: &mut Errors) {
    let seconds = object.integer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
    let seconds = seconds.unwrap_or(0);
    if object.text("/spec/sessionAffinity") == "ClientIP" && !(1..=AFFINITY_MAX).contains(&seconds)
    {
        errors.invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            seconds,
            format!("must be greater than 0 and less than {AFFINITY_MAX}"),
        );
    }
}

/// Checks families and addresses by themselves; whether they can be had is seen when they are
/// claimed.
fn check_addresses(object: &Object, errors: &mut Errors) {
    if !has_cluster_ip(object) {
        return;
    }
    let families = texts(object, "/spec/ipFamilies");
    for (index, one) in families.iter().enumerate() {
        if families[..index].contains(one) {
            errors.duplicate(format!("spec.ipFamilies[{index}]"), *one);
        }
    }
    let mut listed = texts(object, "/spec/clusterIPs");
    if listed.is_empty() && !object.text("/spec/clusterIP").is_empty() {
        listed.push(object.text("/spec/clusterIP"));
    }
    let field = "spec.clusterIPs";
    let all = || json!(listed);
    if object.text("/spec/clusterIP").is_empty() && !listed.is_empty() {
        errors.invalid(field, all(), "must be empty when `clusterIP` is not specified");
        return;
    }
    if listed.first() == Some(&"None") {
        if listed.len() > 1 {
            errors.invalid(field, all(), "'None' must be the first and only value");
        }
        return;
    }
    let parsed: Vec<Option<IpAddr>> = listed.iter().map(|text| text.parse().ok()).collect();
    for (index, text) in listed.iter().enumerate().filter(|(index, _)| parsed[*index].is_none()) {
        errors.invalid(format!("{field}[{index}]"), *text, NO_ADDRESS);
    }
    if listed.len() > 2 {
        errors.invalid(field, all(), "may only hold up to 2 values");
        return;
    }
    let of: Vec<&str> = parsed.iter().flatten().map(|ip| family(*ip)).collect();
    if of.len() < listed.len() {
        return;
    }
    if let [one, other] = of[..]
        && one == other
    {
        errors.invalid(field, all(), "may specify no more than one IP for each IP family");
    }
    for (index, (wanted, found)) in families.iter().zip(&of).enumerate() {
        if wanted != found && matches!(*wanted, "IPv4" | "IPv6") {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            errors.invalid(format!("{field}[{index}]"), listed[index], why);
        }
    }
}

fn texts<'a>(object: &'a Object, pointer: &str) -> Vec<&'a str> {
    object.list(pointer).iter().filter_map(Value::as_str).collect()
}

fn check_load_balancer(object: &Object, errors: &mut Errors) {
    let balanced = object.text("/spec/type") == "LoadBalancer";
    let only = "may only be used when `type` is 'LoadBalancer'";
    let ranges = texts(object, "/spec/loadBalancerSourceRanges");
    // Kubernetes writes this field with a capital.
    let field = "spec.LoadBalancerSourceRanges";
    if !ranges.is_empty() && !balanced {
        errors.forbidden(field, only);
    }
    for (index, range) in ranges.iter().enumerate() {
        check_range(&format!("{field}[{index}]"), range, errors);
    }
    let annotation = object.at("/metadata/annotations").and_then(|all| all.get(SOURCE_RANGES));
    if let Some(text) = annotation.and_then(Value::as_str).filter(|_| ranges.is_empty()) {
        let field = format!("metadata.annotations[{SOURCE_RANGES}]");
        if !balanced {
            errors.forbidden(field.as_str(), only);
        }
        for range in text.split(',').filter(|_| !text.trim().is_empty()) {
            check_range(&field, range, errors);
        }
    }
    for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if object.at(&format!("/spec/{name}")).is_some() && !balanced {
            errors.forbidden(format!("spec.{name}"), only);
        }
    }
    let class = object.text("/spec/loadBalancerClass");
    if balanced
        && object.at("/spec/loadBalancerClass").is_some()
        && let Some(fault) = names::key_fault(class)
    {
        errors.invalid("spec.loadBalancerClass", class, fault);
    }
}

/// Ranges of sources may be padded with blanks.
fn check_range(field: &str, range: &str, errors: &mut Errors) {
    if !rules::is_cidr(range.trim()) {
        errors.invalid(field, range.trim(), NO_CIDR);
    }
}

fn check_external_traffic(object: &Object, errors: &mut Errors) {
    let policy = object.text("/spec/externalTrafficPolicy");
    if !is_external(object) && !policy.is_empty() {
        let why = "may only be set for externally-accessible services";
        errors.invalid("spec.externalTrafficPolicy", policy, why);
    }
    let port = object.integer("/spec/healthCheckNodePort").unwrap_or(0);
    if !has_health_check(object) && port != 0 {
        let why =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid("spec.healthCheckNodePort", port, why);
    }
}

/// Checks that only what may change has changed.
pub(super) fn change(object: &Object, old: &Object, errors: &mut Errors) {
    let balanced = |object: &Object| object.text("/spec/type") == "LoadBalancer";
    let class = "/spec/loadBalancerClass";
    if balanced(object) && balanced(old) && object.at(class) != old.at(class) {
        let value = object.at(class).cloned().unwrap_or_default();
        errors.invalid("spec.loadBalancerClass", value, "may not change once set");
    }
    let port = "/spec/healthCheckNodePort";
    if has_health_check(object) && has_health_check(old) && object.at(port) != old.at(port) {
        errors.forbidden("spec.healthCheckNodePort", "field is immutable");
    }
    if !has_cluster_ip(object) || !has_cluster_ip(old) {
        return;
    }
    let headless = (is_headless(old), is_headless(object));
    if headless != (true, true) {
        check_kept("clusterIPs", "clusterIP", object, old, errors);
    }
    if headless == (false, false) {
        check_kept("ipFamilies", "ipFamily", object, old, errors);
    }
}

/// A list of one or two: a second may come, and may go with the policy that says so; nothing that
/// is there changes.
fn check_kept(list: &str, one: &str, object: &Object, old: &Object, errors: &mut Errors) {
    let pointer = format!("/spec/{list}");
    let (mut now, before) = (texts(object, &pointer), texts(old, &pointer));
    let first = object.text("/spec/clusterIP");
    if list == "clusterIPs" && !first.is_empty() {
        if now.is_empty() {
            now.push(first);
        } else if now == before {
            // Of the two that say the same, the one that changed is meant.
            now[0] = first;
        }
    }
    let field = format!("spec.{list}");
    for index in 0..before.len().min(now.len()) {
        if now[index] != before[index] {
            errors.invalid(format!("{field}[{index}]"), json!(now), "may not change once set");
        }
    }
    let policy = object.text("/spec/ipFamilyPolicy");
    if now.len() < before.len() {
        if now.is_empty() {
            let why = format!("primary {one} can not be unset");
            errors.invalid(format!("{field}[0]"), json!(now), why);
        } else if policy != "SingleStack" {
            let why = format!("must be set to 'SingleStack' when releasing the secondary {one}");
            errors.invalid("spec.ipFamilyPolicy", policy, why);
        }
    }
}
