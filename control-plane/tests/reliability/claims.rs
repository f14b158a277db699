//! What a store that is killed, or lost, means for those who have seen it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use crate::process::{Home, LIMIT};

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
    let home = Home::new();
    // Killed at any point of its first start: what is half made is made whole by the next.
    for millis in [5, 20, 40, 80, 160] {
        let process = home.start();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        drop(process);
    }
    let mut process = home.start();
    let client = home.ready(&mut process).await;
    let api = Api::<Service>::default_namespaced(client.clone());
    api.create(&PostParams::default(), &service("web", "10.96.0.80", 30_080)).await.unwrap();
    let before = addresses(&client).await;
    assert_eq!(before["kubernetes"], ["10.96.0.1"]);
    assert_eq!(before["kube-dns"], ["10.96.0.10", "fd00:96::a"]);
    drop(process);

    let mut process = home.start();
    let client = home.ready(&mut process).await;
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
    let home = Home::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = || {
        let mut command = home.command_on(port);
        command.arg("--in-memory");
        home.spawn(command)
    };
    let mut process = start();
    let client = home.ready(&mut process).await;
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
    let mut process = start();
    home.ready(&mut process).await;
    let deadline = Instant::now() + LIMIT;
    while reader.state().iter().any(|object| object.name_any() == "c0") {
        assert!(Instant::now() < deadline, "objects of the lost store are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    follow.abort();
}
