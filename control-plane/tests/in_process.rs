//! A control plane in the test's process, without a socket, as those who write controllers use it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail at that place")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{
    Api, DeleteParams, ListParams, LogParams, ObjectMeta, Patch, PatchParams, PostParams,
    WatchParams,
};
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use mizzen_control_plane::ControlPlane;
use mizzen_control_plane::authz::User;
use mizzen_control_plane::control_plane::StartError;
use serde_json::json;

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

fn config_map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([("a".to_owned(), "b".to_owned())])),
        ..ConfigMap::default()
    }
}

async fn makes_and_reads(client: Client) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let made = maps.create(&PostParams::default(), &config_map("one")).await.unwrap();
    assert_eq!(maps.get("one").await.unwrap().resource_version(), made.resource_version());
    let again = maps.create(&PostParams::default(), &config_map("one")).await.unwrap_err();
    assert!(again.to_string().contains("configmaps \"one\" already exists"), "{again}");
}

#[tokio::test]
async fn a_client_has_the_whole_api() {
    let control_plane = ControlPlane::builder().without_controllers().start().await.unwrap();
    makes_and_reads(control_plane.client()).await;
    let version = control_plane.client().apiserver_version().await.unwrap();
    assert_eq!(version.minor, "35");
    control_plane.stop().await;
}

#[tokio::test]
async fn a_watcher_sees_every_change_as_it_is_made() {
    let control_plane = ControlPlane::builder().without_controllers().start().await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(control_plane.client());
    let config = watcher::Config::default().labels("seen=yes").streaming_lists();
    let mut seen = Box::pin(watcher(maps.clone(), config).applied_objects());
    let writes = async {
        for name in ["a", "b"] {
            maps.create(&PostParams::default(), &config_map(name)).await.unwrap();
            let label = Patch::Merge(json!({"metadata": {"labels": {"seen": "yes"}}}));
            maps.patch(name, &PatchParams::default(), &label).await.unwrap();
        }
    };
    let reads = async {
        let mut names = Vec::new();
        while names.len() < 2 {
            names.push(seen.next().await.unwrap().unwrap().name_any());
        }
        names
    };
    let ((), names) = tokio::time::timeout(LIMIT, async { tokio::join!(writes, reads) })
        .await
        .expect("the watch showed both");
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn controllers_make_the_pods_of_a_deployment_and_the_garbage_collector_takes_them_away() {
    let control_plane = ControlPlane::builder().in_memory().start().await.unwrap();
    let client = control_plane.client();
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let there = await_condition(accounts, "default", |it: Option<&ServiceAccount>| it.is_some());
    tokio::time::timeout(LIMIT, there).await.expect("an account in time").unwrap();

    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let web: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "hello"}]},
            },
        },
    }))
    .unwrap();
    deployments.create(&PostParams::default(), &web).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client);
    reaches(&pods, 2).await;
    // There is no node that could have seen them.
    let logs = pods.list(&ListParams::default()).await.unwrap().items[0].name_any();
    let refused = pods.logs(&logs, &LogParams::default()).await.unwrap_err();
    assert!(refused.to_string().contains("asks no nodes"), "{refused}");

    deployments.delete("web", &DeleteParams::foreground()).await.unwrap();
    reaches(&pods, 0).await;
    control_plane.stop().await;
}

/// Waits until there are so many pods.
async fn reaches(pods: &Api<Pod>, count: usize) {
    let mut changes = Box::pin(watcher(pods.clone(), watcher::Config::default()));
    let reached = async {
        while pods.list(&ListParams::default()).await.unwrap().items.len() != count {
            changes.next().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(LIMIT, reached).await.expect("so many pods in time");
}

#[tokio::test]
async fn others_may_do_what_rbac_says() {
    let control_plane = ControlPlane::builder().without_controllers().start().await.unwrap();
    let maps = |client| Api::<ConfigMap>::default_namespaced(client);
    let jane = control_plane.client_as(User::new("jane", &["devs"]));
    let refused = maps(jane.clone()).list(&ListParams::default()).await.unwrap_err();
    let message = r#"User "jane" cannot list resource "configmaps" in API group """#;
    assert!(refused.to_string().contains(message), "{refused}");

    let roles: Api<Role> = Api::default_namespaced(control_plane.client());
    let role: Role = serde_json::from_value(json!({
        "metadata": {"name": "readers"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}],
    }))
    .unwrap();
    roles.create(&PostParams::default(), &role).await.unwrap();
    let bindings: Api<RoleBinding> = Api::default_namespaced(control_plane.client());
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "devs"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "readers"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "devs"}],
    }))
    .unwrap();
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    maps(jane).list(&ListParams::default()).await.expect("the rule holds at once");
}

#[tokio::test]
async fn anonymous_is_in_no_group_of_the_authenticated() {
    let control_plane = ControlPlane::builder().without_controllers().start().await.unwrap();
    // Discovery is for whoever is authenticated, the version for everybody.
    control_plane.client_as(User::new("jane", &[])).list_core_api_versions().await.unwrap();
    let nobody = control_plane.client_as(User::anonymous());
    let refused = nobody.list_core_api_versions().await.unwrap_err();
    assert!(
        refused.to_string().contains(r#"User "system:anonymous" cannot get path"#),
        "{refused}"
    );
    nobody.apiserver_version().await.unwrap();
}

#[tokio::test]
async fn two_of_a_process_have_nothing_in_common() {
    let (one, other) = (
        ControlPlane::builder().without_controllers().start().await.unwrap(),
        ControlPlane::builder().without_controllers().start().await.unwrap(),
    );
    makes_and_reads(one.client()).await;
    makes_and_reads(other.client()).await;
}

#[tokio::test]
async fn a_directory_keeps_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let start = |at: &Path| ControlPlane::builder().without_controllers().in_directory(at).start();
    let control_plane = start(directory.path()).await.unwrap();
    makes_and_reads(control_plane.client()).await;
    control_plane.stop().await;
    let control_plane = start(directory.path()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(control_plane.client());
    assert!(maps.get("one").await.is_ok());
}

#[tokio::test]
async fn ranges_that_cannot_work_start_nothing() {
    let cidrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let builder = ControlPlane::builder().service_cidrs(cidrs(&["10.0.0.0/16", "10.1.0.0/16"]));
    let refused = builder.start().await.err();
    assert!(matches!(refused, Some(StartError::ServiceRanges)), "{refused:?}");
}

#[tokio::test]
async fn watches_end_when_it_is_dropped() {
    let control_plane = ControlPlane::builder().without_controllers().start().await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(control_plane.client());
    let mut watch = Box::pin(maps.watch(&WatchParams::default(), "0").await.unwrap());
    drop(control_plane);
    let ended = async { while watch.next().await.is_some() {} };
    tokio::time::timeout(LIMIT, ended).await.expect("the watch ended");
}
