//! `mizzen-agent mount-bpffs`: has the node have a bpf file system, for the chart's init container.
//! The agent's own container may not: what it mounts stays in it.

use std::path::PathBuf;

use crate::datapath;

/// Options of `mount-bpffs`.
#[derive(Debug, clap::Args)]
pub struct MountBpffs {
    /// Where the node has it
    #[arg(default_value = "/sys/fs/bpf")]
    path: PathBuf,
}

impl MountBpffs {
    /// Mounts it, unless it is there.
    pub fn execute(self) -> anyhow::Result<()> {
        datapath::mount_bpffs(&self.path)?;
        println!("{} is a bpf file system", self.path.display());
        Ok(())
    }
}
