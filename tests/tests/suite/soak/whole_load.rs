//! Agents that die at every write of a plan, under the load of a busy node: 2,000 new connections a
//! second, 100 that last, datagrams; half of it translated at sockets, half packet by packet
//! (reference R1).

use std::{net::SocketAddr, sync::Arc};

use mizzen_agent::{
    apply::stepwise::Stepwise,
    desired::{LocalAddress, NodeFacts},
    model::{
        ObjectKey,
        node::{Cidr, Node},
        service::Service,
        snapshot::Snapshot,
    },
};
use mizzen_ebpf_abi::counters::Counter;
use mizzen_tests::{
    actor::Actor,
    lab::{FAMILIES, Family, Lab},
    soak::{Dice, in_full},
    storm::Plan,
};

use super::{
    cluster::{Agent, NODE, PORT, add_service, empty, set_endpoints},
    tables::{Dying, sound},
};

/// The node port of the service that clients outside use.
const NODE_PORT: u16 = 30_080;
/// Pods of each node.
pub(super) const PODS: u8 = 3;
/// Services that change as well, and are used by nobody.
const OTHERS: u8 = 2;
/// `cargo xtask test` breaks plans off at every so many writes.
const STRIDE: u64 = 20;

/// The services under load are `x`, whose endpoints are the first node's pods, and `y`, whose are
/// the second's.
pub(super) struct Load {
    pub(super) lab: Lab,
    family: Family,
    actors: Vec<Actor>,
}

impl Load {
    pub(super) fn new(lab: Lab, family: Family) -> Self {
        Self { lab, family, actors: Vec::new() }
    }

    fn pool(&self, node: usize) -> Vec<SocketAddr> {
        self.lab.nodes[node].pods.iter().map(|pod| pod.server(self.family)).collect()
    }

    pub(super) fn services(&self) -> Vec<(String, std::net::IpAddr, Vec<SocketAddr>)> {
        let pools = [self.pool(0), self.pool(1)];
        let others = (0..OTHERS).map(|number| format!("other-{number}"));
        let names = ["x", "y"].into_iter().map(str::to_owned).chain(others);
        let service = |(name, number): (String, u8)| {
            let pool = pools[usize::from(number) % 2].clone();
            (name, self.family.service(10 + number), pool)
        };
        names.zip(0..).map(service).collect()
    }

    /// All services with all their endpoints, on a node with the lab's addresses.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = empty();
        let length = if self.family == Family::V4 { 16 } else { 48 };
        let node = Node {
            internal_ips: vec![self.lab.address_of_node(0, self.family)],
            pod_cidrs: vec![Cidr::holding(self.family.pod(0, 0), length).unwrap()],
            ..Node::named(NODE)
        };
        snapshot.nodes.insert(NODE.into(), Arc::new(node));
        for (name, vip, pool) in self.services() {
            add_service(&mut snapshot, &name, vip);
            set_endpoints(&mut snapshot, &name, &pool);
        }
        let key = ObjectKey::new("default", "y");
        let mut service = Service::clone(&snapshot.services[&key]);
        for port in &mut service.ports {
            port.node_port = Some(NODE_PORT);
        }
        snapshot.services.insert(key, Arc::new(service));
        snapshot
    }

    fn facts(&self) -> NodeFacts {
        let address = LocalAddress { addr: self.lab.address_of_node(0, self.family), ifindex: 1 };
        NodeFacts { addresses: [address].into(), ..NodeFacts::default() }
    }

    pub(super) fn agent(&self, left: Option<u64>) -> Agent {
        let maps = self.lab.nodes[0].datapath.maps().unwrap();
        match left {
            None => Agent::of_node(Box::new(maps), self.facts()),
            Some(left) => {
                let aborting = Stepwise { maps, witness: Dying { left } };
                Agent::of_node(Box::new(aborting), self.facts())
            }
        }
    }

    /// At sockets of the node; packet by packet from a client outside, and from a pod whose sockets
    /// are nobody's.
    pub(super) fn start(&mut self) {
        let [first, second] = &self.lab.nodes;
        let vip = |last| SocketAddr::new(self.family.service(last), PORT);
        let port = SocketAddr::new(self.lab.address_of_node(0, self.family), NODE_PORT);
        let plan =
            |to, name: &str, rate, lasting| Plan { to, name: name.to_owned(), rate, lasting };
        // The second node's programs are at no socket.
        let loads = [
            (first.node.actor(), plan(vip(10), "pod-1-", 1_000, 50)),
            (second.node.pod_actor(&self.lab.client), plan(port, "pod-2-", 700, 30)),
            (second.node.pod_actor(&first.pods[0].netns), plan(vip(11), "pod-2-", 300, 20)),
        ];
        for (mut actor, plan) in loads {
            actor.storm(&plan);
            self.actors.push(actor);
        }
    }

    /// Nothing failed, and no program refused, dropped or was led astray.
    pub(super) fn end(mut self, told: &str) {
        for (who, actor) in ["sockets", "outside", "a pod"].into_iter().zip(&mut self.actors) {
            let load = actor.stop();
            assert_eq!(load.failed, 0, "{told}, {who}: {}", load.first_failure);
            println!("{told}, {who}: {} answers", load.done);
        }
        let node = &self.lab.nodes[0];
        for counter in [Counter::SocketTranslated, Counter::FlowCreated] {
            assert!(node.counted(counter) > 0, "{told}: {}", counter.name());
        }
        let astray = [Counter::ForeignRange, Counter::ForeignBackend, Counter::Rejected];
        let drops = Counter::ALL.iter().filter(|counter| counter.name().starts_with("drop_"));
        for counter in astray.iter().chain(drops) {
            assert_eq!(node.counted(*counter), 0, "{told}: {}", counter.name());
        }
    }
}

/// A plan is cut off at its writes in turn, and the next agent takes over what is there.
#[test]
fn r01_an_abort_at_any_write_is_noticed_by_nobody_of_a_busy_node() {
    for family in FAMILIES {
        let mut dice = Dice::new();
        let told = format!("{family:?}, seed {}", dice.seed);
        let lab = Lab::new([PODS, PODS]);
        lab.route_out();
        lab.nodes[0].datapath.attach_sockets().unwrap();
        let mut load = Load::new(lab, family);
        let mut snapshot = load.snapshot();
        assert!(load.agent(None).follow(&snapshot), "{told}");
        load.start();
        let stride = if in_full() { 1 } else { STRIDE };
        let mut write = if in_full() { 0 } else { dice.roll() % stride };
        let mut aborts = 0;
        loop {
            // Each plan changes all services, and adds one or takes it away.
            for (name, _, pool) in load.services() {
                set_endpoints(&mut snapshot, &name, &dice.some(&pool));
            }
            let extra = "other-extra";
            if aborts % 2 == 0 {
                add_service(&mut snapshot, extra, family.service(250));
                set_endpoints(&mut snapshot, extra, &load.pool(0));
            } else {
                snapshot.services.remove(&ObjectKey::new("default", extra));
            }
            snapshot.revision += 1;
            let whole = load.agent(Some(write)).follow(&snapshot);
            sound(&load.lab.nodes[0].datapath, &format!("{told}, cut off at {write}"));
            if whole {
                break;
            }
            assert!(load.agent(None).follow(&snapshot), "{told}");
            (write, aborts) = (write + stride, aborts + 1);
        }
        println!("{told}: {aborts} plans were cut off, the last before write {write}");
        assert!(write > 40, "{told}: a plan of {write} writes");
        load.end(&told);
    }
}
