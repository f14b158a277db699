//! A container's environment: services of the namespace, then `envFrom`, then `env`, a later
//! definition taking the place of an earlier one.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, EnvVar, EnvVarSource, Pod, ResourceFieldSelector, Service,
};

use super::{
    config::host_network,
    expand::expand,
    facts::NodeFacts,
    inputs::Inputs,
    resources::{self, Amounts},
};

/// What variables are made of.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its node.
    pub node: &'a NodeFacts,
    /// The pod's addresses, in the order of its status.
    pub addresses: &'a [IpAddr],
    /// What the pod refers to.
    pub inputs: &'a Inputs,
}

type Variables = Vec<(String, String)>;

/// The environment of a container. `Err` says, for people, what cannot be had.
pub(super) fn environment(
    sources: Sources<'_>,
    container: &Container,
) -> Result<Variables, String> {
    let mut all = service_variables(sources.pod, sources.inputs.services()?);
    for source in container.env_from.iter().flatten() {
        for (name, value) in whole_object(sources, source)? {
            set(&mut all, name, value);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let lookup = |name: &str| get(&all, name).map(str::to_owned);
                Some(expand(variable.value.as_deref().unwrap_or_default(), lookup))
            }
            Some(source) => one_value(sources, container, variable, source)?,
        };
        if let Some(value) = value {
            set(&mut all, variable.name.clone(), value);
        }
    }
    Ok(all)
}

fn get<'a>(all: &'a Variables, name: &str) -> Option<&'a str> {
    all.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn set(all: &mut Variables, name: String, value: String) {
    all.retain(|(known, _)| *known != name);
    all.push((name, value));
}

/// All of a ConfigMap or Secret, each key a variable.
fn whole_object(sources: Sources<'_>, source: &EnvFromSource) -> Result<Variables, String> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    if let Some(wanted) = &source.config_map_ref {
        match sources.inputs.config_map(&wanted.name)? {
            Some(map) => found.extend(map.data.clone().unwrap_or_default()),
            None if wanted.optional == Some(true) => {}
            None => return Err(format!("configmap {:?} not found", wanted.name)),
        }
    }
    if let Some(wanted) = &source.secret_ref {
        match sources.inputs.secret(&wanted.name)? {
            Some(secret) => {
                let data = secret.data.clone().unwrap_or_default().into_iter();
                found.extend(data.map(|(key, value)| (key, text(&value.0))));
            }
            None if wanted.optional == Some(true) => {}
            None => return Err(format!("secret {:?} not found", wanted.name)),
        }
    }
    // What cannot be the name of a variable is left out.
    found.retain(|(key, _)| !key.is_empty() && !key.contains('='));
    Ok(found.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)).collect())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `None` for what is optional and not there.
fn one_value(
    sources: Sources<'_>,
    container: &Container,
    variable: &EnvVar,
    source: &EnvVarSource,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(sources, &field.field_path).map(Some).ok_or_else(|| {
            format!("env {}: unsupported fieldPath {:?}", variable.name, field.field_path)
        });
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_value(sources, Some(container), field).map(Some);
    }
    let namespace = sources.pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(wanted) = &source.config_map_key_ref {
        let map = sources.inputs.config_map(&wanted.name)?;
        let value = map.and_then(|map| map.data.as_ref()?.get(&wanted.key).cloned());
        let object = (map.is_some(), "configmap", "ConfigMap");
        return found(value, wanted.optional, object, namespace, &wanted.name, &wanted.key);
    }
    if let Some(wanted) = &source.secret_key_ref {
        let secret = sources.inputs.secret(&wanted.name)?;
        let value = secret.and_then(|one| one.data.as_ref()?.get(&wanted.key));
        let object = (secret.is_some(), "secret", "Secret");
        let value = value.map(|value| text(&value.0));
        return found(value, wanted.optional, object, namespace, &wanted.name, &wanted.key);
    }
    Err(format!("env {}: this node part does not know its source", variable.name))
}

fn found(
    value: Option<String>,
    optional: Option<bool>,
    (exists, noun, kind): (bool, &str, &str),
    namespace: &str,
    name: &str,
    key: &str,
) -> Result<Option<String>, String> {
    match value {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None if exists => Err(format!("couldn't find key {key} in {kind} {namespace}/{name}")),
        None => Err(format!("{noun} {name:?} not found")),
    }
}

/// The downward API: a field of the pod.
pub(super) fn field_value(sources: Sources<'_>, path: &str) -> Option<String> {
    let Sources { pod, node, addresses, .. } = sources;
    let meta = &pod.metadata;
    let joined =
        |list: &[IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |list: &[IpAddr]| list.first().map(ToString::to_string).unwrap_or_default();
    let pod_addresses = if host_network(pod) { &node.addresses } else { addresses };
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return None,
        };
        return Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => account.unwrap_or_default(),
        "status.hostIP" => first(&node.addresses),
        "status.hostIPs" => joined(&node.addresses),
        "status.podIP" => first(pod_addresses),
        "status.podIPs" => joined(pod_addresses),
        _ => return None,
    })
}

/// The downward API: what a container asks for of the machine. `own` is the container where the
/// selector names none.
pub(super) fn resource_value(
    sources: Sources<'_>,
    own: Option<&Container>,
    field: &ResourceFieldSelector,
) -> Result<String, String> {
    let spec = sources.pod.spec.as_ref();
    let containers = spec
        .into_iter()
        .flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let container = match field.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => {
            let mut named = containers.filter(|one| one.name == name);
            named.next().ok_or_else(|| format!("container {name} not found"))?
        }
        None => own.ok_or("the resource of no container was asked for")?,
    };
    let Amounts { requests, limits } = resources::amounts(container);
    let (list, resource) = field.resource.split_once('.').unwrap_or_default();
    let of_node = match resource {
        "cpu" => sources.node.cpu_millis,
        "memory" => sources.node.memory_bytes,
        _ => 0,
    };
    let amount = match list {
        "limits" => limits.get(resource),
        "requests" => requests.get(resource),
        _ => return Err(format!("unsupported resource {:?}", field.resource)),
    };
    // Who has no limit may use the whole node.
    let amount = if amount == 0 && list == "limits" { of_node } else { amount };
    let unit = if resource == "cpu" { 1000 } else { 1 };
    let divisor = field.divisor.as_ref().and_then(|one| resources::parse(&one.0, unit.into()));
    let divisor = divisor.filter(|&divisor| divisor > 0).unwrap_or(unit);
    Ok((amount / divisor + i64::from(amount % divisor > 0)).to_string())
}

/// The variables by which programs found services before there was DNS.
fn service_variables(pod: &Pod, services: &[Service]) -> Variables {
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let namespace = pod.metadata.namespace.as_deref();
    let mut all = Vec::new();
    for service in services {
        let meta = &service.metadata;
        let is_api = meta.namespace.as_deref() == Some("default")
            && meta.name.as_deref() == Some("kubernetes");
        if is_api || (links && meta.namespace.as_deref() == namespace) {
            of_service(service, &mut all);
        }
    }
    all
}

fn of_service(service: &Service, all: &mut Variables) {
    let Some(spec) = &service.spec else { return };
    let address = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    let (Some(address), Some(name)) = (address, &service.metadata.name) else { return };
    let variable = |text: &str| text.to_uppercase().replace('-', "_");
    let name = variable(name);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    set(all, format!("{name}_SERVICE_HOST"), address.to_string());
    set(all, format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let key = format!("{name}_SERVICE_PORT_{}", variable(port_name));
            set(all, key, port.port.to_string());
        }
    }
    let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{host}:{}", port.port);
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        if index == 0 {
            set(all, format!("{name}_PORT"), url.clone());
        }
        set(all, prefix.clone(), url);
        set(all, format!("{prefix}_PROTO"), lower);
        set(all, format!("{prefix}_PORT"), port.port.to_string());
        set(all, format!("{prefix}_ADDR"), address.to_string());
    }
}

#[cfg(test)]
#[path = "environment/tests.rs"]
mod tests;
