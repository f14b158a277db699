//! Starts programs in containers: a copy of init becomes them ([`super::super::super::enter`]).

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use anyhow::Context;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{ForkResult, Pid, fork, pipe2},
};

use super::super::super::{
    enter::{self, Place, Task},
    wire::Program,
};

/// A process that is on its way to its program.
#[derive(Debug)]
pub(super) struct Spawned {
    /// Its process id, which stays when it becomes the program.
    pub pid: Pid,
    /// What goes wrong on the way; it ends where the program begins.
    pub report: File,
    /// Its standard output.
    pub stdout: File,
    /// Its standard error.
    pub stderr: File,
}

/// Starts it. `machine` is the machine's mount namespace.
#[expect(unsafe_code, reason = "a copy of a process is made by fork alone")]
pub(super) fn spawn(
    program: &Program,
    place: Place<'_>,
    machine: &OwnedFd,
) -> anyhow::Result<Spawned> {
    let (ours, theirs) = UnixStream::pair().context("making a connection to the process")?;
    ours.set_nonblocking(true).context("making a connection to the process")?;
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    // SAFETY: init has one thread, so no lock is held by another that the copy does not have; the
    // copy never returns from `main`.
    match unsafe { fork() }.context("starting the process that becomes the program")? {
        ForkResult::Child => {
            let task = Task { program, machine, place, stdout: stdout_end, stderr: stderr_end };
            enter::main(task, theirs)
        }
        ForkResult::Parent { child } => {
            let report = File::from(OwnedFd::from(ours));
            Ok(Spawned { pid: child, report, stdout: stdout.into(), stderr: stderr.into() })
        }
    }
}

/// A pipe whose reading end never blocks.
fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("making a pipe")?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("making a pipe")?;
    Ok((reader, writer))
}
