//! What a pod refers to is looked for before a container is started, and volumes follow it.

use super::{
    super::super::inputs::{Inputs, Reference},
    *,
};

fn with_volume() -> Value {
    json!({
        "containers": [{"name": "main", "image": "hello",
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "configMap": {"name": "settings"}}],
    })
}

fn found(at_seconds: i64) -> Inputs {
    let mut inputs = Inputs::none(at(at_seconds));
    let map = serde_json::from_value(json!({"data": {"a": "1"}})).unwrap();
    inputs.config_maps.insert("settings".into(), map);
    inputs
}

#[test]
fn nothing_is_started_before_the_references_were_looked_for() {
    let seen = Observed { inputs: None, ..with(vec![]) };
    let step = see(with_volume(), &seen);
    assert_eq!(actions(&step), ["fetch-inputs"]);
    assert_eq!(waiting(&step, "main"), "ContainerCreating");
    let under_way = busy(seen.clone(), Object::Inputs);
    assert_eq!(actions(&see(with_volume(), &under_way)), [""; 0]);
    let mut refused = seen;
    refused.failures.insert(Object::Inputs, failed(1, 99));
    let step = see(with_volume(), &refused);
    assert_eq!(actions(&step), ["fetch-inputs"], "a second later it is tried again");
    refused.failures.insert(Object::Inputs, failed(2, 99));
    let step = see(with_volume(), &refused);
    assert_eq!((actions(&step).len(), step.wake), (0, Some(at(101))));
    assert_eq!(waiting(&step, "main"), "CreateContainerConfigError");
    assert_eq!(waiting_message(&step, "main"), "broken");
}

#[test]
fn a_container_is_started_with_the_volumes_that_it_mounts() {
    let seen = Observed { inputs: Some(found(99)), ..with(vec![]) };
    let step = see(with_volume(), &seen);
    assert_eq!(actions(&step), ["start:main:0:0s"]);
    let Action::StartContainer { volumes, config, .. } = &step.actions[0] else { unreachable!() };
    assert_eq!((volumes.len(), config.mounts.len()), (1, 1));
}

/// Of two containers of a pod one needs what nobody could be asked for.
#[test]
fn what_can_not_be_asked_for_holds_up_who_needs_it_though_it_is_optional() {
    let optional = |source: &str| json!([{source: {"name": "settings", "optional": true}}]);
    for (source, reference) in [
        ("configMapRef", Reference::ConfigMap("settings".into())),
        ("secretRef", Reference::Secret("settings".into())),
    ] {
        let spec = json!({"containers": [
            {"name": "main", "image": "hello"},
            {"name": "needs", "image": "hello", "envFrom": optional(source)},
        ]});
        let mut inputs = Inputs::none(at(97));
        assert_eq!(
            actions(&see(spec.clone(), &Observed { inputs: Some(inputs.clone()), ..with(vec![]) })),
            ["start:main:0:0s", "start:needs:0:0s"],
            "it is not there, and optional"
        );
        inputs.unknown.insert(reference, "forbidden".into());
        let step = see(spec, &Observed { inputs: Some(inputs), ..with(vec![]) });
        assert_eq!(actions(&step), ["start:main:0:0s"]);
        assert_eq!(waiting(&step, "needs"), "CreateContainerConfigError");
        assert_eq!(waiting_message(&step, "needs"), "forbidden");
        assert_eq!(step.wake, Some(at(102)), "it is looked for again");
    }
}

#[test]
fn a_volume_of_what_can_not_be_asked_for_stays_as_it_is() {
    let mut inputs = Inputs::none(at(99));
    inputs.unknown.insert(Reference::ConfigMap("settings".into()), "forbidden".into());
    let mut spec = with_volume();
    spec["volumes"][0]["configMap"]["optional"] = true.into();
    let waits = see(spec.clone(), &Observed { inputs: Some(inputs.clone()), ..with(vec![]) });
    assert_eq!(waiting_message(&waits, "main"), "forbidden");
    let runs = with(vec![container("main", 0, running(10))]);
    let due = Observed { refreshed_at: Some(at(40)), inputs: Some(inputs), ..runs };
    assert_eq!(actions(&see(spec, &due)), ["refresh-volumes:0"]);
}

#[test]
fn what_is_missing_is_said_and_looked_for_again() {
    let seen = Observed { inputs: Some(Inputs::none(at(97))), ..with(vec![]) };
    let step = see(with_volume(), &seen);
    assert_eq!(actions(&step), [""; 0]);
    assert_eq!(waiting(&step, "main"), "CreateContainerConfigError");
    assert_eq!(waiting_message(&step, "main"), "configmap \"settings\" not found");
    assert_eq!(step.wake, Some(at(102)));
    let seen = Observed { inputs: Some(Inputs::none(at(95))), ..with(vec![]) };
    assert_eq!(actions(&see(with_volume(), &seen)), ["fetch-inputs"]);
}

#[test]
fn volumes_of_running_containers_follow_their_objects_each_minute() {
    let running = || with(vec![container("main", 0, running(10))]);
    let fresh = Observed { refreshed_at: Some(at(50)), inputs: None, ..running() };
    let step = see(with_volume(), &fresh);
    assert_eq!((actions(&step).len(), step.wake), (0, Some(at(110))));
    let due = Observed { refreshed_at: Some(at(40)), inputs: None, ..running() };
    assert_eq!(actions(&see(with_volume(), &due)), ["fetch-inputs"]);
    let looked = Observed { inputs: Some(found(100)), ..due };
    assert_eq!(actions(&see(with_volume(), &looked)), ["refresh-volumes:1"]);
    // A pod without such volumes is left alone.
    let plain = Observed { refreshed_at: None, inputs: None, ..running() };
    assert_eq!(actions(&see(json!({}), &plain)), [""; 0]);
}

#[test]
fn a_volume_whose_object_is_gone_holds_up_no_other() {
    let mut spec = with_volume();
    let mounts = json!([{"name": "gone", "mountPath": "/g"}, {"name": "v", "mountPath": "/v"}]);
    spec["containers"][0]["volumeMounts"] = mounts;
    let gone = json!({"name": "gone", "secret": {"secretName": "gone"}});
    let unmounted = json!({"name": "unmounted", "configMap": {"name": "settings"}});
    spec["volumes"] = json!([gone, spec["volumes"][0], unmounted]);
    let seen = with(vec![container("main", 0, running(10))]);
    let seen = Observed { refreshed_at: Some(at(40)), inputs: Some(found(100)), ..seen };
    let step = see(spec, &seen);
    let [Action::RefreshVolumes(plans)] = &step.actions[..] else { panic!("{:?}", step.actions) };
    assert_eq!(plans.iter().map(|plan| &*plan.name).collect::<Vec<_>>(), ["v"]);
}

#[test]
fn volumes_are_removed_after_the_sandbox_and_before_the_api_is_told() {
    let mut pod = pod(with_volume());
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(110)));
    let after = |seen: &Observed| actions(&step(&pod, &node(), seen, at(100)));
    let left = Observed { volumes_left: true, ..with(vec![]) };
    assert_eq!(after(&left), ["remove-sandbox:s0"]);
    let left = Observed { volumes_left: true, ..nothing() };
    assert_eq!(after(&left), ["remove-volumes"]);
    assert_eq!(after(&busy(left, Object::Volumes)), [""; 0]);
    assert_eq!(after(&nothing()), ["delete"]);
}
