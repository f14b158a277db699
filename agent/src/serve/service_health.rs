//! `healthCheckNodePort`: a load balancer asks each node whether it has ready endpoints of a
//! service with `externalTrafficPolicy: Local` (reference F20, B86). A port per service, on the
//! addresses that take node ports.
//!
//! What shall be listened on is a pure function of the cluster and of the node's addresses;
//! the task opens and closes what differs. An answer is made from the snapshot at hand. Ports of the
//! agent before are taken as they are: nobody who asks meanwhile is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use hyper::StatusCode;
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    health::Health,
    http::{self, Answer},
};
use crate::{
    desired::{NodeFacts, Settings, node::desired_node},
    handover::{GivenPorts, OpenSockets},
    model::{ObjectKey, endpoints::PodName, snapshot::Snapshot},
    status::State,
    supervisor::TaskError,
};

/// The part on the board.
const PART: &str = "health-check-node-ports";
/// Connections at once on all of these ports together.
const CONNECTIONS_MAX: usize = 256;
/// The pause before a port is tried again that could not be had.
const RETRY: Duration = Duration::from_secs(1);
/// Changes that come in a row are taken together.
const SETTLE: Duration = Duration::from_millis(10);

/// What there is to listen on: address and port of each service.
type Wanted = BTreeMap<SocketAddr, ObjectKey>;

/// The body of an answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Ready endpoints of the service on a node, whatever their ports. One that terminates is not
/// ready, though it may still serve (B86).
fn local_ready_endpoints(snapshot: &Snapshot, service: &ObjectKey, node: &str) -> usize {
    let local = snapshot
        .endpoints_of(service)
        .filter(|(_, endpoint)| endpoint.ready && endpoint.is_on(node));
    let pods: BTreeSet<_> = local
        .map(|(slice, endpoint)| match slice.pod(endpoint) {
            // A pod with addresses of both families is one.
            Some(pod) => Endpoint::Pod(pod),
            None => Endpoint::Address(endpoint.address),
        })
        .collect();
    pods.len()
}

/// What makes an endpoint one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Endpoint<'a> {
    Pod(PodName<'a>),
    Address(IpAddr),
}

/// The answer for a service.
fn answer(health: &Health, service: &ObjectKey) -> Answer {
    let snapshot = health.snapshots.borrow().clone();
    let local_endpoints = local_ready_endpoints(&snapshot, service, &health.node);
    let service_proxy_healthy = health.is_serving();
    let name = Name { namespace: &service.namespace, name: &service.name };
    let body = Body { service: name, local_endpoints, service_proxy_healthy };
    let good = local_endpoints > 0 && service_proxy_healthy;
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Answer::json(&body)
        .with(status)
        .header("x-content-type-options", "nosniff")
        .header("x-load-balancing-endpoint-weight", local_endpoints.to_string())
}

/// What shall be listened on. Of two services that ask for one port, the first by name has it.
fn wanted(snapshot: &Snapshot, addresses: &[IpAddr]) -> Wanted {
    let mut wanted = Wanted::new();
    for service in snapshot.services.values() {
        let Some(port) = service.health_check_node_port.filter(|_| !service.foreign_proxy) else {
            continue;
        };
        for address in addresses {
            wanted.entry((*address, port).into()).or_insert_with(|| service.key.clone());
        }
    }
    wanted
}

/// The addresses that take node ports.
fn addresses(snapshot: &Snapshot, facts: &NodeFacts, settings: &Settings) -> Vec<IpAddr> {
    desired_node(snapshot, facts, settings, std::iter::empty()).node_port_addresses().collect()
}

/// An open port.
struct Open {
    service: ObjectKey,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), TaskError>>,
}

/// The open ports.
struct Ports {
    health: Health,
    open: BTreeMap<SocketAddr, Open>,
    connections: Arc<Semaphore>,
    /// Those of the agent before, until it is known which are wanted.
    given: GivenPorts,
    /// Those that are open, for the agent after this one.
    noted: Arc<OpenSockets>,
    cancel: CancellationToken,
}

impl Ports {
    /// Closes and opens what differs; what could not be opened, with the reason.
    async fn follow(&mut self, wanted: &Wanted) -> Vec<String> {
        let stale = self.open.extract_if(.., |at, open| {
            wanted.get(at) != Some(&open.service) || open.task.is_finished()
        });
        for (at, open) in stale.collect::<Vec<_>>() {
            self.noted.forget(&at);
            open.cancel.cancel();
            // Its listener is closed when the task ends: the port may be wanted by another.
            let _ended = open.task.await;
            tracing::debug!(%at, service = %open.service, "closed a health check port");
        }
        let mut troubles = Vec::new();
        for (at, service) in wanted {
            if self.open.contains_key(at) {
                continue;
            }
            match self.listener(*at).await {
                Ok(listener) => self.serve(*at, service, listener),
                Err(error) => troubles.push(trouble(*at, service, &error)),
            }
        }
        self.given = GivenPorts::default();
        troubles
    }

    async fn listener(&self, at: SocketAddr) -> io::Result<TcpListener> {
        match self.given.at(at)? {
            Some(listener) => Ok(listener),
            None => TcpListener::bind(at).await,
        }
    }

    fn serve(&mut self, at: SocketAddr, service: &ObjectKey, listener: TcpListener) {
        self.noted.note(at, [&listener as &dyn AsFd]);
        let (health, key) = (self.health.clone(), service.clone());
        let routes = move |_asked| {
            let answer = answer(&health, &key);
            async move { answer }
        };
        let cancel = self.cancel.child_token();
        let connections = Arc::clone(&self.connections);
        let served = http::serve_shared(listener, routes, connections, cancel.clone());
        let task = tokio::spawn(served);
        self.open.insert(at, Open { service: service.clone(), cancel, task });
        tracing::debug!(%at, %service, "opened a health check port");
    }
}

fn trouble(at: SocketAddr, service: &ObjectKey, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "kube-proxy has it where it runs on this node, and it is taken when that ends \
             (`mizzen migrate`); else stop the program that listens there, or give the service \
             another healthCheckNodePort"
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this node has the address yet",
        _ => "load balancers take this node for unhealthy until it can be had",
    };
    format!("port {} of {} for service {service}: {error}; {remedy}", at.port(), at.ip())
}

/// Keeps the ports open that services ask for, until cancelled.
pub(super) async fn run(
    health: Health,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut facts: watch::Receiver<Option<Arc<NodeFacts>>>,
    settings: Settings,
    (given, noted): (GivenPorts, Arc<OpenSockets>),
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let board = Arc::clone(&health.board);
    if !given.is_empty() {
        // The agent before said yes to the last moment.
        health.until_serving(&cancel).await;
    }
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (open, stop) = (BTreeMap::new(), cancel.clone());
    let mut ports = Ports { health, open, connections, given, noted, cancel: stop };
    while !cancel.is_cancelled() {
        let snapshot = snapshots.borrow_and_update().clone();
        let known = facts.borrow_and_update().clone();
        let mut troubles = Vec::new();
        // Nothing is closed by an agent that has not heard of everything.
        if let Some(known) = known.filter(|_| snapshot.synced.all()) {
            let asked = snapshot.services.values().any(|s| s.health_check_node_port.is_some());
            let addresses =
                if asked { addresses(&snapshot, &known, &settings) } else { Vec::new() };
            troubles = ports.follow(&wanted(&snapshot, &addresses)).await;
        }
        let quiet = troubles.is_empty();
        board.report(PART, state(&troubles));
        tokio::select! {
            () = cancel.cancelled() => break,
            Ok(()) = facts.changed() => {}
            () = concerned(&mut snapshots, &snapshot) => {}
            () = tokio::time::sleep(RETRY), if !quiet => {}
        }
        tokio::time::sleep(SETTLE).await;
    }
    for (_, open) in ports.open {
        let _ended = open.task.await;
    }
    Ok(())
}

/// Returns when services or nodes are others than in `seen`: endpoints are looked at when asked.
async fn concerned(snapshots: &mut watch::Receiver<Arc<Snapshot>>, seen: &Snapshot) {
    let news = |new: &Arc<Snapshot>| {
        new.synced != seen.synced
            || !new.services.ptr_eq(&seen.services)
            || !new.nodes.ptr_eq(&seen.nodes)
    };
    if snapshots.wait_for(news).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn state(troubles: &[String]) -> State {
    match troubles {
        [] => State::Ready,
        [only] => State::Degraded(format!("{only}; it is tried again")),
        [first, more @ ..] => {
            State::Degraded(format!("{first}, and {} more; it is tried again", more.len()))
        }
    }
}

#[cfg(test)]
mod tests;
