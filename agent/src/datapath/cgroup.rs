//! The socket programs at the node's cgroup: everything that runs below it is translated.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::{
    link::{self, LinkError, Outcome, Target},
    object::Programs,
    pin::Pins,
};

/// A program of the object, which is also the name of its pin, and its `enum bpf_attach_type`.
struct Hook {
    program: &'static str,
    attach_type: u32,
}

/// In this order: who can receive can translate back, and what ends is counted, before anybody's
/// calls are translated.
const HOOKS: &[Hook] = &[
    Hook { program: "getpeername4", attach_type: 29 },
    Hook { program: "getpeername6", attach_type: 30 },
    Hook { program: "recvmsg4", attach_type: 19 },
    Hook { program: "recvmsg6", attach_type: 20 },
    Hook { program: "sendmsg4", attach_type: 14 },
    Hook { program: "sendmsg6", attach_type: 15 },
    Hook { program: "tcp_state", attach_type: 3 },
    Hook { program: "connect4", attach_type: 10 },
    Hook { program: "connect6", attach_type: 11 },
];

/// Why there is no cgroup to attach to.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 file system is mounted.
    #[error(
        "no cgroup2 file system is mounted; mount one (`mount -t cgroup2 none \
         /sys/fs/cgroup/unified` beside version 1), or name a folder of one with --cgroup-root"
    )]
    NotMounted,
    /// The list of mounts can't be read.
    #[error("read /proc/self/mounts to find the cgroup2 file system")]
    Mounts(#[source] io::Error),
    /// The folder can't be opened.
    #[error("open the cgroup {}; it has to exist, see --cgroup-root", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// The folder is none of cgroup2.
    #[error(
        "{} is not in a cgroup2 file system, where socket programs can be attached; name a folder \
         of one with --cgroup-root", .0.display()
    )]
    NotCgroup2(PathBuf),
    /// What is mounted is the agent's own container's.
    #[error(
        "{} is the cgroup of the agent's own container: below it there are no pods. Mount the \
         node's cgroup2 file system into the container (`hostPath: {{path: /sys/fs/cgroup}}`, as \
         deploy/mizzen.yaml has it), or, where it is right, name it with --cgroup-root",
        .0.display()
    )]
    OwnContainer(PathBuf),
}

/// Why the socket programs are not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The object lacks a program.
    #[error("the eBPF object has no program {0}: the agent and its object are of different builds")]
    NoProgram(&'static str),
    /// The link could not be made.
    #[error("attach the eBPF program {program} to the cgroup {}", cgroup.display())]
    Link {
        /// The program.
        program: &'static str,
        /// The cgroup.
        cgroup: PathBuf,
        /// Why not.
        #[source]
        source: LinkError,
    },
}

/// The cgroup below which the node's processes and pods are.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    folder: File,
    id: u64,
}

impl Cgroup {
    /// Opens the given folder, else the root of the first cgroup2 file system that is mounted.
    pub fn open(root: Option<&Path>) -> Result<Self, CgroupError> {
        let path = match root {
            Some(root) => root.to_owned(),
            None => mounted()?,
        };
        let opened = File::open(&path).and_then(|folder| {
            let id = folder.metadata()?.ino();
            let kind = fstatfs(&folder)?.filesystem_type();
            Ok((folder, id, kind))
        });
        match opened {
            Ok((_, _, CGROUP2_SUPER_MAGIC)) if root.is_none() && is_own(&path) => {
                Err(CgroupError::OwnContainer(path))
            }
            Ok((folder, id, CGROUP2_SUPER_MAGIC)) => Ok(Self { path, folder, id }),
            Ok(_) => Err(CgroupError::NotCgroup2(path)),
            Err(error) => Err(CgroupError::Open(path, error)),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its id.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Attaches every socket program, or finds it attached; the programs of an earlier agent are
    /// replaced in place. Done again, it mends what was detached by hand.
    pub(super) fn attach(
        &self,
        programs: &Programs,
        pins: &Pins,
    ) -> Result<Vec<(&'static str, Outcome)>, AttachError> {
        let target = Target::Cgroup { folder: self.folder.as_fd(), id: self.id };
        let attach = |hook: &Hook| {
            let program = programs.get(hook.program).ok_or(AttachError::NoProgram(hook.program))?;
            let outcome = link::ensure(&pins.link(hook.program), program, target, hook.attach_type)
                .map_err(|source| AttachError::Link {
                    program: hook.program,
                    cgroup: self.path.clone(),
                    source,
                })?;
            Ok((hook.program, outcome))
        };
        HOOKS.iter().map(attach).collect()
    }
}

/// The socket programs.
pub(super) fn programs() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|hook| hook.program)
}

/// Whether this process is itself in the cgroup at the root of a mount, which is not the machine's: so
/// a container finds it whose runtime gave it a cgroup namespace and mounted that (cgroups(7)). The
/// machine's root alone has no `cgroup.type`. A node that is a container, as kind's are, has its root
/// too, but the agent in a cgroup below it.
fn is_own(mount: &Path) -> bool {
    let own = std::process::id().to_string();
    let members = fs::read_to_string(mount.join("cgroup.procs")).unwrap_or_default();
    mount.join("cgroup.type").exists() && members.lines().any(|member| member == own)
}

/// Where the first cgroup2 file system is mounted.
fn mounted() -> Result<PathBuf, CgroupError> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(CgroupError::Mounts)?;
    cgroup2_mount(&mounts).ok_or(CgroupError::NotMounted)
}

/// The first cgroup2 mount point of a list as in `/proc/mounts` (proc(5), fstab(5)).
fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_beside_version_1_and_alone() {
        let hybrid = "sysfs /sys sysfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let pure = "cgroup /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup2_mount("none /a\\040b cgroup2 rw 0 0\n"), Some("/a b".into()));
        assert_eq!(cgroup2_mount("cgroup2 /x tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn says_what_is_wrong_with_a_folder() {
        let missing = Cgroup::open(Some(Path::new("/nowhere/at/all")));
        assert!(matches!(missing, Err(CgroupError::Open(..))));
        let other = Cgroup::open(Some(Path::new("/proc")));
        assert!(matches!(other, Err(CgroupError::NotCgroup2(_))));
    }
}
