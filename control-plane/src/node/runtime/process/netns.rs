//! Network namespaces that are held by a bound file and not by a process.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// A namespace could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the network namespace {}", path.display())]
pub(super) struct NetnsError {
    /// What was tried.
    pub operation: &'static str,
    /// The file that it is or was to be bound to.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Makes a namespace with `lo` up and binds it to `path`. One that is there already is replaced:
/// it belongs to an attempt that did not finish.
pub(super) fn create(path: &Path) -> Result<(), NetnsError> {
    remove(path)?;
    let failed = |source| NetnsError { operation: "creating", path: path.to_owned(), source };
    File::create(path).map_err(failed)?;
    // A thread of its own: it ends in the new namespace and is gone with it.
    let made = std::thread::scope(|scope| scope.spawn(|| create_here(path)).join());
    made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
        .map_err(failed)
}

fn create_here(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    bring_up_loopback()?;
    let own = "/proc/thread-self/ns/net";
    mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Removes the namespace's file; success where there is none. The namespace itself goes when its
/// last process and descriptor do.
pub(super) fn remove(path: &Path) -> Result<(), NetnsError> {
    let failed = |source| NetnsError { operation: "removing", path: path.to_owned(), source };
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not a mount point: the attempt ended before it was bound.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Sets `lo` up in the calling thread's namespace: netdevice(7), SIOCSIFFLAGS.
#[expect(unsafe_code, reason = "ioctl has no safe wrapper, and netlink would be much more code")]
fn bring_up_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    name[..2].copy_from_slice(&[b'l'.cast_signed(), b'o'.cast_signed()]);
    let flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    // SAFETY: SIOCSIFFLAGS reads one `ifreq` from the pointer, which points to a live one whose
    // name ends with a zero byte and whose union holds the flags.
    let outcome =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
