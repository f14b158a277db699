//! Events of both groups.

use serde_json::{Value, json};

use crate::server::{Server, said};

const EVENTS: &str = "/api/v1/namespaces/default/events";
const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn core(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"testevent-set": "true"}},
        "message": "This is a test event", "reason": "Test", "type": "Normal", "count": 1,
        "involvedObject": {"namespace": "default"},
    })
}

fn new(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"testevent-set": "true"}},
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "action": "Do", "note": "This is event", "reason": "Test", "type": "Normal",
        "reportingController": "test-controller", "reportingInstance": "test-node",
        "eventTime": "2026-01-02T03:04:05.000006Z",
    })
}

/// Fetches, patches, updates, lists and deletes one.
async fn lifecycle(server: &Server, events: &str, event: &Value, text: &str) {
    let name = event["metadata"]["name"].as_str().unwrap();
    let path = format!("{events}/{name}");
    server.post(events, event).await.unwrap();
    let group = events.split("/namespaces").next().unwrap();
    for list in [format!("{group}/events?labelSelector=testevent-set%3Dtrue"), events.to_owned()] {
        let found = server.get(&list).await.unwrap();
        let named = |one: &&Value| one["metadata"]["name"] == name;
        assert!(found["items"].as_array().unwrap().iter().any(|one| named(&one)), "{list}");
    }
    let series = json!({"count": 2, "lastObservedTime": "2026-01-02T03:04:06.000000Z"});
    let change = json!({text: "This is a patched event", "series": series});
    let patched = server.patch("merge", &path, &change).await.unwrap();
    assert_eq!(
        (&patched[text], &patched["series"]["count"]),
        (&json!("This is a patched event"), &json!(2))
    );
    let mut read = server.get(&path).await.unwrap();
    assert_eq!(read, patched);
    read["series"]["count"] = 100.into();
    let updated = server.put(&path, &read).await.unwrap();
    assert_eq!(updated["series"]["count"], 100);
    server.delete(&path, &json!({})).await.unwrap();
    assert_eq!(said(&server.get(&path).await.unwrap_err()).0, 404);
}

/// Deletes what a label selects.
async fn collection(server: &Server, events: &str, event: impl Fn(&str) -> Value) {
    for name in ["test-event-1", "test-event-2", "test-event-3"] {
        server.post(events, &event(name)).await.unwrap();
    }
    let mut other = event("other");
    other["metadata"]["labels"] = json!({});
    server.post(events, &other).await.unwrap();
    let selected = format!("{events}?labelSelector=testevent-set%3Dtrue");
    assert_eq!(server.get(&selected).await.unwrap()["items"].as_array().unwrap().len(), 3);
    server.delete(&selected, &json!({})).await.unwrap();
    assert_eq!(server.get(&selected).await.unwrap()["items"], json!([]));
    assert_eq!(server.get(events).await.unwrap()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn events_should_manage_the_lifecycle_of_an_event() {
    let server = Server::start().await;
    lifecycle(&server, EVENTS, &core("event-test"), "message").await;
}

#[tokio::test]
async fn events_should_delete_a_collection_of_events() {
    let server = Server::start().await;
    collection(&server, EVENTS, core).await;
}

#[tokio::test]
async fn events_api_should_ensure_that_an_event_can_be_fetched_patched_deleted_and_listed() {
    let server = Server::start().await;
    lifecycle(&server, NEW, &new("event-test"), "note").await;
    let fields = "fieldSelector=reportingController%3Dtest-controller";
    server.post(NEW, &new("selected")).await.unwrap();
    let found = server.get(&format!("{NEW}?{fields}")).await.unwrap();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn events_api_should_delete_a_collection_of_events() {
    let server = Server::start().await;
    collection(&server, NEW, new).await;
}
