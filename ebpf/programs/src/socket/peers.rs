//! The socket's memory of its translations: where it is, and what is written to it.

use mizzen_ebpf_abi::{
    addr::Addr,
    socket::{SocketPeer, SocketPeers},
};

use super::context::{Family, SockAddr};
use crate::{
    events::Call,
    lookup::{Backend, Slots},
    maps::{SOCKET_PEERS, TCP_PEERS},
};

/// What was dialled.
#[derive(Clone, Copy)]
pub(super) struct Dialled {
    /// The address.
    pub(super) addr: Addr,
    /// The port, network byte order.
    pub(super) port: [u8; 2],
}

/// The connection of a TCP socket, if it is one that was translated once.
#[inline(always)]
pub(super) fn connection(sock: &SockAddr) -> Option<&mut SocketPeer> {
    // SAFETY: the kernel returns null or memory that lives as long as the socket.
    unsafe { TCP_PEERS.get_ptr_mut(sock.context()).as_mut() }
}

/// The memory of a TCP socket's connection, zeroed where it is new; none where there is no room
/// for it.
#[inline(always)]
pub(super) fn created_connection(sock: &SockAddr) -> Option<&mut SocketPeer> {
    // SAFETY: as above.
    unsafe { TCP_PEERS.get_or_insert_ptr_mut(sock.context(), None).as_mut() }
}

/// A UDP socket's memory, if it has any.
#[inline(always)]
pub(super) fn existing(sock: &SockAddr) -> Option<&mut SocketPeers> {
    // SAFETY: as above.
    unsafe { SOCKET_PEERS.get_ptr_mut(sock.context()).as_mut() }
}

/// A UDP socket's memory, zeroed where it is new; none where there is no room for it.
#[inline(always)]
pub(super) fn created(sock: &SockAddr) -> Option<&mut SocketPeers> {
    // SAFETY: as above.
    unsafe { SOCKET_PEERS.get_or_insert_ptr_mut(sock.context(), None).as_mut() }
}

impl Dialled {
    /// What those who follow are told.
    #[inline(always)]
    pub(super) fn call(&self, protocol: u8, set: u32) -> Call {
        Call { protocol, dialled: self.addr, dialled_port: self.port, set }
    }

    /// What a call names. The kernel turns the unspecified address into the loopback interface's
    /// only after the programs ran, so that it is that here already.
    #[inline(always)]
    pub(super) fn in_call<F: Family>(sock: &SockAddr) -> Self {
        Self { addr: F::addr(sock).reached(), port: sock.port() }
    }

    /// The entry for a choice that was made for this.
    #[inline(always)]
    pub(super) fn became(&self, backend: &Backend, slots: &Slots, used: u32) -> SocketPeer {
        SocketPeer {
            service: self.addr,
            backend: backend.addr,
            service_port: self.port,
            backend_port: backend.port,
            set: slots.set,
            generation: slots.generation,
            backend_id: backend.id,
            used,
        }
    }
}
