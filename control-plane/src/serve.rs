//! `mizzen-control-plane serve`: the [control plane](crate::control_plane) with what a process has
//! around it: arguments, files, certificates, sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::Nodes;
use crate::audit::{self, Audit, AuditError};
use crate::authn::jwt::SigningKey;
use crate::authn::service_account::{ISSUER, Issuer};
use crate::authn::token_file::{TokenFile, TokenFileError};
use crate::cidr::Cidr;
use crate::control_plane::{
    Builder, CLUSTER_CIDRS, ControlPlane, SERVICE_CIDRS, StartError, cidrs,
};
use crate::controllers;
use crate::listen::{Door, acceptor};
use crate::pki::{Pki, PkiError};
use crate::registry::service::{Ranges, ranges};
use crate::store::{Etcd, EtcdOptions};

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
    /// Where objects are kept: in --data-dir, or in an etcd that several control planes share
    #[arg(long, value_enum, default_value_t = Backend::Embedded)]
    pub store: Backend,
    /// What says where etcd is
    #[command(flatten)]
    pub etcd: EtcdArgs,
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
        Self {
            data_dir,
            listen: vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)],
            advertise_address: Vec::new(),
            cluster_cidr: cidrs(CLUSTER_CIDRS),
            service_cidr: cidrs(SERVICE_CIDRS),
            in_memory: false,
            store: Backend::Embedded,
            etcd: EtcdArgs::default(),
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

/// Stores that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// A log in the data directory
    Embedded,
    /// etcd, API v3
    Etcd,
}

/// Arguments about etcd.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EtcdArgs {
    /// etcd's members, for --store etcd
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        required_if_eq("store", "etcd"),
        conflicts_with = "in_memory"
    )]
    pub etcd_endpoints: Vec<String>,
    /// What the cluster's keys in etcd begin with [default: /mizzen]
    #[arg(long, value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,
    /// CA of etcd's certificates, PEM; https needs it
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Certificate to show to etcd, PEM
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// How often etcd is told to give up what is older than this; 0 leaves it to others
    /// [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub etcd_compaction_interval: Option<u64>,
}

impl EtcdArgs {
    fn options(&self) -> EtcdOptions {
        let usual = EtcdOptions::new(self.etcd_endpoints.clone());
        let compact_every = match self.etcd_compaction_interval {
            Some(0) => None,
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => usual.compact_every,
        };
        EtcdOptions {
            prefix: self.etcd_prefix.clone().unwrap_or(usual.prefix),
            ca_file: self.etcd_cafile.clone(),
            identity: self.etcd_certfile.clone().zip(self.etcd_keyfile.clone()),
            compact_every,
            ..usual
        }
    }
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
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS refused the certificates.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The control plane behind the sockets.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Static tokens.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
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

/// A control plane that is served on sockets.
pub struct Server {
    /// Addresses that the API is served on.
    pub addresses: Vec<SocketAddr>,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    control_plane: ControlPlane,
}

/// Runs the control plane until `shutdown`.
pub async fn run(args: Args, shutdown: CancellationToken) -> Result<(), ServeError> {
    let server = Server::start(args, shutdown.clone()).await?;
    tracing::info!(kubeconfig = %server.kubeconfig.display(), addresses = ?server.addresses, "ready");
    shutdown.cancelled().await;
    server.stop().await;
    Ok(())
}

impl Server {
    /// Starts the control plane; resolves when it answers.
    pub async fn start(args: Args, shutdown: CancellationToken) -> Result<Self, ServeError> {
        let mut config = controllers::Config::new(args.cluster_cidr.clone());
        let builder = ControlPlane::builder()
            .service_cidrs(args.service_cidr.clone())
            .controllers(config.clone())
            .until(&shutdown);
        builder.check()?;
        let listeners = listen(&args.listen).await?;
        let addresses: Vec<SocketAddr> =
            listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let advertise = advertised(&args, &addresses);
        let (names, sans) = subject_names(&builder.service_ranges()?, &addresses, &advertise);
        let pki = Pki::open(&args.data_dir.join("pki"), &names, &sans)?;
        let acceptor = acceptor(&pki).map_err(ServeError::Tls)?;
        let port = addresses.first().map_or(6443, SocketAddr::port);
        config.root_ca.clone_from(&pki.authority.certificate);
        let nodes = Nodes::new(vec![pki.kubelet.clone()], pki.kubelet_key.clone_key());
        let builder = builder.controllers(config).nodes(nodes).reached_at(advertise, port);
        let builder = with_store(&args, asked_for(&args, builder)?).await?;
        let control_plane = builder.start().await?;
        let kubeconfig = args.data_dir.join("admin.kubeconfig");
        let server = addresses.first().map(|address| format!("https://{}", reachable(*address)));
        pki.write_kubeconfig(&kubeconfig, &server.unwrap_or_default())?;
        let door = Door::new(&control_plane, acceptor);
        for listener in listeners {
            door.open(listener);
        }
        Ok(Self { addresses, kubeconfig, control_plane })
    }

    /// Stops it: no new connections, watches end, running requests get some time.
    pub async fn stop(self) {
        self.control_plane.stop().await;
    }
}

/// What the arguments say beyond addresses and certificates.
fn asked_for(args: &Args, builder: Builder) -> Result<Builder, ServeError> {
    let tokens = args.token_auth_file.as_deref().map(TokenFile::read).transpose()?;
    let mut builder = builder.issuer(issuer(args)?).tokens(tokens.unwrap_or_default());
    if args.no_controllers {
        builder = builder.without_controllers();
    }
    if args.disable_admission_plugins.contains(&Plugin::ServiceAccount) {
        builder = builder.without_account_admission();
    }
    Ok(match open_audit(args)? {
        Some(audit) => builder.audit(audit),
        None => builder,
    })
}

/// Where the arguments say that objects are.
async fn with_store(args: &Args, builder: Builder) -> Result<Builder, StartError> {
    if args.store == Backend::Etcd {
        let store = Etcd::open(&args.etcd.options()).await?;
        let host = nix::unistd::gethostname().unwrap_or_default();
        let identity = format!("{}_{}", host.to_string_lossy(), uuid::Uuid::new_v4());
        return Ok(builder.over(Arc::new(store)).elected_as(identity));
    }
    if args.in_memory {
        return Ok(builder.in_memory());
    }
    Ok(builder.in_directory(&args.data_dir.join("store")))
}

/// Who issues tokens of service accounts, by the key in the data directory.
fn issuer(args: &Args) -> Result<Issuer, ServeError> {
    let key = SigningKey::open(&args.data_dir.join("pki/service-account.key"))?;
    let name = args.service_account_issuer.clone();
    let audiences = match &args.api_audiences[..] {
        [] => vec![name.clone()],
        named => named.to_vec(),
    };
    Ok(Issuer::new(key, name, audiences))
}

fn open_audit(args: &Args) -> Result<Option<Audit>, ServeError> {
    let Some(path) = args.audit_log_path.clone() else { return Ok(None) };
    let (size_max, kept) = (args.audit_log_maxsize << 20, args.audit_log_maxbackup);
    Ok(Some(Audit::open(audit::Options { path, size_max, kept })?))
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
