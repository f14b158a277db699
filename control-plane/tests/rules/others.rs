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
