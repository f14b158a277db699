//! The control plane itself: API server, controllers and scheduler over a store, in this process
//! and without a socket. [`serve`](crate::serve) opens sockets to one; tests and programs that
//! start one for themselves talk to it [in process](crate::in_process).
//!
//! As a test dependency it gives every test a cluster of its own, with everything of a real one
//! but nodes: validation, defaults, RBAC, garbage collection, Deployments that make their pods.
//!
//! ```
//! use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
//! use kube::Api;
//! use mizzen_control_plane::ControlPlane;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let control_plane = ControlPlane::builder().in_memory().start().await?;
//! let namespaces: Api<Namespace> = Api::all(control_plane.client());
//! assert!(namespaces.get("kube-system").await.is_ok());
//!
//! // Whoever is not the administrator may do what RBAC says, which is nothing at first.
//! let jane = control_plane.client_as(mizzen_control_plane::authz::User::new("jane", &["devs"]));
//! let maps: Api<ConfigMap> = Api::default_namespaced(jane);
//! let refused = maps.list(&Default::default()).await.unwrap_err();
//! assert!(refused.to_string().contains(r#"User "jane" cannot list resource "configmaps""#));
//!
//! control_plane.stop().await;
//! # Ok(())
//! # }
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::api::{Access, Addresses, Api, DisabledAdmission, Nodes, bootstrap};
use crate::audit::Audit;
use crate::authn::Authenticator;
use crate::authn::jwt::SigningKey;
use crate::authn::service_account::{ISSUER, Issuer};
use crate::authn::token_file::TokenFile;
use crate::authz::{Authorizer, MASTERS, User};
use crate::cidr::Cidr;
use crate::controllers::Neighbours;
use crate::election::Candidate;
use crate::in_process::InProcess;
use crate::pki::PkiError;
use crate::registry::service::Ranges;
use crate::store::{Embedded, Options, Store, StoreError};
use crate::{controllers, scheduler};

/// Time that running requests get when the control plane stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Ports that NodePort Services get.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Ranges of pod addresses where nothing is said.
pub(crate) const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
/// Ranges of Service addresses where nothing is said.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// Why a control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ranges of Service addresses can't be used.
    #[error("--service-cidr needs one range, or two of different families")]
    ServiceRanges,
    /// The ranges of pod addresses can't be divided among nodes.
    #[error("--cluster-cidr: {0}")]
    PodRanges(#[from] controllers::ConfigError),
    /// The key of service-account tokens could not be had.
    #[error(transparent)]
    Key(#[from] PkiError),
    /// The store.
    #[error("cannot open the store: {0}")]
    Store(#[from] StoreError),
    /// The first objects could not be made.
    #[error("cannot create the cluster's first objects: {0}")]
    Bootstrap(String),
}

/// Where the objects are.
enum Backing {
    Memory,
    Directory(PathBuf),
    Store(Arc<dyn Store>),
}

/// What a control plane is made of; see [`ControlPlane::builder`].
pub struct Builder {
    backing: Backing,
    shutdown: CancellationToken,
    service_cidrs: Vec<Cidr>,
    controllers: Option<controllers::Config>,
    account_admission: bool,
    nodes: Option<Nodes>,
    tokens: TokenFile,
    issuer: Option<Issuer>,
    audit: Option<Audit>,
    addresses: Addresses,
    /// Who this is among control planes over the same store; `None` if it is alone.
    candidate: Option<String>,
}

impl Builder {
    fn new() -> Self {
        Self {
            backing: Backing::Memory,
            shutdown: CancellationToken::new(),
            service_cidrs: cidrs(SERVICE_CIDRS),
            controllers: Some(controllers::Config::new(cidrs(CLUSTER_CIDRS))),
            account_admission: true,
            nodes: None,
            tokens: TokenFile::default(),
            issuer: None,
            audit: None,
            addresses: Addresses { advertise: vec![Ipv4Addr::LOCALHOST.into()], port: 6443 },
            candidate: None,
        }
    }

    /// Objects in memory alone: gone with the control plane. The default.
    #[must_use]
    pub fn in_memory(self) -> Self {
        Self { backing: Backing::Memory, ..self }
    }

    /// Objects in a directory, which is made if it is missing.
    #[must_use]
    pub fn in_directory(self, directory: &Path) -> Self {
        Self { backing: Backing::Directory(directory.to_owned()), ..self }
    }

    /// Objects in a store that is there already.
    #[must_use]
    pub fn over(self, store: Arc<dyn Store>) -> Self {
        Self { backing: Backing::Store(store), ..self }
    }

    /// Among others over the same store: controllers and scheduler run where their Lease in
    /// `kube-system` is held. `identity` is nobody else's.
    #[must_use]
    pub fn elected_as(self, identity: String) -> Self {
        Self { candidate: Some(identity), ..self }
    }

    /// The ranges of Service addresses: one, or two of different families, the default one first.
    #[must_use]
    pub fn service_cidrs(self, service_cidrs: Vec<Cidr>) -> Self {
        Self { service_cidrs, ..self }
    }

    /// What the controllers are told: the ranges of pod addresses, the CA.
    #[must_use]
    pub fn controllers(self, config: controllers::Config) -> Self {
        Self { controllers: Some(config), ..self }
    }

    /// The API alone. Without controllers nothing becomes of a Deployment, no pod is bound, and
    /// namespaces have no service accounts (so pods need none).
    #[must_use]
    pub fn without_controllers(self) -> Self {
        Self { controllers: None, ..self }
    }

    /// Without the admission plugin `ServiceAccount`: pods need no account.
    #[must_use]
    pub fn without_account_admission(self) -> Self {
        Self { account_admission: false, ..self }
    }

    /// With a way to ask nodes for logs of and commands in containers.
    #[must_use]
    pub fn nodes(self, nodes: Nodes) -> Self {
        Self { nodes: Some(nodes), ..self }
    }

    /// With static tokens.
    #[must_use]
    pub fn tokens(self, tokens: TokenFile) -> Self {
        Self { tokens, ..self }
    }

    /// With this issuer of service-account tokens. Without, they are good as long as the process.
    #[must_use]
    pub fn issuer(self, issuer: Issuer) -> Self {
        Self { issuer: Some(issuer), ..self }
    }

    /// With a log of who did what.
    #[must_use]
    pub fn audit(self, audit: Audit) -> Self {
        Self { audit: Some(audit), ..self }
    }

    /// Where the Service `kubernetes` leads to.
    #[must_use]
    pub fn reached_at(self, advertise: Vec<IpAddr>, port: u16) -> Self {
        Self { addresses: Addresses { advertise, port }, ..self }
    }

    /// Ends when this is cancelled, too.
    #[must_use]
    pub fn until(self, shutdown: &CancellationToken) -> Self {
        Self { shutdown: shutdown.child_token(), ..self }
    }

    /// Whether the ranges can be used, without starting anything.
    ///
    /// # Errors
    /// [`StartError::ServiceRanges`] and [`StartError::PodRanges`].
    pub fn check(&self) -> Result<(), StartError> {
        self.service_ranges()?;
        Ok(self.controllers.as_ref().map_or(Ok(()), controllers::Config::check)?)
    }

    /// The first addresses of the Service ranges are the API server's own.
    pub(crate) fn service_ranges(&self) -> Result<Ranges, StartError> {
        let addresses = match &self.service_cidrs[..] {
            [_] => self.service_cidrs.clone(),
            [one, other] if one.is_ipv6() != other.is_ipv6() => self.service_cidrs.clone(),
            _ => return Err(StartError::ServiceRanges),
        };
        Ok(Ranges { addresses, node_ports: NODE_PORTS })
    }

    /// Starts it; resolves when it answers. Has to be called within a tokio runtime.
    ///
    /// # Errors
    /// What of it could not be had; nothing goes on running then.
    pub async fn start(self) -> Result<ControlPlane, StartError> {
        self.check()?;
        let ranges = self.service_ranges()?;
        let store: Arc<dyn Store> = match self.backing {
            Backing::Memory => Arc::new(Embedded::in_memory(&Options::default())),
            Backing::Directory(at) => Arc::new(Embedded::open(&at, &Options::default())?),
            Backing::Store(store) => store,
        };
        let issuer = match self.issuer {
            Some(issuer) => issuer,
            None => {
                Issuer::new(SigningKey::generate()?, ISSUER.to_owned(), vec![ISSUER.to_owned()])
            }
        };
        let authenticator = Authenticator::new(self.tokens, Arc::new(issuer));
        let authorizer = Arc::new(Authorizer::open(Arc::clone(&store)).await?);
        let access = Access { authorizer: Arc::clone(&authorizer), authenticator };
        // Nobody else would make the accounts.
        let accounts = self.account_admission && self.controllers.is_some();
        let mut api = Api::new(store, ranges, self.shutdown.clone())
            .with_access(access)
            .without(DisabledAdmission { service_account: !accounts });
        if let Some(nodes) = self.nodes {
            api = api.with_nodes(nodes);
        }
        if let Some(audit) = self.audit {
            api = api.with_audit(audit);
        }
        bootstrap(&api, &self.addresses)
            .await
            .map_err(|failure| StartError::Bootstrap(failure.status()["message"].to_string()))?;
        let api = Arc::new(api);
        let control_plane = ControlPlane {
            api: Arc::clone(&api),
            tasks: TaskTracker::new(),
            shutdown: self.shutdown.clone(),
            _ends: self.shutdown.drop_guard(),
        };
        authorizer.follow(&control_plane.tasks, &control_plane.shutdown);
        let keeper = Arc::clone(&api);
        control_plane.tasks.spawn(async move { keeper.keep_range().await });
        control_plane.tasks.spawn(async move { api.expire().await });
        if let Some(config) = self.controllers {
            control_plane.start_controllers(config, self.candidate);
        }
        Ok(control_plane)
    }
}

/// A running control plane. It ends when it is dropped; [`ControlPlane::stop`] waits for the end.
pub struct ControlPlane {
    api: Arc<Api>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _ends: DropGuard,
}

impl ControlPlane {
    /// A control plane in memory with the usual ranges, controllers and scheduler, unless more is
    /// said.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A client of the administrator: `kubernetes-admin` in `system:masters`.
    pub fn client(&self) -> Client {
        self.client_as(User::new("kubernetes-admin", &[MASTERS]))
    }

    /// A client of anybody, whose word is taken for it. All of authorization and admission apply.
    pub fn client_as(&self, user: User) -> Client {
        Client::new(self.service_as(user), "default")
    }

    /// The API server as a [`tower::Service`], for requests of anybody, whose word is taken for it.
    pub fn service_as(&self, user: User) -> InProcess {
        InProcess::new(Arc::clone(&self.api), user)
    }

    /// The API server.
    pub(crate) fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// What runs for it, and is waited for at the end.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// When it ends.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Stops it: watches end, running requests get some time.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("requests still running at the end of the drain time");
        }
    }

    /// Starts controllers and scheduler, each as the user that RBAC knows it by.
    fn start_controllers(&self, config: controllers::Config, candidate: Option<String>) {
        let client = |name| self.client_as(User::new(name, &[]));
        let scheduler = client("system:kube-scheduler");
        let neighbours = Neighbours::default();
        let beside = neighbours.clone();
        self.tasks.spawn(led(
            ("kube-scheduler", scheduler.clone(), candidate.clone()),
            self.shutdown.clone(),
            move |stop| {
                let (scheduler, neighbours) = (scheduler.clone(), beside.clone());
                async move { scheduler::run(scheduler, &neighbours, stop).await }
            },
        ));
        let own = client("system:kube-controller-manager");
        self.tasks.spawn(led(
            ("kube-controller-manager", own.clone(), candidate),
            self.shutdown.clone(),
            move |stop| {
                let (own, config, neighbours) = (own.clone(), config.clone(), neighbours.clone());
                async move {
                    if let Err(error) = controllers::run(own, config, &neighbours, stop).await {
                        // Checked at the start: only a fault of ours leads here.
                        tracing::error!(%error, "controllers ended");
                    }
                }
            },
        ));
    }
}

/// Does work until `stop`: all the time, or while the Lease of its name is held.
async fn led<W>(
    (name, client, candidate): (&'static str, Client, Option<String>),
    stop: CancellationToken,
    work: impl Fn(CancellationToken) -> W,
) where
    W: Future<Output = ()>,
{
    match candidate {
        Some(identity) => Candidate::new(client, name, identity).run(stop, work).await,
        None => work(stop).await,
    }
}

/// The ranges that texts of ours say.
pub(crate) fn cidrs(texts: [&str; 2]) -> Vec<Cidr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}
