//! The packet path's connection table: one entry per direction of a translated flow.
//!
//! Only flows that the packet path translates are in it. An entry's key is the flow as its packets
//! arrive, its value how they leave; the two entries of a flow name each other by construction:
//! `key.rewritten(value).reversed()` is the other's key.

use crate::{addr::Addr, layout::record};

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// Packets of the opener (client to service); else of the answerer. Flags never change while
    /// an entry lives.
    pub const ORIGINAL: u8 = 1 << 0;
    /// The source is rewritten.
    pub const REWRITE_SOURCE: u8 = 1 << 1;
    /// The destination is rewritten.
    pub const REWRITE_DESTINATION: u8 = 1 << 2;
    /// The destination after translation is this node itself: the stack delivers, nothing is
    /// forwarded.
    pub const TO_NODE: u8 = 1 << 3;
    /// Of what a pod sends out of the cluster, under this node's address: there is no service and
    /// no backend.
    pub const OUTWARD: u8 = 1 << 4;
}

record! {
    /// A flow's addresses as its packets arrive.
    pub struct FlowKey: 40, 4 {
        /// Source address.
        pub source: Addr,
        /// Destination address.
        pub destination: Addr,
        /// Source port, network byte order.
        pub source_port: [u8; 2],
        /// Destination port, network byte order.
        pub destination_port: [u8; 2],
        /// IANA protocol number.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }

    /// A packet in fragments (RFC 791 section 3.2, RFC 8200 section 4.5).
    pub struct FragmentKey: 40, 4 {
        /// Source address.
        pub source: Addr,
        /// Destination address.
        pub destination: Addr,
        /// Identification; of IPv4 the first two octets.
        pub identification: [u8; 4],
        /// IANA protocol number.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }

    /// How the packets of a flow leave, and what is known of it.
    pub struct Flow: 56, 4 {
        /// Source address after translation.
        pub source: Addr,
        /// Destination address after translation.
        pub destination: Addr,
        /// Source port after translation, network byte order.
        pub source_port: [u8; 2],
        /// Destination port after translation, network byte order.
        pub destination_port: [u8; 2],
        /// Bits of [`flow_flags`].
        pub flags: u8,
        /// The second in which it was opened: the low octet of what [`Flow::seen_s`] was then.
        pub opened: u8,
        /// What was seen in this direction: bits of [`crate::flow_state::state`].
        pub state: u8,
        /// What was seen in the other direction.
        pub peer_state: u8,
        /// When the last packet of this direction passed, in seconds of `bpf_ktime_get_coarse_ns`.
        pub seen_s: u32,
        /// The backend's id. Ids are reused in turn, the one freed first last of all, so who looks
        /// it up compares what is found with [`Flow::destination`].
        pub backend: u32,
        /// The set it was chosen from.
        pub set: u32,
        /// Of a flow that the node itself opened, untranslated by its sockets: the device by which
        /// it leaves, and by which its answers come in. Else 0.
        pub device: u32,
    }
}

impl FlowKey {
    /// The key of the opposite direction, untranslated.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            pad: self.pad,
        }
    }

    /// Whether `flow` leaves the ports as they are.
    #[inline(always)]
    #[must_use]
    pub fn has_ports_of(&self, flow: &Flow) -> bool {
        self.source_port == flow.source_port && self.destination_port == flow.destination_port
    }

    /// The key of a flow's other entry, by this one's.
    #[inline(always)]
    #[must_use]
    pub const fn peer(&self, flow: &Flow) -> Self {
        self.rewritten(flow).reversed()
    }

    /// Whether two keys are the same; `==` for programs (see [`Addr::is_v4`]).
    #[inline(always)]
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.source_port == other.source_port
            && self.destination_port == other.destination_port
            && self.protocol == other.protocol
            && self.source.is(&other.source)
            && self.destination.is(&other.destination)
    }

    /// The flow as its packets look after `flow` rewrote them.
    #[inline(always)]
    #[must_use]
    pub const fn rewritten(&self, flow: &Flow) -> Self {
        Self {
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            protocol: self.protocol,
            pad: self.pad,
        }
    }
}
