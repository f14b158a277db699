//! Who the agent is to the API server: a kubeconfig, or the service account of its pod. Both are
//! files that somebody else renews: tokens expire within the hour, certificates within the year.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::client::ClientError;

/// Where a pod's service account is (`kubernetes.io/serviceaccount`).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where credentials are.
#[derive(Clone, Debug)]
pub(super) enum Credentials {
    /// In a kubeconfig, and in the files that it names.
    Kubeconfig(PathBuf),
    /// In the pod's service account.
    ServiceAccount,
}

/// Credentials as they were read.
#[derive(Clone)]
pub(super) struct Read {
    /// They, and the address that goes with them.
    pub(super) config: Config,
    /// Of the content of their files: another one means that they were renewed.
    fingerprint: u64,
    files: BTreeSet<PathBuf>,
}

impl Credentials {
    /// Those of the kubeconfig, where there is one.
    pub(super) fn of(kubeconfig: Option<&Path>) -> Self {
        kubeconfig.map_or(Self::ServiceAccount, |path| Self::Kubeconfig(path.to_owned()))
    }

    /// Reads them.
    pub(super) async fn read(&self) -> Result<Read, ClientError> {
        // Before the content is used: what is written meanwhile is noticed the next time.
        let (files, config) = match self {
            Self::Kubeconfig(path) => {
                let error = |source: Box<dyn std::error::Error + Send + Sync>| {
                    ClientError::Kubeconfig { path: path.display().to_string(), source }
                };
                let read = Kubeconfig::read_from(path).map_err(|source| error(source.into()))?;
                let mut files = named_files(&read);
                files.insert(path.clone());
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(read, &options).await;
                (files, config.map_err(|source| error(source.into()))?)
            }
            Self::ServiceAccount => {
                let folder = Path::new(SERVICE_ACCOUNT);
                let files = ["token", "ca.crt"].map(|name| folder.join(name));
                let config = Config::incluster();
                let config = config.map_err(|source| ClientError::InCluster(source.into()))?;
                (files.into(), config)
            }
        };
        Ok(Read { config, fingerprint: fingerprint(&files), files })
    }
}

impl Read {
    /// Whether the files have other content than when they were read.
    pub(super) fn is_out_of_date(&self) -> bool {
        fingerprint(&self.files) != self.fingerprint
    }
}

/// The files that a kubeconfig names.
fn named_files(kubeconfig: &Kubeconfig) -> BTreeSet<PathBuf> {
    let of_users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let of_users = of_users.flat_map(|user| {
        [&user.client_certificate, &user.client_key, &user.token_file].into_iter().flatten()
    });
    let of_clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let of_clusters = of_clusters.filter_map(|cluster| cluster.certificate_authority.as_ref());
    of_users.chain(of_clusters).map(PathBuf::from).collect()
}

/// Of the content, since files are replaced by links to others of any age.
fn fingerprint(files: &BTreeSet<PathBuf>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}
