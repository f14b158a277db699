//! What sockets do with services is told to those who follow, as it happened, and to nobody where
//! nobody does.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mizzen_agent::{
    datapath::FlowRing,
    follow::hub::{Follower, Hub, Told},
};
use mizzen_ebpf_abi::{
    addr::{
        Addr,
        protocol::{TCP, UDP},
    },
    counters::Counter,
    event::{FlowEvent, path},
};
use mizzen_tests::{echo::Echo, wait::until};

use super::{Bench, Family, each_family};

/// All that was told.
fn heard(ring: &mut FlowRing) -> Vec<FlowEvent> {
    assert_eq!(ring.newly_lost().unwrap(), 0);
    std::iter::from_fn(|| ring.next()).collect()
}

/// The one thing that was told.
fn one(ring: &mut FlowRing) -> FlowEvent {
    let all = heard(ring);
    let [event] = all[..] else { panic!("one event: {all:?}") };
    event
}

fn at(addr: Addr, port: [u8; 2]) -> SocketAddr {
    (IpAddr::from(addr), u16::from_be_bytes(port)).into()
}

/// What was dialled, and where it went.
fn ends(event: &FlowEvent) -> (SocketAddr, SocketAddr) {
    (at(event.dialled, event.dialled_port), at(event.backend, event.backend_port))
}

#[test]
fn followers_are_told_of_each_connection_of_a_socket_with_both_its_ends() {
    each_family(|bench| {
        let server = SocketAddr::new(bench.a.ip(), 9090);
        let _echo = Echo::start(&bench.node.netns, server, "e");
        let vip = SocketAddr::new(bench.family.vip(10), 80);
        let set = bench.tables.set_of(&[server]);
        bench.tables.frontend(vip, TCP, set, 0);
        let mut ring = bench.datapath.flow_events().follow().unwrap();
        for kind in
            [bench.family.tcp(), if bench.family == Family::V4 { "mptcp4" } else { "mptcp6" }]
        {
            let socket = bench.actor.open(kind);
            bench.actor.connect(socket, bench.family.dialled(vip)).unwrap();
            bench.actor.send(socket, "?");
            let answer = bench.actor.receive(socket);
            let client: SocketAddr = answer.rsplit(' ').next().unwrap().parse().unwrap();
            bench.actor.close(socket);
            let event = one(&mut ring);
            assert_eq!(event.what, Counter::SocketTranslated as u32);
            assert_eq!((event.protocol, event.path, event.set), (TCP, path::SOCKET, set));
            assert_eq!(ends(&event), (vip, server));
            if kind.starts_with("tcp") {
                assert_eq!(at(event.client, event.client_port), client, "{:?}", bench.family);
            }
        }
        // What is no service's is no event.
        let direct = bench.actor.open(bench.family.tcp());
        bench.actor.connect(direct, bench.family.dialled(server)).unwrap();
        bench.actor.close(direct);
        assert_eq!(heard(&mut ring), []);
    });
}

#[test]
fn followers_are_told_of_choices_for_datagrams_and_of_refusals() {
    each_family(|bench| {
        let (vip, empty) = (bench.service(10, &[bench.a]), bench.service(11, &[]));
        let (vip_at, empty_at) =
            [10, 11].map(|last| SocketAddr::new(bench.family.vip(last), 80)).into();
        let mut ring = bench.datapath.flow_events().follow().unwrap();
        let connected = bench.actor.open(bench.family.udp());
        bench.actor.connect(connected, vip).unwrap();
        let unconnected = bench.actor.open(bench.family.udp());
        for _ in 0..3 {
            bench.actor.send_to(unconnected, vip, "?");
            bench.actor.receive_from(unconnected);
        }
        let all = heard(&mut ring);
        assert_eq!(all.len(), 2, "a choice is an event, and a datagram is none: {all:?}");
        for event in &all {
            assert_eq!((event.what, event.protocol), (Counter::SocketTranslated as u32, UDP));
            assert_eq!(ends(event), (vip_at, bench.a));
        }
        assert_ne!(all[1].client_port, [0; 2], "it was bound by its first datagram");

        bench.ask(empty).unwrap_err();
        let refused = one(&mut ring);
        assert_eq!((refused.what, refused.protocol), (Counter::SocketRefused as u32, TCP));
        assert_eq!(at(refused.dialled, refused.dialled_port), empty_at);
        assert_eq!(refused.backend, Addr::default());
        assert_ne!(refused.set, mizzen_ebpf_abi::service::NO_SET, "its service is known");
    });
}

/// A pod's socket has no address of its own where it dials; its pod has.
#[test]
fn followers_are_told_the_backend_of_the_moment() {
    each_family(|bench| {
        let vip = SocketAddr::new(bench.family.vip(10), 80);
        let set = bench.tables.set_of(&[bench.a]);
        bench.tables.frontend(vip, TCP, set, 0);
        let mut ring = bench.datapath.flow_events().follow().unwrap();
        for (backend, name) in [(bench.a, "a"), (bench.b, "b"), (bench.a, "a")] {
            let id = bench.tables.backend(set, backend);
            let range = bench.tables.range(set, &[id], mizzen_tests::tables::Windows::all(1));
            bench.tables.flip(set, range);
            let (answered, _) = bench.ask(bench.family.dialled(vip)).unwrap();
            assert_eq!((answered.as_str(), ends(&one(&mut ring))), (name, (vip, backend)));
        }
    });
}

#[test]
fn nobody_is_told_where_nobody_follows() {
    for family in [Family::V4, Family::V6] {
        let mut bench = Bench::new(family);
        let vip = bench.service(10, &[bench.a]);
        let events = bench.datapath.flow_events();
        assert!(!events.is_followed().unwrap());
        let ring = events.follow().unwrap();
        assert!(events.is_followed().unwrap());
        bench.ask(vip).unwrap();
        drop(ring);
        assert!(!events.is_followed().unwrap());
        bench.ask(vip).unwrap();
        assert_eq!(heard(&mut events.follow().unwrap()), [], "what was before is over");
        // An agent that was killed leaves its buffer; the next one takes it away.
        std::mem::forget(events.follow().unwrap());
        assert!(events.is_followed().unwrap());
        let Bench { node, datapath, tables, .. } = bench;
        drop((datapath, tables, events));
        let datapath = until("the next agent", Duration::from_secs(5), || {
            node.try_open().map_err(|error| error.to_string())
        });
        assert!(!datapath.flow_events().is_followed().unwrap());
    }
}

fn next(runtime: &tokio::runtime::Runtime, follower: &mut Follower) -> FlowEvent {
    let told = runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(10), follower.next()).await });
    match told {
        Ok(Some(Told::Event(event))) => event,
        other => panic!("an event: {other:?}"),
    }
}

#[test]
fn many_follow_with_one_buffer_which_goes_with_the_last() {
    let mut bench = Bench::new(Family::V6);
    let vip = bench.service(10, &[bench.a]);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let events = bench.datapath.flow_events();
    let hub = Hub::new(events.clone());
    let mut first = runtime.block_on(hub.follow()).unwrap();
    let mut second = runtime.block_on(hub.follow()).unwrap();
    bench.ask(vip).unwrap();
    let heard = next(&runtime, &mut first);
    assert_eq!(ends(&heard), (vip, bench.a));
    assert_eq!(next(&runtime, &mut second), heard);
    drop(first);
    bench.ask(vip).unwrap();
    assert_eq!(ends(&next(&runtime, &mut second)), (vip, bench.a));
    drop(second);
    until("nobody to be told", Duration::from_secs(10), || {
        if events.is_followed().unwrap() { Err("the buffer is there".into()) } else { Ok(()) }
    });
    // And anew.
    let mut third = runtime.block_on(hub.follow()).unwrap();
    bench.ask(vip).unwrap();
    assert_eq!(ends(&next(&runtime, &mut third)), (vip, bench.a));
}
