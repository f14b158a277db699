//! Sockets of a network namespace, as the kernel finds them for a packet.

use core::{ffi::c_void, mem::size_of, ptr::from_ref};

use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    conntrack::FlowKey,
};

/// The namespace of the hook's device, or of its socket (`BPF_F_CURRENT_NETNS`).
const CURRENT_NETNS: u64 = u64::MAX;

/// IPv4 of the kernel's `struct bpf_sock_tuple`, as a packet to the socket has them.
#[repr(C)]
struct Tuple4 {
    source: u32,
    destination: u32,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// IPv6 of the same.
#[repr(C)]
struct Tuple6 {
    source: [u32; 4],
    destination: [u32; 4],
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

const _: () = assert!(size_of::<Tuple4>() == 12 && size_of::<Tuple6>() == 36);

/// Whether some socket would get a packet: one that is connected to its source, or one
/// that takes what comes to its port from anyone.
#[inline(never)]
pub(crate) fn take(context: *mut c_void, packet: &FlowKey) -> bool {
    let (source_port, destination_port) = (packet.source_port, packet.destination_port);
    let (source, destination) = (packet.source.words(), packet.destination.words());
    if packet.destination.is_v4() {
        let (source, destination) = (source[3], destination[3]);
        found(
            context,
            packet.protocol,
            &Tuple4 { source, destination, source_port, destination_port },
        )
    } else {
        found(
            context,
            packet.protocol,
            &Tuple6 { source, destination, source_port, destination_port },
        )
    }
}

/// Whether some socket takes what comes to an address and port from anyone.
#[inline(always)]
pub(crate) fn listen(context: *mut c_void, addr: &Addr, port: [u8; 2], transport: u8) -> bool {
    let (words, source_port, destination_port) = (addr.words(), [0, 0], port);
    if addr.is_v4() {
        let (source, destination) = (0, words[3]);
        found(context, transport, &Tuple4 { source, destination, source_port, destination_port })
    } else {
        let (source, destination) = ([0; 4], words);
        found(context, transport, &Tuple6 { source, destination, source_port, destination_port })
    }
}

#[inline(always)]
fn found<T>(context: *mut c_void, transport: u8, tuple: &T) -> bool {
    let (tuple, len) = (from_ref(tuple).cast_mut().cast(), size_of::<T>() as u32);
    // SAFETY: the helpers read `len` octets of the tuple, which say its family.
    let socket = unsafe {
        if transport == protocol::TCP {
            // Also what is no whole socket yet, or no more: a connection in TIME_WAIT.
            bpf_skc_lookup_tcp(context, tuple, len, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(context, tuple, len, CURRENT_NETNS, 0)
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the reference is ours, and given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}
