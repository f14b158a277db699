//! The endpoints of a Service as names, in little room: most have nothing but an address.

use std::{collections::BTreeSet, net::IpAddr, ops::Range, sync::Arc};

use super::{
    dashed::{self, dashed},
    service::Addresses,
};

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// Its label, where the endpoint names one; otherwise its address is its label.
    pub hostname: Option<Arc<str>>,
    /// Its address.
    pub address: IpAddr,
}

impl Host {
    /// Its label below the Service's name.
    pub fn label(&self) -> String {
        self.hostname.as_deref().map_or_else(|| dashed(self.address), str::to_owned)
    }
}

/// The ready endpoints of a Service, ordered by hostname and address; those without a hostname
/// first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Those without a hostname.
    bare: Addresses,
    named: Box<[(Arc<str>, IpAddr)]>,
}

impl FromIterator<Host> for Hosts {
    fn from_iter<I: IntoIterator<Item = Host>>(hosts: I) -> Self {
        let (mut bare, mut named) = (BTreeSet::new(), BTreeSet::new());
        for Host { hostname, address } in hosts {
            match hostname {
                Some(hostname) => drop(named.insert((hostname, address))),
                None => drop(bare.insert(address)),
            }
        }
        Self { bare: bare.into_iter().collect(), named: named.into_iter().collect() }
    }
}

impl Hosts {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bare.is_empty() && self.named.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bare.len() + self.named.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Host> {
        let bare = self.bare.iter().map(|address| Host { hostname: None, address });
        bare.chain(self.named.iter().map(host))
    }

    /// The one at that place in the order.
    pub fn get(&self, place: usize) -> Option<Host> {
        match place.checked_sub(self.bare.len()) {
            Some(place) => self.named.get(place).map(host),
            None => self.bare.get(place).map(|address| Host { hostname: None, address }),
        }
    }

    /// The place of one in the order.
    pub fn place_of(&self, host: &Host) -> Option<usize> {
        let Some(hostname) = &host.hostname else { return self.bare.place_of(host.address) };
        let key = (hostname, &host.address);
        let place = self.named.binary_search_by(|(name, address)| (name, address).cmp(&key));
        place.ok().map(|place| self.bare.len() + place)
    }

    /// Those that have `address`.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = Host> {
        let bare = self.bare.place_of(address).map(|_| Host { hostname: None, address });
        let named = self.named.iter().filter(move |(_, other)| *other == address);
        bare.into_iter().chain(named.map(host))
    }

    /// The addresses of those with that label.
    pub fn labelled(&self, label: &[u8]) -> Addresses {
        self.places(label).filter_map(|place| self.get(place)).map(|host| host.address).collect()
    }

    /// The places of those with that label, which are next to each other.
    pub fn places(&self, label: &[u8]) -> Range<usize> {
        let from = self.named.partition_point(|(name, _)| name.as_bytes() < label);
        let count = self.named[from..].partition_point(|(name, _)| name.as_bytes() == label);
        if count > 0 {
            let first = self.bare.len() + from;
            return first..first + count;
        }
        let address = dashed::parse(label).filter(|address| dashed(*address).as_bytes() == label);
        let place = address.and_then(|address| self.bare.place_of(address));
        let first = place.unwrap_or(0);
        first..first + usize::from(place.is_some())
    }
}

fn host((hostname, address): &(Arc<str>, IpAddr)) -> Host {
    Host { hostname: Some(Arc::clone(hostname)), address: *address }
}
