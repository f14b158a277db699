//! The socket path: what a socket of the node dials is translated once, where it dials, so that
//! its packets carry the backend's address from the start. One file per hook.
//!
//! Forward and reverse state are written together, reverse first: a socket whose storage can't be
//! had stays untranslated, and the packet path does its work.

mod client;
mod connect;
mod context;
mod ended;
mod getpeername;
mod peers;
mod recvmsg;
mod sendmsg;

use aya_ebpf::Global;
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    service::{Frontend, frontend_flags},
};

use self::{context::SockAddr, peers::Dialled};
use crate::{
    lookup::{self, Backend, NoBackend, Slots},
    sockets,
};

/// Return value: go on, with the address as it is now.
const PROCEED: i32 = 1;
/// Return value: fail the call, with the error set by `bpf_set_retval`.
const REFUSE: i32 = 0;

/// Whether the kernel has `bpf_set_retval`; set by the loader, so that the verifier leaves out the
/// branch that a kernel can't run.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u32> = Global::new(1);

/// Why a socket is not translated, before any backend is asked for.
enum Unserved {
    /// No frontend has the address and port.
    Unknown,
    /// A part that is not this one does its work.
    Left,
}

/// The service that a socket dials, if its address has to be translated here. `bound` is asked for
/// the address that the socket has already, the unspecified one where it has none.
///
/// Who may not use it is left to the packets, which are dropped: a client that waits in vain is
/// what a source range is for (reference V1). So is who is not known.
#[inline(always)]
fn service(
    sock: &SockAddr,
    dialled: &Dialled,
    protocol: u8,
    bound: impl FnOnce() -> Addr,
) -> Result<Frontend, Unserved> {
    let addr = dialled.addr;
    if addr.is_loopback() && !client::is_node(sock) {
        return Err(Unserved::Left); // a pod's own loopback, whatever the node has on its own
    }
    let Some(frontend) = lookup::frontend(addr, dialled.port, protocol) else {
        return Err(Unserved::Unknown);
    };
    if answered_here(&frontend, sock, dialled, protocol)
        || client::opted_out(sock)
        || frontend.flags & frontend_flags::SOURCE_RANGES != 0
            && !client::admitted(&frontend, sock, &bound(), &addr)
    {
        return Err(Unserved::Left);
    }
    Ok(frontend)
}

/// Whether the node itself answers for the frontend, as it does while it has a listener. A pod's
/// sockets are left alone in any case: their packets find out one by one, so that a socket that
/// stays connected never leads to who was there when it was.
#[inline(always)]
fn answered_here(frontend: &Frontend, sock: &SockAddr, dialled: &Dialled, protocol: u8) -> bool {
    frontend.flags & frontend_flags::PREFER_LOCAL != 0
        && (!client::is_node(sock)
            || sockets::listen(sock.as_ptr(), &dialled.addr, dialled.port, protocol))
}

/// The slots that the socket may choose from, where it dials an address of this family.
#[inline(always)]
fn slots(frontend: &Frontend, sock: &SockAddr, v4: bool) -> Result<Slots, NoBackend> {
    lookup::slots(frontend, client::window(frontend, sock, v4))
}

/// The backend for the socket: that of its client where clients keep theirs, else the one that
/// `hash` leads to.
#[inline(always)]
fn choose(sock: &SockAddr, slots: &Slots, hash: u32, v4: bool) -> Option<Backend> {
    if slots.affinity_s == 0 {
        return lookup::choose(slots, hash, v4).ok();
    }
    let client = client::address(sock, v4)?;
    lookup::choose_for(&client, slots, hash, v4).ok()
}

/// Whether the protocol is one that sockets are translated for.
#[inline(always)]
const fn is_translated(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}
