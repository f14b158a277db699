//! Hooks of the devices that lead to other hosts: the uplinks, and tunnels between nodes.

use aya_ebpf::{macros::classifier, programs::TcContext};

use super::{ingress, node, skb::Skb};

/// From other hosts: clients of node ports, external and load balancer addresses; answers of
/// backends elsewhere.
#[classifier]
fn tc_uplink_ingress(context: TcContext) -> i32 {
    ingress::<true>(Skb::new(&context))
}

/// To other hosts: answers of backends that are this node itself, and what the node sends to
/// services.
#[classifier]
fn tc_uplink_egress(context: TcContext) -> i32 {
    node::egress(Skb::new(&context))
}
