//! The embedded store: all entries in a persistent ordered map, one thread that commits.
//!
//! Writers queue; the committer takes everybody who waits, checks and applies their operations to
//! a private copy of the map, makes the batch durable with one `fdatasync`, and only then lets
//! readers see it. Readers share an immutable map and never wait for the disk.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures::future::BoxFuture;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{mpsc, oneshot};

use super::history::{Bounds, Cursor};
use super::log::{Log, Policy, write_error};
use super::recover::recover;
use super::state::{Entries, State};
use super::{
    Action, Entry, Event, Expect, MAX_VALUE, Op, Page, Query, Revision, Store, StoreError, Watch,
};

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
    /// Least bytes of log after which a snapshot is made.
    pub snapshot_after: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { history_events: 20_000, history_bytes: 16 << 20, snapshot_after: 32 << 20 }
    }
}

impl Options {
    /// What bounds the history.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds { events: self.history_events, bytes: self.history_bytes }
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
    /// Taken when the store is dropped: the committer ends when nobody can send any more.
    queue: Option<mpsc::Sender<Waiting>>,
    committer: Option<JoinHandle<()>>,
    /// Keeps other processes out of the data directory.
    _lock: Option<Flock<File>>,
}

impl Embedded {
    /// A store that forgets everything when it is dropped.
    pub fn in_memory(options: &Options) -> Self {
        let state = State::new(options.bounds(), 0, 0, Entries::new());
        Self::start(state, None, None)
    }

    /// Opens the store in a directory, making it if there is none.
    pub fn open(directory: &Path, options: &Options) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(|reason| write_error(directory, reason))?;
        let lock = lock(directory)?;
        let policy = Policy { least: options.snapshot_after };
        let recovered = recover(directory, options.history_events, policy)?;
        let state =
            State::new(options.bounds(), recovered.revision, recovered.base, recovered.entries);
        state.history.append(&recovered.events);
        Ok(Self::start(state, Some(recovered.log), Some(lock)))
    }

    fn start(state: State, log: Option<Log>, lock: Option<Flock<File>>) -> Self {
        let state = Arc::new(state);
        let (queue, waiting) = mpsc::channel(QUEUE);
        let committer = Committer { state: Arc::clone(&state), log };
        let committer = std::thread::spawn(move || committer.run(waiting));
        Self { state, queue: Some(queue), committer: Some(committer), _lock: lock }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(committer) = self.committer.take() {
            let _ = committer.join();
        }
    }
}

/// One process at a time may have a data directory.
fn lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(|reason| write_error(&path, reason))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StoreError::Locked { path })
}

/// The one writer.
struct Committer {
    state: Arc<State>,
    log: Option<Log>,
}

impl Committer {
    fn run(mut self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut batch = Vec::new();
        while waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.commit(std::mem::take(&mut batch));
        }
    }

    /// Commits a batch and answers everybody in it.
    fn commit(&mut self, batch: Vec<Waiting>) {
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
        let durable = self.log.as_mut().map_or(Ok(()), |log| log.append(&events));
        match &durable {
            Ok(()) => self.publish(revision, entries, &events),
            Err(error) => tracing::error!(%error, "cannot make a batch of writes durable"),
        }
        for (answer, outcome) in answers {
            // A writer that went away does not want to know.
            let _ = answer.send(outcome.and_then(|revision| durable.clone().map(|()| revision)));
        }
    }

    /// Makes a durable batch visible.
    fn publish(&mut self, revision: Revision, entries: Entries, events: &[Arc<Event>]) {
        if events.is_empty() {
            return;
        }
        if let Some(log) = &mut self.log {
            log.maintain(revision, &entries);
        }
        self.state.publish(revision, entries, events);
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
            check_reached(revision, newest)?;
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
            let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
            queue.send(Waiting { ops, answer }).await.map_err(|_| StoreError::Closed)?;
            outcome.await.map_err(|_| StoreError::Closed)?
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>> {
        Box::pin(async move {
            check_reached(after, self.state.revision())?;
            // Learn now, not at the first take, that the history does not reach back so far.
            self.state.history.between(prefix, after, after)?;
            Ok(Box::new(Cursor::new(Arc::clone(&self.state), prefix, after)) as Box<dyn Watch>)
        })
    }
}

/// Nobody can have seen a revision that is not visible yet.
fn check_reached(asked: Revision, newest: Revision) -> Result<(), StoreError> {
    if asked <= newest { Ok(()) } else { Err(StoreError::Ahead { asked, newest }) }
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
