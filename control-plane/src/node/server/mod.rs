//! What a kubelet serves on port 10250: the logs of containers, and commands in them. The API
//! server asks on behalf of `kubectl logs` and `kubectl exec`.
//!
//! | path | is |
//! |---|---|
//! | `/healthz` | `ok` |
//! | `/containerLogs/<namespace>/<pod>/<container>` | the container's log, by the query as of `pods/log` |
//! | `/exec/<namespace>/<pod>/<container>` | a command, over a WebSocket |
//!
//! Whoever asks shows a certificate of the cluster's CA that names a member of `system:masters`, as
//! the API server does. Ours is made anew at each start, and the
//! Node object says which it is.

mod exec;
mod logs;
mod spdy;
mod tls;

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(super) use self::tls::Identity;
use super::runtime::{Container, Runtime};
use crate::{authn::certificate, authz::MASTERS};

/// Requests at a time, followed logs and commands that run among them.
const CONNECTIONS_MAX: usize = 256;
/// For how long a client may take for the TLS handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that wait to be taken.
const BACKLOG: u32 = 128;

/// A response's body.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A refusal, for people.
#[derive(Debug)]
struct Refusal(StatusCode, String);

/// The server.
pub(super) struct Server<R> {
    /// What runs the pods.
    pub runtime: Arc<R>,
    /// The folder of all logs.
    pub logs: PathBuf,
    /// What we show, and whom we trust.
    pub identity: Identity,
}

/// The address that is served on: all of the node's, of both families where it has IPv6.
pub(super) fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let bind = |address: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let any = |text: &str| text.parse().map(|ip| SocketAddr::new(ip, port));
    let listener = match bind(any("::")?) {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => bind(any("0.0.0.0")?),
        outcome => outcome,
    };
    listener.with_context(|| {
        format!(
            "listening on port {port}: another node part or kubelet there? --port names another"
        )
    })
}

impl<R: Runtime> Server<R> {
    /// Serves until `stop`.
    pub(super) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let server = Arc::new(self);
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let server = Arc::clone(&server);
                    tokio::spawn(async move {
                        if let Err(error) = server.connection(stream).await {
                            tracing::debug!(%peer, %error, "connection ended early");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to be closed.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) -> anyhow::Result<()> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.identity.config));
        let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let trusted = shown
            .and_then(|shown| certificate::user(shown))
            .is_some_and(|user| user.is_in(MASTERS));
        let service = service_fn(move |request| {
            let server = Arc::clone(&self);
            async move {
                let answer = if trusted { server.answer(request).await } else { stranger() };
                Ok::<_, Infallible>(answer)
            }
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await
            .context("serving")
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let outcome = match parts[..] {
            ["healthz"] => Ok(text(StatusCode::OK, "ok")),
            ["containerLogs", namespace, pod, container] => {
                self.logs(&request, namespace, pod, container).await
            }
            ["exec", namespace, pod, container] => {
                self.exec(request, namespace, pod, container).await
            }
            _ => Err(Refusal(StatusCode::NOT_FOUND, format!("there is no {path}"))),
        };
        outcome.unwrap_or_else(|Refusal(status, message)| text(status, message))
    }

    /// The containers of this name in the last sandbox of a pod, the last first, and the pod's uid.
    async fn containers(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<(String, Vec<Container>), Refusal> {
        let failed = |error: super::runtime::RuntimeError| {
            let text = super::runtime::process::chain(&error);
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, text)
        };
        let sandboxes = self.runtime.sandboxes(None).await.map_err(failed)?;
        let is_it =
            |one: &&super::runtime::Sandbox| one.pod.namespace == namespace && one.pod.name == pod;
        let Some(sandbox) = sandboxes.iter().rfind(is_it) else {
            let message = format!("pod \"{namespace}/{pod}\" is not running on this node");
            return Err(Refusal(StatusCode::NOT_FOUND, message));
        };
        let mut found = self.runtime.containers(&sandbox.id).await.map_err(failed)?;
        found.retain(|one| one.name == container);
        found.sort_by_key(|one| std::cmp::Reverse(one.attempt));
        if found.is_empty() {
            let message = format!(
                "container {container:?} in pod {pod:?} is waiting to start, or there is no such \
                 container"
            );
            return Err(Refusal(StatusCode::BAD_REQUEST, message));
        }
        Ok((sandbox.pod.uid.clone(), found))
    }
}

/// A certificate of the cluster's CA is not enough: nodes have such too.
fn stranger() -> Response<Body> {
    let message = format!("only members of {MASTERS}, as the API server is, may ask a node");
    text(StatusCode::FORBIDDEN, message)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    respond(status, Full::new(text.into()).boxed_unsync())
}

fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
