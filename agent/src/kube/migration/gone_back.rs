//! That services of this node went back to kube-proxy: a file in the agent's data folder, which outlives
//! restarts without an API server. It names the cluster that asked for it, so that it does not outlive
//! that: in another cluster on the same machine nobody asked.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::ListParams};

use crate::{
    config::Config, data_dir, kube::client::limited, model::node::KubeProxy, status::State,
};

/// The part on the board, where services went back.
pub const PART: &str = "services-of-kube-proxy";
/// In the data folder.
const FILE: &str = "services-of-kube-proxy";
/// The namespace that every cluster has from its first day to its last.
const NAMESPACE: &str = "kube-system";

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoneBack {
    /// Where it is.
    file: PathBuf,
    /// The cluster that asked for it, as [`cluster`] tells it; `None`: nobody knows.
    cluster: Option<String>,
}

impl GoneBack {
    /// What is kept, where this configuration asks for services.
    pub fn of(config: &Config) -> Option<Self> {
        if config.services { Self::read(config.data_dir().as_deref()) } else { None }
    }

    /// What is kept in a data folder. A file that can't be read counts, as one that names no cluster:
    /// kube-proxy and Mizzen would else both have the services.
    pub fn read(data_dir: Option<&Path>) -> Option<Self> {
        let file = data_dir?.join(FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(_) if file.exists() => String::new(),
            Err(_) => return None,
        };
        let cluster = Some(text.trim().to_owned()).filter(|cluster| !cluster.is_empty());
        Some(Self { file, cluster })
    }

    /// Keeps it for good: after a loss of power too.
    pub fn keep(folder: &Path, cluster: Option<&str>) -> Result<(), String> {
        let file = folder.join(FILE);
        data_dir::write(&file, cluster.unwrap_or_default().as_bytes())
            .map_err(|error| format!("write {}: {error}", file.display()))
    }

    /// Forgets it.
    pub fn remove(&self) -> Result<(), String> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("remove {}: {error}", self.file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whether it names a cluster.
    pub fn names_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Whether it names another cluster than this.
    pub fn is_of_another(&self, cluster: &str) -> bool {
        self.cluster.as_deref().is_some_and(|asked| asked != cluster)
    }

    /// How that is, where the Node's label says this. Where nobody asks for it any more, it is not what
    /// the configuration says.
    pub fn state(&self, asked: Option<KubeProxy>) -> State {
        if asked == Some(KubeProxy::Returning) {
            State::Ready
        } else {
            State::Degraded(self.words())
        }
    }

    /// The same as a comment below the configuration.
    pub fn comment(&self) -> String {
        format!("# {}\n", self.words())
    }

    /// As the operator reads it, in one line.
    pub fn words(&self) -> String {
        format!(
            "this agent has no services, though its configuration says `services: true`: they went \
             back to kube-proxy by `mizzen migrate rollback`, as {file} says. To have them here \
             again: `mizzen migrate apply --kubeconfig FILE`; where no kube-proxy is left, remove that \
             file and start the agent anew. To leave them to kube-proxy: `services: false`",
            file = self.file.display()
        )
    }
}

/// Which cluster this is: the UID of its namespace `kube-system`.
pub(super) async fn cluster(client: Client) -> Result<String, kube::Error> {
    let namespaces: Api<Namespace> = Api::all(client);
    // A list, for which the agent's role has the right.
    let only = ListParams::default().fields(&format!("metadata.name={NAMESPACE}"));
    let found = limited(namespaces.list(&only)).await?.items;
    let mut named = found.into_iter().map(|namespace| namespace.metadata);
    let found = named.find(|metadata| metadata.name.as_deref() == Some(NAMESPACE));
    let none = || kube::Error::Service(format!("there is no namespace {NAMESPACE}").into());
    found.and_then(|metadata| metadata.uid).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_of_the_cluster_that_asked_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let read = || GoneBack::read(Some(folder.path()));
        assert_eq!((read(), GoneBack::read(None)), (None, None));
        for (cluster, names_cluster) in [(Some("one"), true), (None, false)] {
            GoneBack::keep(folder.path(), cluster).unwrap();
            let kept = read().unwrap();
            assert_eq!(kept.names_cluster(), names_cluster, "{kept:?}");
            assert!(!kept.is_of_another("one"), "{kept:?}");
            assert_eq!(kept.is_of_another("another"), names_cluster, "{kept:?}");
            kept.remove().unwrap();
            assert_eq!(read(), None);
            kept.remove().unwrap();
        }
    }

    #[test]
    fn who_wants_no_services_is_not_kept_from_them() {
        let folder = tempfile::tempdir().unwrap();
        GoneBack::keep(folder.path(), Some("one")).unwrap();
        for services in [true, false] {
            let data_dir = folder.path().to_owned();
            let config = Config { services, data_dir, ..Config::default() };
            assert_eq!(GoneBack::of(&config).is_some(), services);
        }
    }

    /// As agents before wrote it, and as a disk may have it.
    #[test]
    fn a_file_that_says_nothing_counts_until_somebody_removes_it() {
        let folder = tempfile::tempdir().unwrap();
        for text in [&b""[..], b"\n", b"\xff"] {
            fs::write(folder.path().join(FILE), text).unwrap();
            let kept = GoneBack::read(Some(folder.path())).unwrap();
            assert!(!kept.names_cluster() && !kept.is_of_another("one"), "{text:?}");
        }
    }

    #[test]
    fn it_is_told_with_the_file_and_the_remedy_unless_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        GoneBack::keep(folder.path(), Some("one")).unwrap();
        let kept = GoneBack::read(Some(folder.path())).unwrap();
        assert_eq!(kept.state(Some(KubeProxy::Returning)), State::Ready);
        for asked in [None, Some(KubeProxy::Runs), Some(KubeProxy::Removed)] {
            let State::Degraded(why) = kept.state(asked) else { panic!("{asked:?}") };
            let file = folder.path().join(FILE);
            assert!(why.contains(&*file.to_string_lossy()) && !why.contains('\n'), "{why}");
            assert!(why.contains("migrate apply") && why.contains("`services: false`"), "{why}");
        }
    }
}
