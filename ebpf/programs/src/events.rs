//! Tells those who follow connections what becomes of them: `mizzen_ebpf_abi::event`. While nobody
//! does there is no buffer, and nothing is done but to find that out.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mizzen_ebpf_abi::{
    addr::Addr,
    conntrack::FlowKey,
    counters::Counter,
    event::{FlowEvent, path},
    tracking::Opening,
};

use crate::{
    lookup::Backend,
    maps::{FLOW_EVENTS, PRESENT, count},
};

/// An address of nobody.
const NOBODY: Addr = Addr { octets: [0; 16] };

/// Whether somebody follows.
#[inline(always)]
pub(crate) fn are_followed() -> bool {
    FLOW_EVENTS.get(PRESENT).is_some()
}

/// Tells what `make` makes, if somebody follows.
#[inline(always)]
fn tell(make: impl FnOnce() -> FlowEvent) {
    let Some(ring) = FLOW_EVENTS.get(PRESENT) else {
        return;
    };
    let Some(mut entry) = ring.reserve(0) else {
        count(Counter::FlowEventLost);
        return;
    };
    entry.write(make());
    entry.submit(0);
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// A packet goes no further, or its sender was told that it does not.
#[inline(never)]
pub(crate) fn stopped(key: &FlowKey, set: u32, what: Counter) {
    tell(|| FlowEvent {
        at_ns: now_ns(),
        client: key.source,
        dialled: key.destination,
        backend: NOBODY,
        seen_as: key.source,
        client_port: key.source_port,
        dialled_port: key.destination_port,
        backend_port: [0; 2],
        seen_as_port: key.source_port,
        set,
        what: what as u32,
        protocol: key.protocol,
        path: path::PACKET,
        pad: [0; 6],
    });
}

/// A packet opened a flow.
#[inline(never)]
pub(crate) fn opened(opening: &Opening) {
    let (key, to) = (&opening.key, &opening.to);
    tell(|| FlowEvent {
        at_ns: now_ns(),
        client: key.source,
        dialled: key.destination,
        backend: to.destination,
        seen_as: to.source,
        client_port: key.source_port,
        dialled_port: key.destination_port,
        backend_port: to.destination_port,
        seen_as_port: to.source_port,
        set: opening.slots.set,
        what: Counter::FlowCreated as u32,
        protocol: key.protocol,
        path: path::PACKET,
        pad: [0; 6],
    });
}

/// What a socket dialled.
pub(crate) struct Call {
    /// IANA protocol number.
    pub(crate) protocol: u8,
    /// The address that was dialled.
    pub(crate) dialled: Addr,
    /// The port that was dialled, network byte order.
    pub(crate) dialled_port: [u8; 2],
    /// The service's set.
    pub(crate) set: u32,
}

/// A socket was led to a backend; `client` is asked for only where somebody follows.
#[inline(always)]
pub(crate) fn translated(
    call: &Call,
    backend: &Addr,
    backend_port: [u8; 2],
    client: impl FnOnce() -> (Addr, [u8; 2]),
) {
    tell(|| {
        let client = client();
        of_call(call, client, (*backend, backend_port), Counter::SocketTranslated)
    });
}

/// A call failed, since nobody is there.
#[inline(always)]
pub(crate) fn refused(call: &Call, client: impl FnOnce() -> (Addr, [u8; 2])) {
    tell(|| {
        let client = client();
        of_call(call, client, (NOBODY, [0; 2]), Counter::SocketRefused)
    });
}

/// As [`translated`].
#[inline(always)]
pub(crate) fn translated_to(
    call: &Call,
    backend: &Backend,
    client: impl FnOnce() -> (Addr, [u8; 2]),
) {
    translated(call, &backend.addr, backend.port, client);
}

#[inline(always)]
fn of_call(
    call: &Call,
    (client, client_port): (Addr, [u8; 2]),
    (backend, backend_port): (Addr, [u8; 2]),
    what: Counter,
) -> FlowEvent {
    FlowEvent {
        at_ns: now_ns(),
        client,
        dialled: call.dialled,
        backend,
        seen_as: client,
        client_port,
        dialled_port: call.dialled_port,
        backend_port,
        seen_as_port: client_port,
        set: call.set,
        what: what as u32,
        protocol: call.protocol,
        path: path::SOCKET,
        pad: [0; 6],
    }
}
