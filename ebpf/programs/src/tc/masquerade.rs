//! What pods send out of the cluster leaves under this node's address: nobody there knows a way back
//! to a pod. Flows of it are in the same table as those of services, and take their ports from the
//! same range; answers, and errors about them, are translated back like theirs.
//!
//! What stays as it is: packets to pods, services and nodes of the cluster, to ranges that the
//! operator named, to this node, and to groups. So do packets of TCP that open no connection (answers
//! to somebody who knows the way among them), and protocols without ports but for echoes of ICMP.

use mizzen_ebpf_abi::{
    addr::Addr, conntrack::flow_flags, nat, node::node_config_flags::MASQUERADE_PODS,
    service::NO_SET,
};

use aya_ebpf::btf_maps::lpm_trie;

use super::{
    PASS, conntrack,
    deliver::{self, Found},
    drop_counted,
    scratch::Scratch,
    skb::Skb,
    translate::{OPENED, is_node},
};
use crate::{
    lookup,
    maps::{NODE_CONFIG, PEERS},
};

/// Opens the flow of a packet that dials no service, if it is one of a pod's that leaves the
/// cluster.
#[inline(never)]
pub(super) fn open(skb: Skb, scratch: &mut Scratch) -> i32 {
    let Scratch { packet, opening, way, .. } = scratch;
    let key = &packet.key;
    let Some(config) = NODE_CONFIG.get(0) else {
        return PASS;
    };
    if config.flags & MASQUERADE_PODS == 0
        || !deliver::is_from_pod_here(skb, &key.source)
        || stays(&key.destination)
    {
        return PASS;
    }
    let Some(address) = nat::masquerade_address(config, packet.is_v4()) else {
        return PASS;
    };
    // What is for this node after all, or goes nowhere, is the stack's.
    match deliver::find(skb, packet, key, way) {
        Found::Way | Found::TooBig => {}
        Found::Node | Found::Nothing => return PASS,
    }
    opening.key = packet.key;
    opening.to.source = address;
    opening.to.source_port = packet.key.source_port;
    opening.to.destination = packet.key.destination;
    opening.to.destination_port = packet.key.destination_port;
    (opening.slots.set, opening.backend, opening.device) = (NO_SET, 0, 0);
    (opening.flags, opening.masquerade) = (flow_flags::OUTWARD, true);
    opening.now_s = lookup::now_s();
    match conntrack::open(skb, opening, config) {
        Ok(()) => OPENED,
        Err(reason) => drop_counted(packet, NO_SET, reason),
    }
}

/// Whether who has the address knows the way back to pods, or it is nobody's in particular.
#[inline(always)]
fn stays(destination: &Addr) -> bool {
    is_of_link_or_group(destination)
        || lookup::range_flags(destination) != 0
        || is_node(*destination)
        || PEERS.get(&lpm_trie::Key::new(128, *destination)).is_some()
}

/// Whether an address is a group's (RFC 1112; RFC 4291 section 2.7), an IPv6 one of a link, or the
/// broadcast address.
#[inline(always)]
fn is_of_link_or_group(address: &Addr) -> bool {
    let o = &address.octets;
    if address.is_v4() {
        o[12] >= 224
    } else {
        o[0] == 0xff || (o[0] == 0xfe && o[1] & 0xc0 == 0x80)
    }
}
