//! Every outcome, on tables in memory that the agent's own plan filled. What is expected is
//! kube-proxy's behaviour as the reference numbers it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::ControlFlow,
};

use mizzen_ebpf_abi::{
    affinity::Affinity,
    conntrack::{Flow, FlowKey, flow_flags},
    flow_state::state::{GONE, RST, SEEN},
    node::{
        NodeAddr, NodeConfig, PodNetns, cluster_range_flags, endpoint_flags, node_config_flags,
    },
    select,
    service::{Backend4, Frontend, FrontendKey, NO_SET, SetWord, backend_flags, frontend_flags},
};

use super::{live::Way, *};
use crate::{
    apply::{
        apply,
        lookup::Records,
        maps::{AddrRange, SourceRange, Tables},
        memory::MemoryMaps,
    },
    desired::{Desired, LocalAddress, NodeFacts, Settings},
    diff::{Known, diff},
    kube::{
        convert,
        state::{Change, ClusterState, Event},
    },
    model::{ObjectKey, snapshot::Snapshot},
};

mod flows;
mod names;
mod node;

const NOW_S: u32 = 1_000;
const NODE: &str = "192.0.2.1";
const NODE_V6: &str = "2001:db8::1";
/// More addresses of it, which are not by what others know it.
const SECOND: [&str; 2] = ["192.0.2.99", "2001:db8::99"];
/// A pod of this node that is a backend of `web`, one that is none, and those of another node.
const BACKEND: &str = "10.244.0.5";
const POD: &str = "10.244.0.9";
const REMOTE: &str = "10.244.1.5";
const OUTSIDE: &str = "198.51.100.7";
const ELSEWHERE: &str = "10.244.1.9";

/// Tables at work, in memory.
struct Memory {
    tables: Tables,
    pods: Vec<PodNetns>,
    affinity: BTreeMap<AffinityKey, Affinity>,
    flows: BTreeMap<FlowKey, Flow>,
    listeners: BTreeSet<FrontendKey>,
    ways: BTreeMap<IpAddr, Way>,
}

impl select::Tables for Memory {
    fn frontend(&self, key: &FrontendKey) -> Frontend {
        self.tables.frontend(key)
    }
    fn node_addr_flags(&self, addr: &Addr) -> Option<u32> {
        self.tables.node_addr_flags(addr)
    }
    fn cluster_range_flags(&self, addr: &Addr) -> u32 {
        self.tables.cluster_range_flags(addr)
    }
    fn source_ranges_hold(&self, set: u32, addr: &Addr) -> bool {
        self.tables.source_ranges_hold(set, addr)
    }
    fn set_word(&self, set: u32) -> SetWord {
        self.tables.set_word(set)
    }
    fn slot(&self, index: u32) -> u32 {
        self.tables.slot(index)
    }
    fn backend(&self, set: u32, id: u32, v4: bool) -> Option<select::Backend> {
        self.tables.backend(set, id, v4)
    }
}

impl Records for Memory {
    fn backend_flags(&self, id: u32, v4: bool) -> u16 {
        self.tables.backend_flags(id, v4)
    }
}

impl Live for Memory {
    fn node_config(&self) -> NodeConfig {
        self.tables.node_config
    }
    fn is_pod_here(&self, addr: &Addr) -> bool {
        self.pod_netns(addr).is_some()
    }
    fn pod_netns(&self, addr: &Addr) -> Option<PodNetns> {
        self.pods.iter().copied().find(|pod| pod.ipv4.is(addr) || pod.ipv6.is(addr))
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.get(key).copied()
    }
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key).copied()
    }
    fn each_flow(&self, visit: &mut dyn FnMut(&FlowKey, &Flow) -> ControlFlow<()>) {
        for (key, flow) in &self.flows {
            if visit(key, flow).is_break() {
                return;
            }
        }
    }

    fn listens(&self, addr: &Addr, port: u16, protocol: u8) -> bool {
        self.listeners.contains(&FrontendKey::new(*addr, port, protocol))
    }

    fn way(&self, to: &Addr) -> Option<Way> {
        self.ways.get(&IpAddr::from(*to)).copied()
    }

    fn now_s(&self) -> u32 {
        NOW_S
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const SERVICES: &str = "
- {name: web, spec: {clusterIPs: [10.96.0.7, 'fd00:96::7'], ports: [
    {name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]}}
- {name: local, spec: {clusterIPs: [10.96.0.8], externalTrafficPolicy: Local,
    internalTrafficPolicy: Local, externalIPs: [203.0.113.7], ports: [{port: 80, nodePort: 30081}]}}
- {name: far, spec: {clusterIPs: [10.96.0.9], externalTrafficPolicy: Local,
    internalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30082}]}}
- {name: empty, spec: {clusterIPs: [10.96.0.10], ports: [{port: 80, name: t},
    {port: 80, protocol: UDP, name: u}]}}
- {name: sticky, spec: {clusterIPs: [10.96.0.11, 'fd00:96::b'], sessionAffinity: ClientIP, ports: [{port: 80}]}}
- {name: ending, spec: {clusterIPs: [10.96.0.12], ports: [{port: 80}]}}
- {name: host, spec: {clusterIPs: [10.96.0.13], ports: [{port: 80, nodePort: 30083}]}}
- {name: headless, spec: {clusterIPs: [None], ports: [{port: 80}]}}
- {name: alias, spec: {type: ExternalName, externalName: x.example}}
";

const SLICES: &str = "
- {of: web, ports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}], endpoints: [
    {addresses: [10.244.0.5], nodeName: a, targetRef: {kind: Pod, name: web-0}},
    {addresses: [10.244.1.5], nodeName: b, targetRef: {kind: Pod, name: web-1}}]}
- {of: web, family: IPv6, ports: [{name: http, port: 8080}], endpoints: [
    {addresses: ['fd00:244:1::5'], nodeName: b}]}
- {of: local, ports: [{name: '', port: 8080}], endpoints: [{addresses: [10.244.0.5], nodeName: a},
    {addresses: [10.244.1.5], nodeName: b}]}
- {of: far, ports: [{name: '', port: 8080}], endpoints: [{addresses: [10.244.1.5], nodeName: b}]}
- {of: sticky, ports: [{name: '', port: 8080}], endpoints: [{addresses: [10.244.0.5], nodeName: a},
    {addresses: [10.244.1.5], nodeName: b}]}
- {of: sticky, family: IPv6, ports: [{name: '', port: 8080}], endpoints: [
    {addresses: ['fd00:244:1::5'], nodeName: b}]}
- {of: ending, ports: [{name: '', port: 8080}], endpoints: [{addresses: [10.244.1.5], nodeName: b,
    conditions: {ready: false, serving: true, terminating: true}}]}
- {of: host, ports: [{name: '', port: 8080}], endpoints: [{addresses: [192.0.2.1], nodeName: a},
    {addresses: [10.244.1.5], nodeName: b}]}
";

#[derive(serde::Deserialize)]
struct ServiceText {
    name: String,
    spec: serde_yaml_ng::Value,
}

#[derive(serde::Deserialize)]
struct SliceText {
    of: String,
    #[serde(default)]
    family: Option<String>,
    ports: serde_yaml_ng::Value,
    endpoints: serde_yaml_ng::Value,
}

fn snapshot() -> Snapshot {
    let mut state = ClusterState::default();
    let object = |kind: serde_json::Value| kind;
    let services: Vec<ServiceText> = serde_yaml_ng::from_str(SERVICES).unwrap();
    let services = services.into_iter().map(|service| {
        let object = object(serde_json::json!({
            "metadata": {"name": service.name, "namespace": "default"},
            "spec": serde_json::to_value(service.spec).unwrap(),
        }));
        convert::service(&serde_json::from_str(&object.to_string()).unwrap()).0.unwrap()
    });
    state.apply(Change::Services(Event::Replace(services.collect())));
    let slices: Vec<SliceText> = serde_yaml_ng::from_str(SLICES).unwrap();
    let slices = slices.into_iter().map(|slice| {
        let family = slice.family.unwrap_or_else(|| "IPv4".to_owned());
        let object = object(serde_json::json!({
            "metadata": {"name": format!("{}-{family}", slice.of), "namespace": "default",
                "labels": {"kubernetes.io/service-name": slice.of}},
            "addressType": family,
            "ports": serde_json::to_value(slice.ports).unwrap(),
            "endpoints": serde_json::to_value(slice.endpoints).unwrap(),
        }));
        convert::endpoint_slice(&serde_json::from_str(&object.to_string()).unwrap()).0.unwrap()
    });
    state.apply(Change::Slices(Event::Replace(slices.collect())));
    let nodes =
        [("a", vec![NODE, NODE_V6], "10.244.0.0/24"), ("b", vec!["192.0.2.2"], "10.244.1.0/24")];
    let nodes = nodes.map(|(name, addresses, cidr)| {
        let addresses: Vec<_> = addresses
            .into_iter()
            .map(|address| serde_json::json!({"type": "InternalIP", "address": address}))
            .collect();
        let object = object(serde_json::json!({"metadata": {"name": name},
            "spec": {"podCIDRs": [cidr]}, "status": {"addresses": addresses}}));
        convert::node(&serde_json::from_str(&object.to_string()).unwrap()).0.unwrap()
    });
    state.apply(Change::Nodes(Event::Replace(nodes.into())));
    state.apply(Change::ServiceCidrs(Event::Replace(Vec::new())));
    state.snapshot().clone()
}

/// The tables of node `a`; the range of services and its guards as the agent writes them.
fn memory(masquerade_all: bool) -> Memory {
    let settings = Settings {
        node_name: "a".into(),
        masquerade_all,
        snat_ports: (10_000, 29_999),
        ..Settings::default()
    };
    let address = |text| LocalAddress { addr: ip(text), ifindex: 2 };
    let addresses = [NODE, NODE_V6, SECOND[0], SECOND[1]].map(address);
    let facts = NodeFacts { addresses: addresses.into(), ..NodeFacts::default() };
    let mut desired = Desired::new(settings);
    let mut maps = MemoryMaps::default();
    let change = desired.update(&snapshot(), &facts);
    let plan = diff(&change, &mut Known::empty(crate::apply::maps::Room::default()));
    apply(&plan, &mut maps).unwrap();
    let mut tables = maps.tables().clone();
    let range = AddrRange { addr: ip("10.96.0.0").into(), prefix_len: 96 + 16 };
    tables.cluster_ranges.insert(range, cluster_range_flags::SERVICES);
    for last in 7..=13 {
        let guard = FrontendKey::guard(Addr::from_v4([10, 96, 0, last]));
        let value = Frontend::new(&guard, 0, frontend_flags::GUARD);
        tables.frontends.insert(guard, value);
    }
    let pod = |v4| PodNetns { ipv4: ip(v4).into(), ..PodNetns::default() };
    let (affinity, flows) = (BTreeMap::new(), BTreeMap::new());
    Memory {
        tables,
        pods: vec![pod(BACKEND), pod(POD)],
        affinity,
        flows,
        listeners: BTreeSet::new(),
        ways: BTreeMap::new(),
    }
}

/// What becomes of a connection; `here` by the address.
fn why(live: &Memory, client: &str, dialled: &str, protocol: u8) -> Explanation {
    let at: SocketAddr = dialled.parse().unwrap();
    let here = client.starts_with("10.244.0.")
        || [NODE, NODE_V6].contains(&client)
        || SECOND.contains(&client);
    let client = Client { addr: ip(client).into(), port: None, here, bound: true };
    explain(live, &client, &Dialled { addr: at.ip().into(), port: at.port(), protocol })
}

fn tcp(live: &Memory, client: &str, dialled: &str) -> Explanation {
    why(live, client, dialled, protocol::TCP)
}

/// The candidates without their ports.
fn hosts(path: &Path) -> BTreeSet<String> {
    let host = |candidate: &Candidate| candidate.address.parse::<SocketAddr>().unwrap().ip();
    path.candidates.iter().map(|candidate| host(candidate).to_string()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn masqueraded(path: &Path) -> &str {
    &path.masquerade.as_ref().unwrap().address
}

/// Set and backend id of an address that `frontend` leads to.
fn ids_of(live: &Memory, frontend: &str, backend: &str) -> (u32, u32) {
    let at: SocketAddr = frontend.parse().unwrap();
    let key = FrontendKey::new(at.ip().into(), at.port(), protocol::TCP);
    let set = live.tables.frontends[&key].set;
    let is = |addr: [u8; 4], owner: u32| owner == set && IpAddr::from(addr) == ip(backend);
    let found = live.tables.backends4.iter().find(|(_, record)| is(record.addr, record.set));
    (set, *found.unwrap().0)
}

#[test]
fn b20_a_pod_at_a_cluster_ip_has_all_endpoints_with_equal_chances() {
    let live = memory(false);
    let explained = tcp(&live, POD, "10.96.0.7:80");
    assert_eq!((explained.decides, explained.origin), (PathName::Socket, Origin::Pod));
    for path in [&explained.socket, &explained.packet] {
        assert_eq!(path.outcome, Outcome::Balanced);
        assert_eq!(path.window, Some(WindowName::Internal));
        assert_eq!(hosts(path), set(&[BACKEND, REMOTE]));
        assert!(path.candidates.iter().all(|c| (c.probability - 0.5).abs() < f64::EPSILON));
        assert_eq!(masqueraded(path), "");
        assert!(path.candidates.iter().any(|c| c.local && c.address.starts_with(BACKEND)));
    }
    let v6 = tcp(&live, NODE_V6, "[fd00:96::7]:80");
    assert_eq!(hosts(&v6.socket), set(&["fd00:244:1::5"]));
    assert_eq!(v6.socket.outcome, Outcome::Balanced);
}

#[test]
fn b26_b27_clients_outside_are_masqueraded_by_the_packet_path() {
    let live = memory(false);
    for (dialled, window) in
        [("10.96.0.7:80", WindowName::Internal), ("192.0.2.1:30080", WindowName::External)]
    {
        let explained = tcp(&live, OUTSIDE, dialled);
        assert_eq!((explained.decides, explained.origin), (PathName::Packet, Origin::Outside));
        assert_eq!(explained.socket.outcome, Outcome::Unused);
        assert_eq!(explained.packet.outcome, Outcome::Balanced);
        assert_eq!(explained.packet.window, Some(window), "{dialled}");
        assert_eq!(masqueraded(&explained.packet), NODE);
    }
    let v6 = tcp(&live, "2001:db8:9::9", &format!("[{NODE_V6}]:30080"));
    assert_eq!(masqueraded(&v6.packet), NODE_V6);
}

#[test]
fn b30_b33_b36_external_policy_local_binds_clients_outside_alone() {
    let live = memory(false);
    let outside = tcp(&live, OUTSIDE, "192.0.2.1:30081").packet;
    assert_eq!((hosts(&outside), masqueraded(&outside)), (set(&[BACKEND]), ""));
    let pod = tcp(&live, POD, "192.0.2.1:30081").packet;
    assert_eq!((hosts(&pod), masqueraded(&pod)), (set(&[BACKEND, REMOTE]), ""));
    assert_eq!(pod.window, Some(WindowName::Nearby));
    let node = tcp(&live, NODE, "203.0.113.7:80").packet;
    assert_eq!((hosts(&node), masqueraded(&node)), (set(&[BACKEND, REMOTE]), NODE));
    let elsewhere = tcp(&live, ELSEWHERE, "192.0.2.1:30081").packet;
    assert_eq!((hosts(&elsewhere), masqueraded(&elsewhere)), (set(&[BACKEND]), ""));
    assert!(elsewhere.reason.contains("a pod of another node"), "{}", elsewhere.reason);
    // But for that it is as any pod.
    for (dialled, source) in [("192.0.2.1:30080", NODE), ("10.96.0.7:80", "")] {
        let elsewhere = tcp(&live, ELSEWHERE, dialled).packet;
        assert_eq!(hosts(&elsewhere), set(&[BACKEND, REMOTE]), "{dialled}");
        assert_eq!(masqueraded(&elsewhere), source, "{dialled}");
    }
    // At its own address no packet of the node meets a program.
    let node = tcp(&live, NODE, "192.0.2.1:30081");
    assert_eq!((node.decides, node.packet.outcome), (PathName::Socket, Outcome::Unused));
    assert_eq!(hosts(&node.socket), set(&[BACKEND, REMOTE]));
}

#[test]
fn b82_v6_local_policies_without_a_local_endpoint_drop() {
    let live = memory(false);
    let outside = tcp(&live, OUTSIDE, "192.0.2.1:30082");
    assert_eq!((outside.decides, outside.packet.outcome), (PathName::Packet, Outcome::Dropped));
    assert!(outside.packet.reason.contains("policy is Local"), "{}", outside.packet.reason);
    let pod = tcp(&live, POD, "10.96.0.9:80");
    assert_eq!((pod.socket.outcome, pod.packet.outcome), (Outcome::Untouched, Outcome::Dropped));
    assert_eq!(pod.decides, PathName::Packet);
}

#[test]
fn b11_without_endpoints_tcp_is_refused_at_the_socket_and_udp_by_an_answer() {
    let live = memory(false);
    let stream = tcp(&live, POD, "10.96.0.10:80");
    assert_eq!((stream.decides, stream.socket.outcome), (PathName::Socket, Outcome::Refused));
    assert!(stream.socket.reason.contains("ECONNREFUSED"), "{}", stream.socket.reason);
    assert!(stream.packet.reason.contains("TCP reset"), "{}", stream.packet.reason);
    let datagram = why(&live, POD, "10.96.0.10:80", protocol::UDP);
    assert_eq!((datagram.decides, datagram.packet.outcome), (PathName::Packet, Outcome::Refused));
    assert!(datagram.packet.reason.contains("ICMP"), "{}", datagram.packet.reason);
}

#[test]
fn b8_b9_b10_other_ports_are_refused_and_other_addresses_dropped() {
    let live = memory(false);
    let port = tcp(&live, POD, "10.96.0.7:81");
    assert_eq!((port.decides, port.socket.outcome), (PathName::Socket, Outcome::Refused));
    assert_eq!(port.packet.outcome, Outcome::Refused);
    let protocol = why(&live, POD, "10.96.0.7:80", protocol::UDP);
    assert_eq!((protocol.decides, protocol.packet.outcome), (PathName::Packet, Outcome::Refused));
    let address = tcp(&live, POD, "10.96.5.5:80");
    assert_eq!((address.decides, address.packet.outcome), (PathName::Packet, Outcome::Dropped));
    assert_eq!(address.set, None);
}

/// As with a DNS cache of the node at the cluster's DNS address.
#[test]
fn f50_other_ports_of_a_cluster_ip_that_the_node_holds_are_its_own() {
    let mut live = memory(false);
    live.tables.node_addrs.insert(ip("10.96.0.7").into(), NodeAddr::default());
    for (dialled, protocol) in [("10.96.0.7:81", protocol::TCP), ("10.96.0.7:80", protocol::UDP)] {
        let explained = why(&live, POD, dialled, protocol);
        assert_eq!(explained.socket.outcome, Outcome::Untouched, "{dialled}");
        assert_eq!(explained.packet.outcome, Outcome::Untouched, "{dialled}");
        assert!(explained.packet.reason.contains("the node itself"), "{}", explained.packet.reason);
    }
    assert_eq!(hosts(&tcp(&live, POD, "10.96.0.7:80").socket), set(&[BACKEND, REMOTE]));
}

#[test]
fn what_is_no_service_stays_as_it_is() {
    let live = memory(false);
    for (dialled, said) in [("203.0.113.5:443", "no service"), ("192.0.2.1:22", "the node itself")]
    {
        let explained = tcp(&live, POD, dialled);
        assert_eq!(explained.socket.outcome, Outcome::Untouched);
        assert_eq!(explained.packet.outcome, Outcome::Untouched);
        assert!(explained.packet.reason.contains(said), "{}", explained.packet.reason);
    }
    assert_eq!(tcp(&live, POD, "127.0.0.1:30080").socket.outcome, Outcome::Unused);
}

#[test]
fn b51_b52_b53_source_ranges_bind_everyone() {
    let mut live = memory(false);
    let key = FrontendKey::new(ip("10.96.0.7").into(), 80, protocol::TCP);
    let balancer = FrontendKey::new(ip("203.0.113.80").into(), 80, protocol::TCP);
    let set = live.tables.frontends[&key].set;
    let flags = frontend_flags::EXTERNAL | frontend_flags::SOURCE_RANGES;
    live.tables.frontends.insert(balancer, Frontend::new(&balancer, set, flags));
    let range = AddrRange { addr: ip("198.51.100.0").into(), prefix_len: 96 + 24 };
    live.tables.source_ranges.insert(SourceRange { set, range });
    let outcome = |live: &Memory, client: &str| {
        let explained = tcp(live, client, "203.0.113.80:80");
        (explained.decides, explained.packet.outcome)
    };
    assert_eq!(outcome(&live, OUTSIDE), (PathName::Packet, Outcome::Balanced));
    assert_eq!(outcome(&live, "198.51.101.7"), (PathName::Packet, Outcome::Dropped));
    assert_eq!(outcome(&live, POD), (PathName::Packet, Outcome::Dropped));
    let node = AddrRange { addr: ip(NODE).into(), prefix_len: 128 };
    live.tables.source_ranges.insert(SourceRange { set, range: node });
    assert_eq!(outcome(&live, NODE), (PathName::Socket, Outcome::Balanced));
    // Whose the sockets are is not known: the packet path decides (D12).
    let pods = AddrRange { addr: ip("10.244.0.0").into(), prefix_len: 96 + 16 };
    live.tables.source_ranges.insert(SourceRange { set, range: pods });
    assert_eq!(outcome(&live, POD), (PathName::Socket, Outcome::Balanced));
    live.pods.clear();
    assert_eq!(outcome(&live, POD), (PathName::Packet, Outcome::Balanced));
}

#[test]
fn b71_b72_b75_session_affinity_pins_until_it_ends() {
    let mut live = memory(false);
    let (set, backend) = ids_of(&live, "10.96.0.11:80", REMOTE);
    let (_, foreign) = ids_of(&live, "10.96.0.7:80", REMOTE);
    let key = AffinityKey { client: ip(POD).into(), set };
    let keep = |backend, seen_s| Affinity { backend, seen_s, ..Affinity::default() };
    let pinned = |live: &Memory| {
        let explained = tcp(live, POD, "10.96.0.11:80");
        let of = |path: &Path| path.pinned.as_ref().map(|pinned| pinned.address.clone());
        assert_eq!(of(&explained.socket), of(&explained.packet), "B79b");
        let outcome = explained.socket.outcome;
        assert_eq!(outcome == Outcome::Pinned, explained.socket.pinned.is_some());
        of(&explained.socket)
    };
    assert_eq!(pinned(&live), None);
    live.affinity.insert(key, keep(backend, NOW_S - 100));
    assert_eq!(pinned(&live).as_deref(), Some("10.244.1.5:8080"));
    let reason = tcp(&live, POD, "10.96.0.11:80").socket.pinned.unwrap().reason;
    assert!(reason.contains("for 10700 s more"), "{reason}");
    live.affinity.insert(key, keep(foreign, NOW_S - 100));
    assert_eq!(pinned(&live), None, "a backend of another set");
    live.affinity.insert(key, keep(backend, NOW_S.wrapping_sub(10_801)));
    assert_eq!(pinned(&live), None, "too long ago");
}

#[test]
fn pods_that_opted_out_are_the_packet_paths() {
    let mut live = memory(false);
    live.pods[1].flags = endpoint_flags::NO_SOCKET_TRANSLATION;
    let explained = tcp(&live, POD, "10.96.0.7:80");
    assert_eq!((explained.decides, explained.socket.outcome), (PathName::Packet, Outcome::Unused));
    assert!(explained.socket.reason.contains("left alone"), "{}", explained.socket.reason);
    assert_eq!(explained.packet.outcome, Outcome::Balanced);
    let other = why(&live, BACKEND, "10.96.0.7:80", protocol::SCTP);
    assert_eq!(other.socket.outcome, Outcome::Unused);
    assert_eq!(other.packet.outcome, Outcome::Untouched, "no program reads it");
    assert!(other.packet.reason.contains("SCTP"), "{}", other.packet.reason);
}

#[test]
fn what_the_node_answers_itself_is_no_ones_backend() {
    let mut live = memory(false);
    let key = FrontendKey::new(ip("10.96.0.7").into(), 80, protocol::TCP);
    let set = live.tables.frontends[&key].set;
    live.tables.frontends.insert(key, Frontend::new(&key, set, frontend_flags::PREFER_LOCAL));
    // Its listener is away: the node's sockets and the pods' packets go to the endpoints.
    let explained = tcp(&live, POD, "10.96.0.7:80");
    assert_eq!(explained.socket.outcome, Outcome::Untouched);
    assert_eq!(
        (explained.decides, explained.packet.outcome),
        (PathName::Packet, Outcome::Balanced)
    );
    assert_eq!(tcp(&live, NODE, "10.96.0.7:80").socket.outcome, Outcome::Balanced);
    live.listeners.insert(key);
    for client in [POD, NODE] {
        let explained = tcp(&live, client, "10.96.0.7:80");
        let decided = (explained.decides, explained.socket.outcome);
        assert_eq!(decided, (PathName::Socket, Outcome::Local));
    }
    assert_eq!(tcp(&live, OUTSIDE, "10.96.0.7:80").packet.outcome, Outcome::Local);
}

#[test]
fn b2_b23_a_client_that_is_its_own_backend_is_masqueraded() {
    let live = memory(false);
    let hairpin = tcp(&live, BACKEND, "10.96.0.7:80").packet;
    let masquerade = hairpin.masquerade.unwrap();
    assert_eq!(masquerade.address, "");
    assert_eq!(masquerade.exceptions.len(), 1);
    assert_eq!(masquerade.exceptions[0].candidate, "10.244.0.5:8080");
    assert_eq!(masquerade.exceptions[0].address, NODE);
    // A backend that is the node itself is reached without masquerading.
    let host = tcp(&live, OUTSIDE, "192.0.2.1:30083").packet.masquerade.unwrap();
    assert_eq!(host.address, NODE);
    assert_eq!(host.exceptions[0].candidate, "192.0.2.1:8080");
    assert_eq!(host.exceptions[0].address, "");
}

#[test]
fn b47_b48_masquerading_follows_the_configuration() {
    let all = tcp(&memory(true), POD, "10.96.0.7:80").packet.masquerade.unwrap();
    assert_eq!(all.address, NODE);
    assert!(all.reason.contains("masqueradeAll"), "{}", all.reason);
    let mut blind = memory(false);
    blind.tables.node_config.flags |= node_config_flags::NO_POD_DETECTION_V6;
    let pod = tcp(&blind, POD, "192.0.2.1:30081");
    for path in [&pod.packet, &pod.socket] {
        assert_eq!(hosts(path), set(&[BACKEND, REMOTE]), "the other family is");
    }
    blind.tables.node_config.flags |= node_config_flags::NO_POD_DETECTION_V4;
    let outside = tcp(&blind, OUTSIDE, "10.96.0.7:80").packet;
    assert_eq!(masqueraded(&outside), "");
    let pod = tcp(&blind, POD, "192.0.2.1:30081");
    assert_eq!(hosts(&pod.packet), set(&[BACKEND]));
    assert_eq!(hosts(&pod.socket), set(&[BACKEND]));
    let node = tcp(&blind, NODE, "192.0.2.1:30081").socket;
    assert_eq!(hosts(&node), set(&[BACKEND, REMOTE]));
}

#[test]
fn b84_terminating_endpoints_are_told_apart() {
    let ending = tcp(&memory(false), POD, "10.96.0.12:80").socket;
    assert_eq!(ending.outcome, Outcome::Balanced);
    assert!(ending.candidates[0].terminating && !ending.candidates[0].local);
}

#[test]
fn tables_at_fault_are_called_so() {
    let mut live = memory(false);
    let (set, _) = ids_of(&live, "10.96.0.7:80", REMOTE);
    let (other, _) = ids_of(&live, "10.96.0.11:80", REMOTE);
    let word = live.tables.sets[&other];
    live.tables.sets.insert(set, word);
    let explained = tcp(&live, POD, "10.96.0.7:80");
    assert_eq!(explained.socket.outcome, Outcome::Faulty);
    assert!(explained.packet.reason.contains("mizzen diff"), "{}", explained.packet.reason);
}
