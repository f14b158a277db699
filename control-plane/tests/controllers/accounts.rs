//! What every namespace and pod has of service accounts, and aggregated cluster roles.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, until};

async fn applied<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

/// `[sig-auth] ServiceAccounts should guarantee kube-root-ca.crt exist in any namespace`, and the
/// account `default` with it.
#[tokio::test]
async fn inv_116_every_namespace_has_an_account_and_the_root_ca() {
    let cluster = Cluster::start(0).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    applied(&namespaces, json!({"metadata": {"name": "new"}})).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "new");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "new");
    let certificate = async || {
        let map = maps.get_opt("kube-root-ca.crt").await.unwrap();
        let data = map.and_then(|map| map.data).unwrap_or_default();
        let found = data.get("ca.crt").cloned().unwrap_or_default();
        if found.contains("BEGIN CERTIFICATE") { Ok(found) } else { Err(format!("{data:?}")) }
    };
    let account = async || {
        accounts.get_opt("default").await.unwrap().ok_or_else(|| "there is none".to_owned())
    };
    let first = until("the account", account).await;
    let published = until("the certificate", certificate).await;
    // They come back, as they were.
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.unwrap();
    assert_ne!(until("the account again", account).await.uid(), first.uid());
    assert_eq!(until("the certificate again", certificate).await, published);
    let wrong = Patch::Merge(json!({"data": {"ca.crt": "wrong", "more": "x"}}));
    maps.patch("kube-root-ca.crt", &PatchParams::default(), &wrong).await.unwrap();
    assert_eq!(until("the certificate put right", certificate).await, published);
    // And go with the namespace.
    namespaces.delete("new", &DeleteParams::default()).await.unwrap();
    until("the namespace to go", async || match namespaces.get_opt("new").await.unwrap() {
        None => Ok(()),
        Some(namespace) => Err(format!("{:?}", namespace.status)),
    })
    .await;
}

/// `[sig-auth] ServiceAccounts should allow opting out of API token automount`.
#[tokio::test]
async fn inv_116_pods_get_their_accounts_token_unless_they_opt_out() {
    let cluster = Cluster::start(0).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "default");
    let account = |name: &str, automount: bool| json!({"metadata": {"name": name}, "automountServiceAccountToken": automount});
    applied(&accounts, account("mount", true)).await;
    applied(&accounts, account("nomount", false)).await;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    let pod = |name: &str, account: &str, automount: Option<bool>| {
        json!({"metadata": {"name": name}, "spec": {
            "serviceAccountName": account, "automountServiceAccountToken": automount,
            "containers": [{"name": "a", "image": "hello"}]}})
    };
    for (name, account, automount, mounted) in [
        ("default", "default", None, true),
        ("mount", "mount", None, true),
        ("mount-but-not", "mount", Some(false), false),
        ("nomount", "nomount", None, false),
        ("nomount-but-do", "nomount", Some(true), true),
    ] {
        let made = applied(&pods, pod(name, account, automount)).await;
        let spec = made.spec.unwrap();
        let mounts = spec.containers[0].volume_mounts.clone().unwrap_or_default();
        let paths: Vec<&str> = mounts.iter().map(|mount| mount.mount_path.as_str()).collect();
        let expected: &[&str] =
            if mounted { &["/var/run/secrets/kubernetes.io/serviceaccount"] } else { &[] };
        assert_eq!(paths, expected, "{name}");
    }
    let nobody = serde_json::from_value(pod("nobody", "none", None)).unwrap();
    let refused = pods.create(&PostParams::default(), &nobody).await.unwrap_err().to_string();
    let expected = "pods \"nobody\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found";
    assert!(refused.contains(expected), "{refused}");
}

#[tokio::test]
async fn a_cluster_role_that_is_labelled_becomes_a_part_of_others() {
    let cluster = Cluster::start(0).await;
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    let part = json!({
        "metadata": {"name": "part", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["things"], "verbs": ["get"]}],
    });
    applied(&roles, part).await;
    let has = async |name: &str, wanted: bool| {
        until("the rules", async || {
            let rules = roles.get(name).await.unwrap().rules.unwrap_or_default();
            let found = rules.iter().any(|rule| {
                rule.api_groups.as_ref().is_some_and(|groups| groups == &["example.com"])
            });
            if found == wanted { Ok(()) } else { Err(format!("{name}: {found}")) }
        })
        .await;
    };
    for name in ["view", "edit", "admin"] {
        has(name, true).await;
    }
    roles.delete("part", &DeleteParams::default()).await.unwrap();
    for name in ["view", "edit", "admin"] {
        has(name, false).await;
    }
}
