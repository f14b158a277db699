//! Services for pods that another CNI plugin connects: Debian's `bridge` and `ptp`, with
//! `host-local`, run as a container runtime runs them. Sockets belong to no node's cgroup here, so
//! that all goes by packet.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use mizzen_agent::{
    datapath::Leads,
    foreign::{
        self,
        choose::{Places, Ranges, places},
        read,
    },
    metrics::Metrics,
    model::{node::Node, snapshot::Snapshot},
    status::{Board, State},
};
use mizzen_ebpf_abi::{counters::Counter, service::frontend_flags};
use mizzen_tests::{
    echo::{Echo, TRANSPORTS, ask},
    lab::{FAMILIES, Family, Lab, LabNode, POD_PORT},
    netns::Netns,
    wait::until,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PLUGINS: &str = "/usr/lib/cni";
const NODE_PORT: u16 = 30_080;

/// A pod of the first node, connected by a plugin.
struct ForeignPod {
    netns: Netns,
    addresses: Vec<IpAddr>,
    _servers: Vec<Echo>,
}

impl ForeignPod {
    fn new(node: &LabNode, conf: &str, name: &str) -> Self {
        let netns = Netns::new("foreign");
        netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")).unwrap();
        let conf_json: serde_json::Value = serde_json::from_str(conf).unwrap();
        let plugin = format!("{PLUGINS}/{}", conf_json["type"].as_str().unwrap());
        let mut child = node
            .node
            .netns
            .command(&plugin)
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", netns.name())
            .env("CNI_NETNS", netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{plugin}: {text}");
        let result: serde_json::Value = serde_json::from_str(&text).unwrap();
        let addresses: Vec<IpAddr> = result["ips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap())
            .collect();
        let serve = |addr: &IpAddr| Echo::start(&netns, SocketAddr::new(*addr, POD_PORT), name);
        let servers = addresses.iter().map(serve).collect();
        Self { netns, addresses, _servers: servers }
    }

    fn address(&self, family: Family) -> IpAddr {
        let v4 = family == Family::V4;
        *self.addresses.iter().find(|addr| addr.is_ipv4() == v4).unwrap()
    }

    fn server(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.address(family), POD_PORT)
    }
}

/// A plugin's configuration, with addresses from the first node's ranges.
fn conf(plugin: &str, data: &std::path::Path) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "foreign",
        "type": plugin,
        "bridge": "cni0",
        "isGateway": true,
        "ipam": {
            "type": "host-local",
            "dataDir": data,
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:0:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    })
    .to_string()
}

/// Puts the programs where the pods' packets pass, as the agent does.
fn attach(node: &LabNode) -> Places {
    let ranges = Ranges {
        own: vec!["10.244.1.0/24".parse().unwrap(), "fd00:244:0:1::/64".parse().unwrap()],
        others: vec!["10.244.2.0/24".parse().unwrap(), "fd00:244:0:2::/64".parse().unwrap()],
    };
    let programs = node.datapath.packet_programs();
    node.node.netns.run(|| {
        let places = places(&read::read().unwrap(), &ranges, &[]);
        for (interface, leads) in &places.devices {
            programs.attach(interface, *leads).unwrap();
        }
        places
    })
}

/// Every way that a pod's packet may take: to a pod beside it, to itself, to another node, and
/// from a client outside of the cluster.
fn services_work_for_pods_of(plugin: &str, devices: usize) {
    let data = tempfile::tempdir().unwrap();
    let conf = conf(plugin, data.path());
    let mut lab = Lab::new([0, 1]);
    let pods = ["a", "b"].map(|name| ForeignPod::new(&lab.nodes[0], &conf, name));
    let places = attach(&lab.nodes[0]);
    let of_pods = places.devices.values().filter(|leads| **leads == Leads::ToPods).count();
    assert_eq!(of_pods, devices, "{places:?}");
    assert_eq!(places.problems, Vec::<String>::new());
    for family in FAMILIES {
        let node = lab.address_of_node(0, family);
        for (index, transport) in TRANSPORTS.into_iter().enumerate() {
            let port = 80 + u16::try_from(index).unwrap();
            let remote = lab.nodes[1].pods[0].server(family);
            let tables = &mut lab.nodes[0].tables;
            let mut service = |last: u8, to: &[SocketAddr]| {
                let set = tables.set_of(to);
                let vip = SocketAddr::new(family.service(last), port);
                tables.frontend(vip, transport.number(), set, 0);
                vip
            };
            let [own, beside, away] = [
                service(1, &[pods[0].server(family)]),
                service(2, &[pods[1].server(family)]),
                service(3, &[remote]),
            ];
            let set = tables.set_of(&[pods[0].server(family), pods[1].server(family)]);
            let any = SocketAddr::new(family.any(), NODE_PORT);
            let flags = frontend_flags::EXTERNAL | frontend_flags::NODE_PORT;
            tables.frontend(any, transport.number(), set, flags);

            let told = format!("{plugin} {family:?} {transport:?}");
            let asked = |to: SocketAddr| {
                let answer = ask(&pods[0].netns, transport, to);
                answer.unwrap_or_else(|error| panic!("{told}, {to}: {error}"))
            };
            for (to, name, client) in [
                (beside, "b", pods[0].address(family)),
                (own, "a", node),
                (away, "pod-2-1", pods[0].address(family)),
            ] {
                let answer = asked(to);
                assert_eq!((&*answer.name, answer.client.ip()), (name, client), "{told}");
                assert_eq!(answer.server, to, "{told}");
            }
            for _ in 0..4 {
                let answer = ask(&lab.client, transport, SocketAddr::new(node, NODE_PORT)).unwrap();
                assert!(["a", "b"].contains(&&*answer.name), "{told}");
                assert_eq!(answer.client.ip(), node, "{told}");
            }
        }
    }
    for counter in [Counter::ForeignRange, Counter::ForeignBackend, Counter::DropNoRoute] {
        assert_eq!(lab.nodes[0].counted(counter), 0, "{}", counter.name());
    }
}

#[test]
fn f01_f05_b02_services_work_for_pods_on_a_bridge() {
    services_work_for_pods_of("bridge", 3);
}

#[test]
fn f01_f05_b02_services_work_for_pods_behind_routes() {
    services_work_for_pods_of("ptp", 2);
}

/// The agent's own loop finds the devices of pods that come while it runs, and puts back what
/// somebody detached.
#[test]
fn r04_a_pod_that_comes_later_is_followed() {
    let data = tempfile::tempdir().unwrap();
    let conf = conf("bridge", data.path());
    let mut lab = Lab::new([0, 0]);
    let mut snapshot = Snapshot::default();
    snapshot.synced.nodes = true;
    let node = Node {
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:244:0:1::/64".parse().unwrap()],
        ..Node::named("node-1")
    };
    snapshot.nodes.insert("node-1".into(), Arc::new(node));
    let (_keep, snapshots) = watch::channel(Arc::new(snapshot));
    let config = foreign::Config { node_name: "node-1".into(), pod_devices: Vec::new() };
    let (board, metrics) = (Arc::<Board>::default(), Arc::<Metrics>::default());
    let cancel = CancellationToken::new();
    let programs = lab.nodes[0].datapath.packet_programs();
    let runtime = lab.nodes[0].node.netns.run(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    let running = runtime.spawn(foreign::run(
        config,
        snapshots,
        programs,
        Arc::clone(&board),
        Arc::clone(&metrics),
        cancel.clone(),
    ));
    until("the loop to be ready", Duration::from_secs(5), || {
        match board.parts().get(foreign::PART) {
            Some(State::Ready) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let pods = ["a", "b"].map(|name| ForeignPod::new(&lab.nodes[0], &conf, name));
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let tables = &mut lab.nodes[0].tables;
            let set = tables.set_of(&[pods[1].server(family)]);
            let vip = SocketAddr::new(family.service(9), 80);
            tables.frontend(vip, transport.number(), set, 0);
            let answer = until("an answer", Duration::from_secs(10), || {
                ask(&pods[0].netns, transport, vip).map_err(|error| error.to_string())
            });
            assert_eq!(answer.name, "b", "{family:?} {transport:?}");
        }
    }
    assert_eq!(metrics.tables.healed_of("program"), 0, "what is new was not lost");
    let links = std::fs::read_dir(lab.nodes[0].datapath.pins().links()).unwrap();
    let mut links = links.map(|link| link.unwrap().path());
    let of_a_pod = |path: &PathBuf| path.to_string_lossy().contains("tc_pod_ingress-");
    let link = links.find(of_a_pod).unwrap();
    std::fs::remove_file(&link).unwrap();
    until("the program to be attached again", Duration::from_secs(20), || {
        match metrics.tables.healed_of("program") {
            0 => Err("nothing is healed".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(metrics.tables.healed_of("program"), 1);
    assert!(link.exists());
    cancel.cancel();
    runtime.block_on(running).unwrap().unwrap();
}
