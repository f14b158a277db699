//! The node's Lease in `kube-node-lease`: the heartbeat that tells the cluster that the node
//! part lives.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// The namespace of node leases.
const NAMESPACE: &str = "kube-node-lease";
/// How long the cluster waits for the next renewal.
const DURATION_SECONDS: i32 = 40;
/// How often it is renewed: a quarter of that.
const RENEW: Duration = Duration::from_secs(10);
/// How long a renewal may take, so that the next comes in time.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Renews the Lease of the node `name` until `stop`.
pub(super) async fn keep(client: Client, name: String, uid: String, stop: CancellationToken) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut ticks = interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        match tokio::time::timeout(TIMEOUT, renew(&api, &name, &uid)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "lease not renewed; trying again"),
            Err(_elapsed) => tracing::warn!("lease not renewed in time; trying again"),
        }
    }
}

async fn renew(api: &Api<Lease>, name: &str, uid: &str) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {
        "holderIdentity": name,
        "leaseDurationSeconds": DURATION_SECONDS,
        "renewTime": now,
    }});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            api.create(&PostParams::default(), &lease(name, uid, now)).await.map(drop)
        }
        outcome => outcome.map(drop),
    }
}

/// The Lease, owned by its Node so that it goes with it.
fn lease(name: &str, uid: &str, renewed: MicroTime) -> Lease {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    };
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(renewed),
            ..LeaseSpec::default()
        }),
    }
}
