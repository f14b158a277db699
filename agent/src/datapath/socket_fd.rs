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
/// the processes has them and they ever were.
pub fn translations_of(
    inodes: &BTreeSet<u64>,
    processes: &[u32],
    translations: &Translations,
) -> io::Result<BTreeMap<u64, SocketPeer>> {
    let mut found = BTreeMap::new();
    let mut left = inodes.clone();
    for process in processes {
        if left.is_empty() {
            break;
        }
        // A process that is gone has none.
        for descriptor in
            fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten()
        {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let Some(inode) = target.to_str().and_then(socket_inode) else { continue };
            let number = descriptor.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(number) = number.filter(|_| left.contains(&inode)) else { continue };
            let Some(socket) = borrow(*process, number, inode)? else { continue };
            left.remove(&inode);
            let peers: Option<SocketPeers> = sys::lookup(translations.udp(), &socket.as_raw_fd())?;
            found.extend(peers.map(|peers| (inode, peers.connected)));
        }
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
    use std::net::UdpSocket;

    use super::*;

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
