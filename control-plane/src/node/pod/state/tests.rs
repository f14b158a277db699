//! Tables of the pod state machine: what is seen, and what has to follow.

mod deletion;
mod inputs;
mod properties;
mod restarts;
mod sidecars;
mod status;

use serde_json::{Value, json};

use super::{
    super::{
        super::runtime::{Image, ImageUser},
        observed::{Failure, InFlight, Object, ProbeResults, Pull},
        testing::{at, container, exited, image, node, nothing, pod, running, sandbox, with},
    },
    *,
};

/// The step of a pod with this spec, 100 s after it was first seen.
fn see(spec: Value, seen: &Observed) -> Step {
    step(&pod(spec), &node(), seen, at(100))
}

/// The actions in short: `run-sandbox:0`, `start:main:0`, `stop:main:30s`, ….
fn actions(step: &Step) -> Vec<String> {
    let text = |action: &Action| match action {
        Action::PullImage(request) => format!("pull:{}", request.reference),
        Action::RunSandbox(config) => format!("run-sandbox:{}", config.attempt),
        Action::StopSandbox { id } => format!("stop-sandbox:{id}"),
        Action::RemoveSandbox { id } => format!("remove-sandbox:{id}"),
        Action::StartContainer { config, .. } => {
            format!("start:{}:{}:{}s", config.name, config.attempt, config.backoff.as_secs())
        }
        Action::StopContainer { name, grace, .. } => format!("stop:{name}:{}s", grace.as_secs()),
        Action::RemoveContainer { id, .. } => format!("remove:{id}"),
        Action::FetchInputs(_) => "fetch-inputs".to_owned(),
        Action::RefreshVolumes(plans) => format!("refresh-volumes:{}", plans.len()),
        Action::RemoveVolumes => "remove-volumes".to_owned(),
        Action::DeletePod => "delete".to_owned(),
    };
    step.actions.iter().map(text).collect()
}

/// The reason for which a container waits; `-` where it does not.
fn waiting(step: &Step, name: &str) -> String {
    let state = status_of(step, name).state.clone().unwrap_or_default();
    state.waiting.and_then(|waiting| waiting.reason).unwrap_or_else(|| "-".to_owned())
}

fn waiting_message(step: &Step, name: &str) -> String {
    let state = status_of(step, name).state.clone().unwrap_or_default();
    state.waiting.and_then(|waiting| waiting.message).unwrap_or_default()
}

fn status_of<'a>(step: &'a Step, name: &str) -> &'a k8s_openapi::api::core::v1::ContainerStatus {
    let statuses = &step.status;
    let all = statuses.init_container_statuses.iter().chain(&statuses.container_statuses);
    all.flatten().find(|status| status.name == name).unwrap()
}

fn phase(step: &Step) -> &str {
    step.status.phase.as_deref().unwrap()
}

/// A condition as `True` or `False reason`.
fn condition(step: &Step, kind: &str) -> String {
    let conditions = step.status.conditions.as_ref().unwrap();
    let condition = conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    match &condition.reason {
        Some(reason) => format!("{} {reason}", condition.status),
        None => condition.status.clone(),
    }
}

fn failed(attempts: u32, seconds: i64) -> Failure {
    Failure { attempts, at: at(seconds), message: "broken".into() }
}

fn busy(seen: Observed, object: Object) -> Observed {
    let mut seen = seen;
    seen.in_flight.insert(object, InFlight::Call);
    seen
}

fn of(name: &str) -> Object {
    Object::Container(name.to_owned())
}

#[test]
fn a_new_pod_gets_a_sandbox() {
    let step = see(json!({}), &nothing());
    assert_eq!(actions(&step), ["run-sandbox:0"]);
    assert_eq!((phase(&step), waiting(&step, "main").as_str()), ("Pending", "ContainerCreating"));
    assert_eq!(condition(&step, "PodReadyToStartContainers"), "False");
    assert_eq!(condition(&step, "Initialized"), "True");
    assert_eq!(condition(&step, "Ready"), "False ContainersNotReady");
    assert_eq!(condition(&step, "PodScheduled"), "True");
    let Action::RunSandbox(config) = &step.actions[0] else { panic!("{step:?}") };
    assert_eq!((config.hostname.as_deref(), config.host_network), (Some("web"), false));
    assert!(config.resolv_conf.contains("search default.svc.cluster.local"));
}

#[test]
fn without_a_network_only_pods_with_the_nodes_own_get_a_sandbox() {
    let why = "no CNI configuration in /etc/cni/net.d";
    let seen = Observed { network: Err(why.to_owned()), ..nothing() };
    let waits = see(json!({}), &seen);
    assert!(actions(&waits).is_empty());
    assert_eq!(waiting_message(&waits, "main"), format!("network not ready: {why}"));
    assert_eq!(actions(&see(json!({"hostNetwork": true}), &seen)), ["run-sandbox:0"]);
}

#[test]
fn a_sandbox_that_fails_is_tried_again_after_a_while_and_the_pod_says_why() {
    for (attempts, failed_at, expected, wake) in [
        (1, 100, vec![], Some(at(101))),
        (1, 99, vec!["run-sandbox:0"], None),
        (3, 97, vec![], Some(at(101))),
        (3, 96, vec!["run-sandbox:0"], None),
        (99, 71, vec![], Some(at(101))),
        (99, 70, vec!["run-sandbox:0"], None),
    ] {
        let mut seen = nothing();
        seen.failures.insert(Object::Sandbox, failed(attempts, failed_at));
        let step = see(json!({}), &seen);
        assert_eq!(actions(&step), expected, "{attempts} {failed_at}");
        assert_eq!(step.wake, wake, "{attempts} {failed_at}");
        assert_eq!(waiting_message(&step, "main"), "broken");
    }
}

#[test]
fn nothing_is_begun_twice() {
    assert!(actions(&see(json!({}), &busy(nothing(), Object::Sandbox))).is_empty());
    let starting = busy(with(vec![]), of("main"));
    assert!(actions(&see(json!({}), &starting)).is_empty());
    let pulling = busy(Observed { images: vec![], ..with(vec![]) }, Object::Image);
    assert!(actions(&see(json!({}), &pulling)).is_empty());
}

#[test]
fn in_a_sandbox_that_runs_the_containers_are_started() {
    let two =
        json!({"containers": [{"name": "a", "image": "hello"}, {"name": "b", "image": "hello"}]});
    assert_eq!(actions(&see(two.clone(), &with(vec![]))), ["start:a:0:0s", "start:b:0:0s"]);
    let one_runs = with(vec![container("a", 0, running(1))]);
    let step = see(two, &one_runs);
    assert_eq!(actions(&step), ["start:b:0:0s"]);
    assert_eq!(phase(&step), "Pending", "until each was started");
}

#[test]
fn a_container_that_was_only_created_is_started_as_the_same_attempt() {
    let seen = with(vec![container("main", 3, crate::node::runtime::ContainerState::Created)]);
    let step = see(json!({}), &seen);
    assert_eq!(actions(&step), ["start:main:3:0s"]);
    assert_eq!(waiting(&step, "main"), "ContainerCreating");
}

#[test]
fn init_containers_run_one_after_the_other_before_all_others() {
    let spec = json!({
        "initContainers": [{"name": "i1", "image": "hello"}, {"name": "i2", "image": "hello"}],
        "containers": [{"name": "main", "image": "hello"}],
    });
    let done = |name| container(name, 0, exited(1, 2, 0));
    for (seen, expected, initialized, reason) in [
        (vec![], vec!["start:i1:0:0s"], "False ContainersNotInitialized", "PodInitializing"),
        (
            vec![container("i1", 0, running(1))],
            vec![],
            "False ContainersNotInitialized",
            "PodInitializing",
        ),
        (
            vec![done("i1")],
            vec!["start:i2:0:0s"],
            "False ContainersNotInitialized",
            "PodInitializing",
        ),
        (vec![done("i1"), done("i2")], vec!["start:main:0:0s"], "True", "ContainerCreating"),
    ] {
        let step = see(spec.clone(), &with(seen.clone()));
        assert_eq!(actions(&step), expected, "{seen:?}");
        assert_eq!(condition(&step, "Initialized"), initialized, "{seen:?}");
        assert_eq!(waiting(&step, "main"), reason, "{seen:?}");
        assert_eq!(phase(&step), "Pending", "{seen:?}");
    }
}

#[test]
fn an_init_container_that_fails_is_tried_again_unless_the_policy_is_never() {
    let spec = |policy: &str| {
        json!({"restartPolicy": policy,
            "initContainers": [{"name": "i1", "image": "hello"}],
            "containers": [{"name": "main", "image": "hello"}]})
    };
    let seen = with(vec![container("i1", 0, exited(1, 2, 1))]);
    for policy in ["Always", "OnFailure"] {
        assert_eq!(actions(&see(spec(policy), &seen)), ["start:i1:1:10s"], "{policy}");
    }
    let step = see(spec("Never"), &seen);
    assert_eq!((actions(&step), phase(&step)), (vec!["stop-sandbox:s0".to_owned()], "Failed"));
    // Success is the end of an init container under every policy.
    let seen = with(vec![container("i1", 0, exited(1, 2, 0))]);
    assert_eq!(actions(&see(spec("Always"), &seen)), ["start:main:0:0s"]);
}

#[test]
fn an_image_is_pulled_and_waited_for() {
    let spec = json!({"containers": [{"name": "main", "image": "nginx"}]});
    let request = ImageRequest { reference: "nginx".into(), ..ImageRequest::default() };
    assert_eq!(actions(&see(spec.clone(), &with(vec![]))), ["pull:nginx"]);
    let quoted = "Back-off pulling image \"nginx\": ErrImagePull: broken";
    for (attempts, failed_at, expected, reason, message, wake) in [
        // The first wait is 10 s; the failure is shown for its first half.
        (1, 100, vec![], "ErrImagePull", "broken", Some(at(105))),
        (1, 96, vec![], "ErrImagePull", "broken", Some(at(101))),
        (1, 95, vec![], "ImagePullBackOff", quoted, Some(at(105))),
        (1, 90, vec!["pull:nginx"], "ImagePullBackOff", quoted, None),
        (2, 90, vec![], "ImagePullBackOff", quoted, Some(at(110))),
    ] {
        let images = vec![(request.clone(), Pull::Failed(failed(attempts, failed_at)))];
        let step = see(spec.clone(), &Observed { images, ..with(vec![]) });
        assert_eq!(actions(&step), expected, "{attempts} {failed_at}");
        assert_eq!(waiting(&step, "main"), reason, "{attempts} {failed_at}");
        assert_eq!(waiting_message(&step, "main"), message, "{attempts} {failed_at}");
        assert_eq!(step.wake, wake, "{attempts} {failed_at}");
    }
    let present = |user| {
        let image = Image { user, ..image("sha256:1") };
        let images = vec![(request.clone(), Pull::Present(image))];
        Observed { images, ..with(vec![]) }
    };
    let step = see(spec, &present(ImageUser::Id(0)));
    assert_eq!(actions(&step), ["start:main:0:0s"]);
    assert_eq!(status_of(&step, "main").image_id, "sha256:1");
    // Whom it runs as decides where root is not wanted.
    let spec = json!({"securityContext": {"runAsNonRoot": true},
        "containers": [{"name": "main", "image": "nginx"}]});
    let step = see(spec.clone(), &present(ImageUser::Id(0)));
    assert!(!actions(&step).iter().any(|action| action.starts_with("start")), "{step:?}");
    assert_eq!(waiting(&step, "main"), "CreateContainerConfigError");
    let said = waiting_message(&step, "main");
    assert!(said.contains("image will run as root") && said.contains("container: main)"), "{said}");
    let step = see(spec, &present(ImageUser::Id(7)));
    assert_eq!(actions(&step), ["start:main:0:0s"]);
}

#[test]
fn a_spec_that_cannot_be_met_is_not_started_and_says_why() {
    let spec = json!({"containers": [{"name": "main", "image": "hello",
        "securityContext": {"runAsNonRoot": true}}]});
    let inputs = Some(super::super::inputs::Inputs::none(at(99)));
    let step = see(spec, &Observed { inputs, ..with(vec![]) });
    assert!(actions(&step).is_empty());
    assert_eq!(waiting(&step, "main"), "CreateContainerConfigError");
    assert!(waiting_message(&step, "main").contains("runAsNonRoot"));
}

#[test]
fn a_start_that_fails_in_the_runtime_is_shown_and_tried_again() {
    let mut seen = with(vec![]);
    seen.failures.insert(of("main"), failed(1, 100));
    let step = see(json!({}), &seen);
    assert!(actions(&step).is_empty());
    assert_eq!((waiting(&step, "main").as_str(), step.wake), ("RunContainerError", Some(at(101))));
    seen.failures.insert(of("main"), failed(1, 99));
    assert_eq!(actions(&see(json!({}), &seen)), ["start:main:0:0s"]);
}

#[test]
fn older_containers_are_forgotten_but_for_the_one_before_the_last() {
    let seen = with(vec![
        container("main", 0, exited(1, 2, 1)),
        container("main", 1, exited(3, 4, 1)),
        container("main", 2, running(5)),
    ]);
    let step = see(json!({}), &seen);
    assert_eq!(actions(&step), ["remove:s0.main.0"]);
    let last = status_of(&step, "main").last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.finished_at.unwrap().0, at(4));
}

fn probed(spec: &Value, results: ProbeResults) -> Step {
    let mut seen = with(vec![container("main", 0, running(1))]);
    seen.probes.insert("s0.main.0".into(), results);
    see(spec.clone(), &seen)
}

fn kinds(step: &Step) -> Vec<ProbeKind> {
    step.probes.iter().map(|target| target.kind).collect()
}

fn probes(names: &[&str]) -> Value {
    let mut main = json!({"name": "main", "image": "hello",
        "ports": [{"name": "http", "containerPort": 8080}]});
    for name in names {
        main[format!("{name}Probe")] = json!({"tcpSocket": {"port": "http"}});
    }
    json!({"containers": [main], "terminationGracePeriodSeconds": 7})
}

#[test]
fn a_container_without_probes_is_ready_when_it_runs() {
    let step = probed(&probes(&[]), ProbeResults::default());
    let status = status_of(&step, "main");
    assert_eq!((status.ready, status.started), (true, Some(true)));
    assert_eq!((phase(&step), condition(&step, "Ready").as_str()), ("Running", "True"));
    assert!(step.probes.is_empty());
}

#[test]
fn readiness_follows_its_probe() {
    let spec = probes(&["readiness"]);
    for (readiness, ready) in [(None, false), (Some(false), false), (Some(true), true)] {
        let step = probed(&spec, ProbeResults { readiness, ..ProbeResults::default() });
        assert_eq!(status_of(&step, "main").ready, ready, "{readiness:?}");
        assert!(actions(&step).is_empty(), "an unready container goes on");
        assert_eq!(kinds(&step), [ProbeKind::Readiness]);
    }
}

#[test]
fn until_the_startup_probe_succeeds_no_other_runs() {
    let spec = probes(&["startup", "readiness", "liveness"]);
    let with = |startup| ProbeResults { startup, readiness: Some(true), liveness: None };
    let before = probed(&spec, with(None));
    assert_eq!(kinds(&before), [ProbeKind::Startup]);
    let status = status_of(&before, "main");
    assert_eq!((status.ready, status.started), (false, Some(false)));
    let after = probed(&spec, with(Some(true)));
    assert_eq!(kinds(&after), [ProbeKind::Liveness, ProbeKind::Readiness]);
    assert!(status_of(&after, "main").ready);
}

#[test]
fn a_failed_startup_or_liveness_probe_ends_the_container_with_the_pods_grace_or_its_own() {
    let startup = ProbeResults { startup: Some(false), ..ProbeResults::default() };
    assert_eq!(actions(&probed(&probes(&["startup"]), startup)), ["stop:main:7s"]);
    let liveness = ProbeResults { liveness: Some(false), ..ProbeResults::default() };
    let mut spec = probes(&["liveness"]);
    assert_eq!(actions(&probed(&spec, liveness)), ["stop:main:7s"]);
    spec["containers"][0]["livenessProbe"]["terminationGracePeriodSeconds"] = json!(2);
    assert_eq!(actions(&probed(&spec, liveness)), ["stop:main:2s"]);
    let good = ProbeResults { liveness: Some(true), ..ProbeResults::default() };
    assert!(actions(&probed(&spec, good)).is_empty());
}

#[test]
fn a_probe_knows_where_to_ask() {
    let step = probed(&probes(&["readiness"]), ProbeResults::default());
    let target = &step.probes[0];
    // The node's primary family is IPv4, whatever the network's order was.
    assert_eq!(target.address, Some("10.244.0.9".parse().unwrap()));
    assert_eq!(target.ports.get("http"), Some(&8080));
    assert_eq!((target.container.as_str(), target.started_at), ("s0.main.0", at(1)));
    let mut spec = probes(&["readiness"]);
    spec["hostNetwork"] = json!(true);
    let step = probed(&spec, ProbeResults::default());
    assert_eq!(step.probes[0].address, Some("192.0.2.11".parse().unwrap()));
}

#[test]
fn a_sandbox_that_died_is_replaced_and_its_containers_started_again() {
    let dead = Observed {
        sandboxes: vec![sandbox(false)],
        containers: vec![container("main", 1, exited(1, 90, 137))],
        ..nothing()
    };
    let first = see(json!({}), &dead);
    assert_eq!(actions(&first), ["remove-sandbox:s0"]);
    assert_eq!(waiting(&first, "main"), "ContainerCreating");

    let mut gone = dead;
    gone.remember_containers(at(100));
    gone.sandboxes.clear();
    gone.sandboxes_before = 1;
    assert_eq!(actions(&see(json!({}), &gone)), ["run-sandbox:1"]);

    gone.sandboxes = vec![sandbox(true)];
    let third = see(json!({}), &gone);
    assert_eq!(actions(&third), ["start:main:2:10s"]);
    assert_eq!(status_of(&third, "main").restart_count, 1);
}

#[test]
fn a_pod_that_is_not_to_be_restarted_fails_with_its_sandbox() {
    let dead = Observed {
        sandboxes: vec![sandbox(false)],
        containers: vec![container("main", 0, exited(1, 90, 137))],
        ..nothing()
    };
    let step = see(json!({"restartPolicy": "Never"}), &dead);
    assert_eq!((actions(&step), phase(&step)), (vec![], "Failed"));
}
