//! Watches, lists in chunks, tables, discovery, field validation, namespaces.

use std::collections::BTreeSet;

use http::{Method, Request};
use serde_json::{Value, json};

use crate::server::{Server, deployment, said};
use crate::watch::{configmap, next, seen, triple, version, watch};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const TEMPLATES: &str = "/api/v1/namespaces/default/podtemplates";

async fn change(server: &Server, name: &str, label: &str, value: &str) {
    let path = format!("{CONFIGMAPS}/{name}");
    server.patch("merge", &path, &configmap(name, label, value)).await.unwrap();
}

#[tokio::test]
async fn watchers_should_observe_add_update_and_delete_watch_notifications_on_configmaps() {
    let server = Server::start().await;
    let start = format!("resourceVersion={}", version(&server).await);
    let asked = |labels: &str| format!("{start}&labelSelector={labels}");
    let mut a = watch(&server, &asked("l%3DA"), "application/json").await;
    let mut b = watch(&server, &asked("l%3DB"), "application/json").await;
    let mut both = watch(&server, &asked("l+in+(A,B)"), "application/json").await;
    server.post(CONFIGMAPS, &configmap("a", "A", "0")).await.unwrap();
    change(&server, "a", "A", "1").await;
    change(&server, "a", "A", "2").await;
    server.delete(&format!("{CONFIGMAPS}/a"), &json!({})).await.unwrap();
    server.post(CONFIGMAPS, &configmap("b", "B", "0")).await.unwrap();
    server.delete(&format!("{CONFIGMAPS}/b"), &json!({})).await.unwrap();
    let of_a = [("ADDED", "0"), ("MODIFIED", "1"), ("MODIFIED", "2"), ("DELETED", "2")];
    for (kind, value) in of_a {
        assert_eq!(seen(&mut a).await, triple(kind, "a", value));
        assert_eq!(seen(&mut both).await, triple(kind, "a", value));
    }
    for (kind, value) in [("ADDED", "0"), ("DELETED", "0")] {
        assert_eq!(seen(&mut b).await, triple(kind, "b", value));
        assert_eq!(seen(&mut both).await, triple(kind, "b", value));
    }
}

#[tokio::test]
async fn watchers_should_be_able_to_start_watching_from_a_specific_resource_version() {
    let server = Server::start().await;
    server.post(CONFIGMAPS, &configmap("a", "1", "0")).await.unwrap();
    change(&server, "a", "1", "1").await;
    let from = version(&server).await;
    change(&server, "a", "1", "2").await;
    server.delete(&format!("{CONFIGMAPS}/a"), &json!({})).await.unwrap();
    let mut events = watch(&server, &format!("resourceVersion={from}"), "application/json").await;
    assert_eq!(seen(&mut events).await, triple("MODIFIED", "a", "2"));
    assert_eq!(seen(&mut events).await, triple("DELETED", "a", "2"));
}

#[tokio::test]
async fn watchers_should_be_able_to_restart_watching_from_the_last_resource_version_observed() {
    let server = Server::start().await;
    let start = version(&server).await;
    let mut events = watch(&server, &format!("resourceVersion={start}"), "application/json").await;
    server.post(CONFIGMAPS, &configmap("a", "1", "0")).await.unwrap();
    change(&server, "a", "1", "1").await;
    next(&mut events).await;
    let last = next(&mut events).await["object"]["metadata"]["resourceVersion"].clone();
    drop(events);
    change(&server, "a", "1", "2").await;
    server.delete(&format!("{CONFIGMAPS}/a"), &json!({})).await.unwrap();
    let last = format!("resourceVersion={}", last.as_str().unwrap());
    let mut events = watch(&server, &last, "application/json").await;
    assert_eq!(seen(&mut events).await, triple("MODIFIED", "a", "2"));
    assert_eq!(seen(&mut events).await, triple("DELETED", "a", "2"));
}

#[tokio::test]
async fn watchers_should_observe_an_object_deletion_if_it_stops_meeting_the_selector() {
    let server = Server::start().await;
    let asked = format!("resourceVersion={}&labelSelector=l%3D1", version(&server).await);
    let mut events = watch(&server, &asked, "application/json").await;
    server.post(CONFIGMAPS, &configmap("a", "1", "0")).await.unwrap();
    change(&server, "a", "1", "1").await;
    change(&server, "a", "wrong", "2").await;
    change(&server, "a", "wrong", "3").await;
    change(&server, "a", "1", "4").await;
    server.delete(&format!("{CONFIGMAPS}/a"), &json!({})).await.unwrap();
    for (kind, value) in
        [("ADDED", "0"), ("MODIFIED", "1"), ("DELETED", "1"), ("ADDED", "4"), ("DELETED", "4")]
    {
        assert_eq!(seen(&mut events).await, triple(kind, "a", value));
    }
}

#[tokio::test]
async fn watchers_should_receive_events_on_concurrent_watches_in_same_order() {
    let server = Server::start().await;
    let writes = async {
        for number in 0..30 {
            let name = format!("c{}", number % 5);
            if number < 5 {
                server.post(CONFIGMAPS, &configmap(&name, "1", "0")).await.unwrap();
            } else {
                change(&server, &name, "1", &number.to_string()).await;
            }
        }
    };
    let start = version(&server).await;
    let mut first = watch(&server, &format!("resourceVersion={start}"), "application/json").await;
    let watches = async {
        // Each begins at a revision that the first one has seen.
        let (mut seen, mut all) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let event = next(&mut first).await;
            let at = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
            all.push(watch(&server, &format!("resourceVersion={at}"), "application/json").await);
            seen.push(at);
        }
        (seen, all)
    };
    let ((), (mut order, all)) = tokio::join!(writes, watches);
    for _ in 20..30 {
        let event = next(&mut first).await;
        order.push(event["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
    }
    for (begin, mut events) in all.into_iter().enumerate() {
        for expected in &order[begin + 1..] {
            let event = next(&mut events).await;
            assert_eq!(event["object"]["metadata"]["resourceVersion"], *expected, "{begin}");
        }
    }
}

fn template(number: usize) -> Value {
    let template = &deployment("web")["spec"]["template"];
    json!({"metadata": {"name": format!("template-{number:04}")}, "template": template})
}

#[tokio::test]
async fn servers_with_support_for_api_chunking_should_return_chunks_of_results_for_list_calls() {
    const COUNT: usize = 40;
    let server = Server::start().await;
    for number in 0..COUNT {
        server.post(TEMPLATES, &template(number)).await.unwrap();
    }
    for limit in [1, 7, 17, 40] {
        let (mut names, mut token, mut revision) = (Vec::new(), String::new(), Value::Null);
        loop {
            let page = server.get(&format!("{TEMPLATES}?limit={limit}&continue={token}")).await;
            let page = page.unwrap();
            let metadata = &page["metadata"];
            if !revision.is_null() {
                assert_eq!(metadata["resourceVersion"], revision);
            }
            revision = metadata["resourceVersion"].clone();
            let items = page["items"].as_array().unwrap();
            names.extend(items.iter().map(|item| item["metadata"]["name"].clone()));
            let left = COUNT - names.len();
            assert_eq!(metadata["remainingItemCount"].as_u64().unwrap_or(0), left as u64);
            token = metadata["continue"].as_str().unwrap_or_default().to_owned();
            assert_eq!(token.is_empty(), left == 0);
            if token.is_empty() {
                break;
            }
        }
        let expected: Vec<Value> =
            (0..COUNT).map(|number| template(number)["metadata"]["name"].clone()).collect();
        assert_eq!(names, expected, "limit {limit}");
    }
    let whole = server.get(TEMPLATES).await.unwrap();
    assert_eq!(whole["items"].as_array().unwrap().len(), COUNT);
}

#[tokio::test]
async fn api_chunking_should_support_continue_listing_from_the_last_key_if_the_original_version_has_been_compacted_away()
 {
    let server = Server::start().await;
    for name in ["a", "b", "d"] {
        server.post(CONFIGMAPS, &configmap(name, "1", "x")).await.unwrap();
    }
    let first = server.get(&format!("{CONFIGMAPS}?limit=2")).await.unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    // More bytes than the history of one kind keeps.
    server.post(CONFIGMAPS, &configmap("c", "1", "")).await.unwrap();
    for number in 0..24 {
        change(&server, "c", "1", &format!("{number}{}", "x".repeat(1_000_000))).await;
    }
    let gone = server.get(&format!("{CONFIGMAPS}?limit=2&continue={token}")).await;
    let request = Request::get(format!("{CONFIGMAPS}?limit=2&continue={token}"));
    assert_eq!(
        (said(&gone.unwrap_err()).0, said(&server.get("/nowhere").await.unwrap_err()).0),
        (410, 404)
    );
    // Clients drop the metadata of failures: the text has it.
    let body = server.client.send(request.body(Vec::<u8>::new().into()).unwrap()).await.unwrap();
    let body = http_body_util::BodyExt::collect(body.into_body()).await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&status["code"], &status["reason"]), (&json!(410), &json!("Expired")));
    assert!(status["message"].as_str().unwrap().contains("results in an inconsistent list"));
    let token = status["metadata"]["continue"].as_str().unwrap();
    let rest = server.get(&format!("{CONFIGMAPS}?continue={token}")).await.unwrap();
    let names: Vec<&Value> =
        rest["items"].as_array().unwrap().iter().map(|one| &one["metadata"]["name"]).collect();
    assert_eq!(names, ["c", "d"]);
}

#[tokio::test]
async fn servers_with_support_for_table_transformation_should_return_a_406_for_a_backend_which_does_not_implement_metadata()
 {
    let server = Server::start().await;
    let body = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let request = Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        .header("content-type", "application/json")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let refused = server.request(request.body(body.to_string().into_bytes()).unwrap()).await;
    assert_eq!(said(&refused.unwrap_err()).0, 406);
}

#[tokio::test]
async fn servers_with_support_for_table_transformation_should_return_pod_details() {
    let server = Server::start().await;
    server.post("/api/v1/namespaces/default/pods", &crate::server::pod("p")).await.unwrap();
    let request = Request::get("/api/v1/namespaces/default/pods/p")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = server.request(request.body(Vec::new()).unwrap()).await.unwrap();
    assert!(table["columnDefinitions"].as_array().unwrap().len() > 2, "{table}");
    assert_eq!(table["rows"].as_array().unwrap().len(), 1);
    assert_eq!(table["rows"][0]["cells"][0], "p");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
}

#[tokio::test]
async fn server_version_should_find_the_server_version() {
    let server = Server::start().await;
    let version = server.get("/version").await.unwrap();
    let digits =
        |field: &str| version[field].as_str().unwrap().trim_end_matches('+').parse::<u32>();
    assert_eq!((digits("major").unwrap(), digits("minor").unwrap()), (1, 35));
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.35."), "{version}");
}

#[tokio::test]
async fn discovery_should_validate_preferred_version_and_locate_a_resource_within_each_api_group() {
    let server = Server::start().await;
    let groups = server.get("/apis").await.unwrap();
    let mut found = BTreeSet::new();
    for group in groups["groups"].as_array().unwrap() {
        let preferred = &group["preferredVersion"]["groupVersion"];
        let versions = group["versions"].as_array().unwrap();
        assert!(versions.iter().any(|version| version["groupVersion"] == *preferred), "{group}");
        let one = server.get(&format!("/apis/{}", group["name"].as_str().unwrap())).await.unwrap();
        assert_eq!((&one["name"], &one["kind"]), (&group["name"], &json!("APIGroup")));
        for version in versions {
            let version = version["groupVersion"].as_str().unwrap();
            let list = server.get(&format!("/apis/{version}")).await.unwrap();
            assert_eq!(
                (&list["kind"], &list["groupVersion"]),
                (&json!("APIResourceList"), &json!(version))
            );
            for resource in list["resources"].as_array().unwrap() {
                found.insert(format!("{version} {}", resource["name"].as_str().unwrap()));
            }
        }
    }
    for known in [
        "apps/v1 deployments",
        "authentication.k8s.io/v1 tokenreviews",
        "autoscaling/v2 horizontalpodautoscalers",
        "batch/v1 jobs",
        "certificates.k8s.io/v1 certificatesigningrequests/approval",
        "coordination.k8s.io/v1 leases",
        "discovery.k8s.io/v1 endpointslices",
        "events.k8s.io/v1 events",
        "networking.k8s.io/v1 servicecidrs",
        "policy/v1 poddisruptionbudgets/status",
        "rbac.authorization.k8s.io/v1 clusterroles",
        "storage.k8s.io/v1 storageclasses",
    ] {
        assert!(found.contains(known), "{known} in {found:#?}");
    }
}

#[tokio::test]
async fn aggregated_discovery_should_support_raw_aggregated_discovery_endpoint_accept_headers() {
    let server = Server::start().await;
    for path in ["/api", "/apis"] {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let request = Request::get(path).header("accept", accept).body(Vec::new()).unwrap();
        let list = server.request(request).await.unwrap();
        assert_eq!(list["kind"], "APIGroupDiscoveryList");
        assert!(!list["items"].as_array().unwrap().is_empty());
        for group in list["items"].as_array().unwrap() {
            for version in group["versions"].as_array().unwrap() {
                let place = match group["metadata"]["name"].as_str() {
                    None | Some("") => "/api".to_owned(),
                    Some(name) => format!("/apis/{name}"),
                };
                let path = format!("{place}/{}", version["version"].as_str().unwrap());
                let legacy = server.get(&path).await.unwrap();
                let names = |list: &Value, field: &str| -> BTreeSet<String> {
                    let all = list["resources"].as_array().unwrap().iter();
                    let names = all.map(|one| one[field].as_str().unwrap().to_owned());
                    names.filter(|name| !name.contains('/')).collect()
                };
                assert_eq!(names(version, "resource"), names(&legacy, "name"), "{path}");
            }
        }
    }
}

async fn strictly(server: &Server, body: &str) -> String {
    let path = "/apis/apps/v1/namespaces/default/deployments?fieldValidation=Strict";
    let refused = server.send(Method::POST, path, "application/json", body).await.unwrap_err();
    assert_eq!((said(&refused).0, said(&refused).1), (400, "BadRequest"), "{refused}");
    said(&refused).2.to_owned()
}

#[tokio::test]
async fn field_validation_should_detect_unknown_and_duplicate_fields_of_a_typed_object() {
    let server = Server::start().await;
    let mut object = deployment("web");
    object["spec"]["unknown"] = "x".into();
    object["spec"]["paused"] = true.into();
    let text = object.to_string().replace("\"paused\":true", "\"paused\":true,\"paused\":false");
    let told = strictly(&server, &text).await;
    assert!(
        told.contains("strict decoding error: ")
            && told.contains("unknown field \"spec.unknown\"")
            && told.contains("duplicate field \"spec.paused\""),
        "{told}"
    );
}

#[tokio::test]
async fn field_validation_should_detect_unknown_metadata_fields_of_a_typed_object() {
    let server = Server::start().await;
    let mut object = deployment("web");
    object["metadata"]["unknownMeta"] = "x".into();
    object["spec"]["template"]["metadata"]["unknownTemplate"] = "x".into();
    let told = strictly(&server, &object.to_string()).await;
    assert!(
        told.contains("unknown field \"metadata.unknownMeta\"")
            && told.contains("unknown field \"spec.template.metadata.unknownTemplate\""),
        "{told}"
    );
}

#[tokio::test]
async fn namespaces_should_patch_update_and_apply_changes_to_a_namespace_status_and_finalizer() {
    let server = Server::start().await;
    let namespace = json!({"metadata": {"name": "nspatchtest"}});
    let made = server.post("/api/v1/namespaces", &namespace).await.unwrap();
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    let path = "/api/v1/namespaces/nspatchtest";
    let label = json!({"metadata": {"labels": {"testLabel": "testValue"}}});
    let patched = server.patch("strategic-merge", path, &label).await.unwrap();
    assert_eq!(patched["metadata"]["labels"]["testLabel"], "testValue");
    assert_eq!(patched["metadata"]["labels"]["kubernetes.io/metadata.name"], "nspatchtest");

    let condition = json!({"type": "StatusPatch", "status": "True", "reason": "E2E",
        "message": "Patched by an e2e test", "lastTransitionTime": "2026-01-02T03:04:05Z"});
    let status = format!("{path}/status");
    let change = json!({"status": {"conditions": [condition]}});
    let mut patched = server.patch("merge", &status, &change).await.unwrap();
    assert_eq!(patched["status"]["conditions"][0]["type"], "StatusPatch");
    patched["status"]["conditions"][0]["type"] = "StatusUpdate".into();
    let updated = server.put(&status, &patched).await.unwrap();
    assert_eq!(updated["status"]["conditions"][0]["type"], "StatusUpdate");
    assert_eq!(updated["status"]["phase"], "Active");

    let mut updated = server.get(path).await.unwrap();
    updated["metadata"]["labels"]["updated"] = "yes".into();
    let mut updated = server.put(path, &updated).await.unwrap();
    assert_eq!(updated["metadata"]["labels"]["updated"], "yes");

    let finalize = format!("{path}/finalize");
    updated["spec"]["finalizers"] = json!(["kubernetes", "e2e.example.com/fakeFinalizer"]);
    let updated = server.put(&finalize, &updated).await.unwrap();
    assert_eq!(updated["spec"]["finalizers"].as_array().unwrap().len(), 2);
    let deleted = server.delete(path, &json!({})).await.unwrap();
    assert_eq!(deleted["status"]["phase"], "Terminating");
    let mut ended = server.get(path).await.unwrap();
    ended["spec"]["finalizers"] = json!([]);
    server.put(&finalize, &ended).await.unwrap();
    assert_eq!(said(&server.get(path).await.unwrap_err()).0, 404);
}
