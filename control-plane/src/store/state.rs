//! What readers and watches of a process share: all entries at the newest revision, and the
//! history that led to them.

use std::sync::{Arc, PoisonError, RwLock};

use imbl::OrdMap;

use super::history::{Bounds, History};
use super::{Entry, Event, Key, Revision};

/// All entries at one revision. Cloning is cheap: maps share their nodes.
pub(super) type Entries = OrdMap<Key, Entry>;

/// What readers see.
pub(super) struct State {
    visible: RwLock<(Revision, Entries)>,
    pub(super) history: History,
}

impl State {
    /// Entries at a revision, and no history up to `base`.
    pub(super) fn new(
        bounds: Bounds,
        revision: Revision,
        base: Revision,
        entries: Entries,
    ) -> Self {
        Self { visible: RwLock::new((revision, entries)), history: History::new(bounds, base) }
    }

    /// The newest visible revision.
    pub(super) fn revision(&self) -> Revision {
        self.visible.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// All entries, and the revision that they are of.
    pub(super) fn snapshot(&self) -> (Revision, Entries) {
        self.visible.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes what a batch of commits led to visible: history first, then the entries, then the
    /// watches' bells.
    pub(super) fn publish(&self, revision: Revision, entries: Entries, events: &[Arc<Event>]) {
        self.history.append(events);
        self.replace(revision, entries);
        self.history.ring(events, revision);
    }

    /// Makes entries visible of which nobody knows how they came about: whoever watches has to
    /// begin anew.
    pub(super) fn restart(&self, revision: Revision, entries: Entries) {
        self.history.forget(revision);
        self.replace(revision, entries);
        self.history.ring_all(revision);
    }

    fn replace(&self, revision: Revision, entries: Entries) {
        *self.visible.write().unwrap_or_else(PoisonError::into_inner) = (revision, entries);
    }
}
