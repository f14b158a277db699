//! kube-proxy's configuration as an agent last started with it, in the data folder.
//!
//! An agent that names it depends on a ConfigMap of kube-proxy's, which somebody may remove once
//! kube-proxy is gone. It then goes on with what it had, and says so. A kubeconfig in the same folder
//! is one of the same ConfigMap, as a rule, and names files of tokens and keys; it is kept too. One
//! that holds a token, a key or a password itself is a node's own, and is not copied.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{ConfigError, kube_proxy::Taken, take};
use crate::data_dir;

/// Below the data folder.
const FOLDER: &str = "kube-proxy";
/// As kubeadm calls them.
const CONFIG: &str = "config.conf";
const KUBECONFIG: &str = "kubeconfig.conf";
/// Octets of a file: what a ConfigMap may have.
const FILE_MAX: u64 = 1 << 20;

/// The configuration, as it is where it is named or as it was kept.
#[derive(Clone, Debug)]
pub(super) struct Source {
    named: PathBuf,
    /// Where it is kept; none where nothing is.
    folder: Option<PathBuf>,
    text: String,
    is_kept: bool,
    /// The kubeconfig beside it.
    kubeconfig: Option<PathBuf>,
}

impl Source {
    /// What `named` holds; where there is no such file, what was kept of it.
    pub(super) fn find(named: &Path, data_dir: &Path) -> Result<Self, ConfigError> {
        let folder = (!data_dir.as_os_str().is_empty()).then(|| data_dir.join(FOLDER));
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| ConfigError::Read { path, source }
        };
        let found = match fs::read_to_string(named) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let kept = folder.as_ref().map(|folder| folder.join(CONFIG)).unwrap_or_default();
                let text = data_dir::read(&kept, FILE_MAX).map_err(failed(&kept))?;
                text.map(|text| (text, true)).ok_or_else(|| failed(named)(error))?
            }
            found => (found.map_err(failed(named))?, false),
        };
        let (named, (text, is_kept)) = (named.to_owned(), found);
        Ok(Self { named, folder, text, is_kept, kubeconfig: None })
    }

    /// What it says.
    pub(super) fn take(&mut self) -> Result<Taken, ConfigError> {
        let kept = |name: &str| self.folder.as_ref().map(|folder| folder.join(name));
        let place = kept(CONFIG).filter(|_| self.is_kept).unwrap_or_else(|| self.named.clone());
        let mut taken = take(&self.text, &place)?;
        let beside = |path: &&mut PathBuf| path.parent() == self.named.parent();
        if let Some(path) = taken.settings.kubeconfig.as_mut().filter(beside) {
            if let Some(kept) = kept(KUBECONFIG).filter(|_| self.is_kept)
                && !path.exists()
                && data_dir::read(&kept, FILE_MAX).is_ok_and(|text| text.is_some())
            {
                *path = kept;
            }
            self.kubeconfig = Some(path.clone());
        }
        Ok(taken)
    }

    /// Keeps it for agents that start later. What an agent starts with is good.
    pub(super) fn keep(&self) -> io::Result<()> {
        let Some(folder) = self.folder.as_ref().filter(|_| !self.is_kept) else { return Ok(()) };
        if let Some(path) = &self.kubeconfig {
            let text = fs::read_to_string(path)?;
            let copy = folder.join(KUBECONFIG);
            if !holds_secrets(&text) {
                put(&copy, &text)?;
            } else if let Err(error) = fs::remove_file(&copy)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        put(&folder.join(CONFIG), &self.text)
    }

    /// Why it is as it was kept, where it is.
    pub(super) fn is_gone(&self) -> Option<String> {
        let folder = self.folder.as_ref().filter(|_| self.is_kept)?;
        Some(format!(
            "{} is gone, which kubeProxyConfig names; its settings are those of the last start, kept \
             in {}: put it back, or have the agent's own configuration say what counts of it \
             (`mizzen-agent config show`) and name it no more",
            self.named.display(),
            folder.display()
        ))
    }
}

/// Whether a kubeconfig has something in it that lets who reads it in, by itself or for all that can
/// be told.
fn holds_secrets(kubeconfig: &str) -> bool {
    const SECRET: [&str; 6] =
        ["token", "client-key-data", "password", "auth-provider", "exec", "username"];
    let read: Result<serde_json::Value, _> = serde_yaml_ng::from_str(kubeconfig);
    let Ok(read) = read else { return true };
    let users = read["users"].as_array().into_iter().flatten();
    let mut fields = users.filter_map(|user| user["user"].as_object()).flatten();
    fields.any(|(name, _)| SECRET.contains(&&**name))
}

/// Writes it, where it is not so.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if data_dir::read(path, FILE_MAX).is_ok_and(|kept| kept.as_deref() == Some(text)) {
        return Ok(());
    }
    data_dir::write(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{super::*, *};

    const TEXT: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
                        kind: KubeProxyConfiguration\nhostnameOverride: proxied\n";

    /// A mounted ConfigMap, with a kubeconfig in it, and a data folder.
    fn flags(root: &Path) -> Flags {
        let map = root.join("map");
        fs::create_dir_all(&map).unwrap();
        let kubeconfig = map.join("kubeconfig.conf");
        let text = format!("{TEXT}clientConnection: {{kubeconfig: {}}}\n", kubeconfig.display());
        fs::write(map.join("config.conf"), text).unwrap();
        fs::write(&kubeconfig, "clusters: []").unwrap();
        Flags {
            kube_proxy_config: Some(map.join("config.conf")),
            data_dir: Some(root.join("data")),
            ..Flags::default()
        }
    }

    fn resolved(flags: &Flags) -> Result<Resolved, ConfigError> {
        resolve(None, flags.clone(), Environment::default())
    }

    #[test]
    fn a_configuration_whose_file_is_gone_is_what_it_was_at_the_last_start() {
        let root = tempfile::tempdir().unwrap();
        let flags = flags(root.path());
        let first = resolved(&flags).unwrap();
        assert_eq!(first.kube_proxys_is_gone(), None);
        fs::remove_dir_all(root.path().join("map")).unwrap();
        let lost = resolved(&flags).unwrap_err();
        assert!(matches!(lost, ConfigError::Read { .. }), "nothing was kept: {lost}");
        // Looking keeps nothing; starting does.
        first.keep_kube_proxys().unwrap_err();
        let _again = self::flags(root.path());
        first.keep_kube_proxys().unwrap();
        fs::remove_dir_all(root.path().join("map")).unwrap();
        let now = resolved(&flags).unwrap();
        assert_eq!(now.config.node_name, "proxied");
        let kubeconfig = now.config.kubeconfig().unwrap();
        assert_eq!(kubeconfig, root.path().join("data/kube-proxy/kubeconfig.conf"));
        assert_eq!(fs::read_to_string(kubeconfig).unwrap(), "clusters: []");
        let why = now.kube_proxys_is_gone().unwrap();
        assert!(why.contains("config.conf is gone") && why.contains("config show"), "{why}");
        now.keep_kube_proxys().unwrap();
        // Put back, it counts, and so does what changed.
        let _again = self::flags(root.path());
        fs::write(root.path().join("map/config.conf"), TEXT.replace("proxied", "new")).unwrap();
        let now = resolved(&flags).unwrap();
        assert_eq!((&*now.config.node_name, now.kube_proxys_is_gone()), ("new", None));
    }

    #[test]
    fn a_copy_that_others_may_write_is_none() {
        let root = tempfile::tempdir().unwrap();
        let flags = flags(root.path());
        resolved(&flags).unwrap().keep_kube_proxys().unwrap();
        fs::remove_dir_all(root.path().join("map")).unwrap();
        let copy = root.path().join("data/kube-proxy/config.conf");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o666)).unwrap();
        let error = anyhow::Error::from(resolved(&flags).unwrap_err());
        assert!(format!("{error:#}").contains("others than root"), "{error:#}");
    }

    #[test]
    fn a_kubeconfig_with_a_secret_in_it_is_not_kept() {
        for (user, is_kept) in [
            ("{tokenFile: /token}", true),
            ("{client-key: /key, client-certificate: /crt}", true),
            ("{token: hunter2}", false),
            ("{client-key-data: aHVudGVyMg==}", false),
            ("{password: hunter2, username: me}", false),
            ("{", false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let flags = flags(root.path());
            // One that was kept before does not stay.
            resolved(&flags).unwrap().keep_kube_proxys().unwrap();
            let text = format!("users: [{{name: a, user: {{}}}}, {{name: b, user: {user}}}]");
            fs::write(root.path().join("map/kubeconfig.conf"), text).unwrap();
            resolved(&flags).unwrap().keep_kube_proxys().unwrap();
            let copy = root.path().join("data/kube-proxy/kubeconfig.conf");
            assert_eq!(copy.exists(), is_kept, "{user}");
        }
    }

    #[test]
    fn a_kubeconfig_of_the_node_is_not_kept() {
        let root = tempfile::tempdir().unwrap();
        let flags = flags(root.path());
        let text = format!("{TEXT}clientConnection: {{kubeconfig: /var/lib/kubelet/kubeconfig}}\n");
        fs::write(root.path().join("map/config.conf"), text).unwrap();
        resolved(&flags).unwrap().keep_kube_proxys().unwrap();
        let kept: Vec<_> = fs::read_dir(root.path().join("data/kube-proxy")).unwrap().collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
    }
}
