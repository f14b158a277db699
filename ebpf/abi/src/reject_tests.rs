//! Resets and ICMP errors, field by field from their RFCs.

extern crate std;

use core::net::IpAddr;
use std::vec::Vec;

use super::*;
use crate::{
    conntrack::FlowKey,
    frame::{Frame, checksums_are_right, key, pseudo_checksum},
    packet::Bytes,
};

fn flow(v4: bool, protocol: u8) -> FlowKey {
    let (client, service): (IpAddr, IpAddr) = if v4 {
        ([10, 244, 1, 2].into(), [10, 96, 0, 9].into())
    } else {
        ("fd00:244::2".parse().unwrap(), "fd00:96::9".parse().unwrap())
    };
    key(protocol, (client, 45_678), (service, 80))
}

#[test]
fn b11_a_reset_acknowledges_the_syn_and_has_a_right_checksum() {
    for v4 in [true, false] {
        for sequence in [0, 0x0102_0304, u32::MAX] {
            let syn = Frame { sequence, payload: Vec::new(), ..Frame::new(flow(v4, 6)) };
            let bytes = syn.bytes();
            let end = u32::try_from(bytes.len()).unwrap();
            let header: [u32; 5] = bytes.as_slice().words(end - 20).unwrap();
            let (reset, delta) = tcp_reset(&header);
            let mut reset = reset.map(u32::to_ne_bytes).as_flattened().to_vec();
            assert_eq!(reset[..4], [0, 80, 0xb2, 0x6e], "ports changed places");
            assert_eq!(reset[8..12], sequence.wrapping_add(1).to_be_bytes());
            assert_eq!(reset[13], 0x14, "RST and ACK");
            let checksum = delta.apply([reset[16], reset[17]]);
            reset[16..18].copy_from_slice(&checksum);
            assert_eq!(pseudo_checksum(&syn.key.reversed(), &reset), 0);
        }
    }
}

/// The error as it goes out: headers made by us, the quoted octets, an Ethernet header for the
/// check.
fn error_frame(v4: bool, error: IcmpError) -> Vec<u8> {
    let frame = Frame::new(flow(v4, 17)).bytes();
    let service = flow(v4, 17).destination;
    let mut out = frame[..14].to_vec();
    let client = flow(v4, 17).source;
    let quoted = 14..14 + 4 * if v4 { QUOTED_V4 } else { QUOTED_V6 };
    if v4 {
        let words: [u32; QUOTED_V4] = frame.as_slice().words(14).unwrap();
        let headers = icmp_v4(error, &words, &service, &client);
        out.extend(headers.map(u32::to_ne_bytes).as_flattened());
    } else {
        let words: [u32; QUOTED_V6] = frame.as_slice().words(14).unwrap();
        let headers = icmp_v6(error, &words, &service, &client);
        out.extend(headers.map(u32::to_ne_bytes).as_flattened());
    }
    out.extend(&frame[quoted]);
    out
}

#[test]
fn b14_an_icmp_error_goes_to_the_client_with_right_checksums() {
    for (v4, kind, too_big) in [(true, [3, 3], [3, 4]), (false, [1, 4], [2, 0])] {
        let frame = error_frame(v4, IcmpError::PortUnreachable);
        assert!(checksums_are_right(&frame));
        let icmp = if v4 { 34 } else { 54 };
        assert_eq!(frame[icmp..icmp + 2], kind);
        let destination = if v4 { &frame[30..34] } else { &frame[38..54] };
        let client = flow(v4, 17).source;
        assert_eq!(destination, if v4 { &client.octets[12..] } else { &client.octets[..] });

        let frame = error_frame(v4, IcmpError::PacketTooBig(1_450));
        assert!(checksums_are_right(&frame));
        assert_eq!(frame[icmp..icmp + 2], too_big);
        assert_eq!(frame[icmp + 4..icmp + 8], 1_450_u32.to_be_bytes());
    }
}
