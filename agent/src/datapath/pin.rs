//! Where maps and links are pinned, so that they outlive the agent:
//! `<bpffs>/v<ABI_VERSION>/{maps,links}/<name>`.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use mizzen_ebpf_abi::maps::ABI_VERSION;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{
    layout::{MapLayout, PINNED},
    sys,
};

/// Where every distribution mounts the file system, and below which the agent may mount it too.
const STANDARD_MOUNT: &str = "/sys/fs/bpf";

/// Why there is no place for pins, or what is pinned can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The file system is not mounted and can't be.
    #[error(
        "mount the bpf file system at {}, which needs CAP_SYS_ADMIN; mount it there with `mount -t \
         bpf`, or name a folder in one with --bpffs", .0.display()
    )]
    Mount(PathBuf, #[source] io::Error),
    /// What a pod mounts is its own, and the pins would end with it.
    #[error(
        "{} is in no bpf file system of the node, and what this pod would mount there would end with \
         it, and traffic with that: on the node, `mount -t bpf bpf {}` (systemd does it by itself \
         when it starts), or have the chart do it (`bpffs.mount: true`)", .0.display(), STANDARD_MOUNT
    )]
    NotTheNodes(PathBuf),
    /// A folder can't be made or opened.
    #[error("make the folder {} for pinned maps and links", .0.display())]
    Folder(PathBuf, #[source] io::Error),
    /// Another agent has the folder.
    #[error(
        "another agent uses {}: there is one agent per node; give nodes on one machine a --bpffs \
         each", .0.display()
    )]
    Busy(PathBuf),
    /// An agent of a newer layout was here.
    #[error(
        "{} is a newer agent's, with layout {found} of the maps, and this agent knows layout \
         {ABI_VERSION}: traffic goes on as the newer agent left it; run that again, or drain the \
         node and remove the folder",
        path.display()
    )]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its layout.
        found: u32,
    },
    /// A pinned map can't be opened.
    #[error("open the pinned map {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// A pinned map has another shape than this agent's programs need.
    #[error(
        "the pinned map {} is not what this agent needs (it has {found}, should have {expected}); \
         something else put it there: remove it, or name another folder with --bpffs",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// The shape of what is pinned.
        found: String,
        /// The shape that is needed.
        expected: String,
    },
}

/// The folders of one node's pins, locked: one agent writes.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    _lock: Option<Flock<File>>,
}

impl Pins {
    /// Makes the folders below `bpffs`, and takes the lock. Where there is no bpf file system, it is
    /// mounted if this process `mounts` one for the node.
    pub fn open(bpffs: &Path, mounts: bool) -> Result<Self, PinError> {
        if !mounts && !is_bpffs(bpffs) {
            return Err(PinError::NotTheNodes(bpffs.to_owned()));
        }
        ensure_mounted(bpffs)?;
        refuse_newer(bpffs)?;
        let folder = Self::folder_of(bpffs);
        for folder in [folder.join("maps"), folder.join("links")] {
            fs::create_dir_all(&folder).map_err(|source| PinError::Folder(folder, source))?;
        }
        let file =
            File::open(&folder).map_err(|source| PinError::Folder(folder.clone(), source))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| PinError::Busy(folder.clone()))?;
        Ok(Self { folder, _lock: Some(lock) })
    }

    /// The pins of the agent that has them, to be looked at.
    pub(super) fn of_another(bpffs: &Path) -> Self {
        Self { folder: bpffs.join(format!("v{ABI_VERSION}")), _lock: None }
    }

    /// The kernel's ids of all maps, where all are pinned and of the right shape.
    pub(super) fn map_ids(&self) -> Option<Vec<u32>> {
        let id = |expected| sys::map_info(self.open_map(expected).ok()?.as_fd()).ok();
        PINNED.iter().map(|expected| id(expected).map(|info| info.id)).collect()
    }

    /// Where below `bpffs` this layout's pins are.
    pub(super) fn folder_of(bpffs: &Path) -> PathBuf {
        bpffs.join(format!("v{ABI_VERSION}"))
    }

    /// The folder of pinned maps.
    pub(super) fn maps(&self) -> PathBuf {
        self.folder.join("maps")
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where a link is pinned.
    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// The folder of pinned links.
    pub fn links(&self) -> PathBuf {
        self.folder.join("links")
    }

    /// Checks the shape of every map that is pinned; the names of those that are not.
    pub(super) fn check_maps(&self) -> Result<Vec<&'static str>, PinError> {
        let mut missing = Vec::new();
        for expected in PINNED {
            match self.open_map(expected) {
                Ok(_) => {}
                Err(PinError::Open(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                    missing.push(expected.name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }

    /// Removes the pins of maps that this agent made.
    pub(super) fn remove_maps(&self, names: &[&str]) {
        for name in names {
            let _gone = fs::remove_file(self.map(name));
        }
    }

    /// Opens a pinned map of the expected shape.
    pub(super) fn open_map(&self, expected: &MapLayout) -> Result<OwnedFd, PinError> {
        let path = self.map(expected.name);
        let opened = sys::open_pin(&path).and_then(|fd| {
            let found = MapLayout::of(fd.as_fd(), expected)?;
            Ok((fd, found))
        });
        match opened {
            Ok((fd, found)) if expected.admits(&found) => Ok(fd),
            Ok((_, found)) => Err(PinError::Layout {
                path,
                found: found.to_string(),
                expected: expected.to_string(),
            }),
            Err(error) => Err(PinError::Open(path, error)),
        }
    }
}

/// What a newer agent left is not for this one: its programs and its maps belong together.
pub(super) fn refuse_newer(bpffs: &Path) -> Result<(), PinError> {
    let Ok(entries) = fs::read_dir(bpffs) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str());
        let version = name.and_then(|name| name.strip_prefix('v')?.parse().ok());
        if let Some(found) = version.filter(|version| *version > ABI_VERSION) {
            return Err(PinError::Newer { path, found });
        }
    }
    Ok(())
}

/// Mounts the file system where `bpffs` is not in one: at the standard place if that is above it,
/// else on `bpffs` itself, so that nothing of others is hidden.
pub(super) fn ensure_mounted(bpffs: &Path) -> Result<(), PinError> {
    if is_bpffs(bpffs) {
        return Ok(());
    }
    let standard = Path::new(STANDARD_MOUNT);
    let place = if bpffs.starts_with(standard) {
        standard
    } else {
        fs::create_dir_all(bpffs).map_err(|source| PinError::Folder(bpffs.to_owned(), source))?;
        bpffs
    };
    let failed = |source| PinError::Mount(place.to_owned(), source);
    // Two agents that start at once must not mount twice, the second over the first one's pins.
    let above = File::open(place.parent().unwrap_or(place)).map_err(failed)?;
    let _lock =
        Flock::lock(above, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
    if is_bpffs(bpffs) {
        return Ok(());
    }
    mount(Some("bpf"), place, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| failed(errno.into()))?;
    tracing::info!(path = %place.display(), "mounted the bpf file system");
    Ok(())
}

/// Whether the nearest existing folder at or above the path is in a bpf file system.
fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|folder| statfs(folder).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}
