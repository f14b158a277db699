//! Numbers and patches beyond every measure.

use http::{Method, Request};
use serde_json::{Value, json};

use crate::bed::{Bed, code};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn a_watch_can_ask_for_any_time() {
    let bed = Bed::start().await;
    let watched = async |seconds: &str| {
        let path = format!("{MAPS}?watch=1&timeoutSeconds={seconds}");
        let request = Request::builder().method(Method::GET).uri(path);
        let body = kube::client::Body::empty();
        bed.client.send(request.body(body).unwrap()).await.unwrap().status().as_u16()
    };
    assert_eq!(watched("9223372036854775807").await, 200);
    assert_eq!(watched("1").await, 200);
    for wrong in ["18446744073709551615", "-1", "soon"] {
        assert_eq!(watched(wrong).await, 400, "{wrong}");
    }
}

#[tokio::test]
async fn parameters_are_documented_with_their_types() {
    let bed = Bed::start().await;
    let document = bed.get("/openapi/v3/api/v1").await.unwrap();
    let path = "/api/v1/namespaces/{namespace}/configmaps";
    let types = |verb: &str| -> Vec<(String, String)> {
        let parameters = document["paths"][path][verb]["parameters"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        parameters.map(|one| (text(&one["name"]), text(&one["schema"]["type"]))).collect()
    };
    for (verb, name, expected) in [
        ("get", "limit", "integer"),
        ("get", "timeoutSeconds", "integer"),
        ("get", "watch", "boolean"),
        ("get", "allowWatchBookmarks", "boolean"),
        ("get", "sendInitialEvents", "boolean"),
        ("get", "labelSelector", "string"),
        ("delete", "gracePeriodSeconds", "integer"),
        ("delete", "orphanDependents", "boolean"),
    ] {
        assert!(types(verb).contains(&(name.into(), expected.into())), "{name}: {:?}", types(verb));
    }
}

#[tokio::test]
async fn a_patch_cannot_fill_the_memory() {
    let bed = Bed::start().await;
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "x".repeat(1000)}});
    bed.post(MAPS, &map).await.unwrap();
    let path = format!("{MAPS}/m");
    let mut doubling = vec![json!({"op": "add", "path": "/x", "value": ["x".repeat(1000)]})];
    doubling.extend((0..60).map(|_| json!({"op": "copy", "from": "/x", "path": "/x/-"})));
    assert_eq!(code(&bed.patch("json", &path, &doubling.into()).await.unwrap_err()), 422);
    let many: Vec<Value> =
        (0..10_001).map(|_| json!({"op": "test", "path": "/kind", "value": "ConfigMap"})).collect();
    assert_eq!(code(&bed.patch("json", &path, &many.into()).await.unwrap_err()), 413);
    assert_eq!(bed.get(&path).await.unwrap()["data"].as_object().unwrap().len(), 1);
}
