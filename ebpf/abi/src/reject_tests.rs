//! Resets and ICMP errors, field by field from their RFCs.

extern crate std;

use core::net::IpAddr;
use std::vec::Vec;

use super::*;
use crate::{
    conntrack::FlowKey,
    frame::{Frame, checksum, checksums_are_right, key, pseudo_checksum},
    packet::{Bytes, tcp_flags::*},
};

fn flow(v4: bool, protocol: u8) -> FlowKey {
    let (client, service): (IpAddr, IpAddr) = if v4 {
        ([10, 244, 1, 2].into(), [10, 96, 0, 9].into())
    } else {
        ("fd00:244::2".parse().unwrap(), "fd00:96::9".parse().unwrap())
    };
    key(protocol, (client, 45_678), (service, 80))
}

/// The header of a segment from port 45678 to port 80 that acknowledges 0x0a0b0c0d.
fn segment(flags: u8, sequence: u32) -> [u32; 5] {
    let mut octets = Vec::from([0xb2, 0x6e, 0, 80]);
    octets.extend(sequence.to_be_bytes());
    octets.extend([0x0a, 0x0b, 0x0c, 0x0d, 0x60, flags, 1, 2, 3, 4, 5, 6]);
    octets.as_slice().words(0).unwrap()
}

fn octets(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn b11_what_does_not_acknowledge_is_acknowledged_whole() {
    for sequence in [0, 0x0102_0304, u32::MAX] {
        // Header and options are 24 octets.
        for (flags, length, counted) in [(SYN, 24, 1), (SYN, 34, 11), (FIN, 29, 6), (0, 24, 0)] {
            let reset = octets(&tcp_reset(&segment(flags, sequence), length));
            assert_eq!(reset[..4], [0, 80, 0xb2, 0x6e], "ports changed places");
            assert_eq!(reset[4..8], [0; 4], "sequence number zero");
            assert_eq!(reset[8..12], sequence.wrapping_add(counted).to_be_bytes());
            assert_eq!(reset[12..], [0x50, RST | ACK, 0, 0, 0, 0, 0, 0], "no options");
        }
    }
}

#[test]
fn v8_what_acknowledges_is_reset_at_the_number_it_expects() {
    for flags in [ACK, ACK | 0x08, FIN | ACK, SYN | ACK] {
        let reset = octets(&tcp_reset(&segment(flags, 77), 1_000));
        assert_eq!(reset[4..8], [0x0a, 0x0b, 0x0c, 0x0d]);
        assert_eq!(reset[8..], [0, 0, 0, 0, 0x50, RST, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn a_resets_checksum_is_right_whoever_computes_it() {
    for v4 in [true, false] {
        let key = flow(v4, 6).reversed();
        let reset = tcp_reset(&segment(ACK, 5), 24);
        let sums = ResetSums::new(&reset, &key.source, &key.destination);
        let mut header = octets(&reset);
        // As the kernel does it: the field is a checksum, so the complement of a sum.
        let by_us = sums.header.apply(sums.addresses.apply([0xff, 0xff]));
        let zero = finish(0, 0);
        assert_eq!(zero, [0xff, 0xff], "all ones is the checksum of nothing");
        header[16..18].copy_from_slice(&by_us);
        assert_eq!(pseudo_checksum(&key, &header), 0);
        // A device finds the pseudo-header's sum in the field, and sums the rest.
        let pseudo = finish(sums.addresses.value(), 0).map(|octet| !octet);
        header[16..18].copy_from_slice(&pseudo);
        let by_device = checksum(&header).to_be_bytes();
        assert_eq!(by_device, by_us);
    }
}

#[test]
fn a_turned_header_goes_back_with_what_it_carries() {
    for options in [Vec::new(), std::vec![1; 8]] {
        let frame = Frame { options, ..Frame::new(flow(true, 6)) }.bytes();
        let end = 14 + usize::from(frame[14] & 0x0f) * 4;
        let mut header = octets(&ipv4_turned(&frame.as_slice().words(14).unwrap(), 20));
        header.extend(&frame[34..end]);
        assert_eq!(checksum(&header), 0);
        assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]])), header.len() + 20);
        assert_eq!((&header[12..16], &header[16..20]), (&frame[30..34], &frame[26..30]));
        assert_eq!((header[8], header[9]), (HOP_LIMIT, 6));
    }
    let frame = Frame::new(flow(false, 6)).bytes();
    let header = octets(&ipv6_turned(&frame.as_slice().words(14).unwrap(), 28));
    assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 28, 6, HOP_LIMIT]);
    assert_eq!((&header[8..24], &header[24..]), (&frame[38..54], &frame[22..38]));
}

/// The error as it goes out: headers made by us, the quoted octets, an Ethernet header for the
/// check.
fn error_frame(v4: bool, error: IcmpError, payload: usize) -> Vec<u8> {
    let frame = Frame { payload: std::vec![7; payload], ..Frame::new(flow(v4, 17)) }.bytes();
    let total = u32::try_from(frame.len() - 14).unwrap();
    let mut quoted = Quoted { octets: Quoted::octets_of(total), ..Quoted::default() };
    let taken = &frame[14..14 + usize::try_from(quoted.octets).unwrap()];
    let mut padded = taken.to_vec();
    padded.resize(QUOTED_WORDS * 4, 0);
    quoted.words = padded.as_slice().words(0).unwrap();
    let (service, client) = (flow(v4, 17).destination, flow(v4, 17).source);
    let mut out = frame[..14].to_vec();
    if v4 {
        out.extend(octets(&icmp_v4(error, &quoted, &service, &client)));
    } else {
        out.extend(octets(&icmp_v6(error, &quoted, &service, &client)));
    }
    out.extend(taken);
    out
}

#[test]
fn b14_an_icmp_error_goes_to_the_client_with_right_checksums() {
    let kinds = [(true, [3, 3], [3, 4], [11, 0]), (false, [1, 4], [2, 0], [3, 0])];
    for (v4, unreachable, too_big, exceeded) in kinds {
        for payload in [0, 1, 2, 3, 92, 93, 100, 1_000] {
            for (error, kind, rest) in [
                (IcmpError::PORT_UNREACHABLE, unreachable, 0),
                (IcmpError::packet_too_big(1_450), too_big, 1_450),
                (IcmpError::TIME_EXCEEDED, exceeded, 0_u32),
            ] {
                let frame = error_frame(v4, error, payload);
                assert!(checksums_are_right(&frame), "{v4} {error:?} {payload}");
                let icmp = if v4 { 34 } else { 54 };
                assert_eq!(frame[icmp..icmp + 2], kind);
                assert_eq!(frame[icmp + 4..icmp + 8], rest.to_be_bytes());
                let destination = if v4 { &frame[30..34] } else { &frame[38..54] };
                let client = flow(v4, 17).source;
                assert_eq!(destination, if v4 { &client.octets[12..] } else { &client.octets[..] });
                let at = if v4 { 16 } else { 18 };
                let length = usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
                assert_eq!(length, frame.len() - if v4 { 14 } else { 54 });
                let inner = if v4 { 20 } else { 40 } + 8 + payload;
                assert_eq!(frame.len() - icmp - 8, inner.min(QUOTED_WORDS * 4));
            }
        }
    }
}
