//! Ingresses, their classes, network policies, and ranges of service addresses.

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::invalid::{Errors, IMMUTABLE};
use super::names;
use super::object::Object;
use super::rules::{self, Rule, Test};
use super::strategy::{Strategy, address};
use super::{NameRule, names::SUBDOMAIN_MAX, service};
use crate::cidr::Cidr;
use crate::store::{Store, StoreError};

/// [`Strategy`] of ingresses.
pub(super) struct Ingresses;
/// [`Strategy`] of ingress classes.
pub(super) struct Classes;
/// [`Strategy`] of network policies.
pub(super) struct Policies;
/// [`Strategy`] of ranges of service addresses.
pub(super) struct Ranges;
/// [`Strategy`] of addresses.
pub(super) struct Addresses;

/// Rules of ingresses.
pub(super) const INGRESS_RULES: &[Rule] = &[
    Rule("spec.ingressClassName", Test::Name(NameRule::Subdomain)),
    Rule("spec.rules[*].http.paths[*].pathType", Test::Required("pathType must be specified")),
    Rule(
        "spec.rules[*].http.paths[*].pathType",
        Test::OneOf(&["Exact", "ImplementationSpecific", "Prefix"]),
    ),
    Rule("spec.tls[*].secretName", Test::Name(NameRule::Subdomain)),
];

impl Strategy for Ingresses {
    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"loadBalancer": {}}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let default = object.at("/spec/defaultBackend");
        if default.is_none() && object.list("/spec/rules").is_empty() {
            let why = "either `defaultBackend` or `rules` must be specified";
            errors.invalid("spec", object.at("/spec").cloned().unwrap_or(json!({})), why);
        }
        if let Some(backend) = default {
            check_backend(backend, "spec.defaultBackend", errors);
        }
        for (index, rule) in object.list("/spec/rules").iter().enumerate() {
            check_host(rule["host"].as_str().unwrap_or_default(), index, errors);
        }
        let value = object.value();
        rules::each(value, "spec.rules[*].http.paths[*]", &mut |field, path| {
            let Some(path) = path else { return };
            check_path(path, field, errors);
            check_backend(&path["backend"], &format!("{field}.backend"), errors);
        });
    }
}

fn check_host(host: &str, index: usize, errors: &mut Errors) {
    let field = format!("spec.rules[{index}].host");
    if host.is_empty() {
        return;
    }
    if address(host).is_some() {
        errors.invalid(field, host, "must be a DNS name, not an IP address");
        return;
    }
    let bare = host.strip_prefix("*.").unwrap_or(host);
    if let Some(fault) = names::fault(bare, NameRule::Subdomain) {
        errors.invalid(field, host, fault);
    }
}

fn check_path(path: &Value, field: &str, errors: &mut Errors) {
    let text = path["path"].as_str().unwrap_or_default();
    let exact = matches!(path["pathType"].as_str(), Some("Exact" | "Prefix"));
    if (exact || !text.is_empty()) && !text.starts_with('/') {
        errors.invalid(format!("{field}.path"), text, "must be an absolute path");
    }
    if exact {
        for part in ["//", "/./", "/../", "%2f", "%2F"] {
            if text.contains(part) {
                errors.invalid(format!("{field}.path"), text, format!("must not contain '{part}'"));
            }
        }
    }
}

fn check_backend(backend: &Value, field: &str, errors: &mut Errors) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_null(), resource.is_null()) {
        (false, false) => {
            errors.invalid(field, "", "cannot set both resource and service backends");
        }
        (true, true) => errors.required(field, "port name or number is required"),
        (true, false) => {}
        (false, true) => {
            let name = service["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                errors.required(format!("{field}.service.name"), "");
            } else if let Some(fault) = names::fault(name, NameRule::Label1035) {
                errors.invalid(format!("{field}.service.name"), name, fault);
            }
            let port = &service["port"];
            let number = port["number"].as_i64().unwrap_or(0);
            let named = port["name"].as_str().is_some_and(|name| !name.is_empty());
            match (number, named) {
                (0, false) => errors.required(field, "port name or number is required"),
                (1.., true) => errors.invalid(field, "", "cannot set both port name & port number"),
                (0..=65535, _) => {}
                (other, _) => errors.invalid(
                    format!("{field}.service.port.number"),
                    other,
                    "must be between 1 and 65535, inclusive",
                ),
            }
        }
    }
}

impl Strategy for Classes {
    fn default(&self, object: &mut Object) {
        if object.at("/spec/parameters").is_some() {
            object.default("/spec/parameters/scope", "Cluster");
        }
    }
}

/// What is wrong with the name of an ingress controller.
pub(super) fn controller_fault(value: &Value) -> Option<&'static str> {
    let text = value.as_str().unwrap_or_default();
    let (domain, path) = text.split_once('/').unwrap_or((text, ""));
    if text.len() > 250 || domain.len() > SUBDOMAIN_MAX {
        return Some("must be no more than 250 bytes");
    }
    (path.is_empty() || names::fault(domain, NameRule::Subdomain).is_some())
        .then_some("must be a domain-prefixed path (such as \"acme.io/foo\")")
}

impl Strategy for Addresses {
    fn successor<'a>(
        &'a self,
        deleted: &'a Object,
        store: &'a dyn Store,
    ) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(service::addresses::successor(deleted, store))
    }
}

impl Strategy for Ranges {
    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        let (now, before) = (object.list("/spec/cidrs"), old.list("/spec/cidrs"));
        // A range of the other family may join the one that there is.
        if now.len() != before.len() && (before.len(), now.len()) != (1, 2) {
            errors.invalid("spec.cidrs", Value::from(now.to_vec()), IMMUTABLE);
            return;
        }
        for (index, (now, before)) in now.iter().zip(before).enumerate() {
            if now != before {
                errors.invalid(format!("spec.cidrs[{index}]"), now.clone(), IMMUTABLE);
            }
        }
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let ranges = object.list("/spec/cidrs");
        let all = || Value::from(ranges.to_vec());
        if ranges.is_empty() {
            errors.required("spec.cidrs", "at least one CIDR required");
        } else if ranges.len() > 2 {
            errors.invalid("spec.cidrs", all(), "may only hold up to 2 values");
            return;
        }
        let texts = || ranges.iter().map(|range| range.as_str().unwrap_or_default());
        let families: Vec<Option<bool>> =
            texts().map(|text| range(text).map(Cidr::is_ipv6)).collect();
        if let [one, other] = families[..]
            && (one == other || one.is_none() || other.is_none())
        {
            let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            errors.invalid("spec.cidrs", all(), why);
            return;
        }
        for (index, text) in texts().enumerate() {
            if let Some(fault) = range_fault(text) {
                errors.invalid(format!("spec.cidrs[{index}]"), text, fault);
            }
        }
    }
}

/// The range that a text means; bits below the prefix do not count.
fn range(text: &str) -> Option<Cidr> {
    let (base, bits) = text.split_once('/')?;
    Cidr::new(address(base)?, bits.parse().ok()?)
}

/// What is wrong with a range that has to be written in the one way there is.
fn range_fault(text: &str) -> Option<String> {
    let Some(range) = range(text) else { return Some(rules::NO_CIDR.to_owned()) };
    let base = text.split_once('/').and_then(|(base, _)| address(base));
    if base != Some(range.first()) {
        return Some("must not have bits set beyond the prefix length".to_owned());
    }
    let canonical = range.to_string();
    (canonical != text).then(|| format!("must be in canonical form ({canonical:?})"))
}

/// What is wrong with the name of an address, which is the one way to write it.
pub(super) fn address_name_fault(name: &Value) -> Option<&'static str> {
    let text = name.as_str().unwrap_or_default();
    match address(text) {
        None => Some(rules::NO_ADDRESS),
        Some(ip) if ip.to_string() != text => Some("must be a valid address in canonical form"),
        Some(_) => None,
    }
}

impl Strategy for Policies {
    fn default(&self, object: &mut Object) {
        let egress = object.at("/spec/egress").is_some();
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        object.default("/spec/policyTypes", types);
        object.default("/spec/podSelector", json!({}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        for peers in ["spec.ingress[*].from[*]", "spec.egress[*].to[*]"] {
            rules::each(object.value(), peers, &mut |field, peer| {
                if let Some(peer) = peer {
                    check_peer(peer, field, errors);
                }
            });
        }
        for ports in ["spec.ingress[*].ports[*]", "spec.egress[*].ports[*]"] {
            rules::each(object.value(), ports, &mut |field, port| {
                if let Some(port) = port {
                    check_port(port, field, errors);
                }
            });
        }
        let types = object.list("/spec/policyTypes");
        if types.len() > 2 {
            let why = "may not specify more than two policyTypes";
            errors.invalid("spec.policyTypes", Value::from(types.to_vec()), why);
        }
    }
}

/// A port is a number, a range of numbers, or the name of a container's.
fn check_port(port: &Value, field: &str, errors: &mut Errors) {
    const RULES: &[Rule] = &[Rule("port", Test::PortOrName), Rule("endPort", Test::Port)];
    rules::check_at(field, RULES, port, errors);
    let Some(last) = port["endPort"].as_i64() else { return };
    let at = format!("{field}.endPort");
    match (&port["port"], port["port"].as_i64()) {
        (Value::Null, _) => {
            errors.invalid(at, last, "may not be specified when `port` is not specified");
        }
        (_, None) => errors.invalid(at, last, "may not be specified when `port` is non-numeric"),
        (_, Some(first)) if last < first => {
            errors.invalid(at, first, "must be greater than or equal to `port`");
        }
        _ => {}
    }
}

fn check_peer(peer: &Value, field: &str, errors: &mut Errors) {
    let selects = peer.get("podSelector").is_some() || peer.get("namespaceSelector").is_some();
    let Some(block) = peer.get("ipBlock") else {
        if !selects {
            errors.required(field, "must specify a peer");
        }
        return;
    };
    if selects {
        errors.forbidden(field, "may not specify both ipBlock and another peer");
    }
    let cidr = block["cidr"].as_str().unwrap_or_default();
    let fault = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    if cidr.is_empty() {
        errors.required(format!("{field}.ipBlock.cidr"), "");
    } else if !rules::is_cidr(cidr) {
        errors.invalid(format!("{field}.ipBlock.cidr"), cidr, fault);
    }
    for (index, except) in block["except"].as_array().into_iter().flatten().enumerate() {
        let text = except.as_str().unwrap_or_default();
        let field = format!("{field}.ipBlock.except[{index}]");
        match (range(cidr), range(text)) {
            (_, None) => errors.invalid(field, text, fault),
            (Some(whole), Some(part))
                if part.prefix() <= whole.prefix() || whole.offset(part.first()).is_none() =>
            {
                errors.invalid(field, text, "must be a strict subset of `cidr`");
            }
            _ => {}
        }
    }
}
