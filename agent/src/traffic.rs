//! What services and their backends were sent, as numbers that can be added up: pure.
//!
//! ```text
//! programs ──> maps: by backend id ──┐
//!                                    ├──> here: by set ──> names: `mizzen services`, /metrics/…
//! kernel ────> sockets that live ────┘
//! ```

use std::{collections::BTreeMap, net::SocketAddr, ops::AddAssign};

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
    fn add_assign(&mut self, other: Self) {
        let (s, t) = (&mut self.sockets, &other.sockets);
        for (sum, more) in [
            (&mut s.connections, t.connections),
            (&mut s.open, t.open),
            (&mut s.sent_bytes, t.sent_bytes),
            (&mut s.received_bytes, t.received_bytes),
            (&mut s.sent_segments, t.sent_segments),
            (&mut s.received_segments, t.received_segments),
            (&mut s.retransmits, t.retransmits),
        ] {
            *sum = sum.wrapping_add(more);
        }
        let (p, q) = (&mut self.packets, &other.packets);
        for (sum, more) in [
            (&mut p.flows, q.flows),
            (&mut p.sent_packets, q.sent_packets),
            (&mut p.sent_bytes, q.sent_bytes),
            (&mut p.received_packets, q.received_packets),
            (&mut p.received_bytes, q.received_bytes),
        ] {
            *sum = sum.wrapping_add(more);
        }
    }
}

/// What the tables counted for one backend, or for former backends of a set together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The set.
    pub set: u32,
    /// The backend's id and whether it is of IPv6; none for what was counted for those whose ids
    /// others have now.
    pub backend: Option<(u32, bool)>,
    /// How much.
    pub traffic: Traffic,
}

/// What one set was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetTraffic {
    /// By all its backends, former ones included.
    pub total: Traffic,
    /// By those that it has now.
    pub backends: BTreeMap<SocketAddr, Traffic>,
}

/// Adds up what was counted by set. `name` says which of a set's present backends has an id.
pub fn by_set(
    counted: impl IntoIterator<Item = Counted>,
    name: impl Fn(u32, u32) -> Option<SocketAddr>,
) -> BTreeMap<u32, SetTraffic> {
    let mut sets: BTreeMap<u32, SetTraffic> = BTreeMap::new();
    for Counted { set, backend, traffic } in counted {
        let of = sets.entry(set).or_default();
        of.total += traffic;
        if let Some(at) = backend.and_then(|(id, _)| name(set, id)) {
            *of.backends.entry(at).or_default() += traffic;
        }
    }
    sets
}
