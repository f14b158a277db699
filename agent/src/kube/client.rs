//! How to reach the API server: at the addresses that the configuration names, else at the one that
//! goes with the credentials; and where none of these answers, at those that the Service
//! `kubernetes` was last known to lead to ([`super::bootstrap`]).
//!
//! Whoever fails asks for the next server ([`Clients::pick`]), and has the credentials read again
//! where their files have changed ([`ApiServers::look_again`]).

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{Client, Config, client::ConfigExt as _};
use tower::{BoxError, ServiceBuilder, timeout::TimeoutLayer};

use super::{
    bootstrap::{self, ServiceAddresses},
    counted::Counted,
    credentials::{Credentials, Read},
};
use crate::metrics::requests::Requests;

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the API server may take to begin its answer, as long as it itself works on a request.
/// How a list goes on is seen to in [`super::watch`].
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// A connection that says nothing for so long is probed by the kernel; without an answer to
/// [`PROBES`] it is over. A server that vanished is noticed within 30 seconds, and where nothing
/// changes the agent is not even woken: a time limit on each read, which the client has to offer,
/// woke it a second time for each change.
const SILENCE: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// How long what was sent may stay unconfirmed.
const UNCONFIRMED: Duration = Duration::from_secs(30);
/// A name that the certificate of every API server has: what is known of a server by the Service's
/// endpoints is its address, which the certificate need not have.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// The API servers of the cluster, at least one, and how to reach them.
#[derive(Clone)]
pub struct ApiServers(Arc<Shared>);

struct Shared {
    credentials: Credentials,
    read: ArcSwap<Read>,
    /// Grows with each reading of the credentials.
    version: AtomicU64,
    /// Addresses by configuration, or by the credentials.
    named: Vec<String>,
    /// Addresses by the endpoints of the Service `kubernetes`, without the named ones.
    known: ArcSwap<Vec<String>>,
    /// The address that worked last.
    works: ArcSwap<String>,
    requests: Arc<Requests>,
}

/// A server, as somebody uses it.
#[derive(Clone)]
pub struct Picked {
    /// Its address.
    pub url: String,
    /// The client for it.
    pub client: Client,
    /// Of the credentials.
    version: u64,
}

impl Picked {
    /// Whether this is the same server by the same credentials.
    pub fn is_same(&self, other: &Self) -> bool {
        self.url == other.url && self.version == other.version
    }
}

/// Clients of the servers. What they do is done by the runtime that asks for them first.
#[derive(Clone)]
pub struct Clients {
    servers: ApiServers,
    made: Arc<Mutex<Vec<Picked>>>,
}

impl ApiServers {
    /// The servers. Nothing is sent yet: one that does not answer is no error here; one that no
    /// client can be made for is.
    pub async fn new(kubeconfig: Option<&Path>, urls: &[String]) -> Result<Self, ClientError> {
        let credentials = Credentials::of(kubeconfig);
        let read = credentials.read().await?;
        let named = match urls {
            [] => vec![read.config.cluster_url.to_string()],
            urls => urls.to_vec(),
        };
        let works = ArcSwap::from_pointee(named[0].clone());
        let servers = Self(Arc::new(Shared {
            credentials,
            read: ArcSwap::from_pointee(read),
            version: AtomicU64::new(0),
            named,
            known: ArcSwap::default(),
            works,
            requests: Arc::default(),
        }));
        servers.clients()?;
        Ok(servers)
    }

    /// What was asked of them, by all clients together.
    pub fn requests(&self) -> Arc<Requests> {
        Arc::clone(&self.0.requests)
    }

    /// An error where one of the named addresses is a Service's: an agent that makes Services work
    /// can't reach by one what it needs for it.
    pub fn refuse_services(&self, services: &ServiceAddresses) -> Result<(), ClientError> {
        for url in &self.0.named {
            if let Some(why) = host(url).and_then(|host| services.has(&host)) {
                return Err(ClientError::Service { url: url.clone(), why });
            }
        }
        Ok(())
    }

    /// Addresses to try when no named one answers.
    pub fn learn(&self, urls: Vec<String>) {
        let unnamed = urls.into_iter().filter(|url| {
            let same = |named: &String| bootstrap::is_same_server(named, url);
            !self.0.named.iter().any(same)
        });
        self.0.known.store(Arc::new(unnamed.collect()));
    }

    /// The named addresses that a Service has, where `services` are known.
    pub fn named_hosts(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.0.named.iter().filter_map(|url| Some((url.as_str(), host(url)?.parse().ok()?)))
    }

    /// Reads the credentials again, where their files have changed. Those that can't be read stay
    /// as they were: whoever writes them is not done.
    pub async fn look_again(&self) {
        if !self.0.read.load().is_out_of_date() {
            return;
        }
        match self.0.credentials.read().await {
            Ok(read) => {
                self.0.read.store(Arc::new(read));
                self.0.version.fetch_add(1, Ordering::AcqRel);
                tracing::info!("the credentials for the API server were renewed");
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!("the credentials for the API server stay: {error:#}");
            }
        }
    }

    /// Clients that are served by the runtime of the caller.
    pub fn clients(&self) -> Result<Clients, ClientError> {
        let made = self.0.named.iter().map(|url| self.client(url));
        let made = Arc::new(Mutex::new(made.collect::<Result<_, _>>()?));
        Ok(Clients { servers: self.clone(), made })
    }

    fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// Every address, that first which worked last; named ones before those that are known.
    fn urls(&self) -> Vec<String> {
        let works = self.0.works.load();
        let known = self.0.known.load();
        let mut urls: Vec<_> = self.0.named.iter().chain(known.iter()).cloned().collect();
        if let Some(at) = urls.iter().position(|url| *url == **works) {
            urls[..=at].rotate_right(1);
        }
        urls
    }

    /// How to reach the server at `url`.
    fn config(&self, url: &str) -> Result<Config, ClientError> {
        let mut config = self.0.read.load().config.clone();
        let whole = url.parse().ok().filter(|url: &hyper::Uri| url.scheme().is_some());
        config.cluster_url = whole.ok_or_else(|| ClientError::Url { url: url.to_owned() })?;
        if !self.0.named.iter().any(|named| named == url) && config.tls_server_name.is_none() {
            config.tls_server_name = Some(SERVER_NAME.to_owned());
        }
        if let Some(proxy) = &config.proxy_url {
            let (url, proxy) = (url.to_owned(), proxy.to_string());
            return Err(ClientError::Proxy { url, proxy });
        }
        Ok(config)
    }

    /// A client of the server at `url`, by the credentials as they are now.
    fn client(&self, url: &str) -> Result<Picked, ClientError> {
        let version = self.version();
        let config = self.config(url)?;
        let client = client(&config, &self.0.requests)
            .map_err(|source| ClientError::Client { url: url.to_owned(), source: source.into() })?;
        Ok(Picked { url: url.to_owned(), client, version })
    }
}

impl Clients {
    /// The server to use after `failures` failures in a row: each in turn, beginning with that which
    /// worked last.
    pub fn pick(&self, failures: usize) -> Picked {
        let urls = self.servers.urls();
        let version = self.servers.version();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|picked| urls.contains(&picked.url));
        let of = |made: &[Picked], url: &str| made.iter().position(|picked| picked.url == url);
        // One for which no client can be made, as by a file that is half written, is left out.
        for turn in 0..urls.len() {
            let url = &urls[(failures + turn) % urls.len()];
            let at = of(&made, url);
            if let Some(at) = at.filter(|at| made[*at].version == version) {
                return made[at].clone();
            }
            match self.servers.client(url) {
                Ok(picked) => {
                    if let Some(at) = at {
                        made.swap_remove(at);
                    }
                    made.push(picked.clone());
                    return picked;
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!("no new client for the API server {url}: {error:#}");
                }
            }
        }
        // Those of named servers are there from the beginning.
        made[failures % made.len()].clone()
    }

    /// Has others begin with the server that `picked` is.
    pub fn works(&self, picked: &Picked) {
        if **self.servers.0.works.load() != picked.url {
            self.servers.0.works.store(Arc::new(picked.url.clone()));
        }
    }

    /// See [`ApiServers::look_again`].
    pub async fn look_again(&self) {
        self.servers.look_again().await;
    }

    /// The address that comes first.
    pub fn first_url(&self) -> String {
        self.servers.urls().swap_remove(0)
    }
}

/// How long a write to the Node, and what is read for it, may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A call that ends, one way or the other.
pub(super) async fn limited<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service("the API server did not answer in time".into());
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// Whether a server that restarts, is busy, or can't be reached is all that is wrong.
pub(super) fn may_pass(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 408 | 429 | 500..),
        kube::Error::Auth(_) | kube::Error::BuildRequest(_) | kube::Error::SerdeError(_) => false,
        _ => true,
    }
}

/// The host that a URL names, without the brackets of IPv6 addresses.
fn host(url: &str) -> Option<String> {
    let url: hyper::Uri = url.parse().ok()?;
    Some(url.host()?.trim_matches(['[', ']']).to_owned())
}

/// The client that `kube` makes by default, but for how it knows that a server is gone.
fn client(config: &Config, requests: &Arc<Requests>) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(SILENCE));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(UNCONFIRMED));
    let connector = config.rustls_https_connector_with_connector(tcp)?;
    let host = config.cluster_url.authority().map_or("", |authority| authority.as_str());
    let host: Arc<str> = host.into();
    let counted = |inner| {
        let (host, requests) = (Arc::clone(&host), Arc::clone(requests));
        Counted { inner, host, requests }
    };
    let service = ServiceBuilder::new()
        .layer_fn(counted)
        .layer(TimeoutLayer::new(ANSWER_TIMEOUT))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig can't be used.
    #[error("read the kubeconfig {path}; --kubeconfig names the file")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No kubeconfig is named, and this is not a pod with a service account.
    #[error("find the API server from inside of a pod; outside of one, --kubeconfig is needed")]
    InCluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An `--api-server`, or the `server` of a kubeconfig, is no URL.
    #[error(
        "{url:?} is no URL; --api-server, or `server` in the kubeconfig, has to be one such as \
         https://192.0.2.1:6443"
    )]
    Url {
        /// What was given.
        url: String,
    },
    /// The API server is named by an address of a Service, which this agent is to make work.
    #[error(
        "the API server {url} can't be reached before this agent runs: {why}, and it is this agent \
         that makes Services work; name the servers' own addresses by --api-server, as \
         https://192.0.2.1:6443 (repeatable)"
    )]
    Service {
        /// What was given, by --api-server or with the credentials.
        url: String,
        /// Which Service's it is.
        why: String,
    },
    /// The environment or the kubeconfig sends the agent through a proxy.
    #[error(
        "the API server {url} would be reached through the proxy {proxy}, which the agent does not \
         do: name the server in NO_PROXY, or remove proxy-url from the kubeconfig"
    )]
    Proxy {
        /// The server.
        url: String,
        /// The proxy.
        proxy: String,
    },
    /// TLS or credentials can't be set up.
    #[error("set up a client for the API server {url}")]
    Client {
        /// The server.
        url: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn f46_a_server_without_a_scheme_is_an_error_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let text = "{apiVersion: v1, kind: Config, current-context: c,
            contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}],
            clusters: [{name: c, cluster: {server: '192.0.2.1:6443'}}]}";
        std::fs::write(&path, text).unwrap();
        for urls in [&[][..], &["192.0.2.2:6443".to_owned()]] {
            let made = ApiServers::new(Some(&path), urls).await;
            assert!(matches!(made.err(), Some(ClientError::Url { .. })), "{urls:?}");
        }
    }

    #[test]
    fn what_may_pass_is_no_answer_about_rights_or_objects() {
        let status = |code: u16| {
            let status = json!({"status": "Failure", "message": "", "reason": "", "code": code});
            let status = serde_json::from_value(status).unwrap();
            may_pass(&kube::Error::Api(status))
        };
        for code in [408, 429, 500, 503, 504] {
            assert!(status(code), "{code}");
        }
        for code in [401, 403, 404, 409, 422] {
            assert!(!status(code), "{code}");
        }
        assert!(may_pass(&kube::Error::Service("the connection was refused".into())));
    }
}
