//! The end of a pod: asked for, forced, or found out late.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;

/// The step of a pod whose deletion is due at `deadline`, at 100 s.
fn deleted(deadline: i64, seen: &Observed) -> Step {
    let mut pod = pod(json!({}));
    pod.metadata.deletion_timestamp = Some(Time(at(deadline)));
    step(&pod, &node(), seen, at(100))
}

#[test]
fn containers_are_given_what_is_left_of_the_grace() {
    let seen = with(vec![container("main", 0, running(1))]);
    assert_eq!(actions(&deleted(130, &seen)), ["stop:main:30s"]);
    // As after a restart of the node part in the middle of it.
    assert_eq!(actions(&deleted(105, &seen)), ["stop:main:5s"]);
    assert_eq!(actions(&deleted(90, &seen)), ["stop:main:0s"]);
}

#[test]
fn a_stop_under_way_is_only_made_shorter() {
    let stopping = |kill_at| {
        let mut seen = with(vec![container("main", 0, running(1))]);
        seen.in_flight.insert(of("main"), InFlight::Stop { kill_at: at(kill_at) });
        seen
    };
    assert!(actions(&deleted(130, &stopping(130))).is_empty());
    assert!(actions(&deleted(160, &stopping(130))).is_empty());
    assert!(actions(&deleted(129, &stopping(130))).is_empty(), "a second does not matter");
    assert_eq!(actions(&deleted(102, &stopping(130))), ["stop:main:2s"]);
    // A start that is not finished is waited for.
    let starting = busy(with(vec![container("main", 0, running(1))]), of("main"));
    assert!(actions(&deleted(130, &starting)).is_empty());
}

#[test]
fn a_hook_after_the_start_is_not_waited_for() {
    let hook = |state| {
        let mut seen = with(vec![container("main", 0, state)]);
        seen.in_flight.insert(of("main"), InFlight::PostStart);
        seen
    };
    assert_eq!(actions(&deleted(130, &hook(running(1)))), ["stop:main:30s"]);
    let gone = Observed { gone_since: Some(at(100)), ..hook(running(1)) };
    assert_eq!(actions(&see(json!({}), &gone)), ["stop:main:1s"]);
    // The container ended by itself, its hook goes on.
    assert_eq!(actions(&deleted(130, &hook(exited(1, 99, 0)))), ["remove-sandbox:s0"]);
    // Nothing else ends it, nor is anything started beside it.
    assert!(actions(&see(json!({}), &hook(running(1)))).is_empty());
    assert!(actions(&see(json!({}), &hook(exited(1, 2, 1)))).is_empty());
}

#[test]
fn a_deleted_pod_starts_nothing() {
    let crashed = with(vec![container("main", 0, exited(1, 2, 1))]);
    assert_eq!(actions(&deleted(130, &crashed)), ["remove-sandbox:s0"]);
    assert_eq!(actions(&deleted(130, &with(vec![]))), ["remove-sandbox:s0"]);
    assert_eq!(actions(&deleted(130, &nothing())), ["delete"]);
}

#[test]
fn what_is_being_made_is_waited_for() {
    assert!(actions(&deleted(130, &busy(nothing(), Object::Sandbox))).is_empty());
    assert!(actions(&deleted(130, &busy(with(vec![]), Object::Sandbox))).is_empty());
    assert!(actions(&deleted(130, &busy(with(vec![]), of("main")))).is_empty());
}

#[test]
fn every_sandbox_goes_before_the_api_is_told_and_once_is_enough() {
    let mut two = nothing();
    two.sandboxes = vec![sandbox(false), sandbox(true)];
    two.sandboxes[0].id = "old".into();
    assert_eq!(actions(&deleted(130, &two)), ["remove-sandbox:old"]);
    let told = Observed { delete_confirmed: true, ..nothing() };
    let step = deleted(130, &told);
    assert!(actions(&step).is_empty());
    assert!(!step.over, "a finalizer may keep the pod in the API");
}

#[test]
fn a_teardown_that_fails_is_tried_again_and_the_pod_stays() {
    let mut seen = with(vec![]);
    seen.failures.insert(Object::Sandbox, failed(2, 99));
    let step = deleted(130, &seen);
    assert!(actions(&step).is_empty());
    assert_eq!((step.wake, step.over), (Some(at(101)), false));
}

#[test]
fn a_pod_that_is_gone_from_the_api_has_a_second_left() {
    let gone = |containers, since| Observed { gone_since: Some(at(since)), ..with(containers) };
    let running = vec![container("main", 0, running(1))];
    assert_eq!(actions(&see(json!({}), &gone(running.clone(), 100))), ["stop:main:1s"]);
    assert_eq!(actions(&see(json!({}), &gone(running, 90))), ["stop:main:0s"]);
    assert_eq!(actions(&see(json!({}), &gone(vec![], 100))), ["remove-sandbox:s0"]);
    let nothing_left = Observed { gone_since: Some(at(100)), ..nothing() };
    let step = see(json!({}), &nothing_left);
    assert!(actions(&step).is_empty());
    assert!(step.over);
}

#[test]
fn force_shortens_a_graceful_deletion() {
    let mut seen = with(vec![container("main", 0, running(1))]);
    seen.in_flight.insert(of("main"), InFlight::Stop { kill_at: at(130) });
    seen.gone_since = Some(at(100));
    assert_eq!(actions(&deleted(130, &seen)), ["stop:main:1s"]);
}

#[test]
fn while_it_ends_a_pod_is_asked_only_for_readiness() {
    let mut pod = pod(probes(&["readiness", "liveness"]));
    pod.metadata.deletion_timestamp = Some(Time(at(130)));
    let mut seen = with(vec![container("main", 0, running(1))]);
    let results = ProbeResults { readiness: Some(true), liveness: Some(false), startup: None };
    seen.probes.insert("s0.main.0".into(), results);
    let step = step(&pod, &node(), &seen, at(100));
    assert_eq!(kinds(&step), [ProbeKind::Readiness]);
    assert!(status_of(&step, "main").ready);
    assert_eq!(phase(&step), "Running");
}

/// As by the kubelet: what its hook prepares is not asked for before.
#[test]
fn a_container_is_not_probed_before_its_hook_after_the_start_is_over() {
    let pod = pod(probes(&["readiness", "liveness"]));
    let mut seen = with(vec![container("main", 0, running(1))]);
    seen.in_flight.insert(of("main"), InFlight::PostStart);
    assert_eq!(kinds(&step(&pod, &node(), &seen, at(100))), []);
    seen.in_flight.clear();
    let asked = kinds(&step(&pod, &node(), &seen, at(100)));
    assert_eq!(asked, [ProbeKind::Liveness, ProbeKind::Readiness]);
}

#[test]
fn the_final_status_says_how_the_containers_ended() {
    for (exit_code, expected) in [(0, "Succeeded"), (143, "Failed")] {
        let mut seen = nothing();
        seen.past.insert("main".into(), container("main", 0, exited(1, 99, exit_code)));
        let step = deleted(130, &seen);
        assert_eq!(actions(&step), ["delete"]);
        assert_eq!(phase(&step), expected);
        let ended = status_of(&step, "main").state.clone().unwrap().terminated.unwrap();
        assert_eq!(ended.exit_code, exit_code);
        assert!(condition(&step, "Ready").starts_with("False"));
    }
}
