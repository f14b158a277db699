//! What containers may use of the machine: which controllers there are for that, in cgroup2 or in a
//! hierarchy of version 1, and what is written where.
//!
//! A container has a folder of the same name in each hierarchy that limits it, and in cgroup2 in any
//! case, where the node's socket programs see it. Each controller is in one hierarchy only
//! (cgroups(7)): a machine may have some in cgroup2 and some beside it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    super::{CPU_PERIOD_US, Limits},
    cgroup::{self, CgroupError},
};

/// Processes and threads that a container may have at a time: with more, a machine can't start any.
const TASKS_MAX: u64 = 4096;
/// Weights of cgroup2's cpu.weight, and of version 1's cpu.shares that they stand for.
const WEIGHT_RANGE: (u64, u64) = (1, 10_000);
/// See above.
const SHARES_RANGE: (u64, u64) = (2, 262_144);

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Cpu,
    Memory,
    Tasks,
}

const RESOURCES: &[(Resource, &str)] =
    &[(Resource::Cpu, "cpu"), (Resource::Memory, "memory"), (Resource::Tasks, "pids")];

/// Version of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
    /// Its controllers; those of cgroup2 are asked for in it.
    controllers: Vec<String>,
}

/// Where a resource is limited.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Controller {
    resource: Resource,
    version: Version,
    /// The node's folder in the hierarchy.
    root: PathBuf,
}

/// The controllers of a node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Controllers {
    found: Vec<Controller>,
    /// The node's folders in the hierarchies of version 1, used or not.
    roots_v1: Vec<PathBuf>,
}

/// A value for a file of a container's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    file: &'static str,
    value: String,
    /// Kernels may be built without it.
    optional: bool,
}

impl Controllers {
    /// Finds those of the machine for the node whose cgroup2 folder is `root`, and has cgroup2's
    /// reach its pods.
    pub(super) fn find(root: &Path) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let all = hierarchies(&mounts);
        let Some(unified) = unified(&all, root) else { return Self::default() };
        let relative = root.strip_prefix(&unified.mount).unwrap_or(Path::new(""));
        let delegated = delegate(&unified.mount, &cgroup::pods(root));
        let mut controllers = Self::default();
        let of_version_1 = || all.iter().filter(|one| one.version == Version::V1);
        controllers.roots_v1 = of_version_1().map(|one| one.mount.join(relative)).collect();
        for &(resource, name) in RESOURCES {
            let named = |list: &[String]| list.iter().any(|one| one == name);
            let beside = of_version_1().find(|one| named(&one.controllers));
            let found = if named(&delegated) {
                Some((Version::V2, root.to_owned()))
            } else {
                let root = beside.map(|one| one.mount.join(relative));
                // A hierarchy that may only be read limits nobody.
                let usable = root.filter(|root| make(&cgroup::pods(root)).is_ok());
                usable.map(|root| (Version::V1, root))
            };
            let found = found.map(|(version, root)| Controller { resource, version, root });
            controllers.found.extend(found);
        }
        controllers
    }

    /// There is a controller for processor time.
    pub(super) fn cpu(&self) -> bool {
        self.of(Resource::Cpu).is_some()
    }

    /// There is a controller for memory.
    pub(super) fn memory(&self) -> bool {
        self.of(Resource::Memory).is_some()
    }

    fn of(&self, resource: Resource) -> Option<&Controller> {
        self.found.iter().find(|one| one.resource == resource)
    }

    /// The pod's folders in the hierarchies of version 1.
    pub(super) fn folders_v1(&self, pod_uid: &str) -> Vec<PathBuf> {
        self.roots_v1.iter().map(|root| cgroup::path(root, pod_uid)).collect()
    }

    /// Has cgroup2's controllers reach the containers of a pod, whose folder is there.
    pub(super) fn reach(&self, pod: &Path) {
        for one in self.found.iter().filter(|one| one.version == Version::V2) {
            // What is not reached is not limited, which making a container tells.
            let _told_later = std::fs::write(
                pod.join("cgroup.subtree_control"),
                format!("+{}", name_of(one.resource)),
            );
        }
    }

    /// Makes a container's folders, one a hierarchy, with its limits. `pod` is the pod's in cgroup2.
    pub(super) fn limit(
        &self,
        pod: &Path,
        pod_uid: &str,
        name: &str,
        limits: Limits,
    ) -> Result<Vec<PathBuf>, CgroupError> {
        let folders = self.folders(pod, pod_uid, name);
        for folder in &folders {
            make(folder).map_err(CgroupError::of("making", folder))?;
        }
        for controller in &self.found {
            let folder = cgroup::path(&controller.root, pod_uid).join(name);
            for setting in settings(controller.resource, controller.version, limits) {
                let path = folder.join(setting.file);
                match std::fs::write(&path, &setting.value) {
                    Err(error) if !setting.optional || path.exists() => {
                        return Err(CgroupError::of("limiting by", &path)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(folders)
    }

    /// A container's folders, one a hierarchy.
    pub(super) fn folders(&self, pod: &Path, pod_uid: &str, name: &str) -> Vec<PathBuf> {
        let mut folders = vec![pod.join(name)];
        for controller in &self.found {
            let folder = cgroup::path(&controller.root, pod_uid).join(name);
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        folders
    }

    /// Whether a process of a container was ended for want of memory.
    pub(super) fn ran_out_of_memory(&self, pod_uid: &str, name: &str) -> bool {
        let Some(controller) = self.of(Resource::Memory) else { return false };
        let file = match controller.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let path = cgroup::path(&controller.root, pod_uid).join(name).join(file);
        std::fs::read_to_string(path).is_ok_and(|text| killed(&text) > 0)
    }

    /// Removes a container's folders in the hierarchies of version 1. What is busy still goes with
    /// the pod.
    pub(super) fn forget(&self, pod_uid: &str, name: &str) {
        for folder in self.folders_v1(pod_uid) {
            let _busy_or_absent = std::fs::remove_dir(folder.join(name));
        }
    }
}

/// How often the kernel ended a process for want of memory, by a file of either version.
fn killed(text: &str) -> u64 {
    let count = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    text.lines().find_map(count).unwrap_or(0)
}

fn name_of(resource: Resource) -> &'static str {
    RESOURCES.iter().find(|(one, _)| *one == resource).map_or("", |(_, name)| name)
}

/// What is written where for a resource.
fn settings(resource: Resource, version: Version, limits: Limits) -> Vec<Setting> {
    let must = |file, value: String| Setting { file, value, optional: false };
    let can = |file, value: String| Setting { file, value, optional: true };
    let Limits { cpu_shares, cpu_quota_us, memory_bytes, .. } = limits;
    let (quota, memory) = (cpu_quota_us > 0, memory_bytes > 0);
    let all = match (resource, version) {
        (Resource::Cpu, Version::V1) => vec![
            (cpu_shares > 0, must("cpu.shares", cpu_shares.to_string())),
            (quota, must("cpu.cfs_period_us", CPU_PERIOD_US.to_string())),
            (quota, must("cpu.cfs_quota_us", cpu_quota_us.to_string())),
        ],
        (Resource::Cpu, Version::V2) => vec![
            (cpu_shares > 0, must("cpu.weight", weight(cpu_shares).to_string())),
            (quota, must("cpu.max", format!("{cpu_quota_us} {CPU_PERIOD_US}"))),
        ],
        (Resource::Memory, Version::V1) => vec![
            (memory, must("memory.limit_in_bytes", memory_bytes.to_string())),
            // With swap it is the same: who may use so much does not get more elsewhere.
            (memory, can("memory.memsw.limit_in_bytes", memory_bytes.to_string())),
        ],
        (Resource::Memory, Version::V2) => vec![
            (memory, must("memory.max", memory_bytes.to_string())),
            (memory, can("memory.swap.max", "0".to_owned())),
            // One process less is seldom what the others can go on with.
            (true, can("memory.oom.group", "1".to_owned())),
        ],
        (Resource::Tasks, _) => vec![(true, must("pids.max", TASKS_MAX.to_string()))],
    };
    all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, setting)| setting).collect()
}

/// Version 1's shares as a weight of cgroup2: the ends of one range are those of the other.
fn weight(shares: u64) -> u64 {
    let ((low, high), (least, most)) = (SHARES_RANGE, WEIGHT_RANGE);
    least + (shares.clamp(low, high) - low) * (most - least) / (high - low)
}

/// The hierarchies in the text of a `mounts` file (proc(5)).
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match kind {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let controllers = options.split(',').map(str::to_owned).collect();
        Some(Hierarchy { version, mount: mount.into(), controllers })
    };
    mounts.lines().filter_map(of_line).collect()
}

/// The mount of cgroup2 that a folder is in.
fn unified<'a>(all: &'a [Hierarchy], folder: &Path) -> Option<&'a Hierarchy> {
    all.iter().find(|one| one.version == Version::V2 && folder.starts_with(&one.mount))
}

/// Makes `folder` with those above it, and gives the controllers of cgroup2 that reach what will be
/// below it.
fn delegate(mount: &Path, folder: &Path) -> Vec<String> {
    let words = |path: PathBuf| -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    if make(folder).is_err() {
        return Vec::new();
    }
    let mut above: Vec<&Path> =
        folder.ancestors().take_while(|one| one.starts_with(mount)).collect();
    above.reverse();
    for one in above {
        for (_, name) in RESOURCES {
            // Not there, or not ours to give: then it is not among those that are found below.
            let _refused = std::fs::write(one.join("cgroup.subtree_control"), format!("+{name}"));
        }
    }
    words(folder.join("cgroup.subtree_control"))
}

fn make(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)
}

#[cfg(test)]
#[path = "limits/tests.rs"]
mod tests;
