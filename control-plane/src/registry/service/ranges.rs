//! The ranges that Services take addresses and node ports from, with Kubernetes' static and
//! dynamic bands (KEP-3070, KEP-3668): what is chosen automatically comes from above the static
//! band while there is any, so that chosen-by-hand values below rarely collide.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::cidr::Cidr;

/// How many bits of a large IPv6 range are chosen from; the rest can be asked for.
const HOST_BITS_USED: u8 = 31;

/// How many addresses of a range are chosen from. The first is none's, nor is IPv4's last.
fn capacity(range: Cidr) -> u32 {
    let size = 1_u32 << range.host_bits().min(HOST_BITS_USED);
    size.saturating_sub(if range.is_ipv6() { 1 } else { 2 })
}

/// The address `index` + 1 above the first: Services' addresses are counted from there.
pub fn nth(range: Cidr, index: u32) -> IpAddr {
    // Beyond the range only where it has no address to give.
    range.address(u128::from(index) + 1).unwrap_or(range.first())
}

/// Whether a Service can have the address.
pub(super) fn offers(range: Cidr, address: IpAddr) -> bool {
    let end = u128::MAX.checked_shr(128 - u32::from(range.host_bits())).unwrap_or(0);
    let last = if range.is_ipv6() { end } else { end.saturating_sub(1) };
    range.offset(address).is_some_and(|offset| (1..=last).contains(&offset))
}

/// Size of the static band.
fn static_band(range: Cidr) -> u32 {
    (capacity(range) / 16).clamp(16, 256)
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
        self.addresses.iter().find(|range| self::family(range.first()) == family)
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
    order(capacity(range), static_band(range), random).map(move |index| nth(range, index))
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
        assert_eq!(nth(range, 0).to_string(), "10.96.0.1");
        assert!(offers(range, "10.96.255.254".parse().unwrap()));
        assert!(!offers(range, "10.96.0.0".parse().unwrap()));
        assert!(!offers(range, "10.96.255.255".parse().unwrap()));
        assert!(!offers(range, "10.97.0.1".parse().unwrap()));
        assert!(!offers(range, "fd00::1".parse().unwrap()));
        assert!(offers(cidr("fd00:96::/112"), "fd00:96::ffff".parse().unwrap()));
        assert!(offers(cidr("fd00:96::/64"), "fd00:96::1:2:3:4".parse().unwrap()));
        assert!(!offers(cidr("fd00:96::1/128"), "fd00:96::1".parse().unwrap()));
        assert!(!offers(cidr("10.96.0.1/32"), "10.96.0.1".parse().unwrap()));
        assert_eq!(addresses(cidr("10.96.0.1/32"), 7).count(), 0);
        assert!(addresses(cidr("fd00:96::/64"), u32::MAX).next().is_some());
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
}
