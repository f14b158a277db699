//! Watches: what they begin with, what they deliver, how they end.

use futures::io::AsyncBufReadExt as _;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use std::pin::Pin;
use std::time::Duration;

use crate::server::{Server, said};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) type Events = Pin<Box<dyn Stream<Item = Value> + Send>>;

/// The events of a watch.
pub(crate) async fn watch(server: &Server, query: &str, accept: &str) -> Events {
    let path = format!("{CONFIGMAPS}?watch=true&{query}");
    let request = Request::get(path).header("accept", accept).body(Vec::new()).unwrap();
    let body = server.client.request_stream(request).await.unwrap();
    let lines = body.lines().map_ok(|line| serde_json::from_str(&line).unwrap());
    Box::pin(lines.map(Result::unwrap))
}

pub(crate) async fn next(events: &mut Events) -> Value {
    tokio::time::timeout(Duration::from_secs(20), events.next())
        .await
        .expect("no event in time")
        .expect("the watch ended")
}

/// Type, name and value `x` of the next event.
pub(crate) async fn seen(events: &mut Events) -> (String, String, String) {
    let event = next(events).await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (
        text(&event["type"]),
        text(&event["object"]["metadata"]["name"]),
        text(&event["object"]["data"]["x"]),
    )
}

pub(crate) fn triple(kind: &str, name: &str, value: &str) -> (String, String, String) {
    (kind.to_owned(), name.to_owned(), value.to_owned())
}

pub(crate) fn configmap(name: &str, label: &str, value: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"l": label}}, "data": {"x": value}})
}

pub(crate) async fn version(server: &Server) -> String {
    server.get(CONFIGMAPS).await.unwrap()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn changes_come_in_order_from_a_revision() {
    let server = Server::start().await;
    let start = version(&server).await;
    server.post(CONFIGMAPS, &configmap("a", "1", "one")).await.unwrap();
    let mut events = watch(&server, &format!("resourceVersion={start}"), "application/json").await;
    server
        .patch("merge", &format!("{CONFIGMAPS}/a"), &json!({"data": {"x": "two"}}))
        .await
        .unwrap();
    server.delete(&format!("{CONFIGMAPS}/a"), &json!({})).await.unwrap();
    assert_eq!(seen(&mut events).await, triple("ADDED", "a", "one"));
    assert_eq!(seen(&mut events).await, triple("MODIFIED", "a", "two"));
    let deleted = next(&mut events).await;
    assert_eq!(
        (&deleted["type"], &deleted["object"]["data"]["x"]),
        (&json!("DELETED"), &json!("two"))
    );
    // At the revision of the deletion.
    assert_eq!(deleted["object"]["metadata"]["resourceVersion"], version(&server).await);
}

#[tokio::test]
async fn selectors_turn_changes_into_additions_and_deletions() {
    let server = Server::start().await;
    let start = version(&server).await;
    let mut events =
        watch(&server, &format!("resourceVersion={start}&labelSelector=l%3D1"), "application/json")
            .await;
    server.post(CONFIGMAPS, &configmap("a", "2", "one")).await.unwrap();
    for (label, value) in [("1", "two"), ("1", "three"), ("2", "four")] {
        server
            .patch("merge", &format!("{CONFIGMAPS}/a"), &configmap("a", label, value))
            .await
            .unwrap();
    }
    server.delete(&format!("{CONFIGMAPS}/a"), &json!({})).await.unwrap();
    server.post(CONFIGMAPS, &configmap("b", "1", "end")).await.unwrap();
    assert_eq!(seen(&mut events).await, triple("ADDED", "a", "two"));
    assert_eq!(seen(&mut events).await, triple("MODIFIED", "a", "three"));
    assert_eq!(seen(&mut events).await, triple("DELETED", "a", "three"));
    assert_eq!(seen(&mut events).await, triple("ADDED", "b", "end"));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = Server::start().await;
    server.post(CONFIGMAPS, &configmap("a", "1", "one")).await.unwrap();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = watch(&server, query, "application/json").await;
    assert_eq!(seen(&mut events).await, triple("ADDED", "a", "one"));
    let bookmark = next(&mut events).await;
    assert_eq!(
        (&bookmark["type"], &bookmark["object"]["kind"]),
        (&json!("BOOKMARK"), &json!("ConfigMap"))
    );
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], version(&server).await);
    server.post(CONFIGMAPS, &configmap("b", "1", "two")).await.unwrap();
    assert_eq!(seen(&mut events).await, triple("ADDED", "b", "two"));
    // The parameter is never ignored silently.
    let status =
        server.get(&format!("{CONFIGMAPS}?watch=true&sendInitialEvents=true")).await.unwrap_err();
    assert!(
        said(&status)
            .2
            .contains("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        "{status}"
    );
}

#[tokio::test]
async fn a_watch_without_a_revision_begins_with_the_state_and_ends_in_time() {
    let server = Server::start().await;
    server.post(CONFIGMAPS, &configmap("a", "1", "one")).await.unwrap();
    let mut events = watch(&server, "timeoutSeconds=1", "application/json").await;
    assert_eq!(seen(&mut events).await, triple("ADDED", "a", "one"));
    let end = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    assert!(matches!(end, Ok(None)), "the watch goes on");
}

#[tokio::test]
async fn tables_define_their_columns_once() {
    let server = Server::start().await;
    let start = version(&server).await;
    let mut events = watch(
        &server,
        &format!("resourceVersion={start}"),
        "application/json;as=Table;v=v1;g=meta.k8s.io",
    )
    .await;
    for name in ["a", "b"] {
        server.post(CONFIGMAPS, &configmap(name, "1", "x")).await.unwrap();
    }
    for (name, columns) in [("a", 3), ("b", 0)] {
        let event = next(&mut events).await;
        let table = &event["object"];
        assert_eq!(
            (&event["type"], &table["kind"], &table["rows"][0]["cells"][0]),
            (&json!("ADDED"), &json!("Table"), &json!(name))
        );
        assert_eq!(table["columnDefinitions"].as_array().unwrap().len(), columns);
        assert_eq!(table["rows"][0]["object"]["metadata"]["name"], name);
    }
}

#[tokio::test]
async fn a_revision_that_is_gone_is_an_expired_error() {
    let server = Server::start().await;
    let path = format!("{CONFIGMAPS}/a");
    server.post(CONFIGMAPS, &configmap("a", "1", "0")).await.unwrap();
    // More bytes than the history of one kind keeps.
    for number in 0..24 {
        let large = format!("{number}{}", "x".repeat(1_000_000));
        server.patch("merge", &path, &json!({"data": {"x": large}})).await.unwrap();
    }
    let mut events = watch(&server, "resourceVersion=2", "application/json").await;
    let event = next(&mut events).await;
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert!(events.next().await.is_none());
    let list = server
        .get(&format!("{CONFIGMAPS}?resourceVersion=2&resourceVersionMatch=Exact"))
        .await
        .unwrap_err();
    assert_eq!((said(&list).0, said(&list).1), (410, "Expired"));
}

#[tokio::test]
async fn a_revision_that_was_never_reached_is_an_expired_error() {
    let server = Server::start().await;
    let streaming = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=9999";
    for query in ["resourceVersion=9999", streaming] {
        let mut events = watch(&server, query, "application/json").await;
        let event = next(&mut events).await;
        assert_eq!(
            (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
            (&json!("ERROR"), &json!(410), &json!("Expired")),
            "{query}"
        );
        assert!(events.next().await.is_none());
    }
    // {"rv":9999,"after":"x"}
    let token = "eyJydiI6OTk5OSwiYWZ0ZXIiOiJ4In0";
    let page = server.get(&format!("{CONFIGMAPS}?limit=1&continue={token}")).await.unwrap_err();
    assert_eq!((said(&page).0, said(&page).1), (410, "Expired"));
}

#[tokio::test]
async fn kube_rs_reflects_both_ways() {
    use kube::runtime::{WatchStreamExt as _, reflector, watcher};
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client.clone());
    for config in
        [watcher::Config::default().page_size(2), watcher::Config::default().streaming_lists()]
    {
        let (reader, writer) = reflector::store();
        let stream = reflector(writer, watcher(api.clone(), config)).applied_objects();
        let follow = tokio::spawn(stream.for_each(|object| async move { drop(object.unwrap()) }));
        tokio::time::timeout(Duration::from_secs(20), reader.wait_until_ready())
            .await
            .expect("never ready")
            .unwrap();
        let before = reader.state().len();
        for number in before..before + 5 {
            let object =
                serde_json::from_value(configmap(&format!("c{number}"), "1", "x")).unwrap();
            api.create(&PostParams::default(), &object).await.unwrap();
        }
        let all = async {
            while reader.state().len() < before + 5 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("objects are missing");
        follow.abort();
    }
}

#[tokio::test]
async fn watches_end_when_the_server_stops() {
    let server = Server::start().await;
    let mut events = watch(&server, "", "application/json").await;
    let stopped = tokio::time::timeout(Duration::from_secs(4), server.stop()).await;
    assert!(stopped.is_ok(), "the server waits for its watches");
    assert!(events.next().await.is_none());
}
