//! `cargo xtask build`: the binaries of the product.

use anyhow::Result;
use clap::Args;

use crate::product::{self, Profile};

/// Options of `build`.
#[derive(Args, Debug)]
pub struct Build {
    /// Into target/debug: quick to build, slow to run
    #[arg(long)]
    debug: bool,
}

/// Builds everything that runs on a node.
pub fn run(options: &Build) -> Result<()> {
    product::build(if options.debug { Profile::Debug } else { Profile::Release })
}
