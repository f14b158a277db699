//! Fragments: only the first one of a packet has ports, so it leaves them behind for the others.
//!
//! One that comes before the first finds nothing, and its packet is lost, as on any path that does
//! not reassemble: it is dropped and counted where it is for a service's cluster IP, which no stack
//! would put it together for. To the node's own addresses, node ports and answers among them, come
//! the node's own packets too: there it goes to the stack, which forgets it after a while if the
//! first was translated. So does one to any other address, which may be a service's outside of the
//! ranges (a load balancer's, an external one) or anybody's. Both are counted, as what may be lost.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use mizzen_ebpf_abi::{
    conntrack::FragmentKey,
    counters::Counter,
    limits,
    node::cluster_range_flags,
    packet::{Bytes as _, Fragment, Packet},
    service::NO_SET,
};

use super::{PASS, drop_counted, skb::Skb};
use crate::{
    lookup::{self, Unserved},
    maps::count,
};

/// Packet in fragments -> its ports. The oldest make room: what is lost is a packet, not a flow.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, [u8; 4], { limits::FRAGMENTS_MAX as usize }> =
    LruHashMap::new();

/// Completes the key of a fragment that is not the first. Without it the ports are zero, and of no
/// flow.
#[inline(always)]
pub(super) fn recall(packet: &mut Packet) {
    if packet.fragment != Fragment::LATER {
        return;
    }
    let Some(ports) = FRAGMENTS.get_ptr(&packet.fragment_key()) else {
        return;
    };
    // SAFETY: an element of a live map, copied at once; ports of another packet whose fragments
    // take this one's place do no more than a fragment that was lost.
    let ports = unsafe { *ports };
    packet.key.source_port = [ports[0], ports[1]];
    packet.key.destination_port = [ports[2], ports[3]];
}

/// The verdict on a fragment that is of no flow.
#[inline(always)]
pub(super) fn stray(packet: &Packet) -> i32 {
    match lookup::unserved(packet.key.destination) {
        Unserved::Foreign => {
            if lookup::range_flags(&packet.key.destination) & cluster_range_flags::PODS == 0 {
                count(Counter::FragmentUnknown);
            }
            PASS
        }
        Unserved::UnknownPort | Unserved::Unallocated => {
            drop_counted(packet, NO_SET, Counter::DropFragmentAhead)
        }
    }
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

/// Whether a router may make fragments of the packet (RFC 791 section 2.3).
#[inline(always)]
pub(super) fn may_be_made_of(skb: Skb, packet: &Packet) -> bool {
    const DONT_FRAGMENT: u8 = 0x40;
    packet.is_v4()
        && skb.load::<2>(packet.l3 + 6).is_some_and(|[flags, _]| flags & DONT_FRAGMENT == 0)
}
