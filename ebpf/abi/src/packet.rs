//! Reading a packet: from bytes to the flow it belongs to.
//!
//! The programs read through [`Bytes`] from a socket buffer, the tests from a slice. Whatever is
//! malformed or of no concern to the datapath is a [`Skip`]: the network stack gets it untouched
//! and does what it would have done without us.

use crate::{
    addr::{Addr, protocol},
    conntrack::{FlowKey, FragmentKey},
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

    /// The `N` words at `offset`, as they stand there: what of them is a number is in network
    /// byte order.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// Octets from the link-layer header on, where the kernel joined several packets of a flow to
    /// one; else 0. Such a one may be larger than its IP header can tell, which then says 0 (BIG
    /// TCP, Linux 5.19 and 6.3).
    #[inline(always)]
    fn joined(&self) -> u32 {
        0
    }
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.get(start..start.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, octets) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*octets);
        }
        Some(words)
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
    /// More IPv6 extension headers than [`IPV6_EXTENSIONS_MAX`].
    TooManyExtensions,
}

/// What a packet is, as far as translation asks.
///
/// The layout keeps addresses at multiples of four octets and has no holes, so that the programs,
/// whose processor has no unaligned access, handle it in words: of an odd size they would clear
/// it octet by octet.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The flow, as the packet states it.
    pub key: FlowKey,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// The word of the IP header before the addresses: time to live, protocol and checksum
    /// (IPv4); payload length, next header and hop limit (IPv6).
    pub ip_word: [u8; 4],
    /// The identification that the fragments of a packet share.
    pub identification: [u8; 4],
    /// Octets from the IP header to the end, as that header says.
    pub total_len: u32,
    /// The TCP header's flags octet; zero for other protocols.
    pub tcp_flags: u8,
    /// Which part of a larger packet it is.
    pub fragment: Fragment,
    /// The ICMP or ICMPv6 type where [`FlowKey::protocol`] is one of these, else zero.
    pub icmp_type: u8,
    /// Zero.
    pub pad: u8,
}

/// Which part of a larger packet one is; a number, so that any octet is valid.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment(u8);

impl Fragment {
    /// None: it is whole.
    pub const WHOLE: Self = Self(0);
    /// The first part, which has the transport header.
    pub const FIRST: Self = Self(1);
    /// Another part: its ports are not known from it.
    pub const LATER: Self = Self(2);

    #[inline(always)]
    const fn new(at_start: bool, more: bool) -> Self {
        match (at_start, more) {
            (true, false) => Self::WHOLE,
            (true, true) => Self::FIRST,
            (false, _) => Self::LATER,
        }
    }
}

impl Packet {
    /// What the fragments of this packet have in common.
    #[inline(always)]
    pub const fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.key.source,
            destination: self.key.destination,
            identification: self.identification,
            protocol: self.key.protocol,
            pad: self.key.pad,
        }
    }

    /// Whether this is IPv4.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.key.destination.is_v4()
    }

    /// Whether this asks for an echo (RFC 792; RFC 4443 section 4.1).
    #[inline(always)]
    pub fn is_echo_request(&self) -> bool {
        match self.key.protocol {
            protocol::ICMP => self.icmp_type == 8,
            protocol::ICMPV6 => self.icmp_type == 128,
            _ => false,
        }
    }

    /// Whether this answers such a request.
    #[inline(always)]
    pub fn is_echo_reply(&self) -> bool {
        match self.key.protocol {
            protocol::ICMP => self.icmp_type == 0 && self.fragment != Fragment::LATER,
            protocol::ICMPV6 => self.icmp_type == 129,
            _ => false,
        }
    }

    /// Whether this is of an echo, of which the identifier takes the place of a port: that of the
    /// source in a request, that of the destination in a reply.
    #[inline(always)]
    pub fn is_echo(&self) -> bool {
        self.is_echo_request() || self.is_echo_reply()
    }

    /// Time to live, or hop limit.
    #[inline(always)]
    pub fn hop_limit(&self) -> u8 {
        if self.is_v4() { self.ip_word[0] } else { self.ip_word[3] }
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
    let mut packet = Packet::default();
    packet.read(bytes, ethertype, l3)?;
    Ok(packet)
}

/// Reads the packet that an ICMP error quotes; its IP header is at `l3`.
#[inline(always)]
pub fn parse_quoted<B: Bytes + ?Sized>(bytes: &B, v4: bool, l3: u32) -> Result<Packet, Skip> {
    let mut packet = Packet::default();
    packet.read_quoted(bytes, v4, l3)?;
    Ok(packet)
}

/// Reading in place: the programs keep the packet in memory, because one that is taken apart into
/// registers fills their stack.
impl Packet {
    /// [`parse`] into a default packet. Where it fails, what was read is meaningless.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(
        &mut self,
        bytes: &B,
        ethertype: u16,
        l3: u32,
    ) -> Result<(), Skip> {
        match ethertype {
            ETHERTYPE_IPV4 => self.ipv4(bytes, l3, Depth::Whole),
            ETHERTYPE_IPV6 => self.ipv6(bytes, l3, Depth::Whole),
            _ => Err(Skip::NotIp),
        }
    }

    /// [`parse_quoted`] into a default packet.
    #[inline(always)]
    pub fn read_quoted<B: Bytes + ?Sized>(
        &mut self,
        bytes: &B,
        v4: bool,
        l3: u32,
    ) -> Result<(), Skip> {
        if v4 { self.ipv4(bytes, l3, Depth::Quoted) } else { self.ipv6(bytes, l3, Depth::Quoted) }
    }

    #[inline(always)]
    fn ipv4<B: Bytes + ?Sized>(&mut self, bytes: &B, l3: u32, depth: Depth) -> Result<(), Skip> {
        let header: [u32; 5] = bytes.words(l3).ok_or(Skip::Malformed)?;
        let [version, _, high, low] = header[0].to_ne_bytes();
        let header_len = u32::from(version & 0x0f) * 4;
        let total_len = match u16::from_be_bytes([high, low]) {
            0 if depth == Depth::Whole => bytes.joined().saturating_sub(l3),
            told => u32::from(told),
        };
        if version >> 4 != 4 || header_len < 20 || total_len < header_len {
            return Err(Skip::Malformed);
        }
        let [id0, id1, high, low] = header[1].to_ne_bytes();
        let field = u16::from_be_bytes([high, low]);
        self.fragment = Fragment::new(field.trailing_zeros() >= 13, field & 0x2000 != 0);
        self.identification = [id0, id1, 0, 0];
        self.ip_word = header[2].to_ne_bytes();
        self.key.protocol = self.ip_word[1];
        let prefix = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        self.key.source = Addr::from_words([0, 0, prefix, header[3]]);
        self.key.destination = Addr::from_words([0, 0, prefix, header[4]]);
        self.l3 = l3;
        self.l4 = l3 + header_len;
        self.total_len = total_len;
        self.transport(bytes, total_len - header_len, depth, protocol::ICMP)
    }

    #[inline(always)]
    fn ipv6<B: Bytes + ?Sized>(&mut self, bytes: &B, l3: u32, depth: Depth) -> Result<(), Skip> {
        let h: [u32; 10] = bytes.words(l3).ok_or(Skip::Malformed)?;
        if h[0].to_ne_bytes()[0] >> 4 != 6 {
            return Err(Skip::Malformed);
        }
        self.ip_word = h[1].to_ne_bytes();
        let [high, low, next, _] = self.ip_word;
        let payload_len = match u16::from_be_bytes([high, low]) {
            0 if depth == Depth::Whole => bytes.joined().saturating_sub(l3 + 40),
            told => u32::from(told),
        };
        self.key.protocol = next;
        self.key.source = Addr::from_words([h[2], h[3], h[4], h[5]]);
        self.key.destination = Addr::from_words([h[6], h[7], h[8], h[9]]);
        // A v4-mapped address on the wire would be taken for IPv4 by everything that follows.
        if self.key.source.is_v4() || self.key.destination.is_v4() {
            return Err(Skip::Malformed);
        }
        self.l3 = l3;
        self.l4 = l3 + 40;
        self.total_len = 40 + payload_len;
        self.extensions(bytes)?;
        let extension_len = self.l4 - (l3 + 40);
        if payload_len < extension_len {
            return Err(Skip::Malformed);
        }
        self.transport(bytes, payload_len - extension_len, depth, protocol::ICMPV6)
    }

    /// Walks from the fixed header, or wherever the packet has been read to, to the transport.
    #[inline(always)]
    fn extensions<B: Bytes + ?Sized>(&mut self, bytes: &B) -> Result<(), Skip> {
        for _ in 0..IPV6_EXTENSIONS_MAX {
            if !extension::is(self.key.protocol) {
                return Ok(());
            }
            let head: [u8; 4] = bytes.load(self.l4).ok_or(Skip::Malformed)?;
            self.l4 += match self.key.protocol {
                extension::FRAGMENT => {
                    let field = u16::from_be_bytes([head[2], head[3]]);
                    self.fragment = Fragment::new(field & 0xfff8 == 0, field & 1 != 0);
                    self.identification = bytes.load(self.l4 + 4).ok_or(Skip::Malformed)?;
                    if self.fragment == Fragment::LATER {
                        // What follows is no header, whatever it begins with.
                        self.l4 += 8;
                        self.key.protocol = head[0];
                        return Ok(());
                    }
                    8
                }
                // Counts in words of four octets, minus two (RFC 4302 section 2.2).
                extension::AUTHENTICATION => (u32::from(head[1]) + 2) * 4,
                _ => (u32::from(head[1]) + 1) * 8,
            };
            self.key.protocol = head[0];
        }
        if extension::is(self.key.protocol) { Err(Skip::TooManyExtensions) } else { Ok(()) }
    }

    /// Reads the ports or an echo's identifier, the TCP flags or the ICMP type. `payload` is what the
    /// IP header says follows.
    #[inline(always)]
    fn transport<B: Bytes + ?Sized>(
        &mut self,
        bytes: &B,
        payload: u32,
        depth: Depth,
        icmp: u8,
    ) -> Result<(), Skip> {
        let least = match self.key.protocol {
            protocol::TCP => 20,
            protocol::UDP => 8,
            other if other == icmp => 8,
            _ => return Err(Skip::Protocol),
        };
        if self.fragment == Fragment::LATER {
            return Ok(());
        }
        if payload < least {
            return Err(Skip::Malformed);
        }
        if self.key.protocol == icmp {
            let head: [u32; 2] = bytes.words(self.l4).ok_or(Skip::Malformed)?;
            self.icmp_type = head[0].to_ne_bytes()[0];
            let [high, low, ..] = head[1].to_ne_bytes();
            if self.is_echo_request() {
                self.key.source_port = [high, low];
            } else if self.is_echo_reply() {
                self.key.destination_port = [high, low];
            }
            return Ok(());
        }
        let ports = if self.key.protocol == protocol::TCP && depth == Depth::Whole {
            let head: [u32; 4] = bytes.words(self.l4).ok_or(Skip::Malformed)?;
            self.tcp_flags = head[3].to_ne_bytes()[1];
            head[0].to_ne_bytes()
        } else {
            bytes.words::<1>(self.l4).ok_or(Skip::Malformed)?[0].to_ne_bytes()
        };
        self.key.source_port = [ports[0], ports[1]];
        self.key.destination_port = [ports[2], ports[3]];
        Ok(())
    }
}

/// IPv6 extension headers (RFC 8200 section 4) that are skipped over on the way to the transport.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;

    #[inline(always)]
    pub(super) const fn is(protocol: u8) -> bool {
        matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
    }
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
