//! Addresses, ports and protocols as the maps hold them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::layout::record;

/// IANA protocol numbers that the datapath knows.
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// Internet Control Message Protocol for IPv4.
    pub const ICMP: u8 = 1;
    /// Internet Control Message Protocol for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;
}

record! {
    /// An IPv6 address, or an IPv4 address in its v4-mapped form (`::ffff:a.b.c.d`, RFC 4291
    /// section 2.5.5.2), in network byte order.
    ///
    /// Aligned, because the programs' processor has no unaligned access: what may be unaligned is
    /// copied octet by octet. Every record has its addresses at multiples of four anyway.
    #[repr(align(4))]
    pub struct Addr: 16, 4 {
        /// The octets, most significant first.
        pub octets: [u8; 16],
    }
}

/// The first twelve octets of every v4-mapped address.
const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Addr {
    /// `::`, which in a frontend's key means "any address of this node" for IPv6.
    pub const ANY_V6: Self = Self { octets: [0; 16] };
    /// `::ffff:0.0.0.0`, which in a frontend's key means "any address of this node" for IPv4.
    pub const ANY_V4: Self = Self::from_v4([0; 4]);
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self::from_v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The v4-mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        let p = V4_PREFIX;
        Self {
            octets: [
                p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], v4[0],
                v4[1], v4[2], v4[3],
            ],
        }
    }

    /// An IPv6 address as it is. A v4-mapped one is the IPv4 address that it names.
    #[inline(always)]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        Self { octets }
    }

    /// The octets as words in native order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        // SAFETY: the type is aligned for it, and sixteen octets are four words.
        unsafe { *core::ptr::from_ref(self).cast::<[u32; 4]>() }
    }

    /// The address with these words.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: four words are sixteen octets, and any octets are an address.
        Self { octets: unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) } }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        // Word by word: the BPF back end turns a slice comparison into a call of `memcmp`.
        let w = self.words();
        w[0] == 0 && w[1] == 0 && w[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Whether two addresses are the same; `==` for programs (see [`Self::is_v4`]).
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let (a, b) = (self.words(), other.words());
        a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0]
    }

    /// Whether this is an address of the loopback interface: 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        if self.is_v4() { self.octets[12] == 127 } else { self.is(&Self::LOOPBACK_V6) }
    }

    /// Whether this is the unspecified address of its family: `0.0.0.0` or `::`.
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        self.words()[3] == 0 && self.is(&self.any_of_family())
    }

    /// Where the kernel leads a socket that dials this address: from the unspecified one to the
    /// loopback interface (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.2), any other is itself.
    ///
    /// By arithmetic and without a branch: with one the verifier would walk all that follows three
    /// times, for an address that is known to be one or the other, or not known.
    #[inline(always)]
    pub fn reached(self) -> Self {
        const LOOPBACK_V4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
        const LOOPBACK_V6: u32 = u32::from_ne_bytes([0, 0, 0, 1]);
        let [first, second, third, last] = self.words();
        let v4 = first | second | (third ^ Self::ANY_V4.words()[2]) | last;
        let v6 = first | second | third | last;
        let last =
            last | (all_ones_if_zero(v4) & LOOPBACK_V4) | (all_ones_if_zero(v6) & LOOPBACK_V6);
        let mut reached = self;
        reached.octets[12..].copy_from_slice(&last.to_ne_bytes());
        reached
    }

    /// The last four octets: the IPv4 address where [`Self::is_v4`] holds.
    #[inline(always)]
    pub const fn v4(&self) -> [u8; 4] {
        let o = &self.octets;
        [o[12], o[13], o[14], o[15]]
    }

    /// "Any address of this node" in the family of this address.
    #[inline(always)]
    pub fn any_of_family(&self) -> Self {
        if self.is_v4() { Self::ANY_V4 } else { Self::ANY_V6 }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            Self::V4(Ipv4Addr::from(addr.v4()))
        } else {
            Self::V6(Ipv6Addr::from(addr.octets))
        }
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// A mask of all bits where `word` is zero, and of none where it is not. The compiler is kept from
/// making a branch of it.
#[inline(always)]
fn all_ones_if_zero(word: u32) -> u32 {
    use core::hint::black_box;
    let borrowed = black_box(i64::from(word) - 1);
    // The low half of the sign, spread over all bits.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "all bits are alike"
    )]
    let mask = black_box(borrowed >> 63) as u32;
    mask
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString as _;

    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn families_and_their_any() {
        assert!(addr("10.0.0.1").is_v4());
        assert!(addr("::ffff:10.0.0.1").is_v4(), "v4-mapped is IPv4");
        assert!(!addr("fd00::1").is_v4() && !addr("::10.0.0.1").is_v4());
        assert_eq!(addr("10.0.0.1").any_of_family(), addr("0.0.0.0"));
        assert_eq!(addr("fd00::1").any_of_family(), addr("::"));
        assert_eq!(addr("::ffff:10.0.0.1").to_string(), "10.0.0.1");
    }

    #[test]
    fn loopback_is_of_both_families() {
        for text in ["127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1"] {
            assert!(addr(text).is_loopback(), "{text}");
        }
        for text in ["128.0.0.1", "126.1.1.1", "::", "::2", "fe80::1", "0.0.0.0"] {
            assert!(!addr(text).is_loopback(), "{text}");
        }
    }

    #[test]
    fn the_unspecified_address_reaches_the_loopback_of_its_family() {
        for (dialled, reached) in [
            ("0.0.0.0", "127.0.0.1"),
            ("::ffff:0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("127.0.0.2", "127.0.0.2"),
            ("::1", "::1"),
            ("10.0.0.0", "10.0.0.0"),
            ("fd00::", "fd00::"),
        ] {
            assert_eq!(addr(dialled).reached(), addr(reached), "{dialled}");
            assert_eq!(addr(dialled).is_unspecified(), dialled != reached, "{dialled}");
        }
    }

    #[test]
    fn the_same_is_the_same_in_every_octet() {
        let one = addr("1:2:3:4:5:6:7:8");
        assert!(one.is(&one));
        for i in 0..16 {
            let mut other = one;
            other.octets[i] ^= 1;
            assert!(!one.is(&other), "octet {i}");
        }
    }
}
