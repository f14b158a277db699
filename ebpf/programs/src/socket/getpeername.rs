//! `getpeername()`: a connected socket's peer is the one that was dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mizzen_ebpf_abi::{addr::protocol, socket::SocketPeer};

use super::{
    PROCEED,
    context::{Family, Inet, Inet6, SockAddr},
    peers,
};

/// IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    peer_name::<Inet>(&SockAddr::new(ctx))
}

/// IPv6 sockets, v4-mapped addresses included.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    peer_name::<Inet6>(&SockAddr::new(ctx))
}

#[inline(always)]
fn peer_name<F: Family>(sock: &SockAddr) -> i32 {
    let (addr, port) = (F::addr(sock), sock.port());
    if let Some(peer) = connection(sock)
        && peer.leads_to(&addr, port)
    {
        sock.rewrite::<F>(&peer.service, peer.service_port);
    }
    PROCEED
}

/// The socket's connection. A TCP socket older than layout 2 of the maps has it where UDP's are.
#[inline(always)]
fn connection(sock: &SockAddr) -> Option<&SocketPeer> {
    if sock.protocol() == protocol::TCP
        && let Some(peer) = peers::connection(sock)
    {
        return Some(peer);
    }
    peers::existing(sock).map(|peers| &peers.connected)
}
