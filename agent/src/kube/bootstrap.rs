//! How an agent that makes Services work finds the API server before it does: by addresses that are
//! no Service's.
//!
//! The named ones come first (`--api-server`). Where none of them answers, those are tried that the
//! Service `kubernetes` led to when it was last seen: they are kept in a file that outlives a
//! reboot. What is in it decides only where a connection is tried; whom it reaches is told by the
//! cluster's certificates.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Snapshots, client::ApiServers};
use crate::{
    data_dir,
    model::{ObjectKey, node::Cidr, snapshot::Snapshot},
    status::{Board, State},
    supervisor::TaskError,
};

/// The part on the board.
pub const PART: &str = "api-servers";
/// The file's name.
const FILE: &str = "api-servers.json";
/// Addresses that are remembered at most, and octets of the file.
const REMEMBERED_MAX: usize = 64;
const FILE_MAX: u64 = 64 << 10;
/// How often the Service's endpoints are looked at, where nothing else changes: they are those of
/// machines, and each change of any endpoint would wake the agent.
const LOOK: Duration = Duration::from_secs(10);

/// What is known of Services' addresses before anything was asked.
#[derive(Clone, Debug, Default)]
pub struct ServiceAddresses {
    /// Where the kubelet says that the Service `kubernetes` is.
    pub kubernetes: Option<IpAddr>,
    /// Ranges of cluster IPs, as configured.
    pub ranges: Vec<Cidr>,
    /// The cluster's domain.
    pub domain: String,
}

impl ServiceAddresses {
    /// With what the kubelet told this process: `KUBERNETES_PORT`. `KUBERNETES_SERVICE_HOST` says the
    /// same, but is what manifests set to the server's own address.
    pub fn of_process(ranges: Vec<Cidr>, domain: &str) -> Self {
        let told = std::env::var("KUBERNETES_PORT").ok();
        Self { kubernetes: told.as_deref().and_then(told_address), ranges, domain: domain.into() }
    }

    /// Whose address or name `host` is, where it is a Service's.
    pub fn has(&self, host: &str) -> Option<String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            if self.kubernetes == Some(ip) {
                return Some(format!("{ip} is the cluster IP of the Service kubernetes"));
            }
            let range = self.ranges.iter().find(|range| range.contains(ip))?;
            return Some(format!("{ip} is in the range of cluster IPs {range}"));
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let domain = self.domain.trim_end_matches('.').to_ascii_lowercase();
        let service = name.strip_suffix(&format!(".{domain}")).unwrap_or(&name);
        let of_services = service == "kubernetes"
            || service == "kubernetes.default"
            || service.split('.').count() == 3 && service.split('.').next_back() == Some("svc");
        of_services.then(|| format!("{host} is the name of a Service"))
    }
}

/// The address in `tcp://10.96.0.1:443`.
fn told_address(told: &str) -> Option<IpAddr> {
    let address: SocketAddr = told.strip_prefix("tcp://")?.parse().ok()?;
    Some(address.ip())
}

/// Whether two URLs lead to one port of one host.
pub(super) fn is_same_server(one: &str, other: &str) -> bool {
    let server = |url: &str| {
        let url: hyper::Uri = url.parse().ok()?;
        let port = url.port_u16().unwrap_or(443);
        Some((url.host()?.trim_matches(['[', ']']).to_ascii_lowercase(), port))
    };
    server(one).is_some_and(|one| Some(one) == server(other))
}

/// The addresses that the Service `kubernetes` leads to.
fn endpoints(snapshot: &Snapshot) -> Vec<String> {
    let service = ObjectKey::new("default", "kubernetes");
    let servers: BTreeSet<SocketAddr> = snapshot
        .endpoints_of(&service)
        .filter(|(_, endpoint)| endpoint.ready)
        .flat_map(|(slice, endpoint)| {
            let ports = slice.ports.iter().filter(|port| &*port.name == "https");
            ports.map(|port| SocketAddr::new(endpoint.address, port.port))
        })
        .collect();
    servers.iter().take(REMEMBERED_MAX).map(|server| format!("https://{server}")).collect()
}

/// The file's content.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Remembered {
    servers: Vec<String>,
}

/// Why the file can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}, where the addresses of the API servers are kept (--data-dir)")]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What was last known, from the file in `data_dir`; nothing where there is none. A file that others
/// than root and this process may write is none.
pub fn recall(data_dir: &Path) -> Result<Vec<String>, FileError> {
    let path = data_dir.join(FILE);
    let read = || {
        let Some(text) = data_dir::read(&path, FILE_MAX)? else { return Ok(Vec::new()) };
        let remembered: Remembered = serde_json::from_str(&text)?;
        Ok(remembered.servers)
    };
    match read() {
        Err(source) => Err(FileError { operation: "read", path, source }),
        Ok(mut servers) => {
            servers.truncate(REMEMBERED_MAX);
            Ok(servers)
        }
    }
}

/// Keeps `servers` in the folder `data_dir`.
fn keep(data_dir: &Path, servers: &[String]) -> Result<(), FileError> {
    let path = data_dir.join(FILE);
    let content = Remembered { servers: servers.to_vec() };
    let content = serde_json::to_vec(&content).map_err(io::Error::from);
    let written = content.and_then(|content| data_dir::write(&path, &content));
    written.map_err(|source| FileError { operation: "write", path, source })
}

/// Follows the Service's endpoints: others are told of them, and they are kept. Says where a server
/// is named by what turns out to be a Service's address.
pub async fn run(
    data_dir: Option<PathBuf>,
    services: bool,
    servers: ApiServers,
    mut snapshots: Snapshots,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let mut told = Vec::new();
    let mut kept = data_dir.as_deref().and_then(|dir| recall(dir).ok());
    loop {
        snapshots.calm.mark_unchanged();
        let snapshot = Arc::clone(&snapshots.all.borrow());
        let known = endpoints(&snapshot);
        // None is no news: whoever sees that has reached a server.
        if snapshot.synced.slices && !known.is_empty() {
            if known != told {
                servers.learn(known.clone());
                told.clone_from(&known);
            }
            let mut state = State::Ready;
            if let Some(dir) = &data_dir
                && kept.as_ref() != Some(&known)
            {
                match keep(dir, &known) {
                    Ok(()) => kept = Some(known),
                    Err(error) => {
                        state = State::Degraded(format!("{:#}", anyhow::Error::from(error)));
                    }
                }
            }
            if let (true, Some(why)) = (services, by_service(&servers, &snapshot)) {
                state = State::Degraded(why);
            }
            board.report(PART, state);
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = snapshots.calm.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Which named address is a Service's, by what is known of Services now.
fn by_service(servers: &ApiServers, snapshot: &Snapshot) -> Option<String> {
    let has = |ip: IpAddr| {
        let in_range = snapshot.service_cidrs.values().flat_map(|object| &object.cidrs);
        let mut in_range = in_range.filter(|range| range.contains(ip));
        in_range.next().is_some()
            || snapshot.services.values().any(|service| service.cluster_ips.contains(&ip))
    };
    let (url, _) = servers.named_hosts().find(|(_, ip)| has(*ip))?;
    Some(format!(
        "the API server is named by {url}, which is a Service's address: after a reboot this agent \
         can't reach it; name the servers' own addresses by --api-server"
    ))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    };

    use super::*;

    #[test]
    fn f46_addresses_and_names_of_services_are_told() {
        let services = ServiceAddresses {
            kubernetes: told_address("tcp://10.96.0.1:443"),
            ranges: vec!["fd00:96::/112".parse().unwrap()],
            domain: "cluster.local".into(),
        };
        for host in [
            "10.96.0.1",
            "fd00:96::1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "Kubernetes.default.svc.cluster.local.",
            "other.kube-system.svc",
        ] {
            assert!(services.has(host).is_some(), "{host}");
        }
        for host in ["10.96.0.2", "172.30.0.1", "fd00:30::1", "api.example", "svc", "a.b.c.svc"] {
            assert_eq!(services.has(host), None, "{host}");
        }
    }

    #[test]
    fn urls_of_one_server_are_one() {
        assert!(is_same_server("https://192.0.2.1", "https://192.0.2.1:443/"));
        assert!(is_same_server("https://[fd00::1]:6443/", "https://[fd00::1]:6443"));
        assert!(!is_same_server("https://192.0.2.1:6443", "https://192.0.2.1"));
        assert!(!is_same_server("", ""));
    }

    #[test]
    fn f46_what_was_kept_is_recalled_and_others_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("made");
        assert_eq!(recall(&dir).unwrap(), Vec::<String>::new());
        let servers = vec!["https://192.0.2.1:6443".to_owned()];
        keep(&dir, &servers).unwrap();
        keep(&dir, &servers).unwrap();
        assert_eq!(recall(&dir).unwrap(), servers);
        let file = dir.join(FILE);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(recall(&dir).unwrap_err().source.to_string().contains("others than root"));
        fs::write(&file, "{\"servers\":").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(recall(&dir).is_err(), "half a file is an error");
    }
}
