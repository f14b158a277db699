//! Strategic merge patch as Kubernetes documents it (sig-api-machinery, "strategic merge patch"),
//! on the fields of our kinds.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::named;

const DEPLOYMENT: &str = "apps.v1.Deployment";
const NODE: &str = "core.v1.Node";
const POD: &str = "core.v1.Pod";
const SERVICE: &str = "core.v1.Service";

fn patched(original: &Value, patch: &Value, of: &str) -> Value {
    let mut object = original.clone();
    apply(&mut object, patch, named(of)).unwrap();
    object
}

#[expect(clippy::needless_pass_by_value, reason = "called with literals")]
fn containers(items: Value) -> Value {
    json!({"spec": {"containers": items}})
}

#[test]
fn keyed_lists_merge_by_key() {
    let original = containers(
        json!([{"name": "web", "image": "a", "args": ["x", "y"]}, {"name": "log", "image": "b"}]),
    );
    for (patch, expected) in [
        // An item that is there is merged; its plain lists are replaced.
        (
            json!([{"name": "web", "image": "c"}]),
            json!([{"name": "web", "image": "c", "args": ["x", "y"]}, {"name": "log", "image": "b"}]),
        ),
        (
            json!([{"name": "log", "args": ["z"]}]),
            json!([{"name": "web", "image": "a", "args": ["x", "y"]}, {"name": "log", "image": "b", "args": ["z"]}]),
        ),
        // A null takes a field away.
        (
            json!([{"name": "web", "args": null}]),
            json!([{"name": "web", "image": "a"}, {"name": "log", "image": "b"}]),
        ),
        // A new item comes before those that only the server knows.
        (
            json!([{"name": "new", "image": "n"}]),
            json!([{"name": "new", "image": "n"}, {"name": "web", "image": "a", "args": ["x", "y"]}, {"name": "log", "image": "b"}]),
        ),
        // An item is deleted by its key.
        (
            json!([{"name": "log", "$patch": "delete"}]),
            json!([{"name": "web", "image": "a", "args": ["x", "y"]}]),
        ),
        // The list is replaced.
        (
            json!([{"$patch": "replace"}, {"name": "one", "image": "o"}]),
            json!([{"name": "one", "image": "o"}]),
        ),
    ] {
        assert_eq!(
            patched(&original, &containers(patch.clone()), POD),
            containers(expected),
            "{patch}"
        );
    }
}

#[test]
fn keys_differ_by_field() {
    // Container ports merge by containerPort, whatever the protocol; mounts by path; env by name.
    let original = containers(
        json!([{"name": "a", "ports": [{"containerPort": 53, "protocol": "UDP"}],
        "volumeMounts": [{"name": "v", "mountPath": "/a"}], "env": [{"name": "X", "value": "1"}]}]),
    );
    let patch = containers(json!([{"name": "a", "ports": [{"containerPort": 53, "name": "dns"}],
        "volumeMounts": [{"name": "v", "mountPath": "/b"}], "env": [{"name": "X", "value": "2"}]}]));
    assert_eq!(
        patched(&original, &patch, POD),
        containers(
            json!([{"name": "a", "ports": [{"containerPort": 53, "name": "dns", "protocol": "UDP"}],
        "volumeMounts": [{"name": "v", "mountPath": "/b"}, {"name": "v", "mountPath": "/a"}], "env": [{"name": "X", "value": "2"}]}])
        )
    );
    // Ports of Services merge by port.
    let service =
        json!({"spec": {"ports": [{"port": 80, "nodePort": 30_080, "targetPort": 8080}]}});
    let patch = json!({"spec": {"ports": [{"port": 80, "targetPort": 9090}]}});
    assert_eq!(
        patched(&service, &patch, SERVICE),
        json!({"spec": {"ports": [{"port": 80, "nodePort": 30_080, "targetPort": 9090}]}})
    );
    // Conditions by type, also below a template's depth.
    let node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]}});
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    assert_eq!(
        patched(&node, &patch, NODE)["status"]["conditions"],
        json!([{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}])
    );
    let deployment = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}}});
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "b", "image": "2"}]}}}});
    assert_eq!(
        patched(&deployment, &patch, DEPLOYMENT)["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}])
    );
}

#[test]
fn lists_without_a_key_are_replaced() {
    let original = json!({"spec": {"tolerations": [{"key": "a"}], "taints": [{"key": "b"}]}});
    let patch = json!({"spec": {"tolerations": [{"key": "c"}]}});
    assert_eq!(
        patched(&original, &patch, POD),
        json!({"spec": {"tolerations": [{"key": "c"}], "taints": [{"key": "b"}]}})
    );
}

#[test]
fn sets_of_plain_values_are_united() {
    let original = json!({"metadata": {"finalizers": ["a", "b"]}});
    let merged = patched(&original, &json!({"metadata": {"finalizers": ["c", "a"]}}), POD);
    assert_eq!(merged["metadata"]["finalizers"], json!(["c", "a", "b"]));
    let merged = patched(
        &original,
        &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
        POD,
    );
    assert_eq!(merged["metadata"]["finalizers"], json!(["b"]));
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["d", "b"], "finalizers": ["d"]}});
    assert_eq!(patched(&original, &patch, POD)["metadata"]["finalizers"], json!(["d", "b"]));
}

#[test]
fn maps_merge_and_nulls_delete() {
    let original = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"x": 1}});
    let patch = json!({"metadata": {"labels": {"a": null, "c": "3", "gone": null}}, "spec": null});
    assert_eq!(
        patched(&original, &patch, POD),
        json!({"metadata": {"labels": {"b": "2", "c": "3"}}})
    );
}

#[test]
fn a_map_can_be_replaced_or_emptied() {
    let original = json!({"metadata": {"labels": {"a": "1"}}});
    assert_eq!(
        patched(&original, &json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}), POD),
        json!({"metadata": {"labels": {"b": "2"}}})
    );
    assert_eq!(
        patched(&original, &json!({"metadata": {"labels": {"$patch": "delete"}}}), POD),
        json!({"metadata": {"labels": {}}})
    );
}

#[test]
fn inv_67_a_strategy_keeps_only_what_the_patch_retains() {
    let original =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        patched(&original, &patch, DEPLOYMENT),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
    let volumes = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
    let patch = json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}});
    assert_eq!(
        patched(&volumes, &patch, POD),
        json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}})
    );
}

#[test]
fn an_order_is_enforced_around_what_only_the_server_knows() {
    let named =
        |names: &[&str]| containers(names.iter().map(|name| json!({"name": name})).collect());
    let original = named(&["a", "sidecar", "b"]);
    for (order, added, expected) in [
        (&["a", "n", "b"][..], Some("n"), &["a", "n", "sidecar", "b"][..]),
        // What stood before the first of them stays before it.
        (&["b", "a"], None, &["sidecar", "b", "a"]),
        (&["n", "a", "b"], Some("n"), &["n", "a", "sidecar", "b"]),
    ] {
        let mut patch = json!({"spec": {"$setElementOrder/containers": order.iter().map(|name| json!({"name": name})).collect::<Value>()}});
        if let Some(added) = added {
            patch["spec"]["containers"] = json!([{"name": added}]);
        }
        assert_eq!(patched(&original, &patch, POD), named(expected), "{order:?}");
    }
}

#[test]
fn bad_patches_are_refused() {
    let original = containers(json!([{"name": "a"}]));
    for patch in [
        containers(json!([{"image": "x"}])),
        containers(json!([{"name": "a", "$patch": "explode"}])),
        json!({"$patch": "merge"}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}}),
        json!({"spec": {"$retainKeys": ["a"], "b": 1}}),
    ] {
        assert!(apply(&mut original.clone(), &patch, named(POD)).is_err(), "{patch}");
    }
}

proptest! {
    /// What a patch says holds afterwards, and applying it again changes nothing.
    #[test]
    fn applying_twice_is_applying_once(names in prop::collection::vec(0..6_u8, 0..6), patch in prop::collection::vec((0..6_u8, any::<u8>()), 0..6)) {
        let item = |name: u8, image: &str| json!({"name": name.to_string(), "image": image});
        let mut names = names;
        names.sort_unstable();
        names.dedup();
        let original = containers(names.iter().map(|name| item(*name, "old")).collect());
        let patch = containers(patch.iter().map(|(name, image)| item(*name, &image.to_string())).collect());
        let once = patched(&original, &patch, POD);
        prop_assert_eq!(patched(&once, &patch, POD), once.clone());
        let found: Vec<&Value> = once["spec"]["containers"].as_array().into_iter().flatten().map(|one| &one["name"]).collect();
        let mut unique: Vec<String> = found.iter().map(ToString::to_string).collect();
        unique.sort_unstable();
        unique.dedup();
        prop_assert_eq!(found.len(), unique.len());
    }
}
