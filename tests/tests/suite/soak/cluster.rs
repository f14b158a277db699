//! A cluster as the agent's own loop knows it, without an API server: services at ClusterIPs whose
//! endpoints change all the time.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use mizzen_agent::{
    apply::{
        apply,
        maps::{Maps, Room},
        memory::MemoryMaps,
    },
    desired::{Desired, LocalAddress, NodeFacts, Settings},
    diff::{Known, diff},
    metrics::Metrics,
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointPort, EndpointSlice, Site},
        node::Node,
        service::{Protocol, Service, ServicePort},
        snapshot::{Snapshot, Synced},
    },
    reconcile::{AttachNothing, Reconciler},
    status::{Board, State},
};
use mizzen_tests::lab::Family;

pub(super) const NODE: &str = "node-1";
/// The port of every service.
pub(super) const PORT: u16 = 80;

/// An agent without its inputs.
pub(super) struct Agent {
    reconciler: Reconciler,
    /// What it counts.
    pub(super) metrics: Arc<Metrics>,
    board: Arc<Board>,
    facts: NodeFacts,
}

impl Agent {
    /// Starts one over the tables, which it reads before it writes.
    pub(super) fn start(maps: Box<dyn Maps>) -> Self {
        Self::of_node(maps, facts())
    }

    /// Likewise, of a node with these facts.
    pub(super) fn of_node(maps: Box<dyn Maps>, facts: NodeFacts) -> Self {
        let (board, metrics) = (Arc::<Board>::default(), Arc::<Metrics>::default());
        let reconciler = Reconciler::new(
            settings(),
            maps,
            Box::new(AttachNothing),
            Arc::clone(&board),
            Arc::clone(&metrics),
        );
        Self { reconciler, metrics, board, facts }
    }

    /// The next agent after this one, over the same tables; it goes on counting.
    pub(super) fn resumed(before: &Self, maps: Box<dyn Maps>) -> Self {
        let next = Self::start(maps);
        let flips = &before.metrics.set_flips;
        next.metrics.set_flips.store(flips.load(Relaxed), Relaxed);
        next
    }

    /// Follows a snapshot, and releases what that unlinked; whether all of it is in the tables.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) -> bool {
        self.reconciler.follow(snapshot, Some(&self.facts));
        self.reconciler.finish();
        self.board.parts().values().all(|state| *state == State::Ready)
    }
}

/// Tables in memory with what a snapshot asks for.
pub(super) fn tables_of(snapshot: &Snapshot) -> MemoryMaps {
    let mut desired = Desired::new(settings());
    let _first = desired.update(snapshot, &facts());
    let mut maps = MemoryMaps::default();
    let plan = diff(&desired.everything(), &mut Known::empty(Room::default()));
    apply(&plan, &mut maps).unwrap();
    maps
}

pub(super) fn settings() -> Settings {
    Settings { node_name: NODE.into(), snat_ports: (10_000, 29_999), ..Settings::default() }
}

pub(super) fn facts() -> NodeFacts {
    let addr = Family::V4.wire(11);
    NodeFacts { addresses: [LocalAddress { addr, ifindex: 1 }].into(), ..NodeFacts::default() }
}

/// A cluster of one node and nothing else.
pub(super) fn empty() -> Snapshot {
    let synced = Synced::ALL;
    let mut snapshot = Snapshot { revision: 1, synced, ..Snapshot::default() };
    let node = Node { internal_ips: vec![Family::V4.wire(11)], ..Node::named(NODE) };
    snapshot.nodes.insert(NODE.into(), Arc::new(node));
    snapshot
}

/// Gives the cluster a service, TCP and UDP, at this address.
pub(super) fn add_service(snapshot: &mut Snapshot, name: &str, vip: std::net::IpAddr) {
    let key = ObjectKey::new("default", name);
    let port = |name: &str, protocol| ServicePort {
        name: name.into(),
        protocol,
        port: PORT,
        node_port: None,
    };
    let service = Service {
        cluster_ips: vec![vip],
        ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
        ..Service::new(key.clone())
    };
    snapshot.services.insert(key, Arc::new(service));
}

/// Makes these the service's endpoints.
pub(super) fn set_endpoints(snapshot: &mut Snapshot, name: &str, endpoints: &[SocketAddr]) {
    let port = endpoints.first().map_or(1, SocketAddr::port);
    set_states(snapshot, name, port, endpoints.iter().map(|addr| endpoint(*addr)).collect());
}

/// Likewise, as they are; all have one port.
pub(super) fn set_states(snapshot: &mut Snapshot, name: &str, port: u16, endpoints: Vec<Endpoint>) {
    let service = ObjectKey::new("default", name);
    let slice = format!("{name}-1");
    let port = |name: &str, protocol| EndpointPort { name: name.into(), protocol, port };
    let ipv6 = endpoints.iter().any(|endpoint| endpoint.address.is_ipv6());
    let value = EndpointSlice {
        ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
        endpoints,
        ..EndpointSlice::new(service.clone(), &slice, ipv6)
    };
    snapshot.slices.insert((service, slice.as_str().into()), Arc::new(value));
}

/// A ready endpoint on this node.
pub(super) fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint { site: Site::on(NODE), ..Endpoint::ready_at(addr.ip()) }
}
