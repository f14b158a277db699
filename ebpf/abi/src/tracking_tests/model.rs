//! The model: conversations instead of entries, each with its two ends.

use super::*;

/// An end of a conversation.
#[derive(Clone, Copy, Debug)]
struct End {
    spoke: bool,
    finished: bool,
    reset: bool,
    last_s: u32,
}

impl End {
    fn speaks(&mut self, transport: u8, flags: u8, now_s: u32) {
        self.spoke = true;
        self.last_s = now_s;
        if transport == protocol::TCP {
            self.reset = flags & tcp::RST != 0;
            self.finished |= !self.reset && flags & tcp::FIN != 0;
        }
    }
}

/// A connection, or an exchange of datagrams, as its ends see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conversation {
    /// As the opener sends.
    pub(super) dialled: FlowKey,
    /// As the backend sees it.
    pub(super) seen: FlowKey,
    backend: usize,
    opener: End,
    answerer: End,
    opened_s: u32,
    /// The opener showed that the answer reached it.
    confirmed: bool,
}

impl Conversation {
    /// Seconds of silence after which it is forgotten, as `flow_state` promises them.
    fn patience_s(&self) -> u32 {
        let both = |of: fn(&End) -> bool| of(&self.opener) && of(&self.answerer);
        let either = |of: fn(&End) -> bool| of(&self.opener) || of(&self.answerer);
        if self.dialled.protocol == protocol::UDP {
            return if self.confirmed { 120 } else { 30 };
        }
        let given_up = either(|end| end.reset);
        if given_up && (!self.confirmed || both(|end| end.finished || end.reset)) {
            10
        } else if both(|end| end.finished) {
            120
        } else if !self.confirmed {
            60
        } else if given_up {
            300
        } else if either(|end| end.finished) {
            3_600
        } else {
            86_400
        }
    }

    fn answerer_speaks(&mut self, flags: u8, now_s: u32) {
        self.answerer.speaks(self.dialled.protocol, flags, now_s);
        self.opener.reset &= flags & tcp::RST != 0;
    }

    fn opener_speaks(&mut self, flags: u8, now_s: u32) {
        let transport = self.dialled.protocol;
        self.answerer.reset &= flags & tcp::RST != 0;
        self.opener.speaks(transport, flags, now_s);
        // In a few of 256 seconds, flows look as if they were new.
        let goes_on = match transport {
            protocol::TCP => flags & (tcp::SYN | tcp::RST) == 0,
            _ => (now_s - self.opened_s) % 256 >= 3,
        };
        self.confirmed |= self.answerer.spoke && goes_on;
    }

    fn is_silent(&self, now_s: u32) -> bool {
        now_s - self.opener.last_s.max(self.answerer.last_s) > self.patience_s()
    }

    /// Whether another that finds no room may have its place: neither end misses it, as far as
    /// anyone can tell.
    fn is_expendable(&self, now_s: u32) -> bool {
        let given_up = self.opener.reset || self.answerer.reset;
        let over = given_up || (self.opener.finished && self.answerer.finished);
        let lives = self.confirmed && !over;
        let silence = now_s - self.opener.last_s.max(self.answerer.last_s);
        self.is_silent(now_s) || !lives && silence > 10
    }

    /// Whether the opener's next packet begins something new.
    fn is_over(&self, flags: u8, backend: Backend, now_s: u32) -> bool {
        let datagram = self.dialled.protocol == protocol::UDP;
        let begins = datagram || flags == tcp::SYN;
        let closed = self.opener.reset
            || self.answerer.reset
            || (self.opener.finished && self.answerer.finished);
        self.is_silent(now_s)
            || (begins && !datagram && closed)
            || (begins && !datagram && backend == Backend::Deleted)
            || (begins && (datagram || !self.answerer.spoke) && backend != Backend::Serving)
    }
}

/// The model.
#[derive(Default)]
pub(super) struct Model {
    pub(super) conversations: Vec<Conversation>,
    /// Whether there was no room for another when the packet came.
    pub(super) was_full: bool,
}

impl Model {
    fn of(&self, key: &FlowKey, side: fn(&Conversation) -> FlowKey) -> Option<usize> {
        self.conversations.iter().position(|conversation| side(conversation) == *key)
    }

    /// Judges what became of a packet from a client.
    pub(super) fn opener_sent(
        &mut self,
        host: &Host,
        packet: &Packet,
        chosen: Option<usize>,
        fate: Fate,
    ) {
        let now_s = host.now_s.get();
        let flags = packet.tcp_flags;
        if let Some(at) = self.of(&packet.key, |conversation| conversation.dialled) {
            let known = &mut self.conversations[at];
            let state = host.backends.borrow()[known.backend];
            if !known.is_over(flags, state, now_s) {
                known.opener_speaks(flags, now_s);
                let tcp = packet.key.protocol == protocol::TCP;
                if tcp && state == Backend::Deleted && flags & tcp::RST == 0 {
                    known.answerer.reset = true;
                    assert_eq!(fate, Fate::Reset);
                } else {
                    assert_eq!(fate, Fate::Sent(known.seen), "it stays where it was");
                }
                return;
            }
            self.conversations.remove(at);
        }
        if packet.key.protocol == protocol::TCP && flags != tcp::SYN {
            assert_eq!(fate, Fate::Untouched);
            return;
        }
        match (fate, chosen) {
            (Fate::Refused, None) => {}
            (Fate::Sent(seen), Some(chosen)) => self.began(host, packet, chosen, seen),
            (Fate::NoPort, Some(chosen)) => {
                self.had_no_port(host, packet, chosen, Conversation::is_expendable);
            }
            (Fate::NoRoom, Some(_)) => assert!(host.flows.borrow().len() + 2 > host.room),
            other => panic!("{other:?}"),
        }
    }

    fn began(&mut self, host: &Host, packet: &Packet, chosen: usize, seen: FlowKey) {
        let (now_s, v4, key) = (host.now_s.get(), packet.is_v4(), &packet.key);
        assert_eq!(seen.destination, backend(chosen, v4));
        let masquerade = key.source == address(OUTSIDE, v4);
        assert_eq!(seen.source, if masquerade { address(NODE, v4) } else { key.source });
        let port = u16::from_be_bytes(seen.source_port);
        assert!(seen.source != address(NODE, v4) || !host.held.borrow().contains(&port), "U4");
        let kept = !masquerade && seen.source_port == key.source_port;
        assert!(kept || PORTS.contains(&port), "{port}");
        if !masquerade && !kept {
            let own = FlowKey { source_port: key.source_port, ..seen };
            let collides = self.of(&own, |other| other.seen).is_some();
            let own_port = u16::from_be_bytes(key.source_port);
            assert!(collides || host.held.borrow().contains(&own_port), "it could keep its port");
        }
        if let Some(at) = self.of(&seen, |other| other.seen) {
            let other = self.conversations[at];
            if !other.is_silent(now_s) {
                assert!(other.is_expendable(now_s), "{other:?} lives, and its port is another's");
                self.had_no_port(host, packet, chosen, Conversation::is_silent);
            }
            self.conversations.remove(at);
        }
        let end = End { spoke: false, finished: false, reset: false, last_s: now_s };
        let mut conversation = Conversation {
            dialled: *key,
            seen,
            backend: chosen,
            opener: end,
            answerer: end,
            opened_s: now_s,
            confirmed: false,
        };
        conversation.opener_speaks(packet.tcp_flags, now_s);
        self.conversations.push(conversation);
    }

    /// Every port must be somebody's who is not to give it back.
    fn had_no_port(
        &self,
        host: &Host,
        packet: &Packet,
        chosen: usize,
        gives_back: fn(&Conversation, u32) -> bool,
    ) {
        let (now_s, v4) = (host.now_s.get(), packet.is_v4());
        let masquerade = packet.key.source == address(OUTSIDE, v4);
        let source = if masquerade { address(NODE, v4) } else { packet.key.source };
        for port in PORTS {
            let taken = self.conversations.iter().any(|other| {
                other.seen.source == source
                    && other.seen.destination == backend(chosen, v4)
                    && other.seen.protocol == packet.key.protocol
                    && other.seen.source_port == port.to_be_bytes()
                    && !gives_back(other, now_s)
            });
            let held = source == address(NODE, v4) && host.held.borrow().contains(&port);
            assert!(taken || held, "{port} is free");
        }
    }

    /// Judges what became of a packet from a backend.
    pub(super) fn answerer_sent(&mut self, host: &Host, packet: &Packet, fate: Fate) {
        let now_s = host.now_s.get();
        match self.of(&packet.key, |conversation| conversation.seen.reversed()) {
            Some(at) if !self.conversations[at].is_silent(now_s) => {
                let known = &mut self.conversations[at];
                known.answerer_speaks(packet.tcp_flags, now_s);
                assert_eq!(fate, Fate::Sent(known.dialled.reversed()));
            }
            Some(at) => {
                self.conversations.remove(at);
                assert_eq!(fate, Fate::Untouched);
            }
            None => assert_eq!(fate, Fate::Untouched),
        }
    }

    /// What is true between packets.
    pub(super) fn check(&mut self, host: &Host) {
        let now_s = host.now_s.get();
        // What is over may be gone, but never by half.
        self.conversations.retain(|known| {
            let entries = [known.dialled, known.seen.reversed()].map(|key| host.entry(&key));
            if let [None, None] = entries {
                let needed = self.was_full && known.is_expendable(now_s);
                assert!(known.is_silent(now_s) || needed, "{known:?} is gone and lives");
                return false;
            }
            let [Some(there), Some(back)] = entries else { panic!("{known:?}: {entries:?}") };
            assert_eq!(known.dialled.rewritten(&there), known.seen);
            assert_eq!(known.seen.reversed().rewritten(&back), known.dialled.reversed());
            assert_eq!((there.state, there.peer_state), (back.peer_state, back.state));
            true
        });
        assert_eq!(host.flows.borrow().len(), 2 * self.conversations.len(), "two each");
    }
}
