//! The socket path: real sockets of processes below the node's cgroup, each case for IPv4, IPv6
//! and IPv6 sockets that dial v4-mapped addresses. B… are numbers of the behaviours' list.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use mizzen_agent::datapath::Datapath;
use mizzen_ebpf_abi::{
    addr::protocol::{TCP, UDP},
    counters::Counter,
    service::{frontend_flags, range_flags},
};
use mizzen_tests::{
    actor::Actor,
    backend::Backend,
    node::TestNode,
    tables::{TestTables, Windows},
};

mod agent;
mod clients;
mod followed;
mod kinds;
pub(crate) mod migration;
mod resets;
mod restart;
mod traffic;
mod under_load;

/// How an application dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    /// An IPv6 socket that dials `::ffff:a.b.c.d`.
    Mapped,
}

const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Mapped];

impl Family {
    fn ip(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Self::V4 | Self::Mapped => Ipv4Addr::from(v4).into(),
            Self::V6 => Ipv6Addr::from(v6).into(),
        }
    }

    /// The address of a service, as the tables have it.
    fn vip(self, last: u8) -> IpAddr {
        self.ip([10, 96, 0, last], [0xfd00, 0x96, 0, 0, 0, 0, 0, last.into()])
    }

    /// The address of a backend.
    fn pod(self, last: u8) -> IpAddr {
        self.ip([10, 244, 0, last], [0xfd00, 0x244, 0, 0, 0, 0, 0, last.into()])
    }

    /// The node's address.
    fn node(self) -> IpAddr {
        self.ip([172, 30, 0, 11], [0xfd00, 0x30, 0, 0, 0, 0, 0, 0x11])
    }

    fn loopback(self) -> IpAddr {
        self.ip([127, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1])
    }

    fn any(self) -> IpAddr {
        self.ip([0; 4], [0; 8])
    }

    /// The address as the application writes it.
    fn dialled(self, addr: SocketAddr) -> SocketAddr {
        match (self, addr.ip()) {
            (Self::Mapped, IpAddr::V4(ip)) => (ip.to_ipv6_mapped(), addr.port()).into(),
            _ => addr,
        }
    }

    fn tcp(self) -> &'static str {
        if self == Self::V4 { "tcp4" } else { "tcp6" }
    }

    fn udp(self) -> &'static str {
        if self == Self::V4 { "udp4" } else { "udp6" }
    }
}

/// A node whose socket programs are attached, with empty tables and two backends, `a` and `b`.
struct Bench {
    family: Family,
    actor: Actor,
    tables: TestTables,
    a: SocketAddr,
    b: SocketAddr,
    _backends: [Backend; 2],
    datapath: Datapath,
    node: TestNode,
}

impl Bench {
    fn new(family: Family) -> Self {
        let node = TestNode::new("sock");
        let addrs = [family.pod(1), family.pod(2)];
        for addr in addrs.into_iter().chain([family.node()]) {
            node.add_address(addr);
        }
        let [a, b] = addrs.map(|addr| SocketAddr::new(addr, 8080));
        let backends = [Backend::start(&node.netns, a, "a"), Backend::start(&node.netns, b, "b")];
        let datapath = node.open();
        datapath.attach_sockets().unwrap();
        let tables = TestTables::new(datapath.maps().unwrap());
        let actor = node.actor();
        Self { family, actor, tables, a, b, _backends: backends, datapath, node }
    }

    /// A service at a ClusterIP, TCP and UDP, port 80; what the application dials.
    fn service(&mut self, last: u8, backends: &[SocketAddr]) -> SocketAddr {
        let vip = SocketAddr::new(self.family.vip(last), 80);
        for protocol in [TCP, UDP] {
            let set = self.tables.set_of(backends);
            self.tables.frontend(vip, protocol, set, 0);
        }
        self.family.dialled(vip)
    }

    /// A new TCP connection to `to`: who answers, and who the socket says its peer is.
    fn ask(&mut self, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
        ask(&mut self.actor, self.family, to)
    }

    /// A datagram from a new socket that is not connected: who answers, and from where.
    fn ask_udp(&mut self, to: SocketAddr) -> (String, SocketAddr) {
        let socket = self.actor.open(self.family.udp());
        self.actor.send_to(socket, to, "?");
        let (from, name) = self.actor.receive_from(socket);
        self.actor.close(socket);
        (name, from)
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.datapath.counters().unwrap().get(counter).unwrap()
    }
}

/// See [`Bench::ask`].
fn ask(actor: &mut Actor, family: Family, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
    let socket = actor.open(family.tcp());
    actor.connect(socket, to)?;
    let answer = (actor.receive(socket), actor.peer(socket));
    actor.close(socket);
    Ok(answer)
}

/// Runs a case for every family.
fn each_family(case: impl Fn(&mut Bench)) {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        case(&mut bench);
        for counter in [Counter::ForeignRange, Counter::ForeignBackend] {
            assert_eq!(bench.counted(counter), 0, "{family:?}: {}", counter.name());
        }
    }
}

fn names(of: [&str; 2]) -> BTreeSet<String> {
    of.map(str::to_owned).into()
}

#[test]
fn b03_b04_a_cluster_ip_leads_to_every_backend_and_stays_the_peer() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a, bench.b]);
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let (name, peer) = bench.ask(vip).unwrap();
            assert_eq!(peer, vip);
            seen.insert(name);
        }
        assert_eq!(seen, names(["a", "b"]));
        assert_eq!(bench.counted(Counter::SocketTranslated), 40);
    });
}

#[test]
fn b06_datagrams_reach_every_backend_and_answers_come_from_the_service() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a, bench.b]);
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let (name, from) = bench.ask_udp(vip);
            assert_eq!(from, vip);
            seen.insert(name);
        }
        assert_eq!(seen, names(["a", "b"]));
    });
}

#[test]
fn b05_b06_each_protocol_has_its_own_backends() {
    each_family(|bench| {
        let vip = SocketAddr::new(bench.family.vip(10), 80);
        let (a, b) = (bench.tables.set_of(&[bench.a]), bench.tables.set_of(&[bench.b]));
        bench.tables.frontend(vip, TCP, a, 0);
        bench.tables.frontend(vip, UDP, b, 0);
        let vip = bench.family.dialled(vip);
        assert_eq!(bench.ask(vip).unwrap().0, "a");
        assert_eq!(bench.ask_udp(vip).0, "b");
    });
}

#[test]
fn a_connected_datagram_socket_talks_to_the_service_by_name_only() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a]);
        let socket = bench.actor.open(bench.family.udp());
        bench.actor.connect(socket, vip).unwrap();
        assert_eq!(bench.actor.peer(socket), vip);
        bench.actor.send(socket, "?");
        assert_eq!(bench.actor.receive_from(socket), (vip, "a".to_owned()));
    });
}

#[test]
fn b11_b13_no_endpoints_refuse_tcp_at_once_and_never_fail_udp() {
    each_family(|bench| {
        let vip = bench.service(10, &[]);
        let node_port = SocketAddr::new(bench.family.node(), 30080);
        let empty = bench.tables.set();
        bench.tables.node_address(node_port.ip());
        let any = SocketAddr::new(bench.family.any(), 30080);
        bench.tables.frontend(any, TCP, empty, frontend_flags::EXTERNAL);
        for to in [vip, bench.family.dialled(node_port)] {
            let refused = bench.ask(to).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{refused}");
            // By the call itself: there is nothing to wait for.
            let socket = bench.actor.open(bench.family.tcp());
            let at_once = bench.actor.begin(socket, to).unwrap_err();
            assert_eq!(at_once.kind(), io::ErrorKind::ConnectionRefused, "{at_once}");
        }
        assert_eq!(bench.counted(Counter::SocketRefused), 4);
        let socket = bench.actor.open(bench.family.udp());
        bench.actor.connect(socket, vip).unwrap();
        assert_eq!(bench.actor.peer(socket), vip);
    });
}

#[test]
fn b82_a_local_policy_without_local_endpoint_is_silent() {
    each_family(|bench| {
        let vip = SocketAddr::new(bench.family.vip(10), 80);
        let set = bench.tables.set();
        let a = bench.tables.backend(set, bench.a);
        let mut windows = Windows::all(1);
        windows.internal = (0, 0);
        windows.flags = range_flags::INTERNAL_DROP;
        let range = bench.tables.range(set, &[a], windows);
        bench.tables.flip(set, range);
        bench.tables.frontend(vip, TCP, set, 0);
        let lost = bench.ask(bench.family.dialled(vip)).unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::TimedOut, "{lost}");
    });
}

#[test]
fn an_l7_service_has_no_backends_and_is_left_alone() {
    each_family(|bench| {
        // The proxy listens on the service's address itself.
        let proxy = SocketAddr::new(bench.family.vip(10), 80);
        bench.node.add_address(proxy.ip());
        let _proxy = Backend::start(&bench.node.netns, proxy, "proxy");
        let set = bench.tables.set();
        bench.tables.frontend(proxy, TCP, set, frontend_flags::L7);
        assert_eq!(bench.ask(bench.family.dialled(proxy)).unwrap().0, "proxy");
    });
}

#[test]
fn d07_an_unconnected_socket_sticks_and_moves_only_when_its_backend_leaves() {
    each_family(|bench| {
        let vip = SocketAddr::new(bench.family.vip(10), 80);
        let set = bench.tables.set();
        let ids = [bench.a, bench.b].map(|addr| bench.tables.backend(set, addr));
        let both = bench.tables.range(set, &ids, Windows::all(2));
        bench.tables.flip(set, both);
        bench.tables.frontend(vip, UDP, set, 0);
        let vip = bench.family.dialled(vip);
        let socket = bench.actor.open(bench.family.udp());
        let ask = |bench: &mut Bench| {
            bench.actor.send_to(socket, vip, "?");
            let (from, name) = bench.actor.receive_from(socket);
            assert_eq!(from, vip);
            name
        };
        let first = ask(bench);
        for _ in 0..20 {
            assert_eq!(ask(bench), first);
            // The other way round, so that a choice made anew would be another one.
            let order = if bench.tables.flips() % 2 == 0 { [0, 1] } else { [1, 0] };
            let range = bench.tables.range(set, &order.map(|i: usize| ids[i]), Windows::all(2));
            bench.tables.flip(set, range);
        }
        let other = usize::from(first == "a");
        let alone = bench.tables.range(set, &[ids[other]], Windows::all(1));
        bench.tables.flip(set, alone);
        assert_eq!(ask(bench), ["a", "b"][other], "the backend is gone");
    });
}

#[test]
fn d08_one_backend_behind_two_services_answers_as_the_one_asked_last() {
    each_family(|bench| {
        let (one, two) = (bench.service(10, &[bench.a]), bench.service(11, &[bench.a]));
        let socket = bench.actor.open(bench.family.udp());
        for vip in [one, two, one, one, two] {
            bench.actor.send_to(socket, vip, "?");
            assert_eq!(bench.actor.receive_from(socket), (vip, "a".to_owned()));
        }
        let pod = bench.family.dialled(bench.a);
        bench.actor.send_to(socket, pod, "?");
        assert_eq!(bench.actor.receive_from(socket).0, pod, "asked itself, it answers itself");
    });
}

#[test]
fn a_socket_remembers_its_last_four_services() {
    each_family(|bench| {
        let vips: Vec<SocketAddr> = (10..14).map(|last| bench.service(last, &[bench.a])).collect();
        let socket = bench.actor.open(bench.family.udp());
        for vip in vips.iter().chain(&vips) {
            bench.actor.send_to(socket, *vip, "?");
            assert_eq!(bench.actor.receive_from(socket).0, *vip);
        }
        assert_eq!(bench.counted(Counter::SocketTranslated), 8);
    });
}

#[test]
fn a_connection_that_ends_is_forgotten() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a]);
        let pod = bench.family.dialled(bench.a);
        let socket = bench.actor.open(bench.family.udp());
        for _ in 0..2 {
            bench.actor.connect(socket, vip).unwrap();
            assert_eq!(bench.actor.peer(socket), vip);
            bench.actor.disconnect(socket);
            bench.actor.connect(socket, pod).unwrap();
            assert_eq!(bench.actor.peer(socket), pod, "dialled directly");
            bench.actor.disconnect(socket);
        }
        bench.actor.connect(socket, vip).unwrap();
        bench.actor.connect(socket, pod).unwrap();
        assert_eq!(bench.actor.peer(socket), pod, "connected anew without an end");
    });
}

#[test]
fn b21_b24_a_node_port_answers_on_the_nodes_addresses() {
    each_family(|bench| {
        let family = bench.family;
        let set = bench.tables.set_of(&[bench.a]);
        let any = SocketAddr::new(family.any(), 30080);
        for protocol in [TCP, UDP] {
            bench.tables.frontend(any, protocol, set, frontend_flags::EXTERNAL);
        }
        bench.tables.node_address(family.node());
        let node_port = family.dialled(SocketAddr::new(family.node(), 30080));
        assert_eq!(bench.ask(node_port).unwrap(), ("a".to_owned(), node_port));
        assert_eq!(bench.ask_udp(node_port), ("a".to_owned(), node_port));
        // Another address of the machine is no node port's.
        let other = family.dialled(SocketAddr::new(family.pod(2), 30080));
        assert_eq!(bench.ask(other).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(bench.counted(Counter::SocketRefused), 0, "the stack refused it");
    });
}

#[test]
fn v4_a_node_port_on_loopback_is_the_nodes_and_not_a_pods() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let set = bench.tables.set_of(&[bench.a]);
        let any = SocketAddr::new(family.any(), 30080);
        for protocol in [TCP, UDP] {
            bench.tables.frontend(any, protocol, set, frontend_flags::EXTERNAL);
        }
        bench.tables.node_address(family.loopback());
        let loopback = SocketAddr::new(family.loopback(), 30080);
        let pod = mizzen_tests::netns::Netns::new("pod");
        let _own = Backend::start(&pod, loopback, "the pod's own");
        // The unspecified address is what the kernel makes of it: the loopback interface's.
        let peer = family.dialled(loopback);
        let dialled = [peer, family.dialled(any)];
        for to in dialled {
            asks_own_loopback(&mut bench, to, peer, "a");
        }
        bench.actor = bench.node.pod_actor(&pod);
        for to in dialled {
            asks_own_loopback(&mut bench, to, peer, "the pod's own");
        }
    }
}

/// Dials `to` in every way; `name` answers, as `peer`.
fn asks_own_loopback(bench: &mut Bench, to: SocketAddr, peer: SocketAddr, name: &str) {
    let case = format!("{:?}, {name} at {to}", bench.family);
    let name = name.to_owned();
    assert_eq!(bench.ask(to).unwrap(), (name.clone(), peer), "TCP {case}");
    assert_eq!(bench.ask_udp(to), (name.clone(), peer), "sendto {case}");
    let socket = bench.actor.open(bench.family.udp());
    bench.actor.connect(socket, to).unwrap();
    assert_eq!(bench.actor.peer(socket), peer, "connected {case}");
    bench.actor.send(socket, "?");
    assert_eq!(bench.actor.receive_from(socket), (peer, name), "connected {case}");
    bench.actor.close(socket);
}

/// A port of the node that nobody has anything behind is left to the kernel, whatever it is dialled
/// by; node ports that the loopback interface does not take are not led anywhere either.
#[test]
fn v4_the_unspecified_address_is_no_node_ports() {
    each_family(|bench| {
        let set = bench.tables.set_of(&[bench.a]);
        let any = SocketAddr::new(bench.family.any(), 30080);
        for protocol in [TCP, UDP] {
            bench.tables.frontend(any, protocol, set, frontend_flags::EXTERNAL);
        }
        bench.tables.node_address(bench.family.node());
        let loopback = SocketAddr::new(bench.family.loopback(), 30080);
        let _own = Backend::start(&bench.node.netns, loopback, "the node's own");
        let (to, peer) = (bench.family.dialled(any), bench.family.dialled(loopback));
        asks_own_loopback(bench, to, peer, "the node's own");
    });
}

#[test]
fn b30_b33_external_traffic_policy_local_does_not_bind_the_node_itself() {
    each_family(|bench| {
        let set = bench.tables.set();
        let ids = [bench.a, bench.b].map(|addr| bench.tables.backend(set, addr));
        let windows = Windows {
            internal: (0, 1),
            external: (0, 0),
            nearby: (1, 1),
            flags: range_flags::EXTERNAL_DROP,
            ..Windows::default()
        };
        let range = bench.tables.range(set, &ids, windows);
        bench.tables.flip(set, range);
        let internal = SocketAddr::new(bench.family.vip(10), 80);
        let external = SocketAddr::new(bench.family.vip(200), 80);
        let local = frontend_flags::EXTERNAL | frontend_flags::KEEP_SOURCE;
        bench.tables.frontend(internal, TCP, set, 0);
        bench.tables.frontend(external, TCP, set, local);
        assert_eq!(bench.ask(bench.family.dialled(internal)).unwrap().0, "a");
        assert_eq!(bench.ask(bench.family.dialled(external)).unwrap().0, "b");
    });
}

#[test]
fn what_is_outside_of_the_cgroup_is_not_translated() {
    let mut bench = Bench::new(Family::V4);
    let vip = bench.service(10, &[bench.a]);
    let outside = bench
        .node
        .netns
        .run(|| std::net::TcpStream::connect_timeout(&vip, Duration::from_millis(300)).map(drop));
    assert_eq!(outside.unwrap_err().kind(), io::ErrorKind::TimedOut);
}
