//! A pod's host ports -> sets of one backend and the frontends that they ask for. In the tables a
//! host port is a service with one endpoint, so that everything which follows, explains, compares
//! and mends those does it for host ports as well.
//!
//! Clients keep their address, as a node port of the external traffic policy Local has it: the pod
//! is on this node, and its answers pass here. A host port opens the node's own addresses only:
//! an address that is none of them would be taken away from whoever has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use mizzen_ebpf_abi::{
    addr::Addr,
    node::NodeAddr,
    service::{FrontendKey, frontend_flags},
};

use super::{
    DesiredSet, SetKey, Warning,
    service::protocol_number,
    windows::{Candidate, Usability, arrange},
};
use crate::model::{
    ObjectKey,
    pod::{HostPort, HostPortPod},
    service::TrafficPolicy,
};

/// What a pod's name begins with where it stands in the place of a service's. No Service can be
/// called so.
const PREFIX: &str = "pod/";

/// The owner of a pod's host ports, beside services: `default/pod/web-0`.
pub fn owner(pod: &ObjectKey) -> ObjectKey {
    ObjectKey::new(&pod.namespace, &format!("{PREFIX}{}", pod.name))
}

/// Whether this is the owner of host ports.
pub fn is_owner(key: &ObjectKey) -> bool {
    key.name.starts_with(PREFIX)
}

/// The sets of a pod's host ports, one for each port and family, in the order of their keys.
pub fn desired_sets(
    owner: &ObjectKey,
    pod: &HostPortPod,
    node: &BTreeMap<Addr, NodeAddr>,
) -> (Vec<(SetKey, DesiredSet)>, Vec<Warning>) {
    let mut sets = BTreeMap::new();
    let mut warnings = Vec::new();
    for port in &pod.ports {
        if let Some(address) = port.address.filter(|address| !is_the_nodes(*address, node)) {
            warnings.push(Warning {
                service: owner.clone(),
                message: format!(
                    "host port {} at {address} is left out: this node has no such address",
                    port.port
                ),
            });
            continue;
        }
        for ipv6 in [false, true] {
            let Some(frontend) = frontend(port, ipv6) else { continue };
            let Some(backend) = pod.addresses.iter().find(|ip| ip.is_ipv6() == ipv6) else {
                continue; // of no such family, so that it has no such port either
            };
            let key = SetKey {
                service: owner.clone(),
                port: name(port).into(),
                protocol: port.protocol,
                ipv6,
            };
            // Of two ports of the pod behind one of the node's the first counts.
            sets.entry(key).or_insert_with(|| set(frontend, *backend, port.container_port));
        }
    }
    (sets.into_iter().collect(), warnings)
}

/// The frontend in a family, if the host port is one of it.
fn frontend(port: &HostPort, ipv6: bool) -> Option<FrontendKey> {
    let any = if ipv6 { Addr::ANY_V6 } else { Addr::ANY_V4 };
    let addr = match port.address {
        Some(address) if address.is_ipv6() != ipv6 => return None,
        Some(address) if !address.is_unspecified() => address.into(),
        _ => any,
    };
    Some(FrontendKey::new(addr, port.port, protocol_number(port.protocol)))
}

/// The pod alone, for everyone.
fn set(frontend: FrontendKey, addr: IpAddr, port: u16) -> DesiredSet {
    let usability = Usability::Ready;
    let pod = Candidate { addr, port, usability, local: true, hinted: true };
    let (slots, windows) = arrange([pod], TrafficPolicy::Cluster, TrafficPolicy::Local);
    let flags = frontend_flags::EXTERNAL | frontend_flags::KEEP_SOURCE | frontend_flags::HOST_PORT;
    DesiredSet {
        frontends: vec![(frontend, flags)],
        slots: slots.into(),
        windows,
        affinity_s: 0,
        source_ranges: BTreeSet::new(),
        idle: BTreeMap::new(),
    }
}

/// The port's name in its set's key: what tells it from the pod's others.
fn name(port: &HostPort) -> String {
    match port.address {
        Some(IpAddr::V6(address)) => format!("[{address}]:{}", port.port),
        Some(IpAddr::V4(address)) => format!("{address}:{}", port.port),
        None => port.port.to_string(),
    }
}

/// Whether an address is one of this node, or every one.
fn is_the_nodes(address: IpAddr, node: &BTreeMap<Addr, NodeAddr>) -> bool {
    address.is_unspecified() || address.is_loopback() || node.contains_key(&address.into())
}

#[cfg(test)]
#[path = "host_ports_tests.rs"]
mod tests;
