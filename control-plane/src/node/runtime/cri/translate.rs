//! Between our words and those of the Container Runtime Interface. Pure.
//!
//! Everything that the node part has to know of a container later is with the runtime, in labels
//! and annotations: a node part that starts anew has nothing else.

use std::{collections::HashMap, net::IpAddr, path::Path, time::Duration};

use k8s_cri::v1 as cri;
use k8s_openapi::jiff::Timestamp;

use super::super::{
    AppArmor, CPU_PERIOD_US, Container, ContainerConfig, ContainerState, Image, ImageUser, Limits,
    Mount, PodIdentity, PortMapping, Privileges, Propagation, Sandbox, SandboxConfig, SeLinux,
    Seccomp,
    masks::{MASKED, READ_ONLY},
};
use crate::node::pod::observed::{LOST_EXIT_CODE, STATUS_UNKNOWN};

/// The labels by which every tool knows whose a sandbox or container is.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// See [`POD_NAME`].
pub(super) const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Seconds of [`ContainerConfig::backoff`].
const BACKOFF: &str = "node.mizzen.dev/backoff-seconds";
/// The sandbox's host name, which the runtime wants to hear again and does not tell.
const HOSTNAME: &str = "node.mizzen.dev/hostname";
/// The image as the pod names it.
const IMAGE: &str = "node.mizzen.dev/image";
/// The end of its log may stand for what it did not say of its own.
const OR_LOG: &str = "node.mizzen.dev/termination-message-or-log";
/// Where a node's pods are, for the runtime.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    /// The cgroup of the node's pods, from the root of each hierarchy.
    pub cgroup: &'a str,
    /// The folder of all logs.
    pub logs: &'a Path,
}

impl Places<'_> {
    fn cgroup_of(&self, pod: &PodIdentity) -> String {
        format!("{}/pods/pod{}", self.cgroup, pod.uid)
    }

    /// The folder of a pod's logs.
    pub(super) fn logs_of(&self, pod: &PodIdentity) -> std::path::PathBuf {
        self.logs.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }
}

/// A sandbox for the runtime.
pub(super) fn sandbox(config: &SandboxConfig, places: Places<'_>) -> cri::PodSandboxConfig {
    let namespaces = cri::NamespaceOption {
        network: node_or_pod(config.host_network),
        ipc: node_or_pod(config.host_ipc),
        pid: match (config.host_pid, config.share_processes) {
            (true, _) => cri::NamespaceMode::Node.into(),
            (false, true) => cri::NamespaceMode::Pod.into(),
            (false, false) => cri::NamespaceMode::Container.into(),
        },
        ..cri::NamespaceOption::default()
    };
    let mut sandbox = bare(&config.pod, config.attempt, namespaces, places);
    sandbox.annotations.extend(config.annotations.clone());
    name(&mut sandbox, config.hostname.clone().unwrap_or_default());
    sandbox.dns_config = Some(dns(&config.resolv_conf));
    sandbox.port_mappings = config.port_mappings.iter().map(port_mapping).collect();
    if let Some(linux) = &mut sandbox.linux {
        linux.sysctls = config.sysctls.iter().cloned().collect();
        if let Some(security) = &mut linux.security_context {
            security.selinux_options = config.se_linux.as_ref().map(se_linux);
        }
    }
    sandbox
}

/// What the runtime has to be told again of a sandbox when a container is made in it.
pub(super) fn sandbox_again(
    status: &cri::PodSandboxStatus,
    places: Places<'_>,
) -> cri::PodSandboxConfig {
    let metadata = status.metadata.clone().unwrap_or_default();
    let namespaces = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref());
    let options = namespaces.and_then(|namespaces| namespaces.options.clone()).unwrap_or_default();
    let mut sandbox = bare(&identity(&metadata), metadata.attempt, options, places);
    sandbox.annotations.extend(status.annotations.clone());
    name(&mut sandbox, status.annotations.get(HOSTNAME).cloned().unwrap_or_default());
    sandbox
}

fn name(sandbox: &mut cri::PodSandboxConfig, hostname: String) {
    sandbox.annotations.insert(HOSTNAME.to_owned(), hostname.clone());
    sandbox.hostname = hostname;
}

fn bare(
    pod: &PodIdentity,
    attempt: u32,
    namespaces: cri::NamespaceOption,
    places: Places<'_>,
) -> cri::PodSandboxConfig {
    let security = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces),
        // The sandbox's own process does nothing: nothing is what it may do.
        seccomp: Some(profile(&Seccomp::RuntimeDefault)),
        ..cri::LinuxSandboxSecurityContext::default()
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            attempt,
        }),
        log_directory: places.logs_of(pod).display().to_string(),
        labels: labels(pod),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: places.cgroup_of(pod),
            security_context: Some(security),
            ..cri::LinuxPodSandboxConfig::default()
        }),
        ..cri::PodSandboxConfig::default()
    }
}

fn node_or_pod(node: bool) -> i32 {
    if node { cri::NamespaceMode::Node.into() } else { cri::NamespaceMode::Pod.into() }
}

fn labels(pod: &PodIdentity) -> HashMap<String, String> {
    [(POD_NAME, &pod.name), (POD_NAMESPACE, &pod.namespace), (POD_UID, &pod.uid)]
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .into()
}

/// What a resolv.conf says, in parts (resolv.conf(5)).
fn dns(text: &str) -> cri::DnsConfig {
    let mut dns = cri::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words),
            Some("search") => dns.searches.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

fn port_mapping(port: &PortMapping) -> cri::PortMapping {
    let protocol = match port.protocol.as_str() {
        "udp" => cri::Protocol::Udp,
        "sctp" => cri::Protocol::Sctp,
        _ => cri::Protocol::Tcp,
    };
    cri::PortMapping {
        protocol: protocol.into(),
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.host_ip.clone(),
    }
}

/// A container for the runtime. `pod` is whose sandbox it is in, `own` its files.
pub(super) fn container(
    config: &ContainerConfig,
    pod: &PodIdentity,
    namespaces: Option<cri::NamespaceOption>,
    own: OwnFiles<'_>,
) -> cri::ContainerConfig {
    let mut labels = labels(pod);
    labels.insert(CONTAINER_NAME.to_owned(), config.name.clone());
    let annotations = [
        (BACKOFF, config.backoff.as_secs().to_string()),
        (IMAGE, config.image.clone()),
        (OR_LOG, config.termination.or_log.to_string()),
    ];
    let mut mounts: Vec<cri::Mount> = config.mounts.iter().map(mount).collect();
    for (container_path, file) in
        [("/etc/hosts", own.hosts), (config.termination.path.as_str(), own.termination)]
    {
        let is_taken = |mount: &Mount| mount.container_path == container_path;
        if !container_path.is_empty() && !config.mounts.iter().any(is_taken) {
            mounts.push(cri::Mount {
                container_path: container_path.to_owned(),
                host_path: file.display().to_string(),
                ..cri::Mount::default()
            });
        }
    }
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: config.name.clone(),
            attempt: config.attempt,
        }),
        image: Some(cri::ImageSpec { image: config.image.clone(), ..cri::ImageSpec::default() }),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone().unwrap_or_default(),
        envs: config.env.iter().map(variable).collect(),
        mounts,
        labels,
        annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
        log_path: log_path(&config.name, config.attempt),
        stdin: config.stdin,
        tty: config.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(config.limits)),
            security_context: Some(security(config, namespaces)),
        }),
        ..cri::ContainerConfig::default()
    }
}

/// The files that the node part makes for a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnFiles<'a> {
    /// Its pod's /etc/hosts.
    pub hosts: &'a Path,
    /// Where it may say why it ended.
    pub termination: &'a Path,
}

/// Whether the end of a container's log may stand for what it did not say of its own: it failed.
pub(super) fn may_be_told_by_log(status: &cri::ContainerStatus) -> bool {
    status.exit_code != 0 && status.annotations.get(OR_LOG).is_some_and(|word| word == "true")
}

/// A container's log, in the folder of its pod's.
pub(super) fn log_path(name: &str, attempt: u32) -> String {
    format!("{name}/{attempt}.log")
}

fn variable((key, value): &(String, String)) -> cri::KeyValue {
    cri::KeyValue { key: key.clone(), value: value.clone() }
}

fn mount(mount: &Mount) -> cri::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.display().to_string(),
        readonly: mount.read_only,
        propagation: propagation.into(),
        ..cri::Mount::default()
    }
}

fn resources(limits: Limits) -> cri::LinuxContainerResources {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    cri::LinuxContainerResources {
        cpu_period: number(CPU_PERIOD_US),
        cpu_quota: number(limits.cpu_quota_us),
        cpu_shares: number(limits.cpu_shares),
        memory_limit_in_bytes: number(limits.memory_bytes),
        oom_score_adj: limits.oom_score_adj.into(),
        ..cri::LinuxContainerResources::default()
    }
}

fn security(
    config: &ContainerConfig,
    namespaces: Option<cri::NamespaceOption>,
) -> cri::LinuxContainerSecurityContext {
    let Privileges { privileged, unmasked_proc, .. } = config.privileges;
    let shown = privileged || unmasked_proc;
    let paths = |list: &[&str]| {
        let list = if shown { &[][..] } else { list };
        list.iter().map(|&path| path.to_owned()).collect()
    };
    let id = |id: Option<u32>| id.map(|id| cri::Int64Value { value: id.into() });
    let capabilities = cri::Capability {
        add_capabilities: config.privileges.add_capabilities.clone(),
        drop_capabilities: config.privileges.drop_capabilities.clone(),
        ..cri::Capability::default()
    };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(capabilities),
        privileged,
        namespace_options: namespaces,
        run_as_user: id(config.run_as_user),
        // The interface has no group without a user.
        run_as_group: config.run_as_user.and(id(config.run_as_group)),
        readonly_rootfs: config.privileges.read_only_root,
        supplemental_groups: config.privileges.groups.iter().map(|&group| group.into()).collect(),
        no_new_privs: config.privileges.no_new_privileges,
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        seccomp: Some(profile(&config.privileges.seccomp)),
        apparmor: config.privileges.app_armor.as_ref().map(app_armor),
        selinux_options: config.privileges.se_linux.as_ref().map(se_linux),
        ..cri::LinuxContainerSecurityContext::default()
    }
}

fn app_armor(profile: &AppArmor) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, name) = match profile {
        AppArmor::Unconfined => (ProfileType::Unconfined, String::new()),
        AppArmor::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        AppArmor::Localhost(name) => (ProfileType::Localhost, name.clone()),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name }
}

fn se_linux(label: &SeLinux) -> cri::SeLinuxOption {
    let SeLinux { user, role, domain, level } = label.clone();
    cri::SeLinuxOption { user, role, r#type: domain, level }
}

fn profile(seccomp: &Seccomp) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, path) = match seccomp {
        Seccomp::Unconfined => (ProfileType::Unconfined, String::new()),
        Seccomp::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Seccomp::Localhost(path) => (ProfileType::Localhost, path.display().to_string()),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path }
}

/// Whose a sandbox is.
pub(super) fn identity(metadata: &cri::PodSandboxMetadata) -> PodIdentity {
    PodIdentity {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
    }
}

/// A sandbox of the runtime's.
pub(super) fn sandbox_seen(status: &cri::PodSandboxStatus) -> Sandbox {
    let metadata = status.metadata.clone().unwrap_or_default();
    let network = status.network.clone().unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|one| one.ip);
    let addresses = std::iter::once(network.ip).chain(more);
    Sandbox {
        id: status.id.clone(),
        pod: identity(&metadata),
        attempt: metadata.attempt,
        ready: status.state == i32::from(cri::PodSandboxState::SandboxReady),
        addresses: addresses.filter_map(|ip| ip.parse::<IpAddr>().ok()).collect(),
        created_at: time(status.created_at),
    }
}

/// An image of the runtime's.
pub(super) fn image_seen(image: cri::Image) -> Image {
    let user = match image.uid {
        Some(uid) => ImageUser::Id(uid.value),
        None if image.username.is_empty() => ImageUser::Id(0),
        None => ImageUser::Name(image.username),
    };
    Image { id: image.id, user }
}

/// A container of the runtime's.
pub(super) fn container_seen(sandbox: &str, status: &cri::ContainerStatus) -> Container {
    let metadata = status.metadata.clone().unwrap_or_default();
    let annotation = |name: &str| status.annotations.get(name).cloned();
    let seconds = annotation(BACKOFF).and_then(|text| text.parse().ok()).unwrap_or(0);
    let named = status.image.as_ref().map(|image| image.image.clone());
    Container {
        id: status.id.clone(),
        sandbox: sandbox.to_owned(),
        name: metadata.name,
        attempt: metadata.attempt,
        image: annotation(IMAGE).or(named).unwrap_or_default(),
        backoff: Duration::from_secs(seconds),
        state: state(status),
    }
}

fn state(status: &cri::ContainerStatus) -> ContainerState {
    // A program that could not be started has no start of its own.
    let started_at =
        time(if status.started_at > 0 { status.started_at } else { status.created_at });
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(cri::ContainerState::ContainerRunning) => ContainerState::Running { started_at },
        Ok(cri::ContainerState::ContainerExited) => ContainerState::Exited {
            started_at,
            finished_at: time(status.finished_at).max(started_at),
            exit_code: status.exit_code,
            // These say what the code says.
            reason: text(&status.reason).filter(|word| word != "Completed" && word != "Error"),
            message: text(&status.message),
        },
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => ContainerState::Exited {
            started_at,
            finished_at: started_at,
            exit_code: LOST_EXIT_CODE,
            reason: Some(STATUS_UNKNOWN.to_owned()),
            message: Some("the container runtime does not know what became of it".to_owned()),
        },
    }
}

/// The log of a container, from its list's entry: the runtime writes it, we bound it.
pub(super) fn log_of(container: &cri::Container, logs: &Path) -> Option<std::path::PathBuf> {
    let label = |name: &str| container.labels.get(name).cloned();
    let pod = PodIdentity {
        namespace: label(POD_NAMESPACE)?,
        name: label(POD_NAME)?,
        uid: label(POD_UID)?,
    };
    let metadata = container.metadata.as_ref()?;
    let folder = Places { cgroup: "", logs }.logs_of(&pod);
    Some(folder.join(log_path(&metadata.name, metadata.attempt)))
}

/// Nanoseconds since 1970.
fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "translate/tests.rs"]
mod tests;
