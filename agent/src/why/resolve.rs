//! From names to addresses, and back: what a question means in the cluster as the agent knows it,
//! and an explanation with the names of services and pods in it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
};

use mizzen_ebpf_abi::{
    addr::Addr,
    conntrack::{self, FlowKey, flow_flags},
    flow_state::{self, Need},
    nat::{self, Origin},
    node::node_config_flags,
    select,
    service::frontend_flags,
};

use super::{
    Client, Dialled, Explanation,
    answer::{self, Answer, PathName},
    endpoint,
    live::Live,
    question::{Destination, PortName, Source, Target},
};
use crate::{
    desired::{SetKey, service::protocol_number},
    model::{
        ObjectKey,
        endpoints::PodName,
        service::{Protocol, Service, ServicePort, TrafficPolicy},
        snapshot::Snapshot,
    },
};

/// Answers to one question at most: what it names beyond is left out.
const ANSWERS_MAX: usize = 64;
/// Flows that an answer shows at most.
const FLOWS_MAX: usize = 10;

/// What names mean on this node.
#[derive(Debug)]
pub struct Names<'a> {
    /// This node.
    pub node: &'a str,
    /// The cluster.
    pub snapshot: &'a Snapshot,
    /// The pods that this node's agent connected, with their addresses.
    pub pods: &'a BTreeMap<ObjectKey, Vec<IpAddr>>,
}

/// A question that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such pod.
    #[error(
        "pod {0} was not connected by this node's agent and is behind no service: give its address"
    )]
    Pod(ObjectKey),
    /// The node has no address.
    #[error("this node's addresses are not known yet, see `mizzen status`")]
    Node,
    /// No such service.
    #[error("there is no service {0}")]
    Service(ObjectKey),
    /// A service whose name leads to addresses of others.
    #[error("service {0} has no cluster IP: its name leads to {1}, which no proxy translates")]
    Nameless(ObjectKey, &'static str),
    /// A service that someone else serves.
    #[error("service {0} is another proxy's, by its label")]
    Foreign(ObjectKey),
    /// No such port.
    #[error("service {service} has no such port; it has {ports}")]
    Port {
        /// The service.
        service: ObjectKey,
        /// What it has.
        ports: String,
    },
    /// Client and destination can't meet.
    #[error("the client and the destination have no address family in common")]
    Families,
}

/// One connection that the question is about.
#[derive(Clone, Debug)]
pub struct Case {
    /// Who dials.
    pub client: Client,
    /// Its name, where it is a pod that is known.
    pub pod: Option<ObjectKey>,
    /// What is dialled.
    pub dialled: Dialled,
}

/// The connections that a question is about.
pub fn cases(
    live: &impl Live,
    names: &Names<'_>,
    source: &Source,
    destination: &Destination,
) -> Result<Vec<Case>, ResolveError> {
    let dialled = dialled(names, destination)?;
    let (clients, port) = clients(live, names, source)?;
    let mut cases = Vec::new();
    for (at, protocol) in dialled {
        for addr in clients.iter().filter(|addr| addr.is_ipv4() == at.is_ipv4()) {
            let here = is_here(live, names, *addr);
            let bound = !matches!(source, Source::Node);
            let addr = if bound { (*addr).into() } else { routed(live, *addr, at.ip()) };
            let client = Client { addr, port, here, bound };
            let pod = match source {
                Source::Pod(key) => Some(key.clone()),
                Source::Node => None,
                Source::Address(address, _) => pod_at(names, *address),
            };
            let (addr, port) = (at.ip().into(), at.port());
            cases.push(Case { client, pod, dialled: Dialled { addr, port, protocol } });
        }
    }
    cases.truncate(ANSWERS_MAX);
    if cases.is_empty() { Err(ResolveError::Families) } else { Ok(cases) }
}

/// The client's addresses, and its port where one connection is meant.
fn clients(
    live: &impl Live,
    names: &Names<'_>,
    source: &Source,
) -> Result<(Vec<IpAddr>, Option<u16>), ResolveError> {
    match source {
        Source::Address(addr, port) => Ok((vec![*addr], *port)),
        Source::Node => {
            let config = live.node_config();
            let of_family = |v4| nat::masquerade_address(&config, v4).map(IpAddr::from);
            let addrs: Vec<_> = [true, false].into_iter().filter_map(of_family).collect();
            if addrs.is_empty() { Err(ResolveError::Node) } else { Ok((addrs, None)) }
        }
        Source::Pod(key) => {
            let connected = names.pods.get(key).cloned().unwrap_or_default();
            let addrs = if connected.is_empty() { endpoints_of(names, key) } else { connected };
            if addrs.is_empty() { Err(ResolveError::Pod(key.clone())) } else { Ok((addrs, None)) }
        }
    }
}

/// The address that the node has towards another, where it may send from several: that of the route.
fn routed(live: &impl Live, first: IpAddr, to: IpAddr) -> Addr {
    let (several, first) = (node_config_flags::several_sources(to.is_ipv4()), first.into());
    if live.node_config().flags & several == 0 {
        return first;
    }
    let way = live.way(&to.into()).map(|way| way.source);
    way.filter(|from| !from.is_loopback() && live.node_addr_flags(from).is_some()).unwrap_or(first)
}

/// The addresses by which services know a pod.
fn endpoints_of(names: &Names<'_>, pod: &ObjectKey) -> Vec<IpAddr> {
    let mut addrs: Vec<_> = names.snapshot.addresses_of(pod).collect();
    addrs.sort();
    addrs.dedup();
    addrs
}

/// The pod of this node with an address.
fn pod_at(names: &Names<'_>, addr: IpAddr) -> Option<ObjectKey> {
    names.pods.iter().find(|(_, addrs)| addrs.contains(&addr)).map(|(key, _)| key.clone())
}

/// Whether the sockets of who has the address are on this node.
fn is_here(live: &impl Live, names: &Names<'_>, addr: IpAddr) -> bool {
    let cidrs = names.snapshot.nodes.get(names.node).map(|node| &node.pod_cidrs);
    select::origin(live, addr.into(), false) == Origin::Node
        || live.is_pod_here(&addr.into())
        || live.pod_netns(&addr.into()).is_some()
        || cidrs.is_some_and(|cidrs| cidrs.iter().any(|cidr| cidr.contains(addr)))
}

/// The addresses and protocols that a destination means.
fn dialled(
    names: &Names<'_>,
    destination: &Destination,
) -> Result<Vec<(SocketAddr, u8)>, ResolveError> {
    let (key, port) = match &destination.target {
        Target::Address(at) => {
            let protocol = destination.protocol.unwrap_or(Protocol::Tcp);
            return Ok(vec![(*at, protocol_number(protocol))]);
        }
        Target::Service(key, port) => (key, port.as_ref()),
    };
    let missing = || ResolveError::Service(key.clone());
    let service = names.snapshot.services.get(key).ok_or_else(missing)?;
    if service.external_name.is_some() {
        return Err(ResolveError::Nameless(key.clone(), "another name"));
    }
    if service.foreign_proxy {
        return Err(ResolveError::Foreign(key.clone()));
    }
    if service.headless || service.cluster_ips.is_empty() {
        return Err(ResolveError::Nameless(key.clone(), "its endpoints"));
    }
    let ports = ports(service, port, destination.protocol)?;
    let of_port = |port: &ServicePort| {
        let protocol = protocol_number(port.protocol);
        let at = |ip: &IpAddr| ((*ip, port.port).into(), protocol);
        service.cluster_ips.iter().map(at).collect::<Vec<_>>()
    };
    Ok(ports.into_iter().flat_map(of_port).collect())
}

/// The ports of a service that are meant. Where nothing is said of the protocol, those of TCP, if
/// there are any.
fn ports<'a>(
    service: &'a Service,
    wanted: Option<&PortName>,
    protocol: Option<Protocol>,
) -> Result<Vec<&'a ServicePort>, ResolveError> {
    let meant = |port: &&ServicePort| match wanted {
        None => true,
        Some(PortName::Number(number)) => port.port == *number,
        Some(PortName::Name(name)) => *port.name == **name,
    };
    let spoken = |protocol| move |port: &&ServicePort| port.protocol == protocol;
    let mut ports: Vec<_> = service.ports.iter().filter(meant).collect();
    match protocol {
        Some(protocol) => ports.retain(spoken(protocol)),
        None if ports.iter().any(spoken(Protocol::Tcp)) => ports.retain(spoken(Protocol::Tcp)),
        None => {}
    }
    if ports.is_empty() {
        let name = |port: &ServicePort| match &*port.name {
            "" => format!("{}/{}", port.port, port.protocol),
            name => format!("{name}:{}/{}", port.port, port.protocol),
        };
        let ports = service.ports.iter().map(name).collect::<Vec<_>>().join(", ");
        return Err(ResolveError::Port { service: service.key.clone(), ports });
    }
    Ok(ports)
}

/// An explanation as an answer, with the names that are known. `owner` is the set's service port.
pub fn answer(
    names: &Names<'_>,
    case: &Case,
    explanation: Explanation,
    owner: Option<&SetKey>,
    flows: Vec<answer::Flow>,
) -> Answer {
    let Case { client, dialled, pod } = case;
    let mut paths = vec![explanation.socket, explanation.packet];
    if let Some(owner) = owner {
        for path in &mut paths {
            name_pods(names.snapshot, owner, path);
        }
    }
    let decided = match explanation.decides {
        PathName::Socket => &paths[0],
        PathName::Packet => &paths[1],
    };
    Answer {
        source: answer::Source {
            address: match client.port {
                Some(port) => endpoint(client.addr, port.to_be_bytes()).to_string(),
                None => client.addr.to_string(),
            },
            kind: match explanation.origin {
                Origin::Pod | Origin::PodElsewhere => "pod",
                Origin::Node => "node",
                Origin::Outside => "outside",
            }
            .to_owned(),
            pod: pod.as_ref().map(ToString::to_string).unwrap_or_default(),
            here: client.here,
        },
        destination: answer::Destination {
            address: endpoint(dialled.addr, dialled.port.to_be_bytes()).to_string(),
            protocol: protocol_name(dialled.protocol),
        },
        service: owner.and_then(|owner| service(names, owner, dialled, explanation.frontend_flags)),
        decides: explanation.decides,
        outcome: decided.outcome,
        paths,
        flows,
    }
}

/// The service of a set, with the kind of the address that was dialled; of a host port, the pod.
fn service(
    names: &Names<'_>,
    owner: &SetKey,
    dialled: &Dialled,
    flags: u32,
) -> Option<answer::Service> {
    let policy = |policy| match policy {
        TrafficPolicy::Cluster => "Cluster".to_owned(),
        TrafficPolicy::Local => "Local".to_owned(),
    };
    let named = |kind: &str, internal, external, session_affinity_seconds| answer::Service {
        namespace: owner.service.namespace.to_string(),
        name: owner.service.name.to_string(),
        port: owner.port.to_string(),
        kind: kind.to_owned(),
        internal_traffic_policy: policy(internal),
        external_traffic_policy: policy(external),
        session_affinity_seconds,
        source_ranges: flags & frontend_flags::SOURCE_RANGES != 0,
    };
    if flags & frontend_flags::HOST_PORT != 0 {
        return Some(named("HostPort", TrafficPolicy::Cluster, TrafficPolicy::Local, 0));
    }
    let object = names.snapshot.services.get(&owner.service)?;
    let kind = kind(object, dialled.addr.into(), flags);
    Some(named(kind, object.internal_policy, object.external_policy, object.affinity_s))
}

/// What an address is to a service.
pub fn kind(service: &Service, addr: IpAddr, flags: u32) -> &'static str {
    if flags & frontend_flags::NODE_PORT != 0 {
        "NodePort"
    } else if flags & frontend_flags::EXTERNAL == 0 {
        "ClusterIP"
    } else if service.load_balancer_ips.contains(&addr) {
        "LoadBalancer"
    } else {
        "ExternalIP"
    }
}

fn name_pods(snapshot: &Snapshot, owner: &SetKey, path: &mut answer::Path) {
    let namespace = &owner.service.namespace;
    let endpoints: BTreeMap<IpAddr, PodName<'_>> = snapshot
        .endpoints_of(&owner.service)
        .filter_map(|(slice, endpoint)| Some((endpoint.address, slice.pod(endpoint)?)))
        .collect();
    let pod = |at: &str| {
        let at = at.parse::<SocketAddr>().ok()?;
        endpoints.get(&at.ip()).map(|name| format!("{namespace}/{name}"))
    };
    for candidate in &mut path.candidates {
        candidate.pod = pod(&candidate.address);
    }
    if let Some(pinned) = &mut path.pinned {
        pinned.pod = pod(&pinned.address);
    }
}

/// The live flows of a client to a destination that the packet path has in its table, each with its
/// set.
pub fn flows(live: &impl Live, client: &Client, dialled: &Dialled) -> Vec<(u32, answer::Flow)> {
    let mut found = Vec::new();
    live.each_flow(&mut |key, flow| {
        let asked = key.source.is(&client.addr)
            && key.destination.is(&dialled.addr)
            && key.destination_port == dialled.port.to_be_bytes()
            && key.protocol == dialled.protocol
            && client.port.is_none_or(|port| key.source_port == port.to_be_bytes());
        if asked && let Some(shown) = shown_flow(live, key, flow) {
            found.push((flow.set, shown));
        }
        if found.len() < FLOWS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}

/// An entry as a flow; none where it is the answers' entry, or where the flow is over.
pub fn shown_flow(live: &impl Live, key: &FlowKey, flow: &conntrack::Flow) -> Option<answer::Flow> {
    if flow.flags & flow_flags::ORIGINAL == 0 {
        return None;
    }
    let now_s = live.now_s();
    let peer = live.flow(&key.rewritten(flow).reversed());
    let silent = |flow: &conntrack::Flow| flow_state::silent(key.protocol, flow, now_s, Need::None);
    if silent(flow) && peer.as_ref().is_none_or(silent) {
        return None;
    }
    let idle = |flow: &conntrack::Flow| now_s.saturating_sub(flow.seen_s);
    let masqueraded = flow.flags & flow_flags::REWRITE_SOURCE != 0;
    let source = endpoint(flow.source, flow.source_port).to_string();
    Some(answer::Flow {
        protocol: protocol_name(key.protocol),
        source: endpoint(key.source, key.source_port).to_string(),
        destination: endpoint(key.destination, key.destination_port).to_string(),
        backend: endpoint(flow.destination, flow.destination_port).to_string(),
        masqueraded: if masqueraded { source } else { String::new() },
        service: String::new(),
        state: state(flow).to_owned(),
        idle_seconds: peer.as_ref().map_or(idle(flow), |peer| idle(peer).min(idle(flow))),
    })
}

/// A flow's state in a word.
fn state(flow: &conntrack::Flow) -> &'static str {
    use flow_state::{
        is_reset,
        state::{FIN, SEEN, UNCONFIRMED},
    };
    let (either, both) = (flow.state | flow.peer_state, flow.state & flow.peer_state);
    if is_reset(flow.state, flow.peer_state) || is_reset(flow.peer_state, flow.state) {
        "reset"
    } else if both & FIN != 0 {
        "closed"
    } else if both & SEEN == 0 {
        "opening"
    } else if either & UNCONFIRMED != 0 {
        "answered"
    } else if either & FIN != 0 {
        "closing"
    } else {
        "established"
    }
}

/// A protocol as it is shown: its name, else its number.
pub fn protocol_name(protocol: u8) -> String {
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let name = known.into_iter().find(|known| protocol_number(*known) == protocol);
    name.map_or_else(|| protocol.to_string(), |name| name.to_string())
}
