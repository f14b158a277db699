//! What volumes have to be, source by source.

use serde_json::{Value, json};

use super::{
    super::{
        inputs::{Inputs, Token},
        testing,
    },
    *,
};

fn inputs() -> Inputs {
    let mut inputs = Inputs::none(testing::at(0));
    let map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "/w=="}});
    inputs.config_maps.insert("map".into(), serde_json::from_value(map).unwrap());
    let secret = json!({"data": {"key": "c2VjcmV0"}});
    inputs.secrets.insert("secret".into(), serde_json::from_value(secret).unwrap());
    let token = TokenRequest { audience: String::new(), seconds: 3600 };
    inputs.tokens.insert(token, Token::new("signed".into(), testing::at(0), 3600));
    inputs
}

/// The plan for one volume with one mount.
fn made(volume: Value, mount: Value) -> Result<(Vec<VolumePlan>, Vec<Mount>), String> {
    let mut volume = volume;
    volume["name"] = "v".into();
    let mut mount = mount;
    mount["name"] = "v".into();
    mount["mountPath"] = "/data".into();
    let pod = testing::pod(json!({
        "containers": [{"name": "c", "volumeMounts": [mount]}],
        "volumes": [volume],
    }));
    let (node, inputs) = (testing::node(), inputs());
    let sources = Sources { pod: &pod, node: &node, addresses: &[], inputs: &inputs };
    let env = [("WHO".to_owned(), "me".to_owned())];
    plan(sources, &pod.spec.as_ref().unwrap().containers[0], &env, Some(7))
}

/// Paths, modes and contents of the files, and whether they are secret.
fn files(volume: Value) -> (Vec<(String, u32, String)>, bool) {
    let (plans, _) = made(volume, json!({})).unwrap();
    match &plans[0].content {
        Content::Files { files, secret } => {
            let text = |file: &File| String::from_utf8_lossy(&file.content).into_owned();
            let all = files.iter().map(|one| (one.path.display().to_string(), one.mode, text(one)));
            (all.collect(), *secret)
        }
        other => panic!("{other:?}"),
    }
}

fn file(path: &str, mode: u32, text: &str) -> (String, u32, String) {
    (path.to_owned(), mode, text.to_owned())
}

#[test]
fn empty_folders_and_paths_of_the_node() {
    let (plans, mounts) = made(json!({"emptyDir": {}}), json!({})).unwrap();
    assert_eq!(plans[0].content, Content::Empty { memory: false, size: None });
    assert_eq!(plans[0].group, Some(7));
    assert_eq!(mounts[0].host_path, Path::new("/volumes/uid-1/v"));
    assert!(!mounts[0].read_only);
    let memory = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
    let (plans, _) = made(memory, json!({})).unwrap();
    assert_eq!(plans[0].content, Content::Empty { memory: true, size: Some(1 << 20) });
    let host = json!({"hostPath": {"path": "/var/log", "type": "Directory"}});
    let (plans, mounts) = made(host, json!({"readOnly": true})).unwrap();
    let content = Content::Host { path: "/var/log".into(), kind: "Directory".into() };
    assert_eq!((&plans[0].content, plans[0].group), (&content, None));
    assert_eq!(mounts[0].host_path, Path::new("/var/log"));
    assert!(mounts[0].read_only);
}

#[test]
fn config_maps_and_secrets_become_files_that_cannot_be_written_to() {
    let (all, secret) = files(json!({"configMap": {"name": "map"}}));
    let [a, b] = [file("a", 0o644, "1"), file("b", 0o644, "2")];
    assert_eq!(all[..2], [a, b]);
    assert_eq!((all.len(), secret), (3, false));
    let items =
        json!([{"key": "b", "path": "deep/two", "mode": 0o400}, {"key": "a", "path": "one"}]);
    let (all, _) =
        files(json!({"configMap": {"name": "map", "items": items, "defaultMode": 0o600}}));
    assert_eq!(all, [file("deep/two", 0o400, "2"), file("one", 0o600, "1")]);
    let (all, secret) = files(json!({"secret": {"secretName": "secret"}}));
    assert_eq!((all, secret), (vec![file("key", 0o644, "secret")], true));
    let (_, mounts) = made(json!({"secret": {"secretName": "secret"}}), json!({})).unwrap();
    assert!(mounts[0].read_only);
}

#[test]
fn projections_are_joined_and_with_a_token_are_secret() {
    let sources = json!([
        {"configMap": {"name": "map", "items": [{"key": "a", "path": "x"}]}},
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "requests.cpu"}},
        ]}},
    ]);
    let (all, secret) = files(json!({"projected": {"sources": sources}}));
    let expected = [
        file("cpu", 0o644, "0"),
        file("labels", 0o644, "app=\"hello\""),
        file("name", 0o644, "web"),
        file("x", 0o644, "1"),
    ];
    assert_eq!((&all[..], secret), (&expected[..], false));
    let token = json!([{"serviceAccountToken": {"path": "token"}}]);
    let (all, secret) = files(json!({"projected": {"sources": token, "defaultMode": 0o400}}));
    assert_eq!((all, secret), (vec![file("token", 0o400, "signed")], true));
}

#[test]
fn what_is_not_there_is_named_unless_it_is_optional() {
    let error = |volume: Value| made(volume, json!({})).unwrap_err();
    let missing = json!([{"key": "none", "path": "x"}]);
    assert_eq!(error(json!({"configMap": {"name": "none"}})), "configmap \"none\" not found");
    assert_eq!(error(json!({"secret": {"secretName": "none"}})), "secret \"none\" not found");
    assert_eq!(
        error(json!({"configMap": {"name": "map", "items": missing}})),
        "references non-existent key: none"
    );
    assert_eq!(
        error(json!({"persistentVolumeClaim": {"claimName": "c"}})),
        "this node part does not support the type of volume \"v\""
    );
    for optional in [
        json!({"configMap": {"name": "none", "optional": true}}),
        json!({"secret": {"secretName": "none", "optional": true}}),
        json!({"configMap": {"name": "map", "items": missing, "optional": true}}),
    ] {
        assert_eq!(files(optional).0, []);
    }
}

#[test]
fn nothing_leaves_its_volume() {
    for path in ["../x", "/etc", "a/../../x"] {
        let error = made(json!({"emptyDir": {}}), json!({"subPath": path})).unwrap_err();
        assert_eq!(error, format!("subPath {path:?} leaves its volume"));
        let items = json!([{"key": "a", "path": path}]);
        let error = made(json!({"configMap": {"name": "map", "items": items}}), json!({}));
        assert!(error.unwrap_err().contains("leaves its volume"), "{path}");
    }
    let (plans, mounts) =
        made(json!({"emptyDir": {}}), json!({"subPathExpr": "of/$(WHO)"})).unwrap();
    assert_eq!(mounts[0].host_path, Path::new("/volumes/uid-1/v/of/me"));
    assert_eq!(plans[0].sub_paths, [PathBuf::from("of/me")]);
}

#[test]
fn parents_are_mounted_before_what_is_below_them() {
    let pod = testing::pod(json!({
        "containers": [{"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/data/deep"}, {"name": "v", "mountPath": "/data"},
        ]}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }));
    let (node, inputs) = (testing::node(), inputs());
    let sources = Sources { pod: &pod, node: &node, addresses: &[], inputs: &inputs };
    let (plans, mounts) =
        plan(sources, &pod.spec.as_ref().unwrap().containers[0], &[], None).unwrap();
    let paths: Vec<_> = mounts.iter().map(|mount| mount.container_path.as_str()).collect();
    assert_eq!((plans.len(), paths), (1, vec!["/data", "/data/deep"]));
}
