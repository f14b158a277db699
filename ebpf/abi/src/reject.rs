//! Answers that the programs make themselves: a TCP reset or an ICMP port unreachable where a
//! service has no endpoints, as kube-proxy's `reject` (reference B8-B16); a reset where a flow's
//! backend was deleted (V8); ICMP errors about packets that can't go on (B65, B135).

use core::hint::black_box;

use crate::{
    addr::{Addr, protocol},
    checksum::{Delta, add, finish, sum_words},
    packet::tcp_flags,
    rate::Kind,
};

/// Hop limit of packets that the programs originate: Linux' default (RFC 1700's 64).
pub const HOP_LIMIT: u8 = 64;
/// Octets of a TCP header without options.
pub const TCP_HEADER: u32 = 20;
/// Words of a packet that an ICMP error of ours quotes at most. RFC 1812 and RFC 4443 would have
/// more of a long one; what its sender needs, addresses, ports and a sequence number, is within.
pub const QUOTED_WORDS: usize = 32;
/// The same in octets.
pub const QUOTED_OCTETS: u32 = 128;

/// The beginning of the packet that an ICMP error is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Quoted {
    /// The packet from its IP header on; zero behind what is quoted.
    pub words: [u32; QUOTED_WORDS],
    /// How many octets are quoted.
    pub octets: u32,
}

impl Quoted {
    /// How much is quoted of a packet of `total_len` octets.
    #[inline(always)]
    pub const fn octets_of(total_len: u32) -> u32 {
        if total_len < QUOTED_OCTETS { total_len } else { QUOTED_OCTETS }
    }

    /// Makes room for another packet, of which `octets` are quoted. In place: the programs keep it
    /// outside of their stack.
    #[inline(always)]
    pub fn clear(&mut self, octets: u32) {
        let mut at = 0;
        while at < QUOTED_WORDS {
            self.words[at] = 0;
            at += 1;
        }
        self.octets = octets;
    }

    /// The unfolded sum of what is quoted. One word at a time: as many at once as the compiler
    /// would take fill the programs' stack.
    #[inline(always)]
    fn sum(&self) -> u32 {
        let mut total = 0;
        let mut at = 0;
        while at < QUOTED_WORDS {
            total = add(total, self.words[at]);
            at = black_box(at + 1);
        }
        total
    }
}

/// An ICMP or ICMPv6 error: a number, because the programs hand it on in one register. The high
/// half is the kind, the low half the MTU.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError(u32);

impl IcmpError {
    /// No service answers on that port: type 3 code 3 (RFC 792), type 1 code 4 (RFC 4443).
    pub const PORT_UNREACHABLE: Self = Self(0);
    /// The packet may go no further: type 11 code 0 (RFC 792), type 3 code 0 (RFC 4443).
    pub const TIME_EXCEEDED: Self = Self(1 << 16);

    /// The packet is larger than the next link takes, whose MTU is given: type 3 code 4
    /// (RFC 1191), type 2 code 0 (RFC 4443).
    #[inline(always)]
    pub const fn packet_too_big(mtu: u16) -> Self {
        Self(2 << 16 | mtu as u32)
    }

    /// By which limit its number is bounded.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        match self.0 >> 16 {
            0 => Kind::Unreachable,
            1 => Kind::TimeExceeded,
            _ => Kind::TooBig,
        }
    }

    /// Type, code, checksum zero, and the word after it.
    #[inline(always)]
    const fn words(self, v4: bool) -> [u32; 2] {
        let (kind, code) = match (self.0 >> 16, v4) {
            (0, true) => (3, 3),
            (0, false) => (1, 4),
            (1, true) => (11, 0),
            (1, false) => (3, 0),
            (_, true) => (3, 4),
            (_, false) => (2, 0),
        };
        // Both families keep the MTU in the last two octets.
        let mtu = (self.0 & 0xffff).to_be();
        [u32::from_ne_bytes([kind, code, 0, 0]), mtu]
    }
}

/// The TCP header of the reset that answers a segment (RFC 9293 section 3.10.7.1), as words in
/// native order, its checksum zero. `length` is the segment's, header included.
///
/// Where the segment acknowledges, the reset has the number that its sender expects next; where it
/// doesn't, the reset acknowledges all of it.
#[inline(always)]
pub fn tcp_reset(segment: &[u32; 5], length: u32) -> [u32; 5] {
    let [offset, flags, ..] = segment[3].to_ne_bytes();
    let (sequence, acknowledged, kind) = if flags & tcp_flags::ACK != 0 {
        (segment[2], 0, tcp_flags::RST)
    } else {
        let data = length.saturating_sub(u32::from(offset >> 4) * 4);
        // Both ends of a connection count as an octet each.
        let ends = u32::from(flags & tcp_flags::SYN != 0) + u32::from(flags & tcp_flags::FIN != 0);
        let end = u32::from_be(segment[1]).wrapping_add(data + ends);
        (0, end.to_be(), tcp_flags::RST | tcp_flags::ACK)
    };
    let ports = segment[0].rotate_left(16); // they change places
    [ports, sequence, acknowledged, u32::from_ne_bytes([0x50, kind, 0, 0]), 0]
}

/// What a TCP header of ours adds to its checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetSums {
    /// Through the pseudo-header.
    pub addresses: Delta,
    /// The header itself.
    pub header: Delta,
}

impl ResetSums {
    /// Of a reset between two addresses.
    ///
    /// They are to be added to a field that holds all ones, which is zero to the sum, but not the
    /// zero that says that there is no checksum. A buffer whose device computes the checksum takes
    /// the first of them only.
    #[inline(always)]
    pub fn new(reset: &[u32; 5], source: &Addr, destination: &Addr) -> Self {
        const NOTHING: Addr = Addr::ANY_V6;
        // RFC 9293 section 3.1, RFC 8200 section 8.1: addresses, protocol, length.
        let rest = u32::from_ne_bytes([0, protocol::TCP, 0, 20]);
        let addresses = Delta::ZERO
            .replace_addr(&NOTHING, source)
            .replace_addr(&NOTHING, destination)
            .replace_words(&[0], &[rest]);
        Self { addresses, header: Delta::ZERO.replace_words(&[0; 5], reset) }
    }
}

/// The first five words of an IPv4 header turned into those of an answer with `payload` octets.
/// Options stay as they are.
#[inline(always)]
pub fn ipv4_turned(header: &[u32; 5], payload: u32) -> [u32; 5] {
    let [version, service, ..] = header[0].to_ne_bytes();
    let [.., high, low] = (u32::from(version & 0x0f) * 4 + payload).to_be_bytes();
    let [hop_limit, protocol, sum_high, sum_low] = header[2].to_ne_bytes();
    let before = [
        header[0],
        header[1],
        u32::from_ne_bytes([hop_limit, protocol, 0, 0]),
        header[3],
        header[4],
    ];
    let mut after = [
        u32::from_ne_bytes([version, service, high, low]),
        u32::from_ne_bytes([0, 0, 0x40, 0]), // whole, and not to be fragmented
        u32::from_ne_bytes([HOP_LIMIT, protocol, 0, 0]),
        header[4],
        header[3],
    ];
    let delta = Delta::ZERO.replace_words(&before, &after);
    let [high, low] = delta.apply([sum_high, sum_low]);
    after[2] |= u32::from_ne_bytes([0, 0, high, low]);
    after
}

/// An IPv6 header turned into that of an answer with `payload` octets behind it, extension headers
/// included.
#[inline(always)]
pub fn ipv6_turned(header: &[u32; 10], payload: u32) -> [u32; 10] {
    let h = header;
    let [.., high, low] = payload.to_be_bytes();
    let [.., next, _] = h[1].to_ne_bytes();
    let first = u32::from_ne_bytes([0x60, 0, 0, 0]);
    let second = u32::from_ne_bytes([high, low, next, HOP_LIMIT]);
    [first, second, h[6], h[7], h[8], h[9], h[2], h[3], h[4], h[5]]
}

/// The IPv4 and ICMP headers that go in front of what is quoted. The error goes from `source` to
/// `destination`.
#[inline(always)]
pub fn icmp_v4(error: IcmpError, quoted: &Quoted, source: &Addr, destination: &Addr) -> [u32; 7] {
    let [.., total] = (28 + quoted.octets).to_be_bytes();
    let mut ip = [
        u32::from_ne_bytes([0x45, 0xc0, 0, total]),
        0,
        u32::from_ne_bytes([HOP_LIMIT, protocol::ICMP, 0, 0]),
        source.words()[3],
        destination.words()[3],
    ];
    let [high, low] = finish(sum_words(&ip), 0);
    ip[2] |= u32::from_ne_bytes([0, 0, high, low]);
    let mut icmp = error.words(true);
    let [high, low] = finish(sum_words(&icmp), quoted.sum());
    icmp[0] |= u32::from_ne_bytes([0, 0, high, low]);
    [ip[0], ip[1], ip[2], ip[3], ip[4], icmp[0], icmp[1]]
}

/// The IPv6 and ICMPv6 headers that go in front of what is quoted. The error goes from `source` to
/// `destination`.
#[inline(always)]
pub fn icmp_v6(error: IcmpError, quoted: &Quoted, source: &Addr, destination: &Addr) -> [u32; 12] {
    let [.., payload] = (8 + quoted.octets).to_be_bytes();
    let (s, d) = (source.words(), destination.words());
    let mut icmp = error.words(false);
    // The pseudo-header (RFC 8200 section 8.1): addresses, length, next header.
    let rest = [u32::from_ne_bytes([0, payload, 0, protocol::ICMPV6]), icmp[0], icmp[1]];
    let pseudo = add(add(sum_words(&s), sum_words(&d)), sum_words(&rest));
    let [high, low] = finish(pseudo, quoted.sum());
    icmp[0] |= u32::from_ne_bytes([0, 0, high, low]);
    let first = u32::from_ne_bytes([0x60, 0, 0, 0]);
    let second = u32::from_ne_bytes([0, payload, protocol::ICMPV6, HOP_LIMIT]);
    [first, second, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3], icmp[0], icmp[1]]
}

const _: () = assert!(QUOTED_WORDS * 4 == QUOTED_OCTETS as usize && QUOTED_OCTETS + 28 < 256);

#[cfg(test)]
#[path = "reject_tests.rs"]
mod tests;
