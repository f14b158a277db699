//! The bed of the CNI tests: nodes that are network namespaces with a pod network of their own
//! inside this process, pods that are namespaces, and the real plugin binary called as a runtime
//! calls it.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use mizzen_agent::{
    host_ports::HostPorts,
    local_pods::LocalPods,
    metrics::Metrics,
    model::{node::Node as ModelNode, snapshot::Snapshot},
    podnet::{
        self, PART,
        datapath::{NoDatapath, PodDatapath},
        steps::Observer,
    },
    status::{Board, State},
};
use mizzen_tests::{netns::Netns, wait::until};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// A node: a namespace, its folders, and an agent's pod network while one runs.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) netns: Arc<Netns>,
    pub(super) folder: tempfile::TempDir,
    pub(super) board: Arc<Board>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    /// What the agent that was started last says of its pods.
    pub(super) local_pods: Arc<LocalPods>,
    /// Where the agent asks for host ports.
    pub(super) host_ports: Arc<HostPorts>,
    /// The plugin's binary that is called.
    pub(super) called: PathBuf,
    /// What its agents counted.
    pub(super) metrics: Arc<Metrics>,
    /// Who is told of the steps of the agent that is started next.
    pub(super) at_step: Observer,
    agent: Option<Agent>,
}

struct Agent {
    cancel: CancellationToken,
    thread: JoinHandle<Result<(), podnet::PodNetError>>,
}

impl Node {
    /// A node without an agent, whose API server lists `nodes`.
    pub(super) fn new(name: &str, nodes: &[ModelNode]) -> Self {
        Self::at(Arc::new(Netns::new(name)), name, nodes)
    }

    /// A node in this namespace.
    pub(super) fn at(netns: Arc<Netns>, name: &str, nodes: &[ModelNode]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = watch::Sender::new(Arc::new(snapshot(nodes)));
        let (board, local_pods, host_ports, metrics) = Default::default();
        let (name, called, agent) = (name.into(), plugin(), None);
        let at_step = podnet::steps::unobserved;
        Self {
            name,
            netns,
            folder,
            board,
            snapshots,
            local_pods,
            host_ports,
            called,
            metrics,
            at_step,
            agent,
        }
    }

    /// A node of its own with ranges and a running agent that is ready.
    pub(super) fn alone() -> Self {
        let mut node = Self::new("a", &[model("a", 1)]);
        node.start();
        node.wait_ready();
        node
    }

    /// Starts the agent.
    pub(super) fn start(&mut self) {
        self.start_with(Arc::new(NoDatapath));
    }

    pub(super) fn start_with(&mut self, datapath: Arc<dyn PodDatapath>) {
        let config = podnet::Config {
            node_name: self.name.clone(),
            state_dir: self.state_dir(),
            conf_dir: self.folder.path().join("net.d"),
            bin_dir: self.folder.path().join("bin"),
            plugin: Some(plugin()),
            mtu: None,
            vxlan_port: mizzen_ebpf_abi::tunnel::PORT,
            excluded: vec![],
            port_mappings: true,
            at_step: self.at_step,
        };
        let netns = std::fs::File::open(self.netns.path()).unwrap();
        let (snapshots, board) = (self.snapshots.subscribe(), Arc::clone(&self.board));
        (self.local_pods, self.host_ports) = Default::default();
        let (local_pods, host_ports) = (self.local_pods.clone(), self.host_ports.clone());
        let listeners = podnet::Listeners { local_pods, host_ports, metrics: self.metrics.clone() };
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let thread = std::thread::spawn(move || {
            // All threads of the runtime are made by this one, and inherit its namespace.
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .unwrap()
                .block_on(podnet::run(config, snapshots, datapath, board, listeners, stop))
        });
        self.agent = Some(Agent { cancel, thread });
    }

    /// Stops the agent; what it left in the kernel and on disk stays.
    pub(super) fn stop(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        agent.cancel.cancel();
        agent.thread.join().unwrap().unwrap();
        self.board.report(PART, State::Waiting("stopped by the test".into()));
    }

    pub(super) fn wait_ready(&self) {
        self.wait_state("readiness", |state| *state == State::Ready);
    }

    pub(super) fn wait_state(&self, what: &str, wanted: impl Fn(&State) -> bool) {
        until(what, LIMIT, || match self.board.parts().get(PART) {
            Some(state) if wanted(state) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The agent's journal, as it is.
    pub(super) fn journal(&self) -> String {
        std::fs::read_to_string(self.state_dir().join("podnet.journal")).unwrap()
    }

    pub(super) fn conflist(&self) -> PathBuf {
        self.folder.path().join("net.d/10-mizzen.conflist")
    }

    /// The configuration as a runtime makes it from the list.
    pub(super) fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "mizzen", "type": "mizzen-cni",
            "stateDir": self.state_dir(),
        })
    }

    pub(super) fn call(&self, command: &str, pod: &Pod) -> Outcome {
        self.call_with(command, pod, &self.conf("1.1.0"))
    }

    /// Calls the plugin as a runtime in this node's namespace does.
    pub(super) fn call_with(&self, command: &str, pod: &Pod, conf: &Value) -> Outcome {
        let netns = pod.netns.as_ref().map(Netns::path).unwrap_or_default();
        self.call_in(command, &pod.container_id, &netns, conf)
    }

    pub(super) fn call_in(
        &self,
        command: &str,
        container: &str,
        netns: &Path,
        conf: &Value,
    ) -> Outcome {
        let child = self.spawn_in(command, container, netns, conf);
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let answer = match stdout.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).expect("one JSON object on standard output"),
        };
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Outcome { success: output.status.success(), answer, log: stderr }
    }

    /// Begins a call.
    pub(super) fn spawn(&self, command: &str, pod: &Pod, conf: &Value) -> Child {
        self.spawn_in(command, &pod.container_id, &pod.netns().path(), conf)
    }

    fn spawn_in(&self, command: &str, container: &str, netns: &Path, conf: &Value) -> Child {
        let mut child = self
            .netns
            .command(self.called.to_str().unwrap())
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", format!("{ARGS};K8S_POD_NAME={}", pod_name(container)))
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A plugin that has read enough goes.
        match child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
        child
    }

    /// ADD that must succeed; the pod then knows its addresses.
    pub(super) fn add(&self, pod: &mut Pod) -> Value {
        let result = self.call("ADD", pod).expect_success();
        pod.addresses = addresses(&result);
        result
    }

    /// Names of the pod links on the node, when those of pods that left are gone.
    pub(super) fn pod_links(&self) -> Vec<String> {
        let text = until("the end of links that leave", LIMIT, || {
            let text = self.netns.ip("-o link show type veth");
            if text.contains(LEAVING) { Err(text) } else { Ok(text) }
        });
        let names = text.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
        names.filter(|name| name.starts_with("mz")).map(str::to_owned).collect()
    }
}

/// How links that are going to be deleted are shown.
const LEAVING: &str = "group 1299860858";

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.cancel.cancel();
            let _reported = agent.thread.join();
        }
    }
}

/// What a runtime says of every pod.
const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default";

/// The name of the pod whose sandbox this is.
pub(super) fn pod_name(container: &str) -> String {
    let serial = container.get(..32).and_then(|hex| u128::from_str_radix(hex, 16).ok());
    format!("web-{}", serial.unwrap_or_default())
}

/// What a call of the plugin gave.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) success: bool,
    pub(super) answer: Value,
    #[expect(dead_code, reason = "shown when a test fails")]
    log: String,
}

impl Outcome {
    #[track_caller]
    pub(super) fn expect_success(self) -> Value {
        assert!(self.success, "{self:?}");
        self.answer
    }

    /// The error's message and details.
    #[track_caller]
    pub(super) fn expect_code(self, code: u32) -> String {
        assert!(!self.success, "{self:?}");
        assert_eq!(self.answer["code"], code, "{self:?}");
        let text = |key: &str| self.answer[key].as_str().unwrap_or_default().to_owned();
        format!("{}: {}", text("msg"), text("details"))
    }
}

/// A pod sandbox: a namespace (or none any more) and a container ID.
pub(super) struct Pod {
    pub(super) netns: Option<Netns>,
    pub(super) container_id: String,
    pub(super) addresses: Vec<IpAddr>,
}

impl Pod {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let container_id = format!("{serial:032x}{:032x}", std::process::id());
        Self { netns: Some(Netns::new("pod")), container_id, addresses: Vec::new() }
    }

    pub(super) fn netns(&self) -> &Netns {
        self.netns.as_ref().unwrap()
    }
}

/// The plugin beside this test's binary.
pub(super) fn plugin() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(Path::parent).unwrap();
    let plugin = target.join("mizzen-cni");
    assert!(plugin.exists(), "{} is missing: cargo build -p mizzen-cni", plugin.display());
    plugin
}

/// The Node `name`, number `index`: ranges and addresses of both families.
pub(super) fn model(name: &str, index: u8) -> ModelNode {
    let text = |template: String| template.parse().unwrap();
    ModelNode {
        name: name.into(),
        internal_ips: vec![text(format!("172.30.0.1{index}")), text(format!("fd00:30::1{index}"))],
        pod_cidrs: vec![
            format!("10.244.{index}.0/24").parse().unwrap(),
            format!("fd00:244:{index}::/64").parse().unwrap(),
        ],
        zone: None,
        to_be_deleted: false,
        kube_proxy: None,
        names_asked: None,
    }
}

pub(super) fn snapshot(nodes: &[ModelNode]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.synced.nodes = true;
    snapshot.nodes = nodes.iter().map(|node| (node.name.clone(), Arc::new(node.clone()))).collect();
    snapshot
}

/// Nodes `a` and `b` on one link, their agents ready.
pub(super) fn two_nodes() -> (Node, Node) {
    let nodes = [model("a", 1), model("b", 2)];
    let (mut a, mut b) = (Node::new("a", &nodes), Node::new("b", &nodes));
    a.netns.veth("eth0", &b.netns, "eth0");
    for (node, index) in [(&mut a, 1), (&mut b, 2)] {
        node.netns.ip(&format!("addr add 172.30.0.1{index}/24 dev eth0"));
        node.netns.ip(&format!("addr add fd00:30::1{index}/64 dev eth0 nodad"));
        node.start();
    }
    a.wait_ready();
    b.wait_ready();
    (a, b)
}

/// Addresses in a result, after checking that they are host addresses of `eth0`.
pub(super) fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter()
        .map(|ip| {
            assert_eq!(ip["interface"], 1);
            let (address, length) = ip["address"].as_str().unwrap().split_once('/').unwrap();
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(length, if address.is_ipv4() { "32" } else { "128" });
            address
        })
        .collect()
}

/// Connects from one namespace to `address` in another by TCP; the source that the server sees.
#[track_caller]
pub(super) fn reach(from: &Netns, to: &Netns, address: IpAddr) -> IpAddr {
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let server = listener.local_addr().unwrap();
    let limit = Duration::from_secs(3);
    let client = from.run(|| TcpStream::connect_timeout(&server, limit));
    let client = client.unwrap_or_else(|error| panic!("connect to {server}: {error}"));
    let (_, peer) = listener.accept().unwrap();
    drop(client);
    peer.ip()
}
