//! Where pods are placed and why not, decisions joined from filters, scores and assumptions.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn node(name: &str, change: &Value) -> Arc<Node> {
    let mut object = json!({
        "metadata": {"name": name},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    json_patch::merge(&mut object, change);
    Arc::new(serde_json::from_value(object).unwrap())
}

fn pod(name: &str, change: &Value) -> Pod {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c"}]},
    });
    json_patch::merge(&mut object, change);
    serde_json::from_value(object).unwrap()
}

fn asks(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn cluster(nodes: &[Arc<Node>]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        assert!(cluster.set_node(node.metadata.name.as_ref().unwrap(), Some(Arc::clone(node))));
    }
    cluster
}

/// The node, or the message.
fn try_place(pod: &Pod, nodes: &[Arc<Node>]) -> Result<String, String> {
    place(pod, &cluster(nodes)).map(|(node, _)| node).map_err(|reason| reason.message)
}

fn two() -> [Arc<Node>; 2] {
    [node("n1", &json!({})), node("n2", &json!({}))]
}

#[test]
fn inv_25_the_message_counts_the_reasons() {
    let cordoned = json!({"spec": {"unschedulable": true}});
    let nodes = [node("n1", &cordoned), node("n2", &json!({}))];
    assert_eq!(
        try_place(&pod("p", &asks("100")), &nodes).unwrap_err(),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable."
    );
    assert_eq!(
        try_place(&pod("p", &json!({})), &[]).unwrap_err(),
        "no nodes available to schedule pods"
    );
    let mut greedy = asks("100");
    greedy["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!("1Ti");
    assert_eq!(
        try_place(&pod("p", &greedy), &two()).unwrap_err(),
        "0/2 nodes are available: 2 Insufficient cpu, 2 Insufficient memory."
    );
}

#[test]
fn inv_23_taints_keep_pods_away_that_do_not_tolerate_them() {
    let tainted = |effect: &str| {
        node(
            "n1",
            &json!({"spec": {"taints": [
            {"key": "dedicated", "value": "db", "effect": effect}]}}),
        )
    };
    let tolerating = |toleration: Value| pod("p", &json!({"spec": {"tolerations": [toleration]}}));
    assert_eq!(
        try_place(&pod("p", &json!({})), &[tainted("NoSchedule")]).unwrap_err(),
        "0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: db}."
    );
    assert!(try_place(&pod("p", &json!({})), &[tainted("NoExecute")]).is_err());
    assert!(try_place(&pod("p", &json!({})), &[tainted("PreferNoSchedule")]).is_ok());
    let table = [
        (json!({"operator": "Exists"}), true),
        (json!({"key": "dedicated", "operator": "Exists"}), true),
        (json!({"key": "dedicated", "operator": "Equal", "value": "db"}), true),
        (json!({"key": "dedicated", "value": "db"}), true),
        (json!({"key": "dedicated", "value": "web"}), false),
        (json!({"key": "other", "operator": "Exists"}), false),
        (json!({"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}), false),
        (json!({"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}), true),
    ];
    for (toleration, fits) in table {
        let pod = tolerating(toleration.clone());
        assert_eq!(try_place(&pod, &[tainted("NoSchedule")]).is_ok(), fits, "{toleration}");
    }
    // A node that only asks to stay away is taken last.
    let nodes = [tainted("PreferNoSchedule"), node("n2", &json!({}))];
    assert_eq!(try_place(&pod("p", &json!({})), &nodes), Ok("n2".into()));
}

#[test]
fn inv_56_selector_and_affinity_choose_by_labels() {
    let ssd = json!({"metadata": {"labels": {"disk": "ssd", "cores": "16"}}});
    let nodes = [node("n1", &json!({})), node("n2", &ssd)];
    let selects = |selector: Value| pod("p", &json!({"spec": {"nodeSelector": selector}}));
    assert_eq!(try_place(&selects(json!({"disk": "ssd"})), &nodes), Ok("n2".into()));
    assert_eq!(
        try_place(&selects(json!({"disk": "hdd"})), &nodes).unwrap_err(),
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
    );
    let requires = |terms: Value| {
        pod(
            "p",
            &json!({"spec": {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}}),
        )
    };
    let label = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
    let table = [
        (json!([label("disk", "In", &["ssd", "nvme"])]), Ok("n2")),
        (json!([label("disk", "DoesNotExist", &[])]), Ok("n1")),
        (json!([label("cores", "Gt", &["8"])]), Ok("n2")),
        (json!([label("cores", "Lt", &["8"])]), Err(())),
        (json!([label("disk", "In", &["x"]), label("disk", "Exists", &[])]), Ok("n2")),
        (
            json!([{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
            Ok("n1"),
        ),
        (json!([{}]), Err(())),
    ];
    for (terms, expected) in table {
        let found = try_place(&requires(terms.clone()), &nodes);
        assert_eq!(found.as_deref().map_err(|_| ()), expected, "{terms}");
    }
    let prefers = pod(
        "p",
        &json!({"spec": {"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 10, "preference": label("disk", "In", &["ssd"])}]}}}}),
    );
    assert_eq!(try_place(&prefers, &nodes), Ok("n2".into()));
}

#[test]
fn inv_23_a_host_port_is_given_once_per_node() {
    let wants = |port: i32, protocol: &str, address: &str| {
        json!({"spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": port, "protocol": protocol, "hostIP": address}]}]}})
    };
    let mut cluster = cluster(&[node("n1", &json!({}))]);
    let first = pod("first", &wants(80, "TCP", "127.0.0.1"));
    let (on, needs) = place(&first, &cluster).unwrap();
    cluster.assume(Key::of(&first), first.metadata.uid.clone(), &on, needs);
    let table = [
        (wants(80, "TCP", ""), false),
        (wants(80, "TCP", "0.0.0.0"), false),
        (wants(80, "TCP", "127.0.0.1"), false),
        (wants(80, "TCP", "127.0.0.2"), true),
        (wants(80, "UDP", ""), true),
        (wants(81, "TCP", ""), true),
    ];
    for (change, fits) in table {
        assert_eq!(place(&pod("p", &change), &cluster).is_ok(), fits, "{change}");
    }
    assert_eq!(
        place(&pod("p", &wants(80, "TCP", "")), &cluster).unwrap_err().message,
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    );
}

#[test]
fn inv_24_the_node_with_more_free_is_taken() {
    let nodes = [node("n1", &json!({})), node("n2", &json!({}))];
    let mut cluster = cluster(&nodes);
    let big = pod("big", &asks("2"));
    cluster.assume(Key::of(&big), None, "n1", Needs::of(&big));
    assert_eq!(place(&pod("p", &asks("1")), &cluster).unwrap().0, "n2");
}

#[test]
fn inv_26_replicas_of_one_owner_land_on_different_nodes() {
    // n2 is much fuller, but n1 has a replica already.
    let mut cluster = cluster(&two());
    let big = pod("big", &asks("2"));
    cluster.assume(Key::of(&big), None, "n2", Needs::of(&big));
    let owned = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1",
        "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": true}]}});
    let mut found = Vec::new();
    for name in ["a", "b"] {
        let pod = pod(name, &owned);
        let (node, needs) = place(&pod, &cluster).unwrap();
        cluster.assume(Key::of(&pod), pod.metadata.uid.clone(), &node, needs);
        found.push(node);
    }
    assert_eq!(found, ["n1", "n2"]);
}

#[test]
fn an_assumption_holds_until_the_watch_shows_the_pod_or_its_end() {
    let small = node("n1", &json!({"status": {"allocatable": {"pods": "1"}}}));
    let mut cluster = cluster(&[small]);
    let first = pod("first", &json!({}));
    let key = Key::of(&first);
    cluster.assume(key.clone(), first.metadata.uid.clone(), "n1", Needs::of(&first));
    assert!(!cluster.set_pod(&key, Some(&first)), "an event from before the binding");
    let full = place(&pod("p", &json!({})), &cluster).unwrap_err();
    assert_eq!(full.message, "0/1 nodes are available: 1 Too many pods.");
    let bound = pod("first", &json!({"spec": {"nodeName": "n1"}}));
    assert!(!cluster.set_pod(&key, Some(&bound)));
    assert!(!cluster.is_assumed(&key));
    cluster.forget(&key);
    assert!(place(&pod("p", &json!({})), &cluster).is_err(), "nothing to forget");
    let ended = pod("first", &json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Failed"}}));
    assert!(cluster.set_pod(&key, Some(&ended)), "an ended pod frees its place");
    assert!(place(&pod("p", &json!({})), &cluster).is_ok());
    cluster.assume(key.clone(), first.metadata.uid.clone(), "n1", Needs::of(&first));
    cluster.forget(&key);
    assert!(place(&pod("p", &json!({})), &cluster).is_ok());
}

#[test]
fn heartbeats_of_nodes_wake_nobody() {
    let mut cluster = cluster(&[node("n1", &json!({}))]);
    let heartbeat = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert!(!cluster.set_node("n1", Some(node("n1", &heartbeat))));
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert!(cluster.set_node("n1", Some(node("n1", &label))));
    assert!(!cluster.set_node("n1", None));
    assert_eq!(cluster.nodes().count(), 0);
}

#[test]
fn the_reason_is_told_once() {
    let reason = Unschedulable { message: "0/1 nodes are available: 1 Too many pods.".into() };
    let now = Timestamp::UNIX_EPOCH;
    let write = explain(&pod("p", &json!({})), &reason, now).unwrap();
    let Write::StrategicPatch { subresource: Some("status"), patch, .. } = write else {
        panic!("{write:?}")
    };
    let condition = &patch["status"]["conditions"][0];
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Unschedulable"))
    );
    let told = pod("p", &json!({"status": {"conditions": [condition]}}));
    assert_eq!(explain(&told, &reason, now), None);
}

#[test]
fn gated_leaving_and_foreign_pods_are_not_ours() {
    assert!(waits_for_us(&pod("p", &json!({}))));
    for change in [
        json!({"spec": {"nodeName": "n1"}}),
        json!({"spec": {"schedulerName": "other"}}),
        json!({"spec": {"schedulingGates": [{"name": "wait"}]}}),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        json!({"status": {"phase": "Succeeded"}}),
    ] {
        assert!(!waits_for_us(&pod("p", &change)), "{change}");
    }
}

proptest! {
    #[test]
    fn inv_26_no_node_is_ever_over_committed(
        capacities in proptest::collection::vec((1..8_i64, 1..6_i64), 1..5),
        steps in proptest::collection::vec((0..3_u8, 0..20_usize, 0..3000_i64), 0..80),
    ) {
        let nodes: Vec<_> = capacities
            .iter()
            .enumerate()
            .map(|(index, (cpu, pods))| node(&format!("n{index}"), &json!({"status": {
                "allocatable": {"cpu": cpu.to_string(), "pods": pods.to_string()}}})))
            .collect();
        let mut cluster = cluster(&nodes);
        for (step, index, cpu) in steps {
            let asking = pod(&format!("p{index}"), &asks(&format!("{cpu}m")));
            let key = Key::of(&asking);
            match step {
                0 => drop(cluster.set_pod(&key, None)),
                _ => if !cluster.is_assumed(&key)
                    && let Ok((node, needs)) = place(&asking, &cluster)
                {
                    cluster.assume(key, asking.metadata.uid.clone(), &node, needs);
                },
            }
            for (_, info) in cluster.nodes() {
                prop_assert!(info.pods <= info.allocatable.get("pods"));
                prop_assert!(info.requested.get("cpu") <= info.allocatable.get("cpu"));
                prop_assert!(info.pods >= 0 && info.requested.get("cpu") >= 0);
            }
        }
    }
}
