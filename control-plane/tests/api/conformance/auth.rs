//! Accounts, reviews, certificates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::operations::request;
use crate::server::{Server, said};

const REVIEWS: &str = "/apis/authorization.k8s.io/v1";

#[tokio::test]
async fn service_accounts_should_update_a_service_account() {
    let server = Server::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let mut made = server.post(accounts, &json!({"metadata": {"name": "e2e-sa"}})).await.unwrap();
    assert!(made.get("automountServiceAccountToken").is_none());
    made["automountServiceAccountToken"] = true.into();
    let updated = server.put(&format!("{accounts}/e2e-sa"), &made).await.unwrap();
    assert_eq!(updated["automountServiceAccountToken"], true);
}

#[tokio::test]
async fn subject_review_should_support_subject_review_api_operations() {
    let server = Server::start().await;
    let account = "system:serviceaccount:default:e2e";
    let asked = json!({"verb": "list", "resource": "configmaps", "namespace": "default"});
    let review = async |path: &str, spec: Value| -> bool {
        let answer = server.post(path, &json!({"spec": spec})).await.unwrap();
        answer["status"]["allowed"].as_bool().unwrap()
    };
    let (cluster, local) = (
        format!("{REVIEWS}/subjectaccessreviews"),
        format!("{REVIEWS}/namespaces/default/localsubjectaccessreviews"),
    );
    let spec = json!({"user": account, "resourceAttributes": asked});
    assert!(!review(&cluster, spec.clone()).await);
    assert!(!review(&local, spec.clone()).await);
    let binding = json!({
        "metadata": {"name": "e2e"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "e2e", "namespace": "default"}],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    server.post(bindings, &binding).await.unwrap();
    assert!(review(&cluster, spec.clone()).await);
    assert!(review(&local, spec).await);
    let own = json!({"resourceAttributes": asked});
    assert!(review(&format!("{REVIEWS}/selfsubjectaccessreviews"), own).await);
    // A review of one namespace is about that namespace.
    let elsewhere = json!({"user": account, "resourceAttributes": {"verb": "list",
        "resource": "configmaps", "namespace": "kube-system"}});
    let refused = server.post(&local, &json!({"spec": elsewhere})).await.unwrap_err();
    assert_eq!(said(&refused).0, 422, "{refused}");
}

#[tokio::test]
async fn self_subject_review_should_support_self_subject_review_api_operations() {
    let server = Server::start().await;
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let own = server.post(path, &json!({})).await.unwrap();
    let user = &own["status"]["userInfo"];
    assert_eq!(user["username"], "kubernetes-admin");
    assert!(user["groups"].as_array().unwrap().contains(&json!("system:masters")));
    let other = http::Request::post(path)
        .header("content-type", "application/json")
        .header("impersonate-user", "jane")
        .header("impersonate-group", "devs")
        .header("impersonate-extra-team", "blue");
    let other = server.request(other.body(b"{}".to_vec()).unwrap()).await.unwrap();
    let user = &other["status"]["userInfo"];
    assert_eq!(user["username"], "jane");
    assert_eq!(user["groups"], json!(["devs", "system:authenticated"]));
    assert_eq!(user["extra"], json!({"team": ["blue"]}));
}

#[tokio::test]
async fn certificates_api_should_support_approval_and_issue() {
    let server = Server::start().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let asked = json!({"metadata": {"name": "e2e"}, "spec": {"request": request(),
        "signerName": "example.com/e2e", "usages": ["digital signature", "client auth"]}});
    let made = server.post(requests, &asked).await.unwrap();
    assert_eq!(made["spec"]["username"], "kubernetes-admin");
    let path = format!("{requests}/e2e");
    let decide = |kind: &str| {
        json!({"status": {"conditions": [{"type": kind, "status": "True",
        "reason": "E2E", "message": "by e2e", "lastUpdateTime": "2026-01-02T03:04:05Z"}]}})
    };
    let approval = format!("{path}/approval");
    let approved = server.patch("merge", &approval, &decide("Approved")).await.unwrap();
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    assert_eq!(server.get(&approval).await.unwrap(), approved);
    // What the decision is, is written by that way alone.
    let mut other = approved.clone();
    other["status"]["conditions"] = json!([]);
    let other = server.put(&format!("{path}/status"), &other).await;
    let still = server.get(&path).await.unwrap();
    assert_eq!(still["status"]["conditions"][0]["type"], "Approved", "{other:?}");
    let issued = mizzen_control_plane::pki::Authority::read(&server.data_dir().join("pki"));
    let certificate = STANDARD.encode(issued.unwrap().certificate);
    let change = json!({"status": {"certificate": certificate}});
    let written = server.patch("merge", &format!("{path}/status"), &change).await.unwrap();
    assert_eq!(written["status"]["certificate"], certificate);
    server.delete(&path, &json!({})).await.unwrap();
}
