//! One service and its slices -> the sets and frontends that they ask for.
//!
//! What is ignored, as by kube-proxy: headless services and those of type ExternalName (reference
//! B121), those that name another proxy (B122), and services that have no cluster IP yet. A family
//! is served when the service has a cluster IP of it.

use std::{collections::BTreeSet, net::IpAddr};

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    service::{FrontendKey, frontend_flags},
};

use super::{
    DesiredSet, SetKey, Settings, Slot, Warning,
    windows::{Candidate, Usability, arrange},
};
use crate::model::{
    endpoints::{Endpoint, EndpointSlice},
    service::{Protocol, Service, ServicePort, TrafficPolicy},
};

/// The sets of a service, one per port and family, in a stable order.
pub fn desired_sets(
    service: &Service,
    slices: &[&EndpointSlice],
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
        for port in &service.ports {
            let candidates = slices
                .iter()
                .filter(|slice| slice.ipv6 == ipv6)
                .flat_map(|slice| candidates(slice, port, settings));
            let (slots, windows) =
                arrange(candidates, service.internal_policy, service.external_policy);
            let key = SetKey {
                service: service.key.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                ipv6,
            };
            let frontends = frontends(service, port, ipv6, settings);
            let affinity_s = service.affinity_s;
            let idle = idle(slices, port, ipv6, &slots);
            sets.push((key, DesiredSet { frontends, slots, windows, affinity_s, idle }));
        }
    }
    (sets, warnings)
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

/// The usable endpoints of a slice for one port of the service. Ports match by name and protocol.
fn candidates<'a>(
    slice: &'a EndpointSlice,
    port: &'a ServicePort,
    settings: &'a Settings,
) -> impl Iterator<Item = Candidate> + 'a {
    slice
        .ports
        .iter()
        .filter(|offered| offered.name == port.name && offered.protocol == port.protocol)
        .flat_map(move |offered| {
            slice.endpoints.iter().filter_map(move |endpoint| {
                Some(Candidate {
                    addr: endpoint.address,
                    port: offered.port,
                    usability: usability(endpoint)?,
                    local: endpoint.node.as_ref() == Some(&settings.node_name),
                    hinted: true,
                })
            })
        })
}

/// The endpoints that are in no slot.
fn idle(
    slices: &[&EndpointSlice],
    port: &ServicePort,
    ipv6: bool,
    slots: &[Slot],
) -> BTreeSet<(IpAddr, u16)> {
    let used: BTreeSet<_> = slots.iter().map(|slot| (slot.addr, slot.port)).collect();
    let mut idle = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.ipv6 == ipv6) {
        let offered = slice.ports.iter().filter(|o| o.name == port.name);
        for offered in offered.filter(|offered| offered.protocol == port.protocol) {
            let at = slice.endpoints.iter().map(|endpoint| (endpoint.address, offered.port));
            idle.extend(at.filter(|at| !used.contains(at)));
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
    for ip in
        of_family(&service.external_ips).into_iter().chain(of_family(&service.load_balancer_ips))
    {
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
