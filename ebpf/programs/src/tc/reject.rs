//! Answers where a service has no endpoints: the packet is turned into its own answer and goes
//! back by where it came.

use aya_ebpf::{bindings::BPF_F_RECOMPUTE_CSUM, helpers::generated::bpf_redirect};
use mizzen_ebpf_abi::{
    addr::protocol,
    counters::Counter,
    packet::{Bytes, ETHERNET_HEADER, Packet},
    reject::{HOP_LIMIT, IcmpError, QUOTED_V4, QUOTED_V6, icmp_v4, icmp_v6, tcp_reset},
};

use super::{
    DROP,
    skb::{Covered, Skb},
    translate::addresses,
};
use crate::maps::count;

/// Answers a connection with a reset and a datagram with an ICMP error.
#[inline(never)]
pub(super) fn no_endpoints(skb: Skb, packet: &Packet) -> i32 {
    let answered = match packet.key.protocol {
        protocol::TCP => reset(skb, packet),
        _ if packet.is_v4() => unreachable_v4(skb, packet),
        _ => unreachable_v6(skb, packet),
    };
    if !answered {
        count(Counter::DropNoEndpoints);
        return DROP;
    }
    count(Counter::Rejected);
    // SAFETY: the helper takes no pointers.
    unsafe { bpf_redirect(skb.ifindex(), skb.way_back()) as i32 }
}

/// Turns a SYN into the reset that answers it.
#[inline(never)]
fn reset(skb: Skb, packet: &Packet) -> bool {
    let Some(syn) = skb.words(packet.l4) else {
        return false;
    };
    let (header, delta) = tcp_reset(&syn);
    let (source, destination) = (&packet.key.destination, &packet.key.source);
    skb.store_words(packet.l4, &header, 0).is_ok()
        && skb.mend(packet.checksum_offset(), delta, Covered::Transport).is_ok()
        && addresses(skb, packet, source, destination, HOP_LIMIT).is_ok()
        && turn_around(skb)
}

/// Puts an ICMP port unreachable in front of the beginning of a datagram.
#[inline(never)]
fn unreachable_v4(skb: Skb, packet: &Packet) -> bool {
    if packet.l4 - packet.l3 != 20 {
        return false; // with options, the ports would not be among what is quoted
    }
    let Some(quoted) = skb.words(packet.l3) else {
        return false;
    };
    let (service, client) = (&packet.key.destination, &packet.key.source);
    let headers = icmp_v4(IcmpError::PortUnreachable, &quoted, service, client);
    put_in_front(skb, QUOTED_V4, &headers)
}

/// Puts an ICMPv6 port unreachable in front of the beginning of a datagram.
#[inline(never)]
fn unreachable_v6(skb: Skb, packet: &Packet) -> bool {
    if packet.l4 - packet.l3 != 40 {
        return false;
    }
    let Some(quoted) = skb.words(packet.l3) else {
        return false;
    };
    let (service, client) = (&packet.key.destination, &packet.key.source);
    let headers = icmp_v6(IcmpError::PortUnreachable, &quoted, service, client);
    put_in_front(skb, QUOTED_V6, &headers)
}

/// Cuts the packet down to `kept` words and puts `headers` in front of them.
#[inline(always)]
fn put_in_front<const N: usize>(skb: Skb, kept: usize, headers: &[u32; N]) -> bool {
    turn_around(skb)
        && skb.truncate(ETHERNET_HEADER + kept as u32 * 4).is_ok()
        && skb.insert_after_mac(N as i32 * 4).is_ok()
        && skb.store_words(ETHERNET_HEADER, headers, BPF_F_RECOMPUTE_CSUM).is_ok()
}

/// Exchanges the link-layer addresses.
#[inline(always)]
fn turn_around(skb: Skb) -> bool {
    let Some(m) = skb.load::<12>(0) else {
        return false;
    };
    let turned = [m[6], m[7], m[8], m[9], m[10], m[11], m[0], m[1], m[2], m[3], m[4], m[5]];
    skb.store(0, &turned, 0).is_ok()
}
