//! One service and its slices -> the sets and frontends that they ask for.
//!
//! What is ignored, as by kube-proxy: headless services and those of type ExternalName (reference
//! B121), those that name another proxy (B122), and services that have no cluster IP yet. A family
//! is served when the service has a cluster IP of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    service::{FrontendKey, frontend_flags},
};

use super::{
    DesiredSet, Idle, SetKey, Settings, Slot, Warning,
    node::addr_range,
    topology::{Place, Topology},
    windows::{Candidate, Usability, arrange},
};
use crate::{
    apply::maps::AddrRange,
    model::{
        endpoints::{Endpoint, EndpointPort, EndpointSlice},
        service::{Protocol, Service, ServicePort, TrafficPolicy},
    },
};

/// The sets of a service, one per port and family, in a stable order.
pub fn desired_sets(
    service: &Service,
    slices: &[&EndpointSlice],
    place: Place<'_>,
    settings: &Settings,
) -> (Vec<(SetKey, DesiredSet)>, Vec<Warning>) {
    let mut sets = Vec::new();
    let mut warnings = Vec::new();
    if !concerns_datapath(service) {
        return (sets, warnings);
    }
    for ipv6 in [false, true] {
        if !service.cluster_ips.iter().any(|ip| ip.is_ipv6() == ipv6) {
            warnings.extend(unserved_addresses(service, ipv6));
            continue;
        }
        warnings.extend(source_range_warnings(service, ipv6));
        let primary = service.cluster_ips.first().is_some_and(|ip| ip.is_ipv6() == ipv6);
        let mut named = BTreeSet::new();
        for port in &service.ports {
            if !named.insert((&port.name, port.protocol)) {
                warnings.extend(primary.then(|| second_port(service, port)));
                continue;
            }
            if port.protocol == Protocol::Sctp {
                warnings.extend(primary.then(|| untranslated(service, port)));
            }
            let mut endpoints = usable(slices, ipv6, port);
            if prefers_local(service, port, settings) {
                endpoints.retain(|(endpoint, number, _)| {
                    !endpoint.is_on(place.node) || Some(*number) != settings.own_resolver_port
                });
            }
            let candidates = categorize(service, &endpoints, place);
            let (slots, windows) =
                arrange(candidates, service.internal_policy, service.external_policy);
            let key = SetKey {
                service: service.key.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                ipv6,
            };
            let mut frontends = frontends(service, port, ipv6, settings);
            if named.len() == 1 {
                frontends.extend(guards(service, ipv6));
            }
            frontends.shrink_to_fit();
            let restricted = |(_, flags): &(_, u32)| flags & frontend_flags::SOURCE_RANGES != 0;
            let source_ranges = if frontends.iter().any(restricted) {
                source_ranges(service, ipv6).unwrap_or_default()
            } else {
                BTreeSet::new()
            };
            let affinity_s = service.affinity_s;
            let moves = port.protocol == Protocol::Udp && service.reset_on_delete;
            let idle = idle(slices, (port, ipv6), &slots, moves);
            let set = DesiredSet {
                frontends,
                slots: slots.into(),
                windows,
                affinity_s,
                source_ranges,
                idle,
            };
            sets.push((key, set));
        }
    }
    (sets, warnings)
}

/// Whether a listener of this node comes before the endpoints of a service's port.
fn prefers_local(service: &Service, port: &ServicePort, settings: &Settings) -> bool {
    let mut addresses = service.cluster_ips.iter().map(|ip| (*ip, port.port).into());
    addresses.any(|address| settings.prefer_local.contains(&address))
}

/// A port that can't be told from one before it.
fn second_port(service: &Service, port: &ServicePort) -> Warning {
    let ServicePort { name, protocol, port, .. } = port;
    let message = format!("port {port} is left out: another {protocol} port has its name {name:?}");
    Warning { service: service.key.clone(), message }
}

/// A port of a protocol that no program reads.
fn untranslated(service: &Service, port: &ServicePort) -> Warning {
    let ServicePort { protocol, port, .. } = port;
    let message = format!("port {port} is not balanced: {protocol} is not translated yet");
    Warning { service: service.key.clone(), message }
}

/// The marks of the service's cluster IPs, by which a port that it does not have is told from an
/// address that nobody has (reference B8-B10). The first set of a family asks for them.
fn guards(service: &Service, ipv6: bool) -> impl Iterator<Item = (FrontendKey, u32)> + use<'_> {
    let of_family = service.cluster_ips.iter().filter(move |ip| ip.is_ipv6() == ipv6);
    of_family.map(|ip| (FrontendKey::guard((*ip).into()), frontend_flags::GUARD))
}

fn concerns_datapath(service: &Service) -> bool {
    !service.headless && service.external_name.is_none() && !service.foreign_proxy
}

/// External addresses of a family in which the service has no cluster IP, and so no endpoints.
fn unserved_addresses(service: &Service, ipv6: bool) -> Option<Warning> {
    let addresses: Vec<String> = service
        .external_ips
        .iter()
        .chain(&service.load_balancer_ips)
        .filter(|ip| ip.is_ipv6() == ipv6)
        .map(ToString::to_string)
        .collect();
    (!addresses.is_empty() && !service.cluster_ips.is_empty()).then(|| Warning {
        service: service.key.clone(),
        message: format!(
            "addresses {} are left out: the service has no cluster IP of their family",
            addresses.join(", ")
        ),
    })
}

/// From where the load balancer addresses of a family may be used; `None` is from anywhere. As with
/// kube-proxy a family of which no range is named is open, unless nothing that is named could be
/// read.
fn source_ranges(service: &Service, ipv6: bool) -> Option<BTreeSet<AddrRange>> {
    let ranges = service.source_ranges.as_ref()?;
    let of_family = ranges.iter().filter(|range| range.address.is_ipv6() == ipv6);
    let of_family: BTreeSet<AddrRange> = of_family.map(addr_range).collect();
    (!of_family.is_empty() || ranges.is_empty()).then_some(of_family)
}

/// What the service's source ranges may not say as they were meant.
fn source_range_warnings(service: &Service, ipv6: bool) -> Option<Warning> {
    let ranges = service.source_ranges.as_ref()?;
    let open = source_ranges(service, ipv6).is_none();
    let mut addresses = service.load_balancer_ips.iter().filter(|ip| ip.is_ipv6() == ipv6);
    let address = addresses.next()?;
    let message = if ranges.is_empty() {
        format!("{address} is closed to everyone: no loadBalancerSourceRanges could be read")
    } else if open {
        format!("{address} is open to everyone: no loadBalancerSourceRanges are of its family")
    } else {
        return None;
    };
    Some(Warning { service: service.key.clone(), message })
}

/// The usable endpoints of all slices of a family for one port of the service. Ports match by name
/// and protocol.
fn usable<'a>(
    slices: &[&'a EndpointSlice],
    ipv6: bool,
    port: &ServicePort,
) -> Vec<(&'a Endpoint, u16, Usability)> {
    let offers = slices.iter().filter(|slice| slice.ipv6 == ipv6).flat_map(|slice| {
        let matches = |offered: &&EndpointPort| {
            offered.name == port.name && offered.protocol == port.protocol
        };
        slice.ports.iter().filter(matches).map(|offered| (*slice, offered.port))
    });
    let endpoints = offers.flat_map(|(slice, number)| {
        slice
            .endpoints
            .iter()
            .filter_map(move |endpoint| Some((endpoint, number, usability(endpoint)?)))
    });
    endpoints.collect()
}

/// What the order of slots wants to know of the endpoints.
fn categorize(
    service: &Service,
    endpoints: &[(&Endpoint, u16, Usability)],
    place: Place<'_>,
) -> impl Iterator<Item = Candidate> {
    let topology = if service.topology {
        let ready = endpoints.iter().filter(|(.., usability)| *usability == Usability::Ready);
        Topology::of(&ready.map(|(endpoint, ..)| *endpoint).collect::<Vec<_>>(), place)
    } else {
        Topology::Ignored
    };
    endpoints.iter().map(move |(endpoint, port, usability)| Candidate {
        addr: endpoint.address,
        port: *port,
        usability: *usability,
        local: endpoint.is_on(place.node),
        hinted: topology.allows(endpoint, place),
    })
}

/// The endpoints that have no slot, and why. Where datagrams move to those that serve (`moves`), what
/// does not is told from what nothing serves beside.
fn idle(
    slices: &[&EndpointSlice],
    (port, ipv6): (&ServicePort, bool),
    slots: &[Slot],
    moves: bool,
) -> BTreeMap<(IpAddr, u16), Idle> {
    let used: BTreeSet<_> = slots.iter().map(|slot| (slot.addr, slot.port)).collect();
    let moves = moves && !slots.is_empty();
    let mut idle = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.ipv6 == ipv6) {
        let offered = slice.ports.iter().filter(|o| o.name == port.name);
        for offered in offered.filter(|offered| offered.protocol == port.protocol) {
            let at =
                slice.endpoints.iter().map(|of| ((of.address, offered.port), Idle::of(of, moves)));
            for (at, why) in at.filter(|(at, _)| !used.contains(at)) {
                let held = idle.entry(at).or_insert(why);
                *held = why.max(*held);
            }
        }
    }
    idle
}

/// Whether an endpoint may take new connections. `publishNotReadyAddresses` needs no word here:
/// the controller that writes the slices then marks every endpoint ready (reference B119).
fn usability(endpoint: &Endpoint) -> Option<Usability> {
    if endpoint.ready {
        Some(Usability::Ready)
    } else if endpoint.serving && endpoint.terminating {
        Some(Usability::Terminating)
    } else {
        None
    }
}

/// The frontends of one port in one family, each key once.
fn frontends(
    service: &Service,
    port: &ServicePort,
    ipv6: bool,
    settings: &Settings,
) -> Vec<(FrontendKey, u32)> {
    let mut frontends = Vec::new();
    let mut seen = BTreeSet::new();
    let mut add = |addr: Addr, number: u16, flags: u32| {
        let key = FrontendKey::new(addr, number, protocol_number(port.protocol));
        if seen.insert(key) {
            frontends.push((key, flags));
        }
    };
    let of_family = |ips: &[IpAddr]| -> Vec<IpAddr> {
        ips.iter().copied().filter(|ip| ip.is_ipv6() == ipv6).collect()
    };
    for ip in of_family(&service.cluster_ips) {
        let prefer_local = settings.prefer_local.contains(&(ip, port.port).into());
        add(ip.into(), port.port, if prefer_local { frontend_flags::PREFER_LOCAL } else { 0 });
    }
    let mut external = frontend_flags::EXTERNAL;
    if service.external_policy == TrafficPolicy::Local {
        external |= frontend_flags::KEEP_SOURCE;
    }
    // An address that is both is a load balancer's, with its restrictions.
    let restricted = source_ranges(service, ipv6).map_or(0, |_| frontend_flags::SOURCE_RANGES);
    for ip in of_family(&service.load_balancer_ips) {
        add(ip.into(), port.port, external | restricted);
    }
    for ip in of_family(&service.external_ips) {
        add(ip.into(), port.port, external);
    }
    if let Some(node_port) = port.node_port {
        let any = if ipv6 { Addr::ANY_V6 } else { Addr::ANY_V4 };
        add(any, node_port, external | frontend_flags::NODE_PORT);
    }
    frontends
}

/// The IANA number of a protocol.
pub fn protocol_number(of: Protocol) -> u8 {
    match of {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    }
}
