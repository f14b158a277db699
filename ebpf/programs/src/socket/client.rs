//! Who is behind a socket: the node itself, or the pod whose network namespace it was made in
//! (reference D12).
//!
//! Of a namespace that nobody told about, such as that of a pod that another plugin connected,
//! nothing is known: what depends on the client is then left to its packets, which carry its
//! address.

use aya_ebpf::Global;
use mizzen_ebpf_abi::{
    addr::Addr,
    node::{endpoint_flags, node_config_flags, socket_options},
    service::{Frontend, frontend_flags},
};

use super::context::SockAddr;
use crate::{
    lookup::{self, Window},
    maps::{NODE_CONFIG, POD_NETNS, SOCKET_OPTIONS},
};

/// Cookie of the network namespace that is the node's; set by the loader. 0 is none.
#[unsafe(no_mangle)]
static NODE_NETNS_COOKIE: Global<u64> = Global::new(0);

/// Whether the socket is in the node's own namespace.
#[inline(always)]
pub(super) fn is_node(sock: &SockAddr) -> bool {
    sock.netns_cookie() == NODE_NETNS_COOKIE.load()
}

/// The client's address in a family, where it is known and has one.
#[inline(always)]
pub(super) fn address(sock: &SockAddr, v4: bool) -> Option<Addr> {
    let cookie = sock.netns_cookie();
    let addr = if cookie == NODE_NETNS_COOKIE.load() {
        *NODE_CONFIG.get(0)?.own(v4)
    } else {
        // SAFETY: a pod's entry stays as it is while the pod's sockets are there.
        let pod = unsafe { POD_NETNS.get(&cookie) }?;
        if v4 { pod.ipv4 } else { pod.ipv6 }
    };
    (!addr.is(&Addr::default())).then_some(addr)
}

/// Whether the socket's client is known to be one that may use a frontend with source ranges. What
/// counts is the address that its packets will have, not the one that it is known by: `bound` is the
/// one that its socket has already, else the unspecified one.
#[inline(always)]
pub(super) fn admitted(frontend: &Frontend, sock: &SockAddr, bound: &Addr, dialled: &Addr) -> bool {
    let v4 = dialled.is_v4();
    if is_node(sock) {
        let Some(config) = NODE_CONFIG.get(0) else {
            return false;
        };
        return lookup::source_of_node(config, bound, dialled)
            .is_some_and(|from| lookup::admits(frontend, (&from, dialled), Some(config.own(v4))));
    }
    address(sock, v4).is_some_and(|pod| {
        (bound.is_unspecified() || bound.is(&pod))
            && lookup::admits(frontend, (&pod, dialled), None)
    })
}

/// The client as those who follow are told of it: its address in a family, all zero where that is
/// not known, and its port.
#[inline(always)]
pub(super) fn named(sock: &SockAddr, v4: bool) -> (Addr, [u8; 2]) {
    (address(sock, v4).unwrap_or_default(), sock.own_port())
}

/// Whether the socket is of a pod whose sockets are left alone. Costs nothing where no pod of the
/// node wants that.
#[inline(always)]
pub(super) fn opted_out(sock: &SockAddr) -> bool {
    let options = SOCKET_OPTIONS.get(0).copied().unwrap_or(0);
    if options & socket_options::OPTED_OUT == 0 {
        return false;
    }
    // SAFETY: flags are one word; a change of them comes before or after this.
    let pod = unsafe { POD_NETNS.get(&sock.netns_cookie()) };
    pod.is_some_and(|pod| pod.flags & endpoint_flags::NO_SOCKET_TRANSLATION != 0)
}

/// The window that the socket's backend comes from. Where pods can't be told from others by their
/// addresses of the family that is dialled, they are bound by the external traffic policy (reference
/// B47).
#[inline(always)]
pub(super) fn window(frontend: &Frontend, sock: &SockAddr, v4: bool) -> Window {
    if frontend.flags & frontend_flags::EXTERNAL != 0
        && NODE_CONFIG.get(0).map_or(0, |config| config.flags)
            & node_config_flags::no_pod_detection(v4)
            != 0
        && !is_node(sock)
    {
        return Window::outside(frontend);
    }
    Window::nearby(frontend)
}
