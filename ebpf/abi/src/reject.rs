//! Answers that the programs make themselves where a service has no endpoints, as kube-proxy's
//! `reject` does (reference B8-B16): a TCP reset, an ICMP port unreachable.

use crate::{
    addr::{Addr, protocol},
    checksum::{Delta, finish, sum},
    packet::tcp_flags,
};

/// Hop limit of packets that the programs originate: Linux' default (RFC 1700's 64).
pub const HOP_LIMIT: u8 = 64;

/// Octets of an IPv4 packet that an ICMP error of ours quotes: header and eight more (RFC 792).
pub const QUOTED_V4: usize = 28;
/// Octets of an IPv6 packet that an ICMPv6 error of ours quotes: header and eight more.
pub const QUOTED_V6: usize = 48;

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
    /// Type, code, checksum zero, and the four octets after it.
    #[inline(always)]
    const fn header(self, v4: bool) -> [u8; 8] {
        match (self, v4) {
            (Self::PortUnreachable, true) => [3, 3, 0, 0, 0, 0, 0, 0],
            (Self::PortUnreachable, false) => [1, 4, 0, 0, 0, 0, 0, 0],
            // Both keep a 16-bit MTU in the last two octets.
            (Self::PacketTooBig(mtu), v4) => {
                let [high, low] = mtu.to_be_bytes();
                let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
                [kind, code, 0, 0, 0, 0, high, low]
            }
        }
    }
}

/// The TCP header of the reset that answers a SYN (RFC 9293 section 3.10.7.1), and what that does
/// to the checksum, whose field is left as it was.
///
/// Length and options stay, so that the packet needs no trimming: the pseudo-header's sum does not
/// change when source and destination change places, and a receiver in SYN-SENT accepts options.
#[inline(always)]
pub fn tcp_reset(syn: &[u8; 20]) -> ([u8; 20], Delta) {
    let sequence = u32::from_be_bytes([syn[4], syn[5], syn[6], syn[7]]);
    let ack = sequence.wrapping_add(1).to_be_bytes();
    let reset = [
        syn[2],
        syn[3],
        syn[0],
        syn[1],
        0,
        0,
        0,
        0,
        ack[0],
        ack[1],
        ack[2],
        ack[3],
        syn[12],
        tcp_flags::RST | tcp_flags::ACK,
        0,
        0,
        syn[16],
        syn[17],
        0,
        0,
    ];
    (reset, Delta::ZERO.replace(syn, &reset))
}

/// The IPv4 and ICMP headers that go in front of `quoted`, the beginning of the packet that the
/// error is about; the answer goes to its source and comes from `source`.
#[inline(always)]
pub fn icmp_v4(error: IcmpError, quoted: &[u8; QUOTED_V4], source: &Addr) -> [u8; 28] {
    const TOTAL: u8 = 56;
    const { assert!(TOTAL as usize == 28 + QUOTED_V4) };
    let s = source.v4();
    let mut ip = [
        0x45,
        0xc0,
        0,
        TOTAL,
        0,
        0,
        0,
        0,
        HOP_LIMIT,
        protocol::ICMP,
        0,
        0,
        s[0],
        s[1],
        s[2],
        s[3],
        quoted[12],
        quoted[13],
        quoted[14],
        quoted[15],
    ];
    let checksum = finish(sum(&ip), 0);
    ip[10] = checksum[0];
    ip[11] = checksum[1];
    let mut icmp = error.header(true);
    let checksum = finish(sum(&icmp), sum(quoted));
    icmp[2] = checksum[0];
    icmp[3] = checksum[1];
    let mut headers = [0; 28];
    headers[..20].copy_from_slice(&ip);
    headers[20..].copy_from_slice(&icmp);
    headers
}

/// The IPv6 and ICMPv6 headers that go in front of `quoted`.
#[inline(always)]
pub fn icmp_v6(error: IcmpError, quoted: &[u8; QUOTED_V6], source: &Addr) -> [u8; 48] {
    const PAYLOAD: u8 = 56;
    const { assert!(PAYLOAD as usize == 8 + QUOTED_V6) };
    let mut headers = [0; 48];
    headers[0] = 0x60;
    headers[5] = PAYLOAD;
    headers[6] = protocol::ICMPV6;
    headers[7] = HOP_LIMIT;
    headers[8..24].copy_from_slice(&source.octets);
    headers[24..40].copy_from_slice(&quoted[8..24]);
    headers[40..].copy_from_slice(&error.header(false));
    // The pseudo-header (RFC 8200 section 8.1): addresses, length, next header. Version and hop
    // limit are not part of it; the quoted packet is part of what is summed.
    let mut pseudo = [0; 48];
    pseudo[..32].copy_from_slice(&headers[8..40]);
    pseudo[35] = PAYLOAD;
    pseudo[39] = protocol::ICMPV6;
    pseudo[40..].copy_from_slice(&headers[40..]);
    let checksum = finish(sum(&pseudo), sum(quoted));
    headers[42] = checksum[0];
    headers[43] = checksum[1];
    headers
}

#[cfg(test)]
#[path = "reject_tests.rs"]
mod tests;
