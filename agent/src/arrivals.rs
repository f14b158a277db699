//! Changes of the cluster on their way from the watch to the tables: how many there are, and since
//! when. Health and the latency metrics are made of it; nothing that is decided depends on it.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

/// Changes that are remembered on their way. Beyond them only the number grows: whoever is so far
/// behind is measured by the oldest.
const PENDING_MAX: usize = 65_536;

/// Kinds of objects that the tables are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// Everything else: nodes.
    Others,
}

/// A change that arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Revision of the first snapshot that has it.
    pub revision: u64,
    /// What changed.
    pub kind: Kind,
    /// When the watch had it.
    pub at: Instant,
    /// Whether it came as a part of a list.
    pub listed: bool,
    /// When it happened, where the object says so.
    pub trigger: Option<SystemTime>,
}

/// Shared by those who bring changes, by the loop that puts them into the tables, and by those who
/// tell of it.
#[derive(Debug)]
pub struct Arrivals {
    state: Mutex<State>,
    started: SystemTime,
    awaited: AtomicBool,
    followed: OnceLock<Instant>,
}

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<Arrival>,
    totals: [u64; 3],
    last_queued: Option<SystemTime>,
    last_updated: Option<SystemTime>,
}

impl Default for Arrivals {
    fn default() -> Self {
        let started = whole_second(SystemTime::now());
        Self {
            state: Mutex::default(),
            started,
            awaited: AtomicBool::new(false),
            followed: OnceLock::new(),
        }
    }
}

/// The second that a time is in: that is how finely objects say when something happened, so that
/// what comes in an agent's first second seems to have been before.
fn whole_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

impl Arrivals {
    /// From now on the tables follow: changes are pending until [`Self::shown`]. An agent without
    /// tables only counts them.
    pub fn await_tables(&self) {
        self.awaited.store(true, Relaxed);
    }

    /// Everything is known for the first time: from now on the tables can follow. Called again it
    /// changes nothing.
    pub fn begin_to_follow(&self, now: Instant) {
        let _since = self.followed.get_or_init(|| now);
    }

    /// A change arrived. Revisions rise. What happened before the agent started measures nothing.
    pub fn note(&self, mut arrival: Arrival) {
        arrival.trigger = arrival.trigger.filter(|trigger| *trigger >= self.started);
        let mut state = self.state();
        state.totals[arrival.kind as usize] += 1;
        state.last_queued = Some(SystemTime::now());
        if self.awaited.load(Relaxed) && state.pending.len() < PENDING_MAX {
            state.pending.push_back(arrival);
        }
    }

    /// The tables show the snapshot of this revision: the changes that they did not show before.
    pub fn shown(&self, revision: u64) -> Vec<Arrival> {
        let mut state = self.state();
        state.last_updated = Some(SystemTime::now());
        let count = state.pending.partition_point(|arrival| arrival.revision <= revision);
        state.pending.drain(..count).collect()
    }

    /// Changes of a kind that the tables do not show yet.
    pub fn pending(&self, kind: Kind) -> usize {
        self.state().pending.iter().filter(|arrival| arrival.kind == kind).count()
    }

    /// Changes of a kind that arrived so far.
    pub fn total(&self, kind: Kind) -> u64 {
        self.state().totals[kind as usize]
    }

    /// Since when the oldest change waits that the tables do not show yet: nothing does before
    /// [`Self::begin_to_follow`].
    pub fn waiting_since(&self) -> Option<Instant> {
        let followed = *self.followed.get()?;
        self.state().pending.front().map(|arrival| arrival.at.max(followed))
    }

    /// When a change last arrived.
    pub fn last_queued(&self) -> Option<SystemTime> {
        self.state().last_queued
    }

    /// When the tables last were as desired.
    pub fn last_updated(&self) -> Option<SystemTime> {
        self.state().last_updated
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn awaited() -> Arrivals {
        let arrivals = Arrivals::default();
        arrivals.await_tables();
        arrivals.begin_to_follow(Instant::now());
        arrivals
    }

    fn arrival(revision: u64, kind: Kind, trigger: Option<SystemTime>) -> Arrival {
        Arrival { revision, kind, at: Instant::now(), listed: false, trigger }
    }

    #[test]
    fn a_change_is_pending_until_the_tables_show_its_revision() {
        let arrivals = awaited();
        arrivals.note(arrival(1, Kind::Services, None));
        arrivals.note(arrival(2, Kind::Slices, None));
        arrivals.note(arrival(3, Kind::Slices, None));
        assert_eq!(arrivals.shown(2).len(), 2);
        assert_eq!((arrivals.pending(Kind::Services), arrivals.pending(Kind::Slices)), (0, 1));
        assert!(arrivals.waiting_since().is_some());
        assert_eq!(arrivals.shown(9).len(), 1);
        assert!(arrivals.waiting_since().is_none() && arrivals.last_updated().is_some());
        assert_eq!((arrivals.total(Kind::Services), arrivals.total(Kind::Slices)), (1, 2));
    }

    #[test]
    fn what_happened_before_the_start_measures_nothing() {
        let arrivals = awaited();
        let hour = Duration::from_hours(1);
        arrivals.note(arrival(1, Kind::Slices, Some(SystemTime::now() - hour)));
        arrivals.note(arrival(2, Kind::Slices, Some(SystemTime::now() + hour)));
        let triggers: Vec<_> = arrivals.shown(2).iter().map(|a| a.trigger.is_some()).collect();
        assert_eq!(triggers, [false, true]);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_kept() {
        let arrivals = awaited();
        for revision in 0..PENDING_MAX as u64 + 10 {
            arrivals.note(arrival(revision, Kind::Slices, None));
        }
        assert_eq!(arrivals.pending(Kind::Slices), PENDING_MAX);
        assert_eq!(arrivals.total(Kind::Slices), PENDING_MAX as u64 + 10);
        assert_eq!(arrivals.shown(0).len(), 1);
    }

    #[test]
    fn without_tables_nothing_is_pending() {
        let arrivals = Arrivals::default();
        arrivals.note(arrival(1, Kind::Slices, None));
        assert_eq!((arrivals.pending(Kind::Slices), arrivals.total(Kind::Slices)), (0, 1));
    }
}
