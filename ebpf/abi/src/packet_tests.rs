//! Reading of packets: well-formed, cut off, hostile.

extern crate std;

use core::net::IpAddr;
use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::frame::{Frame, key};

const L3: u32 = ETHERNET_HEADER;

fn flow(v4: bool, protocol: u8) -> FlowKey {
    let (source, destination): (IpAddr, IpAddr) = if v4 {
        ([192, 0, 2, 1].into(), [198, 51, 100, 2].into())
    } else {
        ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap())
    };
    key(protocol, (source, 40_000), (destination, 80))
}

fn ethertype(v4: bool) -> u16 {
    if v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }
}

fn read(frame: &Frame) -> Result<Packet, Skip> {
    parse(frame.bytes().as_slice(), ethertype(frame.key.destination.is_v4()), L3)
}

#[test]
fn reads_what_was_built() {
    for v4 in [true, false] {
        for protocol in [protocol::TCP, protocol::UDP] {
            let frame = Frame { hop_limit: 7, ..Frame::new(flow(v4, protocol)) };
            let packet = read(&frame).unwrap();
            assert_eq!(packet.key, frame.key);
            assert_eq!(packet.hop_limit(), 7);
            assert_eq!(packet.l4, if v4 { 34 } else { 54 });
            let syn = if protocol == protocol::TCP { tcp_flags::SYN } else { 0 };
            assert_eq!(packet.tcp_flags, syn);
            assert_eq!(packet.fragment, Fragment::WHOLE);
            assert_eq!(packet.is_v4(), v4);
        }
    }
}

/// Octets of a packet that is larger than its first octets, which the kernel joined.
struct Joined(Vec<u8>, u32);

impl Bytes for Joined {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.as_slice().load(offset)
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.0.as_slice().words(offset)
    }

    fn joined(&self) -> u32 {
        self.1
    }
}

/// Linux leaves the length of what is too large for the header's two octets at 0, and joins such
/// packets of TCP alone; a header that says 0 of any other packet is none.
#[test]
fn joined_packets_tell_no_length() {
    for (v4, length_at, told) in [(true, L3 + 2, 100_000), (false, L3 + 4, 100_000)] {
        let frame = Frame { tcp_flags: tcp_flags::ACK, ..Frame::new(flow(v4, protocol::TCP)) };
        let mut bytes = frame.bytes();
        bytes[length_at as usize..][..2].fill(0);
        assert_eq!(parse(bytes.as_slice(), ethertype(v4), L3), Err(Skip::Malformed));
        assert_eq!(parse(&Joined(bytes.clone(), 40), ethertype(v4), L3), Err(Skip::Malformed));
        let packet = parse(&Joined(bytes, L3 + told), ethertype(v4), L3).unwrap();
        assert_eq!((packet.key, packet.total_len), (frame.key, told), "IPv4: {v4}");
    }
}

#[test]
fn ipv4_options_move_the_transport() {
    let options = std::vec![1_u8; 8];
    let frame = Frame { options, ..Frame::new(flow(true, protocol::UDP)) };
    let packet = read(&frame).unwrap();
    assert_eq!((packet.key, packet.l4), (frame.key, 42));
}

#[test]
fn ipv6_extension_headers_are_walked() {
    // Hop-by-hop of 16 octets, routing of 8, destination options of 8, authentication of 24.
    let mut options = std::vec![43, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    options.extend([60, 0, 0, 0, 0, 0, 0, 0]);
    options.extend([51, 0, 1, 4, 0, 0, 0, 0]);
    options.extend([protocol::UDP, 4, 0, 0]);
    options.extend([0; 20]);
    let frame = Frame { options, first_extension: 0, ..Frame::new(flow(false, protocol::UDP)) };
    let packet = read(&frame).unwrap();
    assert_eq!((packet.key, packet.l4), (frame.key, 54 + 16 + 8 + 8 + 24));
}

#[test]
fn as_many_extension_headers_as_the_limit_says() {
    let chain = |count: usize| {
        let mut options = Vec::new();
        for left in (0..count).rev() {
            options.extend([if left == 0 { protocol::TCP } else { 60 }, 0, 0, 0, 0, 0, 0, 0]);
        }
        Frame { options, first_extension: 60, ..Frame::new(flow(false, protocol::TCP)) }
    };
    let limit = usize::try_from(IPV6_EXTENSIONS_MAX).unwrap();
    assert!(read(&chain(limit)).is_ok());
    assert_eq!(read(&chain(limit + 1)), Err(Skip::TooManyExtensions));
}

#[test]
fn fragments_are_told_apart() {
    let v4 = |fragment| Frame { fragment, ..Frame::new(flow(true, protocol::UDP)) };
    let part = |frame: &Frame| read(frame).unwrap().fragment;
    assert_eq!(part(&v4(0x4000)), Fragment::WHOLE, "don't fragment is no fragment");
    assert_eq!(part(&v4(0x2000)), Fragment::FIRST);
    assert_eq!(part(&v4(0x2001)), Fragment::LATER);
    assert_eq!(part(&v4(0x0001)), Fragment::LATER, "the last one");
    let v6 = |field: [u8; 2]| Frame {
        options: std::vec![protocol::UDP, 0, field[0], field[1], 0, 0, 0, 9],
        first_extension: 44,
        ..Frame::new(flow(false, protocol::UDP))
    };
    assert_eq!(part(&v6([0, 0])), Fragment::WHOLE, "an atomic fragment is whole");
    assert_eq!(part(&v6([0, 1])), Fragment::FIRST);
    assert_eq!(part(&v6([0, 9])), Fragment::LATER);
    for frames in [[v4(0x2000), v4(0x0001)], [v6([0, 1]), v6([0, 8])]] {
        let [first, later] = frames.map(|frame| read(&frame).unwrap());
        assert_eq!(first.fragment_key(), later.fragment_key(), "they share what names them");
        assert_ne!(first.identification, [0; 4]);
        assert_ne!(first.key.source_port, [0; 2]);
        assert_eq!(later.key.source_port, [0; 2], "it has none");
    }
}

#[test]
fn what_contradicts_itself_is_malformed() {
    let good = Frame::new(flow(true, protocol::TCP)).bytes();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        parse(bytes.as_slice(), ETHERTYPE_IPV4, L3)
    };
    assert_eq!(with(14, 0x65), Err(Skip::Malformed), "version");
    assert_eq!(with(14, 0x44), Err(Skip::Malformed), "header length below 20");
    assert_eq!(with(17, 19), Err(Skip::Malformed), "total length below the header's");
    assert_eq!(with(17, 39), Err(Skip::Malformed), "no room for a TCP header");
    assert_eq!(with(23, 41), Err(Skip::Protocol));
    assert_eq!(with(23, protocol::ICMPV6), Err(Skip::Protocol), "not in IPv4");

    let mapped: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    let mut bytes = Frame::new(flow(false, protocol::TCP)).bytes();
    bytes[22..38].copy_from_slice(&mapped);
    assert_eq!(parse(bytes.as_slice(), ETHERTYPE_IPV6, L3), Err(Skip::Malformed));
    assert_eq!(parse(bytes.as_slice(), 0x0806, L3), Err(Skip::NotIp));
}

#[test]
fn a_quoted_packet_needs_eight_octets_of_transport() {
    for v4 in [true, false] {
        let frame = Frame::new(flow(v4, protocol::TCP));
        let bytes = frame.bytes();
        let end = if v4 { 34 + 8 } else { 54 + 8 };
        assert_eq!(parse_quoted(&bytes[..end], v4, L3).unwrap().key, frame.key);
        assert_eq!(parse_quoted(&bytes[..end - 5], v4, L3), Err(Skip::Malformed));
        assert_eq!(parse(&bytes[..end], ethertype(v4), L3), Err(Skip::Malformed));
    }
}

#[test]
fn errors_are_told_from_queries() {
    for (v4, errors) in [(true, [3, 4, 11, 12]), (false, [1, 2, 3, 4])] {
        for icmp_type in 0..=255 {
            assert_eq!(is_icmp_error(v4, icmp_type), errors.contains(&icmp_type));
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_whatever_make_it_read_beyond_the_end(
        bytes in proptest::collection::vec(any::<u8>(), 0..160), v4 in any::<bool>()
    ) {
        if let Ok(packet) = parse(bytes.as_slice(), ethertype(v4), L3)
            && packet.fragment != Fragment::LATER
        {
            let end = usize::try_from(packet.l4).unwrap() + 2;
            prop_assert!(end <= bytes.len());
        }
    }

    #[test]
    fn every_cut_of_a_packet_is_malformed(
        cut in 0_usize..53, protocol in prop_oneof![Just(protocol::TCP), Just(protocol::UDP)],
        v4 in any::<bool>()
    ) {
        let mut bytes = Frame::new(flow(v4, protocol)).bytes();
        bytes.truncate(14 + cut.min(if v4 { 23 } else { 43 }));
        prop_assert_eq!(parse(bytes.as_slice(), ethertype(v4), L3), Err(Skip::Malformed));
    }
}
