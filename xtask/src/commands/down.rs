//! `cargo xtask down`: removes everything that `up` made.

use anyhow::Result;

use crate::{cluster, product::Profile, step::step, toolchain};

/// Removes the user's cluster.
pub fn run() -> Result<()> {
    toolchain::require_root("`cargo xtask down`")?;
    let layout = super::users_cluster(
        cluster::layout::NODES_MAX,
        cluster::Runtime::Process,
        Profile::Release,
    );
    step("removing the cluster", || cluster::down::down(&layout))
}
