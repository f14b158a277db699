//! Rewriting of headers against a full recomputation of every checksum.

extern crate std;

use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::{
    frame::{Frame, checksums_are_right},
    nat::tests::{any_translation, filled},
    packet::{self, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

fn ethertype(v4: bool) -> u16 {
    if v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }
}

/// What the programs do to a socket buffer, done to a slice.
fn apply(frame: &[u8], flow: &Flow, hop_limit: u8) -> Vec<u8> {
    let v4 = frame[12..14] == ETHERTYPE_IPV4.to_be_bytes();
    let packet = packet::parse(frame, ethertype(v4), ETHERNET_HEADER).unwrap();
    let mut out = frame.to_vec();
    let mut put = |at: u32, octets: &[u8]| {
        let at = usize::try_from(at).unwrap();
        out[at..at + octets.len()].copy_from_slice(octets);
    };
    if v4 {
        let words = ipv4_header(&packet, &flow.source, &flow.destination, hop_limit);
        put(packet.l3 + IPV4_AT, words.map(u32::to_ne_bytes).as_flattened());
    } else {
        let words = ipv6_header(&packet, &flow.source, &flow.destination, hop_limit);
        put(packet.l3 + IPV6_AT, words.map(u32::to_ne_bytes).as_flattened());
    }
    put(packet.l4, &ports(flow));
    let deltas = Deltas::new(&packet.key, flow);
    let at = usize::try_from(packet.checksum_offset()).unwrap();
    let old = [frame[at], frame[at + 1]];
    if old != [0, 0] {
        put(packet.checksum_offset(), &deltas.ports.apply(deltas.addresses.apply(old)));
    }
    out
}

proptest! {
    #[test]
    fn a_translated_packet_has_right_checksums_and_comes_back_as_it_was(
        (key, translation) in any_translation(), payload in any::<Vec<u8>>(),
        hop_limit in 2_u8..=255, no_checksum in any::<bool>()
    ) {
        let no_checksum = no_checksum && key.protocol == 17 && key.source.is_v4();
        let frame = Frame { hop_limit, payload, no_checksum, ..Frame::new(key) }.bytes();
        prop_assume!(checksums_are_right(&frame));
        let entries = filled(&key, &translation);
        let sent = apply(&frame, &entries.original, hop_limit - 1);
        prop_assert!(checksums_are_right(&sent), "there");
        let v4 = key.source.is_v4();
        let there = packet::parse(sent.as_slice(), ethertype(v4), ETHERNET_HEADER).unwrap();
        prop_assert_eq!(there.key, key.rewritten(&entries.original));
        prop_assert_eq!(there.hop_limit(), hop_limit - 1);

        // The same octets with both ends swapped stand for the answer.
        let answer = Frame { hop_limit, no_checksum, ..Frame::new(entries.reply_key) }.bytes();
        let back = apply(&answer, &entries.reply, hop_limit);
        prop_assert!(checksums_are_right(&back), "back");
        let back = packet::parse(back.as_slice(), ethertype(v4), ETHERNET_HEADER).unwrap();
        prop_assert_eq!(back.key, key.reversed());
    }
}
