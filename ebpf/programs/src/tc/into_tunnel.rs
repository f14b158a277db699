//! What a pod sends to a node behind the tunnel, made a packet between the two nodes here: past the
//! tunnel's device, which would look for the node again, and for its route with all of the node's
//! rules, behind a queue of its own. Where that can't be, it goes by the device, which makes the same
//! packet of it.

use aya_ebpf::{
    btf_maps::lpm_trie,
    helpers::generated::{bpf_get_prandom_u32, bpf_redirect},
};
use mizzen_ebpf_abi::{
    addr::protocol,
    conntrack::FlowKey,
    nat,
    packet::{Bytes as _, Packet},
    tunnel::{self, Outer},
};

use super::{
    DROP, PASS,
    deliver::{self, Found, Way, exceeds_mtu, is_from_pod_here, network_length, send},
    skb::Skb,
    translate,
};
use crate::maps::{NODE_CONFIG, PEERS, TUNNELLED};

/// Sends an untranslated packet of a pod through the tunnel, as its router, where that is its way.
/// One that claims to be from elsewhere is the stack's, and so is what is too large or has come too
/// far.
#[inline(never)]
pub(super) fn from_pod(skb: Skb, packet: &Packet, way: &mut Way) -> i32 {
    let (source, destination) = (&packet.key.source, &packet.key.destination);
    let Some(device) = TUNNELLED.get(&lpm_trie::Key::new(128, *destination)) else {
        return PASS;
    };
    way.ifindex = *device;
    let length = network_length(skb, packet);
    if packet.hop_limit() < 2 || !is_from_pod_here(skb, source) || exceeds_mtu(skb, length, way) {
        return PASS;
    }
    if translate::addresses(skb, packet, source, destination, packet.hop_limit() - 1).is_err() {
        return DROP;
    }
    if wrap(skb, packet, way).is_some() {
        return send(skb, way);
    }
    by_device(skb, *device)
}

/// To which node, and from what link-layer address, is said at the device.
#[inline(always)]
fn by_device(skb: Skb, device: u32) -> i32 {
    if skb.store(0, &tunnel::DEVICE_MAC, 0).is_err() {
        return DROP;
    }
    // SAFETY: the helper takes no pointers.
    unsafe { bpf_redirect(device, 0) as i32 }
}

/// The tunnel's device, where it is the way of what leaves so: what a pod sends to a node that is
/// reached by it. The routes say so of that node's pods alone: the node's own packets to the other
/// node need no tunnel.
#[inline(always)]
pub(super) fn device(skb: Skb, leaving: &FlowKey) -> Option<u32> {
    let device = TUNNELLED.get(&lpm_trie::Key::new(128, leaving.destination))?;
    is_from_pod_here(skb, &leaving.source).then_some(*device)
}

/// Puts the outer headers in front of the packet, and finds the way of what it is then. None, and the
/// packet as it was, where the tunnel is over IPv6 (whose datagrams need a sum over all of the
/// packet, RFC 8200 section 8.1), where no route leads to the node, or where the kernel has no way to
/// segment such a packet.
#[inline(never)]
fn wrap(skb: Skb, packet: &Packet, way: &mut Way) -> Option<()> {
    let peer = PEERS.get(&lpm_trie::Key::new(128, packet.key.destination))?;
    let config = NODE_CONFIG.get(0)?;
    nat::masquerade_address(config, true)?;
    let (from, to) = (&config.ipv4, &peer.endpoint);
    if !to.is_v4() || config.tunnel_port == 0 {
        return None;
    }
    let source_port = tunnel::source_port(skb.flow_hash());
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let outer = Outer {
        from,
        to,
        source_port,
        port: config.tunnel_port,
        identification: random as u16,
        inner: skb.load(packet.l3)?,
        inner_len: skb.length() - packet.l3,
    };
    outer.write(packet.is_v4(), &mut way.outer)?;
    let sent = (protocol::UDP, from, source_port.to_be_bytes());
    if deliver::route(skb, sent, (to, config.tunnel_port.to_be_bytes()), 0, way) != Found::Way {
        return None;
    }
    skb.wrap_v4(tunnel::INSERTED_V4).ok()?;
    // The room is there: it can't fail.
    skb.store_words(packet.l3, &way.outer, 0).ok()
}
