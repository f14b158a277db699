//! Registering the node: its object is made where it is missing, and else keeps what others have
//! put there; only our labels are brought up to date. Taints are never touched.

use std::{collections::BTreeMap, time::Duration};

use base64::Engine as _;
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::machine;
use crate::api::CERTIFICATE_ANNOTATION;

/// The first wait after an attempt that failed; it doubles up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(200);
/// The longest wait.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What we put into the Node object.
pub(super) struct Own<'a> {
    /// Its name.
    pub name: &'a str,
    /// Labels beside those that every node has.
    pub labels: &'a [(String, String)],
    /// The certificate that our server shows, in DER.
    pub certificate: &'a [u8],
}

/// Registers the node, trying until the API agrees. Gives the node's uid; `None` at `stop`.
pub(super) async fn register(
    client: &Client,
    own: &Own<'_>,
    stop: &CancellationToken,
) -> Option<String> {
    let api: Api<Node> = Api::all(client.clone());
    let Own { name, .. } = own;
    let mut wait = RETRY;
    loop {
        match once(&api, own).await {
            Ok(node) => return Some(node.metadata.uid.unwrap_or_default()),
            Err(error) => tracing::warn!(%error, node = name, "node not registered; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_MAX),
            () = stop.cancelled() => return None,
        }
    }
}

async fn once(api: &Api<Node>, own: &Own<'_>) -> Result<Node, kube::Error> {
    let name = own.name;
    let labels = all_labels(name, own.labels);
    let certificate = base64::engine::general_purpose::STANDARD.encode(own.certificate);
    let annotations = BTreeMap::from([(CERTIFICATE_ANNOTATION.to_owned(), certificate)]);
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(labels.clone()),
        annotations: Some(annotations.clone()),
        ..ObjectMeta::default()
    };
    let node = Node { metadata, ..Node::default() };
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
        }
        outcome => outcome,
    }
}

/// The labels that every node has, and those that were given.
fn all_labels(name: &str, given: &[(String, String)]) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine::architecture()),
    ];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(given.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_own_labels_and_those_that_were_given() {
        let labels = all_labels("node-1", &[("zone".into(), "a".into())]);
        assert_eq!(labels["kubernetes.io/hostname"], "node-1");
        assert_eq!(labels["kubernetes.io/os"], "linux");
        assert_eq!(labels["zone"], "a");
        assert!(labels.contains_key("kubernetes.io/arch"));
    }
}
