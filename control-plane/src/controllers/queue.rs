//! The work queue of a controller: each key at most once in line and at most once at work.
//!
//! [`Line`] is the state machine and takes the time as an argument; [`Queue`] puts a lock and a
//! wake-up around it. Its size is bounded by the number of objects, since keys are never doubled.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Wait after the first failure of a key; doubled with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// The longest wait between two attempts.
const LONGEST_RETRY: Duration = Duration::from_mins(1);

/// The order of work, without a clock.
#[derive(Debug)]
pub(crate) struct Line<T> {
    ready: VecDeque<T>,
    /// Keys in `ready`, and keys at work that have to be looked at again afterwards.
    dirty: HashSet<T>,
    working: HashSet<T>,
    delayed: BTreeSet<(Instant, T)>,
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            delayed: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        }
    }
}

impl<T: Clone + Ord + Hash> Line<T> {
    /// Puts a key in line, unless it stands there. One that is at work comes back after it.
    pub(crate) fn add(&mut self, key: T) {
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Puts a key in line at that time. Of several times the earliest counts.
    pub(crate) fn add_at(&mut self, key: T, at: Instant) {
        if let Some(due) = self.due.get(&key) {
            if *due <= at {
                return;
            }
            self.delayed.remove(&(*due, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    /// The next key to work on; the caller answers with [`Line::done`] or [`Line::failed`].
    pub(crate) fn pop(&mut self, now: Instant) -> Option<T> {
        while self.delayed.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// The work on the key is done.
    pub(crate) fn done(&mut self, key: &T) {
        self.failures.remove(key);
        self.leave(key);
    }

    /// The work on the key goes on elsewhere, which will tell by [`Line::done`] or
    /// [`Line::failed`] what came of it.
    pub(crate) fn put_down(&mut self, key: &T) {
        self.leave(key);
    }

    /// The work on the key failed: it comes back after a wait that grows with each failure.
    /// Returns the wait.
    pub(crate) fn failed(&mut self, key: &T, now: Instant) -> Duration {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        let wait = FIRST_RETRY.saturating_mul(1 << (*failures).min(20)).min(LONGEST_RETRY);
        *failures += 1;
        self.add_at(key.clone(), now + wait);
        self.leave(key);
        wait
    }

    /// When the next delayed key is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, _)| *at)
    }

    fn leave(&mut self, key: &T) {
        if self.working.remove(key) && self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
    }
}

/// A [`Line`] that producers fill from any thread and one driver empties.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    line: Mutex<Line<T>>,
    wake: Notify,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { line: Mutex::new(Line::default()), wake: Notify::new() }
    }
}

impl<T: Clone + Ord + Hash> Queue<T> {
    /// Puts a key in line now.
    pub(crate) fn add(&self, key: T) {
        self.lock().add(key);
        self.wake.notify_one();
    }

    /// Puts keys in line now.
    pub(crate) fn add_all(&self, keys: impl IntoIterator<Item = T>) {
        keys.into_iter().for_each(|key| self.add(key));
    }

    /// Puts a key in line after that time.
    pub(crate) fn add_after(&self, key: T, wait: Duration) {
        self.lock().add_at(key, Instant::now() + wait);
        self.wake.notify_one();
    }

    /// The work on a key is done.
    pub(crate) fn done(&self, key: &T) {
        self.lock().done(key);
        self.wake.notify_one();
    }

    /// The work on a key goes on elsewhere.
    pub(crate) fn put_down(&self, key: &T) {
        self.lock().put_down(key);
        self.wake.notify_one();
    }

    /// The work on a key failed; it comes back after the returned wait.
    pub(crate) fn failed(&self, key: &T) -> Duration {
        let wait = self.lock().failed(key, Instant::now());
        self.wake.notify_one();
        wait
    }

    /// The next key, if there is one now.
    pub(crate) fn try_next(&self) -> Option<T> {
        self.lock().pop(Instant::now())
    }

    /// Waits for the next key. Cancel safe: a key is taken only when it is returned.
    pub(crate) async fn next(&self) -> T {
        loop {
            let due = {
                let mut line = self.lock();
                if let Some(key) = line.pop(Instant::now()) {
                    return key;
                }
                line.next_due()
            };
            match due {
                Some(due) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line<T>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_in_line_once_and_is_worked_on_by_one() {
        let now = Instant::now();
        let mut line = Line::default();
        line.add("a");
        line.add("a");
        line.add("b");
        assert_eq!(line.pop(now), Some("a"));
        line.add("a");
        line.add("a");
        assert_eq!(line.pop(now), Some("b"));
        assert_eq!(line.pop(now), None, "a is at work and must not be given out twice");
        line.done(&"a");
        assert_eq!(line.pop(now), Some("a"));
        line.done(&"a");
        assert_eq!(line.pop(now), None);
    }

    #[test]
    fn failures_double_the_wait_up_to_a_bound_and_success_resets_it() {
        let now = Instant::now();
        let mut line = Line::default();
        line.add(1);
        let mut waits = Vec::new();
        let mut at = now;
        for _ in 0..20 {
            assert_eq!(line.pop(at), Some(1));
            let wait = line.failed(&1, at);
            assert_eq!(line.pop(at), None);
            at += wait;
            waits.push(wait);
        }
        assert_eq!(waits[0], FIRST_RETRY);
        assert_eq!(waits[1], FIRST_RETRY * 2);
        assert_eq!(waits[19], LONGEST_RETRY);
        assert_eq!(line.pop(at), Some(1));
        line.done(&1);
        line.add(1);
        assert_eq!(line.pop(at), Some(1));
        assert_eq!(line.failed(&1, at), FIRST_RETRY);
    }

    #[test]
    fn the_earliest_of_several_times_counts() {
        let now = Instant::now();
        let mut line = Line::default();
        line.add_at("a", now + Duration::from_secs(10));
        line.add_at("a", now + Duration::from_secs(2));
        line.add_at("a", now + Duration::from_secs(5));
        assert_eq!(line.next_due(), Some(now + Duration::from_secs(2)));
        assert_eq!(line.pop(now + Duration::from_secs(1)), None);
        assert_eq!(line.pop(now + Duration::from_secs(2)), Some("a"));
        line.done(&"a");
        assert_eq!(line.pop(now + Duration::from_secs(20)), None);
    }
}
