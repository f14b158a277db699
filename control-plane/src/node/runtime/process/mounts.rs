//! A pod's own mounts. The process runtime shares the machine's root; only what must differ per
//! pod is mounted over it: `/proc`, `/sys`, `/dev/shm`, `/etc/resolv.conf` and `/etc/hosts`.

use std::path::Path;

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::record::{HOSTS, RESOLV_CONF, Record};

/// Bytes of a pod's POSIX shared memory, as container runtimes have it.
const SHM_OPTIONS: &str = "size=64m,mode=1777";

/// Sets up the mount namespace of the calling process, which must be a new one, with the
/// sandbox's folder as the working directory.
pub(super) fn set_up(record: &Record) -> anyhow::Result<()> {
    // What the machine mounts and unmounts later is seen, nothing goes back.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .context("making the pod's mounts its own")?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), plain, None::<&str>)
        .context("mounting the pod's /proc")?;
    drop_namespace_files()?;
    if record.netns.is_some() {
        let read_only = plain | MsFlags::MS_RDONLY;
        mount(Some("sysfs"), "/sys", Some("sysfs"), read_only, None::<&str>)
            .context("mounting the pod's /sys")?;
    }
    if !record.host_ipc && Path::new("/dev/shm").is_dir() {
        mount(Some("shm"), "/dev/shm", Some("tmpfs"), plain, Some(SHM_OPTIONS))
            .context("mounting the pod's /dev/shm")?;
    }
    bind(RESOLV_CONF, "/etc/resolv.conf")?;
    bind(HOSTS, "/etc/hosts")
}

fn bind(source: &str, target: &str) -> anyhow::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).with_context(|| {
        format!("binding the pod's {source} over {target}, which must exist on the machine")
    })
}

/// Lets go of the bound namespaces of others. A copy of such a mount would keep the namespace of
/// another pod alive, with its links, for as long as this pod lives.
fn drop_namespace_files() -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    for target in namespace_mounts(&mounts) {
        match umount2(target.as_str(), MntFlags::MNT_DETACH) {
            // It went away in between.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("unmounting {target}")),
        }
    }
    Ok(())
}

/// The mount points of type `nsfs` in the text of a `mountinfo` file (proc(5)).
fn namespace_mounts(mountinfo: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let target = mount.split(' ').nth(4)?;
        filesystem.starts_with("nsfs ").then(|| unescape(target))
    };
    mountinfo.lines().filter_map(of_line).collect()
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

    #[test]
    fn only_namespace_mounts_are_found() {
        let text = "\
22 1 0:20 / /proc rw,relatime shared:5 - proc proc rw
41 30 0:4 net:[4026532200] /run/netns/node-1 rw shared:9 - nsfs nsfs rw
42 30 0:4 net:[4026532201] /run/with\\040blank rw - nsfs nsfs rw
43 30 0:30 / /run/nsfs rw - tmpfs nsfs rw
";
        assert_eq!(namespace_mounts(text), ["/run/netns/node-1", "/run/with blank"]);
    }
}
