//! The last stage: a translated packet goes to its next hop from here.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS,
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh},
};
use mizzen_ebpf_abi::{addr::Addr, conntrack::FlowKey, counters::Counter, node::Endpoint};

use super::{DROP, PASS, skb::Skb};
use crate::maps::{ENDPOINTS, count};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The kernel's `struct bpf_fib_lookup`, without its unions: an IPv4 address is the first of the
/// four words.
#[repr(C)]
struct FibLookup {
    family: u8,
    l4_protocol: u8,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    /// 0: the length of the packet itself is compared with the next link's MTU, segmentation
    /// taken into account. The MTU on return.
    total_len: u16,
    /// Of the device that the packet came by; of the one that it leaves by on return.
    ifindex: u32,
    flow_info: u32,
    source: [u32; 4],
    /// The destination; the next hop on return.
    destination: [u32; 4],
    vlan: [u8; 4],
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
}

/// The kernel's `struct bpf_redir_neigh`.
#[repr(C)]
struct NextHop {
    family: u32,
    address: [u32; 4],
}

const _: () = assert!(size_of::<FibLookup>() == 64 && size_of::<NextHop>() == 20);

/// Sends the packet on; `leaving` is its flow as it stands in the packet now.
#[inline(never)]
pub(super) fn deliver(skb: Skb, leaving: &FlowKey) -> i32 {
    match to_own_pod(skb, leaving) {
        Some(verdict) => verdict,
        None => route(skb, leaving),
    }
}

/// Sends the packet on where it goes to a pod of this node.
#[inline(always)]
pub(super) fn to_own_pod(skb: Skb, leaving: &FlowKey) -> Option<i32> {
    let endpoint = ENDPOINTS.get_ptr(&leaving.destination)?;
    // SAFETY: an element of a live map. A pod that is replaced meanwhile had this address.
    Some(to_pod(skb, unsafe { &*endpoint }))
}

/// To a pod of this node: the host's end of its veth sends what the pod's end receives.
#[inline(always)]
fn to_pod(skb: Skb, endpoint: &Endpoint) -> i32 {
    let (to, from) = (endpoint.pod_mac, endpoint.host_mac);
    let macs = [
        to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4],
        from[5],
    ];
    if skb.store(0, &macs, 0).is_err() {
        return DROP;
    }
    // SAFETY: the helper takes no pointers.
    unsafe { bpf_redirect(endpoint.ifindex, 0) as i32 }
}

/// To where the node's routes lead; the kernel resolves the neighbour.
#[inline(always)]
fn route(skb: Skb, leaving: &FlowKey) -> i32 {
    let v4 = leaving.destination.is_v4();
    let mut fib = FibLookup {
        family: if v4 { AF_INET } else { AF_INET6 },
        l4_protocol: leaving.protocol,
        source_port: leaving.source_port,
        destination_port: leaving.destination_port,
        total_len: 0,
        ifindex: skb.ifindex(),
        flow_info: 0,
        source: words(&leaving.source, v4),
        destination: words(&leaving.destination, v4),
        vlan: [0; 4],
        source_mac: [0; 6],
        destination_mac: [0; 6],
    };
    let len = size_of::<FibLookup>() as i32;
    // SAFETY: the structure has the layout that the helper expects, and its size is given.
    let found = unsafe { bpf_fib_lookup(skb.as_ptr(), (&raw mut fib).cast(), len, 0) };
    match found as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
            let mut hop = NextHop { family: fib.family.into(), address: fib.destination };
            let len = size_of::<NextHop>() as i32;
            // SAFETY: as above.
            unsafe { bpf_redirect_neigh(fib.ifindex, (&raw mut hop).cast(), len, 0) as i32 }
        }
        BPF_FIB_LKUP_RET_NOT_FWDED => PASS, // for the node itself
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            count(Counter::DropPacketTooBig);
            DROP
        }
        _ => {
            count(Counter::DropNoRoute);
            DROP
        }
    }
}

/// An address as the kernel's structures hold it.
#[inline(always)]
fn words(address: &Addr, v4: bool) -> [u32; 4] {
    let words = address.words();
    if v4 { [words[3], 0, 0, 0] } else { words }
}
