//! Deletion: at once, graceful, held by finalizers, and of namespaces.

use serde_json::{Value, json};

use crate::server::{Server, deployment, pod, said};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod that runs on a node.
async fn running(server: &Server, name: &str) -> Value {
    server.post(PODS, &pod(name)).await.unwrap();
    server
        .post(&format!("{PODS}/{name}/binding"), &json!({"target": {"name": "n1"}}))
        .await
        .unwrap();
    server.get(&format!("{PODS}/{name}")).await.unwrap()
}

#[tokio::test]
async fn inv_47_a_running_pod_ends_gracefully() {
    let server = Server::start().await;
    let path = format!("{PODS}/a");
    running(&server, "a").await;
    let marked = server.delete(&path, &json!({"propagationPolicy": "Background"})).await.unwrap();
    assert_eq!(
        (&marked["kind"], &marked["metadata"]["deletionGracePeriodSeconds"]),
        (&json!("Pod"), &json!(30))
    );
    let deadline = &marked["metadata"]["deletionTimestamp"];
    // A second request changes nothing unless it shortens the time.
    for grace in [json!({}), json!({"gracePeriodSeconds": 60})] {
        let again = server.delete(&path, &grace).await.unwrap();
        assert_eq!(
            (&again["metadata"]["deletionTimestamp"], &again["metadata"]["resourceVersion"]),
            (deadline, &marked["metadata"]["resourceVersion"])
        );
    }
    let shorter = server.delete(&path, &json!({"gracePeriodSeconds": 5})).await.unwrap();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    assert!(shorter["metadata"]["deletionTimestamp"].as_str() < deadline.as_str());
    // The node may still report, but nobody may bring the pod back.
    let revive =
        json!({"metadata": {"deletionTimestamp": null, "deletionGracePeriodSeconds": null}});
    let still = server.patch("merge", &path, &revive).await.unwrap();
    assert!(still["metadata"]["deletionTimestamp"].is_string());
    server
        .patch("merge", &format!("{path}/status"), &json!({"status": {"phase": "Running"}}))
        .await
        .unwrap();
    // The node confirms.
    server.delete(&path, &json!({"gracePeriodSeconds": 0})).await.unwrap();
    assert_eq!(said(&server.get(&path).await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn a_pod_that_no_node_runs_goes_at_once() {
    let server = Server::start().await;
    server.post(PODS, &pod("a")).await.unwrap();
    server.delete(&format!("{PODS}/a"), &json!({})).await.unwrap();
    assert_eq!(said(&server.get(&format!("{PODS}/a")).await.unwrap_err()).0, 404);
    running(&server, "b").await;
    server
        .patch("merge", &format!("{PODS}/b/status"), &json!({"status": {"phase": "Succeeded"}}))
        .await
        .unwrap();
    server.delete(&format!("{PODS}/b"), &json!({})).await.unwrap();
    assert_eq!(said(&server.get(&format!("{PODS}/b")).await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn an_eviction_deletes_gracefully() {
    let server = Server::start().await;
    running(&server, "a").await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}, "deleteOptions": {"gracePeriodSeconds": 3}});
    assert_eq!(
        server.post(&format!("{PODS}/a/eviction"), &eviction).await.unwrap()["status"],
        "Success"
    );
    assert_eq!(
        server.get(&format!("{PODS}/a")).await.unwrap()["metadata"]["deletionGracePeriodSeconds"],
        3
    );
}

#[tokio::test]
async fn finalizers_keep_an_object() {
    let server = Server::start().await;
    let path = format!("{CONFIGMAPS}/a");
    server
        .post(
            CONFIGMAPS,
            &json!({"metadata": {"name": "a", "finalizers": ["x.io/one", "x.io/two"]}}),
        )
        .await
        .unwrap();
    let marked = server.delete(&path, &json!({})).await.unwrap();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["x.io/one", "x.io/two", "x.io/three"]}});
    let status = server.patch("merge", &path, &more).await.unwrap_err();
    assert!(said(&status).2.contains("metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted"), "{status}");
    server
        .patch(
            "strategic-merge",
            &path,
            &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x.io/one"]}}),
        )
        .await
        .unwrap();
    server.get(&path).await.unwrap();
    server.patch("merge", &path, &json!({"metadata": {"finalizers": []}})).await.unwrap();
    assert_eq!(said(&server.get(&path).await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn no_finalizer_comes_after_the_deletion_through_the_status_either() {
    let server = Server::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let mut kept = deployment("kept");
    kept["metadata"]["finalizers"] = json!(["example.com/one"]);
    server.post(deployments, &kept).await.unwrap();
    server.delete(&format!("{deployments}/kept"), &json!({})).await.unwrap();
    let more = json!({"metadata": {"finalizers": ["example.com/one", "example.com/two"]}});
    for path in [format!("{deployments}/kept"), format!("{deployments}/kept/status")] {
        let status = server.patch("merge", &path, &more).await.unwrap_err();
        let (code, _, message) = said(&status);
        assert_eq!(code, 422, "{path}: {message}");
        let why = "no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/two\"}";
        assert!(message.ends_with(why), "{path}: {message}");
    }
}

#[tokio::test]
async fn preconditions_and_the_answer() {
    let server = Server::start().await;
    let path = format!("{CONFIGMAPS}/a");
    let made = server.post(CONFIGMAPS, &json!({"metadata": {"name": "a"}})).await.unwrap();
    for precondition in [json!({"uid": "other"}), json!({"resourceVersion": "1"})] {
        let status =
            server.delete(&path, &json!({"preconditions": precondition})).await.unwrap_err();
        assert!(
            said(&status).1 == "Conflict" && said(&status).2.contains("Precondition failed"),
            "{status}"
        );
    }
    assert_eq!(
        said(&server.delete(&path, &json!({"propagationPolicy": "Sideways"})).await.unwrap_err()).0,
        422
    );
    let answer = server
        .delete(&path, &json!({"preconditions": {"uid": made["metadata"]["uid"]}}))
        .await
        .unwrap();
    assert_eq!(
        (&answer["status"], &answer["details"]),
        (
            &json!("Success"),
            &json!({"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]})
        )
    );
}

#[tokio::test]
async fn foreground_and_orphan_leave_a_finalizer_for_the_collector() {
    let server = Server::start().await;
    for (name, policy, finalizer) in
        [("a", "Foreground", "foregroundDeletion"), ("b", "Orphan", "orphan")]
    {
        server.post(CONFIGMAPS, &json!({"metadata": {"name": name}})).await.unwrap();
        let marked = server
            .delete(&format!("{CONFIGMAPS}/{name}"), &json!({"propagationPolicy": policy}))
            .await
            .unwrap();
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
    }
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let server = Server::start().await;
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        server
            .post(CONFIGMAPS, &json!({"metadata": {"name": name, "labels": {"l": label}}}))
            .await
            .unwrap();
    }
    let deleted =
        server.delete(&format!("{CONFIGMAPS}?labelSelector=l%3Dx"), &json!({})).await.unwrap();
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = server.get(CONFIGMAPS).await.unwrap();
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
}

/// A cluster's namespaces are not deleted by one request.
#[tokio::test]
async fn namespaces_are_no_collection_to_delete() {
    let server = Server::start().await;
    let namespaces = "/api/v1/namespaces";
    server.post(namespaces, &json!({"metadata": {"name": "x"}})).await.unwrap();
    let status = server.delete(namespaces, &json!({})).await.unwrap_err();
    let message = "the server does not allow this method on the requested resource";
    assert_eq!(said(&status), (405, "MethodNotAllowed", message));
    assert!(server.get("/api/v1/namespaces/x").await.is_ok());
    let found = server.get("/api/v1").await.unwrap();
    let resources = found["resources"].as_array().unwrap();
    let namespaces = resources.iter().find(|one| one["name"] == "namespaces").unwrap();
    let verbs = json!(["create", "delete", "get", "list", "patch", "update", "watch"]);
    assert_eq!(namespaces["verbs"], verbs);
}

#[tokio::test]
async fn inv_60_namespaces() {
    let server = Server::start().await;
    let list = server.get("/api/v1/namespaces").await.unwrap();
    let names: Vec<&Value> =
        list["items"].as_array().unwrap().iter().map(|one| &one["metadata"]["name"]).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    assert!(list["items"].as_array().unwrap().iter().all(|one| one["status"]["phase"] == "Active"));
    let status = server.delete("/api/v1/namespaces/default", &json!({})).await.unwrap_err();
    let message = "namespaces \"default\" is forbidden: this namespace may not be deleted";
    assert_eq!(said(&status), (403, "Forbidden", message));
    let made =
        server.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.unwrap();
    assert_eq!(
        (&made["spec"]["finalizers"], &made["metadata"]["labels"]["kubernetes.io/metadata.name"]),
        (&json!(["kubernetes"]), &json!("x"))
    );
    // Names are unique per namespace only.
    for namespace in ["default", "x"] {
        server
            .post(
                &format!("/api/v1/namespaces/{namespace}/configmaps"),
                &json!({"metadata": {"name": "same"}}),
            )
            .await
            .unwrap();
    }
    let mut marked = server.delete("/api/v1/namespaces/x", &json!({})).await.unwrap();
    assert_eq!(marked["status"]["phase"], "Terminating");
    let status = server
        .post("/api/v1/namespaces/x/configmaps", &json!({"metadata": {"name": "late"}}))
        .await
        .unwrap_err();
    assert_eq!(
        said(&status),
        (
            403,
            "Forbidden",
            "configmaps \"late\" is forbidden: unable to create new content in namespace x because it is being terminated"
        )
    );
    assert_eq!(status["details"]["causes"][0]["reason"], "NamespaceTerminating");
    marked["spec"]["finalizers"] = json!([]);
    server.put("/api/v1/namespaces/x/finalize", &marked).await.unwrap();
    assert_eq!(said(&server.get("/api/v1/namespaces/x").await.unwrap_err()).0, 404);
}
