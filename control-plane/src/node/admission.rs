//! Whether the node has a place for a pod. Pure.
//!
//! A pod that has ended takes none, though its worker is there until its object is deleted; and one
//! that was admitted once has its place, whoever came before it in a list: after a restart of the
//! node part every pod is new to it.

use k8s_openapi::api::core::v1::Pod;

use super::machine::PODS_MAX;

/// Whether a pod is refused that nobody knew before, beside those that are known.
pub(super) fn is_refused<'a>(
    pod: &Pod,
    has_sandbox: bool,
    known: impl IntoIterator<Item = &'a Pod>,
) -> bool {
    let started = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
    if has_sandbox || started || has_ended(pod) {
        return false;
    }
    known.into_iter().filter(|other| !has_ended(other)).count() >= PODS_MAX
}

/// Nothing of the pod will ever run again.
fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web"}, "status": status})).unwrap()
    }

    #[test]
    fn pods_that_have_ended_take_no_place() {
        let new = pod(&json!({}));
        let running = || vec![pod(&json!({"phase": "Running"})); PODS_MAX - 1];
        let beside = |phase: &str| [running(), vec![pod(&json!({"phase": phase}))]].concat();
        for phase in ["Succeeded", "Failed"] {
            assert!(!is_refused(&new, false, &beside(phase)), "{phase}");
        }
        for phase in ["Pending", "Running", "Unknown"] {
            assert!(is_refused(&new, false, &beside(phase)), "{phase}");
        }
        assert!(!is_refused(&new, false, &running()));
    }

    #[test]
    fn a_pod_that_was_admitted_once_is_never_refused() {
        let full = vec![pod(&json!({"phase": "Running"})); PODS_MAX];
        let started = pod(&json!({"phase": "Running", "startTime": "2026-11-30T00:00:00Z"}));
        assert!(!is_refused(&started, false, &full));
        assert!(!is_refused(&pod(&json!({})), true, &full), "its status was never written");
        assert!(!is_refused(&pod(&json!({"phase": "Failed"})), false, &full));
        assert!(is_refused(&pod(&json!({"phase": "Pending"})), false, &full));
    }
}
