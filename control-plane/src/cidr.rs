//! Address ranges in CIDR notation, and their division into equal parts.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address range of either family. The bits below the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

/// A text that is no address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address range such as 10.244.0.0/16 or fd00:244::/48: {reason}")]
pub struct CidrError {
    text: String,
    reason: &'static str,
}

impl Cidr {
    /// The range of that prefix length (in bits) that holds the address; `None` if the length is
    /// more than the family's address has.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let width = width(address);
        let host_bits = u32::from(width.checked_sub(prefix)?);
        let first = from_bits(high_part(to_bits(address), host_bits), address.is_ipv6());
        Some(Self { first, prefix })
    }

    /// The lowest address of the range.
    pub fn first(self) -> IpAddr {
        self.first
    }

    /// The length of the prefix in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the range is one of IPv6 addresses.
    pub fn is_ipv6(self) -> bool {
        self.first.is_ipv6()
    }

    /// How many bits of an address the range leaves open.
    pub fn host_bits(self) -> u8 {
        width(self.first) - self.prefix
    }

    /// The address that many above the first; `None` beyond the range.
    pub fn address(self, offset: u128) -> Option<IpAddr> {
        let beyond = offset.checked_shr(u32::from(self.host_bits())).unwrap_or(0);
        (beyond == 0).then(|| from_bits(to_bits(self.first) + offset, self.is_ipv6()))
    }

    /// How far above the first an address lies; `None` outside the range.
    pub fn offset(self, address: IpAddr) -> Option<u128> {
        let same_family = address.is_ipv6() == self.is_ipv6();
        let inside = same_family && Self::new(address, self.prefix) == Some(self);
        inside.then(|| to_bits(address) - to_bits(self.first))
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(self, other: Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        self.is_ipv6() == other.is_ipv6()
            && Self::new(self.first, prefix) == Self::new(other.first, prefix)
    }

    /// How many parts of that prefix length the range has; `None` if it is smaller than one part,
    /// or has more than 2^32 of them.
    pub fn parts(self, prefix: u8) -> Option<u64> {
        let bits = prefix.checked_sub(self.prefix)?;
        (prefix <= width(self.first) && bits <= 32).then(|| 1 << bits)
    }

    /// The part of that number and prefix length.
    pub fn part(self, index: u64, prefix: u8) -> Option<Self> {
        if index >= self.parts(prefix)? {
            return None;
        }
        let shift = u32::from(width(self.first) - prefix);
        let offset = u128::from(index).checked_shl(shift).unwrap_or(0);
        let first = from_bits(to_bits(self.first) + offset, self.is_ipv6());
        Some(Self { first, prefix })
    }

    /// The numbers (first and last) of the parts of that prefix length that `other` overlaps.
    pub fn parts_under(self, other: Self, prefix: u8) -> Option<(u64, u64)> {
        let count = self.parts(prefix)?;
        if !self.overlaps(other) {
            return None;
        }
        if other.prefix <= self.prefix {
            return Some((0, count - 1));
        }
        let shift = u32::from(width(self.first) - prefix);
        let offset = to_bits(other.first) - to_bits(self.first);
        let index = u64::try_from(offset.checked_shr(shift).unwrap_or(0)).ok()?;
        let spanned = 1_u64 << u32::from(prefix.saturating_sub(other.prefix));
        Some((index, index + spanned - 1))
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = |reason| CidrError { text: text.to_owned(), reason };
        let (address, prefix) = text.split_once('/').ok_or_else(|| error("there is no `/`"))?;
        let address = address.parse().or(Err(error("what precedes the `/` is no IP address")))?;
        let prefix = prefix.parse().or(Err(error("what follows the `/` is no prefix length")))?;
        let cidr =
            Self::new(address, prefix).ok_or_else(|| error("the prefix length is too large"))?;
        if cidr.first == address { Ok(cidr) } else { Err(error("there are bits below the prefix")) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_bits(bits: u128, ipv6: bool) -> IpAddr {
    if ipv6 {
        IpAddr::V6(bits.into())
    } else {
        // An IPv4 range never leaves the low 32 bits.
        IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into())
    }
}

fn high_part(bits: u128, host_bits: u32) -> u128 {
    bits.checked_shr(host_bits).and_then(|high| high.checked_shl(host_bits)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parses_what_it_prints_and_names_what_is_wrong() {
        for text in ["10.244.0.0/16", "fd00:244::/48", "0.0.0.0/0", "::/0", "10.0.0.1/32"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        for (text, reason) in [
            ("10.244.0.0", "there is no `/`"),
            ("10.244/16", "what precedes the `/` is no IP address"),
            ("10.244.0.0/x", "what follows the `/` is no prefix length"),
            ("10.244.0.0/33", "the prefix length is too large"),
            ("10.244.0.1/16", "there are bits below the prefix"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap_err().reason, reason, "{text}");
        }
    }

    #[test]
    fn addresses_are_counted_from_the_first() {
        for (range, offset, address) in [
            ("10.96.0.0/16", 0, Some("10.96.0.0")),
            ("10.96.0.0/16", 0xffff, Some("10.96.255.255")),
            ("10.96.0.0/16", 0x1_0000, None),
            ("10.0.0.1/32", 0, Some("10.0.0.1")),
            ("10.0.0.1/32", 1, None),
            ("0.0.0.0/0", u128::from(u32::MAX), Some("255.255.255.255")),
            ("fd00:96::/112", 0xa, Some("fd00:96::a")),
            ("::/0", u128::MAX, Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
        ] {
            let address: Option<IpAddr> = address.map(|text: &str| text.parse().unwrap());
            assert_eq!(cidr(range).address(offset), address, "{range} {offset}");
            if let Some(address) = address {
                assert_eq!(cidr(range).offset(address), Some(offset), "{range} {offset}");
            }
        }
        assert_eq!(cidr("10.96.0.0/16").offset("10.97.0.0".parse().unwrap()), None);
        assert_eq!(cidr("0.0.0.0/0").offset("::1".parse().unwrap()), None);
        assert_eq!(cidr("::/0").offset("10.0.0.1".parse().unwrap()), None);
    }

    #[test]
    fn parts_lie_side_by_side() {
        let range = cidr("10.244.0.0/16");
        assert_eq!(range.parts(24), Some(256));
        assert_eq!(range.part(0, 24), Some(cidr("10.244.0.0/24")));
        assert_eq!(range.part(255, 24), Some(cidr("10.244.255.0/24")));
        assert_eq!(range.part(256, 24), None);
        assert_eq!(range.parts(8), None);
        let range = cidr("fd00:244::/48");
        assert_eq!(range.parts(64), Some(65536));
        assert_eq!(range.part(3, 64), Some(cidr("fd00:244:0:3::/64")));
        assert_eq!(cidr("::/0").parts(64), None);
    }

    #[test]
    fn finds_the_parts_under_any_range() {
        let range = cidr("10.244.0.0/16");
        assert_eq!(range.parts_under(cidr("10.244.3.0/24"), 24), Some((3, 3)));
        assert_eq!(range.parts_under(cidr("10.244.4.0/22"), 24), Some((4, 7)));
        assert_eq!(range.parts_under(cidr("10.244.9.128/25"), 24), Some((9, 9)));
        assert_eq!(range.parts_under(cidr("10.0.0.0/8"), 24), Some((0, 255)));
        assert_eq!(range.parts_under(cidr("10.245.0.0/24"), 24), None);
        assert_eq!(range.parts_under(cidr("fd00::/64"), 24), None);
    }
}
