//! The machine's mounts, and which of them containers see: an overlay shows one file system and
//! nothing that is mounted in it.

use std::path::{Path, PathBuf};

/// Where programs and what belongs to them lie: a mount of one of these is a part of every root.
const PROGRAMS: &[&str] = &[
    "/bin", "/etc", "/home", "/lib", "/lib32", "/lib64", "/root", "/sbin", "/srv", "/usr", "/var",
];
/// A mount in one of these is a part too.
const PROGRAMS_BELOW: &[&str] = &["/gnu", "/nix", "/opt", "/usr"];
/// What is no place for programs: the kernel's own, and what is in memory.
const NOT_STORED: &[&str] = &[
    "autofs",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// A mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where.
    pub target: PathBuf,
    /// Type of its file system.
    pub kind: String,
}

/// The mounts in the text of a `mountinfo` file (proc(5)), in its order.
pub(super) fn mounts(mountinfo: &str) -> Vec<Mounted> {
    let of_line = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let target = PathBuf::from(unescape(mount.split(' ').nth(4)?));
        let kind = filesystem.split(' ').next()?.to_owned();
        Some(Mounted { target, kind })
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// Those beside `/` that belong to a container's root, what is in another after it.
pub(super) fn of_programs(mounts: &[Mounted]) -> Vec<PathBuf> {
    let is_place = |target: &Path| {
        PROGRAMS.iter().any(|place| target == Path::new(place))
            || PROGRAMS_BELOW.iter().any(|place| target.starts_with(place))
    };
    let mut found: Vec<PathBuf> = mounts
        .iter()
        .filter(|mount| is_place(&mount.target) && !NOT_STORED.contains(&mount.kind.as_str()))
        .map(|mount| mount.target.clone())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The mount point that a path is on.
pub(super) fn mount_of<'a>(mounts: &'a [Mounted], path: &Path) -> &'a Path {
    let above = mounts.iter().map(|mount| mount.target.as_path());
    let above = above.filter(|target| path.starts_with(target));
    above.max_by_key(|target| target.components().count()).unwrap_or(Path::new("/"))
}

/// Blanks and the like are written as three octal digits.
fn unescape(text: &str) -> String {
    let replace = |text: String, (code, plain): (&str, &str)| text.replace(code, plain);
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:20 / /proc rw,relatime shared:5 - proc proc rw
24 22 254:1 / /usr rw,relatime - xfs /dev/vdb rw
25 24 254:2 / /usr/local rw,relatime - xfs /dev/vdc rw
26 22 254:3 / /opt/with\\040blank rw - btrfs /dev/vdd rw
27 22 0:30 / /tmp rw - tmpfs tmpfs rw
28 22 0:31 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
29 22 254:4 / /var rw - ext4 /dev/vde rw
30 22 0:32 / /usr/share/memory rw - tmpfs tmpfs rw
31 22 0:33 / /work/target rw - overlay overlay rw
";

    #[test]
    fn mounts_with_programs_belong_to_a_root_and_no_others() {
        let mounts = mounts(MACHINE);
        assert_eq!(mounts[1], Mounted { target: "/proc".into(), kind: "proc".into() });
        let found = of_programs(&mounts);
        let expected = ["/opt/with blank", "/usr", "/usr/local", "/var"];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn a_path_is_on_the_deepest_mount_above_it() {
        let mounts = mounts(MACHINE);
        for (path, mount) in [
            ("/bin/sh", "/"),
            ("/usr/local/bin/x", "/usr/local"),
            ("/usr/locally", "/usr"),
            ("/work/target/debug/x", "/work/target"),
        ] {
            assert_eq!(mount_of(&mounts, Path::new(path)), Path::new(mount), "{path}");
        }
        assert_eq!(mount_of(&[], Path::new("/x")), Path::new("/"));
    }
}
