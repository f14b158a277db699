//! Connection tracking against a model: conversations instead of entries, each with its two ends,
//! by the letter of what is promised. Any sequence of packets, pauses and changes of the service
//! has to come out alike.

extern crate std;

use core::cell::{Cell, RefCell, UnsafeCell};
use std::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use proptest::prelude::*;

use super::*;
use crate::{addr::Addr, packet::tcp_flags as tcp};

#[path = "tracking_tests/cases.rs"]
mod cases;
#[path = "tracking_tests/model.rs"]
mod model;

use self::model::Model;

/// Clients, and how they are masqueraded: a pod, one outside, the node itself where its address is
/// kept.
const CLIENTS: u8 = 3;
const OUTSIDE: u8 = 1;
const NODE: u8 = 2;
/// Backends of the one set.
const BACKENDS: usize = 3;
/// The id of that set.
const SET: u32 = 1;
/// The ports of source NAT.
const PORTS: core::ops::RangeInclusive<u16> = 20_000..=20_003;

/// A backend, as the service tables have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Serving,
    /// It left the service, but lives.
    Withdrawn,
    Deleted,
}

/// Everything around the code under test.
struct Host {
    flows: RefCell<BTreeMap<FlowKey, Box<UnsafeCell<Flow>>>>,
    room: usize,
    now_s: Cell<u32>,
    random: Cell<u32>,
    backends: RefCell<[Backend; BACKENDS]>,
    /// The set that all addresses lead to.
    set: Cell<u32>,
    /// Ports that sockets of the node have.
    held: RefCell<BTreeSet<u16>>,
}

impl Host {
    fn new(room: usize) -> Self {
        Self {
            flows: RefCell::default(),
            room,
            now_s: Cell::new(1_000_000),
            random: Cell::new(7),
            backends: RefCell::new([Backend::Serving; BACKENDS]),
            set: Cell::new(SET),
            held: RefCell::default(),
        }
    }

    fn backend_of(&self, flow: &Flow) -> Backend {
        self.backends.borrow()[usize::try_from(flow.backend).unwrap()]
    }

    fn entry(&self, key: &FlowKey) -> Option<Flow> {
        // SAFETY: nobody else holds a reference to it.
        self.flows.borrow().get(key).map(|flow| unsafe { *flow.get() })
    }
}

impl FlowBackends for &Host {
    fn has_backend(self, flow: &Flow) -> bool {
        self.backend_of(flow) == Backend::Serving
    }

    fn leads(self, _: &FlowKey, flow: &Flow) -> bool {
        flow.set == self.set.get()
    }

    fn is_deleted(self, flow: &Flow) -> bool {
        self.backend_of(flow) == Backend::Deleted
    }
}

impl FlowTable for &Host {
    fn find(self, key: &FlowKey) -> Option<*mut Flow> {
        self.flows.borrow().get(key).map(|flow| flow.get())
    }

    fn insert(self, key: &FlowKey, flow: &Flow) -> Result<(), Refusal> {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Err(Refusal::Exists);
        }
        if flows.len() == self.room {
            return Err(Refusal::Full);
        }
        flows.insert(*key, Box::new(UnsafeCell::new(*flow)));
        Ok(())
    }

    fn remove(self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }

    fn is_a_sockets(self, packet: &FlowKey) -> bool {
        let port = u16::from_be_bytes(packet.destination_port);
        packet.destination.v4()[3] == address(NODE, true).v4()[3]
            && self.held.borrow().contains(&port)
    }

    fn now_s(self) -> u32 {
        self.now_s.get()
    }

    fn random(self) -> u32 {
        let next = self.random.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.random.set(next);
        next >> 8
    }
}

/// The address that ends in a number.
fn address(number: u8, v4: bool) -> Addr {
    if v4 {
        return Addr::from_v4([10, 0, 0, number]);
    }
    let mut octets = [0; 16];
    (octets[0], octets[15]) = (0xfd, number);
    Addr::from_v6(octets)
}

fn service(number: u8, v4: bool) -> Addr {
    address(100 + number, v4)
}

fn backend(index: usize, v4: bool) -> Addr {
    address(200 + u8::try_from(index).unwrap(), v4)
}

fn config(v4: bool) -> NodeConfig {
    let node = address(NODE, v4);
    let (ipv4, ipv6) = if v4 { (node, Addr::default()) } else { (Addr::default(), node) };
    let (snat_port_min, snat_port_max) = (*PORTS.start(), *PORTS.end());
    NodeConfig { ipv4, ipv6, snat_port_min, snat_port_max, ..NodeConfig::default() }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It left as a packet of this flow.
    Sent(FlowKey),
    /// It was answered with a reset.
    Reset,
    /// It is of no flow and opens none.
    Untouched,
    /// It would open a flow, but nobody serves.
    Refused,
    /// It would open a flow, but there is no port.
    NoPort,
    /// It would open a flow, but there is no room.
    NoRoom,
}

/// The stages of a packet, as the programs go through them. `chosen` is the backend of a new flow.
fn pass(host: &Host, opening: &mut Opening, packet: &Packet, chosen: Option<usize>) -> Fate {
    let v4 = packet.is_v4();
    let found = if let Some(found) = track(host, packet) {
        found
    } else {
        if !flow_state::opens(packet.key.protocol, packet.tcp_flags)
            || ![0, 1].map(|number| service(number, v4)).contains(&packet.key.destination)
        {
            return Fate::Untouched;
        }
        let Some(chosen) = chosen else { return Fate::Refused };
        fill(opening, packet, chosen, host.now_s.get());
        match open(host, opening, &config(v4)) {
            Opened::DONE => {}
            Opened::FULL => return Fate::NoRoom,
            Opened::TAKEN => return Fate::NoPort,
            other => panic!("{other:?}: there is one processor"),
        }
        host.find(&packet.key).unwrap().cast_const()
    };
    // SAFETY: an element of the table.
    let flow = unsafe { *found };
    if is_gone(host, packet, &flow) {
        reset(host, &packet.key, &flow);
        return Fate::Reset;
    }
    Fate::Sent(packet.key.rewritten(&flow))
}

fn fill(opening: &mut Opening, packet: &Packet, chosen: usize, now_s: u32) {
    let v4 = packet.is_v4();
    let masquerade = packet.key.source == address(OUTSIDE, v4);
    let from_node = packet.key.source == address(NODE, v4);
    opening.key = packet.key;
    opening.to = Translation {
        source: if masquerade { address(NODE, v4) } else { packet.key.source },
        destination: backend(chosen, v4),
        source_port: packet.key.source_port,
        destination_port: 8080_u16.to_be_bytes(),
    };
    opening.facts.origin = if from_node { Origin::Node } else { Origin::Pod };
    opening.backend = u32::try_from(chosen).unwrap();
    opening.masquerade = masquerade;
    opening.now_s = now_s;
}

fn nothing_opened() -> Opening {
    Opening {
        key: FlowKey::default(),
        to: Translation::default(),
        facts: Facts { origin: Origin::Pod, frontend: 0, config: 0, v4: true },
        slots: Slots { set: SET, generation: 1, first: 1, count: 1, affinity_s: 0 },
        backend: 0,
        device: 0,
        masquerade: false,
        now_s: 0,
        flags: 0,
        vain_s: 0,
        entries: Entries::default(),
    }
}

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A client sends to a service; a new flow goes to the backend of this turn that serves.
    Client { who: u8, port: u16, service: u8, transport: u8, flags: u8, turn: usize },
    /// The backend of one of the conversations sends.
    Answer { of: usize, flags: u8 },
    /// A backend sends what is of no flow.
    Stray { from: usize, port: u16, flags: u8 },
    /// Time passes.
    Pause(u32),
    /// A backend comes, leaves, or is deleted.
    Backend(usize, Backend),
    /// A socket of the node takes a port, or gives it back.
    Socket(u16, bool),
}

fn any_flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        4 => Just(tcp::SYN),
        2 => Just(tcp::SYN | tcp::ACK),
        4 => Just(tcp::ACK),
        3 => Just(tcp::FIN | tcp::ACK),
        2 => Just(tcp::RST),
        1 => Just(tcp::RST | tcp::ACK),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let transport = prop_oneof![Just(protocol::TCP), Just(protocol::UDP)];
    // One port of clients is of the node's range too.
    let port = prop_oneof![Just(40_000), Just(40_001), Just(20_001)];
    let sockets = prop_oneof![PORTS, Just(40_000)];
    let state =
        prop_oneof![Just(Backend::Serving), Just(Backend::Withdrawn), Just(Backend::Deleted)];
    let pause = prop_oneof![6 => 0_u32..5, 3 => Just(11), 2 => Just(31), 2 => Just(61), 1 => Just(121),
                    1 => Just(301), 1 => Just(3_601), 1 => Just(86_401)];
    prop_oneof![
        8 => (0..CLIENTS, port.clone(), 0_u8..2, transport, any_flags(), 0..BACKENDS).prop_map(
            |(who, port, service, transport, flags, turn)| Step::Client {
                who, port, service, transport, flags, turn
            }),
        8 => (any::<usize>(), any_flags()).prop_map(|(of, flags)| Step::Answer { of, flags }),
        1 => (0..BACKENDS, port, any_flags()).prop_map(
            |(from, port, flags)| Step::Stray { from, port, flags }),
        3 => pause.prop_map(Step::Pause),
        2 => (0..BACKENDS, state).prop_map(|(index, state)| Step::Backend(index, state)),
        1 => (sockets, any::<bool>()).prop_map(|(port, taken)| Step::Socket(port, taken)),
    ]
}

fn packet(key: FlowKey, flags: u8) -> Packet {
    let tcp_flags = if key.protocol == protocol::TCP { flags } else { 0 };
    Packet { key, tcp_flags, ..Packet::default() }
}

/// The code under test beside the model.
struct Pair {
    host: Host,
    model: Model,
    opening: Opening,
    v4: bool,
}

impl Pair {
    fn new(v4: bool, room: usize) -> Self {
        Self { host: Host::new(room), model: Model::default(), opening: nothing_opened(), v4 }
    }

    fn take(&mut self, step: Step) {
        let v4 = self.v4;
        self.model.was_full = self.host.flows.borrow().len() + 2 > self.host.room;
        match step {
            Step::Client { who, port, service: number, transport, flags, turn } => {
                let ends = (address(who, v4), service(number, v4));
                let packet = packet(key(ends, port, 80, transport), flags);
                let chosen = {
                    let backends = self.host.backends.borrow();
                    let serves = |index: &usize| backends[*index] == Backend::Serving;
                    (0..BACKENDS).map(|step| (turn + step) % BACKENDS).find(serves)
                };
                let fate = pass(&self.host, &mut self.opening, &packet, chosen);
                self.model.opener_sent(&self.host, &packet, chosen, fate);
            }
            Step::Answer { of, flags } => {
                let known = &self.model.conversations;
                let Some(of) = of.checked_rem(known.len()).map(|at| known[at]) else { return };
                self.answer(&packet(of.seen.reversed(), flags));
            }
            Step::Stray { from, port, flags } => {
                let ends = (backend(from, v4), address(NODE, v4));
                self.answer(&packet(key(ends, 8080, port, protocol::TCP), flags));
            }
            Step::Pause(seconds) => self.host.now_s.set(self.host.now_s.get() + seconds),
            Step::Backend(index, state) => self.host.backends.borrow_mut()[index] = state,
            Step::Socket(port, true) => _ = self.host.held.borrow_mut().insert(port),
            Step::Socket(port, false) => _ = self.host.held.borrow_mut().remove(&port),
        }
        self.model.check(&self.host);
    }

    fn answer(&mut self, packet: &Packet) {
        let fate = pass(&self.host, &mut self.opening, packet, None);
        self.model.answerer_sent(&self.host, packet, fate);
    }
}

fn key((source, destination): (Addr, Addr), from: u16, to: u16, transport: u8) -> FlowKey {
    FlowKey {
        source,
        destination,
        source_port: from.to_be_bytes(),
        destination_port: to.to_be_bytes(),
        protocol: transport,
        pad: [0; 3],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn u03_any_packets_pauses_and_changes_come_out_as_in_the_model(
        v4 in any::<bool>(),
        room in prop_oneof![Just(1_000_usize), Just(9)],
        steps in proptest::collection::vec(any_step(), 1..150),
    ) {
        let mut pair = Pair::new(v4, room);
        for step in steps {
            pair.take(step);
        }
    }
}
