//! `ServiceAccount`: a pod has an account that exists, and its containers the account's token,
//! the cluster's CA and the name of their namespace as files.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::node_restriction::MIRROR;
use crate::api::create::LETTERS;
use crate::api::status::{Failure, Result};
use crate::api::{Api, encode};
use crate::registry::{Kind, Object};

/// The account of pods that say none.
const DEFAULT: &str = "default";
/// Where containers find the files.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What the name of the volume begins with.
const VOLUME: &str = "kube-api-access-";
/// For how long a token holds: an hour, and some seconds by which it is told from others.
const SECONDS: i64 = 3607;
/// For how long the account of a namespace that is new is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

impl Api {
    /// Gives a new pod its account and its token.
    pub(super) async fn admit_account(&self, kind: &Kind, pod: &mut Object) -> Result<()> {
        let mirror = pod.at("/metadata/annotations").is_some_and(|all| all.get(MIRROR).is_some());
        if mirror {
            return Ok(());
        }
        if pod.text("/spec/serviceAccountName").is_empty() {
            let old_name = pod.text("/spec/serviceAccount");
            let name = if old_name.is_empty() { DEFAULT } else { old_name }.to_owned();
            pod.set("/spec/serviceAccountName", name);
        }
        pod.set("/spec/serviceAccount", pod.text("/spec/serviceAccountName").to_owned());
        if self.disabled.service_account {
            return Ok(());
        }
        let name = pod.text("/spec/serviceAccountName").to_owned();
        let Some(account) = self.account(pod.namespace(), &name).await? else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                pod.namespace()
            );
            return Err(Failure::forbidden(kind, pod.name(), &why));
        };
        if pod.list("/spec/imagePullSecrets").is_empty()
            && let Some(secrets) = account.at("/imagePullSecrets")
        {
            pod.set("/spec/imagePullSecrets", secrets.clone());
        }
        let automount = |object: &Object, at: &str| object.at(at).and_then(Value::as_bool);
        let wanted = automount(pod, "/spec/automountServiceAccountToken")
            .or_else(|| automount(&account, "/automountServiceAccountToken"));
        if wanted != Some(false) {
            mount_token(pod);
        }
        Ok(())
    }

    /// The account; that of a namespace that was just made may come a moment later.
    async fn account(&self, namespace: &str, name: &str) -> Result<Option<Object>> {
        let key = format!("core/serviceaccounts/{namespace}/{name}");
        let mut watch = self.store.watch(&key, self.store.revision().await?).await?;
        let waiting = async {
            loop {
                if let Some(entry) = self.store.get(&key).await? {
                    return encode::object(&entry).map(Some);
                }
                if name != DEFAULT {
                    return Ok(None);
                }
                watch.changed().await?;
                watch.take()?;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or(Ok(None))
    }
}

/// Adds the volume and mounts it in all containers that have nothing there.
fn mount_token(pod: &mut Object) {
    let known = pod.list("/spec/volumes").iter().find_map(|volume| {
        let name = volume["name"].as_str()?;
        let ours = name.starts_with(VOLUME) && !volume["projected"].is_null();
        ours.then(|| name.to_owned())
    });
    let name = known.clone().unwrap_or_else(volume_name);
    let mut mounted = false;
    for list in ["/spec/initContainers", "/spec/containers"] {
        let Some(Value::Array(containers)) = pod.at_mut(list) else { continue };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Value::Array(mounts) = mounts else { continue };
            if mounts.iter().all(|mount| mount["mountPath"] != MOUNT) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT}));
                mounted = true;
            }
        }
    }
    if mounted && known.is_none() {
        let mut volumes = pod.list("/spec/volumes").to_vec();
        volumes.push(volume(&name));
        pod.set("/spec/volumes", volumes);
    }
}

fn volume_name() -> String {
    let random = Uuid::new_v4().into_bytes();
    let letter = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
    format!("{VOLUME}{}", random[..5].iter().map(letter).collect::<String>())
}

fn volume(name: &str) -> Value {
    let namespace = json!({"apiVersion": "v1", "fieldPath": "metadata.namespace"});
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": namespace}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inv_116_every_container_has_the_token_once() {
        let own = json!([{"name": "mine", "mountPath": MOUNT}]);
        let pod = json!({"spec": {"initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": own}]}});
        let mut pod = Object::new(pod).unwrap();
        mount_token(&mut pod);
        let once = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, once);
        let volumes = pod.list("/spec/volumes");
        assert_eq!(volumes.len(), 1);
        let name = volumes[0]["name"].as_str().unwrap();
        assert!(name.starts_with("kube-api-access-") && name.len() == 21, "{name}");
        let mount = json!([{"name": name, "readOnly": true, "mountPath": MOUNT}]);
        assert_eq!(pod.at("/spec/initContainers/0/volumeMounts"), Some(&mount));
        assert_eq!(pod.at("/spec/containers/0/volumeMounts"), Some(&mount));
        assert_eq!(pod.at("/spec/containers/1/volumeMounts"), Some(&own));
        let source = &volumes[0]["projected"]["sources"][0]["serviceAccountToken"];
        assert_eq!(source, &json!({"expirationSeconds": 3607, "path": "token"}));
    }
}
