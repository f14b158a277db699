//! Results in the version that the runtime asked for.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{SUPPORTED, Version, conf::NetConf, env::Invocation, runtime_config};
use crate::wire::{GATEWAY4, GATEWAY6, Link};

/// The answer to VERSION; `echoed` is the `cniVersion` of the input.
pub fn versions(echoed: Option<String>) -> Value {
    let newest = Version::V1_1_0.as_str().to_owned();
    json!({
        "cniVersion": echoed.unwrap_or(newest),
        "supportedVersions": SUPPORTED.map(Version::as_str),
    })
}

/// The answer to ADD: what the plugins before us made, then the host's end, the pod's end, the
/// addresses and the default routes.
pub fn added(conf: &NetConf, invocation: &Invocation, link: &Link) -> Value {
    let mut result = conf.prev_result.clone().unwrap_or_else(|| json!({}));
    let interfaces = list(&mut result, "interfaces");
    let pod_index = interfaces.len() + 1;
    let mut host = json!({"name": link.host_ifname, "mac": link.host_mac});
    let sandbox = invocation.netns.as_deref().unwrap_or("".as_ref()).to_string_lossy();
    let mut pod =
        json!({"name": invocation.attachment.ifname, "mac": link.pod_mac, "sandbox": sandbox});
    if conf.version >= Version::V1_1_0 {
        host["mtu"] = link.mtu.into();
        pod["mtu"] = link.mtu.into();
    }
    interfaces.extend([host, pod]);
    let addresses = link.addresses.iter().map(|ip| address(conf.version, *ip, pod_index));
    list(&mut result, "ips").extend(addresses);
    list(&mut result, "routes").extend(link.addresses.iter().copied().map(default_route));
    result["cniVersion"] = conf.version.as_str().into();
    // The kubelet owns the pod's resolv.conf: an empty object changes nothing, and a runtime that
    // wants to read its own words again says them (capability `dns`).
    let said = runtime_config::dns(&conf.runtime_config);
    if result.get("dns").is_none() || said.is_some() {
        result["dns"] = said.unwrap_or_else(|| json!({}));
    }
    result
}

fn address(version: Version, ip: IpAddr, interface: usize) -> Value {
    let (length, family, gateway) = match ip {
        IpAddr::V4(_) => (32, "4", IpAddr::from(GATEWAY4)),
        IpAddr::V6(_) => (128, "6", IpAddr::from(GATEWAY6)),
    };
    let mut value = json!({
        "address": format!("{ip}/{length}"), "gateway": gateway, "interface": interface,
    });
    if version < Version::V1_0_0 {
        value["version"] = family.into();
    }
    value
}

fn default_route(ip: IpAddr) -> Value {
    match ip {
        IpAddr::V4(_) => json!({"dst": "0.0.0.0/0", "gw": GATEWAY4}),
        IpAddr::V6(_) => json!({"dst": "::/0", "gw": GATEWAY6}),
    }
}

/// The list under `key`, made where it is absent; [`super::conf`] has seen to it that it is a list.
fn list<'a>(result: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    if !result[key].is_array() {
        result[key] = json!([]);
    }
    match &mut result[key] {
        Value::Array(list) => list,
        _ => unreachable!("just made a list"),
    }
}
