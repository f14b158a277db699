//! The fourth stage: a backend for a new flow, and the rewriting of every packet.

use aya_ebpf::{
    bindings::{BPF_F_RECOMPUTE_CSUM, TC_ACT_OK},
    helpers::generated::bpf_get_prandom_u32,
};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    conntrack::{Flow, FlowKey, flow_flags},
    counters::Counter,
    nat::{self, Facts},
    node::{LOOPBACK, cluster_range_flags},
    packet::{Fragment, Packet},
    rewrite::{self, Deltas},
    service::{Frontend, NO_SET, frontend_flags},
    tracking::Opening,
};

use super::{
    DROP, PASS, UNKNOWN, conntrack,
    deliver::{self, Way},
    drop_counted, masquerade, reject,
    scratch::Scratch,
    skb::{Covered, Skb},
    traffic,
};
use crate::{
    events,
    lookup::{self, Backend, NoBackend, Unserved, Window},
    maps::{NODE_ADDRS, NODE_CONFIG, count},
    sockets,
};

/// What [`open`] answers where the flow is open; any other answer is the verdict on the packet.
pub(super) const OPENED: i32 = TC_ACT_OK as i32;

/// What [`find`] answers where the service has nobody for the packet, which is to be refused: not
/// there, where the stack that its answer takes would come on top of that of the search.
const REFUSED: i32 = i32::MAX;

/// Opens the flow of a packet that may open one, if it dials a service: in steps, each with a stack
/// of its own. The device is that by which a packet of the node itself leaves; else 0. Of what pods
/// send to no service, the flow of what leaves the cluster is opened.
#[inline(always)]
pub(super) fn open<const UPLINK: bool>(skb: Skb, scratch: &mut Scratch, device: u32) -> i32 {
    scratch.opening.device = device;
    let from_elsewhere = UPLINK && device == 0;
    let mut verdict = find(skb, &scratch.packet, &mut scratch.opening, from_elsewhere);
    if verdict == UNKNOWN {
        verdict = unfound(skb, &scratch.packet);
    }
    if verdict == UNKNOWN {
        return if UPLINK { PASS } else { masquerade::open(skb, scratch) };
    }
    if verdict == REFUSED {
        return reject::no_endpoints(skb, &scratch.packet, scratch.opening.slots.set);
    }
    if verdict != OPENED {
        return verdict;
    }
    let Scratch { opening, way, .. } = scratch;
    opening.now_s = lookup::now_s();
    let chosen =
        if opening.slots.affinity_s == 0 { choose(opening) } else { choose_for_client(opening) };
    match chosen {
        Ok(()) => enter(skb, opening, way),
        // Counted; what is sent again sees the tables whole.
        Err(_) => {
            events::stopped(&opening.key, opening.slots.set, Counter::ForeignBackend);
            DROP
        }
    }
}

/// Finds what the packet dials, and the slots that its traffic policy gives it; [`UNKNOWN`] where
/// that is no service, [`REFUSED`], with the service's set, where it has no endpoints. `from_elsewhere` says that the packet came in from another host; `opening`
/// has the device already.
#[inline(never)]
fn find(skb: Skb, packet: &Packet, opening: &mut Opening, from_elsewhere: bool) -> i32 {
    let key = &packet.key;
    let Some(frontend) = lookup::frontend(key.destination, key.destination_port, key.protocol)
    else {
        return UNKNOWN;
    };
    if is_answered_here(skb, &frontend, key) {
        return PASS;
    }
    let Some(config) = NODE_CONFIG.get(0) else {
        return PASS;
    };
    let v4 = key.destination.is_v4();
    let own = (opening.device != 0).then_some(config.own(v4));
    if !lookup::admits(&frontend, (&key.source, &key.destination), own) {
        return drop_counted(packet, frontend.set, Counter::DropSourceRange);
    }
    opening.facts = Facts {
        origin: lookup::origin(key.source, from_elsewhere),
        frontend: frontend.flags,
        config: config.flags,
        v4,
    };
    let window = if opening.facts.bound_by_external_policy() {
        Window::outside(&frontend)
    } else {
        Window::nearby(&frontend)
    };
    match lookup::slots(&frontend, window) {
        Ok(slots) => opening.slots = slots,
        // Nobody listens, and the stack says so itself.
        Err(NoBackend::Reject | NoBackend::Drop) if opening.device == LOOPBACK => return PASS,
        Err(NoBackend::Reject) => {
            opening.slots.set = frontend.set;
            return REFUSED;
        }
        Err(NoBackend::Drop) => {
            return drop_counted(packet, frontend.set, Counter::DropNoLocalEndpoint);
        }
        Err(NoBackend::Proxy) => return PASS,
        // Counted; what is sent again sees the tables whole.
        Err(NoBackend::ForeignRange | NoBackend::ForeignBackend) => return DROP,
    }
    opening.key = packet.key;
    opening.to.source = packet.key.source;
    opening.to.source_port = packet.key.source_port;
    OPENED
}

/// The verdict on a packet that dials what [`find`] found nothing for; [`UNKNOWN`] where that is
/// nothing of the cluster's ranges either. A cluster IP is refused though no range is known that it
/// is from.
#[inline(never)]
fn unfound(skb: Skb, packet: &Packet) -> i32 {
    let to = packet.key.destination;
    match lookup::range_flags(&to) {
        0 if !lookup::refuses_other_ports(to) => UNKNOWN,
        flags if flags != 0 && flags & cluster_range_flags::SERVICES == 0 => PASS, // of the cluster
        _ => unserved(skb, packet),
    }
}

/// Whether the node itself answers at present for what a packet dials.
#[inline(always)]
pub(super) fn is_answered_here(skb: Skb, frontend: &Frontend, dialled: &FlowKey) -> bool {
    frontend.flags & frontend_flags::PREFER_LOCAL != 0 && sockets::take(skb.as_ptr(), dialled)
}

/// The verdict on a packet that would open a flow to what is no frontend (B8-B10, V5).
#[inline(always)]
pub(super) fn unserved(skb: Skb, packet: &Packet) -> i32 {
    match lookup::unserved(packet.key.destination) {
        Unserved::Foreign => PASS,
        Unserved::UnknownPort => reject::no_endpoints(skb, packet, NO_SET),
        Unserved::Unallocated => drop_counted(packet, NO_SET, Counter::DropUnallocated),
    }
}

/// Any of the slots' backends.
#[inline(never)]
fn choose(opening: &mut Opening) -> Result<(), NoBackend> {
    // SAFETY: the helper has no preconditions.
    let hash = unsafe { bpf_get_prandom_u32() };
    let backend = lookup::choose(&opening.slots, hash, opening.key.destination.is_v4())?;
    lead_to(opening, &backend);
    Ok(())
}

/// The backend that the client keeps (B71).
#[inline(never)]
fn choose_for_client(opening: &mut Opening) -> Result<(), NoBackend> {
    // SAFETY: the helper has no preconditions.
    let hash = unsafe { bpf_get_prandom_u32() };
    let (source, v4) = (&opening.key.source, opening.key.destination.is_v4());
    let client = match NODE_CONFIG.get(0) {
        Some(config) => nat::client(opening.facts.origin, source, config),
        None => source,
    };
    let backend = lookup::choose_for(client, &opening.slots, hash, v4)?;
    lead_to(opening, &backend);
    Ok(())
}

#[inline(always)]
fn lead_to(opening: &mut Opening, backend: &Backend) {
    opening.to.destination = backend.addr;
    opening.to.destination_port = backend.port;
    opening.backend = backend.id;
}

/// Enters the flow, masqueraded where it has to be, into the table.
#[inline(never)]
fn enter(skb: Skb, opening: &mut Opening, way: &mut Way) -> i32 {
    let Some(config) = NODE_CONFIG.get(0) else {
        return PASS;
    };
    let hairpin = opening.to.destination.is(&opening.key.source);
    opening.flags = if is_node(opening.to.destination) { flow_flags::TO_NODE } else { 0 };
    opening.masquerade = false;
    if opening.flags & flow_flags::TO_NODE != 0 {
        if opening.device != 0 {
            // From the node to itself: it refuses its own address as the source of what comes in,
            // so the service's stands for it, and brings the answers here.
            opening.masquerade = true;
            opening.to.source = opening.key.destination;
        }
    } else if opening.device == LOOPBACK || opening.facts.masquerades(hairpin) {
        opening.masquerade = true;
        match nat::masquerade_address(config, opening.key.destination.is_v4()) {
            Some(address) => {
                opening.to.source = address;
                deliver::put_source_in_pods_network(skb, &opening.key, &mut opening.to, way);
            }
            None => return stop(opening, Counter::DropNoSourcePort),
        }
    }
    match conntrack::open(skb, opening, config) {
        Ok(()) => OPENED,
        Err(reason) => stop(opening, reason),
    }
}

/// Ends the packet whose flow can't be opened, counts why, and tells those who follow.
#[inline(always)]
fn stop(opening: &Opening, reason: Counter) -> i32 {
    count(reason);
    events::stopped(&opening.key, opening.slots.set, reason);
    DROP
}

/// Whether the address is one of this node's.
#[inline(always)]
pub(super) fn is_node(addr: Addr) -> bool {
    NODE_ADDRS.get_ptr(&addr).is_some()
}

/// Writes the flow's translation into the packet.
#[inline(never)]
pub(super) fn rewrite(skb: Skb, packet: &Packet, flow: &Flow, hop_limit: u8) -> Result<(), ()> {
    let (source, destination) = (&flow.source, &flow.destination);
    addresses(skb, packet, source, destination, hop_limit)?;
    count(Counter::PacketTranslated);
    traffic::passed(skb, packet, flow);
    if packet.fragment == Fragment::LATER {
        return Ok(()); // nothing of it is a transport header
    }
    let deltas = Deltas::new(&packet.key, flow);
    let at = packet.checksum_offset();
    if packet.key.protocol != protocol::ICMP {
        skb.mend(at, deltas.addresses, Covered::PseudoHeader, packet.key.protocol)?; // ICMP has none
    }
    if packet.key.has_ports_of(flow) {
        return Ok(());
    }
    put_ports(skb, packet, flow)?;
    skb.mend(at, deltas.ports, Covered::Transport, packet.key.protocol)
}

/// Writes a flow's ports, or an echo's identifier, which has their place.
#[inline(always)]
pub(super) fn put_ports(skb: Skb, packet: &Packet, flow: &Flow) -> Result<(), ()> {
    if packet.is_echo() {
        skb.store(packet.l4 + rewrite::IDENTIFIER_AT, &rewrite::identifier(packet, flow), 0)
    } else {
        skb.store(packet.l4, &rewrite::ports(flow), 0)
    }
}

/// Writes addresses and hop limit into an IP header.
///
/// A device's sum over the whole packet, where there is one, is kept right: an IPv4 header sums
/// to the same with any contents, an IPv6 header does not.
#[inline(always)]
pub(super) fn addresses(
    skb: Skb,
    packet: &Packet,
    source: &Addr,
    destination: &Addr,
    hop_limit: u8,
) -> Result<(), ()> {
    if packet.is_v4() {
        let header = rewrite::ipv4_header(packet, source, destination, hop_limit);
        skb.store_words(packet.l3 + rewrite::IPV4_AT, &header, 0)
    } else {
        let header = rewrite::ipv6_header(packet, source, destination, hop_limit);
        skb.store_words(packet.l3 + rewrite::IPV6_AT, &header, BPF_F_RECOMPUTE_CSUM)
    }
}
