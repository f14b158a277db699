//! What a UDP socket was translated to. The kernel's list of UDP sockets, unlike that of TCP's,
//! does not tell what BPF programs remember of them, but it can be asked for a socket that one has
//! a descriptor of: it is borrowed from the process that has it (`pidfd_getfd`, Linux 5.6).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
};

use mizzen_ebpf_abi::socket::{SocketPeer, SocketPeers};

use super::{sock_diag::Translations, sys};

/// What the connections of the UDP sockets with these inodes were translated to, as far as one of
/// the processes has them and they ever were. Those that may not be looked into are entered into
/// `denied`; their sockets are found where another process has them too.
pub fn translations_of(
    inodes: &BTreeSet<u64>,
    processes: &[u32],
    translations: &Translations,
    denied: &mut BTreeSet<u32>,
) -> io::Result<BTreeMap<u64, SocketPeer>> {
    let mut found = BTreeMap::new();
    visit_sockets(inodes, processes, denied, |inode, socket| {
        let peers: Option<SocketPeers> = sys::lookup(translations.udp(), &socket.as_raw_fd())?;
        found.extend(peers.map(|peers| (inode, peers.connected)));
        Ok(())
    })?;
    Ok(found)
}

/// Visits each socket with one of these inodes that one of the processes has.
fn visit_sockets(
    inodes: &BTreeSet<u64>,
    processes: &[u32],
    denied: &mut BTreeSet<u32>,
    mut visit: impl FnMut(u64, OwnedFd) -> io::Result<()>,
) -> io::Result<()> {
    let mut left = inodes.clone();
    for process in processes {
        if left.is_empty() {
            break;
        }
        let sockets = match sockets_of(*process, &left) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                denied.insert(*process);
                continue;
            }
            sockets => sockets?,
        };
        for (inode, socket) in sockets {
            left.remove(&inode);
            visit(inode, socket)?;
        }
    }
    Ok(())
}

/// Those of a process' sockets that have one of these inodes.
fn sockets_of(process: u32, inodes: &BTreeSet<u64>) -> io::Result<BTreeMap<u64, OwnedFd>> {
    let mut found = BTreeMap::new();
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let descriptors = match fs::read_dir(format!("/proc/{process}/fd")) {
        Err(error) if denied(&error) => return Err(error),
        // A process that is gone has none.
        descriptors => descriptors.into_iter().flatten().flatten(),
    };
    for descriptor in descriptors {
        let target = match fs::read_link(descriptor.path()) {
            Err(error) if denied(&error) => return Err(error),
            target => target.unwrap_or_default(),
        };
        let Some(inode) = target.to_str().and_then(socket_inode) else { continue };
        let number = descriptor.file_name().to_str().and_then(|name| name.parse().ok());
        let wanted = inodes.contains(&inode) && !found.contains_key(&inode);
        let Some(number) = number.filter(|_| wanted) else { continue };
        let socket = borrow(process, number, inode)?;
        found.extend(socket.map(|socket| (inode, socket)));
    }
    Ok(found)
}

/// The number in `socket:[…]`.
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A descriptor of a process' socket; `None` where it has it no more.
fn borrow(process: u32, number: RawFd, inode: u64) -> io::Result<Option<OwnedFd>> {
    // SAFETY: integers only.
    let Some(process) = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?
    else {
        return Ok(None);
    };
    let process = process.as_fd().as_raw_fd();
    // SAFETY: integers only.
    let socket = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) })?;
    let Some(socket) = socket.map(File::from) else { return Ok(None) };
    Ok((socket.metadata()?.ino() == inode).then(|| socket.into()))
}

/// What a call gave that makes a descriptor; `None` where what it named is gone.
fn descriptor(result: libc::c_long) -> io::Result<Option<OwnedFd>> {
    if let Ok(fd) = RawFd::try_from(result)
        && fd >= 0
    {
        // SAFETY: the kernel gave it to us alone.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::EBADF) => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, process::Command};

    use super::*;
    use crate::resets::namespaces::tests::without_ptrace;

    #[test]
    fn a_process_that_may_not_be_looked_into_hides_no_other() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let processes = [child.id(), std::process::id()];
        let look = || {
            let (mut denied, mut found) = (BTreeSet::new(), Vec::new());
            let visit = |inode, _| {
                found.push(inode);
                Ok(())
            };
            visit_sockets(&[inode].into(), &processes, &mut denied, visit).unwrap();
            (denied, found)
        };
        let (deprived, able) = (without_ptrace(look), look());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(deprived, ([processes[0]].into(), vec![inode]));
        assert_eq!(able, (BTreeSet::new(), vec![inode]));
        assert_eq!(look(), able, "a process that is gone is none that may not be looked into");
    }

    #[test]
    fn a_socket_is_borrowed_by_its_inode() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = socket_inode(link.to_str().unwrap()).unwrap();
        let process = std::process::id();
        let borrowed = borrow(process, socket.as_raw_fd(), inode).unwrap().unwrap();
        assert_eq!(UdpSocket::from(borrowed).local_addr().unwrap(), socket.local_addr().unwrap());
        assert!(borrow(process, socket.as_raw_fd(), inode + 1).unwrap().is_none(), "another's");
        assert!(borrow(process, RawFd::MAX, inode).unwrap().is_none(), "closed");
        for other in ["pipe:[7]", "socket:[", "/dev/null", ""] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }
}
