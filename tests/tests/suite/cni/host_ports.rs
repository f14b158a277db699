//! Item 31: host ports, by real packets from outside, from the node and from pods, in both families.
//!
//! ```text
//! client 172.30.0.100 ──── node a 172.30.0.11, 198.51.100.1 ──── pods 10.244.1.0/24
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use mizzen_agent::{
    datapath::{Datapath, find_uplinks},
    desired::{LocalAddress, NodeFacts, Settings},
    host_ports::HostPorts,
    metrics::Metrics,
    model::{
        ObjectKey,
        service::{Protocol, Service, ServicePort},
        snapshot::{Snapshot, Synced},
    },
    podnet::datapath::PodDatapath,
    reconcile::{Attach, Inputs, Query, Reconciler},
    released,
    status::Board,
    supervisor::TaskError,
};
use mizzen_tests::{
    actor::Actor,
    echo::{Client, Echo, TRANSPORTS, Transport, ask, ask_in_vain},
    lab::{FAMILIES, Family},
    netns::Netns,
    node::TestNode,
    wait::until,
};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::bed::{LIMIT, Node, Outcome, Pod, model};

const PORT: u16 = 8080;
const NODE: u8 = 11;
const CLIENT: u8 = 100;

/// Another address of the node, which takes no node ports.
fn other(family: Family) -> IpAddr {
    match family {
        Family::V4 => [198, 51, 100, 1].into(),
        Family::V6 => "2001:db8::1".parse().unwrap(),
    }
}

/// A node with a whole agent's pod network and service tables, and a client on its link.
struct Bench {
    node: Node,
    client: Netns,
    tables: Option<Tables>,
    place: TestNode,
}

/// The loop that fills the tables.
struct Tables {
    snapshots: watch::Sender<Arc<Snapshot>>,
    queries: mpsc::Sender<Query>,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
    thread: JoinHandle<()>,
}

struct AttachUplink(Datapath);

impl Attach for AttachUplink {
    fn attach(&mut self, addresses: &[IpAddr]) -> Result<usize, TaskError> {
        let uplinks: Vec<_> = find_uplinks(&[], addresses)?.devices.into_iter().collect();
        self.0.attach_sockets()?;
        Ok(self.0.attach_uplinks(&uplinks)?.len())
    }
}

impl Bench {
    fn new() -> Self {
        let place = TestNode::new("hostport");
        let node = Node::new("a", &[model("a", 1)]);
        let client = Netns::new("client");
        node.netns.veth("eth0", &client, "eth0");
        for (netns, number) in [(&*node.netns, NODE), (&client, CLIENT)] {
            for family in FAMILIES {
                let (length, nodad) = if family == Family::V4 { (24, "") } else { (64, "nodad") };
                let address = family.wire(number);
                netns.ip(&format!("addr add {address}/{length} dev eth0 {nodad}"));
            }
        }
        for family in FAMILIES {
            let ip = if family == Family::V4 { "" } else { "-6 " };
            let (other, router) = (other(family), family.wire(NODE));
            node.netns.ip(&format!("addr add {other} dev lo"));
            client.ip(&format!("{ip}route add {other} via {router}"));
        }
        let mut bench = Self { node, client, tables: None, place };
        bench.start(None);
        bench
    }

    /// Starts the agent, with a NodePort service at `node_port` in its cluster.
    fn start(&mut self, node_port: Option<u16>) {
        self.start_in(cluster(node_port));
    }

    /// Starts the agent; that is what it knows of its cluster.
    fn start_in(&mut self, cluster: Snapshot) {
        let options = self.place.options();
        let datapath = self.node.netns.run(|| Datapath::open(&options)).unwrap();
        let pods: Arc<dyn PodDatapath> = Arc::new(datapath.pods().unwrap());
        self.node.start_with(pods);
        self.tables = Some(self.start_tables(datapath, cluster));
        self.node.wait_ready();
    }

    fn start_tables(&self, datapath: Datapath, cluster: Snapshot) -> Tables {
        let addresses = FAMILIES.iter().flat_map(|family| [family.wire(NODE), other(*family)]);
        let local = |addr| LocalAddress { addr, ifindex: 2 };
        let facts = NodeFacts { addresses: addresses.map(local).collect(), ..Default::default() };
        let (snapshots, receiver) = watch::channel(Arc::new(cluster));
        let (queries, asked) = mpsc::channel(1);
        let (metrics, cancel): (Arc<Metrics>, CancellationToken) = Default::default();
        let (host_ports, counts) = (Arc::clone(&self.node.host_ports), Arc::clone(&metrics));
        let stop = cancel.clone();
        let netns = std::fs::File::open(self.node.netns.path()).unwrap();
        let thread = std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let run = run_tables(datapath, receiver, facts, host_ports, asked, counts, stop);
            runtime.unwrap().block_on(run);
        });
        Tables { snapshots, queries, metrics, cancel, thread }
    }

    /// Stops the agent; the datapath stays.
    fn stop(&mut self) {
        self.node.stop();
        if let Some(tables) = self.tables.take() {
            tables.cancel.cancel();
            tables.thread.join().unwrap();
        }
    }

    fn tables(&self) -> &Tables {
        self.tables.as_ref().unwrap()
    }

    /// Connects a pod with these mappings.
    fn try_add(&self, pod: &Pod, mappings: &Value) -> Outcome {
        let mut conf = self.node.conf("1.1.0");
        conf["runtimeConfig"] = json!({"portMappings": mappings});
        self.node.call_with("ADD", pod, &conf)
    }

    /// A pod with these mappings, and servers in it that say `name`.
    fn add(&self, name: &str, mappings: &Value) -> (Pod, Vec<Echo>) {
        let mut pod = Pod::new();
        let result = self.try_add(&pod, mappings).expect_success();
        pod.addresses = super::bed::addresses(&result);
        let serve = |ip: &IpAddr| Echo::start(pod.netns(), SocketAddr::new(*ip, 80), name);
        let servers = pod.addresses.iter().map(serve).collect();
        (pod, servers)
    }

    fn del(&self, pod: &Pod) {
        self.node.call("DEL", pod).expect_success();
    }

    /// Who answers the client.
    fn asked(&self, transport: Transport, to: SocketAddr) -> String {
        let answer = ask(&self.client, transport, to);
        answer.unwrap_or_else(|error| panic!("{transport:?} {to}: {error}")).name
    }

    fn warnings(&self) -> String {
        let (reply, warnings) = oneshot::channel();
        self.tables().queries.blocking_send(Query::Warnings(reply)).unwrap();
        warnings.blocking_recv().unwrap().join("\n")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn run_tables(
    datapath: Datapath,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    facts: NodeFacts,
    host_ports: Arc<HostPorts>,
    queries: mpsc::Receiver<Query>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let settings =
        Settings { node_name: "a".into(), snat_ports: (10_000, 29_999), ..Settings::default() };
    let maps = Box::new(datapath.maps().unwrap());
    let board: Arc<Board> = Arc::default();
    let attach = Box::new(AttachUplink(datapath));
    let reconciler = Reconciler::new(settings, maps, attach, board, metrics);
    let (_facts, facts) = watch::channel(Some(Arc::new(facts)));
    let (_release, released) = released::channel();
    let inputs = Inputs { snapshots, facts, queries, released, host_ports };
    reconciler.run(inputs, stop).await.unwrap();
}

fn cluster(node_port: Option<u16>) -> Snapshot {
    let mut snapshot = super::bed::snapshot(&[model("a", 1)]);
    (snapshot.revision, snapshot.synced) = (1, Synced::ALL);
    if node_port.is_some() {
        let key = ObjectKey::new("default", "web");
        let port =
            |protocol, name: &str| ServicePort { name: name.into(), protocol, port: 80, node_port };
        let service = Service {
            cluster_ips: vec![[10, 96, 0, 7].into(), "fd00:96::7".parse().unwrap()],
            ports: vec![port(Protocol::Tcp, "t"), port(Protocol::Udp, "u")],
            ..Service::new(key.clone())
        };
        snapshot.services.insert(key, Arc::new(service));
    }
    snapshot
}

/// One port of the node for each transport.
fn both(port: u16) -> Value {
    json!([
        {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": port, "containerPort": 80, "protocol": "udp"},
    ])
}

/// Each way of asking: family, transport, and the node's addresses.
fn ways() -> impl Iterator<Item = (Family, Transport, [IpAddr; 2])> {
    FAMILIES.into_iter().flat_map(|family| {
        TRANSPORTS.map(|transport| (family, transport, [family.wire(NODE), other(family)]))
    })
}

#[test]
fn b69_cni_31_a_host_port_answers_at_every_address_of_the_node_from_when_add_returns_to_del() {
    let bench = Bench::new();
    let (pod, _servers) = bench.add("one", &both(PORT));
    for (family, transport, addresses) in ways() {
        for address in addresses {
            let to = SocketAddr::new(address, PORT);
            let answer = ask(&bench.client, transport, to).unwrap();
            assert_eq!(answer.name, "one", "{transport:?} {to}");
            assert_eq!(answer.client.ip(), family.wire(CLIENT), "clients keep their address");
        }
        // Another port is the node's own business.
        let refused = ask_in_vain(&bench.client, transport, SocketAddr::new(addresses[0], 8079));
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    }
    bench.del(&pod);
    for (_, transport, addresses) in ways() {
        let refused = ask_in_vain(&bench.client, transport, SocketAddr::new(addresses[0], PORT));
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused, "nothing is left");
    }
}

/// What one process learns: who answers a connection and a datagram.
fn answered(actor: &mut Actor, family: Family, to: SocketAddr) -> [String; 2] {
    let v4 = family == Family::V4;
    let stream = actor.open(if v4 { "tcp4" } else { "tcp6" });
    actor.connect(stream, to).unwrap_or_else(|error| panic!("{to}: {error}"));
    actor.send(stream, "?");
    let by_stream = actor.receive(stream);
    actor.close(stream);
    let datagram = actor.open(if v4 { "udp4" } else { "udp6" });
    actor.send_to(datagram, to, "?");
    let (from, by_datagram) = actor.receive_from(datagram);
    assert_eq!(from, to, "the answer comes from where the question went");
    actor.close(datagram);
    // The first word of an answer is the server's name.
    [by_stream, by_datagram].map(|text| text.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
fn cni_31_the_node_itself_and_its_pods_reach_host_ports() {
    let bench = Bench::new();
    let (pod, _servers) = bench.add("one", &both(PORT));
    let (dialler, _own) = bench.add("two", &json!([]));
    let mut on_node = bench.place.pod_actor(&bench.node.netns);
    let mut in_other = bench.place.pod_actor(dialler.netns());
    let mut in_itself = bench.place.pod_actor(pod.netns());
    for family in FAMILIES {
        let loopback: IpAddr = match family {
            Family::V4 => [127, 0, 0, 1].into(),
            Family::V6 => "::1".parse().unwrap(),
        };
        for address in [family.wire(NODE), other(family), loopback] {
            let to = SocketAddr::new(address, PORT);
            assert_eq!(answered(&mut on_node, family, to), ["one", "one"], "the node, {to}");
            if address != loopback {
                assert_eq!(answered(&mut in_other, family, to), ["one", "one"], "a pod, {to}");
                assert_eq!(answered(&mut in_itself, family, to), ["one", "one"], "itself, {to}");
            }
        }
        // A pod's own loopback is its own.
        let socket = in_other.open(if family == Family::V4 { "tcp4" } else { "tcp6" });
        let refused = in_other.connect(socket, SocketAddr::new(loopback, PORT)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    // By packet, too: sockets of no cgroup of the node.
    for (_, transport, addresses) in ways() {
        for address in addresses {
            let answer = ask(dialler.netns(), transport, SocketAddr::new(address, PORT)).unwrap();
            assert_eq!(answer.name, "one", "{transport:?} {address}");
        }
    }
}

#[test]
fn cni_31_a_host_ip_opens_that_address_and_no_other() {
    let bench = Bench::new();
    let mappings: Vec<_> = ways()
        .map(|(_, transport, [_, other])| {
            let protocol = if transport == Transport::Tcp { "TCP" } else { "UDP" };
            json!({"hostPort": PORT, "containerPort": 80, "protocol": protocol, "hostIP": other})
        })
        .collect();
    let (_pod, _servers) = bench.add("one", &mappings.into());
    for (_, transport, [primary, other]) in ways() {
        assert_eq!(bench.asked(transport, SocketAddr::new(other, PORT)), "one");
        let refused = ask_in_vain(&bench.client, transport, SocketAddr::new(primary, PORT));
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn cni_31_of_two_pods_with_one_port_the_later_has_it_and_both_keep_working() {
    let bench = Bench::new();
    let (first, _first) = bench.add("first", &both(PORT));
    // Flows that are older than the second pod, of which datagrams follow, as soon as no program
    // can be at work any more that read the tables before.
    let dial = |transport, address| {
        Client::dial(&bench.client, transport, SocketAddr::new(address, PORT), 0).unwrap()
    };
    let old: Vec<_> = ways().map(|(_, t, [address, _])| (t, dial(t, address))).collect();
    for (_, client) in &old {
        assert_eq!(client.ask().unwrap().name, "first");
    }
    let (second, _second) = bench.add("second", &both(PORT));
    let go_to = |by_stream: &str, by_datagram: &str| {
        until("flows to follow the port", LIMIT, || {
            let strays = old.iter().filter(|(transport, client)| {
                let expected = if *transport == Transport::Udp { by_datagram } else { by_stream };
                client.ask().unwrap().name != expected
            });
            if strays.count() == 0 { Ok(()) } else { Err("strays".into()) }
        });
    };
    go_to("first", "second");
    for (_, transport, [address, _]) in ways() {
        assert_eq!(bench.asked(transport, SocketAddr::new(address, PORT)), "second");
    }
    assert_eq!(bench.tables().metrics.proxy.host_ports_left_out(), 4);
    let warnings = bench.warnings();
    let loser = super::bed::pod_name(&first.container_id);
    assert!(warnings.contains(&format!("default/pod/{loser}: 0.0.0.0 port 8080")), "{warnings}");
    // The first is reached by its own address, and gets its port back.
    let own = SocketAddr::new(first.addresses[0], 80);
    assert_eq!(ask(&bench.node.netns, Transport::Tcp, own).unwrap().name, "first");
    bench.del(&second);
    go_to("first", "first");
    assert_eq!(bench.tables().metrics.proxy.host_ports_left_out(), 0);
}

#[test]
fn cni_31_datagrams_of_flows_older_than_the_pod_go_to_it_at_once() {
    let bench = Bench::new();
    for family in FAMILIES {
        let to = SocketAddr::new(family.wire(NODE), PORT);
        let node_itself = Echo::start(&bench.node.netns, to, "node");
        let client = Client::dial(&bench.client, Transport::Udp, to, 0).unwrap();
        assert_eq!(client.ask().unwrap().name, "node");
        let (pod, _servers) = bench.add("pod", &both(PORT));
        assert_eq!(client.ask().unwrap().name, "pod");
        bench.del(&pod);
        assert_eq!(client.ask().unwrap().name, "node");
        drop(node_itself);
    }
}

#[test]
fn cni_31_host_ports_outlive_the_agent_and_the_next_one_writes_nothing() {
    let mut bench = Bench::new();
    let (pod, _servers) = bench.add("one", &both(PORT));
    let to = SocketAddr::new(Family::V4.wire(NODE), PORT);
    let stream = Client::dial(&bench.client, Transport::Tcp, to, 0).unwrap();
    assert_eq!(stream.ask().unwrap().name, "one");
    bench.stop();
    assert_eq!(stream.ask().unwrap().name, "one", "without an agent");
    bench.start(None);
    assert!(bench.node.host_ports.wait(1, LIMIT), "the tables are as they should be");
    let written = bench.tables().metrics.map_writes.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(written, 0);
    assert_eq!(stream.ask().unwrap().name, "one");
    for (_, transport, [address, _]) in ways() {
        assert_eq!(bench.asked(transport, SocketAddr::new(address, PORT)), "one");
    }
    // One that is deleted while no agent runs is withdrawn when one does.
    bench.stop();
    bench.del(&pod);
    bench.start(None);
    until("the port to be closed", LIMIT, || {
        match ask(&bench.client, Transport::Tcp, to).map_err(|error| error.kind()) {
            Err(std::io::ErrorKind::ConnectionRefused) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn cni_31_a_node_port_goes_before_a_host_port() {
    let bench = Bench::new();
    let (_pod, _servers) = bench.add("pod", &both(30_080));
    let asked = |transport, address| ask(&bench.client, transport, (address, 30_080).into());
    let all = |wanted: &dyn Fn(std::io::Result<mizzen_tests::echo::Answer>) -> bool| {
        let mut ways = ways();
        match ways.find(|(_, transport, [address, _])| !wanted(asked(*transport, *address))) {
            Some((_, transport, [address, _])) => Err(format!("{transport:?} {address}")),
            None => Ok(()),
        }
    };
    let host_port = |answer: std::io::Result<mizzen_tests::echo::Answer>| {
        answer.is_ok_and(|answer| answer.name == "pod")
    };
    all(&host_port).unwrap();
    // It has no endpoints, and refuses.
    bench
        .tables()
        .snapshots
        .send_replace(Arc::new(Snapshot { revision: 2, ..cluster(Some(30_080)) }));
    until("the node port to have it", LIMIT, || all(&|answer| answer.is_err()));
    assert_eq!(bench.tables().metrics.proxy.host_ports_left_out(), 4);
    bench.tables().snapshots.send_replace(Arc::new(Snapshot { revision: 3, ..cluster(None) }));
    until("the host port to be back", LIMIT, || all(&host_port));
}

#[test]
fn cni_31_cni_34_an_add_whose_host_ports_do_not_come_into_force_fails_in_time_and_leaves_nothing() {
    let mut bench = Bench::new();
    bench.stop();
    // The pod network alone: nobody fills the tables.
    bench.node.start();
    bench.node.wait_ready();
    let pod = Pod::new();
    let start = std::time::Instant::now();
    let text = bench.try_add(&pod, &both(PORT)).expect_code(11);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(text.contains("host ports"), "{text}");
    assert_eq!(bench.node.pod_links(), [""; 0]);
    bench.try_add(&pod, &json!([])).expect_success();
}

/// An agent that starts while no API server answers writes nothing to the tables: pods have the host
/// ports that an earlier one wrote, and no new ones.
#[test]
fn cni_31_cni_38_without_an_api_server_check_goes_by_the_tables_and_add_says_what_they_wait_for() {
    let mut bench = Bench::new();
    let (pod, _servers) = bench.add("one", &both(PORT));
    let unsynced = || {
        let nodes = Synced { services: false, ..Synced::ALL };
        Snapshot { synced: nodes, ..cluster(None) }
    };
    bench.stop();
    bench.start_in(unsynced());
    bench.node.call("CHECK", &pod).expect_success();
    let other = Pod::new();
    let text = bench.try_add(&other, &both(PORT + 1)).expect_code(11);
    assert!(text.contains("not known yet: Services"), "{text}");
    bench.try_add(&other, &json!([])).expect_success();
    // With tables that are empty, they are not in force.
    bench.stop();
    bench.place = TestNode::new("hostport");
    bench.start_in(unsynced());
    let text = bench.node.call("CHECK", &pod).expect_code(101);
    assert!(text.contains("host ports"), "{text}");
}
