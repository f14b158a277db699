//! The ServiceCIDR of the flags, and addresses as an earlier version has claimed them.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::{Api, How, Part, Result, Target, ensure, internal};
use crate::api::{clock, encode};
use crate::registry::service::addresses;
use crate::store::{Action, Event, Expect, Op, Query, StoreError};

/// What earlier versions claimed addresses by: a key of the address, with namespace and name of
/// the Service.
const OLD_CLAIMS: &str = "claims/clusterips/";
/// How many of these a commit converts: etcd takes 128 operations at a time.
const BATCH: usize = 50;
/// When to try again where the ServiceCIDR of the flags could not be looked after.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the ServiceCIDR of the flags is.
fn range_target(api: &Api) -> Result<Target> {
    let kind = api.registry.resource("networking.k8s.io", "v1", "servicecidrs");
    Ok(Target {
        kind: kind.ok_or_else(|| internal("no such kind"))?,
        namespace: String::new(),
        name: "kubernetes".to_owned(),
        subresource: String::new(),
    })
}

impl Api {
    /// Makes the ServiceCIDR of the flags anew whenever it goes, until the server stops. The API
    /// server does that and no controller: it knows the flags, and gives out the addresses.
    pub async fn keep_range(&self) {
        loop {
            let outcome = tokio::select! {
                () = self.shutdown.cancelled() => return,
                outcome = hold_range(self) => outcome,
            };
            let Err(failure) = outcome else { continue };
            tracing::warn!(
                reason = %failure.status()["message"],
                "cannot look after the ServiceCIDR kubernetes; while it is gone Services get no addresses of its ranges, and it is tried again every second"
            );
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

/// Makes the ServiceCIDR of the flags if it is not there, and waits until it goes.
async fn hold_range(api: &Api) -> Result<()> {
    let key = range_target(api)?.key();
    // Followed from before the look: it may go right after.
    let now = api.store.revision().await?;
    let mut watch = api.store.watch(&key, now).await?;
    if api.store.get(&key).await?.is_none() {
        match ensure_range(api).await {
            // Another server over the same store was the first to make it.
            Err(failure) if failure.code() == StatusCode::CONFLICT => {}
            outcome => outcome?,
        }
    }
    loop {
        watch.changed().await?;
        match watch.take() {
            Ok(progress) if progress.events.iter().any(|event| is_end_of(event, &key)) => {
                return Ok(());
            }
            Ok(_) => {}
            // More happened than the history has: it may be among that.
            Err(StoreError::Compacted { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_end_of(event: &Event, key: &str) -> bool {
    *event.key == *key && event.entry.is_none()
}

/// Makes the ServiceCIDR of the flags, or has a second family join the first there.
pub(super) async fn ensure_range(api: &Api) -> Result<()> {
    let wanted: Vec<String> = api.ranges.addresses.iter().map(ToString::to_string).collect();
    let wanted = json!(wanted);
    let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": wanted}});
    ensure(api, ("networking.k8s.io", "servicecidrs"), "", range).await?;
    let target = range_target(api)?;
    let how = How::default();
    let joined = api.rewrite(&target, Part::Main, &how, |old| {
        let mut new = old.clone();
        if old.list("/spec/cidrs").len() == 1 && old.at("/spec/cidrs/0") == wanted.get(0) {
            new.set("/spec/cidrs", wanted.clone());
        }
        Ok(new)
    });
    let found = joined.await?;
    if found.at("/spec/cidrs") != Some(&wanted) {
        let stored = found.at("/spec/cidrs").unwrap_or(&Value::Null);
        tracing::warn!(
            %stored, flags = %wanted,
            "the ServiceCIDR kubernetes has other ranges than the flags; Services get addresses of those that are stored: change the flags, or delete it and have it made anew"
        );
        return Ok(());
    }
    let said = api.rewrite(&target, Part::Status, &how, |old| {
        let mut new = old.clone();
        if old.list("/status/conditions").is_empty() && !old.is_terminating() {
            let ready = json!({
                "type": "Ready",
                "status": "True",
                "reason": "",
                "message": "Kubernetes default Service CIDR is ready",
                "lastTransitionTime": clock::format(clock::now()),
            });
            new.set("/status/conditions", json!([ready]));
        }
        Ok(new)
    });
    said.await.map(drop)
}

/// Makes IPAddresses of the claims of an earlier version.
pub(super) async fn convert_claims(api: &Api) -> Result<()> {
    loop {
        let query = Query { prefix: OLD_CLAIMS, after: None, limit: Some(BATCH), at: None };
        let claims = api.store.range(query).await?.entries;
        if claims.is_empty() {
            return Ok(());
        }
        let mut ops = Vec::new();
        for (key, claim) in claims {
            let address = key.strip_prefix(OLD_CLAIMS).and_then(|text| text.parse().ok());
            let owner = format!("core/services/{}", String::from_utf8_lossy(&claim.value));
            if let (Some(address), Some(entry)) = (address, api.store.get(&owner).await?) {
                ops.extend(addresses::restored(&encode::object(&entry)?, address));
            }
            let expect = Expect::Modified(claim.modified);
            ops.push(Op { key, expect, action: Action::Delete });
        }
        match api.store.commit(ops).await {
            // Another server does the same.
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::registry::service::Ranges;
    use crate::store::{Embedded, Options, Store};

    fn put(key: &str, value: &str) -> Op {
        let action = Action::Put(value.to_owned().into());
        Op { key: key.into(), expect: Expect::Any, action }
    }

    #[tokio::test]
    async fn claims_of_an_earlier_version_become_addresses() {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory(&Options::default()));
        let ranges = Ranges { addresses: vec![], node_ports: 30_000..=32_767 };
        let api = Api::new(Arc::clone(&store), ranges, CancellationToken::new());
        let mut ops = vec![put("claims/nodeports/30001", "default/s1")];
        for number in 1..=120 {
            let service = json!({
                "metadata": {"name": format!("s{number}"), "namespace": "default"},
                "spec": {"clusterIPs": [format!("10.96.0.{number}")]},
            });
            ops.push(put(&format!("core/services/default/s{number}"), &service.to_string()));
            ops.push(put(&format!("{OLD_CLAIMS}10.96.0.{number}"), &format!("default/s{number}")));
        }
        // What nobody has any more, and what is no claim.
        ops.push(put(&format!("{OLD_CLAIMS}10.96.0.200"), "default/gone"));
        ops.push(put(&format!("{OLD_CLAIMS}10.96.0.201"), "default/s1"));
        ops.push(put(&format!("{OLD_CLAIMS}nonsense"), "default/s1"));
        store.commit(ops).await.unwrap();
        convert_claims(&api).await.unwrap();
        let entries = async |prefix: &str| {
            let query = Query { prefix, after: None, limit: None, at: None };
            store.range(query).await.unwrap().entries
        };
        assert_eq!(entries(OLD_CLAIMS).await.len(), 0);
        assert_eq!(entries("claims/").await.len(), 1);
        let made = entries("networking.k8s.io/ipaddresses/").await;
        assert_eq!(made.len(), 120);
        for (key, entry) in made {
            let object = encode::object(&entry).unwrap();
            let number = object.name().rsplit('.').next().unwrap();
            assert!(key.ends_with(object.name()), "{key}");
            assert_eq!(object.text("/spec/parentRef/name"), format!("s{number}"));
        }
    }
}
