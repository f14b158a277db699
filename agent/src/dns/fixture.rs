//! The cluster that the tests of this module ask about: the names and addresses of CoreDNS's own
//! tests, so that expected answers can be held against theirs.

use std::sync::Arc;

use hickory_proto::rr::Name;

use super::zone::{PodNames, Settings, Trees, Zone, naming::Naming, parts::Parts};
use crate::model::{
    ObjectKey,
    endpoints::{Endpoint, EndpointPort, EndpointSlice, SliceNames},
    service::{Protocol, Service, ServicePort},
    snapshot::{Snapshot, Synced},
};

pub(super) type Port<'a> = (&'a str, Protocol, u16);

pub(super) const HTTP: Port<'static> = ("http", Protocol::Tcp, 80);

pub(super) fn service(namespace: &str, name: &str, ips: &[&str], ports: &[Port<'_>]) -> Service {
    let ports = ports.iter().map(|(name, protocol, port)| ServicePort {
        name: (*name).into(),
        protocol: *protocol,
        port: *port,
        node_port: None,
    });
    Service {
        cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        headless: ips.is_empty(),
        ports: ports.collect(),
        ..Service::new(ObjectKey::new(namespace, name))
    }
}

pub(super) fn external(namespace: &str, name: &str, target: &str) -> Service {
    Service {
        headless: false,
        external_name: Some(target.into()),
        ..service(namespace, name, &[], &[])
    }
}

/// An endpoint: its address and its hostname, empty where it has none.
pub(super) type Host<'a> = (&'a str, &'a str);

pub(super) fn slice(
    service: &Service,
    suffix: &str,
    hosts: &[Host<'_>],
    ports: &[Port<'_>],
) -> EndpointSlice {
    let mut names = SliceNames::default();
    let endpoints = hosts.iter().map(|(address, hostname)| Endpoint {
        names: names.add("", hostname),
        ..Endpoint::ready_at(address.parse().unwrap())
    });
    let endpoints = endpoints.collect();
    let ports = ports.iter().map(|(name, protocol, port)| EndpointPort {
        name: (*name).into(),
        protocol: *protocol,
        port: *port,
    });
    EndpointSlice {
        key: ObjectKey::new(&service.key.namespace, &format!("{}-{suffix}", service.key.name)),
        service: service.key.clone(),
        ipv6: hosts.first().is_some_and(|(address, _)| address.contains(':')),
        ports: ports.collect(),
        endpoints,
        names,
        trigger_time: None,
    }
}

pub(super) fn add(snapshot: &mut Snapshot, service: Service, slices: Vec<EndpointSlice>) {
    for slice in slices {
        let key = (service.key.clone(), slice.key.name.clone());
        snapshot.slices.insert(key, Arc::new(slice));
    }
    snapshot.services.insert(service.key.clone(), Arc::new(service));
}

/// CoreDNS's cluster, and a few Services more.
pub(super) fn snapshot() -> Snapshot {
    let mut all = Snapshot { synced: Synced::ALL, ..Snapshot::default() };
    for (name, ips) in [
        ("svcempty", &["10.0.0.1"][..]),
        ("svc6", &["1234:abcd::1"]),
        ("svc-dual-stack", &["10.0.0.3", "10::3"]),
        ("1kubernetes", &["10.0.0.7"]),
    ] {
        add(&mut all, service("testns", name, ips, &[HTTP]), vec![]);
    }
    let svc1 = service("testns", "svc1", &["10.0.0.1"], &[HTTP]);
    let svc1_slice = slice(&svc1, "a", &[("172.0.0.1", "ep1a")], &[HTTP]);
    add(&mut all, svc1, vec![svc1_slice]);
    let multi = [HTTP, ("dns", Protocol::Udp, 53), ("", Protocol::Tcp, 9)];
    add(&mut all, service("testns", "multi", &["10.0.0.8"], &multi), vec![]);
    // As the Service of cluster DNS: one number by both protocols.
    let both = [("dns", Protocol::Udp, 53), ("dns-tcp", Protocol::Tcp, 53)];
    add(&mut all, service("testns", "both", &["10.0.0.9", "10::9"], &both), vec![]);

    let hdls1 = service("testns", "hdls1", &[], &[HTTP]);
    let v4 = [
        ("172.0.0.2", ""),
        ("172.0.0.3", ""),
        ("172.0.0.4", "dup-name"),
        ("172.0.0.5", "dup-name"),
    ];
    let slices = vec![
        slice(&hdls1, "a", &v4, &[HTTP]),
        // The same address in a second slice, as it happens while slices are rearranged.
        slice(&hdls1, "b", &[("172.0.0.2", "")], &[HTTP]),
        slice(&hdls1, "c", &[("5678:abcd::1", ""), ("5678:abcd::2", "")], &[HTTP]),
    ];
    add(&mut all, hdls1, slices);
    let hdlsprtls = service("testns", "hdlsprtls", &[], &[]);
    let portless = slice(&hdlsprtls, "a", &[("172.0.0.20", "")], &[]);
    add(&mut all, hdlsprtls, vec![portless]);
    let only_v6 = service("testns", "hdls6", &[], &[HTTP]);
    let v6_slice = slice(&only_v6, "a", &[("2001:db8::", "")], &[HTTP]);
    add(&mut all, only_v6, vec![v6_slice]);
    let unready = service("testns", "unready", &[], &[HTTP]);
    let mut unready_slice = slice(&unready, "a", &[("172.0.0.30", "")], &[HTTP]);
    unready_slice.endpoints[0].ready = false;
    add(&mut all, unready, vec![unready_slice]);
    // Two Services over one endpoint.
    let twin = service("testns", "twin", &[], &[HTTP]);
    let twin_slice = slice(&twin, "a", &[("172.0.0.2", "")], &[HTTP]);
    add(&mut all, twin, vec![twin_slice]);

    for (name, target) in [
        ("external", "ext.interwebs.test"),
        ("external-to-service", "svc1.testns.svc.cluster.local."),
        ("external-to-nothing", "nothing.testns.svc.cluster.local"),
        ("loop-a", "loop-b.testns.svc.cluster.local"),
        ("loop-b", "loop-a.testns.svc.cluster.local"),
    ] {
        add(&mut all, external("testns", name, target), vec![]);
    }
    all
}

pub(super) fn settings() -> Settings {
    Settings {
        origin: Name::from_ascii("cluster.local.").unwrap(),
        name_servers: vec!["10.0.0.10".parse().unwrap(), "1234:abcd::a".parse().unwrap()],
        ttl: 5,
        pods: PodNames::Insecure,
        names_fall_through: false,
        reverse_falls_through: Trees::default(),
        parts: Parts::default(),
        naming: Naming::default(),
    }
}

/// The zone of [`snapshot`], with serial 1.
pub(super) fn zone_with(settings: Settings) -> Zone {
    Zone::new(settings, 0).advance(&Snapshot::default(), &snapshot())
}
