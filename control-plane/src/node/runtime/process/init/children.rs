//! The processes of a pod, as its init sees them: containers, executed commands, and orphans.

mod spawn;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use nix::{
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use self::spawn::{Spawned, spawn};
use super::{
    super::{
        enter::Place,
        wire::{Exit, OUTPUT_MAX, Process, Program, Reply, Start},
    },
    by_descriptor,
    log::{Log, Stream},
};

/// The exit code of what could not be started.
const START_ERROR: i32 = 128;
/// Commands executed at a time.
const EXECS_MAX: usize = 32;
/// Octets that are kept of why a program could not be started.
const REASON_MAX: usize = 4096;

/// All children.
pub(super) struct Children {
    /// The pod's cgroup folder.
    cgroup: File,
    /// The machine's mount namespace.
    machine: OwnedFd,
    containers: BTreeMap<String, Container>,
    execs: Vec<Exec>,
    outputs: Vec<Output>,
    /// Answers that are due, by connection.
    replies: Vec<(u64, Reply)>,
    revision: u64,
}

struct Container {
    pid: Option<Pid>,
    cgroup: String,
    process: Process,
    /// The connection that waits for its program to run; `None` where it does.
    starting: Option<u64>,
    /// Why its program cannot run.
    reason: Vec<u8>,
    /// Its mount namespace, while it runs.
    root: Option<File>,
}

struct Exec {
    pid: Pid,
    /// The connection that waits for it.
    token: u64,
    output: Vec<u8>,
    /// Why it cannot run.
    reason: Vec<u8>,
}

/// A pipe that a process writes to.
struct Output {
    pipe: File,
    pending: Vec<u8>,
    sink: Sink,
}

enum Sink {
    Log(Stream, Log),
    Exec(Pid),
    /// What goes wrong on the way to the program.
    Report(Pid),
}

impl Children {
    /// No children yet; `cgroup` is the opened folder of the pod's cgroup, `machine` the machine's
    /// mount namespace.
    pub(super) fn new(cgroup: File, machine: OwnedFd) -> Self {
        let (containers, execs, outputs) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { cgroup, machine, containers, execs, outputs, replies: Vec::new(), revision: 0 }
    }

    /// Grows with every change of what [`Self::processes`] gives.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The containers' processes, as far as their programs run or have ended.
    pub(super) fn processes(&self) -> Vec<Process> {
        let known = self.containers.values().filter(|container| container.starting.is_none());
        known.map(|container| container.process.clone()).collect()
    }

    /// The answers that have become due.
    pub(super) fn replies(&mut self) -> Vec<(u64, Reply)> {
        std::mem::take(&mut self.replies)
    }

    /// The pipes to wait for, in the order that [`Self::copy_output`] counts them.
    pub(super) fn outputs(&self) -> Vec<BorrowedFd<'_>> {
        self.outputs.iter().map(|output| output.pipe.as_fd()).collect()
    }

    /// Starts a container's process, and tells the connection `token` when its program runs; what
    /// fails is a process that ended with [`START_ERROR`].
    pub(super) fn start(&mut self, start: Start, token: u64) {
        if self.containers.contains_key(&start.container) {
            self.replies.push((token, Reply::Done));
            return;
        }
        let process = Process {
            container: start.container.clone(),
            started_at: Timestamp::now(),
            exit: None,
        };
        let mut container = Container {
            pid: None,
            cgroup: start.program.cgroup.clone(),
            process,
            starting: Some(token),
            reason: Vec::new(),
            root: None,
        };
        match spawn(&start.program, Place::New(&start.root), &self.machine) {
            Ok(Spawned { pid, report, stdout, stderr }) => {
                container.pid = Some(pid);
                self.attend(report, Sink::Report(pid));
                for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
                    self.attend(pipe, Sink::Log(stream, Log::open(&start.log, start.log_max)));
                }
            }
            Err(error) => {
                container.starting = None;
                container.process.exit = Some(not_started(format!("{error:#}")));
                self.revision += 1;
                self.replies.push((token, Reply::Done));
            }
        }
        self.containers.insert(start.container, container);
    }

    /// Runs a command in a container for the connection `token`.
    pub(super) fn exec(&mut self, program: &Program, token: u64) -> anyhow::Result<()> {
        anyhow::ensure!(self.execs.len() < EXECS_MAX, "too many commands run in this pod");
        let container = self.containers.get(&program.container);
        let root = container.and_then(|container| container.root.as_ref());
        let root = root.context("the container does not run")?;
        let spawned = spawn(program, Place::Of(root), &self.machine)?;
        let pid = spawned.pid;
        self.attend(spawned.report, Sink::Report(pid));
        for pipe in [spawned.stdout, spawned.stderr] {
            self.attend(pipe, Sink::Exec(pid));
        }
        self.execs.push(Exec { pid, token, output: Vec::new(), reason: Vec::new() });
        Ok(())
    }

    fn attend(&mut self, pipe: File, sink: Sink) {
        self.outputs.push(Output { pipe, pending: Vec::new(), sink });
    }

    /// The way to a program is over: where nothing went wrong, it runs.
    fn arrived(&mut self, pid: Pid) {
        let mut all = self.containers.values_mut();
        let Some(container) = all.find(|container| container.pid == Some(pid)) else { return };
        if container.reason.is_empty()
            && let Some(token) = container.starting.take()
        {
            container.process.started_at = Timestamp::now();
            // Gone where it has ended already.
            container.root = File::open(format!("/proc/{pid}/ns/mnt")).ok();
            self.revision += 1;
            self.replies.push((token, Reply::Done));
        }
    }

    /// Kills the commands of a connection that is gone.
    pub(super) fn abandon(&mut self, token: u64) {
        for exec in self.execs.iter().filter(|exec| exec.token == token) {
            // It leads its session; what it started is in its process group.
            let _gone_already = killpg(exec.pid, Signal::SIGKILL);
        }
    }

    /// Sends a signal to a container's process, if it still runs.
    pub(super) fn signal(&mut self, container: &str, signal: i32) -> anyhow::Result<()> {
        let signal =
            Signal::try_from(signal).with_context(|| format!("{signal} is not a signal"))?;
        let Some(known) = self.containers.get(container) else { return Ok(()) };
        if let (Some(pid), None) = (known.pid, &known.process.exit) {
            // Not reaped yet, so the number cannot have been given to another process.
            kill(pid, signal).with_context(|| format!("sending {signal} to {container}"))?;
        }
        Ok(())
    }

    /// Forgets a container and kills what it left.
    pub(super) fn forget(&mut self, container: &str) {
        if let Some(known) = self.containers.remove(container) {
            self.revision += 1;
            if let Some(pid) = known.pid {
                // Not in its cgroup yet, maybe.
                let _gone_already = kill(pid, Signal::SIGKILL);
            }
            self.clear_cgroup(&known.cgroup);
            let _not_empty_yet = std::fs::remove_dir(self.cgroup_folder(&known.cgroup));
        }
    }

    /// Takes in what ended.
    pub(super) fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Err(nix::Error::EINTR) => continue,
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            self.drain(|sink| matches!(sink, Sink::Report(of) if *of == pid));
            self.arrived(pid);
            if let Some(index) = self.execs.iter().position(|exec| exec.pid == pid) {
                self.drain(|sink| matches!(sink, Sink::Exec(of) if *of == pid));
                let exec = self.execs.swap_remove(index);
                let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
                let reply = if exec.reason.is_empty() {
                    Reply::Executed { exit_code: code, output: text(&exec.output) }
                } else {
                    Reply::Refused { message: text(&exec.reason) }
                };
                self.replies.push((exec.token, reply));
            } else {
                self.ended(pid, code);
            }
        }
    }

    fn ended(&mut self, pid: Pid, code: i32) {
        let mut all = self.containers.values_mut();
        let Some(container) = all.find(|container| container.pid == Some(pid)) else {
            return; // An orphan that only had to be reaped.
        };
        (container.pid, container.root) = (None, None);
        container.process.exit = Some(if container.reason.is_empty() {
            Exit { code, at: Timestamp::now(), start_error: None }
        } else {
            not_started(String::from_utf8_lossy(&container.reason).into_owned())
        });
        let told = container.starting.take().map(|token| (token, Reply::Done));
        self.replies.extend(told);
        let cgroup = container.cgroup.clone();
        self.revision += 1;
        // The container is over with its process, as with any runtime: nothing may linger.
        self.clear_cgroup(&cgroup);
    }

    /// Copies what can be read from the pipes at `indices`.
    pub(super) fn copy_output(&mut self, indices: &[usize]) {
        for &index in indices.iter().rev() {
            if !self.copy(index) {
                self.outputs.swap_remove(index);
            }
        }
    }

    /// Copies the rest of the pipes that `of` names, and lets them go.
    fn drain(&mut self, of: impl Fn(&Sink) -> bool) {
        for index in (0..self.outputs.len()).rev() {
            if of(&self.outputs[index].sink) {
                self.copy(index);
                self.outputs.swap_remove(index);
            }
        }
    }

    /// One bounded read. False at the end of the pipe.
    fn copy(&mut self, index: usize) -> bool {
        let output = &mut self.outputs[index];
        let mut chunk = [0; 16_384];
        let length = match output.pipe.read(&mut chunk) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return true,
            Err(_) => 0,
        };
        match &mut output.sink {
            Sink::Log(stream, log) => {
                output.pending.extend_from_slice(&chunk[..length]);
                log.write(*stream, &mut output.pending, length == 0);
            }
            Sink::Exec(pid) => {
                if let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid == *pid) {
                    keep(&mut exec.output, &chunk[..length], OUTPUT_MAX);
                }
            }
            Sink::Report(pid) => {
                let pid = *pid;
                let mut all = self.containers.values_mut();
                if let Some(one) = all.find(|container| container.pid == Some(pid)) {
                    keep(&mut one.reason, &chunk[..length], REASON_MAX);
                }
                if let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid == pid) {
                    keep(&mut exec.reason, &chunk[..length], REASON_MAX);
                }
                if length == 0 {
                    self.arrived(pid);
                }
            }
        }
        length > 0
    }

    /// Kills what is left in the cgroup. Its folder stays, for what the kernel counted in it.
    fn clear_cgroup(&self, name: &str) {
        // cgroup.kill is of Linux 5.14; before it, leftovers live as long as the pod.
        let _older_kernel = std::fs::write(self.cgroup_folder(name).join("cgroup.kill"), "1");
    }

    fn cgroup_folder(&self, name: &str) -> PathBuf {
        by_descriptor(&self.cgroup).join(name)
    }
}

/// The end of what never ran.
fn not_started(reason: String) -> Exit {
    Exit { code: START_ERROR, at: Timestamp::now(), start_error: Some(reason) }
}

/// Appends as much as there is room for.
fn keep(all: &mut Vec<u8>, more: &[u8], most: usize) {
    let room = most.saturating_sub(all.len());
    all.extend_from_slice(&more[..more.len().min(room)]);
}
