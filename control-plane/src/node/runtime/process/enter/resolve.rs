//! Paths in a container's root, which its image and its other containers may have filled with
//! links: nothing that is made or mounted at one of them leads out, or into `/proc`.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use anyhow::Context;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::{
        stat::{Mode, mkdirat},
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
};

use crate::node::beneath;
pub(super) use crate::node::beneath::by_descriptor;

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A folder.
    Folder,
    /// Anything else.
    File,
}

/// What is at an absolute path of the process's root; `None` where nothing is.
pub(super) fn find(target: &Path) -> anyhow::Result<Option<OwnedFd>> {
    match lookup(target) {
        Ok(found) => Ok(Some(found)),
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking at {}", target.display())),
    }
}

/// What is at the path, made where it is not there: a mount point.
pub(super) fn ensure(target: &Path, shape: Shape) -> anyhow::Result<OwnedFd> {
    anyhow::ensure!(
        target.is_absolute() && target.components().all(|part| part != Component::ParentDir),
        "{} is no place in a container: it has to be an absolute path without ..",
        target.display()
    );
    anyhow::ensure!(target != Path::new("/"), "nothing takes the place of the container's root");
    let mut at = PathBuf::from("/");
    let mut found = lookup(&at).context("looking at the container's root")?;
    let parts: Vec<_> = target.components().skip(1).collect();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        at.push(part);
        found = match lookup(&at) {
            Ok(there) => there,
            Err(nix::Error::ENOENT) => {
                let making = || format!("making {} in the container's root", at.display());
                let name = part.as_os_str();
                if last && shape == Shape::File {
                    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                    let mode = Mode::from_bits_truncate(0o644);
                    nix::fcntl::openat(&found, name, flags, mode).with_context(making)?;
                } else {
                    let mode = Mode::from_bits_truncate(0o755);
                    mkdirat(&found, name, mode).with_context(making)?;
                }
                lookup(&at).with_context(making)?
            }
            Err(error) => return Err(error).with_context(|| format!("entering {}", at.display())),
        };
    }
    let kind = fstatfs(&found).with_context(|| format!("looking at {}", target.display()))?;
    anyhow::ensure!(
        kind.filesystem_type() != PROC_SUPER_MAGIC,
        "nothing can be mounted in /proc, where {} leads to",
        target.display()
    );
    Ok(found)
}

/// A part of a folder, which may not lead out of it.
pub(super) fn inside(folder: &Path, part: &Path) -> anyhow::Result<OwnedFd> {
    let what = || format!("opening {} of the machine", folder.join(part).display());
    beneath::open(folder, part).with_context(what)
}

/// Whether it is a folder.
pub(super) fn shape(found: &OwnedFd) -> anyhow::Result<Shape> {
    let copy = File::from(found.try_clone().context("copying a descriptor")?);
    let status = copy.metadata().context("looking at what is to be mounted")?;
    Ok(if status.is_dir() { Shape::Folder } else { Shape::File })
}

fn lookup(target: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open("/", flags, Mode::empty())?;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(&root, target, OpenHow::new().flags(flags).resolve(resolve))
}
