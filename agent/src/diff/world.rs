//! Random clusters for the properties of plans, and tables that remember every moment.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use proptest::{prelude::*, sample::Index};

use crate::{
    apply::{
        maps::Tables,
        memory::MemoryMaps,
        stepwise::{Step, Stepwise, Witness},
    },
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointPort, EndpointSlice, Hints, Site, SliceNames},
        node::Cidr,
        service::{Protocol, Service, ServicePort, TrafficPolicy},
        snapshot::Snapshot,
    },
};

/// One service of a random cluster. Addresses and ports come from small pools, so that services
/// collide, hand over and share.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    cluster_ip: u8,
    families: (bool, bool),
    ports: u8,
    node_port: Option<u8>,
    external_ip: Option<u8>,
    policies: (bool, bool),
    affinity: bool,
    topology: bool,
    /// Host of a load balancer address, and the nets that may use it.
    balancer: Option<(u8, Option<Vec<u8>>)>,
    created: u8,
    /// Address, state (ready, terminating, neither), node, hint (none, node 0, node 1), slice.
    endpoints: Vec<(u8, u8, u8, u8, u8)>,
}

/// A random cluster: services by number.
#[derive(Clone, Debug)]
pub(super) struct World(BTreeMap<u8, Spec>);

pub(super) fn world() -> impl Strategy<Value = World> {
    let endpoint = (0u8..6, 0u8..3, 0u8..2, 0u8..3, 0u8..2);
    let families = prop_oneof![Just((true, false)), Just((false, true)), Just((true, true))];
    let nets = prop::option::of(prop::collection::vec(0..CLIENT_NETS, 1..3));
    let balancer = prop::option::of((0u8..2, nets));
    let spec = (
        0u8..4,
        families,
        1u8..3,
        prop::option::of(0u8..3),
        prop::option::of(0u8..2),
        any::<(bool, bool)>(),
        (any::<bool>(), any::<bool>(), balancer, 0u8..2),
        prop::collection::vec(endpoint, 0..7),
    )
        .prop_map(
            |(cluster_ip, families, ports, node_port, external_ip, policies, more, endpoints)| {
                let (affinity, topology, balancer, created) = more;
                Spec {
                    cluster_ip,
                    families,
                    ports,
                    node_port,
                    external_ip,
                    policies,
                    affinity,
                    topology,
                    balancer,
                    created,
                    endpoints,
                }
            },
        );
    prop::collection::btree_map(0u8..5, spec, 0..5).prop_map(World)
}

fn ip(ipv6: bool, net: u8, host: u8) -> IpAddr {
    if ipv6 {
        IpAddr::from([0xfd00, 0, 0, u16::from(net), 0, 0, 0, u16::from(host)])
    } else {
        IpAddr::from([10, net, 0, host])
    }
}

/// How many nets clients of load balancers are in.
const CLIENT_NETS: u8 = 4;

/// A net that clients are in.
fn client_net(ipv6: bool, net: u8) -> Cidr {
    Cidr::holding(ip(ipv6, 100 + net, 0), if ipv6 { 64 } else { 16 }).unwrap()
}

/// A client of each net.
pub(super) fn clients(ipv6: bool) -> impl Iterator<Item = IpAddr> {
    (0..CLIENT_NETS).map(move |net| ip(ipv6, 100 + net, 9))
}

fn policy(local: bool) -> TrafficPolicy {
    if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

impl Spec {
    fn families(&self) -> impl Iterator<Item = bool> + use<> {
        let (v4, v6) = self.families;
        [v4.then_some(false), v6.then_some(true)].into_iter().flatten()
    }

    fn service(&self, key: ObjectKey) -> Service {
        let ips = |net, host: u8| self.families().map(|ipv6| ip(ipv6, net, host)).collect();
        let port = |n: u8| ServicePort {
            name: format!("p{n}").into(),
            protocol: Protocol::Tcp,
            port: 80 + u16::from(n),
            node_port: self.node_port.map(|np| 30000 + u16::from(np) * 2 + u16::from(n)),
        };
        Service {
            cluster_ips: ips(96, self.cluster_ip),
            external_ips: self.external_ip.map_or(Vec::new(), |host| ips(97, host)),
            ports: (0..self.ports).map(port).collect(),
            internal_policy: policy(self.policies.0),
            external_policy: policy(self.policies.1),
            load_balancer_ips: self
                .balancer
                .as_ref()
                .map_or(Vec::new(), |(host, _)| ips(97, *host)),
            source_ranges: self.balancer.as_ref().and_then(|(_, nets)| {
                let nets = nets.as_ref()?.iter();
                Some(nets.flat_map(|net| self.families().map(|v6| client_net(v6, *net))).collect())
            }),
            created_s: self.created.into(),
            topology: self.topology,
            affinity_s: if self.affinity { 10_800 } else { 0 },
            ..Service::new(key)
        }
    }

    fn slices(&self, service: &ObjectKey) -> Vec<EndpointSlice> {
        let endpoint = |ipv6, &(host, state, node, hint, _): &(u8, u8, u8, u8, u8)| Endpoint {
            ready: state == 0,
            serving: state < 2,
            terminating: state > 0,
            site: Arc::new(Site {
                node: Some(format!("node-{node}").into()),
                hints: Hints {
                    zones: Vec::new(),
                    nodes: hint.checked_sub(1).iter().map(|n| format!("node-{n}").into()).collect(),
                },
            }),
            ..Endpoint::ready_at(ip(ipv6, 244, host))
        };
        let port = |n: u8| EndpointPort {
            name: format!("p{n}").into(),
            protocol: Protocol::Tcp,
            port: 8080 + u16::from(n),
        };
        let slice = |(ipv6, part): (bool, u8)| EndpointSlice {
            key: ObjectKey::new("default", &format!("{}-{ipv6}-{part}", service.name)),
            service: service.clone(),
            ipv6,
            ports: (0..2).map(port).collect(),
            endpoints: self
                .endpoints
                .iter()
                .filter(|(.., own)| *own == part)
                .map(|of| endpoint(ipv6, of))
                .collect(),
            names: SliceNames::default(),
            trigger_time: None,
        };
        self.families().flat_map(|ipv6| [(ipv6, 0), (ipv6, 1)]).map(slice).collect()
    }
}

fn service_key(n: u8) -> ObjectKey {
    ObjectKey::new("default", &format!("s{n}"))
}

/// One event: the service, and then each slice, of one spec.
enum Event {
    Service(ObjectKey, Option<Arc<Service>>),
    Slice((ObjectKey, Arc<str>), Option<Arc<EndpointSlice>>),
}

impl World {
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        Self::add_to(&mut snapshot, self);
        snapshot
    }

    /// Puts this cluster's services, whole, in the place of those with the same names.
    pub(super) fn add_to(snapshot: &mut Snapshot, world: &Self) {
        snapshot.revision += 1;
        for (n, spec) in &world.0 {
            let key =
                if *n == u8::MAX { ObjectKey::new("default", "only") } else { service_key(*n) };
            for slice in spec.slices(&key) {
                let name = slice.key.name.clone();
                snapshot.slices.insert((key.clone(), name), Arc::new(slice));
            }
            snapshot.services.insert(key.clone(), Arc::new(spec.service(key)));
        }
    }

    /// Single events, in an order that `seeds` choose, that lead from one cluster to another; the
    /// snapshot after each.
    pub(super) fn steps(from: &Self, to: &Self, seeds: &[Index]) -> Vec<Snapshot> {
        let (mut at, goal) = (from.snapshot(), to.snapshot());
        let mut events = Vec::new();
        for key in at.services.keys().chain(goal.services.keys()) {
            events.push(Event::Service(key.clone(), goal.services.get(key).cloned()));
        }
        for key in at.slices.keys().chain(goal.slices.keys()) {
            events.push(Event::Slice(key.clone(), goal.slices.get(key).cloned()));
        }
        let mut snapshots = Vec::new();
        for seed in seeds.iter().cycle() {
            if events.is_empty() {
                break;
            }
            match events.swap_remove(seed.index(events.len())) {
                Event::Service(key, Some(service)) => drop(at.services.insert(key, service)),
                Event::Service(key, None) => drop(at.services.remove(&key)),
                Event::Slice(key, Some(slice)) => drop(at.slices.insert(key, slice)),
                Event::Slice(key, None) => drop(at.slices.remove(&key)),
            }
            at.revision += 1;
            snapshots.push(at.clone());
        }
        snapshots
    }

    /// `default/only`: one port of one family, remote endpoints.
    pub(super) fn of_one_service(endpoints: u8, ipv6: bool) -> Self {
        let spec = Spec {
            cluster_ip: 250,
            families: (!ipv6, ipv6),
            ports: 1,
            node_port: None,
            external_ip: None,
            policies: (false, false),
            affinity: false,
            topology: false,
            balancer: None,
            created: 0,
            endpoints: (0..endpoints).map(|host| (host, 0, 1, 0, 0)).collect(),
        };
        Self([(u8::MAX, spec)].into())
    }

    /// `count` services with an endpoint each.
    pub(super) fn many_services(count: u16) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for n in 0..count {
            let spec = Self::of_one_service(1, false).0.remove(&u8::MAX).unwrap();
            let key = ObjectKey::new("many", &format!("s{n}"));
            let mut service = spec.service(key.clone());
            service.cluster_ips = vec![IpAddr::from([10, 98, (n >> 8) as u8, (n & 0xff) as u8])];
            for slice in spec.slices(&key) {
                snapshot.slices.insert((key.clone(), slice.key.name.clone()), Arc::new(slice));
            }
            snapshot.services.insert(key, Arc::new(service));
        }
        snapshot
    }
}

/// Tables that are written element by element, and a copy of every moment.
pub(super) type Recording = Stepwise<MemoryMaps, Moments>;

/// The moments of tables.
pub(super) struct Moments {
    /// The tables before the first write, and after each.
    pub(super) states: Vec<Tables>,
    /// Where barriers began and were over, as indices into `states`: a reader of a state before the
    /// one is done before the states from the other.
    pub(super) barriers: Vec<(usize, usize)>,
}

pub(super) fn recording(maps: MemoryMaps) -> Recording {
    let witness = Moments { states: vec![maps.tables().clone()], barriers: Vec::new() };
    Stepwise { maps, witness }
}

impl Witness<MemoryMaps> for Moments {
    fn after(&mut self, step: Step, maps: &MemoryMaps) {
        if step == Step::Barrier {
            self.barriers.push((self.states.len(), self.states.len()));
        }
        self.states.push(maps.tables().clone());
    }
}
