//! Services: types, defaults and checks. Addresses and ports are claimed in [`claims`].

mod claims;
pub mod ranges;

use futures::future::BoxFuture;
use serde_json::{Value, json};

pub use ranges::{Ranges, family};

use super::NameRule;
use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::pod::or;
use super::strategy::{ClaimError, Claims, Strategy};
use crate::store::Op;

/// Seconds that client affinity lasts when nothing else is said.
const AFFINITY_SECONDS: i64 = 10_800;

/// [`Strategy`] of services.
pub(super) struct Services;

/// Whether the Service has an address of its own, or is headless.
fn has_cluster_ip(object: &Object) -> bool {
    object.text("/spec/type") != "ExternalName"
}

/// Whether the Service says that it wants no address.
fn is_headless(object: &Object) -> bool {
    has_cluster_ip(object) && object.text("/spec/clusterIP") == "None"
}

/// Whether the Service is reached on nodes.
fn has_node_ports(object: &Object) -> bool {
    match object.text("/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => {
            object.at("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
        }
        _ => false,
    }
}

/// Whether the Service has a port for health checks of its local endpoints.
fn has_health_check(object: &Object) -> bool {
    object.text("/spec/type") == "LoadBalancer"
        && object.text("/spec/externalTrafficPolicy") == "Local"
}

impl Strategy for Services {
    fn default(&self, object: &mut Object) {
        object.default("/spec/sessionAffinity", "None");
        object.default("/spec/type", "ClusterIP");
        if object.text("/spec/sessionAffinity") == "ClientIP" {
            object.default("/spec/sessionAffinityConfig/clientIP/timeoutSeconds", AFFINITY_SECONDS);
        }
        let kind = object.text("/spec/type").to_owned();
        if kind != "ExternalName" {
            object.default("/spec/internalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            object.default("/spec/externalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            object.default("/spec/allocateLoadBalancerNodePorts", true);
        }
        if let Some(Value::Array(ports)) = object.at_mut("/spec/ports") {
            for port in ports.iter_mut().filter_map(Value::as_object_mut) {
                or(port, "protocol", "TCP");
                let number = port.get("port").cloned().unwrap_or_default();
                if matches!(port.get("targetPort"), None | Some(Value::Null))
                    || port["targetPort"] == json!(0)
                    || port["targetPort"] == json!("")
                {
                    port.insert("targetPort".to_owned(), number);
                }
                if port.get("nodePort") == Some(&json!(0)) {
                    port.remove("nodePort");
                }
            }
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"loadBalancer": {}}));
    }

    fn prepare_update(&self, object: &mut Object, old: &Object) {
        claims::keep_allocated(object, old);
        claims::drop_what_the_type_has_not(object, old);
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        validate_enums(object, errors);
        validate_ports(object, errors);
        if object.text("/spec/type") == "ExternalName" {
            match object.text("/spec/externalName").trim_end_matches('.') {
                "" => errors.required("spec.externalName", ""),
                name => {
                    if let Some(fault) = names::fault(name, NameRule::Subdomain) {
                        errors.invalid("spec.externalName", name, fault);
                    }
                }
            }
        }
        if is_headless(object) && object.text("/spec/type") != "ClusterIP" {
            errors.invalid(
                "spec.clusterIPs[0]",
                "None",
                "may not be set to 'None' for LoadBalancer services",
            );
        }
        names::check_labels(object.at("/spec/selector"), "spec.selector", errors);
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        let was = old.text("/spec/clusterIP");
        if has_cluster_ip(object)
            && has_cluster_ip(old)
            && !was.is_empty()
            && object.text("/spec/clusterIP") != was
        {
            let wanted = object
                .at("/spec/clusterIPs")
                .cloned()
                .unwrap_or_else(|| json!([object.text("/spec/clusterIP")]));
            errors.invalid("spec.clusterIPs[0]", wanted, "may not change once set");
        }
    }

    fn claim<'a>(
        &'a self,
        object: &'a mut Object,
        old: Option<&'a Object>,
        claims: Claims<'a>,
    ) -> BoxFuture<'a, Result<Vec<Op>, ClaimError>> {
        Box::pin(claims::claim(object, old, claims))
    }

    fn release(&self, object: &Object) -> Vec<Op> {
        claims::release(object)
    }
}

fn validate_enums(object: &Object, errors: &mut Errors) {
    let rules: [(&str, &[&str]); 5] = [
        ("type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]),
        ("sessionAffinity", &["ClientIP", "None"]),
        ("internalTrafficPolicy", &["Cluster", "Local"]),
        ("externalTrafficPolicy", &["Cluster", "Local"]),
        ("ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"]),
    ];
    for (field, allowed) in rules {
        if let Some(value) = object.at(&format!("/spec/{field}"))
            && !value.as_str().is_some_and(|text| allowed.contains(&text))
        {
            errors.not_supported(format!("spec.{field}"), value.clone(), allowed);
        }
    }
    let on_nodes = matches!(object.text("/spec/type"), "NodePort" | "LoadBalancer");
    let external = !object.list("/spec/externalIPs").is_empty();
    if object.at("/spec/externalTrafficPolicy").is_some() && !on_nodes && !external {
        let value = object.text("/spec/externalTrafficPolicy");
        errors.invalid(
            "spec.externalTrafficPolicy",
            value,
            "may only be set for externally-accessible services",
        );
    }
}

fn validate_ports(object: &Object, errors: &mut Errors) {
    let ports = object.list("/spec/ports");
    if ports.is_empty() && has_cluster_ip(object) && !is_headless(object) {
        errors.required("spec.ports", "");
    }
    let on_nodes = matches!(object.text("/spec/type"), "NodePort" | "LoadBalancer");
    let (mut names_seen, mut numbers_seen) = (Vec::new(), Vec::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        match port["name"].as_str().unwrap_or_default() {
            "" if ports.len() > 1 => errors.required(format!("{field}.name"), ""),
            "" => {}
            name => {
                if let Some(fault) = names::fault(name, NameRule::Label) {
                    errors.invalid(format!("{field}.name"), name, fault);
                }
                if names_seen.contains(&name) {
                    errors.duplicate(format!("{field}.name"), name);
                }
                names_seen.push(name);
            }
        }
        if !matches!(port["port"].as_i64(), Some(1..=65_535)) {
            let value = port.get("port").cloned().unwrap_or(json!(0));
            errors.invalid(
                format!("{field}.port"),
                value,
                "must be between 1 and 65535, inclusive",
            );
        }
        validate_target(&port["targetPort"], &field, errors);
        if !matches!(port["protocol"].as_str(), Some("SCTP" | "TCP" | "UDP")) {
            errors.not_supported(
                format!("{field}.protocol"),
                port["protocol"].clone(),
                &["SCTP", "TCP", "UDP"],
            );
        }
        if port.get("nodePort").is_some() && !on_nodes {
            let kind = object.text("/spec/type");
            errors.forbidden(
                format!("{field}.nodePort"),
                format!("may not be used when `type` is '{kind}'"),
            );
        }
        let number = (&port["port"], &port["protocol"]);
        if numbers_seen.contains(&number) {
            errors.duplicate(field, json!({"port": port["port"], "protocol": port["protocol"]}));
        }
        numbers_seen.push(number);
    }
}

/// A target port is a number or the name of a container's port (at most 15 characters).
fn validate_target(target: &Value, field: &str, errors: &mut Errors) {
    let field = format!("{field}.targetPort");
    match target {
        Value::Number(number) if matches!(number.as_i64(), Some(1..=65_535)) => {}
        Value::String(name) if name.len() <= 15 && names::fault(name, NameRule::Label).is_none() => {}
        Value::String(name) => errors.invalid(field, name.clone(), "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), and be no more than 15 characters"),
        other => errors.invalid(field, other.clone(), "must be between 1 and 65535, inclusive"),
    }
}
