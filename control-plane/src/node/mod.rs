//! The node part (kubelet): registers the node, keeps its Lease, and runs the pods that are
//! bound to it on a [`runtime::Runtime`].
//!
//! ```text
//! API server ──watch pods of this node──> pods ──> a worker per pod ─┐
//!      ▲                                                             │ what is seen
//!      │ status                                                      ▼
//!      └───────────────────────────── pod::state (pure: what to do, what to report)
//!                                                                    │ actions
//!                    runtime (sandboxes, containers), probes  <──────┘
//! ```
//!
//! It uses the API only. Pods outlive it: what runs is found again in the runtime, and what has
//! no pod any more is removed.

mod admission;
mod beneath;
mod inputs;
mod lease;
mod machine;
pub mod pod;
mod pods;
mod probe;
mod register;
mod report;
pub mod runtime;
mod server;
mod static_pods;
mod status;
mod volumes;
mod worker;

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::Context;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::runtime::process::sandbox;
use self::{
    pod::facts::NodeFacts,
    runtime::{
        Runtime,
        cri::{self, CriRuntime},
        process::{self, ProcessRuntime, find_cgroup2},
    },
    worker::{SANDBOXES_AT_A_TIME, Shared},
};
/// The programs of our own images.
pub use mizzen_images as image;

/// `mizzen-control-plane node`: runs the pods of one node.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the node
    #[arg(long, env = "NODE_NAME")]
    pub name: String,
    /// How to reach the API server
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: PathBuf,
    /// An address of the node; the first gives the primary address family (repeatable)
    #[arg(long = "node-ip", value_name = "IP", required = true)]
    pub node_ips: Vec<IpAddr>,
    /// What runs the pods
    #[arg(long, value_enum, default_value = "process")]
    pub runtime: RuntimeKind,
    /// Socket of the container runtime, with `--runtime cri`
    #[arg(
        long,
        value_name = "unix://PATH",
        default_value = "unix:///run/containerd/containerd.sock"
    )]
    pub cri_endpoint: String,
    /// Folder for what is known of pods; on a tmpfs, nothing in it outlives the machine's boot
    #[arg(long, value_name = "DIR", default_value = "/run/mizzen", env = "MIZZEN_STATE_DIR")]
    pub state_dir: PathBuf,
    /// Port for logs of and commands in containers, as of a kubelet; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub port: u16,
    /// Folder of manifests of static pods, which run without the API server too
    #[arg(long, value_name = "DIR")]
    pub static_pod_dir: Option<PathBuf>,
    /// Folder for the volumes of pods; on a disk
    #[arg(long, value_name = "DIR", default_value = "/var/lib/mizzen/volumes")]
    pub volume_dir: PathBuf,
    /// The node's cgroup2 folder, below which its pods are made [default: mizzen below the mount]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Folder of network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Folder of CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// An address of the cluster's DNS (repeatable)
    #[arg(long, value_name = "IP")]
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The disk is short, and the node takes no pods, where less than this share of it is free
    /// (the kubelet's nodefs.available)
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    pub disk_short_percent: u8,
    /// A label of the node (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
}

/// What runs the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RuntimeKind {
    /// Processes in namespaces, with the machine's files in the place of images
    Process,
    /// A container runtime, such as containerd
    Cri,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".to_owned()),
    }
}

/// Runs the node part until `stop`. Pods go on running afterwards.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    match args.runtime {
        RuntimeKind::Process => {
            let runtime = open_processes(&args, stop.clone()).await?;
            run_on(Arc::new(runtime), args, stop).await
        }
        RuntimeKind::Cri => {
            let runtime = open_cri(&args, stop.clone()).await?;
            run_on(Arc::new(runtime), args, stop).await
        }
    }
}

async fn run_on<R: Runtime>(
    runtime: Arc<R>,
    args: Args,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let config = client_config(&args).await?;
    let authorities = config.root_cert.clone().unwrap_or_default();
    let client = kube::Client::try_from(config).context("the kubeconfig cannot be used")?;
    let listener = server::listen(args.port)?;
    let port = listener.local_addr().context("the port that is served on")?.port();
    let server = server::Server {
        runtime: Arc::clone(&runtime),
        logs: args.state_dir.join("logs"),
        identity: server::Identity::new(&args.name, &args.node_ips, &authorities)?,
    };
    let certificate = server.identity.certificate.clone();
    if authorities.is_empty() {
        tracing::warn!(
            "the kubeconfig names no certificate authority: nobody may ask for logs and commands"
        );
    }
    tracing::info!(node = args.name, runtime = runtime.version(), port, "node part started");
    let facts = status::Facts {
        name: args.name.clone(),
        addresses: args.node_ips.clone(),
        runtime_version: runtime.version(),
        state_dir: args.state_dir.clone(),
        disk_short_percent: args.disk_short_percent,
        port,
    };
    let shared = Arc::new(Shared {
        facts: node_facts(&args, runtime.as_ref()),
        sandbox_slots: Arc::new(Semaphore::new(SANDBOXES_AT_A_TIME)),
        client: client.clone(),
        runtime: Arc::clone(&runtime),
    });
    let mut tasks = JoinSet::new();
    // Static pods run before anybody has heard of the node.
    tasks.spawn(pods::follow(shared, args.static_pod_dir.clone(), stop.clone()));
    tasks.spawn(server.run(listener, stop.clone()));
    let own = register::Own { name: &args.name, labels: &args.labels, certificate: &certificate };
    let Some(uid) = register::register(&client, &own, &stop).await else {
        while tasks.join_next().await.is_some() {}
        return Ok(());
    };
    tasks.spawn(lease::keep(client.clone(), args.name.clone(), uid, stop.clone()));
    tasks.spawn(status::keep(client, facts, runtime.network(), stop.clone()));
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task of the node part failed")?;
        anyhow::ensure!(stop.is_cancelled(), "a task of the node part ended unasked");
    }
    Ok(())
}

async fn client_config(args: &Args) -> anyhow::Result<kube::Config> {
    let path = &args.kubeconfig;
    let unusable = || format!("the kubeconfig {} cannot be used", path.display());
    let file = kube::config::Kubeconfig::read_from(path).with_context(unusable)?;
    kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .with_context(unusable)
}

fn node_facts(args: &Args, runtime: &impl Runtime) -> NodeFacts {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let version = runtime.version();
    let name = version.split("://").next().unwrap_or_default();
    NodeFacts {
        name: args.name.clone(),
        runtime: name.to_owned(),
        abilities: runtime.abilities(),
        cpu_millis: machine::cpu_millis(),
        memory_bytes: machine::memory_bytes(),
        volume_dir: args.volume_dir.clone(),
        addresses: args.node_ips.clone(),
        cluster_dns: args.cluster_dns.clone(),
        cluster_domain: args.cluster_domain.clone(),
        resolv_conf: text("/etc/resolv.conf"),
        hosts: text("/etc/hosts"),
    }
}

/// The node's cgroup2 folder, and the mount that it is below.
fn cgroups(args: &Args) -> anyhow::Result<(PathBuf, PathBuf)> {
    let mount =
        find_cgroup2().context("no cgroup2 is mounted: `mount -t cgroup2 none DIR` mounts it")?;
    let root = args.cgroup_root.clone().unwrap_or_else(|| mount.join("mizzen"));
    Ok((root, mount))
}

async fn open_processes(args: &Args, stop: CancellationToken) -> anyhow::Result<ProcessRuntime> {
    let config = process::Config {
        program: std::env::current_exe().context("finding our own program")?,
        state_dir: args.state_dir.clone(),
        volume_dir: args.volume_dir.clone(),
        cgroup_root: cgroups(args)?.0,
        cni_conf_dir: args.cni_conf_dir.clone(),
        cni_bin_dir: args.cni_bin_dir.clone(),
    };
    ProcessRuntime::open(config, stop).await.context("opening the process runtime")
}

async fn open_cri(args: &Args, stop: CancellationToken) -> anyhow::Result<CriRuntime> {
    let (cgroup_root, cgroup_mount) = cgroups(args)?;
    let config = cri::Config {
        endpoint: args.cri_endpoint.clone(),
        state_dir: args.state_dir.clone(),
        cgroup_root,
        cgroup_mount,
    };
    CriRuntime::open(config, stop).await.context("opening the container runtime")
}
