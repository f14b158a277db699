//! The log on disk: segments of frames, appended and made durable one batch at a time, and
//! snapshots that let old segments go.
//!
//! ```text
//! lock                           held while the store is open
//! 00000000000000000001.log       frames; the name is the first revision that may be in it
//! 00000000000000004711.snapshot  the whole state at that revision
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::BytesMut;

use super::frame::{self, Record};
use super::state::Entries;
use super::{Event, Revision, StoreError};

/// Size of a segment after which the next one begins, in bytes.
const SEGMENT: u64 = 16 << 20;
/// Bytes of a snapshot's frames.
const SNAPSHOT_FRAME: usize = 1 << 20;
/// Mode of the store's files: objects hold secrets.
const MODE: u32 = 0o600;

/// When a snapshot is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// Least bytes of log since the last snapshot.
    pub(super) least: u64,
}

/// The log, open for appending.
pub(super) struct Log {
    directory: PathBuf,
    path: PathBuf,
    file: File,
    /// Durable length of the open segment.
    length: u64,
    /// Bytes in all segments that no snapshot covers.
    uncovered: u64,
    policy: Policy,
    last_snapshot: u64,
    snapshot: Option<JoinHandle<Result<u64, StoreError>>>,
    /// Set when it is unknown what is on the disk: nothing more is written.
    poisoned: Option<StoreError>,
}

pub(super) fn write_error(path: &Path, reason: io::Error) -> StoreError {
    StoreError::Write { path: path.to_owned(), reason: Arc::new(reason) }
}

/// Path of the segment that begins with a revision.
pub(super) fn segment_path(directory: &Path, first: Revision) -> PathBuf {
    directory.join(format!("{first:020}.log"))
}

fn snapshot_path(directory: &Path, revision: Revision) -> PathBuf {
    directory.join(format!("{revision:020}.snapshot"))
}

/// Files of a directory with an extension, by the revision in their name, ascending.
pub(super) fn files(directory: &Path, extension: &str) -> io::Result<Vec<(Revision, PathBuf)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let revision =
            path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let Some(revision) =
            revision.filter(|_| path.extension().is_some_and(|found| found == extension))
        {
            found.push((revision, path));
        }
    }
    found.sort();
    Ok(found)
}

fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(path)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Log {
    /// Opens the segment at `path` for appending after `length` bytes; what follows is cut off.
    pub(super) fn open(
        directory: &Path,
        path: PathBuf,
        length: u64,
        uncovered: u64,
        policy: Policy,
    ) -> Result<Self, StoreError> {
        let failed = |reason| write_error(&path, reason);
        let file = create(&path).map_err(failed)?;
        file.set_len(length).and_then(|()| file.sync_all()).map_err(failed)?;
        sync_directory(directory).map_err(failed)?;
        let directory = directory.to_owned();
        Ok(Self {
            directory,
            path,
            file,
            length,
            uncovered,
            policy,
            last_snapshot: 0,
            snapshot: None,
            poisoned: None,
        })
    }

    /// Appends the events of a batch of commits. They are durable when this returns `Ok`, and will
    /// not come back when it returns `Err`.
    pub(super) fn append(&mut self, events: &[Arc<Event>]) -> Result<(), StoreError> {
        let Some(first) = events.first() else { return Ok(()) };
        if let Some(error) = &self.poisoned {
            return Err(error.clone());
        }
        if self.length >= SEGMENT {
            self.rotate(first.revision)?;
        }
        let mut payload = BytesMut::new();
        for event in events {
            frame::put(&record(event), &mut payload);
        }
        let frame = frame::frame(first.revision, &payload);
        if let Err(reason) = self.file.write_all_at(&frame, self.length) {
            let error = write_error(&self.path, reason);
            // A part may have been written: it must not be there when the next batch comes.
            if self.file.set_len(self.length).is_err() {
                self.poisoned = Some(error.clone());
            }
            return Err(error);
        }
        if let Err(reason) = self.file.sync_data() {
            // The kernel may have dropped the pages; no later sync would tell.
            let error = write_error(&self.path, reason);
            self.poisoned = Some(error.clone());
            return Err(error);
        }
        let written = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        self.length += written;
        self.uncovered += written;
        Ok(())
    }

    /// Begins the next segment.
    fn rotate(&mut self, first: Revision) -> Result<(), StoreError> {
        let path = segment_path(&self.directory, first);
        let opened = create(&path).and_then(|file| {
            file.set_len(0)?;
            sync_directory(&self.directory)?;
            Ok(file)
        });
        self.file = opened.map_err(|reason| write_error(&path, reason))?;
        self.path = path;
        self.length = 0;
        Ok(())
    }

    /// Starts a snapshot in the background if enough has been written since the last one.
    pub(super) fn maintain(&mut self, revision: Revision, entries: &Entries) {
        if let Some(running) = self.snapshot.take_if(|running| running.is_finished()) {
            match running.join() {
                Ok(Ok(size)) => self.last_snapshot = size,
                Ok(Err(reason)) => tracing::warn!(%reason, "cannot write a snapshot of the store"),
                Err(_) => tracing::warn!("the snapshot of the store panicked"),
            }
        }
        let due = self.policy.least.max(self.last_snapshot.saturating_mul(2));
        if self.snapshot.is_some() || self.uncovered < due || self.length == 0 {
            return;
        }
        if let Err(reason) = self.rotate(revision + 1) {
            tracing::warn!(%reason, "cannot begin a segment of the log");
            return;
        }
        self.uncovered = 0;
        let (directory, entries) = (self.directory.clone(), entries.clone());
        self.snapshot = Some(std::thread::spawn(move || snapshot(&directory, revision, &entries)));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(running) = self.snapshot.take() {
            let _ = running.join();
        }
    }
}

fn record(event: &Event) -> Record {
    let created = event
        .entry
        .as_ref()
        .or(event.previous.as_ref())
        .map_or(event.revision, |entry| entry.created);
    let value = event.entry.as_ref().map(|entry| entry.value.clone());
    Record { key: Arc::clone(&event.key), created, modified: event.revision, value }
}

/// Writes the state at a revision, then removes what it makes superfluous. Returns its size.
pub(super) fn snapshot(
    directory: &Path,
    revision: Revision,
    entries: &Entries,
) -> Result<u64, StoreError> {
    let path = snapshot_path(directory, revision);
    let temporary = path.with_extension("tmp");
    let size = write_snapshot(&temporary, revision, entries)
        .map_err(|reason| write_error(&temporary, reason))?;
    fs::rename(&temporary, &path)
        .and_then(|()| sync_directory(directory))
        .and_then(|()| remove_covered(directory, revision))
        .map_err(|reason| write_error(&path, reason))?;
    tracing::info!(revision, bytes = size, "wrote a snapshot of the store");
    Ok(size)
}

fn write_snapshot(path: &Path, revision: Revision, entries: &Entries) -> io::Result<u64> {
    let file = create(path)?;
    file.set_len(0)?;
    let mut out = BufWriter::new(file);
    let mut payload = BytesMut::new();
    let mut size = 0;
    let mut flush = |payload: &mut BytesMut| {
        let frame = frame::frame(revision, payload);
        size += frame.len();
        payload.clear();
        out.write_all(&frame)
    };
    for (key, entry) in entries {
        let value = Some(entry.value.clone());
        frame::put(
            &Record {
                key: Arc::clone(key),
                created: entry.created,
                modified: entry.modified,
                value,
            },
            &mut payload,
        );
        if payload.len() >= SNAPSHOT_FRAME {
            flush(&mut payload)?;
        }
    }
    if !payload.is_empty() {
        flush(&mut payload)?;
    }
    // An empty frame says that this is all.
    flush(&mut payload)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(u64::try_from(size).unwrap_or(u64::MAX))
}

/// Removes segments whose changes are all in the snapshot, and older snapshots.
fn remove_covered(directory: &Path, revision: Revision) -> io::Result<()> {
    let segments = files(directory, "log")?;
    for pair in segments.windows(2) {
        let [(_, path), (next, _)] = pair else { continue };
        if *next <= revision + 1 {
            fs::remove_file(path)?;
        }
    }
    for (older, path) in files(directory, "snapshot")? {
        if older < revision {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
