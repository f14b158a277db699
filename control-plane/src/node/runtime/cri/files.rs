//! The files that the node part keeps beside a container runtime: by `pods/<namespace>_<name>.json`
//! tools enter a pod, as with the process runtime; `etc/<sandbox>` has its hosts and resolv.conf.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{super::Sandbox, sub_paths::SubPaths};

const ENTRY: &str = "entry.json";

/// The folder, and where pods have their cgroups.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    logs: PathBuf,
    cgroup_root: PathBuf,
    sub_paths: SubPaths,
}

/// How to enter a pod.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// The process that holds its namespaces.
    pid: i64,
    /// Its network namespace.
    netns: PathBuf,
    /// A cgroup below the pod's, for processes that are not its own.
    cgroup: PathBuf,
    /// The pod's uid.
    uid: String,
    /// Folder with its hosts and resolv.conf: the pod's root file system is an image's.
    etc: PathBuf,
    /// Where this is published.
    path: PathBuf,
}

impl Files {
    /// Makes the folders.
    pub(super) fn open(dir: PathBuf, cgroup_root: PathBuf) -> anyhow::Result<Self> {
        for folder in ["etc", "pods", "logs"] {
            let path = dir.join(folder);
            fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        }
        let logs = dir.join("logs");
        let sub_paths = SubPaths::of(&dir);
        Ok(Self { dir, logs, cgroup_root, sub_paths })
    }

    /// Where parts of volumes are bound for the runtime.
    pub(super) fn sub_paths(&self) -> &SubPaths {
        &self.sub_paths
    }

    /// The folder of all logs.
    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    fn etc(&self, sandbox: &str) -> PathBuf {
        self.dir.join("etc").join(sandbox)
    }

    /// Says how to enter the sandbox whose process is `pid`.
    pub(super) fn publish(
        &self,
        sandbox: &Sandbox,
        pid: i64,
        resolv_conf: &str,
    ) -> anyhow::Result<()> {
        let etc = self.etc(&sandbox.id);
        let cgroup = self.cgroup_root.join("pods").join(format!("pod{}", sandbox.pod.uid));
        let name = format!("{}_{}.json", sandbox.pod.namespace, sandbox.pod.name);
        let entry = Entry {
            pid,
            netns: format!("/proc/{pid}/ns/net").into(),
            cgroup: cgroup.join("exec"),
            uid: sandbox.pod.uid.clone(),
            path: self.dir.join("pods").join(name),
            etc,
        };
        fs::create_dir_all(&entry.etc)
            .with_context(|| format!("making {}", entry.etc.display()))?;
        let text = serde_json::to_vec_pretty(&entry)?;
        replace(&entry.etc.join("resolv.conf"), resolv_conf.as_bytes())?;
        replace(&entry.etc.join(ENTRY), &text)?;
        replace(&entry.path, &text)
    }

    /// Withdraws the entry, unless a later pod of the same name has put its own there.
    pub(super) fn withdraw(&self, sandbox: &str) -> anyhow::Result<()> {
        let Some(entry) = read(&self.etc(sandbox).join(ENTRY)) else { return Ok(()) };
        // Whoever was in there has ended: the runtime ended the pod's processes, and tools' own go
        // with what they looked at.
        let _in_use_or_absent = fs::remove_dir(&entry.cgroup);
        match read(&entry.path) {
            Some(published) if published.pid == entry.pid => remove_file(&entry.path),
            _ => Ok(()),
        }
    }

    /// Removes what is kept of a sandbox, and its logs.
    pub(super) fn remove(&self, sandbox: &str, logs: Option<&Path>) -> anyhow::Result<()> {
        self.sub_paths.release_all(sandbox)?;
        let pod_cgroup = read(&self.etc(sandbox).join(ENTRY))
            .and_then(|entry| entry.cgroup.parent().map(Path::to_owned));
        for folder in logs.into_iter().chain([self.etc(sandbox).as_path()]) {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", folder.display()));
                }
                _ => {}
            }
        }
        if let Some(cgroup) = pod_cgroup {
            remove_cgroup(&cgroup);
        }
        Ok(())
    }

    /// Where a container of the sandbox may say why it ended.
    pub(super) fn termination(&self, sandbox: &str, name: &str, attempt: u32) -> PathBuf {
        self.etc(sandbox).join("termination").join(format!("{name}-{attempt}"))
    }

    /// Writes the pod's /etc/hosts, and says where it is.
    pub(super) fn write_hosts(&self, sandbox: &str, text: &str) -> anyhow::Result<PathBuf> {
        let etc = self.etc(sandbox);
        fs::create_dir_all(&etc).with_context(|| format!("making {}", etc.display()))?;
        let path = etc.join("hosts");
        // In place where it is the same: containers that run have it mounted.
        if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(path)
    }
}

/// The pod's cgroup in each hierarchy: the runtime removes those of containers only.
fn remove_cgroup(cgroup2: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let roots = cgroup_mounts(&mounts);
    let Some(relative) = roots.iter().find_map(|root| cgroup2.strip_prefix(root).ok()) else {
        return;
    };
    for root in &roots {
        // One that is in use or absent is not ours to force.
        let _gone = fs::remove_dir(Path::new(root).join(relative));
    }
}

/// The mount points of all cgroup hierarchies, the deepest first.
fn cgroup_mounts(mounts: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| target.to_owned())
    };
    let mut targets: Vec<String> = mounts.lines().filter_map(of_line).collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.len()));
    targets
}

/// The process that holds a sandbox's namespaces, from what the runtime tells when asked for all.
pub(super) fn pid_of(info: &HashMap<String, String>) -> Option<i64> {
    let info: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    info.get("pid")?.as_i64().filter(|&pid| pid > 0)
}

fn read(path: &Path) -> Option<Entry> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// A reader sees the old text or the new.
fn replace(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("writing {}", path.display()))
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, uid: &str) -> Sandbox {
        Sandbox {
            id: id.into(),
            pod: crate::node::runtime::PodIdentity {
                namespace: "default".into(),
                name: "web".into(),
                uid: uid.into(),
            },
            attempt: 0,
            ready: true,
            addresses: Vec::new(),
            created_at: k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_later_pod_of_the_same_name_keeps_its_entry() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("s"), "/nowhere/node-1".into()).unwrap();
        let path = dir.path().join("s/pods/default_web.json");
        files.publish(&sandbox("a", "1"), 10, "nameserver 10.96.0.10\n").unwrap();
        assert_eq!(read(&path).unwrap().uid, "1");
        files.publish(&sandbox("b", "2"), 11, "").unwrap();
        files.withdraw("a").unwrap();
        assert_eq!(read(&path).unwrap().uid, "2");
        files.withdraw("b").unwrap();
        assert!(!path.exists());
        files.remove("a", None).unwrap();
        files.remove("b", None).unwrap();
        files.remove("b", None).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("s/etc")).unwrap().count(), 0);
    }

    #[test]
    fn every_hierarchy_of_a_hybrid_machine_is_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup_mounts(mounts), ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu"]);
    }

    #[test]
    fn the_process_is_found_in_what_the_runtime_tells() {
        let info = |text: &str| HashMap::from([("info".to_owned(), text.to_owned())]);
        assert_eq!(pid_of(&info(r#"{"pid": 42, "processStatus": "running"}"#)), Some(42));
        for odd in ["", "{}", r#"{"pid": 0}"#, r#"{"pid": "x"}"#] {
            assert_eq!(pid_of(&info(odd)), None, "{odd}");
        }
        assert_eq!(pid_of(&HashMap::new()), None);
    }
}
