//! Container images without a registry: OCI layouts (image-spec 1.0) as tar files, from what is on
//! this machine, which container runtimes import.
//!
//! `hello` and `pause` are our own static program; `busybox` is Debian's with its libraries.
//! The same content gives the same digest.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::invoke;

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

/// What an image is made of.
struct Recipe<'a> {
    name: &'a str,
    root: &'a Path,
    entrypoint: Vec<&'a str>,
    command: Vec<&'a str>,
}

/// Makes every image in `dir`, the static program being `program`.
pub fn make_all(dir: &Path, program: &Path) -> Result<Vec<Image>> {
    fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    let own = dir.join("own.root");
    fill(&own, |root| copy(program, &root.join("mizzen-image")))?;
    let busybox = dir.join("busybox.root");
    fill(&busybox, fill_busybox)?;
    let program = "/mizzen-image";
    let images = [
        Recipe {
            name: "hello",
            root: &own,
            entrypoint: vec![program, "hello"],
            command: Vec::new(),
        },
        Recipe {
            name: "pause",
            root: &own,
            entrypoint: vec![program, "pause"],
            command: Vec::new(),
        },
        Recipe {
            name: "busybox",
            root: &busybox,
            entrypoint: Vec::new(),
            command: vec!["/bin/sh"],
        },
    ]
    .iter()
    .map(|recipe| make(dir, recipe))
    .collect::<Result<Vec<_>>>()?;
    for root in [own, busybox] {
        fs::remove_dir_all(&root).with_context(|| format!("can't remove {}", root.display()))?;
    }
    fs::write(dir.join(INDEX), serde_json::to_vec_pretty(&images)?)?;
    Ok(images)
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

/// Debian's `busybox`, the libraries that it is linked to, and a link for each of its commands.
/// Its static sister crashes where it resolves names: that needs libraries of glibc's.
fn fill_busybox(root: &Path) -> Result<()> {
    let busybox = Path::new("/bin/busybox");
    copy(busybox, &root.join("bin/busybox"))?;
    let linked = invoke::capture(Command::new("ldd").arg(busybox))?;
    for library in libraries(&linked) {
        copy(Path::new(library), &root.join(library.trim_start_matches('/')))?;
    }
    let commands = invoke::capture(Command::new(busybox).arg("--list"))?;
    for command in commands.lines().filter(|command| *command != "busybox") {
        symlink("busybox", root.join("bin").join(command))?;
    }
    Ok(())
}

/// The files in what `ldd` prints.
fn libraries(linked: &str) -> Vec<&str> {
    let path = |line: &'_ str| -> Option<usize> { line.find('/') };
    let of_line = |line| {
        let start: &str = &str::trim(line)[path(str::trim(line))?..];
        start.split_whitespace().next()
    };
    linked.lines().filter_map(of_line).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("can't copy {}", from.display())).map(drop)
}

/// An OCI layout with one image of one layer.
fn make(dir: &Path, recipe: &Recipe<'_>) -> Result<Image> {
    let layout = dir.join(format!("{}.layout", recipe.name));
    if layout.exists() {
        fs::remove_dir_all(&layout)?;
    }
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer_file = layout.join("layer");
    tar(recipe.root, &layer_file)?;
    let layer = adopt(&blobs, &layer_file)?;
    let config = put(
        &blobs,
        &json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": recipe.entrypoint,
                "Cmd": recipe.command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }),
    )?;
    let typed = |blob: &Value, kind: &str| {
        let mut blob = blob.clone();
        blob["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        blob
    };
    let manifest = put(
        &blobs,
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": typed(&config, "config.v1+json"),
            "layers": [typed(&layer, "layer.v1.tar")],
        }),
    )?;
    let name = format!("{REGISTRY}/{}:latest", recipe.name);
    let mut entry = typed(&manifest, "manifest.v1+json");
    entry["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let file = dir.join(format!("{}.tar", recipe.name));
    tar(&layout, &file)?;
    fs::remove_dir_all(&layout)?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    Ok(Image { name, digest, file })
}

/// Writes a blob of JSON; gives its digest and size.
fn put(blobs: &Path, value: &Value) -> Result<Value> {
    let file = blobs.join("next");
    fs::write(&file, value.to_string())?;
    adopt(blobs, &file)
}

/// Gives a file the name of its digest; gives digest and size.
fn adopt(blobs: &Path, file: &Path) -> Result<Value> {
    let said = invoke::capture(Command::new("sha256sum").arg(file))?;
    let digest = said.split_whitespace().next().context("sha256sum said nothing")?;
    let size = fs::metadata(file)?.len();
    fs::rename(file, blobs.join(digest))?;
    Ok(json!({"digest": format!("sha256:{digest}"), "size": size}))
}

/// A folder's content as a tar that depends on nothing else.
fn tar(folder: &Path, file: &Path) -> Result<()> {
    let mut tar = invoke::command(
        "tar",
        ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-C"],
    );
    tar.arg(folder).arg("-cf").arg(file);
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
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_files_that_ldd_names() {
        let said = "\tlinux-vdso.so.1 (0x00007ff57a6dc000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007ff57a41a000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007ff57a6de000)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(said), expected);
    }

    #[test]
    fn the_same_content_is_the_same_image() {
        let dir = std::env::temp_dir().join(format!("mizzen-image-{}", std::process::id()));
        let root = dir.join("root");
        let image = |text: &str| {
            fill(&root, |root| Ok(fs::write(root.join("program"), text)?)).expect("to fill");
            let recipe = Recipe {
                name: "x",
                root: &root,
                entrypoint: vec!["/program"],
                command: Vec::new(),
            };
            make(&dir, &recipe).expect("an image")
        };
        let (one, same, other) = (image("a"), image("a"), image("b"));
        let listed = invoke::capture(Command::new("tar").arg("-tf").arg(&other.file));
        fs::remove_dir_all(&dir).expect("to remove the folder");
        assert_eq!(one.digest, same.digest);
        assert_ne!(one.digest, other.digest);
        assert_eq!(one.name, "docker.io/library/x:latest");
        let listed = listed.expect("a tar");
        for part in ["index.json", "oci-layout", "blobs/sha256/"] {
            assert!(listed.lines().any(|line| line.starts_with(part)), "{listed}");
        }
    }
}
