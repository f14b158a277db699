//! The rows of `mizzen services` and `mizzen backends`: pure, from what is desired and from what
//! the tables hold.

use std::collections::BTreeMap;

use mizzen_ebpf_abi::{
    addr::Addr,
    service::{FrontendKey, backend_flags, frontend_flags},
};

use super::wire;
use crate::{
    apply::{
        lookup::{self, Fault, Found},
        maps::Tables,
    },
    desired::{Desired, DesiredSet, SetKey, Slot},
    diff::plan::FrontendName,
    model::service::{Service, TrafficPolicy},
    traffic::{
        Traffic,
        accounts::{BackendTraffic, PortTraffic},
    },
    why::resolve::kind,
};

/// A row for each port of a service in each family, with the addresses that it has: one that another
/// service had before it is left out.
pub fn services(desired: &Desired) -> Vec<wire::Service> {
    let snapshot = desired.snapshot();
    let row = |(key, set): (&SetKey, &std::sync::Arc<DesiredSet>)| {
        let has = |frontend: &FrontendKey| desired.owner(frontend) == Some(key);
        service(key, set, has, snapshot.services.get(&key.service).map(AsRef::as_ref))
    };
    desired.sets().map(row).collect()
}

/// Enters what ports were sent into their rows.
pub fn with_traffic(mut rows: Vec<wire::Service>, ports: &[PortTraffic]) -> Vec<wire::Service> {
    let totals: BTreeMap<_, Traffic> =
        ports.iter().map(|port| (PortName::of(&port.key), port.total)).collect();
    for row in &mut rows {
        let name = PortName {
            namespace: &row.namespace,
            name: &row.name,
            port: &row.port,
            protocol: row.protocol.clone(),
            family: if row.family == "IPv6" { "IPv6" } else { "IPv4" },
        };
        if let Some(total) = totals.get(&name) {
            row.traffic = *total;
        }
    }
    rows
}

/// A row for each port that the tables hold.
pub fn traffic(ports: &[PortTraffic]) -> Vec<wire::PortTraffic> {
    let row = |port: &PortTraffic| {
        let PortName { namespace, name, port: port_name, protocol, family } =
            PortName::of(&port.key);
        let backend = |of: &BackendTraffic| wire::BackendTraffic {
            backend: of.at.to_string(),
            traffic: of.traffic,
        };
        wire::PortTraffic {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port: port_name.to_owned(),
            protocol,
            family: family.to_owned(),
            traffic: port.total,
            backends: port.backends.iter().map(backend).collect(),
        }
    };
    ports.iter().map(row).collect()
}

/// How rows name a port.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct PortName<'a> {
    namespace: &'a str,
    name: &'a str,
    port: &'a str,
    protocol: String,
    family: &'static str,
}

impl<'a> PortName<'a> {
    fn of(key: &'a SetKey) -> Self {
        Self {
            namespace: &key.service.namespace,
            name: &key.service.name,
            port: &key.port,
            protocol: key.protocol.to_string(),
            family: if key.ipv6 { "IPv6" } else { "IPv4" },
        }
    }
}

fn service(
    key: &SetKey,
    set: &DesiredSet,
    has: impl Fn(&FrontendKey) -> bool,
    object: Option<&Service>,
) -> wire::Service {
    let dialled = set
        .frontends
        .iter()
        .filter(|(frontend, flags)| flags & frontend_flags::GUARD == 0 && has(frontend));
    let addresses: Vec<wire::Address> = dialled
        .map(|(frontend, flags)| wire::Address {
            address: FrontendName(frontend).to_string(),
            kind: address_kind(object, frontend, *flags).to_owned(),
        })
        .collect();
    let policy = |of: fn(&Service) -> TrafficPolicy| match object.map(of) {
        Some(TrafficPolicy::Local) => "Local".to_owned(),
        Some(TrafficPolicy::Cluster) | None => "Cluster".to_owned(),
    };
    let count = |flag: u16| {
        let has = |slot: &&Slot| slot.flags & flag != 0;
        set.slots.iter().filter(has).count()
    };
    wire::Service {
        namespace: key.service.namespace.to_string(),
        name: key.service.name.to_string(),
        port: key.port.to_string(),
        protocol: key.protocol.to_string(),
        family: if key.ipv6 { "IPv6" } else { "IPv4" }.to_owned(),
        kind: service_kind(&addresses).to_owned(),
        internal_traffic_policy: policy(|service| service.internal_policy),
        external_traffic_policy: policy(|service| service.external_policy),
        session_affinity_seconds: set.affinity_s,
        frontends: addresses.iter().map(|address| address.address.clone()).collect(),
        addresses,
        internal: set.windows.internal.count as usize,
        external: set.windows.external.count as usize,
        endpoints: set.slots.len(),
        local: count(backend_flags::LOCAL),
        terminating: count(backend_flags::TERMINATING),
        traffic: Traffic::default(),
    }
}

fn address_kind(object: Option<&Service>, frontend: &FrontendKey, flags: u32) -> &'static str {
    match object {
        Some(object) => kind(object, frontend.addr.into(), flags),
        None if flags & frontend_flags::HOST_PORT != 0 => "HostPort",
        None => "ClusterIP",
    }
}

/// The type that a service has by its addresses, or that it is a pod's host ports; one whose load balancer has no address yet has
/// node ports at most.
fn service_kind(addresses: &[wire::Address]) -> &'static str {
    let has = |kind: &str| addresses.iter().any(|address| address.kind == kind);
    match (has("LoadBalancer"), has("NodePort")) {
        _ if has("HostPort") => "HostPort",
        (true, _) => "LoadBalancer",
        (false, true) => "NodePort",
        (false, false) => "ClusterIP",
    }
}

/// A row for each frontend that the tables have.
pub fn backends(desired: &Desired, tables: &Tables) -> Vec<wire::Frontend> {
    let row = |(key, found): (FrontendKey, Result<Found, Fault>)| {
        frontend(&key, found, desired.owner(&key))
    };
    lookup::everything(tables).into_iter().map(row).collect()
}

fn frontend(
    key: &FrontendKey,
    found: Result<Found, Fault>,
    owner: Option<&SetKey>,
) -> wire::Frontend {
    let names = |window: &[lookup::Backend]| -> Vec<String> {
        window.iter().map(|backend| backend.at.to_string()).collect()
    };
    let mut row = wire::Frontend {
        frontend: FrontendName(key).to_string(),
        service: owner.map(|owner| owner.service.to_string()).unwrap_or_default(),
        internal: Vec::new(),
        external: Vec::new(),
        nearby: Vec::new(),
        outside: false,
        any_address: key.addr == Addr::ANY_V4 || key.addr == Addr::ANY_V6,
        fault: String::new(),
    };
    match found {
        Ok(found) => {
            row.internal = names(&found.internal);
            row.external = names(&found.external);
            row.nearby = names(&found.nearby);
            row.outside = found.frontend_flags & frontend_flags::EXTERNAL != 0;
        }
        Err(fault) => row.fault = fault.to_string(),
    }
    row
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        desired::{NodeFacts, Settings},
        model::{
            ObjectKey,
            service::{Protocol, ServicePort},
            snapshot::{Snapshot, Synced},
        },
    };

    #[test]
    fn b127_an_address_that_two_ask_for_is_the_one_s_that_has_it() {
        let mut snapshot = Snapshot { revision: 1, synced: Synced::ALL, ..Snapshot::default() };
        // By name the younger is the first.
        for (name, created_s, last) in [("a-young", 2, 1), ("z-old", 1, 2)] {
            let key = ObjectKey::new("default", name);
            let port = |protocol, port| ServicePort {
                name: protocol_name(protocol).into(),
                protocol,
                port,
                node_port: None,
            };
            let service = Service {
                created_s,
                cluster_ips: vec![[10, 96, 0, last].into()],
                external_ips: vec![[203, 0, 113, 250].into()],
                ports: vec![port(Protocol::Tcp, 80), port(Protocol::Sctp, 9)],
                ..Service::new(key.clone())
            };
            snapshot.services.insert(key, Arc::new(service));
        }
        let mut desired = Desired::new(Settings::default());
        desired.update(&snapshot, &NodeFacts::default());
        let rows = services(&desired);
        let external = |row: &&wire::Service| row.frontends.iter().any(|at| at.contains("203.0"));
        assert!(rows.iter().filter(external).all(|row| row.name == "z-old"), "{rows:?}");
        assert_eq!(rows.iter().filter(external).count(), 2, "TCP and SCTP");
        let said = desired.warnings();
        let untranslated = said.iter().filter(|warning| warning.message.contains("not balanced"));
        assert_eq!(untranslated.count(), 2, "a port of SCTP of each: {said:?}");
    }

    fn protocol_name(protocol: Protocol) -> String {
        protocol.to_string().to_lowercase()
    }
}
