//! What the packet path does is told to those who follow: flows that it opens, and every packet that
//! it refuses or drops, with the reason.

use std::net::{IpAddr, SocketAddr};

use mizzen_agent::datapath::FlowRing;
use mizzen_ebpf_abi::{
    addr::Addr,
    conntrack::FlowKey,
    counters::Counter,
    event::{FlowEvent, path},
    frame::{Frame, key},
    service::{frontend_flags, range_flags},
};
use mizzen_tests::{
    echo::{Client, TRANSPORTS, Transport, ask},
    lab::{CLIENT, FAMILIES, Family, Lab, LabNode},
    tables::Windows,
};

use super::{
    EXTERNAL, LOCAL, NODE_PORT, PORT,
    programs::{REDIRECT, SHOT, dialled, run},
};

fn follow(lab: &Lab) -> FlowRing {
    lab.nodes[0].datapath.flow_events().follow().unwrap()
}

fn heard(ring: &mut FlowRing) -> Vec<FlowEvent> {
    std::iter::from_fn(|| ring.next()).collect()
}

fn at(addr: Addr, port: [u8; 2]) -> SocketAddr {
    (IpAddr::from(addr), u16::from_be_bytes(port)).into()
}

#[test]
fn followers_are_told_of_each_flow_once_and_as_whom_the_backend_sees_it() {
    let mut lab = Lab::new([1, 1]);
    let mut ring = follow(&lab);
    for family in FAMILIES {
        let backend = lab.nodes[1].pods[0].server(family);
        for transport in TRANSPORTS {
            super::node_port(&mut lab.nodes[0], family, transport, &[backend], EXTERNAL);
            let to = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
            let client = Client::dial(&lab.client, transport, to, 0).unwrap();
            let answers = [client.ask().unwrap(), client.ask().unwrap()];
            let all = heard(&mut ring);
            let [event] = all[..] else { panic!("{family:?} {transport:?}: {all:?}") };
            assert_eq!(event.what, Counter::FlowCreated as u32);
            assert_eq!((event.protocol, event.path), (transport.number(), path::PACKET));
            assert_eq!(
                at(event.client, event.client_port),
                SocketAddr::new(family.wire(CLIENT), client.port())
            );
            assert_eq!(at(event.dialled, event.dialled_port), to);
            assert_eq!(at(event.backend, event.backend_port), backend);
            assert_eq!(at(event.seen_as, event.seen_as_port), answers[0].client);
        }
    }
    assert_eq!(ring.newly_lost().unwrap(), 0);
}

/// Runs a program on a packet; what was told of it, which is one thing, and what was counted.
fn told(
    node: &LabNode,
    ring: &mut FlowRing,
    (program, flow, verdict): (&str, FlowKey, i32),
) -> FlowEvent {
    let ran = run(node, program, &Frame::new(flow).bytes());
    assert_eq!(ran.verdict, verdict, "{flow:?}");
    let all = heard(ring);
    let [event] = all[..] else { panic!("one event of {flow:?}: {all:?}") };
    assert_eq!((event.client, event.client_port), (flow.source, flow.source_port));
    assert_eq!((event.dialled, event.dialled_port), (flow.destination, flow.destination_port));
    assert_eq!((event.protocol, event.path), (flow.protocol, path::PACKET));
    assert_eq!(event.backend, Addr::default());
    event
}

/// A node port whose window for clients outside is empty, by the policy Local or for want of
/// endpoints.
fn without_endpoint(node: &mut LabNode, family: Family, transport: Transport, flags: u32) -> u32 {
    let set = node.tables.set();
    let windows = Windows { external: (0, 0), flags, ..Windows::all(0) };
    let range = node.tables.range(set, &[], windows);
    node.tables.flip(set, range);
    let any = SocketAddr::new(family.any(), NODE_PORT);
    node.tables.frontend(any, transport.number(), set, LOCAL);
    set
}

#[test]
fn followers_are_told_why_a_packet_goes_no_further() {
    let mut lab = Lab::new([1, 1]);
    let mut ring = follow(&lab);
    for family in FAMILIES {
        for transport in TRANSPORTS {
            let flow = dialled(&lab, family, transport, 40_020);
            let program = "tc_uplink_ingress";
            let node = &mut lab.nodes[0];
            let set = without_endpoint(node, family, transport, range_flags::EXTERNAL_DROP);
            let event = told(node, &mut ring, (program, flow, SHOT));
            assert_eq!((event.what, event.set), (Counter::DropNoLocalEndpoint as u32, set));

            let set = without_endpoint(node, family, transport, 0);
            let event = told(node, &mut ring, (program, flow, REDIRECT));
            assert_eq!((event.what, event.set), (Counter::Rejected as u32, set));

            // Nobody is admitted.
            let backend = lab.nodes[1].pods[0].server(family);
            let node = &mut lab.nodes[0];
            let set = node.tables.set_of(&[backend]);
            let guarded = SocketAddr::new(family.load_balancer(9), PORT);
            let flags = EXTERNAL | frontend_flags::SOURCE_RANGES;
            node.tables.frontend(guarded, transport.number(), set, flags);
            let to = (guarded.ip(), guarded.port());
            let flow = key(transport.number(), (family.wire(CLIENT), 40_021), to);
            let event = told(node, &mut ring, (program, flow, SHOT));
            assert_eq!((event.what, event.set), (Counter::DropSourceRange as u32, set));
        }
    }
    assert_eq!(ring.newly_lost().unwrap(), 0);
}

/// What does not fit into the buffer is counted, to the last one, and what comes later is told.
#[test]
fn followers_who_are_too_slow_are_told_how_much_they_missed() {
    const EVENTS: u32 = 30_000;
    let mut lab = Lab::new([0, 1]);
    for family in FAMILIES {
        let node = &mut lab.nodes[0];
        without_endpoint(node, family, Transport::Udp, range_flags::EXTERNAL_DROP);
        let mut ring = follow(&lab);
        let frame = Frame::new(dialled(&lab, family, Transport::Udp, 40_022)).bytes();
        let node = &lab.nodes[0];
        let program = node.datapath.programs().get("tc_uplink_ingress").unwrap();
        node.node.netns.run(|| program.test_run(&frame, EVENTS)).unwrap();
        let told = u64::try_from(heard(&mut ring).len()).unwrap();
        let lost = ring.newly_lost().unwrap();
        assert_eq!(told + lost, u64::from(EVENTS), "{family:?}");
        assert!(told > 5_000 && lost > 5_000, "{told} told, {lost} lost");
        run(node, "tc_uplink_ingress", &frame);
        assert_eq!((heard(&mut ring).len(), ring.newly_lost().unwrap()), (1, 0));
    }
}

/// A pod's flow out of the cluster is told with the node's address, and has no service.
#[test]
fn followers_are_told_of_flows_out_of_the_cluster() {
    let mut lab = Lab::new([1, 0]);
    lab.nodes[0].configure(mizzen_ebpf_abi::node::node_config_flags::MASQUERADE_PODS);
    lab.nodes[0].attach_pods();
    let mut ring = follow(&lab);
    for family in FAMILIES {
        let outside = SocketAddr::new(family.wire(CLIENT), 9_191);
        let _server = mizzen_tests::echo::Echo::start(&lab.client, outside, "outside");
        let answer = ask(&lab.nodes[0].pods[0].netns, Transport::Tcp, outside).unwrap();
        let all = heard(&mut ring);
        let [event] = all[..] else { panic!("{family:?}: {all:?}") };
        assert_eq!(event.what, Counter::FlowCreated as u32);
        assert_eq!(IpAddr::from(event.client), lab.nodes[0].pods[0].address(family));
        assert_eq!(at(event.seen_as, event.seen_as_port), answer.client);
        assert_eq!(at(event.backend, event.backend_port), outside);
        assert_eq!(event.set, mizzen_ebpf_abi::service::NO_SET);
    }
}
