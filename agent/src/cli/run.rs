//! `mizzen-agent run`: starts everything in order, and stops it in order.
//!
//! ```text
//! configuration -> rights -> listeners -> API client -> eBPF loaded (nothing attached)
//!   -> stage "intake": watches, node facts, DNS, pod network
//!   -> stage "tables": the loop that fills them, and attaches when they are filled
//!   -> stage "serve":  health, metrics, agent.sock
//! ```
//! They stop in the same order on SIGTERM or SIGINT. The datapath stays attached.
//!
//! Where another agent runs, watches and DNS come first; when they work, that agent leaves, and all
//! else follows ([`crate::handover`]).

mod attach;
mod kube_proxy;
mod own;
mod privileges;
mod process;
mod service_manager;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use self::{attach::AttachDatapath, own::Own, process::Shown, service_manager::ServiceManager};
use super::signals::Signals;
use crate::{
    config::{self, Config, Resolved},
    datapath::{Datapath, Prepared},
    desired::NodeFacts,
    dns::{
        self,
        succession::{Inherited, Succession},
        vitals::Vitals,
    },
    facts, foreign,
    handover::{self, Departure, GivenPorts, Giver, Identity, OpenSockets, Opening, Predecessor},
    heap,
    host_ports::HostPorts,
    kube::{
        self, Snapshots, bootstrap, client::ApiServers, migration::gone_back::GoneBack,
        node_condition, notices,
    },
    local_pods::LocalPods,
    metrics::{Metrics, ProgramCounters},
    migrate,
    podnet::{
        self,
        datapath::{Announced, NoDatapath, PodDatapath},
    },
    reconcile::{self, Inputs, Query, Reconciler},
    released::{self, Released},
    resets,
    serve::{
        self, check::Checker, explain::Explainer, follow::Followers, health::Health,
        ledger::Ledger, names::Names, pod_network::PodNetwork,
    },
    source_ports,
    status::{Board, State},
    supervisor::{Tasks, Thread, supervise},
    sweep,
    traffic::live::LiveSockets,
};

/// Threads of the runtime: the agent waits more than it works.
const WORKER_THREADS: usize = 2;
/// Questions that wait for the loop before who asks waits.
const QUERIES_MAX: usize = 16;
/// How long threads that still do something may take at the end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Shown below the flags.
pub const EXAMPLES: &str = "\
Examples:
  mizzen-agent run --config /etc/mizzen/agent.yaml
  mizzen-agent run --kubeconfig admin.kubeconfig --node-name node-1
  mizzen-agent run --cni=false --dns=false   take the place of kube-proxy alone";

/// Runs the agent until it is told to stop.
pub fn run(resolved: Resolved) -> anyhow::Result<()> {
    let mut shown = resolved.show();
    let kube_proxys = kube_proxy::keep_configuration(&resolved);
    let mut config = resolved.config;
    let gone_back = kube_proxy::give_back(&mut config);
    shown.extend(gone_back.iter().map(GoneBack::comment));
    let log = Arc::new(process::start_log(&config)?);
    for config::Note { field, why } in resolved.notes {
        tracing::info!(field, why, "a field of kube-proxy's configuration has no effect");
    }
    process::check_rights(&config)?;
    process::raise_descriptor_limit();
    process::open_sysctls();
    privileges::keep_only(privileges::needed(&config, gone_back.is_some()));
    heap::keep_large_pieces_apart();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let shown = Shown { config: shown, log, kube_proxys, gone_back };
        let relieved = serve_node(&config, shown, &mut signals).await?;
        if relieved && kube::is_in_a_pod() {
            // A container that ends is started again, and would take everything back.
            tracing::info!("another agent goes on; waiting to be told to stop");
            signals.told_to_stop().await;
        }
        Ok(())
    });
    runtime.shutdown_timeout(SHUTDOWN);
    outcome
}

/// What the roles share.
struct Shared {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    snapshots: Snapshots,
    /// Filled by the pod network, asked by the resolver.
    local_pods: Arc<LocalPods>,
    /// Asked for by the pod network, seen to by the loop of the tables.
    host_ports: Arc<HostPorts>,
    departure: Departure,
    /// The thread of watches and tables. It ends with this.
    follower: Thread,
}

/// The tasks, in the order in which they stop.
struct Stages {
    intake: Tasks,
    tables: Tasks,
    front: Tasks,
}

/// What an agent has that is the node's, alone or after another one.
struct Begun {
    own: Own,
    shared: Shared,
    servers: ApiServers,
    vitals: Arc<Vitals>,
    names: Option<Names>,
    /// The listening sockets of DNS.
    sockets: Arc<OpenSockets>,
    /// The ports of health and metrics.
    ports: Arc<OpenSockets>,
    /// Where agents that come after it ask.
    successors: mpsc::Sender<handover::Asking>,
}

/// Whether another agent goes on at the end.
async fn serve_node(config: &Config, shown: Shown, signals: &mut Signals) -> anyhow::Result<bool> {
    let mut stages = Stages {
        intake: Tasks::new("intake"),
        tables: Tasks::new("tables"),
        front: Tasks::new("serve"),
    };
    let manager = ServiceManager::of_process();
    let begun = tokio::select! {
        begun = begin(config, &manager, &mut stages.intake) => begun?,
        () = signals.told_to_stop() => return Ok(false),
    };
    let Begun { own, shared, servers, vitals, names, sockets, ports, successors } = begun;
    let Own { listeners, datapath, given } = own;
    if config.services {
        stages.intake.spawn("hold", migrate::hold::run(stages.intake.token()));
    }
    let health = Health {
        node: config.node_name.as_str().into(),
        board: shared.board.clone(),
        metrics: shared.metrics.clone(),
        snapshots: shared.snapshots.all.clone(),
        inherited: datapath.as_ref().is_some_and(Datapath::was_in_force),
    };
    let passed = (given, Arc::clone(&ports));
    let services = start_services_role(config, datapath, &shared, &health, passed, &mut stages)?;
    let Services { programs, pods, queries, explainer, followers, checker, ledger } = services;
    let pods = pods.unwrap_or_else(|| without_programs(config));
    start_pods(config, &shared, pods, &mut stages.intake);
    start_node_condition(config, &shared, &servers, &mut stages.intake)?;
    start_notices(config, &shared, &servers, &mut stages.intake)?;
    let kept = (shown.kube_proxys, shown.gone_back);
    kube_proxy::start(config, kept, &shared, &servers, &mut stages.intake)?;
    let looked_at = shared.snapshots.all.clone();
    let facts = serve::Facts {
        node: config.node_name.clone(),
        board: shared.board.clone(),
        metrics: shared.metrics.clone(),
        programs,
        health,
        config: shown.config,
        log: Some(shown.log),
        queries,
        explainer,
        followers,
        checker,
        ledger,
        names,
        pods: config.looked_at().map(|place| PodNetwork {
            place,
            snapshots: looked_at,
            answers: Arc::default(),
        }),
    };
    serve::start(listeners, facts, successors, ports, &mut stages.front);
    let (front, board) = (&mut stages.front, shared.board.clone());
    front.spawn("service manager", manager.clone().tell_ready(board, front.token()));
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, node = config.node_name, "started");
    let stop = async {
        tokio::select! {
            () = signals.told_and_lame(&vitals) => manager.keep(&sockets, &shared.departure),
            () = shared.departure.relieved() => {}
        }
    };
    let Stages { intake, tables, front } = stages;
    supervise(vec![intake, tables, front], stop).await?;
    tracing::info!("stopped; the datapath stays in force");
    Ok(shared.departure.is_relieved())
}

/// Takes what is the node's: first of all where nobody has it, else when watches and DNS work and
/// the agent that has it has left.
async fn begin(
    config: &Config,
    manager: &ServiceManager,
    intake: &mut Tasks,
) -> anyhow::Result<Begun> {
    let (identity, departure) = (Identity::of(config), own::departure(config));
    let before = handover::meet(&config.state_dir, &identity).await?;
    let alone = if before.is_none() { Some(Own::open(config).await?) } else { None };
    let servers = find_servers(config).await?;
    let board: Arc<Board> = Arc::default();
    let metrics: Arc<Metrics> = Arc::default();
    metrics.dns.follow_requests(servers.requests());
    let beside = kube::Beside { pods_of: watched_pods(config), namespaces: config.dns };
    let follower =
        Thread::start("follower").context("start the thread that follows the cluster")?;
    let on = (&mut *intake, &follower);
    let snapshots = kube::start(&servers, beside, &board, &metrics, on)?;
    let (known, told, stop) = (snapshots.clone(), board.clone(), intake.token());
    let (data_dir, follows) = (config.data_dir(), servers.clone());
    let task = bootstrap::run(data_dir, config.services, follows, known, told, stop);
    intake.spawn("api servers", task);
    let local_pods = Arc::default();
    let host_ports = Arc::new(if config.cni { HostPorts::default() } else { HostPorts::none() });
    let departing = departure.clone();
    let shared = Shared {
        board,
        metrics,
        snapshots,
        local_pods,
        host_ports,
        departure: departing,
        follower,
    };

    let (sockets, vitals) = (Arc::<OpenSockets>::default(), Arc::<Vitals>::default());
    let resolver = Arc::default();
    let names = config.dns.then(|| Names {
        node: config.node_name.clone(),
        state_dir: config.state_dir.clone(),
        domain: config.cluster_domain.clone(),
        resolver: Arc::clone(&resolver),
        snapshots: shared.snapshots.all.clone(),
    });
    let succession = Succession {
        elsewhere: own::elsewhere(config),
        sockets: Arc::clone(&sockets),
        vitals: Arc::clone(&vitals),
        resolver,
        departure: departure.clone(),
        ..Succession::default()
    };
    let (prepared, given) = if let Some(mut before) = before {
        let given = std::mem::take(&mut before.ports);
        (relieve(config, &shared, before, succession, intake).await?, given)
    } else {
        let succession = Succession { inherited: Inherited::new(manager.take()), ..succession };
        start_dns(config, &shared, succession, intake).await;
        (None, GivenPorts::default())
    };
    let own = match alone {
        Some(own) => own,
        None => Own::wait(config, prepared, given).await?,
    };
    let ports = Arc::<OpenSockets>::default();
    let (passed, listening) = (Arc::clone(&sockets), Arc::clone(&ports));
    let giver = Giver { identity, sockets: passed, ports: listening, departure };
    let (successors, asking) = mpsc::channel(1);
    intake.spawn("hand-over", giver.run(asking, intake.token()));
    Ok(Begun { own, shared, servers, vitals, names, sockets, ports, successors })
}

/// The API servers: those that are named, and those that were known when an agent last ran.
async fn find_servers(config: &Config) -> anyhow::Result<ApiServers> {
    let servers = ApiServers::new(config.kubeconfig().as_deref(), &config.api_server).await?;
    if config.services {
        servers.refuse_services(&config.service_addresses()?)?;
    }
    let recalled = config.data_dir().map(|dir| bootstrap::recall(&dir)).transpose();
    match recalled {
        Ok(known) => servers.learn(known.unwrap_or_default()),
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::warn!("API servers that were known before are not: {error:#}");
        }
    }
    Ok(servers)
}

/// The node whose pods are asked for their wishes about services: they are followed where this agent
/// connects pods, and elsewhere it is said that they can't be.
fn watched_pods(config: &Config) -> Option<&str> {
    config.services.then_some(config.node_name.as_str())
}

/// What there is where this agent balances services.
#[derive(Default)]
struct Services {
    programs: Option<Arc<dyn ProgramCounters>>,
    pods: Option<Arc<dyn PodDatapath>>,
    queries: Option<mpsc::Sender<Query>>,
    explainer: Option<Explainer>,
    followers: Option<Followers>,
    checker: Option<Checker>,
    ledger: Option<Ledger>,
}

/// What there is of services; nothing, and no port of theirs, where the role is off.
fn start_services_role(
    config: &Config,
    datapath: Option<Datapath>,
    shared: &Shared,
    health: &Health,
    ports: (GivenPorts, Arc<OpenSockets>),
    stages: &mut Stages,
) -> anyhow::Result<Services> {
    let Some(datapath) = datapath else { return Ok(Services::default()) };
    start_datapath(config, datapath, shared, health, ports, stages)
}

/// For an agent without programs: it says once what pods lack, as it was told to.
fn without_programs(config: &Config) -> Arc<dyn PodDatapath> {
    if config.cni {
        tracing::warn!("{}", podnet::datapath::without_programs());
    }
    Arc::new(NoDatapath)
}

fn start_datapath(
    config: &Config,
    datapath: Datapath,
    shared: &Shared,
    health: &Health,
    ports: (GivenPorts, Arc<OpenSockets>),
    stages: &mut Stages,
) -> anyhow::Result<Services> {
    let programs: Arc<dyn ProgramCounters> = Arc::new(datapath.counters()?);
    let (released, receiver) = released::channel();
    let pods = Announced::new(Arc::new(datapath.pods()?), released, shared.metrics.clone());
    let foreign_pods = (!config.cni).then(|| datapath.packet_programs());
    let readers = datapath.table_readers();
    let events = datapath.flow_events();
    let snat_ports = (config.snat_port_min, config.snat_port_max);
    let (places, uplinks) = (datapath.places(), config.uplink.clone());
    let (foreign_cni, resolver) = (!config.cni, config.dns);
    let checker = Checker { places, uplinks, snat_ports, foreign_cni, resolver };
    let live = LiveSockets::new(datapath.translations()?, datapath.cgroup_path().to_owned())
        .context("open this network namespace")?;
    let Stages { intake, tables, front } = stages;
    let (asked, known) = start_services(config, datapath, shared, receiver, intake, tables)?;
    let (node, state_dir) = (config.node_name.clone(), config.state_dir.clone());
    let snapshots = shared.snapshots.all.clone();
    let followers = Followers::new(events, state_dir.clone(), snapshots.clone(), asked.clone());
    let explainer = Explainer::new(node, state_dir, readers, snapshots, asked.clone());
    let calm = shared.snapshots.calm.clone();
    serve::start_service_health(health.clone(), calm, known, config.tables()?, ports, front);
    if let Some(foreign_pods) = foreign_pods {
        let (snapshots, board) = (shared.snapshots.calm.clone(), shared.board.clone());
        let pod_devices = config.pod_device.clone();
        let place = foreign::Config { node_name: config.node_name.clone(), pod_devices };
        let (metrics, stop) = (shared.metrics.clone(), intake.token());
        let task = foreign::run(place, snapshots, foreign_pods, board, metrics, stop);
        intake.spawn("foreign pods", task);
    }
    Ok(Services {
        programs: Some(programs),
        pods: Some(Arc::new(pods)),
        ledger: Some(Ledger::new(asked.clone(), live)),
        queries: Some(asked),
        explainer: Some(explainer),
        followers: Some(followers),
        checker: Some(checker),
    })
}

/// Has DNS served by this agent instead of the one before, and that one leave.
async fn relieve(
    config: &Config,
    shared: &Shared,
    mut before: Predecessor,
    succession: Succession,
    intake: &mut Tasks,
) -> anyhow::Result<Option<Prepared>> {
    let mut prepared = None;
    if config.services {
        // What can't work is said while the other still does, and what takes long is done.
        let options = config.datapath();
        Datapath::check(&options)?;
        prepared = spawn_blocking(move || Datapath::prepare(&options)).await??;
    }
    let (pid, version) = (before.pid, before.version.clone());
    tracing::info!(pid, version, "another agent runs; taking over from it");
    let begin = CancellationToken::new();
    let (serves, serving) = oneshot::channel();
    let (configures, configured) = oneshot::channel();
    let (connections, passed) = dns::succession::connections();
    let opening = Opening { begin: begin.clone(), serving, connections };
    let sockets = std::mem::take(&mut before.sockets);
    let succession = Succession {
        inherited: Inherited::new(sockets),
        begin: Some(begin),
        configured: Some(configures),
        serving: Some(serves),
        connections: Some(passed),
        ..succession
    };
    let mut snapshots = shared.snapshots.all.clone();
    start_dns(config, shared, succession, intake).await;
    let ready = async move {
        // Whoever can't say who is asked for names outside relieves nobody. A resolver that has ended
        // waits for nothing.
        let _configured = configured.await;
        // It is never closed while the watches run.
        let _known = snapshots.wait_for(|snapshot| snapshot.synced.all()).await;
    };
    before.relieve(ready, opening).await?;
    Ok(prepared)
}

/// Starts the resolver, or gives up what an earlier one held.
async fn start_dns(
    config: &Config,
    shared: &Shared,
    mut succession: Succession,
    intake: &mut Tasks,
) {
    if config.dns {
        let (snapshots, board) = (shared.snapshots.all.clone(), shared.board.clone());
        let (metrics, pods) = (shared.metrics.dns.clone(), Arc::clone(&shared.local_pods));
        let (dns, token) = (config.dns(), intake.token());
        begins(&shared.board, dns::PART);
        let role = dns::run_between(dns, snapshots, board, metrics, pods, succession, token);
        intake.spawn("dns", role);
        return;
    }
    // There is nothing to serve, and so nothing to wait for.
    for waits in [succession.configured.take(), succession.serving.take()].into_iter().flatten() {
        let _told = waits.send(());
    }
    if let Err(error) = dns::release().await {
        tracing::warn!(%error, "addresses of an earlier resolver were not given up");
    }
}

/// Starts the pod network.
fn start_pods(config: &Config, shared: &Shared, pods: Arc<dyn PodDatapath>, intake: &mut Tasks) {
    if config.cni {
        let (snapshots, board) = (shared.snapshots.calm.clone(), shared.board.clone());
        let listeners = podnet::Listeners {
            local_pods: Arc::clone(&shared.local_pods),
            host_ports: Arc::clone(&shared.host_ports),
            metrics: Arc::clone(&shared.metrics),
        };
        begins(&shared.board, podnet::PART);
        let (config, stop) = (config.podnet(), intake.token());
        let role = podnet::run(config, snapshots, pods, board, listeners, stop);
        intake.spawn("pod network", role);
    }
}

/// Has the cluster told when this node's network serves, where that is this agent's work.
fn start_node_condition(
    config: &Config,
    shared: &Shared,
    servers: &ApiServers,
    intake: &mut Tasks,
) -> anyhow::Result<()> {
    if !config.cni {
        return Ok(());
    }
    let roles =
        [(config.cni, podnet::PART), (config.services, reconcile::PART), (config.dns, dns::PART)];
    let parts = roles.into_iter().filter_map(|(on, part)| on.then_some(part)).collect();
    let told = node_condition::Config { node_name: config.node_name.clone(), parts };
    let (snapshots, board) = (shared.snapshots.calm.clone(), shared.board.clone());
    let task = node_condition::run(told, servers.clients()?, snapshots, board, intake.token());
    intake.spawn("node condition", task);
    Ok(())
}

/// Has the cluster told what an operator has to act on.
fn start_notices(
    config: &Config,
    shared: &Shared,
    servers: &ApiServers,
    intake: &mut Tasks,
) -> anyhow::Result<()> {
    let (board, stop) = (shared.board.clone(), intake.token());
    let task = notices::tell::run(config.node_name.clone(), servers.clients()?, board, stop);
    intake.spawn("notices", task);
    Ok(())
}

/// Has a part be on the board before its task says anything: without it, an agent would look ready
/// to whoever asks in between.
fn begins(board: &Board, part: &'static str) {
    board.report(part, State::Waiting("it begins".to_owned()));
}

/// The node's own facts, once they are known.
type Facts = watch::Receiver<Option<Arc<NodeFacts>>>;

/// Starts the loop that fills the tables. Gives the way to ask it, and the node's facts.
fn start_services(
    config: &Config,
    datapath: Datapath,
    shared: &Shared,
    released: Released,
    intake: &mut Tasks,
    tables: &mut Tasks,
) -> anyhow::Result<(mpsc::Sender<Query>, Facts)> {
    let (publish, facts) = watch::channel(None);
    let snat_ports = (config.snat_port_min, config.snat_port_max);
    shared.board.report(source_ports::PART, source_ports::check(snat_ports));
    intake.spawn("node facts", facts::run(publish, shared.board.clone(), intake.token()));
    let (queries, receiver) = mpsc::channel(QUERIES_MAX);
    let known = facts.clone();
    let snapshots = shared.snapshots.all.clone();
    let host_ports = Arc::clone(&shared.host_ports);
    let inputs = Inputs { snapshots, facts, queries: receiver, released, host_ports };
    let maps = Box::new(datapath.maps()?);
    let (flows, clients) = (datapath.flow_sweeper()?, datapath.affinity_sweeper()?);
    let (board, metrics) = (&shared.board, &shared.metrics);
    let sweep_flows =
        sweep::run(sweep::FLOWS, flows, board.clone(), metrics.clone(), tables.token());
    let sweep_clients =
        sweep::run(sweep::CLIENTS, clients, board.clone(), metrics.clone(), tables.token());
    tables.spawn("sweep flows", sweep_flows);
    tables.spawn("sweep affinity", sweep_clients);
    let (cgroup, counts) = (datapath.cgroup_path().to_owned(), shared.metrics.resets.clone());
    let (resets, worker) =
        resets::start(datapath.translations()?, cgroup, counts, shared.board.clone())
            .context("start the thread that destroys sockets")?;
    tables.spawn("resets", worker.run(tables.token()));
    let reconciler = Reconciler::new(
        config.tables()?,
        maps,
        Box::new(AttachDatapath::new(datapath, config.uplink.clone(), config.dns)),
        shared.board.clone(),
        shared.metrics.clone(),
    );
    let reconciler = reconciler.resetting(resets);
    begins(&shared.board, reconcile::PART);
    let follow = reconciler.run(inputs, tables.token());
    tables.spawn_on(&shared.follower, "reconcile", follow);
    Ok((queries, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u06_pods_are_watched_whoever_connects_them() {
        let of =
            |services, cni| Config { services, cni, node_name: "n".into(), ..Config::default() };
        for (services, cni, node) in
            [(true, true, Some("n")), (true, false, Some("n")), (false, true, None)]
        {
            assert_eq!(watched_pods(&of(services, cni)), node, "{services} {cni}");
        }
    }
}
