//! Real agents beside a real API server: two nodes with a pod each on one wire, every host a network
//! namespace, every agent a process.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use mizzen_agent::kube::client::ApiServers;
use mizzen_control_plane::serve::{Args, Server};
use mizzen_tests::{
    actor::Actor,
    lab::{FAMILIES, Family, mac, plug, set},
    netns::Netns,
    node::TestNode,
    wait,
};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// The API server's address on the wire, and its port.
pub(crate) const API: u8 = 1;
pub(crate) const API_PORT: u16 = 6443;
/// Where the agents look for an upstream.
pub(super) const UPSTREAM: u8 = 200;
/// A name that both nodes know.
pub(crate) const NAME: &str = "web.default.svc.cluster.local";

/// The cluster DNS address.
pub(crate) fn dns(family: Family) -> SocketAddr {
    SocketAddr::new(family.service(10), 53)
}

/// A node.
pub(crate) struct Host {
    pub(super) number: u8,
    pub(crate) node: TestNode,
    pub(crate) pod: Netns,
    state: tempfile::TempDir,
}

/// All of it.
pub(crate) struct Field {
    pub(crate) hosts: [Host; 2],
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
    pub(crate) kubeconfig: PathBuf,
    server: Option<Server>,
    data: tempfile::TempDir,
    /// Where the API server is, and clients outside.
    pub(crate) wire: Netns,
    controllers: bool,
}

impl Field {
    pub(crate) fn new() -> Self {
        Self::with(false)
    }

    /// With controllers and scheduler, or the API alone.
    pub(crate) fn with(controllers: bool) -> Self {
        let wire = Netns::new("wire");
        wire.ip("link add br0 type bridge");
        wire.ip("link set br0 up");
        for (family, length, nodad) in [(Family::V4, 24, ""), (Family::V6, 64, "nodad")] {
            wire.ip(&format!("addr add {}/{length} dev br0 {nodad}", family.wire(API)));
        }
        let hosts = [1, 2].map(|number| Host::new(&wire, number));
        // Its threads inherit the namespace of the one that starts them.
        let runtime = wire.run(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2).enable_all().build().unwrap()
        });
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().to_owned();
        let (server, client) =
            on(&runtime, async move { serve(folder, API_PORT, controllers).await });
        let kubeconfig = server.kubeconfig.clone();
        let server = Some(server);
        let this = Self { hosts, client, runtime, kubeconfig, server, data, wire, controllers };
        this.fill();
        this
    }

    /// Nodes, the Service `web`, and the nodes' resolvers behind cluster DNS.
    fn fill(&self) {
        let client = self.client.clone();
        on(&self.runtime, async move {
            for number in [1, 2] {
                register(&client, number).await;
            }
            let web = json!({
                "metadata": {"name": "web"},
                "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]},
            });
            let services: Api<Service> = Api::default_namespaced(client.clone());
            let web = serde_json::from_value(web).unwrap();
            services.create(&PostParams::default(), &web).await.unwrap();
            for family in FAMILIES {
                resolvers(&client, family).await;
            }
        });
    }

    /// Starts the agent of a node and waits until it is ready.
    pub(crate) fn agent(&self, host: &Host, flags: &[&str]) -> Agent {
        let agent = self.begin(host, flags);
        agent.until_ready(host);
        agent
    }

    /// Starts another agent of a node beside one, and waits until that has left and the new one is
    /// ready.
    pub(super) fn agent_after(&self, host: &Host, before: &mut Agent) -> Agent {
        self.agent_after_with(host, before, &[])
    }

    /// The same with these flags.
    pub(crate) fn agent_after_with(
        &self,
        host: &Host,
        before: &mut Agent,
        flags: &[&str],
    ) -> Agent {
        let agent = self.begin(host, flags);
        let status = wait::until("the agent before to leave", LIMIT, || {
            let ended = before.child.try_wait().unwrap();
            ended.ok_or_else(|| {
                format!(
                    "{}
--\n{}",
                    before.log(),
                    agent.log()
                )
            })
        });
        assert!(status.success(), "{status}\n{}", before.log());
        agent.until_ready(host);
        agent
    }

    /// Starts the agent of a node.
    pub(crate) fn begin(&self, host: &Host, flags: &[&str]) -> Agent {
        self.begin_by(host, &[], flags)
    }

    /// The same by a program that becomes the agent.
    pub(crate) fn begin_by(&self, host: &Host, by: &[&str], flags: &[&str]) -> Agent {
        let name = format!("node-{}", host.number);
        let agent = binary("mizzen-agent");
        let words = [by, &[&agent, "run", "--node-name", &name]].concat();
        let mut command = host.node.netns.command(words[0]);
        command.args(&words[1..]).args(flags);
        if !flags.contains(&"--cni=true") {
            command.arg("--cni=false");
        }
        let options = host.node.options();
        let cgroup = options.cgroup_root.clone().expect("a cgroup");
        for (flag, value) in [
            ("--kubeconfig", &self.kubeconfig),
            ("--bpffs", &options.bpffs),
            ("--cgroup-root", &cgroup),
            ("--state-dir", &host.state.path().to_owned()),
            ("--data-dir", &host.data_dir()),
        ] {
            if !flags.contains(&flag) {
                command.arg(flag).arg(value);
            }
        }
        command.args(["--dns-upstream", &Family::V4.wire(UPSTREAM).to_string()]);
        Agent::start(command, self.data.path())
    }

    /// Starts the API server again, where it was or at another port; a client of it.
    pub(crate) fn start_server(&mut self, port: u16) -> Client {
        let folder = self.data.path().to_owned();
        let controllers = self.controllers;
        let (server, client) =
            on(&self.runtime, async move { serve(folder, port, controllers).await });
        self.server = Some(server);
        client
    }

    /// Ends the API server.
    pub(crate) fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            on(&self.runtime, server.stop());
        }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        self.stop_server();
    }
}

/// In both families: the kubeconfig names the first.
async fn serve(data_dir: PathBuf, port: u16, controllers: bool) -> (Server, Client) {
    let listen = FAMILIES.map(|family| SocketAddr::new(family.wire(API), port)).into();
    let args = Args { listen, no_controllers: !controllers, ..Args::new(data_dir) };
    let server = Server::start(args, CancellationToken::new()).await.unwrap();
    let servers = ApiServers::new(Some(&server.kubeconfig), &[]).await.unwrap();
    let client = servers.clients().unwrap().pick(0).client;
    (server, client)
}

/// What `future` gives, run by the runtime's own threads.
pub(crate) fn on<T: Send + 'static>(
    runtime: &Runtime,
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    runtime.block_on(runtime.spawn(future)).unwrap()
}

async fn register(client: &Client, number: u8) {
    let (name, ranges) = (
        format!("node-{number}"),
        [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")],
    );
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
    });
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let addresses: Vec<_> = FAMILIES
        .map(|family| json!({"type": "InternalIP", "address": family.wire(10 + number)}))
        .into();
    let status = Patch::Merge(json!({"status": {"addresses": addresses}}));
    nodes.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
}

/// The slice with both nodes' resolvers.
async fn resolvers(client: &Client, family: Family) {
    let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let endpoint = |number: u8| {
        json!({
            "addresses": [family.wire(10 + number)],
            "conditions": {"ready": true},
            "nodeName": format!("node-{number}"),
        })
    };
    let slice = json!({
        "metadata": {
            "name": format!("kube-dns-{}", kind.to_lowercase()),
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": kind,
        "ports": [
            {"name": "dns", "port": 8053, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 8053, "protocol": "TCP"},
        ],
        "endpoints": [endpoint(1), endpoint(2)],
    });
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "kube-system");
    let slice = serde_json::from_value(slice).unwrap();
    slices.create(&PostParams::default(), &slice).await.unwrap();
}

impl Host {
    /// What its agents keep over a restart.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.state.path().join("data")
    }

    fn new(wire: &Netns, number: u8) -> Self {
        let node = TestNode::new(&format!("node{number}"));
        let netns = &node.netns;
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            set(netns, key, "1");
        }
        plug(wire, netns, 10 + number);
        let pod = Netns::new("pod");
        set(&pod, "ipv6/conf/default/accept_dad", "0");
        netns.veth("pod0", &pod, "eth0");
        let mac = mac(netns, "pod0").map(|octet| format!("{octet:02x}")).join(":");
        let other = 3 - number;
        for family in FAMILIES {
            let (ip, host, pods, hop, nodad) = match family {
                Family::V4 => ("", 32, 24, "169.254.1.1", ""),
                Family::V6 => ("-6 ", 128, 64, "fe80::1", "nodad"),
            };
            let address = family.pod(number, 7);
            pod.ip(&format!("addr add {address}/{host} dev eth0 {nodad}"));
            pod.ip(&format!("neigh add {hop} lladdr {mac} dev eth0 nud permanent"));
            pod.ip(&format!("{ip}route add default via {hop} dev eth0 onlink"));
            netns.ip(&format!("{ip}route add {address}/{host} dev pod0"));
            let (range, via) = (family.pod(other, 0), family.wire(10 + other));
            netns.ip(&format!("{ip}route add {range}/{pods} via {via}"));
        }
        let state = tempfile::Builder::new().prefix("mzt-").tempdir().unwrap();
        Self { number, node, pod, state }
    }

    /// A client in the node's pod.
    pub(crate) fn in_pod(&self) -> Actor {
        self.node.pod_actor(&self.pod)
    }

    /// What `mizzen` says on the node, and its exit code.
    pub(crate) fn mizzen(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = self.node.netns.command(&binary("mizzen"));
        let output = command.arg("--state-dir").arg(self.state()).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said + &String::from_utf8_lossy(&output.stderr))
    }

    /// The node's state folder.
    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// What a port of the node answers to an HTTP request.
    pub(crate) fn http(&self, at: SocketAddr, path: &str) -> Result<(u16, String), String> {
        http(&self.node.netns, at, path)
    }

    /// The value of a metric of the node's agent.
    pub(super) fn metric(&self, name: &str) -> String {
        let (_, text) = self.http(METRICS, "/metrics").unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    }
}

/// Where an agent's own metrics are.
pub(crate) const METRICS: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);

/// What is answered at `at`, as a host sees it.
pub(crate) fn http(netns: &Netns, at: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let asked = netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    });
    let answer = asked.map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("cut off")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
    Ok((status, body.to_owned()))
}

/// A binary of the product: cargo puts them a folder above its tests.
pub(crate) fn binary(name: &str) -> String {
    let this = std::env::current_exe().expect("the path of this test");
    let folder = this.parent().and_then(Path::parent).expect("cargo's folder of binaries");
    folder.join(name).display().to_string()
}

/// An agent's process; it is killed with the guard.
pub(crate) struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    fn start(mut command: Command, folder: &Path) -> Self {
        let log = tempfile::Builder::new().prefix("agent-").tempfile_in(folder).unwrap();
        let (file, log) = log.keep().unwrap();
        let child = command
            .env("RUST_LOG", "info,mizzen_agent::dns=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(file))
            .spawn()
            .expect("start the agent: `cargo xtask build --debug`");
        Self { child, log }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn until_ready(&self, host: &Host) {
        wait::until("the agent to be ready", LIMIT, || match host.http(METRICS, "/readyz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}\n{}", self.log())),
        });
    }

    /// Waits until its log has this.
    pub(crate) fn until_logged(&self, text: &str) {
        wait::until(text, LIMIT, || match self.log() {
            log if log.contains(text) => Ok(()),
            log => Err(log),
        });
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait::until("the agent to end", LIMIT, || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(fs::read_to_string(&self.log).unwrap()),
        })
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
