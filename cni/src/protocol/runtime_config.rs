//! What a runtime asks of one container: the capabilities `portMappings`, `bandwidth`, `ips`, `mac`
//! and `dns` of `runtimeConfig` (CNI, CONVENTIONS.md), and the older ways to ask for addresses,
//! `args.cni` and `CNI_ARGS`. What is newer goes first. Unknown keys are other plugins'; known ones
//! that make no sense are errors that name the key.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{
    conf::{NetConf, invalid},
    env::Invocation,
    error::CniError,
};
use crate::wire::{Bandwidth, Limit, Mac, PortMapping, Protocol, Requested};

/// Ports of one pod; more would be no list that a person wrote.
const PORT_MAPPINGS_MAX: usize = 1024;

/// What is asked of the interface that ADD makes.
pub fn requested(conf: &NetConf, invocation: &Invocation) -> Result<Requested, CniError> {
    let config = &conf.runtime_config;
    Ok(Requested {
        addresses: addresses(config, &conf.args, invocation)?,
        mac: mac(config, &conf.args, invocation)?,
        port_mappings: port_mappings(config)?,
        bandwidth: bandwidth(config)?,
    })
}

/// What the runtime says of the container's resolver, as a result has it (`dns`). The keys of the
/// capability are the kubelet's, those of results are the specification's.
pub fn dns(config: &Map<String, Value>) -> Option<Value> {
    let said = config.get("dns")?.as_object()?;
    let names = [("servers", "nameservers"), ("searches", "search"), ("options", "options")];
    let mut dns = json!({});
    for (from, to) in names {
        let list = field(said, from).or_else(|| field(said, to));
        if let Some(list) = list.filter(|list| list.as_array().is_some_and(|list| !list.is_empty()))
        {
            dns[to] = list.clone();
        }
    }
    Some(dns)
}

fn addresses(
    config: &Map<String, Value>,
    args: &Map<String, Value>,
    invocation: &Invocation,
) -> Result<Vec<IpAddr>, CniError> {
    let (key, texts) = if let Some(ips) = config.get("ips") {
        ("runtimeConfig.ips", strings("runtimeConfig.ips", ips)?)
    } else if let Some(ips) = args.get("ips") {
        ("args.cni.ips", strings("args.cni.ips", ips)?)
    } else if let Some(list) = &invocation.ip {
        ("IP in CNI_ARGS", list.split(',').map(|text| text.trim().to_owned()).collect())
    } else {
        return Ok(Vec::new());
    };
    let mut addresses = Vec::new();
    for text in texts {
        // A prefix length may come along; the pod's addresses are host addresses.
        let address: IpAddr =
            text.split('/').next().unwrap_or_default().parse().map_err(|_| {
                invalid(format!("invalid {key}"), format!("{text:?} is no address"))
            })?;
        if addresses.iter().any(|other: &IpAddr| other.is_ipv4() == address.is_ipv4()) {
            let details = format!("{address}: more than one address of a family");
            return Err(invalid(format!("invalid {key}"), details));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn mac(
    config: &Map<String, Value>,
    args: &Map<String, Value>,
    invocation: &Invocation,
) -> Result<Option<Mac>, CniError> {
    let (key, text) = if let Some(mac) = config.get("mac") {
        ("runtimeConfig.mac", text("runtimeConfig.mac", mac)?)
    } else if let Some(mac) = args.get("mac") {
        ("args.cni.mac", text("args.cni.mac", mac)?)
    } else if let Some(mac) = &invocation.mac {
        ("MAC in CNI_ARGS", mac.clone())
    } else {
        return Ok(None);
    };
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |details: String| invalid(format!("invalid {key}"), details);
    let mac = Mac::try_from(text).map_err(wrong)?;
    if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
        return Err(wrong(format!("{mac} is no address of one interface")));
    }
    Ok(Some(mac))
}

fn port_mappings(config: &Map<String, Value>) -> Result<Vec<PortMapping>, CniError> {
    let Some(list) = config.get("portMappings").filter(|list| !list.is_null()) else {
        return Ok(Vec::new());
    };
    let wrong = |details: String| invalid("invalid runtimeConfig.portMappings", details);
    let list = list.as_array().ok_or_else(|| wrong("must be a list".into()))?;
    if list.len() > PORT_MAPPINGS_MAX {
        return Err(wrong(format!("{} mappings, at most {PORT_MAPPINGS_MAX}", list.len())));
    }
    let mut mappings: Vec<PortMapping> = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        let mapping =
            port_mapping(entry).map_err(|reason| wrong(format!("[{index}]: {reason}")))?;
        if !mappings.contains(&mapping) {
            mappings.push(mapping);
        }
    }
    Ok(mappings)
}

/// A field in any case: containerd writes its own names of fields (`HostPort`, `Servers`), which
/// plugins in Go take for those of the conventions.
fn field<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let alike = || object.iter().find(|(other, _)| other.eq_ignore_ascii_case(key));
    object.get(key).or_else(|| alike().map(|(_, value)| value))
}

fn port_mapping(entry: &Value) -> Result<PortMapping, String> {
    let entry = entry.as_object().ok_or("must be an object")?;
    let port = |key: &str| {
        let value = field(entry, key).unwrap_or(&Value::Null);
        let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
        port.filter(|port| *port != 0).ok_or_else(|| format!("{key}: {value} is no port"))
    };
    let string = |key: &str| match field(entry, key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(format!("{key}: {other} is not a string")),
    };
    let protocol = match string("protocol")?.to_ascii_lowercase().as_str() {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("protocol: {other} is not supported, tcp and udp are")),
    };
    let host_ip = match string("hostIP")? {
        "" => None,
        text => Some(text.parse().map_err(|_| format!("hostIP: {text:?} is no address"))?),
    };
    let (host_port, container_port) = (port("hostPort")?, port("containerPort")?);
    Ok(PortMapping { host_ip, host_port, container_port, protocol })
}

fn bandwidth(config: &Map<String, Value>) -> Result<Bandwidth, CniError> {
    let wrong = |details: String| invalid("invalid runtimeConfig.bandwidth", details);
    let said = match config.get("bandwidth") {
        None | Some(Value::Null) => return Ok(Bandwidth::default()),
        Some(Value::Object(said)) => said,
        Some(_) => return Err(wrong("must be an object".into())),
    };
    let number = |key: String| match field(said, &key) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().ok_or_else(|| wrong(format!("{key}: {value} is no number"))),
    };
    let limit = |direction: &str| {
        let rate = number(format!("{direction}Rate"))?;
        let burst = number(format!("{direction}Burst"))?;
        match (rate, burst) {
            (0, 0) => Ok(None),
            (0, _) => Err(wrong(format!("{direction}Burst without {direction}Rate"))),
            (_, 0) => Err(wrong(format!("{direction}Rate without {direction}Burst"))),
            (..8, _) => {
                Err(wrong(format!("{direction}Rate: {rate} is less than an octet a second")))
            }
            (_, burst) if burst > Limit::BURST_MAX => {
                Err(wrong(format!("{direction}Burst: {burst} bits are more than 4 GiB")))
            }
            _ => Ok(Some(Limit { rate, burst })),
        }
    };
    Ok(Bandwidth { ingress: limit("ingress")?, egress: limit("egress")? })
}

fn strings(key: &str, value: &Value) -> Result<Vec<String>, CniError> {
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        _ => return Err(invalid(format!("invalid {key}"), "must be a list")),
    };
    list.iter().map(|item| text(key, item)).collect()
}

fn text(key: &str, value: &Value) -> Result<String, CniError> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| invalid(format!("invalid {key}"), format!("{value} is not a string")))
}

#[cfg(test)]
#[path = "runtime_config_tests.rs"]
mod tests;
