//! From a pod's spec to what the runtime is asked to make.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec};

use super::{
    super::runtime::{ContainerConfig, ImageRequest, PodIdentity, PortMapping, SandboxConfig},
    dns,
    expand::expand,
    facts::NodeFacts,
};

/// A host name may be this long (DNS label, RFC 1035 section 2.3.4).
const HOSTNAME_MAX: usize = 63;

/// The pod has the node's network.
pub(super) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The pod's host name: its own, else its name, cut to a label.
pub(super) fn hostname(pod: &Pod) -> String {
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
    let name = own.filter(|name| !name.is_empty()).or_else(|| pod.metadata.name.clone());
    let mut name = name.unwrap_or_default();
    name.truncate(HOSTNAME_MAX);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// Which pod it is.
pub(in super::super) fn identity(pod: &Pod) -> PodIdentity {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    PodIdentity {
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
        uid: text(&pod.metadata.uid),
    }
}

/// What the image of a container has to be.
pub(super) fn image_request(container: &Container) -> ImageRequest {
    ImageRequest {
        reference: container.image.clone().unwrap_or_default(),
        has_command: container.command.as_ref().is_some_and(|command| !command.is_empty()),
    }
}

/// The pod's sandbox. `Err` says what this node part cannot give it.
pub(super) fn sandbox(pod: &Pod, node: &NodeFacts, attempt: u32) -> SandboxConfig {
    let spec = pod.spec.as_ref();
    let host_network = host_network(pod);
    SandboxConfig {
        pod: identity(pod),
        attempt,
        hostname: (!host_network).then(|| hostname(pod)),
        host_network,
        host_ipc: spec.and_then(|spec| spec.host_ipc).unwrap_or(false),
        port_mappings: spec.map(port_mappings).unwrap_or_default(),
        resolv_conf: dns::resolv_conf(pod, node),
        hosts: dns::hosts(pod, node),
    }
}

fn port_mappings(spec: &PodSpec) -> Vec<PortMapping> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(PortMapping {
                host_port: u16::try_from(port.host_port?).ok().filter(|&port| port != 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}

/// A container in its `attempt`. `Err` says, for people, what is wrong with its spec or beyond
/// this node part: the message of `CreateContainerConfigError`.
pub(super) fn container(
    pod: &Pod,
    node: &NodeFacts,
    container: &Container,
    addresses: &[IpAddr],
    attempt: u32,
    backoff: Duration,
) -> Result<ContainerConfig, String> {
    refuse_unsupported(pod, container)?;
    let env = environment(pod, node, container, addresses)?;
    let values: BTreeMap<&str, &str> =
        env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let lookup = |name: &str| values.get(name).map(|&value| value.to_owned());
    let expanded = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|text| expand(text, lookup)).collect::<Vec<_>>()
    };
    let (run_as_user, run_as_group) = run_as(pod, container)?;
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().filter(|path| !path.is_empty()),
        run_as_user,
        run_as_group,
        backoff,
        env,
    })
}

/// What would silently be missing is an error instead.
fn refuse_unsupported(pod: &Pod, container: &Container) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let refused = [
        (container.volume_mounts.as_ref().is_some_and(|list| !list.is_empty()), "volumeMounts"),
        (container.env_from.as_ref().is_some_and(|list| !list.is_empty()), "envFrom"),
        (container.restart_policy.is_some(), "restartPolicy of a container"),
        (container.lifecycle.is_some(), "lifecycle hooks"),
        (spec.and_then(|spec| spec.host_pid).unwrap_or(false), "hostPID"),
    ];
    if let Some((_, what)) = refused.iter().find(|(wanted, _)| *wanted) {
        return Err(format!("this node part does not support {what} yet"));
    }
    let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
    for probe in probes.into_iter().flatten() {
        let scheme = probe.http_get.as_ref().and_then(|get| get.scheme.as_deref());
        if probe.grpc.is_some() || scheme == Some("HTTPS") {
            return Err("this node part does not support probes by gRPC and HTTPS yet".to_owned());
        }
    }
    Ok(())
}

/// User and group; the container's settings before the pod's.
fn run_as(pod: &Pod, container: &Container) -> Result<(Option<u32>, Option<u32>), String> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone());
    let of_pod = of_pod.unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let id = |name: &str, id: Option<i64>| match id.map(u32::try_from) {
        Some(Err(_)) => Err(format!("{name} is out of range")),
        Some(Ok(id)) => Ok(Some(id)),
        None => Ok(None),
    };
    let user = id("runAsUser", own.run_as_user.or(of_pod.run_as_user))?;
    let group = id("runAsGroup", own.run_as_group.or(of_pod.run_as_group))?;
    let non_root = own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false);
    if non_root && user.unwrap_or(0) == 0 {
        return Err("container has runAsNonRoot and image will run as root".to_owned());
    }
    Ok((user, group))
}

fn environment(
    pod: &Pod,
    node: &NodeFacts,
    container: &Container,
    addresses: &[IpAddr],
) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = Vec::new();
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                // What was defined before, the latest definition first.
                let lookup = |name: &str| {
                    env.iter()
                        .rev()
                        .find(|(known, _)| known == name)
                        .map(|(_, value)| value.clone())
                };
                expand(variable.value.as_deref().unwrap_or_default(), lookup)
            }
            Some(_) => from_source(pod, node, addresses, variable)?,
        };
        env.push((variable.name.clone(), value));
    }
    Ok(env)
}

fn from_source(
    pod: &Pod,
    node: &NodeFacts,
    addresses: &[IpAddr],
    variable: &EnvVar,
) -> Result<String, String> {
    let source = variable.value_from.as_ref();
    let Some(field) = source.and_then(|source| source.field_ref.as_ref()) else {
        return Err(format!(
            "env {}: this node part takes values from fieldRef only so far",
            variable.name
        ));
    };
    field_value(pod, node, addresses, &field.field_path).ok_or_else(|| {
        format!("env {}: unsupported fieldPath {:?}", variable.name, field.field_path)
    })
}

/// The downward API for environment variables.
fn field_value(pod: &Pod, node: &NodeFacts, addresses: &[IpAddr], path: &str) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing, *};

    fn made(container: &serde_json::Value) -> Result<ContainerConfig, String> {
        let pod = testing::pod(json!({"containers": [container]}));
        let spec = pod.spec.as_ref().unwrap();
        let addresses = ["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()];
        super::container(&pod, &testing::node(), &spec.containers[0], &addresses, 2, Duration::ZERO)
    }

    #[test]
    fn the_environment_is_expanded_in_order_and_used_by_command_and_args() {
        let config = made(&json!({"name": "c", "image": "i",
        "command": ["run", "$(NAME)"], "args": ["$(LATER)", "$$(NAME)", "$(NONE)"],
        "env": [
            {"name": "EARLY", "value": "$(LATER)"},
            {"name": "LATER", "value": "x"},
            {"name": "NAME", "value": "a-$(LATER)"},
        ]}))
        .unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            config.env,
            [pair("EARLY", "$(LATER)"), pair("LATER", "x"), pair("NAME", "a-x")]
        );
        assert_eq!(config.command, ["run", "a-x"]);
        assert_eq!(config.args, ["x", "$(NAME)", "$(NONE)"]);
        assert_eq!(config.attempt, 2);
    }

    #[test]
    fn the_downward_api_gives_fields() {
        for (path, expected) in [
            ("metadata.name", "web"),
            ("metadata.namespace", "default"),
            ("metadata.uid", "uid-1"),
            ("metadata.labels['app']", "hello"),
            ("metadata.labels['none']", ""),
            ("spec.nodeName", "node-1"),
            ("status.hostIP", "192.0.2.11"),
            ("status.hostIPs", "192.0.2.11,fd00:30::11"),
            ("status.podIP", "10.0.0.9"),
            ("status.podIPs", "10.0.0.9,fd00::9"),
        ] {
            let env = json!([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}]);
            let config = made(&json!({"name": "c", "image": "i", "env": env})).unwrap();
            assert_eq!(config.env[0].1, expected, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_given_is_refused_by_name() {
        for (container, expected) in [
            (
                json!({"name": "c", "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
                "env X: unsupported fieldPath \"spec.x\"",
            ),
            (
                json!({"name": "c", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
                "env X: this node part takes values from fieldRef only so far",
            ),
            (
                json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
                "this node part does not support volumeMounts yet",
            ),
            (
                json!({"name": "c", "securityContext": {"runAsNonRoot": true}}),
                "container has runAsNonRoot and image will run as root",
            ),
            (
                json!({"name": "c", "securityContext": {"runAsUser": -1}}),
                "runAsUser is out of range",
            ),
        ] {
            assert_eq!(made(&container).unwrap_err(), expected);
        }
    }

    #[test]
    fn host_ports_become_port_mappings() {
        let pod = testing::pod(json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.11"},
            {"containerPort": 81},
        ]}]}));
        let mappings = sandbox(&pod, &testing::node(), 0).port_mappings;
        let texts: Vec<_> = mappings
            .iter()
            .map(|m| format!("{}:{}->{}/{}", m.host_ip, m.host_port, m.container_port, m.protocol))
            .collect();
        assert_eq!(texts, [":8080->80/tcp", "192.0.2.11:53->53/udp"]);
    }

    #[test]
    fn the_host_name_is_a_label() {
        let mut pod = testing::pod(json!({}));
        assert_eq!(hostname(&pod), "web");
        pod.metadata.name = Some(format!("{}-x", "a".repeat(62)));
        assert_eq!(hostname(&pod), "a".repeat(62));
    }
}
