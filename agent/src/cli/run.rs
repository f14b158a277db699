//! `mizzen-agent run`: starts everything in order, and stops it in order.
//!
//! ```text
//! configuration -> rights -> listeners -> API client -> eBPF loaded (nothing attached)
//!   -> stage "intake": watches, node facts, pod network, DNS
//!   -> stage "tables": the loop that fills them, and attaches when they are filled
//!   -> stage "serve":  health, metrics, agent.sock
//! ```
//! They stop in the same order on SIGTERM or SIGINT. The datapath stays attached.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Config, Resolved},
    datapath::{Datapath, Outcome, find_uplinks},
    desired::NodeFacts,
    dns, facts, foreign,
    kube::{self, client::ApiServers},
    local_pods::LocalPods,
    metrics::{Metrics, ProgramCounters},
    model::snapshot::Snapshot,
    podnet::{
        self,
        datapath::{Announced, NoDatapath, PodDatapath},
    },
    reconcile::{Attach, Inputs, Query, Reconciler},
    resets,
    serve::{
        self, check::Checker, explain::Explainer, health::Health, ledger::Ledger, listen::Listeners,
    },
    source_ports,
    status::Board,
    supervisor::{TaskError, Tasks, supervise},
    sweep,
    traffic::live::LiveSockets,
};

/// Threads of the runtime: the agent waits more than it works.
const WORKER_THREADS: usize = 2;
/// Questions that wait for the loop before who asks waits.
const QUERIES_MAX: usize = 16;
/// Pods that were disconnected and that the loop has not heard of yet.
const RELEASED_MAX: usize = 256;

/// Shown below the flags.
pub const EXAMPLES: &str = "\
Examples:
  mizzen-agent run --config /etc/mizzen/agent.yaml
  mizzen-agent run --kubeconfig admin.kubeconfig --node-name node-1
  mizzen-agent run --cni=false --dns=false   take the place of kube-proxy alone";

/// Runs the agent until it is told to stop.
pub fn run(resolved: Resolved) -> anyhow::Result<()> {
    let shown = resolved.show();
    let config = resolved.config;
    start_log(&config)?;
    check_rights(&config)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve_node(&config, shown))
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.log_filter.clone());
    // The client reports every failed attempt as an error; the watches say what it means.
    let quiet = if filter.contains("kube_client") { "" } else { ",kube_client=off" };
    let filter = EnvFilter::try_new(format!("{filter}{quiet}"))
        .with_context(|| format!("log filter {filter:?} (--log-filter or RUST_LOG)"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.log_format == "json" {
        log.json().init();
    } else {
        log.with_ansi(false).init();
    }
    Ok(())
}

/// Every role changes the node's kernel state; without the rights for it nothing would work, and
/// each part would say so in its own words.
fn check_rights(config: &Config) -> anyhow::Result<()> {
    /// Bit of CAP_NET_ADMIN in capability sets (capability.h).
    const NET_ADMIN: u32 = 12;
    let roles = config.services || config.cni || config.dns;
    if !roles || nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    anyhow::ensure!(
        bits >> NET_ADMIN & 1 == 1,
        "the agent may not change this node's network: run it as root, or with the capabilities \
         NET_ADMIN, BPF, PERFMON and SYS_ADMIN"
    );
    Ok(())
}

/// Takes as many descriptors as there may be: service managers start with 1,024 for the sake of
/// programs that use select(2), and a resolver under load has a socket for each question.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// What the roles share.
struct Shared {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

async fn serve_node(config: &Config, shown: String) -> anyhow::Result<()> {
    let listeners = Listeners::open(config).await?;
    let servers = ApiServers::new(config.kubeconfig().as_deref(), &config.api_server).await?;
    let datapath = config.services.then(|| Datapath::open(&config.datapath())).transpose()?;

    let (mut intake, mut tables, mut front) =
        (Tasks::new("intake"), Tasks::new("tables"), Tasks::new("serve"));
    let board: Arc<Board> = Arc::default();
    let metrics: Arc<Metrics> = Arc::default();
    // Pods are asked for their wishes where this agent connects them.
    let pods_of = (config.cni && config.services).then_some(config.node_name.as_str());
    let snapshots = kube::start(&servers, pods_of, &board, &metrics, &mut intake);
    let shared = Shared { board, metrics, snapshots };

    let health = Health {
        node: config.node_name.as_str().into(),
        board: shared.board.clone(),
        metrics: shared.metrics.clone(),
        snapshots: shared.snapshots.clone(),
    };

    let mut programs: Option<Arc<dyn ProgramCounters>> = None;
    let mut pods: Arc<dyn PodDatapath> = Arc::new(NoDatapath);
    let (mut queries, mut explainer, mut checker, mut ledger) = (None, None, None, None);
    let mut foreign_pods = None;
    if let Some(datapath) = datapath {
        programs = Some(Arc::new(datapath.counters()?));
        let (released, receiver) = mpsc::channel(RELEASED_MAX);
        pods =
            Arc::new(Announced::new(Arc::new(datapath.pods()?), released, shared.metrics.clone()));
        foreign_pods = (!config.cni).then(|| datapath.packet_programs());
        let readers = datapath.table_readers();
        let snat_ports = (config.snat_port_min, config.snat_port_max);
        let (places, uplinks) = (datapath.places(), config.uplink.clone());
        checker = Some(Checker { places, uplinks, snat_ports });
        let live = LiveSockets::new(datapath.translations()?, datapath.cgroup_path().to_owned())
            .context("open this network namespace")?;
        let (asked, known) =
            start_services(config, datapath, &shared, receiver, &mut intake, &mut tables)?;
        let (node, state_dir) = (config.node_name.clone(), config.state_dir.clone());
        let snapshots = shared.snapshots.clone();
        explainer = Some(Explainer::new(node, state_dir, readers, snapshots, asked.clone()));
        serve::start_service_health(health.clone(), known, config.tables()?, &mut front);
        ledger = Some(Ledger::new(asked.clone(), live));
        queries = Some(asked);
    }
    if let Some(foreign_pods) = foreign_pods {
        let (snapshots, board) = (shared.snapshots.clone(), shared.board.clone());
        let pod_devices = config.pod_device.clone();
        let place = foreign::Config { node_name: config.node_name.clone(), pod_devices };
        let task = foreign::run(place, snapshots, foreign_pods, board, intake.token());
        intake.spawn("foreign pods", task);
    }
    start_pods_and_dns(config, &shared, pods, &mut intake).await;
    let facts = serve::Facts {
        node: config.node_name.clone(),
        board: shared.board.clone(),
        metrics: shared.metrics.clone(),
        programs,
        health,
        config: shown,
        queries,
        explainer,
        checker,
        ledger,
    };
    serve::start(listeners, facts, &mut front);
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, node = config.node_name, "started");
    supervise(vec![intake, tables, front], told_to_stop()?).await?;
    tracing::info!("stopped; the datapath stays in force");
    Ok(())
}

/// Starts the roles that need no tables.
async fn start_pods_and_dns(
    config: &Config,
    shared: &Shared,
    pods: Arc<dyn PodDatapath>,
    intake: &mut Tasks,
) {
    let local_pods = Arc::<LocalPods>::default();
    if config.cni {
        let (snapshots, board) = (shared.snapshots.clone(), shared.board.clone());
        let (local_pods, stop) = (Arc::clone(&local_pods), intake.token());
        let role = podnet::run(config.podnet(), snapshots, pods, board, local_pods, stop);
        intake.spawn("pod network", role);
    }
    if config.dns {
        let (snapshots, board) = (shared.snapshots.clone(), shared.board.clone());
        let metrics = shared.metrics.dns.clone();
        let role = dns::run(config.dns(), snapshots, board, metrics, local_pods, intake.token());
        intake.spawn("dns", role);
    } else if let Err(error) = dns::release().await {
        tracing::warn!(%error, "addresses of an earlier resolver were not given up");
    }
}

/// The node's own facts, once they are known.
type Facts = watch::Receiver<Option<Arc<NodeFacts>>>;

/// Starts the loop that fills the tables. Gives the way to ask it, and the node's facts.
fn start_services(
    config: &Config,
    datapath: Datapath,
    shared: &Shared,
    released: mpsc::Receiver<Vec<IpAddr>>,
    intake: &mut Tasks,
    tables: &mut Tasks,
) -> anyhow::Result<(mpsc::Sender<Query>, Facts)> {
    let (publish, facts) = watch::channel(None);
    let snat_ports = (config.snat_port_min, config.snat_port_max);
    shared.board.report(source_ports::PART, source_ports::check(snat_ports));
    intake.spawn("node facts", facts::run(publish, shared.board.clone(), intake.token()));
    let (queries, receiver) = mpsc::channel(QUERIES_MAX);
    let known = facts.clone();
    let snapshots = shared.snapshots.clone();
    let inputs = Inputs { snapshots, facts, queries: receiver, released };
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
    let resets = resets::start(datapath.translations()?, cgroup, counts)
        .context("start the thread that destroys sockets")?;
    let reconciler = Reconciler::new(
        config.tables()?,
        maps,
        Box::new(AttachDatapath { datapath, uplinks: config.uplink.clone() }),
        shared.board.clone(),
        shared.metrics.clone(),
    );
    let reconciler = reconciler.resetting(resets);
    tables.spawn("reconcile", reconciler.run(inputs, tables.token()));
    Ok((queries, known))
}

/// The datapath's programs.
struct AttachDatapath {
    datapath: Datapath,
    uplinks: Vec<String>,
}

impl Attach for AttachDatapath {
    fn attach(&mut self, addresses: &[IpAddr]) -> Result<usize, TaskError> {
        let uplinks: Vec<_> = find_uplinks(&self.uplinks, addresses)?.into_iter().collect();
        let sockets = self.datapath.attach_sockets()?;
        let packets = self.datapath.attach_uplinks(&uplinks)?;
        let mut attached = 0;
        for (hook, outcome) in sockets.into_iter().chain(packets) {
            tracing::debug!(hook, ?outcome, "attached");
            attached += usize::from(outcome == Outcome::Attached);
        }
        Ok(attached)
    }
}

/// Done when the process is told to stop.
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_hard_limit_admits() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        raise_descriptor_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
