//! An agent's pod network with the real datapath, as a process that tests kill: at once, or when it
//! has done the step of ADD or DEL that a file in its state folder names.
//!
//! `mizzen-test-podnet NETNS CGROUP BPFFS FOLDER PLUGIN`; SIGTERM ends it in order. The service tables
//! have pods' host ports. With `none` for BPFFS it has no datapath, and starts at once: what pods ask
//! of the tables counts as done then.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use mizzen_agent::{
    datapath::{Datapath, KernelMaps, Options},
    desired::{NodeFacts, Settings},
    host_ports::HostPorts,
    model::{
        node::Node,
        snapshot::{Snapshot, Synced},
    },
    podnet::{
        self, Listeners,
        datapath::{NoDatapath, PodDatapath},
        steps::Step,
    },
    reconcile::{AttachNothing, Inputs, Reconciler},
    released,
};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

/// The file that names the step.
static ARMED: OnceLock<PathBuf> = OnceLock::new();

fn end_at(step: Step) {
    let armed = ARMED.get().and_then(|path| fs::read_to_string(path).ok());
    if armed.is_some_and(|name| name == format!("{step:?}")) {
        let _killed = kill(Pid::this(), Signal::SIGKILL);
    }
}

fn main() -> anyhow::Result<()> {
    let [netns, cgroup, bpffs, folder, plugin] =
        std::env::args().skip(1).map(PathBuf::from).collect::<Vec<_>>().try_into().map_err(
            |given: Vec<_>| anyhow::anyhow!("five arguments are needed, not {}", given.len()),
        )?;
    let state_dir = folder.join("state");
    ARMED.get_or_init(|| folder.join("armed"));
    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    let options = Options { bpffs, mounts: true, cgroup_root: Some(cgroup), flows: None };
    let datapath = options.bpffs.is_absolute().then(|| Datapath::open(&options)).transpose()?;
    let pods: Arc<dyn PodDatapath> = match &datapath {
        Some(datapath) => Arc::new(datapath.pods()?),
        None => Arc::new(NoDatapath),
    };
    let config = podnet::Config {
        node_name: "a".into(),
        state_dir,
        conf_dir: folder.join("net.d"),
        bin_dir: folder.join("bin"),
        plugin: Some(plugin),
        mtu: None,
        vxlan_port: 0,
        excluded: vec![],
        port_mappings: true,
        at_step: end_at,
    };
    let maps = datapath.as_ref().map(Datapath::maps).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = cancel.clone();
        tokio::spawn(async move {
            terminate.recv().await;
            stop.cancel();
        });
        let listeners = Listeners::default();
        let host_ports = Arc::clone(&listeners.host_ports);
        let (_snapshots, snapshots) = watch::channel(Arc::new(snapshot()?));
        let tables = if let Some(maps) = maps {
            let (snapshots, stop) = (snapshots.clone(), cancel.clone());
            Some(std::thread::spawn(move || fill_tables(maps, snapshots, host_ports, stop)))
        } else {
            tokio::spawn(note_all(host_ports));
            None
        };
        podnet::run(config, snapshots, pods, Arc::default(), listeners, cancel).await?;
        match tables.map(std::thread::JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => anyhow::bail!("the loop that fills the tables panicked"),
            None => Ok(()),
        }
    })
}

/// Has the service tables say what pods ask of them.
fn fill_tables(
    maps: KernelMaps,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    host_ports: Arc<HostPorts>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let settings =
        Settings { node_name: "a".into(), snat_ports: (10_000, 29_999), ..Settings::default() };
    let (board, metrics) = Default::default();
    let reconciler =
        Reconciler::new(settings, Box::new(maps), Box::new(AttachNothing), board, metrics);
    let (_facts, facts) = watch::channel(Some(Arc::new(NodeFacts::default())));
    let (_queries, queries) = mpsc::channel(1);
    let (_release, released) = released::channel();
    let inputs = Inputs { snapshots, facts, queries, released, host_ports };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(reconciler.run(inputs, stop)).map_err(|error| anyhow::anyhow!(error))
}

/// Whatever is asked of the tables is done.
async fn note_all(host_ports: Arc<HostPorts>) {
    let mut asked = host_ports.follow();
    while asked.changed().await.is_ok() {
        let revision = asked.borrow().as_ref().map_or(0, |asked| asked.revision);
        host_ports.note_in_force(revision);
    }
}

/// The node `a`, number 1 of the tests' cluster.
fn snapshot() -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    (snapshot.revision, snapshot.synced) = (1, Synced::ALL);
    let pod_cidrs = vec!["10.244.1.0/24".parse()?, "fd00:244:1::/64".parse()?];
    let node = Node { pod_cidrs, ..Node::named("a") };
    snapshot.nodes.insert("a".into(), Arc::new(node));
    Ok(snapshot)
}
