//! What the nodes' ends of the tunnel agree on (VXLAN, RFC 7348).

use crate::addr::{Addr, protocol};

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
