//! Counts packets of the backends that they are translated for.
//!
//! A packet's program is not interrupted by another packet's on the same processor, so that a lane
//! that is one processor's own needs no atomic addition.

use aya_ebpf::{Global, helpers::generated::bpf_get_smp_processor_id};
use mizzen_ebpf_abi::{
    conntrack::{Flow, flow_flags},
    counters::Counter,
    packet::Packet,
    traffic,
};

use super::skb::Skb;
use crate::{
    maps::{PACKET_COUNTS, count},
    traffic::add,
};

/// How many lanes there are, a power of two; set by the loader.
#[unsafe(no_mangle)]
static LANES: Global<u32> = Global::new(1);
/// Whether there are more processors than lanes; set by the loader.
#[unsafe(no_mangle)]
static LANES_ARE_SHARED: Global<u32> = Global::new(1);

/// A packet of a flow is translated. The backend's id may be another's by now.
#[inline(always)]
pub(super) fn passed(skb: Skb, packet: &Packet, flow: &Flow) {
    if flow.flags & flow_flags::OUTWARD != 0 {
        return;
    }
    let to_backend = flow.flags & flow_flags::ORIGINAL != 0;
    let (addr, port) = if to_backend {
        (&flow.destination, flow.destination_port)
    } else {
        (&packet.key.source, packet.key.source_port)
    };
    let (chunk, index) = traffic::place(flow.backend, addr.is_v4());
    let lanes = LANES.load();
    // SAFETY: the helper has no preconditions.
    let lane = unsafe { bpf_get_smp_processor_id() } & (lanes - 1);
    let Some(counts) = PACKET_COUNTS.get_value_ptr_mut(chunk, &(index * lanes + lane)) else {
        return;
    };
    // SAFETY: an element of a live map; one word.
    let owner = unsafe { core::ptr::read_volatile(&raw const (*counts).owner) };
    if owner != traffic::owner(flow.set, addr, port) {
        count(Counter::TrafficOfFormerBackend);
        return;
    }
    // SAFETY: words of an element of a live map.
    let (packets, bytes) = unsafe {
        if to_backend {
            (&raw mut (*counts).sent_packets, &raw mut (*counts).sent_bytes)
        } else {
            (&raw mut (*counts).received_packets, &raw mut (*counts).received_bytes)
        }
    };
    let (segments, octets) = (skb.segments().into(), skb.length().wrapping_sub(packet.l3).into());
    if LANES_ARE_SHARED.load() != 0 {
        add(packets, segments);
        add(bytes, octets);
    } else {
        // SAFETY: as above; nobody else writes them.
        unsafe {
            *packets += segments;
            *bytes += octets;
        }
    }
}
