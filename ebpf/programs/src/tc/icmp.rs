//! ICMP errors about translated flows (B65): the sender of the quoted packet has to recognise it,
//! or it never learns the path's MTU.

use mizzen_ebpf_abi::{
    addr::protocol,
    conntrack::{Flow, FlowKey, flow_flags},
    counters::Counter,
    packet::{Fragment, Packet, is_icmp_error},
    rewrite::{self, Deltas},
};

use super::{
    DROP, PASS, UNKNOWN,
    deliver::{self, Found},
    drop_counted, hop_limit, node,
    scratch::{self, Scratch},
    skb::{Covered, Skb},
    translate::{addresses, put_ports},
};
use crate::maps::{FLOWS, count};

/// Octets of the ICMP and ICMPv6 headers before what they quote.
const ICMP_HEADER: u32 = 8;

/// The flow of what an error quotes, as it left us, with the error's own as it will leave; none
/// where it is no such error.
#[inline(always)]
fn quoted_flow(skb: Skb, scratch: &mut Scratch) -> Option<*const Flow> {
    let (packet, quoted) = (&scratch.packet, &mut scratch.quoted);
    if !is_icmp_error(packet.is_v4(), packet.icmp_type) || packet.fragment != Fragment::WHOLE {
        return None;
    }
    if !read_quoted(skb, packet, quoted) {
        return None;
    }
    // The error travels against what it quotes: with the answers of that flow.
    let travels = quoted.key.reversed();
    let found = FLOWS.get_ptr(&travels)?;
    // SAFETY: an element of a live map; addresses and flags never change.
    let flow = unsafe { &*found };
    let from_peer = packet.key.source.is(&travels.source);
    scratch.leaving = FlowKey {
        source: if from_peer { flow.source } else { packet.key.source },
        destination: flow.destination,
        ..packet.key
    };
    Some(found)
}

/// Translates an error of the node's own stack about a packet that a client sent to a backend that
/// is the node: a port where nobody listens. It is routed already.
#[inline(never)]
pub(super) fn of_node(skb: Skb, scratch: &mut Scratch) -> i32 {
    let Some(flow) = quoted_flow(skb, scratch) else {
        return PASS;
    };
    // SAFETY: as there.
    let flow = unsafe { &*flow };
    let redirected = flow.flags & flow_flags::REWRITE_DESTINATION != 0;
    if flow.flags & flow_flags::ORIGINAL != 0 || redirected && flow.device == 0 {
        return PASS;
    }
    if translate(skb, scratch, flow, scratch.packet.hop_limit()).is_err() {
        return DROP;
    }
    if redirected { node::back(skb) } else { PASS }
}

/// Translates an error that quotes a packet of a known flow, as it left us; anything else is
/// [`UNKNOWN`].
#[inline(never)]
pub(super) fn related(skb: Skb, scratch: &mut Scratch) -> i32 {
    let Some(flow) = quoted_flow(skb, scratch) else {
        return UNKNOWN;
    };
    // SAFETY: as there.
    let flow = unsafe { &*flow };
    let packet = &scratch.packet;
    let to_node = flow.flags & flow_flags::TO_NODE != 0;
    let Some(hop_limit) = hop_limit(packet, to_node) else {
        return drop_counted(packet, flow.set, Counter::DropHopLimit);
    };
    // No error is made about an error (RFC 1122 section 3.2.2).
    let to_node = to_node
        || match deliver::find(skb, packet, &scratch.leaving, &mut scratch.way) {
            Found::Way => false,
            Found::Node => true,
            Found::Nothing => return drop_counted(packet, flow.set, Counter::DropNoRoute),
            Found::TooBig => return drop_counted(packet, flow.set, Counter::DropPacketTooBig),
        };
    if translate(skb, scratch, flow, hop_limit).is_err() {
        return DROP;
    }
    if to_node { node::admit(skb, flow.device) } else { deliver::send(skb, &mut scratch.way) }
}

/// Rewrites the error and what it quotes.
#[inline(always)]
fn translate(skb: Skb, scratch: &Scratch, flow: &Flow, hop_limit: u8) -> Result<(), ()> {
    let packet = &scratch.packet;
    quoted_packet(skb, &scratch.quoted, flow, packet.checksum_offset())?;
    own_header(skb, packet, &scratch.leaving, hop_limit)?;
    count(Counter::PacketTranslated);
    Ok(())
}

#[inline(never)]
pub(super) fn read_quoted(skb: Skb, packet: &Packet, quoted: &mut Packet) -> bool {
    scratch::clear(quoted);
    quoted.read_quoted(&skb, packet.is_v4(), packet.l4 + ICMP_HEADER).is_ok()
}

/// Rewrites what the error quotes to what its sender knows. `at` is the error's checksum.
#[inline(never)]
fn quoted_packet(skb: Skb, quoted: &Packet, flow: &Flow, at: u32) -> Result<(), ()> {
    // What the flow does to answers, done to a packet that runs against them.
    let sent = Flow {
        source: flow.destination,
        destination: flow.source,
        source_port: flow.destination_port,
        destination_port: flow.source_port,
        ..Flow::default()
    };
    if quoted.is_v4() {
        // The quoted header sums to the same as before, its own checksum included.
        let header =
            rewrite::ipv4_header(quoted, &sent.source, &sent.destination, quoted.hop_limit());
        skb.store_words(quoted.l3 + rewrite::IPV4_AT, &header, 0)?;
    } else {
        let header =
            rewrite::ipv6_header(quoted, &sent.source, &sent.destination, quoted.hop_limit());
        skb.store_words(quoted.l3 + rewrite::IPV6_AT, &header, 0)?;
        let addresses = Deltas::new(&quoted.key, &sent).addresses;
        skb.mend(at, addresses, Covered::Transport, protocol::ICMPV6)?;
    }
    put_ports(skb, quoted, &sent)?;
    let ports = Deltas::new(&quoted.key, &sent).ports;
    skb.mend(at, ports, Covered::Transport, protocol::ICMP)
}

/// Rewrites the addresses of the error itself. Only ICMPv6 sums them.
#[inline(never)]
fn own_header(skb: Skb, packet: &Packet, leaving: &FlowKey, hop_limit: u8) -> Result<(), ()> {
    if !packet.is_v4() {
        let to =
            Flow { source: leaving.source, destination: leaving.destination, ..Flow::default() };
        let delta = Deltas::new(&packet.key, &to).addresses;
        skb.mend(packet.checksum_offset(), delta, Covered::PseudoHeader, protocol::ICMPV6)?;
    }
    addresses(skb, packet, &leaving.source, &leaving.destination, hop_limit)
}
