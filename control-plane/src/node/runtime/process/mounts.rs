//! The mounts of a pod's init, in which the tools of an operator see the pod: the machine's root with
//! the pod's `/proc`, `/sys`, `/dev/shm`, `/etc/resolv.conf` and `/etc/hosts` over it. What the
//! pod's containers see is [`super::rootfs`].

use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    machine::{self, Mounted},
    record::{HOSTS, RESOLV_CONF, Record},
};

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
    drop_others(&record.volumes)?;
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

/// Lets go of what is others'. A copy of a bound namespace would keep another pod's network alive, with
/// its links, and a copy of a volume its memory, for as long as this pod lives.
fn drop_others(volumes: &Path) -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    // What is in another mount was mounted later.
    for target in of_others(machine::mounts(&mounts), volumes).iter().rev() {
        match umount2(target, MntFlags::MNT_DETACH) {
            // It went away in between.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("unmounting {}", target.display()));
            }
        }
    }
    Ok(())
}

/// The mount points of namespaces and of volumes.
fn of_others(mounts: Vec<Mounted>, volumes: &Path) -> Vec<PathBuf> {
    let is_volume = |target: &Path| !volumes.as_os_str().is_empty() && target.starts_with(volumes);
    let others = mounts.into_iter().filter(|one| one.kind == "nsfs" || is_volume(&one.target));
    others.map(|one| one.target).filter(|target| target != volumes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_and_volumes_are_others_and_nothing_else_is() {
        let text = "\
22 1 0:20 / /proc rw,relatime shared:5 - proc proc rw
41 30 0:4 net:[4026532200] /run/netns/node-1 rw shared:9 - nsfs nsfs rw
42 30 0:4 net:[4026532201] /run/with\\040blank rw - nsfs nsfs rw
43 30 0:30 / /run/nsfs rw - tmpfs nsfs rw
44 30 0:31 / /volumes rw - ext4 /dev/vdb rw
45 44 0:32 / /volumes/uid-1/secret rw - tmpfs tmpfs rw
46 30 0:33 / /volumes-of-mine rw - tmpfs tmpfs rw
";
        let of_others = |volumes: &str| of_others(machine::mounts(text), Path::new(volumes));
        let namespaces = ["/run/netns/node-1", "/run/with blank"].map(PathBuf::from);
        assert_eq!(of_others(""), namespaces);
        let all = [&namespaces[..], &["/volumes/uid-1/secret".into()]].concat();
        assert_eq!(of_others("/volumes"), all);
    }
}
