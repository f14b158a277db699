//! `cargo xtask exec PLACE -- CMD`: runs a command where a node, the client or a pod is.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    cluster::exec::{Place, command},
    toolchain,
};

/// Options of `exec`.
#[derive(Args, Debug)]
pub struct Exec {
    /// node-1, node-2, …, client, or pod/NAME (a pod of the default namespace)
    place: String,
    /// The command and its arguments, behind `--`
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

/// Becomes the command; its exit status is this one's.
pub fn run(options: &Exec) -> Result<()> {
    toolchain::require_root("`cargo xtask exec`")?;
    let layout = super::running_cluster();
    let place: Place = options.place.parse()?;
    let mut command = command(&layout, &place, &options.argv)?;
    Err(command.exec()).with_context(|| format!("can't run it in {}", options.place))
}
