//! Cells as `kubectl get` shows them on Kubernetes.

use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_700_000_000;

fn cells(columns: &[Column], object: &Value) -> Vec<String> {
    let object = Object::new(object.clone()).unwrap();
    let cell = |column: &Column| match (column.cell)(&object, NOW) {
        Value::String(text) => text,
        other => other.to_string(),
    };
    columns.iter().map(cell).collect()
}

#[test]
fn durations_have_at_most_two_units() {
    for (seconds, expected) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (121, "2m1s"),
        (599, "9m59s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (10_860, "3h1m"),
        (28_800, "8h"),
        (172_799, "47h"),
        (172_800, "2d"),
        (176_400, "2d1h"),
        (691_200, "8d"),
        (63_072_000, "2y"),
        (63_158_400, "2y1d"),
        (252_288_000, "8y"),
    ] {
        assert_eq!(duration(seconds), expected, "{seconds}");
    }
}

fn pod(status: &Value) -> Vec<String> {
    let pod = json!({
        "metadata": {"name": "web", "creationTimestamp": "2023-11-14T22:12:20Z"},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        "status": status,
    });
    cells(&POD[..5], &pod)
}

#[test]
fn inv_05_pods() {
    let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
    let crashed = json!({"name": "b", "ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"finishedAt": "2023-11-14T22:11:20Z"}}});
    let completed = json!({"name": "b", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let init = |state: Value| json!([{"name": "i", "restartCount": 0, "state": state}]);
    for (status, ready, shown, restarts) in [
        (json!({"phase": "Pending"}), "0/2", "Pending", "0"),
        (
            json!({"phase": "Running", "containerStatuses": [running, crashed]}),
            "1/2",
            "CrashLoopBackOff",
            "3 (2m ago)",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running, completed]}),
            "1/2",
            "NotReady",
            "0",
        ),
        (
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [running, completed]}),
            "1/2",
            "Running",
            "0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": init(json!({"running": {}}))}),
            "0/2",
            "Init:0/1",
            "0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": init(json!({"terminated": {"exitCode": 2}}))}),
            "0/2",
            "Init:ExitCode:2",
            "0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": init(json!({"waiting": {"reason": "ErrImagePull"}}))}),
            "0/2",
            "Init:ErrImagePull",
            "0",
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), "0/2", "Evicted", "0"),
        (
            json!({"phase": "Failed", "containerStatuses": [{"name": "a", "restartCount": 0, "state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
            "0/2",
            "Signal:9",
            "0",
        ),
    ] {
        assert_eq!(pod(&status), ["web", ready, shown, restarts, "60s"], "{status}");
    }
}

#[test]
fn a_pod_being_deleted_is_terminating() {
    let pod = json!({"metadata": {"name": "a", "deletionTimestamp": "2023-11-14T22:12:20Z"}, "spec": {"containers": [{}]}, "status": {"phase": "Running"}});
    assert_eq!(
        cells(POD, &pod)[2..],
        ["Terminating", "0", "<unknown>", "<none>", "<none>", "<none>", "<none>"]
    );
}

#[test]
fn services() {
    let service = |spec: Value, status: Value| {
        cells(&SERVICE[1..5], &json!({"metadata": {"name": "s"}, "spec": spec, "status": status}))
    };
    let ports = json!([{"port": 80, "nodePort": 30_080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
    assert_eq!(
        service(json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": ports}), json!({})),
        ["NodePort", "10.96.0.7", "<none>", "80:30080/TCP,53/UDP"]
    );
    assert_eq!(
        service(
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": ports}),
            json!({})
        )[2],
        "<pending>"
    );
    let ingress =
        json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example"}]}});
    assert_eq!(
        service(json!({"type": "LoadBalancer", "ports": ports}), ingress)[2],
        "192.0.2.1,lb.example"
    );
    assert_eq!(
        service(json!({"type": "ExternalName", "externalName": "example.org"}), json!({})),
        ["ExternalName", "<none>", "example.org", "<none>"]
    );
    assert_eq!(service(json!({"type": "ClusterIP", "clusterIP": "None"}), json!({}))[1], "None");
}

#[test]
fn inv_84_endpoint_slices() {
    let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 8080}, {}],
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}, {"addresses": ["10.0.0.5"]}]});
    assert_eq!(
        cells(ENDPOINT_SLICE, &slice)[1..4],
        ["IPv4", "8080,*", "10.0.0.1,10.0.0.2,10.0.0.3 + 2 more..."]
    );
    assert_eq!(
        cells(ENDPOINT_SLICE, &json!({"metadata": {}, "addressType": "IPv6"}))[2..4],
        ["<unset>", "<unset>"]
    );
}

#[test]
fn nodes_and_workloads() {
    let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": "", "node-role.kubernetes.io/edge": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"}, "addresses": [{"type": "InternalIP", "address": "172.30.0.11"}]}});
    assert_eq!(
        cells(NODE, &node),
        [
            "n",
            "Ready,SchedulingDisabled",
            "control-plane,edge",
            "<unknown>",
            "v1",
            "172.30.0.11",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>"
        ]
    );
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "d"}},
        "template": {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}}}, "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}});
    assert_eq!(
        cells(DEPLOYMENT, &deployment),
        ["d", "2/3", "3", "2", "<unknown>", "a,b", "x,y", "app=d"]
    );
    assert_eq!(cells(REPLICA_SET, &deployment)[1..4], ["3", "0", "2"]);
}
