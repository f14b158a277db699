//! Endpoints that are deleted: the sockets that were led to them get an error, in the node's
//! namespace and in its pods', and no other socket does.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mizzen_agent::{
    datapath::Datapath,
    host_ports::HostPorts,
    kube::state::{Change, ClusterState, Event},
    metrics::Metrics,
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointSlice},
        service::Service,
        snapshot::Snapshot,
    },
    reconcile::Inputs,
    released, resets,
};
use mizzen_tests::{
    actor::{Actor, Socket},
    netns::Netns,
    node::TestNode,
    wait,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    FAMILIES, Family,
    agent::{Agent, cluster, service},
};

/// A server that accepts and never answers.
struct Silent {
    _stream: TcpListener,
    _datagrams: UdpSocket,
}

impl Silent {
    fn start(netns: &Netns, addr: SocketAddr) -> Self {
        netns.run(|| Self {
            _stream: TcpListener::bind(addr).unwrap(),
            _datagrams: UdpSocket::bind(addr).unwrap(),
        })
    }
}

/// A node and one of its pods, in each of which a process dials; and the agent.
struct Scene {
    family: Family,
    agent: Agent,
    node_actor: Actor,
    pod_actor: Actor,
    a: SocketAddr,
    b: SocketAddr,
    queue: resets::Queue,
    _servers: Vec<Silent>,
    _pod: Netns,
    datapath: Datapath,
    _node: TestNode,
}

/// What a process dialled.
type Sockets = BTreeMap<&'static str, Socket>;

impl Scene {
    fn new(family: Family) -> Self {
        let node = TestNode::new("resets");
        let pod = Netns::new("pod");
        pod.ip("route add default dev lo");
        pod.ip("-6 route add default dev lo");
        let (a, b) = (SocketAddr::new(family.pod(1), 8080), SocketAddr::new(family.pod(2), 8080));
        let mut servers = Vec::new();
        for addr in [a, b] {
            let (length, nodad) = if addr.is_ipv4() { (32, "") } else { (128, "nodad") };
            for netns in [&node.netns, &pod] {
                netns.ip(&format!("addr add {}/{length} dev lo {nodad}", addr.ip()));
                servers.push(Silent::start(netns, addr));
            }
        }
        let datapath = node.open();
        datapath.attach_sockets().unwrap();
        let mut agent = Agent::start(&datapath, family);
        let (translations, cgroup) =
            (datapath.translations().unwrap(), datapath.cgroup_path().to_owned());
        let counts = Arc::clone(&agent.metrics.resets);
        let (queue, _worker) =
            node.netns.run(|| resets::start(translations, cgroup, counts, Arc::default())).unwrap();
        agent.reconciler = agent.reconciler.resetting(queue.clone());
        let (node_actor, pod_actor) = (node.actor(), node.pod_actor(&pod));
        Self {
            family,
            agent,
            node_actor,
            pod_actor,
            a,
            b,
            queue,
            _servers: servers,
            _pod: pod,
            datapath,
            _node: node,
        }
    }

    /// The services `hello` and `quiet`, which opts out, at .10 and .11, with these endpoints: by
    /// address, whether it terminates, and pod.
    fn cluster(&self, endpoints: &[(SocketAddr, bool, &str)]) -> Snapshot {
        let addrs: Vec<SocketAddr> = endpoints.iter().map(|(addr, ..)| *addr).collect();
        let mut snapshot = cluster(self.family, &addrs);
        let (key, slice) = snapshot.slices.iter().next().unwrap();
        let (key, mut slice) = (key.clone(), EndpointSlice::clone(slice));
        for (endpoint, (_, terminating, pod)) in slice.endpoints.iter_mut().zip(endpoints) {
            let (ready, terminating) = (!terminating, *terminating);
            let names = slice.names.add(pod, "");
            *endpoint = Endpoint { ready, terminating, names, ..endpoint.clone() };
        }
        let quiet = ObjectKey::new("default", "quiet");
        let mut object = service(&quiet, self.family.vip(11));
        object.ports.iter_mut().for_each(|port| port.node_port = None);
        let object = Service { reset_on_delete: false, ..object };
        snapshot.services.insert(quiet.clone(), Arc::new(object));
        let copy = EndpointSlice { service: quiet.clone(), ..slice.clone() };
        snapshot.slices.insert((quiet, "quiet-1".into()), Arc::new(copy));
        snapshot.slices.insert(key, Arc::new(slice));
        snapshot
    }

    fn see(&mut self, endpoints: &[(SocketAddr, bool, &str)]) {
        let snapshot = self.cluster(endpoints);
        self.agent.follow(&snapshot);
    }

    /// Ends the agent, and starts one that knows nothing but what the tables tell.
    fn restart(&mut self) {
        let Agent { reconciler, .. } = Agent::start(&self.datapath, self.family);
        self.agent.reconciler = reconciler.resetting(self.queue.clone());
    }

    /// Lets time pass, until it is known that nothing turns up again.
    fn settle(&mut self) {
        let now = Instant::now();
        for seconds in 0..4 {
            self.agent.reconciler.settle(now + Duration::from_secs(seconds));
            self.agent.reconciler.finish();
        }
    }

    /// Both processes dial the service at .`last`, or the pod itself.
    fn dial(&mut self, names: [&'static str; 2], last: Option<u8>) -> [Sockets; 2] {
        let family = self.family;
        let to = last.map_or(self.a, |last| SocketAddr::new(family.vip(last), 80));
        let to = family.dialled(to);
        [&mut self.node_actor, &mut self.pod_actor].map(|actor| {
            let kinds = names.into_iter().zip([family.tcp(), family.udp()]);
            kinds
                .map(|(name, kind)| {
                    let socket = actor.open(kind);
                    actor.connect(socket, to).unwrap();
                    (name, socket)
                })
                .collect()
        })
    }

    /// Waits until so many TCP and UDP sockets are destroyed.
    fn await_destroyed(&self, tcp: u64, udp: u64) {
        wait::until("sockets to be destroyed", Duration::from_secs(5), || {
            let destroyed = self.destroyed();
            (destroyed == (tcp, udp)).then_some(()).ok_or_else(|| format!("{destroyed:?}"))
        });
    }

    fn destroyed(&self) -> (u64, u64) {
        destroyed(&self.agent.metrics)
    }
}

/// How many TCP and UDP sockets were destroyed.
fn destroyed(metrics: &Metrics) -> (u64, u64) {
    let counts = &metrics.resets;
    assert_eq!(counts.failures.load(Relaxed), 0);
    (counts.tcp.load(Relaxed), counts.udp.load(Relaxed))
}

/// Linux'.
const ECONNABORTED: i32 = 103;

fn is_aborted(actor: &mut Actor) -> bool {
    actor.received().unwrap_err().raw_os_error() == Some(ECONNABORTED)
}

#[test]
fn v8_r09_sockets_of_a_deleted_endpoint_get_an_error_and_others_do_not() {
    for family in FAMILIES {
        let mut scene = Scene::new(family);
        let (a, b) = (scene.a, scene.b);
        scene.see(&[(b, false, "b")]);
        let bystanders = scene.dial(["tcp", "udp"], Some(10));
        // `b` leaves by a change of labels.
        scene.see(&[(a, false, "a")]);
        let victims = scene.dial(["tcp", "udp"], Some(10));
        let quiet = scene.dial(["tcp", "udp"], Some(11));
        let direct = scene.dial(["tcp", "udp"], None);
        scene.see(&[(a, true, "a"), (b, false, "b")]);
        scene.settle();

        scene.node_actor.begin_receive(victims[0]["tcp"]);
        scene.pod_actor.begin_receive(victims[1]["tcp"]);
        scene.see(&[(b, false, "b")]);
        assert_eq!(scene.destroyed(), (0, 0), "it terminated, and may have moved");
        scene.settle();
        for actor in [&mut scene.node_actor, &mut scene.pod_actor] {
            assert!(is_aborted(actor), "{family:?}: a read that waits");
        }
        scene.await_destroyed(2, 2);
        for (n, actor) in [&mut scene.node_actor, &mut scene.pod_actor].into_iter().enumerate() {
            actor.begin_receive(victims[n]["udp"]);
            assert!(is_aborted(actor), "{family:?}: UDP");
            for socket in
                [&bystanders[n], &quiet[n], &direct[n]].into_iter().flat_map(|s| s.values())
            {
                actor.send(*socket, "alive");
                actor.peer(*socket);
            }
        }
    }
}

/// Who goes on sending to a pod that no service leads to may reach another pod one day.
#[test]
fn b106_datagram_sockets_of_a_service_that_is_deleted_get_an_error() {
    for family in FAMILIES {
        let mut scene = Scene::new(family);
        let a = scene.a;
        scene.see(&[(a, false, "a")]);
        let victims = scene.dial(["tcp", "udp"], Some(10));
        let quiet = scene.dial(["tcp", "udp"], Some(11));
        let direct = scene.dial(["tcp", "udp"], None);
        let mut gone = scene.cluster(&[(a, false, "a")]);
        gone.services.clear();
        scene.agent.follow(&gone);
        scene.await_destroyed(0, 2);
        for (n, actor) in [&mut scene.node_actor, &mut scene.pod_actor].into_iter().enumerate() {
            actor.begin_receive(victims[n]["udp"]);
            assert!(is_aborted(actor), "{family:?}");
            let connection = [&victims[n]["tcp"]];
            let others = [&quiet[n], &direct[n]].into_iter().flat_map(|sockets| sockets.values());
            for socket in connection.into_iter().chain(others) {
                actor.send(*socket, "alive");
            }
        }
    }
}

/// Nobody saw the pod go, nor the service: a roll-out of agents.
#[test]
fn u02_b106_datagram_sockets_of_what_went_while_no_agent_ran_get_an_error() {
    for family in FAMILIES {
        let mut scene = Scene::new(family);
        let (a, b) = (scene.a, scene.b);
        scene.see(&[(a, false, "a")]);
        let victims = scene.dial(["tcp", "udp"], Some(10));
        let quiet = scene.dial(["tcp", "udp"], Some(11));
        let direct = scene.dial(["tcp", "udp"], None);
        scene.restart();
        scene.see(&[(b, false, "b")]);
        scene.await_destroyed(0, 2);
        let more = scene.dial(["tcp", "udp"], Some(10));
        scene.restart();
        let mut gone = scene.cluster(&[(b, false, "b")]);
        gone.services.clear();
        scene.agent.follow(&gone);
        scene.await_destroyed(0, 4);
        for (n, actor) in [&mut scene.node_actor, &mut scene.pod_actor].into_iter().enumerate() {
            for sockets in [&victims[n], &more[n]] {
                actor.begin_receive(sockets["udp"]);
                assert!(is_aborted(actor), "{family:?}");
                actor.send(sockets["tcp"], "alive");
            }
            for socket in [&quiet[n], &direct[n]].into_iter().flat_map(|sockets| sockets.values()) {
                actor.send(*socket, "alive");
            }
        }
    }
}

/// A pod fails its readiness probe while another serves; with an agent that sees it, and one that
/// starts afterwards.
#[test]
fn b101_datagram_sockets_that_are_connected_leave_an_endpoint_that_ceases_to_serve() {
    for family in FAMILIES {
        for restarts in [false, true] {
            let case = format!("{family:?}, restarts: {restarts}");
            let mut scene = Scene::new(family);
            let (a, b) = (scene.a, scene.b);
            scene.see(&[(a, false, "a")]);
            let victims = scene.dial(["tcp", "udp"], Some(10));
            let quiet = scene.dial(["tcp", "udp"], Some(11));
            let direct = scene.dial(["tcp", "udp"], None);
            let alone = unserving(scene.cluster(&[(a, false, "a")]), a);
            scene.agent.follow(&alone);
            scene.settle();
            assert_eq!(scene.destroyed(), (0, 0), "{case}: nobody serves");
            if restarts {
                scene.restart();
            }
            let both = unserving(scene.cluster(&[(a, false, "a"), (b, false, "b")]), a);
            scene.agent.follow(&both);
            scene.await_destroyed(0, 2);
            for (n, actor) in [&mut scene.node_actor, &mut scene.pod_actor].into_iter().enumerate()
            {
                actor.begin_receive(victims[n]["udp"]);
                assert!(is_aborted(actor), "{case}");
                actor.send(victims[n]["tcp"], "alive");
                for socket in [&quiet[n], &direct[n]].into_iter().flat_map(|of| of.values()) {
                    actor.send(*socket, "alive");
                }
            }
        }
    }
}

/// A cluster whose endpoint at this address does not serve.
fn unserving(mut cluster: Snapshot, at: SocketAddr) -> Snapshot {
    let slices = cluster.slices.iter().map(|(key, slice)| {
        let mut slice = EndpointSlice::clone(slice);
        for endpoint in slice.endpoints.iter_mut().filter(|of| of.address == at.ip()) {
            (endpoint.ready, endpoint.serving) = (false, false);
        }
        (key.clone(), Arc::new(slice))
    });
    cluster.slices = slices.collect();
    cluster
}

/// A namespace is deleted, or a manifest: the service goes while its pod terminates.
#[test]
fn v8_connections_outlive_their_service_until_their_endpoint_is_deleted() {
    for family in FAMILIES {
        let mut scene = Scene::new(family);
        let a = scene.a;
        scene.see(&[(a, false, "a")]);
        let victims = scene.dial(["tcp", "udp"], Some(10));
        let quiet = scene.dial(["tcp", "udp"], Some(11));
        let direct = scene.dial(["tcp", "udp"], None);
        let mut left = scene.cluster(&[(a, true, "a")]);
        scene.agent.follow(&left);
        left.services.clear();
        scene.agent.follow(&left);
        scene.settle();
        scene.await_destroyed(0, 2);
        for (n, actor) in [&mut scene.node_actor, &mut scene.pod_actor].into_iter().enumerate() {
            actor.send(victims[n]["tcp"], "alive");
        }
        left.slices.clear();
        scene.agent.follow(&left);
        scene.settle();
        scene.await_destroyed(2, 2);
        for (n, actor) in [&mut scene.node_actor, &mut scene.pod_actor].into_iter().enumerate() {
            actor.begin_receive(victims[n]["tcp"]);
            assert!(is_aborted(actor), "{family:?}");
            let others = [&quiet[n], &direct[n]].into_iter().flat_map(|sockets| sockets.values());
            for socket in others {
                actor.send(*socket, "alive");
            }
        }
    }
}

/// Somebody changed the labels of a pod, and deletes it later.
#[test]
fn v8_r09_connections_to_a_pod_that_left_and_lived_end_when_it_is_deleted() {
    for family in FAMILIES {
        let mut scene = Scene::new(family);
        let (a, b) = (scene.a, scene.b);
        scene.see(&[(b, false, "b")]);
        let bystanders = scene.dial(["tcp", "udp"], Some(10));
        scene.see(&[(a, false, "a")]);
        let victims = scene.dial(["tcp", "udp"], Some(10));
        scene.see(&[]);
        scene.settle();
        assert_eq!(scene.destroyed(), (0, 0), "it lives");
        scene.agent.reconciler.released(&[a.ip()].into());
        scene.agent.reconciler.finish();
        scene.await_destroyed(2, 2);
        for (n, actor) in [&mut scene.node_actor, &mut scene.pod_actor].into_iter().enumerate() {
            for socket in victims[n].values() {
                actor.begin_receive(*socket);
                assert!(is_aborted(actor), "{family:?}");
            }
            for socket in bystanders[n].values() {
                actor.send(*socket, "alive");
            }
        }
    }
}

/// From what is said of a slice to the error at the socket, by the agent's own loop, which is told of
/// each event or of both at once. Nobody here lets time pass.
#[test]
fn v8_r09_the_agents_loop_ends_connections_to_an_endpoint_that_left() {
    for family in FAMILIES {
        for gathered in [false, true] {
            let case = format!("{family:?}, gathered: {gathered}");
            let mut scene = Scene::new(family);
            let (a, b) = (scene.a, scene.b);
            scene.see(&[(a, false, "a")]);
            let sockets = scene.dial(["tcp", "udp"], Some(10));
            let events = [vec![(a, false, "a")], vec![(a, true, "a"), (b, false, "b")], vec![]];
            let [all, terminating, gone] = events.map(|endpoints| scene.cluster(&endpoints));
            let metrics = Arc::clone(&scene.agent.metrics);
            let mut cluster = told(&all);
            let running = Loop::start(scene.agent, cluster.publication());
            say(&mut cluster, &terminating);
            if !gathered {
                running.follow(cluster.publication());
                assert_eq!(destroyed(&metrics), (0, 0), "{case}: it only terminates");
            }
            say(&mut cluster, &gone);
            running.publish(cluster.publication());
            await_abort(&mut scene.node_actor, sockets[0]["tcp"], &case);
            await_abort(&mut scene.pod_actor, sockets[1]["udp"], &case);
        }
    }
}

/// Reads until the read fails because the socket was destroyed.
fn await_abort(actor: &mut Actor, socket: Socket, case: &str) {
    wait::until(&format!("the error, {case}"), Duration::from_secs(30), || {
        actor.begin_receive(socket);
        match actor.received() {
            Err(error) if error.raw_os_error() == Some(ECONNABORTED) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// The slice of the service `hello`, whose name another service's has too.
fn of_hello(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<EndpointSlice>> {
    snapshot.slices.values().filter(|slice| &*slice.service.name == "hello")
}

/// The slices of a snapshot, as events.
fn say(cluster: &mut ClusterState, snapshot: &Snapshot) {
    for slice in of_hello(snapshot) {
        cluster.apply(Change::Slices(Event::Apply(EndpointSlice::clone(slice))));
    }
}

/// The cluster of a snapshot, as if it had been listed.
fn told(snapshot: &Snapshot) -> ClusterState {
    fn all<'a, T: Clone + 'a>(of: impl Iterator<Item = &'a Arc<T>>) -> Vec<T> {
        of.map(|object| T::clone(object)).collect()
    }
    let mut cluster = ClusterState::default();
    cluster.apply(Change::Services(Event::Replace(all(snapshot.services.values()))));
    cluster.apply(Change::Slices(Event::Replace(all(of_hello(snapshot)))));
    cluster.apply(Change::Nodes(Event::Replace(all(snapshot.nodes.values()))));
    cluster.apply(Change::ServiceCidrs(Event::Replace(Vec::new())));
    cluster
}

/// An agent's loop in a thread of its own, until the guard goes.
struct Loop {
    snapshots: watch::Sender<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Loop {
    fn start(agent: Agent, first: Arc<Snapshot>) -> Self {
        let Agent { reconciler, metrics, facts } = agent;
        let (sender, snapshots) = watch::channel(first);
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let thread = std::thread::spawn(move || {
            let (_facts, facts) = watch::channel(Some(Arc::new(facts)));
            let (_queries, queries) = mpsc::channel(1);
            let (_released, released) = released::channel();
            let host_ports = Arc::new(HostPorts::none());
            let inputs = Inputs { snapshots, facts, queries, released, host_ports };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(reconciler.run(inputs, token)).unwrap();
        });
        Self { snapshots: sender, metrics, cancel, thread: Some(thread) }
    }

    fn publish(&self, snapshot: Arc<Snapshot>) {
        self.snapshots.send_replace(snapshot);
    }

    /// Publishes, and waits until the tables say so.
    fn follow(&self, snapshot: Arc<Snapshot>) {
        let before = self.metrics.set_flips.load(Relaxed);
        self.publish(snapshot);
        wait::until("the tables to follow", Duration::from_secs(20), || {
            let flips = self.metrics.set_flips.load(Relaxed);
            (flips > before).then_some(()).ok_or_else(|| format!("{flips} flips"))
        });
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

#[test]
fn v8_whoever_has_the_address_now_is_left_alone() {
    for family in FAMILIES {
        let mut scene = Scene::new(family);
        let (a, b) = (scene.a, scene.b);
        scene.see(&[(a, false, "old")]);
        let old = scene.dial(["tcp", "udp"], Some(10));
        scene.see(&[(a, true, "old"), (b, false, "b")]);
        // In one step, so that the heir is dialled before the old sockets are looked for.
        scene.see(&[(a, false, "heir")]);
        let heir = scene.dial(["tcp", "udp"], Some(10));
        scene.await_destroyed(2, 2);
        // A later deletion, which has its turn after everything before.
        scene.see(&[(a, true, "heir"), (b, false, "b")]);
        let fence = scene.dial(["tcp", "udp"], Some(10));
        scene.see(&[(a, true, "heir"), (b, true, "b")]);
        scene.see(&[(a, true, "heir")]);
        scene.settle();
        scene.await_destroyed(4, 4);
        for (n, actor) in [&mut scene.node_actor, &mut scene.pod_actor].into_iter().enumerate() {
            for socket in heir[n].values() {
                actor.send(*socket, "alive");
            }
            for socket in old[n].values().chain(fence[n].values()) {
                actor.begin_receive(*socket);
                assert!(is_aborted(actor), "{family:?}");
            }
        }
    }
}

#[test]
fn v8_a_released_address_ends_connections_at_once() {
    for family in FAMILIES {
        let mut scene = Scene::new(family);
        let a = scene.a;
        scene.see(&[(a, false, "a")]);
        let sockets = scene.dial(["tcp", "udp"], Some(10));
        scene.pod_actor.begin_receive(sockets[1]["tcp"]);
        scene.agent.reconciler.released(&[a.ip()].into());
        scene.agent.reconciler.finish();
        assert!(is_aborted(&mut scene.pod_actor), "{family:?}");
        scene.await_destroyed(2, 2);
    }
}

/// What ends is the TCP socket inside; the MPTCP socket does with it where its server speaks TCP
/// alone.
#[test]
fn v8_multipath_tcp_towards_a_plain_server_is_ended() {
    if std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_err() {
        println!("this kernel has no MPTCP");
        return;
    }
    for family in FAMILIES {
        let mut scene = Scene::new(family);
        let (a, to) = (scene.a, family.dialled(SocketAddr::new(family.vip(10), 80)));
        scene.see(&[(a, false, "a")]);
        let socket = scene.node_actor.open(&family.tcp().replace("tcp", "mptcp"));
        scene.node_actor.connect(socket, to).unwrap();
        scene.agent.reconciler.released(&[a.ip()].into());
        scene.agent.reconciler.finish();
        scene.await_destroyed(1, 0);
        scene.node_actor.begin_receive(socket);
        assert!(is_aborted(&mut scene.node_actor), "{family:?}");
    }
}
