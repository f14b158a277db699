//! Taints of nodes and the tolerations of pods.

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

/// The taints of a node.
pub(crate) fn of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The first taint of the node with one of these effects that the tolerations do not cover.
pub(crate) fn first<'a>(
    node: &'a Node,
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    let repels = |taint: &&Taint| {
        effects.contains(&taint.effect.as_str()) && !is_tolerated(taint, tolerations)
    };
    of(node).iter().find(repels)
}

/// Whether one of the tolerations covers the taint.
pub(crate) fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// Whether the toleration covers the taint. No key means every key, no effect every effect.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (given(&toleration.effect), given(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        None | Some("" | "Equal") => {
            !key.is_empty() && given(&toleration.value) == given(&taint.value)
        }
        Some("Exists") => true,
        Some(_) => false,
    }
}
