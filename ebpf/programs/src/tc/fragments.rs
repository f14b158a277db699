//! Fragments: only the first one of a packet has ports, so it leaves them behind for the others.
//!
//! One that comes before the first finds nothing and goes to the stack; its packet is lost, as on
//! any path that does not reassemble.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use mizzen_ebpf_abi::{
    conntrack::FragmentKey,
    limits,
    packet::{Fragment, Packet},
};

/// Packet in fragments -> its ports. The oldest make room: what is lost is a packet, not a flow.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, [u8; 4], { limits::FRAGMENTS_MAX as usize }> =
    LruHashMap::new();

/// Completes the key of a fragment that is not the first. Whether it could, or had not to.
#[inline(always)]
pub(super) fn recall(packet: &mut Packet) -> bool {
    if packet.fragment != Fragment::LATER {
        return true;
    }
    let Some(ports) = FRAGMENTS.get_ptr(&packet.fragment_key()) else {
        return false;
    };
    // SAFETY: an element of a live map, copied at once; ports of another packet whose fragments
    // take this one's place do no more than a fragment that was lost.
    let ports = unsafe { *ports };
    packet.key.source_port = [ports[0], ports[1]];
    packet.key.destination_port = [ports[2], ports[3]];
    true
}

/// Leaves the ports of a first fragment behind. Whether it could, or had not to.
#[inline(always)]
pub(super) fn remember(packet: &Packet) -> bool {
    if packet.fragment != Fragment::FIRST {
        return true;
    }
    let (s, d) = (packet.key.source_port, packet.key.destination_port);
    FRAGMENTS.insert(&packet.fragment_key(), [s[0], s[1], d[0], d[1]], 0).is_ok()
}
