//! `connect()`: TCP, and UDP sockets that settle on one peer.

use aya_ebpf::{
    helpers::generated::{bpf_get_prandom_u32, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mizzen_ebpf_abi::{addr::protocol, counters::Counter, service::NO_SET};

use super::{
    HAS_SET_RETVAL, PROCEED, REFUSE, Unserved, choose, client,
    context::{Family, Inet, Inet6, SockAddr},
    is_translated,
    peers::{self, Dialled},
    service, slots,
};
use crate::{
    events,
    lookup::{self, NoBackend},
    maps::count,
    traffic,
};

/// Linux' `ECONNREFUSED`: what a reset in answer to a SYN gives, as kube-proxy's reject does.
const ECONNREFUSED: i32 = 111;

/// IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<Inet>(&SockAddr::new(ctx))
}

/// IPv6 sockets, v4-mapped addresses included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<Inet6>(&SockAddr::new(ctx))
}

#[inline(always)]
fn connect<F: Family>(sock: &SockAddr) -> i32 {
    let protocol = sock.protocol();
    if !is_translated(protocol) {
        return PROCEED;
    }
    match translate::<F>(sock, protocol) {
        Ok(()) => {
            count(Counter::SocketTranslated);
            PROCEED
        }
        Err(Untranslated::Refused(set)) if protocol == protocol::TCP => {
            count(Counter::SocketRefused);
            let dialled = Dialled { addr: F::addr(sock), port: sock.port() };
            let v4 = dialled.addr.is_v4();
            events::refused(&dialled.call(protocol, set), || client::named(sock, v4));
            if HAS_SET_RETVAL.load() != 0 {
                // SAFETY: no preconditions.
                unsafe { bpf_set_retval(-ECONNREFUSED) };
            }
            REFUSE
        }
        Err(_) => {
            forget(sock, protocol);
            PROCEED
        }
    }
}

/// Why a connection goes where it was dialled to.
enum Untranslated {
    /// The service has no endpoints (its set), or no such port ([`NO_SET`]), which only TCP finds out
    /// from `connect()`.
    Refused(u32),
    /// No service, or one that another part answers for or a client that it does not know, or no
    /// memory.
    Left,
}

#[inline(always)]
fn translate<F: Family>(sock: &SockAddr, protocol: u8) -> Result<(), Untranslated> {
    let dialled = Dialled::in_call::<F>(sock);
    let frontend = service(sock, &dialled, protocol, || sock.own_addr(dialled.addr.is_v4()))
        .map_err(|reason| unserved(sock, &dialled, &reason))?;
    let slots = slots(&frontend, sock, dialled.addr.is_v4())
        .map_err(|reason| refused(frontend.set, reason))?;
    let hash = if protocol == protocol::TCP {
        // SAFETY: no preconditions.
        unsafe { bpf_get_prandom_u32() }
    } else {
        sock.hash()
    };
    let backend = choose(sock, &slots, hash, dialled.addr.is_v4()).ok_or(Untranslated::Left)?;
    if protocol == protocol::TCP {
        let peer = peers::created_connection(sock).ok_or(Untranslated::Left)?;
        peer.replace_with(&dialled.became(&backend, &slots, 0));
    } else {
        let peers = peers::created(sock).ok_or(Untranslated::Left)?;
        let used = peers.tick();
        peers.connect(&dialled.became(&backend, &slots, used));
    }
    sock.rewrite::<F>(&backend.addr, backend.port);
    traffic::dialled(&backend);
    // Connections of TCP have a port of their own when they leave, and are told of there.
    if protocol != protocol::TCP || sock.is_multipath() {
        let v4 = dialled.addr.is_v4();
        let call = dialled.call(protocol, frontend.set);
        events::translated_to(&call, &backend, || client::named(sock, v4));
    }
    Ok(())
}

/// What is dialled now is what the peer is.
#[inline(always)]
fn forget(sock: &SockAddr, protocol: u8) {
    let connected = if protocol == protocol::TCP {
        peers::connection(sock)
    } else {
        peers::existing(sock).map(|peers| &mut peers.connected)
    };
    if let Some(peer) = connected {
        peer.forget();
    }
}

/// Another port of a service's address is refused (B8, B9); what no service has is no business of
/// a socket (B10 is the packet path's). A second look at the frontends finds one whose element was
/// replaced during the first, and had become another's: the packet path translates that connection.
#[inline(always)]
fn unserved(sock: &SockAddr, dialled: &Dialled, reason: &Unserved) -> Untranslated {
    if matches!(reason, Unserved::Unknown)
        && sock.protocol() == protocol::TCP
        && lookup::refuses_other_ports(dialled.addr)
        && !client::opted_out(sock)
        && lookup::frontend(dialled.addr, dialled.port, protocol::TCP).is_none()
    {
        Untranslated::Refused(NO_SET)
    } else {
        Untranslated::Left
    }
}

#[inline(always)]
fn refused(set: u32, reason: NoBackend) -> Untranslated {
    if reason == NoBackend::Reject { Untranslated::Refused(set) } else { Untranslated::Left }
}
