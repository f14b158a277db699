//! What plans unlinked and programs that run may still hold: between the step that unlinks and the
//! barrier behind it.
//!
//! ```text
//! diff ──> waiting ──begin──> draining ──(a barrier)──reap──> steps that release, ids that are free
//! ```
//! A barrier takes a grace period of the kernel, some 15 ms. Plans do not wait for it: what they
//! unlink waits here, and the next plan is made meanwhile. It may use again what is in here, an
//! endpoint that comes back or a source range: then nothing of it is released. Ids and places are
//! given out again only when they were reaped.
//!
//! An agent that dies leaves what was in here in the tables, where a dump finds it: a set that no
//! frontend leads to, a backend that no range names.

use std::collections::{BTreeMap, BTreeSet};

use mizzen_ebpf_abi::service::SetWord;

use super::{
    known::{BackendRecord, Known},
    plan::{Op, Plan, Reset},
};
use crate::apply::maps::SourceRange;

/// What is released together.
#[derive(Clone, Debug, Default)]
pub(super) struct Unlinked {
    /// Words of sets that no frontend leads to.
    pub(super) dead_sets: BTreeMap<u32, SetWord>,
    /// Records of freed backends, by family and id.
    pub(super) records: BTreeMap<(bool, u32), BackendRecord>,
    /// Source ranges that no frontend asks for.
    pub(super) source_ranges: BTreeSet<SourceRange>,
    /// Ids of sets that are free then.
    pub(super) sets: Vec<u32>,
    /// Ids of backends that are free then, by family.
    pub(super) backends: Vec<(bool, u32)>,
    /// Words of slots that are free then, by offset and length.
    pub(super) ranges: Vec<(u32, u32)>,
    /// Whose flows are to be reset then: no program leads anyone there any more.
    pub(super) resets: Vec<Reset>,
    /// Whether programs that run may hold any of it.
    pub(super) held: bool,
}

impl Unlinked {
    fn is_empty(&self) -> bool {
        self.dead_sets.is_empty()
            && self.records.is_empty()
            && self.source_ranges.is_empty()
            && self.sets.is_empty()
            && self.backends.is_empty()
            && self.ranges.is_empty()
            && self.resets.is_empty()
    }

    fn add(&mut self, later: Self) {
        self.dead_sets.extend(later.dead_sets);
        self.records.extend(later.records);
        self.source_ranges.extend(later.source_ranges);
        self.sets.extend(later.sets);
        self.backends.extend(later.backends);
        self.ranges.extend(later.ranges);
        self.resets.extend(later.resets);
        self.held |= later.held;
    }
}

/// What has to happen before the limbo can be reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaits {
    /// Nothing is in there, or a barrier is under way.
    Nothing,
    /// It can be reaped at once: no program can hold any of it.
    Reaping,
    /// A barrier.
    Barrier {
        /// Whether somebody waits for what comes behind it.
        urgent: bool,
    },
}

/// The limbo.
#[derive(Clone, Debug, Default)]
pub(super) struct Limbo {
    waiting: Unlinked,
    /// What was waiting when the barrier that is under way began.
    draining: Option<Unlinked>,
}

impl Limbo {
    /// Puts in what a plan unlinked.
    pub(super) fn add(&mut self, unlinked: Unlinked) {
        self.waiting.add(unlinked);
    }

    fn parts(&mut self) -> impl Iterator<Item = &mut Unlinked> {
        self.draining.iter_mut().chain([&mut self.waiting])
    }

    /// The record of a backend is not freed after all: its endpoint came back.
    pub(super) fn keep_record(&mut self, ipv6: bool, id: u32) {
        for part in self.parts() {
            part.records.remove(&(ipv6, id));
        }
    }

    /// The word of a set is not cleared after all: something leads to it again.
    pub(super) fn keep_word(&mut self, set: u32) {
        for part in self.parts() {
            part.dead_sets.remove(&set);
        }
    }

    /// A source range is not removed after all. False where it was not to be.
    pub(super) fn keep_source_range(&mut self, range: &SourceRange) -> bool {
        self.parts().any(|part| part.source_ranges.remove(range))
    }

    /// The sets whose words will be cleared.
    pub(super) fn dead_sets(&self) -> impl Iterator<Item = u32> {
        let draining = self.draining.iter().flat_map(|part| part.dead_sets.keys());
        draining.chain(self.waiting.dead_sets.keys()).copied()
    }

    /// The source ranges that will be removed.
    pub(super) fn source_ranges(&self) -> impl Iterator<Item = &SourceRange> {
        let draining = self.draining.iter().flat_map(|part| &part.source_ranges);
        draining.chain(&self.waiting.source_ranges)
    }
}

impl Known {
    /// What has to happen before what plans unlinked can be released.
    pub fn awaits(&self) -> Awaits {
        let Limbo { waiting, draining } = &self.limbo;
        match draining {
            Some(_) => Awaits::Nothing,
            None if waiting.is_empty() => Awaits::Nothing,
            None if waiting.held => Awaits::Barrier { urgent: !waiting.resets.is_empty() },
            None => Awaits::Reaping,
        }
    }

    /// Whether anything is still to be released.
    pub fn is_settled(&self) -> bool {
        self.limbo.draining.is_none() && self.limbo.waiting.is_empty()
    }

    /// A barrier begins, or none is needed: what was unlinked up to now is released by the next
    /// [`Self::reap`]. What plans unlink meanwhile waits for another.
    pub fn begin(&mut self) {
        let waiting = std::mem::take(&mut self.limbo.waiting);
        self.limbo.draining.get_or_insert_default().add(waiting);
    }

    /// The plan that releases what was unlinked before the barrier began, which is over now. Ids
    /// and places of it are free for the plans that follow.
    pub fn reap(&mut self) -> Plan {
        let Unlinked { dead_sets, records, source_ranges, sets, backends, ranges, resets, held: _ } =
            self.limbo.draining.take().unwrap_or_default();
        for (offset, length) in ranges {
            self.slots.free(offset, length);
        }
        for (ipv6, id) in backends {
            self.backend_ids[usize::from(ipv6)].free(id);
        }
        self.set_ids.free_all(sets);
        self.source_ranges -= source_ranges.len();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for ((_, id), record) in records {
            match record {
                BackendRecord::V4(record) => v4.push((id, record)),
                BackendRecord::V6(record) => v6.push((id, record)),
            }
        }
        let mut ops = Vec::new();
        let mut push = |wanted: bool, op: Op| {
            if wanted {
                ops.push(op);
            }
        };
        push(!dead_sets.is_empty(), Op::Flip(dead_sets.into_iter().collect()));
        push(!v4.is_empty(), Op::WriteBackends4(v4));
        push(!v6.is_empty(), Op::WriteBackends6(v6));
        let gone: Vec<_> = source_ranges.into_iter().collect();
        push(!gone.is_empty(), Op::RemoveSourceRanges(gone));
        Plan { ops, resets, ..Plan::default() }
    }

    /// The plan that waits for running programs where that is needed, and releases everything.
    pub fn settle(&mut self) -> Plan {
        self.begin();
        let waits = self.limbo.draining.as_ref().is_some_and(|part| part.held);
        let mut plan = self.reap();
        if waits {
            plan.ops.insert(0, Op::Barrier);
        }
        plan
    }

    /// Whose flows are to be reset behind a barrier that did not come yet.
    pub fn resets(&self) -> impl Iterator<Item = &Reset> {
        let draining = self.limbo.draining.iter().flat_map(|part| &part.resets);
        draining.chain(&self.limbo.waiting.resets)
    }
}
