//! Packets for tests: built and checked by the letter of the RFCs, without the code under test.

extern crate alloc;

use alloc::{vec, vec::Vec};
use core::net::IpAddr;

use crate::{
    addr::{Addr, protocol},
    conntrack::FlowKey,
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

/// An Ethernet frame under construction.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The flow.
    pub key: FlowKey,
    /// TCP flags; ignored for UDP.
    pub tcp_flags: u8,
    /// TCP sequence number.
    pub sequence: u32,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// IPv4 options, or IPv6 extension headers whose last octets are patched by nobody: the first
    /// octet of each must name what follows.
    pub options: Vec<u8>,
    /// IPv6: the type of the first extension header in `options`.
    pub first_extension: u8,
    /// IPv4 fragment field: flags and offset.
    pub fragment: u16,
    /// What the transport carries.
    pub payload: Vec<u8>,
    /// UDP over IPv4 without a checksum.
    pub no_checksum: bool,
}

/// The key of a flow between sockets; ports in host byte order.
pub fn key(protocol: u8, source: (IpAddr, u16), destination: (IpAddr, u16)) -> FlowKey {
    FlowKey {
        source: Addr::from(source.0),
        destination: Addr::from(destination.0),
        source_port: source.1.to_be_bytes(),
        destination_port: destination.1.to_be_bytes(),
        protocol,
        pad: [0; 3],
    }
}

impl Frame {
    /// A packet of a flow: a SYN, or a datagram, with a few octets of payload.
    pub fn new(key: FlowKey) -> Self {
        Self {
            key,
            tcp_flags: crate::packet::tcp_flags::SYN,
            sequence: 0x0102_0304,
            hop_limit: 64,
            options: Vec::new(),
            first_extension: 0,
            fragment: 0,
            payload: b"mizzen".to_vec(),
            no_checksum: false,
        }
    }

    /// The frame, from a made-up link-layer address to that of a loopback device, by which test runs
    /// have packets come in.
    pub fn bytes(&self) -> Vec<u8> {
        let v4 = self.key.destination.is_v4();
        let mut frame = vec![0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2];
        frame.extend(if v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }.to_be_bytes());
        let transport = self.transport();
        frame.extend(if v4 { self.ipv4(transport.len()) } else { self.ipv6(transport.len()) });
        frame.extend(transport);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.key.source_port, self.key.destination_port].concat();
        let checksum_at = if self.key.protocol == protocol::TCP {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([0, 0, 0, 0, 0x50, self.tcp_flags, 0xfa, 0xf0, 0, 0, 0, 0]);
            16
        } else {
            bytes.extend(length(8 + self.payload.len()).to_be_bytes());
            bytes.extend([0, 0]);
            6
        };
        bytes.extend(&self.payload);
        if !self.no_checksum {
            let sum = pseudo_checksum(&self.key, &bytes).to_be_bytes();
            // RFC 768, for UDP alone: an all-zero checksum is transmitted as all ones.
            let udp = self.key.protocol == protocol::UDP;
            let sum = if udp && sum == [0, 0] { [0xff, 0xff] } else { sum };
            bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum);
        }
        bytes
    }

    fn ipv4(&self, payload: usize) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let words = u8::try_from(header_len / 4).unwrap_or(15);
        let mut header = vec![0x40 | words, 0];
        header.extend(length(header_len + payload).to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.hop_limit, self.key.protocol, 0, 0]);
        header.extend(self.key.source.v4());
        header.extend(self.key.destination.v4());
        header.extend(&self.options);
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        header
    }

    fn ipv6(&self, payload: usize) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length(self.options.len() + payload).to_be_bytes());
        let next = if self.options.is_empty() { self.key.protocol } else { self.first_extension };
        header.extend([next, self.hop_limit]);
        header.extend(self.key.source.octets);
        header.extend(self.key.destination.octets);
        header.extend(&self.options);
        header
    }
}

fn length(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}

/// RFC 1071: big-endian words, a wide accumulator, an odd last octet padded with zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut total: u64 = 0;
    for pair in bytes.chunks(2) {
        total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap_or(0)
}

/// The checksum of a transport header and payload with the pseudo-header of `key`. Zero where the
/// checksum field within is right.
pub fn pseudo_checksum(key: &FlowKey, transport: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    if key.destination.is_v4() {
        bytes.extend(key.source.v4());
        bytes.extend(key.destination.v4());
        bytes.extend([0, key.protocol]);
        bytes.extend(length(transport.len()).to_be_bytes());
    } else {
        bytes.extend(key.source.octets);
        bytes.extend(key.destination.octets);
        bytes.extend(u32::from(length(transport.len())).to_be_bytes());
        bytes.extend([0, 0, 0, key.protocol]);
    }
    bytes.extend(transport);
    checksum(&bytes)
}

/// Whether every checksum of a frame whose IP header has no options is right: IPv4 header, TCP,
/// UDP, ICMP or ICMPv6. A UDP datagram without a checksum is right.
pub fn checksums_are_right(frame: &[u8]) -> bool {
    let v4 = frame[12..14] == ETHERTYPE_IPV4.to_be_bytes();
    let l4 = if v4 { 34 } else { 54 };
    let (ip, transport) = (&frame[14..l4], &frame[l4..]);
    let field = |range: core::ops::Range<usize>| -> Addr {
        let octets = &ip[range];
        match octets.len() {
            4 => Addr::from_v4([octets[0], octets[1], octets[2], octets[3]]),
            _ => Addr { octets: octets.try_into().unwrap_or_default() },
        }
    };
    let (source, destination, protocol) = if v4 {
        (field(12..16), field(16..20), ip[9])
    } else {
        (field(8..24), field(24..40), ip[6])
    };
    if v4 && checksum(ip) != 0 {
        return false;
    }
    let key = FlowKey { source, destination, protocol, ..FlowKey::default() };
    match protocol {
        protocol::ICMP => checksum(transport) == 0,
        protocol::UDP if v4 && transport[6..8] == [0, 0] => true,
        _ => pseudo_checksum(&key, transport) == 0,
    }
}
