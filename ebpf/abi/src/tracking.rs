//! The packet path's connection tracking: what becomes of a flow's two entries with each packet.
//!
//! The programs run it on their table, the tests on one of their own: what both have in common is
//! a [`FlowTable`].
//!
//! # Elements that are used again
//!
//! An element of the kernel's table that is deleted may hold another flow at once, under the hands
//! of whoever found it before: nothing keeps it for the length of a program. Only entries of flows
//! that are over are deleted, or replaced by the agent where their backend is ([`state::GONE`]), so this needs a packet of such a flow, a deletion of it, and a new
//! flow in the very element, all within the time of one packet. What comes of it then:
//! - the packet is translated as one of the other flow: it is lost, as one of a flow that is over
//!   may be, and whoever gets it finds its sequence number out of any window;
//! - the other flow's state has the bits of this packet: an RST goes with its next segment, a FIN
//!   shortens its silence to an hour's;
//! - [`forget`] would remove the other flow's entry, which would end it. That is why it compares:
//!   of two entries of one flow each leads to the other's key.

use crate::{
    addr::protocol,
    conntrack::{Flow, FlowKey, flow_flags},
    flow_state::{self, Need, state},
    limits::{ROOM_PROBES_MAX, SNAT_PROBES_MAX},
    nat::{self, Entries, Facts, Origin, Translation},
    node::NodeConfig,
    packet::{Packet, tcp_flags},
    select::Slots,
};

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is one with this key.
    Exists,
    /// There is no room.
    Full,
}

/// What the service tables say of the backends that flows were given. For `mizzen why`, too, which
/// tells by [`begins_anew`] and [`is_deleted`] what the programs will do.
pub trait FlowBackends: Copy {
    /// Whether they still have the flow's backend.
    fn has_backend(self, flow: &Flow) -> bool;
    /// Whether what the flow's opener dials still leads to the service that it led to, and not to a
    /// listener of the node, which was away then.
    fn leads(self, key: &FlowKey, flow: &Flow) -> bool;
    /// Whether they say that it was deleted. Of a flow of the opener's.
    fn is_deleted(self, flow: &Flow) -> bool;
}

/// The table of flows, and what is asked while one of them is looked at.
pub trait FlowTable: FlowBackends {
    /// The entry with this key, for reading and writing of its fields. It stays one of the table's,
    /// but may be another flow's when it is read.
    fn find(self, key: &FlowKey) -> Option<*mut Flow>;
    /// Inserts what is not there yet.
    fn insert(self, key: &FlowKey, flow: &Flow) -> Result<(), Refusal>;
    /// Removes an entry, if there is one.
    fn remove(self, key: &FlowKey);
    /// Whether a socket of the node would get a packet.
    fn is_a_sockets(self, packet: &FlowKey) -> bool;
    /// Seconds since boot, as in [`Flow::seen_s`].
    fn now_s(self) -> u32;
    /// A random number.
    fn random(self) -> u32;
}

/// A flow that is to be opened.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// The first packet's flow.
    pub key: FlowKey,
    /// How it leaves. The source port is chosen last.
    pub to: Translation,
    /// What masquerading depends on.
    pub facts: Facts,
    /// What the backend is chosen from.
    pub slots: Slots,
    /// The backend's id.
    pub backend: u32,
    /// Of the node's own flow the device by which it leaves; else 0.
    pub device: u32,
    /// Whether the source port has to be one of the node's range.
    pub masquerade: bool,
    /// When.
    pub now_s: u32,
    /// `flow_flags::TO_NODE` or `flow_flags::OUTWARD`, or 0.
    pub flags: u8,
    /// The second in which room was looked for in vain. The only field that is kept from one
    /// opening to the next.
    pub vain_s: u32,
    /// What is inserted.
    pub entries: Entries,
}

/// What became of a flow that was to be opened: a number, because the programs hand it on in one
/// register.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened(i32);

impl Opened {
    /// It is in the table.
    pub const DONE: Self = Self(0);
    /// Another processor opened the same flow at this very moment.
    pub const RACED: Self = Self(1);
    /// There is no room in the table.
    pub const FULL: Self = Self(2);
    /// The answers' entry belongs to another flow, and no free source port was found.
    pub const TAKEN: Self = Self(3);
}

/// The entry of a packet's flow, with this packet seen. None where there is none that counts: then
/// whatever was there is forgotten.
#[inline(always)]
pub fn track<T: FlowTable>(table: T, packet: &Packet) -> Option<*const Flow> {
    let found = table.find(&packet.key)?;
    let now_s = table.now_s();
    // SAFETY: an element of a live table. What changes in it are single octets and one aligned
    // word, each written by the packets of one direction.
    let flow = unsafe { &mut *found };
    if is_over(table, packet, flow, now_s) {
        forget(table, &packet.key, found);
        return None;
    }
    let state = flow_state::next(flow, packet.key.protocol, packet.tcp_flags, now_s);
    if state != flow.state {
        flow.state = state;
        tell_peer(table, &packet.key, found);
    }
    if flow.seen_s != now_s {
        flow.seen_s = now_s;
    }
    Some(found.cast_const())
}

/// Whether the flow has ended, so that this packet belongs to another or to none.
#[inline(always)]
fn is_over<T: FlowTable>(table: T, packet: &Packet, flow: &Flow, now_s: u32) -> bool {
    is_silent(table, &packet.key, flow, now_s, Need::None)
        || (flow.flags & flow_flags::ORIGINAL != 0
            && begins_anew(table, &packet.key, packet.tcp_flags, flow, now_s))
}

/// Whether a packet of the opener's with these TCP flags begins a new flow, though the one that it
/// is of is not over yet.
#[inline(always)]
pub fn begins_anew<T: FlowBackends>(
    table: T,
    key: &FlowKey,
    tcp_flags: u8,
    flow: &Flow,
    now_s: u32,
) -> bool {
    let protocol = key.protocol;
    if flow_state::reopens(protocol, tcp_flags, flow) {
        return true;
    }
    // A SYN where a backend was deleted begins anew with one that lives.
    if protocol == protocol::TCP
        && flow_state::opens(protocol, tcp_flags)
        && is_deleted(table, flow)
    {
        return true;
    }
    // A flow follows its service as long as nothing is lost by that: a datagram does not care
    // which backend gets it, nor does a connection that none has answered (B100-B107). What is
    // established stays (V7).
    let unsettled = protocol == protocol::UDP
        || (flow_state::opens(protocol, tcp_flags) && flow.peer_state & state::SEEN == 0);
    // An address that another service has by now is looked up by the first packet of a second.
    unsettled
        && flow.flags & flow_flags::OUTWARD == 0
        && (!table.has_backend(flow) || (flow.seen_s != now_s && !table.leads(key, flow)))
}

/// Whether the flow's backend was deleted. Of a flow of the opener's.
#[inline(always)]
pub fn is_deleted<T: FlowBackends>(table: T, flow: &Flow) -> bool {
    flow.flags & flow_flags::OUTWARD == 0
        && (flow.state & state::GONE != 0 || table.is_deleted(flow))
}

/// Whether the packet is its opener's to a backend that was deleted, and has a right to be told
/// (V8). What the backend may still say goes to the opener: it is answered here next.
#[inline(always)]
pub fn is_gone<T: FlowTable>(table: T, packet: &Packet, flow: &Flow) -> bool {
    packet.key.protocol == protocol::TCP
        && flow.flags & flow_flags::ORIGINAL != 0
        && packet.tcp_flags & tcp_flags::RST == 0
        && is_deleted(table, flow)
}

/// Takes note of a reset in the answerer's name. The entries stay for as long as after any other:
/// should the reset be lost, the opener's next segment gets one too; a SYN opens a new flow.
#[inline(never)]
pub fn reset<T: FlowTable>(table: T, key: &FlowKey, flow: &Flow) {
    let peer_key = key.peer(flow);
    if let Some(own) = table.find(key) {
        // SAFETY: an element of a live table; a backend that is gone writes it no more.
        let own = unsafe { &mut *own };
        own.peer_state = flow_state::reset(own.peer_state, own.state);
    }
    if let Some(peer) = table.find(&peer_key) {
        // SAFETY: as above.
        let peer = unsafe { &mut *peer };
        peer.state = flow_state::reset(peer.state, peer.peer_state);
    }
}

/// Whether both entries of a flow are silent for too long, or one is and the other gone.
#[inline(always)]
fn is_silent<T: FlowTable>(table: T, key: &FlowKey, flow: &Flow, now_s: u32, need: Need) -> bool {
    flow_state::silent(key.protocol, flow, now_s, need)
        && match table.find(&key.peer(flow)) {
            // SAFETY: an element of a live table.
            Some(peer) => flow_state::silent(key.protocol, unsafe { &*peer }, now_s, need),
            None => true,
        }
}

/// Removes both entries of a flow: the other only where it leads back, since what was found may be
/// another flow's by now, and another flow's what is under the other's key.
#[inline(never)]
fn forget<T: FlowTable>(table: T, key: &FlowKey, flow: *const Flow) {
    // SAFETY: the caller's element of a live table.
    let peer_key = key.peer(unsafe { &*flow });
    if let Some(peer) = table.find(&peer_key) {
        // SAFETY: an element of a live table.
        if peer_key.peer(unsafe { &*peer }).is(key) {
            table.remove(&peer_key);
        }
    }
    // Whoever came first removed it: either way it is gone.
    table.remove(key);
}

/// Copies this direction's state into the other entry.
#[inline(never)]
fn tell_peer<T: FlowTable>(table: T, key: &FlowKey, flow: *const Flow) {
    // SAFETY: the caller's element of a live table.
    let flow = unsafe { &*flow };
    if let Some(peer) = table.find(&key.peer(flow)) {
        // SAFETY: an element of a live table; the octet is written by this direction only.
        unsafe { (*peer).peer_state = flow.state };
    }
}

/// The searches for a source port before the packet is given up: the first takes what is free. It
/// may find none, or another processor may take it away.
const SEARCHES: [Need; 2] = [Need::None, Need::Pressing];

/// Makes the entries of a flow, or says why it can't.
///
/// The answers' entry is what allocates the source port: inserting it fails where another flow
/// has it. Without masquerading the client's own port is tried first; only a flow that collides
/// with another to the same backend, or with a socket of the node, gets a port of the node's range
/// (U4, U14).
#[inline(always)]
pub fn open<T: FlowTable>(table: T, opening: &mut Opening, config: &NodeConfig) -> Opened {
    let mut result = Opened::TAKEN;
    if !opening.masquerade && !collides(table, opening) {
        result = insert(table, opening);
    }
    for need in SEARCHES {
        if result != Opened::TAKEN {
            break;
        }
        match free_source_port(table, opening, config, need) {
            0 => {}
            port => {
                opening.to.source_port = port.to_be_bytes();
                result = insert(table, opening);
            }
        }
    }
    if result == Opened::FULL && make_room(table, opening, config) {
        result = insert(table, opening);
    }
    result
}

/// Whether a socket of the node waits for what would be this flow's answers, were the port kept. A
/// datagram socket that is connected to none may be the very one that sends: it may talk to the
/// backend without the service as well.
#[inline(always)]
fn collides<T: FlowTable>(table: T, opening: &Opening) -> bool {
    matches!(opening.facts.origin, Origin::Node) && table.is_a_sockets(&answers(opening))
}

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

/// A source port of the node's range that no flow to this backend has and no socket of the node,
/// host byte order; 0 where none was found in as many tries as there may be. Insertion decides
/// whether it still is free.
///
/// A flow that is over gives its port back here: where no agent sweeps, the ports towards a backend
/// would run out, and the table fill up, with what nobody asks for any more (D19). Under need, so
/// does one that may have come to nothing: a flood of what is never confirmed, or is reset, holds
/// no port for longer than seconds.
#[inline(never)]
fn free_source_port<T: FlowTable>(
    table: T,
    opening: &Opening,
    config: &NodeConfig,
    need: Need,
) -> u16 {
    let start = table.random();
    let mut answer = answers(opening);
    for probe in 0..SNAT_PROBES_MAX {
        answer.destination_port = nat::source_port(config, start, probe);
        let found = table.find(&answer);
        if let Some(flow) = found {
            // SAFETY: an element of a live table.
            if !is_silent(table, &answer, unsafe { &*flow }, opening.now_s, need) {
                continue;
            }
        }
        if table.is_a_sockets(&answer) {
            continue;
        }
        if let Some(flow) = found {
            forget(table, &answer, flow);
        }
        return u16::from_be_bytes(answer.destination_port);
    }
    0
}

/// Looks in a full table for a masqueraded flow to the same backend that is over, and forgets it;
/// whether there was one. Where many flows filled the table, such as those of a flood of SYNs, so
/// many of them are to this backend that a few tries find one. After a vain search there is none
/// until the next second.
#[inline(never)]
fn make_room<T: FlowTable>(table: T, opening: &mut Opening, config: &NodeConfig) -> bool {
    if opening.vain_s == opening.now_s {
        return false;
    }
    let mut answer = answers(opening);
    if let Some(address) = nat::masquerade_address(config, answer.destination.is_v4()) {
        answer.destination = address;
    }
    let start = table.random();
    for probe in 0..ROOM_PROBES_MAX {
        answer.destination_port = nat::source_port(config, start, probe);
        if let Some(found) = table.find(&answer)
            && give_back(table, &answer, found, opening.now_s)
        {
            return true;
        }
    }
    opening.vain_s = opening.now_s;
    false
}

/// Forgets a flow that is over, or came to nothing. Whether it did.
#[inline(always)]
fn give_back<T: FlowTable>(table: T, key: &FlowKey, found: *const Flow, now_s: u32) -> bool {
    // SAFETY: an element of a live table.
    let over = is_silent(table, key, unsafe { &*found }, now_s, Need::Pressing);
    if over {
        forget(table, key, found);
    }
    over
}

/// One attempt with the source port that is set.
#[inline(never)]
fn insert<T: FlowTable>(table: T, opening: &mut Opening) -> Opened {
    let entries = &mut opening.entries;
    entries.fill(&opening.key, &opening.to, opening.now_s);
    entries.original.flags |= opening.flags;
    entries.reply.flags |= opening.flags & flow_flags::OUTWARD;
    entries.set_device(opening.device);
    entries.set_backend(opening.slots.set, opening.backend);
    match table.insert(&entries.reply_key, &entries.reply) {
        Err(Refusal::Exists) => return Opened::TAKEN,
        Err(Refusal::Full) => return Opened::FULL,
        Ok(()) => {}
    }
    match table.insert(&opening.key, &entries.original) {
        Ok(()) => Opened::DONE,
        Err(refusal) => {
            table.remove(&entries.reply_key);
            if refusal == Refusal::Exists { Opened::RACED } else { Opened::FULL }
        }
    }
}

#[cfg(test)]
#[path = "tracking_tests.rs"]
mod tests;
