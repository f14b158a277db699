//! The node part against the real API server, both as their users start them. Needs root.
//!
//! Pods here have the node's network: pods with their own are tested with the agent.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use mizzen_control_plane::{node::runtime::process::find_cgroup2, pki::Authority};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mizzen-control-plane");
const LIMIT: Duration = Duration::from_secs(30);

/// An API server and a node part, with folders and a cgroup of their own.
struct Cluster {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    server: Child,
    node: Child,
    client: Client,
}

impl Cluster {
    /// A cluster whose node is ready, for pods that have its own network.
    async fn new() -> Self {
        let cluster = Self::without_network().await;
        cluster.configure_network();
        cluster
    }

    async fn without_network() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("mzt-node-api-{}", folder.path().file_name().unwrap().display());
        let cgroup = find_cgroup2().expect("a cgroup2 mount").join(name);
        fs::create_dir(&cgroup).expect("making a cgroup, which needs root");
        let server = Command::new(PROGRAM)
            .args(["serve", "--in-memory", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.path().join("data"))
            .stderr(log(&folder, "serve.log"))
            .spawn()
            .unwrap();
        let kubeconfig = folder.path().join("data/admin.kubeconfig");
        let client = until("the API server", async || {
            let file = Kubeconfig::read_from(&kubeconfig).ok()?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(file, &options).await.ok()?;
            let client = Client::try_from(config).ok()?;
            client.apiserver_version().await.is_ok().then_some(client)
        })
        .await;
        let node = start_node(&folder, &cgroup);
        Self { folder, cgroup, server, node, client }
    }

    /// As an agent does it: renamed into place.
    fn configure_network(&self) {
        let folder = self.folder.path().join("conf");
        let conf = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"none"}]}"#;
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(".tmp"), conf).unwrap();
        fs::rename(folder.join(".tmp"), folder.join("10-net.conflist")).unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!("node-1");
        spec["hostNetwork"] = json!(true);
        let pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        let pod = serde_json::from_value(pod).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// Waits until the pod is one that `wanted` takes.
    async fn pod<T>(&self, name: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let last = std::cell::RefCell::new(Value::Null);
        let look = async || {
            let pod = serde_json::to_value(self.pods().get_opt(name).await.ok()??).ok()?;
            let found = wanted(&pod);
            last.replace(pod);
            found
        };
        match soon(look).await {
            Some(found) => found,
            None => panic!("the pod {name} is {:#}\n{}", last.borrow(), self.node_log()),
        }
    }

    async fn gone(&self, name: &str) {
        until("the pod to be gone", async || {
            matches!(self.pods().get_opt(name).await, Ok(None)).then_some(())
        })
        .await;
    }

    fn restart_node(&mut self) {
        self.node.kill().unwrap();
        self.node.wait().unwrap();
        self.node = start_node(&self.folder, &self.cgroup);
    }

    fn node_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("node.log")).unwrap_or_default()
    }

    fn left(&self) -> usize {
        fs::read_dir(self.folder.path().join("state/sandboxes")).map_or(0, Iterator::count)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in [&mut self.node, &mut self.server] {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
        let _gone = fs::write(self.cgroup.join("cgroup.kill"), "1");
        // What pods that were not deleted have in memory.
        let below = |(target, _): &(PathBuf, String)| target.starts_with(self.folder.path());
        for (target, _) in mounts().into_iter().filter(below) {
            let _gone = nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH);
        }
        remove_everywhere(&self.cgroup);
    }
}

/// Mount points, with the types of their file systems.
fn mounts() -> Vec<(PathBuf, String)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = |line: &str| {
        let mut fields = line.split(' ').skip(1).map(str::to_owned);
        Some((PathBuf::from(fields.next()?), fields.next()?))
    };
    mounts.lines().filter_map(fields).collect()
}

/// Removes a node's cgroup in every hierarchy.
fn remove_everywhere(cgroup: &std::path::Path) {
    let hierarchies = mounts().into_iter().filter(|(_, kind)| kind.starts_with("cgroup"));
    for cgroup in hierarchies.map(|(mount, _)| mount.join(cgroup.file_name().unwrap())) {
        for _ in 0..200 {
            if !cgroup.exists() || remove_cgroups(&cgroup).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_cgroups(path: &std::path::Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path())?;
    }
    fs::remove_dir(path)
}

fn log(folder: &tempfile::TempDir, name: &str) -> Stdio {
    let path = folder.path().join(name);
    fs::OpenOptions::new().create(true).append(true).open(path).unwrap().into()
}

/// As an administrator makes it for a node.
fn make_kubeconfig(folder: &tempfile::TempDir) {
    let admin = Kubeconfig::read_from(folder.path().join("data/admin.kubeconfig")).unwrap();
    let server = admin.clusters[0].cluster.as_ref().unwrap().server.clone().unwrap();
    let made = Command::new(PROGRAM)
        .args(["kubeconfig", "--user", "system:node:node-1", "--group", "system:nodes"])
        .args(["--server", &server, "--data-dir"])
        .arg(folder.path().join("data"))
        .arg("--output")
        .arg(folder.path().join("node.kubeconfig"))
        .status();
    assert!(made.unwrap().success());
}

fn start_node(folder: &tempfile::TempDir, cgroup: &std::path::Path) -> Child {
    let path = |name: &str| folder.path().join(name);
    make_kubeconfig(folder);
    Command::new(PROGRAM)
        .args(["node", "--name", "node-1", "--node-ip", "127.0.0.1", "--node-ip", "::1"])
        .args(["--label", "zone=a", "--cluster-dns", "10.96.0.10"])
        .arg("--kubeconfig")
        .arg(path("node.kubeconfig"))
        .arg("--state-dir")
        .arg(path("state"))
        .args(["--port", "0"])
        .arg("--static-pod-dir")
        .arg(path("static"))
        .arg("--volume-dir")
        .arg(path("volumes"))
        .arg("--cgroup-root")
        .arg(cgroup)
        .arg("--cni-conf-dir")
        .arg(path("conf"))
        .arg("--cni-bin-dir")
        .arg(path("bin"))
        .env("RUST_LOG", "info,mizzen_control_plane=debug")
        .stderr(log(folder, "node.log"))
        .spawn()
        .unwrap()
}

async fn soon<T>(look: impl AsyncFn() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if let Some(found) = look().await {
            return Some(found);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    soon(look).await.unwrap_or_else(|| panic!("waited for {what}"))
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().find(|one| one["type"] == kind).unwrap_or(&Value::Null)
}

fn is_ready(pod: &Value) -> Option<()> {
    (condition(pod, "Ready")["status"] == "True").then_some(())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn hello(port: u16) -> Value {
    json!({"containers": [{
        "name": "hello",
        "image": "hello",
        "ports": [{"name": "http", "containerPort": port}],
        "env": [
            {"name": "PORT", "value": port.to_string()},
            {"name": "DRAIN_SECONDS", "value": "0"},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
        "livenessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
    }]})
}

/// The answer to a datagram.
fn ask_by_udp(address: (&str, u16)) -> Value {
    let any = if address.0.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = std::net::UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect(address).unwrap();
    socket.send(b"hello?").unwrap();
    let mut answer = [0; 1024];
    let length = socket.recv(&mut answer).unwrap();
    serde_json::from_slice(&answer[..length]).unwrap()
}

/// The body of the answer to `GET /`.
fn get(address: (&str, u16)) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn a_node_registers_and_becomes_ready_with_its_network() {
    let cluster = Cluster::without_network().await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = until("the node's status", async || {
        let node = serde_json::to_value(nodes.get_opt("node-1").await.ok()??).ok()?;
        (condition(&node, "Ready")["status"] == "False").then_some(node)
    })
    .await;
    let folder = cluster.folder.path().join("conf");
    assert_eq!(
        condition(&node, "Ready")["message"],
        format!("network not ready: no CNI configuration in {}", folder.display())
    );
    assert_eq!(
        node["status"]["addresses"],
        json!([{"type": "InternalIP", "address": "127.0.0.1"},
            {"type": "InternalIP", "address": "::1"}, {"type": "Hostname", "address": "node-1"}])
    );
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "node-1");
    assert_eq!(node["metadata"]["labels"]["zone"], "a");
    assert_eq!(node["status"]["allocatable"]["pods"], "110");
    assert_eq!(node["status"]["nodeInfo"]["operatingSystem"], "linux");
    assert!(node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap().starts_with("v1.35."));

    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    let lease = until("the lease", async || leases.get_opt("node-1").await.ok()?).await;
    let spec = lease.spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("node-1"));
    assert_eq!(spec.lease_duration_seconds, Some(40));
    assert!(spec.renew_time.is_some());

    cluster.configure_network();
    until("the node to be ready", async || {
        let node = serde_json::to_value(nodes.get("node-1").await.ok()?).ok()?;
        (condition(&node, "Ready")["status"] == "True").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_runs_answers_and_goes_and_leaves_nothing() {
    let cluster = Cluster::new().await;
    let port = free_port();
    cluster.create("hello", hello(port)).await;
    cluster.pod("hello", is_ready).await;
    for address in ["127.0.0.1", "::1"] {
        let server = std::net::SocketAddr::new(address.parse().unwrap(), port).to_string();
        for answer in [get((address, port)), ask_by_udp((address, port))] {
            assert_eq!((&answer["pod"], &answer["node"]), (&json!("hello"), &json!("node-1")));
            assert!(answer["client"].as_str().unwrap().contains(address), "{answer}");
            assert_eq!(answer["server"], server.as_str());
        }
    }
    let pod = cluster.pod("hello", |pod| Some(pod.clone())).await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": "127.0.0.1"}, {"ip": "::1"}]));
    assert_eq!(pod["status"]["containerStatuses"][0]["started"], true);

    cluster.pods().delete("hello", &DeleteParams::default()).await.unwrap();
    cluster.gone("hello").await;
    assert_eq!(cluster.left(), 0);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[tokio::test]
async fn an_unknown_image_is_not_pulled_and_the_message_says_what_there_is() {
    let cluster = Cluster::new().await;
    cluster.create("web", json!({"containers": [{"name": "c", "image": "nginx"}]})).await;
    let waiting = cluster
        .pod("web", |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            (waiting["reason"] == "ErrImagePull").then(|| waiting.clone())
        })
        .await;
    let message = waiting["message"].as_str().unwrap();
    assert!(message.contains("\"nginx\"") && message.contains("hello, pause"), "{message}");
}

#[tokio::test]
async fn a_container_that_fails_is_restarted_with_growing_waits_and_a_pod_of_never_fails() {
    let cluster = Cluster::new().await;
    let exits = |policy: &str| {
        json!({"restartPolicy": policy, "containers": [
            {"name": "c", "image": "none", "command": ["sh", "-c", "exit 3"]}]})
    };
    cluster.create("always", exits("Always")).await;
    cluster.create("never", exits("Never")).await;
    cluster
        .pod("always", |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            let waits = status["state"]["waiting"]["reason"] == "CrashLoopBackOff";
            let code = &status["lastState"]["terminated"]["exitCode"];
            (waits && status["restartCount"] == 1 && *code == 3).then_some(())
        })
        .await;
    let failed =
        cluster.pod("never", |pod| (pod["status"]["phase"] == "Failed").then(|| pod.clone())).await;
    let ended = &failed["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(3), &json!("Error")));
}

#[tokio::test]
async fn a_liveness_probe_that_fails_has_the_container_restarted() {
    let cluster = Cluster::new().await;
    let shared = cluster.folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let file = shared.join("alive");
    fs::write(&file, "").unwrap();
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [{
        "name": "c", "image": "none", "command": ["sleep", "1000"],
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        "livenessProbe": {"exec": {"command": ["test", "-e", "/shared/alive"]},
            "periodSeconds": 1, "failureThreshold": 1},
    }], "volumes": [{"name": "shared", "hostPath": {"path": shared}}]});
    cluster.create("live", spec).await;
    cluster.pod("live", is_ready).await;
    fs::remove_file(&file).unwrap();
    cluster
        .pod("live", |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            (status["restartCount"].as_i64()? >= 1).then_some(())
        })
        .await;
}

#[tokio::test]
async fn pods_outlive_a_killed_node_part_and_orphans_are_removed_by_the_next() {
    let mut cluster = Cluster::new().await;
    let (kept, orphan) = (free_port(), free_port());
    cluster.create("kept", hello(kept)).await;
    cluster.create("orphan", hello(orphan)).await;
    cluster.pod("kept", is_ready).await;
    cluster.pod("orphan", is_ready).await;
    let container = |pod: &Value| {
        Some(pod["status"]["containerStatuses"][0]["containerID"].as_str()?.to_owned())
    };
    let before = cluster.pod("kept", container).await;
    let since = |pod: &Value| Some(condition(pod, "Ready")["lastTransitionTime"].clone());
    let ready_since = cluster.pod("kept", since).await;

    cluster.node.kill().unwrap();
    cluster.node.wait().unwrap();
    assert_eq!(get(("127.0.0.1", kept))["pod"], "kept");
    let force = DeleteParams::default().grace_period(0);
    cluster.pods().delete("orphan", &force).await.unwrap();
    cluster.restart_node();
    until("the orphan to be removed", async || (cluster.left() == 1).then_some(())).await;
    assert!(TcpStream::connect(("127.0.0.1", orphan)).is_err());
    cluster.pod("kept", is_ready).await;
    assert_eq!(cluster.pod("kept", container).await, before, "it was not restarted");
    assert_eq!(cluster.pod("kept", since).await, ready_since, "it was ready all the time");

    // Deleted while the node part is away: it ends gracefully, as if nothing had been.
    cluster.node.kill().unwrap();
    cluster.node.wait().unwrap();
    cluster.pods().delete("kept", &DeleteParams::default()).await.unwrap();
    cluster.restart_node();
    cluster.gone("kept").await;
    assert_eq!(cluster.left(), 0);
}

#[tokio::test]
async fn without_an_api_server_the_node_part_waits_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let port = free_port();
    fs::write(
        &path,
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}]})
        .to_string(),
    )
    .unwrap();
    let name = format!("mzt-node-api-{}", folder.path().file_name().unwrap().display());
    let cgroup = find_cgroup2().expect("a cgroup2 mount").join(name);
    let start = |kubeconfig: &std::path::Path| {
        Command::new(PROGRAM)
            .args(["node", "--name", "n", "--node-ip", "127.0.0.1", "--port", "0"])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .arg("--volume-dir")
            .arg(folder.path().join("volumes"))
            .arg("--cgroup-root")
            .arg(&cgroup)
            .arg("--cni-conf-dir")
            .arg(folder.path().join("conf"))
            .stderr(log(&folder, "log"))
            .spawn()
            .unwrap()
    };
    let mut node = start(&path);
    let said = |text: &str| fs::read_to_string(folder.path().join("log")).unwrap().contains(text);
    until("the message", async || said("node not registered; trying again").then_some(())).await;
    assert!(node.try_wait().unwrap().is_none());
    node.kill().unwrap();
    node.wait().unwrap();

    let status = start(&folder.path().join("none")).wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(said("none cannot be used"));
    remove_everywhere(&cgroup);
}

#[tokio::test]
async fn a_static_pod_runs_is_mirrored_and_ends_with_its_file() {
    let cluster = Cluster::new().await;
    let folder = cluster.folder.path().join("static");
    fs::create_dir_all(&folder).unwrap();
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "static", "namespace": "default"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "any", "command": ["sleep", "3600"]}]},
    });
    fs::write(folder.join("static.json"), manifest.to_string()).unwrap();
    let uid = cluster
        .pod("static-node-1", |pod| {
            is_ready(pod)?;
            let annotations = &pod["metadata"]["annotations"];
            assert!(annotations["kubernetes.io/config.mirror"].is_string(), "{annotations}");
            pod["metadata"]["uid"].as_str().map(str::to_owned)
        })
        .await;
    assert_eq!(cluster.left(), 1);
    let container = |pod: &Value| {
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str()?;
        Some(id.to_owned())
    };
    let id = cluster.pod("static-node-1", container).await;

    // Who deletes the mirror gets another, of the same pod.
    cluster.pods().delete("static-node-1", &DeleteParams::default()).await.unwrap();
    let again = |pod: &Value| {
        is_ready(pod)?;
        let other = pod["metadata"]["uid"].as_str() != Some(&uid);
        if other && pod["metadata"]["deletionTimestamp"].is_null() { container(pod) } else { None }
    };
    assert_eq!(cluster.pod("static-node-1", again).await, id);

    fs::remove_file(folder.join("static.json")).unwrap();
    cluster.gone("static-node-1").await;
    until("its sandbox to be gone", async || (cluster.left() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_node_answers_the_api_server_and_not_whoever_has_a_certificate() {
    let cluster = Cluster::new().await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let port = until("the node's port", async || {
        let node = serde_json::to_value(nodes.get_opt("node-1").await.ok()??).ok()?;
        node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()
    })
    .await;
    let authority = Authority::read(&cluster.folder.path().join("data/pki")).unwrap();
    let url = format!("https://127.0.0.1:{port}");
    for (user, group, let_in) in [
        ("system:node:node-2", Some("system:nodes"), false),
        ("jane", None, false),
        ("root", Some("system:masters"), true),
    ] {
        let file = Kubeconfig::from_yaml(&authority.kubeconfig(&url, user, group).unwrap());
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(file.unwrap(), &options).await.unwrap();
        // The node's own certificate is named in its Node object, not signed by the CA.
        config.accept_invalid_certs = true;
        let client = Client::try_from(config).unwrap();
        let request = http::Request::get("/healthz").body(Vec::new()).unwrap();
        assert_eq!(client.request_text(request).await.is_ok(), let_in, "{user}");
    }
}
