//! The way from a sandbox's init to a program in a container: a copy of init makes or joins the
//! container's root, gives up what the program may not have, and becomes the program.
//!
//! Init has one thread, so its copy may do whatever a process may: allocate, fail with a reason, and
//! hang on a dead file system while init goes on. What goes wrong is a line of text on a socket;
//! where nothing comes and the socket closes, the program runs. It loads nothing of the container's:
//! all its code is init's.

mod confine;
mod resolve;
mod root;

use std::{
    convert::Infallible,
    fs::File,
    io::Write,
    os::{
        fd::{OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::{Command, Stdio},
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

use super::wire::{Program, Root};

/// What init's copy has to do.
#[derive(Debug)]
pub(super) struct Task<'a> {
    /// What to become.
    pub program: &'a Program,
    /// The machine's mount namespace.
    pub machine: &'a OwnedFd,
    /// Where.
    pub place: Place<'a>,
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

/// Where a program runs.
#[derive(Debug)]
pub(super) enum Place<'a> {
    /// In a root that is made for it.
    New(&'a Root),
    /// In the mount namespace of a container that runs.
    Of(&'a File),
}

/// Becomes the program, in a process that is init's copy. Where that fails, init is told and the
/// process ends.
pub(super) fn main(task: Task<'_>, mut init: UnixStream) -> ! {
    // Whatever happens, the copy must not return to be a second init.
    let reason = match catch_unwind(AssertUnwindSafe(|| become_program(task))) {
        Ok(Err(error)) => format!("{error:#}"),
        Err(_panicked) => "the way to the program ended by a panic".to_owned(),
    };
    // Init is told by the end of the connection, if by nothing else.
    let _gone_already = init.write_all(reason.as_bytes());
    std::process::exit(1)
}

fn become_program(task: Task<'_>) -> anyhow::Result<Infallible> {
    // It leads a session from the beginning, so that whoever gives it up can end all of it.
    setsid().context("leading a session")?;
    // Other processes of the container may look at this one only when it has given up everything.
    set_dumpable(false).context("hiding from the container")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .context("seeing all signals")?;
    let confinement = &task.program.confinement;
    let to_machine = || {
        setns(task.machine, CloneFlags::CLONE_NEWNS).context("looking at the machine's mounts")?;
        open_cgroups(&confinement.cgroups)
    };
    let cgroups = match task.place {
        Place::New(wanted) => {
            let own = root::Own::find(wanted)?;
            let cgroups = to_machine()?;
            root::make(wanted, own)?;
            cgroups
        }
        Place::Of(container) => {
            let cgroups = to_machine()?;
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
    exec(task.program, task.stdout, task.stderr)
}

/// An inherited descriptor, which nobody else must inherit.
pub(super) fn take(number: RawFd) -> anyhow::Result<OwnedFd> {
    let taken = File::open(format!("/proc/self/fd/{number}"))
        .with_context(|| format!("taking over the descriptor {number}"))?;
    close(number).with_context(|| format!("closing the descriptor {number}"))?;
    Ok(taken.into())
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

/// The files by which cgroups are joined, while their paths can be seen.
fn open_cgroups(folders: &[PathBuf]) -> anyhow::Result<Vec<File>> {
    let open = |folder: &PathBuf| {
        let path = folder.join("cgroup.procs");
        let file = File::options().write(true).open(&path);
        file.with_context(|| format!("opening {}", path.display()))
    };
    folders.iter().map(open).collect()
}

fn exec(program: &Program, stdout: OwnedFd, stderr: OwnedFd) -> anyhow::Result<Infallible> {
    let (path, arguments) = program.argv.split_first().context("nothing to run")?;
    let error = Command::new(path)
        .args(arguments)
        .env_clear()
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&program.cwd)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .exec();
    Err(error).with_context(|| {
        format!("starting {path} in {}: is it there, and executable?", program.cwd)
    })
}
