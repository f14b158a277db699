//! Objects that go by themselves: events, an hour after they were last seen.

use std::time::Duration;

use super::{Api, clock, encode};
use crate::registry::{Kind, Object};
use crate::store::{Action, Expect, Op, Query, StoreError};

/// How often what has expired is looked for.
const EVERY: Duration = Duration::from_mins(1);

impl Api {
    /// Removes what has expired, until the server stops.
    pub async fn expire(&self) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            for kind in self.registry.kinds() {
                if let Some(seconds) = kind.time_to_live
                    && let Err(reason) = self.expire_kind(kind, clock::now() - seconds).await
                {
                    tracing::warn!(kind = kind.kind, %reason, "cannot remove what has expired");
                }
            }
        }
    }

    /// Removes the objects of a kind that say nothing newer than `before`.
    pub(super) async fn expire_kind(&self, kind: &Kind, before: i64) -> Result<usize, StoreError> {
        let prefix = kind.prefix(None);
        let page =
            self.store.range(Query { prefix: &prefix, after: None, limit: None, at: None }).await?;
        let mut removed = 0;
        for (key, entry) in page.entries {
            let expired = encode::object(&entry).is_ok_and(|object| last_seen(&object) < before);
            if !expired {
                continue;
            }
            // Written again meanwhile: then it lives on.
            let expect = Expect::Modified(entry.modified);
            match self.store.commit(vec![Op { key, expect, action: Action::Delete }]).await {
                Ok(_) => removed += 1,
                Err(StoreError::Conflict { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(removed)
    }
}

/// When the object was last seen or made, in seconds since 1970.
fn last_seen(object: &Object) -> i64 {
    let times =
        ["/metadata/creationTimestamp", "/lastTimestamp", "/eventTime", "/series/lastObservedTime"];
    times.iter().filter_map(|pointer| clock::parse(object.text(pointer))).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::registry::service::Ranges;
    use crate::store::{Embedded, Options, Store};

    #[tokio::test]
    async fn events_last_an_hour_from_when_they_were_last_seen() {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory(&Options::default()));
        let ranges = Ranges { addresses: vec![], node_ports: 30_000..=32_767 };
        let api = Api::new(Arc::clone(&store), ranges, CancellationToken::new());
        let kind = api.registry.resource("", "v1", "events").unwrap();
        let put = |name: &str, seen: &str| {
            let event = json!({"metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "lastTimestamp": seen});
            let value = encode::to_bytes(&Object::new(event).unwrap());
            store.commit(vec![Op {
                key: kind.key("default", name).into(),
                expect: Expect::Any,
                action: Action::Put(value),
            }])
        };
        put("old", "2026-01-01T00:10:00Z").await.unwrap();
        put("seen-again", "2026-01-01T02:00:00Z").await.unwrap();
        let before = clock::parse("2026-01-01T01:00:00Z").unwrap();
        assert_eq!(api.expire_kind(kind, before).await.unwrap(), 1);
        assert!(store.get(&kind.key("default", "old")).await.unwrap().is_none());
        assert!(store.get(&kind.key("default", "seen-again")).await.unwrap().is_some());
        assert_eq!(kind.time_to_live, Some(3600));
    }
}
