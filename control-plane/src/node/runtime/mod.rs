//! What runs pods. The seam is cut as the CRI has it (sandboxes, containers, images), so that
//! containerd can stand behind it as well as processes in namespaces.
//!
//! Every call is idempotent: it may be made again after a crash of the node part, and succeeds
//! where its work is done already. Stopping and removing what is not there is success.

pub mod cri;
mod masks;
pub mod process;
mod termination;

use std::{collections::BTreeMap, future::Future, net::IpAddr, path::PathBuf, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Which pod something belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodIdentity {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// What a sandbox is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "what a pod shares with its node, each or not")]
pub struct SandboxConfig {
    /// Whose it is.
    pub pod: PodIdentity,
    /// Which sandbox of the pod it is, from 0.
    pub attempt: u32,
    /// Its host name; `None` with the node's UTS namespace.
    pub hostname: Option<String>,
    /// It has the node's network.
    pub host_network: bool,
    /// It has the node's IPC namespace.
    pub host_ipc: bool,
    /// It has the node's process ids.
    pub host_pid: bool,
    /// Its containers see each other's processes.
    pub share_processes: bool,
    /// Kernel settings of its namespaces (`securityContext.sysctls`).
    pub sysctls: Vec<(String, String)>,
    /// Its label for SELinux.
    pub se_linux: Option<SeLinux>,
    /// Ports of the node to forward to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// The pod's annotations: a runtime reads from them what the interface has no words for, as how
    /// much the pod may receive and send.
    pub annotations: BTreeMap<String, String>,
    /// The text of /etc/resolv.conf.
    pub resolv_conf: String,
    /// The text of /etc/hosts, made when the addresses are known.
    pub hosts: HostsFile,
}

/// What /etc/hosts says beside the pod's own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostsFile {
    /// The lines before the pod's own.
    pub head: String,
    /// Names of the pod, the full one first; empty where it has the node's network.
    pub own_names: Vec<String>,
    /// `spec.hostAliases`: an address and its names.
    pub aliases: Vec<(String, Vec<String>)>,
}

/// A port of the node that leads to the pod (CNI capability `portMappings`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the node.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address on the node, all where empty.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty", default)]
    pub host_ip: String,
}

/// A sandbox that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's name for it.
    pub id: String,
    /// Whose it is.
    pub pod: PodIdentity,
    /// Which sandbox of the pod it is, from 0.
    pub attempt: u32,
    /// It runs. Where not, it was stopped, has died, or was never finished.
    pub ready: bool,
    /// The pod's addresses; empty for the node's own network.
    pub addresses: Vec<IpAddr>,
    /// When it was begun.
    pub created_at: Timestamp,
}

/// What a container is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Its name in the pod.
    pub name: String,
    /// How often a container of this name was there before.
    pub attempt: u32,
    /// The image, as the pod names it.
    pub image: String,
    /// The pod's `command`; empty for the image's own.
    pub command: Vec<String>,
    /// The pod's `args`.
    pub args: Vec<String>,
    /// Environment, in order; beside what the runtime itself adds.
    pub env: Vec<(String, String)>,
    /// Working directory, the image's own where unset.
    pub working_dir: Option<String>,
    /// User to run as, the image's own where unset.
    pub run_as_user: Option<u32>,
    /// Group to run as, the image's own where unset.
    pub run_as_group: Option<u32>,
    /// How long the next start of this container has to wait after its end. Kept with the
    /// container, as an annotation, so that the node part can forget it.
    pub backoff: Duration,
    /// The text of /etc/hosts, for runtimes whose sandboxes have no files of their own.
    pub hosts: String,
    /// What of the node's files it sees, and where. The parents come before what is below them.
    pub mounts: Vec<Mount>,
    /// What it may do.
    pub privileges: Privileges,
    /// What it may use.
    pub limits: Limits,
    /// Its standard input is a pipe that stays open.
    pub stdin: bool,
    /// It has a terminal.
    pub tty: bool,
    /// How it may say why it ended.
    pub termination: Termination,
}

/// How a container may say why it ended, for runtimes whose containers have files of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// Where it writes that (`terminationMessagePath`); empty where it has no such file.
    pub path: String,
    /// Where it fails and wrote nothing, the end of its log stands for it.
    pub or_log: bool,
}

/// What a runtime can give to pods beyond what every runtime does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// The node's process ids (`hostPID`), mounts that come back to it (`Bidirectional`), profiles
    /// of the node (seccomp's `Localhost`, AppArmor, SELinux), sysctls, users of their own.
    pub everything: bool,
    /// Limits of processor time.
    pub cpu: bool,
    /// Limits of memory.
    pub memory: bool,
}

impl Abilities {
    /// All of them.
    pub const ALL: Self = Self { everything: true, cpu: true, memory: true };
}

/// A file or folder of the node in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where the container sees it.
    pub container_path: String,
    /// Where it is on the node.
    pub host_path: PathBuf,
    /// The volume that it is a part of, above `host_path`: whatever containers put in there, it
    /// leads to nothing outside.
    #[serde(default)]
    pub volume_path: PathBuf,
    /// It cannot be written to.
    pub read_only: bool,
    /// Which mounts made on one side the other sees.
    pub propagation: Propagation,
}

/// `mountPropagation` of a volume mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// The container sees the node's.
    HostToContainer,
    /// Each sees the other's.
    Bidirectional,
}

/// What a container may do (`securityContext`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "rights, each or not")]
pub struct Privileges {
    /// Everything that the machine can.
    pub privileged: bool,
    /// Capabilities on top of the runtime's own, without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// Capabilities that are taken away; `ALL` stands for all.
    pub drop_capabilities: Vec<String>,
    /// Its root file system cannot be written to.
    pub read_only_root: bool,
    /// No program that it starts may have more rights than it has.
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// What AppArmor lets it do; the runtime's own profile where unset, if the machine has any.
    #[serde(default)]
    pub app_armor: Option<AppArmor>,
    /// Its label for SELinux.
    #[serde(default)]
    pub se_linux: Option<SeLinux>,
    /// Groups beside its own (`fsGroup` and `supplementalGroups`).
    pub groups: Vec<u32>,
    /// All of /proc is shown (`procMount: Unmasked`).
    pub unmasked_proc: bool,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// All.
    #[default]
    Unconfined,
    /// Those of the runtime's own profile.
    RuntimeDefault,
    /// Those of a profile on the node, an absolute path.
    Localhost(PathBuf),
}

/// What AppArmor lets a container do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// Everything.
    Unconfined,
    /// What the runtime's own profile does.
    RuntimeDefault,
    /// What this profile does, which is loaded on the node.
    Localhost(String),
}

/// A label for SELinux; what is empty is the runtime's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeLinux {
    /// The user.
    pub user: String,
    /// The role.
    pub role: String,
    /// The type, which is the domain of a process.
    pub domain: String,
    /// The level.
    pub level: String,
}

/// The period that [`Limits::cpu_quota_us`] is for, in microseconds.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;

/// What a container may use of the machine (`resources`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Weight against others, 1024 for a whole processor; 0 leaves it to the runtime.
    pub cpu_shares: u64,
    /// Microseconds of processor time in each 100 ms; 0 for no limit.
    pub cpu_quota_us: u64,
    /// Bytes of memory; 0 for no limit.
    pub memory_bytes: u64,
    /// How soon it is killed where memory is short, from -1000 (never) to 1000 (first).
    pub oom_score_adj: i32,
}

/// A container that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The runtime's name for it.
    pub id: String,
    /// The sandbox that it is in.
    pub sandbox: String,
    /// Its name in the pod.
    pub name: String,
    /// How often a container of this name was there before.
    pub attempt: u32,
    /// The image that it was made of.
    pub image: String,
    /// See [`ContainerConfig::backoff`].
    pub backoff: Duration,
    /// What it does.
    pub state: ContainerState,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// It was never started.
    Created,
    /// It runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// It has ended.
    Exited {
        /// When it was started.
        started_at: Timestamp,
        /// When it ended.
        finished_at: Timestamp,
        /// Exit code, 128 + signal where a signal ended it.
        exit_code: i32,
        /// A word where the code does not say it all, such as `StartError`.
        reason: Option<String>,
        /// For people.
        message: Option<String>,
    },
}

/// The streams of an executed command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the streams that there are, each or not")]
pub struct Streaming {
    /// It can be written to.
    pub stdin: bool,
    /// What it writes is wanted.
    pub stdout: bool,
    /// What it complains about is wanted.
    pub stderr: bool,
    /// It has a terminal.
    pub tty: bool,
}

/// How an executed command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code, 128 + signal where a signal ended it.
    pub exit_code: i32,
    /// The beginning of what it wrote.
    pub output: String,
}

/// A command did not come to its own end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It ran longer than it may, and was ended.
    #[error("the command took longer than {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The runtime did not run it, or does not say what became of it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// What a container wants of the images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ImageRequest {
    /// The image, as the pod names it.
    pub reference: String,
    /// The container has a `command` of its own.
    pub has_command: bool,
    /// When it is fetched.
    pub pull: PullPolicy,
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// Where it is not there.
    #[default]
    IfNotPresent,
    /// Never: it has to be there.
    Never,
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The runtime's name for it.
    pub id: String,
    /// Whom its containers run as, unless they say otherwise.
    pub user: ImageUser,
}

/// Whom an image says that its containers run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    /// A number; 0 also where it says nothing.
    Id(i64),
    /// A name, which only the image's own files give a number.
    Name(String),
}

/// An image cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    /// What is wrong and what there is instead.
    pub message: String,
}

/// A call of a runtime failed. The cause says with what and why.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}")]
pub struct RuntimeError {
    /// What was tried.
    pub operation: &'static str,
    /// With which sandbox or container.
    pub object: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Whether pods can have a network: `Err` says, for people, why not.
pub type NetworkState = Result<(), String>;

/// Runs pods.
pub trait Runtime: Send + Sync + 'static {
    /// `name://version`, as in `status.nodeInfo.containerRuntimeVersion`.
    fn version(&self) -> String;

    /// What of that which pods may ask for it can give them.
    fn abilities(&self) -> Abilities;

    /// Whether pods can have a network, now and at every change.
    fn network(&self) -> watch::Receiver<NetworkState>;

    /// Makes an image available.
    fn pull_image(
        &self,
        request: &ImageRequest,
    ) -> impl Future<Output = Result<Image, ImageError>> + Send;

    /// The sandboxes of a pod, or all, oldest first; also those that do not run or were left half
    /// made.
    fn sandboxes(
        &self,
        pod_uid: Option<&str>,
    ) -> impl Future<Output = Result<Vec<Sandbox>, RuntimeError>> + Send;

    /// Makes a sandbox with its network and starts it.
    fn run_sandbox(
        &self,
        config: &SandboxConfig,
    ) -> impl Future<Output = Result<Sandbox, RuntimeError>> + Send;

    /// Ends everything in the sandbox and takes its network away.
    fn stop_sandbox(&self, id: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Stops the sandbox and forgets it, with its containers.
    fn remove_sandbox(&self, id: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// A number that changes when anything in the sandbox does; `None` where it is unknown.
    fn changes(&self, sandbox: &str) -> Option<watch::Receiver<u64>>;

    /// The containers of a sandbox.
    fn containers(
        &self,
        sandbox: &str,
    ) -> impl Future<Output = Result<Vec<Container>, RuntimeError>> + Send;

    /// Makes a container and gives its id.
    fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
    ) -> impl Future<Output = Result<String, RuntimeError>> + Send;

    /// Starts a container. A program that cannot be started is a container that has exited.
    fn start_container(
        &self,
        sandbox: &str,
        id: &str,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Asks the container to end, and kills it when `grace` is over.
    fn stop_container(
        &self,
        sandbox: &str,
        id: &str,
        grace: Duration,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Forgets a container that does not run.
    fn remove_container(
        &self,
        sandbox: &str,
        id: &str,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Runs a command in a container and waits for its end.
    fn exec(
        &self,
        sandbox: &str,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> impl Future<Output = Result<ExecOutput, ExecError>> + Send;

    /// Where a command can be had with its streams, as the runtime serves it itself over a
    /// WebSocket; `None` where it does not.
    fn exec_url(
        &self,
        id: &str,
        command: &[String],
        streaming: Streaming,
    ) -> impl Future<Output = Result<Option<String>, RuntimeError>> + Send;
}

impl HostsFile {
    /// The text of /etc/hosts for a pod with these addresses.
    pub fn text(&self, addresses: &[IpAddr]) -> String {
        let mut text = self.head.clone();
        if !self.own_names.is_empty() {
            let names = self.own_names.join("\t");
            text.extend(addresses.iter().map(|address| format!("{address}\t{names}\n")));
        }
        if !self.aliases.is_empty() {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        let aliases = self.aliases.iter();
        text.extend(aliases.map(|(address, names)| format!("{address}\t{}\n", names.join("\t"))));
        text
    }
}
