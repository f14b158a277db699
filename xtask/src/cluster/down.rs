//! Removing everything that `up` made, whatever state it is in: goes on after an error, and says
//! at the end all that could not be removed.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Layout, cgroup, containerd, network, process};
use crate::invoke;

/// Removes processes, namespaces, cgroups, pins, mounts and files of the cluster.
pub fn down(layout: &Layout) -> Result<()> {
    let shim_sockets = containerd::shim_sockets(layout);
    let cni_results = containerd::cni_results(layout);
    let steps: [(&str, &dyn Fn() -> Result<()>); 8] = [
        ("processes", &|| process::end_all(layout)),
        ("pods", &|| end_pods(layout)),
        ("mounts", &|| unmount_below(&layout.run_dir()).and(unmount_below(&layout.dir))),
        ("sockets", &|| containerd::remove_sockets(&shim_sockets)),
        ("results of CNI plugins", &|| containerd::remove_files(&cni_results)),
        ("network namespaces", &|| network::remove(layout)),
        ("BPF pins", &|| remove_pins(layout)),
        ("files", &|| remove_dir(&layout.run_dir()).and(remove_dir(&layout.dir))),
    ];
    let mut failures: Vec<String> = Vec::new();
    for (what, remove) in steps {
        if let Err(error) = remove() {
            failures.push(format!("{what}: {error:#}"));
        }
    }
    // Last: a cgroup can go only after its programs are detached and its processes are gone.
    let of_version_1 = cgroup::mounts_v1().into_iter().map(|mount| mount.join(layout.prefix()));
    for dir in cgroup::cluster_dir(layout).into_iter().chain(of_version_1) {
        if let Err(error) = cgroup::remove(&dir) {
            failures.push(format!("cgroups: {error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("could not remove everything:\n  {}", failures.join("\n  "));
    }
    Ok(())
}

/// Pods outlive the node part. Whatever lives in the cluster's cgroups is the cluster's.
fn end_pods(layout: &Layout) -> Result<()> {
    let dir = cgroup::cluster_dir(layout)?;
    for _attempt in 0..400 {
        let left = cgroup::processes(&dir);
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            // It may have ended since the look.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("processes below {} do not end: {:?}", dir.display(), cgroup::processes(&dir))
}

fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("can't read the mounts")?;
    let below: Vec<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(dir))
        .collect();
    // What was mounted last lies on top.
    for path in below.iter().rev() {
        invoke::capture(&mut invoke::command("umount", ["--lazy", path]))?;
    }
    Ok(())
}

fn remove_pins(layout: &Layout) -> Result<()> {
    remove_dir(&layout.bpffs_dir())?;
    let marker = super::bpffs_marker();
    let bpffs = layout.bpffs_dir();
    let root = bpffs.parent().context("the pins' folder has no parent")?;
    if marker.exists() && has_no_pins(root) {
        // An `up` may have been interrupted between the marker and the mount.
        if super::bpffs_is_mounted()? {
            invoke::capture(invoke::command("umount", ["--lazy"]).arg(root))?;
        }
        fs::remove_file(marker)?;
    }
    Ok(())
}

/// Whether nobody pinned anything: a fresh BPF file system already has `maps.debug` and
/// `progs.debug`, iterators of the kernel's own (`kernel/bpf/preload`).
pub fn has_no_pins(bpffs: &Path) -> bool {
    let kernels_own = |name: &std::ffi::OsStr| name == "maps.debug" || name == "progs.debug";
    fs::read_dir(bpffs)
        .is_ok_and(|entries| entries.flatten().all(|entry| kernels_own(&entry.file_name())))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_s_own_entries_are_no_pins() {
        let dir = std::env::temp_dir().join(format!("mizzen-no-pins-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        fs::write(dir.join("maps.debug"), "").expect("a file");
        fs::write(dir.join("progs.debug"), "").expect("a file");
        let fresh = has_no_pins(&dir);
        fs::create_dir(dir.join("another")).expect("a folder");
        let used = has_no_pins(&dir);
        fs::remove_dir_all(&dir).expect("to remove the folder");
        assert!(fresh && !used);
    }
}
