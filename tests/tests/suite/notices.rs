//! What operators are told of a node, at the real API server, by an agent with the rights of its
//! manifest alone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        core::v1::{Node, ServiceAccount},
        events::v1::Event,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    serde::de::DeserializeOwned,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use mizzen_agent::{
    kube::{
        client::ApiServers,
        notices::tell::{self, CONDITION, PART},
    },
    status::{Board, State},
};
use mizzen_control_plane::serve::Server;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use xtask::deploy;

use super::watch::serve;

/// Longer than a part may be other than ready before it is told.
const LIMIT: Duration = Duration::from_mins(1);
const NAMESPACE: &str = "kube-system";

/// The object of this kind in `deploy/mizzen.yaml`.
fn manifest<K: DeserializeOwned>(kind: &str) -> K {
    let objects = deploy::agent_objects();
    let found = objects.into_iter().find(|object| object["kind"] == kind);
    serde_json::from_value(found.expect(kind)).unwrap()
}

/// Makes the account with its rights; a kubeconfig with its token.
async fn account(server: &Server, admin: &Client, folder: &Path) -> PathBuf {
    let params = PostParams::default();
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), NAMESPACE);
    let account: ServiceAccount = manifest("ServiceAccount");
    accounts.create(&params, &account).await.unwrap();
    Api::<ClusterRole>::all(admin.clone()).create(&params, &manifest("ClusterRole")).await.unwrap();
    Api::<ClusterRoleBinding>::all(admin.clone())
        .create(&params, &manifest("ClusterRoleBinding"))
        .await
        .unwrap();
    let name = account.metadata.name.unwrap();
    let wanted: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": []}})).unwrap();
    let given = accounts.create_token_request(&name, &params, &wanted).await.unwrap();
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {
            "server": format!("https://{}", server.addresses[0]),
            "certificate-authority": server_ca(server),
        }}],
        "users": [{"name": "u", "user": {"token": given.status.unwrap().token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    let path = folder.join("agent.kubeconfig");
    std::fs::write(&path, text.to_string()).unwrap();
    path
}

fn server_ca(server: &Server) -> PathBuf {
    server.kubeconfig.parent().unwrap().join("pki/ca.crt")
}

/// The node's condition, as it is.
async fn condition(admin: &Client) -> Value {
    let node = Api::<Node>::all(admin.clone()).get("node-1").await.unwrap();
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let found = conditions.into_iter().find(|one| one.type_ == CONDITION);
    serde_json::to_value(found).unwrap()
}

/// Reason and type of each event about the node.
async fn events(admin: &Client) -> Vec<(String, String, String)> {
    let events: Api<Event> = Api::namespaced(admin.clone(), "default");
    let listed = events.list(&ListParams::default()).await.unwrap().items;
    let about = |event: &Event| {
        event.regarding.as_ref().is_some_and(|it| it.name.as_deref() == Some("node-1"))
    };
    let text = |text: Option<String>| text.unwrap_or_default();
    let told = listed.into_iter().filter(about);
    let mut told: Vec<_> =
        told.map(|event| (text(event.reason), text(event.type_), text(event.note))).collect();
    told.sort();
    told
}

async fn until<T>(
    what: &str,
    board: &Board,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let mut seen = String::new();
    let looked = async {
        loop {
            match look().await {
                Ok(found) => return found,
                Err(other) => seen = other,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(LIMIT, looked).await;
    found.unwrap_or_else(|_| panic!("waited for {what}: {seen} {:?}", board.parts()))
}

#[test]
fn what_an_operator_must_act_on_is_told_with_the_manifests_rights() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(folder.path(), ([127, 0, 0, 1], 0).into()).await;
        let servers = ApiServers::new(Some(&server.kubeconfig), &[]).await.unwrap();
        let admin = servers.clients().unwrap().pick(0).client;
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "node-1"}})).unwrap();
        Api::all(admin.clone()).create(&PostParams::default(), &node).await.unwrap();
        let kubeconfig = account(&server, &admin, folder.path()).await;
        let servers = ApiServers::new(Some(&kubeconfig), &[]).await.unwrap();

        let (board, cancel) = (Arc::<Board>::default(), CancellationToken::new());
        board.report("dns", State::Ready);
        let clients = servers.clients().unwrap();
        let task = tell::run("node-1".to_owned(), clients, board.clone(), cancel.clone());
        let task = tokio::spawn(task);
        let first = until("the condition", &board, async || match condition(&admin).await {
            found if found["status"] == "True" => Ok(found),
            other => Err(other.to_string()),
        })
        .await;
        assert_eq!(first["reason"], "AllPartsReady", "{first}");
        assert!(first["lastTransitionTime"].is_string(), "{first}");
        assert_eq!(events(&admin).await, []);

        board.report("dns", State::Waiting("port 53 is taken; free it".into()));
        let warned = until("a warning", &board, async || match &events(&admin).await[..] {
            [one] => Ok(one.clone()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let text = |text: &str| text.to_owned();
        let note = "dns: port 53 is taken; free it";
        assert_eq!(warned, (text("PartWaits"), text("Warning"), text(note)));
        let found =
            until("the condition to change", &board, async || match condition(&admin).await {
                found if found["status"] == "False" => Ok(found),
                other => Err(other.to_string()),
            })
            .await;
        assert_eq!((&found["reason"], &found["message"]), (&json!("Dns"), &json!(note)));

        board.report("dns", State::Ready);
        until("all to be well", &board, async || {
            let (found, told) = (condition(&admin).await, events(&admin).await);
            let well = found["status"] == "True" && told.len() == 2;
            let is_normal =
                told.first().is_some_and(|one| one.0 == "PartReady" && one.1 == "Normal");
            if well && is_normal { Ok(()) } else { Err(format!("{found} {told:?}")) }
        })
        .await;
        assert_eq!(board.parts().get(PART), Some(&State::Ready));
        cancel.cancel();
        task.await.unwrap().unwrap();
        server.stop().await;
    });
}
