//! What plans unlinked is released behind barriers; the loop does not wait for them.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use tokio::task::{JoinHandle, spawn_blocking};

use super::{Reconciler, Scope, chain, flips};
use crate::{
    apply::{
        apply,
        maps::{BarrierCall, MapsError},
    },
    diff::{Awaits, Known, Plan},
};

/// How long what was unlinked is gathered before a barrier begins: one serves all of it. Ids and
/// places are free so much later, and nobody waits for them.
const LINGER: Duration = Duration::from_millis(200);

/// The barrier that is under way, and when the next is due.
#[derive(Debug, Default)]
pub(super) struct Releases {
    barrier: Option<JoinHandle<Result<(), MapsError>>>,
    due: Option<Instant>,
    /// Whether what plans unlinked was forgotten before it was released.
    pub(super) forgotten: bool,
}

impl Releases {
    /// When the loop has something to do for them.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How the barrier under way went, when it is over; for ever where none is.
    pub(super) async fn barrier(&mut self) -> Result<(), String> {
        let Some(barrier) = &mut self.barrier else { return std::future::pending().await };
        let outcome = barrier.await;
        self.barrier = None;
        outcome.map_err(|error| chain(&error))?.map_err(|error| chain(&error))
    }

    /// Waits for running programs on a thread of its own.
    fn begin(&mut self, barrier: BarrierCall) {
        self.barrier = Some(spawn_blocking(barrier));
    }
}

impl Reconciler {
    /// Begins a barrier where one is needed and due, or releases what nobody can hold.
    pub(super) fn release(&mut self, now: Instant) {
        let Some(known) = &mut self.known else { return };
        match known.awaits() {
            Awaits::Nothing => self.releases.due = None,
            Awaits::Reaping => {
                known.begin();
                self.reap();
            }
            Awaits::Barrier { urgent } => {
                let due = *self.releases.due.get_or_insert(now + LINGER);
                if urgent || due <= now {
                    self.releases.due = None;
                    known.begin();
                    self.releases.begin(self.maps.barrier_call());
                }
            }
        }
    }

    /// Takes note that the barrier under way is over.
    pub(super) fn barrier_over(&mut self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.reap(),
            Err(error) => {
                let Some(known) = self.known.take() else { return };
                self.broken_off(&Plan::default(), &known);
                self.conclude(Err(error), Scope::Change, Instant::now());
            }
        }
    }

    /// Releases what was unlinked before the last barrier.
    fn reap(&mut self) {
        let Some(mut known) = self.known.take() else { return };
        let plan = known.reap();
        match self.carry_out(&plan, &known) {
            Ok(()) => self.known = Some(known),
            Err(error) => self.conclude(Err(error), Scope::Change, Instant::now()),
        }
    }

    /// Waits for running programs and releases all that plans unlinked: for those who drive the loop
    /// by hand, and for its end.
    pub fn finish(&mut self) {
        let Some(known) = self.known.take() else { return };
        match self.settle_releases(known) {
            Ok(known) => self.known = Some(known),
            Err(error) => self.conclude(Err(error), Scope::Change, Instant::now()),
        }
    }

    /// Waits for running programs, and releases everything: for those who look at the whole.
    pub(super) fn settle_releases(&mut self, mut known: Known) -> Result<Known, String> {
        self.releases = Releases::default();
        let plan = known.settle();
        self.carry_out(&plan, &known)?;
        Ok(known)
    }

    /// Makes the steps of a plan after which the tables are as `known` says, and has sockets reset
    /// behind them.
    pub(super) fn carry_out(&mut self, plan: &Plan, known: &Known) -> Result<(), String> {
        let applied = apply(plan, &mut *self.maps);
        self.metrics.map_calls.store(self.maps.calls(), Relaxed);
        self.metrics.map_writes.store(self.maps.writes(), Relaxed);
        self.metrics.map_bytes.store(self.maps.bytes(), Relaxed);
        if let Err(error) = applied {
            self.broken_off(plan, known);
            return Err(chain(&error));
        }
        self.metrics.set_flips.fetch_add(flips(plan), Relaxed);
        self.deletions.reset(plan.resets.clone());
        Ok(())
    }

    /// Has the tables be unknown: the next plan begins anew, from a dump.
    pub(super) fn forget(&mut self) {
        let Some(known) = self.known.take() else { return };
        let forgotten = !known.is_settled();
        self.releases = Releases { forgotten, ..Releases::default() };
        self.deletions.take_back(known.resets().copied().collect());
    }

    /// Takes note that a plan was broken off, or a barrier: the next one begins anew, from a dump,
    /// and resets whom this one and those before it were to reset.
    fn broken_off(&mut self, plan: &Plan, known: &Known) {
        self.metrics.plan_failures.fetch_add(1, Relaxed);
        self.releases = Releases::default();
        self.deletions.take_back(plan.resets.iter().chain(known.resets()).copied().collect());
    }
}
