//! Create, update, patch, list and the subresources.

use http::Request;
use serde_json::{Value, json};

use crate::server::{Server, deployment, pod, said};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn a_new_object_gets_its_identity() {
    let server = Server::start().await;
    let made = server
        .post(
            CONFIGMAPS,
            &json!({"metadata": {"generateName": "a-", "uid": "mine", "generation": 7}}),
        )
        .await
        .unwrap();
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.len() == 7 && name.starts_with("a-"), "{name}");
    assert_ne!(made["metadata"]["uid"], "mine");
    assert!(made["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    assert_eq!(server.get(&format!("{CONFIGMAPS}/{name}")).await.unwrap(), made);
    let again = server.post(CONFIGMAPS, &json!({"metadata": {"name": name}})).await.unwrap_err();
    assert_eq!(
        said(&again),
        (409, "AlreadyExists", format!("configmaps {name:?} already exists").as_str())
    );
}

#[tokio::test]
async fn nothing_is_stored_by_a_dry_run() {
    let server = Server::start().await;
    server
        .post(&format!("{CONFIGMAPS}?dryRun=All"), &json!({"metadata": {"name": "a"}}))
        .await
        .unwrap();
    assert_eq!(said(&server.get(&format!("{CONFIGMAPS}/a")).await.unwrap_err()).0, 404);
    server.post(CONFIGMAPS, &json!({"metadata": {"name": "a"}})).await.unwrap();
    let patched = server
        .patch("merge", &format!("{CONFIGMAPS}/a?dryRun=All"), &json!({"data": {"x": "1"}}))
        .await
        .unwrap();
    assert_eq!(patched["data"]["x"], "1");
    server.delete(&format!("{CONFIGMAPS}/a?dryRun=All"), &json!({})).await.unwrap();
    assert_eq!(server.get(&format!("{CONFIGMAPS}/a")).await.unwrap().get("data"), None);
    assert_eq!(
        said(&server.post(&format!("{CONFIGMAPS}?dryRun=Some"), &json!({})).await.unwrap_err()).0,
        400
    );
}

#[tokio::test]
async fn a_stale_write_is_a_conflict() {
    let server = Server::start().await;
    let path = format!("{CONFIGMAPS}/a");
    let first = server
        .post(CONFIGMAPS, &json!({"metadata": {"name": "a"}, "data": {"x": "1"}}))
        .await
        .unwrap();
    let mut second = first.clone();
    second["data"]["x"] = "2".into();
    let second = server.put(&path, &second).await.unwrap();
    assert_ne!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let status = server.put(&path, &first).await.unwrap_err();
    assert_eq!(
        said(&status),
        (
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
        )
    );
    // Without a revision the writer does not care; an equal object is no write.
    let mut careless = second.clone();
    careless["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(server.put(&path, &careless).await.unwrap(), second);
    let stale = json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}});
    assert_eq!(said(&server.patch("merge", &path, &stale).await.unwrap_err()).1, "Conflict");
    let other = json!({"metadata": {"uid": "other"}});
    assert_eq!(said(&server.patch("merge", &path, &other).await.unwrap_err()).1, "Conflict");
}

#[tokio::test]
async fn the_three_patches() {
    let server = Server::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    server.post(DEPLOYMENTS, &deployment("web")).await.unwrap();
    let json_patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}, {"op": "test", "path": "/spec/paused", "value": true}]);
    assert_eq!(said(&server.patch("json", &path, &json_patch).await.unwrap_err()).0, 422);
    let json_patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    assert_eq!(server.patch("json", &path, &json_patch).await.unwrap()["spec"]["replicas"], 3);
    let merged =
        server.patch("merge", &path, &json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    assert_eq!(merged["metadata"]["labels"], json!({"a": "b"}));
    let containers =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "b", "image": "two"}]}}}});
    let strategic = server.patch("strategic-merge", &path, &containers).await.unwrap();
    let names: Vec<&Value> = strategic["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(names, ["b", "a"]);
    assert_eq!(server.patch("merge", &path, &containers).await.unwrap()["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn inv_58_selectors_are_immutable_and_fit_the_template() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment("web")).await.unwrap();
    let patch = json!({"spec": {"selector": {"matchLabels": {"app": "other"}}, "template": {"metadata": {"labels": {"app": "other"}}}}});
    let status = server.patch("merge", &format!("{DEPLOYMENTS}/web"), &patch).await.unwrap_err();
    assert_eq!(
        said(&status),
        (
            422,
            "Invalid",
            "Deployment.apps \"web\" is invalid: spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"other\"}}: field is immutable"
        )
    );
    assert_eq!(status["details"]["causes"][0]["field"], "spec.selector");
    let mut misfit = deployment("misfit");
    misfit["spec"]["selector"]["matchLabels"]["app"] = "else".into();
    let status = server.post(DEPLOYMENTS, &misfit).await.unwrap_err();
    assert!(said(&status).2.contains("spec.template.metadata.labels: Invalid value: {\"app\":\"misfit\"}: `selector` does not match template `labels`"), "{status}");
    let status =
        server.post(DEPLOYMENTS, &json!({"metadata": {"name": "empty"}})).await.unwrap_err();
    assert!(said(&status).2.contains("spec.selector: Required value"), "{status}");
}

#[tokio::test]
async fn generations_count_what_the_user_wants() {
    let server = Server::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    let made = server.post(DEPLOYMENTS, &deployment("web")).await.unwrap();
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(
        made["spec"]["strategy"]["rollingUpdate"],
        json!({"maxSurge": "25%", "maxUnavailable": "25%"})
    );
    let generation = |object: &Value| object["metadata"]["generation"].as_i64().unwrap();
    let labelled =
        server.patch("merge", &path, &json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    assert_eq!(generation(&labelled), 1);
    let scaled = server
        .patch("merge", &path, &json!({"spec": {"replicas": 2}, "status": {"replicas": 9}}))
        .await
        .unwrap();
    assert_eq!((generation(&scaled), &scaled["status"]), (2, &json!({})));
    let status = json!({"spec": {"replicas": 5}, "metadata": {"labels": {"a": "c"}}, "status": {"replicas": 1, "readyReplicas": 1}});
    let reported = server.patch("merge", &format!("{path}/status"), &status).await.unwrap();
    assert_eq!(
        (
            generation(&reported),
            &reported["spec"]["replicas"],
            &reported["metadata"]["labels"]["a"]
        ),
        (2, &json!(2), &json!("b"))
    );
    assert_eq!(reported["status"], json!({"replicas": 1, "readyReplicas": 1}));
}

#[tokio::test]
async fn inv_74_scale() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment("web")).await.unwrap();
    let path = format!("{DEPLOYMENTS}/web/scale");
    let scale = server.get(&path).await.unwrap();
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!("autoscaling/v1"), &json!(1))
    );
    assert_eq!(scale["status"]["selector"], "app=web");
    let scale = server.patch("merge", &path, &json!({"spec": {"replicas": 10}})).await.unwrap();
    assert_eq!(scale["spec"]["replicas"], 10);
    let web = server.get(&format!("{DEPLOYMENTS}/web")).await.unwrap();
    assert_eq!((&web["spec"]["replicas"], &web["metadata"]["generation"]), (&json!(10), &json!(2)));
    let mut stale = scale.clone();
    stale["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(said(&server.put(&path, &stale).await.unwrap_err()).1, "Conflict");
    assert_eq!(
        said(&server.patch("merge", &path, &json!({"spec": {"replicas": -1}})).await.unwrap_err())
            .0,
        422
    );
}

#[tokio::test]
async fn inv_27_a_pod_is_bound_once() {
    let server = Server::start().await;
    server.post(PODS, &pod("a")).await.unwrap();
    let binding = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"kind": "Node", "name": node}});
    let path = format!("{PODS}/a/binding");
    assert_eq!(server.post(&path, &binding("n1")).await.unwrap()["status"], "Success");
    let bound = server.get(&format!("{PODS}/a")).await.unwrap();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(
        (&bound["status"]["conditions"][0]["type"], &bound["status"]["conditions"][0]["status"]),
        (&json!("PodScheduled"), &json!("True"))
    );
    let status = server.post(&path, &binding("n2")).await.unwrap_err();
    assert_eq!(
        said(&status),
        (
            409,
            "Conflict",
            "Operation cannot be fulfilled on pods \"a\": pod a is already assigned to node \"n1\""
        )
    );
}

#[tokio::test]
async fn inv_38_a_pod_can_hardly_be_changed() {
    let server = Server::start().await;
    let made = server.post(PODS, &pod("a")).await.unwrap();
    assert_eq!(
        (&made["status"]["phase"], &made["status"]["qosClass"]),
        (&json!("Pending"), &json!("BestEffort"))
    );
    let container = &made["spec"]["containers"][0];
    assert_eq!(
        (&container["imagePullPolicy"], &container["terminationMessagePath"]),
        (&json!("Always"), &json!("/dev/termination-log"))
    );
    let image = json!({"spec": {"containers": [{"name": "a", "image": "hello:2"}]}});
    assert_eq!(
        server.patch("strategic-merge", &format!("{PODS}/a"), &image).await.unwrap()["metadata"]["generation"],
        2
    );
    let command = json!({"spec": {"containers": [{"name": "a", "command": ["x"]}]}});
    let status = server.patch("strategic-merge", &format!("{PODS}/a"), &command).await.unwrap_err();
    assert!(
        said(&status).2.starts_with(
            "Pod \"a\" is invalid: spec: Forbidden: pod updates may not change fields other than"
        ),
        "{status}"
    );
    let bad = json!({"metadata": {"name": "b"}, "spec": {"containers": [{"name": "A_", "image": ""}], "restartPolicy": "Sometimes"}});
    let status = server.post(PODS, &bad).await.unwrap_err();
    let fields: Vec<&str> = status["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["field"].as_str().unwrap())
        .collect();
    assert_eq!(
        fields,
        ["spec.containers[0].name", "spec.containers[0].image", "spec.restartPolicy"]
    );
}

#[tokio::test]
async fn lists_come_in_consistent_pages() {
    let server = Server::start().await;
    for number in 0..7 {
        server.post(CONFIGMAPS, &json!({"metadata": {"name": format!("c{number}"), "labels": {"odd": (number % 2 == 1).to_string()}}})).await.unwrap();
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = server.get(&format!("{CONFIGMAPS}?limit=3")).await.unwrap();
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"], &first["kind"]),
        (vec!["c0".into(), "c1".into(), "c2".into()], &json!(4), &json!("ConfigMapList"))
    );
    server.delete(&format!("{CONFIGMAPS}/c5"), &json!({})).await.unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = server.get(&format!("{CONFIGMAPS}?limit=9&continue={token}")).await.unwrap();
    assert_eq!(names(&rest), ["c3", "c4", "c5", "c6"]);
    assert_eq!(rest["metadata"].get("continue"), None);
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let odd = server.get(&format!("{CONFIGMAPS}?limit=2&labelSelector=odd%3Dtrue")).await.unwrap();
    assert_eq!(
        (names(&odd), odd["metadata"].get("remainingItemCount")),
        (vec!["c1".into(), "c3".into()], None)
    );
    let exact = format!(
        "{CONFIGMAPS}?resourceVersionMatch=Exact&resourceVersion={}",
        first["metadata"]["resourceVersion"].as_str().unwrap()
    );
    assert_eq!(names(&server.get(&exact).await.unwrap()).len(), 7);
    let future = server.get(&format!("{CONFIGMAPS}?resourceVersion=1000000")).await.unwrap_err();
    assert_eq!((said(&future).0, said(&future).1), (504, "Timeout"));
    assert_eq!(
        said(&server.get(&format!("{CONFIGMAPS}?continue=nonsense")).await.unwrap_err()).0,
        400
    );
}

#[tokio::test]
async fn field_selectors() {
    let server = Server::start().await;
    for name in ["a", "b"] {
        server.post(PODS, &pod(name)).await.unwrap();
    }
    server.post(&format!("{PODS}/a/binding"), &json!({"target": {"name": "n1"}})).await.unwrap();
    for (selector, expected) in [
        ("spec.nodeName=n1", vec!["a"]),
        ("spec.nodeName=", vec!["b"]),
        ("spec.nodeName!=n1", vec!["b"]),
        ("metadata.name=b", vec!["b"]),
        ("status.phase=Pending,metadata.namespace=default", vec!["a", "b"]),
        ("spec.hostNetwork=false", vec!["a", "b"]),
    ] {
        let selector = selector.replace('=', "%3D").replace('!', "%21");
        let list = server.get(&format!("/api/v1/pods?fieldSelector={selector}")).await.unwrap();
        let names: Vec<&Value> =
            list["items"].as_array().unwrap().iter().map(|one| &one["metadata"]["name"]).collect();
        assert_eq!(names, expected, "{selector}");
    }
}

#[tokio::test]
async fn tables_and_metadata() {
    let server = Server::start().await;
    server
        .post(CONFIGMAPS, &json!({"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}}))
        .await
        .unwrap();
    let accept = |path: &str, what: &str| {
        let accept = format!("application/json;as={what};v=v1;g=meta.k8s.io,application/json");
        Request::get(path).header("accept", accept).body(Vec::new()).unwrap()
    };
    let table = server.request(accept(CONFIGMAPS, "Table")).await.unwrap();
    let columns: Vec<&Value> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    let cells = &table["rows"][0]["cells"];
    assert_eq!((&cells[0], &cells[1]), (&json!("a"), &json!(2)));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial =
        server.request(accept(&format!("{CONFIGMAPS}/a"), "PartialObjectMetadata")).await.unwrap();
    assert_eq!((partial["metadata"]["name"].as_str(), partial.get("data")), (Some("a"), None));
    let list = server.request(accept(CONFIGMAPS, "PartialObjectMetadataList")).await.unwrap();
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
}

#[tokio::test]
async fn inv_54_labels_are_checked() {
    let server = Server::start().await;
    for (labels, message) in [
        (json!({"a b": "c"}), "name part must consist of alphanumeric characters"),
        (json!({"/x": "c"}), "prefix part must be non-empty"),
        (json!({"x": "-c"}), "a valid label must be an empty string or consist of"),
        (json!({"x": "c".repeat(64)}), "must be no more than 63 bytes"),
        (json!({format!("{}/x", "a".repeat(254)): "c"}), "must be no more than 253 bytes"),
    ] {
        let status = server
            .post(CONFIGMAPS, &json!({"metadata": {"name": "a", "labels": labels}}))
            .await
            .unwrap_err();
        assert!(said(&status).0 == 422 && said(&status).2.contains(message), "{status}");
    }
    let status = server.post(CONFIGMAPS, &json!({"metadata": {"name": "A"}})).await.unwrap_err();
    assert!(said(&status).2.starts_with("ConfigMap \"A\" is invalid: metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of"), "{status}");
}

#[tokio::test]
async fn leases_are_created_by_put_and_need_a_revision() {
    let server = Server::start().await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let lease = json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1"}});
    let made = server.put(path, &lease).await.unwrap();
    let status = server.put(path, &lease).await.unwrap_err();
    assert_eq!(
        (said(&status).0, &status["details"]["causes"][0]["field"]),
        (422, &json!("metadata.resourceVersion"))
    );
    assert_eq!(server.put(path, &made).await.unwrap(), made);
}

#[tokio::test]
async fn a_node_registers_with_its_status() {
    let server = Server::start().await;
    let node = json!({"metadata": {"name": "n1"}, "status": {"capacity": {"cpu": "2"}}});
    let made = server.post("/api/v1/nodes", &node).await.unwrap();
    assert_eq!(made["status"]["capacity"]["cpu"], "2");
    let ranges = json!({"spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:244::/64"]}});
    server.patch("merge", "/api/v1/nodes/n1", &ranges).await.unwrap();
    let change = json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}});
    assert_eq!(said(&server.patch("merge", "/api/v1/nodes/n1", &change).await.unwrap_err()).0, 422);
    assert_eq!(
        server
            .patch("strategic-merge", "/api/v1/nodes/n1", &json!({"spec": {"unschedulable": true}}))
            .await
            .unwrap()["spec"]["unschedulable"],
        true
    );
    let selected =
        server.get("/api/v1/nodes?fieldSelector=spec.unschedulable%3Dtrue").await.unwrap();
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);
}
