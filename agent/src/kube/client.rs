//! How to reach the API server: from a kubeconfig, or from the pod's service account; with the
//! addresses overridden where the configuration names some.
//!
//! An agent that serves Services can't reach the API server at a Service address: it would depend
//! on itself. In the cluster it therefore wants `--api-server`.

use std::{path::Path, sync::Arc, time::Duration};

use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::ConfigExt as _,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, ServiceBuilder, timeout::TimeoutLayer};

use super::counted::Counted;
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

/// The API servers of the cluster, at least one, and how to reach them.
#[derive(Clone)]
pub struct ApiServers {
    configs: Vec<(String, Config)>,
    requests: Arc<Requests>,
}

/// Clients of the servers. What they do is done by the runtime that made them.
#[derive(Clone)]
pub struct Clients(Vec<(String, Client)>);

impl ApiServers {
    /// The servers. Nothing is sent yet: one that does not answer is no error here; one that no
    /// client can be made for is.
    pub async fn new(kubeconfig: Option<&Path>, urls: &[String]) -> Result<Self, ClientError> {
        let base = match kubeconfig {
            Some(path) => from_kubeconfig(path).await?,
            None => Config::incluster().map_err(|source| ClientError::InCluster(source.into()))?,
        };
        let named: Vec<String> =
            if urls.is_empty() { vec![base.cluster_url.to_string()] } else { urls.to_vec() };
        let mut configs = Vec::new();
        for url in named {
            let mut config = base.clone();
            config.cluster_url = url.parse().map_err(|_| ClientError::Url { url: url.clone() })?;
            configs.push((url, config));
        }
        let servers = Self { configs, requests: Arc::default() };
        servers.clients()?;
        Ok(servers)
    }

    /// What was asked of them, by all clients together.
    pub fn requests(&self) -> Arc<Requests> {
        Arc::clone(&self.requests)
    }

    /// Clients that are served by the runtime of the caller.
    pub fn clients(&self) -> Result<Clients, ClientError> {
        let client = |(url, config): &(String, Config)| {
            if let Some(proxy) = &config.proxy_url {
                let (url, proxy) = (url.clone(), proxy.to_string());
                return Err(ClientError::Proxy { url, proxy });
            }
            match client(config, &self.requests) {
                Ok(client) => Ok((url.clone(), client)),
                Err(source) => Err(ClientError::Client { url: url.clone(), source: source.into() }),
            }
        };
        self.configs.iter().map(client).collect::<Result<_, _>>().map(Clients)
    }
}

impl Clients {
    /// The server to use after `failures` failures in a row: each in turn.
    pub fn pick(&self, failures: usize) -> (&str, Client) {
        let (url, client) = &self.0[failures % self.0.len()];
        (url, client.clone())
    }

    /// Whether there is another server to turn to.
    pub fn several(&self) -> bool {
        self.0.len() > 1
    }

    /// The address that comes first.
    pub fn first_url(&self) -> &str {
        &self.0[0].0
    }
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

async fn from_kubeconfig(path: &Path) -> Result<Config, ClientError> {
    let error = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Kubeconfig {
        path: path.display().to_string(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|source| error(source.into()))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| error(source.into()))
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
    /// An `--api-server` is no URL.
    #[error("{url:?} is no URL; --api-server wants one such as https://192.0.2.1:6443")]
    Url {
        /// What was given.
        url: String,
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
