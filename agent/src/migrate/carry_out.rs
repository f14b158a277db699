//! Does what a plan says, a step after another, and looks whether it is so.

use std::path::Path;

use super::{
    hold,
    look::{Agent, LookError, Seen},
    plan::{Plan, Step},
};
use crate::{
    datapath::{ReleaseError, release},
    dns,
    netfilter::{
        TalkError,
        legacy::{self, LegacyError},
        tables::NfTables,
    },
};

/// Why a step was not done. What was done before stays, and a further run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum CarryOutError {
    /// The table that holds connections can't be made.
    #[error(
        "make the nftables table {table}, which keeps connections that kube-proxy's rules translated; \
         nothing was removed: {0}",
        table = hold::TABLE
    )]
    Hold(#[source] TalkError),
    /// The kernel refuses to remove the rules.
    #[error(
        "remove kube-proxy's rules, of which all are still there; where somebody changed rules \
         meanwhile, run it again: {0}"
    )]
    Remove(#[source] TalkError),
    /// The kernel refuses to remove those of a table of `iptables-legacy`.
    #[error(
        "remove kube-proxy's rules, of which those of this table are all still there; run it again"
    )]
    RemoveLegacy(#[source] LegacyError),
    /// Addresses of cluster DNS stay the node's.
    #[error("give up the addresses of cluster DNS that an agent left; run it again")]
    GiveUpNames(#[source] dns::release::ReleaseError),
    /// Mizzen's datapath stays in force.
    #[error("take Mizzen's datapath out of force")]
    Detach(#[source] ReleaseError),
    /// What holds connections stays.
    #[error(
        "remove the nftables table {table}, which does no harm: {0}",
        table = hold::TABLE
    )]
    Release(#[source] TalkError),
    /// It can't be looked at.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The rules came back at once.
    #[error(
        "kube-proxy's rules were removed and are there again ({0}): something on this node still \
         writes them; find it, and run this again"
    )]
    CameBack(String),
}

/// Carries out the steps of a plan without obstacles; Mizzen's pins are below `bpffs`. `done` is told
/// of each step.
pub fn carry_out(
    plan: &Plan,
    bpffs: &Path,
    mut done: impl FnMut(&Step),
) -> Result<(), CarryOutError> {
    for step in &plan.steps {
        match step {
            Step::Hold { .. } => hold::hold().map_err(CarryOutError::Hold)?,
            Step::Remove { removal, .. } => NfTables::open()
                .map_err(TalkError::from)
                .and_then(|mut kernel| kernel.carry_out(removal))
                .map_err(CarryOutError::Remove)?,
            Step::RemoveLegacy { changes, .. } => {
                changes
                    .iter()
                    .try_for_each(legacy::carry_out)
                    .map_err(CarryOutError::RemoveLegacy)?;
            }
            Step::GiveUpNames => {
                dns::release::release_at_once().map_err(CarryOutError::GiveUpNames)?;
            }
            Step::Detach => {
                release(bpffs).map_err(CarryOutError::Detach)?;
                // No agent is left to do so.
                hold::release().map_err(CarryOutError::Release)?;
            }
        }
        done(step);
    }
    Ok(())
}

/// Whether it is as the plan wanted it.
pub fn verify(agent: Agent) -> Result<(), CarryOutError> {
    let left = Plan::apply(&Seen::now(agent)?, true);
    let words: Vec<_> = left.steps.iter().map(Step::words).collect();
    if words.is_empty() { Ok(()) } else { Err(CarryOutError::CameBack(words.join("; "))) }
}
