//! The one watch of everything: takes what etcd has committed, whoever wrote it, into the state
//! of this process. And the task that makes etcd give old revisions up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::{CompactionOptions, Error, EventType, WatchOptions, WatchResponse};
use tokio::sync::watch;

use super::{ANSWER, Asked, At, MESSAGE_MAX, signed, unsigned};
use crate::store::state::{Entries, State};
use crate::store::{Event, Query, Revision, StoreError};

/// How long a lost watch waits before it is begun again, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Everything that etcd holds for this cluster, as of one revision.
pub(super) async fn load(asked: &Asked) -> Result<(Revision, Entries), StoreError> {
    let page = asked.range(Query { prefix: "", after: None, limit: None, at: None }).await?;
    Ok((page.revision, page.entries.into_iter().collect()))
}

/// Why a watch ended.
enum Lost {
    /// What comes next was compacted: everything has to be read anew.
    Compacted,
    /// It can go on where it was.
    Broken(Error),
    /// The server ended it.
    Ended,
}

/// Keeps the state of this process where etcd is.
pub(super) struct Follower {
    asked: Asked,
    state: Arc<State>,
    reached: watch::Sender<Revision>,
}

impl Follower {
    pub(super) fn new(asked: Asked, state: Arc<State>, reached: watch::Sender<Revision>) -> Self {
        Self { asked, state, reached }
    }

    /// Follows for ever.
    pub(super) async fn run(self) {
        let mut wait = AGAIN.0;
        loop {
            let before = self.state.revision();
            match self.follow().await {
                Lost::Compacted => self.begin_anew().await,
                Lost::Broken(error) => {
                    tracing::warn!(endpoints = &*self.asked.endpoints, %error, "the watch of etcd broke, it is begun again");
                }
                Lost::Ended => {}
            }
            wait = if self.state.revision() > before { AGAIN.0 } else { (wait * 2).min(AGAIN.1) };
            tokio::time::sleep(wait).await;
        }
    }

    /// Follows until the watch ends.
    async fn follow(&self) -> Lost {
        let mut client = self.asked.client.watch_client().max_decoding_message_size(MESSAGE_MAX);
        let options = WatchOptions::new()
            .with_range(self.asked.keys.end(""))
            .with_start_revision(signed(self.state.revision() + 1));
        let mut stream = match client.watch(self.asked.keys.whole(""), Some(options)).await {
            Ok(stream) => stream,
            Err(error) => return Lost::Broken(error),
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) if message.canceled() => {
                    let compacted = unsigned(message.compact_revision());
                    if compacted == 0 {
                        tracing::warn!(reason = message.cancel_reason(), "etcd ended its watch");
                        return Lost::Ended;
                    }
                    self.asked.compacted.fetch_max(compacted, Ordering::Relaxed);
                    return Lost::Compacted;
                }
                Ok(Some(message)) => self.take(&message),
                Ok(None) => return Lost::Ended,
                Err(error) => return Lost::Broken(error),
            }
        }
    }

    /// Takes commits in. etcd never divides one between messages unless it is asked to.
    fn take(&self, message: &WatchResponse) {
        let (mut revision, mut entries) = self.state.snapshot();
        let mut events = Vec::with_capacity(message.events().len());
        for change in message.events() {
            let Some(pair) = change.kv() else { continue };
            revision = unsigned(pair.mod_revision());
            let Some((key, now)) = self.asked.entry(pair) else { continue };
            let previous = entries.get(&key).cloned();
            let entry = match change.event_type() {
                EventType::Put => {
                    entries.insert(Arc::clone(&key), now.clone());
                    Some(now)
                }
                EventType::Delete => {
                    entries.remove(&key);
                    None
                }
            };
            if entry.is_some() || previous.is_some() {
                events.push(Arc::new(Event { key, revision, entry, previous }));
            }
        }
        if !message.events().is_empty() {
            self.state.publish(revision, entries, &events);
            self.reached.send_replace(revision);
        }
    }

    /// Reads everything anew. Whoever watches is told to do so as well.
    async fn begin_anew(&self) {
        match load(&self.asked).await {
            Ok((revision, entries)) => {
                tracing::warn!(
                    revision,
                    "changes were compacted before they were seen here; watches begin anew"
                );
                self.state.restart(revision, entries);
                self.reached.send_replace(revision);
            }
            Err(error) => tracing::warn!(%error, "cannot read etcd anew"),
        }
    }
}

/// Has etcd give up what is older than `every`, again and again. Of several servers one comes
/// first: for the others there is nothing left to do.
pub(super) async fn compact(asked: Asked, every: Duration) {
    let mut before = None;
    loop {
        match asked.revision().await {
            Ok(revision) => {
                if let Some(old) = before.replace(revision) {
                    give_up(&asked, old).await;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot see which revisions are old"),
        }
        tokio::time::sleep(every).await;
    }
}

async fn give_up(asked: &Asked, revision: Revision) {
    let options = CompactionOptions::new();
    let mut kv = asked.kv();
    let given_up = kv.compact(signed(revision), Some(options));
    match tokio::time::timeout(ANSWER, given_up).await {
        Ok(Ok(_)) => drop(asked.compacted.fetch_max(revision, Ordering::Relaxed)),
        Ok(Err(error)) if At::of(&error).is_some() => {}
        Ok(Err(error)) => tracing::warn!(revision, %error, "cannot compact etcd"),
        Err(_elapsed) => tracing::warn!(revision, "etcd did not compact in time"),
    }
}
