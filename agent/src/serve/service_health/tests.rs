//! Health check ports on the machine's loopback addresses, asked as a load balancer asks.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::*;
use crate::{
    desired::{LocalAddress, NodePortAddresses},
    model::{
        endpoints::{Endpoint, EndpointNames, EndpointSlice, Site, SliceNames},
        node::Node,
        service::Service,
        snapshot::Synced,
    },
};

const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

/// An endpoint on a node, with its conditions ready, serving and terminating.
fn endpoint(address: &str, node: &str, conditions: [bool; 3]) -> Endpoint {
    let [ready, serving, terminating] = conditions;
    Endpoint {
        ready,
        serving,
        terminating,
        site: Site::on(node),
        ..Endpoint::ready_at(address.parse().unwrap())
    }
}

const POD: &str = "web-0";

/// The name of the pod that every slice here has.
fn the_pod() -> EndpointNames {
    SliceNames::default().add(POD, "")
}

const READY: [bool; 3] = [true, true, false];
const TERMINATING: [bool; 3] = [false, true, true];
const UNREADY: [bool; 3] = [false, false, false];

/// A cluster with the node `n` and the service `a/web` with a health check port.
fn cluster(port: Option<u16>, endpoints: Vec<Endpoint>) -> Snapshot {
    let synced = Synced::ALL;
    let mut snapshot = Snapshot { synced, ..Snapshot::default() };
    snapshot.nodes.insert("n".into(), Arc::new(Node::named("n")));
    let key = ObjectKey::new("a", "web");
    let service = Service { health_check_node_port: port, ..Service::new(key.clone()) };
    snapshot.services.insert(key.clone(), Arc::new(service));
    // Every pod name of these tests is that of the one pod.
    let mut names = SliceNames::default();
    names.add(POD, "");
    let slice = EndpointSlice {
        key: ObjectKey::new("a", "web-1"),
        service: key.clone(),
        ipv6: false,
        ports: Vec::new(),
        endpoints,
        names,
        trigger_time: None,
    };
    snapshot.slices.insert((key, "web-1".into()), Arc::new(slice));
    snapshot
}

fn settings() -> Settings {
    let ranges = ["127.0.0.1/32", "::1/128"].map(|range| range.parse().unwrap());
    Settings {
        node_name: "n".into(),
        node_port_addresses: NodePortAddresses::Within(ranges.into()),
        ..Settings::default()
    }
}

fn facts() -> Arc<NodeFacts> {
    let address = |text: &str| LocalAddress { addr: text.parse().unwrap(), ifindex: 1 };
    Arc::new(NodeFacts { addresses: LOOPBACK.map(address).into(), ..NodeFacts::default() })
}

/// Status, headers and body of an answer; none where nobody listens, or no more.
fn ask(at: SocketAddr) -> Option<(u16, String, serde_json::Value)> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    Some((status, head.to_ascii_lowercase(), serde_json::from_str(body).unwrap()))
}

/// A port that is free on the loopback addresses of both families.
fn free_port() -> u16 {
    loop {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = v4.local_addr().unwrap().port();
        if std::net::TcpListener::bind(("::1", port)).is_ok() {
            return port;
        }
    }
}

struct Bench {
    publish: watch::Sender<Arc<Snapshot>>,
    health: Health,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), TaskError>>,
    _facts: watch::Sender<Option<Arc<NodeFacts>>>,
}

impl Bench {
    fn start(snapshot: Snapshot) -> Self {
        let (publish, snapshots) = watch::channel(Arc::new(snapshot));
        let (facts, known) = watch::channel(Some(facts()));
        let (board, metrics) = (Arc::default(), Arc::default());
        let health = Health { node: "n".into(), board, metrics, snapshots, inherited: false };
        let cancel = CancellationToken::new();
        let task = tokio::spawn(run(
            health.clone(),
            health.snapshots.clone(),
            known,
            settings(),
            (GivenPorts::default(), Arc::default()),
            cancel.clone(),
        ));
        Self { publish, health, cancel, task, _facts: facts }
    }

    /// Waits until the answers of both families are as given.
    async fn until(&self, port: u16, expected: Option<(u16, u64)>) {
        for address in LOOPBACK {
            let at: SocketAddr = (address.parse::<IpAddr>().unwrap(), port).into();
            let mut seen = None;
            for _ in 0..1_000 {
                seen = tokio::task::spawn_blocking(move || ask(at)).await.unwrap();
                let got = seen
                    .as_ref()
                    .map(|(status, _, body)| (*status, body["localEndpoints"].as_u64().unwrap()));
                if got == expected {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let got = seen
                .as_ref()
                .map(|(status, _, body)| (*status, body["localEndpoints"].as_u64().unwrap()));
            assert_eq!(got, expected, "{at}: {seen:?}");
        }
    }

    fn publish(&self, snapshot: Snapshot) {
        self.publish.send_replace(Arc::new(snapshot));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_the_port_tells_of_ready_local_endpoints() {
    let port = free_port();
    let two = vec![
        endpoint("10.0.0.1", "n", READY),
        endpoint("10.0.0.2", "n", READY),
        endpoint("10.0.0.3", "elsewhere", READY),
        endpoint("10.0.0.4", "n", UNREADY),
    ];
    let bench = Bench::start(cluster(Some(port), two));
    bench.until(port, Some((200, 2))).await;
    let (_, head, body) = tokio::task::spawn_blocking(move || ask(([127, 0, 0, 1], port).into()))
        .await
        .unwrap()
        .unwrap();
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "x-load-balancing-endpoint-weight: 2",
    ] {
        assert!(head.contains(header), "{header} is not in {head}");
    }
    let expected = serde_json::json!({"service": {"namespace": "a", "name": "web"},
        "localEndpoints": 2, "serviceProxyHealthy": true});
    assert_eq!(body, expected);

    bench.publish(cluster(Some(port), vec![endpoint("10.0.0.3", "elsewhere", READY)]));
    bench.until(port, Some((503, 0))).await;

    // The proxy itself is not ready.
    bench.publish(cluster(Some(port), vec![endpoint("10.0.0.1", "n", READY)]));
    bench.until(port, Some((200, 1))).await;
    bench.health.board.report(crate::reconcile::PART, State::Waiting("for a test".into()));
    bench.until(port, Some((503, 1))).await;

    // The service goes, and its port with it.
    bench.publish(cluster(None, Vec::new()));
    bench.until(port, None).await;
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b86_terminating_endpoints_alone_fail_the_check_though_they_serve() {
    let port = free_port();
    let bench = Bench::start(cluster(Some(port), vec![endpoint("10.0.0.1", "n", READY)]));
    bench.until(port, Some((200, 1))).await;
    bench.publish(cluster(Some(port), vec![endpoint("10.0.0.1", "n", TERMINATING)]));
    bench.until(port, Some((503, 0))).await;
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_a_port_that_others_have_is_named_and_taken_when_it_is_free() {
    let (port, other) = (free_port(), free_port());
    let occupied = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let bench = Bench::start(cluster(Some(port), vec![endpoint("10.0.0.1", "n", READY)]));
    let mut said = None;
    for _ in 0..1_000 {
        said = bench.health.board.parts().get(PART).cloned();
        if matches!(said, Some(State::Degraded(_))) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let Some(State::Degraded(why)) = &said else { panic!("it is not said: {said:?}") };
    assert!(why.contains(&format!("port {port} of 127.0.0.1 for service a/web")), "{why}");
    for word in ["healthCheckNodePort", "kube-proxy", "`mizzen migrate`"] {
        assert!(why.contains(word), "{why}");
    }
    drop(occupied);
    // Nothing but time.
    bench.until(port, Some((200, 1))).await;
    // Any change makes it be tried again at once.
    bench.publish(cluster(Some(other), vec![endpoint("10.0.0.1", "n", READY)]));
    bench.until(other, Some((200, 1))).await;
    bench.publish(cluster(Some(port), vec![endpoint("10.0.0.1", "n", READY)]));
    bench.until(port, Some((200, 1))).await;
    for _ in 0..1_000 {
        said = bench.health.board.parts().get(PART).cloned();
        if said == Some(State::Ready) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(said, Some(State::Ready));
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
}

#[test]
fn a_pod_with_two_addresses_is_one_endpoint() {
    let pod = |address: &str| Endpoint { names: the_pod(), ..endpoint(address, "n", READY) };
    let snapshot = cluster(Some(1), vec![pod("10.0.0.1"), pod("fd00::1")]);
    assert_eq!(local_ready_endpoints(&snapshot, &ObjectKey::new("a", "web"), "n"), 1);
}

#[test]
fn services_of_another_proxy_get_no_port() {
    let mut snapshot = cluster(Some(1), Vec::new());
    let addresses = [IpAddr::from([192, 0, 2, 1])];
    assert_eq!(wanted(&snapshot, &addresses).len(), 1);
    let key = ObjectKey::new("a", "web");
    let foreign = Service { foreign_proxy: true, ..(*snapshot.services[&key]).clone() };
    snapshot.services.insert(key, Arc::new(foreign));
    assert!(wanted(&snapshot, &addresses).is_empty());
}
