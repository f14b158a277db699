//! What a run gives, and clients to make it with.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Serialize;
use tower::ServiceBuilder;

/// One measurement.
#[derive(Default, Serialize)]
pub(crate) struct Sample {
    /// Operations per second.
    pub(crate) rate: f64,
    /// How many.
    pub(crate) operations: u64,
    /// Median of the latencies in microseconds.
    pub(crate) p50_us: f64,
    /// The latency that one of a hundred exceeds.
    pub(crate) p99_us: f64,
    /// CPU time of the server in microseconds for each operation.
    pub(crate) cpu_us: f64,
}

impl Sample {
    /// Of so many operations in some time, with latencies of theirs or of others.
    pub(crate) fn of(operations: usize, time: Duration, mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        let at = |share: usize| {
            let found =
                latencies.get((latencies.len() * share / 100).min(latencies.len().max(1) - 1));
            found.map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
        };
        Self {
            rate: count(operations) / time.as_secs_f64(),
            operations: operations as u64,
            p50_us: at(50),
            p99_us: at(99),
            cpu_us: 0.0,
        }
    }
}

/// A number of things to divide by.
#[expect(clippy::cast_precision_loss, reason = "there are far less than 2^52")]
pub(crate) fn count(things: usize) -> f64 {
    things as f64
}

/// A client of the kubeconfig's user, with one connection of its own. All that it asks shares that
/// one, as with Kubernetes' own clients, which speak HTTP/2; kube's would open one for each watch.
pub(crate) async fn client(file: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(file)
        .with_context(|| format!("can't read the kubeconfig {}", file.display()))?;
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    // A request is several frames, the second of which would wait for an acknowledgement.
    tcp.set_nodelay(true);
    let connector = config.rustls_https_connector_with_connector(tcp)?;
    let mut http = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    let http = http.http2_only(true).build(connector);
    let service = ServiceBuilder::new().layer(config.base_uri_layer()).service(http);
    Ok(Client::new(service, config.default_namespace))
}

/// A client of etcd's, with a connection of its own.
pub(crate) async fn etcd(url: &str) -> Result<etcd_client::Client> {
    let client = etcd_client::Client::connect([url], None).await;
    client.with_context(|| format!("can't connect to etcd at {url}"))
}
