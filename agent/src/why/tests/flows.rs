//! Flows that are there already.

use super::*;

/// A connection from outside to a node port, which a pod of another node answered.
fn outside_flow() -> (FlowKey, Flow) {
    let key = FlowKey {
        source: ip(OUTSIDE).into(),
        destination: ip(NODE).into(),
        source_port: 40_000_u16.to_be_bytes(),
        destination_port: 30_080_u16.to_be_bytes(),
        protocol: protocol::TCP,
        pad: [0; 3],
    };
    let flow = Flow {
        source: ip(NODE).into(),
        destination: ip(REMOTE).into(),
        source_port: 10_007_u16.to_be_bytes(),
        destination_port: 8_080_u16.to_be_bytes(),
        flags: flow_flags::ORIGINAL | flow_flags::REWRITE_SOURCE | flow_flags::REWRITE_DESTINATION,
        state: SEEN,
        peer_state: SEEN,
        seen_s: NOW_S - 5,
        ..Flow::default()
    };
    (key, flow)
}

#[test]
fn an_existing_flow_pins_and_says_so() {
    let mut live = memory(false);
    let (key, flow) = outside_flow();
    live.flows.insert(key, flow);
    let dialled = Dialled { addr: ip(NODE).into(), port: 30_080, protocol: protocol::TCP };
    let client = |port| Client { addr: ip(OUTSIDE).into(), port, here: false, bound: true };
    let explained = explain(&live, &client(Some(40_000)), &dialled);
    assert_eq!(explained.packet.outcome, Outcome::Pinned);
    assert_eq!(explained.packet.pinned.unwrap().address, "10.244.1.5:8080");
    assert_eq!(explained.packet.masquerade.unwrap().address, NODE);
    assert_eq!(explain(&live, &client(Some(40_001)), &dialled).packet.outcome, Outcome::Balanced);
    let listed = resolve::flows(&live, &client(None), &dialled);
    assert_eq!(listed.len(), 1);
    let (_, listed) = &listed[0];
    assert_eq!((listed.state.as_str(), listed.idle_seconds), ("established", 5));
    assert_eq!(listed.masqueraded, "192.0.2.1:10007");
    // Silent for too long: it counts no more.
    live.flows.insert(key, Flow { state: 0, seen_s: NOW_S - 500, ..flow });
    assert_eq!(explain(&live, &client(Some(40_000)), &dialled).packet.outcome, Outcome::Balanced);
    assert!(resolve::flows(&live, &client(None), &dialled).is_empty());
}

/// V8: as the programs do, by the backend's record before the flow is marked.
#[test]
fn v8_a_flow_to_a_deleted_backend_is_refused_until_it_is_reset() {
    let mut live = memory(false);
    let (key, flow) = outside_flow();
    let id = 77;
    let flow = Flow { backend: id, set: 9, ..flow };
    live.flows.insert(key, flow);
    let dialled = Dialled { addr: ip(NODE).into(), port: 30_080, protocol: protocol::TCP };
    let client = Client { addr: ip(OUTSIDE).into(), port: Some(40_000), here: false, bound: true };
    let outcome = |live: &Memory| explain(live, &client, &dialled).packet.outcome;
    assert_eq!(outcome(&live), Outcome::Pinned, "out of service (V7)");
    let mut record = Backend4 {
        addr: [10, 244, 1, 5],
        port: 8_081_u16.to_be_bytes(),
        flags: backend_flags::FREED | backend_flags::GONE,
        set: NO_SET,
    };
    live.tables.backends4.insert(id, record);
    assert_eq!(outcome(&live), Outcome::Pinned, "another endpoint was deleted");
    record.port = flow.destination_port;
    live.tables.backends4.insert(id, record);
    assert_eq!(outcome(&live), Outcome::Refused);
    // It was told so: whoever has its port next is led to one that lives.
    live.flows.insert(key, Flow { peer_state: SEEN | RST, ..flow });
    assert_eq!(outcome(&live), Outcome::Balanced);
    live.tables.backends4.remove(&id);
    live.flows.insert(key, Flow { state: SEEN | GONE, ..flow });
    assert_eq!(outcome(&live), Outcome::Refused, "marked, and its id is another's");
}

/// As of cluster DNS: the flow to another node's resolver counts while there is none here.
#[test]
fn a_flow_of_datagrams_counts_while_nobody_listens_here() {
    let mut live = memory(false);
    let tcp = FrontendKey::new(ip("10.96.0.7").into(), 80, protocol::TCP);
    let at = FrontendKey { protocol: protocol::UDP, ..tcp };
    let set = live.tables.frontends[&tcp].set;
    live.tables.frontends.insert(at, Frontend::new(&at, set, frontend_flags::PREFER_LOCAL));
    let (key, flow) = outside_flow();
    let to = [10, 244, 1, 5];
    let (backend, it) =
        live.tables.backends4.iter().find(|(_, it)| it.set == set && it.addr == to).unwrap();
    let flow = Flow { set, backend: *backend, destination_port: it.port, ..flow };
    let (destination, destination_port) = (at.addr, at.port);
    let key = FlowKey { destination, destination_port, protocol: at.protocol, ..key };
    live.flows.insert(key, flow);
    let dialled = Dialled { addr: at.addr, port: 80, protocol: at.protocol };
    let client = Client { addr: ip(OUTSIDE).into(), port: Some(40_000), here: false, bound: false };
    let outcome = |live: &Memory| explain(live, &client, &dialled).packet.outcome;
    assert_eq!(outcome(&live), Outcome::Pinned);
    live.listeners.insert(at);
    assert_eq!(outcome(&live), Outcome::Local);
}
