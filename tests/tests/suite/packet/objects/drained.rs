//! B86: what a load balancer is told of a node whose last endpoint terminates, and what clients meet
//! there.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread::JoinHandle,
};

use mizzen_agent::{
    handover::GivenPorts,
    serve::{health::Health, start_service_health},
    supervisor::Tasks,
};
use mizzen_tests::{lab::CLIENT, netns::Netns};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;

/// The service's `healthCheckNodePort`.
const CHECK: u16 = 32_100;

/// The port, served in the node's network until the guard goes.
struct Checked {
    publish: watch::Sender<Arc<Snapshot>>,
    cancel: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Checked {
    fn start(netns: &Arc<Netns>, cluster: &Cluster) -> Self {
        let (publish, snapshots) = watch::channel(Arc::new(cluster.snapshot.clone()));
        let (known, facts) = watch::channel(Some(Arc::new(cluster.facts.clone())));
        let cancel = CancellationToken::new();
        let (netns, token) = (Arc::clone(netns), cancel.clone());
        let serve = async move {
            let _known = known;
            let (board, metrics) = (Arc::default(), Arc::default());
            let node = settings().node_name;
            let health =
                Health { node, board, metrics, snapshots: snapshots.clone(), inherited: false };
            let ports = (GivenPorts::default(), Arc::default());
            let mut tasks = Tasks::new("serve");
            start_service_health(health, snapshots, facts, settings(), ports, &mut tasks);
            token.cancelled().await;
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            netns.run(|| runtime.unwrap().block_on(serve));
        });
        Self { publish, cancel, thread: Some(thread) }
    }

    fn publish(&self, cluster: &Cluster) {
        self.publish.send_replace(Arc::new(cluster.snapshot.clone()));
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// The status that a load balancer gets.
fn status(lab: &Lab, at: SocketAddr) -> Result<u16, String> {
    let asked = lab.client.run(|| {
        let mut stream = TcpStream::connect(at)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    let text = asked.map_err(|error| error.to_string())?;
    let status = text.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    status.ok_or(text)
}

#[test]
fn b84_b86_a_node_whose_last_endpoint_terminates_fails_its_check_and_serves_on() {
    let lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let mut cluster = Cluster::new(&lab, family, |service| {
            service.external_policy = TrafficPolicy::Local;
            service.health_check_node_port = Some(CHECK);
        });
        let pods = [(1, &lab.nodes[0].pods[0]), (2, &lab.nodes[1].pods[0])];
        cluster.lead_to(&pods);
        let checked = Checked::start(&lab.nodes[0].node.netns, &cluster);
        let [check, to] = [CHECK, NODE_PORT].map(|port| SocketAddr::new(family.wire(OWN), port));
        let until_checked = |wanted| {
            until("the health check", Duration::from_secs(10), || match status(&lab, check) {
                Ok(status) if status == wanted => Ok(()),
                other => Err(format!("{family:?}: {other:?} instead of {wanted}")),
            });
        };
        until_checked(200);
        let here = Site::on(&node_name(1));
        cluster.say(&pods, |endpoint| {
            let terminating = endpoint.site == here;
            Endpoint { ready: !terminating, serving: true, terminating, ..endpoint }
        });
        cluster.follow();
        checked.publish(&cluster);
        until_checked(503);
        for transport in TRANSPORTS {
            for _ in 0..10 {
                let answer = ask(&lab.client, transport, to).unwrap();
                assert_eq!(answer.name, "pod-1-1", "{family:?} {transport:?}");
                assert_eq!(answer.client.ip(), family.wire(CLIENT), "the source is kept");
            }
        }
        assert_eq!(status(&lab, check), Ok(503), "{family:?}");
    }
    sane(&lab);
}
