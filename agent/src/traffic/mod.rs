//! What services and their backends were sent, as numbers that can be added up: pure.
//!
//! ```text
//! programs ──> maps: by backend id ──┐
//!                                    ├──> here: by set ──> names: `mizzen services`, /metrics/…
//! kernel ────> sockets that live ────┘
//! ```

pub mod accounts;
pub mod live;

use std::ops::AddAssign;

use mizzen_ebpf_abi::traffic::{BackendCounts, PacketCounts, ServiceCounts};
use serde::{Deserialize, Serialize};

/// Traffic between this node and one backend or service port. Sent is to the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Traffic {
    /// What sockets were led to it and sent.
    pub sockets: SocketTraffic,
    /// What was translated packet by packet.
    pub packets: PacketTraffic,
}

/// Traffic of sockets that were translated when they dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SocketTraffic {
    /// Connections that were dialled: of TCP, of UDP, and choices of unconnected UDP sockets.
    pub connections: u64,
    /// TCP connections that are there now.
    pub open: u64,
    /// Octets that it acknowledged; TCP only, as all that follows.
    pub sent_bytes: u64,
    /// Octets from it.
    pub received_bytes: u64,
    /// Segments to it, retransmissions included.
    pub sent_segments: u64,
    /// Segments from it.
    pub received_segments: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
}

/// Traffic that the packet path translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PacketTraffic {
    /// Flows that were opened.
    pub flows: u64,
    /// Packets to it.
    pub sent_packets: u64,
    /// Octets to it, IP headers included.
    pub sent_bytes: u64,
    /// Packets from it.
    pub received_packets: u64,
    /// Octets from it, IP headers included.
    pub received_bytes: u64,
}

impl Traffic {
    /// Whether there was none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// All octets to it, of data where they are known by connection, and with headers where they
    /// are known by packet.
    pub fn sent_bytes(&self) -> u64 {
        self.sockets.sent_bytes.wrapping_add(self.packets.sent_bytes)
    }

    /// All octets from it, likewise.
    pub fn received_bytes(&self) -> u64 {
        self.sockets.received_bytes.wrapping_add(self.packets.received_bytes)
    }

    /// Connections and flows.
    pub fn connections(&self) -> u64 {
        self.sockets.connections.wrapping_add(self.packets.flows)
    }

    /// Raises what only ever grows to what it was before: a connection that ends between two looks
    /// may be missed by both.
    pub fn not_below(&mut self, before: Self) {
        let open = self.sockets.open;
        for (now, before) in self.counters().into_iter().zip({ before }.counters()) {
            *now = (*now).max(*before);
        }
        self.sockets.open = open;
    }

    /// What is left without these parts of it.
    #[must_use]
    pub fn without(mut self, parts: impl IntoIterator<Item = Self>) -> Self {
        for mut part in parts {
            for (left, taken) in self.counters().into_iter().zip(part.counters()) {
                *left = left.saturating_sub(*taken);
            }
        }
        self
    }

    fn counters(&mut self) -> [&mut u64; 12] {
        let Self { sockets: s, packets: p } = self;
        [
            &mut s.connections,
            &mut s.open,
            &mut s.sent_bytes,
            &mut s.received_bytes,
            &mut s.sent_segments,
            &mut s.received_segments,
            &mut s.retransmits,
            &mut p.flows,
            &mut p.sent_packets,
            &mut p.sent_bytes,
            &mut p.received_packets,
            &mut p.received_bytes,
        ]
    }

    /// In the form in which it is kept for a service; what is open now is not.
    pub fn to_record(&self) -> ServiceCounts {
        let Self { sockets: s, packets: p } = self;
        ServiceCounts {
            connections: [
                s.connections,
                p.flows,
                s.sent_bytes,
                s.received_bytes,
                s.sent_segments,
                s.received_segments,
                s.retransmits,
            ],
            packets: [p.sent_packets, p.sent_bytes, p.received_packets, p.received_bytes],
        }
    }
}

impl From<&ServiceCounts> for Traffic {
    fn from(record: &ServiceCounts) -> Self {
        let [
            connections,
            flows,
            sent_bytes,
            received_bytes,
            sent_segments,
            received_segments,
            retransmits,
        ] = record.connections;
        let [sent_packets, bytes_to, received_packets, bytes_from] = record.packets;
        Self {
            sockets: SocketTraffic {
                connections,
                open: 0,
                sent_bytes,
                received_bytes,
                sent_segments,
                received_segments,
                retransmits,
            },
            packets: PacketTraffic {
                flows,
                sent_packets,
                sent_bytes: bytes_to,
                received_packets,
                received_bytes: bytes_from,
            },
        }
    }
}

impl From<&BackendCounts> for Traffic {
    fn from(counts: &BackendCounts) -> Self {
        Self {
            sockets: SocketTraffic {
                connections: counts.connections,
                open: 0,
                sent_bytes: counts.sent_bytes,
                received_bytes: counts.received_bytes,
                sent_segments: counts.sent_segments,
                received_segments: counts.received_segments,
                retransmits: counts.retransmits,
            },
            packets: PacketTraffic { flows: counts.flows, ..PacketTraffic::default() },
        }
    }
}

impl From<&PacketCounts> for Traffic {
    fn from(counts: &PacketCounts) -> Self {
        Self {
            packets: PacketTraffic {
                flows: 0,
                sent_packets: counts.sent_packets,
                sent_bytes: counts.sent_bytes,
                received_packets: counts.received_packets,
                received_bytes: counts.received_bytes,
            },
            ..Self::default()
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, mut other: Self) {
        for (sum, more) in self.counters().into_iter().zip(other.counters()) {
            *sum = sum.wrapping_add(*more);
        }
    }
}

/// What the tables counted for one backend, or for former backends of a set together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The set.
    pub set: u32,
    /// The backend; none for what was counted for those whose ids others have now.
    pub backend: Option<Tenant>,
    /// How much; it may be nothing.
    pub traffic: Traffic,
}

/// Who has an id, as its counters know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// The backend's id.
    pub id: u32,
    /// Whether that is an id of IPv6 backends.
    pub ipv6: bool,
    /// [`mizzen_ebpf_abi::traffic::owner`].
    pub owner: u32,
}
