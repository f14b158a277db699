//! Parts of volumes (`subPath`) for the runtime, which takes paths: between the look at a path and its
//! mount a container could put a link there that leads to any file of the node (CVE-2017-1002101). So
//! the part is opened where no link leads out, and what was opened is bound to a place that is ours.
//!
//! ```text
//! <state>/subpaths/<sandbox>/<container>-<attempt>/0    the first mount that is a part of a volume
//! ```
//! A container that runs has mounts of its own, so these go when it was started. Nothing here is
//! removed with what is in it: it could be somebody's data that is still bound.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use super::super::{ContainerConfig, Mount};
use crate::node::beneath::{self, by_descriptor};

/// The places of all sandboxes' containers.
#[derive(Debug)]
pub(super) struct SubPaths(PathBuf);

impl SubPaths {
    /// Below the state folder.
    pub(super) fn of(state: &Path) -> Self {
        Self(state.join("subpaths"))
    }

    fn place(&self, sandbox: &str, name: &str, attempt: u32) -> PathBuf {
        self.0.join(sandbox).join(format!("{name}-{attempt}"))
    }

    /// The container's mounts, those of parts of volumes from places of ours.
    pub(super) fn bind(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
    ) -> anyhow::Result<Vec<Mount>> {
        self.release(sandbox, &config.name, config.attempt)?;
        let place = self.place(sandbox, &config.name, config.attempt);
        let mut mounts = config.mounts.clone();
        for (index, mount) in mounts.iter_mut().enumerate() {
            let Some(part) = part(mount) else { continue };
            let what = || format!("mounting {} of a volume", part.display());
            let source = beneath::open(&mount.volume_path, &part).with_context(what)?;
            let target = place.join(index.to_string());
            DirBuilder::new().recursive(true).mode(0o700).create(&place).with_context(what)?;
            bind(&by_descriptor(&source), &target).with_context(what)?;
            mount.host_path = target;
        }
        Ok(mounts)
    }

    /// Takes a container's places away; success where it has none.
    pub(super) fn release(&self, sandbox: &str, name: &str, attempt: u32) -> anyhow::Result<()> {
        release(&self.place(sandbox, name, attempt))?;
        // Others of the sandbox may have theirs.
        let _in_use_or_absent = fs::remove_dir(self.0.join(sandbox));
        Ok(())
    }

    /// Takes the places of all of a sandbox's containers away.
    pub(super) fn release_all(&self, sandbox: &str) -> anyhow::Result<()> {
        for place in entries(&self.0.join(sandbox))? {
            release(&place)?;
        }
        let _absent = fs::remove_dir(self.0.join(sandbox));
        Ok(())
    }
}

/// Which part of a volume is mounted, where it is not all of it.
fn part(mount: &Mount) -> Option<PathBuf> {
    let part = mount.host_path.strip_prefix(&mount.volume_path).ok()?;
    let is_part = !mount.volume_path.as_os_str().is_empty() && !part.as_os_str().is_empty();
    is_part.then(|| part.to_owned())
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    if fs::metadata(source)?.is_dir() {
        fs::create_dir(target)?;
    } else {
        File::create_new(target)?;
    }
    Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn release(place: &Path) -> anyhow::Result<()> {
    for target in entries(place)? {
        let what = || format!("letting go of {}", target.display());
        match umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It was made, and nothing bound to it.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error).with_context(what),
        }
        fs::remove_dir(&target).or_else(|_| fs::remove_file(&target)).with_context(what)?;
    }
    let _absent = fs::remove_dir(place);
    Ok(())
}

/// What is in a folder; nothing where it is not there.
fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
            .with_context(|| format!("listing {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sched::{CloneFlags, unshare};

    use super::{super::super::Propagation, *};

    /// A container `c` with parts of the volume mounted.
    fn config(volume: &Path, parts: &[&str]) -> ContainerConfig {
        let mount = |part: &&str| Mount {
            container_path: "/m".into(),
            host_path: volume.join(part),
            volume_path: volume.to_owned(),
            read_only: false,
            propagation: Propagation::default(),
        };
        let mounts = parts.iter().map(mount).collect();
        ContainerConfig { name: "c".into(), mounts, ..ContainerConfig::default() }
    }

    #[test]
    fn the_runtime_gets_what_was_opened_whatever_is_put_in_its_place() {
        // Mounts are this thread's alone.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (volume, state) = (dir.path().join("v"), dir.path().join("state"));
        fs::create_dir_all(volume.join("part")).unwrap();
        fs::write(volume.join("part/whose"), "the pod's").unwrap();
        fs::write(volume.join("file"), "the pod's").unwrap();
        let secret = dir.path().join("secret");
        fs::create_dir(&secret).unwrap();
        fs::write(secret.join("whose"), "the node's").unwrap();
        let sub_paths = SubPaths::of(&state);
        let mounts = sub_paths.bind("s", &config(&volume, &["part", "file", ""])).unwrap();

        fs::rename(volume.join("part"), volume.join("former")).unwrap();
        symlink(&secret, volume.join("part")).unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(mounts[0].host_path.join("whose")), "the pod's");
        assert_eq!(read(mounts[1].host_path.clone()), "the pod's");
        assert_eq!(mounts[2].host_path, volume.join(""), "all of the volume is what it was");
        // The next container finds the link.
        let error = sub_paths.bind("t", &config(&volume, &["part"])).unwrap_err();
        assert!(error.to_string().contains("part"), "{error}");

        sub_paths.release("s", "c", 0).unwrap();
        sub_paths.release("s", "c", 0).unwrap();
        sub_paths.release_all("t").unwrap();
        assert_eq!(fs::read_dir(state.join("subpaths")).unwrap().count(), 0);
        assert_eq!(read(volume.join("former/whose")), "the pod's");
        assert_eq!(read(volume.join("file")), "the pod's");
    }
}
