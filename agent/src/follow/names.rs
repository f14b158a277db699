//! Names in events: of services by the sets that they were counted for, of pods by their addresses.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use k8s_openapi::jiff::Timestamp;
use mizzen_ebpf_abi::{
    addr::Addr,
    counters::Counter,
    event::{FlowEvent, path},
    service::NO_SET,
};

use super::{Event, Verdict};
use crate::{
    desired::SetKey,
    model::{ObjectKey, snapshot::Snapshot},
    why::resolve::protocol_name,
};

/// Pods of other nodes, and services by address, that are remembered.
const REMEMBERED_MAX: usize = 4_096;

/// What is known of names, kept from one event to the next: a backend has its name though it has left
/// its service by the time that the event is looked at.
#[derive(Debug, Default)]
pub struct Names {
    /// The pods of this node.
    here: HashMap<IpAddr, String>,
    /// Pods behind services, as they were called last.
    backends: HashMap<IpAddr, String>,
    /// Services by addresses of theirs, of one revision of the cluster.
    services: HashMap<IpAddr, String>,
    revision: u64,
    /// What has to be added to the programs' clock for the time since 1970.
    offset: Duration,
}

impl Names {
    /// Without names yet; what the programs' clock says now.
    pub fn new(clock_ns: u64) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { offset: since.saturating_sub(Duration::from_nanos(clock_ns)), ..Self::default() }
    }

    /// These are the pods of this node.
    pub fn learn_pods(&mut self, pods: &BTreeMap<ObjectKey, Vec<IpAddr>>) {
        self.here.clear();
        for (key, addresses) in pods {
            self.here.extend(addresses.iter().map(|address| (*address, key.to_string())));
        }
    }

    /// This pod has these addresses, whoever connected it.
    pub fn learn_pod(&mut self, pod: &str, addresses: impl Iterator<Item = IpAddr>) {
        self.here.extend(addresses.map(|address| (address, pod.to_owned())));
    }

    /// Whether a client's address is known to be a pod's.
    pub fn knows(&self, client: &Addr) -> bool {
        self.here.contains_key(&IpAddr::from(*client))
    }

    /// The event with names.
    pub fn event(
        &mut self,
        event: &FlowEvent,
        owners: &BTreeMap<u32, SetKey>,
        snapshot: &Snapshot,
    ) -> Event {
        let what = Counter::ALL.get(event.what as usize).copied();
        let owner = owners.get(&event.set);
        let service = match owner {
            Some(owner) => owner.service.to_string(),
            None => self.service_at(event.dialled.into(), snapshot),
        };
        let backend_pod = self.backend_pod(event, owner, snapshot);
        let masqueraded = (event.seen_as, event.seen_as_port) != (event.client, event.client_port);
        Event {
            time: self.time(event.at_ns),
            verdict: what.map_or(Verdict::Dropped, Verdict::of),
            reason: what.map_or_else(|| event.what.to_string(), |what| what.name().to_owned()),
            path: if event.path == path::SOCKET { "socket" } else { "packet" }.to_owned(),
            protocol: protocol_name(event.protocol),
            source: shown(&event.client, event.client_port),
            source_pod: self.pod(event.client.into()),
            destination: shown(&event.dialled, event.dialled_port),
            service,
            port: owner.map(|owner| owner.port.to_string()).unwrap_or_default(),
            backend: shown(&event.backend, event.backend_port),
            backend_pod,
            masqueraded: if masqueraded {
                shown(&event.seen_as, event.seen_as_port)
            } else {
                String::new()
            },
        }
    }

    fn time(&self, at_ns: u64) -> String {
        let at = SystemTime::UNIX_EPOCH + self.offset + Duration::from_nanos(at_ns);
        Timestamp::try_from(at).unwrap_or_default().to_string()
    }

    fn pod(&self, address: IpAddr) -> String {
        let known = self.here.get(&address).or_else(|| self.backends.get(&address));
        known.cloned().unwrap_or_default()
    }

    /// The pod at the backend's address: what its service says now, else what it said last.
    fn backend_pod(
        &mut self,
        event: &FlowEvent,
        owner: Option<&SetKey>,
        snapshot: &Snapshot,
    ) -> String {
        if event.backend == Addr::default() {
            return String::new();
        }
        let address = IpAddr::from(event.backend);
        if let Some(owner) = owner {
            let at = snapshot
                .endpoints_of(&owner.service)
                .find(|(_, endpoint)| endpoint.address == address)
                .and_then(|(slice, endpoint)| slice.pod(endpoint));
            if let Some(name) = at {
                let name = format!("{}/{name}", owner.service.namespace);
                remember(&mut self.backends, address, &name);
                return name;
            }
        }
        self.pod(address)
    }

    /// The service that has an address: for what has no set, such as another port of it.
    fn service_at(&mut self, address: IpAddr, snapshot: &Snapshot) -> String {
        if self.revision != snapshot.revision {
            self.services.clear();
            self.revision = snapshot.revision;
        }
        if let Some(known) = self.services.get(&address) {
            return known.clone();
        }
        let has = |list: &[IpAddr]| list.contains(&address);
        let found = snapshot.services.values().find(|service| {
            has(&service.cluster_ips)
                || has(&service.external_ips)
                || has(&service.load_balancer_ips)
        });
        let name = found.map(|service| service.key.to_string()).unwrap_or_default();
        remember(&mut self.services, address, &name);
        name
    }
}

/// The sets of events that have one.
pub fn sets<'a>(events: impl Iterator<Item = &'a FlowEvent>) -> BTreeSet<u32> {
    events.map(|event| event.set).filter(|set| *set != NO_SET).collect()
}

fn remember(names: &mut HashMap<IpAddr, String>, address: IpAddr, name: &str) {
    if names.len() >= REMEMBERED_MAX {
        names.clear();
    }
    names.insert(address, name.to_owned());
}

/// `address:port`, the address alone where there is no port, nothing where there is no address.
fn shown(address: &Addr, port: [u8; 2]) -> String {
    if *address == Addr::default() {
        return String::new();
    }
    let (address, port) = (IpAddr::from(*address), u16::from_be_bytes(port));
    if port == 0 { address.to_string() } else { SocketAddr::new(address, port).to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        endpoints::{Endpoint, EndpointSlice, SliceNames},
        service::{Protocol, Service},
    };

    fn cluster(pod: &str) -> Snapshot {
        let key = ObjectKey::new("default", "web");
        let mut snapshot = Snapshot { revision: 1, ..Snapshot::default() };
        let service = Service {
            cluster_ips: vec!["10.96.0.7".parse().unwrap(), "fd00:96::7".parse().unwrap()],
            ..Service::new(key.clone())
        };
        snapshot.services.insert(key.clone(), Arc::new(service));
        for (n, address) in ["10.244.2.9", "fd00:244:2::9"].into_iter().enumerate() {
            let mut names = SliceNames::default();
            let endpoint = Endpoint {
                names: names.add(pod, ""),
                ..Endpoint::ready_at(address.parse().unwrap())
            };
            let slice = EndpointSlice {
                endpoints: [endpoint].into(),
                names,
                ..EndpointSlice::new(key.clone(), "web-1", n == 1)
            };
            snapshot.slices.insert((key.clone(), format!("web-{n}").into()), Arc::new(slice));
        }
        snapshot
    }

    fn event(v6: bool, what: Counter, set: u32) -> FlowEvent {
        let at = |v4: &str, text: &str| {
            Addr::from(if v6 { text } else { v4 }.parse::<IpAddr>().unwrap())
        };
        let client = at("10.244.1.5", "fd00:244:1::5");
        FlowEvent {
            client,
            dialled: at("10.96.0.7", "fd00:96::7"),
            backend: at("10.244.2.9", "fd00:244:2::9"),
            seen_as: client,
            client_port: 4_000_u16.to_be_bytes(),
            dialled_port: 80_u16.to_be_bytes(),
            backend_port: 8_080_u16.to_be_bytes(),
            seen_as_port: 4_000_u16.to_be_bytes(),
            set,
            what: what as u32,
            protocol: 6,
            path: path::PACKET,
            ..FlowEvent::default()
        }
    }

    fn owners() -> BTreeMap<u32, SetKey> {
        let service = ObjectKey::new("default", "web");
        let key = SetKey { service, port: "http".into(), protocol: Protocol::Tcp, ipv6: false };
        [(3, key)].into()
    }

    #[test]
    fn services_and_pods_have_their_names() {
        for v6 in [false, true] {
            let mut names = Names::new(0);
            let client = if v6 { "fd00:244:1::5" } else { "10.244.1.5" };
            names.learn_pods(
                &[(ObjectKey::new("a", "client"), vec![client.parse().unwrap()])].into(),
            );
            let told =
                names.event(&event(v6, Counter::FlowCreated, 3), &owners(), &cluster("web-x"));
            assert_eq!((&*told.source_pod, &*told.service), ("a/client", "default/web"));
            assert_eq!((&*told.port, &*told.backend_pod), ("http", "default/web-x"));
            assert_eq!((told.verdict, &*told.reason), (Verdict::Translated, "flow_created"));
            assert_eq!(told.masqueraded, "");
            // It left its service meanwhile.
            let gone = Snapshot::default();
            let told = names.event(&event(v6, Counter::FlowCreated, 3), &owners(), &gone);
            assert_eq!(told.backend_pod, "default/web-x");
            // Another pod has the address now.
            let told =
                names.event(&event(v6, Counter::FlowCreated, 3), &owners(), &cluster("web-y"));
            assert_eq!(told.backend_pod, "default/web-y");
        }
    }

    #[test]
    fn what_has_no_set_is_named_by_its_address() {
        for v6 in [false, true] {
            let refused = FlowEvent {
                backend: Addr::default(),
                backend_port: [0; 2],
                ..event(v6, Counter::Rejected, NO_SET)
            };
            let mut names = Names::new(0);
            let told = names.event(&refused, &BTreeMap::new(), &cluster("web-x"));
            assert_eq!((&*told.service, &*told.backend), ("default/web", ""));
            assert_eq!(told.verdict, Verdict::Refused);
            // A later state of the cluster has no such service.
            let later = Snapshot { revision: 2, ..Snapshot::default() };
            assert_eq!(names.event(&refused, &BTreeMap::new(), &later).service, "");
        }
    }

    #[test]
    fn another_source_is_shown_and_a_client_without_a_port_has_none() {
        let seen_as = Addr::from("172.30.0.11".parse::<IpAddr>().unwrap());
        let masqueraded = FlowEvent { seen_as, ..event(false, Counter::FlowCreated, 3) };
        let mut names = Names::new(0);
        let told = names.event(&masqueraded, &owners(), &Snapshot::default());
        assert_eq!(told.masqueraded, "172.30.0.11:4000");
        let portless = FlowEvent {
            client_port: [0; 2],
            seen_as_port: [0; 2],
            ..event(true, Counter::FlowCreated, 3)
        };
        let told = names.event(&portless, &owners(), &Snapshot::default());
        assert_eq!((&*told.source, &*told.masqueraded), ("fd00:244:1::5", ""));
    }

    #[test]
    fn the_time_is_that_of_the_clock() {
        let before = SystemTime::now();
        let names = Names::new(5_000_000_000);
        let told: Timestamp = names.time(5_000_000_000).parse().unwrap();
        let told = SystemTime::from(told);
        assert!(told >= before - Duration::from_secs(1) && told <= SystemTime::now());
    }
}
