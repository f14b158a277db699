//! Container images without a registry: OCI layouts (image-spec 1.0) as folders and tar files, from
//! what is on this machine, which container runtimes import.
//!
//! [`cluster`] makes those of a cluster on this machine, [`node`] that of the product. The same
//! content gives the same digest ([`oci`]).

pub mod cluster;
pub mod node;
mod oci;
mod sbom;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Where an image's name without a registry leads to.
const REGISTRY: &str = "docker.io/library";
/// Names the images of a folder.
const INDEX: &str = "images.json";
/// The accounts that programs look up.
const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
/// The groups that go with them.
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// An image that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    /// `docker.io/library/hello:latest`.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The tar file.
    pub file: PathBuf,
}

/// The images that were made in `dir`.
pub fn all(dir: &Path) -> Result<Vec<Image>> {
    let file = dir.join(INDEX);
    let text = fs::read(&file).with_context(|| format!("can't read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is odd", file.display()))
}

/// A root file system from nothing.
fn fill(root: &Path, add: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("can't remove {}", root.display()))?;
    }
    for folder in ["etc", "tmp", "bin"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    add(root).with_context(|| format!("can't fill {}", root.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("can't copy {}", from.display())).map(drop)
}
