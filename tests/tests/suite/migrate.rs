//! A cluster from kube-proxy to Mizzen and back, by its API server: real agents, real controllers, a
//! DaemonSet of kube-proxy's shape, and its rules on the nodes. The test is the kubelet of that
//! DaemonSet's pods. Needs root.

mod core_dns;
mod two_runs;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use mizzen_agent::{
    datapath::is_in_force,
    kube::migration::{BEFORE, REPORT},
    migrate::hold,
};
use mizzen_tests::{
    echo::{self, Echo, TRANSPORTS, Transport, ask},
    lab::{FAMILIES, Family, POD_PORT},
    wait,
};
use serde_json::{Value, json};

use super::{
    dns::field::{API_PORT, Agent, Field, LIMIT, binary, on},
    packet::{
        NODE_PORT, PORT,
        kube_proxy::{KubeProxy, listed, nft, rules},
    },
};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-proxy";
/// kube-proxy's configuration, with a field that Mizzen does not follow.
const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                      mode: nftables\nconntrack: {maxPerCore: 4096}\n";

/// The file in an agent's data folder that says that services went back to kube-proxy.
const GONE_BACK: &str = "services-of-kube-proxy";

/// As kubeadm writes it, as far as it matters.
fn daemon_set() -> Value {
    json!({
        "metadata": {"name": NAME, "labels": {"k8s-app": NAME}},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": NAME}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}},
            "template": {
                "metadata": {"labels": {"k8s-app": NAME}},
                "spec": {
                    "hostNetwork": true,
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": NAME, "image": "kube-proxy:v1.35.0",
                        "command": ["/usr/local/bin/kube-proxy", "--config=/x/config.conf"],
                    }],
                    "volumes": [{"name": NAME, "configMap": {"name": NAME}}],
                },
            },
        },
    })
}

/// kube-proxy's DaemonSet and ConfigMap, and what is marked at nodes.
type Kept = (Value, Value, Vec<Value>);

/// What the cluster has before: the Service `shop`, which leads to the pod of the second node, and
/// kube-proxy.
struct Shop {
    field: Field,
    /// Its addresses, in the order of the families.
    vips: [SocketAddr; 2],
    _servers: Vec<Echo>,
}

impl Shop {
    fn new() -> Self {
        Self::beside(daemon_set())
    }

    /// With this DaemonSet of kube-proxy.
    fn beside(set: Value) -> Self {
        let field = Field::with(true);
        let serve = |family: &Family| {
            let at = SocketAddr::new(family.pod(2, 7), POD_PORT);
            Echo::start(&field.hosts[1].pod, at, "pod-2")
        };
        let servers = FAMILIES.iter().map(serve).collect();
        let client = field.client.clone();
        let vips = on(&field.runtime, async move {
            ready_nodes(&client).await;
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
            let map = json!({"metadata": {"name": NAME}, "data": {"config.conf": CONFIG}});
            maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap())
                .await
                .unwrap();
            let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
            let set = serde_json::from_value(set).unwrap();
            sets.create(&PostParams::default(), &set).await.unwrap();
            shop(&client).await
        });
        Self { field, vips, _servers: servers }
    }

    /// The node port at a node.
    fn node_port(family: Family, node: u8) -> SocketAddr {
        SocketAddr::new(family.wire(10 + node), NODE_PORT)
    }

    /// kube-proxy's rules on a node.
    fn rules(&self, node: u8) -> String {
        let of = |(family, vip): (Family, &SocketAddr)| {
            let backend = SocketAddr::new(family.pod(2, 7), POD_PORT);
            rules(family, [*vip, Self::node_port(family, node)], backend)
        };
        FAMILIES.into_iter().zip(&self.vips).map(of).collect()
    }

    /// An agent that a supervisor starts anew whenever it ends.
    fn agent(&self, node: usize) -> Agent {
        self.agent_with(node, &["--dns=false"])
    }

    /// The same with these flags.
    fn agent_with(&self, node: usize, flags: &[&str]) -> Agent {
        let forever = "while setpriv --pdeathsig KILL \"$@\"; do :; done";
        let by = ["bash", "-c", forever, "bash"];
        self.field.begin_by(&self.field.hosts[node], &by, flags)
    }

    /// `mizzen migrate` from outside of the nodes.
    fn migrate(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.field.wire.command(&binary("mizzen"));
        command.args(["migrate", words[0], "--kubeconfig"]).arg(&self.field.kubeconfig);
        command.args(&words[1..]);
        command
    }

    /// The same with `-o json`: its exit code and what it says.
    fn migrate_json(&self, words: &[&str]) -> (Option<i32>, Value) {
        let output = self.migrate(words).args(["-o", "json"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::String(said));
        (output.status.code(), report)
    }

    /// Goes a way, and is killed after each step that it does.
    fn killed_at_each_step(&self, verb: &str) -> usize {
        let mut kills = 0;
        loop {
            let mut command = self.migrate(&[verb, "--timeout", "120"]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines =
                BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            let did = lines.any(|line| line.contains("done: "));
            if did {
                child.kill().unwrap();
                kills += 1;
                assert!(kills < 40, "it goes on from where it was");
            }
            let status = child.wait().unwrap();
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            if !did {
                assert!(status.success(), "{verb}: {status} {said}");
                return kills;
            }
        }
    }

    /// What the API server has of kube-proxy and of the nodes that a way back has to restore.
    fn kept(&self) -> Kept {
        let client = self.field.client.clone();
        on(&self.field.runtime, async move {
            let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
            let set = serde_json::to_value(sets.get(NAME).await.unwrap()).unwrap();
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
            let map = serde_json::to_value(maps.get(NAME).await.unwrap()).unwrap();
            let nodes = Api::<Node>::all(client).list(&ListParams::default()).await.unwrap();
            let marks = nodes.items.iter().map(|node| {
                let notes = node.metadata.annotations.clone().unwrap_or_default();
                json!([node.metadata.labels, notes.get(REPORT)])
            });
            let notes = &set["metadata"]["annotations"];
            (json!([set["spec"], notes[BEFORE]]), map, marks.collect())
        })
    }

    /// Waits for kube-proxy's rules on all nodes.
    fn until_ruled(&self) {
        for host in &self.field.hosts {
            wait::until("kube-proxy's rules", LIMIT, || {
                let rules = listed(&host.node.netns);
                if rules.contains("table ip6 kube-proxy") { Ok(()) } else { Err(rules) }
            });
        }
    }
}

/// As kubelets would have registered them.
async fn ready_nodes(client: &Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    for name in ["node-1", "node-2"] {
        let labels = json!({"metadata": {"labels": {"kubernetes.io/os": "linux"}}});
        let params = PatchParams::default();
        nodes.patch(name, &params, &Patch::Merge(labels)).await.unwrap();
        let status =
            json!({"status": {"allocatable": {"pods": "110", "cpu": "4", "memory": "4Gi"}}});
        nodes.patch_status(name, &params, &Patch::Merge(status)).await.unwrap();
    }
}

/// The Service and its endpoints; its addresses.
pub(super) async fn shop(client: &Client) -> [SocketAddr; 2] {
    let port = |name: &str, protocol: &str| {
        json!({"name": name, "protocol": protocol, "port": PORT, "nodePort": NODE_PORT,
               "targetPort": POD_PORT})
    };
    let spec = json!({
        "metadata": {"name": "shop"},
        "spec": {"type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
                 "ipFamilies": ["IPv4", "IPv6"],
                 "ports": [port("tcp", "TCP"), port("udp", "UDP")]},
    });
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service = serde_json::from_value(spec).unwrap();
    let made = services.create(&PostParams::default(), &service).await.unwrap();
    let ips = made.spec.and_then(|spec| spec.cluster_ips).unwrap();
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    for family in FAMILIES {
        let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let slice = json!({
            "metadata": {"name": format!("shop-{}", kind.to_lowercase()),
                         "labels": {"kubernetes.io/service-name": "shop"}},
            "addressType": kind,
            "ports": [{"name": "tcp", "port": POD_PORT, "protocol": "TCP"},
                      {"name": "udp", "port": POD_PORT, "protocol": "UDP"}],
            "endpoints": [{"addresses": [family.pod(2, 7)], "conditions": {"ready": true},
                           "nodeName": "node-2"}],
        });
        let slice = serde_json::from_value(slice).unwrap();
        slices.create(&PostParams::default(), &slice).await.unwrap();
    }
    [0, 1].map(|at| SocketAddr::new(ips[at].parse().unwrap(), PORT))
}

/// Runs kube-proxy's pods for both nodes until `stop`: a process of its name, and its rules, which
/// stay when it ends.
fn kubelets(shop: &Shop, stop: &AtomicBool) {
    let mut running: BTreeMap<String, KubeProxy> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let client = shop.field.client.clone();
        let pods = on(&shop.field.runtime, async move {
            let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
            pods.list(&ListParams::default().labels("k8s-app=kube-proxy")).await.unwrap().items
        });
        for pod in pods {
            let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
                continue;
            };
            let name = pod.metadata.name.clone().unwrap();
            if pod.metadata.deletion_timestamp.is_some() {
                drop(running.remove(&name));
                ended(shop, name);
                continue;
            }
            if !running.contains_key(&name) {
                let number: u8 = node.trim_start_matches("node-").parse().unwrap();
                let netns = &shop.field.hosts[usize::from(number) - 1].node.netns;
                // As kube-proxy does: whole, and whatever was there.
                let whole = "table ip kube-proxy\ndelete table ip kube-proxy\n\
                             table ip6 kube-proxy\ndelete table ip6 kube-proxy\n";
                nft(netns, &format!("{whole}{}", shop.rules(number)));
                running.insert(name.clone(), KubeProxy::start(netns));
            }
            if !is_ready(&pod) {
                serves(shop, name);
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.clone().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn serves(shop: &Shop, name: String) {
    let client = shop.field.client.clone();
    on(&shop.field.runtime, async move {
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let status = json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        // It may be gone.
        let _late =
            pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await;
    });
}

fn ended(shop: &Shop, name: String) {
    let client = shop.field.client.clone();
    on(&shop.field.runtime, async move {
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let _twice = pods.delete(&name, &now).await;
    });
}

/// Connections that were there before.
fn old_connections(shop: &Shop) -> Vec<echo::Client> {
    let mut old = Vec::new();
    for (family, vip) in FAMILIES.into_iter().zip(shop.vips) {
        let (pod, port) = (&shop.field.hosts[0].pod, Shop::node_port(family, 1));
        for transport in TRANSPORTS {
            for (from, to) in [(pod, vip), (&shop.field.wire, port)] {
                let client = echo::Client::dial(from, transport, to, 0).unwrap();
                assert_eq!(client.ask().unwrap().name, "pod-2", "{transport:?} {to}");
                old.push(client);
            }
        }
    }
    old
}

/// New connections one after another until `stop`, by cluster IP and by node port; how many there
/// were, and those that failed.
fn new_connections(shop: &Shop, stop: &AtomicBool) -> (usize, Vec<String>) {
    let (mut done, mut failed) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        for (family, vip) in FAMILIES.into_iter().zip(shop.vips) {
            let pod = &shop.field.hosts[0].pod;
            for transport in TRANSPORTS {
                for (from, to) in [(pod, vip), (&shop.field.wire, Shop::node_port(family, 1))] {
                    match ask(from, transport, to) {
                        Ok(answer) if answer.name == "pod-2" => done += 1,
                        other => failed.push(format!("{transport:?} {to}: {other:?}")),
                    }
                }
            }
        }
    }
    (done, failed)
}

/// Tells threads to end, also where a check fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is said of the nodes, and the steps that were done.
fn phases(report: &Value) -> Vec<(String, Value)> {
    let nodes = report["nodes"].as_array().unwrap_or_else(|| panic!("{report}"));
    nodes
        .iter()
        .map(|node| (node["name"].as_str().unwrap().to_owned(), node["phase"].clone()))
        .collect()
}

fn on_nodes(phase: &Value) -> Vec<(String, Value)> {
    ["node-1", "node-2"].map(|name| (name.to_owned(), phase.clone())).to_vec()
}

/// There: a node first, then all, killed after every step, no connection lost. And back, killed
/// after every step.
#[test]
fn r11_a_cluster_goes_from_kube_proxy_to_mizzen_and_back() {
    let shop = Shop::new();
    let (stop, stop_load) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let _kubelets = Stop(&stop);
        scope.spawn(|| kubelets(&shop, &stop));
        shop.until_ruled();
        wait::until("kube-proxy's DaemonSet to be rolled out", LIMIT, || {
            let (code, plan) = shop.migrate_json(&["plan"]);
            let proxy = &plan["proxies"][0];
            if proxy["rolledOut"] == true { Ok(()) } else { Err(format!("{code:?} {plan}")) }
        });
        let before = shop.kept();
        let old = old_connections(&shop);
        let load = Stop(&stop_load);
        let new = scope.spawn(|| new_connections(&shop, &stop_load));
        looked_at(&shop, &before);
        let agents = [shop.agent(0), shop.agent(1)];
        there(&shop, &agents);
        drop(load);
        let (done, failed) = new.join().unwrap();
        assert!(done > 20, "{done}");
        assert_eq!(failed, Vec::<String>::new(), "of {done}");
        for client in &old {
            assert_eq!(client.ask().unwrap().name, "pod-2");
        }
        back(&shop, &agents, &before);
    });
}

/// Looking changes nothing and names what there is; without an agent nothing is taken away.
fn looked_at(shop: &Shop, before: &Kept) {
    let (code, plan) = shop.migrate_json(&["plan"]);
    assert_eq!(code, Some(0), "{plan}");
    let proxy = &plan["proxies"][0];
    assert_eq!((&proxy["name"], &proxy["mode"]), (&json!(NAME), &json!("nftables")), "{plan}");
    assert!(proxy["withoutEffect"].to_string().contains("conntrack.maxPerCore"), "{plan}");
    assert_eq!(plan["steps"].as_array().map(Vec::len), Some(7), "{plan}");
    assert!(plan["dns"]["addresses"].to_string().contains("10.96.0.10"), "{plan}");
    assert_eq!(shop.kept(), *before);
    let (code, waits) = shop.migrate_json(&["apply", "--timeout", "1"]);
    assert_eq!((code, &waits["waits"]["node"]), (Some(3), &json!("node-1")), "{waits}");
    assert_eq!(phases(&waits), on_nodes(&json!("runs")));
}

fn told(agents: &[Agent; 2]) -> String {
    agents.iter().map(Agent::log).collect()
}

fn there(shop: &Shop, agents: &[Agent; 2]) {
    let (code, one) = shop.migrate_json(&["apply", "--node", "node-1"]);
    assert_eq!(code, Some(0), "{one} {}", told(agents));
    assert_eq!(phases(&one)[0].1, "removed", "{one}");
    assert_eq!(phases(&one)[1].1, "runs", "{one}");
    let told_of = |report: &Value| report["notes"].to_string();
    assert!(told_of(&one).contains("node-1: remove kube-proxy's rules"), "{one}");
    let rules = |node: usize| listed(&shop.field.hosts[node].node.netns);
    assert!(!rules(0).contains("kube-proxy {"), "{}", rules(0));
    assert!(rules(1).contains("kube-proxy {"), "kube-proxy stays on the other");

    let kills = shop.killed_at_each_step("apply");
    // A step that follows at once may be done before the kill comes.
    assert!((1..=2).contains(&kills), "leaving, removed: {kills}");
    let (code, again) = shop.migrate_json(&["apply"]);
    assert_eq!(
        (code, &again["done"], &again["steps"]),
        (Some(0), &json!(0), &json!([])),
        "{again}"
    );
    assert_eq!(phases(&again), on_nodes(&json!("removed")));
    for host in 0..2 {
        let rules = rules(host);
        assert!(!rules.contains("kube-proxy {") && rules.contains(hold::TABLE), "{rules}");
    }
}

fn back(shop: &Shop, agents: &[Agent; 2], before: &Kept) {
    let kills = shop.killed_at_each_step("rollback");
    let steps = "returning twice, restore, and two labels";
    assert!((3..=5).contains(&kills), "{steps}: {kills} {}", told(agents));
    assert_eq!(shop.kept(), *before, "as it was, to the letter");
    let cluster = identity(shop);
    for (host, vip) in shop.field.hosts.iter().zip(shop.vips) {
        let kept = fs::read_to_string(host.data_dir().join(GONE_BACK)).unwrap();
        assert_eq!(kept, cluster, "the cluster that asked for it");
        let bpffs = &host.node.options().bpffs;
        assert!(!is_in_force(bpffs), "{}", told(agents));
        let rules = listed(&host.node.netns);
        assert!(rules.contains("kube-proxy {") && !rules.contains(hold::TABLE), "{rules}");
        assert_eq!(ask(&shop.field.hosts[0].pod, Transport::Tcp, vip).unwrap().name, "pod-2");
    }
    let (code, again) = shop.migrate_json(&["rollback"]);
    assert_eq!((code, &again["steps"]), (Some(0), &json!([])), "{again}");
}

/// How a node is, as its kubelet says; `None`: it says nothing.
fn set_ready(shop: &Shop, node: &'static str, status: Option<&'static str>) {
    let client = shop.field.client.clone();
    on(&shop.field.runtime, async move {
        let condition = |status| json!([{"type": "Ready", "status": status}]);
        let patch = json!({"status": {"conditions": status.map(condition)}});
        let nodes: Api<Node> = Api::all(client);
        nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    });
}

/// A pod in kube-proxy's namespace, on the first node, that is not its.
fn pod_of_another(shop: &Shop) {
    let client = shop.field.client.clone();
    on(&shop.field.runtime, async move {
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let pod = json!({
            "metadata": {"name": "other"},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "x"}]},
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    });
}

/// A DaemonSet that finds its pods by an expression, and whose pods nobody exchanges: there and back
/// for the node that is ready, and for the other when it is.
#[test]
fn r11_a_node_that_is_not_ready_is_left_until_it_is() {
    let mut set = daemon_set();
    let named = json!({"key": "k8s-app", "operator": "In", "values": [NAME]});
    set["spec"]["selector"] = json!({"matchExpressions": [named]});
    set["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    let shop = Shop::beside(set);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _kubelets = Stop(&stop);
        scope.spawn(|| kubelets(&shop, &stop));
        shop.until_ruled();
        pod_of_another(&shop);
        let before = shop.kept();
        set_ready(&shop, "node-2", Some("False"));
        let agent = shop.agent(0);
        let (code, report) = shop.migrate_json(&["apply"]);
        assert_eq!((code, &report["notReady"]), (Some(3), &json!(["node-2"])), "{report}");
        assert_eq!(phases(&report)[0].1, "removed", "{report} {}", agent.log());
        assert_eq!(phases(&report)[1].1, "runs", "{report}");
        assert!(listed(&shop.field.hosts[1].node.netns).contains("kube-proxy {"));
        let said = shop.migrate(&["plan"]).output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("since they are not ready: node-2"), "{said}");

        let (code, report) = shop.migrate_json(&["rollback"]);
        assert_eq!((code, &report["notReady"]), (Some(3), &json!(["node-2"])), "{report}");
        assert_eq!(report["proxies"][0]["restricted"], true, "{report}");
        set_ready(&shop, "node-2", None);
        let other = shop.agent(1);
        let (code, report) = shop.migrate_json(&["rollback"]);
        assert_eq!((code, &report["notReady"]), (Some(0), &json!([])), "{report} {}", other.log());
        assert_eq!(shop.kept(), before, "as it was, to the letter");
    });
}

#[test]
fn r11_a_server_that_is_started_anew_meanwhile_is_waited_for() {
    let mut shop = Shop::new();
    let mut command = shop.migrate(&["apply", "--timeout", "60"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut until = |text: &str| assert!(lines.any(|line| line.contains(text)), "{text}");
    // There is no agent.
    until("waiting for node-1");
    shop.field.stop_server();
    until("waiting for the API server to answer");
    let _client = shop.field.start_server(API_PORT);
    until("waiting for node-1");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Which cluster it is: the UID of a namespace that each has.
fn identity(shop: &Shop) -> String {
    let client = shop.field.client.clone();
    on(&shop.field.runtime, async move {
        let namespaces: Api<Namespace> = Api::all(client);
        namespaces.get(NAMESPACE).await.unwrap().metadata.uid.unwrap()
    })
}

/// Machines that were nodes before, whose agents were deleted after a rollback: of a cluster that is no
/// more, and of this one.
#[test]
fn r11_services_that_went_back_in_another_cluster_are_mizzens_here() {
    let shop = Shop::new();
    let file = |host: usize| shop.field.hosts[host].data_dir().join(GONE_BACK);
    for (host, cluster) in [(0, "another".to_owned()), (1, identity(&shop))] {
        fs::create_dir_all(shop.field.hosts[host].data_dir()).unwrap();
        fs::write(file(host), cluster).unwrap();
    }
    let agents = [shop.agent(0), shop.agent(1)];
    let in_force = |host: usize| is_in_force(&shop.field.hosts[host].node.options().bpffs);
    wait::until("services where nobody asked for kube-proxy", LIMIT, || {
        if in_force(0) && !file(0).exists() { Ok(()) } else { Err(agents[0].log()) }
    });
    wait::until("the other to say why it has none", LIMIT, || {
        let log = agents[1].log();
        if log.contains("went back to kube-proxy") { Ok(()) } else { Err(log) }
    });
    assert!(file(1).exists() && !in_force(1), "{}", agents[1].log());
}
