//! The pod network: addresses, links and routes of this node's pods, asked for by the CNI plugin.
//!
//! ```text
//! plugin ──cni.sock──> server ──> pods ──> ledger (ipam + journal)   who has which address
//!                                  ├─────> link, netns, sysctl       veth, addresses, routes
//!                                  ├─────> datapath                  programs of the pod
//!                                  └─────> teardown                  links of pods that left
//! snapshot, kernel events ──> keeper ──> ways, routes (pure) ──> between ──> tunnel, netlink
//!                               └──────> conflist                    when it can serve
//! every 5 s ──> review ──────> what the datapath has of each pod    mended where it was altered
//! ```
//! Calls are blocking code on threads of their own: each is a few system calls long. Nothing here
//! needs the API server once the node's ranges are known.

pub mod datapath;

pub mod server;
pub mod steps;

pub mod pods;

pub mod claims;
pub mod host_ports;
pub mod ipam;
pub mod journal;
pub mod ledger;

pub mod bandwidth;
pub mod link;
pub mod netns;
pub mod remembered;
pub mod sysctl;

pub mod interface;
pub mod message;
pub mod monitor;
pub mod netlink;

pub mod between;
pub mod look;
pub mod mtu;
pub mod probe;
pub mod tunnel;
pub mod ways;

mod netconf;

pub mod conflist;
pub mod cut;
pub mod del_journal;
pub mod heal;
pub mod keeper;
pub mod notice;
pub mod opt_out;
pub mod review;
pub mod routes;
mod teardown;

use std::{
    collections::BTreeMap,
    fs,
    future::pending,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    host_ports::HostPorts,
    local_pods::LocalPods,
    metrics::Metrics,
    model::{ObjectKey, node::Cidr, snapshot::Snapshot},
    status::{Board, State},
};
use datapath::PodDatapath;
use keeper::Keeper;
use monitor::Monitor;
use netlink::NetlinkError;
use pods::Pods;
use steps::Observer;

/// The name of this part on the [`Board`].
pub const PART: &str = "cni";
/// MTU of pod links until the uplink is known, in bytes.
const DEFAULT_MTU: u32 = 1500;
/// The journal's name in the state folder.
const JOURNAL: &str = "podnet.journal";
/// How often everything is looked at though nothing is known to have changed.
const TICK: Duration = Duration::from_mins(1);
/// How soon it is looked at again while something is wrong.
const RETRY: Duration = Duration::from_secs(5);
/// How long to wait for what comes together with a change.
const SWARM: Duration = Duration::from_millis(100);

/// Where the pod network of a node lives. The network namespace is that of the calling thread.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node that this is.
    pub node_name: String,
    /// Holds `cni.sock` and the journals; on tmpfs, as `/run/mizzen` is.
    pub state_dir: PathBuf,
    /// Where the container runtime reads CNI configurations (`/etc/cni/net.d`).
    pub conf_dir: PathBuf,
    /// Where the container runtime finds plugins (`/opt/cni/bin`).
    pub bin_dir: PathBuf,
    /// The plugin's binary that is installed into `bin_dir`; `None`: `mizzen-cni` beside the
    /// agent's own executable.
    pub plugin: Option<PathBuf>,
    /// MTU of the pods' interfaces in bytes; `None`: that of the node's uplink.
    pub mtu: Option<u32>,
    /// UDP port of the tunnels to nodes with which this one shares no link; 0: no tunnels.
    pub vxlan_port: u16,
    /// Addresses that are given to no pod.
    pub excluded: Vec<Cidr>,
    /// Whether pods may have host ports: somebody has to see to them.
    pub port_mappings: bool,
    /// Is told of each step of ADD and DEL.
    pub at_step: Observer,
}

/// Who is told of pods, before the pods themselves know.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    /// Whose addresses are given and taken back.
    pub local_pods: Arc<LocalPods>,
    /// Their host ports.
    pub host_ports: Arc<HostPorts>,
    /// Counts what somebody else altered and was mended.
    pub metrics: Arc<Metrics>,
}

/// Why the pod network could not start.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// A file or folder of the state folder.
    #[error("{operation} {}; the agent needs root and a writable --state-dir", path.display())]
    StateDir {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The kernel's tables of links and routes.
    #[error("take over the node's links and routes")]
    Kernel(#[from] NetlinkError),
}

/// Serves the CNI plugin and keeps the routes to other nodes' pods until `cancel`.
///
/// What can heal (no `podCIDRs` yet, no API server, a busy kernel) is reported on the board under
/// [`PART`] and tried again; an error is what only an operator can mend.
pub async fn run(
    config: Config,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    datapath: Arc<dyn PodDatapath>,
    board: Arc<Board>,
    listeners: Listeners,
    cancel: CancellationToken,
) -> Result<(), PodNetError> {
    board.report(PART, State::Waiting("taking over what is there".into()));
    let opened = config.clone();
    let pods = Arc::new(blocking(move || open(&opened, datapath)).await?);
    // What changes from here on is told, and what was before is seen by the first pass.
    let known = Arc::clone(&pods);
    let monitor = Monitor::start(move |told| notice::matters(told, &*known))?;
    let metrics = Arc::clone(&listeners.metrics);
    pods.tell(listeners);
    let state_dir = |operation, source| PodNetError::StateDir {
        operation,
        path: config.state_dir.clone(),
        source,
    };
    let listener =
        server::listen(&config.state_dir).map_err(|error| state_dir("listen in", error))?;
    // Who calls before the node has been looked at waits in the socket's queue.
    let mut listener = Some(listener);
    let mut server = None;
    let review = tokio::spawn(review::run(Arc::clone(&pods), cancel.clone()));
    let teardown = tokio::spawn(teardown::run(Arc::clone(&pods), cancel.clone()));
    let keeper = Arc::new(Keeper::new(config, Arc::clone(&pods), metrics));
    while !cancel.is_cancelled() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let (worker, input) = (Arc::clone(&keeper), Arc::clone(&snapshot));
        let state = blocking(move || worker.converge(&input)).await;
        let pause = if state == State::Ready { TICK } else { RETRY };
        board.report(PART, state);
        if let Some(listener) = listener.take() {
            let serve = server::serve(listener, Arc::clone(&pods), cancel.clone());
            server = Some(tokio::spawn(serve));
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = nodes_changed(&mut snapshots, &snapshot) => {}
            // Changes come in swarms.
            () = monitor.told() => sleep(SWARM).await,
            () = configuration_lost(&keeper) => {}
            () = sleep(pause) => {}
        }
    }
    // A panic there has been reported by its own thread.
    let _ended = (review.await, teardown.await);
    if let Some(server) = server {
        let _ended = server.await;
    }
    blocking(move || pods.tear_down()).await;
    Ok(())
}

/// The pods that the agent of this boot with this state folder connected, with their addresses.
pub fn pods_in(state_dir: &Path) -> BTreeMap<ObjectKey, Vec<IpAddr>> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let bytes = fs::read(state_dir.join(JOURNAL)).unwrap_or_default();
    let entries = journal::Replayed::from_lines(&bytes, boot.trim()).entries.into_values();
    entries
        .map(|entry| (ObjectKey::new(&entry.pod.namespace, &entry.pod.name), entry.addresses))
        .collect()
}

/// Opens the state folder and takes over what an earlier agent left.
fn open(config: &Config, datapath: Arc<dyn PodDatapath>) -> Result<Pods, PodNetError> {
    let state_dir = &*config.state_dir;
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| PodNetError::StateDir { operation, path, source }
    };
    fs::create_dir_all(state_dir).map_err(failed("create", state_dir))?;
    let boot_id = Path::new("/proc/sys/kernel/random/boot_id");
    let boot = fs::read_to_string(boot_id).map_err(failed("read", boot_id))?;
    let journal = state_dir.join(JOURNAL);
    let excluded = config.excluded.clone();
    let pods = Pods::open(&journal, boot.trim(), excluded, datapath)
        .map_err(failed("open", &journal))?
        .observed_by(config.at_step);
    pods.drain_noted(None).map_err(failed("drain the DELs noted in", state_dir))?;
    pods.restore()?;
    Ok(pods)
}

/// Returns when somebody took the runtime's configuration away. Nobody tells, so it is looked for.
async fn configuration_lost(keeper: &Keeper) {
    loop {
        sleep(RETRY).await;
        if keeper.lacks_configuration() {
            return;
        }
    }
}

/// Returns when the nodes are others than in `known`, or the pods that asked for something. Services
/// come and go all the time, and are nothing to us.
pub(crate) async fn nodes_changed(
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    known: &Snapshot,
) {
    let closed = snapshots
        .wait_for(|new| {
            new.synced.nodes != known.synced.nodes
                || new.synced.pods != known.synced.pods
                || !new.nodes.ptr_eq(&known.nodes)
                || !new.opted_out_pods.ptr_eq(&known.opted_out_pods)
        })
        .await
        .is_err();
    // No more snapshots will come: wait for something else.
    if closed {
        pending::<()>().await;
    }
}

/// Runs `body` on a thread where it may block. A panic goes on in the caller.
async fn blocking<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(body).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being shut down: whoever waits here is dropped as well.
            Err(_cancelled) => pending().await,
        },
    }
}
