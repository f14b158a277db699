//! What depends on who is behind a socket: session affinity, source ranges, the choice of a pod to
//! have its sockets left alone. Two pods of one node and their node dial, each by every family.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mizzen_agent::apply::maps::{AddrRange, Maps as _, SourceRange};
use mizzen_ebpf_abi::{
    addr::{
        Addr,
        protocol::{TCP, UDP},
    },
    counters::Counter,
    node::node_config_flags,
    service::frontend_flags,
};
use mizzen_tests::{
    actor::Actor,
    backend::Backend,
    lab::{self, CLIENT, Lab, LabNode},
    netns::Netns,
    tables::Windows,
    wait::until,
};

use super::{FAMILIES, Family, ask, names};

/// Services of a test that wants two clients to differ: each of two backends for each client.
const SERVICES: u8 = 12;
/// Long enough for any test.
const LONG_S: u32 = 10_800;

/// A node with the clients `pods[0]` and `pods[1]`, and backends `a` and `b` in pods of their own.
struct Bed {
    family: Family,
    lab: Lab,
    actors: [Actor; 2],
    backends: [SocketAddr; 2],
    _servers: [Backend; 2],
}

impl Bed {
    fn new(family: Family) -> Self {
        let lab = Lab::new([4, 0]);
        let node = &lab.nodes[0];
        node.datapath.attach_sockets().unwrap();
        let (pods, of) = (&node.pods, lab_family(family));
        let backends = [2, 3].map(|pod: usize| SocketAddr::new(pods[pod].address(of), 9090));
        let servers = [(2, "a"), (3, "b")].map(|(pod, name): (usize, _)| {
            Backend::start(&pods[pod].netns, SocketAddr::new(pods[pod].address(of), 9090), name)
        });
        let actors = [0, 1].map(|pod: usize| node.node.pod_actor(&pods[pod].netns));
        Self { family, lab, actors, backends, _servers: servers }
    }

    fn node(&mut self) -> &mut LabNode {
        &mut self.lab.nodes[0]
    }

    /// A set with both backends, its clients keep theirs for `seconds`; the backends' ids.
    fn set(&mut self, seconds: u32) -> (u32, [u32; 2]) {
        let backends = self.backends;
        let tables = &mut self.node().tables;
        let set = tables.set();
        let ids = backends.map(|addr| tables.backend(set, addr));
        self.lead(set, &ids, Windows::all(2), seconds);
        (set, ids)
    }

    fn lead(&mut self, set: u32, ids: &[u32], windows: Windows, seconds: u32) {
        let tables = &mut self.node().tables;
        let range = tables.range(set, ids, Windows { affinity_s: seconds, ..windows });
        tables.flip(set, range);
    }

    /// What the application dials to reach the set.
    fn frontend(&mut self, last: u8, protocol: u8, set: u32, flags: u32) -> SocketAddr {
        let vip = SocketAddr::new(self.family.vip(last), 80);
        self.node().tables.frontend(vip, protocol, set, flags);
        self.family.dialled(vip)
    }

    /// Who answers a pod's new connection; the service stays its peer.
    fn ask(&mut self, pod: usize, vip: SocketAddr) -> String {
        let (name, peer) = ask(&mut self.actors[pod], self.family, vip).unwrap();
        assert_eq!(peer, vip);
        name
    }

    /// Who answers a datagram of a pod's new socket.
    fn ask_udp(&mut self, pod: usize, vip: SocketAddr) -> String {
        let actor = &mut self.actors[pod];
        let socket = actor.open(self.family.udp());
        actor.send_to(socket, vip, "?");
        let (from, name) = actor.receive_from(socket);
        assert_eq!(from, vip);
        actor.close(socket);
        name
    }

    /// Whether a pod's socket is translated; a connected datagram socket tells without any packet.
    fn translates(&mut self, pod: usize, vip: SocketAddr) -> bool {
        let (family, before) = (self.family, self.lab.nodes[0].counted(Counter::SocketTranslated));
        let socket = self.actors[pod].open(family.udp());
        self.actors[pod].connect(socket, vip).unwrap();
        self.actors[pod].close(socket);
        self.lab.nodes[0].counted(Counter::SocketTranslated) > before
    }
}

fn lab_family(family: Family) -> lab::Family {
    if family == Family::V6 { lab::Family::V6 } else { lab::Family::V4 }
}

fn each_family(case: impl Fn(&mut Bed)) {
    for family in FAMILIES {
        let mut bed = Bed::new(family);
        case(&mut bed);
        for counter in [Counter::ForeignRange, Counter::ForeignBackend, Counter::AffinityTableFull]
        {
            assert_eq!(bed.lab.nodes[0].counted(counter), 0, "{family:?}: {}", counter.name());
        }
    }
}

#[test]
fn b71_b74_b79_each_pod_keeps_its_own_backend_of_each_service() {
    each_family(|bed| {
        let vips: Vec<SocketAddr> = (0..SERVICES)
            .map(|i| {
                let (set, _) = bed.set(LONG_S);
                bed.frontend(10 + i, TCP, set, 0)
            })
            .collect();
        let choices = [0, 1].map(|pod| {
            let of = |vip: &SocketAddr| {
                let seen: BTreeSet<String> = (0..8).map(|_| bed.ask(pod, *vip)).collect();
                assert_eq!(seen.len(), 1, "{:?}: {seen:?}", bed.family);
                seen.into_iter().next().unwrap()
            };
            vips.iter().map(of).collect::<Vec<_>>()
        });
        assert_ne!(choices[0], choices[1], "two pods of a node are two clients");
        let several: BTreeSet<&String> = choices[0].iter().collect();
        assert_eq!(several.len(), 2, "each port of a service has its own");
    });
}

#[test]
fn b71_the_node_is_a_client_too() {
    each_family(|bed| {
        let (set, _) = bed.set(LONG_S);
        let vip = bed.frontend(10, TCP, set, 0);
        bed.actors[0] = bed.lab.nodes[0].node.actor();
        let seen: BTreeSet<String> = (0..8).map(|_| bed.ask(0, vip)).collect();
        assert_eq!(seen.len(), 1, "{seen:?}");
    });
}

#[test]
fn b71_b77_datagrams_of_every_socket_of_a_pod_reach_one_backend() {
    each_family(|bed| {
        let (set, ids) = bed.set(LONG_S);
        let vip = bed.frontend(10, UDP, set, 0);
        let first = bed.ask_udp(0, vip);
        for _ in 0..8 {
            assert_eq!(bed.ask_udp(0, vip), first);
            // The service changes, its backends don't: a choice made anew might be another one.
            let order = if bed.node().tables.flips() % 2 == 0 { [0, 1] } else { [1, 0] };
            bed.lead(set, &order.map(|i: usize| ids[i]), Windows::all(2), LONG_S);
        }
        let connected = bed.actors[0].open(bed.family.udp());
        bed.actors[0].connect(connected, vip).unwrap();
        assert_eq!(bed.actors[0].peer(connected), vip);
        bed.actors[0].send(connected, "?");
        assert_eq!(bed.actors[0].receive_from(connected), (vip, first));
    });
}

#[test]
fn b73_affinity_may_be_switched_off_and_on() {
    each_family(|bed| {
        let (set, ids) = bed.set(LONG_S);
        let vip = bed.frontend(10, TCP, set, 0);
        let seen = |bed: &mut Bed| (0..30).map(|_| bed.ask(0, vip)).collect::<BTreeSet<_>>();
        assert_eq!(seen(bed).len(), 1);
        bed.lead(set, &ids, Windows::all(2), 0);
        assert_eq!(seen(bed), names(["a", "b"]));
        bed.lead(set, &ids, Windows::all(2), LONG_S);
        assert_eq!(seen(bed).len(), 1);
    });
}

/// The backend that a client keeps leaves; `leave` gives the slots and windows that are left.
fn keeps_another(leave: impl Fn([u32; 2], usize) -> (Vec<u32>, Windows)) {
    each_family(|bed| {
        let (set, ids) = bed.set(LONG_S);
        let vips = [TCP, UDP].map(|protocol| bed.frontend(10, protocol, set, 0));
        let socket = bed.actors[0].open(bed.family.udp());
        let kept = bed.ask(0, vips[0]);
        let ask_all = |bed: &mut Bed| {
            bed.actors[0].send_to(socket, vips[1], "?");
            let (from, old_socket) = bed.actors[0].receive_from(socket);
            assert_eq!(from, vips[1]);
            BTreeSet::from([bed.ask(0, vips[0]), bed.ask_udp(0, vips[1]), old_socket])
        };
        assert_eq!(ask_all(bed), [kept.clone()].into());
        let goes = usize::from(kept == "b");
        let other = BTreeSet::from([["b", "a"][goes].to_owned()]);
        let (slots, windows) = leave(ids, goes);
        bed.lead(set, &slots, windows, LONG_S);
        assert_eq!(ask_all(bed), other, "{:?}", bed.family);
        bed.lead(set, &ids, Windows::all(2), LONG_S);
        assert_eq!(ask_all(bed), other, "the first one came back too late");
    });
}

#[test]
fn b75_a_backend_that_is_deleted_is_forgotten() {
    keeps_another(|ids, goes| (vec![ids[1 - goes]], Windows::all(1)));
}

#[test]
fn b76_a_terminating_backend_gets_no_new_flows_through_affinity() {
    // It still has its slot and its record, in a window of nobody.
    keeps_another(|ids, goes| {
        let usable = (1, 1);
        let windows =
            Windows { internal: usable, external: usable, nearby: usable, ..Windows::default() };
        (vec![ids[goes], ids[1 - goes]], windows)
    });
}

#[test]
fn b72_a_client_that_stays_away_is_swept_and_no_other() {
    each_family(|bed| {
        let mut vips = [1, LONG_S].into_iter().zip([10, 11]).map(|(seconds, last)| {
            let (set, _) = bed.set(seconds);
            bed.frontend(last, TCP, set, 0)
        });
        let (short, long) = (vips.next().unwrap(), vips.next().unwrap());
        drop(vips);
        let kept = bed.ask(0, long);
        bed.ask(0, short);
        bed.ask(1, short);
        let mut sweeper = bed.lab.nodes[0].datapath.affinity_sweeper().unwrap();
        let mut removed = 0;
        until("the short timeout", Duration::from_secs(10), || {
            removed += sweeper.run(1000).unwrap().removed;
            if removed == 2 { Ok(()) } else { Err(format!("{removed} removed")) }
        });
        let swept = sweeper.run(1000).unwrap();
        assert_eq!((swept.seen, swept.removed, swept.finished), (1, 0, true));
        assert_eq!(sweeper.usage().map(|usage| (usage.map, usage.used)), Some(("AFFINITY", 1)));
        assert_eq!(bed.ask(0, long), kept);
    });
}

#[test]
fn d12_of_a_namespace_that_nobody_knows_the_packets_decide() {
    each_family(|bed| {
        let (kept, _) = bed.set(LONG_S);
        let (free, _) = bed.set(0);
        let (kept, free) = (bed.frontend(10, UDP, kept, 0), bed.frontend(11, UDP, free, 0));
        let stranger = Netns::new("stranger");
        stranger.ip("route add default dev lo");
        stranger.ip("-6 route add default dev lo");
        bed.actors[0] = bed.lab.nodes[0].node.pod_actor(&stranger);
        assert!(!bed.translates(0, kept));
        assert!(bed.translates(0, free));
        assert!(bed.translates(1, kept));
    });
}

#[test]
fn b52_b53_source_ranges_bind_pods_and_the_node_by_their_addresses() {
    each_family(|bed| {
        let (set, _) = bed.set(0);
        let flags = frontend_flags::EXTERNAL | frontend_flags::SOURCE_RANGES;
        let open = frontend_flags::EXTERNAL;
        let ranged = [TCP, UDP].map(|protocol| bed.frontend(200, protocol, set, flags));
        let node_port_like = bed.frontend(201, UDP, set, open);
        let of = lab_family(bed.family);
        let inside = bed.lab.nodes[0].pods[0].address(of);
        let range = |addr| SourceRange {
            set,
            range: AddrRange { addr: Addr::from(addr), prefix_len: 128 },
        };
        bed.node().tables.maps.put_source_ranges(&[range(inside)]).unwrap();
        assert!(names(["a", "b"]).contains(&bed.ask(0, ranged[0])));
        assert!(bed.translates(0, ranged[1]));
        assert!(!bed.translates(1, ranged[1]), "another pod of the same node");
        assert!(bed.translates(1, node_port_like), "B49: other frontends of the set are free");
        // Its packets are dropped: it waits in vain, and nobody tells it anything.
        let before = bed.lab.nodes[0].counted(Counter::DropSourceRange);
        let lost = ask(&mut bed.actors[1], bed.family, ranged[0]).unwrap_err();
        assert_eq!(lost.kind(), std::io::ErrorKind::TimedOut, "{lost}");
        assert!(bed.lab.nodes[0].counted(Counter::DropSourceRange) > before);
        // The node's own sockets, by the node's address.
        let node = bed.lab.address_of_node(0, of);
        bed.actors[1] = bed.lab.nodes[0].node.actor();
        assert!(!bed.translates(1, ranged[1]));
        bed.node().tables.maps.put_source_ranges(&[range(node)]).unwrap();
        assert!(bed.translates(1, ranged[1]));
        // B56: at run time.
        bed.node().tables.maps.remove_source_ranges(&[range(inside)]).unwrap();
        assert!(!bed.translates(0, ranged[1]));
    });
}

/// The addresses of a node that has two on its uplink, and a load balancer's that only one of them may
/// use.
struct TwoAddresses {
    own: [IpAddr; 2],
    ranged: [SocketAddr; 2],
    sets: [u32; 2],
}

impl TwoAddresses {
    fn new(bed: &mut Bed) -> Self {
        let of = lab_family(bed.family);
        bed.lab.route_out();
        let own = [bed.lab.address_of_node(0, of), of.wire(99)];
        let length = if of == lab::Family::V4 { "24" } else { "64 nodad" };
        let node = bed.node();
        node.node.netns.ip(&format!("addr add {}/{length} dev eth0", own[1]));
        node.tables.node_address(own[1]);
        node.configure(node_config_flags::several_sources(of == lab::Family::V4));
        bed.actors[1] = bed.lab.nodes[0].node.actor();
        let sets = [(); 2].map(|()| bed.set(0).0);
        let flags = frontend_flags::EXTERNAL | frontend_flags::SOURCE_RANGES;
        let ranged = [0, 1].map(|i: usize| bed.frontend(200, [TCP, UDP][i], sets[i], flags));
        Self { own, ranged, sets }
    }

    /// Lets this address alone use the load balancer's.
    fn admit(&self, bed: &mut Bed, addr: IpAddr) {
        let maps = &mut bed.node().tables.maps;
        for set in self.sets {
            let [one, other] = self.own.map(|own| SourceRange {
                set,
                range: AddrRange { addr: own.into(), prefix_len: 128 },
            });
            let (kept, gone) = if addr == self.own[0] { (one, other) } else { (other, one) };
            maps.put_source_ranges(&[kept]).unwrap();
            maps.remove_source_ranges(&[gone]).unwrap();
        }
    }

    /// Whether the node is answered over TCP and over UDP, by a socket that is bound to `from` where
    /// one is given; and how many calls were translated of the three.
    fn asks(&self, bed: &mut Bed, from: Option<IpAddr>) -> ([bool; 2], u64) {
        let (family, before) = (bed.family, bed.lab.nodes[0].counted(Counter::SocketTranslated));
        let actor = &mut bed.actors[1];
        let mut opened = |kind| {
            let socket = actor.open(kind);
            if let Some(from) = from {
                actor.bind(socket, family.dialled((from, 0).into()));
            }
            socket
        };
        let [stream, datagrams, connected] =
            [family.tcp(), family.udp(), family.udp()].map(&mut opened);
        let tcp = actor.connect(stream, self.ranged[0]).map(|()| actor.receive(stream));
        actor.connect(connected, self.ranged[1]).unwrap();
        actor.send_to(datagrams, self.ranged[1], "?");
        actor.begin_receive(datagrams);
        let udp = actor.received();
        for socket in [stream, datagrams, connected] {
            actor.close(socket);
        }
        let translated = bed.lab.nodes[0].counted(Counter::SocketTranslated) - before;
        ([tcp.is_ok(), udp.is_ok()], translated)
    }
}

/// A socket that is bound to none of the node's addresses has that of its route, which its packets
/// tell.
#[test]
fn b53_source_ranges_bind_the_node_by_the_address_that_its_socket_has() {
    each_family(|bed| {
        let two = TwoAddresses::new(bed);
        for (admitted, other) in [(two.own[0], two.own[1]), (two.own[1], two.own[0])] {
            two.admit(bed, admitted);
            let case = format!("{:?}, {admitted} is admitted", bed.family);
            assert_eq!(two.asks(bed, Some(admitted)), ([true; 2], 3), "{case}");
            assert_eq!(two.asks(bed, Some(other)), ([false; 2], 0), "{case}");
            for (routed, answered) in [(admitted, true), (other, false)] {
                let ip = if routed.is_ipv6() { "-6 " } else { "" };
                let router = lab_family(bed.family).wire(CLIENT);
                let route = format!("{ip}route replace default via {router} dev eth0 src {routed}");
                bed.node().node.netns.ip(&route);
                assert_eq!(two.asks(bed, None), ([answered; 2], 0), "{case}, routed by {routed}");
            }
        }
        // Where there is but one, it is known.
        bed.node().configure(0);
        two.admit(bed, two.own[0]);
        assert_eq!(two.asks(bed, None), ([true; 2], 3));
    });
}

/// To an address of its own the node sends from that, by its loopback interface, where no packet is
/// judged.
#[test]
fn b54_a_load_balancers_address_that_the_node_has_is_admitted_where_the_node_is() {
    each_family(|bed| {
        let two = TwoAddresses::new(bed);
        let vip = bed.family.vip(200);
        let node = bed.node();
        node.node.add_address(vip);
        node.tables.node_address(vip);
        for (admitted, answered) in [(two.own[0], true), (two.own[1], false)] {
            two.admit(bed, admitted);
            for from in [None, Some(vip)] {
                let translated = if answered { 3 } else { 0 };
                let expected = ([answered; 2], translated);
                assert_eq!(two.asks(bed, from), expected, "{:?} {from:?}", bed.family);
            }
        }
    });
}

/// The same by the pod's packets, which it opts out for. The node is bound by nothing.
#[test]
fn b47_where_pods_are_not_detected_by_the_dialled_family_the_external_policy_binds_them() {
    each_family(|bed| {
        let windows = Windows { external: (0, 1), nearby: (1, 1), ..Windows::default() };
        let local = frontend_flags::EXTERNAL | frontend_flags::KEEP_SOURCE;
        let [tcp, udp] = [TCP, UDP].map(|protocol| {
            let (set, ids) = bed.set(0);
            bed.lead(set, &ids, windows, 0);
            bed.frontend(200, protocol, set, local)
        });
        bed.actors[1] = bed.lab.nodes[0].node.actor();
        let own = node_config_flags::no_pod_detection(bed.family != Family::V6);
        let other = node_config_flags::NO_POD_DETECTION & !own;
        for translated in [true, false] {
            let node = &bed.lab.nodes[0];
            node.annotate(&node.pods[0], translated);
            for (flags, name) in [(0, "b"), (other, "b"), (own, "a"), (own | other, "a")] {
                bed.node().configure(flags);
                let case = format!("{:?} {translated} {flags:#b}", bed.family);
                assert_eq!(bed.ask(0, tcp), name, "{case}");
                assert_eq!(bed.ask_udp(0, udp), name, "{case}");
                assert_eq!(bed.ask(1, tcp), "b", "{case}: the node");
            }
        }
    });
}

#[test]
fn b78_affinity_with_source_ranges_keeps_its_entry() {
    each_family(|bed| {
        let (set, _) = bed.set(LONG_S);
        let flags = frontend_flags::EXTERNAL | frontend_flags::SOURCE_RANGES;
        let ranged = bed.frontend(200, TCP, set, flags);
        let internal = bed.frontend(10, TCP, set, 0);
        let inside = bed.lab.nodes[0].pods[0].address(lab_family(bed.family));
        let range = AddrRange { addr: Addr::from(inside), prefix_len: 128 };
        bed.node().tables.maps.put_source_ranges(&[SourceRange { set, range }]).unwrap();
        let kept = bed.ask(0, ranged);
        for _ in 0..6 {
            assert_eq!(bed.ask(0, internal), kept);
            assert_eq!(bed.ask(0, ranged), kept);
        }
    });
}

#[test]
fn u06_a_pod_that_opts_out_is_served_by_its_packets_at_once_and_back() {
    each_family(|bed| {
        let (set, _) = bed.set(0);
        let vip = bed.frontend(10, TCP, set, 0);
        let counts = |bed: &Bed| {
            let node = &bed.lab.nodes[0];
            [Counter::SocketTranslated, Counter::FlowCreated].map(|counter| node.counted(counter))
        };
        let ask = |bed: &mut Bed, pod: usize| {
            let before = counts(bed);
            assert!(names(["a", "b"]).contains(&bed.ask(pod, vip)));
            let after = counts(bed);
            (after[0] - before[0], after[1] - before[1])
        };
        assert_eq!((ask(bed, 0), ask(bed, 1)), ((1, 0), (1, 0)));
        let annotate = |bed: &Bed, translated| {
            let node = &bed.lab.nodes[0];
            node.annotate(&node.pods[0], translated);
        };
        annotate(bed, false);
        // The agent starts anew, and has not heard of annotations yet.
        bed.lab.nodes[0].attach_pods();
        assert_eq!((ask(bed, 0), ask(bed, 1)), ((0, 1), (1, 0)));
        annotate(bed, true);
        assert_eq!((ask(bed, 0), ask(bed, 1)), ((1, 0), (1, 0)));
    });
}

#[test]
fn b79b_a_pod_has_the_same_backend_by_socket_and_by_packet() {
    each_family(|bed| {
        let vips: Vec<SocketAddr> = (0..SERVICES)
            .map(|i| {
                let (set, _) = bed.set(LONG_S);
                bed.frontend(10 + i, TCP, set, 0)
            })
            .collect();
        let (by_socket_first, by_packet_first) = vips.split_at(vips.len() / 2);
        let annotate = |bed: &Bed, translated| {
            let node = &bed.lab.nodes[0];
            node.annotate(&node.pods[0], translated);
        };
        let ask_all = |bed: &mut Bed, vips: &[SocketAddr]| {
            vips.iter().map(|vip| bed.ask(0, *vip)).collect::<Vec<_>>()
        };
        let flows = |bed: &Bed| bed.lab.nodes[0].counted(Counter::FlowCreated);
        let socket = ask_all(bed, by_socket_first);
        assert_eq!(flows(bed), 0);
        annotate(bed, false);
        assert_eq!(ask_all(bed, by_socket_first), socket);
        let packet = ask_all(bed, by_packet_first);
        assert!(flows(bed) >= u64::from(SERVICES), "these went by packet");
        annotate(bed, true);
        assert_eq!(ask_all(bed, by_packet_first), packet);
    });
}

#[test]
fn b13_a_datagram_to_a_service_without_endpoints_is_refused_by_the_next_operation() {
    each_family(|bed| {
        let empty = bed.node().tables.set();
        let vip = bed.frontend(10, UDP, empty, 0);
        let actor = &mut bed.actors[0];
        let socket = actor.open(bed.family.udp());
        actor.connect(socket, vip).unwrap();
        let refused = actor.send_in_vain(socket, "?");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    });
}
