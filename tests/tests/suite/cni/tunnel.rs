//! Nodes that share no link: their pods reach each other through the tunnel.
//!
//! ```text
//! node a 192.0.2.11 ──── router ──── 198.51.100.12 node b      (and the same for IPv6)
//! ```
//! The router knows nodes and no pods: what has a pod's address outside of a tunnel is lost there.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use mizzen_agent::{
    apply::maps::Maps as _,
    datapath::{Datapath, find_uplinks},
    model::node::Node as ModelNode,
    podnet::datapath::PodDatapath as _,
};
use mizzen_ebpf_abi::{addr::Addr, counters::Counter, node::NodeConfig, service::frontend_flags};
use mizzen_tests::{
    echo::{Client, Echo, TRANSPORTS, Transport},
    lab::{Family, set},
    netns::{Netns, check},
    node::TestNode,
    tables::TestTables,
    wait::until,
};

use super::bed::{LIMIT, Node, Pod, model, reach, snapshot};

/// Octets of the largest tunnelled packet on a link of 1,500, with IPv6 outside.
const MTU: u32 = 1_430;

/// A node with programs, and its guards.
pub(super) struct Routed {
    pub(super) node: Node,
    pub(super) datapath: Datapath,
    _place: TestNode,
}

/// Both nodes and the router between them.
pub(super) struct Bed {
    pub(super) a: Routed,
    pub(super) b: Routed,
    pub(super) router: Netns,
}

/// Addresses of the node's side of its link to the router.
fn addresses(number: u8) -> [IpAddr; 2] {
    match number {
        1 => ["192.0.2.11".parse().unwrap(), "2001:db8:1::11".parse().unwrap()],
        _ => ["198.51.100.12".parse().unwrap(), "2001:db8:2::12".parse().unwrap()],
    }
}

fn far(name: &str, number: u8) -> ModelNode {
    ModelNode { internal_ips: addresses(number).into(), ..model(name, number) }
}

fn nodes() -> [ModelNode; 2] {
    [far("a", 1), far("b", 2)]
}

impl Bed {
    pub(super) fn new() -> Self {
        let router = Netns::new("router");
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            set(&router, key, "1");
        }
        let a = Routed::new("a", 1, &router);
        let b = Routed::new("b", 2, &router);
        a.node.wait_ready();
        b.node.wait_ready();
        Self { a, b, router }
    }
}

impl Routed {
    fn new(name: &str, number: u8, router: &Netns) -> Self {
        let place = TestNode::new("pods");
        let mut node = Node::new(name, &nodes());
        // Reverse paths are checked strictly, as many distributions do.
        for key in ["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"] {
            set(&node.netns, key, "1");
        }
        let port = format!("to-{name}");
        router.veth(&port, &node.netns, "eth0");
        for (address, length) in addresses(number).into_iter().zip([24, 64]) {
            let (ip, nodad) = if address.is_ipv6() { ("-6 ", "nodad") } else { ("", "") };
            let text = address.to_string();
            let hop = text.strip_suffix(&format!("1{number}")).unwrap().to_owned() + "1";
            router.ip(&format!("addr add {hop}/{length} dev {port} {nodad}"));
            node.netns.ip(&format!("addr add {address}/{length} dev eth0 {nodad}"));
            node.netns.ip(&format!("{ip}route add default via {hop}"));
        }
        let datapath = node.netns.run(|| Datapath::open(&place.options())).unwrap();
        let [ipv4, ipv6] = addresses(number).map(Addr::from);
        let config = NodeConfig {
            ipv4,
            ipv6,
            tunnel_port: mizzen_ebpf_abi::tunnel::PORT,
            ..NodeConfig::default()
        };
        datapath.maps().unwrap().set_node_config(&config).unwrap();
        node.start_with(Arc::new(datapath.pods().unwrap()));
        Self { node, datapath, _place: place }
    }

    pub(super) fn add(&self) -> Pod {
        let mut pod = Pod::new();
        self.node.add(&mut pod);
        pod
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.datapath.counters().unwrap().get(counter).unwrap()
    }
}

/// A connection that is used again and again.
struct Talk {
    client: TcpStream,
    server: TcpStream,
}

impl Talk {
    fn open(from: &Netns, to: &Netns, address: IpAddr) -> Self {
        let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
        let at = listener.local_addr().unwrap();
        let client = from.run(|| TcpStream::connect_timeout(&at, LIMIT)).unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
        }
        Self { client, server }
    }

    /// Sends many full packets and has them back.
    fn exchange(&mut self) {
        let sent: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let mut received = vec![0; sent.len()];
        std::thread::scope(|scope| {
            let server = &mut self.server;
            scope.spawn(move || {
                let mut buffer = vec![0; 300_000];
                server.read_exact(&mut buffer).unwrap();
                server.write_all(&buffer).unwrap();
            });
            self.client.write_all(&sent).unwrap();
            self.client.read_exact(&mut received).unwrap();
        });
        assert!(received == sent, "what was sent comes back");
    }
}

#[test]
fn pods_and_nodes_reach_each_other_through_the_tunnel() {
    let bed = Bed::new();
    let (on_a, on_b) = (bed.a.add(), bed.b.add());
    for family in [0, 1] {
        let (pod_a, pod_b) = (on_a.addresses[family], on_b.addresses[family]);
        let (node_a, node_b) = (addresses(1)[family], addresses(2)[family]);
        // No address is translated, whichever way it goes.
        assert_eq!(reach(on_a.netns(), on_b.netns(), pod_b), pod_a);
        assert_eq!(reach(on_b.netns(), on_a.netns(), pod_a), pod_b);
        assert_eq!(reach(on_a.netns(), &bed.a.node.netns, node_a), pod_a);
        assert_eq!(reach(on_a.netns(), &bed.b.node.netns, node_b), pod_a);
        assert_eq!(reach(&bed.a.node.netns, on_a.netns(), pod_a), node_a);
        assert_eq!(reach(&bed.b.node.netns, on_a.netns(), pod_a), node_b);
        let through_the_device = sent_by_tunnel(&bed.a.node.netns);
        Talk::open(on_a.netns(), on_b.netns(), pod_b).exchange();
        let is_made_by_the_program = sent_by_tunnel(&bed.a.node.netns) == through_the_device;
        assert_eq!(is_made_by_the_program, family == 0, "the outer packet, over IPv4 alone");
    }
    for node in [&bed.a, &bed.b] {
        let dropped = [Counter::DropTunnelSource, Counter::DropNoPeer].map(|c| node.counted(c));
        assert_eq!(dropped, [0, 0]);
    }
}

/// Devices of the laboratory take packets of many segments without sums, and so hide who would have
/// made them wrong. Here the kernel makes both, for each outer packet.
#[test]
fn what_goes_through_the_tunnel_is_whole_where_the_uplink_offloads_nothing() {
    let bed = Bed::new();
    let (on_a, on_b) = (bed.a.add(), bed.b.add());
    for node in [&bed.a.node, &bed.b.node] {
        node.netns.offload_nothing("eth0");
    }
    for port in ["to-a", "to-b"] {
        bed.router.offload_nothing(port);
    }
    for family in [0, 1] {
        let pod_b = on_b.addresses[family];
        Talk::open(on_a.netns(), on_b.netns(), pod_b).exchange();
        let server = SocketAddr::new(pod_b, 8_081);
        let _echo = Echo::start(on_b.netns(), server, "far");
        for length in [2, 1_200, 4_000] {
            let client = Client::dial(on_a.netns(), Transport::Udp, server, 0).unwrap();
            assert!(client.ask_with(length).unwrap().length >= length);
        }
    }
}

/// Packets that the tunnel's device sent.
fn sent_by_tunnel(node: &Netns) -> u64 {
    let text = node.ip("-s -j link show dev mizzen.vxlan");
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

/// Has a node's firewall drop what is forwarded, and what is of no connection that it knows.
fn forward_nothing(node: &Node) {
    for rule in [
        "add table inet firewall",
        "add chain inet firewall forward { type filter hook forward priority 0; policy drop; }",
        "add chain inet firewall input { type filter hook input priority 0; }",
        "add rule inet firewall input ct state invalid drop",
    ] {
        check(node.netns.command("nft").arg(rule));
    }
}

/// A host's firewall that tracks connections would see one half of each if one direction passed the
/// stack and the other did not: neither does, from the first packet on.
#[test]
fn what_pods_of_two_nodes_send_each_other_passes_no_stack() {
    let bed = Bed::new();
    let (on_a, on_b) = (bed.a.add(), bed.b.add());
    for node in [&bed.a.node, &bed.b.node] {
        forward_nothing(node);
    }
    for family in [0, 1] {
        let (pod_a, pod_b) = (on_a.addresses[family], on_b.addresses[family]);
        let node_b = addresses(2)[family];
        assert_eq!(reach(on_a.netns(), on_b.netns(), pod_b), pod_a);
        assert_eq!(reach(on_a.netns(), &bed.b.node.netns, node_b), pod_a);
        assert_eq!(reach(&bed.b.node.netns, on_a.netns(), pod_a), node_b);
        Talk::open(on_a.netns(), on_b.netns(), pod_b).exchange();
        Talk::open(on_b.netns(), on_a.netns(), pod_a).exchange();
        // Nobody listens there: the answer is an error, and comes the same way.
        let socket = on_a.netns().run(|| UdpSocket::bind(SocketAddr::new(pod_a, 0)).unwrap());
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.connect(SocketAddr::new(pod_b, 9)).unwrap();
        socket.send(b"anybody?").unwrap();
        let told = socket.recv(&mut [0; 16]).unwrap_err().kind();
        assert_eq!(told, ErrorKind::ConnectionRefused);
        // Datagrams in fragments, there and back.
        let server = SocketAddr::new(pod_b, 8_081);
        let _echo = Echo::start(on_b.netns(), server, "far");
        let client = Client::dial(on_a.netns(), Transport::Udp, server, 0).unwrap();
        assert!(client.ask_with(4_000).unwrap().length >= 4_000);
    }
}

#[test]
fn what_a_pod_sends_under_another_address_is_the_stacks() {
    let bed = Bed::new();
    let (on_a, on_b) = (bed.a.add(), bed.b.add());
    forward_nothing(&bed.a.node);
    for (family, ip, forged) in [(0, "", "10.244.1.250/32"), (1, "-6 ", "fd00:244:1::fa/128")] {
        let nodad = if family == 0 { "" } else { "nodad" };
        on_a.netns().ip(&format!("{ip}addr add {forged} dev lo {nodad}"));
        let source = forged.split('/').next().unwrap().parse::<IpAddr>().unwrap();
        let pod = on_b.addresses[family];
        let server = on_b.netns().run(|| UdpSocket::bind(SocketAddr::new(pod, 0)).unwrap());
        server.set_read_timeout(Some(LIMIT)).unwrap();
        let at = server.local_addr().unwrap();
        on_a.netns().run(|| {
            for (from, text) in [(source, &b"forged"[..]), (on_a.addresses[family], b"own")] {
                let socket = UdpSocket::bind(SocketAddr::new(from, 0)).unwrap();
                socket.send_to(text, at).unwrap();
            }
        });
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.ip()), (&b"own"[..], on_a.addresses[family]));
    }
}

#[test]
fn what_is_not_behind_the_node_that_sent_it_is_dropped() {
    let bed = Bed::new();
    let on_a = bed.a.add();
    bed.b.node.netns.ip("addr add 203.0.113.9/32 dev lo");
    bed.b.node.netns.ip("addr add 2001:db8:9::9/128 dev lo nodad");
    let forged: [IpAddr; 2] = ["203.0.113.9".parse().unwrap(), "2001:db8:9::9".parse().unwrap()];
    for (family, source) in forged.into_iter().enumerate() {
        let before = bed.a.counted(Counter::DropTunnelSource);
        let pod = on_a.addresses[family];
        let server = on_a.netns().run(|| UdpSocket::bind(SocketAddr::new(pod, 0)).unwrap());
        let at = server.local_addr().unwrap();
        let own = addresses(2)[family];
        bed.b.node.netns.run(|| {
            let send = |from: IpAddr, text: &[u8]| {
                let socket = UdpSocket::bind(SocketAddr::new(from, 0)).unwrap();
                socket.send_to(text, at).unwrap();
            };
            send(source, b"forged");
            send(own, b"own");
        });
        server.set_read_timeout(Some(LIMIT)).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.ip()), (&b"own"[..], own));
        assert_eq!(bed.a.counted(Counter::DropTunnelSource), before + 1);
    }
}

/// The MTU of an interface, as `ip` says.
fn mtu_of(netns: &Netns, ifname: &str) -> u32 {
    let shown = netns.ip(&format!("-o link show {ifname}"));
    let text = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    text.and_then(|text| text.parse().ok()).expect("an MTU")
}

#[test]
fn cni_24_the_mtu_is_the_uplinks_less_the_tunnels_and_follows_it() {
    let bed = Bed::new();
    let (node, pod) = (&bed.a.node, bed.a.add());
    let host = node.pod_links().pop().unwrap();
    let sizes = || {
        let of_node = ["mizzen.vxlan", &host].map(|ifname| mtu_of(&node.netns, ifname));
        [of_node[0], of_node[1], mtu_of(pod.netns(), "eth0")]
    };
    assert_eq!(sizes(), [MTU; 3]);
    for uplink in [1_400, 9_000, 1_500] {
        node.netns.ip(&format!("link set eth0 mtu {uplink}"));
        until("the MTU to follow", LIMIT, || match sizes() {
            found if found == [uplink - 70; 3] => Ok(()),
            found => Err(format!("{found:?} with {uplink}")),
        });
        let mut another = Pod::new();
        let result = node.add(&mut another);
        assert_eq!(result["interfaces"][1]["mtu"], uplink - 70);
        node.call("DEL", &another).expect_success();
    }
}

#[test]
fn a_node_that_moves_is_led_to_another_way_and_loses_no_connection() {
    let bed = Bed::new();
    let (on_a, on_b) = (bed.a.add(), bed.b.add());
    let mut talks: Vec<Talk> = (0..2)
        .map(|family| Talk::open(on_a.netns(), on_b.netns(), on_b.addresses[family]))
        .collect();
    // Both come to be on a link.
    bed.a.node.netns.veth("near", &bed.b.node.netns, "near");
    for (node, number) in [(&bed.a.node, 1), (&bed.b.node, 2)] {
        node.netns.ip(&format!("addr add 172.30.0.1{number}/24 dev near"));
        node.netns.ip(&format!("addr add fd00:30::1{number}/64 dev near nodad"));
    }
    let way = |node: &Node, other: u8| {
        node.netns.ip(&format!("route show 10.244.{other}.0/24"))
            + &node.netns.ip(&format!("-6 route show fd00:244:{other}::/64"))
    };
    let places = [
        ([model("a", 1), model("b", 2)], "dev near"),
        (nodes(), "dev mizzen.vxlan"),
        ([model("a", 1), model("b", 2)], "dev near"),
    ];
    for (nodes, device) in places {
        let ends = [(&bed.a.node, 2), (&bed.b.node, 1)];
        for (node, _) in ends {
            node.snapshots.send_replace(snapshot(&nodes).into());
        }
        for talk in &mut talks {
            talk.exchange(); // while the one has another way already, and the other not
        }
        for (node, other) in ends {
            until("the other way", LIMIT, || match way(node, other) {
                text if text.matches(device).count() == 2 => Ok(()),
                text => Err(text),
            });
        }
        for talk in &mut talks {
            talk.exchange();
        }
    }
}

#[test]
fn what_somebody_takes_of_the_tunnel_is_put_back_and_counted() {
    let bed = Bed::new();
    let (on_a, on_b) = (bed.a.add(), bed.b.add());
    let netns = &bed.a.node.netns;
    let healed = |what| bed.a.node.metrics.tables.healed_of(what);
    let forget = || {
        let pods = bed.a.datapath.pods().unwrap();
        pods.sync_tunnelled(&BTreeMap::new()).unwrap();
    };
    let breaks: [(&str, &[&str]); 4] = [
        // A table says nothing when it is altered: what comes next has all looked at.
        ("TUNNELLED", &["route del 10.244.2.0/24"]),
        ("link", &["link del mizzen.vxlan"]),
        ("link", &["link set mizzen.vxlan down"]),
        ("route", &["route del 10.244.2.0/24", "-6 route del fd00:244:2::/64"]),
    ];
    for (what, commands) in breaks {
        let before = healed(what);
        if what == "TUNNELLED" {
            forget();
        }
        for command in commands {
            netns.ip(command);
        }
        until(what, LIMIT, || if healed(what) > before { Ok(()) } else { Err("waits".to_owned()) });
        for family in [0, 1] {
            let (pod_a, pod_b) = (on_a.addresses[family], on_b.addresses[family]);
            let node_b = addresses(2)[family];
            until("the way", LIMIT, || {
                let listens = SocketAddr::new(pod_b, 0);
                let listener = on_b.netns().run(|| TcpListener::bind(listens).unwrap());
                let at = listener.local_addr().unwrap();
                let limit = Duration::from_millis(300);
                on_a.netns()
                    .run(|| TcpStream::connect_timeout(&at, limit))
                    .map(drop)
                    .map_err(|error| error.to_string())
            });
            assert_eq!(reach(on_a.netns(), &bed.b.node.netns, node_b), pod_a);
        }
    }
}

/// A node port of `a` leads to a pod of `b`, and a client outside to the node port.
#[test]
fn a_node_port_leads_into_the_tunnel_with_packets_of_every_size() {
    let bed = Bed::new();
    let on_b = bed.b.add();
    // Not the router itself: what it learns of the way's MTU would bind what it forwards.
    let outside = Netns::new("client");
    bed.router.veth("to-client", &outside, "eth0");
    for (ip, prefix, length) in [("", "203.0.113.", 24), ("-6 ", "2001:db8:3::", 64)] {
        let nodad = if ip.is_empty() { "" } else { "nodad" };
        bed.router.ip(&format!("addr add {prefix}1/{length} dev to-client {nodad}"));
        outside.ip(&format!("addr add {prefix}9/{length} dev eth0 {nodad}"));
        outside.ip(&format!("{ip}route add default via {prefix}1"));
    }
    let mut tables = TestTables::new(bed.a.datapath.maps().unwrap());
    let uplinks: Vec<_> = bed
        .a
        .node
        .netns
        .run(|| find_uplinks(&[], &addresses(1)).unwrap().devices.into_iter().collect());
    bed.a.node.netns.run(|| bed.a.datapath.attach_uplinks(&uplinks)).unwrap();
    for (family, node) in [(Family::V4, addresses(1)[0]), (Family::V6, addresses(1)[1])] {
        tables.node_address(node);
        let pod = on_b.addresses[usize::from(family == Family::V6)];
        let backend = SocketAddr::new(pod, 8_080);
        let _server = Echo::start(on_b.netns(), backend, "far");
        for transport in TRANSPORTS {
            let set = tables.set_of(&[backend]);
            let flags = frontend_flags::EXTERNAL | frontend_flags::NODE_PORT;
            tables.frontend(SocketAddr::new(family.any(), 30_080), transport.number(), set, flags);
            let dialled = SocketAddr::new(node, 30_080);
            let client = Client::dial(&outside, transport, dialled, 0).unwrap();
            let answer = client.ask().unwrap();
            assert_eq!((answer.name.as_str(), answer.client.ip()), ("far", node));
            // Larger than the tunnel takes: the client is told, and sends what fits.
            if transport == Transport::Udp {
                let told = until_answered(&client, 1_440);
                assert!(told >= 1_440, "{family:?}");
            }
        }
    }
    assert_eq!(bed.a.counted(Counter::DropTunnelSource), 0);
    assert_eq!(bed.b.counted(Counter::DropTunnelSource), 0);
}

/// Asks with a datagram of `length` octets until there is an answer; its length.
fn until_answered(client: &Client, length: usize) -> usize {
    until("an answer to a large datagram", LIMIT, || {
        client.ask_with(length).map(|answer| answer.length).map_err(|error| error.to_string())
    })
}
