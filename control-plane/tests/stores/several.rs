//! Several control planes over one etcd.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{Api, ListParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use mizzen_control_plane::ControlPlane;
use serde_json::json;

use crate::server::{LIMIT, Server};

async fn api_over(server: &Server) -> ControlPlane {
    let store = Arc::new(server.store().await);
    ControlPlane::builder().over(store).without_controllers().start().await.unwrap()
}

async fn elected_over(server: &Server, identity: &str) -> ControlPlane {
    let store = Arc::new(server.store().await);
    ControlPlane::builder().over(store).elected_as(identity.to_owned()).start().await.unwrap()
}

/// Waits until a look at the cluster is as wanted.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let reached = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reached = tokio::time::timeout(LIMIT, reached).await;
    assert!(reached.is_ok(), "not in time: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_by_one_is_watched_by_the_other() {
    let server = Server::start().await;
    let (one, other) = (api_over(&server).await, api_over(&server).await);
    let maps = |control_plane: &ControlPlane| -> Api<ConfigMap> {
        Api::default_namespaced(control_plane.client())
    };
    let seen = watcher(maps(&other), watcher::Config::default()).applied_objects();
    let names = seen.map_ok(|map| map.name_any()).take(20).try_collect::<BTreeSet<_>>();
    let writes = async {
        for number in 0..20 {
            let map = serde_json::from_value(json!({"metadata": {"name": format!("m{number}")}}));
            maps(&one).create(&PostParams::default(), &map.unwrap()).await.unwrap();
        }
    };
    let (names, ()) = tokio::time::timeout(LIMIT, async { tokio::join!(names, writes) })
        .await
        .expect("all seen in time");
    assert_eq!(names.unwrap().len(), 20);
    assert_eq!(maps(&other).list(&ListParams::default()).await.unwrap().items.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_and_no_port_is_given_to_two() {
    let server = Server::start().await;
    let (one, other) = (api_over(&server).await, api_over(&server).await);
    let make = async |client: Client, from: &str| {
        let services: Api<Service> = Api::default_namespaced(client);
        let mut given = Vec::new();
        for number in 0..15 {
            let service = serde_json::from_value(json!({
                "metadata": {"name": format!("{from}{number}")},
                "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80}]},
            }));
            let made = services.create(&PostParams::default(), &service.unwrap()).await.unwrap();
            let spec = made.spec.unwrap();
            let port = spec.ports.unwrap()[0].node_port.unwrap();
            given.push((spec.cluster_ip.unwrap(), port));
        }
        given
    };
    let (some, others) = tokio::join!(make(one.client(), "a"), make(other.client(), "b"));
    let all: Vec<_> = some.into_iter().chain(others).collect();
    let addresses: BTreeSet<_> = all.iter().map(|(address, _)| address).collect();
    let ports: BTreeSet<_> = all.iter().map(|(_, port)| port).collect();
    assert_eq!((addresses.len(), ports.len()), (30, 30), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_one_adds_is_given_out_by_both_and_each_address_once() {
    let server = Server::start().await;
    let (one, other) = (api_over(&server).await, api_over(&server).await);
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/29"]}});
    let range: ServiceCIDR = serde_json::from_value(range).unwrap();
    let ranges: Api<ServiceCIDR> = Api::all(one.client());
    ranges.create(&PostParams::default(), &range).await.unwrap();
    let take = async |client: Client, from: &str| {
        let services: Api<Service> = Api::default_namespaced(client);
        let mut given = Vec::new();
        for number in 1..=6 {
            let address = format!("10.97.0.{number}");
            let service = serde_json::from_value(json!({
                "metadata": {"name": format!("{from}{number}")},
                "spec": {"clusterIP": address, "ports": [{"port": 80}]},
            }));
            if services.create(&PostParams::default(), &service.unwrap()).await.is_ok() {
                given.push(address);
            }
        }
        given
    };
    let (some, others) = tokio::join!(take(one.client(), "a"), take(other.client(), "b"));
    let all: Vec<_> = some.into_iter().chain(others).collect();
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (6, 6), "{all:?}");
    let addresses: Api<IPAddress> = Api::all(other.client());
    let listed = addresses.list(&ListParams::default()).await.unwrap();
    let named = listed.iter().map(kube::ResourceExt::name_any);
    assert_eq!(named.filter(|name| name.starts_with("10.97.0.")).count(), 6);
}

async fn holder(client: &Client, lease: &str) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    let lease = leases.get_opt(lease).await.unwrap()?;
    lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_runs_the_controllers_and_the_next_goes_on_when_it_stops() {
    let server = Server::start().await;
    let one = elected_over(&server, "one").await;
    let client = one.client();
    until("one leads", async || holder(&client, "kube-controller-manager").await.is_some()).await;
    let other = elected_over(&server, "other").await;
    let client = other.client();
    assert_eq!(holder(&client, "kube-controller-manager").await.as_deref(), Some("one"));
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    until("there is an account", async || accounts.get_opt("default").await.unwrap().is_some())
        .await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    deploy(&client, "first", 3).await;
    until("three pods", async || count(&pods).await == 3).await;

    one.stop().await;
    for lease in ["kube-controller-manager", "kube-scheduler"] {
        let taken = async || holder(&client, lease).await.as_deref() == Some("other");
        until("the other leads", taken).await;
    }
    deploy(&client, "second", 2).await;
    until("two more pods", async || count(&pods).await == 5).await;
    let leases: Api<Lease> = Api::namespaced(client, "kube-system");
    let lease = leases.get("kube-controller-manager").await.unwrap();
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(1));
}

async fn count(pods: &Api<Pod>) -> usize {
    pods.list(&ListParams::default()).await.unwrap().items.len()
}

async fn deploy(client: &Client, name: &str, replicas: u32) {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let deployment = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "a", "image": "hello"}]},
            },
        },
    }));
    deployments.create(&PostParams::default(), &deployment.unwrap()).await.unwrap();
}
