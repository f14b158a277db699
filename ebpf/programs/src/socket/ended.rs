//! TCP connections that end: what the kernel counted of each is added to its backend's counters.
//!
//! The kernel calls this program where it decides about any TCP connection below the cgroup. Of
//! those that were not translated it asks nothing; of the others it is told the changes of state.

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        bpf_sock_ops,
    },
    helpers::generated::{bpf_sk_storage_get, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    socket::SocketPeer,
    traffic::{Ending, tcp_state},
};

use crate::{
    events::{self, Call},
    maps::TCP_PEERS,
    traffic::{self, Ended},
};

/// Linux' number of IPv4; all others that come here are IPv6.
const AF_INET: u32 = 2;
/// What the kernel takes for "go on".
const OK: u32 = 1;

/// A field of the context: the verifier allows only whole-field accesses at known offsets.
macro_rules! field {
    ($ops:ident.$($field:tt)+) => {
        // SAFETY: the context is the one that the kernel gave us.
        unsafe { read_volatile(&raw const (*$ops).$($field)+) }
    };
}

/// TCP sockets of both families.
#[sock_ops]
pub(crate) fn tcp_state(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    match field!(ops.op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connects(ops),
        BPF_SOCK_OPS_STATE_CB => changes(ops),
        _ => {}
    }
    OK
}

/// What is remembered of the socket, if it has a connection that was translated.
#[inline(always)]
fn translated(ops: *mut bpf_sock_ops) -> Option<&'static mut SocketPeer> {
    let socket = field!(ops.__bindgen_anon_2.sk);
    if socket.is_null() {
        return None;
    }
    let map = (&raw const TCP_PEERS).cast_mut().cast();
    // SAFETY: the kernel returns null or memory that lives as long as the socket, which lives
    // while the program runs.
    let peer: Option<&mut SocketPeer> = unsafe {
        bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0)
            .cast::<SocketPeer>()
            .as_mut()
    };
    peer.filter(|peer| peer.is_used())
}

/// The SYN is about to leave.
#[inline(always)]
fn connects(ops: *mut bpf_sock_ops) {
    let Some(peer) = translated(ops) else {
        return;
    };
    tell(ops, peer);
    let flags = field!(ops.bpf_sock_ops_cb_flags);
    let flags = flags | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the context is the one that the kernel gave us. Where it fails nothing is counted.
    unsafe { bpf_sock_ops_cb_flags_set(ops, flags.cast_signed()) };
}

/// Tells those who follow: here the connection has all its addresses and ports.
#[inline(always)]
fn tell(ops: *mut bpf_sock_ops, peer: &SocketPeer) {
    let call = Call {
        protocol: protocol::TCP,
        dialled: peer.service,
        dialled_port: peer.service_port,
        set: peer.set,
    };
    events::translated(&call, &peer.backend, peer.backend_port, || own_end(ops));
}

/// This end of the connection. Every field is read whatever the family: the compiler would make one
/// read of two fields, at an offset that the verifier does not see.
#[inline(always)]
fn own_end(ops: *mut bpf_sock_ops) -> (Addr, [u8; 2]) {
    let v4 = field!(ops.local_ip4);
    let v6 = [
        field!(ops.local_ip6[0]),
        field!(ops.local_ip6[1]),
        field!(ops.local_ip6[2]),
        field!(ops.local_ip6[3]),
    ];
    let port = (field!(ops.local_port) as u16).to_be_bytes();
    let is_v4 = field!(ops.family) == AF_INET;
    let addr = if is_v4 { Addr::from_v4(v4.to_ne_bytes()) } else { Addr::from_words(v6) };
    (addr, port)
}

/// The connection changes from one state to another.
#[inline(always)]
fn changes(ops: *mut bpf_sock_ops) {
    let old = field!(ops.__bindgen_anon_1.args[0]);
    let new = field!(ops.__bindgen_anon_1.args[1]);
    if new != tcp_state::CLOSE && new != tcp_state::FIN_WAIT2 {
        return;
    }
    let Some(peer) = translated(ops) else {
        return;
    };
    let received = field!(ops.bytes_received);
    if new == tcp_state::FIN_WAIT2 {
        peer.used = received as u32;
        return;
    }
    let word = |value: u32| u64::from(value);
    let una = field!(ops.snd_una);
    let ending = Ending {
        state: old,
        acked: field!(ops.bytes_acked),
        received,
        all_acked: una == field!(ops.snd_nxt),
        received_at_fin: peer.used,
    };
    let ended = Ended {
        bytes: [ending.sent(), ending.received()],
        segments: [word(field!(ops.segs_out)), word(field!(ops.segs_in))],
        retransmits: word(field!(ops.total_retrans)),
    };
    traffic::ended(peer, &ended);
}
