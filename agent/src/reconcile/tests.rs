//! The loop's decisions, step by step, on tables in memory.

use super::*;
use crate::{
    apply::memory::MemoryMaps,
    desired::{LocalAddress, NodePortAddresses},
    kube::{
        convert,
        state::{Change, ClusterState, Event},
    },
};

mod deletions;

/// A cluster of one node with one service and one endpoint.
fn cluster() -> ClusterState {
    let service = "{metadata: {name: web, namespace: default}, spec: {clusterIPs: [10.96.0.7],
        ports: [{port: 80}]}}";
    let slice = "{metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name:
        web}}, addressType: IPv4, ports: [{name: '', port: 8080}], endpoints: [{addresses:
        [10.244.0.5]}]}";
    let service = convert::service(&serde_yaml_ng::from_str(service).unwrap()).0.unwrap();
    let slice = convert::endpoint_slice(&serde_yaml_ng::from_str(slice).unwrap()).0.unwrap();
    let mut state = ClusterState::default();
    state.apply(Change::Services(Event::Replace(vec![service])));
    state.apply(Change::Slices(Event::Replace(vec![slice])));
    state.apply(Change::Nodes(Event::Replace(Vec::new())));
    state.apply(Change::ServiceCidrs(Event::Replace(Vec::new())));
    state
}

struct Counted(Arc<std::sync::atomic::AtomicU64>);

impl Attach for Counted {
    fn attach(&mut self, _: &[IpAddr]) -> Result<usize, TaskError> {
        self.0.fetch_add(1, Relaxed);
        Ok(0)
    }
}

/// Says for which addresses programs were attached.
struct Told(Arc<std::sync::Mutex<Vec<Vec<IpAddr>>>>);

impl Attach for Told {
    fn attach(&mut self, addresses: &[IpAddr]) -> Result<usize, TaskError> {
        self.0.lock().unwrap().push(addresses.to_vec());
        Ok(0)
    }
}

struct Bench {
    reconciler: Reconciler,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    attached: Arc<std::sync::atomic::AtomicU64>,
}

fn bench(maps: MemoryMaps) -> Bench {
    let (board, metrics, attached): (Arc<Board>, Arc<Metrics>, Arc<_>) = Default::default();
    let attach = Box::new(Counted(Arc::clone(&attached)));
    let reconciler = Reconciler::new(
        Settings::default(),
        Box::new(maps),
        attach,
        board.clone(),
        metrics.clone(),
    );
    Bench { reconciler, board, metrics, attached }
}

#[test]
fn nothing_is_written_or_attached_before_everything_is_known() {
    let mut bench = bench(MemoryMaps::default());
    let facts = NodeFacts::default();
    let whole = cluster().snapshot().clone();
    let mut early = whole.clone();
    early.synced.slices = false;
    bench.reconciler.follow(&early, Some(&facts));
    bench.reconciler.follow(&whole, None);
    assert_eq!(bench.metrics.map_writes.load(Relaxed), 0);
    assert_eq!(bench.attached.load(Relaxed), 0);
    let State::Waiting(reason) = &bench.board.parts()[PART] else { panic!("it waits") };
    assert!(reason.contains("the node's addresses"), "{reason}");
    bench.reconciler.follow(&whole, Some(&facts));
    assert!(bench.metrics.map_writes.load(Relaxed) > 0);
    assert_eq!(bench.attached.load(Relaxed), 1);
    assert!(bench.board.ready());
}

/// An interface with no other merit than an address that takes node ports is an uplink; a bridge to
/// pods is none, and loopback neither.
#[test]
fn b62_b137_programs_are_where_node_ports_are_open() {
    let node = "{metadata: {name: n}, spec: {podCIDRs: [10.244.0.0/24, 'fd00:244::/64']}, status:
        {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address:
        '2001:db8::1'}]}}";
    let node = convert::node(&serde_yaml_ng::from_str(node).unwrap()).0.unwrap();
    let mut state = cluster();
    state.apply(Change::Nodes(Event::Replace(vec![node])));
    let ip = |text: &&str| text.parse::<IpAddr>().unwrap();
    let local = |ifindex| move |addr: &&str| LocalAddress { addr: ip(addr), ifindex };
    let first = ["192.0.2.1", "2001:db8::1"];
    let second = ["198.51.100.7", "2001:db8:100::7"];
    let bridge = ["10.244.0.1", "fd00:244::1"];
    let addresses = first.iter().map(local(2)).chain(second.iter().map(local(3)));
    let facts = NodeFacts {
        addresses: addresses.chain(bridge.iter().map(local(4))).collect(),
        ..NodeFacts::default()
    };
    let everywhere = ["0.0.0.0/0", "::/0"].map(|range| range.parse().unwrap());
    let within = NodePortAddresses::Within(everywhere.into());
    for (node_port_addresses, more) in [(NodePortAddresses::Primary, &[][..]), (within, &second)] {
        let mut bench = bench(MemoryMaps::default());
        let node_name = "n".into();
        bench.reconciler.desired =
            Desired::new(Settings { node_name, node_port_addresses, ..Settings::default() });
        let told: Arc<std::sync::Mutex<Vec<_>>> = Arc::default();
        bench.reconciler.attach = Box::new(Told(Arc::clone(&told)));
        bench.reconciler.follow(state.snapshot(), Some(&facts));
        let mut expected: Vec<IpAddr> = first.iter().chain(more).map(ip).collect();
        expected.sort();
        assert_eq!(*told.lock().unwrap(), [expected]);
    }
}

#[test]
fn a_failed_plan_is_reported_and_healed_from_a_dump() {
    let mut maps = MemoryMaps::default();
    maps.fail_after(Some(5));
    let mut bench = bench(maps);
    let snapshot = cluster().snapshot().clone();
    bench.reconciler.follow(&snapshot, Some(&NodeFacts::default()));
    let State::Degraded(reason) = &bench.board.parts()[PART] else { panic!("it is degraded") };
    assert!(reason.contains("injected fault") && reason.contains("step"), "{reason}");
    assert_eq!(bench.attached.load(Relaxed), 0, "half-filled tables take no traffic");
    assert!(bench.reconciler.trouble.waits(Instant::now()));

    let tables = bench.reconciler.maps.dump().unwrap();
    bench.reconciler.maps = Box::new(MemoryMaps::with_tables(tables));
    bench.reconciler.trouble.hasten(Instant::now());
    bench.reconciler.follow(&snapshot, Some(&NodeFacts::default()));
    assert!(bench.board.ready());
    assert!(bench.reconciler.difference().unwrap().steps.is_empty());
}

/// A slice of `web` with so many endpoints: `10.244.0.5` and those that follow.
fn slice_of(service: &str, endpoints: u8) -> Change {
    let addresses: Vec<String> =
        (0..endpoints).map(|n| format!("{{addresses: [10.244.0.{}]}}", 5 + n)).collect();
    let slice = format!(
        "{{metadata: {{name: {service}-1, namespace: default, labels:
        {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, ports: [{{name: '', port:
        8080}}], endpoints: [{}]}}",
        addresses.join(", ")
    );
    let slice = convert::endpoint_slice(&serde_yaml_ng::from_str(&slice).unwrap()).0.unwrap();
    Change::Slices(Event::Apply(slice))
}

#[test]
fn what_has_no_room_waits_for_its_turn_while_changes_go_on() {
    let mut bench = bench(MemoryMaps::default());
    bench.reconciler.max = Capacities { backends4: 5, ..Capacities::MAX };
    let facts = NodeFacts::default();
    let mut state = cluster();
    let service = "{metadata: {name: xyz, namespace: default}, spec: {clusterIPs: [10.96.0.8],
        ports: [{port: 80}]}}";
    let service = convert::service(&serde_yaml_ng::from_str(service).unwrap()).0.unwrap();
    state.apply(Change::Services(Event::Apply(service)));
    let mut see = |bench: &mut Bench, change| {
        state.apply(change);
        let before = bench.reconciler.maps.writes();
        bench.reconciler.follow(state.snapshot(), Some(&facts));
        bench.reconciler.finish();
        bench.reconciler.maps.writes() - before
    };
    // Ids 1 to 4: one for `web`, and not four for `xyz`.
    see(&mut bench, slice_of("xyz", 4));
    let State::Degraded(reason) = &bench.board.parts()[PART] else { panic!("it is degraded") };
    assert!(reason.contains("BACKENDS4 is full with its 5 entries"), "{reason}");
    let degraded = bench.board.parts();

    // `web` goes on, and its last endpoint makes room for `xyz`, which is not looked at yet.
    for endpoints in [2, 3, 0] {
        assert!(see(&mut bench, slice_of("web", endpoints)) > 0);
        assert!(bench.reconciler.trouble.waits(Instant::now()));
        assert_eq!(bench.board.parts(), degraded);
    }
    assert_eq!(see(&mut bench, slice_of("web", 0)), 0, "nothing changed");
    let frontends = |bench: &mut Bench| bench.reconciler.maps.dump().unwrap().frontends.len();
    assert_eq!(frontends(&mut bench), 2, "those of `web`");
    bench.reconciler.trouble.hasten(Instant::now());
    see(&mut bench, slice_of("web", 0));
    assert_eq!(frontends(&mut bench), 4);
    assert!(bench.board.ready());
    assert!(bench.reconciler.difference().unwrap().steps.is_empty());
}

#[test]
fn a_node_whose_object_is_deleted_keeps_its_node_ports() {
    let mut bench = bench(MemoryMaps::default());
    bench.reconciler.desired =
        Desired::new(Settings { node_name: "n".into(), ..Settings::default() });
    let node = "{metadata: {name: n}, spec: {podCIDRs: [10.244.0.0/24]}, status: {addresses:
        [{type: InternalIP, address: 192.0.2.1}]}}";
    let node = convert::node(&serde_yaml_ng::from_str(node).unwrap()).0.unwrap();
    let mut state = cluster();
    state.apply(Change::Nodes(Event::Replace(vec![node])));
    bench.reconciler.follow(state.snapshot(), Some(&NodeFacts::default()));
    let before = bench.reconciler.maps.dump().unwrap();
    assert_eq!((before.node_addrs.len(), before.cluster_ranges.len()), (1, 1));

    state.apply(Change::Nodes(Event::Replace(Vec::new())));
    bench.reconciler.follow(state.snapshot(), Some(&NodeFacts::default()));
    assert_eq!(bench.reconciler.maps.dump().unwrap(), before);
    let (ask, mut told) = oneshot::channel();
    bench.reconciler.answer(Query::Warnings(ask));
    let warnings = told.try_recv().unwrap();
    assert!(warnings[0].starts_with("the Node object n, this node's, was deleted"), "{warnings:?}");
}

#[test]
fn the_answers_tell_services_backends_and_differences() {
    let mut bench = bench(MemoryMaps::default());
    let snapshot = cluster().snapshot().clone();
    assert!(bench.reconciler.difference().is_err(), "nothing is known yet");
    bench.reconciler.follow(&snapshot, Some(&NodeFacts::default()));
    let services = rows::services(&bench.reconciler.desired);
    assert_eq!(services.len(), 1);
    assert_eq!(services[0].frontends, ["10.96.0.7:80/TCP"]);
    assert_eq!((services[0].internal, services[0].external), (1, 1));
    let backends = bench.reconciler.backends().unwrap();
    assert_eq!(backends[0].internal, ["10.244.0.5:8080"]);
    assert_eq!(backends[0].service, "default/web");

    let mut tables = bench.reconciler.maps.dump().unwrap();
    tables.frontends.clear();
    bench.reconciler.maps = Box::new(MemoryMaps::with_tables(tables));
    let steps = bench.reconciler.difference().unwrap().steps;
    assert!(
        steps.iter().any(|step| step.starts_with("put frontend 10.96.0.7:80/TCP")),
        "{steps:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_loop_leaves_the_tables_as_they_are_when_it_is_told_to_end() {
    let Bench { mut reconciler, board, metrics, .. } = bench(MemoryMaps::default());
    let prefer_local = ["10.96.0.7:80".parse().unwrap()].into();
    reconciler.desired = Desired::new(Settings { prefer_local, ..Settings::default() });
    let (_snapshots, snapshots) = watch::channel(Arc::new(cluster().snapshot().clone()));
    let (_facts, facts) = watch::channel(Some(Arc::new(NodeFacts::default())));
    let (_queries, queries) = mpsc::channel(1);
    let cancel = CancellationToken::new();
    let (_released, released) = crate::released::channel();
    let host_ports = Arc::new(HostPorts::none());
    let inputs = Inputs { snapshots, facts, queries, released, host_ports };
    let running = tokio::spawn(reconciler.run(inputs, cancel.clone()));
    while !board.ready() {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(metrics.plans.load(Relaxed), 1, "the first plan is the last");
}
