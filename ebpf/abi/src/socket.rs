//! What a socket remembers of its translation, in socket storage: it dies with the socket and can
//! be evicted by nobody.

use crate::{addr::Addr, layout::record, limits::SOCKET_PEERS_MAX};

record! {
    /// One translation: what the application dialled, and where it went.
    pub struct SocketPeer: 48, 8 {
        /// The service address that the application named.
        pub service: Addr,
        /// The backend's address that the kernel saw.
        pub backend: Addr,
        /// The service's port, network byte order.
        pub service_port: [u8; 2],
        /// The backend's port, network byte order.
        pub backend_port: [u8; 2],
        /// The set; with `generation`, tells an unconnected socket when to choose again.
        pub set: u32,
        /// When it was last used: `bpf_ktime_get_boot_ns` (suspend included).
        pub used_ns: u64,
    }

    /// The socket's translations. A connected socket uses the first only; an unconnected UDP
    /// socket keeps its last few, the most recently used wins where a backend serves two services.
    pub struct SocketPeers: 208, 8 {
        /// The translations; unused ones are zero.
        pub peers: [SocketPeer; SOCKET_PEERS_MAX],
        /// 1 while the first entry is a connection.
        pub connected: u32,
        /// The generation of the set's word that the newest choice was made from.
        pub generation: u32,
        /// Zero.
        pub reserved: u64,
    }
}
