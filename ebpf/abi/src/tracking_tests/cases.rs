//! Single cases, each where the pair of the parent is led to by hand.

use super::*;

/// A client outside, whom the node masquerades.
fn dial(port: u16) -> Step {
    let (transport, flags) = (protocol::TCP, tcp::SYN);
    Step::Client { who: OUTSIDE, port, service: 0, transport, flags, turn: 0 }
}

/// What a client sends from `port` on the connection that [`dial`] opened.
fn say(port: u16, flags: u8) -> Step {
    Step::Client { who: OUTSIDE, port, service: 0, transport: protocol::TCP, flags, turn: 0 }
}

/// Whoever forges the source of a SYN never sees the answer: what it leaves behind must be gone
/// as soon as if nobody had answered.
#[test]
fn u03_an_answered_syn_alone_holds_its_port_no_longer_than_an_opening() {
    for v4 in [true, false] {
        let mut pair = Pair::new(v4, 1_000);
        for port in 1..=4 {
            pair.take(dial(port));
            pair.take(Step::Answer { of: port as usize - 1, flags: tcp::SYN | tcp::ACK });
        }
        pair.take(say(1, tcp::ACK));
        pair.take(say(2, tcp::SYN));
        pair.take(say(3, tcp::RST));
        pair.take(Step::Pause(61));
        for port in 5..=8 {
            pair.take(dial(port));
        }
        let left = pair.model.conversations.iter().map(|known| known.dialled.source_port[1]);
        assert_eq!(left.collect::<Vec<_>>(), [1, 5, 6, 7], "three ports were given again");
    }
}

/// Nobody said anything for a while, and somebody forges an RST, with either end's address.
#[test]
fn b140_an_idle_connection_survives_a_forged_reset() {
    for from_opener in [true, false] {
        for survivor_is_opener in [true, false] {
            let mut pair = Pair::new(true, 1_000);
            pair.take(dial(1));
            let answer = |flags| Step::Answer { of: 0, flags };
            let by = |opener: bool, flags| if opener { say(1, flags) } else { answer(flags) };
            pair.take(answer(tcp::SYN | tcp::ACK));
            pair.take(say(1, tcp::ACK));
            pair.take(Step::Pause(3_601));
            pair.take(by(from_opener, tcp::RST));
            pair.take(Step::Pause(299));
            pair.take(by(survivor_is_opener, tcp::ACK)); // a keepalive
            pair.take(Step::Pause(86_399));
            pair.take(say(1, tcp::ACK));
            assert_eq!(pair.model.conversations.len(), 1, "{from_opener} {survivor_is_opener}");
        }
    }
}

/// Nobody sweeps: four ports, and as many connections that came to nothing.
#[test]
fn d19_ports_of_flows_that_are_over_are_given_again() {
    for v4 in [true, false] {
        let mut pair = Pair::new(v4, 1_000);
        for port in 1..=5 {
            pair.take(dial(port));
        }
        assert_eq!(pair.model.conversations.len(), 4, "the fifth finds no port");
        pair.take(Step::Pause(61));
        pair.take(dial(6));
        assert!(pair.model.conversations.iter().any(|known| known.dialled.source_port == [0, 6]));
    }
}

/// As many SYNs as there are ports, and nobody behind them: whoever comes next waits for seconds.
#[test]
fn u03_ports_of_what_came_to_nothing_are_given_again_where_none_is_free() {
    for v4 in [true, false] {
        let mut pair = Pair::new(v4, 1_000);
        for port in 1..=4 {
            pair.take(dial(port));
        }
        for answered in [0, 1, 2] {
            pair.take(Step::Answer { of: answered, flags: tcp::SYN | tcp::ACK });
        }
        pair.take(say(1, tcp::ACK));
        pair.take(say(2, tcp::ACK));
        pair.take(say(2, tcp::RST));
        pair.take(Step::Pause(10));
        pair.take(dial(5));
        assert_eq!(pair.model.conversations.len(), 4, "they may yet go on");
        pair.take(Step::Pause(1));
        for port in 6..=9 {
            pair.take(dial(port));
        }
        let left = pair.model.conversations.iter().map(|known| known.dialled.source_port[1]);
        assert_eq!(left.collect::<Vec<_>>(), [1, 6, 7, 8], "{v4}: what is established stays");
    }
}

/// The backend's end is in TIME-WAIT, and takes a SYN by that port for one of the connection before.
#[test]
fn u03_the_port_of_a_closed_connection_is_not_given_to_another_while_one_is_free() {
    for v4 in [true, false] {
        let mut pair = Pair::new(v4, 1_000);
        for port in 1..=3 {
            pair.take(dial(port));
            for flags in [tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK] {
                pair.take(Step::Answer { of: port as usize - 1, flags });
                pair.take(say(port, flags & !tcp::SYN));
            }
        }
        let closed: Vec<_> = pair.model.conversations.iter().map(|known| known.seen).collect();
        pair.take(Step::Pause(119));
        pair.take(dial(4));
        assert!(closed.iter().all(|seen| pair.host.entry(&seen.reversed()).is_some()), "{v4}");
        assert_eq!(pair.model.conversations.len(), 4);
        pair.take(dial(5));
        assert_eq!(pair.model.conversations.len(), 4, "where none is free, one is given again");
        assert!(pair.model.conversations.iter().any(|known| known.dialled.source_port == [0, 5]));
    }
}

#[test]
fn u03_a_full_table_makes_room_of_what_is_over_and_of_nothing_else() {
    for v4 in [true, false] {
        let mut pair = Pair::new(v4, 6);
        for port in 1..=4 {
            pair.take(dial(port));
        }
        assert_eq!(pair.model.conversations.len(), 3, "the fourth finds no room");
        // Two that last, one that came to nothing.
        pair.take(Step::Answer { of: 0, flags: tcp::SYN | tcp::ACK });
        pair.take(Step::Answer { of: 1, flags: tcp::SYN | tcp::ACK });
        pair.take(say(1, tcp::ACK));
        pair.take(say(2, tcp::ACK));
        pair.take(Step::Pause(61));
        // A pod, whose own flows are no flows of the node's address.
        let (transport, flags) = (protocol::TCP, tcp::SYN);
        pair.take(Step::Client { who: 0, port: 9, service: 0, transport, flags, turn: 0 });
        let ports: Vec<_> =
            pair.model.conversations.iter().map(|known| known.dialled.source_port).collect();
        assert_eq!(ports, [[0, 1], [0, 2], [0, 9]]);
        pair.take(dial(10));
        assert_eq!(pair.model.conversations.len(), 3, "all of them live");
    }
}

/// Of a flood that fills the table, what came before it need not wait for a minute.
#[test]
fn u03_a_full_table_makes_room_of_what_came_to_nothing() {
    for v4 in [true, false] {
        let mut pair = Pair::new(v4, 6);
        for port in 1..=3 {
            pair.take(dial(port));
        }
        pair.take(Step::Answer { of: 0, flags: tcp::SYN | tcp::ACK });
        pair.take(say(1, tcp::ACK));
        pair.take(Step::Pause(11));
        for port in 4..=6 {
            pair.take(dial(port));
        }
        let left = pair.model.conversations.iter().map(|known| known.dialled.source_port[1]);
        assert_eq!(left.collect::<Vec<_>>(), [1, 4, 5], "{v4}");
    }
}

/// Looking for room costs, so a flood that fills the table must not have it looked for each time.
#[test]
fn u03_room_that_was_looked_for_in_vain_is_not_looked_for_again_at_once() {
    let mut pair = Pair::new(true, 2);
    pair.take(dial(1));
    pair.take(dial(2));
    assert_eq!(pair.opening.vain_s, pair.host.now_s.get());
    // Each search begins at a random port: one for the port itself is left.
    let expected = Host::new(0);
    expected.random.set(pair.host.random.get());
    (&expected).random();
    pair.take(dial(3));
    assert_eq!(pair.host.random.get(), expected.random.get());
    pair.take(Step::Pause(61));
    pair.take(dial(4));
    assert_eq!(pair.model.conversations.len(), 1);
    assert_eq!(pair.model.conversations[0].dialled.source_port, [0, 4]);
}

/// The agent notes it before another backend gets the id.
#[test]
fn v8_a_flow_whose_backend_was_deleted_is_reset_though_the_id_is_anothers() {
    for v4 in [true, false] {
        let mut pair = Pair::new(v4, 1_000);
        pair.take(dial(1));
        pair.take(Step::Answer { of: 0, flags: tcp::SYN | tcp::ACK });
        pair.take(say(1, tcp::ACK));
        let known = pair.model.conversations[0];
        let entry = (&pair.host).find(&known.dialled).unwrap();
        // SAFETY: nobody else holds a reference to it.
        unsafe { (*entry).state |= state::GONE };
        let sends = |pair: &mut Pair, flags| {
            pass(&pair.host, &mut pair.opening, &packet(known.dialled, flags), Some(1))
        };
        assert_eq!(sends(&mut pair, tcp::ACK), Fate::Reset);
        assert_eq!(sends(&mut pair, tcp::ACK), Fate::Reset, "should the first be lost");
        let Fate::Sent(seen) = sends(&mut pair, tcp::SYN) else { panic!("it begins anew") };
        assert_eq!(seen.destination, backend(1, v4));
        assert_eq!(sends(&mut pair, tcp::ACK), Fate::Sent(seen));
    }
}

/// What was found under a key may be another flow's when it is looked at.
#[test]
fn an_element_that_was_used_again_costs_no_other_flow() {
    let mut pair = Pair::new(true, 1_000);
    pair.take(dial(1));
    pair.take(dial(2));
    let [first, second] = [0, 1].map(|index| pair.model.conversations[index]);
    let other = (&pair.host).find(&second.dialled).unwrap().cast_const();
    forget(&pair.host, &first.dialled, other);
    let left = [first.dialled, second.dialled, second.seen.reversed()]
        .map(|key| pair.host.entry(&key).is_some());
    assert_eq!(left, [false, true, true]);
}

/// A flow that nothing is lost by follows its address, looked up once a second; what is established
/// stays (V7).
#[test]
fn b127_a_flow_follows_its_address_to_another_set_and_a_connection_stays() {
    let host = Host::new(0);
    let anew = |protocol, flow: &Flow, now_s| {
        let key = FlowKey { protocol, ..FlowKey::default() };
        begins_anew(&host, &key, tcp::ACK, flow, now_s)
    };
    let flow = Flow { set: SET, seen_s: 9, flags: flow_flags::ORIGINAL, ..Flow::default() };
    assert!(!anew(protocol::UDP, &flow, 10), "it leads where it led");
    host.set.set(SET + 1);
    assert!(!anew(protocol::UDP, &flow, 9), "it was looked up in this second");
    assert!(anew(protocol::UDP, &flow, 10));
    assert!(!anew(protocol::TCP, &flow, 10));
    let outward = Flow { flags: flow.flags | flow_flags::OUTWARD, ..flow };
    assert!(!anew(protocol::UDP, &outward, 10), "it dials no service");
}
