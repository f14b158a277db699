//! What has to be written so that the tables say what is desired: pure, and with a plan as data
//! for its result.
//!
//! ```text
//! desired::Change ──┐
//!                   ├──diff──> plan::Plan ──> crate::apply ──> tables
//! known::Known <────┘                                            │
//!   ^   └─ limbo ──reap──> plan::Plan  (behind a barrier) ──>────┤
//!   └── restore ── a dump of the tables, at start and after a failure
//!       late ───── deletions that the dump tells of, at start
//! ```
//! Ids and places are chosen here and nowhere else: [`ids`] for sets and backends, [`extent`] for
//! slot ranges. What a plan unlinks is released behind a barrier, by a plan of its own: [`limbo`].

mod draft;
pub mod expected;
pub mod extent;
pub mod ids;
pub mod known;
pub mod late;
pub mod limbo;
pub mod plan;
pub mod restore;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

pub use known::Known;
pub use limbo::Awaits;
pub use plan::{Op, Plan};

use std::sync::Arc;

use crate::desired::Change;

/// The plan that makes `known` what `change` asks for. `known` becomes the state after the plan:
/// when the plan is not applied whole, it has to be restored from a dump. What the plan unlinks is
/// in `known`'s limbo afterwards, and is released by another ([`Known::reap`]).
///
/// An unchanged input gives an empty plan, and the size of a plan depends on what changes alone.
pub fn diff(change: &Change, known: &mut Known) -> Plan {
    let mut draft = draft::Draft::default();
    draft.deleted.clone_from(&change.deleted);
    draft.resume(std::mem::take(&mut known.unfinished));
    if change.complete {
        known.retire_unnamed(change, &mut draft);
    }
    for (key, wanted) in &change.sets {
        match wanted {
            Some(wanted) => known.place(key, wanted, &mut draft),
            None => known.remove(key, &mut draft),
        }
    }
    for (key, target) in &change.frontends {
        known.lead(*key, target.as_ref(), &mut draft);
    }
    // Many nodes have many pod ranges: they are compared when they may have changed.
    let compared = Arc::ptr_eq(&known.node_for, &change.node) && !change.complete;
    if !compared && !Arc::ptr_eq(&known.node, &change.node) {
        known.node = draft.node(&known.node, &change.node, &known.room.max);
        known.node_for = Arc::clone(&change.node);
    }
    known.make_room(&mut draft);
    known.unlink(&draft);
    let (plan, unlinked) = draft.into_parts();
    known.limbo.add(unlinked);
    plan
}

/// The plan that also waits for running programs and releases what it unlinks, for those who can
/// wait that long.
pub fn diff_and_settle(change: &Change, known: &mut Known) -> Plan {
    let mut plan = diff(change, known);
    let Plan { ops, resets, .. } = known.settle();
    plan.ops.extend(ops);
    plan.resets.extend(resets);
    plan
}
