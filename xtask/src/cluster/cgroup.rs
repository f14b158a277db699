//! The cgroup2 subtree of a cluster: a folder per node, below which all of that node's processes
//! live, so that the node's socket programs see them and no others.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::Layout;

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `…/unified` on a hybrid machine.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("can't read /proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(_, kind)| *kind == "cgroup2")
        .map(|(path, _)| PathBuf::from(path))
        .context("no cgroup2 is mounted; `mount -t cgroup2 none /sys/fs/cgroup/unified` mounts it")
}

/// Where the hierarchies of version 1 are mounted, which container runtimes use beside cgroup2.
pub fn mounts_v1() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup").then(|| path.into())
        })
        .collect()
}

/// The cluster's folder.
pub fn cluster_dir(layout: &Layout) -> Result<PathBuf> {
    Ok(mount_point()?.join(layout.prefix()))
}

/// A node's folder (`--cgroup-root`).
pub fn node_dir(layout: &Layout, node: &str) -> Result<PathBuf> {
    Ok(cluster_dir(layout)?.join(node))
}

/// Makes a folder and those above it.
pub fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("can't make the cgroup {}", dir.display()))
}

/// The processes in a folder and below it.
pub fn processes(dir: &Path) -> Vec<i32> {
    folders(dir)
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
        .flat_map(|procs| procs.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Removes a folder and those below it, deepest first. They must have no processes.
pub fn remove(dir: &Path) -> Result<()> {
    for folder in folders(dir).iter().rev() {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("can't remove the cgroup {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `dir` and every folder below it, parents first.
fn folders(dir: &Path) -> Vec<PathBuf> {
    if !dir.is_dir() {
        return Vec::new();
    }
    let mut found = vec![dir.to_path_buf()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        let children = fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(children.map(|entry| entry.path()).filter(|path| path.is_dir()));
        next += 1;
    }
    found
}
