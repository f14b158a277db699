//! Reading a packet: from bytes to the flow it belongs to.
//!
//! The programs read through [`Bytes`] from a socket buffer, the tests from a slice. Whatever is
//! malformed or of no concern to the datapath is a [`Skip`]: the network stack gets it untouched
//! and does what it would have done without us.

use crate::{
    addr::{Addr, protocol},
    conntrack::FlowKey,
    limits::IPV6_EXTENSIONS_MAX,
};

/// EtherType of IPv4 (IEEE 802, RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Octets of an Ethernet header without tags.
pub const ETHERNET_HEADER: u32 = 14;

/// Bits of the TCP header's flags octet (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}

/// Access to the bytes of a packet.
pub trait Bytes {
    /// The `N` bytes at `offset` from the start of the link-layer header; none where the packet
    /// ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// Why a packet is left to the network stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// Too short, or its lengths contradict each other.
    Malformed,
    /// A protocol that is not translated.
    Protocol,
    /// A fragment that is not the first: it carries no ports.
    LaterFragment,
    /// More IPv6 extension headers than [`IPV6_EXTENSIONS_MAX`].
    TooManyExtensions,
}

/// What a packet is, as far as translation asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The flow, as the packet states it.
    pub key: FlowKey,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// The IPv4 header's checksum field; zero for IPv6.
    pub ip_checksum: [u8; 2],
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// The TCP header's flags octet; zero for other protocols.
    pub tcp_flags: u8,
    /// 1 for the first fragment of a larger packet.
    pub first_fragment: u8,
    /// The ICMP or ICMPv6 type where [`FlowKey::protocol`] is one of these, else zero.
    pub icmp_type: u8,
}

impl Packet {
    /// Whether this is IPv4.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.key.destination.is_v4()
    }

    /// Offset of the transport checksum.
    #[inline(always)]
    pub const fn checksum_offset(&self) -> u32 {
        self.l4
            + match self.key.protocol {
                protocol::TCP => 16,
                protocol::UDP => 6,
                _ => 2,
            }
    }
}

/// How much of the transport header there must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// A packet in transit: the whole fixed header.
    Whole,
    /// A packet quoted in an ICMP error: eight octets are guaranteed (RFC 792), so the ports.
    Quoted,
}

/// Reads the packet whose IP header is at `l3`.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B, ethertype: u16, l3: u32) -> Result<Packet, Skip> {
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(bytes, l3, Depth::Whole),
        ETHERTYPE_IPV6 => ipv6(bytes, l3, Depth::Whole),
        _ => Err(Skip::NotIp),
    }
}

/// Reads the packet that an ICMP error quotes; its IP header is at `l3`.
#[inline(always)]
pub fn parse_quoted<B: Bytes + ?Sized>(bytes: &B, v4: bool, l3: u32) -> Result<Packet, Skip> {
    if v4 { ipv4(bytes, l3, Depth::Quoted) } else { ipv6(bytes, l3, Depth::Quoted) }
}

#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(bytes: &B, l3: u32, depth: Depth) -> Result<Packet, Skip> {
    let header: [u8; 20] = bytes.load(l3).ok_or(Skip::Malformed)?;
    let header_len = u32::from(header[0] & 0x0f) * 4;
    let total_len = u32::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_len < 20 || total_len < header_len {
        return Err(Skip::Malformed);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    if offset != 0 {
        return Err(Skip::LaterFragment);
    }
    let mut packet = Packet {
        key: FlowKey {
            source: Addr::from_v4([header[12], header[13], header[14], header[15]]),
            destination: Addr::from_v4([header[16], header[17], header[18], header[19]]),
            source_port: [0; 2],
            destination_port: [0; 2],
            protocol: header[9],
            pad: [0; 3],
        },
        l3,
        l4: l3 + header_len,
        ip_checksum: [header[10], header[11]],
        hop_limit: header[8],
        tcp_flags: 0,
        first_fragment: u8::from(more),
        icmp_type: 0,
    };
    transport(bytes, &mut packet, total_len - header_len, depth, protocol::ICMP)?;
    Ok(packet)
}

/// IPv6 extension headers (RFC 8200 section 4) that are skipped over on the way to the transport.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(bytes: &B, l3: u32, depth: Depth) -> Result<Packet, Skip> {
    let header: [u8; 40] = bytes.load(l3).ok_or(Skip::Malformed)?;
    if header[0] >> 4 != 6 {
        return Err(Skip::Malformed);
    }
    let payload_len = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source.copy_from_slice(&header[8..24]);
    destination.copy_from_slice(&header[24..40]);
    let source = Addr::from_v6(source);
    let destination = Addr::from_v6(destination);
    // A v4-mapped address on the wire would be taken for IPv4 by everything that follows.
    if source.is_v4() || destination.is_v4() {
        return Err(Skip::Malformed);
    }
    let walked = extensions(bytes, header[6], l3 + 40)?;
    let extension_len = walked.l4 - (l3 + 40);
    if payload_len < extension_len {
        return Err(Skip::Malformed);
    }
    let mut packet = Packet {
        key: FlowKey {
            source,
            destination,
            source_port: [0; 2],
            destination_port: [0; 2],
            protocol: walked.protocol,
            pad: [0; 3],
        },
        l3,
        l4: walked.l4,
        ip_checksum: [0; 2],
        hop_limit: header[7],
        tcp_flags: 0,
        first_fragment: walked.first_fragment,
        icmp_type: 0,
    };
    transport(bytes, &mut packet, payload_len - extension_len, depth, protocol::ICMPV6)?;
    Ok(packet)
}

/// Where a walk over extension headers ended.
struct Walked {
    protocol: u8,
    l4: u32,
    first_fragment: u8,
}

#[inline(always)]
fn extensions<B: Bytes + ?Sized>(bytes: &B, first: u8, start: u32) -> Result<Walked, Skip> {
    let mut walked = Walked { protocol: first, l4: start, first_fragment: 0 };
    for _ in 0..IPV6_EXTENSIONS_MAX {
        let len = match walked.protocol {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => 8,
            extension::AUTHENTICATION => 4,
            extension::FRAGMENT => 0,
            _ => return Ok(walked),
        };
        let head: [u8; 4] = bytes.load(walked.l4).ok_or(Skip::Malformed)?;
        let len = match len {
            0 => {
                let field = u16::from_be_bytes([head[2], head[3]]);
                if field & 0xfff8 != 0 {
                    return Err(Skip::LaterFragment);
                }
                walked.first_fragment = u8::from(field & 1 != 0);
                8
            }
            // The authentication header counts in words of four octets, minus two (RFC 4302).
            4 => (u32::from(head[1]) + 2) * 4,
            _ => (u32::from(head[1]) + 1) * 8,
        };
        walked.protocol = head[0];
        walked.l4 += len;
    }
    match walked.protocol {
        extension::HOP_BY_HOP
        | extension::ROUTING
        | extension::DESTINATION
        | extension::AUTHENTICATION
        | extension::FRAGMENT => Err(Skip::TooManyExtensions),
        _ => Ok(walked),
    }
}

/// Reads the ports, the TCP flags or the ICMP type. `payload` is what the IP header says follows.
#[inline(always)]
fn transport<B: Bytes + ?Sized>(
    bytes: &B,
    packet: &mut Packet,
    payload: u32,
    depth: Depth,
    icmp: u8,
) -> Result<(), Skip> {
    let least = match packet.key.protocol {
        protocol::TCP => 20,
        protocol::UDP => 8,
        other if other == icmp => 8,
        _ => return Err(Skip::Protocol),
    };
    if payload < least {
        return Err(Skip::Malformed);
    }
    if packet.key.protocol == icmp {
        let head: [u8; 2] = bytes.load(packet.l4).ok_or(Skip::Malformed)?;
        packet.icmp_type = head[0];
        return Ok(());
    }
    let ports: [u8; 4] = if packet.key.protocol == protocol::TCP && depth == Depth::Whole {
        let head: [u8; 14] = bytes.load(packet.l4).ok_or(Skip::Malformed)?;
        packet.tcp_flags = head[13];
        [head[0], head[1], head[2], head[3]]
    } else {
        bytes.load(packet.l4).ok_or(Skip::Malformed)?
    };
    packet.key.source_port = [ports[0], ports[1]];
    packet.key.destination_port = [ports[2], ports[3]];
    Ok(())
}

/// Whether an ICMP or ICMPv6 type is an error that quotes the packet that caused it
/// (RFC 792; RFC 4443 section 2.1: error messages have types below 128).
#[inline(always)]
pub const fn is_icmp_error(v4: bool, icmp_type: u8) -> bool {
    if v4 { matches!(icmp_type, 3 | 4 | 11 | 12) } else { matches!(icmp_type, 1..=4) }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
