//! What is not about objects: who may come in, discovery, OpenAPI, limits, bad requests.

use http::{Method, Request};
use serde_json::json;

use crate::server::{Server, args, said};
use mizzen_control_plane::serve::{self, ServeError};
use tokio_util::sync::CancellationToken;

/// A client of the server's CA without a certificate.
async fn anonymous(server: &Server) -> kube::Client {
    let mut kubeconfig = kube::config::Kubeconfig::read_from(&server.kubeconfig).unwrap();
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(kube::config::AuthInfo::default());
    }
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
    kube::Client::try_from(config.await.unwrap()).unwrap()
}

#[tokio::test]
async fn inv_126_without_credentials_only_health_and_version() {
    let server = Server::start().await;
    let client = anonymous(&server).await;
    let get = |path: &str| client.request_text(Request::get(path).body(Vec::new()).unwrap());
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(get(path).await.unwrap(), "ok", "{path}");
    }
    assert!(get("/version").await.unwrap().contains("\"minor\":\"35\""));
    for path in ["/api", "/apis", "/api/v1/pods", "/openapi/v3", "/"] {
        match get(path).await {
            Err(kube::Error::Api(status)) => {
                assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"), "{path}");
                let who = "User \"system:anonymous\" cannot ";
                assert!(status.message.contains(who), "{path}: {}", status.message);
            }
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn strangers_cannot_take_every_connection() {
    let server = Server::start().await;
    let ask = |client: kube::Client| async move {
        let request = Request::get("/healthz").body(Vec::new()).unwrap();
        client.request_text(request).await
    };
    let mut strangers = Vec::new();
    for number in 0..256 {
        let client = anonymous(&server).await;
        assert_eq!(ask(client.clone()).await.unwrap(), "ok", "{number}");
        // Its connection stays open for as long as it lives.
        strangers.push(client);
    }
    assert!(ask(anonymous(&server).await).await.is_err());
    assert!(server.get("/api/v1/namespaces").await.is_ok());
    // Places are given back.
    drop(strangers);
    let client = anonymous(&server).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while ask(client.clone()).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the places are not given back");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn discovery_in_both_forms() {
    let server = Server::start().await;
    let legacy = server.get("/apis/apps/v1").await.unwrap();
    let names: Vec<&str> = legacy["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "controllerrevisions",
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "statefulsets",
            "statefulsets/scale",
            "statefulsets/status",
        ]
    );
    assert_eq!(server.get("/api").await.unwrap()["versions"], json!(["v1"]));
    let groups = server.get("/apis").await.unwrap();
    let autoscaling =
        groups["groups"].as_array().unwrap().iter().find(|one| one["name"] == "autoscaling");
    let autoscaling = autoscaling.unwrap();
    assert_eq!(autoscaling["preferredVersion"]["groupVersion"], "autoscaling/v2");
    assert_eq!(autoscaling["versions"].as_array().unwrap().len(), 2);

    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let request = Request::get("/apis").header("accept", accept).body(Vec::new()).unwrap();
    let aggregated = server.request(request).await.unwrap();
    assert_eq!(aggregated["kind"], "APIGroupDiscoveryList");
    let apps = aggregated["items"][0]["versions"][0]["resources"].as_array().unwrap();
    let apps = apps.iter().find(|one| one["resource"] == "deployments").unwrap();
    assert_eq!(
        (&apps["resource"], &apps["scope"], &apps["shortNames"]),
        (&json!("deployments"), &json!("Namespaced"), &json!(["deploy"]))
    );
    assert_eq!(
        apps["subresources"][0]["responseKind"],
        json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
    );

    // kube-rs finds what it needs.
    let discovery = kube::discovery::Discovery::new(server.client.clone()).run().await.unwrap();
    assert!(discovery.has_group("discovery.k8s.io"));
}

#[tokio::test]
async fn openapi_says_that_fields_are_validated() {
    let server = Server::start().await;
    let index = server.get("/openapi/v3").await.unwrap();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = server.get(url).await.unwrap();
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert!(
        patch["parameters"].as_array().unwrap().iter().any(|one| one["name"] == "fieldValidation")
    );
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
}

/// A failure, and the code, reason and part of the message that it should have.
type Refusal = (Result<serde_json::Value, serde_json::Value>, u64, &'static str, &'static str);

fn check(refusals: impl IntoIterator<Item = Refusal>) {
    for (outcome, code, reason, message) in refusals {
        let status = outcome.expect_err(message);
        let (found_code, found_reason, found) = said(&status);
        assert_eq!((found_code, found_reason), (code, reason), "{found}");
        assert!(found.contains(message), "{found:?} does not say {message:?}");
    }
}

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn paths_that_lead_nowhere_say_so() {
    let server = Server::start().await;
    let nobody = "/apis/apps/v1/namespaces/default/deployments/x";
    check([
        (
            server.get("/api/v1/nonsense").await,
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
        (
            server.get("/api/v1/namespaces/default/pods/x").await,
            404,
            "NotFound",
            "pods \"x\" not found",
        ),
        (server.get(nobody).await, 404, "NotFound", "deployments.apps \"x\" not found"),
        (
            server.post("/api/v1/pods", &json!({})).await,
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ),
        (
            server.get("/api/v1/pods?labelSelector=a+in+b").await,
            400,
            "BadRequest",
            "unable to parse requirement",
        ),
        (
            server.get("/api/v1/pods?fieldSelector=spec.foo%3Dbar").await,
            400,
            "BadRequest",
            "field label not supported: spec.foo",
        ),
    ]);
    let accept = Request::get("/api/v1/pods").header("accept", "text/html");
    let status = server.request(accept.body(Vec::new()).unwrap()).await.unwrap_err();
    assert_eq!(said(&status).0, 406);
}

#[tokio::test]
async fn bad_bodies_say_what_is_wrong() {
    let server = Server::start().await;
    let large = json!({"metadata": {"name": "a"}, "data": {"a": "x".repeat(3 << 20)}});
    let protobuf =
        server.send(Method::POST, CONFIGMAPS, "application/vnd.kubernetes.protobuf", "k8s\0").await;
    let cbor = server.send(Method::POST, CONFIGMAPS, "application/cbor", "x").await;
    let broken = server.send(Method::POST, CONFIGMAPS, "application/json", "{").await;
    check([
        (server.post(CONFIGMAPS, &large).await, 413, "RequestEntityTooLarge", "limit is 3145728"),
        (protobuf, 400, "BadRequest", "no kind \"\" is registered"),
        (cbor, 415, "UnsupportedMediaType", "application/json, application/yaml"),
        (broken, 400, "BadRequest", "unrecognized"),
        (
            server.patch("nonsense", &format!("{CONFIGMAPS}/a"), &json!({})).await,
            415,
            "UnsupportedMediaType",
            "application/strategic-merge-patch+json",
        ),
    ]);
    let none = "/api/v1/namespaces/none/configmaps";
    let named = json!({"metadata": {"name": "a"}});
    let elsewhere = json!({"metadata": {"namespace": "other", "name": "a"}});
    let pod = json!({"kind": "Pod", "apiVersion": "v1"});
    check([
        (
            server.post(CONFIGMAPS, &pod).await,
            400,
            "BadRequest",
            "Pod in version \"v1\" cannot be handled as a ConfigMap",
        ),
        (
            server.post(CONFIGMAPS, &elsewhere).await,
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (server.post(none, &named).await, 404, "NotFound", "namespaces \"none\" not found"),
    ]);
}

#[tokio::test]
async fn yaml_bodies_are_understood() {
    let server = Server::start().await;
    let body = "metadata: {name: a}\ndata: {x: 'y'}\n";
    let made = server
        .send(Method::POST, "/api/v1/namespaces/default/configmaps", "application/yaml", body)
        .await
        .unwrap();
    assert_eq!(made["data"], json!({"x": "y"}));
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let server = Server::start().await;
    let address = server.url.trim_start_matches("https://");
    let directory = tempfile::tempdir().unwrap();
    let mut args = args(directory.path(), &["--in-memory"]);
    args.listen = vec![address.parse().unwrap()];
    match serve::Server::start(args, CancellationToken::new()).await.err() {
        Some(error @ ServeError::Listen { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains(address) && text.contains("another process serves there"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_kubeconfig_is_private_and_the_ca_survives_a_restart() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let mut authorities = Vec::new();
    for _ in 0..2 {
        let control_plane =
            serve::Server::start(args(directory.path(), &[]), CancellationToken::new())
                .await
                .unwrap();
        let mode = std::fs::metadata(&control_plane.kubeconfig).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        authorities.push(std::fs::read_to_string(directory.path().join("pki/ca.crt")).unwrap());
        control_plane.stop().await;
    }
    assert_eq!(authorities[0], authorities[1]);
}
