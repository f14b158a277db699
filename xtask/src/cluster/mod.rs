//! A cluster on one machine: each node a network namespace and a cgroup2 subtree.
//!
//! ```text
//!  machine's namespace: API server, controllers, scheduler       bridge 172.30.0.1, fd00:30::1
//!   │                                                                │
//!   ├── node-1 (netns + cgroup): agent, node part, pods ── eth0 ─────┤ 172.30.0.11, fd00:30::11
//!   ├── node-2 (netns + cgroup): agent, node part, pods ── eth0 ─────┤ 172.30.0.12, fd00:30::12
//!   └── client (netns): outside the cluster ───────────── eth0 ──────┘ 172.30.0.100, fd00:30::100
//! ```
//!
//! [`layout`] says what everything is called (pure); [`up`] makes it, [`down`] removes it; both
//! can be repeated at any time, after a crash too. Whatever is started is written to
//! `processes.json` with its start time and lives in the cluster's cgroup: by these `down` finds
//! it, and nothing foreign is ever ended.

pub mod api;
pub mod bulk;
pub mod cgroup;
pub mod containerd;
pub mod down;
pub mod exec;
mod identities;
pub mod layout;
pub mod network;
pub mod process;
pub mod resolvers;
pub mod traffic;
pub mod up;

pub use layout::{Layout, Runtime};

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::invoke;

/// Exists while the BPF file system is one that we mounted, so that `down` unmounts no other's.
pub fn bpffs_marker() -> PathBuf {
    PathBuf::from("/run/mizzen-bpffs-mounted")
}

fn bpffs_is_mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("can't read the mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf")))
}

/// Mounts the BPF file system where it is not: the nodes share the machine's.
pub fn ensure_bpffs() -> Result<()> {
    if bpffs_is_mounted()? {
        return Ok(());
    }
    fs::write(bpffs_marker(), "")?;
    invoke::capture(&mut invoke::command("mount", ["-t", "bpf", "bpf", "/sys/fs/bpf"])).map(drop)
}

impl Layout {
    fn binaries_file(&self) -> PathBuf {
        self.dir.join("binaries")
    }

    fn runtime_file(&self) -> PathBuf {
        self.dir.join("runtime")
    }

    /// Writes down what runs the containers. A cluster that is up keeps it.
    pub fn remember_runtime(&self) -> Result<()> {
        let text = self.runtime.name();
        if let Ok(known) = fs::read_to_string(self.runtime_file())
            && known != text
        {
            anyhow::bail!("the cluster that is up runs on {known}; `cargo xtask down` first");
        }
        fs::write(self.runtime_file(), text).context("can't write what runs the containers")
    }

    /// Writes down which build the cluster runs, for commands that come later.
    pub fn remember_binaries(&self) -> Result<()> {
        let text = self.bin_dir.display().to_string();
        fs::write(self.binaries_file(), text).context("can't write which build is run")
    }

    /// Reads which build the cluster runs; what it was where nothing is written down.
    pub fn recall_binaries(&mut self) {
        if let Ok(text) = fs::read_to_string(self.binaries_file()) {
            self.bin_dir = text.into();
        }
    }
}
