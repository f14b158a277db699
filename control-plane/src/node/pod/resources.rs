//! What a container asks for of the machine, and what the runtime is told of it.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{super::runtime::Limits, facts::NodeFacts};
use crate::scheduler::resources::Resources;
pub(super) use crate::scheduler::resources::parse;

/// The least weight that the kernel knows.
const SHARES_MIN: i64 = 2;
/// The weight of a whole processor.
const SHARES_OF_CPU: i64 = 1024;
/// Microseconds that limits of processor time are for.
const PERIOD_US: i64 = 100_000;
/// The shortest time that the kernel allows.
const QUOTA_MIN_US: i64 = 1000;

/// Requests and limits: processors in thousandths, everything else as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Amounts {
    /// `requests`; what is not requested and limited is requested as far as it is limited.
    pub requests: Resources,
    /// `limits`.
    pub limits: Resources,
}

/// What a container asks for.
pub(super) fn amounts(container: &Container) -> Amounts {
    let resources = container.resources.clone().unwrap_or_default();
    let limits = Resources::from_api(resources.limits.as_ref());
    let mut requests = Resources::from_api(resources.requests.as_ref());
    for (name, amount) in limits.iter() {
        if requests.get(name) == 0 {
            requests.set(name, amount);
        }
    }
    Amounts { requests, limits }
}

/// What the runtime is told.
pub(super) fn limits(pod: &Pod, node: &NodeFacts, container: &Container) -> Limits {
    let Amounts { requests, limits } = amounts(container);
    let positive = |amount: i64| u64::try_from(amount).unwrap_or(0);
    let shares = (requests.get("cpu").saturating_mul(SHARES_OF_CPU) / 1000).max(SHARES_MIN);
    let quota = match limits.get("cpu") {
        0 => 0,
        millis => (millis.saturating_mul(PERIOD_US) / 1000).max(QUOTA_MIN_US),
    };
    Limits {
        cpu_shares: positive(shares),
        cpu_quota_us: positive(quota),
        memory_bytes: positive(limits.get("memory")),
        oom_score_adj: oom_score(pod, node, requests.get("memory")),
    }
}

/// Who is killed first where memory is short: those that asked for nothing, then those that use
/// more than they asked for; last those whose limits are what they asked for.
fn oom_score(pod: &Pod, node: &NodeFacts, memory: i64) -> i32 {
    match class(pod) {
        "Guaranteed" => -997,
        "Burstable" if node.memory_bytes > 0 => {
            let share = memory.saturating_mul(1000) / node.memory_bytes;
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
        _ => 1000,
    }
}

/// The pod's quality of service, as the API server noted it; of a static pod, which it never saw, as
/// it would.
fn class(pod: &Pod) -> &str {
    if let Some(noted) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        return noted;
    }
    let containers = pod
        .spec
        .iter()
        .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let (mut any, mut all) = (false, true);
    for Amounts { requests, limits } in containers.map(amounts) {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (requests.get(resource), limits.get(resource));
            any |= request != 0 || limit != 0;
            all &= limit != 0 && request == limit;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing, *};

    fn made(class: &str, resources: &serde_json::Value) -> Limits {
        let mut pod = testing::pod(json!({"containers": [{"name": "c", "resources": resources}]}));
        pod.status = Some(serde_json::from_value(json!({"qosClass": class})).unwrap());
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let node = NodeFacts { memory_bytes: 1 << 30, ..testing::node() };
        limits(&pod, &node, container)
    }

    #[test]
    fn the_class_of_a_static_pod_is_that_of_its_spec() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let equal = json!({"limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        let less = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m"}});
        for (first, init, class, score) in [
            (&json!({}), &json!({}), "BestEffort", 1000),
            (&full, &full, "Guaranteed", -997),
            (&equal, &full, "Guaranteed", -997),
            (&full, &json!({}), "Burstable", 3),
            (&less, &full, "Burstable", 3),
            (&json!({"requests": {"memory": "512Mi"}}), &json!({}), "Burstable", 500),
        ] {
            let mut pod = testing::pod(json!({
                "containers": [{"name": "c", "resources": first}],
                "initContainers": [{"name": "i", "resources": init}],
            }));
            pod.status = None;
            assert_eq!(super::class(&pod), class, "{first} {init}");
            let node = NodeFacts { memory_bytes: 1 << 30, ..testing::node() };
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(limits(&pod, &node, container).oom_score_adj, score, "{first} {init}");
        }
    }

    #[test]
    fn requests_are_weights_and_limits_are_limits() {
        let limits = made(
            "Burstable",
            &json!({"requests": {"cpu": "500m", "memory": "512Mi"},
                "limits": {"cpu": "1500m", "memory": "1Gi"}}),
        );
        assert_eq!((limits.cpu_shares, limits.cpu_quota_us), (512, 150_000));
        assert_eq!((limits.memory_bytes, limits.oom_score_adj), (1 << 30, 500));
    }

    #[test]
    fn who_asks_for_nothing_has_the_least_weight_and_no_limit() {
        let limits = made("BestEffort", &json!({}));
        let expected =
            Limits { cpu_shares: 2, cpu_quota_us: 0, memory_bytes: 0, oom_score_adj: 1000 };
        assert_eq!(limits, expected);
    }

    #[test]
    fn a_limit_alone_is_a_request_too_and_tiny_ones_are_what_the_kernel_can() {
        let limits = made("Guaranteed", &json!({"limits": {"cpu": "5m", "memory": "1Mi"}}));
        assert_eq!((limits.cpu_shares, limits.cpu_quota_us), (5, 1000));
        assert_eq!(limits.oom_score_adj, -997);
    }
}
