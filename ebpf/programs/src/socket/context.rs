//! `struct bpf_sock_addr` with addresses in the form of the maps.
//!
//! The verifier allows only whole-word accesses at fixed offsets, and to each program only the
//! fields of its family: hence volatile accesses, and the family as a type.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    socket::spread,
};

/// Linux' protocol number of Multipath TCP sockets (RFC 8684), which is none of IANA's.
const MPTCP: u32 = 262;

/// The state of a UDP socket that is connected: Linux' `TCP_ESTABLISHED`.
const ESTABLISHED: u32 = 1;

/// The context of a program.
pub(super) struct SockAddr {
    context: SockAddrContext,
}

/// The family whose fields a program may touch: that of the hook. An IPv6 socket that dials an
/// IPv4 address in its v4-mapped form stays in the hooks of IPv6.
pub(super) trait Family {
    /// The address that is dialled, or that a datagram came from.
    fn addr(sock: &SockAddr) -> Addr;
    /// Puts another in its place; of the same family, v4-mapped counted as IPv4.
    fn set_addr(sock: &SockAddr, addr: &Addr);
    /// The source that a datagram which is sent has already: that of its socket, or of the call
    /// (`IP_PKTINFO`, `IPV6_PKTINFO`); the unspecified address where routes will tell. For the hooks of
    /// `sendmsg()` alone.
    fn source(sock: &SockAddr) -> Addr;
}

/// The hooks named …4.
pub(super) struct Inet;
/// The hooks named …6.
pub(super) struct Inet6;

impl Family for Inet {
    #[inline(always)]
    fn addr(sock: &SockAddr) -> Addr {
        // SAFETY: the hooks of IPv4 may read this field.
        let v4 = unsafe { ptr::read_volatile(&raw const (*sock.raw()).user_ip4) };
        Addr::from_v4(v4.to_ne_bytes())
    }

    #[inline(always)]
    fn set_addr(sock: &SockAddr, addr: &Addr) {
        let v4 = u32::from_ne_bytes(addr.v4());
        // SAFETY: the hooks of IPv4 may write this field.
        unsafe { ptr::write_volatile(&raw mut (*sock.raw()).user_ip4, v4) };
    }

    #[inline(always)]
    fn source(sock: &SockAddr) -> Addr {
        // SAFETY: the hook that sends over IPv4 may read this field.
        let v4 = unsafe { ptr::read_volatile(&raw const (*sock.raw()).msg_src_ip4) };
        Addr::from_v4(v4.to_ne_bytes())
    }
}

impl Family for Inet6 {
    #[inline(always)]
    fn addr(sock: &SockAddr) -> Addr {
        let mut octets = [0; 16];
        for (i, word) in octets.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // SAFETY: the hooks of IPv6 may read these four words; `i` is below 4.
            let value = unsafe { ptr::read_volatile(&raw const (*sock.raw()).user_ip6[i]) };
            *word = value.to_ne_bytes();
        }
        Addr::from_v6(octets)
    }

    #[inline(always)]
    fn set_addr(sock: &SockAddr, addr: &Addr) {
        for (i, word) in addr.octets.as_chunks::<4>().0.iter().enumerate() {
            let value = u32::from_ne_bytes(*word);
            // SAFETY: the hooks of IPv6 may write these four words; `i` is below 4.
            unsafe { ptr::write_volatile(&raw mut (*sock.raw()).user_ip6[i], value) };
        }
    }

    #[inline(always)]
    fn source(sock: &SockAddr) -> Addr {
        let mut octets = [0; 16];
        for (i, word) in octets.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // SAFETY: the hook that sends over IPv6 may read these four words; `i` is below 4.
            let value = unsafe { ptr::read_volatile(&raw const (*sock.raw()).msg_src_ip6[i]) };
            *word = value.to_ne_bytes();
        }
        Addr::from_v6(octets)
    }
}

impl SockAddr {
    /// The context that the kernel gave.
    #[inline(always)]
    pub(super) const fn new(context: SockAddrContext) -> Self {
        Self { context }
    }

    /// The context, for aya's maps.
    #[inline(always)]
    pub(super) const fn context(&self) -> &SockAddrContext {
        &self.context
    }

    /// The context, for helpers.
    #[inline(always)]
    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.context.as_ptr()
    }

    #[inline(always)]
    const fn raw(&self) -> *mut bpf_sock_addr {
        self.context.sock_addr
    }

    /// IANA protocol number of the socket, whose packets are TCP's where it is MPTCP; 0 for others
    /// above 255.
    #[inline(always)]
    pub(super) fn protocol(&self) -> u8 {
        // SAFETY: every hook may read this field.
        let protocol = unsafe { ptr::read_volatile(&raw const (*self.raw()).protocol) };
        if protocol == MPTCP {
            return protocol::TCP;
        }
        u8::try_from(protocol).unwrap_or(0)
    }

    /// Whether it is a socket of Multipath TCP.
    #[inline(always)]
    pub(super) fn is_multipath(&self) -> bool {
        // SAFETY: every hook may read this field.
        unsafe { ptr::read_volatile(&raw const (*self.raw()).protocol) == MPTCP }
    }

    /// The port that the socket has, network byte order; 0 while it has none.
    #[inline(always)]
    pub(super) fn own_port(&self) -> [u8; 2] {
        // SAFETY: every hook may read the pointer, which leads to the socket that makes the call,
        // and the socket's port, which is in host byte order there.
        let port = unsafe {
            let sock = ptr::read_volatile(&raw const (*self.raw()).__bindgen_anon_1.sk);
            ptr::read_volatile(&raw const (*sock).src_port)
        };
        (port as u16).to_be_bytes()
    }

    /// The address of a family that the socket has, because it is bound to it or was connected;
    /// the unspecified one where routes will tell.
    #[inline(always)]
    pub(super) fn own_addr(&self, v4: bool) -> Addr {
        // SAFETY: every hook may read the pointer, which leads to the socket that makes the call.
        let sock = unsafe { ptr::read_volatile(&raw const (*self.raw()).__bindgen_anon_1.sk) };
        // Both are read whichever is asked for: the compiler would make one load at a chosen offset of
        // two branches, which the verifier refuses.
        // SAFETY: every hook may read the socket's addresses; this one is set for a v4-mapped address
        // too.
        let word = unsafe { ptr::read_volatile(&raw const (*sock).src_ip4) };
        let mut octets = [0; 16];
        for (i, word) in octets.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // SAFETY: as above; `i` is below 4.
            let value = unsafe { ptr::read_volatile(&raw const (*sock).src_ip6[i]) };
            *word = value.to_ne_bytes();
        }
        if v4 { Addr::from_v4(word.to_ne_bytes()) } else { Addr::from_v6(octets) }
    }

    /// The number of the socket's network namespace.
    #[inline(always)]
    pub(super) fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is the one that the kernel gave us.
        unsafe { bpf_get_netns_cookie(self.as_ptr()) }
    }

    /// The port, network byte order.
    #[inline(always)]
    pub(super) fn port(&self) -> [u8; 2] {
        // SAFETY: every hook may read this field, in whose first two bytes the port is.
        let port = unsafe { ptr::read_volatile(&raw const (*self.raw()).user_port) };
        let bytes = port.to_ne_bytes();
        [bytes[0], bytes[1]]
    }

    /// Puts another address and port in place of those of the call.
    #[inline(always)]
    pub(super) fn rewrite<F: Family>(&self, addr: &Addr, port: [u8; 2]) {
        F::set_addr(self, addr);
        let port = u32::from_ne_bytes([port[0], port[1], 0, 0]);
        // SAFETY: every hook may write this field.
        unsafe { ptr::write_volatile(&raw mut (*self.raw()).user_port, port) };
    }

    /// Whether a UDP socket is connected.
    #[inline(always)]
    pub(super) fn is_connected(&self) -> bool {
        // SAFETY: every hook may read the pointer, which leads to the socket that makes the call,
        // and the socket's state.
        let state = unsafe {
            let sock = ptr::read_volatile(&raw const (*self.raw()).__bindgen_anon_1.sk);
            ptr::read_volatile(&raw const (*sock).state)
        };
        state == ESTABLISHED
    }

    /// A number that this socket keeps and no other has, spread over 32 bits: what a UDP socket
    /// sticks to its backend by.
    #[inline(always)]
    pub(super) fn hash(&self) -> u32 {
        // SAFETY: the context is the one that the kernel gave us.
        let cookie = unsafe { bpf_get_socket_cookie(self.as_ptr()) };
        spread(cookie)
    }
}
