//! Hooks of the host's ends of pods' veths. What a pod sends comes in here.

use aya_ebpf::{macros::classifier, programs::TcContext};

use super::{answer, ingress, skb::Skb};

/// From a pod: services that its sockets did not translate; answers of a pod that is a backend.
#[classifier]
fn tc_pod_ingress(context: TcContext) -> i32 {
    ingress::<false>(Skb::new(&context))
}

/// To a pod: answers of backends that are this node itself.
#[classifier]
fn tc_pod_egress(context: TcContext) -> i32 {
    answer(Skb::new(&context))
}
