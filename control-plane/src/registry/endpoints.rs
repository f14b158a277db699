//! Endpoints and EndpointSlices: addresses that others can reach, and how many there may be.

use std::collections::HashSet;

use serde_json::Value;

use super::NameRule;
use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::rules::{self, NO_ADDRESS, Rule, Test};
use super::strategy::{Strategy, address};

/// [`Strategy`] of endpoints.
pub(super) struct Endpoints;
/// [`Strategy`] of endpoint slices.
pub(super) struct Slices;

/// Limits of a slice (Kubernetes' own).
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const TOPOLOGY_MAX: usize = 16;
const ZONES_MAX: usize = 8;

/// Rules of endpoint slices.
pub(super) const SLICE_RULES: &[Rule] = &[
    Rule("addressType", Test::OneOf(&["FQDN", "IPv4", "IPv6"])),
    Rule("endpoints[*].addresses", Test::Required("must contain at least 1 address")),
    Rule("endpoints[*].hostname", Test::Name(NameRule::Label)),
    Rule("endpoints[*].nodeName", Test::Name(NameRule::Subdomain)),
    Rule("endpoints[*].deprecatedTopology", Test::Labels),
    Rule("endpoints[*].hints.forZones[*].name", Test::Required("")),
    Rule("endpoints[*].hints.forZones[*].name", Test::Text(names::key_fault)),
    Rule("ports[*].name", Test::Name(NameRule::Label)),
    Rule("ports[*].protocol", Test::OneOf(&["SCTP", "TCP", "UDP"])),
    Rule("ports[*].port", Test::Port),
    Rule("ports[*].appProtocol", Test::Text(names::key_fault)),
];

/// Rules of endpoints.
pub(super) const RULES: &[Rule] = &[
    Rule("subsets[*].addresses[*].ip", Test::Required("")),
    Rule("subsets[*].addresses[*].ip", Test::Reachable),
    Rule("subsets[*].addresses[*].hostname", Test::Name(NameRule::Label)),
    Rule("subsets[*].addresses[*].nodeName", Test::Name(NameRule::Subdomain)),
    Rule("subsets[*].notReadyAddresses[*].ip", Test::Required("")),
    Rule("subsets[*].notReadyAddresses[*].ip", Test::Reachable),
    Rule("subsets[*].notReadyAddresses[*].hostname", Test::Name(NameRule::Label)),
    Rule("subsets[*].notReadyAddresses[*].nodeName", Test::Name(NameRule::Subdomain)),
    Rule("subsets[*].ports[*].port", Test::Port),
    Rule("subsets[*].ports[*].protocol", Test::OneOf(&["SCTP", "TCP", "UDP"])),
    Rule("subsets[*].ports[*].name", Test::Name(NameRule::Label)),
    Rule("subsets[*].ports[*].appProtocol", Test::Text(names::key_fault)),
];

impl Strategy for Endpoints {
    fn validate(&self, object: &Object, errors: &mut Errors) {
        for (index, subset) in object.list("/subsets").iter().enumerate() {
            let count = |list: &str| subset[list].as_array().map_or(0, Vec::len);
            if count("addresses") + count("notReadyAddresses") == 0 {
                let why = "must specify `addresses` or `notReadyAddresses`";
                errors.required(format!("subsets[{index}]"), why);
            }
            let ports = subset["ports"].as_array().into_iter().flatten().enumerate();
            for (number, port) in ports {
                let at = format!("subsets[{index}].ports[{number}]");
                if count("ports") > 1 && port["name"].as_str().unwrap_or_default().is_empty() {
                    errors.required(format!("{at}.name"), "");
                }
                check_port(port, &at, errors);
            }
        }
    }
}

/// A port of Endpoints is there; one of a slice need not say its number.
fn check_port(port: &Value, at: &str, errors: &mut Errors) {
    if port.get("port").is_none() {
        errors.invalid(format!("{at}.port"), 0, "must be between 1 and 65535, inclusive");
    }
}

impl Strategy for Slices {
    fn validate(&self, object: &Object, errors: &mut Errors) {
        let endpoints = object.list("/endpoints");
        if endpoints.len() > ENDPOINTS_MAX {
            errors.too_many("endpoints", endpoints.len(), ENDPOINTS_MAX);
            return;
        }
        let of = object.text("/addressType");
        for (index, endpoint) in endpoints.iter().enumerate() {
            check_endpoint(endpoint, of, &format!("endpoints[{index}]"), errors);
        }
        let ports = object.list("/ports");
        if ports.len() > PORTS_MAX {
            errors.too_many("ports", ports.len(), PORTS_MAX);
            return;
        }
        let mut seen = HashSet::new();
        for (index, port) in ports.iter().enumerate() {
            let name = port["name"].as_str().unwrap_or_default();
            if !seen.insert(name) {
                errors.duplicate(format!("ports[{index}].name"), name);
            }
        }
    }
}

fn check_endpoint(endpoint: &Value, of: &str, at: &str, errors: &mut Errors) {
    let addresses = endpoint["addresses"].as_array().map_or(&[][..], Vec::as_slice);
    if addresses.len() > ADDRESSES_MAX {
        errors.too_many(format!("{at}.addresses"), addresses.len(), ADDRESSES_MAX);
    }
    for (index, one) in addresses.iter().enumerate() {
        let text = one.as_str().unwrap_or_default();
        check_address(text, of, &format!("{at}.addresses[{index}]"), errors);
    }
    let topology = endpoint["deprecatedTopology"].as_object();
    let labels = topology.map_or(0, serde_json::Map::len);
    if labels > TOPOLOGY_MAX {
        errors.too_many(format!("{at}.deprecatedTopology"), labels, TOPOLOGY_MAX);
    }
    let zones = endpoint.pointer("/hints/forZones").and_then(Value::as_array);
    let zones = zones.map_or(&[][..], Vec::as_slice);
    if zones.len() > ZONES_MAX {
        errors.too_many(format!("{at}.hints.forZones"), zones.len(), ZONES_MAX);
        return;
    }
    for (index, zone) in zones.iter().enumerate() {
        if zones[..index].iter().any(|other| other["name"] == zone["name"]) {
            let field = format!("{at}.hints.forZones[{index}].name");
            errors.duplicate(field, zone["name"].clone());
        }
    }
}

fn check_address(text: &str, of: &str, at: &str, errors: &mut Errors) {
    let wanted_ipv6 = match of {
        "IPv4" => false,
        "IPv6" => true,
        "FQDN" => return check_domain(text, at, errors),
        _ => return,
    };
    let Some(ip) = address(text) else {
        errors.invalid(at, text, NO_ADDRESS);
        return;
    };
    if ip.is_ipv6() != wanted_ipv6 {
        errors.invalid(at, text, format!("must be an {of} address"));
    }
    rules::check_reachable(at, text, errors);
}

fn check_domain(text: &str, at: &str, errors: &mut Errors) {
    if text.is_empty() {
        errors.required(at, "");
        return;
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    if let Some(fault) = names::fault(name, NameRule::Subdomain) {
        errors.invalid(at, name, fault);
    } else if !name.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        errors.invalid(at, name, why);
    } else if let Some(fault) =
        name.split('.').find_map(|label| names::fault(label, NameRule::Label))
    {
        errors.invalid(at, name, fault);
    }
}
