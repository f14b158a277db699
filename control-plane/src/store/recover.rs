//! Opening a data directory: the newest snapshot, then the segments after it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use bytes::Bytes;

use super::frame::{self, Found, Record};
use super::log::{self, Log, Policy};
use super::state::Entries;
use super::{Entry, Event, Key, Revision, StoreError};

/// Frames of a snapshot that are decoded before they are put in their place.
const AHEAD: usize = 4;

/// What a data directory held.
pub(super) struct Recovered {
    /// The newest revision.
    pub(super) revision: Revision,
    /// The state at that revision.
    pub(super) entries: Entries,
    /// The revision of the snapshot that the history begins after.
    pub(super) base: Revision,
    /// Changes since the snapshot.
    pub(super) events: Vec<Arc<Event>>,
    /// The log, open for appending.
    pub(super) log: Log,
}

fn read_error(path: &Path, reason: io::Error) -> StoreError {
    StoreError::Read { path: path.to_owned(), reason: Arc::new(reason) }
}

fn corrupt(path: &Path, offset: usize, what: &'static str) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        offset: u64::try_from(offset).unwrap_or(u64::MAX),
        what,
    }
}

/// Reads the state of a data directory and opens its log. `keep` bounds the events returned.
pub(super) fn recover(
    directory: &Path,
    keep: usize,
    policy: Policy,
) -> Result<Recovered, StoreError> {
    for leftover in log::files(directory, "tmp").map_err(|reason| read_error(directory, reason))? {
        fs::remove_file(&leftover.1).map_err(|reason| log::write_error(&leftover.1, reason))?;
    }
    let snapshots =
        log::files(directory, "snapshot").map_err(|reason| read_error(directory, reason))?;
    let (base, entries) = match snapshots.last() {
        Some((revision, path)) => (*revision, load(path)?),
        None => (0, Entries::new()),
    };
    let mut state = Replay { base, revision: base, entries, events: Vec::new(), keep };
    let segments = log::files(directory, "log").map_err(|reason| read_error(directory, reason))?;
    let mut total = 0;
    let mut open = (log::segment_path(directory, base + 1), 0);
    for (index, (_, path)) in segments.iter().enumerate() {
        let length = state.segment(path, index + 1 == segments.len())?;
        total += length;
        open = (path.clone(), length);
    }
    let (path, length): (PathBuf, u64) = open;
    let log = Log::open(directory, path, length, total, policy)?;
    Ok(Recovered {
        revision: state.revision,
        entries: state.entries,
        base: state.base,
        events: state.events,
        log,
    })
}

fn read(path: &Path) -> Result<Bytes, StoreError> {
    fs::read(path).map(Bytes::from).map_err(|reason| read_error(path, reason))
}

/// Loads a snapshot. It was renamed into place when it was whole, so any damage is an error.
///
/// One thread reads, checks and decodes; the other puts what it has in its place.
fn load(path: &Path) -> Result<Entries, StoreError> {
    let (send, decoded) = mpsc::sync_channel(AHEAD);
    thread::scope(|scope| {
        // It ends by dropping the sender, which is its own.
        let reader = scope.spawn(move || decode(path, &send));
        let mut entries = Entries::new();
        for records in decoded {
            entries.extend(records);
        }
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.map(|()| entries)
    })
}

/// Sends what the frames of a snapshot hold.
fn decode(path: &Path, send: &SyncSender<Vec<(Key, Entry)>>) -> Result<(), StoreError> {
    let failed = |reason| read_error(path, reason);
    let mut file = File::open(path).map_err(failed)?;
    let mut offset = 0;
    loop {
        let mut payload = match frame::next(&mut file).map_err(failed)? {
            Found::Frame(_, payload) if payload.is_empty() => return Ok(()),
            Found::Frame(_, payload) => payload,
            Found::End => return Err(corrupt(path, offset, "the snapshot has no end")),
            Found::Broken(what) => return Err(corrupt(path, offset, what)),
        };
        let next = offset + frame::HEADER + payload.len();
        let mut records = Vec::new();
        while !payload.is_empty() {
            let record = frame::take(&mut payload)
                .ok_or_else(|| corrupt(path, offset, "it holds no records"))?;
            let Record { key, created, modified, value } = record;
            records.extend(value.map(|value| (key, Entry { value, created, modified })));
        }
        // Nobody takes it any more: they panicked, and say so.
        if send.send(records).is_err() {
            return Ok(());
        }
        offset = next;
    }
}

/// The state while the log is read.
struct Replay {
    base: Revision,
    revision: Revision,
    entries: Entries,
    events: Vec<Arc<Event>>,
    keep: usize,
}

impl Replay {
    /// Replays one segment; returns the length of its good part. Only the last frame of the last
    /// segment may be broken: its writers got no answer.
    fn segment(&mut self, path: &Path, last: bool) -> Result<u64, StoreError> {
        let file = read(path)?;
        let mut offset = 0;
        loop {
            match frame::read(&file, offset) {
                Found::End => break,
                Found::Frame(_, payload) => {
                    let next = offset + frame::HEADER + payload.len();
                    self.payload(payload).map_err(|what| corrupt(path, offset, what))?;
                    offset = next;
                }
                Found::Broken(what) if last && !frame::follows(&file, offset) => {
                    tracing::warn!(path = %path.display(), offset, what, "the log ends in a batch that was not written to its end; cutting it off");
                    break;
                }
                Found::Broken(what) => return Err(corrupt(path, offset, what)),
            }
        }
        Ok(u64::try_from(offset).unwrap_or(u64::MAX))
    }

    fn payload(&mut self, mut payload: Bytes) -> Result<(), &'static str> {
        while !payload.is_empty() {
            let record = frame::take(&mut payload).ok_or("it holds no records")?;
            self.record(record)?;
        }
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), &'static str> {
        let Record { key, created, modified, value } = record;
        if modified <= self.base {
            return Ok(());
        }
        // Several records of one commit share a revision; commits have consecutive ones.
        if modified != self.revision && modified != self.revision + 1 {
            return Err("revisions are missing before it");
        }
        self.revision = modified;
        let entry = value.map(|value| Entry { value, created, modified });
        let previous = match &entry {
            Some(entry) => self.entries.insert(Arc::clone(&key), entry.clone()),
            None => self.entries.remove(&key),
        };
        self.events.push(Arc::new(Event { key, revision: modified, entry, previous }));
        if self.events.len() >= self.keep.saturating_mul(2) {
            self.forget();
        }
        Ok(())
    }

    /// Drops the older half of the events; the history then begins later.
    fn forget(&mut self) {
        let cut = self.events.len() / 2;
        self.base = self.base.max(self.events[cut - 1].revision);
        let base = self.base;
        self.events.retain(|event| event.revision > base);
    }
}
