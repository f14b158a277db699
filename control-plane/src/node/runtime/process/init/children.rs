//! The processes of a pod, as its init sees them: containers, executed commands, and orphans.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, setsid},
};

use super::{
    super::wire::{Exit, OUTPUT_MAX, Process, Program, Reply, Start},
    by_descriptor,
    log::{Log, Stream},
};

/// The exit code of what could not be started.
const START_ERROR: i32 = 128;
/// Commands executed at a time.
const EXECS_MAX: usize = 32;

/// All children.
pub(super) struct Children {
    /// The pod's cgroup folder.
    cgroup: File,
    containers: BTreeMap<String, Container>,
    execs: Vec<Exec>,
    outputs: Vec<Output>,
    revision: u64,
}

struct Container {
    pid: Option<Pid>,
    cgroup: String,
    process: Process,
}

struct Exec {
    pid: Pid,
    /// The connection that waits for it.
    token: u64,
    output: Vec<u8>,
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
}

impl Children {
    /// No children yet; `cgroup` is the opened folder of the pod's cgroup.
    pub(super) fn new(cgroup: File) -> Self {
        let (containers, execs, outputs) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { cgroup, containers, execs, outputs, revision: 0 }
    }

    /// Grows with every change of what [`Self::processes`] gives.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The containers' processes.
    pub(super) fn processes(&self) -> Vec<Process> {
        self.containers.values().map(|container| container.process.clone()).collect()
    }

    /// The pipes to wait for, in the order that [`Self::copy_output`] counts them.
    pub(super) fn outputs(&self) -> Vec<BorrowedFd<'_>> {
        self.outputs.iter().map(|output| output.pipe.as_fd()).collect()
    }

    /// Starts a container's process; what fails is a process that ended with [`START_ERROR`].
    pub(super) fn start(&mut self, start: Start) {
        if self.containers.contains_key(&start.container) {
            return;
        }
        self.revision += 1;
        let started_at = Timestamp::now();
        let spawned = self.spawn(&start.program, |stream| {
            Sink::Log(stream, Log::open(&start.log, start.log_max))
        });
        let (pid, exit) = match spawned {
            Ok(pid) => (Some(pid), None),
            Err(error) => {
                let start_error = Some(format!("{error:#}"));
                (None, Some(Exit { code: START_ERROR, at: Timestamp::now(), start_error }))
            }
        };
        let process = Process { container: start.container.clone(), started_at, exit };
        let container = Container { pid, cgroup: start.program.cgroup, process };
        self.containers.insert(start.container, container);
    }

    /// Runs a command for the connection `token`.
    pub(super) fn exec(&mut self, program: &Program, token: u64) -> anyhow::Result<()> {
        anyhow::ensure!(self.execs.len() < EXECS_MAX, "too many commands run in this pod");
        let first = self.outputs.len();
        // The process id is known only afterwards; it is put right below.
        let pid = self.spawn(program, |_| Sink::Exec(Pid::from_raw(0)))?;
        for output in &mut self.outputs[first..] {
            output.sink = Sink::Exec(pid);
        }
        self.execs.push(Exec { pid, token, output: Vec::new() });
        Ok(())
    }

    /// Kills the commands of a connection that is gone.
    pub(super) fn abandon(&mut self, token: u64) {
        for exec in self.execs.iter().filter(|exec| exec.token == token) {
            // It leads its session; what it started is in its process group.
            let _gone_already = nix::sys::signal::killpg(exec.pid, Signal::SIGKILL);
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
            self.clear_cgroup(&known.cgroup);
        }
    }

    /// Takes in what ended. Answers for the connections whose commands did.
    pub(super) fn reap(&mut self) -> Vec<(u64, Reply)> {
        let mut replies = Vec::new();
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Err(nix::Error::EINTR) => continue,
                Ok(WaitStatus::StillAlive) | Err(_) => return replies,
                Ok(_) => continue,
            };
            if let Some(index) = self.execs.iter().position(|exec| exec.pid == pid) {
                self.drain(|sink| matches!(sink, Sink::Exec(of) if *of == pid));
                let exec = self.execs.swap_remove(index);
                let output = String::from_utf8_lossy(&exec.output).into_owned();
                replies.push((exec.token, Reply::Executed { exit_code: code, output }));
            } else {
                self.ended(pid, code);
            }
        }
    }

    fn ended(&mut self, pid: Pid, code: i32) {
        let Some(container) =
            self.containers.values_mut().find(|container| container.pid == Some(pid))
        else {
            return; // An orphan that only had to be reaped.
        };
        container.pid = None;
        container.process.exit = Some(Exit { code, at: Timestamp::now(), start_error: None });
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
                    let room = OUTPUT_MAX.saturating_sub(exec.output.len());
                    exec.output.extend_from_slice(&chunk[..length.min(room)]);
                }
            }
        }
        length > 0
    }

    fn spawn(&mut self, program: &Program, sink: impl Fn(Stream) -> Sink) -> anyhow::Result<Pid> {
        let (stdout, stdout_end) = pipe()?;
        let (stderr, stderr_end) = pipe()?;
        let procs = self.cgroup_procs(&program.cgroup)?;
        let (path, arguments) = program.argv.split_first().context("nothing to run")?;
        let mut command = Command::new(path);
        command
            .args(arguments)
            .env_clear()
            .envs(program.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&program.cwd)
            .stdin(Stdio::null())
            .stdout(stdout_end)
            .stderr(stderr_end);
        if let Some(gid) = program.gid {
            command.gid(gid);
        }
        if let Some(uid) = program.uid {
            command.uid(uid);
        }
        join_before_exec(&mut command, procs);
        let child = command.spawn().with_context(|| {
            format!("starting {path} in {}: is it there, and executable?", program.cwd)
        })?;
        for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            let (pipe, sink) = (File::from(pipe), sink(stream));
            self.outputs.push(Output { pipe, pending: Vec::new(), sink });
        }
        i32::try_from(child.id()).map(Pid::from_raw).context("a process id out of range")
    }

    /// The file through which a process joins the pod's cgroup `name`, which is made.
    fn cgroup_procs(&self, name: &str) -> anyhow::Result<File> {
        let folder = self.cgroup_folder(name);
        match std::fs::create_dir(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("making the cgroup {name}"));
            }
            _ => {}
        }
        std::fs::OpenOptions::new()
            .write(true)
            .open(folder.join("cgroup.procs"))
            .with_context(|| format!("opening cgroup.procs of the cgroup {name}"))
    }

    /// Kills what is left in the cgroup; it goes with the pod, or when it is empty.
    fn clear_cgroup(&self, name: &str) {
        let folder = self.cgroup_folder(name);
        // cgroup.kill is of Linux 5.14; before it, leftovers live as long as the pod.
        let _older_kernel = std::fs::write(folder.join("cgroup.kill"), "1");
        let _not_empty_yet = std::fs::remove_dir(folder);
    }

    fn cgroup_folder(&self, name: &str) -> PathBuf {
        by_descriptor(&self.cgroup).join(name)
    }
}

/// A pipe whose reading end never blocks.
fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("making a pipe")?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("making a pipe")?;
    Ok((reader, writer))
}

/// Lets the new process join the cgroup of `procs`, lead a session, and see all signals, before
/// it becomes the program: not even its first instruction runs outside.
#[expect(unsafe_code, reason = "the child has to act between fork and exec")]
fn join_before_exec(command: &mut Command, procs: File) {
    // SAFETY: the closure runs in the forked child of this single-threaded process. It makes
    // three system calls through nix, allocates nothing, takes no lock and touches no memory
    // that is shared.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::write(&procs, b"0")?;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            setsid()?;
            Ok(())
        });
    }
}
