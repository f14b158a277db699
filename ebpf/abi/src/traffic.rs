//! What backends are sent: connections where they are dialled, octets and segments from the
//! kernel's own counters when a TCP connection ends, packets where packets are translated.
//!
//! ```text
//! BACKEND_COUNTS[chunk of ids][id in it]          shared by all CPUs: a few additions a connection
//! PACKET_COUNTS [chunk of ids][id in it x lane]   a lane for each CPU, up to a bound
//! SERVICE_COUNTS{set}                             what backends had counted whose ids went on
//! ```
//! Programs write the first two, so these can't be copied into larger ones unnoticed: they grow by
//! whole chunks, which stay where they are.
//!
//! A record says whose it is. An id that is free keeps its record, since its connections may go on;
//! when the id is given to another backend, what was counted goes to the service's own record, and
//! what still names the former backend counts nowhere any more.

use crate::{addr::Addr, layout::record, limits::BACKENDS_MAX};

/// Ids of one chunk.
pub const CHUNK_IDS: u32 = 1 << 10;
/// Chunks of both families together.
pub const CHUNKS: u32 = 2 * BACKENDS_MAX / CHUNK_IDS;
/// Most lanes: CPUs beyond share them.
pub const LANES_MAX: u32 = 8;

const _: () = assert!(BACKENDS_MAX.is_multiple_of(CHUNK_IDS) && CHUNK_IDS.is_power_of_two());
const _: () = assert!(LANES_MAX.is_power_of_two(), "the number of a CPU is masked");

record! {
    /// What one backend was sent, but for packets.
    pub struct BackendCounts: 64, 8 {
        /// Whose it is: [`owner`]; 0 is nobody's.
        pub owner: u32,
        /// The set of that backend.
        pub set: u32,
        /// Connections that sockets dialled: of TCP, of UDP, and choices of unconnected UDP
        /// sockets.
        pub connections: u64,
        /// Flows that the packet path opened.
        pub flows: u64,
        /// Octets that the backend acknowledged, of TCP connections that ended.
        pub sent_bytes: u64,
        /// Octets that it sent, likewise.
        pub received_bytes: u64,
        /// Segments to it, retransmissions included, likewise.
        pub sent_segments: u64,
        /// Segments from it, likewise.
        pub received_segments: u64,
        /// Segments that were sent again, likewise.
        pub retransmits: u64,
    }

    /// What the packet path translated for one backend, on the CPUs of one lane.
    pub struct PacketCounts: 40, 8 {
        /// Whose it is, as [`BackendCounts::owner`].
        pub owner: u32,
        /// Zero.
        pub pad: u32,
        /// Packets to it. A buffer of many segments counts as many.
        pub sent_packets: u64,
        /// Octets to it, IP headers included.
        pub sent_bytes: u64,
        /// Packets from it.
        pub received_packets: u64,
        /// Octets from it.
        pub received_bytes: u64,
    }

    /// What backends of a set had counted whose ids were given to others.
    pub struct ServiceCounts: 88, 8 {
        /// As the fields of [`BackendCounts`] from `connections` on.
        pub connections: [u64; 7],
        /// As the fields of [`PacketCounts`] from `sent_packets` on.
        pub packets: [u64; 4],
    }
}

/// Where the record of a backend is: the chunk, and the id's place in it.
#[inline(always)]
pub const fn place(id: u32, v4: bool) -> (u32, u32) {
    let family = if v4 { 0 } else { CHUNKS / 2 };
    (family + id / CHUNK_IDS % (CHUNKS / 2), id % CHUNK_IDS)
}

/// Who a backend is, folded: an endpoint of a set. Never 0.
#[inline(always)]
pub fn owner(set: u32, addr: &Addr, port: [u8; 2]) -> u32 {
    let w = addr.words();
    let port = u32::from(u16::from_be_bytes(port));
    let fold = w[0].wrapping_mul(0x9e37_79b1).rotate_left(17)
        ^ w[1].wrapping_mul(0x85eb_ca77).rotate_left(7)
        ^ w[2].wrapping_mul(0xc2b2_ae3d).rotate_left(13)
        ^ w[3].wrapping_mul(0x27d4_eb2f).rotate_left(19)
        ^ port.wrapping_mul(0x1656_67b1).rotate_left(25)
        ^ set.wrapping_mul(0x2c1b_3c6d).rotate_left(3);
    fold | 1 << 31
}

/// A TCP connection at its end, as the kernel tells it. Its counters are those of sequence numbers,
/// of which SYN and FIN take one each (RFC 9293 section 3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// The state that it ends in, of [`tcp_state`].
    pub state: u32,
    /// Sequence numbers that were acknowledged.
    pub acked: u64,
    /// Sequence numbers that were received in order, from the one behind the peer's SYN on.
    pub received: u64,
    /// Whether everything that was sent was acknowledged.
    pub all_acked: bool,
    /// What had been received when the own FIN was acknowledged; its low half.
    pub received_at_fin: u32,
}

/// States of a connection (`<net/tcp_states.h>`; what BPF calls `BPF_TCP_…`).
pub mod tcp_state {
    /// The own FIN is sent.
    pub const FIN_WAIT1: u32 = 4;
    /// The own FIN is acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// Closed.
    pub const CLOSE: u32 = 7;
    /// The peer's FIN came.
    pub const CLOSE_WAIT: u32 = 8;
    /// The own FIN is sent behind the peer's.
    pub const LAST_ACK: u32 = 9;
    /// Both FINs are sent, the own first, and it is not acknowledged.
    pub const CLOSING: u32 = 11;
}

impl Ending {
    /// Octets of data that the peer acknowledged.
    #[inline(always)]
    pub const fn sent(&self) -> u64 {
        let fin = match self.state {
            tcp_state::FIN_WAIT2 => true,
            tcp_state::LAST_ACK | tcp_state::CLOSING => self.all_acked,
            _ => false,
        };
        self.acked.saturating_sub(1 + fin as u64)
    }

    /// Octets of data that the peer sent.
    ///
    /// A connection that ends behind its own FIN may or may not have met the peer's: a socket that
    /// nobody holds any more does not wait for it. It ends at the very segment that acknowledges
    /// its FIN, so that nothing was received since.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "low halves are compared")]
    pub const fn received(&self) -> u64 {
        let fin = match self.state {
            tcp_state::CLOSE_WAIT | tcp_state::LAST_ACK | tcp_state::CLOSING => true,
            tcp_state::FIN_WAIT2 => self.received as u32 != self.received_at_fin,
            _ => false,
        };
        self.received.saturating_sub(fin as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ending(state: u32, acked: u64, received: u64) -> Ending {
        Ending { state, acked, received, all_acked: true, received_at_fin: 0 }
    }

    /// RFC 9293 section 3.4: SYN and FIN take a sequence number each.
    #[test]
    fn octets_are_those_of_data() {
        const ESTABLISHED: u32 = 1;
        const SYN_SENT: u32 = 2;
        let octets = |ending: Ending| (ending.sent(), ending.received());
        assert_eq!(octets(ending(SYN_SENT, 0, 0)), (0, 0), "refused");
        assert_eq!(octets(ending(ESTABLISHED, 101, 50)), (100, 50), "reset");
        assert_eq!(octets(ending(tcp_state::CLOSE_WAIT, 101, 51)), (100, 50), "reset behind a FIN");
        assert_eq!(
            octets(ending(tcp_state::LAST_ACK, 102, 51)),
            (100, 50),
            "the peer closed first"
        );
        assert_eq!(octets(ending(tcp_state::CLOSING, 102, 51)), (100, 50), "both at once");
        assert_eq!(octets(ending(tcp_state::FIN_WAIT2, 102, 51)), (100, 50), "we closed first");
        let lost = Ending { all_acked: false, ..ending(tcp_state::LAST_ACK, 101, 51) };
        assert_eq!(octets(lost), (100, 50), "the last FIN was never acknowledged");
        let orphan = Ending { received_at_fin: 50, ..ending(tcp_state::FIN_WAIT2, 102, 50) };
        assert_eq!(octets(orphan), (100, 50), "nobody waits for the peer's FIN");
        assert_eq!(octets(ending(tcp_state::FIN_WAIT1, 101, 50)), (100, 50), "given up");
    }

    proptest! {
        #[test]
        fn every_id_has_a_place_of_its_own(
            id in 0..BACKENDS_MAX, other in 0..BACKENDS_MAX, v4: bool, other_v4: bool,
        ) {
            let (chunk, index) = place(id, v4);
            prop_assert!(chunk < CHUNKS && index < CHUNK_IDS);
            let same = (id, v4) == (other, other_v4);
            prop_assert_eq!(place(other, other_v4) == (chunk, index), same);
        }

        #[test]
        fn an_owner_is_an_endpoint_of_a_set(
            octets: [u8; 16], port: u16, set: u32, bit in 0_u32..8, byte in 0_usize..16,
        ) {
            let addr = Addr { octets };
            let port = port.to_be_bytes();
            let of = owner(set, &addr, port);
            prop_assert_ne!(of, 0);
            let other_port = (u16::from_be_bytes(port) ^ 1).to_be_bytes();
            let mut other = addr;
            other.octets[byte] ^= 1 << bit;
            prop_assert_ne!(owner(set ^ 1, &addr, port), of);
            prop_assert_ne!(owner(set, &addr, other_port), of);
            prop_assert_ne!(owner(set, &other, port), of);
        }
    }
}
