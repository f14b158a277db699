//! The second stage: is the flow known; and, for the fourth, the making of its two entries.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_get_prandom_u32};
use mizzen_ebpf_abi::{
    addr::protocol,
    conntrack::{Flow, FlowKey, flow_flags},
    counters::Counter,
    flow_state::{self, state},
    limits::SNAT_PROBES_MAX,
    nat::{self, Origin},
    node::NodeConfig,
    packet::{Packet, tcp_flags},
};

use super::{scratch::Opening, skb::Skb, sockets};
use crate::{
    lookup,
    maps::{FLOWS, count},
    traffic,
};

/// The entry of a packet's flow, with this packet seen. None where there is none that counts: then
/// whatever was there is forgotten.
#[inline(always)]
pub(super) fn track(packet: &Packet) -> Option<*const Flow> {
    let found = FLOWS.get_ptr_mut(&packet.key)?;
    let now_s = lookup::now_s();
    // SAFETY: an element of a live map. What changes in it are single octets and one aligned
    // word, each written by the packets of one direction.
    let flow = unsafe { &mut *found };
    if is_over(packet, flow, now_s) {
        forget(&packet.key, found);
        return None;
    }
    let state = flow_state::next(flow.state, packet.key.protocol, packet.tcp_flags);
    if state != flow.state {
        flow.state = state;
        tell_peer(&packet.key, found);
    }
    if flow.seen_s != now_s {
        flow.seen_s = now_s;
    }
    Some(found.cast_const())
}

/// The entry of a flow that was opened just now.
#[inline(always)]
pub(super) fn opened(key: &FlowKey) -> Option<*const Flow> {
    FLOWS.get_ptr(key)
}

/// Whether the flow has ended, so that this packet belongs to another or to none.
#[inline(always)]
fn is_over(packet: &Packet, flow: &Flow, now_s: u32) -> bool {
    let protocol = packet.key.protocol;
    if flow_state::silent(protocol, flow, now_s) && is_peer_silent(&packet.key, flow, now_s) {
        return true;
    }
    if flow.flags & flow_flags::ORIGINAL == 0 {
        return false;
    }
    if flow_state::reopens(protocol, packet.tcp_flags, flow) {
        return true;
    }
    // A SYN where a backend was deleted begins anew with one that lives.
    if protocol == protocol::TCP
        && flow_state::opens(protocol, packet.tcp_flags)
        && lookup::is_gone(flow.backend, &flow.destination, flow.destination_port)
    {
        return true;
    }
    // A flow follows its service as long as nothing is lost by that: a datagram does not care
    // which backend gets it, nor does a connection that none has answered (B100-B107). What is
    // established stays (V7).
    let unsettled = protocol == protocol::UDP
        || (flow_state::opens(protocol, packet.tcp_flags) && flow.peer_state & state::SEEN == 0);
    unsettled && !has_backend(flow)
}

/// Whether the tables still have the backend that the flow goes to.
#[inline(always)]
fn has_backend(flow: &Flow) -> bool {
    match lookup::backend(flow.set, flow.backend, flow.destination.is_v4()) {
        Some(backend) => {
            backend.addr.is(&flow.destination) && backend.port == flow.destination_port
        }
        None => false,
    }
}

/// Whether the packet is its opener's to a backend that was deleted, and has a right to be told
/// (V8). What the backend may still say goes to the opener: it is answered here next.
#[inline(always)]
pub(super) fn is_gone(packet: &Packet, flow: &Flow) -> bool {
    packet.key.protocol == protocol::TCP
        && flow.flags & flow_flags::ORIGINAL != 0
        && packet.tcp_flags & tcp_flags::RST == 0
        && lookup::is_gone(flow.backend, &flow.destination, flow.destination_port)
}

/// Takes note of a reset in the answerer's name. The entries stay for as long as after any other:
/// should the reset be lost, the opener's next segment gets one too; a SYN opens a new flow.
#[inline(never)]
pub(super) fn reset(key: &FlowKey, flow: &Flow) {
    let peer_key = key.rewritten(flow).reversed();
    if let Some(own) = FLOWS.get_ptr_mut(key) {
        // SAFETY: an element of a live map; a backend that is gone writes it no more.
        unsafe { (*own).peer_state |= state::RST };
    }
    if let Some(peer) = FLOWS.get_ptr_mut(&peer_key) {
        // SAFETY: as above.
        unsafe { (*peer).state |= state::RST };
    }
}

/// Whether the other entry is silent too, or gone.
#[inline(always)]
fn is_peer_silent(key: &FlowKey, flow: &Flow, now_s: u32) -> bool {
    let peer_key = key.rewritten(flow).reversed();
    match FLOWS.get_ptr(&peer_key) {
        // SAFETY: an element of a live map.
        Some(peer) => flow_state::silent(key.protocol, unsafe { &*peer }, now_s),
        None => true,
    }
}

/// Removes both entries of a flow.
#[inline(never)]
fn forget(key: &FlowKey, flow: *const Flow) {
    // SAFETY: the caller's element of a live map.
    let peer_key = key.rewritten(unsafe { &*flow }).reversed();
    // Whoever came first removed it: either way it is gone.
    let _gone = FLOWS.remove(&peer_key);
    let _gone = FLOWS.remove(key);
}

/// Copies this direction's state into the other entry.
#[inline(never)]
fn tell_peer(key: &FlowKey, flow: *const Flow) {
    // SAFETY: the caller's element of a live map.
    let flow = unsafe { &*flow };
    let peer_key = key.rewritten(flow).reversed();
    if let Some(peer) = FLOWS.get_ptr_mut(&peer_key) {
        // SAFETY: an element of a live map; the octet is written by this direction only.
        unsafe { (*peer).peer_state = flow.state };
    }
}

/// What became of an attempt to insert a flow's entries.
mod attempt {
    pub(super) const DONE: i32 = 0;
    /// The answers' entry belongs to another flow: another source port is needed.
    pub(super) const TAKEN: i32 = 1;
    /// Another processor opened the same flow at this very moment.
    pub(super) const RACED: i32 = 2;
    /// No room.
    pub(super) const FULL: i32 = 3;
}

/// Makes the entries of a flow, or says why it can't.
///
/// The answers' entry is what allocates the source port: inserting it fails where another flow
/// has it. Without masquerading the client's own port is tried first; only a flow that collides
/// with another to the same backend, or with a socket of the node, gets a port of the node's range
/// (U4, U14).
#[inline(always)]
pub(super) fn open(skb: Skb, opening: &mut Opening, config: &NodeConfig) -> Result<(), Counter> {
    let mut result = attempt::TAKEN;
    if !opening.masquerade && !collides(skb, opening) {
        result = insert(opening);
    }
    for _ in 0..RACES_MAX {
        if result != attempt::TAKEN {
            break;
        }
        match free_source_port(skb, opening, config) {
            0 => break,
            port => opening.to.source_port = port.to_be_bytes(),
        }
        result = insert(opening);
    }
    match result {
        attempt::DONE => {
            count(Counter::FlowCreated);
            traffic::opened(opening.backend, opening.key.destination.is_v4());
            Ok(())
        }
        attempt::RACED => Ok(()),
        attempt::FULL => Err(Counter::DropFlowTableFull),
        _ => Err(Counter::DropNoSourcePort),
    }
}

/// How often a free port may be taken away by another processor before the packet is given up.
const RACES_MAX: u32 = 2;

/// The answers of a flow that is to be opened, as they arrive.
#[inline(always)]
fn answers(opening: &Opening) -> FlowKey {
    FlowKey {
        source: opening.to.destination,
        destination: opening.to.source,
        source_port: opening.to.destination_port,
        destination_port: opening.to.source_port,
        protocol: opening.key.protocol,
        pad: opening.key.pad,
    }
}

/// Whether a socket of the node waits for what would be this flow's answers, were the port kept. A
/// datagram socket that is connected to none may be the very one that sends: it may talk to the
/// backend without the service as well.
#[inline(always)]
fn collides(skb: Skb, opening: &Opening) -> bool {
    matches!(opening.facts.origin, Origin::Node) && sockets::take(skb, &answers(opening))
}

/// A source port of the node's range that no flow to this backend has and no socket of the node,
/// host byte order; 0 where none was found in as many tries as there may be. Insertion decides
/// whether it still is free.
#[inline(never)]
fn free_source_port(skb: Skb, opening: &Opening, config: &NodeConfig) -> u16 {
    // SAFETY: the helper has no preconditions.
    let start = unsafe { bpf_get_prandom_u32() };
    let mut answer = answers(opening);
    for probe in 0..SNAT_PROBES_MAX {
        answer.destination_port = nat::source_port(config, start, probe);
        if FLOWS.get_ptr(&answer).is_none() && !sockets::take(skb, &answer) {
            return u16::from_be_bytes(answer.destination_port);
        }
    }
    0
}

/// One attempt with the source port that is set.
#[inline(never)]
fn insert(opening: &mut Opening) -> i32 {
    const EEXIST: i32 = -17;
    let entries = &mut opening.entries;
    entries.fill(&opening.key, &opening.to, opening.tcp_flags, opening.now_s);
    entries.original.flags |= opening.flags;
    entries.set_device(opening.device);
    entries.set_backend(opening.slots.set, opening.backend);
    if let Err(error) = FLOWS.insert(&entries.reply_key, &entries.reply, BPF_NOEXIST.into()) {
        return if error == EEXIST { attempt::TAKEN } else { attempt::FULL };
    }
    match FLOWS.insert(&opening.key, &entries.original, BPF_NOEXIST.into()) {
        Ok(()) => attempt::DONE,
        Err(error) => {
            let _gone = FLOWS.remove(&entries.reply_key);
            if error == EEXIST { attempt::RACED } else { attempt::FULL }
        }
    }
}
