//! What was acknowledged survives `kill -9`: a real process, killed under load, again and again.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use crate::server;

/// Kills per run; `MIZZEN_KILLS` sets another number.
const KILLS: usize = 4;
const WRITERS: usize = 8;

/// A server process, killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: nothing gets a chance to flush.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(directory: &Path, port: u16, more: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mizzen-control-plane"));
    command
        .args(["serve", "--no-controllers", "--data-dir"])
        .arg(directory)
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(more);
    Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn ready(directory: &Path) -> Client {
    let deadline = Instant::now() + Duration::from_secs(30);
    let kubeconfig = directory.join("admin.kubeconfig");
    loop {
        if kubeconfig.exists() {
            let client = server::client(&kubeconfig).await;
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            if client.request_text(request).await.is_ok() {
                return client;
            }
        }
        assert!(Instant::now() < deadline, "the server does not come up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Last acknowledged value and revision per name.
type Acknowledged = Arc<Mutex<BTreeMap<String, (u64, u64)>>>;

/// Writes until the server is gone; remembers what it acknowledged.
async fn write(client: Client, writer: usize, first: u64, acknowledged: Acknowledged) {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    for number in first.. {
        let name = format!("w{writer}-{}", number % 50);
        let object: ConfigMap = serde_json::from_value(
            json!({"metadata": {"name": name}, "data": {"n": number.to_string()}}),
        )
        .unwrap();
        let outcome = match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = json!({"data": {"n": number.to_string()}});
                api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await
            }
            other => other,
        };
        let Ok(written) = outcome else { return };
        acknowledged.lock().unwrap().insert(name, (number, revision(&written)));
    }
}

fn revision(object: &ConfigMap) -> u64 {
    object.metadata.resource_version.as_deref().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let kills =
        std::env::var("MIZZEN_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let acknowledged = Acknowledged::default();
    let mut newest = 0;
    for round in 0..kills {
        let process = start(directory.path(), port, &[]);
        let client = ready(directory.path()).await;
        newest = check(&client, &acknowledged, newest).await;
        let first = 1 + u64::try_from(round).unwrap() * 1_000_000;
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write(client.clone(), writer, first, Arc::clone(&acknowledged)));
        }
        // Kill at another point of the load each time.
        let before =
            acknowledged.lock().unwrap().values().filter(|(number, _)| *number >= first).count();
        let enough =
            Instant::now() + Duration::from_millis(150 + 97 * u64::try_from(round % 5).unwrap());
        while Instant::now() < enough
            || acknowledged.lock().unwrap().values().filter(|(number, _)| *number >= first).count()
                < before + 20
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(process);
        while writers.join_next().await.is_some() {}
    }
    let _process = start(directory.path(), port, &[]);
    check(&ready(directory.path()).await, &acknowledged, newest).await;
}

/// Everything acknowledged is there, at least as new, and revisions did not go back.
async fn check(client: &Client, acknowledged: &Acknowledged, newest: u64) -> u64 {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let list = api.list(&ListParams::default()).await.unwrap();
    let found: BTreeMap<String, (u64, u64)> = list
        .items
        .iter()
        .filter_map(|object| {
            let number = object.data.as_ref()?.get("n")?.parse().ok()?;
            Some((object.metadata.name.clone()?, (number, revision(object))))
        })
        .collect();
    for (name, (number, revision)) in acknowledged.lock().unwrap().iter() {
        let (found_number, found_revision) =
            found.get(name).unwrap_or_else(|| panic!("{name} is lost"));
        // A write without an answer may have happened after the last one with an answer.
        assert!(
            found_number >= number && found_revision >= revision,
            "{name}: acknowledged {number} at {revision}, found {found_number} at {found_revision}"
        );
    }
    let now: u64 = list.metadata.resource_version.unwrap().parse().unwrap();
    assert!(now >= newest, "revisions went back from {newest} to {now}");
    now
}

fn service(name: &str, address: &str, node_port: u16) -> Service {
    let object = json!({
        "metadata": {"name": name},
        "spec": {"type": "NodePort", "clusterIP": address, "ports": [{"port": 80, "nodePort": node_port}]},
    });
    serde_json::from_value(object).unwrap()
}

/// Addresses of all Services by name.
async fn addresses(client: &Client) -> BTreeMap<String, Vec<String>> {
    let services = Api::<Service>::all(client.clone()).list(&ListParams::default()).await.unwrap();
    let addresses = |service: Service| service.spec.unwrap().cluster_ips.unwrap();
    services.items.into_iter().map(|found| (found.name_any(), addresses(found))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_services_and_what_is_claimed_survive_kill_9() {
    let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
    // Killed at any point of its first start: what is half made is made whole by the next.
    for millis in [5, 20, 40, 80, 160] {
        let process = start(directory.path(), port, &[]);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        drop(process);
    }
    let process = start(directory.path(), port, &[]);
    let client = ready(directory.path()).await;
    let api = Api::<Service>::default_namespaced(client.clone());
    api.create(&PostParams::default(), &service("web", "10.96.0.80", 30_080)).await.unwrap();
    let before = addresses(&client).await;
    assert_eq!(before["kubernetes"], ["10.96.0.1"]);
    assert_eq!(before["kube-dns"], ["10.96.0.10", "fd00:96::a"]);
    drop(process);

    let _process = start(directory.path(), port, &[]);
    let client = ready(directory.path()).await;
    assert_eq!(addresses(&client).await, before);
    let api = Api::<Service>::default_namespaced(client);
    for taken in [
        service("a", "10.96.0.80", 30_081),
        service("b", "10.96.0.81", 30_080),
        service("c", "10.96.0.1", 30_082),
    ] {
        let refused = api.create(&PostParams::default(), &taken).await.unwrap_err().to_string();
        assert!(refused.contains("already allocated"), "{refused}");
    }
    api.delete("web", &DeleteParams::default()).await.unwrap();
    api.create(&PostParams::default(), &service("a", "10.96.0.80", 30_080)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_lost_store_list_anew() {
    let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
    let process = start(directory.path(), port, &["--in-memory"]);
    let client = ready(directory.path()).await;
    let api = Api::<ConfigMap>::default_namespaced(client);
    for number in 0..30 {
        let object = serde_json::from_value(json!({"metadata": {"name": format!("c{number}")}}));
        api.create(&PostParams::default(), &object.unwrap()).await.unwrap();
    }
    let (reader, writer) = reflector::store();
    let stream = watcher(api.clone(), watcher::Config::default()).default_backoff();
    let follow = tokio::spawn(reflector(writer, stream).for_each(|_| async {}));
    reader.wait_until_ready().await.unwrap();
    assert!(reader.state().len() >= 30);
    drop(process);

    // The same certificates, an empty store: its revisions begin anew.
    let _process = start(directory.path(), port, &["--in-memory"]);
    ready(directory.path()).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while reader.state().iter().any(|object| object.name_any() == "c0") {
        assert!(Instant::now() < deadline, "objects of the lost store are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    follow.abort();
}
