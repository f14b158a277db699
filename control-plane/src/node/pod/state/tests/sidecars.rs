//! Sidecars: init containers that go on running (KEP-753), and the hooks of containers.

use super::*;

/// `first` runs to its end, `proxy` is a sidecar, `last` runs to its end, then `main`.
fn spec() -> Value {
    json!({
        "restartPolicy": "Never",
        "initContainers": [
            {"name": "first", "image": "hello"},
            {"name": "proxy", "image": "hello", "restartPolicy": "Always"},
            {"name": "last", "image": "hello"},
        ],
        "containers": [{"name": "main", "image": "hello"}],
    })
}

fn seen(containers: Vec<crate::node::runtime::Container>) -> Vec<String> {
    actions(&see(spec(), &with(containers)))
}

#[test]
fn a_sidecar_is_started_in_its_turn_and_lets_the_next_go_on() {
    let first = || container("first", 0, exited(1, 2, 0));
    let proxy = || container("proxy", 0, running(3));
    let last = || container("last", 0, exited(4, 5, 0));
    assert_eq!(seen(vec![]), ["start:first:0:0s"]);
    assert_eq!(seen(vec![first()]), ["start:proxy:0:0s"]);
    assert_eq!(seen(vec![first(), proxy()]), ["start:last:0:0s"]);
    assert_eq!(seen(vec![first(), proxy(), last()]), ["start:main:0:0s"]);
    assert_eq!(seen(vec![first(), proxy(), last(), container("main", 0, running(6))]), [""; 0]);
}

#[test]
fn a_sidecar_with_a_startup_probe_is_waited_for() {
    let mut spec = spec();
    spec["initContainers"][1]["startupProbe"] = json!({"tcpSocket": {"port": 1}});
    let mut seen =
        with(vec![container("first", 0, exited(1, 2, 0)), container("proxy", 0, running(3))]);
    let step = see(spec.clone(), &seen);
    assert_eq!(actions(&step), [""; 0]);
    assert_eq!(step.probes.len(), 1);
    assert_eq!(condition(&step, "Initialized"), "False ContainersNotInitialized");
    let results = ProbeResults { startup: Some(true), ..ProbeResults::default() };
    seen.probes.insert("s0.proxy.0".into(), results);
    assert_eq!(actions(&see(spec, &seen)), ["start:last:0:0s"]);
}

#[test]
fn a_sidecar_is_started_again_whatever_the_pods_policy_and_keeps_nobody_waiting() {
    let all = vec![
        container("first", 0, exited(1, 2, 0)),
        container("proxy", 0, exited(3, 90, 1)),
        container("last", 0, exited(4, 5, 0)),
        container("main", 0, running(6)),
    ];
    let step = see(spec(), &with(all));
    assert_eq!(actions(&step), ["start:proxy:1:10s"]);
    assert_eq!(phase(&step), "Running");
    assert_eq!(condition(&step, "Initialized"), "True");
    assert_eq!(condition(&step, "Ready"), "False ContainersNotReady");
}

#[test]
fn a_pod_whose_own_containers_are_done_is_done_and_its_sidecars_end() {
    let all = vec![
        container("first", 0, exited(1, 2, 0)),
        container("proxy", 0, running(3)),
        container("last", 0, exited(4, 5, 0)),
        container("main", 0, exited(6, 7, 0)),
    ];
    let step = see(spec(), &with(all));
    assert_eq!((phase(&step), actions(&step)), ("Succeeded", vec!["stop:proxy:30s".to_owned()]));
}

#[test]
fn sidecars_end_after_everything_else_the_last_one_first() {
    let mut spec = spec();
    spec["initContainers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "log", "image": "hello", "restartPolicy": "Always"}));
    let mut pod = pod(spec);
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(110)));
    let after = |containers: &[(&str, bool)]| {
        let state = |up: bool| if up { running(3) } else { exited(3, 90, 0) };
        let all = containers.iter().map(|&(name, up)| container(name, 0, state(up))).collect();
        actions(&step(&pod, &node(), &with(all), at(100)))
    };
    assert_eq!(after(&[("proxy", true), ("log", true), ("main", true)]), ["stop:main:10s"]);
    assert_eq!(after(&[("proxy", true), ("log", true), ("main", false)]), ["stop:log:10s"]);
    assert_eq!(after(&[("proxy", true), ("log", false), ("main", false)]), ["stop:proxy:10s"]);
    assert_eq!(after(&[("proxy", false), ("log", false), ("main", false)]), ["remove-sandbox:s0"]);
}

#[test]
fn a_container_whose_hook_failed_ends_with_the_grace_of_the_pod() {
    let main = container("main", 0, running(3));
    let mut seen = with(vec![main.clone()]);
    seen.failed_hooks.insert(main.id);
    let spec = json!({"terminationGracePeriodSeconds": 7, "containers": [
        {"name": "main", "image": "hello", "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}},
    ]});
    let step = see(spec.clone(), &seen);
    assert_eq!(actions(&step), ["stop:main:7s"]);
    let Action::StopContainer { pre_stop, .. } = &step.actions[0] else { unreachable!() };
    assert!(pre_stop.is_some());
    seen.in_flight.insert(of("main"), InFlight::Stop { kill_at: at(107) });
    assert!(actions(&see(spec.clone(), &seen)).is_empty(), "once is enough");
    // The one that is started then has not failed.
    seen.in_flight.clear();
    seen.containers = vec![container("main", 1, running(110))];
    assert!(actions(&see(spec, &seen)).is_empty());
}

#[test]
fn a_sidecar_is_up_when_its_hook_is_over() {
    let mut seen =
        with(vec![container("first", 0, exited(1, 2, 0)), container("proxy", 0, running(3))]);
    seen.in_flight.insert(of("proxy"), InFlight::PostStart);
    assert!(actions(&see(spec(), &seen)).is_empty());
    seen.in_flight.clear();
    assert_eq!(actions(&see(spec(), &seen)), ["start:last:0:0s"]);
}

#[test]
fn hooks_go_with_the_start_and_the_first_stop() {
    let spec = json!({"containers": [{"name": "main", "image": "hello", "lifecycle": {
        "postStart": {"exec": {"command": ["hello"]}},
        "preStop": {"sleep": {"seconds": 5}},
    }}]});
    let step = see(spec.clone(), &with(vec![]));
    let Action::StartContainer { post_start, .. } = &step.actions[0] else { unreachable!() };
    assert!(
        matches!(post_start.as_deref(), Some(Hook::Ask(target)) if target.probe.exec.is_some())
    );

    let mut pod = pod(spec);
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(130)));
    let pre_stop = |seen: &Observed, now: i64| {
        let step = super::step(&pod, &node(), seen, at(now));
        match &step.actions[..] {
            [Action::StopContainer { pre_stop, .. }] => pre_stop.clone(),
            other => panic!("{other:?}"),
        }
    };
    let mut seen = with(vec![container("main", 0, running(3))]);
    let five = Hook::Sleep(Duration::from_secs(5));
    assert_eq!(pre_stop(&seen, 100).as_deref(), Some(&five));
    // Made shorter, the stop does not begin anew.
    seen.in_flight.insert(Object::Container("main".into()), InFlight::Stop { kill_at: at(190) });
    assert_eq!(pre_stop(&seen, 100), None);
}
