//! What a socket remembers of its translations, and the way back by it.

use mizzen_ebpf_abi::{
    addr::Addr,
    limits::SOCKET_PEERS_MAX,
    socket::{SocketPeer, SocketPeers},
};

use super::context::SockAddr;
use crate::{
    lookup::{Backend, Slots},
    maps::SOCKET_PEERS,
};

const UNUSED: [u8; 2] = [0; 2];

/// The socket's memory, if it has any.
#[inline(always)]
pub(super) fn existing(sock: &SockAddr) -> Option<&mut SocketPeers> {
    // SAFETY: the kernel returns null or memory that lives as long as the socket.
    unsafe { SOCKET_PEERS.get_ptr_mut(sock.context()).as_mut() }
}

/// The socket's memory, zeroed where it is new; none where there is no room for it.
#[inline(always)]
pub(super) fn created(sock: &SockAddr) -> Option<&mut SocketPeers> {
    // SAFETY: as above.
    unsafe { SOCKET_PEERS.get_or_insert_ptr_mut(sock.context(), None).as_mut() }
}

/// The socket has no translated connection any more.
#[inline(always)]
pub(super) fn forget_connection(sock: &SockAddr) {
    if let Some(peers) = existing(sock) {
        peers.connected.backend_port = UNUSED;
    }
}

/// The socket is about to talk to this address itself: an answer from there is no service's.
#[inline(always)]
pub(super) fn forget_backend(sock: &SockAddr, addr: &Addr, port: [u8; 2]) {
    let Some(peers) = existing(sock) else { return };
    for peer in &mut peers.sent {
        if leads_to(peer, addr, port) {
            peer.backend_port = UNUSED;
        }
    }
}

/// What was dialled, with what it became.
#[derive(Clone, Copy)]
pub(super) struct Dialled {
    /// The service's address.
    pub(super) addr: Addr,
    /// The service's port, network byte order.
    pub(super) port: [u8; 2],
}

impl Dialled {
    #[inline(always)]
    fn is_of(&self, peer: &SocketPeer) -> bool {
        peer.backend_port != UNUSED && peer.service_port == self.port && peer.service.is(&self.addr)
    }
}

/// Writes an entry so that a reader on another CPU sees it whole or not at all.
#[inline(always)]
fn write(peer: &mut SocketPeer, dialled: &Dialled, backend: &Backend, slots: &Slots, used: u32) {
    let port = &raw mut peer.backend_port;
    // SAFETY: a field of a live record; volatile, to keep it before and behind the others.
    unsafe { core::ptr::write_volatile(port, UNUSED) };
    peer.service = dialled.addr;
    peer.service_port = dialled.port;
    peer.backend = backend.addr;
    peer.set = slots.set;
    peer.generation = slots.generation;
    peer.backend_id = backend.id;
    peer.used = used;
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(port, backend.port) };
}

/// Remembers a connection.
#[inline(always)]
pub(super) fn connect(
    peers: &mut SocketPeers,
    dialled: &Dialled,
    backend: &Backend,
    slots: &Slots,
) {
    peers.clock = peers.clock.wrapping_add(1);
    write(&mut peers.connected, dialled, backend, slots, peers.clock);
}

/// Remembers what a datagram went to.
#[inline(always)]
pub(super) fn send(peers: &mut SocketPeers, dialled: &Dialled, backend: &Backend, slots: &Slots) {
    let entry = peers.entries as usize % SOCKET_PEERS_MAX;
    peers.entries = peers.entries.wrapping_add(1);
    write(&mut peers.sent[entry], dialled, backend, slots, peers.clock);
}

/// The newest choice that the socket made for a service.
#[inline(always)]
pub(super) fn newest<'a>(
    peers: &'a mut SocketPeers,
    dialled: &Dialled,
    set: u32,
) -> Option<&'a mut SocketPeer> {
    let mut newest: Option<&mut SocketPeer> = None;
    for peer in &mut peers.sent {
        if peer.set == set
            && dialled.is_of(peer)
            && newest.as_ref().is_none_or(|n| is_newer(peer, n))
        {
            newest = Some(peer);
        }
    }
    newest
}

/// The service that an answer from this address belongs to.
#[inline(always)]
pub(super) fn service_behind<'a>(
    peers: &'a SocketPeers,
    addr: &Addr,
    port: [u8; 2],
) -> Option<&'a SocketPeer> {
    let mut found = connection_to(peers, addr, port);
    for peer in &peers.sent {
        if leads_to(peer, addr, port) && found.is_none_or(|f| is_newer(peer, f)) {
            found = Some(peer);
        }
    }
    found
}

/// The socket's connection, if it leads to this backend.
#[inline(always)]
pub(super) fn connection_to<'a>(
    peers: &'a SocketPeers,
    addr: &Addr,
    port: [u8; 2],
) -> Option<&'a SocketPeer> {
    leads_to(&peers.connected, addr, port).then_some(&peers.connected)
}

#[inline(always)]
fn leads_to(peer: &SocketPeer, addr: &Addr, port: [u8; 2]) -> bool {
    port != UNUSED && peer.backend_port == port && peer.backend.is(addr)
}

/// Whether `a` was used after `b`; the clock wraps.
#[inline(always)]
fn is_newer(a: &SocketPeer, b: &SocketPeer) -> bool {
    a.used.wrapping_sub(b.used).cast_signed() > 0
}
