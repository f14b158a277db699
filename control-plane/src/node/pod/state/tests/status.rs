//! What is reported.

use k8s_openapi::{api::core::v1::PodCondition, apimachinery::pkg::apis::meta::v1::Time};

use super::*;

#[test]
fn addresses_begin_with_the_nodes_primary_family() {
    let step = see(json!({}), &with(vec![container("main", 0, running(1))]));
    let ips: Vec<&str> =
        step.status.pod_ips.as_ref().unwrap().iter().map(|one| one.ip.as_str()).collect();
    assert_eq!(ips, ["10.244.0.9", "fd00:244::9"]);
    assert_eq!(step.status.pod_ip.as_deref(), Some("10.244.0.9"));
    assert_eq!(step.status.host_ip.as_deref(), Some("192.0.2.11"));
    assert_eq!(step.status.host_ips.as_ref().unwrap().len(), 2);
    assert_eq!(step.status.start_time, Some(Time(at(0))));
    assert_eq!(step.status.observed_generation, Some(1));
}

#[test]
fn a_pod_with_the_nodes_network_has_the_nodes_addresses() {
    let step = see(json!({"hostNetwork": true}), &with(vec![]));
    assert_eq!(step.status.pod_ip.as_deref(), Some("192.0.2.11"));
}

#[test]
fn addresses_stay_when_the_sandbox_is_gone() {
    let mut seen = with(vec![container("main", 0, running(1))]);
    seen.reported = see(json!({}), &seen).status;
    seen.sandboxes[0].ready = false;
    let step = see(json!({}), &seen);
    assert_eq!(step.status.pod_ip.as_deref(), Some("10.244.0.9"));
    assert_eq!(condition(&step, "PodReadyToStartContainers"), "False");
}

#[test]
fn a_condition_keeps_its_time_until_it_changes() {
    let pod = pod(json!({}));
    let time = |step: &Step, kind: &str| {
        let conditions = step.status.conditions.clone().unwrap();
        let condition = conditions.into_iter().find(|one| one.type_ == kind).unwrap();
        condition.last_transition_time.unwrap().0
    };
    let first = step(&pod, &node(), &with(vec![]), at(10));
    let runs = with(vec![container("main", 0, running(1))]);
    let seen = Observed { reported: first.status, ..runs };
    let second = step(&pod, &node(), &seen, at(20));
    assert_eq!(time(&second, "Ready"), at(20));
    assert_eq!(time(&second, "Initialized"), at(10));
    let seen = Observed { reported: second.status.clone(), ..seen };
    assert_eq!(step(&pod, &node(), &seen, at(30)).status, second.status);
}

#[test]
fn conditions_of_others_are_kept_and_gates_are_heeded() {
    let gate = |status: &str| PodCondition {
        type_: "example.com/gate".into(),
        status: status.into(),
        ..PodCondition::default()
    };
    let spec = json!({"readinessGates": [{"conditionType": "example.com/gate"}]});
    for (conditions, expected) in [
        (vec![], "False ReadinessGatesNotReady"),
        (vec![gate("False")], "False ReadinessGatesNotReady"),
        (vec![gate("True")], "True"),
    ] {
        let mut seen = with(vec![container("main", 0, running(1))]);
        seen.reported.conditions = Some(conditions.clone());
        let step = see(spec.clone(), &seen);
        assert_eq!(condition(&step, "Ready"), expected, "{conditions:?}");
        assert_eq!(condition(&step, "ContainersReady"), "True");
        for condition in conditions {
            assert!(step.status.conditions.as_ref().unwrap().contains(&condition));
        }
    }
}

#[test]
fn unready_containers_are_named() {
    let container_spec = |name: &str| json!({"name": name, "image": "hello"});
    let containers = ["a", "b", "c"].map(container_spec);
    let spec = json!({"containers": containers});
    let step = see(spec, &with(vec![container("b", 0, running(1))]));
    let conditions = step.status.conditions.clone().unwrap();
    let ready = conditions.iter().find(|one| one.type_ == "ContainersReady").unwrap();
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [a c]"));
}

#[test]
fn an_end_says_code_and_reason() {
    for (exit_code, reason) in [(0, "Completed"), (1, "Error"), (137, "Error")] {
        let seen = with(vec![container("main", 2, exited(3, 4, exit_code))]);
        let step = see(json!({"restartPolicy": "Never"}), &seen);
        let status = status_of(&step, "main");
        let ended = status.state.clone().unwrap().terminated.unwrap();
        assert_eq!((ended.exit_code, ended.reason.as_deref()), (exit_code, Some(reason)));
        assert_eq!(ended.container_id.as_deref(), Some("mizzen-process://s0.main.2"));
        assert_eq!((status.restart_count, status.ready), (2, false));
        let expected = if exit_code == 0 { "False PodCompleted" } else { "False PodFailed" };
        assert_eq!(condition(&step, "Ready"), expected);
    }
}

#[test]
fn an_end_that_was_reported_is_not_forgotten_with_the_runtimes_memory() {
    let seen = with(vec![container("main", 0, exited(1, 2, 5))]);
    let never = json!({"restartPolicy": "Never"});
    let reported = see(never.clone(), &seen).status;
    let unknown = crate::node::runtime::ContainerState::Exited {
        started_at: at(0),
        finished_at: at(0),
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: None,
    };
    let seen = Observed { reported, ..with(vec![container("main", 0, unknown)]) };
    let step = see(never, &seen);
    let ended = status_of(&step, "main").state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, phase(&step)), (5, "Failed"));
}

#[test]
fn a_ready_container_stays_ready_for_a_node_part_that_starts_anew() {
    let spec = probes(&["startup", "readiness"]);
    let good = ProbeResults { startup: Some(true), readiness: Some(true), liveness: None };
    let reported = probed(&spec, good).status;
    let before = with(vec![container("main", 0, running(1))]);
    let probes = super::super::super::observed::probes_of(&reported);
    let seen = Observed { reported: reported.clone(), probes, ..before };
    let step = see(spec, &seen);
    assert_eq!(step.status, reported);
    assert_eq!(kinds(&step), [ProbeKind::Readiness], "and is asked again");
}

#[test]
fn a_pod_that_has_ended_stays_so() {
    for ended in ["Succeeded", "Failed"] {
        for containers in [vec![], vec![container("main", 0, exited(1, 2, 1))]] {
            let mut seen = Observed { containers, ..nothing() };
            seen.reported.phase = Some(ended.into());
            let step = see(json!({}), &seen);
            assert_eq!((phase(&step), actions(&step)), (ended, vec![]));
        }
    }
}
