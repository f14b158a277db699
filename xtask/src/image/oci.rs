//! An OCI layout with one image of one layer, as image-spec 1.0 has it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Image, REGISTRY};
use crate::invoke;

/// What an image is made of.
pub(super) struct Recipe<'a> {
    /// Without registry and tag.
    pub(super) name: &'a str,
    pub(super) tag: &'a str,
    /// The folder that becomes its file system.
    pub(super) root: &'a Path,
    pub(super) entrypoint: Vec<&'a str>,
    pub(super) command: Vec<&'a str>,
    /// Labels of the configuration, and annotations of the manifest.
    pub(super) labels: BTreeMap<&'a str, String>,
    /// When it was made (RFC 3339), where that is to be told.
    pub(super) created: Option<String>,
    /// Whether the layer is compressed (gzip).
    pub(super) compressed: bool,
}

impl Recipe<'_> {
    /// Of nothing.
    pub(super) fn bare() -> Self {
        Self {
            name: "",
            tag: "latest",
            root: Path::new(""),
            entrypoint: Vec::new(),
            command: Vec::new(),
            labels: BTreeMap::new(),
            created: None,
            compressed: false,
        }
    }
}

/// Where the layout of an image is while it is made.
pub(super) fn layout(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.layout"))
}

/// Makes the image as a tar file in `dir`.
pub(super) fn make(dir: &Path, recipe: &Recipe<'_>) -> Result<Image> {
    let layout = layout(dir, recipe.name);
    let digest = lay_out(&layout, recipe)?;
    let file = dir.join(format!("{}.tar", recipe.name));
    tar(&layout, &file)?;
    fs::remove_dir_all(&layout)?;
    Ok(Image { name: reference(recipe), digest, file })
}

/// As runtimes name it.
fn reference(recipe: &Recipe<'_>) -> String {
    format!("{REGISTRY}/{}:{}", recipe.name, recipe.tag)
}

/// Makes the image's layout; gives the digest of its manifest.
pub(super) fn lay_out(layout: &Path, recipe: &Recipe<'_>) -> Result<String> {
    if layout.exists() {
        fs::remove_dir_all(layout)?;
    }
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer_file = layout.join("layer");
    tar(recipe.root, &layer_file)?;
    // Of the content as it is when it is unpacked.
    let content = digest(&layer_file)?;
    let (layer_file, kind) = if recipe.compressed {
        // Without name and time: the same content gives the same file.
        invoke::capture(Command::new("gzip").args(["-9", "--no-name"]).arg(&layer_file))?;
        (layer_file.with_extension("gz"), "layer.v1.tar+gzip")
    } else {
        (layer_file, "layer.v1.tar")
    };
    let layer = adopt(&blobs, &layer_file)?;
    let mut config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": recipe.entrypoint,
            "Cmd": recipe.command,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{content}")]},
    });
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "layers": [typed(&layer, kind)],
    });
    if let Some(created) = &recipe.created {
        config["created"] = created.as_str().into();
    }
    if !recipe.labels.is_empty() {
        config["config"]["Labels"] = json!(recipe.labels);
        manifest["annotations"] = json!(recipe.labels);
    }
    manifest["config"] = typed(&put(&blobs, &config)?, "config.v1+json");
    let manifest = put(&blobs, &manifest)?;
    let mut entry = typed(&manifest, "manifest.v1+json");
    entry["annotations"] = json!({
        "io.containerd.image.name": reference(recipe),
        "org.opencontainers.image.ref.name": recipe.tag,
    });
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(manifest["digest"].as_str().unwrap_or_default().to_owned())
}

/// A descriptor with its media type.
fn typed(blob: &Value, kind: &str) -> Value {
    let mut blob = blob.clone();
    blob["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
    blob
}

/// The SHA-256 of a file, in hexadecimal digits.
fn digest(file: &Path) -> Result<String> {
    let said = invoke::capture(Command::new("sha256sum").arg(file))?;
    Ok(said.split_whitespace().next().context("sha256sum said nothing")?.to_owned())
}

/// Writes a blob of JSON; gives its digest and size.
fn put(blobs: &Path, value: &Value) -> Result<Value> {
    let file = blobs.join("next");
    fs::write(&file, value.to_string())?;
    adopt(blobs, &file)
}

/// Gives a file the name of its digest; gives digest and size.
fn adopt(blobs: &Path, file: &Path) -> Result<Value> {
    let digest = digest(file)?;
    let size = fs::metadata(file)?.len();
    fs::rename(file, blobs.join(&digest))?;
    Ok(json!({"digest": format!("sha256:{digest}"), "size": size}))
}

/// A folder's content as a tar that depends on nothing else: not on when, by whom and with which
/// umask it was written.
pub(super) fn tar(folder: &Path, file: &Path) -> Result<()> {
    let mut tar = invoke::command(
        "tar",
        ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"],
    );
    tar.args(["--mode=u=rwX,go=rX", "-C"]).arg(folder).arg("-cf").arg(file);
    // The layer lies in the folder that the whole is made of.
    let names = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let mut names: Vec<_> = names.filter(|path| path != file).collect();
    names.sort();
    if names.is_empty() {
        bail!("{} is empty", folder.display());
    }
    tar.args(names.iter().filter_map(|path| path.file_name()));
    invoke::capture(&mut tar).map(drop)
}

/// As the OCI names it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{super::fill, *};

    #[test]
    fn the_same_content_is_the_same_image() {
        let dir = std::env::temp_dir().join(format!("mizzen-image-{}", std::process::id()));
        let root = dir.join("root");
        let image = |text: &str, compressed| {
            fill(&root, |root| Ok(fs::write(root.join("program"), text)?)).expect("to fill");
            let recipe = Recipe {
                name: "x",
                root: &root,
                entrypoint: vec!["/program"],
                compressed,
                ..Recipe::bare()
            };
            make(&dir, &recipe).expect("an image")
        };
        let (one, same, other) = (image("a", false), image("a", false), image("b", false));
        let listed = invoke::capture(Command::new("tar").arg("-tf").arg(&other.file));
        let (small, again) = (image("a", true), image("a", true));
        fs::remove_dir_all(&dir).expect("to remove the folder");
        assert_eq!(small.digest, again.digest);
        assert_ne!(small.digest, one.digest);
        assert_eq!(one.digest, same.digest);
        assert_ne!(one.digest, other.digest);
        assert_eq!(one.name, "docker.io/library/x:latest");
        let listed = listed.expect("a tar");
        for part in ["index.json", "oci-layout", "blobs/sha256/"] {
            assert!(listed.lines().any(|line| line.starts_with(part)), "{listed}");
        }
    }

    /// Of a program and a file, as `umask` has them made.
    #[test]
    fn the_same_content_is_the_same_image_whatever_the_umask() {
        let dir = std::env::temp_dir().join(format!("mizzen-umask-{}", std::process::id()));
        let image = |umask: u32| {
            let root = dir.join("root");
            let mode = |path: &Path, mode: u32| {
                fs::set_permissions(path, fs::Permissions::from_mode(mode & !umask))
            };
            fill(&root, |root| {
                fs::write(root.join("program"), "a")?;
                fs::write(root.join("etc/file"), "a")?;
                mode(&root.join("program"), 0o777)?;
                mode(&root.join("etc/file"), 0o666)?;
                mode(&root.join("etc"), 0o777)?;
                Ok(mode(root, 0o777)?)
            })
            .expect("to fill");
            make(&dir, &Recipe { name: "x", root: &root, ..Recipe::bare() }).expect("an image")
        };
        let images = [0o022, 0o077, 0o002].map(image);
        fs::remove_dir_all(&dir).expect("to remove the folder");
        assert!(images.iter().all(|image| image.digest == images[0].digest), "{images:?}");
    }
}
