//! What a socket remembers of its translation, in socket storage: it dies with the socket and can
//! be evicted by nobody.

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
        /// The socket's clock when this was last used: the highest wins where a backend serves
        /// two services.
        pub used: u32,
    }

    /// The socket's translations.
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
