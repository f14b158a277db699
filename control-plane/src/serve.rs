//! `mizzen-control-plane serve`: puts the parts together in order, and takes them down again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{Access, Addresses, Api, DisabledAdmission, Nodes, Peer, bootstrap};
use crate::audit::{self, Audit, AuditError};
use crate::authn::jwt::SigningKey;
use crate::authn::service_account::{ISSUER, Issuer};
use crate::authn::token_file::{TokenFile, TokenFileError};
use crate::authn::{Authenticator, certificate};
use crate::authz::Authorizer;
use crate::cidr::Cidr;
use crate::controllers;
use crate::pki::{Authority, Pki, PkiError};
use crate::registry::service::{Ranges, ranges};
use crate::scheduler;
use crate::store::{Embedded, Options, Store, StoreError};

/// Most connections at a time.
const CONNECTIONS: usize = 4096;
/// Most of them of strangers: without a certificate, and before a token was accepted. Every pod reaches the server: nobody who may only ask for
/// health shall keep those out who may do more.
const STRANGERS: usize = 256;
/// Time that a client gets for the TLS handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a quiet HTTP/2 connection is asked whether its client is still there, and for how
/// long it may not answer: else a machine that lost its power would hold its watches for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// See [`KEEP_ALIVE`].
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time that running requests get when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Ports that NodePort Services get.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Ranges of pod addresses where nothing is said.
const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
/// Ranges of Service addresses where nothing is said.
const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// Arguments of `serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory for the store, the certificates and admin.kubeconfig
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Address and port to serve on (repeatable); port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    pub listen: Vec<SocketAddr>,
    /// Address that nodes and pods reach the server at (repeatable) [default: those listened on]
    #[arg(long, value_name = "IP")]
    pub advertise_address: Vec<IpAddr>,
    /// Ranges of pod addresses, one per family
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_values = CLUSTER_CIDRS)]
    pub cluster_cidr: Vec<Cidr>,
    /// Ranges of Service addresses, one per family, the default family first
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_values = SERVICE_CIDRS)]
    pub service_cidr: Vec<Cidr>,
    /// Keep nothing on disk but the certificates: the cluster is gone when the process ends
    #[arg(long)]
    pub in_memory: bool,
    /// Serve the API alone, without controllers and scheduler, and so without service accounts
    /// for pods
    #[arg(long)]
    pub no_controllers: bool,
    /// File of static tokens: token,user,uid,"group1,group2", a line each
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Who tokens of service accounts say they are from
    #[arg(long, value_name = "URL", default_value = ISSUER)]
    pub service_account_issuer: String,
    /// Whom tokens for the API server are for (repeatable) [default: the issuer]
    #[arg(long, value_name = "NAME")]
    pub api_audiences: Vec<String>,
    /// Log who did what, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// Size after which the audit log is moved aside
    #[arg(long, value_name = "MEGABYTES", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub audit_log_maxsize: u64,
    /// How many audit logs that were moved aside are kept
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    pub audit_log_maxbackup: usize,
    /// Admission plugins to do without
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub disable_admission_plugins: Vec<Plugin>,
}

impl Args {
    /// The defaults of the command line, with a free port.
    pub fn new(data_dir: PathBuf) -> Self {
        let ranges = |texts: [&str; 2]| texts.iter().filter_map(|text| text.parse().ok()).collect();
        Self {
            data_dir,
            listen: vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)],
            advertise_address: Vec::new(),
            cluster_cidr: ranges(CLUSTER_CIDRS),
            service_cidr: ranges(SERVICE_CIDRS),
            in_memory: false,
            no_controllers: false,
            token_auth_file: None,
            service_account_issuer: ISSUER.to_owned(),
            api_audiences: Vec::new(),
            audit_log_path: None,
            audit_log_maxsize: 100,
            audit_log_maxbackup: 10,
            disable_admission_plugins: Vec::new(),
        }
    }
}

/// Admission plugins that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Plugin {
    /// Pods have an account that exists, and its token
    #[value(name = "ServiceAccount")]
    ServiceAccount,
}

/// Why the control plane could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listen address could not be had.
    #[error("cannot listen on {address}: {reason}{}", remedy(.reason))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        reason: std::io::Error,
    },
    /// The ranges given can't be used.
    #[error("--{flag} needs one range, or two of different families")]
    Ranges {
        /// The flag.
        flag: &'static str,
    },
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS refused the certificates.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The store.
    #[error("cannot open the store: {0}")]
    Store(#[from] StoreError),
    /// The ranges of pod addresses can't be divided among nodes.
    #[error("--cluster-cidr: {0}")]
    Controllers(#[from] controllers::ConfigError),
    /// The controllers could not be given a way to the API server.
    #[error("cannot make a client for controllers and scheduler: {0}")]
    Client(String),
    /// Static tokens.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The first objects could not be made.
    #[error("cannot create the cluster's first objects: {0}")]
    Bootstrap(String),
}

fn remedy(reason: &std::io::Error) -> &'static str {
    match reason.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; another process serves there, stop it or choose another --listen"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "; this machine has no such address, choose another --listen"
        }
        std::io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root, choose another --listen"
        }
        _ => "",
    }
}

/// A running control plane.
pub struct ControlPlane {
    /// Addresses that the API is served on.
    pub addresses: Vec<SocketAddr>,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// Runs the control plane until `shutdown`.
pub async fn run(args: Args, shutdown: CancellationToken) -> Result<(), ServeError> {
    let control_plane = ControlPlane::start(args, shutdown.clone()).await?;
    tracing::info!(kubeconfig = %control_plane.kubeconfig.display(), addresses = ?control_plane.addresses, "ready");
    shutdown.cancelled().await;
    control_plane.stop().await;
    Ok(())
}

impl ControlPlane {
    /// Starts the control plane; resolves when it answers.
    pub async fn start(args: Args, shutdown: CancellationToken) -> Result<Self, ServeError> {
        let shutdown = shutdown.child_token();
        let ranges = Ranges {
            addresses: families(&args.service_cidr, "service-cidr")?,
            node_ports: NODE_PORTS,
        };
        let mut config = controllers::Config::new(args.cluster_cidr.clone());
        config.check()?;
        let listeners = listen(&args.listen).await?;
        let addresses: Vec<SocketAddr> =
            listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let advertise = advertised(&args, &addresses);
        let (names, sans) = subject_names(&ranges, &addresses, &advertise);
        let pki = Pki::open(&args.data_dir.join("pki"), &names, &sans)?;
        let acceptor = acceptor(&pki)?;
        let store = open_store(&args)?;
        let nodes = Nodes::new(vec![pki.kubelet.clone()], pki.kubelet_key.clone_key());
        let authorizer = Arc::new(Authorizer::open(Arc::clone(&store)).await?);
        let access =
            Access { authorizer: Arc::clone(&authorizer), authenticator: authenticator(&args)? };
        let mut api = Api::new(store, ranges, shutdown.clone())
            .with_nodes(nodes)
            .with_access(access)
            .without(disabled(&args));
        if let Some(audit) = open_audit(&args)? {
            api = api.with_audit(audit);
        }
        let api = Arc::new(api);
        let port = addresses.first().map_or(6443, SocketAddr::port);
        bootstrap(&api, &Addresses { advertise, port })
            .await
            .map_err(|failure| ServeError::Bootstrap(failure.status()["message"].to_string()))?;
        let tasks = TaskTracker::new();
        authorizer.follow(&tasks, &shutdown);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        for listener in listeners {
            let door = Door {
                acceptor: acceptor.clone(),
                api: Arc::clone(&api),
                tasks: tasks.clone(),
                slots: Arc::clone(&slots),
                strangers: Arc::clone(&strangers),
                shutdown: shutdown.clone(),
            };
            tasks.spawn(door.accept(listener));
        }
        let kubeconfig = args.data_dir.join("admin.kubeconfig");
        let server = addresses.first().map(|address| format!("https://{}", reachable(*address)));
        let server = server.unwrap_or_default();
        pki.write_kubeconfig(&kubeconfig, &server)?;
        let expiring = Arc::clone(&api);
        tasks.spawn(async move { expiring.expire().await });
        if !args.no_controllers {
            config.root_ca.clone_from(&pki.authority.certificate);
            start_controllers(&pki.authority, &server, config, &tasks, &shutdown).await?;
        }
        Ok(Self { addresses, kubeconfig, shutdown, tasks })
    }

    /// Stops it: no new connections, watches end, running requests get some time.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("requests still running at the end of the drain time");
        }
    }
}

fn open_store(args: &Args) -> Result<Arc<dyn Store>, ServeError> {
    let options = Options::default();
    if args.in_memory {
        return Ok(Arc::new(Embedded::in_memory(&options)));
    }
    Ok(Arc::new(Embedded::open(&args.data_dir.join("store"), &options)?))
}

/// How users by tokens are known.
fn authenticator(args: &Args) -> Result<Authenticator, ServeError> {
    let tokens = args.token_auth_file.as_deref().map(TokenFile::read).transpose()?;
    let key = SigningKey::open(&args.data_dir.join("pki/service-account.key"))?;
    let issuer = args.service_account_issuer.clone();
    let audiences = match &args.api_audiences[..] {
        [] => vec![issuer.clone()],
        named => named.to_vec(),
    };
    let issuer = Arc::new(Issuer::new(key, issuer, audiences));
    Ok(Authenticator::new(tokens.unwrap_or_default(), issuer))
}

fn disabled(args: &Args) -> DisabledAdmission {
    let off = args.disable_admission_plugins.contains(&Plugin::ServiceAccount);
    // Nobody would make the accounts.
    DisabledAdmission { service_account: off || args.no_controllers }
}

fn open_audit(args: &Args) -> Result<Option<Audit>, ServeError> {
    let Some(path) = args.audit_log_path.clone() else { return Ok(None) };
    let (size_max, kept) = (args.audit_log_maxsize << 20, args.audit_log_maxbackup);
    Ok(Some(Audit::open(audit::Options { path, size_max, kept })?))
}

async fn start_controllers(
    authority: &Authority,
    server: &str,
    config: controllers::Config,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<(), ServeError> {
    let client = |user| client(authority, server, user);
    tasks.spawn(scheduler::run(client("system:kube-scheduler").await?, shutdown.clone()));
    let own = client("system:kube-controller-manager").await?;
    let controllers = controllers::run(own, config, shutdown.clone());
    tasks.spawn(async move {
        if let Err(error) = controllers.await {
            // Checked at the start: only a fault of ours leads here.
            tracing::error!(%error, "controllers ended");
        }
    });
    Ok(())
}

/// A client of one of our parts, by a certificate that lives as long as the process.
async fn client(
    authority: &Authority,
    server: &str,
    user: &str,
) -> Result<kube::Client, ServeError> {
    let failed = |error: &dyn std::fmt::Display| ServeError::Client(error.to_string());
    let file = authority.kubeconfig(server, user, None)?;
    let file = Kubeconfig::from_yaml(&file).map_err(|error| failed(&error))?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| failed(&error))?;
    kube::Client::try_from(config).map_err(|error| failed(&error))
}

/// One range, or two of different families.
fn families(ranges: &[Cidr], flag: &'static str) -> Result<Vec<Cidr>, ServeError> {
    match ranges {
        [_] => Ok(ranges.to_vec()),
        [one, other] if one.is_ipv6() != other.is_ipv6() => Ok(ranges.to_vec()),
        _ => Err(ServeError::Ranges { flag }),
    }
}

async fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ServeError> {
    let mut listeners = Vec::new();
    for &address in addresses {
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.map_err(|reason| ServeError::Listen { address, reason })?);
    }
    Ok(listeners)
}

/// Addresses that nodes and pods use: those given, else those listened on, loopback as a last resort.
fn advertised(args: &Args, listening: &[SocketAddr]) -> Vec<IpAddr> {
    if !args.advertise_address.is_empty() {
        return args.advertise_address.clone();
    }
    let usable = |address: &IpAddr| !address.is_loopback() && !address.is_unspecified();
    let found: Vec<IpAddr> = listening.iter().map(SocketAddr::ip).filter(usable).collect();
    if found.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { found }
}

/// Everything that a client may call the server.
fn subject_names(
    ranges: &Ranges,
    listening: &[SocketAddr],
    advertise: &[IpAddr],
) -> (Vec<String>, Vec<IpAddr>) {
    let service = ["", ".default", ".default.svc", ".default.svc.cluster.local"]
        .map(|suffix| format!("kubernetes{suffix}"));
    let names = std::iter::once("localhost".to_owned()).chain(service).collect();
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    addresses.extend(ranges.addresses.iter().map(|range| ranges::nth(*range, 0)));
    addresses
        .extend(listening.iter().map(SocketAddr::ip).filter(|address| !address.is_unspecified()));
    addresses.extend(advertise);
    addresses.sort_unstable();
    addresses.dedup();
    (names, addresses)
}

/// An address to connect to for an address listened on.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn acceptor(pki: &Pki) -> Result<TlsAcceptor, ServeError> {
    let failed = |error: &dyn std::fmt::Display| ServeError::Tls(error.to_string());
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

/// Takes connections of one listener.
#[derive(Clone)]
struct Door {
    acceptor: TlsAcceptor,
    api: Arc<Api>,
    tasks: TaskTracker,
    slots: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Door {
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
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        outcome.map_err(std::io::Error::other)
    }
}
