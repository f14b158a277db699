//! Packets, read by the code that the eBPF programs share.

use mizzen_ebpf_abi::{
    frame::{self, Frame},
    packet::{Fragment, parse, parse_quoted},
};

/// Octets of a link-layer header.
const LINK: u32 = 14;
const ETHERTYPES: [(u16, bool); 2] = [(0x0800, true), (0x86dd, false)];

/// A frame, as a packet of either family and as one that an ICMP error quotes.
///
/// # Panics
///
/// Where it is said to have ports behind its end.
pub(crate) fn packet(octets: &[u8]) {
    for (ethertype, v4) in ETHERTYPES {
        let whole = parse(octets, ethertype, LINK);
        let quoted = parse_quoted(octets, v4, LINK);
        for packet in [whole, quoted].into_iter().flatten() {
            assert_eq!(packet.is_v4(), v4);
            let ports = usize::try_from(packet.l4).unwrap_or(usize::MAX).saturating_add(2);
            assert!(packet.fragment == Fragment::LATER || ports <= octets.len(), "{packet:?}");
        }
    }
}

/// A packet of each protocol and family.
pub(crate) fn packets() -> Vec<Vec<u8>> {
    let ends = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")];
    let mut all = Vec::new();
    for (source, destination) in ends {
        for protocol in [1, 6, 17, 58] {
            let (Ok(source), Ok(destination)) = (source.parse(), destination.parse()) else {
                continue;
            };
            all.push(Frame::new(frame::key(protocol, (source, 4000), (destination, 53))).bytes());
        }
    }
    all
}
