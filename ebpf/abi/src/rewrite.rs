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
/// Offset in an IPv6 header of what [`ipv6_header`] gives: hop limit to destination.
pub const IPV6_AT: u32 = 7;

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
        let addresses = Delta::ZERO;
        let addresses = replace(addresses, &key.source, &flow.source);
        let addresses = replace(addresses, &key.destination, &flow.destination);
        let ports = Delta::ZERO
            .replace(&key.source_port, &flow.source_port)
            .replace(&key.destination_port, &flow.destination_port);
        Self { addresses, ports }
    }
}

/// The change from one address to another. The v4-mapped prefix is the same on both sides, so the
/// sixteen-octet form gives what the four octets would.
#[inline(always)]
fn replace(delta: Delta, old: &Addr, new: &Addr) -> Delta {
    delta.replace(&old.octets, &new.octets)
}

/// Octets 8 to 19 of the IPv4 header: time to live, protocol, checksum, source, destination.
#[inline(always)]
pub fn ipv4_header(packet: &Packet, source: &Addr, destination: &Addr, hop_limit: u8) -> [u8; 12] {
    let protocol = packet.key.protocol;
    let delta = replace(Delta::ZERO, &packet.key.source, source);
    let delta = replace(delta, &packet.key.destination, destination)
        .replace(&[packet.hop_limit, protocol], &[hop_limit, protocol]);
    let checksum = delta.apply(packet.ip_checksum);
    let (s, d) = (source.v4(), destination.v4());
    [
        hop_limit,
        protocol,
        checksum[0],
        checksum[1], //
        s[0],
        s[1],
        s[2],
        s[3],
        d[0],
        d[1],
        d[2],
        d[3],
    ]
}

/// Octets 7 to 39 of the IPv6 header: hop limit, source, destination.
#[inline(always)]
pub fn ipv6_header(source: &Addr, destination: &Addr, hop_limit: u8) -> [u8; 33] {
    let mut octets = [0; 33];
    octets[0] = hop_limit;
    octets[1..17].copy_from_slice(&source.octets);
    octets[17..].copy_from_slice(&destination.octets);
    octets
}

/// The ports as they leave: the first four octets of a TCP or UDP header.
#[inline(always)]
pub const fn ports(flow: &Flow) -> [u8; 4] {
    let (s, d) = (flow.source_port, flow.destination_port);
    [s[0], s[1], d[0], d[1]]
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
