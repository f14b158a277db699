//! Answers that are ours: a packet that can't go on is turned into the reset or the ICMP error
//! that tells its sender so, and goes back by where it came. No more of them than a processor's
//! share: whoever asks may have forged who asks.

use aya_ebpf::{
    bindings::BPF_F_RECOMPUTE_CSUM,
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect},
    macros::btf_map,
};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    conntrack::{Flow, flow_flags},
    counters::Counter,
    nat,
    packet::{Bytes, ETHERNET_HEADER, Fragment, Packet},
    rate::{Buckets, Kind},
    reject::{
        IcmpError, Quoted, ResetSums, TCP_HEADER, icmp_v4, icmp_v6, ipv4_turned, ipv6_turned,
        tcp_reset,
    },
};

use super::{
    DROP, drop_counted,
    skb::{Covered, Skb},
};
use crate::maps::NODE_CONFIG;

/// What answers need of a processor's own memory.
#[repr(C)]
struct Answers {
    /// How many more there may be.
    buckets: Buckets,
    /// What an ICMP error quotes.
    quoted: Quoted,
}

#[btf_map]
static ANSWERS: PerCpuArray<Answers, 1> = PerCpuArray::new();

/// To the first packet of a flow whose service has no endpoints: a reset, or port unreachable.
#[inline(never)]
pub(super) fn no_endpoints(skb: Skb, packet: &Packet, set: u32) -> i32 {
    let made = match packet.key.protocol {
        protocol::TCP => reset(skb, packet),
        _ => icmp(skb, packet, &packet.key.destination, IcmpError::PORT_UNREACHABLE),
    };
    send(skb, (packet, set), made, Counter::Rejected, Counter::DropNoEndpoints)
}

/// To a segment of a flow whose backend was deleted (V8).
#[inline(never)]
pub(super) fn gone(skb: Skb, packet: &Packet, set: u32) -> i32 {
    let made = reset(skb, packet);
    send(skb, (packet, set), made, Counter::ResetGone, Counter::DropNoEndpoints)
}

/// To a packet of a flow that is larger than its next link takes.
#[inline(never)]
pub(super) fn too_big(skb: Skb, packet: &Packet, flow: &Flow, mtu: u16) -> i32 {
    drop_counted(packet, flow.set, Counter::DropPacketTooBig);
    let made = icmp(skb, packet, &speaker(packet, flow), IcmpError::packet_too_big(mtu));
    send_counted(skb, (packet, flow.set), made)
}

/// To a packet of a flow whose hop limit ran out here.
#[inline(never)]
pub(super) fn hop_limit(skb: Skb, packet: &Packet, flow: &Flow) -> i32 {
    drop_counted(packet, flow.set, Counter::DropHopLimit);
    let made = icmp(skb, packet, &speaker(packet, flow), IcmpError::TIME_EXCEEDED);
    send_counted(skb, (packet, flow.set), made)
}

/// Who an error about a packet of a flow comes from: for a client that which it dialled; for a
/// backend, to which a client's address may be what it answers, this node.
#[inline(always)]
fn speaker(packet: &Packet, flow: &Flow) -> Addr {
    if flow.flags & flow_flags::ORIGINAL == 0 {
        if let Some(config) = NODE_CONFIG.get(0) {
            if let Some(address) = nat::masquerade_address(config, packet.is_v4()) {
                return address;
            }
        }
    }
    packet.key.destination
}

/// What became of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Made {
    /// It is what the packet is now.
    Done,
    /// This processor has made enough.
    Limited,
    /// It can't be made of this packet.
    Impossible,
}

/// Sends an answer about a packet of a set; counts and tells what became of it.
#[inline(always)]
fn send(skb: Skb, about: (&Packet, u32), made: Made, done: Counter, impossible: Counter) -> i32 {
    match made {
        Made::Done => drop_counted(about.0, about.1, done),
        Made::Impossible => drop_counted(about.0, about.1, impossible),
        Made::Limited => DROP,
    };
    send_counted(skb, about, made)
}

/// As [`send`], where all but the limit is counted.
#[inline(always)]
fn send_counted(skb: Skb, (packet, set): (&Packet, u32), made: Made) -> i32 {
    match made {
        // SAFETY: the helper takes no pointers.
        Made::Done => unsafe { bpf_redirect(skb.ifindex(), skb.way_back()) as i32 },
        Made::Impossible => DROP,
        Made::Limited => drop_counted(packet, set, Counter::DropAnswerLimit),
    }
}

/// Memory for an answer, if one may be made.
#[inline(always)]
fn allowed(kind: Kind) -> Option<&'static mut Quoted> {
    // SAFETY: the memory is this processor's, and a packet program is not interrupted by another.
    let answers = unsafe { &mut *ANSWERS.get_ptr_mut(0)? };
    // SAFETY: the helper has no preconditions.
    answers.buckets.take(kind, unsafe { bpf_ktime_get_ns() }).then_some(&mut answers.quoted)
}

/// Turns a segment into the reset that answers it.
#[inline(never)]
fn reset(skb: Skb, packet: &Packet) -> Made {
    if packet.fragment != Fragment::WHOLE {
        return Made::Impossible;
    }
    if allowed(Kind::Reset).is_none() {
        return Made::Limited;
    }
    let turned = turn_segment(skb, packet) && turn_header(skb, packet);
    if turned && turn_around(skb).is_some() { Made::Done } else { Made::Impossible }
}

/// The TCP header, and nothing behind it.
#[inline(never)]
fn turn_segment(skb: Skb, packet: &Packet) -> bool {
    try_turn_segment(skb, packet).is_some()
}

#[inline(always)]
fn try_turn_segment(skb: Skb, packet: &Packet) -> Option<()> {
    let segment = skb.words(packet.l4)?;
    let before = packet.l4 - packet.l3; // the IP header and what follows it
    let mut header = tcp_reset(&segment, packet.total_len - before);
    let sums = ResetSums::new(&header, &packet.key.destination, &packet.key.source);
    header[4] = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
    // From here on nothing may be segmented or fragmented.
    skb.truncate(packet.l4 + TCP_HEADER)?;
    skb.store_words(packet.l4, &header, BPF_F_RECOMPUTE_CSUM).ok()?;
    skb.mend(packet.checksum_offset(), sums.addresses, Covered::PseudoHeader, protocol::TCP)
        .ok()?;
    skb.mend(packet.checksum_offset(), sums.header, Covered::Transport, protocol::TCP).ok()
}

/// The IP header of a segment that is now a TCP header.
#[inline(never)]
fn turn_header(skb: Skb, packet: &Packet) -> bool {
    if packet.is_v4() {
        let Some(header) = skb.words(packet.l3) else { return false };
        let turned = ipv4_turned(&header, TCP_HEADER);
        skb.store_words(packet.l3, &turned, 0).is_ok()
    } else {
        let Some(header) = skb.words(packet.l3) else { return false };
        let extensions = packet.l4 - packet.l3 - 40;
        let turned = ipv6_turned(&header, extensions + TCP_HEADER);
        skb.store_words(packet.l3, &turned, BPF_F_RECOMPUTE_CSUM).is_ok()
    }
}

/// Turns a packet into an ICMP error about it.
#[inline(never)]
fn icmp(skb: Skb, packet: &Packet, from: &Addr, error: IcmpError) -> Made {
    // RFC 1122 section 3.2.2: never about a fragment that is not the first.
    if packet.fragment == Fragment::LATER {
        return Made::Impossible;
    }
    let Some(quoted) = allowed(error.kind()) else {
        return Made::Limited;
    };
    if turn_datagram(skb, packet, from, error, quoted).is_some() {
        Made::Done
    } else {
        Made::Impossible
    }
}

#[inline(always)]
fn turn_datagram(
    skb: Skb,
    packet: &Packet,
    from: &Addr,
    error: IcmpError,
    quoted: &mut Quoted,
) -> Option<()> {
    let octets = Quoted::octets_of(packet.total_len);
    quoted.clear(octets);
    skb.load_into(packet.l3, &mut quoted.words, octets)?;
    turn_around(skb)?;
    skb.truncate(ETHERNET_HEADER + octets)?;
    let put = if packet.is_v4() {
        put_v4(skb, error, quoted, from, &packet.key.source)
    } else {
        put_v6(skb, error, quoted, from, &packet.key.source)
    };
    put.then_some(())
}

#[inline(never)]
fn put_v4(skb: Skb, error: IcmpError, quoted: &Quoted, from: &Addr, to: &Addr) -> bool {
    put_in_front(skb, &icmp_v4(error, quoted, from, to)).is_some()
}

#[inline(never)]
fn put_v6(skb: Skb, error: IcmpError, quoted: &Quoted, from: &Addr, to: &Addr) -> bool {
    put_in_front(skb, &icmp_v6(error, quoted, from, to)).is_some()
}

/// Puts headers between the Ethernet header and what follows it.
#[inline(always)]
fn put_in_front<const N: usize>(skb: Skb, headers: &[u32; N]) -> Option<()> {
    skb.insert_after_mac(N as i32 * 4).ok()?;
    skb.store_words(ETHERNET_HEADER, headers, BPF_F_RECOMPUTE_CSUM).ok()
}

/// Exchanges the link-layer addresses; not where the packet went to many (RFC 1122 section 3.2.2).
#[inline(always)]
fn turn_around(skb: Skb) -> Option<()> {
    let m = skb.load::<12>(0)?;
    if m[0] & 1 != 0 {
        return None;
    }
    let turned = [m[6], m[7], m[8], m[9], m[10], m[11], m[0], m[1], m[2], m[3], m[4], m[5]];
    skb.store(0, &turned, 0).ok()
}
