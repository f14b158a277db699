//! Answers that the programs make themselves where a service has no endpoints, as kube-proxy's
//! `reject` does (reference B8-B16): a TCP reset, an ICMP port unreachable.

use crate::{
    addr::{Addr, protocol},
    checksum::{Delta, add, finish, sum_words},
    packet::tcp_flags,
};

/// Hop limit of packets that the programs originate: Linux' default (RFC 1700's 64).
pub const HOP_LIMIT: u8 = 64;

/// Words of an IPv4 packet that an ICMP error of ours quotes: header and two more (RFC 792).
pub const QUOTED_V4: usize = 7;
/// Words of an IPv6 packet that an ICMPv6 error of ours quotes: header and two more.
pub const QUOTED_V6: usize = 12;

/// An ICMP or ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No service answers on that port: type 3 code 3 (RFC 792), type 1 code 4 (RFC 4443).
    PortUnreachable,
    /// The packet is larger than the next link takes, whose MTU is given: type 3 code 4
    /// (RFC 1191), type 2 code 0 (RFC 4443).
    PacketTooBig(u16),
}

impl IcmpError {
    /// Type, code, checksum zero, and the word after it.
    #[inline(always)]
    const fn words(self, v4: bool) -> [u32; 2] {
        let (kind, code, rest) = match (self, v4) {
            (Self::PortUnreachable, true) => (3, 3, [0; 4]),
            (Self::PortUnreachable, false) => (1, 4, [0; 4]),
            // Both keep a 16-bit MTU in the last two octets.
            (Self::PacketTooBig(mtu), v4) => {
                let [high, low] = mtu.to_be_bytes();
                if v4 { (3, 4, [0, 0, high, low]) } else { (2, 0, [0, 0, high, low]) }
            }
        };
        [u32::from_ne_bytes([kind, code, 0, 0]), u32::from_ne_bytes(rest)]
    }
}

/// The TCP header of the reset that answers a SYN (RFC 9293 section 3.10.7.1), as words in native
/// order, and what that does to the checksum, whose field is left as it was.
///
/// Length and options stay, so that the packet needs no trimming: the pseudo-header's sum does not
/// change when source and destination change places, and a receiver in SYN-SENT accepts options.
#[inline(always)]
pub fn tcp_reset(syn: &[u32; 5]) -> ([u32; 5], Delta) {
    let [offset, ..] = syn[3].to_ne_bytes();
    let [high, low, ..] = syn[4].to_ne_bytes();
    let reset = [
        syn[0].rotate_left(16), // the ports change places
        0,
        u32::from_be(syn[1]).wrapping_add(1).to_be(),
        u32::from_ne_bytes([offset, tcp_flags::RST | tcp_flags::ACK, 0, 0]),
        u32::from_ne_bytes([high, low, 0, 0]),
    ];
    (reset, Delta::ZERO.replace_words(syn, &reset))
}

/// The IPv4 and ICMP headers that go in front of `quoted`, the beginning of the packet that the
/// error is about. The error goes from `source` to `destination`.
#[inline(always)]
pub fn icmp_v4(
    error: IcmpError,
    quoted: &[u32; QUOTED_V4],
    source: &Addr,
    destination: &Addr,
) -> [u32; 7] {
    const TOTAL: u8 = 56;
    const { assert!(TOTAL as usize == 28 + QUOTED_V4 * 4) };
    let mut ip = [
        u32::from_ne_bytes([0x45, 0xc0, 0, TOTAL]),
        0,
        u32::from_ne_bytes([HOP_LIMIT, protocol::ICMP, 0, 0]),
        source.words()[3],
        destination.words()[3],
    ];
    let [high, low] = finish(sum_words(&ip), 0);
    ip[2] |= u32::from_ne_bytes([0, 0, high, low]);
    let mut icmp = error.words(true);
    let [high, low] = finish(sum_words(&icmp), sum_words(quoted));
    icmp[0] |= u32::from_ne_bytes([0, 0, high, low]);
    [ip[0], ip[1], ip[2], ip[3], ip[4], icmp[0], icmp[1]]
}

/// The IPv6 and ICMPv6 headers that go in front of `quoted`. The error goes from `source` to
/// `destination`.
#[inline(always)]
pub fn icmp_v6(
    error: IcmpError,
    quoted: &[u32; QUOTED_V6],
    source: &Addr,
    destination: &Addr,
) -> [u32; 12] {
    const PAYLOAD: u8 = 56;
    const { assert!(PAYLOAD as usize == 8 + QUOTED_V6 * 4) };
    let (s, d) = (source.words(), destination.words());
    let mut icmp = error.words(false);
    // The pseudo-header (RFC 8200 section 8.1): addresses, length, next header.
    let rest = [u32::from_ne_bytes([0, PAYLOAD, 0, protocol::ICMPV6]), icmp[0], icmp[1]];
    let pseudo = add(add(sum_words(&s), sum_words(&d)), sum_words(&rest));
    let [high, low] = finish(pseudo, sum_words(quoted));
    icmp[0] |= u32::from_ne_bytes([0, 0, high, low]);
    let first = u32::from_ne_bytes([0x60, 0, 0, 0]);
    let second = u32::from_ne_bytes([0, PAYLOAD, protocol::ICMPV6, HOP_LIMIT]);
    [first, second, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3], icmp[0], icmp[1]]
}

#[cfg(test)]
#[path = "reject_tests.rs"]
mod tests;
