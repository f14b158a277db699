//! Restart policy and back-off.

use std::time::Duration;

use super::*;

/// The policy, the exit code, and what has to follow: restart, phase.
#[test]
fn the_policy_and_the_exit_code_decide() {
    for (policy, exit_code, restarts, expected_phase) in [
        ("Always", 0, true, "Running"),
        ("Always", 1, true, "Running"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, true, "Running"),
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
    ] {
        let seen = with(vec![container("main", 0, exited(1, 90, exit_code))]);
        let step = see(json!({"restartPolicy": policy}), &seen);
        let expected = if restarts { "start:main:1:10s" } else { "stop-sandbox:s0" };
        assert_eq!(actions(&step), [expected], "{policy} {exit_code}");
        assert_eq!(phase(&step), expected_phase, "{policy} {exit_code}");
    }
}

#[test]
fn a_pod_ends_with_its_last_container() {
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "image": "hello"}, {"name": "b", "image": "hello"}]});
    for (a, b, expected) in [
        (exited(1, 2, 0), running(1), "Running"),
        (exited(1, 2, 1), running(1), "Running"),
        (exited(1, 2, 0), exited(1, 2, 0), "Succeeded"),
        (exited(1, 2, 0), exited(1, 2, 9), "Failed"),
    ] {
        let seen = with(vec![container("a", 0, a.clone()), container("b", 0, b.clone())]);
        assert_eq!(phase(&see(spec.clone(), &seen)), expected, "{a:?} {b:?}");
    }
}

#[test]
fn the_second_crash_waits_and_says_so() {
    for (wait, finished, expected, wake, message) in [
        (0, 100, vec!["start:main:2:10s"], None, ""),
        (10, 95, vec![], Some(at(105)), "10s"),
        (10, 90, vec!["start:main:2:20s"], None, ""),
        (160, 50, vec![], Some(at(210)), "2m40s"),
        (300, 50, vec![], Some(at(350)), "5m0s"),
        (300, -200, vec!["start:main:2:300s"], None, ""),
    ] {
        let mut crashed = container("main", 1, exited(finished - 1, finished, 3));
        crashed.backoff = Duration::from_secs(wait);
        let step = see(json!({}), &with(vec![crashed]));
        assert_eq!(actions(&step), expected, "{wait} {finished}");
        assert_eq!(step.wake, wake, "{wait} {finished}");
        if !message.is_empty() {
            assert_eq!(waiting(&step, "main"), "CrashLoopBackOff");
            assert_eq!(
                waiting_message(&step, "main"),
                format!(
                    "back-off {message} restarting failed container=main pod=web_default(uid-1)"
                )
            );
            let status = status_of(&step, "main");
            let last = status.last_state.clone().unwrap().terminated.unwrap();
            assert_eq!((last.exit_code, status.restart_count), (3, 1));
            assert_eq!(phase(&step), "Running", "a container that crashed has run");
        }
    }
}

#[test]
fn a_container_that_ran_for_ten_minutes_is_restarted_at_once() {
    let mut ended = container("main", 6, exited(-600, 0, 1));
    ended.backoff = Duration::from_mins(5);
    let step = step(&pod(json!({})), &node(), &with(vec![ended]), at(1));
    assert_eq!(actions(&step), ["start:main:7:10s"]);
}

#[test]
fn after_the_machine_was_restarted_attempts_go_on_from_what_was_reported() {
    let reported: PodStatus = serde_json::from_value(json!({
        "phase": "Running",
        "containerStatuses": [{"name": "main", "image": "hello", "imageID": "", "ready": true,
            "restartCount": 4, "containerID": "mizzen-process://s9.main.4",
            "state": {"running": {"startedAt": "2026-11-20T17:00:00Z"}}}],
    }))
    .unwrap();
    let past = super::super::super::observed::past_of(&reported);
    let seen = Observed { reported, past, ..nothing() };
    assert_eq!(actions(&see(json!({}), &seen)), ["run-sandbox:0"]);
    let seen = Observed { sandboxes: vec![sandbox(true)], ..seen };
    let late = Timestamp::from_second(4_000_000_000).unwrap();
    let step = step(&pod(json!({})), &node(), &seen, late);
    assert_eq!(actions(&step), ["start:main:5:10s"]);
}

#[test]
fn an_init_container_runs_again_in_a_new_sandbox() {
    let spec = json!({"initContainers": [{"name": "i1", "image": "hello"}],
        "containers": [{"name": "main", "image": "hello"}]});
    let mut seen = with(vec![]);
    seen.past.insert("i1".into(), container("i1", 0, exited(1, 2, 0)));
    seen.past.insert("main".into(), container("main", 0, exited(3, 90, 137)));
    let step = see(spec, &seen);
    assert_eq!(actions(&step), ["start:i1:1:10s"]);
    assert_eq!(condition(&step, "Initialized"), "False ContainersNotInitialized");
}

#[test]
fn in_a_new_sandbox_a_container_that_has_done_its_work_is_not_run_again() {
    let spec = json!({"restartPolicy": "OnFailure", "containers": [
        {"name": "a", "image": "hello"}, {"name": "b", "image": "hello"}]});
    let mut seen = with(vec![]);
    seen.past.insert("a".into(), container("a", 0, exited(1, 2, 0)));
    seen.past.insert("b".into(), container("b", 0, exited(3, 90, 137)));
    let step = see(spec, &seen);
    assert_eq!(actions(&step), ["start:b:1:10s"]);
    assert_eq!(phase(&step), "Running");
}

#[test]
fn a_pod_ends_when_its_time_is_over() {
    for policy in ["Always", "Never"] {
        let spec = json!({"activeDeadlineSeconds": 101, "terminationGracePeriodSeconds": 7,
                          "restartPolicy": policy});
        let runs = with(vec![container("main", 0, running(10))]);
        let before = see(spec.clone(), &runs);
        assert_eq!((phase(&before), before.wake), ("Running", Some(at(101))));
        let after = step(&pod(spec.clone()), &node(), &runs, at(101));
        assert_eq!((phase(&after), actions(&after)), ("Running", vec!["stop:main:7s".to_owned()]));
        assert_eq!(after.status.reason, None, "it is not over yet");
        let mut ended = with(vec![container("main", 0, exited(10, 102, 0))]);
        for seconds in [102, 200] {
            let later = step(&pod(spec.clone()), &node(), &ended, at(seconds));
            let reason = later.status.reason.as_deref();
            assert_eq!((phase(&later), reason), ("Failed", Some("DeadlineExceeded")), "{policy}");
            ended.reported = later.status;
        }
    }
}
