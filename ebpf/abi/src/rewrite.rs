//! Writing a translation into a packet: the header octets to store and what that does to the
//! checksums. The programs store them into a socket buffer, the tests into a slice.

use crate::{
    addr::Addr,
    checksum::Delta,
    conntrack::{Flow, FlowKey},
    packet::Packet,
};

/// Offset in an IPv4 header of what [`ipv4_header`] gives: time to live to destination.
pub const IPV4_AT: u32 = 8;
/// Offset in an IPv6 header of what [`ipv6_header`] gives: payload length to destination.
pub const IPV6_AT: u32 = 4;

/// What a translation does to the transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deltas {
    /// Through the pseudo-header: the addresses.
    pub addresses: Delta,
    /// Through the transport header itself: the ports.
    pub ports: Delta,
}

impl Deltas {
    /// From a packet of `key` to what `flow` makes of it.
    #[inline(always)]
    pub fn new(key: &FlowKey, flow: &Flow) -> Self {
        let addresses = Delta::ZERO
            .replace_addr(&key.source, &flow.source)
            .replace_addr(&key.destination, &flow.destination);
        let ports = Delta::ZERO
            .replace(&key.source_port, &flow.source_port)
            .replace(&key.destination_port, &flow.destination_port);
        Self { addresses, ports }
    }
}

/// Words 2 to 4 of the IPv4 header: time to live, protocol, checksum, source, destination.
#[inline(always)]
pub fn ipv4_header(packet: &Packet, source: &Addr, destination: &Addr, hop_limit: u8) -> [u32; 3] {
    let [old, protocol, high, low] = packet.ip_word;
    let delta = Delta::ZERO
        .replace_addr(&packet.key.source, source)
        .replace_addr(&packet.key.destination, destination)
        .replace(&[old, protocol], &[hop_limit, protocol]);
    let [high, low] = delta.apply([high, low]);
    let word = u32::from_ne_bytes([hop_limit, protocol, high, low]);
    [word, source.words()[3], destination.words()[3]]
}

/// Words 1 to 9 of the IPv6 header: payload length, next header, hop limit, source, destination.
#[inline(always)]
pub fn ipv6_header(packet: &Packet, source: &Addr, destination: &Addr, hop_limit: u8) -> [u32; 9] {
    let [high, low, next, _] = packet.ip_word;
    let (s, d) = (source.words(), destination.words());
    let word = u32::from_ne_bytes([high, low, next, hop_limit]);
    [word, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]]
}

/// The ports as they leave: the first four octets of a TCP or UDP header.
#[inline(always)]
pub const fn ports(flow: &Flow) -> [u8; 4] {
    let (s, d) = (flow.source_port, flow.destination_port);
    [s[0], s[1], d[0], d[1]]
}

/// Offset in an ICMP header of an echo's identifier.
pub const IDENTIFIER_AT: u32 = 4;

/// The identifier of an echo as it leaves (see [`Packet::is_echo`]).
#[inline(always)]
pub fn identifier(packet: &Packet, flow: &Flow) -> [u8; 2] {
    if packet.is_echo_request() { flow.source_port } else { flow.destination_port }
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
