//! What became of a connection, as the programs tell it while somebody follows
//! (`mizzen flows --follow`): a record in a ring buffer that is there for as long.
//!
//! What happened is named by the counter that counted it, so that the stream and the metrics can't
//! mean different things.

use crate::{addr::Addr, layout::record};

record! {
    /// A connection that was translated, or a packet or a call that was refused or dropped.
    pub struct FlowEvent: 96, 8 {
        /// When: the clock of `CLOCK_MONOTONIC`, in nanoseconds.
        pub at_ns: u64,
        /// Who dials; all zero where that is not known.
        pub client: Addr,
        /// What is dialled.
        pub dialled: Addr,
        /// Where it goes; all zero where it goes nowhere.
        pub backend: Addr,
        /// The source that the backend sees.
        pub seen_as: Addr,
        /// The client's port, network byte order; 0 where the socket has none yet.
        pub client_port: [u8; 2],
        /// The port that is dialled, network byte order.
        pub dialled_port: [u8; 2],
        /// The backend's port, network byte order.
        pub backend_port: [u8; 2],
        /// The source port that the backend sees, network byte order.
        pub seen_as_port: [u8; 2],
        /// The service's set; [`crate::service::NO_SET`] where none is known.
        pub set: u32,
        /// What happened: a [`crate::counters::Counter`].
        pub what: u32,
        /// IANA protocol number.
        pub protocol: u8,
        /// [`path`].
        pub path: u8,
        /// Zero.
        pub pad: [u8; 6],
    }
}

/// Where it happened.
pub mod path {
    /// Where a socket dialled.
    pub const SOCKET: u8 = 0;
    /// Where a packet passed.
    pub const PACKET: u8 = 1;
}
