//! HorizontalPodAutoscalers: bounds, metrics and behavior.

use serde_json::{Value, json};

use crate::bed::{Bed, causes, merge};

const AUTOSCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";

fn autoscaler(change: &Value) -> Value {
    let mut spec = json!({
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "maxReplicas": 5,
    });
    merge(&mut spec, change);
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    json!({"metadata": {"generateName": "a-"}, "spec": spec})
}

fn metric(metric: &Value) -> Value {
    json!({"metrics": [metric]})
}

#[tokio::test]
async fn bounds_and_behavior_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let up = |rules: Value| json!({"behavior": {"scaleUp": rules}});
    let policy = |kind: &str, value: i64, seconds: i64| json!({"policies": [{"type": kind, "value": value, "periodSeconds": seconds}]});
    let place = "spec.behavior.scaleUp";
    for (change, expected) in [
        (
            json!({"scaleTargetRef": {"name": ""}}),
            "spec.scaleTargetRef.name: Required value".to_owned(),
        ),
        (
            json!({"scaleTargetRef": {"name": "a/b"}}),
            "spec.scaleTargetRef.name: Invalid value: \"a/b\": may not contain '/'".to_owned(),
        ),
        (
            json!({"minReplicas": 0}),
            "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1".to_owned(),
        ),
        (
            json!({"minReplicas": 6}),
            "spec.maxReplicas: Invalid value: 5: must be greater than or equal to `minReplicas`"
                .to_owned(),
        ),
        (
            up(json!({"stabilizationWindowSeconds": 3601})),
            format!(
                "{place}.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600"
            ),
        ),
        (
            up(json!({"stabilizationWindowSeconds": -1})),
            format!(
                "{place}.stabilizationWindowSeconds: Invalid value: -1: must be greater than or equal to zero"
            ),
        ),
        (
            up(json!({"selectPolicy": "Any"})),
            format!(
                "{place}.selectPolicy: Unsupported value: \"Any\": supported values: \"Disabled\", \"Max\", \"Min\""
            ),
        ),
        (
            up(policy("Nodes", 1, 1)),
            format!(
                "{place}.policies[0].type: Unsupported value: \"Nodes\": supported values: \"Percent\", \"Pods\""
            ),
        ),
        (
            up(policy("Pods", 0, 1)),
            format!("{place}.policies[0].value: Invalid value: 0: must be greater than zero"),
        ),
        (
            up(policy("Pods", 1, 1801)),
            format!(
                "{place}.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800"
            ),
        ),
    ] {
        assert_eq!(bed.refused(AUTOSCALERS, &autoscaler(&change)).await, [expected], "{change}");
    }
}

#[tokio::test]
async fn what_is_not_said_of_behavior_is_filled_in() {
    let bed = Bed::start().await;
    let up = |rules: Value| json!({"behavior": {"scaleUp": rules}});
    let made =
        bed.post(AUTOSCALERS, &autoscaler(&up(json!({"selectPolicy": "Min"})))).await.unwrap();
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    assert_eq!(
        made["spec"]["behavior"],
        json!({
            "scaleUp": {"selectPolicy": "Min", "stabilizationWindowSeconds": 0, "policies": [pods, percent]},
            "scaleDown": {"selectPolicy": "Max", "policies": [percent]},
        })
    );
}

#[tokio::test]
async fn metrics_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let value = json!({"type": "Value", "value": "10"});
    let resource = |target: Value| {
        metric(&json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}))
    };
    let at = "spec.metrics[0]";
    for (change, expected) in [
        (
            metric(&json!({"type": "Resource"})),
            format!(
                "{at}.resource: Required value: must populate information for the given metric source"
            ),
        ),
        (
            metric(&json!({
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}},
                "external": {"metric": {"name": "m"}, "target": value},
            })),
            format!("{at}.external: Forbidden: must populate the given metric source only"),
        ),
        (
            resource(json!({"type": "Utilization", "averageUtilization": 0})),
            format!(
                "{at}.resource.target.averageUtilization: Invalid value: 0: must be greater than 0"
            ),
        ),
        (
            resource(json!({"type": "Utilization"})),
            format!(
                "{at}.resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization"
            ),
        ),
        (
            resource(json!({"type": "Utilization", "averageUtilization": 5, "averageValue": "5"})),
            format!(
                "{at}.resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization"
            ),
        ),
        (
            resource(json!({"type": "Sum", "averageUtilization": 5})),
            format!(
                "{at}.resource.target.type: Invalid value: \"Sum\": must be either Utilization, Value, or AverageValue"
            ),
        ),
    ] {
        assert_eq!(bed.refused(AUTOSCALERS, &autoscaler(&change)).await, [expected], "{change}");
    }
    // Kubernetes finds that twice and says it once.
    let unknown = format!(
        "{at}.type: Unsupported value: \"Weather\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\""
    );
    let weather = autoscaler(&metric(&json!({"type": "Weather"})));
    let status = bed.post(AUTOSCALERS, &weather).await.unwrap_err();
    assert_eq!(causes(&status), [unknown.as_str(), &unknown]);
    assert!(
        status["message"].as_str().unwrap().ends_with(&format!("is invalid: {unknown}")),
        "{status}"
    );
}

#[tokio::test]
async fn metrics_of_objects_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let at = "spec.metrics[0]";
    let value = json!({"type": "Value", "value": "10"});
    let object = |change: Value| {
        let mut object = json!({"describedObject": {"kind": "Ingress", "name": "i"}, "metric": {"name": "m"}, "target": value});
        merge(&mut object, &change);
        metric(&json!({"type": "Object", "object": object}))
    };
    for (change, expected) in [
        (
            object(json!({"target": {"value": "-1"}})),
            format!("{at}.object.target.value: Invalid value: \"-1\": must be positive"),
        ),
        (
            object(json!({"metric": {"name": ""}})),
            format!("{at}.object.metric.name: Required value: must specify a metric name"),
        ),
        (
            object(json!({"describedObject": {"name": ""}})),
            format!("{at}.object.describedObject.name: Required value"),
        ),
        (
            metric(&json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": value}})),
            format!(
                "{at}.pods.target.averageValue: Required value: must specify a positive target averageValue"
            ),
        ),
        (
            metric(
                &json!({"type": "External", "external": {"metric": {"name": "m"}, "target": {"type": "Value"}}}),
            ),
            format!(
                "{at}.external.target.averageValue: Required value: must set either a target value for metric or a per-pod target"
            ),
        ),
        (
            metric(
                &json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 5}}}),
            ),
            format!("{at}.containerResource.container: Required value: must specify a container"),
        ),
    ] {
        assert_eq!(bed.refused(AUTOSCALERS, &autoscaler(&change)).await, [expected], "{change}");
    }
    bed.post(AUTOSCALERS, &autoscaler(&object(json!({})))).await.unwrap();
}
