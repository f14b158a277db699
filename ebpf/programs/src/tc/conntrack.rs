//! The second stage: is the flow known; and, for the fourth, the making of its two entries. What
//! becomes of a flow is `mizzen_ebpf_abi::tracking`; this is the kernel's table for it.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_get_prandom_u32};
use mizzen_ebpf_abi::{
    conntrack::{Flow, FlowKey, flow_flags},
    counters::Counter,
    node::NodeConfig,
    packet::Packet,
    tracking::{self, FlowBackends, FlowTable, Opened, Opening, Refusal},
};

use super::{skb::Skb, translate};
use crate::{
    events, lookup,
    maps::{FLOWS, count},
    sockets, traffic,
};

/// The map, and the packet by whose device the node is known.
#[derive(Clone, Copy)]
struct Flows(Skb);

impl FlowBackends for Flows {
    #[inline(always)]
    fn has_backend(self, flow: &Flow) -> bool {
        match lookup::backend(flow.set, flow.backend, flow.destination.is_v4()) {
            Some(backend) => backend.is_at(&flow.destination, flow.destination_port),
            None => false,
        }
    }

    #[inline(always)]
    fn leads(self, key: &FlowKey, flow: &Flow) -> bool {
        leads(self.0, key, flow.set)
    }

    #[inline(always)]
    fn is_deleted(self, flow: &Flow) -> bool {
        lookup::is_gone(flow.backend, &flow.destination, flow.destination_port)
    }
}

impl FlowTable for Flows {
    #[inline(always)]
    fn find(self, key: &FlowKey) -> Option<*mut Flow> {
        FLOWS.get_ptr_mut(key)
    }

    #[inline(always)]
    fn insert(self, key: &FlowKey, flow: &Flow) -> Result<(), Refusal> {
        const EEXIST: i32 = -17;
        FLOWS
            .insert(key, flow, BPF_NOEXIST.into())
            .map_err(|error| if error == EEXIST { Refusal::Exists } else { Refusal::Full })
    }

    #[inline(always)]
    fn remove(self, key: &FlowKey) {
        let _gone = FLOWS.remove(key);
    }

    #[inline(always)]
    fn is_a_sockets(self, packet: &FlowKey) -> bool {
        sockets::take(self.0.as_ptr(), packet)
    }

    #[inline(always)]
    fn now_s(self) -> u32 {
        lookup::now_s()
    }

    #[inline(always)]
    fn random(self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }
}

/// Whether a dialled address leads to a set, and not to a listener of the node that was away; with a
/// stack of its own, which is gone before more is needed.
#[inline(never)]
fn leads(skb: Skb, dialled: &FlowKey, set: u32) -> bool {
    lookup::frontend(dialled.destination, dialled.destination_port, dialled.protocol)
        .is_some_and(|it| it.set == set && !translate::is_answered_here(skb, &it, dialled))
}

/// The entry of a packet's flow, with this packet seen.
#[inline(always)]
pub(super) fn track(skb: Skb, packet: &Packet) -> Option<*const Flow> {
    tracking::track(Flows(skb), packet)
}

/// The entry of a flow that was opened just now.
#[inline(always)]
pub(super) fn opened(key: &FlowKey) -> Option<*const Flow> {
    FLOWS.get_ptr(key)
}

/// Whether the packet is its opener's to a backend that was deleted, and has a right to be told.
#[inline(always)]
pub(super) fn is_gone(skb: Skb, packet: &Packet, flow: &Flow) -> bool {
    tracking::is_gone(Flows(skb), packet, flow)
}

/// Takes note of a reset in the answerer's name.
#[inline(always)]
pub(super) fn reset(skb: Skb, key: &FlowKey, flow: &Flow) {
    tracking::reset(Flows(skb), key, flow);
}

/// Makes the entries of a flow, or says why it can't.
#[inline(always)]
pub(super) fn open(skb: Skb, opening: &mut Opening, config: &NodeConfig) -> Result<(), Counter> {
    match tracking::open(Flows(skb), opening, config) {
        Opened::DONE => {
            count(Counter::FlowCreated);
            events::opened(opening);
            if opening.flags & flow_flags::OUTWARD == 0 {
                traffic::opened(opening.backend, opening.key.destination.is_v4());
            }
            Ok(())
        }
        Opened::RACED => Ok(()),
        Opened::FULL => Err(Counter::DropFlowTableFull),
        _ => Err(Counter::DropNoSourcePort),
    }
}
