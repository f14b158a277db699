//! Making plans happen: the tables behind one trait, and the interpreter that makes no choices.

pub mod audit;
pub mod lookup;
pub mod maps;
pub mod memory;
pub mod stepwise;

use crate::diff::plan::{Op, Plan};
use maps::{Maps, MapsError};

/// A plan that came to a halt.
#[derive(Debug, thiserror::Error)]
#[error("step {step} of {steps} of the plan failed: {op}")]
pub struct ApplyError {
    /// Number of the step, from 1.
    pub step: usize,
    /// How many steps the plan has.
    pub steps: usize,
    /// The step in words, its first line.
    pub op: String,
    /// What the tables said.
    #[source]
    pub source: MapsError,
}

/// Makes the steps of a plan in their order, and stops at the first that fails. What the tables
/// hold then is learned by a dump, not guessed.
pub fn apply(plan: &Plan, maps: &mut dyn Maps) -> Result<(), ApplyError> {
    if !plan.new_sets.is_empty() {
        maps.begin_traffic(&plan.new_sets);
    }
    for (index, op) in plan.ops.iter().enumerate() {
        step(op, maps).map_err(|source| ApplyError {
            step: index + 1,
            steps: plan.ops.len(),
            op: op.to_string().lines().next().unwrap_or_default().to_owned(),
            source,
        })?;
    }
    Ok(())
}

fn step(op: &Op, maps: &mut dyn Maps) -> Result<(), MapsError> {
    match op {
        Op::Grow(tables) => maps.grow(tables),
        Op::PutNodeAddrs(addrs) => maps.put_node_addrs(addrs),
        Op::PutClusterRanges(ranges) => maps.put_cluster_ranges(ranges),
        Op::PutSourceRanges(ranges) => maps.put_source_ranges(ranges),
        Op::RemoveSourceRanges(ranges) => maps.remove_source_ranges(ranges),
        Op::SetNodeConfig(config) => maps.set_node_config(config),
        Op::WriteBackends4(backends) => maps.write_backends4(backends),
        Op::WriteBackends6(backends) => maps.write_backends6(backends),
        Op::WriteRange { offset, words } => maps.write_slots(*offset, words),
        Op::Flip(words) => maps.flip(words),
        Op::PutFrontends(entries) => maps.put_frontends(entries),
        Op::RemoveFrontends(keys) => maps.remove_frontends(keys),
        Op::Barrier => maps.barrier(),
        Op::RemoveNodeAddrs(addrs) => maps.remove_node_addrs(addrs),
        Op::RemoveClusterRanges(ranges) => maps.remove_cluster_ranges(ranges),
    }
}
