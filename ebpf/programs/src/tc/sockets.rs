//! The node's own sockets. Source NAT with the node's address draws from the same ports as they
//! do: an answer that a socket waits for must not be taken for a flow's.

use core::{mem::size_of, ptr::from_ref};

use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use mizzen_ebpf_abi::{addr::protocol, conntrack::FlowKey};

use super::skb::Skb;

/// The namespace of the device whose hook this is (`BPF_F_CURRENT_NETNS`).
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

/// Whether some socket of the node would get a packet: one that is connected to its source, or one
/// that takes what comes to its port from anyone.
#[inline(never)]
pub(super) fn take(skb: Skb, packet: &FlowKey) -> bool {
    let (source_port, destination_port) = (packet.source_port, packet.destination_port);
    let (source, destination) = (packet.source.words(), packet.destination.words());
    if packet.destination.is_v4() {
        let (source, destination) = (source[3], destination[3]);
        found(skb, packet.protocol, &Tuple4 { source, destination, source_port, destination_port })
    } else {
        found(skb, packet.protocol, &Tuple6 { source, destination, source_port, destination_port })
    }
}

#[inline(always)]
fn found<T>(skb: Skb, transport: u8, tuple: &T) -> bool {
    let (tuple, len) = (from_ref(tuple).cast_mut().cast(), size_of::<T>() as u32);
    // SAFETY: the helpers read `len` octets of the tuple, which say its family.
    let socket = unsafe {
        if transport == protocol::TCP {
            // Also what is no whole socket yet, or no more: a connection in TIME_WAIT.
            bpf_skc_lookup_tcp(skb.as_ptr(), tuple, len, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(skb.as_ptr(), tuple, len, CURRENT_NETNS, 0)
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the reference is ours, and given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}
