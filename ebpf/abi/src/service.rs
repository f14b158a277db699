//! The service tables: how an address and a port become a backend.
//!
//! ```text
//! FRONTENDS {addr, port, proto} -> set ─┐
//! SETS[set] = {offset, generation} <────┘   one aligned word: the only thing that changes often
//! SLOTS[offset ..] = header (9 words) | backend ids, grouped so that every policy is a window
//! BACKENDS4/6[id] = {addr, port, owner set}
//! ```
//!
//! A live range, a live backend and a frontend's meaning are never edited in place: a change
//! writes a fresh range, stores the word of its set, waits for running programs, and only then
//! frees what nothing points to. So a reader sees the old whole or the new whole.
//!
//! Order inside a range, so that each policy is one (start, count) window:
//! terminating-local | local outside the hints | local in the hints | remote in the hints |
//! remote outside the hints | terminating-remote.

use crate::{addr::Addr, layout::record};

/// Words of the header that begins every slot range.
pub const RANGE_HEADER_WORDS: u32 = 9;

/// Positions of the header's words.
pub mod header {
    /// The set that owns the range: a reader that finds another has met a foreign range.
    pub const OWNER: u32 = 0;
    /// Start of the window for traffic to a ClusterIP (internal traffic policy), counted in slots
    /// behind the header.
    pub const INTERNAL_START: u32 = 1;
    /// Length of that window.
    pub const INTERNAL_COUNT: u32 = 2;
    /// Start of the window for traffic from outside the cluster to a node port, external IP or
    /// load balancer IP (external traffic policy).
    pub const EXTERNAL_START: u32 = 3;
    /// Length of that window.
    pub const EXTERNAL_COUNT: u32 = 4;
    /// Start of the window for the same frontends as seen by this node's pods and by the node
    /// itself: `externalTrafficPolicy: Local` does not bind them (reference B30, B31, B33).
    pub const NEARBY_START: u32 = 5;
    /// Length of that window.
    pub const NEARBY_COUNT: u32 = 6;
    /// Bits of [`super::range_flags`].
    pub const FLAGS: u32 = 7;
    /// Seconds for which a client keeps its backend (`sessionAffinity: ClientIP`); 0 means that
    /// every flow chooses anew.
    pub const AFFINITY_S: u32 = 8;
}

/// Bits of a range header's flags.
pub mod range_flags {
    /// The internal window is empty because no usable endpoint is local: drop, don't reject.
    pub const INTERNAL_DROP: u32 = 1 << 0;
    /// The external window is empty because no usable endpoint is local: drop, don't reject.
    pub const EXTERNAL_DROP: u32 = 1 << 1;
}

/// Bits of a frontend's flags.
pub mod frontend_flags {
    /// Node port, external IP or load balancer IP: the external traffic policy applies.
    pub const EXTERNAL: u32 = 1 << 0;
    /// The external traffic policy is Local: clients outside the cluster keep their address.
    pub const KEEP_SOURCE: u32 = 1 << 1;
    /// Matches any address of this node that takes node ports.
    pub const NODE_PORT: u32 = 1 << 2;
    /// Leave the address as it is while this node has a listener on it (cluster DNS).
    pub const PREFER_LOCAL: u32 = 1 << 3;
    /// Served by a proxy above layer 4: no backends is no reason to reject.
    pub const L7: u32 = 1 << 4;
    /// Announced as a load balancer address of the cluster.
    pub const ANNOUNCED: u32 = 1 << 5;
    /// Only clients inside of the set's source ranges may use it (`loadBalancerSourceRanges`;
    /// load balancer addresses only, reference B49, B59).
    pub const SOURCE_RANGES: u32 = 1 << 6;
    /// A host port of a pod: matches any address of this node, whether or not it takes node ports,
    /// where it is at none of its own.
    pub const HOST_PORT: u32 = 1 << 8;
    /// No frontend, but the mark of a cluster IP that is allocated, kept under port 0 and protocol
    /// 0: what dials another port of it is refused (reference B8, B9).
    pub const GUARD: u32 = 1 << 7;
}

record! {
    /// What a client dials. `addr` is [`Addr::ANY_V4`] or [`Addr::ANY_V6`] for node ports.
    pub struct FrontendKey: 20, 4 {
        /// The address.
        pub addr: Addr,
        /// The port, network byte order.
        pub port: [u8; 2],
        /// IANA protocol number.
        pub protocol: u8,
        /// Zero.
        pub pad: u8,
    }

    /// What a frontend leads to.
    pub struct Frontend: 12, 4 {
        /// The set whose word to read.
        pub set: u32,
        /// Bits of [`frontend_flags`].
        pub flags: u32,
        /// A fold of the key that this value was written for and of the two fields above; see
        /// [`Frontend::new`] and [`Frontend::is_of`]. A hash map reuses the memory of a removed
        /// element while a reader may still hold it; a reader that finds another identity here
        /// takes the lookup for a miss, and a value half overwritten has another identity.
        pub identity: u32,
    }

    /// Which addresses of a block of 256 are services' cluster IPs: a bit for each, so that ten
    /// thousand of them take no more room than a few hundred frontends. While the bits of a block
    /// change, a reader may meet those of another, for one packet to a port that no service has.
    pub struct Allocated: 32, 4 {
        /// The bits, by the address' last octet.
        pub bits: [u32; 8],
    }

    /// An IPv4 backend.
    pub struct Backend4: 12, 4 {
        /// The address.
        pub addr: [u8; 4],
        /// The port, network byte order.
        pub port: [u8; 2],
        /// Bits of [`backend_flags`].
        pub flags: u16,
        /// The set that it belongs to; [`NO_SET`] in a freed entry, or [`RESERVED`] with a set.
        pub set: u32,
    }

    /// An IPv6 backend.
    pub struct Backend6: 24, 4 {
        /// The address.
        pub addr: [u8; 16],
        /// The port, network byte order.
        pub port: [u8; 2],
        /// Bits of [`backend_flags`].
        pub flags: u16,
        /// The set that it belongs to; [`NO_SET`] in a freed entry, or [`RESERVED`] with a set.
        pub set: u32,
    }
}

/// Bits of a backend's flags.
///
/// Those of a [`RESERVED`] record say why its endpoint takes no new flows. No program asks for
/// them: an agent that starts does, to tell what became of endpoints while none ran.
pub mod backend_flags {
    /// The backend is on this node.
    pub const LOCAL: u16 = 1 << 0;
    /// The backend is terminating; in a live record it still serves.
    pub const TERMINATING: u16 = 1 << 1;
    /// The endpoint was deleted, rather than merely taken out of the service: its flows are reset
    /// (reference V8). Such a record is freed, or about to be, and keeps address and port for flows
    /// to compare.
    pub const GONE: u16 = 1 << 2;
    /// The endpoint does not serve though others do: datagram sockets that were connected to it
    /// were ended.
    pub const UNSERVING: u16 = 1 << 3;
    /// The endpoint left every slice otherwise than by being terminated, and lives.
    pub const STRAY: u16 = 1 << 4;
    /// The record was freed: all it tells is that its id was in use.
    pub const FREED: u16 = 1 << 15;
}

/// A bit that no set's id has. In the owner of a backend's record, beside the id of a set, it says
/// that the record is freed, so that no reader of the set takes it for a backend, while its id stays
/// with the endpoint whose address and port it keeps: flows may name it.
pub const RESERVED: u32 = 1 << 31;

const _: () = assert!(crate::limits::SETS_MAX <= RESERVED);

/// The set for whose endpoint the id of a record with this owner is reserved.
#[inline(always)]
pub const fn reserved_for(owner: u32) -> Option<u32> {
    if owner & RESERVED != 0 { Some(owner & !RESERVED) } else { None }
}

/// The set id that no set has. Set 0, slot 0 and backend 0 are never used, so that zeroed map
/// memory means nothing.
pub const NO_SET: u32 = 0;

impl Frontend {
    /// The value for a key.
    #[inline(always)]
    pub fn new(key: &FrontendKey, set: u32, flags: u32) -> Self {
        Self { set, flags, identity: Self::identity(key, set, flags) }
    }

    /// Whether this value was written for `key` and is whole.
    #[inline(always)]
    pub fn is_of(&self, key: &FrontendKey) -> bool {
        self.identity == Self::identity(key, self.set, self.flags)
    }

    #[inline(always)]
    fn identity(key: &FrontendKey, set: u32, flags: u32) -> u32 {
        key.identity()
            ^ set.wrapping_mul(0x9e37_79b1).rotate_left(11)
            ^ flags.wrapping_mul(0x85eb_ca77).rotate_left(23)
    }
}

impl Allocated {
    /// The block of an address, and the address' place in it.
    #[inline(always)]
    pub const fn place(addr: &Addr) -> (Addr, u8) {
        let mut block = *addr;
        block.octets[15] = 0;
        (block, addr.octets[15])
    }

    /// Whether the address with this last octet is one.
    #[inline(always)]
    pub const fn holds(&self, octet: u8) -> bool {
        self.bits[octet as usize / 32 % 8] >> (octet % 32) & 1 != 0
    }

    /// Makes the address with this last octet one, or none.
    pub const fn set(&mut self, octet: u8, allocated: bool) {
        let (word, bit) = (octet as usize / 32, 1 << (octet % 32));
        if allocated {
            self.bits[word] |= bit;
        } else {
            self.bits[word] &= !bit;
        }
    }
}

impl FrontendKey {
    /// The key of the mark that says that a cluster IP is allocated
    /// ([`frontend_flags::GUARD`]).
    #[inline(always)]
    pub const fn guard(addr: Addr) -> Self {
        Self::new(addr, 0, 0)
    }

    /// Whether this is the key of such a mark. User space names marks as frontends; the programs
    /// find them in [`crate::maps::ALLOCATED`].
    #[inline(always)]
    pub const fn is_guard(&self) -> bool {
        self.protocol == 0 && matches!(self.port, [0, 0])
    }

    /// A key; `port` in host byte order.
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16, protocol: u8) -> Self {
        Self { addr, port: port.to_be_bytes(), protocol, pad: 0 }
    }

    /// A 32-bit fold of the whole key.
    #[inline(always)]
    fn identity(&self) -> u32 {
        let w = self.addr.words();
        let last = u32::from_ne_bytes([self.port[0], self.port[1], self.protocol, self.pad]);
        w[0].wrapping_mul(0x9e37_79b1)
            ^ w[1].wrapping_mul(0x85eb_ca77).rotate_left(7)
            ^ w[2].wrapping_mul(0xc2b2_ae3d).rotate_left(13)
            ^ w[3].wrapping_mul(0x27d4_eb2f).rotate_left(19)
            ^ last.wrapping_mul(0x1656_67b1).rotate_left(25)
    }
}

/// The word of a set: where its current range begins, and how often it has been flipped.
///
/// One aligned 64-bit value, so that a store or a load of it is atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetWord(pub u64);

impl SetWord {
    /// The word for a range at `offset`; 0 means that the set has none.
    #[inline(always)]
    pub const fn new(offset: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | offset as u64)
    }

    /// First word of the range in [`crate::maps::SLOTS`]; 0 means none.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// How often the set has been flipped; wraps.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The slot of a window of `count` that a hash leads to: its high bits, scaled.
#[inline(always)]
pub const fn slot_index(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_slot_is_inside_of_its_window(hash: u32, count in 1_u32..) {
            prop_assert!(slot_index(hash, count) < count);
        }

        #[test]
        fn a_block_holds_what_was_set(octets: [u8; 16], other: u8) {
            let (block, octet) = Allocated::place(&Addr { octets });
            prop_assert_eq!((block.octets[15], octet), (0, octets[15]));
            prop_assert_eq!(&block.octets[..15], &octets[..15]);
            let mut allocated = Allocated::default();
            allocated.set(octet, true);
            prop_assert_eq!(allocated.holds(other), other == octet);
            allocated.set(octet, false);
            prop_assert_eq!(allocated, Allocated::default());
        }

        #[test]
        fn a_set_word_is_its_halves(offset: u32, generation: u32) {
            let word = SetWord::new(offset, generation);
            prop_assert_eq!((word.offset(), word.generation()), (offset, generation));
        }

        /// A reader that still holds a reused element sees whose it is, and a value that it met
        /// half written is nobody's.
        #[test]
        fn a_frontend_is_of_its_own_key_and_whole(
            octets: [u8; 16], port: u16, set: u32, flags: u32, other_set: u32, byte in 0_usize..16,
            bit in 0_u32..8,
        ) {
            let key = FrontendKey::new(Addr { octets }, port, 6);
            let frontend = Frontend::new(&key, set, flags);
            prop_assert!(frontend.is_of(&key));
            let mut other = key;
            other.addr.octets[byte] ^= 1 << bit;
            prop_assert!(!frontend.is_of(&other));
            let datagrams = FrontendKey { protocol: 17, ..key };
            prop_assert!(!frontend.is_of(&datagrams));
            prop_assert!(!frontend.is_of(&FrontendKey::new(key.addr, port ^ 1, 6)));
            let torn = Frontend { flags: flags ^ (1 << bit), ..frontend };
            prop_assert!(!torn.is_of(&key));
            let torn = Frontend { set: other_set, ..frontend };
            prop_assert_eq!(torn.is_of(&key), other_set == set);
        }
    }
}
