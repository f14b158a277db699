//! The cluster whose names are asked for.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use hickory_proto::rr::Name;
use mizzen_agent::{
    dns::zone::{PodNames, Settings, Trees, Zone, naming::Naming, parts::Parts},
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointPort, EndpointSlice},
        service::{Protocol, Service, ServicePort},
        snapshot::{Snapshot, Synced},
    },
};

/// A Service of each kind: with cluster IPs, headless, and a name for others, two of which lead to
/// each other.
pub(crate) static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let mut all = Snapshot { synced: Synced::ALL, ..Snapshot::default() };
    add(&mut all, "web", &["10.96.1.1", "fd00:96::101"], &[]);
    add(&mut all, "db", &[], &[("10.244.9.20", "db-0"), ("fd00:244::21", "")]);
    let many: Vec<_> = (0..200).map(|last| format!("10.244.8.{last}")).collect();
    let many: Vec<_> = many.iter().map(|address| (address.as_str(), "")).collect();
    add(&mut all, "many", &[], &many);
    for (name, target) in [("ext", "www.example.org"), ("here", "there"), ("there", "here")] {
        let target = if name == "ext" {
            target.to_owned()
        } else {
            format!("{target}.default.svc.cluster.local")
        };
        let external_name = Some(target.into());
        let service = Service { external_name, ..Service::new(ObjectKey::new("default", name)) };
        all.services.insert(service.key.clone(), Arc::new(service));
    }
    let settings = Settings {
        origin: Name::from_ascii("cluster.local.").unwrap_or_default(),
        name_servers: vec![IpAddr::from([10, 96, 0, 10])],
        ttl: 5,
        pods: PodNames::Insecure,
        names_fall_through: false,
        reverse_falls_through: Trees::default(),
        parts: Parts::default(),
        naming: Naming::default(),
    };
    Zone::new(settings, 1).advance(&Snapshot::default(), &all)
});

/// Adds a Service with addresses of its own, or without any, and endpoints with their names.
fn add(all: &mut Snapshot, name: &str, ips: &[&str], hosts: &[(&str, &str)]) {
    let address = |text: &str| text.parse::<IpAddr>().ok();
    let service = Service {
        cluster_ips: ips.iter().filter_map(|ip| address(ip)).collect(),
        headless: ips.is_empty(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        ..Service::new(ObjectKey::new("default", name))
    };
    let mut slice = EndpointSlice {
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        ..EndpointSlice::new(service.key.clone(), name, false)
    };
    for (host, hostname) in hosts {
        let names = slice.names.add("", hostname);
        slice
            .endpoints
            .extend(address(host).map(|at| Endpoint { names, ..Endpoint::ready_at(at) }));
    }
    all.slices.insert((service.key.clone(), slice.key.name.clone()), Arc::new(slice));
    all.services.insert(service.key.clone(), Arc::new(service));
}
