//! Hooks of the devices that lead to other hosts: the uplinks, and tunnels between nodes. What has a
//! VLAN tag passes: it is met at the VLAN's own device, if that is an uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};

use mizzen_ebpf_abi::tunnel::Own;

use super::{PASS, UNKNOWN, ingress, node, parsed, skb::Skb, tunnel};

/// From other hosts: clients of node ports, external and load balancer addresses; answers of
/// backends elsewhere.
#[classifier]
fn tc_uplink_ingress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    if skb.is_tagged() || tunnel::is_outer(skb, Own::Destination) {
        return PASS;
    }
    let Some(scratch) = parsed(skb) else {
        return PASS;
    };
    match ingress::<true>(skb, scratch) {
        UNKNOWN => PASS,
        verdict => verdict,
    }
}

/// To other hosts: answers of backends that are this node itself, and what the node sends to
/// services.
#[classifier]
fn tc_uplink_egress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    if skb.is_tagged() || tunnel::is_outer(skb, Own::Source) {
        return PASS;
    }
    node::egress(skb)
}
