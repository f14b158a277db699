//! What the nodes' ends of the tunnel agree on (VXLAN, RFC 7348).

use crate::{
    addr::{Addr, protocol},
    checksum::{finish, sum_words},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

/// The UDP port of nodes' ends by default: the one that IANA assigned.
pub const PORT: u16 = 4789;
/// The network in the tunnel: one for the cluster.
pub const VNI: u32 = 77;
/// The link-layer address of every node's tunnel device, so that all neighbours have the same.
pub const DEVICE_MAC: [u8; 6] = [0x02, 0xff, 0x4d, 0x7a, 0x6e, 0x01];
/// The link-layer address that packets in the tunnel are from: no device's.
pub const SOURCE_MAC: [u8; 6] = [0x02, 0xff, 0x4d, 0x7a, 0x6e, 0x02];

/// Octets of an outer IPv4 header, of UDP's and of VXLAN's.
pub const OUTER_V4: usize = 20 + 8 + 8;
/// The same with IPv6.
pub const OUTER_V6: usize = 40 + 8 + 8;

/// Octets of the Ethernet header inside.
const INNER_ETHERNET: usize = 14;
/// Octets that go in front of an IP packet on its way through the tunnel over IPv4.
pub const INSERTED_V4: u32 = 50;
/// Hops that an outer packet may take.
pub const TTL: u8 = 64;

/// What goes in front of an IP packet on its way through the tunnel over IPv4.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'a> {
    /// This node.
    pub from: &'a Addr,
    /// The other.
    pub to: &'a Addr,
    /// A port that the packets of a flow have in common; see [`source_port`].
    pub source_port: u16,
    /// The tunnel's.
    pub port: u16,
    /// Tells fragments of the outer packet from others': the network may make some.
    pub identification: u16,
    /// The first octets of the packet inside.
    pub inner: [u8; 2],
    /// Octets of the packet inside.
    pub inner_len: u32,
}

/// Words of an [`Outer`]: what goes in front, and the first octets of the packet inside.
pub const OUTER_WORDS: usize = (OUTER_V4 + INNER_ETHERNET + 2) / 4;
const _: () = assert!(INSERTED_V4 as usize == OUTER_V4 + INNER_ETHERNET);
const _: () = assert!(OUTER_WORDS * 4 == OUTER_V4 + INNER_ETHERNET + 2);

/// The outer packet's source port, by a hash of the flow inside, so that the network's and the other
/// node's queues tell flows apart (RFC 7348 section 5: one of the dynamic ports).
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    0xc000 | (hash >> 18) as u16
}

impl Outer<'_> {
    /// Writes the headers as they lie in memory: of a packet inside that is IPv4 (or IPv6). None, and
    /// nothing written, where it would be longer than IPv4 can say.
    ///
    /// The outer packet has no checksum of UDP's, as what is inside has one (RFC 7348 section 5),
    /// may be fragmented, and tells of congestion as the packet inside (RFC 6040 section 4.1,
    /// compatibility mode for what has met congestion already, as Linux' tunnels do).
    #[inline(always)]
    pub fn write(&self, inner_v4: bool, words: &mut [u32; OUTER_WORDS]) -> Option<()> {
        const VXLAN: [u8; 4] = (VNI << 8).to_be_bytes();
        const D: [u8; 6] = DEVICE_MAC;
        const S: [u8; 6] = SOURCE_MAC;
        let total = INSERTED_V4 + self.inner_len;
        if total > 0xffff {
            return None;
        }
        let [.., total_high, total_low] = total.to_be_bytes();
        let [.., udp_high, udp_low] = (total - 20).to_be_bytes();
        let [id_high, id_low] = self.identification.to_be_bytes();
        let ecn = ecn(self.inner, inner_v4);
        let ip = [
            u32::from_ne_bytes([0x45, ecn, total_high, total_low]),
            u32::from_ne_bytes([id_high, id_low, 0, 0]),
            u32::from_ne_bytes([TTL, protocol::UDP, 0, 0]),
            self.from.words()[3],
            self.to.words()[3],
        ];
        let [high, low] = finish(sum_words(&ip), 0);
        words[0] = ip[0];
        words[1] = ip[1];
        words[2] = ip[2] | u32::from_ne_bytes([0, 0, high, low]);
        words[3] = ip[3];
        words[4] = ip[4];
        let [from_high, from_low] = self.source_port.to_be_bytes();
        let [to_high, to_low] = self.port.to_be_bytes();
        words[5] = u32::from_ne_bytes([from_high, from_low, to_high, to_low]);
        words[6] = u32::from_ne_bytes([udp_high, udp_low, 0, 0]);
        words[7] = u32::from_ne_bytes([8, 0, 0, 0]);
        words[8] = u32::from_ne_bytes(VXLAN);
        words[9] = u32::from_ne_bytes([D[0], D[1], D[2], D[3]]);
        words[10] = u32::from_ne_bytes([D[4], D[5], S[0], S[1]]);
        words[11] = u32::from_ne_bytes([S[2], S[3], S[4], S[5]]);
        let ethertype = if inner_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let [type_high, type_low] = ethertype.to_be_bytes();
        words[12] = u32::from_ne_bytes([type_high, type_low, self.inner[0], self.inner[1]]);
        Some(())
    }
}

/// The outer packet's ECN field.
#[inline(always)]
const fn ecn([first, second]: [u8; 2], v4: bool) -> u8 {
    const CONGESTION: u8 = 3;
    const ECT_0: u8 = 2;
    let class = if v4 { second } else { first << 4 | second >> 4 };
    match class & CONGESTION {
        CONGESTION => ECT_0,
        ecn => ecn,
    }
}

/// Which end of an outer packet has to be this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Its source: it leaves.
    Source,
    /// Its destination: it comes.
    Destination,
}

/// Whether what begins so is a packet of the tunnel of this node, whose address is `own` and whose
/// end is at `port`, over IPv4: whole, to that port, with our network's number. No service has it,
/// whatever is at that port.
#[inline(always)]
pub fn is_outer_v4(header: &[u8; OUTER_V4], end: Own, own: &Addr, port: u16) -> bool {
    let is_whole = header[0] == 0x45 && header[6] | 0xc0 == 0xc0 && header[7] == 0;
    let at = if matches!(end, Own::Source) { 12 } else { 16 };
    let address = [header[at], header[at + 1], header[at + 2], header[at + 3]];
    is_whole
        && header[9] == protocol::UDP
        && is_of_tunnel([header[22], header[23]], port, word(header, 28))
        && Addr::from_v4(address).is(own)
}

/// As [`is_outer_v4`], over IPv6.
#[inline(always)]
pub fn is_outer_v6(header: &[u8; OUTER_V6], end: Own, own: &Addr, port: u16) -> bool {
    let at = if matches!(end, Own::Source) { 8 } else { 24 };
    let mut octets = [0; 16];
    let mut index = 0;
    while index < 16 {
        octets[index] = header[at + index];
        index += 1;
    }
    header[6] == protocol::UDP
        && is_of_tunnel([header[42], header[43]], port, word(header, 48))
        && Addr { octets }.is(own)
}

/// VXLAN's header: a flag that says that there is a number, and the number (RFC 7348 section 5).
#[inline(always)]
fn is_of_tunnel(to: [u8; 2], port: u16, vxlan: u64) -> bool {
    const OURS: u64 = 0x0800_0000 << 32 | (VNI as u64) << 8;
    port != 0 && u16::from_be_bytes(to) == port && vxlan == OURS
}

/// The eight octets at a place, as a number.
#[inline(always)]
fn word<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    let (mut word, mut index) = (0, 0);
    while index < 8 {
        word = word << 8 | u64::from(header[at + index]);
        index += 1;
    }
    word
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const PORT_OF_TEST: u16 = 4790;

    /// VXLAN's header with our number.
    const VXLAN: [u8; 8] = [8, 0, 0, 0, 0, 0, 77, 0];

    fn v4() -> [u8; OUTER_V4] {
        let mut header = [0; OUTER_V4];
        (header[0], header[6], header[9]) = (0x45, 0x40, 17);
        header[12..16].copy_from_slice(&[172, 30, 0, 11]);
        header[16..20].copy_from_slice(&[172, 30, 0, 12]);
        header[22..24].copy_from_slice(&PORT_OF_TEST.to_be_bytes());
        header[28..].copy_from_slice(&VXLAN);
        header
    }

    fn v6() -> [u8; OUTER_V6] {
        let mut header = [0; OUTER_V6];
        (header[0], header[6], header[23], header[39]) = (0x60, 17, 11, 12);
        header[42..44].copy_from_slice(&PORT_OF_TEST.to_be_bytes());
        header[48..].copy_from_slice(&VXLAN);
        header
    }

    /// The octets of what goes in front; none where there is nothing.
    fn octets(outer: &Outer<'_>, v4: bool) -> std::vec::Vec<u8> {
        let mut words = [0; OUTER_WORDS];
        let written = outer.write(v4, &mut words).map_or(0, |()| OUTER_WORDS);
        words[..written].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn what_goes_in_front_is_a_packet_of_the_tunnel() {
        let [from, to] = [11, 12].map(|last| Addr::from_v4([172, 30, 0, last]));
        let outer = Outer {
            from: &from,
            to: &to,
            source_port: source_port(0xffff_ffff),
            port: PORT_OF_TEST,
            identification: 0x1234,
            inner: [0x45, 0x01],
            inner_len: 1000,
        };
        let made = octets(&outer, true);
        let header: [u8; OUTER_V4] = made[..OUTER_V4].try_into().unwrap();
        assert!(is_outer_v4(&header, Own::Source, &from, PORT_OF_TEST));
        assert!(is_outer_v4(&header, Own::Destination, &to, PORT_OF_TEST));
        let sum = crate::checksum::sum::<20>(header[..20].try_into().unwrap());
        assert_eq!(crate::checksum::fold(sum), 0xffff);
        // Lengths by RFC 791 and RFC 768: 1,000 inside, 14 of Ethernet, 8 of VXLAN, 8 of UDP, 20.
        assert_eq!([made[2], made[3]], 1050_u16.to_be_bytes());
        assert_eq!([made[24], made[25]], 1030_u16.to_be_bytes());
        assert_eq!(
            (&made[4..8], made[8], &made[26..28]),
            (&[0x12, 0x34, 0, 0][..], 64, &[0, 0][..])
        );
        assert_eq!([made[20], made[21]], 0xffff_u16.to_be_bytes());
        assert_eq!(made[36..42], DEVICE_MAC);
        assert_eq!(made[42..48], SOURCE_MAC);
        assert_eq!(made[48..], [8, 0, 0x45, 0x01]);
        let v6 = octets(&Outer { inner: [0x60, 0x20], ..outer }, false);
        assert_eq!(v6[48..], [0x86, 0xdd, 0x60, 0x20]);
        assert!(octets(&Outer { inner_len: 65_486, ..outer }, true).is_empty());
        assert!(!octets(&Outer { inner_len: 65_485, ..outer }, true).is_empty());
    }

    #[test]
    fn congestion_is_told_outside_as_inside_and_not_met_twice() {
        let of = |inner, v4| ecn(inner, v4);
        // IPv4: the second octet; IPv6: bits 4 to 11. The class itself stays inside.
        for (class, outside) in [(0, 0), (1, 1), (2, 2), (3, 2), (0xb8, 0), (0xba, 2)] {
            assert_eq!(of([0x45, class], true), outside, "IPv4 {class:#x}");
            assert_eq!(of([0x60 | class >> 4, class << 4], false), outside, "IPv6 {class:#x}");
        }
    }

    #[test]
    fn outer_packets_of_the_tunnel_are_known_by_address_port_and_number() {
        let [here, there] = [11, 12].map(|last| Addr::from_v4([172, 30, 0, last]));
        let is = |header, end, own| is_outer_v4(&header, end, own, PORT_OF_TEST);
        assert!(is(v4(), Own::Source, &here) && is(v4(), Own::Destination, &there));
        assert!(!is(v4(), Own::Source, &there) && !is(v4(), Own::Destination, &here));
        assert!(!is_outer_v4(&v4(), Own::Source, &here, 0));
        // Options, a first and a later fragment, TCP, another port, no number, another number.
        for (at, value) in [(0, 0x46), (6, 0x20), (7, 1), (9, 6), (23, 0), (28, 0), (34, 78)] {
            let mut header = v4();
            header[at] = value;
            assert!(!is(header, Own::Source, &here), "octet {at}");
        }
        let mut octets = [0; 16];
        octets[15] = 11;
        let here = Addr { octets };
        let is = |header, end| is_outer_v6(&header, end, &here, PORT_OF_TEST);
        assert!(is(v6(), Own::Source) && !is(v6(), Own::Destination));
        for (at, value) in [(6, 44), (6, 6), (43, 0), (48, 0), (54, 78)] {
            let mut header = v6();
            header[at] = value;
            assert!(!is(header, Own::Source), "octet {at}");
        }
    }
}
