//! Environments as the Kubernetes API defines them.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};

use super::{super::testing, *};

fn inputs() -> Inputs {
    let mut inputs = Inputs::none(testing::at(0));
    let map = json!({"data": {"colour": "blue", "odd=key": "x"}});
    let map: ConfigMap = serde_json::from_value(map).unwrap();
    inputs.config_maps.insert("settings".into(), map);
    let secret: Secret = serde_json::from_value(json!({"data": {"password": "aHVudGVy"}})).unwrap();
    inputs.secrets.insert("login".into(), secret);
    inputs
}

fn service(namespace: &str, name: &str, spec: &Value) -> Service {
    let metadata = json!({"namespace": namespace, "name": name});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn made_with(inputs: &Inputs, spec: Value) -> Result<Variables, String> {
    let pod = testing::pod(spec);
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let addresses = ["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()];
    let node = testing::node();
    let sources = Sources { pod: &pod, node: &node, addresses: &addresses, inputs };
    environment(sources, container)
}

fn made(container: &Value) -> Result<Variables, String> {
    made_with(&inputs(), json!({"containers": [container]}))
}

fn value_of(source: &Value) -> Result<Option<String>, String> {
    let env = json!([{"name": "X", "valueFrom": source}]);
    let limits = json!({"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "100m"}});
    let all = made(&json!({"name": "c", "env": env, "resources": limits}))?;
    Ok(get(&all, "X").map(str::to_owned))
}

#[test]
fn the_downward_api_gives_fields() {
    for (path, expected) in [
        ("metadata.name", "web"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "uid-1"),
        ("metadata.labels['app']", "hello"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "node-1"),
        ("status.hostIP", "192.0.2.11"),
        ("status.hostIPs", "192.0.2.11,fd00:30::11"),
        ("status.podIP", "10.0.0.9"),
        ("status.podIPs", "10.0.0.9,fd00::9"),
    ] {
        let value = value_of(&json!({"fieldRef": {"fieldPath": path}}));
        assert_eq!(value, Ok(Some(expected.to_owned())), "{path}");
    }
    let unknown = value_of(&json!({"fieldRef": {"fieldPath": "spec.x"}}));
    assert_eq!(unknown, Err("env X: unsupported fieldPath \"spec.x\"".to_owned()));
}

#[test]
fn the_downward_api_gives_resources_rounded_up() {
    for (resource, divisor, expected) in [
        ("limits.cpu", "0", "2"),
        ("limits.cpu", "1m", "1500"),
        ("requests.cpu", "1m", "100"),
        ("limits.memory", "0", "67108864"),
        ("limits.memory", "1Mi", "64"),
        ("requests.memory", "1", "67108864"),
        ("limits.ephemeral-storage", "1", "0"),
    ] {
        let source = json!({"resourceFieldRef": {"resource": resource, "divisor": divisor}});
        assert_eq!(value_of(&source), Ok(Some(expected.to_owned())), "{resource} {divisor}");
    }
    // Without a limit it is the node's.
    let source = json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}});
    let env = json!([{"name": "X", "valueFrom": source}]);
    let all = made(&json!({"name": "c", "env": env})).unwrap();
    assert_eq!(get(&all, "X"), Some(testing::node().cpu_millis.to_string().as_str()));
}

#[test]
fn keys_of_config_maps_and_secrets_are_found_or_named() {
    let ask = |kind: &str, name: &str, key: &str, optional: bool| {
        value_of(&json!({kind: {"name": name, "key": key, "optional": optional}}))
    };
    let (map, secret) = ("configMapKeyRef", "secretKeyRef");
    assert_eq!(ask(map, "settings", "colour", false), Ok(Some("blue".into())));
    assert_eq!(ask(secret, "login", "password", false), Ok(Some("hunter".into())));
    for (kind, name, key, expected) in [
        (map, "none", "k", "configmap \"none\" not found"),
        (map, "settings", "k", "couldn't find key k in ConfigMap default/settings"),
        (secret, "none", "k", "secret \"none\" not found"),
        (secret, "login", "k", "couldn't find key k in Secret default/login"),
    ] {
        assert_eq!(ask(kind, name, key, false), Err(expected.to_owned()));
        assert_eq!(ask(kind, name, key, true), Ok(None), "{expected}");
    }
}

#[test]
fn whole_objects_come_before_variables_and_odd_keys_are_left_out() {
    let all = made(&json!({"name": "c",
        "envFrom": [
            {"prefix": "S_", "configMapRef": {"name": "settings"}},
            {"secretRef": {"name": "login"}},
            {"configMapRef": {"name": "none", "optional": true}},
        ],
        "env": [{"name": "password", "value": "$(S_colour)"}]}))
    .unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(all, [pair("S_colour", "blue"), pair("password", "blue")]);
    let missing = made(&json!({"name": "c", "envFrom": [{"secretRef": {"name": "none"}}]}));
    assert_eq!(missing, Err("secret \"none\" not found".to_owned()));
}

#[test]
fn services_are_in_the_environment_unless_the_pod_wants_none() {
    let mut inputs = inputs();
    let ports = json!([{"name": "http-main", "port": 80}, {"port": 53, "protocol": "UDP"}]);
    inputs.services = vec![
        service("default", "my-web", &json!({"clusterIP": "10.96.1.2", "ports": ports})),
        service("default", "six", &json!({"clusterIP": "fd00:96::1", "ports": [{"port": 443}]})),
        service("default", "headless", &json!({"clusterIP": "None", "ports": ports})),
        service("other", "foreign", &json!({"clusterIP": "10.96.1.3", "ports": ports})),
        service(
            "default",
            "kubernetes",
            &json!({"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}),
        ),
    ];
    let all = made_with(&inputs, json!({"containers": [{"name": "c"}]})).unwrap();
    for (name, value) in [
        ("MY_WEB_SERVICE_HOST", "10.96.1.2"),
        ("MY_WEB_SERVICE_PORT", "80"),
        ("MY_WEB_SERVICE_PORT_HTTP_MAIN", "80"),
        ("MY_WEB_PORT", "tcp://10.96.1.2:80"),
        ("MY_WEB_PORT_80_TCP", "tcp://10.96.1.2:80"),
        ("MY_WEB_PORT_80_TCP_PROTO", "tcp"),
        ("MY_WEB_PORT_80_TCP_PORT", "80"),
        ("MY_WEB_PORT_80_TCP_ADDR", "10.96.1.2"),
        ("MY_WEB_PORT_53_UDP", "udp://10.96.1.2:53"),
        ("SIX_PORT", "tcp://[fd00:96::1]:443"),
        ("SIX_SERVICE_HOST", "fd00:96::1"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
    ] {
        assert_eq!(get(&all, name), Some(value), "{name}");
    }
    assert!(
        !all.iter().any(|(name, _)| name.starts_with("HEADLESS") || name.starts_with("FOREIGN"))
    );
    let spec = json!({"enableServiceLinks": false, "containers": [{"name": "c"}]});
    let names: Vec<String> =
        made_with(&inputs, spec).unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| name.starts_with("KUBERNETES_")), "{names:?}");
    assert!(!names.is_empty());
}
