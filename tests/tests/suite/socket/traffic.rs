//! What sockets send to services is counted for their backends: connections where they are
//! dialled, octets and segments from the kernel's own counters when they end (issue 3, semantics 6).

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use mizzen_agent::{
    apply::maps::Maps as _,
    datapath::KernelMaps,
    desired::SetKey,
    model::{ObjectKey, service::Protocol},
    traffic::{
        Counted, SocketTraffic, Traffic,
        accounts::{Accounts, KnownSet, PortTraffic},
        live::LiveSockets,
    },
};
use mizzen_ebpf_abi::{
    addr::protocol::{TCP, UDP},
    counters::Counter,
};
use mizzen_tests::{
    actor::Socket,
    echo::Echo,
    netns::Netns,
    tables::{TestTables, Windows},
    wait::until,
};

use super::{
    Bench, FAMILIES,
    agent::{Agent, cluster},
    ask, each_family,
};

/// What is counted at present.
fn counted(maps: &mut KernelMaps) -> Vec<Counted> {
    let mut all = everything(maps);
    all.retain(|counted| !counted.traffic.is_none());
    all
}

/// The same, with those that were sent nothing.
fn everything(maps: &mut KernelMaps) -> Vec<Counted> {
    let mut all = Vec::new();
    maps.visit_traffic(&mut |counted| all.push(counted)).unwrap();
    all
}

/// What is counted for the backend with this id.
fn of(maps: &mut KernelMaps, id: u32) -> SocketTraffic {
    let of = |counted: &Counted| counted.backend.is_some_and(|found| found.id == id);
    let found = counted(maps).into_iter().find(of);
    found.map(|found| found.traffic).unwrap_or_default().sockets
}

/// What is counted for a set in all.
fn total(maps: &mut KernelMaps, set: u32) -> SocketTraffic {
    let mut sum = Traffic::default();
    counted(maps).into_iter().filter(|of| of.set == set).for_each(|of| sum += of.traffic);
    sum.sockets
}

/// Waits until as many octets are counted for a backend, there and back.
fn awaits(bench: &mut Bench, id: u32, sent: usize, received: usize) -> SocketTraffic {
    let what = format!("{:?}: {sent} octets sent, {received} received", bench.family);
    until(&what, Duration::from_secs(5), || {
        let found = of(&mut bench.tables.maps, id);
        let bytes = [found.sent_bytes, found.received_bytes];
        if bytes == [sent as u64, received as u64] { Ok(found) } else { Err(format!("{found:?}")) }
    })
}

/// A service with one backend that answers every line and waits for the client to close; the set,
/// what is dialled. The backend's id is 1.
fn echo(bench: &mut Bench, at: SocketAddr) -> (u32, SocketAddr, Echo) {
    let server = Echo::start(&bench.node.netns, at, "e");
    let set = bench.tables.set_of(&[at]);
    let vip = SocketAddr::new(bench.family.vip(10), 80);
    bench.tables.frontend(vip, TCP, set, 0);
    (set, bench.family.dialled(vip), server)
}

/// A connection on which a line was sent and one was received; the octets of both.
fn talk(bench: &mut Bench, to: SocketAddr) -> (Socket, usize, usize) {
    let socket = bench.actor.open(bench.family.tcp());
    bench.actor.connect(socket, to).unwrap();
    bench.actor.send(socket, "question");
    // Without the line's end, which is an octet more.
    let received = bench.actor.receive(socket).len() + 1;
    (socket, "question\n".len(), received)
}

fn port(bench: &Bench) -> SocketAddr {
    SocketAddr::new(bench.a.ip(), 9090)
}

#[test]
fn connections_are_counted_once_each_where_they_are_dialled() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a]);
        let (tcp, udp) = (1, 2);
        for _ in 0..3 {
            bench.ask(vip).unwrap();
        }
        assert_eq!(of(&mut bench.tables.maps, tcp).connections, 3);
        let connected = bench.actor.open(bench.family.udp());
        bench.actor.connect(connected, vip).unwrap();
        for _ in 0..3 {
            bench.actor.send(connected, "?");
            bench.actor.receive_from(connected);
        }
        assert_eq!(of(&mut bench.tables.maps, udp).connections, 1, "however many datagrams");
        let unconnected = bench.actor.open(bench.family.udp());
        for _ in 0..3 {
            bench.actor.send_to(unconnected, vip, "?");
            bench.actor.receive_from(unconnected);
        }
        assert_eq!(of(&mut bench.tables.maps, udp).connections, 2, "a choice is a connection");
        assert_eq!(of(&mut bench.tables.maps, tcp).connections, 3);
    });
}

#[test]
fn octets_are_those_that_were_sent_whoever_closes_first_and_however() {
    each_family(|bench| {
        let at = port(bench);
        let (_, vip, _server) = echo(bench, at);
        let (mut sent, mut received) = (0, 0);
        for (n, ending) in ["close", "end", "abort"].into_iter().enumerate() {
            let (socket, there, back) = talk(bench, vip);
            let before = of(&mut bench.tables.maps, 1);
            assert_eq!(before.connections, n as u64 + 1);
            assert_eq!(before.sent_bytes, sent as u64, "nothing before the end");
            match ending {
                "close" => bench.actor.close(socket),
                "abort" => bench.actor.abort(socket),
                _ => {
                    bench.actor.end(socket);
                    assert_eq!(bench.actor.receive(socket), "", "the server closes too");
                    bench.actor.close(socket);
                }
            }
            (sent, received) = (sent + there, received + back);
            let after = awaits(bench, 1, sent, received);
            // SYN, question, and the acknowledgements of SYN and answer at least.
            assert!(after.sent_segments >= before.sent_segments + 3, "{ending}: {after:?}");
            assert!(after.received_segments >= before.received_segments + 2, "{ending}: {after:?}");
            assert_eq!(after.retransmits, 0);
        }
        // A server that says its name and closes.
        let name = bench.service(11, &[bench.b]);
        assert_eq!(bench.ask(name).unwrap().0, "b");
        awaits(bench, 2, 0, 1);
    });
}

/// The kernel lets go of a socket that nobody holds when its FIN is acknowledged, and knows of no
/// other: here of a server that keeps its side open.
#[test]
fn octets_are_right_where_the_server_never_closes() {
    each_family(|bench| {
        let at = port(bench);
        let listener = bench.node.netns.run(|| TcpListener::bind(at).unwrap());
        let set = bench.tables.set_of(&[at]);
        let vip = SocketAddr::new(bench.family.vip(10), 80);
        bench.tables.frontend(vip, TCP, set, 0);
        let vip = bench.family.dialled(vip);
        let socket = bench.actor.open(bench.family.tcp());
        bench.actor.connect(socket, vip).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"answer").unwrap();
        assert_eq!(bench.actor.receive(socket), "answer");
        bench.actor.close(socket);
        awaits(bench, 1, 0, "answer".len());
    });
}

#[test]
fn what_is_no_services_is_not_counted() {
    each_family(|bench| {
        let at = port(bench);
        let (_, vip, _server) = echo(bench, at);
        let direct = bench.family.dialled(at);
        let (socket, ..) = talk(bench, direct);
        bench.actor.close(socket);
        // The socket of a service's connection dials the backend itself next.
        let (socket, sent, received) = talk(bench, vip);
        bench.actor.disconnect(socket);
        let ended = awaits(bench, 1, sent, received);
        bench.actor.connect(socket, direct).unwrap();
        bench.actor.send(socket, "more");
        bench.actor.receive(socket);
        bench.actor.abort(socket);
        // What is counted behind it shows that the others ended.
        let (socket, more, answer) = talk(bench, vip);
        bench.actor.abort(socket);
        let after = awaits(bench, 1, sent + more, received + answer);
        assert_eq!((ended.connections, after.connections), (1, 2));
        assert_eq!(counted(&mut bench.tables.maps).len(), 1);
        assert_eq!(bench.counted(Counter::TrafficOfFormerBackend), 0);
    });
}

/// A backend that left is counted for until its id is another's.
#[test]
fn an_id_that_is_used_again_begins_at_nothing_and_its_service_keeps_the_sum() {
    each_family(|bench| {
        let at = port(bench);
        let (set, vip, _server) = echo(bench, at);
        let (drained, sent, received) = talk(bench, vip);
        let (late, ..) = talk(bench, vip);
        // It leaves; its record tells of nobody, its connections go on.
        bench.tables.free_backend(1, at);
        bench.actor.close(drained);
        let left = awaits(bench, 1, sent, received);
        assert_eq!(left.connections, 2);

        // Another endpoint of the same service gets the id.
        let other = bench.b;
        bench.tables.write_backend(1, set, other);
        assert_eq!(of(&mut bench.tables.maps, 1), SocketTraffic::default());
        assert_eq!(total(&mut bench.tables.maps, set), left, "the service's sum is what it was");
        bench.actor.close(late);
        until("the end of the last", Duration::from_secs(5), || {
            match bench.counted(Counter::TrafficOfFormerBackend) {
                1 => Ok(()),
                n => Err(n.to_string()),
            }
        });
        assert_eq!(of(&mut bench.tables.maps, 1), SocketTraffic::default(), "not the other's");
        bench.ask(vip).unwrap();
        let now = awaits(bench, 1, 0, 1);
        assert_eq!(now.connections, 1);
        let sum = total(&mut bench.tables.maps, set);
        assert_eq!((sum.connections, sum.sent_bytes), (3, left.sent_bytes));

        // The number of the set is another service's.
        bench.tables.maps.begin_traffic(&[set + 1]);
        assert_eq!(total(&mut bench.tables.maps, set), sum, "not this one");
        bench.tables.maps.begin_traffic(&[set]);
        assert_eq!(total(&mut bench.tables.maps, set), SocketTraffic::default());
    });
}

/// The same with another agent; programs run on in between.
fn restarted(bench: Bench) -> Bench {
    let Bench { family, actor, tables, a, b, _backends: backends, datapath, node } = bench;
    drop((datapath, tables));
    let datapath = node.open();
    datapath.attach_sockets().unwrap();
    let tables = TestTables::new(datapath.maps().unwrap());
    Bench { family, actor, tables, a, b, _backends: backends, datapath, node }
}

/// A flip of flags, or what is written again, is no new backend.
#[test]
fn counters_stay_while_the_backend_does_across_restarts() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let at = port(&bench);
        let (set, vip, _server) = echo(&mut bench, at);
        let (socket, sent, received) = talk(&mut bench, vip);
        bench.actor.close(socket);
        let before = awaits(&mut bench, 1, sent, received);
        let (open, more, answer) = talk(&mut bench, vip);

        let mut bench = restarted(bench);
        assert_eq!(of(&mut bench.tables.maps, 1), SocketTraffic { connections: 2, ..before });
        bench.tables.write_backend(1, set, at);
        bench.actor.close(open);
        awaits(&mut bench, 1, sent + more, received + answer);
    }
}

/// Counters come with the ids that need them: here in another chunk than the first.
#[test]
fn backends_with_large_ids_are_counted_too() {
    each_family(|bench| {
        let vip = SocketAddr::new(bench.family.vip(10), 80);
        let (set, id) = (bench.tables.set(), 9_000);
        bench.tables.write_backend(1_024, set, bench.b);
        bench.tables.write_backend(id, set, bench.a);
        let range = bench.tables.range(set, &[id], Windows::all(1));
        bench.tables.flip(set, range);
        for protocol in [TCP, UDP] {
            bench.tables.frontend(vip, protocol, set, 0);
        }
        let vip = bench.family.dialled(vip);
        assert_eq!(bench.ask(vip).unwrap().0, "a");
        assert_eq!(bench.ask_udp(vip).0, "a");
        let all = awaits(bench, id, 0, 1);
        assert_eq!(all.connections, 2);
        assert_eq!(of(&mut bench.tables.maps, 1_024), SocketTraffic::default());
        let found = counted(&mut bench.tables.maps)[0].backend.unwrap();
        assert_eq!((found.id, found.ipv6), (id, bench.a.is_ipv6()));
    });
}

/// What a service was sent that has one backend, live connections included.
fn account(bench: &mut Bench, set: u32, live: &LiveSockets) -> PortTraffic {
    let at = port(bench);
    let service = ObjectKey::new("default", "echo");
    let protocol = Protocol::Tcp;
    let key = SetKey { service, port: "".into(), protocol, ipv6: at.is_ipv6() };
    let sets = vec![KnownSet { key, set, backends: vec![(1, at)] }];
    let mut accounts = Accounts::new(everything(&mut bench.tables.maps), sets);
    accounts.add(&live.count().unwrap());
    accounts.ports.remove(0)
}

/// Connections of the node's own processes and of a pod's are seen while they live, with the very
/// figures that are counted when they end.
#[test]
fn connections_that_live_are_seen_in_every_namespace_of_the_node() {
    each_family(|bench| {
        let at = port(bench);
        let (set, vip, _server) = echo(bench, at);
        let pod = Netns::new("pod");
        let (length, nodad) = if at.is_ipv4() { (32, "") } else { (128, "nodad") };
        pod.ip("route add default dev lo");
        pod.ip("-6 route add default dev lo");
        pod.ip(&format!("addr add {}/{length} dev lo {nodad}", at.ip()));
        let _inside = Echo::start(&pod, at, "e");
        let mut inside = bench.node.pod_actor(&pod);
        let live = {
            let translations = bench.datapath.translations().unwrap();
            let cgroup = bench.node.options().cgroup_root.unwrap();
            bench.node.netns.run(|| LiveSockets::new(translations, cgroup)).unwrap()
        };
        assert_eq!(account(bench, set, &live).total, Traffic::default());

        let (of_node, sent, received) = talk(bench, vip);
        let (direct, ..) = talk(bench, bench.family.dialled(at));
        let of_pod = inside.open(bench.family.tcp());
        inside.connect(of_pod, vip).unwrap();
        inside.send(of_pod, "question");
        let received = received + inside.receive(of_pod).len() + 1;
        // What was sent is acknowledged by then, or with the next acknowledgement.
        let seen = until("both to be seen", Duration::from_secs(5), || {
            let found = account(bench, set, &live);
            let sockets = found.total.sockets;
            let expected = [2, 2, 2 * sent as u64, received as u64];
            let seen =
                [sockets.connections, sockets.open, sockets.sent_bytes, sockets.received_bytes];
            if seen == expected { Ok(found) } else { Err(format!("{sockets:?}")) }
        });
        assert_eq!(seen.backends[0].traffic, seen.total);
        assert!(seen.total.sockets.sent_segments >= 6);
        assert_eq!(of(&mut bench.tables.maps, 1).sent_bytes, 0, "none of it ended");

        inside.close(of_pod);
        bench.actor.abort(direct);
        bench.actor.abort(of_node);
        awaits(bench, 1, 2 * sent, received);
        let ended = account(bench, set, &live).total.sockets;
        assert_eq!((ended.open, ended.connections), (0, 2));
        assert_eq!(ended.sent_bytes, seen.total.sockets.sent_bytes);
    });
}

/// Through the agent's own loop: names, endpoints that come and go, a service that is made anew.
#[test]
fn a_services_sum_only_grows_while_there_is_the_service() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = family.dialled(SocketAddr::new(family.vip(10), 80));
        let mut agent = Agent::start(&bench.datapath, family);
        let (a, b) = (bench.a, bench.b);
        agent.follow(&cluster(family, &[a, b]));
        let dial = |bench: &mut Bench| ask(&mut bench.actor, family, vip).map(drop).unwrap();
        (0..20).for_each(|_| dial(&mut bench));
        let tcp = |agent: &mut Agent| {
            let accounts = agent.reconciler.traffic().unwrap();
            let mut ports = accounts.ports.into_iter();
            let port = ports.find(|of| &*of.key.port == "tcp").unwrap();
            let each: Vec<_> =
                port.backends.iter().map(|of| (of.at, of.traffic.sockets.connections)).collect();
            (port.total.sockets.connections, each)
        };
        let (total, each) = tcp(&mut agent);
        assert_eq!((total, each.iter().map(|(_, n)| n).sum::<u64>()), (20, 20));
        assert_eq!(each.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [a, b]);

        agent.follow(&cluster(family, &[a]));
        let (total, left) = tcp(&mut agent);
        assert_eq!((total, &left[..]), (20, &each[..1]), "b left");
        agent.follow(&cluster(family, &[a, b]));
        dial(&mut bench);
        let (total, back) = tcp(&mut agent);
        assert_eq!(total, 21);
        let sum = back.iter().map(|(_, n)| n).sum::<u64>();
        assert_eq!(sum, 21, "it lived all the while, and is who it was: {back:?}");

        let mut gone = cluster(family, &[a, b]);
        gone.services.clear();
        agent.follow(&gone);
        agent.follow(&cluster(family, &[a, b]));
        // Connections outlive a service, and while its pods live so does its account: who makes it anew
        // (`kubectl replace`) has it go on.
        assert_eq!(tcp(&mut agent), (21, back), "the same pods, dialled as often");
    }
}
