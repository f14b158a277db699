//! The packet path: what sockets did not translate. One file per stage, in the order in which
//! every packet passes them; the files named after hooks hold the programs.
//!
//! 1. parse: bytes to flow;
//! 2. [`conntrack`]: is the flow known;
//! 3. [`policy`]: may it pass (an empty slot so far);
//! 4. [`translate`]: choose a backend for a new flow, rewrite the packet;
//! 5. [`deliver`]: send it on.
//!
//! What can't go on is answered ([`reject`]).
//!
//! A translated packet may carry one of the node's own addresses as its source, which the stack
//! refuses on input. So it is not handed to the stack but sent on from here, whatever its source:
//! reverse path filters on the way have nothing to object either. The exception is a backend that
//! is the node itself: its packets keep their source and go to the stack, and its answers are
//! translated on egress ([`answer`]).
//!
//! What the node itself sends to services is [`node`]'s; what it sends to cluster DNS, whose addresses
//! are its own, is [`loopback`]'s.
//!
//! What the datapath does not know goes to the stack untouched, the next program first.

mod conntrack;
mod deliver;
mod fragments;
mod icmp;
mod into_tunnel;
mod loopback;
mod masquerade;
mod node;
mod pod;
mod policy;
mod reject;
mod scratch;
mod skb;
mod traffic;
mod translate;
mod tunnel;
mod uplink;

use aya_ebpf::bindings::{TC_ACT_PIPE, TC_ACT_SHOT, TC_ACT_UNSPEC};
use mizzen_ebpf_abi::{
    addr::protocol,
    conntrack::{Flow, flow_flags},
    counters::Counter,
    flow_state,
    packet::{ETHERNET_HEADER, Fragment, Packet, Skip},
    service::NO_SET,
};

use self::{deliver::Found, scratch::Scratch, skb::Skb};
use crate::{events, maps::count};

/// The next program decides, in the end the stack.
const PASS: i32 = TC_ACT_UNSPEC;
/// The datapath knows nothing of the packet that would tell it what to do.
const UNKNOWN: i32 = TC_ACT_PIPE as i32;
/// The packet ends here.
const DROP: i32 = TC_ACT_SHOT as i32;

/// Ends a packet of a service's set ([`NO_SET`] where none is known), counts why, and tells those who
/// follow.
#[inline(always)]
fn drop_counted(packet: &Packet, set: u32, reason: Counter) -> i32 {
    count(reason);
    events::stopped(&packet.key, set, reason);
    DROP
}

/// As [`drop_counted`], of a packet that was not read: it is, where somebody follows.
#[inline(always)]
fn drop_unread(skb: Skb, reason: Counter) -> i32 {
    count(reason);
    if events::are_followed()
        && let Some(scratch) = parsed(skb)
    {
        events::stopped(&scratch.packet.key, NO_SET, reason);
    }
    DROP
}

/// A packet that comes in, from an uplink or from a pod; [`UNKNOWN`] where it is of no flow and
/// opens none. What comes by an uplink with another host's link-layer address is the node's own on
/// its way back, or what a device in promiscuous mode gets to see. (Of pods that are ports of a
/// bridge, all that they send by it looks so.)
#[inline(always)]
fn ingress<const UPLINK: bool>(skb: Skb, scratch: &mut Scratch) -> i32 {
    if UPLINK && skb.is_for_another_host() {
        return if node::is_back(skb, scratch) { node::forward(skb, scratch) } else { PASS };
    }
    if is_icmp(&scratch.packet) && !may_be_of_echo(&scratch.packet) {
        return icmp::related(skb, scratch);
    }
    let flow = match flow_of::<UPLINK>(skb, scratch, 0) {
        Ok(flow) => flow,
        Err(PASS) => return UNKNOWN,
        Err(verdict) => return verdict,
    };
    let packet = &scratch.packet;
    if !policy::allows(packet) {
        return DROP;
    }
    // SAFETY: the flow is an element of a live map; its addresses and flags never change.
    let flow = unsafe { &*flow };
    if conntrack::is_gone(skb, packet, flow) {
        return tell_gone(skb, packet, flow);
    }
    let to_node = flow.flags & flow_flags::TO_NODE != 0;
    let Some(hop_limit) = hop_limit(packet, to_node) else {
        return reject::hop_limit(skb, packet, flow);
    };
    scratch.leaving = packet.key.rewritten(flow);
    let to_node = to_node
        || match deliver::find(skb, packet, &scratch.leaving, &mut scratch.way) {
            Found::Way => false,
            Found::Node => true,
            Found::Nothing => return drop_counted(packet, flow.set, Counter::DropNoRoute),
            Found::TooBig => return too_big(skb, packet, flow, scratch.way.mtu),
        };
    if !fragments::remember(packet) {
        return drop_counted(packet, flow.set, Counter::DropFragment);
    }
    if translate::rewrite(skb, packet, flow, hop_limit).is_err() {
        return DROP;
    }
    if to_node { node::admit(skb, flow.device) } else { deliver::send(skb, &mut scratch.way) }
}

/// Tells the opener of a flow that its backend was deleted (V8).
#[inline(always)]
fn tell_gone(skb: Skb, packet: &Packet, flow: &Flow) -> i32 {
    let verdict = reject::gone(skb, packet, flow.set);
    if verdict != DROP {
        conntrack::reset(skb, &packet.key, flow); // only what was told: else the next segment is
    }
    verdict
}

/// A packet of a flow that is larger than its next link takes. One that may be fragmented goes to
/// the stack, which does that, where nothing but its destination changes: with another source the
/// stack would refuse it. Others are answered.
#[inline(always)]
fn too_big(skb: Skb, packet: &Packet, flow: &Flow, mtu: u16) -> i32 {
    if flow.flags & flow_flags::REWRITE_SOURCE != 0 || !fragments::may_be_made_of(skb, packet) {
        return reject::too_big(skb, packet, flow, mtu);
    }
    translate_for_stack(skb, packet, flow)
}

/// Translates a packet that goes on through the stack, which takes one off the hop limit itself
/// where it forwards.
#[inline(always)]
fn translate_for_stack(skb: Skb, packet: &Packet, flow: &Flow) -> i32 {
    if !fragments::remember(packet) {
        return drop_counted(packet, flow.set, Counter::DropFragment);
    }
    match translate::rewrite(skb, packet, flow, packet.hop_limit()) {
        Ok(()) => PASS,
        Err(()) => DROP,
    }
}

#[inline(always)]
fn is_icmp(packet: &Packet) -> bool {
    matches!(packet.key.protocol, protocol::ICMP | protocol::ICMPV6)
}

/// Whether a packet of ICMP goes the way of all others: an echo, for pods reach hosts outside by it.
/// A request to a cluster IP is refused as any unknown port is, for there is nobody to answer it;
/// routed on, it might come back (U13).
#[inline(always)]
fn may_be_of_echo(packet: &Packet) -> bool {
    packet.is_echo() || packet.fragment == Fragment::LATER
}

/// A packet that the node itself sends to a pod: the answer of a backend that is the node itself
/// gets its service's address, and so does an ICMP error about it. It is routed already, and its
/// destination does not change.
#[inline(always)]
fn answer(skb: Skb) -> i32 {
    if skb.is_forwarded() {
        return PASS;
    }
    let Some(scratch) = parsed(skb) else {
        return PASS;
    };
    if is_icmp(&scratch.packet) {
        return icmp::of_node(skb, scratch);
    }
    let packet = &scratch.packet;
    let Some(flow) = conntrack::track(skb, packet) else {
        return PASS;
    };
    // SAFETY: as in `ingress`.
    let flow = unsafe { &*flow };
    if flow.flags & (flow_flags::ORIGINAL | flow_flags::REWRITE_DESTINATION) != 0 {
        return PASS;
    }
    translate_for_stack(skb, packet, flow)
}

/// This processor's memory with the packet in it; none where it is no packet that could be of a
/// flow.
#[inline(always)]
fn parsed(skb: Skb) -> Option<&'static mut Scratch> {
    let scratch = scratch::own()?;
    let mut outcome = read(skb, &mut scratch.packet);
    // What an ICMP error quotes has headers too.
    if (outcome == SHORT || is_icmp(&scratch.packet)) && skb.pull_headers() {
        outcome = read(skb, &mut scratch.packet);
    }
    if outcome != READ {
        return None;
    }
    fragments::recall(&mut scratch.packet);
    Some(scratch)
}

/// The flow of a packet, opened where it is new; else the verdict on the packet. `device` as for
/// [`translate::open`].
#[inline(always)]
fn flow_of<const UPLINK: bool>(
    skb: Skb,
    scratch: &mut Scratch,
    device: u32,
) -> Result<*const Flow, i32> {
    let packet = &scratch.packet;
    if let Some(flow) = conntrack::track(skb, packet) {
        return Ok(flow);
    }
    if packet.fragment == Fragment::LATER {
        return Err(fragments::stray(packet));
    }
    if !flow_state::opens(packet.key.protocol, packet.tcp_flags) || packet.is_echo_reply() {
        return Err(PASS);
    }
    let verdict = translate::open::<UPLINK>(skb, scratch, device);
    if verdict != translate::OPENED {
        return Err(verdict);
    }
    // Over already: what is sent again opens it anew.
    conntrack::opened(&scratch.packet.key).ok_or(DROP)
}

/// The packet was read.
const READ: i32 = 0;
/// It is of no concern to the datapath.
const FOREIGN: i32 = 1;
/// Its headers end too early, or lie elsewhere.
const SHORT: i32 = 2;

/// The first stage.
#[inline(never)]
fn read(skb: Skb, packet: &mut Packet) -> i32 {
    scratch::clear(packet);
    match packet.read(&skb, skb.ethertype(), ETHERNET_HEADER) {
        Ok(()) => READ,
        Err(Skip::Malformed) => SHORT,
        Err(_) => FOREIGN,
    }
}

/// The hop limit with which a packet leaves; none where it may go no further (RFC 1812 section
/// 5.3.1, RFC 8200 section 3).
#[inline(always)]
fn hop_limit(packet: &Packet, to_node: bool) -> Option<u8> {
    if to_node {
        Some(packet.hop_limit())
    } else if packet.hop_limit() > 1 {
        Some(packet.hop_limit() - 1)
    } else {
        None
    }
}
