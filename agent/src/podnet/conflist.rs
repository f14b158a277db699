//! The files that the container runtime reads: the network configuration list and the plugin.
//!
//! The configuration comes when the agent can serve, and stays when it stops: without it a
//! runtime refuses DEL as well, and pods stay Terminating. It is written under another name in
//! the same folder and renamed, because runtimes watch the folder for renames, and a torn
//! file costs a node its network.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use mizzen_cni::protocol::{SUPPORTED, Version};
use serde_json::json;

/// The configuration's name in its folder.
pub const CONF_NAME: &str = "10-mizzen.conflist";
/// The network's name in it.
pub const NETWORK: &str = "mizzen";
/// The plugin's name in its folder, which is also its type.
pub const PLUGIN: &str = "mizzen-cni";

/// A file that the runtime needs could not be put in its place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file operation.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A folder is another user's, and the agent has no right to write wherever it likes.
    #[error(
        "{operation} {}: {} belongs to user {owner}, and the agent writes where root may \
         (it has no CAP_DAC_OVERRIDE): `chown root:root {}`", path.display(), folder.display(),
        folder.display()
    )]
    NotRoots {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Where it is, or would be.
        folder: PathBuf,
        /// The number of whose it is.
        owner: u32,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is no plugin to install, and none is installed.
    #[error(
        "no {PLUGIN} at {} and none in {}; install it beside mizzen-agent or into the folder",
        from.display(), bin_dir.display()
    )]
    NoPlugin {
        /// Where it should come from.
        from: PathBuf,
        /// Where it should be.
        bin_dir: PathBuf,
    },
}

/// The configuration list for an agent whose state folder is `state_dir`. Capabilities are
/// declared where somebody sees to them: a runtime must not believe that a hostPort works.
pub fn render(state_dir: &Path, port_mappings: bool) -> String {
    let mut capabilities = json!({"bandwidth": true, "dns": true, "ips": true, "mac": true});
    if port_mappings {
        capabilities["portMappings"] = true.into();
    }
    let list = json!({
        "cniVersion": Version::V1_0_0.as_str(),
        "cniVersions": SUPPORTED.map(Version::as_str),
        "name": NETWORK,
        "plugins": [{"type": PLUGIN, "stateDir": state_dir, "capabilities": capabilities}],
    });
    format!("{list:#}\n")
}

/// Writes the configuration into `conf_dir`, unless it is there already.
pub fn write(conf_dir: &Path, state_dir: &Path, port_mappings: bool) -> Result<(), InstallError> {
    let path = conf_dir.join(CONF_NAME);
    let text = render(state_dir, port_mappings);
    if fs::read(&path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(());
    }
    fs::create_dir_all(conf_dir).map_err(failed("create", conf_dir))?;
    replace(&path, text.as_bytes(), 0o644, None)?;
    tracing::info!(path = %path.display(), "network configuration written");
    Ok(())
}

/// The plugin, which is to be where the runtime looks.
#[derive(Debug)]
pub struct Plugin {
    from: PathBuf,
    /// Whether the copy was compared with it, octet by octet, since this process began.
    compared: AtomicBool,
}

impl Plugin {
    /// The one at `from`. Where there is none, what the runtime's folder has must do.
    pub fn new(from: PathBuf) -> Self {
        Self { from, compared: AtomicBool::new(false) }
    }

    /// Copies it into `bin_dir`, unless it is there already. A copy has the size and the time of
    /// what it was copied from; but every file of an image has the same time, and a build may have
    /// the size of the one before, so that the first look of a process is at the content.
    pub fn install(&self, bin_dir: &Path) -> Result<(), InstallError> {
        let (from, path) = (&*self.from, bin_dir.join(PLUGIN));
        let source = match fs::metadata(from) {
            Ok(source) => source,
            Err(_) if path.exists() => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InstallError::NoPlugin { from: from.into(), bin_dir: bin_dir.into() });
            }
            Err(error) => return Err(failed("read", from)(error)),
        };
        let age = |metadata: &fs::Metadata| (metadata.len(), metadata.modified().ok());
        let looks_same = fs::metadata(&path).is_ok_and(|present| age(&present) == age(&source));
        if looks_same && self.compared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let bytes = fs::read(from).map_err(failed("read", from))?;
        if !(looks_same && fs::read(&path).is_ok_and(|present| present == bytes)) {
            fs::create_dir_all(bin_dir).map_err(failed("create", bin_dir))?;
            replace(&path, &bytes, 0o755, source.modified().ok())?;
            tracing::info!(path = %path.display(), "plugin installed");
        }
        self.compared.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether the configuration is in `conf_dir`.
pub fn is_there(conf_dir: &Path) -> bool {
    conf_dir.join(CONF_NAME).exists()
}

/// Which folder a path leads to.
pub fn identity(folder: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(folder).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// A configuration in `conf_dir` that runtimes take instead of ours: they take the first by name.
pub fn overruled_by(conf_dir: &Path) -> Option<String> {
    let entries = fs::read_dir(conf_dir).ok()?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_conf = |name: &String| {
        let extension = Path::new(name).extension().and_then(OsStr::to_str);
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    names.filter(is_conf).filter(|name| name.as_str() < CONF_NAME).min()
}

/// Puts `bytes` at `path` in one step: whoever opens it sees the old or the new file, whole.
fn replace(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    modified: Option<SystemTime>,
) -> Result<(), InstallError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    // No extension that a runtime would take for a configuration.
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    let write = || {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        modified.map_or(Ok(()), |time| file.set_modified(time))?;
        file.sync_all()?;
        // A program that somebody could still write to can't be started.
        drop(file);
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(failed("write", path))
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> InstallError + use<'a> {
    move |source| match owner_of_folder(path) {
        Some((folder, owner)) if source.kind() == io::ErrorKind::PermissionDenied && owner != 0 => {
            InstallError::NotRoots { operation, path: path.into(), folder, owner, source }
        }
        _ => InstallError::File { operation, path: path.into(), source },
    }
}

/// The folder that a path is in, or what there is of it, and whose it is.
fn owner_of_folder(path: &Path) -> Option<(PathBuf, u32)> {
    path.ancestors().skip(1).find_map(|folder| {
        let metadata = fs::metadata(folder).ok()?;
        Some((folder.to_owned(), metadata.uid()))
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::UNIX_EPOCH};

    use super::*;

    #[test]
    fn cni_13_the_configuration_says_all_versions_and_where_the_agent_is() {
        let value: serde_json::Value =
            serde_json::from_str(&render(Path::new("/run/mizzen"), true)).unwrap();
        let expected = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
            "name": "mizzen",
            "plugins": [{
                "type": "mizzen-cni", "stateDir": "/run/mizzen",
                "capabilities": {
                    "bandwidth": true, "dns": true, "ips": true, "mac": true, "portMappings": true,
                },
            }],
        });
        assert_eq!(value, expected);
        // Nobody would see to host ports.
        assert!(!render(Path::new("/run/mizzen"), false).contains("portMappings"));
    }

    #[test]
    fn cni_41_written_once_and_only_when_different() {
        let folder = tempfile::tempdir().unwrap();
        let conf_dir = folder.path().join("net.d");
        let inode = || fs::metadata(conf_dir.join(CONF_NAME)).unwrap().ino();
        write(&conf_dir, Path::new("/run/a"), true).unwrap();
        let first = inode();
        write(&conf_dir, Path::new("/run/a"), true).unwrap();
        assert_eq!(inode(), first);
        write(&conf_dir, Path::new("/run/b"), true).unwrap();
        assert_ne!(inode(), first, "a new file, never a changed one");
        let names: Vec<_> = fs::read_dir(&conf_dir).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file stays: {names:?}");
    }

    /// Whoever reads it finds one of the two, whole.
    #[test]
    fn cni_42_the_configuration_is_never_torn() {
        let folder = tempfile::tempdir().unwrap();
        let conf_dir = folder.path();
        write(conf_dir, Path::new("/run/a"), true).unwrap();
        let whole = ["/run/a", "/run/b"].map(|dir| render(Path::new(dir), true));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for dir in ["/run/b", "/run/a"].repeat(50) {
                    write(conf_dir, Path::new(dir), true).unwrap();
                }
            });
            while !writer.is_finished() {
                let read = fs::read_to_string(conf_dir.join(CONF_NAME)).unwrap();
                assert!(whole.contains(&read), "{read}");
                let strange = overruled_by(conf_dir);
                assert_eq!(strange, None, "a file on its way that a runtime would take");
            }
        });
    }

    /// Nothing in it expires, and the plugin talks to nobody but the agent.
    #[test]
    fn cni_47_the_configuration_has_no_credentials() {
        let list: serde_json::Value =
            serde_json::from_str(&render(Path::new("/run/mizzen"), true)).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        let keys: Vec<&str> = plugins[0].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!((plugins.len(), keys), (1, vec!["capabilities", "stateDir", "type"]));
    }

    #[test]
    fn cni_45_an_earlier_configuration_is_noticed_and_left() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("05-other.conflist.bak"), "").unwrap();
        fs::write(folder.path().join("99-other.conflist"), "").unwrap();
        assert_eq!(overruled_by(folder.path()), None);
        fs::write(folder.path().join("05-other.conf"), "").unwrap();
        assert_eq!(overruled_by(folder.path()).as_deref(), Some("05-other.conf"));
    }

    /// Packages of Debian's and others leave the folder to another user.
    #[test]
    fn cni_46_a_folder_that_is_not_roots_is_named_with_its_owner() {
        let root = tempfile::tempdir().unwrap();
        let bin_dir = root.path().join("bin");
        fs::create_dir(&bin_dir).unwrap();
        let said = |path: &Path, kind: io::ErrorKind| {
            format!("{:#}", anyhow::Error::from(failed("write", path)(kind.into())))
        };
        let denied = io::ErrorKind::PermissionDenied;
        let (plugin, below) = (bin_dir.join(PLUGIN), bin_dir.join("a/b"));
        assert!(!said(&plugin, denied).contains("chown"), "it is root's");
        std::os::unix::fs::chown(&bin_dir, Some(997), None).unwrap();
        for path in [&plugin, &below] {
            let text = said(path, denied);
            let remedy = format!("chown root:root {}", bin_dir.display());
            assert!(text.contains("user 997") && text.contains(&remedy), "{text}");
        }
        assert!(!said(&plugin, io::ErrorKind::StorageFull).contains("chown"), "another reason");
    }

    #[test]
    fn cni_46_the_plugin_is_replaced_by_renaming() {
        let folder = tempfile::tempdir().unwrap();
        let (from, bin_dir) = (folder.path().join("new"), folder.path().join("bin"));
        let plugin = Plugin::new(from.clone());
        let error = plugin.install(&bin_dir).unwrap_err();
        assert!(error.to_string().contains("install it"), "{error}");
        fs::write(&from, "one").unwrap();
        plugin.install(&bin_dir).unwrap();
        let running = File::open(bin_dir.join(PLUGIN)).unwrap();
        assert_eq!(running.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        fs::write(&from, "two").unwrap();
        plugin.install(&bin_dir).unwrap();
        assert_eq!(io::read_to_string(running).unwrap(), "one");
        assert_eq!(fs::read_to_string(bin_dir.join(PLUGIN)).unwrap(), "two");
        // The same again is not copied, by another process neither.
        let installed = || fs::metadata(bin_dir.join(PLUGIN)).unwrap().ino();
        let before = installed();
        plugin.install(&bin_dir).unwrap();
        Plugin::new(from.clone()).install(&bin_dir).unwrap();
        assert_eq!(installed(), before);
        fs::remove_file(&from).unwrap();
        plugin.install(&bin_dir).unwrap();
    }

    /// All files of an image are of one time.
    #[test]
    fn cni_46_a_new_plugin_of_the_old_ones_size_and_time_is_installed() {
        let folder = tempfile::tempdir().unwrap();
        let (from, bin_dir) = (folder.path().join("new"), folder.path().join("bin"));
        for version in ["one", "two"] {
            fs::write(&from, version).unwrap();
            File::options().write(true).open(&from).unwrap().set_modified(UNIX_EPOCH).unwrap();
            Plugin::new(from.clone()).install(&bin_dir).unwrap();
            assert_eq!(fs::read_to_string(bin_dir.join(PLUGIN)).unwrap(), version);
        }
    }
}
