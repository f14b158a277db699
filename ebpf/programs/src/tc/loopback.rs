//! Hook of the loopback interface, by which sockets of the node reach cluster DNS at addresses that are
//! the node's own (ADR 45). A question for which nobody listens, because the node's agent is away, goes
//! to another node's resolver; all else passes.
//!
//! A socket that dials at this moment is led there by the socket programs. This is for those that
//! stay connected.
//!
//! ```text
//! socket ─> lo egress: no listener? ─> backend, node's address ─> uplink ingress ─> other node
//! socket <─ stack <─ lo <─ cluster DNS address <─ uplink ingress <─────────────────────┘
//! ```
//!
//! Whether there is a listener is asked for each packet, before the flows are: when the agent is back
//! the next question is its own. (Elsewhere it is asked once a second, as for pods: by
//! [`super::conntrack`].)

use core::ptr::null_mut;

use aya_ebpf::{helpers::generated::bpf_redirect_neigh, macros::classifier, programs::TcContext};
use mizzen_ebpf_abi::{
    addr::protocol,
    conntrack::flow_flags,
    node::LOOPBACK,
    packet::{Bytes as _, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, Packet},
    service::frontend_flags,
};

use super::{
    DROP, PASS,
    deliver::{self, Found},
    flow_of, parsed,
    scratch::Scratch,
    skb::Skb,
    translate,
};
use crate::{lookup, sockets};

/// What the node says to itself.
#[classifier]
fn tc_loopback_egress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    if !may_ask(skb) || skb.is_forwarded() {
        return PASS;
    }
    match parsed(skb) {
        Some(scratch) if is_in_vain(skb, &scratch.packet) => lead(skb, scratch),
        _ => PASS,
    }
}

/// Whether a packet may be a question to cluster DNS, by a few comparisons: a datagram to an address
/// that is no loopback address, and of IPv4 from that address too. (So the kernel chooses the source;
/// to a socket that chose another an answer has no way, as [`admit`] tells.)
#[inline(always)]
fn may_ask(skb: Skb) -> bool {
    match skb.ethertype() {
        // From the octet of the hop limit on.
        ETHERTYPE_IPV4 => match skb.words::<3>(ETHERNET_HEADER + 8) {
            Some([about, source, destination]) => {
                about.to_ne_bytes()[1] == protocol::UDP
                    && source == destination
                    && destination.to_ne_bytes()[0] != 127
            }
            None => false,
        },
        // Of the flow label and what follows, then of the addresses.
        ETHERTYPE_IPV6 => match skb.words::<2>(ETHERNET_HEADER) {
            Some([_, about]) => {
                about.to_ne_bytes()[2] == protocol::UDP
                    && skb.words::<4>(ETHERNET_HEADER + 24).is_some_and(|to| to[0] | to[1] != 0)
            }
            None => false,
        },
        _ => false,
    }
}

/// Whether a packet is for a service that the node itself answers for where it has a listener, and it
/// has none.
#[inline(never)]
fn is_in_vain(skb: Skb, packet: &Packet) -> bool {
    let key = &packet.key;
    if packet.fragment != Fragment::WHOLE {
        return false;
    }
    lookup::frontend(key.destination, key.destination_port, key.protocol)
        .is_some_and(|frontend| frontend.flags & frontend_flags::PREFER_LOCAL != 0)
        && !sockets::take(skb.as_ptr(), key)
}

/// Leads a question to another resolver. Where there is none, or no way to it, the stack says that
/// nobody listens.
#[inline(always)]
fn lead(skb: Skb, scratch: &mut Scratch) -> i32 {
    let flow = match flow_of::<true>(skb, scratch, LOOPBACK) {
        Ok(flow) => flow,
        Err(verdict) => return verdict,
    };
    let packet = &scratch.packet;
    // SAFETY: as in `ingress`.
    let flow = unsafe { &*flow };
    if flow.flags & flow_flags::ORIGINAL == 0 {
        return PASS;
    }
    scratch.leaving = packet.key.rewritten(flow);
    if deliver::find(skb, packet, &scratch.leaving, &mut scratch.way) != Found::Way {
        return PASS;
    }
    if translate::rewrite(skb, packet, flow, packet.hop_limit()).is_err() {
        return DROP;
    }
    deliver::send_own(skb, &mut scratch.way)
}

/// Hands an answer to the node's stack. Its source is one of the node's own addresses, which the stack
/// refuses in what it has no route for; so it gets the route of what the node says to itself, which
/// the kernel finds for it, and goes the way of that.
///
/// The kernel looks for a route by this device: IPv4 addresses of other devices have none.
#[inline(always)]
pub(super) fn admit() -> i32 {
    // SAFETY: without a next hop there is no structure to read.
    unsafe { bpf_redirect_neigh(LOOPBACK, null_mut(), 0, 0) as i32 }
}
