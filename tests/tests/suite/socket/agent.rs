//! The agent's own loop over the kernel's tables: what the cluster's objects say is what sockets
//! meet.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use mizzen_agent::{
    apply::maps::Maps as _,
    datapath::Datapath,
    desired::{LocalAddress, NodeFacts, Settings},
    metrics::Metrics,
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointPort, EndpointSlice, Site},
        node::Node,
        service::{Protocol, Service, ServicePort},
        snapshot::{Snapshot, Synced},
    },
    reconcile::{Attach, AttachNothing, Reconciler},
    status::Board,
};

use super::{Bench, FAMILIES, Family};

mod healing;
mod lifecycle;

pub(super) const NODE: &str = "node-1";

/// An agent of the node, without the API server.
pub(super) struct Agent {
    pub(super) reconciler: Reconciler,
    pub(super) metrics: Arc<Metrics>,
    pub(super) facts: NodeFacts,
}

impl Agent {
    pub(super) fn start(datapath: &Datapath, family: Family) -> Self {
        Self::with(datapath, family, Box::new(AttachNothing))
    }

    fn with(datapath: &Datapath, family: Family, attach: Box<dyn Attach>) -> Self {
        let settings = Settings {
            node_name: NODE.into(),
            snat_ports: (10_000, 29_999),
            ..Settings::default()
        };
        let maps = Box::new(datapath.maps().unwrap());
        let (board, metrics) = (Arc::default(), Arc::<Metrics>::default());
        let reconciler = Reconciler::new(
            settings,
            maps,
            attach,
            Arc::<Board>::clone(&board),
            Arc::clone(&metrics),
        );
        let address = LocalAddress { addr: family.node(), ifindex: 1 };
        Self {
            reconciler,
            metrics,
            facts: NodeFacts { addresses: [address].into(), ..NodeFacts::default() },
        }
    }

    /// Follows a snapshot; how many calls and writes it took.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) -> (u64, u64) {
        let count =
            || (self.metrics.map_calls.load(Relaxed), self.metrics.map_writes.load(Relaxed));
        let before = count();
        self.reconciler.follow(snapshot, Some(&self.facts));
        self.reconciler.finish();
        let after = count();
        (after.0 - before.0, after.1 - before.1)
    }
}

/// A cluster of one node and the NodePort service `hello`, TCP and UDP, with these endpoints.
pub(super) fn cluster(family: Family, endpoints: &[SocketAddr]) -> Snapshot {
    let synced = Synced::ALL;
    let mut snapshot = Snapshot { revision: 1, synced, ..Snapshot::default() };
    let node = Node { internal_ips: vec![family.node()], ..Node::named(NODE) };
    snapshot.nodes.insert(NODE.into(), Arc::new(node));
    let key = ObjectKey::new("default", "hello");
    snapshot.services.insert(key.clone(), Arc::new(service(&key, family.vip(10))));
    let slice = EndpointSlice {
        ports: [Protocol::Tcp, Protocol::Udp].map(port_of_endpoints).into(),
        endpoints: endpoints.iter().map(|addr| endpoint(addr.ip())).collect(),
        ..EndpointSlice::new(key.clone(), "hello-1", family == Family::V6)
    };
    snapshot.slices.insert((key, "hello-1".into()), Arc::new(slice));
    snapshot
}

pub(super) fn service(key: &ObjectKey, cluster_ip: IpAddr) -> Service {
    let port = |name: &str, protocol| ServicePort {
        name: name.into(),
        protocol,
        port: 80,
        node_port: Some(30080),
    };
    Service {
        cluster_ips: vec![cluster_ip],
        ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
        ..Service::new(key.clone())
    }
}

fn port_of_endpoints(protocol: Protocol) -> EndpointPort {
    let name = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
    EndpointPort { name: name.into(), protocol, port: 8080 }
}

fn endpoint(address: IpAddr) -> Endpoint {
    Endpoint { site: Site::on(NODE), ..Endpoint::ready_at(address) }
}

#[test]
fn what_objects_say_is_what_sockets_meet() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = family.dialled(SocketAddr::new(family.vip(10), 80));
        let node_port = family.dialled(SocketAddr::new(family.node(), 30080));
        let mut agent = Agent::start(&bench.datapath, family);

        agent.follow(&cluster(family, &[bench.a]));
        for to in [vip, node_port] {
            assert_eq!(bench.ask(to).unwrap(), ("a".to_owned(), to));
            assert_eq!(bench.ask_udp(to), ("a".to_owned(), to));
        }

        // One call, the barrier, for a change of endpoints: the rest are stores to memory.
        let (calls, _) = agent.follow(&cluster(family, &[bench.b]));
        assert_eq!(calls, 1);
        for to in [vip, node_port] {
            assert_eq!(bench.ask(to).unwrap().0, "b");
            assert_eq!(bench.ask_udp(to).0, "b");
        }

        // The next agent finds everything as it should be.
        let tables = bench.tables.maps.dump().unwrap();
        let mut next = Agent::start(&bench.datapath, family);
        assert_eq!(next.follow(&cluster(family, &[bench.b])), (0, 0));
        assert!(bench.tables.maps.dump().unwrap() == tables);

        next.follow(&cluster(family, &[]));
        for to in [vip, node_port] {
            let refused = bench.ask(to).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
        }
        next.follow(&cluster(family, &[bench.a, bench.b]));
        assert_eq!(bench.ask(vip).unwrap().1, vip);
    }
}
