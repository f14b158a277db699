//! What a container's root is made of: the machine's files below a layer that is the container's
//! own, with the pod's files, its volumes and the kernel's file systems in it. Pure; the
//! interpreter is [`super::enter`].
//!
//! The order is that of runc: first what is below, then what lies in it, at last what may no longer
//! be written to. Volumes come when the root is entered already, so that a link in it leads to
//! what it says in there, and nothing is ever made on the machine.

use std::path::{Path, PathBuf};

use super::{
    super::{
        ContainerConfig, Mount, Propagation,
        masks::{MASKED, READ_ONLY},
    },
    machine::{self, Mounted},
    record::{HOSTS, RESOLV_CONF, Record},
    wire::{Bind, Kind, Step},
};

/// Folders of the machine that are empty to containers: what is in them is of its own processes,
/// their sockets and their temporary files.
const HIDDEN: &[&str] = &["/run", "/tmp", "/var/tmp"];
/// Device files that every container may use.
const DEVICES: &[&str] = &["full", "null", "random", "tty", "urandom", "zero"];
/// Links in `/dev` that programs count on.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// What a root depends on beside the container itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    /// The container's sandbox.
    pub sandbox: &'a Record,
    /// The sandbox's folder.
    pub dir: &'a Path,
    /// The machine's mounts.
    pub machine: &'a [Mounted],
    /// Folders that are nobody's business, beside [`HIDDEN`].
    pub hidden: &'a [PathBuf],
    /// The program that is run, as far as it is a path.
    pub program: &'a Path,
    /// Where the container may say why it ended.
    pub termination: &'a Path,
}

/// The steps to a container's root.
pub(super) fn plan(config: &ContainerConfig, around: Surroundings<'_>) -> Vec<Step> {
    let privileged = config.privileges.privileged;
    let hidden = hidden(around.hidden);
    let lowers = lowers(around.machine);
    let mut steps = layers(&lowers, &hidden);
    if privileged {
        steps.push(Step::Layer { lower: "/dev".into(), hidden: Vec::new(), devices: true });
    }
    steps.push(Step::Enter);
    steps.push(Step::New { kind: Kind::Proc, target: "/proc".into(), read_only: false });
    steps.push(Step::New { kind: Kind::Sysfs, target: "/sys".into(), read_only: !privileged });
    steps.extend(devices(privileged, around.sandbox.host_ipc));
    steps.extend(texts(around.sandbox));
    steps.extend(binds(config, around, &hidden, &lowers).into_iter().map(Step::Bind));
    if !(privileged || config.privileges.unmasked_proc) {
        steps.extend(MASKED.iter().map(|path| Step::Mask { target: path.into() }));
        let read_only =
            |path: &&str| Step::ReadOnly { target: PathBuf::from(*path), mounted: false };
        steps.extend(READ_ONLY.iter().map(read_only));
    }
    steps.push(Step::Folder { target: cwd(config).into() });
    steps.push(Step::Leave);
    if config.privileges.read_only_root {
        let read_only = |target: &PathBuf| Step::ReadOnly { target: target.clone(), mounted: true };
        steps.extend(lowers.iter().rev().map(read_only));
    }
    steps
}

/// The folder that a container's programs begin in.
pub(super) fn cwd(config: &ContainerConfig) -> &str {
    config.working_dir.as_deref().unwrap_or("/")
}

/// The file systems of the machine that make up a root, what is in another after it.
fn lowers(machine: &[Mounted]) -> Vec<PathBuf> {
    let mut lowers = vec![PathBuf::from("/")];
    lowers.extend(machine::of_programs(machine));
    lowers
}

/// What is hidden, each folder once.
fn hidden(more: &[PathBuf]) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = HIDDEN.iter().map(PathBuf::from).collect();
    all.extend(more.iter().cloned());
    all.sort();
    // What is in another follows it.
    all.dedup_by(|later, earlier| later.starts_with(earlier.as_path()));
    all
}

fn layers(lowers: &[PathBuf], hidden: &[PathBuf]) -> Vec<Step> {
    let depth = |path: &PathBuf| path.components().count();
    let lower_of = |path: &PathBuf| {
        lowers.iter().filter(|lower| path.starts_with(lower)).max_by_key(|lower| depth(lower))
    };
    let layer = |lower: &PathBuf| {
        let here = hidden.iter().filter(|path| lower_of(path) == Some(lower));
        let hidden = here.filter_map(|path| path.strip_prefix(lower).ok());
        let hidden = hidden.filter(|path| !path.as_os_str().is_empty());
        let hidden = hidden.map(Path::to_owned).collect();
        Step::Layer { lower: lower.clone(), hidden, devices: false }
    };
    lowers.iter().map(layer).collect()
}

/// `/dev`: all of the machine's, or what every container may use.
fn devices(privileged: bool, host_ipc: bool) -> Vec<Step> {
    let dev = Path::new("/dev");
    let new = |kind, target: &str| {
        let target = PathBuf::from(target);
        Step::New { kind, target, read_only: false }
    };
    let mut steps = Vec::new();
    if !privileged {
        steps.push(new(Kind::Devices, "/dev"));
        let bind = |path: PathBuf| Bind {
            source: path.clone(),
            target: path,
            devices: true,
            ..Bind::default()
        };
        steps.extend(DEVICES.iter().map(|name| Step::Bind(bind(dev.join(name)))));
        let link = |(name, to): &(&str, &str)| Step::Link { target: dev.join(name), to: to.into() };
        steps.extend(LINKS.iter().map(link));
    }
    steps.push(new(Kind::Terminals, "/dev/pts"));
    let shm = PathBuf::from("/dev/shm");
    if host_ipc {
        steps.push(Step::Bind(Bind { source: shm.clone(), target: shm, ..Bind::default() }));
    } else {
        steps.push(Step::SharedMemory { target: shm });
    }
    steps.push(new(Kind::MessageQueues, "/dev/mqueue"));
    steps
}

/// Files that say who the pod is. On many machines /etc/resolv.conf is a link: it gives way to a
/// file that the pod's own is then shown at.
fn texts(sandbox: &Record) -> Vec<Step> {
    let text = |target: &str, text: String| Step::Text { target: target.into(), text };
    let mut steps =
        vec![text("/etc/resolv.conf", String::new()), text("/etc/hosts", String::new())];
    steps.extend(sandbox.hostname.iter().map(|name| text("/etc/hostname", format!("{name}\n"))));
    steps
}

/// What is shown of the machine, in an order in which nothing covers what came before: the pod's
/// own files, its volumes, and the program where it would not be seen.
fn binds(
    config: &ContainerConfig,
    around: Surroundings<'_>,
    hidden: &[PathBuf],
    lowers: &[PathBuf],
) -> Vec<Bind> {
    let privileges = &config.privileges;
    let mut binds: Vec<Bind> =
        config.mounts.iter().map(|mount| volume(mount, privileges.privileged)).collect();
    let own = [
        ("/etc/hosts", around.dir.join(HOSTS), privileges.read_only_root),
        ("/etc/resolv.conf", around.dir.join(RESOLV_CONF), privileges.read_only_root),
        (config.termination.path.as_str(), around.termination.to_owned(), false),
    ];
    for (target, source, read_only) in own {
        let target = PathBuf::from(target);
        let is_taken = binds.iter().any(|bind| bind.target == target);
        if target.is_absolute() && !is_taken {
            binds.push(Bind { source, target, read_only, ..Bind::default() });
        }
    }
    let is_seen = |path: &Path| {
        let mount = machine::mount_of(around.machine, path);
        lowers.iter().any(|lower| lower == mount)
            && !hidden.iter().any(|hidden| path.starts_with(hidden))
    };
    if around.program.is_absolute() && !is_seen(around.program) {
        let path = around.program.to_owned();
        binds.push(Bind { source: path.clone(), target: path, read_only: true, ..Bind::default() });
    }
    binds.sort_by_key(|bind| bind.target.components().count());
    binds
}

fn volume(mount: &Mount, privileged: bool) -> Bind {
    let (source, inside) = match mount.host_path.strip_prefix(&mount.volume_path) {
        Ok(inside) if !mount.volume_path.as_os_str().is_empty() => {
            (mount.volume_path.clone(), inside.to_owned())
        }
        _ => (mount.host_path.clone(), PathBuf::new()),
    };
    Bind {
        source,
        inside,
        target: mount.container_path.clone().into(),
        read_only: mount.read_only,
        devices: privileged,
        follows: mount.propagation == Propagation::HostToContainer,
    }
}

#[cfg(test)]
#[path = "rootfs/tests.rs"]
mod tests;
