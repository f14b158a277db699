//! What the packet programs do with a connection's first packet: `ebpf/programs/src/tc`, in words.

use std::net::IpAddr;

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    conntrack::{Flow, FlowKey, flow_flags},
    flow_state::{self, Need},
    nat::{self, Facts, Origin},
    node::node_config_flags,
    packet::tcp_flags,
    select::{self, Unserved, Window},
    service::{Frontend, frontend_flags},
    tracking::{self, FlowBackends},
};

use super::{
    Client, Dialled,
    answer::{Candidate, Exception, Masquerade, Outcome, Path, PathName, Pinned},
    candidates, endpoint, kept,
    live::Live,
    nothing, path,
    socket::foreign,
    window_name,
};

/// Explains the packet path.
pub(super) fn explain(
    live: &impl Live,
    client: &Client,
    origin: Origin,
    dialled: &Dialled,
    frontend: Option<&Frontend>,
) -> Path {
    if !matches!(dialled.protocol, protocol::TCP | protocol::UDP) {
        return at_packet(
            Outcome::Untouched,
            "SCTP is not translated yet: its packets go to the node's stack as they are",
        );
    }
    if let Some((key, flow)) = existing(live, client, dialled) {
        return existing_flow(live, &key, &flow);
    }
    // What the program at the loopback interface looks at.
    let asks_names = dialled.protocol == protocol::UDP
        && frontend.is_some_and(|it| it.flags & frontend_flags::PREFER_LOCAL != 0);
    let is_own = live.node_addr_flags(&dialled.addr).is_some();
    if client.here && origin == Origin::Node && is_own && !asks_names {
        return at_packet(
            Outcome::Unused,
            "what the node sends to its own addresses goes by its loopback interface, where nothing but \
             cluster DNS is looked at",
        );
    }
    let Some(frontend) = frontend else { return unserved(live, dialled) };
    if is_answered_here(live, frontend, &dialled.addr, (dialled.port, dialled.protocol)) {
        return at_packet(Outcome::Local, "a listener of this node answers for the address");
    }
    let (config, v4) = (live.node_config(), dialled.addr.is_v4());
    let own = Some(config.own(v4)).filter(|_| client.here && origin != Origin::Pod);
    if !select::admits(live, frontend, (&client.addr, &dialled.addr), own) {
        return at_packet(
            Outcome::Dropped,
            "the client is outside of the service's loadBalancerSourceRanges",
        );
    }
    let facts = Facts { origin, frontend: frontend.flags, config: config.flags, v4 };
    let bound = facts.bound_by_external_policy();
    let window = if bound { Window::outside(frontend) } else { Window::nearby(frontend) };
    let slots = match select::slots(live, frontend, window) {
        Ok(slots) => slots,
        Err(reason) => return nothing(PathName::Packet, reason, dialled, window),
    };
    let candidates = candidates(live, &slots, v4);
    if candidates.is_empty() {
        let reason = select::NoBackend::ForeignBackend;
        return nothing(PathName::Packet, reason, dialled, window);
    }
    let address = nat::masquerade_address(&config, v4);
    let goes_on = |candidate: &Candidate| is_node(live, candidate);
    if address.is_none() && facts.masquerades(false) && !candidates.iter().any(goes_on) {
        return at_packet(
            Outcome::Dropped,
            "its source has to be rewritten, and the Node has no address of this family",
        );
    }
    let masquerade = masquerade(live, (client, dialled), &facts, address, &candidates);
    let pinned = kept(live, *nat::client(origin, &client.addr, &config), &slots, v4);
    let outcome = if pinned.is_some() { Outcome::Pinned } else { Outcome::Balanced };
    Path {
        window: Some(window_name(window)),
        candidates,
        pinned,
        masquerade: Some(masquerade),
        ..at_packet(outcome, because(frontend, &facts, bound))
    }
}

fn at_packet(outcome: Outcome, reason: impl Into<String>) -> Path {
    path(PathName::Packet, outcome, reason)
}

/// Why these are the candidates.
fn because(frontend: &Frontend, facts: &Facts, bound: bool) -> &'static str {
    let external = frontend.flags & frontend_flags::EXTERNAL != 0;
    let local = frontend.flags & frontend_flags::KEEP_SOURCE != 0;
    match (external, bound, local, facts.origin) {
        (false, ..) => "a cluster IP: the internal traffic policy says which endpoints",
        (true, true, _, Origin::PodElsewhere) => {
            "a pod of another node dials an external address with externalTrafficPolicy Local: \
             endpoints of this node alone, since those of others would answer it directly"
        }
        (true, true, ..) => {
            "an external address dialled from outside: the external traffic policy says which \
             endpoints"
        }
        (true, false, true, Origin::Pod) => {
            "externalTrafficPolicy Local does not bind this node's pods"
        }
        (true, false, true, _) => "externalTrafficPolicy Local does not bind the node itself",
        (true, false, false, _) => "an external address dialled from inside of the cluster",
    }
}

/// Whether a candidate is this node itself.
fn is_node(live: &impl Live, candidate: &Candidate) -> bool {
    address_of(candidate).is_some_and(|addr| live.node_addr_flags(&addr).is_some())
}

fn address_of(candidate: &Candidate) -> Option<Addr> {
    Some(candidate.address.parse::<std::net::SocketAddr>().ok()?.ip().into())
}

/// What becomes of the source, for most candidates and for those that differ.
fn masquerade(
    live: &impl Live,
    (client, dialled): (&Client, &Dialled),
    facts: &Facts,
    address: Option<Addr>,
    candidates: &[Candidate],
) -> Masquerade {
    let text = |addr: Addr| IpAddr::from(addr).to_string();
    let rewritten = address.map_or(String::new(), text);
    let masquerades = facts.masquerades(false);
    let usual = if masquerades { rewritten.clone() } else { String::new() };
    let exception = |candidate: &Candidate| {
        let hairpin = address_of(candidate)?.is(&client.addr);
        let (address, reason) = if is_node(live, candidate) {
            // Only what leaves by an uplink and comes back meets the programs.
            if client.here && facts.origin == Origin::Node {
                let reason = "the backend is this node itself, which takes nothing from its own \
                              address that comes in: the service's stands for it";
                (text(dialled.addr), reason)
            } else {
                (String::new(), "the backend is this node itself")
            }
        } else if !facts.masquerades(hairpin) {
            return None;
        } else if let Some(source) = in_pods_network(live, &address_of(candidate)?) {
            let reason = "its way leads through the network of another plugin's pods, where this \
                          node has this address";
            (text(source), reason)
        } else if hairpin {
            let reason = "the backend is the client itself, whose answer must come back here";
            (rewritten.clone(), reason)
        } else {
            return None;
        };
        let (candidate, reason) = (candidate.address.clone(), reason.to_owned());
        (address != usual).then_some(Exception { candidate, address, reason })
    };
    let exceptions = candidates.iter().filter_map(exception).collect();
    let reason = source_reason(facts, masquerades).to_owned();
    Masquerade { address: usual, reason, exceptions }
}

/// The address that this node has in the network of another plugin's pods, where the way to a backend
/// leads through that.
fn in_pods_network(live: &impl Live, backend: &Addr) -> Option<Addr> {
    let way = live.way(backend)?;
    let leads_there = way.next_hop != *backend && select::is_of_pods(live, &way.source);
    leads_there.then_some(way.source)
}

/// Why the source is rewritten or kept, where the backend is neither the client nor this node.
fn source_reason(facts: &Facts, masquerades: bool) -> &'static str {
    let external = facts.frontend & frontend_flags::EXTERNAL != 0;
    let all = facts.config & node_config_flags::MASQUERADE_ALL != 0;
    match (external, masquerades) {
        (true, true) if facts.frontend & frontend_flags::KEEP_SOURCE == 0 => {
            "externalTrafficPolicy Cluster: the backend's answer must come back through this node"
        }
        (true, true) => "the node itself dials an external address",
        (true, false) => "externalTrafficPolicy Local keeps the client's address",
        (false, true) if all => "masqueradeAll is set",
        (false, true) => "the client is no pod: the answer must come back through this node",
        (false, false) if !facts.detects_pods() => {
            "pods can't be told from others, so nobody is masqueraded"
        }
        (false, false) => "a pod keeps its address towards a cluster IP",
    }
}

/// An address that has no frontend.
fn unserved(live: &impl Live, dialled: &Dialled) -> Path {
    match select::unserved(live, dialled.addr) {
        Unserved::Foreign => at_packet(Outcome::Untouched, foreign(live, dialled.addr)),
        Unserved::UnknownPort if dialled.protocol == protocol::TCP => at_packet(
            Outcome::Refused,
            "the service that has this address has no such port: answered with a TCP reset",
        ),
        Unserved::UnknownPort => at_packet(
            Outcome::Refused,
            "the service that has this address has no such port: answered with ICMP port \
             unreachable",
        ),
        Unserved::Unallocated => at_packet(
            Outcome::Dropped,
            "the address is in a range of services and no service has it",
        ),
    }
}

/// The flow of this very connection, where its port was given.
fn existing(live: &impl Live, client: &Client, dialled: &Dialled) -> Option<(FlowKey, Flow)> {
    let key = FlowKey {
        source: client.addr,
        destination: dialled.addr,
        source_port: client.port?.to_be_bytes(),
        destination_port: dialled.port.to_be_bytes(),
        protocol: dialled.protocol,
        pad: [0; 3],
    };
    let flow = live.flow(&key)?;
    let original = flow.flags & flow_flags::ORIGINAL != 0;
    let lives = !flow_state::silent(key.protocol, &flow, live.now_s(), Need::None);
    // Where what comes next opens a new flow, that is what the question is about.
    let anew = if is_deleted(live, &key, &flow) {
        flow_state::reopens(key.protocol, tcp_flags::SYN, &flow)
    } else {
        tracking::begins_anew(Backends(live), &key, tcp_flags::SYN, &flow, live.now_s())
    };
    (original && lives && !anew).then_some((key, flow))
}

/// Whether the node itself answers at present for what is dialled.
fn is_answered_here(
    live: &impl Live,
    frontend: &Frontend,
    dialled: &Addr,
    (port, protocol): (u16, u8),
) -> bool {
    frontend.flags & frontend_flags::PREFER_LOCAL != 0 && live.listens(dialled, port, protocol)
}

/// The tables, as connection tracking asks them.
struct Backends<'a, L>(&'a L);

impl<L> Clone for Backends<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Backends<'_, L> {}

impl<L: Live> FlowBackends for Backends<'_, L> {
    fn has_backend(self, flow: &Flow) -> bool {
        self.0
            .backend(flow.set, flow.backend, flow.destination.is_v4())
            .is_some_and(|found| found.is_at(&flow.destination, flow.destination_port))
    }

    fn leads(self, key: &FlowKey, flow: &Flow) -> bool {
        let to = &key.destination;
        let port = u16::from_be_bytes(key.destination_port);
        select::frontend(self.0, *to, key.destination_port, key.protocol).is_some_and(|it| {
            it.set == flow.set && !is_answered_here(self.0, &it, to, (port, key.protocol))
        })
    }

    fn is_deleted(self, flow: &Flow) -> bool {
        self.0.is_gone(flow.backend, &flow.destination, flow.destination_port)
    }
}

/// Whether the flow is a connection to a backend that was deleted.
fn is_deleted(live: &impl Live, key: &FlowKey, flow: &Flow) -> bool {
    key.protocol == protocol::TCP && tracking::is_deleted(Backends(live), flow)
}

fn existing_flow(live: &impl Live, key: &FlowKey, flow: &Flow) -> Path {
    if is_deleted(live, key, flow) {
        return at_packet(
            Outcome::Refused,
            "the backend of this connection was deleted: its next segment is answered with a TCP \
             reset",
        );
    }
    let masqueraded = flow.flags & flow_flags::REWRITE_SOURCE != 0;
    let address = if masqueraded { IpAddr::from(flow.source).to_string() } else { String::new() };
    let pinned = Pinned {
        address: endpoint(flow.destination, flow.destination_port).to_string(),
        pod: None,
        reason: format!(
            "an existing flow of {}, which goes where its first packet went",
            endpoint(key.source, key.source_port)
        ),
    };
    let masquerade = Masquerade {
        address,
        reason: "decided when the flow was opened".to_owned(),
        exceptions: Vec::new(),
    };
    Path {
        pinned: Some(pinned),
        masquerade: Some(masquerade),
        ..at_packet(Outcome::Pinned, "the connection is in the packet path's table")
    }
}
