//! `mizzen why SRC DST`: what becomes of a connection, and for what reason. Computed from the live
//! tables by the code that the programs run: [`select`] for the way to a backend,
//! [`nat::Facts`](mizzen_ebpf_abi::nat::Facts) for policy and masquerading.
//!
//! ```text
//! SRC, DST ──question──> names ──resolve (snapshot)──> addresses ──┬─ socket ─┬─> answer
//!                                                live tables ──────┴─ packet ─┘
//! ```
//! Both paths are explained: sockets of this node are translated where they dial, what they leave
//! is the packet path's, as are clients elsewhere.

pub mod answer;
pub mod live;
mod packet;
pub mod question;
pub mod resolve;
mod socket;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    affinity::AffinityKey,
    nat::Origin,
    select::{self, NoBackend, Slots, Window},
    service::backend_flags,
};

use self::{
    answer::{Candidate, Outcome, Path, PathName, Pinned, WindowName},
    live::Live,
};
use crate::apply::lookup;

/// Who dials.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Its address.
    pub addr: Addr,
    /// Its port, where one connection is asked for, host byte order.
    pub port: Option<u16>,
    /// Whether its sockets are on this node.
    pub here: bool,
    /// Whether its socket is bound to the address. One of the node's that is not gets its address from
    /// the routes.
    pub bound: bool,
}

/// What it dials.
#[derive(Clone, Copy, Debug)]
pub struct Dialled {
    /// The address.
    pub addr: Addr,
    /// The port, host byte order.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What the client is to this node.
    pub origin: Origin,
    /// The path that decides.
    pub decides: PathName,
    /// What the socket path does.
    pub socket: Path,
    /// What the packet path does, with what the socket path leaves.
    pub packet: Path,
    /// The set of the frontend, where there is one.
    pub set: Option<u32>,
    /// Flags of the frontend: bits of [`mizzen_ebpf_abi::service::frontend_flags`].
    pub frontend_flags: u32,
}

/// Explains a connection.
pub fn explain(live: &impl Live, client: &Client, dialled: &Dialled) -> Explanation {
    let dialled = &Dialled { addr: dialled.addr.reached(), ..*dialled };
    let origin = select::origin(live, client.addr, !client.here);
    let frontend =
        select::frontend(live, dialled.addr, dialled.port.to_be_bytes(), dialled.protocol);
    let socket = socket::explain(live, client, origin, dialled, frontend.as_ref());
    let packet = packet::explain(live, client, origin, dialled, frontend.as_ref());
    let decides = if socket.outcome.settles() { PathName::Socket } else { PathName::Packet };
    Explanation {
        origin,
        decides,
        socket,
        packet,
        set: frontend.map(|frontend| frontend.set),
        frontend_flags: frontend.map_or(0, |frontend| frontend.flags),
    }
}

/// A path on which nothing is chosen.
fn path(path: PathName, outcome: Outcome, reason: impl Into<String>) -> Path {
    Path {
        path,
        outcome,
        reason: reason.into(),
        window: None,
        candidates: Vec::new(),
        pinned: None,
        masquerade: None,
    }
}

/// The backends of a window, each with its share of new connections; empty where the tables lead
/// astray.
fn candidates(live: &impl Live, slots: &Slots, v4: bool) -> Vec<Candidate> {
    let share = 1.0 / f64::from(slots.count);
    let mut candidates: Vec<Candidate> = Vec::new();
    for backend in lookup::backends(live, slots, v4).unwrap_or_default() {
        let address = backend.at.to_string();
        if let Some(twice) = candidates.iter_mut().find(|held| held.address == address) {
            twice.probability += share;
            continue;
        }
        candidates.push(Candidate {
            address,
            probability: share,
            pod: None,
            local: backend.flags & backend_flags::LOCAL != 0,
            terminating: backend.flags & backend_flags::TERMINATING != 0,
        });
    }
    candidates
}

/// The backend that a client keeps, as the programs' own check has it.
fn kept(live: &impl Live, client: Addr, slots: &Slots, v4: bool) -> Option<Pinned> {
    if slots.affinity_s == 0 {
        return None;
    }
    let affinity = live.affinity(&AffinityKey { client, set: slots.set })?;
    let now_s = live.now_s();
    let offers = |backend| lookup::ids(live, slots).any(|id| id == backend);
    let kept = affinity.kept(slots, now_s, offers)?;
    let backend = live.backend(slots.set, kept.backend, v4)?;
    let left = slots.affinity_s.saturating_sub(now_s.saturating_sub(affinity.seen_s));
    Some(Pinned {
        address: endpoint(backend.addr, backend.port).to_string(),
        pod: None,
        reason: format!(
            "session affinity: {} keeps its backend for {left} s more, and longer with every \
             connection",
            IpAddr::from(client)
        ),
    })
}

/// An address and a port in network byte order.
fn endpoint(addr: Addr, port: [u8; 2]) -> SocketAddr {
    (IpAddr::from(addr), u16::from_be_bytes(port)).into()
}

fn window_name(window: Window) -> WindowName {
    match window {
        Window::Internal => WindowName::Internal,
        Window::External => WindowName::External,
        Window::Nearby => WindowName::Nearby,
    }
}

/// Why there is no backend, and what becomes of TCP and of everything else then. A socket tells
/// its caller of a refusal; a packet is answered.
fn nothing(name: PathName, reason: NoBackend, dialled: &Dialled, window: Window) -> Path {
    let tcp = dialled.protocol == protocol::TCP;
    let (outcome, text) = match (reason, name) {
        (NoBackend::Reject, PathName::Socket) if !tcp => (
            Outcome::Untouched,
            "the service has no usable endpoint, which only the answer to its packets can tell",
        ),
        (NoBackend::Reject, PathName::Socket) => (
            Outcome::Refused,
            "the service has no usable endpoint: connect() fails with ECONNREFUSED",
        ),
        (NoBackend::Reject, PathName::Packet) if tcp => {
            (Outcome::Refused, "the service has no usable endpoint: answered with a TCP reset")
        }
        (NoBackend::Reject, PathName::Packet) => (
            Outcome::Refused,
            "the service has no usable endpoint: answered with ICMP port unreachable",
        ),
        (NoBackend::Drop, PathName::Socket) => (
            Outcome::Untouched,
            "the traffic policy is Local and no usable endpoint is on this node: its packets are \
             dropped",
        ),
        (NoBackend::Drop, PathName::Packet) => (
            Outcome::Dropped,
            "the traffic policy is Local and no usable endpoint is on this node, though others \
             have some",
        ),
        (NoBackend::Proxy, _) => {
            (Outcome::Untouched, "a proxy above layer 4 answers for the service")
        }
        (NoBackend::ForeignRange | NoBackend::ForeignBackend, _) => (
            Outcome::Faulty,
            "the tables lead to another service's backends: `mizzen diff` tells what is wrong",
        ),
    };
    Path { window: Some(window_name(window)), ..path(name, outcome, text) }
}
