//! Addresses of Services: from which ranges they come, and who has which (KEP-1880).
//!
//! An address is held by an IPAddress of its name, which is written in the same commit as the
//! Service that has it and goes in the commit that gives it up. An IPAddress that somebody deletes
//! while its Service is there is made anew in the commit that deletes it ([`successor`]): between
//! the two nobody can take the address.

use std::net::IpAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::ranges::{self, family};
use super::{has_cluster_ip, is_headless};
use crate::api::clock;
use crate::cidr::Cidr;
use crate::registry::invalid::Errors;
use crate::registry::object::Object;
use crate::registry::strategy::{ClaimError, Claims, address};
use crate::store::{Action, Expect, Op, Query, Store, StoreError};

/// How many candidates are looked up before the ranges count as full.
const TRIES: usize = 100_000;
/// Where the store has IPAddresses.
const ADDRESSES: &str = "networking.k8s.io/ipaddresses/";
/// Where the store has ServiceCIDRs.
const RANGES: &str = "networking.k8s.io/servicecidrs/";
/// Who makes IPAddresses for Services, by the label that says so.
pub(crate) const MANAGED_BY: (&str, &str) =
    ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
/// The label with an IPAddress's family.
pub(crate) const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

/// Key of the IPAddress of an address.
pub(super) fn key(address: IpAddr) -> String {
    format!("{ADDRESSES}{address}")
}

/// The addresses that a Service has.
pub(super) fn held(service: &Object) -> Vec<IpAddr> {
    if !has_cluster_ip(service) {
        return Vec::new();
    }
    cluster_ips(service).iter().filter_map(|text| address(text)).collect()
}

/// `clusterIPs`, or what stands in `clusterIP` alone.
pub(super) fn cluster_ips(object: &Object) -> Vec<String> {
    let list = object.list("/spec/clusterIPs");
    let texts: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    match object.text("/spec/clusterIP") {
        "" => texts,
        first if texts.is_empty() => vec![first.to_owned()],
        _ => texts,
    }
}

/// Takes an address for a Service, unless somebody has it.
pub(super) fn take(service: &Object, address: IpAddr) -> Op {
    Op {
        key: key(address).into(),
        expect: Expect::Absent,
        action: Action::Put(made(service, address)),
    }
}

/// Gives an address back.
pub(super) fn give(address: IpAddr) -> Op {
    Op { key: key(address).into(), expect: Expect::Any, action: Action::Delete }
}

/// The IPAddress of a Service's address, as it is stored.
fn made(service: &Object, address: IpAddr) -> Bytes {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": address,
            "uid": Uuid::new_v4().to_string(),
            "creationTimestamp": clock::format(clock::now()),
            "labels": {FAMILY: family(address), MANAGED_BY.0: MANAGED_BY.1},
        },
        "spec": {
            "parentRef": {
                "resource": "services",
                "namespace": service.namespace(),
                "name": service.name(),
            },
        },
    });
    object.to_string().into()
}

/// The IPAddress of an address that an earlier version has noted otherwise, if the Service has it.
pub(crate) fn restored(service: &Object, address: IpAddr) -> Option<Op> {
    let take = take(service, address);
    held(service).contains(&address).then_some(Op { expect: Expect::Any, ..take })
}

/// What takes the place of an IPAddress that is deleted: another one, where its Service has the
/// address still.
pub(crate) async fn successor(
    deleted: &Object,
    store: &dyn Store,
) -> Result<Option<Bytes>, StoreError> {
    let part = |of: &str| deleted.text(&format!("/spec/parentRef/{of}"));
    let Some(address) = address(deleted.name()) else { return Ok(None) };
    if part("resource") != "services" || !part("group").is_empty() {
        return Ok(None);
    }
    let service = format!("core/services/{}/{}", part("namespace"), part("name"));
    let service = read(store.get(&service).await?.map(|entry| entry.value));
    Ok(service.filter(|it| held(it).contains(&address)).map(|it| made(&it, address)))
}

fn read(value: Option<Bytes>) -> Option<Object> {
    serde_json::from_slice(&value?).ok().and_then(Object::new)
}

/// The ranges of a family that addresses are given out of: those of ServiceCIDRs that are not on
/// their way out, those of the flags first.
async fn offered(of: &str, claims: Claims<'_>) -> Result<Vec<Cidr>, StoreError> {
    let query = Query { prefix: RANGES, after: None, limit: None, at: None };
    let entries = claims.store.range(query).await?.entries;
    let objects = entries.into_iter().filter_map(|(_, entry)| read(Some(entry.value)));
    let mut found: Vec<Cidr> = objects.filter(is_ready).flat_map(|it| ranges_of(&it)).collect();
    found.retain(|range| family(range.first()) == of);
    found.sort_by_key(|range| !claims.ranges.addresses.contains(range));
    found.dedup();
    Ok(found)
}

/// Whether addresses may be given out of a ServiceCIDR. One of which nobody has said anything yet
/// is taken for ready: there may be no controllers.
fn is_ready(object: &Object) -> bool {
    let unready = |one: &Value| one["type"] == "Ready" && one["status"] != "True";
    !object.is_terminating() && !object.list("/status/conditions").iter().any(unready)
}

fn ranges_of(object: &Object) -> Vec<Cidr> {
    let texts = object.list("/spec/cidrs").iter().filter_map(Value::as_str);
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// Takes the addresses asked for and chooses the missing ones.
pub(super) async fn choose(
    object: &mut Object,
    had: &[IpAddr],
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
    let families = object.list("/spec/ipFamilies").to_vec();
    let configured = families.iter().filter_map(Value::as_str);
    let configured = configured.filter(|family| claims.ranges.of(family).is_some());
    for (index, family) in configured.enumerate() {
        match addresses.get(index).and_then(|text| address(text)) {
            Some(address) if had.contains(&address) => {}
            Some(address) => check(address, family, &addresses, claims).await?,
            None => addresses.push(free(family, claims).await?.to_string()),
        }
    }
    object.set("/spec/clusterIP", addresses.first().cloned().unwrap_or_default());
    object.set("/spec/clusterIPs", json!(addresses));
    Ok(())
}

/// Whether an address that was asked for can be had.
async fn check(
    address: IpAddr,
    family: &str,
    all: &[String],
    claims: Claims<'_>,
) -> Result<(), ClaimError> {
    let ranges = offered(family, claims).await?;
    let fault = if ranges.iter().any(|range| ranges::offers(*range, address)) {
        let taken = claims.store.get(&key(address)).await?.is_some();
        taken.then(|| "provided IP is already allocated".to_owned())
    } else {
        let around = ranges.iter().find(|range| range.offset(address).is_some());
        Some(around.map_or_else(
            || "the provided network does not match the current range".to_owned(),
            |range| format!("the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"),
        ))
    };
    let Some(fault) = fault else { return Ok(()) };
    let mut errors = Errors::default();
    errors.invalid(
        "spec.clusterIPs",
        json!(all),
        format!("failed to allocate IP {address}: {fault}"),
    );
    Err(ClaimError::Invalid(errors))
}

/// An address that nobody has.
async fn free(family: &str, claims: Claims<'_>) -> Result<IpAddr, ClaimError> {
    let ranges = offered(family, claims).await?;
    let candidates = ranges.iter().flat_map(|range| ranges::addresses(*range, super::random()));
    for address in candidates.take(TRIES) {
        if claims.store.get(&key(address)).await?.is_none() {
            return Ok(address);
        }
    }
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    Err(ClaimError::Exhausted(format!(
        "no free {family} address in [{}]; more can be had of another ServiceCIDR",
        ranges.join(" ")
    )))
}
