//! The processes of a cluster: started in their host's namespace and cgroup, written down with
//! their start time, ended by their id and by nothing else.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::{Layout, cgroup};
use crate::invoke;

/// How long a process has to end after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(5);

/// A process that was started.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Started {
    /// `control-plane`, `agent-node-1`, …
    pub name: String,
    /// Its id.
    pub pid: i32,
    /// Its start time in clock ticks since boot: with the id, it names one process for ever.
    pub start_ticks: u64,
}

impl Started {
    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        status_bytes(self.pid, "VmRSS")
    }

    /// CPU time that it has used.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid)
    }
}

/// Memory of a process in bytes, by a field of `/proc/PID/status`.
pub fn status_bytes(pid: i32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .with_context(|| format!("{path} has no {field}"))
}

/// CPU time that a process's threads have used, the kernel's work in their context included.
pub fn cpu_time(pid: i32) -> Result<Duration> {
    let folder = format!("/proc/{pid}/task");
    let mut nanos = 0;
    for task in fs::read_dir(&folder).with_context(|| format!("can't read {folder}"))? {
        // A thread may end between the two looks.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// What to start.
#[derive(Debug)]
pub struct Spec {
    /// Names the process and its log.
    pub name: String,
    /// The network namespace; none is the machine's own.
    pub netns: Option<String>,
    /// The cgroup that it lives in.
    pub cgroup: PathBuf,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment on top of this process's own.
    pub env: Vec<(String, String)>,
}

/// All processes that were started, oldest first.
pub fn started(layout: &Layout) -> Vec<Started> {
    fs::read(state_file(layout))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// The process of this name, where it runs.
pub fn running(layout: &Layout, name: &str) -> Option<Started> {
    started(layout).into_iter().rfind(|process| process.name == name && process.alive())
}

/// Starts it unless it runs already.
pub fn ensure(layout: &Layout, spec: &Spec) -> Result<Started> {
    match running(layout, &spec.name) {
        Some(process) => Ok(process),
        None => start(layout, spec),
    }
}

fn start(layout: &Layout, spec: &Spec) -> Result<Started> {
    cgroup::make(&spec.cgroup)?;
    fs::create_dir_all(layout.log_dir()).context("can't make the folder of the logs")?;
    let log_path = log_file(layout, &spec.name);
    let log = File::options().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("can't open {}", log_path.display()))?;
    // In a session of its own it outlives the terminal that it was started from.
    let line = enter(spec.netns.as_deref(), &spec.cgroup, &spec.argv);
    let mut command = invoke::command("setsid", line);
    command
        .envs(spec.env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let child =
        command.spawn().with_context(|| format!("can't start `{}`", invoke::line(&command)))?;
    let pid = i32::try_from(child.id())?;
    let start_ticks = start_ticks(pid).with_context(|| format!("{} ended at once", spec.name))?;
    let process = Started { name: spec.name.clone(), pid, start_ticks };
    let mut all = started(layout);
    all.retain(|other| other.name != process.name);
    all.push(process.clone());
    write_state(layout, &all)?;
    Ok(process)
}

/// The command line that joins a cgroup and a network namespace and then becomes `argv`.
///
/// `nsenter` and not `ip netns exec`: the latter mounts a fresh /sys over cgroups and bpffs.
pub fn enter(netns: Option<&str>, cgroup: &Path, argv: &[String]) -> Vec<String> {
    // The shell is the process that joins the cgroup; the program takes its place and id.
    let join = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
    let mut line: Vec<String> =
        ["sh", "-c", join, &cgroup.display().to_string()].map(str::to_owned).to_vec();
    if let Some(netns) = netns {
        line.extend(["nsenter", &format!("--net=/run/netns/{netns}"), "--"].map(str::to_owned));
    }
    line.extend_from_slice(argv);
    line
}

/// Ends every process that was started, last first.
pub fn end_all(layout: &Layout) -> Result<()> {
    for process in started(layout).iter().rev() {
        end(process)?;
    }
    match fs::remove_file(state_file(layout)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Ends a process: SIGTERM, and SIGKILL where that is not enough.
pub fn end(process: &Started) -> Result<()> {
    signal(process, Signal::SIGTERM);
    if !wait_gone(process, TERM_LIMIT) {
        signal(process, Signal::SIGKILL);
        if !wait_gone(process, TERM_LIMIT) {
            bail!("{} (process {}) does not end", process.name, process.pid);
        }
    }
    Ok(())
}

/// Ends a process with SIGKILL, as a crash would.
pub fn kill_hard(process: &Started) {
    signal(process, Signal::SIGKILL);
    wait_gone(process, TERM_LIMIT);
}

fn signal(process: &Started, signal: Signal) {
    if process.alive() {
        // It may end between the look and the signal: that is what was wanted.
        let _gone = kill(Pid::from_raw(process.pid), signal);
    }
}

fn wait_gone(process: &Started, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while process.alive() {
        // Where this process is its parent, it stays a zombie until it is waited for.
        let _not_ours = nix::sys::wait::waitpid(
            Pid::from_raw(process.pid),
            Some(nix::sys::wait::WaitPidFlag::WNOHANG),
        );
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// The log of a process.
pub fn log_file(layout: &Layout, name: &str) -> PathBuf {
    layout.log_dir().join(format!("{name}.log"))
}

/// The last lines of a process's log, for an error message.
pub fn log_tail(layout: &Layout, name: &str) -> String {
    let text = fs::read_to_string(log_file(layout, name)).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn state_file(layout: &Layout) -> PathBuf {
    layout.dir.join("processes.json")
}

fn write_state(layout: &Layout, all: &[Started]) -> Result<()> {
    let path = state_file(layout);
    let next = path.with_extension("next");
    fs::write(&next, serde_json::to_vec_pretty(all)?)
        .and_then(|()| fs::rename(&next, &path))
        .with_context(|| format!("can't write {}", path.display()))
}

/// Field 22 of `/proc/PID/stat`; none where there is no such process or it is a zombie. While other
/// threads of a zombie are left, so are its sockets: it is still there.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may hold blanks and brackets: fields are counted from its last bracket.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if state == "X" || (state == "Z" && threads() <= 1) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
