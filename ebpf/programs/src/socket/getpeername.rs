//! `getpeername()`: a connected socket's peer is the one that was dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

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
    if let Some(peers) = peers::existing(sock)
        && let Some(peer) = peers.connection_to(&F::addr(sock), sock.port())
    {
        sock.rewrite::<F>(&peer.service, peer.service_port);
    }
    PROCEED
}
