//! Nodes, network policies and limit ranges.

use serde_json::{Value, json};

use crate::bed::Bed;

#[tokio::test]
async fn taints_of_nodes() {
    let bed = Bed::start().await;
    let node =
        |taints: Value| json!({"metadata": {"generateName": "n-"}, "spec": {"taints": taints}});
    let nodes = "/api/v1/nodes";
    let fine = json!([{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}]);
    bed.post(nodes, &node(fine)).await.unwrap();
    let twice = json!([{"key": "a", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoSchedule"}]);
    for (taints, expected) in [
        (json!([{"effect": "NoSchedule"}]), "spec.taints[0].key: Required value"),
        (json!([{"key": "a"}]), "spec.taints[0].effect: Required value"),
        (
            json!([{"key": "a", "effect": "Never"}]),
            "spec.taints[0].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ),
        (
            twice,
            "spec.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\",\"value\":\"b\"}",
        ),
    ] {
        assert_eq!(bed.refused(nodes, &node(taints)).await, [expected]);
    }
}

#[tokio::test]
async fn ports_and_ranges_of_network_policies() {
    let bed = Bed::start().await;
    let path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let policy =
        |rule: Value| json!({"metadata": {"generateName": "p-"}, "spec": {"ingress": [rule]}});
    let block = |cidr: &str, except: &str| json!({"from": [{"ipBlock": {"cidr": cidr, "except": [except]}}]});
    bed.post(path, &policy(json!({"ports": [{"port": 80, "endPort": 90}, {"port": "http"}]})))
        .await
        .unwrap();
    bed.post(path, &policy(block("10.0.0.0/8", "10.1.0.0/16"))).await.unwrap();
    for (rule, expected) in [
        (
            json!({"ports": [{"port": 0}]}),
            "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"port": 80, "endPort": 79}]}),
            "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
        ),
        (
            json!({"ports": [{"port": "http", "endPort": 80}]}),
            "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
        ),
        (
            json!({"ports": [{"endPort": 80}]}),
            "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is not specified",
        ),
        (
            block("10.0.0.0/8", "11.0.0.0/16"),
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
        ),
        (
            block("10.0.0.0/8", "10.0.0.0/8"),
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
        ),
    ] {
        assert_eq!(bed.refused(path, &policy(rule)).await, [expected]);
    }
}

#[tokio::test]
async fn limit_ranges_fill_what_follows() {
    let bed = Bed::start().await;
    let path = "/api/v1/namespaces/default/limitranges";
    let range =
        |limits: Value| json!({"metadata": {"generateName": "l-"}, "spec": {"limits": limits}});
    let made = bed
        .post(path, &range(json!([{"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1", "memory": "1Gi"}}])))
        .await
        .unwrap();
    let limit = &made["spec"]["limits"][0];
    assert_eq!(limit["default"], json!({"cpu": "2"}));
    assert_eq!(limit["defaultRequest"], json!({"cpu": "2", "memory": "1Gi"}));
    for (limits, expected) in [
        (
            json!([{"type": "Pod", "min": {"cpu": "3"}, "max": {"cpu": "2"}}]),
            "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2",
        ),
        (
            json!([{"type": "Pod", "default": {"cpu": "3"}}]),
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
        ),
        (
            json!([{"type": "Pod"}, {"type": "Pod"}]),
            "spec.limits[1].type: Duplicate value: \"Pod\"",
        ),
    ] {
        assert_eq!(bed.refused(path, &range(limits)).await, [expected]);
    }
}

#[tokio::test]
async fn ranges_of_a_nodes_pods_and_its_provider_stay() {
    let bed = Bed::start().await;
    let nodes = "/api/v1/nodes";
    let any = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let node = |spec: Value| json!({"metadata": {"name": "n"}, "spec": spec});
    for (spec, expected) in [
        (json!({"podCIDR": "x"}), format!("spec.podCIDRs[0]: Invalid value: \"x\": {any}")),
        (
            json!({"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}),
            "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.1.0/24\"]: may specify no more than one CIDR for each IP family".to_owned(),
        ),
    ] {
        assert_eq!(bed.refused(nodes, &node(spec)).await, [expected]);
    }
    let made = bed.post(nodes, &node(json!({}))).await.unwrap();
    assert_eq!(made["spec"].get("podCIDR"), None);
    let path = format!("{nodes}/n");
    let set = json!({"spec": {"podCIDR": "10.0.0.0/24", "providerID": "cloud://1"}});
    let set = bed.patch("merge", &path, &set).await.unwrap();
    assert_eq!(set["spec"]["podCIDRs"], json!(["10.0.0.0/24"]));
    for (change, field, named) in [
        (json!({"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24"]}), "podCIDRs", "podCIDR"),
        (json!({"podCIDRs": ["10.0.0.0/24", "fd00::/64"]}), "podCIDRs", "podCIDR"),
        (json!({"podCIDR": null, "podCIDRs": null}), "podCIDRs", "podCIDR"),
        (json!({"providerID": "cloud://2"}), "providerID", "providerID"),
    ] {
        let why = format!("node updates may not change {named} except from \"\" to valid");
        let found = bed.refused_change(&path, &json!({"spec": change})).await;
        assert_eq!(found, [format!("spec.{field}: Forbidden: {why}")], "{change}");
    }
    let address = json!({"type": "InternalIP", "address": "192.0.2.1"});
    let twice = json!({"status": {"addresses": [address, address]}});
    assert_eq!(
        bed.refused_change(&format!("{path}/status"), &twice).await,
        [
            "status.addresses[1]: Duplicate value: {\"address\":\"192.0.2.1\",\"type\":\"InternalIP\"}"
        ]
    );
}

#[tokio::test]
async fn ephemeral_containers_come_to_running_pods_alone() {
    let bed = Bed::start().await;
    let ephemeral = json!({"ephemeralContainers": [{"name": "debug", "image": "hello"}]});
    assert_eq!(
        bed.refused(crate::bed::PODS, &crate::bed::pod("p", &ephemeral)).await,
        ["spec.ephemeralContainers: Forbidden: cannot be set on create"]
    );
    let mut template = crate::bed::pod("t", &ephemeral);
    template["metadata"] = json!({"labels": {"a": "b"}});
    let set = json!({"metadata": {"name": "r"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let found = bed.refused("/apis/apps/v1/namespaces/default/daemonsets", &set).await;
    let expected = "spec.template.spec.ephemeralContainers: Forbidden: ephemeral containers not allowed in pod template";
    assert_eq!(found, [expected]);
    let mut none = set.clone();
    none["spec"]["template"]["spec"]["ephemeralContainers"] = json!([]);
    bed.post("/apis/apps/v1/namespaces/default/daemonsets", &none).await.unwrap();
}

#[tokio::test]
async fn quotas_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let path = "/api/v1/namespaces/default/resourcequotas";
    let quota = |spec: Value| json!({"metadata": {"generateName": "q-"}, "spec": spec});
    let fine = json!({"hard": {"pods": "3", "count/jobs.batch": "1", "example.com/gpu": "1", "requests.cpu": "500m"}});
    bed.post(path, &quota(fine)).await.unwrap();
    for (spec, expected) in [
        (
            json!({"hard": {"wishes": "3"}}),
            "spec.hard[wishes]: Invalid value: \"wishes\": must be a standard resource for quota",
        ),
        (
            json!({"hard": {"pods": "-1"}}),
            "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            json!({"hard": {"pods": "500m"}}),
            "spec.hard[pods]: Invalid value: \"500m\": must be an integer",
        ),
        (
            json!({"hard": {"pods": "1"}, "scopes": ["Fun"]}),
            "spec.scopes: Invalid value: [\"Fun\"]: unsupported scope",
        ),
        (
            json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]}),
            "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource",
        ),
        (
            json!({"hard": {"pods": "1"}, "scopes": ["Terminating", "NotTerminating"]}),
            "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes",
        ),
    ] {
        assert_eq!(bed.refused(path, &quota(spec)).await, [expected]);
    }
}

#[tokio::test]
async fn events_and_secrets_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let event = |about: &str, change: Value| {
        let mut event = json!({
            "metadata": {"generateName": "e-"},
            "involvedObject": {"kind": "Pod", "namespace": about, "name": "p"},
        });
        crate::bed::merge(&mut event, &change);
        event
    };
    let events = "/api/v1/namespaces/default/events";
    bed.post(events, &event("default", json!({}))).await.unwrap();
    bed.post(events, &event("", json!({}))).await.unwrap();
    assert_eq!(
        bed.refused(events, &event("other", json!({}))).await,
        ["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"]
    );
    let newer = json!({"eventTime": "2026-01-01T00:00:00.000000Z", "reason": "R", "action": "A"});
    assert_eq!(
        bed.refused(events, &event("default", newer)).await,
        ["reportingComponent: Required value", "reportingInstance: Required value"]
    );
    let newer = json!({
        "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "R", "action": "A",
        "reportingComponent": "example.com/c", "reportingInstance": "i",
    });
    bed.post(events, &event("other", newer.clone())).await.unwrap();
    let of_system = "/api/v1/namespaces/kube-system/events";
    bed.post(of_system, &event("", newer)).await.unwrap();
    assert_eq!(
        bed.refused(of_system, &event("", json!({}))).await,
        ["involvedObject.namespace: Invalid value: \"\": does not match event.namespace"]
    );
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = |kind: &str, data: Value| json!({"metadata": {"generateName": "s-"}, "type": format!("kubernetes.io/{kind}"), "stringData": data});
    for (kind, data, expected) in [
        (
            "basic-auth",
            json!({}),
            vec!["data[username]: Required value", "data[password]: Required value"],
        ),
        ("tls", json!({"tls.crt": ""}), vec!["data[tls.key]: Required value"]),
        ("ssh-auth", json!({"ssh-privatekey": ""}), vec!["data[ssh-privatekey]: Required value"]),
    ] {
        assert_eq!(bed.refused(secrets, &secret(kind, data)).await, expected, "{kind}");
    }
    let found =
        bed.refused(secrets, &secret("dockerconfigjson", json!({".dockerconfigjson": "x"}))).await;
    let start = "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": ";
    assert!(found[0].starts_with(start), "{found:?}");
    for (kind, data) in [
        ("basic-auth", json!({"username": ""})),
        ("dockerconfigjson", json!({".dockerconfigjson": "{}"})),
    ] {
        bed.post(secrets, &secret(kind, data)).await.unwrap();
    }
}
