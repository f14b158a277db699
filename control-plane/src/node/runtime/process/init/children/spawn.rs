//! Starts `sandbox enter`, which becomes a program in a container ([`super::super::super::enter`]).

use std::{
    fs::File,
    io::Write,
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
};

use anyhow::Context;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Pid, dup, pipe2},
};

use super::super::super::{
    enter::{Place, Task},
    wire::{Program, Root},
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

/// Where a program is to run.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// In a root that is made for it.
    New(Root),
    /// In the mount namespace of a container.
    Of(&'a File),
}

/// Starts it. `machine` is the machine's mount namespace.
pub(super) fn spawn(
    program: Program,
    target: Target<'_>,
    machine: &OwnedFd,
) -> anyhow::Result<Spawned> {
    // Copies that the new process inherits, unlike what they are copies of.
    let machine = dup(machine).context("handing the machine's mounts over")?;
    let (place, _container) = match target {
        Target::New(root) => (Place::New(root), None),
        Target::Of(container) => {
            let container = dup(container).context("handing the container's mounts over")?;
            (Place::Of(container.as_raw_fd()), Some(container))
        }
    };
    let task = Task { program, machine: machine.as_raw_fd(), place };
    let (mut ours, theirs) = UnixStream::pair().context("making a connection to the process")?;
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let child = Command::new("/proc/self/exe")
        .args(["sandbox", "enter"])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(stdout_end)
        .stderr(stderr_end)
        .spawn()
        .context("starting the process that becomes the program")?;
    let pid = i32::try_from(child.id()).map(Pid::from_raw).context("a process id out of range")?;
    let text = serde_json::to_vec(&task).context("writing what the process has to do")?;
    // One that has ended already is told by its end.
    let _gone = ours.write_all(&text).and_then(|()| ours.shutdown(Shutdown::Write));
    ours.set_nonblocking(true).context("making a connection to the process")?;
    let report = File::from(OwnedFd::from(ours));
    Ok(Spawned { pid, report, stdout: stdout.into(), stderr: stderr.into() })
}

/// A pipe whose reading end never blocks.
fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("making a pipe")?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("making a pipe")?;
    Ok((reader, writer))
}
