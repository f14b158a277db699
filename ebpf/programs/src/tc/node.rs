//! Packets that the node itself sends to services, untranslated: those of sockets older than the
//! agent, of processes outside of its cgroup, of raw sockets (D16, D18).
//!
//! They are met where the node's routes lead them, on their way out by an uplink, and translated
//! there. To a pod of this node they go straight; all others come in again by the same device and
//! are sent on from there, as the kernel would still send them where their old route leads.
//!
//! The answers of a pod of this node come in by its veth, while the way to the service is the
//! uplink: strict reverse path filters would drop what comes from a service by another device. So
//! a flow remembers its device, and its answers come in by that ([`admit`]).
//!
//! What the node sends to its own addresses goes by its loopback interface, where nothing but questions
//! to cluster DNS is looked at ([`super::loopback`]): node ports at these are left to the socket
//! programs.

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::generated::bpf_redirect};
use mizzen_ebpf_abi::{
    conntrack::flow_flags,
    counters::Counter,
    node::LOOPBACK,
    packet::{Fragment, is_icmp_error},
    service::NO_SET,
};

use super::{
    DROP, PASS, conntrack, deliver, drop_counted, flow_of, fragments, icmp, is_icmp, loopback,
    parsed, policy, reject, scratch::Scratch, skb::Skb, tell_gone, translate,
};
use crate::maps::FLOWS;

/// A packet that leaves by an uplink.
#[inline(always)]
pub(super) fn egress(skb: Skb) -> i32 {
    if skb.is_forwarded() {
        return PASS;
    }
    let Some(scratch) = parsed(skb) else {
        return PASS;
    };
    if scratch.packet.is_echo_request() {
        return translate::unserved(skb, &scratch.packet);
    }
    if is_icmp(&scratch.packet) {
        return icmp::of_node(skb, scratch);
    }
    let flow = match flow_of::<true>(skb, scratch, skb.ifindex()) {
        Ok(flow) => flow,
        Err(verdict) => return verdict,
    };
    let packet = &scratch.packet;
    // SAFETY: as in `ingress`.
    let flow = unsafe { &*flow };
    let redirected = flow.flags & flow_flags::REWRITE_DESTINATION != 0;
    if flow.device == 0 && (redirected || flow.flags & flow_flags::ORIGINAL != 0) {
        return PASS;
    }
    if !policy::allows(packet) {
        return DROP;
    }
    if conntrack::is_gone(skb, packet, flow) {
        return tell_gone(skb, packet, flow);
    }
    scratch.leaving = packet.key.rewritten(flow);
    // Told here, while the packet is as its socket made it.
    if redirected && deliver::exceeds(skb, packet, &scratch.leaving, &mut scratch.way) {
        return reject::too_big(skb, packet, flow, scratch.way.mtu);
    }
    if !fragments::remember(packet) {
        return drop_counted(packet, flow.set, Counter::DropFragment);
    }
    if translate::rewrite(skb, packet, flow, packet.hop_limit()).is_err() {
        return DROP;
    }
    if !redirected {
        return PASS; // routed already, to where it goes
    }
    if let Some(verdict) = deliver::to_own_pod(skb, &scratch.leaving, &mut scratch.way) {
        return verdict;
    }
    back(skb)
}

/// Lets a packet come in by the device that it leaves by.
#[inline(always)]
pub(super) fn back(skb: Skb) -> i32 {
    // SAFETY: the helper takes no pointers.
    unsafe { bpf_redirect(skb.ifindex(), BPF_F_INGRESS.into()) as i32 }
}

/// Hands a translated packet to the node's stack, by the device that its flow names if any.
#[inline(always)]
pub(super) fn admit(skb: Skb, device: u32) -> i32 {
    if device == 0 || device == skb.ifindex() {
        return PASS;
    }
    if device == LOOPBACK {
        return loopback::admit();
    }
    // SAFETY: the helper takes no pointers.
    unsafe { bpf_redirect(device, BPF_F_INGRESS.into()) as i32 }
}

/// Whether the packet is of one of the node's own flows and translated already: sent to this
/// device's ingress by [`egress`] or [`admit`]. Its link-layer address is that of where it was
/// before.
#[inline(never)]
pub(super) fn is_back(skb: Skb, scratch: &mut Scratch) -> bool {
    let (packet, quoted) = (&scratch.packet, &mut scratch.quoted);
    let key = if !is_icmp(packet) {
        packet.key.reversed()
    } else if is_icmp_error(packet.is_v4(), packet.icmp_type)
        && packet.fragment == Fragment::WHOLE
        && icmp::read_quoted(skb, packet, quoted)
    {
        quoted.key
    } else {
        return false;
    };
    // SAFETY: an element of a live map; the device never changes.
    FLOWS.get_ptr(&key).is_some_and(|flow| unsafe { (*flow).device != 0 })
}

/// Sends a packet on that [`is_back`].
#[inline(always)]
pub(super) fn forward(skb: Skb, scratch: &mut Scratch) -> i32 {
    // Under the addresses that it has by now.
    if !fragments::remember(&scratch.packet) {
        return drop_counted(&scratch.packet, NO_SET, Counter::DropFragment);
    }
    if translate::is_node(scratch.packet.key.destination) {
        skb.claim();
        return PASS;
    }
    deliver::deliver(skb, &scratch.packet, &mut scratch.way)
}
