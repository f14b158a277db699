//! `recvfrom()` and `recvmsg()` of UDP sockets: an answer comes from the address that was asked.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mizzen_ebpf_abi::addr::protocol;

use super::{
    PROCEED,
    context::{Family, Inet, Inet6, SockAddr},
    peers,
};

/// IPv4 sockets.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    receive::<Inet>(&SockAddr::new(ctx))
}

/// IPv6 sockets, v4-mapped addresses included.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    receive::<Inet6>(&SockAddr::new(ctx))
}

#[inline(always)]
fn receive<F: Family>(sock: &SockAddr) -> i32 {
    if sock.protocol() == protocol::UDP
        && let Some(peers) = peers::existing(sock)
        && let Some(peer) = peers.behind(&F::addr(sock), sock.port())
    {
        sock.rewrite::<F>(&peer.service, peer.service_port);
    }
    PROCEED
}
