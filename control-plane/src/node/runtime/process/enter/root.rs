//! Makes a container's root as [`super::super::rootfs`] planned it, in a mount namespace of its
//! own: what is mounted here goes with the container's last process, however that ends.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        statfs::{OVERLAYFS_SUPER_MAGIC, statfs},
        statvfs::{FsFlags, statvfs},
    },
    unistd::{chdir, pivot_root},
};
use rustix::{
    fs::{CWD, XattrFlags, setxattr},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    super::wire::{Bind, Kind, Root, Step},
    resolve::{self, Shape, by_descriptor},
};

/// Where the machine's files are, in the root, until [`Step::Leave`].
const MACHINE: &str = "/.mizzen-machine";
/// Marks a folder of an upper layer that shows nothing of the one below
/// (Documentation/filesystems/overlayfs.rst of the kernel).
const OPAQUE: &str = "trusted.overlay.opaque";

/// What a root has of its pod, found before the pod's mount namespace is left.
#[derive(Debug)]
pub(super) struct Own {
    shared_memory: Option<OwnedFd>,
}

impl Own {
    /// Finds it, as far as the root has to have it.
    pub(super) fn find(root: &Root) -> anyhow::Result<Self> {
        let wanted = root.steps.iter().any(|step| matches!(step, Step::SharedMemory { .. }));
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let shared_memory = wanted.then(|| open_tree(CWD, "/dev/shm", flags)).transpose();
        Ok(Self { shared_memory: shared_memory.context("finding the pod's /dev/shm")? })
    }
}

/// Makes the root and enters it.
pub(super) fn make(root: &Root, own: Own) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making the container's mount namespace")?;
    // What the machine mounts later can be seen where that is asked for, nothing goes back.
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
        .context("making the container's mounts its own")?;
    // Before the root is entered, in which these paths would be others.
    let mut sources = Vec::new();
    for step in &root.steps {
        if let Step::Bind(bind) = step {
            sources.push(resolve::inside(&bind.source, &bind.inside)?);
        }
    }
    let mut maker = Maker { layers: &root.layers, made: 0, own, sources: sources.into_iter() };
    root.steps.iter().try_for_each(|step| maker.make(step))
}

struct Maker<'a> {
    layers: &'a Path,
    /// How many layers were laid.
    made: usize,
    own: Own,
    /// What the next binds show.
    sources: std::vec::IntoIter<OwnedFd>,
}

impl Maker<'_> {
    fn make(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::Layer { lower, hidden, devices } => self.layer(lower, hidden, *devices),
            Step::Enter => enter(&self.root()),
            Step::New { kind, target, read_only } => new(*kind, target, *read_only),
            Step::Bind(bind) => {
                let source = self.sources.next().context("a bind without a source")?;
                show(&source, bind)
            }
            Step::SharedMemory { target } => self.shared_memory(target),
            Step::Link { target, to } => symlink(to, target)
                .with_context(|| format!("linking {} to {}", target.display(), to.display())),
            Step::Text { target, text } => write(target, text),
            Step::Folder { target } if target == Path::new("/") => Ok(()),
            Step::Folder { target } => resolve::ensure(target, Shape::Folder).map(drop),
            Step::Mask { target } => mask(target),
            Step::ReadOnly { target, mounted } => read_only(target, *mounted),
            Step::Leave => leave(),
        }
    }

    /// Where the root is until it is entered.
    fn root(&self) -> PathBuf {
        self.layers.join("root")
    }

    fn layer(&mut self, lower: &Path, hidden: &[PathBuf], devices: bool) -> anyhow::Result<()> {
        let what = || format!("laying the container's files over {}", lower.display());
        if self.made == 0 && !keeps_layers(self.layers).with_context(what)? {
            // In the container's own mount namespace, so that it goes with it.
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("layers"), self.layers, Some("tmpfs"), flags, Some("mode=0700"))
                .with_context(what)?;
        }
        let folder = self.layers.join(self.made.to_string());
        let upper = folder.join("upper");
        fs::create_dir_all(self.root()).with_context(what)?;
        fs::create_dir_all(folder.join("work")).with_context(what)?;
        copy_folder(lower, &upper).with_context(what)?;
        for path in hidden {
            hide(lower, &upper, path).with_context(what)?;
        }
        // Paths relative to the working directory need no escapes.
        chdir(&folder).with_context(what)?;
        let options =
            format!("lowerdir={},upperdir=upper,workdir=work", escape(&lower.to_string_lossy()));
        let below = lower.strip_prefix("/").unwrap_or(lower);
        let target = self.root().join(below);
        let flags = if devices { MsFlags::empty() } else { MsFlags::MS_NODEV };
        mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str()))
            .with_context(what)?;
        self.made += 1;
        Ok(())
    }

    fn shared_memory(&mut self, target: &Path) -> anyhow::Result<()> {
        let memory = self.own.shared_memory.take().context("the pod has no /dev/shm")?;
        let place = resolve::ensure(target, Shape::Folder)?;
        let empty =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&memory, "", &place, "", empty).context("mounting the pod's /dev/shm")
    }
}

/// Whether a folder can hold layers: one on an overlay, as in the container of a developer, can't.
fn keeps_layers(folder: &Path) -> nix::Result<bool> {
    Ok(statfs(folder)?.filesystem_type() != OVERLAYFS_SUPER_MAGIC)
}

/// A folder like `like`, without what is in it.
fn copy_folder(like: &Path, path: &Path) -> std::io::Result<()> {
    let status = fs::metadata(like)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    chown(path, Some(status.uid()), Some(status.gid()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(status.mode() & 0o7777))
}

/// Has the layer show an empty folder at `path`; nothing is done where there is none, or a link.
fn hide(lower: &Path, upper: &Path, path: &Path) -> std::io::Result<()> {
    let mut at = PathBuf::new();
    for part in path.components() {
        at.push(part);
        if !fs::symlink_metadata(lower.join(&at)).is_ok_and(|status| status.is_dir()) {
            return Ok(());
        }
        copy_folder(&lower.join(&at), &upper.join(&at))?;
    }
    Ok(setxattr(upper.join(path), OPAQUE, b"y", XattrFlags::empty())?)
}

/// Overlay's options are parted by commas, its lower folders by colons.
fn escape(path: &str) -> String {
    let special = |letter| matches!(letter, '\\' | ',' | ':');
    path.chars().fold(String::new(), |mut text, letter| {
        text.extend(special(letter).then_some('\\'));
        text.push(letter);
        text
    })
}

fn enter(root: &Path) -> anyhow::Result<()> {
    chdir(root).context("entering the container's root")?;
    let machine = Path::new(MACHINE).strip_prefix("/").context("an odd path")?;
    fs::create_dir(machine).context("making room for the machine's files")?;
    pivot_root(".", machine).context("making the container's root the root")?;
    chdir("/").context("entering the container's root")
}

fn leave() -> anyhow::Result<()> {
    umount2(MACHINE, MntFlags::MNT_DETACH).context("letting go of the machine's files")?;
    fs::remove_dir(MACHINE).context("removing the room for the machine's files")
}

fn new(kind: Kind, target: &Path, read_only: bool) -> anyhow::Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let (name, mut flags, options) = match kind {
        Kind::Proc => ("proc", safe, None),
        Kind::Sysfs => ("sysfs", safe, None),
        Kind::Devices => {
            ("tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755,size=64k"))
        }
        Kind::Terminals => (
            "devpts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            Some("newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ),
        Kind::MessageQueues => ("mqueue", safe, None),
    };
    flags.set(MsFlags::MS_RDONLY, read_only);
    match fs::create_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("making {}", target.display()));
        }
        _ => {}
    }
    match mount(Some(name), target, Some(name), flags, options) {
        Err(nix::Error::ENODEV) if kind == Kind::MessageQueues => Ok(fs::remove_dir(target)?),
        outcome => outcome.with_context(|| format!("mounting {name} at {}", target.display())),
    }
}

fn show(source: &OwnedFd, bind: &Bind) -> anyhow::Result<()> {
    let Bind { target, .. } = bind;
    let what = || format!("mounting {} at {}", bind.source.display(), target.display());
    let place = resolve::ensure(target, resolve::shape(source)?).with_context(what)?;
    let recursive = MsFlags::MS_BIND | MsFlags::MS_REC;
    let source = by_descriptor(source);
    mount(Some(&source), &by_descriptor(&place), None::<&str>, recursive, None::<&str>)
        .with_context(what)?;
    let mounted = resolve::find(target)?.with_context(what)?;
    let mounted = by_descriptor(&mounted);
    if !bind.follows {
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, &mounted, None::<&str>, private, None::<&str>).with_context(what)?;
    }
    restrict(&mounted, bind.read_only, bind.devices).with_context(what)
}

/// Takes rights from a mount; those that it did not give stay taken.
fn restrict(mounted: &Path, read_only: bool, devices: bool) -> nix::Result<()> {
    let now = statvfs(mounted)?.flags();
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    for (has, flag) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        flags.set(flag, now.contains(has));
    }
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    if !devices {
        flags |= MsFlags::MS_NODEV;
    }
    mount(None::<&str>, mounted, None::<&str>, flags, None::<&str>)
}

/// Takes away what is there, be it a link, and writes a file.
fn write(target: &Path, text: &str) -> anyhow::Result<()> {
    let what = || format!("writing {}", target.display());
    match fs::remove_file(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(what);
        }
        _ => {}
    }
    drop(resolve::ensure(target, Shape::File)?);
    fs::write(target, text).with_context(what)
}

fn mask(target: &Path) -> anyhow::Result<()> {
    let Some(found) = resolve::find(target)? else { return Ok(()) };
    let what = || format!("hiding {}", target.display());
    let place = by_descriptor(&found);
    let outcome = match resolve::shape(&found)? {
        Shape::File => {
            mount(Some("/dev/null"), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        }
        Shape::Folder => {
            mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0,mode=555"))
        }
    };
    outcome.with_context(what)
}

fn read_only(target: &Path, mounted: bool) -> anyhow::Result<()> {
    let Some(mut found) = resolve::find(target)? else { return Ok(()) };
    let what = || format!("making {} read-only", target.display());
    if !mounted {
        let place = by_descriptor(&found);
        let recursive = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&place), &place, None::<&str>, recursive, None::<&str>).with_context(what)?;
        found = resolve::find(target)?.with_context(what)?;
    }
    restrict(&by_descriptor(&found), true, false).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_parts_options_is_escaped() {
        assert_eq!(escape("/usr"), "/usr");
        assert_eq!(escape(r"/a,b:c\d"), r"/a\,b\:c\\d");
    }
}
