//! A containerd of a node's own: its root, state, socket and configuration, its processes and pods
//! in the node's namespace and below the node's cgroup, its images imported from files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Layout, cgroup, layout::Host, process, up};
use crate::{image::Image, invoke};

/// Where containerd keeps the images and pods of Kubernetes.
const NAMESPACE: &str = "k8s.io";
/// Where its library for CNI keeps what plugins answered.
pub const CNI_RESULTS: &str = "/var/lib/cni/results";
/// Where shims have their sockets, whatever the configuration says.
const SHIM_SOCKETS: &str = "/run/containerd/s";
/// The plugin that containerd itself asks to bring `lo` up, as Debian has it.
const LOOPBACK: &str = "/usr/lib/cni/loopback";

/// Name of a node's containerd process.
pub fn name(node: &str) -> String {
    format!("containerd-{node}")
}

impl Layout {
    /// What a node's containerd keeps over a restart.
    fn containerd_root(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("containerd")
    }

    /// What it keeps while the machine is up.
    fn containerd_state(&self, node: &str) -> PathBuf {
        self.run_dir().join(node).join("containerd")
    }

    /// Its socket.
    pub fn containerd_socket(&self, node: &str) -> PathBuf {
        self.run_dir().join(node).join("containerd.sock")
    }
}

/// Starts a node's containerd where it does not run, waits until it serves, and gives it `images`.
pub fn ensure(layout: &Layout, host: &Host, images: &[Image]) -> Result<()> {
    start(layout, host)?;
    let listed = up::wait(layout, "containerd to serve", || {
        up::alive(layout, &name(&host.name))?;
        Ok(ctr(layout, &host.name, &["images", "list"]).map_err(|error| format!("{error:#}")))
    })?;
    images
        .iter()
        .filter(|image| !has(&listed, image))
        .try_for_each(|image| import(layout, &host.name, image))
}

/// Gives an image to a node's containerd, which serves.
pub fn import(layout: &Layout, node: &str, image: &Image) -> Result<()> {
    let file = image.file.display().to_string();
    ctr(layout, node, &["images", "import", &file])
        .with_context(|| format!("can't import {file}"))
        .map(drop)
}

/// Gives an image of a node's containerd another name, which may be in use.
pub fn tag(layout: &Layout, node: &str, image: &str, name: &str) -> Result<()> {
    ctr(layout, node, &["images", "tag", "--force", image, name])
        .with_context(|| format!("can't name {image} {name}"))
        .map(drop)
}

/// Starts a node's containerd where it does not run.
pub fn start(layout: &Layout, host: &Host) -> Result<process::Started> {
    let node = &host.name;
    let bin = layout.cni_bin_dir(node);
    fs::create_dir_all(&bin).with_context(|| format!("can't make {}", bin.display()))?;
    fs::create_dir_all(layout.containerd_state(node)).context("can't make containerd's folder")?;
    fs::copy(LOOPBACK, bin.join("loopback"))
        .with_context(|| format!("can't copy the plugin {LOOPBACK}"))?;
    let file = layout.dir.join(node).join("containerd.toml");
    fs::write(&file, config(layout, node))
        .with_context(|| format!("can't write {}", file.display()))?;
    let spec = process::Spec {
        name: name(node),
        netns: Some(host.netns.clone()),
        cgroup: cgroup::node_dir(layout, node)?.join("containerd"),
        argv: vec!["containerd".into(), "--config".into(), file.display().to_string()],
        env: Vec::new(),
    };
    process::ensure(layout, &spec)
}

/// Whether a list of `ctr images list` has this very image.
fn has(listed: &str, image: &Image) -> bool {
    listed.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some(&image.name) && words.any(|word| word == image.digest)
    })
}

fn ctr(layout: &Layout, node: &str, args: &[&str]) -> Result<String> {
    let socket = layout.containerd_socket(node).display().to_string();
    let mut command = invoke::command("ctr", ["--address", &socket, "--namespace", NAMESPACE]);
    invoke::capture(command.args(args))
}

/// The configuration (containerd 1.6, version 2 of the format).
///
/// Pods' namespaces lie below the state folder and not in /run/netns, the runtime's own state too:
/// whatever is left of a node can be found. Without CAP_SYS_RESOURCE no process may be made less
/// likely to be killed than its parent, which `restrict_oom_score_adj` minds.
fn config(layout: &Layout, node: &str) -> String {
    let (root, state) = (layout.containerd_root(node), layout.containerd_state(node));
    let (root, state) = (root.display(), state.display());
    let socket = layout.containerd_socket(node);
    let socket = socket.display();
    let (bin, conf) = (layout.cni_bin_dir(node), layout.cni_conf_dir(node));
    let (bin, conf) = (bin.display(), conf.display());
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/pause:latest"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin}"
conf_dir = "{conf}"
max_conf_num = 1

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "{state}/runc"
"#
    )
}

/// The bundles of a cluster's containers, which are named after them.
fn bundles(layout: &Layout) -> impl Iterator<Item = fs::DirEntry> {
    let nodes = fs::read_dir(layout.run_dir()).into_iter().flatten().flatten();
    let tasks = nodes
        .map(|node| node.path().join("containerd/io.containerd.runtime.v2.task").join(NAMESPACE));
    tasks.flat_map(|tasks| fs::read_dir(tasks).into_iter().flatten().flatten())
}

/// What the runtime remembers of its calls of CNI plugins for a cluster's containers, at the one
/// place that it has for that. Asked before the containers go.
pub fn cni_results(layout: &Layout) -> Vec<PathBuf> {
    let containers: Vec<_> =
        bundles(layout).filter_map(|bundle| bundle.file_name().into_string().ok()).collect();
    let results = fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten();
    let of_container = |result: &PathBuf| {
        let name = result.to_string_lossy();
        containers.iter().any(|container| name.contains(container.as_str()))
    };
    results.map(|result| result.path()).filter(of_container).collect()
}

/// The sockets of a cluster's shims, which lie outside its folders. Asked before these go.
pub fn shim_sockets(layout: &Layout) -> Vec<PathBuf> {
    bundles(layout)
        .filter_map(|bundle| fs::read_to_string(bundle.path().join("address")).ok())
        .filter_map(|address| Some(PathBuf::from(address.trim().strip_prefix("unix://")?)))
        .filter(|socket| socket.starts_with(SHIM_SOCKETS))
        .collect()
}

/// Removes files, as far as they are there.
pub fn remove_files(files: &[PathBuf]) -> Result<()> {
    for file in files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("can't remove {}", file.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes sockets of shims, and their folder where nobody else has any.
pub fn remove_sockets(sockets: &[PathBuf]) -> Result<()> {
    remove_files(sockets)?;
    let folder = Path::new(SHIM_SOCKETS);
    for folder in folder.ancestors().take(2) {
        // Not empty where another containerd runs.
        let _in_use_or_absent = fs::remove_dir(folder);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_image_counts_as_there() {
        let image = Image {
            name: "docker.io/library/hello:latest".into(),
            digest: "sha256:abc".into(),
            file: PathBuf::new(),
        };
        let line = |name: &str, digest: &str| {
            format!(
                "{name} application/vnd.oci.image.manifest.v1+json {digest} 9.1 MiB linux/amd64 -"
            )
        };
        assert!(has(&line("docker.io/library/hello:latest", "sha256:abc"), &image));
        assert!(!has(&line("docker.io/library/hello:latest", "sha256:abd"), &image));
        assert!(!has(&line("docker.io/library/hello:other", "sha256:abc"), &image));
    }
}
