//! The ranges that Services take addresses and node ports from, with Kubernetes' static and
//! dynamic bands (KEP-3070, KEP-3668): what is chosen automatically comes from above the static
//! band while there is any, so that chosen-by-hand values below rarely collide.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: IpAddr,
    bits: u8,
}

/// A text that is no CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address range such as 10.96.0.0/16 or fd00:96::/112")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.to_owned());
        let (base, bits) = text.split_once('/').ok_or_else(wrong)?;
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let cidr = Self { base, bits };
        if bits > cidr.width() {
            return Err(wrong());
        }
        Ok(Self { base: cidr.nth_raw(0), bits })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.base, self.bits)
    }
}

impl Cidr {
    /// Whether the range is of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.base.is_ipv4()
    }

    /// `IPv4` or `IPv6`.
    pub fn family(&self) -> &'static str {
        family(self.base)
    }

    fn width(&self) -> u8 {
        if self.base.is_ipv4() { 32 } else { 128 }
    }

    /// How many addresses can be given out. The first is none's, nor is IPv4's last. Only so many
    /// of a large IPv6 range are used as Kubernetes uses.
    pub fn capacity(&self) -> u32 {
        let host_bits = u32::from(self.width() - self.bits).min(16);
        let size = 1u32 << host_bits;
        size.saturating_sub(if self.base.is_ipv4() { 2 } else { 1 })
    }

    /// The address `index` + 1 above the base.
    pub fn nth(&self, index: u32) -> IpAddr {
        self.nth_raw(u128::from(index) + 1)
    }

    fn nth_raw(&self, offset: u128) -> IpAddr {
        let host = u32::from(self.width() - self.bits);
        match self.base {
            IpAddr::V4(base) => {
                let mask = u32::MAX.checked_shl(host).unwrap_or(0);
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                Ipv4Addr::from_bits((base.to_bits() & mask).wrapping_add(offset)).into()
            }
            IpAddr::V6(base) => {
                let mask = u128::MAX.checked_shl(host).unwrap_or(0);
                Ipv6Addr::from_bits((base.to_bits() & mask).wrapping_add(offset)).into()
            }
        }
    }

    /// Whether `address` can be given out.
    pub fn contains(&self, address: IpAddr) -> bool {
        let offset = match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                u128::from(address.to_bits().wrapping_sub(base.to_bits()))
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                address.to_bits().wrapping_sub(base.to_bits())
            }
            _ => return false,
        };
        (1..=u128::from(self.capacity())).contains(&offset)
    }

    /// Size of the static band.
    fn static_band(&self) -> u32 {
        (self.capacity() / 16).clamp(16, 256)
    }
}

/// `IPv4` or `IPv6`.
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// What Services can have.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// At most one range per family; the first one's family is the cluster's default.
    pub addresses: Vec<Cidr>,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
}

impl Ranges {
    /// The range of a family.
    pub fn of(&self, family: &str) -> Option<&Cidr> {
        self.addresses.iter().find(|range| range.family() == family)
    }
}

/// Numbers `0..capacity` in the order in which to try them: a random start in the dynamic band,
/// around it, then the static band from its top.
fn order(capacity: u32, band: u32, random: u32) -> impl Iterator<Item = u32> {
    let band = if band < capacity { band } else { 0 };
    let dynamic = capacity - band;
    let start = if dynamic == 0 { 0 } else { random % dynamic };
    (0..dynamic).map(move |step| band + (start + step) % dynamic).chain((0..band).rev())
}

/// Addresses of a range in the order in which to try them.
pub(super) fn addresses(range: Cidr, random: u32) -> impl Iterator<Item = IpAddr> {
    order(range.capacity(), range.static_band(), random).map(move |index| range.nth(index))
}

/// Node ports in the order in which to try them.
pub(super) fn ports(range: &RangeInclusive<u16>, random: u32) -> impl Iterator<Item = u16> + use<> {
    let first = *range.start();
    let size = u32::try_from(range.len()).unwrap_or(0);
    let band = (size / 32).clamp(16, 128);
    order(size, band, random).map(move |index| first + u16::try_from(index).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_ends_before_the_broadcast_address() {
        let range = cidr("10.96.0.0/16");
        assert_eq!(range.nth(0).to_string(), "10.96.0.1");
        assert!(range.contains("10.96.255.254".parse().unwrap()));
        assert!(!range.contains("10.96.0.0".parse().unwrap()));
        assert!(!range.contains("10.96.255.255".parse().unwrap()));
        assert!(!range.contains("10.97.0.1".parse().unwrap()));
        assert!(!range.contains("fd00::1".parse().unwrap()));
        assert!(cidr("fd00:96::/112").contains("fd00:96::ffff".parse().unwrap()));
    }

    #[test]
    fn automatic_choice_leaves_the_static_band_for_last() {
        // KEP-3070: a /16 has a static band of 256 addresses.
        let all: Vec<_> = addresses(cidr("10.96.0.0/16"), 7).collect();
        assert_eq!(all.len(), 65_534);
        assert_eq!(all[0].to_string(), "10.96.1.8");
        assert_eq!(all[65_533].to_string(), "10.96.0.1");
        // KEP-3668: 2768 ports have a static band of 86.
        let all: Vec<_> = ports(&(30_000..=32_767), 0).collect();
        assert_eq!((all[0], all[2767]), (30_086, 30_000));
    }

    #[test]
    fn texts_that_are_no_range_are_refused() {
        for text in ["10.96.0.0", "10.96.0.0/33", "fd00::/129", "x/8", ""] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        assert_eq!(cidr("10.96.3.4/16").to_string(), "10.96.0.0/16");
    }
}
