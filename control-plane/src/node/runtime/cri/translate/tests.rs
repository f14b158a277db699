//! What the runtime is asked, and how its answers are understood.

use super::{super::super::Termination, *};

fn pod() -> PodIdentity {
    PodIdentity { namespace: "ns".into(), name: "web".into(), uid: "u-1".into() }
}

fn places() -> Places<'static> {
    Places { cgroup: "/mizzen-up/node-1", logs: Path::new("/run/m/logs") }
}

fn own() -> OwnFiles<'static> {
    OwnFiles {
        hosts: Path::new("/run/m/etc/s/hosts"),
        termination: Path::new("/run/m/etc/s/termination/main-4"),
    }
}

fn config() -> SandboxConfig {
    SandboxConfig {
        pod: pod(),
        attempt: 3,
        hostname: Some("web".into()),
        host_network: false,
        host_ipc: false,
        host_pid: false,
        share_processes: false,
        sysctls: vec![("net.core.somaxconn".into(), "7".into())],
        se_linux: None,
        port_mappings: vec![PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: "udp".into(),
            host_ip: "192.0.2.1".into(),
        }],
        annotations: [("kubernetes.io/ingress-bandwidth", "10M"), (HOSTNAME, "of the pod")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        resolv_conf: "# x\nnameserver 10.96.0.10\nnameserver fd00:96::a\n\
                      search a.svc b\noptions ndots:5\n"
            .into(),
        hosts: crate::node::runtime::HostsFile::default(),
    }
}

#[test]
fn a_sandbox_lives_below_the_nodes_cgroup_and_has_its_network_and_names() {
    let sandbox = sandbox(&config(), places());
    let linux = sandbox.linux.unwrap();
    assert_eq!(linux.cgroup_parent, "/mizzen-up/node-1/pods/podu-1");
    assert_eq!(linux.sysctls["net.core.somaxconn"], "7");
    assert_eq!(sandbox.log_directory, "/run/m/logs/ns_web_u-1");
    assert_eq!(sandbox.hostname, "web");
    assert_eq!(sandbox.metadata.unwrap().attempt, 3);
    let dns = sandbox.dns_config.unwrap();
    assert_eq!(dns.servers, ["10.96.0.10", "fd00:96::a"]);
    assert_eq!(
        (dns.searches.join(" "), dns.options.join(" ")),
        ("a.svc b".into(), "ndots:5".into())
    );
    let port = &sandbox.port_mappings[0];
    assert_eq!((port.host_port, port.container_port, port.protocol), (8080, 80, 1));
    assert_eq!(port.host_ip, "192.0.2.1");
    for (key, value) in [(POD_NAME, "web"), (POD_NAMESPACE, "ns"), (POD_UID, "u-1")] {
        assert_eq!(sandbox.labels[key], value);
    }
    // The runtime reads the pod's bandwidth there; our own word goes before the pod's.
    for (key, value) in [("kubernetes.io/ingress-bandwidth", "10M"), (HOSTNAME, "web")] {
        assert_eq!(sandbox.annotations[key], value);
    }
}

#[test]
fn namespaces_are_the_pods_own_unless_it_asks_for_the_nodes() {
    use cri::NamespaceMode::{Container, Node, Pod};
    let modes = |change: fn(&mut SandboxConfig)| {
        let mut config = config();
        change(&mut config);
        let security = sandbox(&config, places()).linux.unwrap().security_context.unwrap();
        let options = security.namespace_options.unwrap();
        (options.network(), options.ipc(), options.pid())
    };
    assert_eq!(modes(|_| {}), (Pod, Pod, Container));
    assert_eq!(modes(|config| config.host_network = true), (Node, Pod, Container));
    assert_eq!(modes(|config| config.host_ipc = true), (Pod, Node, Container));
    assert_eq!(modes(|config| config.share_processes = true), (Pod, Pod, Pod));
    assert_eq!(modes(|config| config.host_pid = true), (Pod, Pod, Node));
}

#[test]
fn what_is_said_of_a_sandbox_again_is_what_was_said_at_first() {
    let first = sandbox(&config(), places());
    let options = first.linux.as_ref().and_then(|linux| linux.security_context.clone());
    let options = options.and_then(|security| security.namespace_options);
    let status = cri::PodSandboxStatus {
        metadata: first.metadata.clone(),
        annotations: first.annotations.clone(),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: options.clone() }),
        }),
        ..cri::PodSandboxStatus::default()
    };
    let again = sandbox_again(&status, places());
    assert_eq!(again.metadata, first.metadata);
    assert_eq!(again.log_directory, first.log_directory);
    assert_eq!(again.annotations, first.annotations);
    // By it the runtime sets HOSTNAME in each container.
    assert_eq!(again.hostname, "web");
    let (first, again) = (first.linux.unwrap(), again.linux.unwrap());
    assert_eq!(again.cgroup_parent, first.cgroup_parent);
    assert_eq!(again.security_context.unwrap().namespace_options, options);
}

fn made(config: ContainerConfig) -> cri::ContainerConfig {
    let config = ContainerConfig { name: "c".into(), image: "hello".into(), ..config };
    container(&config, &pod(), None, own())
}

fn security_of(config: ContainerConfig) -> cri::LinuxContainerSecurityContext {
    made(config).linux.unwrap().security_context.unwrap()
}

#[test]
fn a_plain_container_does_not_see_what_is_the_machines() {
    let security = security_of(ContainerConfig::default());
    assert!(security.masked_paths.iter().any(|path| path == "/proc/kcore"));
    assert!(security.readonly_paths.iter().any(|path| path == "/proc/sys"));
    assert!(!security.privileged && !security.readonly_rootfs && !security.no_new_privs);
    assert_eq!(security.run_as_user, None);
    assert_eq!(security.seccomp.unwrap().profile_type, 1, "unconfined");
}

#[test]
fn privileges_are_passed_on() {
    let privileges = Privileges {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        read_only_root: true,
        no_new_privileges: true,
        seccomp: Seccomp::RuntimeDefault,
        groups: vec![5, 6],
        app_armor: Some(AppArmor::Localhost("web".into())),
        se_linux: Some(SeLinux { domain: "t".into(), ..SeLinux::default() }),
        ..Privileges::default()
    };
    let config = ContainerConfig {
        privileges,
        run_as_user: Some(1000),
        run_as_group: Some(7),
        ..ContainerConfig::default()
    };
    let security = security_of(config);
    let capabilities = security.capabilities.unwrap();
    assert_eq!(capabilities.add_capabilities, ["NET_ADMIN"]);
    assert_eq!(capabilities.drop_capabilities, ["ALL"]);
    assert!(security.readonly_rootfs && security.no_new_privs);
    assert_eq!(security.supplemental_groups, [5, 6]);
    assert_eq!(security.run_as_user.unwrap().value, 1000);
    assert_eq!(security.run_as_group.unwrap().value, 7);
    assert_eq!(security.seccomp.unwrap().profile_type, 0, "the runtime's default");
    let app_armor = security.apparmor.unwrap();
    assert_eq!((app_armor.profile_type, app_armor.localhost_ref.as_str()), (2, "web"));
    assert_eq!(security.selinux_options.unwrap().r#type, "t");
    let plain = security_of(ContainerConfig::default());
    assert_eq!((plain.apparmor, plain.selinux_options), (None, None));

    let group_alone = ContainerConfig { run_as_group: Some(7), ..ContainerConfig::default() };
    assert_eq!(security_of(group_alone).run_as_group, None);
    let privileges = Privileges { privileged: true, ..Privileges::default() };
    let all = security_of(ContainerConfig { privileges, ..ContainerConfig::default() });
    assert!(all.privileged && all.masked_paths.is_empty() && all.readonly_paths.is_empty());
}

#[test]
fn the_user_of_an_image_is_a_number_a_name_or_root() {
    let user = |uid: Option<i64>, username: &str| {
        let uid = uid.map(|value| cri::Int64Value { value });
        let image = cri::Image { uid, username: username.into(), ..cri::Image::default() };
        image_seen(image).user
    };
    assert_eq!(user(Some(1000), ""), ImageUser::Id(1000));
    assert_eq!(user(None, "web"), ImageUser::Name("web".into()));
    assert_eq!(user(None, ""), ImageUser::Id(0));
}

#[test]
fn limits_are_passed_on() {
    let limits =
        Limits { cpu_shares: 512, cpu_quota_us: 50_000, memory_bytes: 1 << 26, oom_score_adj: 900 };
    let resources = made(ContainerConfig { limits, ..ContainerConfig::default() });
    let resources = resources.linux.unwrap().resources.unwrap();
    assert_eq!((resources.cpu_period, resources.cpu_quota), (100_000, 50_000));
    assert_eq!((resources.cpu_shares, resources.memory_limit_in_bytes), (512, 1 << 26));
    assert_eq!(resources.oom_score_adj, 900);
}

#[test]
fn a_container_has_the_pods_hosts_file_unless_it_mounts_its_own() {
    let hosts = |config: ContainerConfig| {
        let mounts = made(config).mounts;
        let found: Vec<String> = mounts
            .into_iter()
            .filter(|mount| mount.container_path == "/etc/hosts")
            .map(|mount| mount.host_path)
            .collect();
        found
    };
    assert_eq!(hosts(ContainerConfig::default()), ["/run/m/etc/s/hosts"]);
    let own = Mount {
        container_path: "/etc/hosts".into(),
        host_path: "/own".into(),
        volume_path: "/own".into(),
        read_only: true,
        propagation: Propagation::HostToContainer,
    };
    let config = ContainerConfig { mounts: vec![own], ..ContainerConfig::default() };
    let mounted = made(config.clone()).mounts.remove(0);
    assert!(mounted.readonly);
    assert_eq!(mounted.propagation, i32::from(cri::MountPropagation::PropagationHostToContainer));
    assert_eq!(hosts(config), ["/own"]);
}

#[test]
fn a_container_may_write_why_it_ended_where_it_wants_to() {
    let made_with = |path: &str, or_log| {
        let termination = Termination { path: path.into(), or_log };
        made(ContainerConfig { termination, ..ContainerConfig::default() })
    };
    let with = made_with("/dev/termination-log", true);
    let mount = with.mounts.iter().find(|mount| mount.container_path == "/dev/termination-log");
    let mount = mount.unwrap();
    assert_eq!(mount.host_path, "/run/m/etc/s/termination/main-4");
    assert!(!mount.readonly);
    assert_eq!(made_with("", false).mounts.len(), 1, "nothing but its hosts");
    let ended = |annotations, exit_code| {
        let status = cri::ContainerStatus { annotations, exit_code, ..Default::default() };
        may_be_told_by_log(&status)
    };
    assert!(ended(with.annotations.clone(), 1));
    assert!(!ended(with.annotations, 0), "it did not fail");
    assert!(!ended(made_with("/dev/termination-log", false).annotations, 1));
    assert!(!ended(HashMap::new(), 1), "somebody else's");
}

/// A container whose state is the runtime's `state`.
fn seen(state: cri::ContainerState, change: impl Fn(&mut cri::ContainerStatus)) -> Container {
    let mut status = cri::ContainerStatus {
        id: "id".into(),
        metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 2 }),
        state: state.into(),
        created_at: 1_000_000_000,
        ..cri::ContainerStatus::default()
    };
    change(&mut status);
    container_seen("s", &status)
}

#[test]
fn what_was_said_of_a_container_is_found_again() {
    let config = ContainerConfig {
        name: "c".into(),
        attempt: 2,
        image: "hello".into(),
        backoff: Duration::from_secs(20),
        ..ContainerConfig::default()
    };
    let sent = container(&config, &pod(), None, own());
    let found = seen(cri::ContainerState::ContainerCreated, |status| {
        status.annotations.clone_from(&sent.annotations);
        status.image = Some(cri::ImageSpec { image: "sha256:1".into(), ..Default::default() });
    });
    assert_eq!((found.backoff, found.image.as_str()), (Duration::from_secs(20), "hello"));
    assert_eq!((found.name.as_str(), found.attempt), ("c", 2));
    assert_eq!(found.state, ContainerState::Created);
    // Of somebody else's there are no annotations.
    let foreign = seen(cri::ContainerState::ContainerCreated, |_| {});
    assert_eq!(foreign.backoff, Duration::ZERO);
}

#[test]
fn ends_have_their_code_and_what_the_code_does_not_say() {
    let second = |n: i64| Timestamp::from_second(n).unwrap();
    let end = |code, reason: &str, started: i64| {
        let exited = seen(cri::ContainerState::ContainerExited, |status| {
            status.started_at = started * 1_000_000_000;
            status.finished_at = 5_000_000_000;
            status.exit_code = code;
            status.reason = reason.into();
        });
        match exited.state {
            ContainerState::Exited { started_at, finished_at, exit_code, reason, .. } => {
                (started_at, finished_at, exit_code, reason)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end(0, "Completed", 2), (second(2), second(5), 0, None));
    assert_eq!(end(1, "Error", 2), (second(2), second(5), 1, None));
    assert_eq!(end(137, "OOMKilled", 2), (second(2), second(5), 137, Some("OOMKilled".into())));
    // It was never started: the time of its making stands in.
    assert_eq!(end(128, "StartError", 0).0, second(1));
    let running = seen(cri::ContainerState::ContainerRunning, |one| one.started_at = 3_000_000_000);
    assert_eq!(running.state, ContainerState::Running { started_at: second(3) });
    let lost = seen(cri::ContainerState::ContainerUnknown, |_| {});
    assert!(matches!(lost.state, ContainerState::Exited { exit_code: LOST_EXIT_CODE, .. }));
}

#[test]
fn addresses_of_both_families_are_found() {
    let network = cri::PodSandboxNetworkStatus {
        ip: "10.244.1.2".into(),
        additional_ips: vec![cri::PodIp { ip: "fd00::2".into() }],
    };
    let status = cri::PodSandboxStatus { network: Some(network), ..Default::default() };
    let found: Vec<String> =
        sandbox_seen(&status).addresses.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.244.1.2", "fd00::2"]);
    assert!(sandbox_seen(&status).ready);
    // With the node's network there is none.
    assert!(sandbox_seen(&cri::PodSandboxStatus::default()).addresses.is_empty());
}
