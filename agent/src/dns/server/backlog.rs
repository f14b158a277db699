//! Datagrams that came faster than they can be answered. The newest is answered first: who asked
//! long ago asks again by now, or has given up, and its answer would keep others waiting for
//! nothing. Who is too many, or has waited too long, is let go without a word, which costs least.
//! Knows no clock.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Datagrams that wait at most.
pub(super) const MOST: usize = 1024;
/// Their octets at most: four times what so many questions have.
const OCTETS: usize = 256 << 10;
/// How long one may wait. With the time that upstreams have this stays within the five seconds
/// after which clients give up.
pub(super) const PATIENCE: Duration = Duration::from_millis(400);

/// A datagram that was taken from the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) octets: Vec<u8>,
    pub(super) source: SocketAddr,
    /// When it was taken.
    pub(super) since: Instant,
}

/// How many were let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LetGo {
    /// For newer ones.
    pub(super) full: u64,
    /// Because they had waited too long.
    pub(super) late: u64,
}

/// What waits, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: VecDeque<Datagram>,
    octets: usize,
    let_go: LetGo,
}

impl Backlog {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Has the newest one wait; the oldest make room for it.
    pub(super) fn push(&mut self, datagram: Datagram) {
        self.octets += datagram.octets.len();
        self.waiting.push_back(datagram);
        while self.waiting.len() > MOST || self.octets > OCTETS {
            let Some(oldest) = self.waiting.pop_front() else { break };
            self.octets -= oldest.octets.len();
            self.let_go.full += 1;
        }
    }

    /// Takes the newest one out. Where that has waited too long, all have.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Datagram> {
        let newest = self.waiting.pop_back()?;
        if now.saturating_duration_since(newest.since) > PATIENCE {
            self.let_go.late += self.waiting.len() as u64 + 1;
            self.waiting.clear();
            self.octets = 0;
            return None;
        }
        self.octets -= newest.octets.len();
        Some(newest)
    }

    /// How many were let go since the last call.
    pub(super) fn take_let_go(&mut self) -> LetGo {
        std::mem::take(&mut self.let_go)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: usize, since: Instant) -> Datagram {
        Datagram {
            octets: number.to_be_bytes().to_vec(),
            source: "[::1]:53".parse().unwrap(),
            since,
        }
    }

    #[test]
    fn the_newest_is_first_and_the_oldest_makes_room() {
        let (mut backlog, now) = (Backlog::default(), Instant::now());
        for number in 0..MOST + 3 {
            backlog.push(datagram(number, now));
        }
        assert_eq!(backlog.take_let_go(), LetGo { full: 3, late: 0 });
        assert_eq!(backlog.take_let_go(), LetGo::default(), "said once");
        for number in (3..MOST + 3).rev() {
            assert_eq!(backlog.pop(now), Some(datagram(number, now)));
        }
        assert_eq!((backlog.pop(now), backlog.octets), (None, 0));
    }

    #[test]
    fn octets_are_bounded_too() {
        let (mut backlog, now) = (Backlog::default(), Instant::now());
        let long = || Datagram { octets: vec![0; 4096], ..datagram(0, now) };
        (0..MOST).for_each(|_| backlog.push(long()));
        assert_eq!((backlog.waiting.len(), backlog.octets), (OCTETS / 4096, OCTETS));
        backlog.push(datagram(7, now));
        assert_eq!(backlog.waiting.len(), OCTETS / 4096, "one makes room for eight octets");
        assert_eq!(backlog.pop(now), Some(datagram(7, now)));
    }

    #[test]
    fn who_waited_too_long_is_let_go_with_all_that_are_older() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        backlog.push(datagram(1, start));
        backlog.push(datagram(2, start + Duration::from_millis(1)));
        backlog.push(datagram(3, start + PATIENCE));
        let now = start + PATIENCE + Duration::from_millis(2);
        assert_eq!(backlog.pop(now), Some(datagram(3, start + PATIENCE)));
        assert_eq!((backlog.pop(now), backlog.is_empty(), backlog.octets), (None, true, 0));
        assert_eq!(backlog.take_let_go(), LetGo { full: 0, late: 2 });
        backlog.push(datagram(4, start));
        let at_the_limit = start + PATIENCE;
        assert!(backlog.pop(at_the_limit).is_some());
    }
}
