//! Two nodes with pods and a client outside the cluster, on one wire, for tests of the packet path.
//!
//! ```text
//! client 172.30.0.100 ──┐
//! node 1 172.30.0.11 ───┼── bridge        pods of node N: 10.244.N.2, .3, … behind veths,
//! node 2 172.30.0.12 ───┘                 and the same for IPv6, as a real node has them
//! ```
//!
//! The nodes check reverse paths strictly. Sockets of tests belong to no node's cgroup: all that
//! they dial goes by packet.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use aya::maps::{HashMap, Map, MapData};
use mizzen_agent::{
    apply::maps::{AddrRange, Maps as _},
    datapath::{Datapath, Interface, find_uplinks},
    podnet::datapath::{PodDatapath as _, PodLink},
};
use mizzen_ebpf_abi::{
    addr::Addr,
    conntrack::{Flow, FlowKey},
    counters::Counter,
    limits::{SNAT_PORT_MAX, SNAT_PORT_MIN},
    node::{
        NodeConfig,
        cluster_range_flags::{PODS, SERVICES},
    },
};

use crate::{echo::Echo, netns::Netns, node::TestNode, tables::TestTables};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// An address of the wire.
    pub fn wire(self, last: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(172, 30, 0, last).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, last.into()).into(),
        }
    }

    /// A pod's address.
    pub fn pod(self, node: u8, last: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 244, node, last).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x244, 0, node.into(), 0, 0, 0, last.into()).into(),
        }
    }

    /// A service's address, which no interface has.
    pub fn service(self, last: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 96, 0, last).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, last.into()).into(),
        }
    }

    /// A load balancer's address, which no interface has.
    pub fn load_balancer(self, last: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, last).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(),
        }
    }

    /// The ranges of [`Self::service`] and [`Self::load_balancer`].
    fn services(self) -> [&'static str; 2] {
        match self {
            Self::V4 => ["10.96.0.0/16", "192.0.2.0/24"],
            Self::V6 => ["fd00:96::/112", "2001:db8::/64"],
        }
    }

    /// Any address of the node, in a frontend.
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// The client's address on the wire.
pub const CLIENT: u8 = 100;
/// Port of the servers in pods.
pub const POD_PORT: u16 = 8080;

/// A pod: a namespace behind a veth, with a server.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub netns: Netns,
    /// What the server says.
    pub name: String,
    number: (u8, u8),
    _servers: Vec<Echo>,
}

impl Pod {
    /// Its server.
    pub fn server(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.address(family), POD_PORT)
    }

    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        family.pod(self.number.0, self.number.1)
    }
}

/// A node with its datapath attached and its tables filled with its own facts.
#[derive(Debug)]
pub struct LabNode {
    /// Its tables.
    pub tables: TestTables,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Its datapath.
    pub datapath: Datapath,
    /// Its namespace and pins.
    pub node: TestNode,
    number: u8,
}

/// The whole.
#[derive(Debug)]
pub struct Lab {
    /// The nodes.
    pub nodes: [LabNode; 2],
    /// The client's namespace.
    pub client: Netns,
    wire: Netns,
}

impl Lab {
    /// A lab with so many pods on each node. Pods are named `pod-NODE-NUMBER`, from 1.
    pub fn new(pods: [u8; 2]) -> Self {
        Self::with_flows(pods, None)
    }

    /// As [`Self::new`], with room for so many flows on each node.
    pub fn with_flows(pods: [u8; 2], flows: Option<u32>) -> Self {
        let wire = Netns::new("wire");
        wire.ip("link add br0 type bridge");
        wire.ip("link set br0 up");
        let client = Netns::new("client");
        plug(&wire, &client, CLIENT);
        let nodes = [1, 2].map(|number| {
            let mut node = TestNode::new(&format!("node{number}"));
            node.flows = flows;
            LabNode::new(&wire, node, number, pods[usize::from(number) - 1])
        });
        Self { nodes, client, wire }
    }

    /// Sends what the client has for services' addresses to the first node.
    pub fn route_services(&self) {
        for family in FAMILIES {
            let ip = if family == Family::V6 { "-6 " } else { "" };
            let node = self.address_of_node(0, family);
            for range in family.services() {
                self.client.ip(&format!("{ip}route add {range} via {node}"));
            }
        }
    }

    /// Gives the first node a default route by the wire, as nodes have it, so that what it sends to
    /// services leaves by its uplink.
    pub fn route_out(&self) {
        for family in FAMILIES {
            let ip = if family == Family::V6 { "-6 " } else { "" };
            let router = family.wire(CLIENT);
            let netns = &self.nodes[0].node.netns;
            netns.ip(&format!("{ip}route del default dev lo"));
            netns.ip(&format!("{ip}route add default via {router}"));
        }
    }

    /// Lets frames of 9,000 octets through from the client to the pods of the first node.
    pub fn allow_jumbo_frames(&self) {
        let node = &self.nodes[0];
        let links = |netns: &Netns, names: &[String]| {
            for name in names {
                netns.ip(&format!("link set {name} mtu 9000"));
            }
        };
        let eth0 = ["eth0".to_owned()];
        let ports = [CLIENT, node.wire_number()].map(|number| format!("port{number}"));
        links(&self.wire, &ports);
        links(&self.wire, &["br0".to_owned()]);
        links(&self.client, &eth0);
        links(&node.node.netns, &eth0);
        for (pod, number) in node.pods.iter().zip(1..) {
            links(&node.node.netns, &[format!("veth{number}")]);
            links(&pod.netns, &eth0);
        }
    }

    /// A node's address on the wire.
    pub fn address_of_node(&self, index: usize, family: Family) -> IpAddr {
        family.wire(self.nodes[index].wire_number())
    }
}

/// Sets a kernel setting of a namespace.
pub fn set(netns: &Netns, key: &str, value: &str) {
    let path = PathBuf::from("/proc/sys/net").join(key);
    netns.run(|| fs::write(path, value)).expect("a kernel setting");
}

/// Connects a namespace to the wire as `eth0`.
pub fn plug(wire: &Netns, host: &Netns, number: u8) {
    // Interfaces that come have IPv6 addresses at once, without asking whether others have them.
    set(host, "ipv6/conf/default/accept_dad", "0");
    let port = format!("port{number}");
    wire.veth(&port, host, "eth0");
    wire.ip(&format!("link set {port} master br0"));
    for family in FAMILIES {
        let (length, nodad) = if family == Family::V4 { (24, "") } else { (64, "nodad") };
        host.ip(&format!("addr add {}/{length} dev eth0 {nodad}", family.wire(number)));
    }
}

impl LabNode {
    fn new(wire: &Netns, node: TestNode, number: u8, pods: u8) -> Self {
        let netns = &node.netns;
        for key in [
            "ipv4/ip_forward",
            "ipv6/conf/all/forwarding",
            "ipv4/conf/all/rp_filter",
            "ipv4/conf/default/rp_filter",
        ] {
            set(netns, key, "1");
        }
        plug(wire, netns, 10 + number);
        let other = 3 - number;
        netns.ip(&format!("route add 10.244.{other}.0/24 via {}", Family::V4.wire(10 + other)));
        netns.ip(&format!(
            "-6 route add fd00:244:0:{other}::/64 via {}",
            Family::V6.wire(10 + other)
        ));
        let datapath = node.open();
        let mut tables = TestTables::new(datapath.maps().unwrap());
        for family in FAMILIES {
            tables.node_address(family.wire(10 + number));
        }
        let range = |addr: IpAddr, prefix_len, flags| {
            (AddrRange { addr: Addr::from(addr), prefix_len }, flags)
        };
        let ranges = [
            range([10, 244, 0, 0].into(), 96 + 16, PODS),
            range(Family::V6.pod(0, 0), 48, PODS),
            range(Family::V4.service(0), 96 + 16, SERVICES),
            range(Family::V6.service(0), 112, SERVICES),
        ];
        tables.maps.put_cluster_ranges(&ranges).unwrap();
        let mut this = Self { tables, pods: Vec::new(), datapath, node, number };
        this.configure(0);
        for pod in 1..=pods {
            let pod = this.pod(pod);
            this.pods.push(pod);
        }
        this.attach();
        this
    }

    /// Writes the node's configuration with these flags.
    pub fn configure(&mut self, flags: u32) {
        self.write_config(flags, (SNAT_PORT_MIN, SNAT_PORT_MAX));
    }

    /// Writes the node's configuration with this range of source ports.
    pub fn source_ports(&mut self, min: u16, max: u16) {
        self.write_config(0, (min, max));
    }

    /// Writes it with these flags and this range.
    pub fn write_config(&mut self, flags: u32, (snat_port_min, snat_port_max): (u16, u16)) {
        let config = NodeConfig {
            ipv4: Addr::from(Family::V4.wire(self.wire_number())),
            ipv6: Addr::from(Family::V6.wire(self.wire_number())),
            snat_port_min,
            snat_port_max,
            flags,
            ..NodeConfig::default()
        };
        self.tables.maps.set_node_config(&config).unwrap();
    }

    /// Last octet of its address on the wire.
    pub fn wire_number(&self) -> u8 {
        10 + self.number
    }

    /// Attaches the uplinks' programs, found by the node's addresses.
    pub fn attach(&self) {
        let uplinks = self.attach_at(&FAMILIES.map(|family| family.wire(self.wire_number())));
        assert_eq!(uplinks.len(), 1, "{uplinks:?}");
    }

    /// Attaches the uplinks' programs, found by these addresses; the uplinks.
    pub fn attach_at(&self, addresses: &[IpAddr]) -> Vec<Interface> {
        let datapath = &self.datapath;
        self.node.netns.run(|| {
            let uplinks: Vec<Interface> =
                find_uplinks(&[], addresses).unwrap().devices.into_iter().collect();
            datapath.attach_uplinks(&uplinks).unwrap();
            uplinks
        })
    }

    /// Attaches the uplinks' programs to the devices with these names.
    pub fn attach_to(&self, names: &[String]) {
        self.node.netns.run(|| {
            let found = find_uplinks(names, &[]).unwrap();
            let devices: Vec<Interface> = found.devices.into_iter().collect();
            assert_eq!(devices.len(), names.len(), "{devices:?}");
            self.datapath.attach_uplinks(&devices).unwrap();
        });
    }

    /// Attaches the pods' programs.
    pub fn attach_pods(&self) {
        for pod in &self.pods {
            self.attach_pod(&pod.netns, pod.number.1, None);
        }
    }

    /// Says whether a pod's sockets are translated.
    pub fn annotate(&self, pod: &Pod, socket_translation: bool) {
        self.attach_pod(&pod.netns, pod.number.1, Some(socket_translation));
    }

    fn pod(&self, number: u8) -> Pod {
        let name = format!("pod-{}-{number}", self.number);
        let netns = Netns::new("pod");
        let host = &self.node.netns;
        let veth = format!("veth{number}");
        set(&netns, "ipv6/conf/default/accept_dad", "0");
        host.veth(&veth, &netns, "eth0");
        let last = number + 1;
        for family in FAMILIES {
            let address = family.pod(self.number, last);
            let (ip, length, hop, nodad) = match family {
                Family::V4 => ("", 32, "169.254.1.1", ""),
                Family::V6 => ("-6 ", 128, "fe80::1", "nodad"),
            };
            netns.ip(&format!("addr add {address}/{length} dev eth0 {nodad}"));
            let mac = mac_text(mac(host, &veth));
            netns.ip(&format!("neigh add {hop} lladdr {mac} dev eth0 nud permanent"));
            netns.ip(&format!("{ip}route add default via {hop} dev eth0 onlink"));
            host.ip(&format!("{ip}route add {address}/{length} dev {veth}"));
        }
        self.attach_pod(&netns, last, None);
        let servers = FAMILIES
            .iter()
            .map(|family| {
                let addr = SocketAddr::new(family.pod(self.number, last), POD_PORT);
                Echo::start(&netns, addr, &name)
            })
            .collect();
        Pod { netns, name, number: (self.number, last), _servers: servers }
    }

    fn attach_pod(&self, netns: &Netns, last: u8, socket_translation: Option<bool>) {
        let host = &self.node.netns;
        let ifname = format!("veth{}", last - 1);
        let link = PodLink {
            ifindex: host.run(|| nix::net::if_::if_nametoindex(ifname.as_str())).unwrap(),
            addresses: FAMILIES.map(|family| family.pod(self.number, last)).into(),
            pod_mac: mac(netns, "eth0"),
            host_mac: mac(host, &ifname),
            ifname,
            socket_translation,
            queued: false,
            sends: None,
        };
        let pods = self.datapath.pods().unwrap();
        let namespace = fs::File::open(netns.path()).unwrap();
        host.run(|| pods.attach(&link, Some(&namespace))).unwrap();
    }

    /// Lets so many seconds pass for all flows of the packet path.
    pub fn age_flows(&self, seconds: u32) {
        let map = MapData::from_pin(self.datapath.pins().map("FLOWS")).expect("the pinned flows");
        let mut flows: HashMap<_, FlowKey, Flow> =
            HashMap::try_from(Map::HashMap(map)).expect("a hash of flows");
        let entries: Vec<_> = flows.iter().map(|entry| entry.expect("an entry")).collect();
        for (key, flow) in entries {
            let [turns, ..] = seconds.to_le_bytes();
            let (seen_s, opened) =
                (flow.seen_s.wrapping_sub(seconds), flow.opened.wrapping_sub(turns));
            let aged = Flow { seen_s, opened, ..flow };
            flows.insert(key, aged, 0).expect("an entry rewritten");
        }
    }

    /// What the node's programs counted.
    pub fn counted(&self, counter: Counter) -> u64 {
        self.datapath.counters().unwrap().get(counter).unwrap()
    }
}

/// The link-layer address of an interface.
pub fn mac(netns: &Netns, ifname: &str) -> [u8; 6] {
    let shown = netns.ip(&format!("-o link show {ifname}"));
    let text = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    let mut octets = text.expect("a link-layer address").split(':');
    std::array::from_fn(|_| {
        octets.next().and_then(|octet| u8::from_str_radix(octet, 16).ok()).expect("six octets")
    })
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
