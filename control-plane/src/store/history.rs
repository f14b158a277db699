//! Bounded history of commits per topic: what watches read, and the undo log for ranges at an
//! older revision.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::state::State;
use super::{Entry, Event, Progress, Revision, StoreError, Watch, topic};

/// How much history one topic keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Most events.
    pub(super) events: usize,
    /// Most bytes of values that the events hold.
    pub(super) bytes: usize,
}

/// Events of one topic, oldest first.
struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Everything after this revision is in `events`.
    complete_after: Revision,
}

/// One topic: its ring, and the bell that wakes its watches.
struct Topic {
    ring: RwLock<Ring>,
    bell: watch::Sender<Revision>,
}

/// All topics.
pub(super) struct History {
    bounds: Bounds,
    /// No event up to this revision exists anywhere (the snapshot that the process started from).
    base: AtomicU64,
    topics: RwLock<HashMap<Box<str>, Arc<Topic>>>,
}

impl History {
    /// An empty history that begins after `base`.
    pub(super) fn new(bounds: Bounds, base: Revision) -> Self {
        Self { bounds, base: AtomicU64::new(base), topics: RwLock::default() }
    }

    /// Appends the events of a batch of commits, in order, without waking anybody.
    pub(super) fn append(&self, events: &[Arc<Event>]) {
        for event in events {
            self.topic(topic(&event.key)).append(event, self.bounds);
        }
    }

    /// Wakes the watches of the topics that `events` touch.
    pub(super) fn ring(&self, events: &[Arc<Event>], revision: Revision) {
        let mut last = "";
        for event in events {
            let name = topic(&event.key);
            if name != last {
                self.topic(name).bell.send_replace(revision);
                last = name;
            }
        }
    }

    /// Forgets everything: what is known begins after `base`.
    pub(super) fn forget(&self, base: Revision) {
        // No topic is made meanwhile.
        let topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        self.base.store(base, Ordering::Relaxed);
        for topic in topics.values() {
            let mut ring = topic.ring.write().unwrap_or_else(PoisonError::into_inner);
            *ring = Ring { events: VecDeque::new(), bytes: 0, complete_after: base };
        }
    }

    /// Wakes all watches.
    pub(super) fn ring_all(&self, revision: Revision) {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        for topic in topics.values() {
            topic.bell.send_replace(revision);
        }
    }

    /// Events of the topic of `prefix` after `after` up to `until`.
    pub(super) fn between(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        self.topic(topic(prefix)).between(prefix, after, until)
    }

    fn topic(&self, name: &str) -> Arc<Topic> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = topics.get(name) {
            return Arc::clone(found);
        }
        drop(topics);
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let ring = Ring {
                events: VecDeque::new(),
                bytes: 0,
                complete_after: self.base.load(Ordering::Relaxed),
            };
            Arc::new(Topic { ring: RwLock::new(ring), bell: watch::Sender::new(0) })
        };
        Arc::clone(topics.entry(name.into()).or_insert_with(fresh))
    }
}

impl Topic {
    fn append(&self, event: &Arc<Event>, bounds: Bounds) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        ring.bytes += weight(event);
        ring.events.push_back(Arc::clone(event));
        while ring.events.len() > bounds.events || ring.bytes > bounds.bytes {
            let Some(oldest) = ring.events.pop_front() else { break };
            ring.bytes -= weight(&oldest);
            ring.complete_after = oldest.revision;
        }
    }

    fn between(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if after < ring.complete_after {
            return Err(StoreError::Compacted { asked: after, oldest: ring.complete_after });
        }
        let first = ring.events.partition_point(|event| event.revision <= after);
        let wanted = ring.events.range(first..).take_while(|event| event.revision <= until);
        Ok(wanted.filter(|event| event.key.starts_with(prefix)).map(Arc::clone).collect())
    }
}

/// Bytes that an event keeps alive. It shares its previous value with the event that put it, but
/// that one may have left the ring: a deletion then is all that holds the value.
fn weight(event: &Event) -> usize {
    let size = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| entry.value.len());
    event.key.len() + size(&event.entry).max(size(&event.previous))
}

/// A cursor into one topic's history.
pub(super) struct Cursor {
    state: Arc<State>,
    topic: Arc<Topic>,
    prefix: Box<str>,
    delivered: Revision,
    bell: watch::Receiver<Revision>,
}

impl Cursor {
    /// A cursor that stands after `after`.
    pub(super) fn new(state: Arc<State>, prefix: &str, after: Revision) -> Self {
        let topic = state.history.topic(topic(prefix));
        let mut bell = topic.bell.subscribe();
        // What came before is found by the first take.
        bell.mark_changed();
        Self { state, topic, prefix: prefix.into(), delivered: after, bell }
    }
}

impl Watch for Cursor {
    fn changed(&mut self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { self.bell.changed().await.map_err(|_| StoreError::Closed) })
    }

    fn take(&mut self) -> Result<Progress, StoreError> {
        // The order matters: what is visible is in the rings already.
        let visible = self.state.revision();
        if visible <= self.delivered {
            return Ok(Progress { events: Vec::new(), revision: self.delivered });
        }
        let events = self.topic.between(&self.prefix, self.delivered, visible)?;
        self.delivered = visible;
        Ok(Progress { events, revision: visible })
    }
}
