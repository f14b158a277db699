//! What the loop looks at every few seconds though nothing changed: tables that somebody altered,
//! programs that somebody detached, maps that fill up.

use std::time::{Duration, Instant};

use super::{Reconciler, chain};
use crate::apply::audit::{Deviations, audit};

/// How often that is.
pub(super) const REVIEW: Duration = Duration::from_secs(5);
/// Every how many reviews the entries of others' maps are counted.
const COUNT_EVERY: u32 = 12;

/// What reviews remember.
#[derive(Debug, Default)]
pub(super) struct Review {
    last: Option<Instant>,
    count: u32,
    /// What was found altered and is not mended yet.
    altered: Option<Deviations>,
}

impl Reconciler {
    /// Looks at the tables when it is time. Where they are not as they were left, they count as
    /// unknown: the plan that follows is made from a dump.
    pub(super) fn review(&mut self, now: Instant) {
        let Some(known) = &self.known else { return };
        if self.review.last.is_some_and(|last| now.duration_since(last) < REVIEW) {
            return;
        }
        self.review.last = Some(now);
        match audit(known, &mut *self.maps) {
            Ok(deviations) if deviations.is_empty() => {}
            Ok(deviations) => {
                for (map, elements) in deviations.iter() {
                    tracing::warn!(map, elements, "somebody else altered a table");
                }
                self.review.altered = Some(deviations);
                self.forget();
                self.trouble.hasten(now);
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the tables could not be looked at");
                self.forget();
                self.trouble.hasten(now);
            }
        }
        self.look_at_pressure();
    }

    /// Counts what was altered as healed, now that a plan has brought the tables to what they
    /// should be.
    pub(super) fn note_healed(&mut self) {
        for (map, elements) in self.review.altered.take().iter().flat_map(Deviations::iter) {
            self.metrics.tables.healed(map, elements);
        }
    }

    fn look_at_pressure(&mut self) {
        if let Some(known) = &self.known {
            self.metrics.tables.note(known.usage());
        }
        if self.review.count.is_multiple_of(COUNT_EVERY) {
            match self.maps.others() {
                Ok(usage) => self.metrics.tables.note(usage),
                Err(error) => {
                    tracing::debug!(error = chain(&error), "entries could not be counted");
                }
            }
        }
        self.review.count = self.review.count.wrapping_add(1);
    }
}
