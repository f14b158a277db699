//! A clock that jumps, forward and back, under a whole control plane: nothing but timestamps
//! follows it.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::io::AsyncBufReadExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::process::{Home, LIMIT, PROGRAM, client};

/// What stands between the server and the system's clock.
fn library() -> PathBuf {
    let known = ["x86_64-linux-gnu", "aarch64-linux-gnu"];
    let paths = known.map(|machine| format!("/usr/lib/{machine}/faketime/libfaketimeMT.so.1"));
    let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("Debian's faketime, which `cargo xtask test` installs")
}

/// The server with controllers, whose clock is as far off as a file says.
fn command(home: &Home, offset: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(home.data());
    command.env("LD_PRELOAD", library()).env("FAKETIME_TIMESTAMP_FILE", offset);
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command.env("DONT_FAKE_MONOTONIC", "1");
    command
}

/// Sets the clock off by so many hours. The server never sees half of it.
fn jump(offset: &Path, hours: i64) {
    let next = offset.with_extension("next");
    fs::write(&next, format!("{hours:+}h")).unwrap();
    fs::rename(next, offset).unwrap();
}

async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Says that the node lives, by its own clock, which is right.
async fn renew(client: &Client) {
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
    let now = Timestamp::now();
    let renewal = json!({"spec": {"renewTime": format!("{now:.6}"), "holderIdentity": "n1"}});
    leases.patch("n1", &PatchParams::default(), &Patch::Merge(renewal)).await.unwrap();
}

async fn is_ready(client: &Client) -> bool {
    let node = Api::<Node>::all(client.clone()).get("n1").await.unwrap();
    let conditions = node.status.unwrap().conditions.unwrap();
    let ready = conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    ready && !taints.iter().any(|taint| taint.effect == "NoExecute")
}

async fn register(client: &Client) {
    let node = json!({
        "metadata": {"name": "n1"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    let node = serde_json::from_value(node).unwrap();
    Api::<Node>::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
    let lease = json!({"metadata": {"name": "n1"}, "spec": {"leaseDurationSeconds": 40}});
    let lease = serde_json::from_value(lease).unwrap();
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
    until("the namespace of leases", async || {
        leases.create(&PostParams::default(), &lease).await.ok()
    })
    .await;
    renew(client).await;
}

/// Writes after a jump, and has the controllers work: they take a namespace away.
async fn work(client: &Client, name: &str, hours: i64) -> u64 {
    let api = Api::<ConfigMap>::default_namespaced(client.clone());
    let map = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    let made = api.create(&PostParams::default(), &map).await.unwrap();
    let since = made.metadata.creation_timestamp.as_ref().unwrap().0;
    let off = since.duration_since(Timestamp::now()) - SignedDuration::from_hours(hours);
    assert!(off.abs() < SignedDuration::from_mins(10), "{name} at {since}: {off:?}");
    let namespaces = Api::<Namespace>::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    renew(client).await;
    let _ = namespaces.delete(name, &DeleteParams::default()).await.unwrap();
    until("the namespace to go", async || {
        namespaces.get_opt(name).await.unwrap().is_none().then_some(())
    })
    .await;
    made.resource_version().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_moves_no_revision_ends_no_watch_and_loses_no_node() {
    let home = Home::new();
    let offset = home.data().with_extension("offset");
    jump(&offset, 0);
    let mut server = home.spawn(command(&home, &offset));
    let client = home.ready(&mut server).await;
    register(&client).await;
    let api = Api::<ConfigMap>::default_namespaced(client.clone());
    let start = api.list(&ListParams::default().limit(1)).await.unwrap();
    let path = format!(
        "/api/v1/namespaces/default/configmaps?watch=true&resourceVersion={}&timeoutSeconds=600",
        start.metadata.resource_version.unwrap()
    );
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let mut watch = pin!(client.request_stream(request).await.unwrap().lines());
    let mut last = 0;
    for hours in [0, 24, -24, 24 * 400, 0] {
        jump(&offset, hours);
        let name = format!("at{}", hours.to_string().replace('-', "minus"));
        let name = if last > 0 && hours == 0 { "back".to_owned() } else { name };
        let revision = work(&client, &name, hours).await;
        assert!(revision > last, "{name}: {revision} after {last}");
        last = revision;
        assert!(is_ready(&client).await, "{name}: the node was given up");
        loop {
            let line = tokio::time::timeout(LIMIT, watch.next()).await.expect("no event");
            let event: Value =
                serde_json::from_str(&line.expect("the watch ended").unwrap()).unwrap();
            if event["object"]["metadata"]["name"] == name {
                break;
            }
        }
        // Certificates hold for a newcomer, too.
        let newcomer = self::client(&home.data().join("admin.kubeconfig")).await.unwrap();
        let maps = Api::<ConfigMap>::default_namespaced(newcomer);
        assert!(maps.get_opt(&name).await.unwrap().is_some());
    }
    // And at a start whose clock is behind all that is in the store.
    drop(server);
    jump(&offset, -48);
    let mut server = home.spawn(command(&home, &offset));
    let client = home.ready(&mut server).await;
    assert!(work(&client, "restarted", -48).await > last);
}
