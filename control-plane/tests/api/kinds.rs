//! What each kind demands, in Kubernetes' words, and what stands in it by default.

use serde_json::{Value, json};

use crate::server::{Server, said};

fn containers() -> Value {
    json!([{"name": "a", "image": "b"}])
}

fn template(extra: &Value) -> Value {
    let mut spec = json!({"containers": containers()});
    for (name, value) in extra.as_object().into_iter().flatten() {
        spec[name] = value.clone();
    }
    json!({"metadata": {"labels": {"a": "b"}}, "spec": spec})
}

/// A collection, the object's fields besides the name, and what the refusal says after
/// `KIND "x" is invalid: `.
fn refused() -> Vec<(&'static str, Value, &'static str)> {
    let selector = json!({"matchLabels": {"a": "b"}});
    vec![
        (
            "/api/v1/persistentvolumes",
            json!({"spec": {"capacity": {"storage": "0"}, "accessModes": ["RWO"], "hostPath": {"path": "/x"}}}),
            "[spec.accessModes[0]: Unsupported value: \"RWO\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\", spec.capacity[storage]: Invalid value: \"0\": must be greater than zero]",
        ),
        (
            "/api/v1/namespaces/default/persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"]}}),
            "spec.resources[storage]: Required value",
        ),
        (
            "/api/v1/namespaces/default/configmaps",
            json!({"data": {"a/b": "c"}}),
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ),
        (
            "/apis/batch/v1/namespaces/default/jobs",
            json!({"spec": {"template": template(&Value::Null)}}),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            json!({"spec": {"schedule": "* * *", "concurrencyPolicy": "Sometimes", "jobTemplate": {"spec": {"template": template(&json!({"restartPolicy": "Never"}))}}}}),
            "[spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, spec.concurrencyPolicy: Unsupported value: \"Sometimes\": supported values: \"Allow\", \"Forbid\", \"Replace\"]",
        ),
        (
            "/apis/apps/v1/namespaces/default/statefulsets",
            json!({"spec": {"selector": {"matchLabels": {"a": "c"}}, "template": template(&Value::Null)}}),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ),
        (
            "/apis/apps/v1/namespaces/default/daemonsets",
            json!({"spec": {"selector": selector, "template": template(&Value::Null), "updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}}),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0 when maxSurge is 0",
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            json!({"spec": {"rules": [{"http": {"paths": [{"path": "x", "pathType": "Prefix", "backend": {"service": {"name": "a", "port": {"number": 80}}}}]}}]}}),
            "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
        ),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({"reclaimPolicy": "Recycle"}),
            "[provisioner: Required value, reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"]",
        ),
        (
            "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "a"}, "minReplicas": 3, "maxReplicas": 2}}),
            "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`",
        ),
        (
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            json!({"spec": {"minAvailable": "x%"}}),
            "spec.minAvailable: Invalid value: \"x%\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}}),
            "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": []}]}),
            "endpoints[0].addresses: Required value: must contain at least 1 address",
        ),
        ("/apis/node.k8s.io/v1/runtimeclasses", json!({}), "handler: Required value"),
    ]
}

/// As [`refused`], of how a Deployment rolls out.
fn refused_deployments() -> Vec<(&'static str, Value, &'static str)> {
    let selector = json!({"matchLabels": {"a": "b"}});
    vec![
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"spec": {"selector": selector, "template": template(&Value::Null), "minReadySeconds": 600,
                "strategy": {"rollingUpdate": {"maxUnavailable": "150%", "maxSurge": -1}}}}),
            "[spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"150%\": must not be greater than 100%, spec.strategy.rollingUpdate.maxSurge: Invalid value: -1: must be greater than or equal to 0, spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds]",
        ),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"spec": {"selector": selector, "template": template(&Value::Null),
                "strategy": {"rollingUpdate": {"maxSurge": "abc"}}}}),
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"abc\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ),
    ]
}

#[tokio::test]
async fn what_kubernetes_refuses_is_refused_in_its_words() {
    let server = Server::start().await;
    for (path, mut object, expected) in refused().into_iter().chain(refused_deployments()) {
        object["metadata"] = json!({"name": "x"});
        let status = server.post(path, &object).await.unwrap_err();
        let (code, reason, message) = said(&status);
        assert_eq!((code, reason), (422, "Invalid"), "{path}: {message}");
        assert_eq!(message.split_once(" is invalid: ").unwrap().1, expected, "{path}");
    }
}

/// Objects that are accepted, and fields that they have then.
#[tokio::test]
async fn defaults_are_filled_in() {
    let server = Server::start().await;
    let selector = json!({"matchLabels": {"a": "b"}});
    for (path, object, expected) in [
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"spec": {"selector": selector, "template": template(&Value::Null),
                "strategy": {"rollingUpdate": {"maxSurge": "200%"}}}}),
            json!({"/spec/strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "200%"}}}),
        ),
        (
            "/apis/apps/v1/namespaces/default/daemonsets",
            json!({"spec": {"selector": selector, "template": template(&Value::Null)}}),
            json!({"/spec/updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
                "/spec/revisionHistoryLimit": 10, "/spec/template/spec/restartPolicy": "Always"}),
        ),
        (
            "/apis/apps/v1/namespaces/default/statefulsets",
            json!({"spec": {"selector": selector, "template": template(&Value::Null)}}),
            json!({"/spec/podManagementPolicy": "OrderedReady", "/spec/replicas": 1,
                "/spec/updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "/spec/persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"}}),
        ),
        (
            "/apis/batch/v1/namespaces/default/jobs",
            json!({"spec": {"template": template(&json!({"restartPolicy": "Never"}))}}),
            json!({"/spec/completions": 1, "/spec/parallelism": 1, "/spec/backoffLimit": 6,
                "/spec/completionMode": "NonIndexed", "/spec/suspend": false,
                "/spec/template/metadata/labels/job-name": "x"}),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            json!({"spec": {"egress": [{"ports": [{"port": 80}]}]}}),
            json!({"/spec/policyTypes": ["Ingress", "Egress"], "/spec/egress/0/ports/0/protocol": "TCP"}),
        ),
        (
            "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "a"}, "maxReplicas": 2,
                "metrics": [{"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1000m"}}}]}}),
            json!({"/spec/minReplicas": 1, "/spec/metrics/0/pods/target/averageValue": "1"}),
        ),
        (
            "/api/v1/namespaces/default/secrets",
            json!({"stringData": {"a": "b"}, "data": {"c": "ZA=="}}),
            json!({"/type": "Opaque", "/data": {"a": "Yg==", "c": "ZA=="}}),
        ),
    ] {
        let mut object = object.clone();
        object["metadata"] = json!({"name": "x"});
        let made = server.post(path, &object).await.unwrap();
        for (pointer, value) in expected.as_object().unwrap() {
            assert_eq!(made.pointer(pointer), Some(value), "{path} {pointer}");
        }
    }
}

#[tokio::test]
async fn what_is_immutable_stays() {
    let server = Server::start().await;
    let map = json!({"metadata": {"name": "a"}, "data": {"a": "b"}, "immutable": true});
    server.post("/api/v1/namespaces/default/configmaps", &map).await.unwrap();
    let change = json!({"data": {"a": "c"}});
    let path = "/api/v1/namespaces/default/configmaps/a";
    let refused = server.patch("merge", path, &change).await.unwrap_err();
    assert_eq!(
        said(&refused).2,
        "ConfigMap \"a\" is invalid: data: Forbidden: field is immutable when `immutable` is set"
    );
    let class = json!({"metadata": {"name": "a"}, "provisioner": "x"});
    server.post("/apis/storage.k8s.io/v1/storageclasses", &class).await.unwrap();
    let path = "/apis/storage.k8s.io/v1/storageclasses/a";
    let refused = server.patch("merge", path, &json!({"provisioner": "y"})).await.unwrap_err();
    assert_eq!(
        said(&refused).2,
        "StorageClass.storage.k8s.io \"a\" is invalid: provisioner: Forbidden: updates to provisioner are forbidden."
    );
}

#[tokio::test]
async fn events_of_both_groups_are_the_same_events() {
    let server = Server::start().await;
    let event = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p"},
        "reason": "Started", "note": "it runs", "type": "Normal", "action": "Start",
        "reportingController": "node", "reportingInstance": "n1", "eventTime": "2026-01-02T03:04:05.000006Z"});
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let made = server.post(events, &event).await.unwrap();
    assert_eq!(
        (&made["apiVersion"], &made["note"]),
        (&json!("events.k8s.io/v1"), &json!("it runs"))
    );
    let core = server.get("/api/v1/namespaces/default/events/e").await.unwrap();
    assert_eq!((&core["apiVersion"], &core["message"]), (&json!("v1"), &json!("it runs")));
    assert_eq!(core["involvedObject"]["name"], "p");
    assert_eq!(core["reportingComponent"], "node");
    let list = server.get(&format!("{events}?fieldSelector=regarding.name=p")).await.unwrap();
    assert_eq!(list["items"][0]["note"], "it runs");
    assert!(list["items"][0].get("message").is_none());
    let patched =
        server.patch("merge", &format!("{events}/e"), &json!({"note": "still"})).await.unwrap();
    assert_eq!(patched["note"], "still");
    let core = server.get("/api/v1/namespaces/default/events/e").await.unwrap();
    assert_eq!(core["message"], "still");
}

#[tokio::test]
async fn a_document_describes_every_kind() {
    let server = Server::start().await;
    let index = server.get("/openapi/v3").await.unwrap();
    for root in index["paths"].as_object().unwrap().keys() {
        let document = server.get(&format!("/openapi/v3/{root}")).await.unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{root} refers to {name}");
        }
        for path in document["paths"].as_object().unwrap().values() {
            let mut methods = ["put", "post", "get"].into_iter().filter_map(|one| path.get(one));
            let gvk = &methods.next().unwrap()["x-kubernetes-group-version-kind"];
            let described = schemas.values().any(|schema| {
                schema["x-kubernetes-group-version-kind"][0] == *gvk
                    && schema["properties"].as_object().is_some_and(|all| all.len() > 2)
            });
            assert!(described, "{gvk}");
        }
    }
}

#[tokio::test]
async fn what_names_no_class_gets_the_default_one() {
    let server = Server::start().await;
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    let class = |name: &str, default: bool| {
        json!({
            "metadata": {"name": name, "annotations": {
                "storageclass.kubernetes.io/is-default-class": default.to_string()}},
            "provisioner": "disk.example",
        })
    };
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, class: Option<&str>| {
        json!({"metadata": {"name": name}, "spec": {"storageClassName": class,
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    server.post(classes, &class("slow", false)).await.unwrap();
    let none = server.post(claims, &claim("none", None)).await.unwrap();
    assert_eq!(none["spec"].get("storageClassName"), None);
    server.post(classes, &class("fast", true)).await.unwrap();
    for (name, asked, given) in
        [("a", None, "fast"), ("b", Some("slow"), "slow"), ("c", Some(""), "")]
    {
        let made = server.post(claims, &claim(name, asked)).await.unwrap();
        assert_eq!(made["spec"]["storageClassName"], given, "{name}");
    }
    let ingresses = "/apis/networking.k8s.io/v1/ingressclasses";
    let nginx = json!({"metadata": {"name": "nginx", "annotations": {
        "ingressclass.kubernetes.io/is-default-class": "true"}}, "spec": {"controller": "a.example/b"}});
    server.post(ingresses, &nginx).await.unwrap();
    let edge = json!({"metadata": {"name": "edge"}, "spec": {"defaultBackend": {"service": {
        "name": "web", "port": {"number": 80}}}}});
    let path = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let made = server.post(path, &edge).await.unwrap();
    assert_eq!(made["spec"]["ingressClassName"], "nginx");
}
