//! The store: one revision counter, compare-and-swap writes, consistent ranges and ordered
//! watches over a flat, sorted key space.
//!
//! The semantics are etcd's as far as an API server needs them. Keys look like
//! `apps/deployments/default/web`; their first two segments name the *topic* that a watch
//! follows. What a reader can see is durable: a commit becomes visible after it reached the disk.

mod embedded;
mod etcd;
mod frame;
mod history;
mod log;
mod recover;
mod state;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use embedded::{Embedded, Options};
pub use etcd::{Etcd, EtcdOptions};

/// Position in the single order of all commits. 0 is "before the first commit".
pub type Revision = u64;

/// A key of the store. Shared: history, ranges and watches all point at the same text.
pub type Key = Arc<str>;

/// Largest value that a commit accepts, in bytes (etcd's request limit).
pub const MAX_VALUE: usize = 1_572_864;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value as it was put.
    pub value: Bytes,
    /// Revision of the commit that created the key.
    pub created: Revision,
    /// Revision of the commit that last wrote the key.
    pub modified: Revision,
}

/// What an operation demands of its key before the commit may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key must not exist.
    Absent,
    /// The key must exist and have been last written at this revision.
    Modified(Revision),
}

/// What an operation does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write this value.
    Put(Bytes),
    /// Remove the key. Removing a key that does not exist changes nothing.
    Delete,
}

/// One key's part of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The key written.
    pub key: Key,
    /// The condition on its present state.
    pub expect: Expect,
    /// The change.
    pub action: Action,
}

/// A change of one key, as watches see it.
#[derive(Debug)]
pub struct Event {
    /// The key changed.
    pub key: Key,
    /// The commit that changed it.
    pub revision: Revision,
    /// What the key holds since then; `None` when it was deleted.
    pub entry: Option<Entry>,
    /// What the key held before; `None` when it was created.
    pub previous: Option<Entry>,
}

/// Which keys a range returns.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Keys that begin with this text.
    pub prefix: &'a str,
    /// Only keys that sort after this one.
    pub after: Option<&'a str>,
    /// At most so many entries; `None` for all.
    pub limit: Option<usize>,
    /// State as of this revision; `None` for the newest.
    pub at: Option<Revision>,
}

/// The answer to a [`Query`].
#[derive(Debug)]
pub struct Page {
    /// The revision whose state this is.
    pub revision: Revision,
    /// Entries in key order.
    pub entries: Vec<(Key, Entry)>,
    /// How many further entries the limit left out.
    pub remaining: usize,
}

/// What a watch has to deliver now.
#[derive(Debug)]
pub struct Progress {
    /// Changes in commit order, none missing, none repeated.
    pub events: Vec<Arc<Event>>,
    /// With these events, everything up to this revision has been delivered.
    pub revision: Revision,
}

/// A position in the history of one prefix.
///
/// A watch holds no queue: it reads the shared, bounded history when it is asked. One that falls
/// behind gets [`StoreError::Compacted`] and costs nobody anything.
pub trait Watch: Send {
    /// Resolves when there may be something new to take. Cancel safe.
    fn changed(&mut self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Takes what is there, without waiting.
    fn take(&mut self) -> Result<Progress, StoreError>;
}

/// A store of versioned entries.
pub trait Store: Send + Sync + 'static {
    /// The newest revision that readers can see.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;
    /// The newest state of one key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;
    /// Entries of a prefix, as of one revision. One that was never reached is
    /// [`StoreError::Ahead`].
    fn range<'a>(&'a self, query: Query<'a>) -> BoxFuture<'a, Result<Page, StoreError>>;
    /// Makes all changes at one new revision, or none. Durable when it resolves.
    fn commit(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<Revision, StoreError>>;
    /// Watches a prefix from the commit after `after` on. The prefix names at least a topic.
    /// A revision that was never reached is [`StoreError::Ahead`], never a watch that waits for it:
    /// it would skip every change until then.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>>;
}

/// Why the store refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition of the commit does not hold.
    #[error("key {key} was changed by another writer (now at revision {current:?})")]
    Conflict {
        /// The first key whose condition failed.
        key: Key,
        /// Its present modification revision, `None` when it does not exist.
        current: Option<Revision>,
    },
    /// The revision asked for is older than the history kept.
    #[error("revision {asked} has been compacted, the oldest available is {oldest}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest revision that could be asked for.
        oldest: Revision,
    },
    /// The revision asked for was never reached here: whoever asks has it from another store, or
    /// from this one before it was lost.
    #[error("revision {asked} has not been reached, the newest is {newest}")]
    Ahead {
        /// The revision asked for.
        asked: Revision,
        /// The newest revision.
        newest: Revision,
    },
    /// The value is larger than [`MAX_VALUE`].
    #[error("value of key {key} is {size} bytes, more than the {MAX_VALUE} allowed")]
    TooLarge {
        /// The key.
        key: Key,
        /// Size of the value in bytes.
        size: usize,
    },
    /// The log could not be written; the commit did not happen. Reads go on.
    #[error(
        "cannot write {path}: {reason}; free space or repair the disk, writes are refused until then"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        reason: Arc<std::io::Error>,
    },
    /// The data directory could not be read at start.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        reason: Arc<std::io::Error>,
    },
    /// The log holds something that this program did not write.
    #[error(
        "{path} is damaged at offset {offset}: {what}; restore the file from a copy, or remove it and what follows it to go back to the state before"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Byte offset of the damaged record.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Another process uses the data directory.
    #[error("{path} is in use by another process; stop it or choose another --data-dir")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The store is not here, and did what it was asked not, or not known to have: a write may
    /// have happened.
    #[error("etcd at {endpoints} did not {what}: {reason}")]
    Away {
        /// The endpoints, as configured.
        endpoints: Arc<str>,
        /// What it was asked for.
        what: &'static str,
        /// What the client saw.
        reason: Arc<str>,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// The part of a key or prefix that names what a watch follows: its first two segments.
fn topic(key: &str) -> &str {
    let mut slashes = key.match_indices('/').map(|(at, _)| at);
    slashes.nth(1).map_or(key, |end| &key[..end])
}

/// CRC-32C of bytes, as the log uses it: a cheap fingerprint.
pub fn checksum(bytes: &[u8]) -> u32 {
    frame::crc(bytes)
}
