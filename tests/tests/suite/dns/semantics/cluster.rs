//! A node alone with the resolver in it and a cluster of names: those of CoreDNS's own tests, so
//! that expected answers can be held against theirs.

use std::sync::Arc;

use mizzen_agent::{
    dns::Config,
    model::{
        ObjectKey,
        endpoints::{Endpoint, EndpointPort, EndpointSlice},
        service::{Protocol, Service, ServicePort},
        snapshot::{Snapshot, Synced},
    },
};
use mizzen_tests::netns::Netns;

use crate::dns::site::{CLUSTER, Running, config, dig};

/// The SOA record of every negative answer, without its owner and its serial.
const SOA: [&str; 2] =
    ["5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local.", "7200 1800 86400 5"];

type Port = (&'static str, Protocol, u16);

const HTTP: Port = ("http", Protocol::Tcp, 80);

/// A node without neighbours that answers from [`snapshot`].
pub(super) struct Cluster {
    _running: Running,
    node: Netns,
}

/// What `dig` read of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) status: String,
    pub(super) flags: String,
    /// The records, blanks as one, in the order of their text.
    pub(super) answers: Vec<String>,
    pub(super) authorities: Vec<String>,
    pub(super) additionals: Vec<String>,
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self::with(config(&[]), snapshot())
    }

    pub(super) fn with(config: Config, snapshot: Snapshot) -> Self {
        let node = Netns::new("dns-alone");
        let running = Running::start_in(&node, config, snapshot);
        Self { _running: running, node }
    }

    /// The answer about `name`, which ends in a dot or stands below the cluster domain.
    #[track_caller]
    pub(super) fn ask(&self, name: &str, kind: &str) -> Said {
        let name = match name {
            name if name.ends_with('.') => name.to_owned(),
            "" => "cluster.local.".to_owned(),
            name => format!("{name}.cluster.local."),
        };
        let ways = CLUSTER.iter().flat_map(|at| ["+notcp", "+tcp"].map(|by| (at, by)));
        let questions: Vec<_> =
            ways.map(|(at, by)| format!("{name} {kind} @{at} {by} +ignore")).collect();
        let text = dig(&self.node, &questions.join(" "));
        let said: Vec<_> = text.split(";; ->>HEADER<<-").skip(1).map(read).collect();
        assert_eq!(said.len(), questions.len(), "{text}");
        assert!(said.iter().all(|one| *one == said[0]), "{text}");
        let complaints = ["malformed", "extra bytes", "recursion requested"];
        assert!(!complaints.iter().any(|words| text.contains(words)), "{text}");
        said[0].clone()
    }

    /// `name` holds exactly this, each "TYPE DATA", for five seconds.
    #[track_caller]
    pub(super) fn holds(&self, name: &str, kind: &str, expected: &[&str]) -> Said {
        let said = self.ask(name, kind);
        let owner =
            if name.ends_with('.') { name.to_owned() } else { format!("{name}.cluster.local.") };
        let mut expected: Vec<_> =
            expected.iter().map(|data| format!("{owner} 5 IN {data}")).collect();
        expected.sort();
        assert_eq!(said.answers, expected);
        assert_eq!((said.status.as_str(), said.flags.as_str()), ("NOERROR", "qr aa rd ra"));
        assert_eq!(said.authorities, [""; 0]);
        said
    }

    /// `name` exists and holds nothing of that type.
    #[track_caller]
    pub(super) fn has_none(&self, name: &str, kind: &str) {
        self.negative(name, kind, "NOERROR");
    }

    /// There is no such name.
    #[track_caller]
    pub(super) fn misses(&self, name: &str, kind: &str) {
        self.negative(name, kind, "NXDOMAIN");
    }

    #[track_caller]
    fn negative(&self, name: &str, kind: &str, status: &str) {
        let said = self.ask(name, kind);
        assert_eq!(said.status, status, "{name} {kind}: {said:?}");
        assert_eq!(said.flags, "qr aa rd ra");
        assert_eq!((said.answers.len(), said.additionals.len()), (0, 0), "{said:?}");
        let [soa] = &said.authorities[..] else { panic!("{name} {kind}: {said:?}") };
        assert!(SOA.iter().all(|part| soa.contains(part)), "{soa}");
    }
}

fn read(text: &str) -> Said {
    let between = |from: &str, to: &str| {
        let rest = text.split(from).nth(1).unwrap_or_default();
        rest.split(to).next().unwrap_or_default().trim().to_owned()
    };
    let section = |name: &str| {
        let section = between(&format!(";; {name} SECTION:\n"), ";;");
        let mut lines: Vec<_> = section
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|line| !line.is_empty())
            .collect();
        lines.sort();
        lines
    };
    Said {
        status: between("status: ", ","),
        flags: between(";; flags: ", ";"),
        answers: section("ANSWER"),
        authorities: section("AUTHORITY"),
        additionals: section("ADDITIONAL"),
    }
}

fn service(name: &str, ips: &[&str], ports: &[Port]) -> Service {
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
        ..Service::new(ObjectKey::new("testns", name))
    }
}

/// Adds a slice of endpoints: addresses, and hostnames where they have one.
pub(super) fn slice(all: &mut Snapshot, service: &str, suffix: &str, hosts: &[(&str, &str)]) {
    let (service, name) = (ObjectKey::new("testns", service), format!("{service}-{suffix}"));
    let ports = all.services.get(&service).map_or_else(Vec::new, |service| service.ports.clone());
    let ports = ports.into_iter().map(|port| EndpointPort {
        name: port.name,
        protocol: port.protocol,
        port: port.port,
    });
    let ipv6 = hosts.first().is_some_and(|(address, _)| address.contains(':'));
    let mut slice = EndpointSlice::new(service.clone(), &name, ipv6);
    slice.ports = ports.collect();
    for (address, hostname) in hosts {
        // "!" in the place of a hostname: not ready, though it serves.
        let ready = *hostname != "!";
        let names = slice.names.add(&format!("pod-{address}"), if ready { hostname } else { "" });
        let address = address.parse().unwrap();
        slice.endpoints.push(Endpoint { ready, names, ..Endpoint::ready_at(address) });
    }
    all.slices.insert((service, slice.key.name.clone()), Arc::new(slice));
}

pub(super) fn add(all: &mut Snapshot, service: Service) {
    all.services.insert(service.key.clone(), Arc::new(service));
}

pub(super) fn external(all: &mut Snapshot, name: &str, target: &str) {
    let mut service = service(name, &["0.0.0.0"], &[]);
    service.cluster_ips.clear();
    service.external_name = Some(target.into());
    add(all, service);
}

pub(super) fn snapshot() -> Snapshot {
    let mut all = Snapshot { synced: Synced::ALL, ..Snapshot::default() };
    let multi = [HTTP, ("dns", Protocol::Udp, 53), ("", Protocol::Tcp, 9)];
    let two = [HTTP, ("https", Protocol::Tcp, 443)];
    let both = [("dns", Protocol::Udp, 53), ("dns-tcp", Protocol::Tcp, 53)];
    for (name, ips, ports) in [
        ("svc1", &["10.0.0.1"][..], &[HTTP][..]),
        ("svcempty", &["10.0.0.2"], &[HTTP]),
        ("svc6", &["1234:abcd::1"], &[HTTP]),
        ("svc-dual-stack", &["10.0.0.3", "10::3"], &[HTTP]),
        ("1kubernetes", &["10.0.0.7"], &[HTTP]),
        ("multi", &["10.0.0.8"], &multi),
        ("both", &["10.0.0.9"], &both),
        ("hdls1", &[], &[HTTP]),
        ("hdls-two-ports", &[], &two),
        ("hdlsprtls", &[], &[]),
        ("hdls6", &[], &[HTTP]),
        ("unready", &[], &[HTTP]),
        ("partly", &[], &[HTTP]),
        ("twin", &[], &[HTTP]),
        // An endpoint whose address is also a Service's.
        ("shadow", &[], &[HTTP]),
    ] {
        add(&mut all, service(name, ips, ports));
    }
    slice(&mut all, "svc1", "a", &[("172.0.0.1", "ep1a")]);
    let named = [
        ("172.0.0.2", ""),
        ("172.0.0.3", ""),
        ("172.0.0.4", "dup-name"),
        ("172.0.0.5", "dup-name"),
    ];
    slice(&mut all, "hdls1", "a", &named);
    // The same address in a second slice, as it happens while slices are rearranged.
    slice(&mut all, "hdls1", "b", &[("172.0.0.2", "")]);
    slice(&mut all, "hdls1", "c", &[("5678:abcd::1", ""), ("5678:abcd::2", "")]);
    slice(&mut all, "hdls-two-ports", "a", &[("172.0.0.40", "")]);
    slice(&mut all, "hdlsprtls", "a", &[("172.0.0.20", "")]);
    slice(&mut all, "hdls6", "a", &[("2001:db8::", "")]);
    slice(&mut all, "unready", "a", &[("172.0.0.30", "!")]);
    slice(&mut all, "partly", "a", &[("172.0.0.31", "!"), ("172.0.0.32", "")]);
    slice(&mut all, "twin", "a", &[("172.0.0.3", "")]);
    slice(&mut all, "shadow", "a", &[("10.0.0.3", "")]);
    for (name, target) in [
        ("external", "ext.interwebs.test"),
        ("external-to-service", "svc1.testns.svc.cluster.local"),
        ("external-to-headless", "hdls1.testns.svc.cluster.local."),
        ("external-to-nothing", "nothing.testns.svc.cluster.local"),
        ("loop-a", "loop-b.testns.svc.cluster.local"),
        ("loop-b", "loop-a.testns.svc.cluster.local"),
        ("loop-self", "loop-self.testns.svc.cluster.local"),
    ] {
        external(&mut all, name, target);
    }
    all
}
