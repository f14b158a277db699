//! The stage between a sandbox's init and a program in it: a short-lived process that makes or
//! joins the container's root, gives up what the program may not have, and becomes the program.
//!
//! It is a process of its own, and not work between fork and exec: it may allocate, fail with a
//! reason, and hang on a dead file system while init goes on. Init hands it what to do on its
//! standard input, a socket. What goes wrong is a line of text back; where nothing comes and the
//! socket closes, the program runs.
//!
//! The program of the stage itself is started in init's mount namespace: once it is in the
//! container's, it loads nothing from there.

mod confine;
mod resolve;
mod root;

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context;
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_dumpable,
        signal::{SigSet, SigmaskHow, sigprocmask},
    },
    unistd::{close, setsid},
};
use serde::{Deserialize, Serialize};

use super::wire::{Program, Root};

/// What init hands over.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// What to become.
    pub program: Program,
    /// The machine's mount namespace, an inherited descriptor.
    pub machine: RawFd,
    /// Where.
    pub place: Place,
}

/// Where a program runs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Place {
    /// In a root that is made for it.
    New(Root),
    /// In the mount namespace of a container that runs, an inherited descriptor.
    Of(RawFd),
}

/// Becomes the program; returns only where that fails, after init was told.
pub(super) fn main() -> ExitCode {
    // Close-on-exec, unlike standard input itself.
    let init = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(descriptor) => UnixStream::from(descriptor),
        Err(_) => return ExitCode::FAILURE,
    };
    let outcome = receive(&init).and_then(become_program);
    let Err(error) = outcome;
    // Init is told by the end of the connection, if by nothing else.
    let _gone_already = (&init).write_all(format!("{error:#}").as_bytes());
    ExitCode::FAILURE
}

fn receive(mut init: &UnixStream) -> anyhow::Result<Task> {
    let mut text = Vec::new();
    init.read_to_end(&mut text).context("hearing from the sandbox's init")?;
    serde_json::from_slice(&text).context("understanding the sandbox's init")
}

fn become_program(task: Task) -> anyhow::Result<std::convert::Infallible> {
    // It leads a session from the beginning, so that whoever gives it up can end all of it.
    setsid().context("leading a session")?;
    // Other processes of the container may look at this one only when it has given up everything.
    set_dumpable(false).context("hiding from the container")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .context("seeing all signals")?;
    let machine = take(task.machine)?;
    let confinement = &task.program.confinement;
    let cgroups = match task.place {
        Place::New(wanted) => {
            let own = root::Own::find(&wanted)?;
            setns(machine, CloneFlags::CLONE_NEWNS).context("looking at the machine's mounts")?;
            let cgroups = open_cgroups(&confinement.cgroups)?;
            root::make(&wanted, own)?;
            cgroups
        }
        Place::Of(container) => {
            let container = take(container)?;
            setns(machine, CloneFlags::CLONE_NEWNS).context("looking at the machine's mounts")?;
            let cgroups = open_cgroups(&confinement.cgroups)?;
            setns(container, CloneFlags::CLONE_NEWNS).context("entering the container's root")?;
            cgroups
        }
    };
    // As late as can be: what making the root costs is not the container's.
    for mut cgroup in cgroups {
        cgroup.write_all(b"0").context("joining the container's cgroup")?;
    }
    confine::confine(confinement)?;
    close_at_exec().context("keeping descriptors to ourselves")?;
    exec(&task.program)
}

/// Has the program inherit its three standard descriptors and no others, wherever they came from:
/// one of the machine's folders would be a way out of the container.
#[expect(unsafe_code, reason = "neither std nor nix has close_range")]
fn close_at_exec() -> std::io::Result<()> {
    let (first, last, flags) = (3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: the system call takes three integers and closes nothing now: it marks descriptors,
    // whose owners go on using them.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// An inherited descriptor, which the program must not inherit too.
pub(super) fn take(number: RawFd) -> anyhow::Result<OwnedFd> {
    let taken = File::open(format!("/proc/self/fd/{number}"))
        .with_context(|| format!("taking over the descriptor {number}"))?;
    close(number).with_context(|| format!("closing the descriptor {number}"))?;
    Ok(taken.into())
}

/// The files by which cgroups are joined, while their paths can be seen.
fn open_cgroups(folders: &[PathBuf]) -> anyhow::Result<Vec<File>> {
    let open = |folder: &PathBuf| {
        let path = folder.join("cgroup.procs");
        let file = File::options().write(true).open(&path);
        file.with_context(|| format!("opening {}", path.display()))
    };
    folders.iter().map(open).collect()
}

fn exec(program: &Program) -> anyhow::Result<std::convert::Infallible> {
    let (path, arguments) = program.argv.split_first().context("nothing to run")?;
    let error = Command::new(path)
        .args(arguments)
        .env_clear()
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&program.cwd)
        .stdin(Stdio::null())
        .exec();
    Err(error).with_context(|| {
        format!("starting {path} in {}: is it there, and executable?", program.cwd)
    })
}
