//! What host ports become, and who has a port that several ask for.

use std::sync::Arc;

use super::*;
use crate::{
    desired::{Change, Desired, LocalAddress, NodeFacts, Settings},
    model::{
        node::Node,
        pod::HostPortPods,
        service::{Protocol, Service, ServicePort},
        snapshot::{Snapshot, Synced},
    },
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn host_port(address: &str, port: u16) -> HostPort {
    let address = (!address.is_empty()).then(|| ip(address));
    HostPort { protocol: Protocol::Tcp, address, port, container_port: 80 }
}

fn pod(serial: u64, ports: &[HostPort]) -> Arc<HostPortPod> {
    let last = u8::try_from(serial).unwrap();
    let addresses = vec![[10, 244, 1, last].into(), ip(&format!("fd00:244:1::{last:x}"))];
    Arc::new(HostPortPod { addresses, ports: ports.iter().copied().collect(), serial })
}

/// A node with the addresses 192.0.2.1, 198.51.100.1 and 2001:db8::1, of which the first and the last
/// take node ports.
struct Bench {
    desired: Desired,
    snapshot: Snapshot,
    pods: HostPortPods,
    addresses: Vec<&'static str>,
    /// What the changes so far add up to.
    held: BTreeMap<FrontendKey, (SetKey, u32)>,
}

impl Bench {
    fn new() -> Self {
        let settings = Settings { node_name: "n".into(), ..Settings::default() };
        let mut snapshot = Snapshot { synced: Synced::ALL, ..Snapshot::default() };
        let internal_ips = vec![ip("192.0.2.1"), ip("2001:db8::1")];
        let node = Node { internal_ips, ..Node::named("n") };
        snapshot.nodes.insert("n".into(), Arc::new(node));
        let addresses = vec!["192.0.2.1", "198.51.100.1", "2001:db8::1"];
        let (desired, pods, held) = (Desired::new(settings), HostPortPods::new(), BTreeMap::new());
        Self { desired, snapshot, pods, addresses, held }
    }

    fn put(&mut self, name: &str, pod: Option<Arc<HostPortPod>>) {
        let key = ObjectKey::new("default", name);
        match pod {
            Some(pod) => drop(self.pods.insert(key, pod)),
            None => drop(self.pods.remove(&key)),
        }
    }

    fn node_port(&mut self, port: Option<u16>) {
        let key = ObjectKey::new("default", "web");
        let service = Service {
            cluster_ips: vec![ip("10.96.0.7")],
            created_s: 1_700_000_000,
            ports: vec![ServicePort {
                name: "".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: port,
            }],
            ..Service::new(key.clone())
        };
        self.snapshot.services.insert(key, Arc::new(service));
    }

    fn update(&mut self) -> Change {
        self.snapshot.revision += 1;
        let local = |text: &&str| LocalAddress { addr: ip(text), ifindex: 2 };
        let facts = NodeFacts {
            addresses: self.addresses.iter().map(local).collect(),
            host_ports: Arc::new(self.pods.clone()),
        };
        let change = self.desired.update(&self.snapshot, &facts);
        // The changes so far and the whole say the same.
        let whole = self.desired.everything();
        for (frontend, led) in &change.frontends {
            match led {
                Some(led) => drop(self.held.insert(*frontend, led.clone())),
                None => drop(self.held.remove(frontend)),
            }
        }
        let led = whole.frontends.iter().filter_map(|(key, led)| Some((*key, led.clone()?)));
        assert_eq!(self.held, led.collect());
        for (key, set) in &change.sets {
            assert_eq!(whole.sets.get(key).cloned().flatten(), *set, "{key}");
        }
        change
    }

    /// Who has a port: `port at address`, and the owner.
    fn has(&mut self, addr: &str, port: u16) -> Option<String> {
        self.update();
        let key = FrontendKey::new(ip(addr).into(), port, 6);
        let whole = self.desired.everything();
        let (set, _) = whole.frontends.get(&key)?.clone()?;
        assert!(whole.sets[&set].is_some(), "a frontend leads to a set that is there");
        Some(set.service.to_string())
    }

    fn warnings(&self) -> String {
        let warnings = self.desired.warnings();
        let lines = warnings.iter().map(|w| format!("{}: {}", w.service, w.message));
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn cni_31_a_host_port_is_a_frontend_with_the_pod_alone_in_both_families() {
    let mut bench = Bench::new();
    bench.put("a", Some(pod(5, &[host_port("", 8080)])));
    let change = bench.update();
    let flags = frontend_flags::EXTERNAL | frontend_flags::KEEP_SOURCE | frontend_flags::HOST_PORT;
    for (any, backend) in [("0.0.0.0", "10.244.1.5"), ("::", "fd00:244:1::5")] {
        let key = FrontendKey::new(ip(any).into(), 8080, 6);
        let (set, led) = change.frontends[&key].clone().unwrap();
        assert_eq!((led, set.port.as_ref()), (flags, "8080"));
        assert_eq!(set.service, ObjectKey::new("default", "pod/a"));
        let set = change.sets[&set].as_ref().unwrap();
        let [slot] = set.slots[..] else { panic!("{set:?}") };
        assert_eq!((slot.addr, slot.port), (ip(backend), 80));
        let windows = [set.windows.internal, set.windows.external, set.windows.nearby];
        assert!(windows.iter().all(|window| (window.start, window.count) == (0, 1)));
    }
    assert_eq!(change.frontends.len(), 2);
    // The node's own sockets dial its loopback addresses, too.
    assert!(change.node.addrs.contains_key(&ip("127.0.0.1").into()));
    assert!(bench.update().is_empty(), "unchanged input changes nothing");
    bench.put("a", None);
    let change = bench.update();
    assert!(change.frontends.values().all(Option::is_none) && change.frontends.len() == 2);
    assert!(!change.node.addrs.contains_key(&ip("127.0.0.1").into()));
    let gone: BTreeSet<_> = change.deleted.values().flatten().copied().collect();
    assert_eq!(gone, [(ip("10.244.1.5"), 80), (ip("fd00:244:1::5"), 80)].into(), "flows are reset");
}

#[test]
fn cni_31_host_ips_open_that_address_of_the_node_and_no_other() {
    let mut bench = Bench::new();
    let ports = [
        host_port("198.51.100.1", 81),
        host_port("2001:db8::1", 82),
        host_port("0.0.0.0", 83),
        host_port("::", 84),
        host_port("127.0.0.1", 85),
        host_port("203.0.113.9", 86),
    ];
    bench.put("a", Some(pod(5, &ports)));
    let change = bench.update();
    let opened: BTreeSet<_> = change
        .frontends
        .keys()
        .map(|key| format!("{} {}", key.addr, u16::from_be_bytes(key.port)))
        .collect();
    let expected = ["198.51.100.1 81", "2001:db8::1 82", "0.0.0.0 83", ":: 84", "127.0.0.1 85"];
    assert_eq!(opened, expected.map(str::to_owned).into());
    assert!(bench.warnings().contains("default/pod/a: host port 86 at 203.0.113.9"));
    // An address that comes opens it, one that goes closes it.
    bench.addresses.push("203.0.113.9");
    assert_eq!(bench.has("203.0.113.9", 86).as_deref(), Some("default/pod/a"));
    bench.addresses.pop();
    assert_eq!(bench.has("203.0.113.9", 86), None);
}

#[test]
fn cni_31_of_two_pods_the_later_has_the_port_and_the_earlier_gets_it_back() {
    let mut bench = Bench::new();
    bench.put("z", Some(pod(5, &[host_port("", 8080), host_port("", 8081)])));
    bench.update();
    bench.put("a", Some(pod(6, &[host_port("", 8080)])));
    assert_eq!(bench.has("0.0.0.0", 8080).as_deref(), Some("default/pod/a"));
    assert_eq!(bench.has("0.0.0.0", 8081).as_deref(), Some("default/pod/z"), "the rest goes on");
    assert_eq!(bench.desired.host_ports_left_out(), 2, "in both families");
    assert!(bench.warnings().contains("default/pod/z: 0.0.0.0 port 8080 is left out"));
    bench.put("a", None);
    assert_eq!(bench.has("0.0.0.0", 8080).as_deref(), Some("default/pod/z"));
    assert_eq!(bench.desired.host_ports_left_out(), 0);
    // By age, not by name.
    bench.put("zz", Some(pod(7, &[host_port("", 8080)])));
    assert_eq!(bench.has("0.0.0.0", 8080).as_deref(), Some("default/pod/zz"));
}

#[test]
fn cni_31_a_node_port_goes_before_host_ports_at_any_address() {
    let mut bench = Bench::new();
    let ports = [host_port("", 30080), host_port("198.51.100.1", 30080)];
    bench.put("a", Some(pod(5, &ports)));
    bench.node_port(None);
    for addr in ["0.0.0.0", "::", "198.51.100.1"] {
        assert_eq!(bench.has(addr, 30080).as_deref(), Some("default/pod/a"), "{addr}");
    }
    bench.node_port(Some(30080));
    assert_eq!(bench.has("0.0.0.0", 30080).as_deref(), Some("default/web"));
    assert_eq!(bench.has("198.51.100.1", 30080), None, "the node port is there");
    assert_eq!(bench.has("::", 30080).as_deref(), Some("default/pod/a"), "it has no IPv6");
    assert_eq!(bench.desired.host_ports_left_out(), 2);
    let warnings = bench.warnings();
    for addr in ["0.0.0.0", "198.51.100.1"] {
        let wanted = format!("{addr} port 30080 is left out: default/web has it");
        assert!(warnings.contains(&wanted), "{warnings}");
    }
    bench.node_port(None);
    for addr in ["0.0.0.0", "::", "198.51.100.1"] {
        assert_eq!(bench.has(addr, 30080).as_deref(), Some("default/pod/a"), "{addr}");
    }
}

#[test]
fn a_pod_of_the_same_name_with_another_address_is_another_pod() {
    let mut bench = Bench::new();
    bench.put("a", Some(pod(5, &[host_port("", 8080)])));
    bench.update();
    bench.put("a", Some(pod(6, &[host_port("", 8080)])));
    let change = bench.update();
    let gone: BTreeSet<_> = change.deleted.values().flatten().copied().collect();
    assert_eq!(gone, [(ip("10.244.1.5"), 80), (ip("fd00:244:1::5"), 80)].into());
    // One more port of it is no other pod.
    bench.put("a", Some(pod(6, &[host_port("", 8080), host_port("", 8081)])));
    assert!(bench.update().deleted.is_empty());
}
