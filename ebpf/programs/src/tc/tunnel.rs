//! Hooks of the device that tunnels to nodes with which this one shares no link (VXLAN, RFC 7348),
//! one device for all of them: which node a packet goes to is said here, packet by packet.
//!
//! What comes out of the tunnel is as what comes by an uplink, but for two things. It has to be from
//! an address that is behind the node that sent it: so no node, and nobody who can reach its port
//! without forging a node's address, speaks for another's pods. And what is for a pod goes straight
//! to it, as what the pod sends there goes straight into the tunnel: the stack sees neither.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX},
    btf_maps::lpm_trie,
    helpers::generated::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
    macros::classifier,
    programs::TcContext,
};
use mizzen_ebpf_abi::{
    addr::Addr,
    counters::Counter,
    nat,
    node::Peer,
    packet::{Bytes as _, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    tunnel::{Own, SOURCE_MAC, TTL, VNI, is_outer_v4, is_outer_v6},
};

use super::{DROP, PASS, UNKNOWN, deliver, drop_unread, ingress, node, parsed, policy, skb::Skb};
use crate::maps::{NODE_CONFIG, PEERS};

/// From another node.
#[classifier]
fn tc_tunnel_ingress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    if !is_of_its_sender(skb) {
        return drop_unread(skb, Counter::DropTunnelSource);
    }
    let Some(scratch) = parsed(skb) else {
        return PASS;
    };
    match ingress::<true>(skb, scratch) {
        UNKNOWN if !policy::allows(&scratch.packet) => DROP,
        UNKNOWN => match deliver::to_pod_here(skb, &scratch.packet, &mut scratch.way) {
            UNKNOWN => PASS,
            verdict => verdict,
        },
        verdict => verdict,
    }
}

/// To another node: what was routed into the tunnel, answers of backends that are this node among
/// it.
#[classifier]
fn tc_tunnel_egress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let verdict = node::egress(skb);
    if verdict == PASS { lead(skb) } else { verdict }
}

/// Whether the packet, at an uplink, is one of the tunnel, with another inside, of which all that has
/// to be said is said at the tunnel's device.
#[inline(always)]
pub(super) fn is_outer(skb: Skb, end: Own) -> bool {
    let Some(config) = NODE_CONFIG.get(0) else {
        return false;
    };
    let port = config.tunnel_port;
    if port == 0 {
        return false;
    }
    match skb.ethertype() {
        ETHERTYPE_IPV4 => skb
            .load(ETHERNET_HEADER)
            .is_some_and(|header| is_outer_v4(&header, end, &config.ipv4, port)),
        ETHERTYPE_IPV6 => skb
            .load(ETHERNET_HEADER)
            .is_some_and(|header| is_outer_v6(&header, end, &config.ipv6, port)),
        _ => false,
    }
}

/// The kernel's `struct bpf_tunnel_key`, without its unions: an IPv4 address is the first of the
/// four words, as a number.
#[repr(C)]
#[derive(Default)]
struct TunnelKey {
    id: u32,
    remote: [u32; 4],
    tos: u8,
    ttl: u8,
    extension: u16,
    label: u32,
    local: [u32; 4],
}

/// The size of all of it, as Linux 6.0 and later take it.
const WHOLE: u32 = size_of::<TunnelKey>() as u32;
/// The size up to the local address, as all do.
const WITHOUT_LOCAL: u32 = WHOLE - 16;
const _: () = assert!(WHOLE == 44);

/// Which end of a packet an address is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// Whether the packet is from an address behind the node that sent it. What is in no tunnel's
/// packet was sent here by a program of ours, which had looked.
#[inline(never)]
fn is_of_its_sender(skb: Skb) -> bool {
    let mut key = TunnelKey::default();
    let from = match tunnel_key(skb, &mut key, 0) {
        0 => Addr::from_v4(key.remote[0].to_be_bytes()),
        WRONG_FAMILY if tunnel_key(skb, &mut key, BPF_F_TUNINFO_IPV6.into()) == 0 => {
            Addr::from_words(key.remote)
        }
        NOT_TUNNELLED => return true,
        _ => return false,
    };
    match peer(skb, End::Source) {
        Some(peer) => key.id == VNI && peer.endpoint.is(&from),
        None => false,
    }
}

/// `-EPROTO`: the tunnel's packets are of the other family.
const WRONG_FAMILY: i64 = -71;
/// `-EINVAL`: there was no tunnel.
const NOT_TUNNELLED: i64 = -22;

#[inline(always)]
fn tunnel_key(skb: Skb, key: &mut TunnelKey, flags: u64) -> i64 {
    // SAFETY: the helper writes so many bytes of the structure, which has the layout that it
    // expects.
    unsafe {
        bpf_skb_get_tunnel_key(
            skb.as_ptr().cast(),
            core::ptr::from_mut(key).cast(),
            WITHOUT_LOCAL,
            flags,
        )
    }
}

/// Says to which node the packet goes.
#[inline(never)]
fn lead(skb: Skb) -> i32 {
    if skb.load::<2>(0).is_some_and(|[first, _]| first & 1 != 0) {
        return DROP; // to a group, such as what the stack says on every device that comes up
    }
    let Some(peer) = peer(skb, End::Destination) else {
        return drop_unread(skb, Counter::DropNoPeer);
    };
    let Some(config) = NODE_CONFIG.get(0) else {
        return drop_unread(skb, Counter::DropNoPeer);
    };
    let (v4, to) = (peer.endpoint.is_v4(), peer.endpoint.words());
    // The address under which the others know this node; without, what the routes choose.
    let local = nat::masquerade_address(config, v4).map_or([0; 4], |address| address.words());
    let mut key = TunnelKey { id: VNI, ttl: TTL, ..TunnelKey::default() };
    let flags = if v4 {
        key.remote[0] = u32::from_be(to[3]);
        key.local[0] = u32::from_be(local[3]);
        BPF_F_ZERO_CSUM_TX // the packet inside has a sum of its own (RFC 7348 section 5)
    } else {
        (key.remote, key.local) = (to, local);
        BPF_F_TUNINFO_IPV6
    };
    let mut led = set_tunnel_key(skb, &mut key, WHOLE, flags.into());
    if led != 0 {
        led = set_tunnel_key(skb, &mut key, WITHOUT_LOCAL, flags.into());
    }
    // A device takes what bears its own address for a packet that went in a circle.
    if led != 0 || skb.store(6, &SOURCE_MAC, 0).is_err() {
        return drop_unread(skb, Counter::DropNoPeer);
    }
    PASS
}

#[inline(always)]
fn set_tunnel_key(skb: Skb, key: &mut TunnelKey, size: u32, flags: u64) -> i64 {
    // SAFETY: the helper reads so many bytes of the structure, which has the layout that it
    // expects.
    unsafe {
        bpf_skb_set_tunnel_key(skb.as_ptr().cast(), core::ptr::from_mut(key).cast(), size, flags)
    }
}

/// The node behind which one end of the packet is.
#[inline(always)]
fn peer(skb: Skb, end: End) -> Option<&'static Peer> {
    let mut address = address(skb, end);
    if address.is_none() && skb.pull_headers() {
        address = self::address(skb, end);
    }
    PEERS.get(&lpm_trie::Key::new(128, address?))
}

#[inline(always)]
fn address(skb: Skb, end: End) -> Option<Addr> {
    let is_source = end == End::Source;
    match skb.ethertype() {
        ETHERTYPE_IPV4 => {
            let at = ETHERNET_HEADER + if is_source { 12 } else { 16 };
            Some(Addr::from_v4(skb.load(at)?))
        }
        ETHERTYPE_IPV6 => {
            let at = ETHERNET_HEADER + if is_source { 8 } else { 24 };
            Some(Addr::from_words(skb.words(at)?))
        }
        _ => None,
    }
}
