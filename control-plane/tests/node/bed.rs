//! A node for a test: folders, cgroups and a runtime on them, and what is looked at afterwards.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use mizzen_control_plane::node::runtime::{
    ContainerConfig, ContainerState, HostsFile, Mount, PodIdentity, Propagation, Runtime, Sandbox,
    SandboxConfig,
    process::{Config, ProcessRuntime, find_cgroup2},
};
use tokio_util::sync::CancellationToken;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A node: folders, a cgroup and a runtime on them.
pub(crate) struct Node {
    folder: tempfile::TempDir,
    /// The node's folder in cgroup2.
    pub(crate) cgroup: PathBuf,
    pub(crate) runtime: ProcessRuntime,
    stop: CancellationToken,
}

impl Node {
    pub(crate) async fn new() -> Self {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mzt-node-{}-{serial}", std::process::id());
        let cgroup = find_cgroup2().expect("a cgroup2 mount").join(name);
        fs::create_dir(&cgroup).expect("making a cgroup, which needs root");
        let folder = tempfile::tempdir().unwrap();
        for name in ["conf", "bin", "calls", "shared"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let (runtime, stop) = open(folder.path(), &cgroup).await;
        Self { folder, cgroup, runtime, stop }
    }

    /// The node part ends without warning and another starts.
    pub(crate) async fn restart(&mut self) {
        self.stop.cancel();
        (self.runtime, self.stop) = open(self.folder.path(), &self.cgroup).await;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A network whose plugin records its calls and gives the address 10.0.0.9, fd00::9.
    pub(crate) fn install_plugin(&self) {
        let script = format!(
            "#!/bin/sh\ncat > {0}/$CNI_COMMAND.stdin\nenv | grep ^CNI_ | sort > {0}/$CNI_COMMAND.env\n\
             [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[\
             {{\"address\":\"10.0.0.9/32\"}},{{\"address\":\"fd00::9/128\"}}]}}'\nexit 0\n",
            self.path("calls").display()
        );
        let plugin = self.path("bin/fake");
        fs::write(&plugin, script).unwrap();
        fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755)).unwrap();
        let conf = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"fake"}]}"#;
        fs::write(self.path("conf/10-net.conflist"), conf).unwrap();
    }

    pub(crate) async fn container(&self, sandbox: &Sandbox, config: ContainerConfig) -> String {
        let id = self.runtime.create_container(&sandbox.id, &config).await.unwrap();
        self.runtime.start_container(&sandbox.id, &id).await.unwrap();
        id
    }

    /// Waits until the container's state is one that `wanted` takes.
    pub(crate) async fn until<T>(
        &self,
        sandbox: &Sandbox,
        id: &str,
        wanted: impl Fn(&ContainerState) -> Option<T>,
    ) -> T {
        let mut changes = self.runtime.changes(&sandbox.id).unwrap();
        let found = async {
            loop {
                changes.borrow_and_update();
                let containers = self.runtime.containers(&sandbox.id).await.unwrap();
                let container = containers.iter().find(|container| container.id == id).unwrap();
                if let Some(found) = wanted(&container.state) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found).await.expect("the wanted state")
    }

    pub(crate) async fn exit_code(&self, sandbox: &Sandbox, id: &str) -> i32 {
        self.until(sandbox, id, |state| match state {
            ContainerState::Exited { exit_code, .. } => Some(*exit_code),
            _ => None,
        })
        .await
    }

    /// Runs a script as the container `main` of a pod to its end, which is 0; what it wrote.
    pub(crate) async fn said(&self, sandbox: &Sandbox, config: ContainerConfig) -> String {
        let id = self.container(sandbox, config).await;
        let code = self.exit_code(sandbox, &id).await;
        let log = self.log(&sandbox.pod.name);
        assert_eq!(code, 0, "{log}\n{:?}", self.runtime.containers(&sandbox.id).await);
        log
    }

    /// What a container has written so far to its standard output.
    pub(crate) fn log(&self, name: &str) -> String {
        let folder = self.path(&format!("logs/default_{name}_uid-{name}/main"));
        let text = fs::read_to_string(folder.join("0.log")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .fold(String::new(), |all, line| all + line + "\n")
    }

    pub(crate) fn assert_nothing_left(&self) {
        for folder in ["sandboxes", "netns", "pods", "logs"] {
            let left: Vec<_> = fs::read_dir(self.path(folder)).unwrap().flatten().collect();
            assert!(left.is_empty(), "{folder}: {left:?}");
        }
        for cgroup in self.cgroups() {
            let pods: Vec<_> = fs::read_dir(cgroup.join("pods"))
                .map(|entries| entries.flatten().filter(|e| e.path().is_dir()).collect())
                .unwrap_or_default();
            assert!(pods.is_empty(), "{pods:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.folder.path().display().to_string();
        assert!(!mounts.contains(&folder), "{mounts}");
    }
}

impl Node {
    /// The node's folder in every hierarchy that there is.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let name = self.cgroup.file_name().unwrap();
        let of_line = |line: &str| {
            let mut fields = line.split(' ').skip(1);
            let (mount, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then(|| Path::new(mount).join(name))
        };
        mounts.lines().filter_map(of_line).filter(|folder| folder.exists()).collect()
    }

    /// A value of the container `main` in its first attempt, in whatever hierarchy has it.
    pub(crate) fn cgroup_value(&self, pod: &str, files: &[&str]) -> Option<String> {
        let below = format!("pods/poduid-{pod}/main.0");
        let mut paths = self.cgroups().into_iter().map(|root| root.join(&below));
        let read =
            |path: PathBuf| files.iter().find_map(|file| fs::read_to_string(path.join(file)).ok());
        paths.find_map(read).map(|text| text.trim().to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Also after a failed assertion.
        self.stop.cancel();
        let _gone = fs::write(self.cgroup.join("cgroup.kill"), "1");
        for cgroup in self.cgroups() {
            for _ in 0..200 {
                if remove_cgroups(&cgroup).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        for target in targets.filter(|target| target.starts_with(self.folder.path())) {
            let _gone = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn remove_cgroups(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path())?;
    }
    fs::remove_dir(path)
}

async fn open(folder: &Path, cgroup: &Path) -> (ProcessRuntime, CancellationToken) {
    let stop = CancellationToken::new();
    let config = Config {
        program: env!("CARGO_BIN_EXE_mizzen-control-plane").into(),
        state_dir: folder.to_owned(),
        volume_dir: folder.join("volumes"),
        cgroup_root: cgroup.to_owned(),
        cni_conf_dir: folder.join("conf"),
        cni_bin_dir: folder.join("bin"),
    };
    (ProcessRuntime::open(config, stop.clone()).await.unwrap(), stop)
}

pub(crate) fn pod(name: &str, host_network: bool) -> SandboxConfig {
    let uid = format!("uid-{name}");
    SandboxConfig {
        pod: PodIdentity { namespace: "default".into(), name: name.into(), uid },
        attempt: 0,
        hostname: (!host_network).then(|| name.to_owned()),
        host_network,
        host_ipc: false,
        host_pid: false,
        share_processes: false,
        sysctls: Vec::new(),
        se_linux: None,
        port_mappings: Vec::new(),
        annotations: BTreeMap::new(),
        resolv_conf: "nameserver 10.96.0.10\nsearch default.svc.cluster.local\n".into(),
        hosts: HostsFile {
            head: "127.0.0.1\tlocalhost\n".into(),
            own_names: vec![name.to_owned()],
            aliases: Vec::new(),
        },
    }
}

pub(crate) fn shell(script: &str) -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        attempt: 0,
        image: "none".into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        args: Vec::new(),
        env: vec![("GREETING".into(), "good day".into())],
        working_dir: Some("/etc".into()),
        ..ContainerConfig::default()
    }
}

/// Waits until the container `main` of a pod has written this.
pub(crate) async fn wait_for_log(node: &Node, pod: &str, wanted: &str) {
    for _ in 0..1000 {
        if node.log(pod) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the log is {:?}", node.log(pod));
}

/// A folder or file of the node in a container.
pub(crate) fn mount(host_path: &Path, container_path: &str) -> Mount {
    Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        volume_path: host_path.into(),
        read_only: false,
        propagation: Propagation::Private,
    }
}
