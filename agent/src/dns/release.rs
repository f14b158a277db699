//! Gives up what the node holds for its resolver.

use std::{collections::BTreeSet, io};

use super::{
    addresses::{self, AddressError},
    untracked::{self, Untracked, UntrackedError},
};

/// What was not given up.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// An address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The rules that keep connection tracking away.
    #[error(transparent)]
    Untracked(#[from] UntrackedError),
    /// Nothing, for want of what runs it.
    #[error("start a runtime to give up addresses: {0}")]
    Runtime(#[source] io::Error),
}

/// Gives up the addresses and the rules of a resolver that ends, or that a predecessor of an agent
/// without the role held and, being killed, could not give up itself. Touches nothing else.
pub async fn release() -> Result<(), ReleaseError> {
    addresses::hold(&BTreeSet::new()).await?;
    Ok(untracked::hold(Untracked::default()).await?)
}

/// As [`release`], for who waits for it outside of a runtime: where no agent is left to do so.
pub fn release_at_once() -> Result<(), ReleaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ReleaseError::Runtime)?.block_on(release())
}
