//! The last stage: a translated packet goes to its next hop from here. The hop is found before
//! the packet is rewritten, so that one that can't go there is still as its sender made it.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        BPF_F_INGRESS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SKIP_NEIGH,
        BPF_FIB_LOOKUP_SRC,
    },
    helpers::generated::{
        bpf_check_mtu, bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    },
};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    conntrack::FlowKey,
    counters::Counter,
    nat::Translation,
    node::{Endpoint, endpoint_flags},
    packet::{Bytes, Packet},
    service::NO_SET,
    tunnel::{DEVICE_MAC, OUTER_WORDS, SOURCE_MAC},
};

use super::{DROP, PASS, UNKNOWN, drop_counted, into_tunnel, skb::Skb, translate};
use crate::{lookup, maps::ENDPOINTS};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Octets that every link of a cluster takes (RFC 791: every host does): for smaller packets no
/// MTU is asked for.
const FITS_EVERYWHERE: u32 = 576;

/// The kernel's `struct bpf_fib_lookup`, without its unions: an IPv4 address is the first of the
/// four words.
#[repr(C)]
struct FibLookup {
    family: u8,
    l4_protocol: u8,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    /// The packet's, compared with the MTU of the route; that MTU on return.
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

impl FibLookup {
    /// Asks the node's routes for the way of a packet that came by this device: protocol, source and
    /// port, destination and port, and its length where that matters. What is not set here is read by
    /// nobody before it is written.
    #[inline(always)]
    fn ask(
        &mut self,
        skb: Skb,
        (protocol, source, source_port): (u8, &Addr, [u8; 2]),
        (destination, destination_port): (&Addr, [u8; 2]),
        length: u32,
        flags: u32,
    ) -> u32 {
        let v4 = destination.is_v4();
        self.family = if v4 { AF_INET } else { AF_INET6 };
        self.l4_protocol = protocol;
        self.source_port = source_port;
        self.destination_port = destination_port;
        self.total_len = length as u16;
        self.ifindex = skb.ifindex();
        self.flow_info = 0;
        self.source = words(source, v4);
        self.destination = words(destination, v4);
        let len = size_of::<Self>() as i32;
        // SAFETY: the structure has the layout that the helper expects, and its size is given.
        unsafe { bpf_fib_lookup(skb.as_ptr(), (&raw mut *self).cast(), len, flags) as u32 }
    }
}

/// The kernel's `struct bpf_redir_neigh`.
#[repr(C)]
struct NextHop {
    family: u32,
    address: [u32; 4],
}

const _: () = assert!(size_of::<FibLookup>() == 64 && size_of::<NextHop>() == 20);

/// Where a packet goes from here.
#[repr(C)]
pub(super) struct Way {
    /// By this device.
    pub(super) ifindex: u32,
    /// To this neighbour; family 0 is the pod at the other end of the device.
    hop: NextHop,
    /// The link-layer addresses towards that pod.
    macs: [u8; 12],
    /// The MTU that the packet exceeds, where [`find`] says so.
    pub(super) mtu: u16,
    /// The question to the node's routes, and their answer.
    fib: FibLookup,
    /// What goes in front of the packet on its way through the tunnel.
    pub(super) outer: [u32; OUTER_WORDS],
}

/// What [`find`] found.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Found {
    /// The way.
    Way,
    /// That the destination is this node itself.
    Node,
    /// That there is no route.
    Nothing,
    /// That the packet is larger than the way's MTU.
    TooBig,
}

/// Finds the way of a packet; `leaving` is its flow as it will leave.
#[inline(never)]
pub(super) fn find(skb: Skb, packet: &Packet, leaving: &FlowKey, way: &mut Way) -> Found {
    let length = network_length(skb, packet);
    if let Some(endpoint) = ENDPOINTS.get_ptr(&leaving.destination) {
        // SAFETY: an element of a live map. A pod that is replaced meanwhile had this address.
        return to_pod(skb, unsafe { &*endpoint }, length, way);
    }
    match into_tunnel::device(skb, leaving) {
        Some(device) => to_tunnel(skb, device, length, way),
        None => {
            let from = (leaving.protocol, &leaving.source, leaving.source_port);
            let to = (&leaving.destination, leaving.destination_port);
            route(skb, from, to, length, way)
        }
    }
}

/// Sends a packet on that is translated already: its sender wouldn't recognise what an ICMP error
/// of ours quotes.
#[inline(always)]
pub(super) fn deliver(skb: Skb, packet: &Packet, way: &mut Way) -> i32 {
    match find(skb, packet, &packet.key, way) {
        Found::Way => send(skb, way),
        Found::Node => {
            skb.claim(); // it bears the link-layer address of where it was before
            PASS
        }
        Found::Nothing => drop_counted(packet, NO_SET, Counter::DropNoRoute),
        Found::TooBig => drop_counted(packet, NO_SET, Counter::DropPacketTooBig),
    }
}

/// Whether a packet is larger than its way takes; the MTU is then in `way`.
#[inline(always)]
pub(super) fn exceeds(skb: Skb, packet: &Packet, leaving: &FlowKey, way: &mut Way) -> bool {
    network_length(skb, packet) > FITS_EVERYWHERE
        && find(skb, packet, leaving, way) == Found::TooBig
}

/// Sends the packet on where it goes to a pod of this node.
#[inline(always)]
pub(super) fn to_own_pod(skb: Skb, leaving: &FlowKey, way: &mut Way) -> Option<i32> {
    let endpoint = ENDPOINTS.get_ptr(&leaving.destination)?;
    // SAFETY: as above. Whether it fits was asked before.
    to_pod(skb, unsafe { &*endpoint }, 0, way);
    Some(send(skb, way))
}

/// Sends an untranslated packet to a pod of this node, as its router: straight into that pod's
/// namespace, or into the queue before it. What is too large or has come too far is left to the
/// stack, which tells its sender. [`UNKNOWN`] where it goes to no pod of this node.
#[inline(never)]
pub(super) fn to_pod_here(skb: Skb, packet: &Packet, way: &mut Way) -> i32 {
    let Some(endpoint) = ENDPOINTS.get_ptr(&packet.key.destination) else {
        return UNKNOWN;
    };
    // SAFETY: an element of a live map. A pod that is replaced meanwhile had this address.
    let endpoint = unsafe { &*endpoint };
    let length = network_length(skb, packet);
    if packet.hop_limit() < 2 || to_pod(skb, endpoint, length, way) != Found::Way {
        return PASS;
    }
    if forward(skb, packet, &way.macs).is_err() {
        return DROP;
    }
    // SAFETY: the helpers take no pointers.
    unsafe {
        if endpoint.flags & endpoint_flags::QUEUED != 0 {
            bpf_redirect(way.ifindex, 0) as i32
        } else {
            bpf_redirect_peer(way.ifindex, 0) as i32
        }
    }
}

/// Makes a packet the next link's, under link-layer addresses of that, and with one hop less before it.
#[inline(always)]
fn forward(skb: Skb, packet: &Packet, macs: &[u8; 12]) -> Result<(), ()> {
    let (source, destination) = (&packet.key.source, &packet.key.destination);
    translate::addresses(skb, packet, source, destination, packet.hop_limit() - 1)?;
    skb.store(0, macs, 0)
}

/// Whether the packet is from the pod whose device it came by.
#[inline(always)]
pub(super) fn is_from_pod_here(skb: Skb, source: &Addr) -> bool {
    match ENDPOINTS.get_ptr(source) {
        // SAFETY: an element of a live map. A pod that is replaced meanwhile had this address.
        Some(endpoint) => unsafe { (*endpoint).ifindex == skb.ifindex() },
        None => false,
    }
}

/// Octets of the largest IP packet that this buffer will be on a wire: one that holds many of a
/// flow is segmented when it leaves.
#[inline(always)]
pub(super) fn network_length(skb: Skb, packet: &Packet) -> u32 {
    let segment = skb.segment_size();
    if segment == 0 {
        return packet.total_len;
    }
    let header = match packet.key.protocol {
        // An octet that can't be read makes the packet no larger than it may be.
        protocol::TCP => skb.load::<2>(packet.l4 + 12).map_or(20, |[offset, _]| offset >> 4 << 2),
        _ => 8,
    };
    packet.l4 - packet.l3 + u32::from(header) + segment
}

/// To a pod of this node: the host's end of its veth sends what the pod's end receives.
#[inline(always)]
fn to_pod(skb: Skb, endpoint: &Endpoint, length: u32, way: &mut Way) -> Found {
    let (to, from) = (endpoint.pod_mac, endpoint.host_mac);
    way.macs = [
        to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4],
        from[5],
    ];
    way.ifindex = endpoint.ifindex;
    way.hop.family = 0;
    if exceeds_mtu(skb, length, way) { Found::TooBig } else { Found::Way }
}

/// To the tunnel's device, which leads to the node; routes lead there for its pods alone.
#[inline(always)]
fn to_tunnel(skb: Skb, device: u32, length: u32, way: &mut Way) -> Found {
    let (to, from) = (DEVICE_MAC, SOURCE_MAC);
    way.macs = [
        to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4],
        from[5],
    ];
    way.ifindex = device;
    way.hop.family = 0;
    if exceeds_mtu(skb, length, way) { Found::TooBig } else { Found::Way }
}

/// Whether the way's device takes no packet of this length; its MTU is then in the way. A device
/// that is gone drops it.
#[inline(always)]
pub(super) fn exceeds_mtu(skb: Skb, length: u32, way: &mut Way) -> bool {
    if length <= FITS_EVERYWHERE {
        return false;
    }
    // In: the length to compare; out: the MTU.
    let mut mtu = length;
    // SAFETY: the helper reads and writes the one word.
    let exceeds = unsafe { bpf_check_mtu(skb.as_ptr(), way.ifindex, &raw mut mtu, 0, 0) } > 0;
    if exceeds {
        way.mtu = mtu as u16;
    }
    exceeds
}

/// To where the node's routes lead what goes from a source and port of a protocol to a destination
/// and port; the kernel resolves the neighbour.
#[inline(always)]
pub(super) fn route(
    skb: Skb,
    from: (u8, &Addr, [u8; 2]),
    to: (&Addr, [u8; 2]),
    length: u32,
    way: &mut Way,
) -> Found {
    let fib = &mut way.fib;
    match fib.ask(skb, from, to, length, 0) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
            way.ifindex = fib.ifindex;
            way.hop.family = fib.family.into();
            way.hop.address = fib.destination;
            Found::Way
        }
        // So the kernel says of a destination without a route, too.
        BPF_FIB_LKUP_RET_NOT_FWDED if translate::is_node(*to.0) => Found::Node,
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            way.mtu = fib.total_len;
            Found::TooBig
        }
        _ => Found::Nothing,
    }
}

/// Has a flow leave under the address that this node has in the network of another plugin's pods,
/// where its way leads through that: a tunnel's other end knows the pods behind this one and not the
/// node, and takes nothing else where reverse path filters are strict. So does kube-proxy, whose
/// masquerades have the address of the device that they leave by.
#[inline(never)]
pub(super) fn put_source_in_pods_network(
    skb: Skb,
    dialled: &FlowKey,
    to: &mut Translation,
    way: &mut Way,
) {
    let v4 = to.destination.is_v4();
    let fib = &mut way.fib;
    let from = (dialled.protocol, &dialled.source, dialled.source_port);
    let flags = BPF_FIB_LOOKUP_SRC | BPF_FIB_LOOKUP_SKIP_NEIGH;
    let found = fib.ask(skb, from, (&to.destination, to.destination_port), 0, flags);
    // Kernels before 6.7 know no such flag. What has no next hop but itself is a pod of this node.
    if found != BPF_FIB_LKUP_RET_SUCCESS || fib.destination == words(&to.destination, v4) {
        return;
    }
    let source =
        if v4 { Addr::from_v4(fib.source[0].to_ne_bytes()) } else { Addr::from_words(fib.source) };
    if lookup::is_of_pods(&source) {
        to.source = source;
    }
}

/// Sends the packet on its way.
#[inline(always)]
pub(super) fn send(skb: Skb, way: &mut Way) -> i32 {
    if way.hop.family == 0 {
        if skb.store(0, &way.macs, 0).is_err() {
            return DROP;
        }
        // SAFETY: the helper takes no pointers.
        return unsafe { bpf_redirect(way.ifindex, 0) as i32 };
    }
    let len = size_of::<NextHop>() as i32;
    // SAFETY: the structure has the layout that the helper expects, and its size is given.
    unsafe { bpf_redirect_neigh(way.ifindex, (&raw mut way.hop).cast(), len, 0) as i32 }
}

/// As [`send`], of a packet that still has the route by which the node sent it: to another host it
/// goes by way of the ingress of its device, where [`super::node::forward`] sends it on.
#[inline(always)]
pub(super) fn send_own(skb: Skb, way: &mut Way) -> i32 {
    if way.hop.family == 0 {
        return send(skb, way);
    }
    // SAFETY: the helper takes no pointers.
    unsafe { bpf_redirect(way.ifindex, BPF_F_INGRESS.into()) as i32 }
}

/// An address as the kernel's structures hold it.
#[inline(always)]
fn words(address: &Addr, v4: bool) -> [u32; 4] {
    let words = address.words();
    if v4 { [words[3], 0, 0, 0] } else { words }
}
