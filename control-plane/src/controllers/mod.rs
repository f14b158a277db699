//! The controllers: each drives one kind of object from what is to what is wanted.
//!
//! ```text
//!  API server ──watch──> world (caches) ──change──> queues ──key──> look ──> reconcile (pure)
//!       ^                  ^                                                     │
//!       │                  └──────────── answers ──────────┐                     v
//!       └──────────────── requests ──────────────── interpreter <──────────── writes
//! ```
//!
//! They know the API only, never the store. A controller's decision is a pure function from what
//! it sees to a list of [`write::Write`]s; [`interpreter`] alone performs them. Nothing polls: a
//! key is looked at when something that concerns it changes, when a write for it failed, or at a
//! time that a look asked for. [`cache`] tells how a controller sees its own writes before the
//! watch shows them. [`run`] starts everything.

pub(crate) mod cache;
mod cluster_roles;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod engine;
mod every_namespace;
mod garbage;
pub(crate) mod interpreter;
mod ipam;
pub(crate) mod key;
mod namespaces;
mod node_lifecycle;
pub(crate) mod ownership;
pub(crate) mod pod_facts;
mod pod_gc;
pub(crate) mod queue;
mod replicaset;
pub(crate) mod selector;
mod service_cidrs;
mod share;
mod taint_eviction;
pub(crate) mod taints;
mod template_hash;
mod trim;
pub(crate) mod world;
pub(crate) mod write;

use std::sync::Arc;

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::cluster_roles::ClusterRoles;
use self::daemonset::DaemonSets;
use self::deployment::Deployments;
use self::disruption::Disruption;
use self::endpoints::EndpointsOfServices;
use self::endpointslice::EndpointSlices;
use self::endpointslice::mirroring::Mirroring;
use self::engine::{Controller, drive};
use self::every_namespace::{RootCa, ServiceAccounts};
use self::garbage::Garbage;
use self::interpreter::Interpreter;
use self::ipam::{NodeIpam, Pool};
use self::namespaces::Namespaces;
use self::node_lifecycle::NodeLifecycle;
use self::pod_gc::PodGc;
use self::queue::Queue;
use self::replicaset::ReplicaSets;
use self::service_cidrs::ServiceCidrs;
use self::taint_eviction::TaintEviction;
use self::world::{Kind, KindVisitor, World};
use crate::cidr::Cidr;

pub use self::world::Neighbours;

/// What the controllers have to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The ranges of pod addresses, at most one of each family.
    pub cluster_cidrs: Vec<Cidr>,
    /// The prefix length of a node's part of the IPv4 range.
    pub node_mask_size_ipv4: u8,
    /// The prefix length of a node's part of the IPv6 range.
    pub node_mask_size_ipv6: u8,
    /// The certificate of the cluster's CA, PEM, for pods to know the API server by.
    pub root_ca: String,
}

impl Config {
    /// The usual division of these ranges: a /24 and a /64 for each node.
    pub fn new(cluster_cidrs: Vec<Cidr>) -> Self {
        Self {
            cluster_cidrs,
            node_mask_size_ipv4: 24,
            node_mask_size_ipv6: 64,
            root_ca: String::new(),
        }
    }

    /// Whether the ranges can be divided.
    ///
    /// # Errors
    /// If a range is too small or too large for its parts, or two are of the same family.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.pools().map(drop)
    }

    /// The ranges with the size of their parts.
    fn pools(&self) -> Result<Vec<Pool>, ConfigError> {
        let pool = |range: &Cidr| {
            let ipv6 = range.is_ipv6();
            let node_prefix =
                if ipv6 { self.node_mask_size_ipv6 } else { self.node_mask_size_ipv4 };
            match range.parts(node_prefix) {
                Some(_) => Ok(Pool { range: *range, node_prefix }),
                None => Err(ConfigError::Division { range: *range, node_prefix }),
            }
        };
        let pools: Vec<Pool> = self.cluster_cidrs.iter().map(pool).collect::<Result<_, _>>()?;
        match pools.as_slice() {
            [one, other] if one.range.is_ipv6() == other.range.is_ipv6() => {
                Err(ConfigError::Families)
            }
            [] | [_] | [_, _] => Ok(pools),
            _ => Err(ConfigError::Families),
        }
    }
}

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A range is too small, or too large, to be divided.
    #[error("the pod range {range} cannot be divided into a /{node_prefix} for each node")]
    Division {
        /// The range.
        range: Cidr,
        /// The prefix length of a part.
        node_prefix: u8,
    },
    /// There is more than one range of a family.
    #[error("there can be one pod range of IPv4 and one of IPv6 addresses, and no more")]
    Families,
}

/// Runs all controllers until `cancel`.
///
/// # Errors
/// If the configuration cannot work. Trouble with the API server is no error: it is logged and
/// tried again.
pub async fn run(
    client: Client,
    config: Config,
    neighbours: &Neighbours,
    cancel: CancellationToken,
) -> Result<(), ConfigError> {
    let pools = config.pools()?;
    let mut world = World::default();
    let queues = Queues::subscribe(&mut world);
    let endpoints = Arc::new(Queue::default());
    let gone_services = EndpointsOfServices::subscribe(&mut world, &endpoints);
    let graph_queue = Arc::new(Queue::default());
    let graph = Garbage::subscribe(&mut world, &graph_queue);
    let pod_gc = Arc::new(Queue::default());
    let ended = PodGc::subscribe(&mut world, &pod_gc);
    let world = world.beside(neighbours);

    let mut tasks = JoinSet::new();
    let watches = Watches { world: &world, client: &client, tasks: &mut tasks, cancel: &cancel };
    watches.start();
    tokio::select! {
        () = world.synced() => {}
        () = cancel.cancelled() => return Ok(()),
    }
    tracing::info!("controllers have seen the cluster");

    let ipam = NodeIpam::new(Arc::clone(&world), Arc::clone(&queues.ipam), pools);
    ipam.learn();
    let interpreter = Interpreter::new(client.clone(), Arc::clone(&world));
    let mut start = Starter { interpreter, tasks: &mut tasks, cancel: &cancel };
    start.controller(ipam, queues.ipam);
    start.controller(EndpointSlices::new(Arc::clone(&world)), queues.endpoint_slices);
    start.controller(EndpointsOfServices::new(Arc::clone(&world), gone_services), endpoints);
    start.controller(Mirroring::new(Arc::clone(&world)), queues.mirroring);
    start.controller(ReplicaSets::new(Arc::clone(&world)), queues.replica_sets);
    start.controller(Deployments::new(Arc::clone(&world)), queues.deployments);
    start.controller(DaemonSets::new(Arc::clone(&world)), queues.daemon_sets);
    start.controller(Disruption::new(Arc::clone(&world)), queues.disruption);
    start.controller(Garbage::new(Arc::clone(&world), client.clone(), graph), graph_queue);
    start.controller(Namespaces::new(Arc::clone(&world), client.clone()), queues.namespaces);
    start.controller(ServiceCidrs::new(Arc::clone(&world), client), queues.service_cidrs);
    start.controller(NodeLifecycle::new(Arc::clone(&world)), queues.node_lifecycle);
    start.controller(TaintEviction::new(Arc::clone(&world)), queues.taint_eviction);
    start.controller(PodGc::new(Arc::clone(&world), ended), pod_gc);
    start.controller(ServiceAccounts::new(Arc::clone(&world)), queues.service_accounts);
    start.controller(RootCa::new(Arc::clone(&world), config.root_ca), queues.root_ca);
    start.controller(ClusterRoles::new(world), queues.cluster_roles);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// One queue for each controller whose keys are namespace and name.
struct Queues {
    ipam: Arc<Queue<key::Key>>,
    endpoint_slices: Arc<Queue<key::Key>>,
    mirroring: Arc<Queue<key::Key>>,
    replica_sets: Arc<Queue<key::Key>>,
    deployments: Arc<Queue<key::Key>>,
    daemon_sets: Arc<Queue<key::Key>>,
    disruption: Arc<Queue<key::Key>>,
    namespaces: Arc<Queue<key::Key>>,
    node_lifecycle: Arc<Queue<key::Key>>,
    taint_eviction: Arc<Queue<key::Key>>,
    service_accounts: Arc<Queue<key::Key>>,
    root_ca: Arc<Queue<key::Key>>,
    cluster_roles: Arc<Queue<key::Key>>,
    service_cidrs: Arc<Queue<key::Key>>,
}

impl Queues {
    fn subscribe(world: &mut World) -> Self {
        let mut queue = |subscribe: fn(&mut World, &Arc<Queue<key::Key>>)| {
            let queue = Arc::new(Queue::default());
            subscribe(world, &queue);
            queue
        };
        Self {
            ipam: queue(NodeIpam::subscribe),
            endpoint_slices: queue(EndpointSlices::subscribe),
            mirroring: queue(Mirroring::subscribe),
            replica_sets: queue(ReplicaSets::subscribe),
            deployments: queue(Deployments::subscribe),
            daemon_sets: queue(DaemonSets::subscribe),
            disruption: queue(Disruption::subscribe),
            namespaces: queue(Namespaces::subscribe),
            node_lifecycle: queue(NodeLifecycle::subscribe),
            taint_eviction: queue(TaintEviction::subscribe),
            service_accounts: queue(ServiceAccounts::subscribe),
            root_ca: queue(RootCa::subscribe),
            cluster_roles: queue(ClusterRoles::subscribe),
            service_cidrs: queue(ServiceCidrs::subscribe),
        }
    }
}

struct Starter<'a> {
    interpreter: Interpreter,
    tasks: &'a mut JoinSet<()>,
    cancel: &'a CancellationToken,
}

impl Starter<'_> {
    fn controller<C: Controller>(&mut self, controller: C, queue: Arc<Queue<C::Key>>) {
        let interpreter = self.interpreter.clone();
        self.tasks.spawn(drive(Arc::new(controller), queue, interpreter, self.cancel.clone()));
    }
}

struct Watches<'a> {
    world: &'a Arc<World>,
    client: &'a Client,
    tasks: &'a mut JoinSet<()>,
    cancel: &'a CancellationToken,
}

impl Watches<'_> {
    fn start(mut self) {
        World::for_each_kind(&mut self);
    }
}

impl KindVisitor for Watches<'_> {
    fn visit<K: Kind>(&mut self) {
        self.world.watch::<K>(self.client, self.tasks, self.cancel);
    }
}
