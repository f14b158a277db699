//! What the runtime remembers of an attachment: the `prevResult` of CHECK, read as far as it is
//! about the interface that CHECK is for. What of it has to hold is the agent's to say.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    conf::{NetConf, invalid},
    env::Invocation,
    error::{CHECK_FAILED, CniError},
    runtime_config,
};
use crate::wire::{Mac, Remembered, RememberedPrefix};

/// The routing table in which ADD makes routes (`RT_TABLE_MAIN`).
const MAIN_TABLE: u64 = 254;

/// The previous result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrevResult {
    /// The path of the network namespace in which the interface is.
    pub sandbox: String,
    /// What else the agent is asked about.
    pub remembered: Remembered,
}

/// Reads it; `None` where the runtime sent none, and then nothing is compared with it.
///
/// # Errors
///
/// [`super::error::INVALID_CONFIG`] where a field cannot be read, [`CHECK_FAILED`] where what ADD
/// answered is not in it any more.
pub fn read(conf: &NetConf, invocation: &Invocation) -> Result<Option<PrevResult>, CniError> {
    let Some(result) = &conf.prev_result else { return Ok(None) };
    let ifname = invocation.attachment.ifname.as_str();
    let interfaces = items(result, "interfaces");
    let sandbox_of = |one: &Value| one["sandbox"].as_str().unwrap_or_default().to_owned();
    let pod = interfaces
        .iter()
        .position(|one| one["name"] == ifname && !sandbox_of(one).is_empty())
        .ok_or_else(|| lost(format!("there is no interface {ifname} of a sandbox in it")))?;
    let host_ifname = invocation.attachment.host_ifname();
    let host = interfaces
        .iter()
        .find(|one| one["name"] == host_ifname.as_str() && sandbox_of(one).is_empty())
        .ok_or_else(|| lost(format!("there is no interface {host_ifname} of the node in it")))?;
    verify_dns(conf, result)?;
    let remembered = Remembered {
        host_mac: field(host, "mac", "prevResult.interfaces[].mac", mac)?,
        pod_mac: field(&interfaces[pod], "mac", "prevResult.interfaces[].mac", mac)?,
        addresses: addresses(items(result, "ips"), interfaces.len(), pod)?,
        routes: routes(items(result, "routes"))?,
    };
    Ok(Some(PrevResult { sandbox: sandbox_of(&interfaces[pod]), remembered }))
}

/// What ADD answered is not what the runtime remembers.
pub fn lost(details: String) -> CniError {
    CniError::new(CHECK_FAILED, "the previous result is not what ADD answered", details)
}

/// The addresses of the interface `pod`; one that names no interface is of this one.
fn addresses(
    ips: &[Value],
    interfaces: usize,
    pod: usize,
) -> Result<Vec<RememberedPrefix>, CniError> {
    let mut found = Vec::new();
    for ip in ips {
        let interface = match &ip["interface"] {
            Value::Null => pod,
            index => index
                .as_u64()
                .and_then(|index| usize::try_from(index).ok())
                .filter(|index| *index < interfaces)
                .ok_or_else(|| unreadable("prevResult.ips[].interface", index))?,
        };
        if interface == pod {
            found.push(prefix(ip, ["address", "gateway"], "prevResult.ips[]")?);
        }
    }
    Ok(found)
}

/// Those of the main table; another's are another plugin's.
fn routes(routes: &[Value]) -> Result<Vec<RememberedPrefix>, CniError> {
    let mut found = Vec::new();
    for route in routes {
        if route["table"].as_u64().is_none_or(|table| table == 0 || table == MAIN_TABLE) {
            found.push(prefix(route, ["dst", "gw"], "prevResult.routes[]")?);
        }
    }
    Ok(found)
}

/// What the runtime said of the resolver was in the answer to ADD. A later plugin may add to it.
fn verify_dns(conf: &NetConf, result: &Value) -> Result<(), CniError> {
    let Some(said) = runtime_config::dns(&conf.runtime_config) else { return Ok(()) };
    for key in ["nameservers", "search", "options"] {
        let kept = items(&result["dns"], key);
        if let Some(gone) = items(&said, key).iter().find(|one| !kept.contains(one)) {
            return Err(lost(format!("{gone} of runtimeConfig.dns is not in its dns.{key}")));
        }
    }
    Ok(())
}

fn items<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A field that may be absent or, as libraries write what they don't know, empty.
fn field<T>(
    of: &Value,
    key: &str,
    name: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, CniError> {
    match &of[key] {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => parse(text).map(Some).ok_or_else(|| unreadable(name, &of[key])),
        other => Err(unreadable(name, other)),
    }
}

fn mac(text: &str) -> Option<Mac> {
    Mac::try_from(text.to_owned()).ok()
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// An address or a network with the length of its prefix, and its next hop.
fn prefix(of: &Value, [key, via]: [&str; 2], name: &str) -> Result<RememberedPrefix, CniError> {
    let read = |text: &str| {
        let (start, length) = text.split_once('/')?;
        Some((address(start)?, length.parse::<u8>().ok()?))
    };
    let (address, prefix_len) = of[key]
        .as_str()
        .and_then(read)
        .filter(|(address, length)| *length <= if address.is_ipv4() { 32 } else { 128 })
        .ok_or_else(|| unreadable(&format!("{name}.{key}"), &of[key]))?;
    let gateway = field(of, via, &format!("{name}.{via}"), self::address)?;
    Ok(RememberedPrefix { address, prefix_len, gateway })
}

fn unreadable(name: &str, value: &Value) -> CniError {
    invalid("invalid prevResult", format!("{name}: {value} cannot be read"))
}

#[cfg(test)]
#[path = "prev_result_tests.rs"]
mod tests;
