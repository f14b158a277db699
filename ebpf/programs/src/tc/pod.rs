//! Hooks of the host's ends of pods' veths. What a pod sends comes in here.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::classifier, programs::TcContext};
use mizzen_ebpf_abi::counters::Counter;

use super::{
    DROP, PASS, UNKNOWN, answer, deliver, drop_unread, ingress, into_tunnel, parsed, policy,
    skb::Skb,
};
use crate::{maps::POD_RATES, traffic::add};

/// From a pod: services that its sockets did not translate; answers of a pod that is a backend. What
/// it sends to other pods goes straight to them, or into the tunnel that leads to them.
#[classifier]
fn tc_pod_ingress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let Some(scratch) = parsed(skb) else {
        return PASS;
    };
    match ingress::<false>(skb, scratch) {
        UNKNOWN if !policy::allows(&scratch.packet) => DROP,
        UNKNOWN => match deliver::to_pod_here(skb, &scratch.packet, &mut scratch.way) {
            UNKNOWN => into_tunnel::from_pod(skb, &scratch.packet, &mut scratch.way),
            verdict => verdict,
        },
        verdict => verdict,
    }
}

/// To a pod: answers of backends that are this node itself.
#[classifier]
fn tc_pod_egress(context: TcContext) -> i32 {
    answer(Skb::new(&context))
}

/// From a pod whose bandwidth is limited, before all else: what is more than that ends here. There is
/// nothing to do for one whose own queue holds it back.
#[classifier]
fn tc_pod_rate(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let Some(rate) = POD_RATES.get_ptr_mut(&skb.ifindex()) else {
        return PASS;
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an element of a live map; a word that other CPUs write is read whole.
    let bucket = unsafe { core::ptr::read_volatile(rate) };
    let Some(due) = bucket.admit(now, skb.length()) else {
        return drop_unread(skb, Counter::DropPodRate);
    };
    // SAFETY: as above.
    let word = unsafe { &raw mut (*rate).due_ns };
    if bucket.due_ns < now {
        // SAFETY: as above. What another CPU adds at this moment may be lost: a packet.
        unsafe { core::ptr::write_volatile(word, due) };
    } else {
        add(word, due - bucket.due_ns);
    }
    PASS
}
