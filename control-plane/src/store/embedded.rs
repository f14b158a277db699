//! The embedded store: all entries in a persistent ordered map, one thread that commits.
//!
//! Writers queue; the committer takes everybody who waits, checks and applies their operations to
//! a private copy of the map, makes the batch durable with one `fdatasync`, and only then lets
//! readers see it. Readers share an immutable map and never wait for the disk.

use std::sync::{Arc, PoisonError, RwLock};

use futures::future::BoxFuture;
use imbl::OrdMap;
use tokio::sync::{mpsc, oneshot};

use super::history::{Bounds, Cursor, History};
use super::{
    Action, Entry, Event, Expect, Key, MAX_VALUE, Op, Page, Query, Revision, Store, StoreError,
    Watch,
};

/// All entries at one revision. Cloning is cheap: maps share their nodes.
pub(super) type Entries = OrdMap<Key, Entry>;

/// How many writers may wait before further ones wait to get into the queue.
const QUEUE: usize = 4096;
/// Most writers that share one `fdatasync`.
const BATCH: usize = 1024;

/// Sizes of an [`Embedded`] store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most events that the history keeps per topic.
    pub history_events: usize,
    /// Most bytes of values that the history keeps per topic.
    pub history_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { history_events: 20_000, history_bytes: 16 << 20 }
    }
}

/// What readers see.
pub(super) struct State {
    visible: RwLock<(Revision, Entries)>,
    pub(super) history: History,
}

impl State {
    /// The newest visible revision.
    pub(super) fn revision(&self) -> Revision {
        self.visible.read().unwrap_or_else(PoisonError::into_inner).0
    }

    fn snapshot(&self) -> (Revision, Entries) {
        self.visible.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A commit that waits for the committer.
struct Waiting {
    ops: Vec<Op>,
    answer: oneshot::Sender<Result<Revision, StoreError>>,
}

/// The embedded [`Store`].
pub struct Embedded {
    state: Arc<State>,
    queue: mpsc::Sender<Waiting>,
}

impl Embedded {
    /// A store that forgets everything when it is dropped.
    pub fn in_memory(options: &Options) -> Self {
        Self::start(options, 0, Entries::new())
    }

    fn start(options: &Options, revision: Revision, entries: Entries) -> Self {
        let bounds = Bounds { events: options.history_events, bytes: options.history_bytes };
        let history = History::new(bounds, revision);
        let state = Arc::new(State { visible: RwLock::new((revision, entries)), history });
        let (queue, waiting) = mpsc::channel(QUEUE);
        let committer = Committer { state: Arc::clone(&state) };
        std::thread::spawn(move || committer.run(waiting));
        Self { state, queue }
    }
}

/// The one writer.
struct Committer {
    state: Arc<State>,
}

impl Committer {
    fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut batch = Vec::new();
        while waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.commit(std::mem::take(&mut batch));
        }
    }

    /// Commits a batch and answers everybody in it.
    fn commit(&self, batch: Vec<Waiting>) {
        let (mut revision, mut entries) = self.state.snapshot();
        let mut events = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        for Waiting { ops, answer } in batch {
            let outcome = apply(&mut entries, revision + 1, ops, &mut events);
            if matches!(outcome, Ok(true)) {
                revision += 1;
            }
            answers.push((answer, outcome.map(|_| revision)));
        }
        self.publish(revision, entries, &events);
        for (answer, outcome) in answers {
            // A writer that went away does not want to know.
            let _ = answer.send(outcome);
        }
    }

    /// Makes a durable batch visible: history first, then the state, then the watches' bells.
    fn publish(&self, revision: Revision, entries: Entries, events: &[Arc<Event>]) {
        if events.is_empty() {
            return;
        }
        self.state.history.append(events);
        *self.state.visible.write().unwrap_or_else(PoisonError::into_inner) = (revision, entries);
        self.state.history.ring(events, revision);
    }
}

/// Applies one commit to `entries`, all or nothing. Returns whether anything changed.
fn apply(
    entries: &mut Entries,
    revision: Revision,
    ops: Vec<Op>,
    events: &mut Vec<Arc<Event>>,
) -> Result<bool, StoreError> {
    for op in &ops {
        check(entries, op)?;
    }
    let before = events.len();
    for Op { key, action, .. } in ops {
        let previous = entries.get(&key).cloned();
        let entry = match action {
            Action::Put(value) => {
                let created = previous.as_ref().map_or(revision, |entry| entry.created);
                let entry = Entry { value, created, modified: revision };
                entries.insert(Arc::clone(&key), entry.clone());
                Some(entry)
            }
            Action::Delete if previous.is_none() => continue,
            Action::Delete => {
                entries.remove(&key);
                None
            }
        };
        events.push(Arc::new(Event { key, revision, entry, previous }));
    }
    Ok(events.len() > before)
}

/// Whether the operation may happen.
fn check(entries: &Entries, op: &Op) -> Result<(), StoreError> {
    if let Action::Put(value) = &op.action
        && value.len() > MAX_VALUE
    {
        return Err(StoreError::TooLarge { key: Arc::clone(&op.key), size: value.len() });
    }
    let current = entries.get(&op.key).map(|entry| entry.modified);
    let holds = match op.expect {
        Expect::Any => true,
        Expect::Absent => current.is_none(),
        Expect::Modified(revision) => current == Some(revision),
    };
    if holds { Ok(()) } else { Err(StoreError::Conflict { key: Arc::clone(&op.key), current }) }
}

impl Store for Embedded {
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async { Ok(self.state.revision()) })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { Ok(self.state.snapshot().1.get(key).cloned()) })
    }

    fn range<'a>(&'a self, query: Query<'a>) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(async move {
            let (newest, mut entries) = self.state.snapshot();
            let revision = query.at.unwrap_or(newest);
            if revision < newest {
                let newer = self.state.history.between(query.prefix, revision, newest)?;
                undo(&mut entries, &newer);
            }
            Ok(page(&entries, revision, &query))
        })
    }

    fn commit(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            let (answer, outcome) = oneshot::channel();
            self.queue.send(Waiting { ops, answer }).await.map_err(|_| StoreError::Closed)?;
            outcome.await.map_err(|_| StoreError::Closed)?
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>> {
        Box::pin(async move {
            // Learn now, not at the first take, that the history does not reach back so far.
            self.state.history.between(prefix, after, after)?;
            Ok(Box::new(Cursor::new(Arc::clone(&self.state), prefix, after)) as Box<dyn Watch>)
        })
    }
}

/// Takes back the changes of `events`, newest first.
fn undo(entries: &mut Entries, events: &[Arc<Event>]) {
    for event in events.iter().rev() {
        match &event.previous {
            Some(previous) => entries.insert(Arc::clone(&event.key), previous.clone()),
            None => entries.remove(&event.key),
        };
    }
}

/// The part of `entries` that `query` asks for.
fn page(entries: &Entries, revision: Revision, query: &Query<'_>) -> Page {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let start = match query.after {
        Some(after) if after >= query.prefix => Excluded(after),
        _ => Included(query.prefix),
    };
    let mut matching = entries
        .range::<_, str>((start, Unbounded))
        .take_while(|(key, _)| key.starts_with(query.prefix));
    let limit = query.limit.unwrap_or(usize::MAX);
    let taken = matching.by_ref().take(limit);
    let entries = taken.map(|(key, entry)| (Arc::clone(key), entry.clone())).collect();
    Page { revision, entries, remaining: matching.count() }
}
