//! Addresses and node ports of Services.
//!
//! A claim is a key of the store, written in the same commit as the Service that holds it. So
//! nothing is given out twice, whoever writes; nothing leaks; and there is nothing to repair after
//! a crash.

use std::net::IpAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::ranges::{self, family};
use super::{has_cluster_ip, has_health_check, has_node_ports, is_headless};
use crate::cidr::Cidr;
use crate::registry::invalid::Errors;
use crate::registry::object::Object;
use crate::registry::strategy::{ClaimError, Claims};
use crate::store::{Action, Expect, Op};

/// How many candidates are looked up before the range counts as full.
const TRIES: usize = 100_000;

fn address_key(address: IpAddr) -> String {
    format!("claims/clusterips/{address}")
}

fn port_key(port: i64) -> String {
    format!("claims/nodeports/{port}")
}

/// Keys of everything that a Service holds.
fn held(object: &Object) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    if has_cluster_ip(object) {
        keys.extend(
            cluster_ips(object).into_iter().filter_map(|ip| ip.parse().ok()).map(address_key),
        );
    }
    keys.extend(
        object
            .list("/spec/ports")
            .iter()
            .filter_map(|port| port["nodePort"].as_i64())
            .map(port_key),
    );
    keys.extend(object.integer("/spec/healthCheckNodePort").map(port_key));
    // One Service may have the same node port for TCP and UDP.
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// `clusterIPs`, or what stands in `clusterIP` alone.
fn cluster_ips(object: &Object) -> Vec<String> {
    let list = object.list("/spec/clusterIPs");
    let texts: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    match object.text("/spec/clusterIP") {
        "" => texts,
        first if texts.is_empty() => vec![first.to_owned()],
        _ => texts,
    }
}

/// Gives back what a Service holds.
pub(super) fn release(object: &Object) -> Vec<Op> {
    held(object)
        .into_iter()
        .map(|key| Op { key: key.into(), expect: Expect::Any, action: Action::Delete })
        .collect()
}

/// Fills in families, addresses and ports, and claims what the Service did not hold before.
pub(super) async fn claim(
    object: &mut Object,
    old: Option<&Object>,
    claims: Claims<'_>,
) -> Result<Vec<Op>, ClaimError> {
    let mut errors = Errors::default();
    choose_families(object, old, claims.ranges, &mut errors);
    stop_at(errors)?;
    let had = old.map(held).unwrap_or_default();
    choose_addresses(object, &had, claims).await?;
    choose_ports(object, &had, claims).await?;
    let has = held(object);
    let owner = Bytes::from(format!("{}/{}", object.namespace(), object.name()));
    let taken = has.iter().filter(|key| !had.contains(key)).map(|key| Op {
        key: key.as_str().into(),
        expect: Expect::Absent,
        action: Action::Put(owner.clone()),
    });
    let given = had.iter().filter(|key| !has.contains(key)).map(|key| Op {
        key: key.as_str().into(),
        expect: Expect::Any,
        action: Action::Delete,
    });
    Ok(taken.chain(given).collect())
}

fn stop_at(errors: Errors) -> Result<(), ClaimError> {
    if errors.is_empty() { Ok(()) } else { Err(ClaimError::Invalid(errors)) }
}

/// Decides `ipFamilyPolicy` and `ipFamilies` (KEP-563).
fn choose_families(
    object: &mut Object,
    old: Option<&Object>,
    ranges: &ranges::Ranges,
    errors: &mut Errors,
) {
    if !has_cluster_ip(object) {
        return;
    }
    let addresses = cluster_ips(object);
    check_first(object, &addresses, errors);
    let mut families: Vec<String> = object
        .list("/spec/ipFamilies")
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    for address in addresses.iter().skip(families.len()).filter_map(|ip| ip.parse().ok()) {
        families.push(family(address).to_owned());
    }
    for (index, chosen) in families.iter().enumerate() {
        if ranges.of(chosen).is_none() {
            errors.invalid(
                format!("spec.ipFamilies[{index}]"),
                chosen.clone(),
                "not configured on this cluster",
            );
        }
    }
    let selectorless = object.at("/spec/selector").is_none();
    if families.is_empty() {
        families.extend(ranges.addresses.first().map(|range| family(range.first()).to_owned()));
    }
    if object.at("/spec/ipFamilyPolicy").is_none() {
        let policy = if is_headless(object) && selectorless {
            "RequireDualStack"
        } else if families.len() > 1 {
            "PreferDualStack"
        } else {
            "SingleStack"
        };
        if families.len() > 1 && !(is_headless(object) && selectorless) {
            errors.required("spec.ipFamilyPolicy", "must be RequireDualStack or PreferDualStack when multiple 'ipFamilies' are specified");
        }
        object.set("/spec/ipFamilyPolicy", policy);
    }
    let policy = object.text("/spec/ipFamilyPolicy").to_owned();
    let dual = ranges.addresses.len() > 1;
    match policy.as_str() {
        "SingleStack" if families.len() > 1 => {
            if old.is_some_and(|old| old.text("/spec/ipFamilyPolicy") != "SingleStack") {
                shrink(object, &mut families);
            } else {
                errors.invalid("spec.ipFamilyPolicy", policy, "must be RequireDualStack or PreferDualStack when multiple 'ipFamilies' are specified");
            }
        }
        "RequireDualStack" if !dual && !selectorless => {
            errors.invalid(
                "spec.ipFamilyPolicy",
                policy,
                "this cluster is not configured for dual-stack services",
            );
        }
        "RequireDualStack" | "PreferDualStack" if dual && families.len() == 1 => {
            families.extend(
                ranges
                    .addresses
                    .iter()
                    .map(|range| family(range.first()).to_owned())
                    .find(|other| *other != families[0]),
            );
        }
        _ => {}
    }
    object.set("/spec/ipFamilies", json!(families));
}

/// From two families to one: the second and its address go.
fn shrink(object: &mut Object, families: &mut Vec<String>) {
    families.truncate(1);
    if let Some(Value::Array(addresses)) = object.at_mut("/spec/clusterIPs") {
        addresses.truncate(1);
    }
}

fn check_first(object: &Object, addresses: &[String], errors: &mut Errors) {
    let first = object.text("/spec/clusterIP");
    if !first.is_empty() && addresses.first().is_some_and(|other| other != first) {
        errors.invalid("spec.clusterIPs", json!(addresses), "first value must match `clusterIP`");
    }
}

/// Takes the addresses asked for and chooses the missing ones.
async fn choose_addresses(
    object: &mut Object,
    had: &[String],
    claims: Claims<'_>,
) -> Result<(), ClaimError> {
    if !has_cluster_ip(object) {
        return Ok(());
    }
    let mut addresses = cluster_ips(object);
    if is_headless(object) {
        object.set("/spec/clusterIPs", json!(["None"]));
        return Ok(());
    }
    let families: Vec<String> = object
        .list("/spec/ipFamilies")
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    for (index, chosen) in families.iter().enumerate() {
        let Some(range) = claims.ranges.of(chosen) else { continue };
        match addresses.get(index).and_then(|text| text.parse().ok()) {
            Some(address) => check_address(address, *range, &addresses, had, claims).await?,
            None => addresses.push(free_address(*range, claims).await?.to_string()),
        }
    }
    object.set("/spec/clusterIP", addresses.first().cloned().unwrap_or_default());
    object.set("/spec/clusterIPs", json!(addresses));
    Ok(())
}

async fn check_address(
    address: IpAddr,
    range: Cidr,
    all: &[String],
    had: &[String],
    claims: Claims<'_>,
) -> Result<(), ClaimError> {
    let key = address_key(address);
    let mut errors = Errors::default();
    if had.contains(&key) {
        return Ok(());
    }
    if !ranges::offers(range, address) {
        let detail = format!(
            "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
        );
        errors.invalid("spec.clusterIPs", json!(all), detail);
    } else if claims.store.get(&key).await?.is_some() {
        errors.invalid(
            "spec.clusterIPs",
            json!(all),
            format!("failed to allocate IP {address}: provided IP is already allocated"),
        );
    }
    stop_at(errors)
}

fn random() -> u32 {
    // The first 32 bits of a version 4 UUID are all random.
    Uuid::new_v4().as_fields().0
}

async fn free_address(range: Cidr, claims: Claims<'_>) -> Result<IpAddr, ClaimError> {
    for address in ranges::addresses(range, random()).take(TRIES) {
        if claims.store.get(&address_key(address)).await?.is_none() {
            return Ok(address);
        }
    }
    Err(ClaimError::Exhausted(format!("no free address in {range}")))
}

/// Takes the node ports asked for and chooses the missing ones.
async fn choose_ports(
    object: &mut Object,
    had: &[String],
    claims: Claims<'_>,
) -> Result<(), ClaimError> {
    let mut ports = object.list("/spec/ports").to_vec();
    let mut mine: Vec<i64> = Vec::new();
    if has_node_ports(object) {
        for index in 0..ports.len() {
            let number = match (ports[index]["nodePort"].as_i64(), shared(&ports, index)) {
                (Some(number), _) => {
                    let field = format!("spec.ports[{index}].nodePort");
                    check_port(number, false, &field, had, claims).await?;
                    number
                }
                (None, Some(number)) => number,
                (None, None) => free_port(&ports, &mine, claims).await?,
            };
            mine.push(number);
            ports[index]["nodePort"] = json!(number);
        }
        object.set("/spec/ports", ports.clone());
    }
    if has_health_check(object) {
        let field = "spec.healthCheckNodePort";
        if let Some(port) = object.integer("/spec/healthCheckNodePort").filter(|port| *port != 0) {
            check_port(port, mine.contains(&port), field, had, claims).await?;
        } else {
            let port = free_port(&ports, &mine, claims).await?;
            object.set("/spec/healthCheckNodePort", port);
        }
    }
    Ok(())
}

/// The node port of another protocol's port of the same number: they share it.
fn shared(ports: &[Value], index: usize) -> Option<i64> {
    let this = &ports[index];
    let twins = ports
        .iter()
        .filter(|other| other["port"] == this["port"] && other["protocol"] != this["protocol"]);
    let free = |number: &i64| {
        let taken = |other: &Value| {
            other["nodePort"].as_i64() == Some(*number) && other["protocol"] == this["protocol"]
        };
        !ports.iter().any(taken)
    };
    twins.filter_map(|other| other["nodePort"].as_i64()).find(free)
}

async fn check_port(
    number: i64,
    twice: bool,
    field: &str,
    had: &[String],
    claims: Claims<'_>,
) -> Result<(), ClaimError> {
    let mut errors = Errors::default();
    let range = &claims.ranges.node_ports;
    let key = port_key(number);
    if twice {
        errors.duplicate(field, number);
    } else if had.contains(&key) {
        return Ok(());
    } else if !u16::try_from(number).is_ok_and(|port| range.contains(&port)) {
        let detail = format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            range.start(),
            range.end()
        );
        errors.invalid(field, number, detail);
    } else if claims.store.get(&key).await?.is_some() {
        errors.invalid(field, number, "provided port is already allocated");
    }
    stop_at(errors)
}

async fn free_port(ports: &[Value], mine: &[i64], claims: Claims<'_>) -> Result<i64, ClaimError> {
    for port in ranges::ports(&claims.ranges.node_ports, random()) {
        let port = i64::from(port);
        let asked = ports.iter().any(|other| other["nodePort"] == port);
        if !asked && !mine.contains(&port) && claims.store.get(&port_key(port)).await?.is_none() {
            return Ok(port);
        }
    }
    Err(ClaimError::Exhausted("no free node port".to_owned()))
}

/// An update that leaves out what was allocated keeps it.
pub(super) fn keep_allocated(object: &mut Object, old: &Object) {
    if has_cluster_ip(object) && has_cluster_ip(old) {
        let listed = object.list("/spec/clusterIPs");
        let said = !listed.is_empty() && listed != old.list("/spec/clusterIPs");
        if object.text("/spec/clusterIP").is_empty() && !said {
            object.copy("/spec/clusterIP", old);
        }
        let same = object.text("/spec/clusterIP") == old.text("/spec/clusterIP");
        if object.list("/spec/clusterIPs").is_empty() && same {
            object.copy("/spec/clusterIPs", old);
        }
        for field in ["/spec/ipFamilies", "/spec/ipFamilyPolicy"] {
            if object.at(field).is_none() {
                object.copy(field, old);
            }
        }
    }
    if has_node_ports(object) && has_node_ports(old) {
        keep_ports(object, old);
    }
    if has_health_check(object)
        && has_health_check(old)
        && object.at("/spec/healthCheckNodePort").is_none()
    {
        object.copy("/spec/healthCheckNodePort", old);
    }
}

fn keep_ports(object: &mut Object, old: &Object) {
    let mut ports = object.list("/spec/ports").to_vec();
    let asked: Vec<Value> = ports.iter().filter_map(|port| port.get("nodePort").cloned()).collect();
    for port in &mut ports {
        if port.get("nodePort").is_some() {
            continue;
        }
        let same =
            |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        let kept =
            old.list("/spec/ports").iter().find(same).and_then(|other| other.get("nodePort"));
        if let Some(kept) = kept.filter(|kept| !asked.contains(kept)) {
            port["nodePort"] = kept.clone();
        }
    }
    object.set("/spec/ports", ports);
}

/// A change of type drops what the new type can't have and the user did not ask for.
pub(super) fn drop_what_the_type_has_not(object: &mut Object, old: &Object) {
    if has_cluster_ip(old) && !has_cluster_ip(object) {
        for field in
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
        {
            object.remove(&format!("/spec/{field}"));
        }
    }
    let on_nodes =
        |object: &Object| matches!(object.text("/spec/type"), "NodePort" | "LoadBalancer");
    if super::is_external(old) && !super::is_external(object) {
        object.remove("/spec/externalTrafficPolicy");
    }
    if on_nodes(old) && !on_nodes(object) {
        let mut ports = object.list("/spec/ports").to_vec();
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            let number = port.get("nodePort").cloned();
            if number.is_some()
                && old
                    .list("/spec/ports")
                    .iter()
                    .any(|other| other.get("nodePort") == number.as_ref())
            {
                port.remove("nodePort");
            }
        }
        if !ports.is_empty() {
            object.set("/spec/ports", ports);
        }
    }
    if old.text("/spec/type") == "LoadBalancer" && object.text("/spec/type") != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            object.remove(&format!("/spec/{field}"));
        }
    }
    if has_health_check(old) && !has_health_check(object) {
        object.remove("/spec/healthCheckNodePort");
    }
}
