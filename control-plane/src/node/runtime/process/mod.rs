//! The process runtime: a pod is a set of processes in namespaces of their own (network, PID, UTS,
//! IPC) and a cgroup; each container has a root of its own, which the machine's files take the
//! place of an image in.
//!
//! What a container writes stays in a layer of its own ([`rootfs`]); it has volumes, users and
//! groups, capabilities, a filter of system calls ([`seccomp`]) and limits ([`limits`]). It can read
//! what the machine's users can, and shares the pod's process ids. What a pod asks for beyond that
//! is refused, or named in a warning when the node part takes it up (`node/pod/unenforced.rs`).
//! There are no images: a container runs its `command`, or what the table in
//! [`crate::node::image`] names.
//!
//! ```text
//! node part ── launch (short-lived: cgroup, netns, unshare) ── init (process 1 of the pod)
//!     └────────────── init.sock: start, signal, exec, watch ──────┤
//!                                     enter (becomes the program) ┴── containers
//! ```
//!
//! Init holds the namespaces and the exit codes, so a pod outlives the node part. Everything
//! about a sandbox is in `<state-dir>/sandboxes/<id>`; see [`record`] for what survives a crash.

mod capabilities;
mod cgroup;
mod cni;
mod containers;
mod enter;
mod init;
mod launch;
mod limits;
mod live;
mod machine;
mod mounts;
mod netns;
mod pidfd;
mod readiness;
mod record;
mod rootfs;
pub mod sandbox;
mod seccomp;
mod wire;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::{process::Command, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::cgroup::find_cgroup2;
use self::{
    cni::Attachment,
    launch::Launched,
    limits::Controllers,
    live::Live,
    pidfd::Pidfd,
    record::{HOSTS, InitRecord, RESOLV_CONF, Record, RecordError},
};
use super::{NetworkState, RuntimeError, Sandbox, SandboxConfig};

/// For how long namespaces and init may take to be made.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(20);

/// Where the runtime keeps and finds things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our own binary, `mizzen-control-plane`, which is started as a pod's init and as its images.
    pub program: PathBuf,
    /// Folder of everything that is kept; on a tmpfs, since nothing outlives the machine's boot.
    pub state_dir: PathBuf,
    /// Folder of the volumes of all pods, which no pod sees but its own of.
    pub volume_dir: PathBuf,
    /// The node's cgroup2 folder; pods are made below it.
    pub cgroup_root: PathBuf,
    /// Folder of network configurations.
    pub cni_conf_dir: PathBuf,
    /// Folder of CNI plugins.
    pub cni_bin_dir: PathBuf,
}

/// Pods as processes in namespaces.
#[derive(Debug)]
pub struct ProcessRuntime {
    config: Config,
    network: watch::Receiver<NetworkState>,
    controllers: Controllers,
    /// What is on disk, by sandbox id.
    entries: Mutex<BTreeMap<String, Entry>>,
    tasks: TaskTracker,
}

/// A sandbox, as the disk and its init tell.
#[derive(Clone, Debug)]
struct Entry {
    record: Record,
    addresses: Vec<IpAddr>,
    live: Option<Arc<Live>>,
}

impl ProcessRuntime {
    /// Opens the state folder and takes up the sandboxes that run. Its tasks end with `stop`;
    /// the sandboxes do not.
    pub async fn open(config: Config, stop: CancellationToken) -> Result<Self, RuntimeError> {
        for folder in ["sandboxes", "netns", "pods", "logs"] {
            record::create_dir(&config.state_dir.join(folder))
                .map_err(failed("opening", &config.state_dir.display().to_string()))?;
        }
        let (sender, network) = watch::channel(cni::conf::load(&config.cni_conf_dir).map(drop));
        let tasks = TaskTracker::new();
        tasks.spawn(cni::conf::follow(config.cni_conf_dir.clone(), sender, stop));
        let controllers = Controllers::find(&config.cgroup_root);
        let runtime = Self { config, network, controllers, entries: Mutex::default(), tasks };
        for id in runtime.ids()? {
            runtime.recover(&id).await;
        }
        Ok(runtime)
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("sandboxes").join(id)
    }

    /// The sandboxes on disk, whatever state they are in.
    fn ids(&self) -> Result<Vec<String>, RuntimeError> {
        let folder = self.config.state_dir.join("sandboxes");
        let entries = std::fs::read_dir(&folder)
            .map_err(RecordError::of("listing", &folder))
            .map_err(failed("listing", "sandboxes"))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Takes a sandbox up from disk. A folder without a readable record was never used.
    async fn recover(&self, id: &str) {
        let dir = self.dir(id);
        let record = match Record::load(&dir) {
            Ok(record) => record,
            Err(error) => {
                tracing::info!(sandbox = id, error = chain(&error), "removed a half made sandbox");
                let _again_at_the_next_start = std::fs::remove_dir_all(&dir);
                return;
            }
        };
        let init = InitRecord::load(&dir);
        let live = init.as_ref().and_then(|init| match self.watch(&dir, init) {
            Ok(live) => live,
            Err(error) => {
                tracing::warn!(sandbox = id, %error, "sandbox not taken up");
                None
            }
        });
        if let Some(live) = &live {
            live.heard().await;
        }
        let addresses = init.map(|init| init.addresses).unwrap_or_default();
        self.entries().insert(id.to_owned(), Entry { record, addresses, live });
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: &str) -> Option<Entry> {
        self.entries().get(id).cloned()
    }

    fn live(&self, id: &str) -> Option<Arc<Live>> {
        self.entry(id)?.live
    }

    /// Watches the init of the sandbox in `dir`; `None` where it has ended.
    fn watch(&self, dir: &Path, init: &InitRecord) -> std::io::Result<Option<Arc<Live>>> {
        let Some(process) = Pidfd::open(init.pid, init.start_ticks)? else { return Ok(None) };
        let live = Live::new(dir, process)?;
        self.tasks.spawn(Arc::clone(&live).follow());
        Ok(Some(live))
    }

    fn list(&self, pod_uid: Option<&str>) -> Vec<Sandbox> {
        let mut sandboxes: Vec<Sandbox> = self
            .entries()
            .values()
            .filter(|entry| pod_uid.is_none_or(|uid| entry.record.pod.uid == uid))
            .map(Entry::describe)
            .collect();
        sandboxes.sort_by_key(|sandbox| (sandbox.created_at, sandbox.attempt));
        sandboxes
    }

    async fn run(&self, config: &SandboxConfig) -> Result<Sandbox, RuntimeError> {
        let record = self.plan(config);
        let id = record.id.clone();
        match self.make(&record, config).await {
            Ok(()) => {
                self.entry(&id).map(|entry| entry.describe()).ok_or_else(|| lost("running", &id))
            }
            Err(error) => {
                if let Err(left) = self.remove(&id).await {
                    tracing::warn!(sandbox = id, error = chain(&left), "half a sandbox is left");
                }
                Err(error)
            }
        }
    }

    /// Names everything that a sandbox will consist of.
    fn plan(&self, config: &SandboxConfig) -> Record {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let pod = config.pod.clone();
        let netns = self.config.state_dir.join("netns").join(&id);
        let logs = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        Record {
            netns: (!config.host_network).then_some(netns),
            cgroup: cgroup::path(&self.config.cgroup_root, &pod.uid),
            logs: self.config.state_dir.join("logs").join(logs),
            hostname: config.hostname.clone(),
            attempt: config.attempt,
            host_ipc: config.host_ipc,
            volumes: self.config.volume_dir.clone(),
            created_at: Timestamp::now(),
            pod,
            id,
        }
    }

    /// Makes the sandbox, in an order in which each step can be undone by [`Self::stop`].
    async fn make(&self, record: &Record, config: &SandboxConfig) -> Result<(), RuntimeError> {
        let id = &record.id;
        let dir = self.dir(id);
        record::create_dir(&dir)
            .and_then(|()| record.save(&dir))
            .and_then(|()| record::create_dir(&record.logs))
            .map_err(failed("recording the sandbox", id))?;
        let entry = Entry { record: record.clone(), addresses: Vec::new(), live: None };
        self.entries().insert(id.clone(), entry);
        cgroup::create(&record.cgroup).map_err(failed("making the cgroup of", id))?;
        self.controllers.reach(&record.cgroup);
        let mut addresses = Vec::new();
        if let Some(netns) = &record.netns {
            netns::create(netns).map_err(failed("making the network of", id))?;
            let network = cni::conf::load(&self.config.cni_conf_dir)
                .map_err(cni::CniError::NoConf)
                .map_err(failed("attaching", id))?;
            let attachment = Attachment { dir: &dir, id, pod: &record.pod, netns };
            let asked =
                cni::Asked { ports: &config.port_mappings, annotations: &config.annotations };
            addresses = cni::add(&attachment, network, &self.config.cni_bin_dir, asked)
                .await
                .map_err(failed("attaching", id))?;
        }
        let hosts = config.hosts.text(&addresses);
        for (name, text) in [(HOSTS, &hosts), (RESOLV_CONF, &config.resolv_conf)] {
            let path = dir.join(name);
            std::fs::write(&path, text)
                .map_err(RecordError::of("writing", &path))
                .map_err(failed("writing the files of", id))?;
        }
        let Launched { pid } = self.launch(&dir).await.map_err(failed("starting", id))?;
        let start_ticks = pidfd::start_ticks(pid).ok_or_else(|| lost("starting", id))?;
        let init = InitRecord { pid, start_ticks, addresses };
        init.save(&dir).map_err(failed("recording the sandbox", id))?;
        let live = self.watch(&dir, &init).map_err(failed("watching", id))?;
        if let Some(entry) = self.entries().get_mut(id) {
            (entry.live, entry.addresses) = (live, init.addresses);
        }
        self.publish(record, pid).map_err(failed("publishing", id))
    }

    async fn launch(&self, dir: &Path) -> anyhow::Result<Launched> {
        use anyhow::Context;
        let child = Command::new(&self.config.program)
            .args(["sandbox", "launch", "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.config.program.display()))?;
        let output = tokio::time::timeout(LAUNCH_TIMEOUT, child.wait_with_output())
            .await
            .context("the namespaces were not made in time")?
            .context("waiting for the namespaces to be made")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}", said.trim());
        serde_json::from_slice(&output.stdout).context("what the launch said")
    }

    /// The file by which tools enter the pod: `pods/<namespace>_<name>.json`.
    fn publish(&self, record: &Record, pid: i32) -> Result<(), RecordError> {
        let entry = serde_json::json!({
            "pid": pid,
            "netns": record.netns.clone().unwrap_or_else(|| format!("/proc/{pid}/ns/net").into()),
            "cgroup": record.cgroup.join("exec"),
            "uid": record.pod.uid,
        });
        record::save(&self.entry_path(record), &entry)
    }

    fn entry_path(&self, record: &Record) -> PathBuf {
        let name = format!("{}_{}.json", record.pod.namespace, record.pod.name);
        self.config.state_dir.join("pods").join(name)
    }

    /// Withdraws the entry, unless a later pod of the same name has put its own there.
    fn withdraw(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.entry_path(record);
        let entry = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        match entry {
            Some(entry) if entry["uid"] == record.pod.uid.as_str() => record::remove_file(&path),
            _ => Ok(()),
        }
    }

    async fn stop(&self, id: &str) -> Result<(), RuntimeError> {
        let dir = self.dir(id);
        let Some(Entry { record, live, .. }) = self.entry(id) else { return Ok(()) };
        cgroup::kill(&record.cgroup);
        if let Some(live) = live {
            live.kill().await.map_err(failed("stopping", id))?;
        }
        self.withdraw(&record).map_err(failed("withdrawing", id))?;
        if let Some(netns) = &record.netns {
            let attachment = Attachment { dir: &dir, id, pod: &record.pod, netns };
            cni::delete(&attachment, &self.config.cni_bin_dir)
                .await
                .map_err(failed("detaching", id))?;
            netns::remove(netns).map_err(failed("removing the network of", id))?;
        }
        InitRecord::remove(&dir).map_err(failed("recording the end of", id))
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.stop(id).await?;
        let dir = self.dir(id);
        let Some(Entry { record, .. }) = self.entry(id) else { return Ok(()) };
        let of_version_1 = self.controllers.folders_v1(&record.pod.uid);
        for cgroup in std::iter::once(&record.cgroup).chain(&of_version_1) {
            cgroup::remove(cgroup).await.map_err(failed("removing", id))?;
        }
        for folder in [&record.logs, &dir] {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let error = RecordError::of("removing", folder)(error);
                    return Err(failed("removing", id)(error));
                }
                _ => {}
            }
        }
        self.entries().remove(id);
        Ok(())
    }
}

impl Entry {
    fn describe(&self) -> Sandbox {
        Sandbox {
            id: self.record.id.clone(),
            pod: self.record.pod.clone(),
            attempt: self.record.attempt,
            ready: self.live.as_ref().is_some_and(|live| live.alive()),
            addresses: self.addresses.clone(),
            created_at: self.record.created_at,
        }
    }
}

/// For `map_err`: says what was tried with which sandbox or container.
fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    operation: &'static str,
    object: &str,
) -> impl FnOnce(E) -> RuntimeError + use<E> {
    let object = object.to_owned();
    move |source| RuntimeError { operation, object, source: source.into() }
}

/// A sandbox that is not there, or no longer.
fn lost(operation: &'static str, id: &str) -> RuntimeError {
    failed(operation, id)("the sandbox does not run")
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
