//! What must not be there after `down`.

use std::{collections::BTreeSet, fs};

use anyhow::{Result, ensure};
use xtask::cluster::{Layout, bpffs_marker, cgroup, containerd::CNI_RESULTS, down};

/// What container runtimes remember of their calls of our plugin, those of other clusters too.
pub(crate) fn cni_results() -> BTreeSet<String> {
    let results = fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten();
    let names = results.map(|result| result.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("mizzen-")).collect()
}

/// Fails where anything of the cluster is left.
pub(crate) fn none(layout: &Layout, cni_results_before: &BTreeSet<String>) -> Result<()> {
    for dir in [layout.run_dir(), layout.bpffs_dir(), layout.dir.clone()] {
        ensure!(!dir.exists(), "{} is still there", dir.display());
    }
    // Another cluster's pins keep the file system that either of them mounted.
    let bpffs = layout.bpffs_dir();
    let ours_alone = bpffs.parent().is_some_and(down::has_no_pins);
    ensure!(
        !(bpffs_marker().exists() && ours_alone),
        "the BPF file system that up mounted is still mounted"
    );
    let of_version_1 = cgroup::mounts_v1().into_iter().map(|mount| mount.join(layout.prefix()));
    for cgroup in of_version_1.chain([cgroup::cluster_dir(layout)?]) {
        ensure!(!cgroup.exists(), "the cgroup {} is still there", cgroup.display());
    }
    for link in fs::read_dir("/sys/class/net")?.flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        ensure!(!name.starts_with(&layout.bridge()), "the link {name} is still there");
    }
    for netns in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = netns.file_name().to_string_lossy().into_owned();
        ensure!(!name.starts_with(&layout.prefix()), "the namespace {name} is still there");
    }
    let cni_results: Vec<_> = cni_results().difference(cni_results_before).cloned().collect();
    ensure!(cni_results.is_empty(), "results of our plugin are still there: {cni_results:?}");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for dir in [layout.run_dir(), layout.bpffs_dir(), layout.dir.clone()] {
        let ours = dir.display().to_string();
        ensure!(!mounts.contains(&ours), "mounts below {ours} are still there");
    }
    let binaries = layout.bin_dir.display().to_string();
    for process in fs::read_dir("/proc")?.flatten() {
        let Ok(exe) = fs::read_link(process.path().join("exe")) else { continue };
        let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let folders = [layout.dir.display().to_string(), layout.run_dir().display().to_string()];
        let foreign = ["containerd", "containerd-shim-runc-v2"];
        let started = exe.starts_with(&binaries)
            || exe.file_name().is_some_and(|name| foreign.iter().any(|foreign| name == *foreign));
        let ours = started && folders.iter().any(|folder| line.contains(folder));
        ensure!(!ours, "a process is still there: {line}");
    }
    Ok(())
}
