//! The fourth stage: a backend for a new flow, and the rewriting of every packet.

use aya_ebpf::{
    bindings::{BPF_F_RECOMPUTE_CSUM, TC_ACT_OK},
    helpers::generated::bpf_get_prandom_u32,
};
use mizzen_ebpf_abi::{
    addr::Addr,
    conntrack::{Flow, flow_flags},
    counters::Counter,
    flow_state,
    nat::{self, Facts, Origin},
    packet::{Fragment, Packet},
    rewrite::{self, Deltas},
    service::{Frontend, frontend_flags},
};

use super::{
    DROP, PASS, conntrack, reject,
    scratch::{Opening, Scratch},
    skb::{Covered, Skb},
};
use crate::{
    lookup::{self, Backend, NoBackend, Slots, Window},
    maps::{NODE_ADDRS, NODE_CONFIG, count, is_pod_range},
};

/// What [`open`] answers where the flow is open; any other answer is the verdict on the packet.
pub(super) const OPENED: i32 = TC_ACT_OK as i32;

/// Opens the flow of a packet that dials a service.
#[inline(never)]
pub(super) fn open(skb: Skb, scratch: &mut Scratch, now_s: u32) -> i32 {
    let (packet, opening) = (&scratch.packet, &mut scratch.opening);
    let key = &packet.key;
    if packet.fragment == Fragment::LATER || !flow_state::opens(key.protocol, packet.tcp_flags) {
        return PASS;
    }
    let Some(frontend) = lookup::frontend(key.destination, key.destination_port, key.protocol)
    else {
        return PASS;
    };
    if frontend.flags & frontend_flags::PREFER_LOCAL != 0 {
        return PASS; // the node itself answers for it at present
    }
    let Some(config) = NODE_CONFIG.get(0) else {
        return PASS;
    };
    let facts =
        Facts { origin: origin(key.source), frontend: frontend.flags, config: config.flags };
    let (slots, backend) = match choose(&frontend, &facts, packet.is_v4()) {
        Ok(chosen) => chosen,
        Err(reason) => return refuse(skb, packet, reason),
    };
    prepare(opening, packet, &slots, &backend);
    opening.now_s = now_s;
    let hairpin = backend.addr.is(&key.source);
    if opening.flags & flow_flags::TO_NODE == 0 && facts.masquerades(hairpin) {
        match nat::masquerade_address(config, packet.is_v4()) {
            Some(address) => opening.to.source = address,
            None => {
                count(Counter::DropNoSourcePort);
                return DROP;
            }
        }
    }
    match conntrack::open(opening, config) {
        Ok(()) => OPENED,
        Err(reason) => {
            count(reason);
            DROP
        }
    }
}

/// A backend from the window that the flow's traffic policy gives it.
#[inline(always)]
fn choose(frontend: &Frontend, facts: &Facts, v4: bool) -> Result<(Slots, Backend), NoBackend> {
    let window = if facts.bound_by_external_policy() {
        Window::outside(frontend)
    } else {
        Window::nearby(frontend)
    };
    let slots = lookup::slots(frontend, window)?;
    // SAFETY: the helper has no preconditions.
    let backend = lookup::choose(&slots, unsafe { bpf_get_prandom_u32() }, v4)?;
    Ok((slots, backend))
}

/// Fills in the flow, with its source kept for now.
#[inline(always)]
fn prepare(opening: &mut Opening, packet: &Packet, slots: &Slots, backend: &Backend) {
    opening.key = packet.key;
    opening.to.source = packet.key.source;
    opening.to.source_port = packet.key.source_port;
    opening.to.destination = backend.addr;
    opening.to.destination_port = backend.port;
    opening.backend = backend.id;
    opening.set = slots.set;
    opening.flags = if is_node(backend.addr) { flow_flags::TO_NODE } else { 0 };
    opening.tcp_flags = packet.tcp_flags;
}

/// The verdict on a packet whose service has no backend for it.
#[inline(always)]
fn refuse(skb: Skb, packet: &Packet, reason: NoBackend) -> i32 {
    match reason {
        NoBackend::Reject => reject::no_endpoints(skb, packet),
        NoBackend::Drop => {
            count(Counter::DropNoLocalEndpoint);
            DROP
        }
        NoBackend::Proxy => PASS,
        // Counted; what is sent again sees the tables whole.
        NoBackend::ForeignRange | NoBackend::ForeignBackend => DROP,
    }
}

/// Where a flow comes from.
#[inline(always)]
fn origin(source: Addr) -> Origin {
    if is_pod_range(source) {
        Origin::Pod
    } else if is_node(source) {
        Origin::Node
    } else {
        Origin::Outside
    }
}

/// Whether the address is one of this node's.
#[inline(always)]
fn is_node(addr: Addr) -> bool {
    NODE_ADDRS.get_ptr(&addr).is_some()
}

/// Writes the flow's translation into the packet.
#[inline(never)]
pub(super) fn rewrite(skb: Skb, packet: &Packet, flow: &Flow, hop_limit: u8) -> Result<(), ()> {
    let (source, destination) = (&flow.source, &flow.destination);
    addresses(skb, packet, source, destination, hop_limit)?;
    count(Counter::PacketTranslated);
    if packet.fragment == Fragment::LATER {
        return Ok(()); // nothing of it is a transport header
    }
    skb.store(packet.l4, &rewrite::ports(flow), 0)?;
    let deltas = Deltas::new(&packet.key, flow);
    let at = packet.checksum_offset();
    skb.mend(at, deltas.addresses, Covered::PseudoHeader)?;
    skb.mend(at, deltas.ports, Covered::Transport)
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
