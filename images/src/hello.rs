//! The image `hello`: says which pod on which node answered, whom, and at which address.
//!
//! HTTP/1.1 with keep-alive and UDP on the same port, for both address families. One line of
//! JSON is the answer to everything: `{"pod":…,"node":…,"client":…,"server":…}`; `/healthz`
//! answers `ok`. The body of an HTTP request is not looked at.
//!
//! At SIGTERM it goes on serving for a moment with `Connection: close`, since the endpoint is
//! withdrawn everywhere only a little later, then finishes what it began and exits with 0.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{hello_udp, pause};

/// Connections served at a time; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 4096;
/// For how long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// For how long a request that was begun before the end may go on.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server needs to know. Everything comes from the environment.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// `PORT`, 8080 where unset, for TCP and UDP.
    port: u16,
    /// `DRAIN_SECONDS`, 1 where unset: how long new requests are still served after SIGTERM.
    drain: Duration,
    who: Arc<Who>,
}

/// The pod and node of the answer.
#[derive(Debug)]
pub(super) struct Who {
    /// `POD_NAME`, else `HOSTNAME`.
    pod: String,
    /// `NODE_NAME`, empty where unset.
    node: String,
}

impl Config {
    /// Reads the environment.
    pub(super) fn from_env() -> anyhow::Result<Self> {
        let number = |name: &str, default: u16| match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
            Err(_) => Ok(default),
        };
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        let pod = match text("POD_NAME") {
            name if name.is_empty() => text("HOSTNAME"),
            name => name,
        };
        Ok(Self {
            port: number("PORT", 8080)?,
            drain: Duration::from_secs(number("DRAIN_SECONDS", 1)?.into()),
            who: Arc::new(Who { pod, node: text("NODE_NAME") }),
        })
    }
}

impl Who {
    /// The answer to `client`, who reached us at `server`: one line of JSON.
    pub(super) fn line(&self, client: SocketAddr, server: SocketAddr) -> Vec<u8> {
        let answer = serde_json::json!({
            "pod": self.pod,
            "node": self.node,
            "client": canonical(client),
            "server": canonical(server),
        });
        format!("{answer}\n").into_bytes()
    }
}

/// A v4-mapped address as what it is, IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// How far the server is on its way to its end.
#[derive(Clone, Debug, Default)]
struct Stages {
    /// Answers end their connections.
    closing: CancellationToken,
    /// Connections that are idle end, others with the answer under way.
    ending: CancellationToken,
}

/// Serves until SIGTERM or SIGINT, then drains.
pub(super) async fn serve(config: Config) -> anyhow::Result<()> {
    let (listener, udp) = bind(config.port).await?;
    let stages = Stages::default();
    let mut connections = JoinSet::new();
    let udp_server = hello_udp::serve(&udp, &config.who);
    let accepting = accept(&listener, &config.who, &stages, &mut connections);
    tokio::select! {
        outcome = accepting => outcome?,
        outcome = udp_server => outcome?,
        outcome = told_to_stop(&stages, config.drain) => outcome?,
    }
    drop(listener);
    stages.ending.cancel();
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(FINISH_TIMEOUT, finish).await.is_err() {
        tracing::warn!("requests were cut off");
    }
    Ok(())
}

/// Both sockets on all addresses of both families, or of IPv4 where the host has no IPv6.
async fn bind(port: u16) -> anyhow::Result<(TcpListener, UdpSocket)> {
    let any6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    let any4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let listener = match TcpListener::bind(any6).await {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            TcpListener::bind(any4).await
        }
        outcome => outcome,
    };
    let listener = listener.with_context(|| {
        format!("listening on TCP port {port}: set PORT to one that is free in the pod")
    })?;
    let address = listener.local_addr().context("the address of the TCP socket")?;
    let udp = UdpSocket::bind(address)
        .await
        .with_context(|| format!("listening on UDP port {}", address.port()))?;
    Ok((listener, udp))
}

async fn told_to_stop(stages: &Stages, drain: Duration) -> anyhow::Result<()> {
    pause::wait().await?;
    stages.closing.cancel();
    tokio::time::sleep(drain).await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    who: &Arc<Who>,
    stages: &Stages,
    connections: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (who, stages) = (Arc::clone(who), stages.clone());
                connections.spawn(async move {
                    connection(stream, peer, &who, &stages).await;
                    drop(slot);
                });
            }
            // The peer's own failure, or no descriptors left: neither ends the server.
            Err(error) => {
                tracing::debug!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, who: &Arc<Who>, stages: &Stages) {
    let (Ok(local), Ok(())) = (stream.local_addr(), stream.set_nodelay(true)) else { return };
    let line = Bytes::from(who.line(peer, local));
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, &line, stages.closing.is_cancelled());
        async { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        outcome = &mut served => outcome,
        () = stages.ending.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "connection ended early");
    }
}

fn answer(request: &Request<Incoming>, line: &Bytes, closing: bool) -> Response<Full<Bytes>> {
    let (kind, body) = match request.uri().path() {
        "/healthz" => ("text/plain", Bytes::from_static(b"ok\n")),
        _ => ("application/json", line.clone()),
    };
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    if closing {
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_one_line_and_shows_mapped_addresses_as_ipv4() {
        let who = Who { pod: "hello-1".to_owned(), node: "node-1".to_owned() };
        let client = "[::ffff:10.244.0.5]:40000".parse().unwrap();
        let server = "[fd00:244::5]:8080".parse().unwrap();
        let line = String::from_utf8(who.line(client, server)).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "pod": "hello-1",
                "node": "node-1",
                "client": "10.244.0.5:40000",
                "server": "[fd00:244::5]:8080",
            })
        );
    }
}
