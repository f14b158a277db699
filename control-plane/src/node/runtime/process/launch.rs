//! The stage between the node part and a sandbox's init: a short-lived process that joins the
//! pod's cgroup and network namespace, makes the other namespaces, and starts init in them.
//!
//! It is a process of its own because namespaces belong to threads and process ids to children:
//! the node part, with its many threads, can do neither without harm to itself.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::fd::AsRawFd,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context;
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{dup, sethostname},
};
use serde::{Deserialize, Serialize};

use super::{init, record::Record};

/// Where init writes what goes wrong, in the sandbox's folder.
const INIT_LOG: &str = "init.log";

/// What this stage says on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Launched {
    /// The process id of init, in the node part's namespace.
    pub pid: i32,
}

/// Starts the sandbox in `dir`, prints [`Launched`], and returns while init lives on.
pub(super) fn main(dir: &Path) -> anyhow::Result<()> {
    let record = Record::load(dir)?;
    let cgroup = record.cgroup.join("init");
    std::fs::create_dir_all(&cgroup)
        .and_then(|()| std::fs::write(cgroup.join("cgroup.procs"), "0"))
        .with_context(|| format!("joining the cgroup {}", cgroup.display()))?;
    if let Some(path) = &record.netns {
        let netns = File::open(path)
            .with_context(|| format!("opening the network namespace {}", path.display()))?;
        setns(netns, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
    }
    let machine = File::open("/proc/self/ns/mnt").context("opening our own mount namespace")?;
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    flags.set(CloneFlags::CLONE_NEWIPC, !record.host_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, record.hostname.is_some());
    unshare(flags).context("making the pod's namespaces, which needs root")?;
    if let Some(hostname) = &record.hostname {
        sethostname(hostname).context("setting the pod's host name")?;
    }
    let pid = start_init(dir, &machine)?;
    println!("{}", serde_json::to_string(&Launched { pid })?);
    Ok(())
}

/// Starts init and waits until it can be asked. It is handed the machine's mount namespace, in which
/// the roots of containers are made.
fn start_init(dir: &Path, machine: &File) -> anyhow::Result<i32> {
    let inherited = dup(machine).context("handing the machine's mount namespace over")?;
    let log_path = dir.join(INIT_LOG);
    let log = File::create(&log_path).with_context(|| format!("{}", log_path.display()))?;
    let mut init = Command::new("/proc/self/exe")
        .args(["sandbox", "init", "--dir"])
        .arg(dir)
        .arg("--machine")
        .arg(inherited.as_raw_fd().to_string())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("starting the sandbox's init")?;
    let stdout = init.stdout.take().context("the standard output of init")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("waiting for the sandbox's init")?;
    if line.trim_end() != init::READY {
        let _already_gone = init.kill();
        let status = init.wait()?;
        let said = std::fs::read_to_string(&log_path).unwrap_or_default();
        anyhow::bail!("the sandbox's init ended with {status}: {}", said.trim_end());
    }
    i32::try_from(init.id()).context("a process id out of range")
}
