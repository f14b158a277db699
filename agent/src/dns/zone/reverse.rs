//! From addresses back to names: the pointers, and the names under `in-addr.arpa` and `ip6.arpa`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
};

use imbl::Vector;

use super::{
    blocks::Blocks,
    hosts::Host,
    service::{Addresses, Own, ServiceNames},
};
use crate::{dns::name::LowerName, model::ObjectKey};

/// One name that an address has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pointer {
    /// The endpoint whose address it is; `None` where it is a Service's.
    pub host: Option<Host>,
    /// The Service under which the name stands.
    pub service: ObjectKey,
}

/// Which Services have names at an address. What the names are, the Services themselves say.
#[derive(Clone, Debug, Default)]
pub struct Pointers {
    /// Services by numbers, which take little room: there are as many addresses as pods.
    by_address: Blocks<u32>,
    /// The keys in the index that Services have, in the places of their numbers.
    keys: Vector<Option<Arc<[u8]>>>,
    /// Numbers that nobody has any more.
    free: Vector<u32>,
}

impl Pointers {
    /// The names of `address`: those of Services, or where none has it those of endpoints.
    pub fn of<'z>(
        &self,
        address: IpAddr,
        names_of: impl Fn(&[u8]) -> Option<&'z ServiceNames>,
    ) -> Vec<Pointer> {
        let key = |number: &u32| self.keys.get(*number as usize)?.as_ref();
        let keys = self.by_address.of(address).filter_map(key);
        let services = keys.filter_map(|key| names_of(key));
        let mut all: Vec<_> = services.flat_map(|names| names.pointers(address)).collect();
        all.sort_unstable();
        all.dedup();
        // Services sort first, because they have no host.
        match all.partition_point(|pointer| pointer.host.is_none()) {
            0 => {}
            services => all.truncate(services),
        }
        all
    }

    /// Whether any address in that range has a name.
    pub fn any_in(&self, range: &RangeInclusive<IpAddr>) -> bool {
        self.by_address.any_in(range)
    }

    /// Whether no address has a name, and no Service a number.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty() && self.keys.iter().all(Option::is_none)
    }

    /// A number for the Service with that key.
    pub fn number(&mut self, key: &Arc<[u8]>) -> u32 {
        let key = Some(Arc::clone(key));
        if let Some(number) = self.free.pop_back() {
            self.keys.set(number as usize, key);
            return number;
        }
        self.keys.push_back(key);
        // No cluster has as many Services as there are numbers.
        u32::try_from(self.keys.len() - 1).unwrap_or(u32::MAX)
    }

    /// Has the addresses in `new` point to the Service with that number where those in `old` did;
    /// without `new` the number is another's to have. Touches only what differs, so that one
    /// endpoint of thousands costs one entry.
    pub fn replace(&mut self, number: u32, old: Option<&ServiceNames>, new: Option<&ServiceNames>) {
        if new.is_none()
            && let Some(key) = self.keys.get_mut(number as usize)
            && key.take().is_some()
        {
            self.free.push_back(number);
        }
        let addresses = |names: Option<&ServiceNames>| -> BTreeSet<IpAddr> {
            names.map(ServiceNames::pointing).into_iter().flatten().collect()
        };
        let (old, new) = (addresses(old), addresses(new));
        for address in old.difference(&new) {
            self.by_address.remove(*address, &number);
        }
        for address in new.difference(&old) {
            self.by_address.add(*address, number);
        }
    }
}

impl ServiceNames {
    /// The addresses that only this Service has as its own. A headless Service's are its
    /// endpoints', which have names of their own.
    fn own_addresses(&self) -> Option<&Addresses> {
        match &self.own {
            Own::ClusterIps(addresses) => Some(addresses),
            Own::Endpoints(_) | Own::Alias(_) => None,
        }
    }

    /// All addresses that have names here.
    fn pointing(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.own_addresses().into_iter().flat_map(Addresses::iter);
        own.chain(self.hosts.iter().map(|host| host.address))
    }

    /// The names that `address` has here.
    fn pointers(&self, address: IpAddr) -> impl Iterator<Item = Pointer> {
        let own = self.own_addresses().is_some_and(|all| all.contains(address));
        let hosts = self.hosts.at(address).map(Some);
        let all = own.then_some(None).into_iter().chain(hosts);
        all.map(|host| Pointer { host, service: self.key.clone() })
    }
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

/// Some of the two trees of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trees {
    /// `in-addr.arpa`.
    pub v4: bool,
    /// `ip6.arpa`.
    pub v6: bool,
}

impl Trees {
    /// Both.
    pub const BOTH: Self = Self { v4: true, v6: true };

    /// Those of these that are among `others` too.
    #[must_use]
    pub fn and(self, others: bool) -> Self {
        Self { v4: self.v4 && others, v6: self.v6 && others }
    }

    /// Whether the tree that `name` is in is one of them.
    pub fn has(self, name: &LowerName) -> bool {
        let ipv6 = name.label_count().checked_sub(2).is_some_and(|at| name.label(at) == b"ip6");
        if ipv6 { self.v6 } else { self.v4 }
    }
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
