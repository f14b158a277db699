//! The agent's own loop over the tables of the packet path: what the cluster's objects say is what
//! packets meet, while objects change and a client goes on.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mizzen_agent::{
    desired::{LocalAddress, NodeFacts, Settings},
    metrics::Metrics,
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointPort, EndpointSlice, Site},
        node::{Cidr, Node},
        service::{Protocol, Service, ServicePort, TrafficPolicy},
        snapshot::{Snapshot, Synced},
    },
    reconcile::{Attach, AttachNothing, Reconciler},
};
use mizzen_tests::{
    echo::{Client, TRANSPORTS, Transport, ask, ask_in_vain},
    lab::{FAMILIES, Family, Lab, Pod},
    wait::until,
};

use super::{NODE_PORT, PORT, sane};

mod deleted;
mod drained;
mod healed;
mod migrated;

/// Number of the first node on the wire.
const OWN: u8 = 11;

/// The agent of the first node, and the cluster that it follows: two nodes and the service `web`,
/// TCP and UDP, of type LoadBalancer.
struct Cluster {
    agent: Reconciler,
    metrics: Arc<Metrics>,
    facts: NodeFacts,
    snapshot: Snapshot,
    family: Family,
}

fn web() -> ObjectKey {
    ObjectKey::new("default", "web")
}

fn node_name(number: u8) -> String {
    format!("node-{number}")
}

fn settings() -> Settings {
    Settings {
        node_name: node_name(1).as_str().into(),
        snat_ports: (10_000, 29_999),
        ..Settings::default()
    }
}

impl Cluster {
    fn new(lab: &Lab, family: Family, change: impl FnOnce(&mut Service)) -> Self {
        Self::with(lab, family, Box::new(AttachNothing), change)
    }

    fn with(
        lab: &Lab,
        family: Family,
        attach: Box<dyn Attach>,
        change: impl FnOnce(&mut Service),
    ) -> Self {
        let maps = Box::new(lab.nodes[0].datapath.maps().unwrap());
        let (board, metrics) = (Arc::default(), Arc::<Metrics>::default());
        let agent = Reconciler::new(settings(), maps, attach, board, Arc::clone(&metrics));
        let mut snapshot = Snapshot { synced: Synced::ALL, ..Snapshot::default() };
        let port = |name: &str, protocol| ServicePort {
            name: name.into(),
            protocol,
            port: PORT,
            node_port: Some(NODE_PORT),
        };
        let mut service = Service {
            cluster_ips: vec![family.service(10)],
            load_balancer_ips: vec![family.load_balancer(1)],
            ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
            ..Service::new(web())
        };
        change(&mut service);
        snapshot.services.insert(web(), Arc::new(service));
        let mut this = Self { agent, metrics, facts: NodeFacts::default(), snapshot, family };
        for number in [1, 2] {
            this.node(number, family.wire(10 + number));
        }
        this.addresses(&[family.wire(OWN)]);
        this
    }

    /// Ends the agent, and starts one that knows nothing but what the tables tell.
    fn restart(&mut self, lab: &Lab) {
        let maps = Box::new(lab.nodes[0].datapath.maps().unwrap());
        let (board, metrics) = (Arc::default(), Arc::clone(&self.metrics));
        self.agent = Reconciler::new(settings(), maps, Box::new(AttachNothing), board, metrics);
    }

    /// Says what a node's own address is.
    fn node(&mut self, number: u8, address: IpAddr) {
        let length = if self.family == Family::V4 { 24 } else { 64 };
        let pods = Cidr::holding(self.family.pod(number, 0), length).unwrap();
        let name = node_name(number);
        let node =
            Node { internal_ips: vec![address], pod_cidrs: vec![pods], ..Node::named(&name) };
        self.snapshot.nodes.insert(name.as_str().into(), Arc::new(node));
    }

    /// Says which addresses the first node has.
    fn addresses(&mut self, addresses: &[IpAddr]) {
        let local = |addr: &IpAddr| LocalAddress { addr: *addr, ifindex: 1 };
        let addresses = addresses.iter().map(local).collect();
        self.facts = NodeFacts { addresses, ..NodeFacts::default() };
    }

    /// Makes these pods, of the nodes with these numbers, the endpoints, and has the agent follow.
    fn lead_to(&mut self, pods: &[(u8, &Pod)]) {
        self.say(pods, |endpoint| endpoint);
        self.follow();
    }

    /// Makes these pods the endpoints, each as `state` makes it.
    fn say(&mut self, pods: &[(u8, &Pod)], state: impl Fn(Endpoint) -> Endpoint) {
        let port = |name: &str, protocol| EndpointPort { name: name.into(), protocol, port: 8080 };
        let endpoint = |(node, pod): &(u8, &Pod)| {
            let site = Site::on(&node_name(*node));
            state(Endpoint { site, ..Endpoint::ready_at(pod.address(self.family)) })
        };
        let slice = EndpointSlice {
            ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
            endpoints: pods.iter().map(endpoint).collect(),
            ..EndpointSlice::new(web(), "web-1", self.family == Family::V6)
        };
        self.snapshot.slices.insert((web(), "web-1".into()), Arc::new(slice));
    }

    fn follow(&mut self) {
        self.snapshot.revision += 1;
        assert!(self.agent.follow(&self.snapshot, Some(&self.facts)));
        self.agent.finish();
    }
}

/// Asks until this one answers; the socket stays the same.
fn answered_by(client: &Client, name: &str, case: &str) {
    until("an answer", Duration::from_secs(10), || match client.ask() {
        Ok(answer) if answer.name == name => Ok(()),
        other => Err(format!("{case}: {other:?} instead of {name}")),
    });
}

fn silence(client: &Client, case: &str) {
    let error = client.ask().expect_err(case);
    let kind = error.kind();
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{case}: {error}");
}

/// The pod of a load balancer's service is replaced by one of the same node, and by one of another;
/// the client outside never changes its socket.
#[test]
fn b103_datagrams_by_a_load_balancer_follow_a_pod_to_another_node() {
    let lab = Lab::new([2, 1]);
    lab.route_services();
    let ([first, second], [other]) = (&*lab.nodes[0].pods, &*lab.nodes[1].pods) else {
        panic!("three pods")
    };
    for family in FAMILIES {
        let case = format!("{family:?}");
        let mut cluster = Cluster::new(&lab, family, |_| {});
        let to = SocketAddr::new(family.load_balancer(1), PORT);
        let client = Client::dial_in_vain(&lab.client, Transport::Udp, to).unwrap();
        cluster.lead_to(&[(1, first)]);
        answered_by(&client, "pod-1-1", &case);
        cluster.lead_to(&[(1, second)]);
        answered_by(&client, "pod-1-2", &case);
        cluster.lead_to(&[(2, other)]);
        answered_by(&client, "pod-2-1", &case);
        cluster.lead_to(&[]);
        until("the refusal", Duration::from_secs(10), || match client.ask() {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{case}: {other:?}")),
        });
        cluster.lead_to(&[(2, other)]);
        answered_by(&client, "pod-2-1", &case);
        cluster.lead_to(&[(1, first)]);
        answered_by(&client, "pod-1-1", &case);
    }
    sane(&lab);
}

/// With the internal policy Local the pod of this node is replaced, goes, and comes back, while
/// another node has one all the time: that one is never met.
#[test]
fn b107_datagrams_by_policy_local_follow_the_nodes_own_pod_and_never_leave_it() {
    let lab = Lab::new([3, 1]);
    let ([pod, first, second], [other]) = (&*lab.nodes[0].pods, &*lab.nodes[1].pods) else {
        panic!("four pods")
    };
    for family in FAMILIES {
        let case = format!("{family:?}");
        let local = |service: &mut Service| service.internal_policy = TrafficPolicy::Local;
        let mut cluster = Cluster::new(&lab, family, local);
        let to = SocketAddr::new(family.service(10), PORT);
        let client = Client::dial_in_vain(&pod.netns, Transport::Udp, to).unwrap();
        cluster.lead_to(&[(1, first), (2, other)]);
        answered_by(&client, "pod-1-2", &case);
        cluster.lead_to(&[(1, second), (2, other)]);
        answered_by(&client, "pod-1-3", &case);
        cluster.lead_to(&[(2, other)]);
        silence(&client, &format!("{case}: no endpoint on this node"));
        cluster.lead_to(&[(2, other), (1, first)]);
        for _ in 0..10 {
            answered_by(&client, "pod-1-2", &case);
            assert_eq!(ask(&pod.netns, Transport::Udp, to).unwrap().name, "pod-1-2", "{case}");
        }
        // The policy is changed under it: any endpoint will do then.
        let service = Service::clone(&cluster.snapshot.services[&web()]);
        let service = Service { internal_policy: TrafficPolicy::Cluster, ..service };
        cluster.snapshot.services.insert(web(), Arc::new(service));
        cluster.lead_to(&[(2, other)]);
        answered_by(&client, "pod-2-1", &case);
    }
    sane(&lab);
}

/// Clients outside: the node gets another address, by which it is known from now on, and gives
/// that up again.
#[test]
fn b61_by_packet_node_ports_follow_the_nodes_addresses() {
    let lab = Lab::new([1, 1]);
    for family in FAMILIES {
        let (old, new) = (family.wire(OWN), family.wire(77));
        let (length, nodad) = if family == Family::V4 { (24, "") } else { (64, "nodad") };
        lab.nodes[0].node.netns.ip(&format!("addr add {new}/{length} dev eth0 {nodad}"));
        let mut cluster = Cluster::new(&lab, family, |_| {});
        let pods = [(1, &lab.nodes[0].pods[0]), (2, &lab.nodes[1].pods[0])];
        cluster.lead_to(&pods);
        let open = |cluster: &mut Cluster, at: IpAddr, not_at: IpAddr| {
            cluster.follow();
            for transport in TRANSPORTS {
                let case = format!("{family:?} {transport:?} {at}");
                let answer = ask(&lab.client, transport, (at, NODE_PORT).into());
                assert_eq!(answer.expect(&case).client.ip(), at, "{case}");
                let elsewhere = ask_in_vain(&lab.client, transport, (not_at, NODE_PORT).into());
                // By the node itself, which limits how often it says so of datagrams.
                if transport == Transport::Tcp {
                    assert_eq!(elsewhere, ErrorKind::ConnectionRefused, "{case}");
                }
            }
        };
        open(&mut cluster, old, new);
        // Another interface address is no node port's by itself.
        cluster.addresses(&[old, new]);
        open(&mut cluster, old, new);
        cluster.node(1, new);
        open(&mut cluster, new, old);
        cluster.addresses(&[new]);
        open(&mut cluster, new, old);
        cluster.addresses(&[old]);
        cluster.node(1, old);
        open(&mut cluster, old, new);
    }
    sane(&lab);
}
