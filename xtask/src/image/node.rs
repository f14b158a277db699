//! The image of the agent: its static binaries, what they are made of, and nothing else.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    INDEX, Image, copy, fill,
    oci::{self, Recipe},
    sbom,
};
use crate::{checkout, invoke, product};

/// The image's name, without a registry.
pub const NAME: &str = "mizzen-agent";
/// Octets that it may have, compressed.
pub const SIZE_MAX: u64 = 25_000_000;
/// Where the list of its parts is.
const SBOM: &str = "usr/share/doc/mizzen/sbom.cdx.json";
/// The packages whose binaries are in it.
const PACKAGES: [&str; 2] = ["mizzen-agent", "mizzen-cni"];

/// The image, and what was made of it.
#[derive(Clone, Debug)]
pub struct Made {
    /// For runtimes that import a tar file.
    pub image: Image,
    /// The OCI layout, as a folder.
    pub layout: PathBuf,
    /// The list of its parts (CycloneDX).
    pub sbom: PathBuf,
    /// Its size in octets, compressed.
    pub size: u64,
}

/// Makes the image in `dir` of binaries for `triple` in `bin`.
pub fn make(dir: &Path, bin: &Path, triple: &str) -> Result<Made> {
    fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    let parts = serde_json::to_vec_pretty(&parts(triple)?)?;
    let sbom = dir.join("mizzen-agent.sbom.cdx.json");
    fs::write(&sbom, &parts)?;
    let root = dir.join("node.root");
    fill(&root, |root| {
        for program in ["mizzen-agent", "mizzen", "mizzen-cni"] {
            copy(&bin.join(program), &root.join("usr/bin").join(program))?;
        }
        let file = root.join(SBOM);
        fs::create_dir_all(file.parent().unwrap_or(root))?;
        Ok(fs::write(file, &parts)?)
    })?;
    let made = pack(dir, &root, &Source::of_checkout()?);
    fs::remove_dir_all(&root).with_context(|| format!("can't remove {}", root.display()))?;
    let (image, layout) = made?;
    fs::write(dir.join(INDEX), serde_json::to_vec_pretty(&[&image])?)?;
    let size = fs::metadata(&image.file)?.len();
    Ok(Made { image, layout, sbom, size })
}

/// What the image is made from.
struct Source {
    version: String,
    revision: String,
    /// Of the revision, as RFC 3339 has it: a build of it tomorrow is the same.
    created: String,
}

impl Source {
    fn of_checkout() -> Result<Self> {
        let git = |args: &[&str]| -> Result<String> {
            let mut command = Command::new("git");
            let said = invoke::capture(command.current_dir(checkout()).args(args))?;
            Ok(said.trim().to_owned())
        };
        let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        let mut revision = git(&["rev-parse", "HEAD"])?;
        if changed {
            revision.push_str("-changed");
        }
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision,
            created: git(&["show", "--no-patch", "--format=%cI", "HEAD"])?,
        })
    }
}

/// The image of a root file system, as a tar file and as a layout.
fn pack(dir: &Path, root: &Path, source: &Source) -> Result<(Image, PathBuf)> {
    let label = |name: &'static str, value: &str| (name, value.to_owned());
    let labels = BTreeMap::from([
        label("org.opencontainers.image.title", NAME),
        label("org.opencontainers.image.description", "Node networking of a Kubernetes cluster"),
        label("org.opencontainers.image.version", &source.version),
        label("org.opencontainers.image.revision", &source.revision),
        label("org.opencontainers.image.created", &source.created),
        label("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
    ]);
    let recipe = Recipe {
        name: NAME,
        tag: &source.version,
        root,
        entrypoint: vec!["/usr/bin/mizzen-agent"],
        command: vec!["run"],
        labels,
        created: Some(source.created.clone()),
        compressed: true,
    };
    let layout = oci::layout(dir, NAME);
    oci::lay_out(&layout, &recipe)?;
    let kept = dir.join("oci");
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::rename(&layout, &kept)?;
    Ok((oci::make(dir, &recipe)?, kept))
}

/// The list of what the binaries are linked from.
fn parts(triple: &str) -> Result<Value> {
    let mut metadata = product::cargo();
    metadata.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", triple]);
    let metadata = serde_json::from_str(&invoke::capture(&mut metadata)?)?;
    sbom::document(&metadata, &PACKAGES, env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_binaries_and_revision_are_the_same_image() {
        let dir = std::env::temp_dir().join(format!("mizzen-node-image-{}", std::process::id()));
        let image = |program: &str, revision: &str| {
            let root = dir.join("root");
            fill(&root, |root| Ok(fs::write(root.join("bin/program"), program)?)).expect("a root");
            let source = Source {
                version: "1.2.3".into(),
                revision: revision.into(),
                created: "2026-01-02T03:04:05+00:00".into(),
            };
            let (image, layout) = pack(&dir, &root, &source).expect("an image");
            let index = fs::read_to_string(layout.join("index.json")).expect("an index");
            assert!(index.contains(&image.digest), "layout and tar have one digest: {index}");
            image
        };
        let (one, same) = (image("a", "r"), image("a", "r"));
        let (content, revision) = (image("b", "r"), image("a", "s"));
        fs::remove_dir_all(&dir).expect("to remove the folder");
        assert_eq!(one.digest, same.digest);
        assert_eq!(one.name, "docker.io/library/mizzen-agent:1.2.3");
        assert_ne!(one.digest, content.digest);
        assert_ne!(one.digest, revision.digest);
    }

    #[test]
    fn the_list_has_what_is_linked_and_nothing_of_the_tests() {
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let text = parts(&triple).expect("a list").to_string();
        for crate_ in ["pkg:cargo/mizzen-cni@", "pkg:cargo/aya@", "pkg:cargo/tokio@"] {
            assert!(text.contains(crate_), "{crate_} is missing");
        }
        for crate_ in ["pkg:cargo/proptest@", "pkg:cargo/mizzen-control-plane@"] {
            assert!(!text.contains(crate_), "{crate_} is not linked");
        }
    }
}
