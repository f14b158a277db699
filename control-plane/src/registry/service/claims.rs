//! What Services have of the cluster: families, addresses ([`addresses`]) and node ports.
//!
//! A claim is a key of the store, written in the same commit as the Service that holds it. So
//! nothing is given out twice, whoever writes; nothing leaks; and there is nothing to repair after
//! a crash.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ranges::{self, family};
use super::{addresses, has_cluster_ip, has_health_check, has_node_ports, is_headless};
use crate::registry::invalid::Errors;
use crate::registry::object::Object;
use crate::registry::strategy::{ClaimError, Claims};
use crate::store::{Action, Expect, Op};

fn port_key(port: i64) -> String {
    format!("claims/nodeports/{port}")
}

/// The numbers of the node ports that a Service holds.
fn held_ports(object: &Object) -> Vec<i64> {
    let ports = object.list("/spec/ports").iter();
    let mut numbers: Vec<i64> = ports.filter_map(|port| port["nodePort"].as_i64()).collect();
    numbers.extend(object.integer("/spec/healthCheckNodePort"));
    // One Service may have the same node port for TCP and UDP.
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

fn give_port(number: i64) -> Op {
    Op { key: port_key(number).into(), expect: Expect::Any, action: Action::Delete }
}

fn take_port(object: &Object, number: i64) -> Op {
    let owner = Bytes::from(format!("{}/{}", object.namespace(), object.name()));
    Op { key: port_key(number).into(), expect: Expect::Absent, action: Action::Put(owner) }
}

/// Gives back what a Service holds.
pub(super) fn release(object: &Object) -> Vec<Op> {
    let addresses = addresses::held(object).into_iter().map(addresses::give);
    addresses.chain(held_ports(object).into_iter().map(give_port)).collect()
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
    let had = old.map(addresses::held).unwrap_or_default();
    let had_ports = old.map(held_ports).unwrap_or_default();
    addresses::choose(object, &had, claims).await?;
    choose_ports(object, &had_ports, claims).await?;
    let (has, has_ports) = (addresses::held(object), held_ports(object));
    let mut ops = Vec::new();
    let news = has.iter().filter(|one| !had.contains(one));
    ops.extend(news.map(|one| addresses::take(object, *one)));
    let gone = had.iter().filter(|one| !has.contains(one));
    ops.extend(gone.map(|one| addresses::give(*one)));
    let news = has_ports.iter().filter(|one| !had_ports.contains(one));
    ops.extend(news.map(|one| take_port(object, *one)));
    let gone = had_ports.iter().filter(|one| !has_ports.contains(one));
    ops.extend(gone.map(|one| give_port(*one)));
    Ok(ops)
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
    let addresses = addresses::cluster_ips(object);
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

/// Takes the node ports asked for and chooses the missing ones.
async fn choose_ports(
    object: &mut Object,
    had: &[i64],
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
    had: &[i64],
    claims: Claims<'_>,
) -> Result<(), ClaimError> {
    let mut errors = Errors::default();
    let range = &claims.ranges.node_ports;
    let key = port_key(number);
    if twice {
        errors.duplicate(field, number);
    } else if had.contains(&number) {
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
    for port in ranges::ports(&claims.ranges.node_ports, super::random()) {
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
