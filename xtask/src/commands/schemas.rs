//! `cargo xtask schemas`: the control plane's tables of Kubernetes' API types, made anew.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{checkout, schemas};

/// Options of `schemas`.
#[derive(Args, Debug)]
pub struct Schemas {
    /// Directory that holds the Go modules k8s.io/api and k8s.io/apimachinery by their import paths
    sources: PathBuf,
}

/// Writes the tables.
pub fn run(options: &Schemas) -> Result<()> {
    schemas::distil(&options.sources, &checkout().join("control-plane/src/schema/types"))
}
