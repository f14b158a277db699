//! What a socket remembers of its translations, in socket storage: it dies with the socket and
//! can be evicted by nobody.
//!
//! A way back is looked up by the backend's address, which two services may share, or which the
//! application may have dialled itself: what was used last wins.

use crate::{addr::Addr, layout::record, limits::SOCKET_PEERS_MAX};

record! {
    /// One translation: what the application dialled, and where it went. Unused while
    /// `backend_port` is zero.
    pub struct SocketPeer: 52, 4 {
        /// The service address that the application named.
        pub service: Addr,
        /// The backend's address that the kernel saw.
        pub backend: Addr,
        /// The service's port, network byte order.
        pub service_port: [u8; 2],
        /// The backend's port, network byte order.
        pub backend_port: [u8; 2],
        /// The set that the backend was chosen from.
        pub set: u32,
        /// The generation of that set's word: while it is the same, so is the choice.
        pub generation: u32,
        /// The backend's id, to find out whether a later generation still has it.
        pub backend_id: u32,
        /// The socket's clock when this was last used. Of a TCP connection whose FIN was
        /// acknowledged: what it had received by then ([`crate::traffic::Ending`]).
        pub used: u32,
    }

    /// A UDP socket's translations. A TCP socket has its connection's [`SocketPeer`] alone: the
    /// kernel makes and clears the memory of each socket anew, and a small one costs a third less
    /// of what `connect()` to a service costs at all.
    pub struct SocketPeers: 268, 4 {
        /// Of its connection, if it has one that was translated.
        pub connected: SocketPeer,
        /// Of what an unconnected UDP socket sent: a ring. A service that had to choose again
        /// has two entries for a while, so that a late answer still finds its way back.
        pub sent: [SocketPeer; SOCKET_PEERS_MAX],
        /// Counts translations; wraps.
        pub clock: u32,
        /// Counts entries of the ring; wraps.
        pub entries: u32,
    }
}

const _: () = assert!(SOCKET_PEERS_MAX.is_power_of_two(), "a ring whose index is masked");

/// The port that an unused entry leads to; no socket has it.
const UNUSED: [u8; 2] = [0; 2];

impl SocketPeer {
    /// Whether this is a translation of what is dialled.
    #[inline(always)]
    fn is_of(&self, service: &Addr, port: [u8; 2]) -> bool {
        self.backend_port != UNUSED && self.service_port == port && self.service.is(service)
    }

    /// Whether it leads to this address.
    #[inline(always)]
    pub fn leads_to(&self, addr: &Addr, port: [u8; 2]) -> bool {
        port != UNUSED && self.backend_port == port && self.backend.is(addr)
    }

    /// Whether it was used after `other`; the clock wraps.
    #[inline(always)]
    fn is_newer_than(&self, other: &Self) -> bool {
        self.used.wrapping_sub(other.used).cast_signed() > 0
    }

    /// Takes the place of what was here. The port, by which readers tell a used entry, goes first
    /// and comes last, for readers on other CPUs: they meet either entry or none. (No fences: the
    /// back end for BPF has none.)
    #[inline(always)]
    pub fn replace_with(&mut self, new: &Self) {
        let port = &raw mut self.backend_port;
        // SAFETY: a field of a live record.
        unsafe { core::ptr::write_volatile(port, UNUSED) };
        self.service = new.service;
        self.backend = new.backend;
        self.service_port = new.service_port;
        self.set = new.set;
        self.generation = new.generation;
        self.backend_id = new.backend_id;
        self.used = new.used;
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(port, new.backend_port) };
    }

    /// Whether it is a translation.
    #[inline(always)]
    pub fn is_used(&self) -> bool {
        self.backend_port != UNUSED
    }

    /// Is no translation any more.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.backend_port = UNUSED;
    }
}

impl SocketPeers {
    /// The next moment of the socket's clock.
    #[inline(always)]
    pub fn tick(&mut self) -> u32 {
        self.clock = self.clock.wrapping_add(1);
        self.clock
    }

    /// Remembers the socket's connection.
    #[inline(always)]
    pub fn connect(&mut self, peer: &SocketPeer) {
        self.connected.replace_with(peer);
    }

    /// Remembers where a datagram went, in the place of the oldest entry.
    #[inline(always)]
    pub fn send(&mut self, peer: &SocketPeer) {
        let entry = self.entries as usize % SOCKET_PEERS_MAX;
        self.entries = self.entries.wrapping_add(1);
        self.sent[entry].replace_with(peer);
    }

    /// The newest choice that was made from a set for what is dialled.
    #[inline(always)]
    pub fn newest(&mut self, service: &Addr, port: [u8; 2], set: u32) -> Option<&mut SocketPeer> {
        let mut newest: Option<&mut SocketPeer> = None;
        for peer in &mut self.sent {
            if peer.set == set
                && peer.is_of(service, port)
                && newest.as_ref().is_none_or(|found| peer.is_newer_than(found))
            {
                newest = Some(peer);
            }
        }
        newest
    }

    /// The translation that an answer from this address belongs to.
    #[inline(always)]
    pub fn behind(&self, addr: &Addr, port: [u8; 2]) -> Option<&SocketPeer> {
        let mut found = self.connection_to(addr, port);
        for peer in &self.sent {
            if peer.leads_to(addr, port) && found.is_none_or(|found| peer.is_newer_than(found)) {
                found = Some(peer);
            }
        }
        found
    }

    /// The translation of the connection, if the connection is to this address.
    #[inline(always)]
    pub fn connection_to(&self, addr: &Addr, port: [u8; 2]) -> Option<&SocketPeer> {
        self.connected.leads_to(addr, port).then_some(&self.connected)
    }

    /// The application dialled this address itself: its answers are no service's. Of a connection
    /// they are while there is one, which has to be told from it.
    #[inline(always)]
    pub fn forget_sent_to(&mut self, addr: &Addr, port: [u8; 2], is_connected: bool) {
        if !is_connected && self.connected.leads_to(addr, port) {
            self.connected.forget();
        }
        for peer in &mut self.sent {
            if peer.leads_to(addr, port) {
                peer.forget();
            }
        }
    }
}

/// A socket's cookie spread over 32 bits: what a UDP socket sticks to its backend by. Cookies
/// count up; multiples of the golden ratio spread evenly over the high bits.
#[inline(always)]
pub const fn spread(cookie: u64) -> u32 {
    (cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: [u8; 2] = [0, 80];

    fn addr(last: u8) -> Addr {
        Addr::from_v4([10, 0, 0, last])
    }

    /// A choice of backend `b` for service `s`.
    fn peer(peers: &mut SocketPeers, s: u8, b: u8) -> SocketPeer {
        SocketPeer {
            service: addr(s),
            backend: addr(b),
            service_port: PORT,
            backend_port: PORT,
            set: s.into(),
            used: peers.tick(),
            ..SocketPeer::default()
        }
    }

    fn send(peers: &mut SocketPeers, s: u8, b: u8) {
        let peer = peer(peers, s, b);
        peers.send(&peer);
    }

    fn behind(peers: &SocketPeers, b: u8) -> Option<Addr> {
        peers.behind(&addr(b), PORT).map(|peer| peer.service)
    }

    #[test]
    fn nothing_is_behind_an_empty_memory() {
        let mut peers = SocketPeers::default();
        assert_eq!(peers.behind(&Addr::default(), UNUSED), None);
        assert_eq!(peers.connection_to(&Addr::default(), UNUSED), None);
        assert_eq!(peers.newest(&Addr::default(), UNUSED, 0), None);
    }

    #[test]
    fn d08_of_two_services_with_one_backend_the_one_used_last_answers() {
        let mut peers = SocketPeers::default();
        send(&mut peers, 1, 9);
        send(&mut peers, 2, 9);
        assert_eq!(behind(&peers, 9), Some(addr(2)));
        let now = peers.tick();
        peers.newest(&addr(1), PORT, 1).unwrap().used = now;
        assert_eq!(behind(&peers, 9), Some(addr(1)));
        let connection = peer(&mut peers, 3, 9);
        peers.connect(&connection);
        assert_eq!(behind(&peers, 9), Some(addr(3)));
        peers.connected.forget();
        assert_eq!(behind(&peers, 9), Some(addr(1)));
        peers.forget_sent_to(&addr(9), PORT, false);
        assert_eq!(behind(&peers, 9), None);
    }

    #[test]
    fn d08_what_was_connected_answers_for_its_backend_until_that_is_dialled() {
        let mut peers = SocketPeers::default();
        let connection = peer(&mut peers, 3, 9);
        peers.connect(&connection);
        peers.forget_sent_to(&addr(9), PORT, true);
        assert_eq!(behind(&peers, 9), Some(addr(3)), "it still is");
        peers.forget_sent_to(&addr(8), PORT, false);
        assert_eq!(behind(&peers, 9), Some(addr(3)), "another was dialled");
        peers.forget_sent_to(&addr(9), PORT, false);
        assert_eq!(behind(&peers, 9), None);
    }

    #[test]
    fn the_clock_may_wrap() {
        let mut peers = SocketPeers { clock: u32::MAX - 1, ..SocketPeers::default() };
        send(&mut peers, 1, 9);
        send(&mut peers, 2, 9);
        assert_eq!(peers.clock, 0);
        assert_eq!(behind(&peers, 9), Some(addr(2)));
    }

    #[test]
    fn a_service_that_chose_again_keeps_the_way_back_of_late_answers() {
        let mut peers = SocketPeers::default();
        send(&mut peers, 1, 8);
        send(&mut peers, 1, 9);
        assert_eq!(peers.newest(&addr(1), PORT, 1).unwrap().backend, addr(9));
        assert_eq!(behind(&peers, 8), Some(addr(1)));
        // Of another set, as when a service is made anew with the same address.
        assert_eq!(peers.newest(&addr(1), PORT, 2), None);
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let mut peers = SocketPeers::default();
        for s in 1..=5 {
            send(&mut peers, s, 10 + s);
        }
        assert_eq!(behind(&peers, 11), None);
        for s in 2..=5 {
            assert_eq!(behind(&peers, 10 + s), Some(addr(s)));
        }
    }

    #[test]
    fn d07_cookies_in_a_row_use_all_backends_alike() {
        for backends in [2_u32, 3, 7, 100] {
            let mut counts = [0_u32; 100];
            for cookie in 1..=backends * 1000 {
                let index = crate::service::slot_index(spread(cookie.into()), backends);
                counts[index as usize] += 1;
            }
            for count in &counts[..backends as usize] {
                assert!((950..=1050).contains(count), "{count} of 1000 among {backends}");
            }
        }
    }
}
