//! The program that makes the load, and the folder that servers of a run have theirs in.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    bench::interrupt,
    invoke,
    load::Measured,
    product::{self, Profile},
    step::step,
    target_dir,
};

/// The program, and where things lie.
#[derive(Debug)]
pub(super) struct Load {
    program: PathBuf,
    /// The control plane's program.
    pub(super) control_plane: PathBuf,
    /// On a disk: what is durable here shall be so.
    folder: PathBuf,
}

impl Load {
    /// Builds the program.
    pub(super) fn build(profile: Profile) -> Result<Self> {
        step("building the load", || {
            let mut build = product::cargo();
            build.arg("build").args(["-p", "mizzen-control-plane", "--example", "load"]);
            if profile == Profile::Release {
                build.arg("--release");
            }
            invoke::run(&mut build)
        })?;
        let binaries = product::bin_dir(profile);
        let load = Self {
            program: binaries.join("examples/load"),
            control_plane: binaries.join("mizzen-control-plane"),
            folder: target_dir().join("bench-control-plane"),
        };
        load.clean()?;
        Ok(load)
    }

    /// Removes what a run left.
    pub(super) fn clean(&self) -> Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("can't remove {}", self.folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// An empty folder.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        let _absent = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        Ok(folder)
    }

    /// Runs it once.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<Measured> {
        interrupt::check()?;
        let said = invoke::capture(Command::new(&self.program).args(arguments))?;
        serde_json::from_str(said.trim())
            .with_context(|| format!("the load says {said:?}, which is no measurement"))
    }
}

/// A path as an argument. Ours are text.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}
