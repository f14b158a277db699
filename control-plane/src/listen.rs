//! The way in over sockets: TLS, who the other end is, and bounds on connections.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{Api, Peer};
use crate::authn::certificate;
use crate::control_plane::ControlPlane;
use crate::cork::{Cork, Turn};
use crate::pki::Pki;

/// Most connections at a time.
const CONNECTIONS: usize = 4096;
/// Most of them of strangers: without a certificate, and before a token was accepted. Every pod
/// reaches the server: nobody who may only ask for health shall keep those out who may do more.
const STRANGERS: usize = 256;
/// Time that a client gets for the TLS handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a quiet HTTP/2 connection is asked whether its client is still there, and for how
/// long it may not answer: else a machine that lost its power would hold its watches for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// See [`KEEP_ALIVE`].
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);

/// TLS with the server's certificate, which asks for one of the cluster's CA.
pub(crate) fn acceptor(pki: &Pki) -> Result<TlsAcceptor, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(pki.authority.certificate.as_bytes())
        .map_err(|error| failed(&error))?;
    roots.add(ca).map_err(|error| failed(&error))?;
    // Anybody may connect; who shows no certificate is anonymous.
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| failed(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![pki.server.clone()], pki.server_key.clone_key())
        .map_err(|error| failed(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Lets connections in, of all listeners together no more than it has room for.
#[derive(Clone)]
pub(crate) struct Door {
    acceptor: TlsAcceptor,
    api: Arc<Api>,
    tasks: TaskTracker,
    slots: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Door {
    /// A door to a control plane. What comes in counts among its tasks, and ends with it.
    pub(crate) fn new(control_plane: &ControlPlane, acceptor: TlsAcceptor) -> Self {
        Self {
            acceptor,
            api: Arc::clone(control_plane.api()),
            tasks: control_plane.tasks().clone(),
            slots: Arc::new(Semaphore::new(CONNECTIONS)),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            shutdown: control_plane.shutdown().clone(),
        }
    }

    /// Takes connections of a listener from now on.
    pub(crate) fn open(&self, listener: TcpListener) {
        self.tasks.spawn(self.clone().accept(listener));
    }

    async fn accept(self, listener: TcpListener) {
        loop {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let door = self.clone();
                    self.tasks.spawn(async move {
                        if let Err(reason) = door.connection(stream, peer).await {
                            tracing::debug!(%peer, %reason, "connection ended");
                        }
                        drop(slot);
                    });
                }
                Err(reason) => {
                    // Out of descriptors, most likely: wait for some to be closed.
                    tracing::warn!(%reason, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self, stream: TcpStream, from: SocketAddr) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await??;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let user = shown.and_then(|shown| certificate::user(shown));
        let peer = Arc::new(Peer::new(user, Some(from.ip())));
        let stranger = if peer.is_known() {
            None
        } else {
            let full = || std::io::Error::other("too many connections of strangers");
            Some(Arc::clone(&self.strangers).try_acquire_owned().map_err(|_| full())?)
        };
        // Given back as soon as a token was accepted.
        let stranger = Arc::new(Mutex::new(stranger));
        let api = Arc::clone(&self.api);
        let service = hyper::service::service_fn(move |request| {
            let (api, peer, stranger) =
                (Arc::clone(&api), Arc::clone(&peer), Arc::clone(&stranger));
            async move {
                let response = api.handle(request, &peer).await;
                if peer.is_known() {
                    stranger.lock().unwrap_or_else(PoisonError::into_inner).take();
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .max_concurrent_streams(250);
        let stream = Cork::new(stream);
        let mut turn = Turn::of(stream.clone());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let outcome = tokio::select! {
            outcome = poll_fn(|context| turn.poll(connection.as_mut(), context)) => outcome,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                poll_fn(|context| turn.poll(connection.as_mut(), context)).await
            }
        };
        outcome.map_err(std::io::Error::other)
    }
}
