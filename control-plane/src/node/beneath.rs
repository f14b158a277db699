//! Parts of a folder that containers write to: whatever links they put in there, nothing is opened or
//! made outside.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open as open_path, openat, openat2},
    sys::stat::{Mode, fchmod, fstat, mkdirat},
};

const FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// What is at `part` of the folder, the folder itself where that is empty.
pub(super) fn open(folder: &Path, part: &Path) -> io::Result<OwnedFd> {
    let root = open_path(folder, FLAGS, Mode::empty())?;
    if part.as_os_str().is_empty() {
        return Ok(root);
    }
    Ok(lookup(&root, part)?)
}

/// As [`open`]; folders that are not there are made, with the permissions of `folder`.
pub(super) fn make(folder: &Path, part: &Path) -> io::Result<OwnedFd> {
    let root = open_path(folder, FLAGS, Mode::empty())?;
    let mode = Mode::from_bits_truncate(fstat(&root)?.st_mode & 0o7777);
    let (mut found, mut at) = (root.try_clone()?, PathBuf::new());
    for name in part.components().map(Component::as_os_str) {
        at.push(name);
        found = match lookup(&root, &at) {
            Err(Errno::ENOENT) => {
                mkdirat(&found, name, mode)?;
                // What the umask took away is given back.
                let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                fchmod(openat(&found, name, flags, Mode::empty())?, mode)?;
                lookup(&root, &at)?
            }
            other => other?,
        };
    }
    Ok(found)
}

/// Whether the error of these says that a link leads out of the folder.
pub(super) fn leads_out(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EXDEV | Errno::ELOOP))
}

/// By which system calls that know no descriptors name what was found.
pub(super) fn by_descriptor(found: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn lookup(root: &OwnedFd, part: &Path) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(root, part, OpenHow::new().flags(FLAGS).resolve(resolve))
}
