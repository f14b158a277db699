//! A node whose agent is removed, as `kubectl delete` ends it or more roughly: what is in force goes on,
//! as docs/install.md says, until somebody takes it out of force. Needs root.

use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use mizzen_agent::{datapath::is_in_force, dns::addresses::ROUTE_PROTOCOL};
use mizzen_tests::{
    actor::{Actor, Socket},
    echo::{self, Echo, TRANSPORTS, Transport, ask},
    lab::{FAMILIES, Family, POD_PORT},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    dns::field::{Agent, Field, Host, LIMIT, NAME, dns, on},
    migrate::shop,
    packet::{
        NODE_PORT,
        kube_proxy::{KubeProxy, nft, rules},
    },
};

/// Where the Service leads to at first, and the name of who answers there.
const BEFORE: &str = "before";
/// Where it leads to when no agent follows it any more.
const LATER_PORT: u16 = POD_PORT + 1;
const LATER: &str = "later";

/// A cluster whose Service `shop` leads to the pod of the second node, with an agent on each.
struct Scene {
    field: Field,
    agents: Vec<Agent>,
    vips: [SocketAddr; 2],
    _servers: Vec<Echo>,
}

/// Connections that were there before.
struct Old {
    /// Of a process of the pod, by the Service's addresses: translated at the socket.
    pod: Actor,
    sockets: Vec<(Transport, Socket)>,
    /// Of a client outside, by node ports: translated packet by packet.
    outside: Vec<echo::Client>,
}

fn node_port(family: Family) -> SocketAddr {
    SocketAddr::new(family.wire(11), NODE_PORT)
}

impl Scene {
    fn new() -> Self {
        let field = Field::new();
        let serve = |family: Family, (port, name): (u16, &str)| {
            let at = SocketAddr::new(family.pod(2, 7), port);
            Echo::start(&field.hosts[1].pod, at, name)
        };
        let servers = FAMILIES.into_iter().flat_map(|family| {
            [(POD_PORT, BEFORE), (LATER_PORT, LATER)].map(|server| serve(family, server))
        });
        let servers = servers.collect();
        let agents = field.hosts.iter().map(|host| field.agent(host, &[])).collect();
        let client = field.client.clone();
        let vips = on(&field.runtime, async move { shop(&client).await });
        let scene = Self { field, agents, vips, _servers: servers };
        for family in FAMILIES {
            wait::until("the Service to be there", LIMIT, || {
                ask(&scene.field.wire, Transport::Udp, node_port(family))
                    .map(drop)
                    .map_err(|error| error.to_string())
            });
        }
        scene
    }

    fn old(&self) -> Old {
        let mut pod = self.field.hosts[0].in_pod();
        let (mut sockets, mut outside) = (Vec::new(), Vec::new());
        for (family, vip) in FAMILIES.into_iter().zip(self.vips) {
            for transport in TRANSPORTS {
                sockets.push((transport, dial(&mut pod, family, transport, vip)));
                let port = node_port(family);
                outside.push(echo::Client::dial(&self.field.wire, transport, port, 0).unwrap());
            }
        }
        Old { pod, sockets, outside }
    }

    /// Who answers whoever comes now, by every way.
    fn new_ones_go_to(&self, name: &str) {
        let mut pod = self.field.hosts[0].in_pod();
        for (family, vip) in FAMILIES.into_iter().zip(self.vips) {
            for transport in TRANSPORTS {
                let socket = dial(&mut pod, family, transport, vip);
                assert_eq!(said(&mut pod, socket), name, "{transport:?} {vip}");
                let port = node_port(family);
                let answer = ask(&self.field.wire, transport, port).unwrap();
                assert_eq!(answer.name, name, "{transport:?} {port}");
            }
        }
    }

    /// Has the Service lead to the other server.
    fn move_shop(&self) {
        let client = self.field.client.clone();
        on(&self.field.runtime, async move {
            let slices: Api<EndpointSlice> = Api::default_namespaced(client);
            for family in FAMILIES {
                let kind = if family == Family::V4 { "ipv4" } else { "ipv6" };
                let port = |name: &str| json!({"name": name, "port": LATER_PORT, "protocol": name.to_uppercase()});
                let moved = json!({"ports": [port("tcp"), port("udp")]});
                let (name, params) = (format!("shop-{kind}"), PatchParams::default());
                slices.patch(&name, &params, &Patch::Merge(moved)).await.unwrap();
            }
        });
    }

    /// Puts kube-proxy back on the first node, whose rules lead there too.
    fn put_kube_proxy_back(&self) -> KubeProxy {
        let netns = &self.field.hosts[0].node.netns;
        for (family, vip) in FAMILIES.into_iter().zip(self.vips) {
            let backend = SocketAddr::new(family.pod(2, 7), LATER_PORT);
            nft(netns, &rules(family, [vip, node_port(family)], backend));
        }
        KubeProxy::start(netns)
    }
}

fn dial(pod: &mut Actor, family: Family, transport: Transport, to: SocketAddr) -> Socket {
    let kind = match (transport, family) {
        (Transport::Tcp, Family::V4) => "tcp4",
        (Transport::Tcp, Family::V6) => "tcp6",
        (Transport::Udp, Family::V4) => "udp4",
        (Transport::Udp, Family::V6) => "udp6",
    };
    let socket = pod.open(kind);
    pod.connect(socket, to).unwrap();
    socket
}

/// Who answers a question.
fn said(pod: &mut Actor, socket: Socket) -> String {
    pod.send(socket, "?");
    pod.receive(socket).split(' ').next().unwrap_or_default().to_owned()
}

impl Old {
    /// They go on, where they did.
    fn go_on(&mut self) {
        self.go_on_at_sockets();
        for client in &self.outside {
            assert_eq!(client.ask().unwrap().name, BEFORE);
        }
    }

    fn go_on_at_sockets(&mut self) {
        for (transport, socket) in self.sockets.clone() {
            assert_eq!(said(&mut self.pod, socket), BEFORE, "{transport:?}");
        }
    }
}

/// Whether a process of the pod has names of the cluster answered.
fn has_names(scene: &Scene) -> bool {
    let mut pod = scene.field.hosts[0].in_pod();
    let mut asks = |family| pod.ask_name("udp", dns(family), NAME, 1).is_ok();
    let answered = FAMILIES.map(&mut asks);
    assert_eq!(answered[0], answered[1], "in one family alone");
    answered[0]
}

/// The addresses that the node has for a resolver, as routes of ours, and the rules about them.
fn held_for_names(host: &Host) -> (usize, bool) {
    let netns = &host.node.netns;
    let of = |family| netns.ip(&format!("{family} route show table local proto {ROUTE_PROTOCOL}"));
    let held = ["-4", "-6"].map(|family| of(family).lines().count());
    let output = netns.command("nft").args(["list", "tables"]).output().expect("nft (nftables)");
    (held.iter().sum(), String::from_utf8_lossy(&output.stdout).contains("mizzen-dns"))
}

/// Services go on, past any other proxy, to where they led; names go on as long as another node's
/// agent is there. Nothing of that is the work of a process.
#[test]
fn r11_what_a_removed_agent_left_goes_on_until_it_is_taken_out_of_force() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut scene = Scene::new();
        let mut old = scene.old();
        old.go_on();
        let mut first = scene.agents.remove(0);
        first.signal(signal);
        assert_eq!(first.ended().success(), signal == Signal::SIGTERM, "{}", first.log());
        let host = &scene.field.hosts[0];
        let (code, _) = host.mizzen(&["status"]);
        assert_ne!(code, Some(0), "nobody is there");
        for _ in 0..3 {
            old.go_on();
            scene.new_ones_go_to(BEFORE);
        }
        assert!(has_names(&scene), "{signal}: another node's agent answers");
        let (held, _) = held_for_names(host);
        assert_eq!(held, 4, "{signal}: sockets of the node have these addresses as their own");

        // Nobody follows the cluster, and no other proxy comes before.
        scene.move_shop();
        let _kube_proxy = scene.put_kube_proxy_back();
        old.go_on();
        scene.new_ones_go_to(BEFORE);
        let mut second = scene.agents.remove(0);
        second.signal(signal);
        second.ended();
        assert!(!has_names(&scene), "{signal}: no agent is left");

        // The way back is there without an agent too.
        let bpffs = host.node.options().bpffs;
        assert!(is_in_force(&bpffs));
        let (code, report) =
            host.mizzen(&["migrate", "rollback", "--bpffs", bpffs.to_str().unwrap()]);
        assert_eq!(code, Some(0), "{report}");
        assert!(!is_in_force(&bpffs), "{report}");
        assert_eq!(held_for_names(&scene.field.hosts[0]), (0, false), "{signal}: {report}");
        scene.new_ones_go_to(LATER);
        old.go_on_at_sockets();
    }
}
