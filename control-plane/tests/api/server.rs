//! A server for one test, and raw requests to it.

use std::path::PathBuf;

use clap::Parser as _;
use http::{Method, Request};
use kube::Client;
use mizzen_control_plane::serve::{self, Args};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// A running server with a data directory of its own.
pub(crate) struct Server {
    /// A client with the administrator's certificate.
    pub(crate) client: Client,
    /// The administrator's kubeconfig.
    pub(crate) kubeconfig: PathBuf,
    /// `https://127.0.0.1:PORT`.
    pub(crate) url: String,
    control_plane: serve::Server,
    directory: tempfile::TempDir,
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// Arguments of `serve` for a directory, with a free port.
pub(crate) fn args(directory: &std::path::Path, more: &[&str]) -> Args {
    let directory = directory.to_str().unwrap();
    let fixed = ["serve", "--data-dir", directory, "--listen", "127.0.0.1:0", "--no-controllers"];
    Cli::parse_from(fixed.iter().chain(more)).args
}

/// A client made from a kubeconfig.
pub(crate) async fn client(kubeconfig: &std::path::Path) -> Client {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(config, &options).await.unwrap();
    // Tests want to see every answer.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

impl Server {
    /// Starts a server that keeps its objects in memory.
    pub(crate) async fn start() -> Self {
        Self::with(&["--in-memory"]).await
    }

    /// Starts a server with further arguments.
    pub(crate) async fn with(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control_plane =
            serve::Server::start(args(directory.path(), more), CancellationToken::new())
                .await
                .unwrap();
        let kubeconfig = control_plane.kubeconfig.clone();
        let url = format!("https://{}", control_plane.addresses[0]);
        Self { client: client(&kubeconfig).await, kubeconfig, url, control_plane, directory }
    }

    /// Where it keeps its certificates.
    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Stops the server.
    pub(crate) async fn stop(self) {
        self.control_plane.stop().await;
    }

    /// Sends a request; returns the answer or the `Status` of the failure.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Vec<u8>>,
    ) -> Result<Value, Value> {
        let request =
            Request::builder().method(method).uri(path).header("content-type", content_type);
        self.request(request.body(body.into()).unwrap()).await
    }

    /// Sends a request as it is.
    pub(crate) async fn request(&self, request: Request<Vec<u8>>) -> Result<Value, Value> {
        match self.client.request::<Value>(request).await {
            Ok(value) => Ok(value),
            Err(kube::Error::Api(status)) => Err(serde_json::to_value(status).unwrap()),
            Err(other) => panic!("{other}"),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Value> {
        self.send(Method::GET, path, "application/json", Vec::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Value> {
        self.send(Method::POST, path, "application/json", body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, Value> {
        self.send(Method::PUT, path, "application/json", body.to_string()).await
    }

    /// PATCH in one of the formats: `json`, `merge`, `strategic-merge`.
    pub(crate) async fn patch(
        &self,
        format: &str,
        path: &str,
        body: &Value,
    ) -> Result<Value, Value> {
        self.send(
            Method::PATCH,
            path,
            &format!("application/{format}-patch+json"),
            body.to_string(),
        )
        .await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Result<Value, Value> {
        self.send(Method::DELETE, path, "application/json", options.to_string()).await
    }
}

/// A pod that needs nothing.
pub(crate) fn pod(name: &str) -> Value {
    serde_json::json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "hello"}]}})
}

/// A Deployment of one container.
pub(crate) fn deployment(name: &str) -> Value {
    serde_json::json!({
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "a", "image": "hello"}]}},
        },
    })
}

/// What a `Status` says: code, reason, message.
pub(crate) fn said(status: &Value) -> (u64, &str, &str) {
    (
        status["code"].as_u64().unwrap(),
        status["reason"].as_str().unwrap(),
        status["message"].as_str().unwrap(),
    )
}
