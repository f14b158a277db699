//! What is on disk about a sandbox, so that the node part and the sandbox's own processes agree,
//! and a node part that starts anew finds or cleans up what the one before it made.
//!
//! `sandbox.json` is written before anything is made: whatever a crash leaves, its name and its
//! parts can be told from it. `init.json` is written when the sandbox runs.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::super::{ContainerConfig, PodIdentity};

const SANDBOX: &str = "sandbox.json";
const INIT: &str = "init.json";
const CONTAINERS: &str = "containers";
const LAYERS: &str = "layers";
const TERMINATION: &str = "termination";
/// The pod's /etc/resolv.conf, in the sandbox's folder.
pub(super) const RESOLV_CONF: &str = "resolv.conf";
/// The pod's /etc/hosts, in the sandbox's folder.
pub(super) const HOSTS: &str = "hosts";

/// What a sandbox is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The sandbox's id, also the CNI container id.
    pub id: String,
    /// Whose it is.
    pub pod: PodIdentity,
    /// Which sandbox of the pod it is, from 0.
    pub attempt: u32,
    /// When it was begun.
    pub created_at: Timestamp,
    /// Its host name; `None` keeps the node's, with the node's UTS namespace.
    pub hostname: Option<String>,
    /// Where its network namespace is bound; `None` for the node's own network.
    pub netns: Option<PathBuf>,
    /// It has the node's IPC namespace.
    pub host_ipc: bool,
    /// Its cgroup, absolute.
    pub cgroup: PathBuf,
    /// Where its containers' logs are.
    pub logs: PathBuf,
    /// The folder of the volumes of all pods.
    #[serde(default)]
    pub volumes: PathBuf,
}

/// A sandbox's init, as it was when it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InitRecord {
    /// Its process id in the node part's namespace.
    pub pid: i32,
    /// When it was started, in clock ticks since boot: tells it from a later owner of its number.
    pub start_ticks: u64,
    /// The pod's addresses, from the CNI result; empty for the node's own network.
    pub addresses: Vec<IpAddr>,
}

/// A container that was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    /// Its id.
    pub id: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// What it is.
    pub config: ContainerConfig,
}

/// A file of a sandbox could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub(super) struct RecordError {
    /// What was tried.
    pub operation: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}

impl RecordError {
    /// For `map_err`: says what was tried with which file.
    pub(super) fn of(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { operation, path, source }
    }
}

impl Record {
    /// Reads the record of the sandbox in `dir`.
    pub(super) fn load(dir: &Path) -> Result<Self, RecordError> {
        load(&dir.join(SANDBOX))
    }

    /// Writes it.
    pub(super) fn save(&self, dir: &Path) -> Result<(), RecordError> {
        save(&dir.join(SANDBOX), self)
    }
}

impl InitRecord {
    /// Reads the record of the sandbox in `dir`, if it ever ran.
    pub(super) fn load(dir: &Path) -> Option<Self> {
        load(&dir.join(INIT)).ok()
    }

    /// Writes it.
    pub(super) fn save(&self, dir: &Path) -> Result<(), RecordError> {
        save(&dir.join(INIT), self)
    }

    /// The record is of no use any more: the sandbox was stopped.
    pub(super) fn remove(dir: &Path) -> Result<(), RecordError> {
        remove_file(&dir.join(INIT))
    }
}

impl ContainerRecord {
    /// The id of the container `name` in its `attempt`.
    pub(super) fn id(sandbox: &str, name: &str, attempt: u32) -> String {
        format!("{sandbox}.{name}.{attempt}")
    }

    /// Reads all records of the sandbox in `dir`. One that is torn counts as never written.
    pub(super) fn load_all(dir: &Path) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(dir.join(CONTAINERS)) else { return Vec::new() };
        let mut all: Vec<Self> =
            entries.flatten().filter_map(|entry| load(&entry.path()).ok()).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Writes it.
    pub(super) fn save(&self, dir: &Path) -> Result<(), RecordError> {
        let folder = dir.join(CONTAINERS);
        create_dir(&folder)?;
        save(&folder.join(format!("{}.json", self.id)), self)
    }

    /// Removes it.
    pub(super) fn remove(dir: &Path, id: &str) -> Result<(), RecordError> {
        remove_file(&dir.join(CONTAINERS).join(format!("{id}.json")))
    }
}

/// Where what a container writes is kept, below the folder of its sandbox.
pub(super) fn layers(dir: &Path, id: &str) -> PathBuf {
    dir.join(LAYERS).join(id)
}

/// The file by which a container may say why it ended.
pub(super) fn termination(dir: &Path, id: &str) -> PathBuf {
    dir.join(TERMINATION).join(id)
}

/// Makes a folder and its parents, for root only.
pub(super) fn create_dir(path: &Path) -> Result<(), RecordError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(RecordError::of("making the folder", path))
}

/// Removes a file; success where it is not there.
pub(super) fn remove_file(path: &Path) -> Result<(), RecordError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RecordError::of("removing", path)(error))
        }
        _ => Ok(()),
    }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let bytes = std::fs::read(path).map_err(RecordError::of("reading", path))?;
    serde_json::from_slice(&bytes)
        .map_err(std::io::Error::from)
        .map_err(RecordError::of("understanding", path))
}

/// Replaces the file as a whole: a reader sees the old text or the new.
pub(super) fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(std::io::Error::from)
        .map_err(RecordError::of("writing", path))?;
    let new = path.with_extension("new");
    std::fs::write(&new, text).map_err(RecordError::of("writing", &new))?;
    std::fs::rename(&new, path).map_err(RecordError::of("renaming to", path))
}
