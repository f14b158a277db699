//! From addresses back to names: the pointers, and the names under `in-addr.arpa` and `ip6.arpa`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
};

use imbl::OrdMap;

use super::service::{Addresses, Host, Own, ServiceNames};
use crate::{dns::name::LowerName, model::ObjectKey};

/// One name that an address has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pointer {
    /// The endpoint whose address it is; `None` where it is a Service's.
    pub host: Option<Host>,
    /// The Service under which the name stands.
    pub service: ObjectKey,
}

/// The names of addresses.
#[derive(Clone, Debug, Default)]
pub struct Pointers {
    by_address: OrdMap<IpAddr, Arc<[Pointer]>>,
}

impl Pointers {
    /// The names of `address`: those of Services, or where none has it those of endpoints.
    pub fn of(&self, address: IpAddr) -> &[Pointer] {
        let Some(all) = self.by_address.get(&address) else { return &[] };
        // Services sort first, because they have no host.
        match all.partition_point(|pointer| pointer.host.is_none()) {
            0 => all,
            services => &all[..services],
        }
    }

    /// Whether any address in that range has a name.
    pub fn any_in(&self, range: RangeInclusive<IpAddr>) -> bool {
        self.by_address.range(range).next().is_some()
    }

    /// Whether no address has a name.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Has the addresses in `new` point to `service` where those in `old` did. Touches only what
    /// differs, so that one endpoint of thousands costs one entry.
    pub fn replace(
        &mut self,
        service: &ObjectKey,
        old: Option<&ServiceNames>,
        new: Option<&ServiceNames>,
    ) {
        let old = old.map_or_else(BTreeSet::new, |names| pointers(service, names));
        let new = new.map_or_else(BTreeSet::new, |names| pointers(service, names));
        for (address, pointer) in old.difference(&new) {
            self.remove(*address, pointer);
        }
        for (address, pointer) in new.difference(&old) {
            self.add(*address, pointer);
        }
    }

    fn add(&mut self, address: IpAddr, pointer: &Pointer) {
        let mut all = self.by_address.get(&address).map_or_else(Vec::new, |all| all.to_vec());
        if let Err(place) = all.binary_search(pointer) {
            all.insert(place, pointer.clone());
            self.by_address.insert(address, all.into());
        }
    }

    fn remove(&mut self, address: IpAddr, pointer: &Pointer) {
        let Some(all) = self.by_address.get(&address) else { return };
        let left: Vec<_> = all.iter().filter(|other| *other != pointer).cloned().collect();
        if left.is_empty() {
            self.by_address.remove(&address);
        } else {
            self.by_address.insert(address, left.into());
        }
    }
}

fn pointers(service: &ObjectKey, names: &ServiceNames) -> BTreeSet<(IpAddr, Pointer)> {
    let own = match &names.own {
        Own::ClusterIps(addresses) => Some(addresses),
        // A headless Service's addresses are its endpoints', which have names of their own.
        Own::Endpoints(_) | Own::Alias(_) => None,
    };
    let of_service = own
        .into_iter()
        .flat_map(Addresses::iter)
        .map(|address| (address, Pointer { host: None, service: service.clone() }));
    let of_hosts = names
        .hosts
        .iter()
        .map(|host| (host.address, Pointer { host: Some(host.clone()), service: service.clone() }));
    of_service.chain(of_hosts).collect()
}

/// What a name under the reverse trees stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arpa {
    /// One address.
    Address(IpAddr),
    /// All addresses of a prefix; the name of a whole tree is the prefix of length zero.
    Prefix(RangeInclusive<IpAddr>),
    /// Nothing: the labels are no address.
    Nothing,
}

/// Reads a name under `in-addr.arpa` (RFC 1035 3.5) or `ip6.arpa` (RFC 3596 2.5); `None` where it
/// stands in neither tree.
pub fn parse(name: &LowerName) -> Option<Arpa> {
    let labels = name.label_count().checked_sub(2)?;
    if name.label(labels + 1) != b"arpa" {
        return None;
    }
    match name.label(labels) {
        b"in-addr" => Some(octets(name, labels).unwrap_or(Arpa::Nothing)),
        b"ip6" => Some(nibbles(name, labels).unwrap_or(Arpa::Nothing)),
        _ => None,
    }
}

fn octets(name: &LowerName, labels: usize) -> Option<Arpa> {
    let missing = u32::try_from(4_usize.checked_sub(labels)?).ok()?;
    let mut bits = 0_u32;
    for index in (0..labels).rev() {
        let label = name.label(index);
        // "01" is another name than "1", and no address has it.
        if label.len() > 1 && label.starts_with(b"0") || !label.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let octet: u8 = std::str::from_utf8(label).ok()?.parse().ok()?;
        bits = bits << 8 | u32::from(octet);
    }
    let first = bits.checked_shl(8 * missing).unwrap_or(0);
    let last = first | u32::MAX.checked_shr(8 * (4 - missing)).unwrap_or(0);
    let address = |bits| IpAddr::from(Ipv4Addr::from_bits(bits));
    Some(if missing == 0 {
        Arpa::Address(address(first))
    } else {
        Arpa::Prefix(address(first)..=address(last))
    })
}

fn nibbles(name: &LowerName, labels: usize) -> Option<Arpa> {
    let missing = u32::try_from(32_usize.checked_sub(labels)?).ok()?;
    let mut bits = 0_u128;
    for index in (0..labels).rev() {
        let [digit] = name.label(index) else { return None };
        bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
    }
    let first = bits.checked_shl(4 * missing).unwrap_or(0);
    let last = first | u128::MAX.checked_shr(4 * (32 - missing)).unwrap_or(0);
    let address = |bits| IpAddr::from(Ipv6Addr::from_bits(bits));
    Some(if missing == 0 {
        Arpa::Address(address(first))
    } else {
        Arpa::Prefix(address(first)..=address(last))
    })
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::rr::Name;

    use super::*;

    fn read(name: &str) -> Option<Arpa> {
        parse(&LowerName::of(&Name::from_str(name).unwrap()))
    }

    #[test]
    fn names_of_addresses() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(read("1.0.96.10.in-addr.arpa."), Some(Arpa::Address(address("10.96.0.1"))));
        let v6 = address("fd00:96::a");
        assert_eq!(parse(&LowerName::of(&Name::from(v6))), Some(Arpa::Address(v6)));
        assert_eq!(
            read("96.10.in-addr.arpa."),
            Some(Arpa::Prefix(address("10.96.0.0")..=address("10.96.255.255")))
        );
        assert_eq!(
            read("in-addr.arpa."),
            Some(Arpa::Prefix(address("0.0.0.0")..=address("255.255.255.255")))
        );
        assert_eq!(
            read("0.0.d.f.ip6.arpa."),
            Some(Arpa::Prefix(
                address("fd00::")..=address("fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
            ))
        );
        assert_eq!(
            read("ip6.arpa."),
            Some(Arpa::Prefix(address("::")..=IpAddr::from(Ipv6Addr::from_bits(u128::MAX))))
        );
        for nothing in [
            "svc1.testns.svc.0.10.in-addr.arpa.",
            "256.in-addr.arpa.",
            "01.10.in-addr.arpa.",
            "5.4.3.2.1.in-addr.arpa.",
            "00.ip6.arpa.",
            "g.ip6.arpa.",
        ] {
            assert_eq!(read(nothing), Some(Arpa::Nothing), "{nothing}");
        }
        let signed = Name::from_labels([&b"+1"[..], b"10", b"in-addr", b"arpa"]).unwrap();
        assert_eq!(parse(&LowerName::of(&signed)), Some(Arpa::Nothing));
        for foreign in ["arpa.", "example.org.", "home.arpa.", "."] {
            assert_eq!(read(foreign), None, "{foreign}");
        }
    }
}
