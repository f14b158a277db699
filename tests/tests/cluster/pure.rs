//! The cluster where cgroup2 is all that there is, as on a machine without hierarchies of version 1:
//! this runner once more, in a mount namespace in which nothing else is mounted. Where its own pods'
//! cgroups are, and that they go, is looked at there.
//!
//! A machine that has hierarchies of version 1 too keeps its controllers in those, so nothing can be
//! limited in there: runc is given containers without the limits that nobody could set.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;
use xtask::cluster::{Layout, Runtime, cgroup, down};

use super::{World, bring_up, layout, leftovers};

/// The name of the check.
pub(crate) const NAME: &str = "on_pure_cgroup2_pods_are_below_their_node_and_leave_nothing";
/// What this runner is told that is to run in there.
pub(crate) const ARGUMENT: &str = "--pure-cgroup2";

/// Where all hierarchies are mounted, or the only one.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What is started in the place of runc.
const RUNC: &str = r#"#!/bin/sh
if ! grep -qw memory /sys/fs/cgroup/cgroup.controllers; then
    last=
    for word; do
        [ "$last" = --bundle ] &&
            sed -i -E 's/"(cpu|memory|pids)":\{[^{}]*\}/"\1":{}/g' "$word/config.json"
        last=$word
    done
fi
export PATH="${PATH#*:}"
exec runc "$@"
"#;

/// Runs this runner once more, with that in front of runc.
pub(crate) fn apart() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("mzt-").tempdir()?;
    let runc = folder.path().join("runc");
    fs::write(&runc, RUNC)?;
    fs::set_permissions(&runc, PermissionsExt::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(ARGUMENT).env("PATH", format!("{}:{path}", folder.path().display()));
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}\n{complained}", output.status);
    Ok(())
}

/// What this runner does in there.
pub(crate) fn main() -> Result<()> {
    only_cgroup2()?;
    for runtime in [Runtime::Process, Runtime::Containerd] {
        let layout = Layout { name: "pure".into(), subnet: (32, 0), ..layout(runtime) };
        let layout = Layout { dir: layout.dir.with_file_name("test-cluster-pure"), ..layout };
        let before = leftovers::cni_results();
        let checked = bring_up(&layout).and_then(|world| below_their_nodes(&world));
        let removed = down::down(&layout).and_then(|()| leftovers::none(&layout, &before));
        checked.and(removed).with_context(|| format!("on the runtime {}", runtime.name()))?;
    }
    Ok(())
}

/// Leaves this process and all that it starts one hierarchy, and everybody else what they have.
fn only_cgroup2() -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let cgroups: Vec<_> = targets.filter(|target| Path::new(target).starts_with(CGROUPS)).collect();
    for target in cgroups.into_iter().rev() {
        umount2(target, MntFlags::MNT_DETACH)?;
    }
    mount(Some("cgroup2"), CGROUPS, Some("cgroup2"), MsFlags::empty(), none)?;
    ensure!(cgroup::mounts_v1().is_empty(), "a hierarchy of version 1 is still mounted");
    ensure!(cgroup::mount_point()? == Path::new(CGROUPS), "cgroup2 is mounted elsewhere");
    Ok(())
}

/// Every pod of `hello` has its processes in its cgroup, which is below its node's, and in no other.
fn below_their_nodes(world: &World) -> Result<()> {
    let list = world.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dhello")?;
    let pods = list["items"].as_array().context("no pods")?;
    ensure!(!pods.is_empty(), "there are no pods");
    for pod in pods {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (uid, node) = (text("/metadata/uid"), text("/spec/nodeName"));
        let id = text("/status/containerStatuses/0/containerID");
        let id = id.rsplit('/').next().unwrap_or_default();
        let folder = cgroup::node_dir(&world.layout, node)?.join("pods").join(format!("pod{uid}"));
        let servers: Vec<_> =
            cgroup::processes(&folder).into_iter().filter(|pid| is_server(*pid)).collect();
        ensure!(!servers.is_empty(), "no server of {uid} is in {}", folder.display());
        let elsewhere = folders_of(Path::new(CGROUPS), &[uid, id])
            .into_iter()
            .find(|found| !found.starts_with(&folder));
        if let Some(elsewhere) = elsewhere {
            bail!("the pod {uid} of {node} has the cgroup {}", elsewhere.display());
        }
    }
    Ok(())
}

/// Whether a process is a container of `hello`.
fn is_server(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains("hello")
}

/// The cgroups whose names have one of `words` that has any letters.
fn folders_of(root: &Path, words: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if words.iter().any(|word| !word.is_empty() && name.contains(word)) {
                found.push(entry.path());
            }
            found.extend(folders_of(&entry.path(), words));
        }
    }
    found
}
