//! What the programs at sockets do with a connection: `ebpf/programs/src/socket`, in words.

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    nat::{self, Origin},
    node::{endpoint_flags, node_config_flags},
    select::{self, Unserved, Window},
    service::{Frontend, frontend_flags},
};

use super::{
    Client, Dialled,
    answer::{Masquerade, Outcome, Path, PathName},
    candidates, kept,
    live::Live,
    nothing, path, window_name,
};

/// Explains the socket path.
pub(super) fn explain(
    live: &impl Live,
    client: &Client,
    origin: Origin,
    dialled: &Dialled,
    frontend: Option<&Frontend>,
) -> Path {
    if let Some(reason) = left_alone(live, client, origin, dialled) {
        return left(Outcome::Unused, reason);
    }
    let Some(frontend) = frontend else { return unserved(live, dialled) };
    if frontend.flags & frontend_flags::PREFER_LOCAL != 0 {
        if live.listens(&dialled.addr, dialled.port, dialled.protocol) {
            return left(Outcome::Local, "a listener of this node answers for the address");
        }
        if origin != Origin::Node {
            return left(
                Outcome::Untouched,
                "while the node's own listener is away, the pod's packets are led to others",
            );
        }
    }
    // Where pods can't be told from others they are bound by the external policy (B47).
    let v4 = dialled.addr.is_v4();
    let blind = live.node_config().flags & node_config_flags::no_pod_detection(v4) != 0;
    let outside = blind && origin != Origin::Node;
    let window = if outside { Window::outside(frontend) } else { Window::nearby(frontend) };
    let slots = select::slots(live, frontend, window);
    // The node is a client by its own address; a pod by the one that its namespace is known by.
    let known = origin == Origin::Node || live.pod_netns(&client.addr).is_some();
    let ranges = frontend.flags & frontend_flags::SOURCE_RANGES != 0;
    if !known && (ranges || slots.is_ok_and(|slots| slots.affinity_s != 0)) {
        return left(
            Outcome::Untouched,
            "the choice depends on the client's address, and whose sockets these are is not known",
        );
    }
    if ranges && let Some(reason) = not_admitted(live, client, origin, dialled, frontend) {
        return left(Outcome::Untouched, reason);
    }
    let slots = match slots {
        Ok(slots) => slots,
        Err(reason) => return nothing(PathName::Socket, reason, dialled, window),
    };
    let candidates = candidates(live, &slots, v4);
    if candidates.is_empty() {
        let reason = select::NoBackend::ForeignBackend;
        return nothing(PathName::Socket, reason, dialled, window);
    }
    let keeper = *nat::client(origin, &client.addr, &live.node_config());
    let pinned = kept(live, keeper, &slots, v4);
    let outcome = if pinned.is_some() { Outcome::Pinned } else { Outcome::Balanced };
    let reason = match dialled.protocol {
        protocol::UDP => {
            "each socket chooses once by its cookie, and again when its backend leaves"
        }
        _ => "each connect() chooses at random",
    };
    let masquerade = Masquerade {
        address: String::new(),
        reason: "the source is chosen after the translation: the socket's own".to_owned(),
        exceptions: Vec::new(),
    };
    Path {
        window: Some(window_name(window)),
        candidates,
        pinned,
        masquerade: Some(masquerade),
        ..left(outcome, reason)
    }
}

/// Why a client is not known to be inside of the service's source ranges.
fn not_admitted(
    live: &impl Live,
    client: &Client,
    origin: Origin,
    dialled: &Dialled,
    frontend: &Frontend,
) -> Option<&'static str> {
    let (config, to) = (live.node_config(), &dialled.addr);
    let (from, own) = if origin == Origin::Node {
        let bound = if client.bound { client.addr } else { to.any_of_family() };
        let Some(from) = select::source_of_node(live, &config, &bound, to) else {
            return Some(
                "the service has source ranges, and which of the node's addresses a socket that is \
                 bound to none has is its routes' to tell: its packets are judged by theirs",
            );
        };
        (from, Some(config.own(to.is_v4())))
    } else {
        (client.addr, None)
    };
    let admitted = select::admits(live, frontend, (&from, to), own);
    (!admitted)
        .then_some("the client is outside of the service's source ranges: its packets are dropped")
}

fn left(outcome: Outcome, reason: impl Into<String>) -> Path {
    path(PathName::Socket, outcome, reason)
}

/// Why the client's sockets are not looked at, or this one is not.
fn left_alone(
    live: &impl Live,
    client: &Client,
    origin: Origin,
    dialled: &Dialled,
) -> Option<&'static str> {
    if !client.here {
        return Some("the client's sockets are not on this node");
    }
    if !matches!(dialled.protocol, protocol::TCP | protocol::UDP) {
        return Some("sockets are translated for TCP and UDP alone");
    }
    let opted_out = |pod: &mizzen_ebpf_abi::node::PodNetns| {
        pod.flags & endpoint_flags::NO_SOCKET_TRANSLATION != 0
    };
    if live.pod_netns(&client.addr).is_some_and(|pod| opted_out(&pod)) {
        return Some("the pod asked that its sockets be left alone");
    }
    if dialled.addr.is_loopback() && origin != Origin::Node {
        return Some("the address is the pod's own loopback");
    }
    None
}

/// An address that has no frontend.
fn unserved(live: &impl Live, dialled: &Dialled) -> Path {
    let Dialled { addr, port, protocol } = *dialled;
    match select::unserved(live, addr) {
        Unserved::Foreign => left(Outcome::Untouched, foreign(live, addr)),
        Unserved::UnknownPort if protocol == protocol::TCP => left(
            Outcome::Refused,
            format!(
                "the service that has this address has no port {port}/TCP: connect() fails with \
                 ECONNREFUSED"
            ),
        ),
        Unserved::UnknownPort => left(
            Outcome::Untouched,
            "the service that has this address has no such port, which only the answer to its \
             packets can tell",
        ),
        Unserved::Unallocated => left(
            Outcome::Untouched,
            "the address is in a range of services and no service has it: its packets are dropped",
        ),
    }
}

/// Why an address is none of the datapath's business.
pub(super) fn foreign(live: &impl Live, addr: Addr) -> &'static str {
    if live.node_addr_flags(&addr).is_some() {
        "an address of this node at a port that is no service's: the node itself answers"
    } else {
        "no service has this address and port"
    }
}
