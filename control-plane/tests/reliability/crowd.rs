//! More clients than a server likes, and some that do not listen.

use std::sync::Arc;

use futures::io::AsyncBufReadExt as _;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::process::{Home, LIMIT, client};

/// How many watch.
const CROWD: usize = 1_000;
/// Clients among which they are divided: each has a connection.
const CLIENTS: usize = 50;
/// Changes that each of them sees.
const CHANGES: usize = 20;

fn map(name: &str, text: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"text": text}})).unwrap()
}

/// The answer to a watch from a revision on, of which nothing is read yet.
async fn watch(client: &Client, after: &str) -> impl Stream<Item = Value> + Send + use<> {
    let path = format!(
        "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=600&resourceVersion={after}"
    );
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let body = client.request_stream(request).await.unwrap();
    body.lines().map_ok(|line| serde_json::from_str(&line).unwrap()).map(Result::unwrap)
}

async fn newest(api: &Api<ConfigMap>) -> String {
    api.list(&ListParams::default().limit(1)).await.unwrap().metadata.resource_version.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watches_see_every_change_in_order() {
    // Where connections are not shared, each watch has a descriptor.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(8_192), hard).unwrap();
    let home = Home::new();
    let mut command = home.command();
    command.arg("--in-memory");
    let mut server = home.spawn(command);
    let one = home.ready(&mut server).await;
    let api = Api::<ConfigMap>::default_namespaced(one);
    let start = newest(&api).await;
    let mut crowd = JoinSet::new();
    let begun = Arc::new(tokio::sync::Semaphore::new(0));
    for _ in 0..CLIENTS {
        let client = client(&home.data().join("admin.kubeconfig")).await.unwrap();
        for _ in 0..CROWD / CLIENTS {
            let (client, start, begun) = (client.clone(), start.clone(), Arc::clone(&begun));
            crowd.spawn(async move {
                let events = watch(&client, &start).await;
                begun.add_permits(1);
                let seen = events.take(CHANGES).map(|event| {
                    let (kind, object) = (&event["type"], &event["object"]);
                    (kind.as_str().unwrap().to_owned(), object["data"]["text"].clone())
                });
                seen.collect::<Vec<_>>().await
            });
        }
    }
    let all = begun.acquire_many(u32::try_from(CROWD).unwrap());
    drop(tokio::time::timeout(2 * LIMIT, all).await.expect("not all watches began").unwrap());
    let mut expected = Vec::new();
    for number in 0..CHANGES {
        let text = number.to_string();
        if number == 0 {
            api.create(&PostParams::default(), &map("a", &text)).await.unwrap();
        } else {
            let change = Patch::Merge(json!({"data": {"text": text}}));
            api.patch("a", &PatchParams::default(), &change).await.unwrap();
        }
        let kind = if number == 0 { "ADDED" } else { "MODIFIED" };
        expected.push((kind.to_owned(), Value::from(text)));
    }
    let mut seen = 0;
    while let Some(one) = tokio::time::timeout(2 * LIMIT, crowd.join_next()).await.unwrap() {
        assert_eq!(one.unwrap(), expected);
        seen += 1;
    }
    assert_eq!(seen, CROWD);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_nobody_reads_hold_nobody_up_and_no_memory() {
    /// Watches that nobody reads, and what is written meanwhile: of it all they might keep 2 GB.
    const SLOW: usize = 40;
    const WRITES: usize = 500;
    const SIZE: usize = 100_000;
    /// What one kind's history keeps (16 MB), its objects, and what waits in connections; twice.
    const BOUND: u64 = 400 << 20;
    let home = Home::new();
    let mut command = home.command();
    command.arg("--in-memory");
    let mut server = home.spawn(command);
    let one = home.ready(&mut server).await;
    let api = Api::<ConfigMap>::default_namespaced(one.clone());
    let start = newest(&api).await;
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        // A connection of its own, whose windows fill.
        let client = client(&home.data().join("admin.kubeconfig")).await.unwrap();
        slow.push((watch(&client, &start).await, client));
    }
    let mut quick = std::pin::pin!(watch(&one, &start).await);
    let before = server.memory();
    let mut most = before;
    api.create(&PostParams::default(), &map("a", "")).await.unwrap();
    for number in 1..WRITES {
        let text = char::from(b'a' + u8::try_from(number % 26).unwrap()).to_string().repeat(SIZE);
        let change = Patch::Merge(json!({"data": {"text": text}}));
        tokio::time::timeout(LIMIT, api.patch("a", &PatchParams::default(), &change))
            .await
            .expect("a write is held up")
            .unwrap();
        let seen = tokio::time::timeout(LIMIT, quick.next()).await.expect("a watch is held up");
        assert!(matches!(seen.unwrap()["type"].as_str(), Some("ADDED" | "MODIFIED")));
        if number % 50 == 0 {
            most = most.max(server.memory());
        }
    }
    assert!(most - before < BOUND, "from {before} to {most} bytes");
    // Who begins to read is told what there is of it, and where the history is gone.
    let (events, _client) = slow.pop().unwrap();
    let mut events = std::pin::pin!(events);
    let mut told = 0;
    loop {
        let event = tokio::time::timeout(LIMIT, events.next()).await.expect("no event");
        let Some(event) = event else { break };
        if event["type"] == "ERROR" {
            assert_eq!(event["object"]["code"], 410, "{event}");
            break;
        }
        told += 1;
        assert!(told < WRITES, "everything was kept");
    }
}
