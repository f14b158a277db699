//! A pod's cgroup in cgroup2, below the node's subtree. It is there so that the node's socket programs
//! see the pod, and to end a pod whole; what limits containers is in [`super::limits`].

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// For how long a cgroup whose processes were killed may still be busy.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts at removing one.
const EMPTY_RETRY: Duration = Duration::from_millis(10);

/// A pod's cgroup could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the cgroup {}", path.display())]
pub(super) struct CgroupError {
    /// What was tried.
    pub operation: &'static str,
    /// Which cgroup.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl CgroupError {
    /// For `map_err`: says what was tried with which cgroup.
    pub(super) fn of(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { operation, path, source }
    }
}

/// The folder of all pods' cgroups, below `root`.
pub(super) fn pods(root: &Path) -> PathBuf {
    root.join("pods")
}

/// The cgroup of a pod, below `root`.
pub(super) fn path(root: &Path, pod_uid: &str) -> PathBuf {
    pods(root).join(format!("pod{pod_uid}"))
}

/// Makes it; success where it is there.
pub(super) fn create(path: &Path) -> Result<(), CgroupError> {
    std::fs::create_dir_all(path).map_err(CgroupError::of("making", path))
}

/// Kills every process in it and below (cgroup.kill, Linux 5.14; before it, processes that
/// escaped their sandbox stay, and with them the cgroup).
pub(super) fn kill(path: &Path) {
    let _absent_or_older_kernel = std::fs::write(path.join("cgroup.kill"), "1");
}

/// Removes it with what is below; success where it is not there.
pub(super) async fn remove(path: &Path) -> Result<(), CgroupError> {
    let begun = tokio::time::Instant::now();
    loop {
        match remove_once(path) {
            Ok(()) => return Ok(()),
            // The kernel lets go of killed processes a moment later.
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < EMPTY_TIMEOUT =>
            {
                tokio::time::sleep(EMPTY_RETRY).await;
            }
            Err(error) => return Err(CgroupError::of("removing", path)(error)),
        }
    }
}

fn remove_once(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_once(&entry.path())?;
        }
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// The mount point of the cgroup2 hierarchy, for a node part that was not told its cgroup.
pub fn find_cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    cgroup2_of(&mounts).map(PathBuf::from)
}

fn cgroup2_of(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let target = fields.next()?;
        (fields.next()? == "cgroup2").then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_on_hybrid_and_on_pure_machines() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_of(hybrid), Some("/sys/fs/cgroup/unified"));
        let pure = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(cgroup2_of(pure), Some("/sys/fs/cgroup"));
        assert_eq!(cgroup2_of("cgroup2 /mnt tmpfs rw 0 0\n"), None);
    }
}
