//! The socket path: what a socket of the node dials is translated once, where it dials, so that
//! its packets carry the backend's address from the start. One file per hook.
//!
//! Forward and reverse state are written together, reverse first: a socket whose storage can't be
//! had stays untranslated, and the packet path does its work.

mod connect;
mod context;
mod getpeername;
mod peers;
mod recvmsg;
mod sendmsg;

use aya_ebpf::{Global, helpers::generated::bpf_get_netns_cookie};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    service::{Frontend, frontend_flags},
};

use self::context::SockAddr;
use crate::lookup;

/// Return value: go on, with the address as it is now.
const PROCEED: i32 = 1;
/// Return value: fail the call, with the error set by `bpf_set_retval`.
const REFUSE: i32 = 0;

/// Cookie of the network namespace that is the node's; set by the loader. 0 is none.
#[unsafe(no_mangle)]
static NODE_NETNS_COOKIE: Global<u64> = Global::new(0);

/// Whether the kernel has `bpf_set_retval`; set by the loader, so that the verifier leaves out the
/// branch that a kernel can't run.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u32> = Global::new(1);

/// The service that a socket dials, if its address has to be translated here.
#[inline(always)]
fn service(sock: &SockAddr, addr: Addr, port: [u8; 2], protocol: u8) -> Option<Frontend> {
    if addr.is_loopback() && !in_node_netns(sock) {
        return None; // a pod's own loopback, whatever the node has on its own
    }
    let frontend = lookup::frontend(addr, port, protocol)?;
    (!answered_here(&frontend)).then_some(frontend)
}

/// Whether the node itself answers for the frontend, which the agent says while it does.
#[inline(always)]
fn answered_here(frontend: &Frontend) -> bool {
    frontend.flags & frontend_flags::PREFER_LOCAL != 0
}

#[inline(always)]
fn in_node_netns(sock: &SockAddr) -> bool {
    // SAFETY: the context is the one that the kernel gave us.
    let cookie = unsafe { bpf_get_netns_cookie(sock.as_ptr()) };
    cookie == NODE_NETNS_COOKIE.load()
}

/// Whether the protocol is one that sockets are translated for.
#[inline(always)]
const fn is_translated(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}
