//! A node with the resolver in it, a pod behind a veth as the CNI plugin makes it, and a host
//! outside, each a network namespace.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mizzen_agent::{
    dns::{self, Config, metrics::Metrics, route::Route},
    local_pods::LocalPods,
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointPort, EndpointSlice},
        node::{Cidr, Node},
        service::{Protocol, Service, ServicePort},
        snapshot::{Snapshot, Synced},
    },
    status::{Board, State},
};
use mizzen_tests::{netns::Netns, wait};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(super) const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::a"];
pub(super) const NODE_LOCAL: [&str; 2] = ["169.254.20.10", "fd00:20::10"];
pub(super) const POD: [&str; 2] = ["10.244.1.7", "fd00:244:0:1::7"];
pub(super) const NODE: [&str; 2] = ["192.0.2.11", "fd00:30::11"];
pub(super) const OUTSIDE: [&str; 2] = ["192.0.2.100", "fd00:30::100"];
pub(super) const OUTSIDE_TOO: [&str; 2] = ["192.0.2.101", "fd00:30::101"];

const LIMIT: Duration = Duration::from_secs(10);

/// The three hosts.
pub(super) struct Site {
    pub(super) node: Netns,
    pub(super) pod: Netns,
    pub(super) outside: Netns,
}

impl Site {
    pub(super) fn new() -> Self {
        let site = Self {
            node: Netns::new("dns-node"),
            pod: Netns::new("dns-pod"),
            outside: Netns::new("dns-out"),
        };
        let Self { node, pod, outside } = &site;
        for host in [node, pod, outside] {
            host.run(|| {
                // Addresses are usable at once, without asking whether another host has them.
                for scope in ["all", "default"] {
                    let path = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
                    std::fs::write(path, "0").expect("accept_dad");
                }
            });
        }
        node.veth("eth0", outside, "eth0");
        node.ip(&format!("addr add {}/24 dev eth0", NODE[0]));
        node.ip(&format!("addr add {}/64 dev eth0 nodad", NODE[1]));
        for addresses in [OUTSIDE, OUTSIDE_TOO] {
            outside.ip(&format!("addr add {}/24 dev eth0", addresses[0]));
            outside.ip(&format!("addr add {}/64 dev eth0 nodad", addresses[1]));
        }
        // As the CNI plugin does it: host addresses, and a next hop that is only a neighbour.
        node.veth("pod0", pod, "eth0");
        node.ip("link set pod0 address 02:00:00:00:00:01");
        node.ip("route add 10.244.1.7/32 dev pod0");
        node.ip("-6 route add fd00:244:0:1::7/128 dev pod0");
        pod.ip("addr add 10.244.1.7/32 dev eth0");
        pod.ip("addr add fd00:244:0:1::7/128 dev eth0 nodad");
        for (family, hop) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
            pod.ip(&format!(
                "{family} neigh add {hop} lladdr 02:00:00:00:00:01 dev eth0 nud permanent"
            ));
            pod.ip(&format!("{family} route add default via {hop} dev eth0 onlink"));
        }
        site
    }

    /// What `dig` says in the pod.
    pub(super) fn dig(&self, arguments: &str) -> String {
        dig(&self.pod, arguments)
    }
}

/// What `dig` says inside `netns`.
pub(super) fn dig(netns: &Netns, arguments: &str) -> String {
    let mut command = netns.command("dig");
    let command = command.args(["+time=15", "+tries=1"]).args(arguments.split_whitespace());
    let output = command.output().unwrap_or_else(|error| panic!("dig (bind9-dnsutils): {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How long an answer took, as `dig` says it: its own start does not count.
pub(super) fn query_time(said: &str) -> Duration {
    let line = said.lines().find(|line| line.starts_with(";; Query time:")).expect(said);
    Duration::from_millis(line.split(' ').nth(3).and_then(|text| text.parse().ok()).expect(line))
}

/// A resolver in a thread whose network namespace is the node's.
pub(super) struct Running {
    pub(super) board: Arc<Board>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) local_pods: Arc<LocalPods>,
    logged: Logged,
    stop: CancellationToken,
    kill: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts it and waits until it answers from `snapshot`.
    pub(super) fn start(site: &Site, config: Config, snapshot: Snapshot) -> Self {
        Self::start_in(&site.node, config, snapshot)
    }

    /// The same on that node.
    pub(super) fn start_in(node: &Netns, config: Config, snapshot: Snapshot) -> Self {
        let running = Self::begin_in(node, config, snapshot);
        running.until("ready", |state| *state == State::Ready);
        running
    }

    /// Starts it.
    pub(super) fn begin(site: &Site, config: Config, snapshot: Snapshot) -> Self {
        Self::begin_in(&site.node, config, snapshot)
    }

    fn begin_in(node: &Netns, config: Config, snapshot: Snapshot) -> Self {
        let (snapshots, receiver) = watch::channel(Arc::new(snapshot));
        let board = Arc::new(Board::default());
        let metrics = Arc::<Metrics>::default();
        let local_pods = Arc::<LocalPods>::default();
        let logged = Logged::default();
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let netns = std::fs::File::open(node.path()).expect("the node's namespace");
        let thread = {
            let (board, stop, kill) = (Arc::clone(&board), stop.clone(), kill.clone());
            let (counted, pods) = (Arc::clone(&metrics), Arc::clone(&local_pods));
            let log = logged.clone();
            std::thread::spawn(move || {
                nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                let log =
                    tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone());
                let _log = tracing::subscriber::set_default(log.finish());
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    tokio::select! {
                        result = dns::run(config, receiver, board, counted, pods, stop) => result.expect("runs"),
                        () = kill.cancelled() => {}
                    }
                });
            })
        };
        Self { board, metrics, snapshots, local_pods, logged, stop, kill, thread: Some(thread) }
    }

    /// Waits until its state satisfies `check`.
    pub(super) fn until(&self, what: &str, check: impl Fn(&State) -> bool) -> State {
        wait::until(what, LIMIT, || match self.board.parts().get(dns::PART) {
            Some(state) if check(state) => Ok(state.clone()),
            state => Err(format!("{state:?}")),
        })
    }

    /// What it logged.
    pub(super) fn logged(&self) -> String {
        String::from_utf8_lossy(&self.logged.0.lock().unwrap()).into_owned()
    }

    /// Has it go on from another snapshot.
    pub(super) fn publish(&self, snapshot: Snapshot) {
        self.snapshots.send(Arc::new(snapshot)).expect("it listens");
    }

    /// Tells it to end, and does not wait.
    pub(super) fn tell_to_stop(&self) {
        self.stop.cancel();
    }

    /// Ends it as a signal that can't be caught does: nothing is cleaned up.
    pub(super) fn kill(mut self) {
        self.kill.cancel();
        self.thread.take().map(JoinHandle::join);
    }
}

/// What is written to a log.
#[derive(Clone, Debug, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The configuration of these tests: node-1 of the site, these upstreams.
pub(super) fn config(upstreams: &[&str]) -> Config {
    Config {
        node_name: "node-1".to_owned(),
        routes: vec![Route::to(
            upstreams
                .iter()
                .map(|upstream| (upstream.parse::<IpAddr>().expect("an address"), 53).into())
                .collect(),
        )],
        ..Config::default()
    }
}

/// A cluster with one node, the Services `web` (dual-stack), `hdls` (1,000 endpoints), `db` (two
/// endpoints with names) and `ext`.
pub(super) fn snapshot() -> Snapshot {
    let mut all = Snapshot { synced: Synced::ALL, ..Snapshot::default() };
    let cidr = |address: &str, prefix_len| Cidr { address: address.parse().unwrap(), prefix_len };
    let node = Node {
        name: "node-1".into(),
        internal_ips: NODE.iter().map(|address| address.parse().unwrap()).collect(),
        pod_cidrs: vec![cidr("10.244.1.0", 24), cidr("fd00:244:0:1::", 64)],
        zone: None,
        to_be_deleted: false,
        kube_proxy: None,
        names_asked: None,
    };
    all.nodes.insert(node.name.clone(), Arc::new(node));
    add(&mut all, service("web", &["10.96.1.1", "fd00:96::101"]), &[]);
    let many: Vec<_> = (0..1000).map(|n| (format!("10.244.{}.{}", n / 250, n % 250), "")).collect();
    let many: Vec<_> = many.iter().map(|(address, name)| (&**address, *name)).collect();
    add(&mut all, service("hdls", &[]), &many);
    add(&mut all, service("db", &[]), &[("10.244.9.20", "db-0"), ("10.244.9.21", "db-1")]);
    let mut external = service("ext", &["10.0.0.1"]);
    external.cluster_ips.clear();
    external.external_name = Some("ext.interwebs.test".into());
    add(&mut all, external, &[]);
    all
}

pub(super) fn service(name: &str, ips: &[&str]) -> Service {
    Service {
        cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        headless: ips.is_empty(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        ..Service::new(ObjectKey::new("default", name))
    }
}

/// Adds `service` with endpoints: addresses and hostnames, empty where there is none.
pub(super) fn add(snapshot: &mut Snapshot, service: Service, hosts: &[(&str, &str)]) {
    let mut slice = EndpointSlice {
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        ..EndpointSlice::new(service.key.clone(), &service.key.name, false)
    };
    for (address, hostname) in hosts {
        let names = slice.names.add("", hostname);
        let address = address.parse().unwrap();
        slice.endpoints.push(Endpoint { names, ..Endpoint::ready_at(address) });
    }
    snapshot.slices.insert((service.key.clone(), slice.key.name.clone()), Arc::new(slice));
    snapshot.services.insert(service.key.clone(), Arc::new(service));
}

/// How long `body` took, and what it gave.
pub(super) fn timed<T>(body: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = body();
    (start.elapsed(), result)
}
