//! What was acknowledged survives `kill -9`: a real process, killed under load, again and again.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
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

fn start(directory: &Path, port: u16) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mizzen-control-plane"));
    command
        .args(["serve", "--no-controllers", "--data-dir"])
        .arg(directory)
        .args(["--listen", &format!("127.0.0.1:{port}")]);
    Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
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
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let acknowledged = Acknowledged::default();
    let mut newest = 0;
    for round in 0..kills {
        let process = start(directory.path(), port);
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
    let _process = start(directory.path(), port);
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
