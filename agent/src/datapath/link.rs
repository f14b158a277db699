//! Pinned links: a program at a place in the kernel, that stays there when the agent is gone, and
//! whose program the next agent replaces without a gap.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{object::LoadedProgram, sys};

/// Where a program is attached.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// A folder of the cgroup2 hierarchy.
    Cgroup {
        /// The folder, opened.
        folder: BorrowedFd<'a>,
        /// Its inode number, which is the cgroup's id.
        id: u64,
    },
    /// A network interface of this thread's network namespace, by index.
    Interface(u32),
}

/// What had to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: this very program was there.
    Unchanged,
    /// Another program was there; its link now runs this one.
    Replaced,
    /// Nothing was there.
    Attached,
}

/// Why a link could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the eBPF link pinned at {}", path.display())]
pub struct LinkError {
    /// What was tried.
    pub operation: &'static str,
    /// The pin.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Makes the link at `path` run `program` at `target`. A link that was detached by hand, or that
/// belongs to another target, is made anew, the new one before the old one goes.
pub(super) fn ensure(
    path: &Path,
    program: &LoadedProgram,
    target: Target<'_>,
    attach_type: u32,
) -> Result<Outcome, LinkError> {
    let failed = |operation| move |source| LinkError { operation, path: path.to_owned(), source };
    let pinned = match sys::open_pin(path) {
        Ok(link) => Some(link),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("open")(error)),
    };
    if let Some(link) = &pinned
        && let Some(outcome) = reuse(link, program, target).map_err(failed("update"))?
    {
        return Ok(outcome);
    }
    let target = match target {
        Target::Cgroup { folder, .. } => folder.as_raw_fd().cast_unsigned(),
        Target::Interface(index) => index,
    };
    let link = sys::create_link(program.as_fd(), target, attach_type).map_err(failed("attach"))?;
    pin(&link, path, pinned.is_some()).map_err(failed("pin"))?;
    Ok(Outcome::Attached)
}

/// Lets an existing link run `program`, if it still is attached to `target`.
fn reuse(
    link: &OwnedFd,
    program: &LoadedProgram,
    target: Target<'_>,
) -> io::Result<Option<Outcome>> {
    let info = sys::link_info(link.as_fd())?;
    let attached = match target {
        Target::Cgroup { id, .. } => info.cgroup() == id,
        Target::Interface(index) => info.ifindex() == index,
    };
    if !attached {
        return Ok(None);
    }
    if info.program == program.id {
        return Ok(Some(Outcome::Unchanged));
    }
    match sys::update_link(link.as_fd(), program.as_fd()) {
        Ok(()) => Ok(Some(Outcome::Replaced)),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Pins a link, in the place of another one where there is one.
fn pin(link: &OwnedFd, path: &Path, replaces: bool) -> io::Result<()> {
    if !replaces {
        return sys::pin(link.as_fd(), path);
    }
    // The file system keeps names with dots for itself.
    let mut name = path.as_os_str().to_owned();
    name.push("-new");
    let beside = Path::new(&name);
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sys::pin(link.as_fd(), beside)?;
    fs::rename(beside, path)
}

/// Takes the program of the link pinned at `path` out of force, and removes the pin. To remove the pin
/// alone would do that too, but later: the kernel lets go of what was pinned after a grace period of
/// RCU (`bpf_free_inode`), and until then every packet and call meets the program.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let link = sys::open_pin(path)?;
    sys::detach_link(link.as_fd())?;
    fs::remove_file(path)
}

/// The kernel's id of the link pinned at `path`, for those who look at it from outside.
pub fn id(path: &Path) -> Result<u32, LinkError> {
    sys::open_pin(path)
        .and_then(|link| sys::link_info(link.as_fd()))
        .map(|info| info.id)
        .map_err(|source| LinkError { operation: "look at", path: path.to_owned(), source })
}
