//! `sendto()` and `sendmsg()` of UDP sockets that name a destination.
//!
//! A socket sticks to the backend that its cookie chose. When the set's generation changes it
//! looks whether that backend still is one that it could choose, and chooses again where not: no
//! datagram goes on to a backend that left. Where clients keep their backends (session affinity)
//! every datagram goes to that of its client, whatever the socket remembers.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    counters::Counter,
    socket::SocketPeer,
};

use super::{
    PROCEED, choose, client,
    context::{Family, Inet, Inet6, SockAddr},
    peers::{self, Dialled},
    service, slots,
};
use crate::{
    events,
    lookup::{self, Slots},
    maps::count,
    traffic,
};

/// IPv4 sockets, and IPv6 sockets that send to a v4-mapped address.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send::<Inet>(&SockAddr::new(ctx))
}

/// IPv6 sockets.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send::<Inet6>(&SockAddr::new(ctx))
}

/// Never fails a call: what can't be translated is the packet path's.
#[inline(always)]
fn send<F: Family>(sock: &SockAddr) -> i32 {
    if sock.protocol() == protocol::UDP {
        let dialled = Dialled::in_call::<F>(sock);
        match translate::<F>(sock, &dialled) {
            Some((addr, port)) => {
                sock.rewrite::<F>(&addr, port);
                count(Counter::SocketTranslated);
            }
            None => {
                if let Some(peers) = peers::existing(sock) {
                    peers.forget_sent_to(&dialled.addr, dialled.port, sock.is_connected());
                }
            }
        }
    }
    PROCEED
}

#[inline(always)]
fn translate<F: Family>(sock: &SockAddr, dialled: &Dialled) -> Option<(Addr, [u8; 2])> {
    let frontend = service(sock, dialled, protocol::UDP, || F::source(sock)).ok()?;
    let v4 = dialled.addr.is_v4();
    let slots = slots(&frontend, sock, v4).ok()?;
    let peers = peers::created(sock)?;
    let now = peers.tick();
    let held = peers.newest(&dialled.addr, dialled.port, slots.set);
    let backend = if slots.affinity_s == 0 {
        if let Some(peer) = held
            && still_right(peer, &slots, v4)
        {
            peer.used = now;
            return Some((peer.backend, peer.backend_port));
        }
        choose(sock, &slots, sock.hash(), v4)?
    } else {
        let backend = choose(sock, &slots, sock.hash(), v4)?;
        if let Some(peer) = held
            && peer.leads_to(&backend.addr, backend.port)
        {
            peer.used = now;
            return Some((backend.addr, backend.port));
        }
        backend
    };
    peers.send(&dialled.became(&backend, &slots, now));
    traffic::dialled(&backend);
    let call = dialled.call(protocol::UDP, slots.set);
    events::translated_to(&call, &backend, || client::named(sock, v4));
    Some((backend.addr, backend.port))
}

/// Whether a remembered choice is one that the set's current range offers.
#[inline(always)]
fn still_right(peer: &mut SocketPeer, slots: &Slots, v4: bool) -> bool {
    if peer.generation == slots.generation {
        return true;
    }
    let offered = lookup::offers(slots, peer.backend_id)
        && lookup::backend(slots.set, peer.backend_id, v4)
            .is_some_and(|backend| peer.leads_to(&backend.addr, backend.port));
    if offered {
        peer.generation = slots.generation;
    }
    offered
}
