//! What all watches of one kind make of the same change: parsed once, written once, shared.
//!
//! A thousand watches of a kind that hear of a change send the same bytes. Whoever comes first
//! makes them; the others find them here. The place is bounded and forgets what is old: whoever
//! comes later makes them again.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};

use super::encode;
use super::filter::Candidate;
use crate::registry::Kind;
use crate::store::{Entry, Event};

/// Changes that are remembered, by revision.
const SLOTS: usize = 256;
/// Bytes of a value that is remembered: larger ones are made for each watch, so that all of them
/// together stay below some tens of megabytes.
const LARGEST: usize = 64 << 10;

/// What a change is for a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// An object begins to be one of those watched.
    Added,
    /// It is another now.
    Modified,
    /// It is gone, or none of those watched any more.
    Deleted,
}

impl Change {
    /// The `type` of a watch event.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change as a kind shows it.
pub(super) struct Rendering {
    kind: &'static Kind,
    event: Arc<Event>,
    now: Option<Candidate>,
    before: Option<Candidate>,
    lines: [OnceLock<Bytes>; 3],
}

impl Rendering {
    fn new(kind: &'static Kind, event: Arc<Event>) -> Self {
        let candidate =
            |entry: &Option<Entry>| entry.as_ref().map(|entry| Candidate::new(entry.value.clone()));
        let (now, before) = (candidate(&event.entry), candidate(&event.previous));
        Self { kind, event, now, before, lines: Default::default() }
    }

    /// The object since the change.
    pub(super) fn now(&self) -> Option<&Candidate> {
        self.now.as_ref()
    }

    /// The object before it.
    pub(super) fn before(&self) -> Option<&Candidate> {
        self.before.as_ref()
    }

    /// The entry that an event of this type carries.
    pub(super) fn entry(&self, change: Change) -> Option<Entry> {
        let entry = match change {
            Change::Added | Change::Modified => &self.event.entry,
            Change::Deleted => &self.event.previous,
        };
        // A deletion carries the last state, at the revision of the deletion.
        entry.clone().map(|entry| Entry { modified: self.event.revision, ..entry })
    }

    /// The event as a line of JSON.
    pub(super) fn line(&self, change: Change) -> Bytes {
        let make = || {
            let mut line = BytesMut::new();
            if let Some(entry) = self.entry(change) {
                write(self.kind, change, entry, &mut line);
            }
            line.freeze()
        };
        self.lines[change as usize].get_or_init(make).clone()
    }
}

/// Appends an event as a line of JSON.
pub(super) fn write(kind: &Kind, change: Change, entry: Entry, out: &mut BytesMut) {
    open(change, out);
    encode::splice(&encode::shown(kind, entry), out);
    out.put_slice(b"}\n");
}

/// Appends what stands before the object of an event.
pub(super) fn open(change: Change, out: &mut BytesMut) {
    out.put_slice(b"{\"type\":\"");
    out.put_slice(change.name().as_bytes());
    out.put_slice(b"\",\"object\":");
}

/// The renderings of the newest changes.
pub(super) struct Renderings {
    slots: [Mutex<Option<Arc<Rendering>>>; SLOTS],
}

impl Default for Renderings {
    fn default() -> Self {
        Self { slots: [const { Mutex::new(None) }; SLOTS] }
    }
}

impl Renderings {
    /// The change as the kind shows it.
    pub(super) fn of(&self, kind: &'static Kind, event: &Arc<Event>) -> Arc<Rendering> {
        let fresh = || Arc::new(Rendering::new(kind, Arc::clone(event)));
        let size = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| entry.value.len());
        if size(&event.entry).max(size(&event.previous)) > LARGEST {
            return fresh();
        }
        let slots = u64::try_from(SLOTS).unwrap_or(u64::MAX);
        let slot = usize::try_from(event.revision % slots).unwrap_or_default();
        let mut held = self.slots[slot].lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(known) if Arc::ptr_eq(&known.event, event) && std::ptr::eq(known.kind, kind) => {
                Arc::clone(known)
            }
            _ => Arc::clone(held.insert(fresh())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn event(revision: u64, size: usize) -> Arc<Event> {
        let value = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a"}},"data":{{"a":"{}"}}}}"#,
            "x".repeat(size),
        );
        let entry = Entry { value: value.into(), created: revision, modified: revision };
        let key = "core/configmaps/default/a".into();
        Arc::new(Event { key, revision, entry: Some(entry), previous: None })
    }

    #[test]
    fn watches_share_the_line_of_an_event_and_nothing_else() {
        let registry = Registry::default();
        let kind = registry.resource("", "v1", "configmaps").unwrap();
        let renderings = Renderings::default();
        let first = event(7, 1);
        let line = renderings.of(kind, &first).line(Change::Added);
        let text = String::from_utf8(line.to_vec()).unwrap();
        assert!(text.starts_with(r#"{"type":"ADDED","object":{"apiVersion":"v1""#), "{text}");
        assert!(text.contains(r#""metadata":{"resourceVersion":"7","name":"a"}"#), "{text}");
        assert!(text.ends_with("}\n"), "{text}");
        let again = renderings.of(kind, &first).line(Change::Added);
        assert_eq!(line.as_ptr(), again.as_ptr(), "the same bytes");
        let modified = renderings.of(kind, &first).line(Change::Modified);
        assert!(modified.starts_with(br#"{"type":"MODIFIED""#));
        // Another change in the same place, and the first again after it.
        let slots = u64::try_from(SLOTS).unwrap();
        let other = renderings.of(kind, &event(7 + slots, 2)).line(Change::Added);
        assert!(String::from_utf8_lossy(&other).contains(&format!(r#""{}""#, 7 + slots)));
        assert_eq!(renderings.of(kind, &first).line(Change::Added), line);
        // A kind that shows the same objects differently has lines of its own.
        let secrets = registry.resource("", "v1", "secrets").unwrap();
        assert!(!Arc::ptr_eq(&renderings.of(secrets, &first), &renderings.of(kind, &first)));
    }

    #[test]
    fn what_is_large_is_not_kept() {
        let registry = Registry::default();
        let kind = registry.resource("", "v1", "configmaps").unwrap();
        let renderings = Renderings::default();
        let large = event(1, LARGEST);
        assert!(!renderings.of(kind, &large).line(Change::Added).is_empty());
        assert_eq!(Arc::strong_count(&large), 1);
    }
}
