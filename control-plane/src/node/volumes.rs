//! Makes the volumes of pods as [`super::pod::volumes`] planned them, and removes them. Everything
//! can be repeated; a volume's files are replaced all at once, by one link.
//!
//! ```text
//! <volume-dir>/<pod uid>/<volume>/..data -> ..7f3a…     a folder of its own for each version
//!                                /password -> ..data/password
//! ```

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    beneath,
    pod::volumes::{Content, File, VolumePlan},
};

/// The link to the folder with the files that are in force.
const DATA: &str = "..data";
/// Where it is made before it takes the place of the one in force.
const DATA_NEXT: &str = "..data_next";

/// A volume could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    /// A file operation failed.
    #[error("volume {volume:?}: {operation} {}", path.display())]
    File {
        /// Which volume.
        volume: String,
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A path of the node is not what the pod wants it to be.
    #[error("volume {volume:?}: hostPath {} is not a {kind}", path.display())]
    Kind {
        /// Which volume.
        volume: String,
        /// The path.
        path: PathBuf,
        /// `hostPath.type`.
        kind: String,
    },
    /// A link leads out of the volume.
    #[error("volume {volume:?}: subPath {} leads out of it", path.display())]
    Escape {
        /// Which volume.
        volume: String,
        /// The path.
        path: PathBuf,
    },
}

/// The folder of the volumes of one pod.
#[derive(Clone, Debug)]
pub(super) struct PodVolumes(PathBuf);

impl PodVolumes {
    /// Below `dir`, of the pod with this uid.
    pub(super) fn of(dir: &Path, uid: &str) -> Self {
        Self(dir.join(uid))
    }

    /// Some volume was made and not removed.
    pub(super) fn exist(&self) -> bool {
        self.0.exists()
    }

    /// Makes volumes, or brings them up to date: each of them, though another can't be.
    pub(super) fn make(&self, plans: &[VolumePlan]) -> Result<(), VolumeError> {
        let made: Vec<_> = plans.iter().map(|plan| self.make_one(plan)).collect();
        made.into_iter().collect()
    }

    fn make_one(&self, plan: &VolumePlan) -> Result<(), VolumeError> {
        let work = Work { volume: &plan.name };
        let root = match &plan.content {
            Content::Host { path, kind } => {
                work.host(path, kind)?;
                path.clone()
            }
            Content::Empty { memory, size } => {
                let root = self.0.join(&plan.name);
                // Whoever the containers run as, they share it.
                if *memory {
                    work.folder(&root)?;
                    work.tmpfs(&root, *size, plan.group, 0o777)?;
                } else if !root.exists() {
                    work.owned_folder(&root, plan.group, 0o777)?;
                }
                root
            }
            Content::Files { files, secret } => {
                let root = self.0.join(&plan.name);
                work.folder(&root)?;
                if *secret {
                    work.tmpfs(&root, None, None, 0o755)?;
                }
                work.replace(&root, files, plan.group)?;
                return Ok(());
            }
        };
        plan.sub_paths.iter().try_for_each(|path| work.sub_path(&root, path))
    }

    /// Removes all of them; success where there are none.
    pub(super) fn remove(&self) -> Result<(), VolumeError> {
        let work = Work { volume: "all" };
        let mounts = fs::read_to_string("/proc/self/mounts")
            .map_err(work.failed("reading", Path::new("/proc/self/mounts")))?;
        let below: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|target| Path::new(target).starts_with(&self.0))
            .collect();
        for target in below.iter().rev() {
            umount2(*target, MntFlags::MNT_DETACH)
                .map_err(io::Error::from)
                .map_err(work.failed("unmounting", Path::new(target)))?;
        }
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(work.failed("removing", &self.0)(error))
            }
            _ => Ok(()),
        }
    }
}

/// The uids of pods whose volumes are below `dir`.
pub(super) fn owners(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Work on one volume, for its errors.
struct Work<'a> {
    volume: &'a str,
}

impl Work<'_> {
    fn failed(
        &self,
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> VolumeError + use<> {
        let (volume, path) = (self.volume.to_owned(), path.to_owned());
        move |source| VolumeError::File { volume, operation, path, source }
    }

    fn folder(&self, path: &Path) -> Result<(), VolumeError> {
        fs::create_dir_all(path).map_err(self.failed("making", path))
    }

    fn own(&self, path: &Path, group: Option<u32>, mode: u32) -> Result<(), VolumeError> {
        if group.is_some() {
            chown(path, None, group)
                .map_err(self.failed("giving to the group of the pod", path))?;
        }
        fs::set_permissions(path, PermissionsExt::from_mode(shared(group, mode)))
            .map_err(self.failed("setting the permissions of", path))
    }

    /// A new folder with its owner and permissions. It has its name when it has them: of one that is
    /// there, whatever they are now is what the containers made of it.
    fn owned_folder(&self, path: &Path, group: Option<u32>, mode: u32) -> Result<(), VolumeError> {
        // No volume's name begins so.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let new = path.with_file_name(format!("..new-{name}"));
        self.folder(&new)?;
        self.own(&new, group, mode)?;
        fs::rename(&new, path).map_err(self.failed("making", path))
    }

    /// Memory instead of a disk, with its owner and permissions from the first moment. After a reboot
    /// the folder is there, and what was mounted on it is not.
    fn tmpfs(
        &self,
        path: &Path,
        size: Option<u64>,
        group: Option<u32>,
        mode: u32,
    ) -> Result<(), VolumeError> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let target = path.display().to_string();
        if mounts.lines().any(|line| line.split(' ').nth(1) == Some(&target)) {
            return Ok(());
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
        let owner = group.map(|group| format!(",gid={group}")).unwrap_or_default();
        let options = format!("mode={:o}{owner}{size}", shared(group, mode));
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(io::Error::from)
            .map_err(self.failed("mounting memory at", path))
    }

    /// Makes or checks a path of the node, as its `type` says.
    fn host(&self, path: &Path, kind: &str) -> Result<(), VolumeError> {
        use std::os::unix::fs::FileTypeExt;
        match kind {
            "DirectoryOrCreate" if !path.exists() => {
                self.folder(path)?;
                return self.own(path, None, 0o755);
            }
            "FileOrCreate" if !path.exists() => {
                return fs::write(path, "").map_err(self.failed("making", path));
            }
            _ => {}
        }
        let found = fs::metadata(path).map(|meta| meta.file_type());
        let is = |wanted: fn(&fs::FileType) -> bool| found.as_ref().is_ok_and(wanted);
        let met = match kind {
            "Directory" | "DirectoryOrCreate" => is(fs::FileType::is_dir),
            "File" | "FileOrCreate" => is(fs::FileType::is_file),
            "Socket" => is(FileTypeExt::is_socket),
            "CharDevice" => is(FileTypeExt::is_char_device),
            "BlockDevice" => is(FileTypeExt::is_block_device),
            // Anything; a folder where there is nothing, as by container runtimes.
            _ => true,
        };
        if met {
            return Ok(());
        }
        let (volume, path, kind) = (self.volume.to_owned(), path.to_owned(), kind.to_owned());
        Err(VolumeError::Kind { volume, path, kind })
    }

    /// A part of a volume has to be there, and in it: a container may have put a link there.
    fn sub_path(&self, root: &Path, path: &Path) -> Result<(), VolumeError> {
        match beneath::make(root, path) {
            Err(error) if beneath::leads_out(&error) => {
                Err(VolumeError::Escape { volume: self.volume.to_owned(), path: path.to_owned() })
            }
            made => made.map(drop).map_err(self.failed("making", &root.join(path))),
        }
    }

    /// Puts a new version of the files in force, unless they are what they should be.
    fn replace(&self, root: &Path, files: &[File], group: Option<u32>) -> Result<(), VolumeError> {
        let data = root.join(DATA);
        if is_same(&data, files) {
            return Ok(());
        }
        let old = fs::read_link(&data).ok();
        let version = format!("..{}", uuid::Uuid::new_v4().simple());
        let folder = root.join(&version);
        if let Err(error) = self.write(&folder, files, group) {
            // Each attempt is a folder of its own; a full disk is not to get fuller by them.
            let _half_written = fs::remove_dir_all(&folder);
            return Err(error);
        }
        let next = root.join(DATA_NEXT);
        let _of_an_earlier_attempt = fs::remove_file(&next);
        symlink(&version, &next)
            .and_then(|()| fs::rename(&next, &data))
            .map_err(self.failed("putting in force", &data))?;
        self.link_names(root, files)?;
        if let Some(old) = old {
            let old = root.join(old);
            fs::remove_dir_all(&old).map_err(self.failed("removing", &old))?;
        }
        Ok(())
    }

    /// Writes a version of the files to a new folder.
    fn write(&self, folder: &Path, files: &[File], group: Option<u32>) -> Result<(), VolumeError> {
        self.folder(folder)?;
        self.own(folder, group, 0o755)?;
        for file in files {
            let path = folder.join(&file.path);
            if let Some(parent) = path.parent() {
                self.folder(parent)?;
            }
            fs::write(&path, &file.content).map_err(self.failed("writing", &path))?;
            // The group may read what the owner may.
            let mode =
                if group.is_some() { file.mode | ((file.mode & 0o400) >> 3) } else { file.mode };
            if group.is_some() {
                chown(&path, None, group).map_err(self.failed("giving to the group", &path))?;
            }
            fs::set_permissions(&path, PermissionsExt::from_mode(mode))
                .map_err(self.failed("setting the permissions of", &path))?;
        }
        Ok(())
    }

    /// The names that containers use: links through the one that is replaced.
    fn link_names(&self, root: &Path, files: &[File]) -> Result<(), VolumeError> {
        let first =
            |path: &Path| path.components().next().map(|part| PathBuf::from(part.as_os_str()));
        let mut wanted: Vec<PathBuf> = files.iter().filter_map(|file| first(&file.path)).collect();
        wanted.dedup();
        for entry in fs::read_dir(root).map_err(self.failed("listing", root))?.flatten() {
            let name = PathBuf::from(entry.file_name());
            let ours = entry.file_name().to_string_lossy().starts_with("..");
            if !ours && !wanted.contains(&name) {
                fs::remove_file(entry.path()).map_err(self.failed("removing", &name))?;
            }
        }
        for name in wanted {
            let link = root.join(&name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new(DATA).join(&name), &link)
                    .map_err(self.failed("linking", &link))?;
            }
        }
        Ok(())
    }
}

/// The mode of a folder of a group: what is made in it belongs to the group too.
fn shared(group: Option<u32>, mode: u32) -> u32 {
    if group.is_some() { mode | 0o2000 } else { mode }
}

/// The folder has exactly these files.
fn is_same(folder: &Path, files: &[File]) -> bool {
    let mut found = Vec::new();
    // A link that leads nowhere has no files.
    if fs::metadata(folder).is_err() || !collect(folder, Path::new(""), &mut found) {
        return false;
    }
    found.sort();
    let wanted: Vec<&PathBuf> = files.iter().map(|file| &file.path).collect();
    found.iter().collect::<Vec<_>>() == wanted
        && files.iter().all(|file| {
            fs::read(folder.join(&file.path)).is_ok_and(|content| content == file.content)
        })
}

fn collect(root: &Path, below: &Path, found: &mut Vec<PathBuf>) -> bool {
    let Ok(entries) = fs::read_dir(root.join(below)) else { return false };
    entries.flatten().all(|entry| {
        let path = below.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(root, &path, found)
        } else {
            found.push(path);
            true
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn files(list: &[(&str, &str)]) -> VolumePlan {
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).into(),
            mode: 0o640,
            content: text.as_bytes().to_vec(),
        };
        let files = list.iter().map(file).collect();
        plan(Content::Files { files, secret: false }, &[])
    }

    fn plan(content: Content, sub_paths: &[&str]) -> VolumePlan {
        let sub_paths = sub_paths.iter().map(PathBuf::from).collect();
        VolumePlan { name: "v".into(), content, sub_paths, group: None }
    }

    fn empty(sub_paths: &[&str]) -> VolumePlan {
        plan(Content::Empty { memory: false, size: None }, sub_paths)
    }

    #[test]
    fn files_are_replaced_all_at_once_and_names_stay() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = PodVolumes::of(dir.path(), "u");
        let root = dir.path().join("u/v");
        let read = |name: &str| fs::read_to_string(root.join(name)).ok();
        volumes.make(&[files(&[("a", "1"), ("deep/b", "2")])]).unwrap();
        assert_eq!((read("a"), read("deep/b")), (Some("1".into()), Some("2".into())));
        let mode = fs::metadata(root.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let version = fs::read_link(root.join(DATA)).unwrap();

        // The same again changes nothing.
        volumes.make(&[files(&[("a", "1"), ("deep/b", "2")])]).unwrap();
        assert_eq!(fs::read_link(root.join(DATA)).unwrap(), version);

        volumes.make(&[files(&[("a", "3"), ("c", "4")])]).unwrap();
        assert_eq!(
            (read("a"), read("deep/b"), read("c")),
            (Some("3".into()), None, Some("4".into()))
        );
        assert!(!root.join(version).exists(), "the old version is still there");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 4, "a, c, ..data and its folder");

        volumes.remove().unwrap();
        assert!(!volumes.exist());
        volumes.remove().unwrap();
    }

    #[test]
    fn one_volume_that_can_not_be_made_stops_no_other_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = PodVolumes::of(dir.path(), "u");
        // A file where a folder has to be.
        let broken = VolumePlan { name: "w".into(), ..files(&[("a", "1"), ("a/b", "2")]) };
        let error = volumes.make(&[broken.clone(), files(&[("a", "1")])]).unwrap_err();
        assert!(error.to_string().starts_with("volume \"w\""), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("u/v/a")).unwrap(), "1");
        assert!(volumes.make(&[broken]).is_err());
        assert_eq!(fs::read_dir(dir.path().join("u/w")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_in_memory_is_everyones_after_a_reboot_too() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = PodVolumes::of(dir.path(), "u");
        let root = dir.path().join("u/v");
        fs::create_dir_all(&root).unwrap();
        let memory = plan(Content::Empty { memory: true, size: Some(1 << 20) }, &[]);
        let mode = || fs::metadata(&root).unwrap().permissions().mode() & 0o777;
        volumes.make(std::slice::from_ref(&memory)).unwrap();
        assert_eq!(mode(), 0o777);
        // What its owner made of it stays.
        fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
        volumes.make(&[memory]).unwrap();
        assert_eq!(mode(), 0o700);
        volumes.remove().unwrap();
    }

    /// Whoever sees a volume, as a node part that starts after one that was killed, sees a whole one.
    #[test]
    fn an_empty_folder_has_its_owner_and_permissions_when_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = PodVolumes::of(dir.path(), "u");
        let names: Vec<String> = (0..200).map(|index| format!("v{index}")).collect();
        let of_group = |name: &String, memory| VolumePlan {
            name: name.clone(),
            group: Some(2000),
            ..plan(Content::Empty { memory, size: None }, &[])
        };
        let seen = |name: &String| {
            let found = fs::metadata(dir.path().join("u").join(name)).ok()?;
            Some((found.gid(), found.permissions().mode() & 0o7777))
        };
        let whole = (2000, 0o2777);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let plans: Vec<_> = names.iter().map(|name| of_group(name, false)).collect();
                volumes.make(&plans).unwrap();
            });
            for name in &names {
                let mut looks = std::iter::repeat_with(|| seen(name)).take(20_000_000);
                let found = looks.find_map(|seen| seen);
                assert_eq!(found, Some(whole), "{name}");
            }
        });
        // Begun by one that was killed.
        fs::create_dir(dir.path().join("u/..new-late")).unwrap();
        let (late, memory) = ("late".to_owned(), "memory".to_owned());
        volumes.make(&[of_group(&late, false), of_group(&memory, true)]).unwrap();
        assert_eq!((seen(&late), seen(&memory)), (Some(whole), Some(whole)));
        volumes.remove().unwrap();
    }

    #[test]
    fn an_empty_folder_is_kept_and_shared() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = PodVolumes::of(dir.path(), "u");
        volumes.make(&[empty(&["of/me"])]).unwrap();
        let root = dir.path().join("u/v");
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o777);
        assert!(root.join("of/me").is_dir());
        fs::write(root.join("kept"), "x").unwrap();
        volumes.make(&[empty(&[])]).unwrap();
        assert!(root.join("kept").exists());
        assert_eq!(owners(dir.path()), ["u"]);
    }

    #[test]
    fn a_link_does_not_lead_out_of_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = PodVolumes::of(dir.path(), "u");
        volumes.make(&[empty(&[])]).unwrap();
        let (root, outside) = (dir.path().join("u/v"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink("../../outside", root.join("up")).unwrap();
        symlink("up", root.join("twice")).unwrap();
        for part in ["link", "link/made", "up/made", "twice/made"] {
            let error = volumes.make(&[empty(&[part])]).unwrap_err();
            assert!(matches!(error, VolumeError::Escape { .. }), "{part}: {error}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made there");
        // One that stays inside is followed.
        fs::create_dir(root.join("inner")).unwrap();
        symlink("inner", root.join("here")).unwrap();
        volumes.make(&[empty(&["here/made"])]).unwrap();
        let made = fs::metadata(root.join("inner/made")).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o777, "as the volume itself");
    }

    #[test]
    fn a_path_of_the_node_is_what_its_type_says() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = PodVolumes::of(dir.path(), "u");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let host = |name: &str, kind: &str| {
            let path = dir.path().join(name);
            volumes.make(&[plan(Content::Host { path, kind: kind.into() }, &[])])
        };
        for (name, kind, fine) in [
            ("file", "", true),
            ("file", "File", true),
            ("file", "Directory", false),
            ("none", "Directory", false),
            ("none", "Socket", false),
            ("made", "DirectoryOrCreate", true),
            ("made", "Directory", true),
            ("made-file", "FileOrCreate", true),
        ] {
            assert_eq!(host(name, kind).is_ok(), fine, "{name} {kind}");
        }
        volumes.remove().unwrap();
        assert!(file.exists(), "what is the node's stays");
    }
}
