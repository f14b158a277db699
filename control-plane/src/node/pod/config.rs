//! From a pod's spec to what the runtime is asked to make.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume, VolumeMount};

use super::{
    super::runtime::{
        ContainerConfig, ImageRequest, PodIdentity, PortMapping, PullPolicy, SandboxConfig,
        Termination,
    },
    dns,
    environment::{Sources, environment},
    expand::expand,
    facts::NodeFacts,
    privileges, resources,
    volumes::{self, Content, VolumePlan},
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
        pull: match container.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        },
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
        host_pid: spec.and_then(|spec| spec.host_pid).unwrap_or(false),
        share_processes: spec.and_then(|spec| spec.share_process_namespace).unwrap_or(false),
        sysctls: spec.map(sysctls).unwrap_or_default(),
        se_linux: privileges::sandbox_label(pod),
        port_mappings: spec.map(port_mappings).unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        resolv_conf: dns::resolv_conf(pod, node),
        hosts: dns::hosts(pod, node),
    }
}

fn sysctls(spec: &PodSpec) -> Vec<(String, String)> {
    let context = spec.security_context.as_ref();
    let sysctls = context.and_then(|context| context.sysctls.as_ref()).into_iter().flatten();
    sysctls.map(|one| (one.name.clone(), one.value.clone())).collect()
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

/// A container in its `attempt`, with the volumes that it mounts. `Err` says, for people, what is
/// wrong with its spec or beyond this node part: the message of `CreateContainerConfigError`.
pub(super) fn container(
    sources: Sources<'_>,
    container: &Container,
    attempt: u32,
    backoff: Duration,
) -> Result<(ContainerConfig, Vec<VolumePlan>), String> {
    let Sources { pod, node, addresses, .. } = sources;
    refuse_unsupported(pod, node, container)?;
    let env = environment(sources, container)?;
    let values: BTreeMap<&str, &str> =
        env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let lookup = |name: &str| values.get(name).map(|&value| value.to_owned());
    let expanded = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|text| expand(text, lookup)).collect::<Vec<_>>()
    };
    let (run_as_user, run_as_group) = privileges::run_as(pod, container)?;
    let group = privileges::fs_group(pod)?;
    let (volumes, mounts) = volumes::plan(sources, container, &env, group)?;
    let config = ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().filter(|path| !path.is_empty()),
        run_as_user,
        run_as_group,
        backoff,
        hosts: dns::hosts(pod, node).text(addresses),
        mounts,
        privileges: privileges::privileges(pod, container)?,
        limits: resources::limits(pod, node, container),
        stdin: container.stdin.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        termination: termination(container),
        env,
    };
    Ok((config, volumes))
}

fn termination(container: &Container) -> Termination {
    let path = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    let policy = container.termination_message_policy.as_deref();
    Termination {
        path: path.unwrap_or("/dev/termination-log").to_owned(),
        or_log: policy == Some("FallbackToLogsOnError"),
    }
}

/// The plans of all volumes with files that containers mount, to bring them up to date. A volume
/// whose objects are gone stays as it is, and holds up no other.
pub(super) fn mounted_volumes(sources: Sources<'_>) -> Vec<VolumePlan> {
    let Some(spec) = &sources.pod.spec else { return Vec::new() };
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let is_mounted = |volume: &&Volume| {
        let mut mounts = containers().flat_map(|one| one.volume_mounts.iter().flatten());
        mounts.any(|mount| mount.name == volume.name)
    };
    let group = privileges::fs_group(sources.pod).unwrap_or_default();
    let mounted = spec.volumes.iter().flatten().filter(is_mounted);
    let plans = mounted.filter_map(|volume| {
        let plan = volumes::one(sources, volume, group);
        plan.inspect_err(|why| tracing::debug!(%why, "a volume stays as it is")).ok()
    });
    plans.filter(|plan| matches!(plan.content, Content::Files { .. })).collect()
}

/// The container is a sidecar: an init container that goes on running (KEP-753).
pub(super) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What would silently be missing, and a program would notice, is an error instead.
fn refuse_unsupported(pod: &Pod, node: &NodeFacts, container: &Container) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let class = spec.and_then(|spec| spec.runtime_class_name.as_deref());
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        return Err(format!(
            "this node has one way to run containers, and runtimeClassName {class:?} asks for \
             another: leave it out, or run the pod on a node of another kind"
        ));
    }
    if node.abilities.everything {
        return Ok(());
    }
    let of_pod = spec.and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let profile = own
        .and_then(|context| context.seccomp_profile.as_ref())
        .or(of_pod.and_then(|context| context.seccomp_profile.as_ref()));
    let comes_back =
        |mount: &VolumeMount| mount.mount_propagation.as_deref() == Some("Bidirectional");
    let refused = [
        (spec.and_then(|spec| spec.host_pid).unwrap_or(false), "hostPID"),
        (
            profile.is_some_and(|profile| profile.type_ == "Localhost"),
            "seccompProfile.type: Localhost",
        ),
        (
            container.volume_mounts.iter().flatten().any(comes_back),
            "mountPropagation: Bidirectional",
        ),
    ];
    match refused.iter().find(|(wanted, _)| *wanted) {
        Some((_, what)) => Err(format!(
            "the process runtime does not support {what}: run the pod on a node with a container \
             runtime"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{super::runtime::Abilities, inputs::Inputs, testing},
        *,
    };

    fn made_on(node: &NodeFacts, spec: serde_json::Value) -> Result<ContainerConfig, String> {
        let pod = testing::pod(spec);
        let spec = pod.spec.as_ref().unwrap();
        let addresses = ["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()];
        let inputs = Inputs::none(testing::at(0));
        let sources = Sources { pod: &pod, node, addresses: &addresses, inputs: &inputs };
        container(sources, &spec.containers[0], 2, Duration::ZERO).map(|(config, _)| config)
    }

    fn made(container: &serde_json::Value) -> Result<ContainerConfig, String> {
        made_on(&testing::node(), json!({"containers": [container]}))
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
    fn what_the_process_runtime_cannot_give_is_refused_by_name() {
        let mounts = json!({"containers": [{"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]});
        let pids = json!({"hostPID": true, "containers": [{"name": "c"}]});
        let localhost = json!({"type": "Localhost", "localhostProfile": "a.json"});
        let profile = json!({"containers": [{"name": "c"}],
            "securityContext": {"seccompProfile": localhost}});
        let own = json!({"containers": [
            {"name": "c", "securityContext": {"seccompProfile": localhost}}]});
        let abilities = Abilities { everything: false, ..Abilities::ALL };
        let processes = NodeFacts { abilities, ..testing::node() };
        for (spec, what) in [
            (mounts, "mountPropagation: Bidirectional"),
            (pids, "hostPID"),
            (profile, "seccompProfile.type: Localhost"),
            (own, "seccompProfile.type: Localhost"),
        ] {
            let error = made_on(&processes, spec.clone()).unwrap_err();
            assert!(error.contains(&format!("does not support {what}")), "{error}");
            assert!(made_on(&testing::node(), spec).is_ok());
        }
        let volume = json!({"containers": [{"name": "c",
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]});
        assert!(made_on(&processes, volume).is_ok());
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
    fn a_container_may_say_why_it_ended() {
        let said = |container: &serde_json::Value| made(container).unwrap().termination;
        let (file, log) = ("/dev/termination-log".to_owned(), "/tmp/why".to_owned());
        let plain = said(&json!({"name": "c", "image": "i"}));
        assert_eq!(plain, Termination { path: file, or_log: false });
        let own = said(&json!({"name": "c", "image": "i", "terminationMessagePath": "/tmp/why",
            "terminationMessagePolicy": "FallbackToLogsOnError"}));
        assert_eq!(own, Termination { path: log, or_log: true });
    }

    #[test]
    fn the_host_name_is_a_label() {
        let mut pod = testing::pod(json!({}));
        assert_eq!(hostname(&pod), "web");
        pod.metadata.name = Some(format!("{}-x", "a".repeat(62)));
        assert_eq!(hostname(&pod), "a".repeat(62));
    }
}
