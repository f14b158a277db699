//! What is not as desired, and when it is tried again.
//!
//! A plan that failed leaves tables of which nothing is known: the next change waits for the next
//! attempt. What there was no room for leaves tables that are known: changes go on meanwhile, and
//! cost what they touch.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// The first pause after a failure; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// What there was no room for is remembered by so many names.
const REFUSED_MAX: usize = 1_024;

/// How much a plan was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// What changed.
    Change,
    /// All that is desired.
    Everything,
}

/// The state of it.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// What there was no room for when everything was compared, and since.
    refused: BTreeSet<String>,
    /// Attempts in a row that left something undone in the same way.
    attempts: u32,
    /// Whether the last one did so by a failure.
    failed: bool,
    /// When everything is tried again.
    retry: Option<Instant>,
}

impl Trouble {
    /// When everything is to be tried again.
    pub(super) fn retry(&self) -> Option<Instant> {
        self.retry
    }

    /// Whether it is time for that.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.retry.is_some_and(|at| at <= now)
    }

    /// Whether that has to wait.
    pub(super) fn waits(&self, now: Instant) -> bool {
        self.retry.is_some_and(|at| at > now)
    }

    /// Whether the last attempt failed: a plan may have been broken off.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Ends the wait: there is a new reason to try.
    pub(super) fn hasten(&mut self, now: Instant) {
        if self.retry.is_some() {
            self.retry = Some(now);
        }
    }

    /// Takes note of how a plan went. What is to be told of it, if it is news; `Ok` where all is
    /// well now.
    pub(super) fn note(
        &mut self,
        outcome: Result<Vec<String>, String>,
        scope: Scope,
    ) -> Option<Result<(), String>> {
        let failed = outcome.is_err();
        let told = match outcome {
            Err(error) => error,
            Ok(refused) => {
                if scope == Scope::Everything {
                    self.refused.clear();
                }
                let news = self.remember(refused);
                let waiting = self.retry.is_some() && scope == Scope::Change;
                match self.summary() {
                    None if waiting => return None,
                    None => {
                        *self = Self::default();
                        return Some(Ok(()));
                    }
                    Some(_) if waiting && !news => return None,
                    Some(summary) => summary,
                }
            }
        };
        if failed || scope == Scope::Everything || self.retry.is_none() {
            self.back_off(failed);
        }
        Some(Err(told))
    }

    /// Whether there was anything new.
    fn remember(&mut self, refused: Vec<String>) -> bool {
        let mut news = false;
        for text in refused {
            if self.refused.len() < REFUSED_MAX {
                news |= self.refused.insert(text);
            }
        }
        news
    }

    fn summary(&self) -> Option<String> {
        let first = self.refused.first()?;
        let more = self.refused.len() - 1;
        Some(if more > 0 { format!("{first}, and {more} more") } else { first.clone() })
    }

    /// A failure is tried again soon, however long something else has had no room.
    fn back_off(&mut self, failed: bool) {
        if self.failed != failed {
            (self.failed, self.attempts) = (failed, 0);
        }
        let pause = (RETRY_MIN * 2u32.pow(self.attempts.min(10))).min(RETRY_MAX);
        self.attempts = self.attempts.saturating_add(1);
        self.retry = Some(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_change_that_goes_well_ends_no_trouble_and_a_whole_plan_does() {
        let mut trouble = Trouble::default();
        assert_eq!(trouble.note(Ok(refused(&[])), Scope::Change), Some(Ok(())));
        assert_eq!(trouble.note(Ok(refused(&["b"])), Scope::Change), Some(Err("b".into())));
        let retry = trouble.retry().unwrap();
        assert_eq!(trouble.note(Ok(refused(&[])), Scope::Change), None, "b still has no room");
        assert_eq!(trouble.note(Ok(refused(&["b"])), Scope::Change), None, "no news");
        let told = trouble.note(Ok(refused(&["a"])), Scope::Change);
        assert_eq!(told, Some(Err("a, and 1 more".into())));
        assert_eq!(trouble.retry(), Some(retry), "news does not put the attempt off");
        let told = trouble.note(Ok(refused(&["a"])), Scope::Everything);
        assert_eq!(told, Some(Err("a".into())), "b has room now");
        assert!(trouble.retry().unwrap() > retry, "with back-off");
        assert_eq!(trouble.note(Ok(refused(&[])), Scope::Everything), Some(Ok(())));
        assert!(trouble.retry().is_none() && !trouble.has_failed());
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut trouble = Trouble::default();
        for _ in 0..40 {
            let _ = trouble.note(Err("the kernel".into()), Scope::Everything);
        }
        let now = Instant::now();
        assert!(trouble.waits(now) && trouble.waits(now + RETRY_MAX / 2));
        assert!(trouble.is_due(now + RETRY_MAX));
        trouble.hasten(now);
        assert!(trouble.is_due(now) && trouble.has_failed());
    }

    #[test]
    fn a_failure_is_tried_again_soon_however_long_there_was_no_room() {
        let mut trouble = Trouble::default();
        for _ in 0..10 {
            let _ = trouble.note(Ok(refused(&["a"])), Scope::Everything);
        }
        assert!(trouble.waits(Instant::now() + RETRY_MAX / 2) && !trouble.has_failed());
        let _ = trouble.note(Err("the kernel".into()), Scope::Change);
        assert!(trouble.is_due(Instant::now() + RETRY_MIN) && trouble.has_failed());
    }
}
