//! What holds for everything that could be seen.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::*;
use crate::node::runtime::{Container, ContainerState};

fn state() -> impl Strategy<Value = ContainerState> {
    prop_oneof![
        Just(ContainerState::Created),
        (0..100i64).prop_map(running),
        (0..50i64, 50..100i64, prop_oneof![Just(0), Just(1), Just(137)])
            .prop_map(|(from, to, code)| exited(from, to, code)),
    ]
}

fn containers() -> impl Strategy<Value = Vec<Container>> {
    let one = (prop_oneof![Just("init"), Just("main"), Just("side")], 0..3u32, state(), 0..40u64);
    proptest::collection::vec(one, 0..5).prop_map(|all| {
        let mut made: Vec<Container> = Vec::new();
        for (name, attempt, state, backoff) in all {
            let mut one = container(name, attempt, state);
            one.backoff = Duration::from_secs(backoff);
            if made.iter().all(|other| other.id != one.id) {
                made.push(one);
            }
        }
        made
    })
}

fn objects() -> impl Strategy<Value = Vec<Object>> {
    let one = prop_oneof![
        Just(Object::Sandbox),
        Just(Object::Image),
        Just(Object::Pod),
        Just(of("init")),
        Just(of("main")),
        Just(of("side")),
    ];
    proptest::collection::vec(one, 0..3)
}

prop_compose! {
    fn observed()(
        containers in containers(),
        sandboxes in prop_oneof![
            Just(vec![]), Just(vec![sandbox(true)]), Just(vec![sandbox(false)])
        ],
        calls in objects(),
        failures in objects(),
        network in any::<bool>(),
        gone in proptest::option::weighted(0.2, 50..100i64),
        results in any::<(Option<bool>, Option<bool>, Option<bool>)>(),
    ) -> Observed {
        let mut seen = Observed { sandboxes, ..nothing() };
        if !seen.sandboxes.is_empty() {
            seen.containers = containers;
        }
        for object in calls {
            seen.in_flight.insert(object, InFlight::Call);
        }
        for object in failures {
            seen.failures.insert(object, failed(1, 99));
        }
        if !network {
            seen.network = Err("none".into());
        }
        seen.gone_since = gone.map(at);
        for container in &seen.containers {
            let (startup, readiness, liveness) = results;
            seen.probes.insert(container.id.clone(), ProbeResults { startup, readiness, liveness });
        }
        seen
    }
}

prop_compose! {
    fn any_pod()(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        deleted in proptest::option::weighted(0.3, 90..140i64),
        host_network in any::<bool>(),
    ) -> Pod {
        let probe = json!({"tcpSocket": {"port": 80}});
        let mut pod = pod(json!({
            "restartPolicy": policy,
            "hostNetwork": host_network,
            "initContainers": [{"name": "init", "image": "hello"}],
            "containers": [
                {"name": "main", "image": "hello", "livenessProbe": probe, "readinessProbe": probe},
                {"name": "side", "image": "hello"},
            ],
        }));
        pod.metadata.deletion_timestamp = deleted.map(|seconds| Time(at(seconds)));
        pod
    }
}

fn runs(seen: &Observed) -> bool {
    let running = |one: &Container| matches!(one.state, ContainerState::Running { .. });
    seen.ready_sandbox().is_some() && seen.containers.iter().any(running)
}

proptest! {
    #[test]
    fn nothing_is_done_to_what_is_busy(pod in any_pod(), seen in observed()) {
        let step = step(&pod, &node(), &seen, at(100));
        for action in &step.actions {
            prop_assert!(!seen.busy(&action.object()), "{action:?}");
        }
    }

    #[test]
    fn a_pod_that_is_to_end_begins_nothing(pod in any_pod(), seen in observed()) {
        prop_assume!(pod.metadata.deletion_timestamp.is_some() || seen.gone_since.is_some());
        let step = step(&pod, &node(), &seen, at(100));
        for action in &step.actions {
            let begins = matches!(
                action,
                Action::RunSandbox(_) | Action::StartContainer { .. } | Action::PullImage(_)
            );
            prop_assert!(!begins, "{action:?}");
        }
    }

    #[test]
    fn the_network_goes_only_after_the_containers(pod in any_pod(), seen in observed()) {
        let step = step(&pod, &node(), &seen, at(100));
        for action in &step.actions {
            let ends = matches!(action, Action::StopSandbox { .. } | Action::RemoveSandbox { .. });
            prop_assert!(!(ends && runs(&seen)), "{action:?}");
            prop_assert!(*action != Action::DeletePod || seen.sandboxes.is_empty());
        }
    }

    #[test]
    fn a_pod_always_has_something_to_wait_for(pod in any_pod(), seen in observed()) {
        // A pod is at rest when it runs, has ended, or is over. Else something has to come: an
        // action, a call under way, a time, or a network.
        let step = step(&pod, &node(), &seen, at(100));
        let rests =
            step.over || runs(&seen) || matches!(phase(&step), "Running" | "Succeeded" | "Failed");
        let comes = !step.actions.is_empty()
            || !seen.in_flight.is_empty()
            || step.wake.is_some()
            || seen.network.is_err();
        prop_assert!(rests || comes, "{step:?}");
    }

    #[test]
    fn what_was_reported_is_reported_again(pod in any_pod(), seen in observed()) {
        let first = step(&pod, &node(), &seen, at(100));
        let again = Observed { reported: first.status.clone(), ..seen };
        let second = step(&pod, &node(), &again, at(100));
        prop_assert_eq!(first.status, second.status);
    }
}
