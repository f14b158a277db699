//! The names that one Service gives: its own, its ports' and its endpoints'.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hickory_proto::rr::Name;

use super::{Found, hosts::Hosts, naming::Naming};
use crate::{
    dns::name::LowerName,
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointSlice},
        service::{Protocol, Service},
    },
};

/// Everything that is named after one Service.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceNames {
    /// Whose names these are.
    pub key: ObjectKey,
    /// What the Service's own name holds.
    pub own: Own,
    /// Its ports, ordered by protocol, name and number.
    pub ports: Box<[Port]>,
    /// Its ready endpoints.
    pub hosts: Hosts,
    /// Their ports, where these are not the Service's own: it has cluster IPs.
    behind: Box<[Port]>,
}

/// What the Service's own name holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Own {
    /// Its cluster IPs.
    ClusterIps(Addresses),
    /// It is headless: the addresses of its ready endpoints.
    Endpoints(Addresses),
    /// The name that an ExternalName Service stands for.
    Alias(Box<Name>),
}

/// Addresses by family, each family in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For A.
    pub v4: Box<[Ipv4Addr]>,
    /// For AAAA.
    pub v6: Box<[Ipv6Addr]>,
}

impl Addresses {
    /// How many there are of both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one at that place: IPv4 first.
    pub fn get(&self, place: usize) -> Option<IpAddr> {
        match place.checked_sub(self.v4.len()) {
            Some(place) => self.v6.get(place).copied().map(IpAddr::V6),
            None => self.v4.get(place).copied().map(IpAddr::V4),
        }
    }

    /// The place of one, where each family is in order.
    pub fn place_of(&self, address: IpAddr) -> Option<usize> {
        match address {
            IpAddr::V4(address) => self.v4.binary_search(&address).ok(),
            IpAddr::V6(address) => {
                self.v6.binary_search(&address).ok().map(|place| self.v4.len() + place)
            }
        }
    }

    /// Whether it is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.iter().any(|other| other == address)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().map(|address| IpAddr::V4(*address));
        v4.chain(self.v6.iter().map(|address| IpAddr::V6(*address)))
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        Self { v4: v4.into(), v6: v6.into() }
    }
}

/// A port, for SRV.
#[derive(Debug, PartialEq, Eq)]
pub struct Port {
    /// The second label of the SRV name.
    pub protocol: Protocol,
    /// The first label of the SRV name; empty where it has none, and then no such name.
    pub name: Arc<str>,
    /// The port, host byte order.
    pub number: u16,
    /// Who serves it.
    pub targets: Targets,
}

/// Who serves a port.
#[derive(Debug, PartialEq, Eq)]
pub enum Targets {
    /// The Service at its cluster IPs.
    Service,
    /// Endpoints, by their place in [`ServiceNames::hosts`].
    Hosts(Box<[u32]>),
}

impl ServiceNames {
    /// The addresses at the Service's own name; an alias has none.
    pub fn addresses(&self) -> Option<&Addresses> {
        match &self.own {
            Own::ClusterIps(addresses) | Own::Endpoints(addresses) => Some(addresses),
            Own::Alias(_) => None,
        }
    }

    /// The names that `service` gives with these slices; `None` where there are none: a headless
    /// Service without a ready endpoint does not exist (specification 2.4.1).
    pub fn of<'a>(
        service: &Service,
        slices: impl Iterator<Item = &'a Arc<EndpointSlice>>,
        naming: &Naming,
    ) -> Option<Self> {
        let key = service.key.clone();
        if let Some(target) = &service.external_name {
            let mut target = Name::from_ascii(&**target).ok()?;
            target.set_fqdn(true);
            let own = Own::Alias(Box::new(target));
            let hosts = Hosts::default();
            return Some(Self { key, own, ports: [].into(), hosts, behind: [].into() });
        }
        let slices: Vec<_> = slices.map(|slice| &**slice).collect();
        let answers = |slice: &&EndpointSlice| ready(slice).next().is_some();
        if naming.ignore_empty_services && !service.headless && !slices.iter().any(answers) {
            return None;
        }
        let named = slices.iter().filter(|_| !naming.no_endpoints);
        let hosts: Hosts = named
            .flat_map(|slice| ready(slice).map(|endpoint| naming.host(slice, endpoint)))
            .collect();
        if !service.headless {
            let own = Own::ClusterIps(service.cluster_ips.iter().copied().collect());
            let behind = endpoint_ports(&slices, &hosts, naming);
            return Some(Self { key, own, ports: service_ports(service), hosts, behind });
        }
        if hosts.is_empty() {
            return None;
        }
        let addresses: BTreeSet<IpAddr> = hosts.iter().map(|host| host.address).collect();
        let own = Own::Endpoints(addresses.into_iter().collect());
        let ports = endpoint_ports(&slices, &hosts, naming);
        Some(Self { key, own, ports, hosts, behind: [].into() })
    }

    /// The ports by which its endpoints serve, whatever it has itself.
    pub fn ports_of_hosts(&self) -> &[Port] {
        if matches!(self.own, Own::ClusterIps(_)) { &self.behind } else { &self.ports }
    }

    /// What stands at the name whose first `labels` labels are left of the Service's.
    pub fn find(&self, name: &LowerName, labels: usize) -> Found<'_> {
        match labels {
            0 => Found::Service(self),
            1 => match protocol_of(name.label(0)) {
                Some(protocol) if self.has_named_port(protocol) => Found::Empty,
                Some(_) => Found::Missing,
                None => found_hosts(self, self.hosts.labelled(name.label(0))),
            },
            2 => match protocol_of(name.label(1)) {
                Some(protocol) => found_ports(self, self.ports_named(name.label(0), protocol)),
                None => Found::Missing,
            },
            _ => Found::Missing,
        }
    }

    fn has_named_port(&self, protocol: Protocol) -> bool {
        self.ports.iter().any(|port| port.protocol == protocol && !port.name.is_empty())
    }

    /// The ports that are called `_name._protocol`.
    fn ports_named(&self, label: &[u8], protocol: Protocol) -> &[Port] {
        let Some(name) = label.strip_prefix(b"_").filter(|name| !name.is_empty()) else {
            return &[];
        };
        let key = |port: &Port| (port.protocol, port.name.as_bytes()).cmp(&(protocol, name));
        let from = self.ports.partition_point(|port| key(port).is_lt());
        let count = self.ports[from..].partition_point(|port| key(port).is_eq());
        &self.ports[from..from + count]
    }
}

fn found_hosts(names: &ServiceNames, hosts: Addresses) -> Found<'_> {
    if hosts.is_empty() { Found::Missing } else { Found::Hosts(names, hosts) }
}

fn found_ports<'z>(names: &'z ServiceNames, ports: &'z [Port]) -> Found<'z> {
    if ports.is_empty() { Found::Missing } else { Found::Ports(names, ports) }
}

/// The protocol for which a label such as `_tcp` stands.
fn protocol_of(label: &[u8]) -> Option<Protocol> {
    match label {
        b"_tcp" => Some(Protocol::Tcp),
        b"_udp" => Some(Protocol::Udp),
        b"_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// The endpoints that have names. Where not-ready addresses are to be published, the controller
/// says `ready` of them, so nothing else needs to be asked.
fn ready(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter().filter(|endpoint| endpoint.ready)
}

fn service_ports(service: &Service) -> Box<[Port]> {
    let ports: BTreeSet<_> =
        service.ports.iter().map(|port| (port.protocol, port.name.clone(), port.port)).collect();
    ports
        .into_iter()
        .map(|(protocol, name, number)| Port { protocol, name, number, targets: Targets::Service })
        .collect()
}

/// The ports of endpoints, which are those of a headless Service, and of each only the endpoints
/// whose slice names it.
fn endpoint_ports(slices: &[&EndpointSlice], hosts: &Hosts, naming: &Naming) -> Box<[Port]> {
    let serving = || slices.iter().filter(|slice| ready(slice).next().is_some());
    if let Some(first) = serving().next().filter(|_| !hosts.is_empty())
        && serving().all(|slice| slice.ports == first.ports)
    {
        // As nearly always: whoever serves one port serves all, and nobody has to be looked for.
        let all: Box<[u32]> = (0..).take(hosts.len()).collect();
        let ports: BTreeSet<_> =
            first.ports.iter().map(|port| (port.protocol, port.name.clone(), port.port)).collect();
        let port = |(protocol, name, number)| {
            let targets = Targets::Hosts(all.clone());
            Port { protocol, name, number, targets }
        };
        return ports.into_iter().map(port).collect();
    }
    let mut ports: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
    for slice in slices {
        let places: Vec<u32> = ready(slice)
            .filter_map(|endpoint| hosts.place_of(&naming.host(slice, endpoint)))
            .filter_map(|place| u32::try_from(place).ok())
            .collect();
        if places.is_empty() {
            continue;
        }
        for port in &slice.ports {
            let key = (port.protocol, port.name.clone(), port.port);
            ports.entry(key).or_default().extend(&places);
        }
    }
    ports
        .into_iter()
        .map(|((protocol, name, number), hosts)| {
            let targets = Targets::Hosts(hosts.into_iter().collect());
            Port { protocol, name, number, targets }
        })
        .collect()
}
