//! A controller that somebody wrote with kube-rs, against the API server.

use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;

use crate::cluster::{Cluster, until};

/// Keeps a Secret with the data of each ConfigMap that asks for it.
async fn reconcile(map: Arc<ConfigMap>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let secrets: Api<Secret> = Api::default_namespaced((*client).clone());
    let name = map.name_any();
    let secret = json!({
        "metadata": {"name": name, "ownerReferences": [map.controller_owner_ref(&())]},
        "stringData": map.data,
    });
    if secrets.get_opt(&name).await?.is_some() {
        let change = Patch::Merge(json!({"stringData": map.data}));
        secrets.patch(&name, &PatchParams::default(), &change).await?;
    } else {
        let secret: Secret = serde_json::from_value(secret).map_err(kube::Error::SerdeError)?;
        secrets.create(&PostParams::default(), &secret).await?;
    }
    Ok(Action::await_change())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_of_kube_rs_follows_what_it_owns() {
    let cluster = Cluster::start(0).await;
    let maps: Api<ConfigMap> = cluster.api();
    let secrets: Api<Secret> = cluster.api();
    let asked = watcher::Config::default().labels("secret=yes").streaming_lists();
    let controller = Controller::new(maps.clone(), asked)
        .owns(secrets.clone(), watcher::Config::default())
        .run(reconcile, |_, _, _| Action::await_change(), Arc::new(cluster.client.clone()))
        .for_each(|_| async {});
    let controller = tokio::spawn(controller);
    let holds = async |wanted: &str| {
        until("the secret", async || {
            let secret = secrets.get_opt("a").await.unwrap();
            let data = secret.and_then(|secret| secret.data?.remove("x"));
            let found = data.map(|data| String::from_utf8(data.0).unwrap());
            if found.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    let map = |value: &str| json!({"metadata": {"name": "a", "labels": {"secret": "yes"}}, "data": {"x": value}});
    cluster.create::<ConfigMap>(map("1")).await;
    holds("1").await;
    cluster.merge::<ConfigMap>("a", map("2")).await;
    holds("2").await;
    // What it owns is looked after.
    let first = secrets.get("a").await.unwrap().uid();
    cluster.delete::<Secret>("a").await;
    until("another secret", async || {
        let found = secrets.get_opt("a").await.unwrap().and_then(|secret| secret.uid());
        if found.is_some() && found != first { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    cluster.delete::<ConfigMap>("a").await;
    until("no secret", async || {
        let found = secrets.get_opt("a").await.unwrap();
        found.map_or(Ok(()), |secret| Err(format!("{secret:?}")))
    })
    .await;
    controller.abort();
}

/// Kinds that no controller but the garbage collector looks at; and an owner of no namespace.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_owned_by_any_kind_goes_with_it() {
    let cluster = Cluster::start(0).await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let volume = json!({
        "metadata": {"name": "owner"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/nowhere"},
        },
    });
    let volume = serde_json::from_value(volume).unwrap();
    let owner = volumes.create(&PostParams::default(), &volume).await.unwrap();
    let owned = |name: &str| json!({"name": name, "ownerReferences": [owner.owner_ref(&())]});
    cluster.create::<Role>(json!({"metadata": owned("role"), "rules": []})).await;
    cluster
        .create::<NetworkPolicy>(json!({"metadata": owned("policy"), "spec": {"podSelector": {}}}))
        .await;
    cluster.create::<Secret>(json!({"metadata": {"name": "of-nobody"}})).await;
    volumes.delete("owner", &DeleteParams::default()).await.unwrap();
    let (roles, policies): (Api<Role>, Api<NetworkPolicy>) = (cluster.api(), cluster.api());
    until("neither role nor policy", async || {
        let role = roles.get_opt("role").await.unwrap();
        let policy = policies.get_opt("policy").await.unwrap();
        if role.is_none() && policy.is_none() {
            Ok(())
        } else {
            Err(format!("{role:?} {policy:?}"))
        }
    })
    .await;
    assert!(cluster.api::<Secret>().get_opt("of-nobody").await.unwrap().is_some());
}
