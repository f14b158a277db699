//! The agent below a service manager, as systemd is one: it says when it serves, and its DNS sockets
//! outlive a restart. Needs root.

use std::{
    fs,
    io::IoSliceMut,
    net::UdpSocket,
    os::{
        fd::{AsRawFd, FromRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
};

use mizzen_tests::lab::FAMILIES;
use nix::sys::{
    signal::Signal,
    socket::{
        ControlMessageOwned, MsgFlags, SockType::Datagram, getsockopt, recvmsg, sockopt::SockType,
    },
};

use super::dns::field::{Field, LIMIT, dns};

/// What the agent says, and the descriptors that come with it.
fn next(manager: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut text = [0; 4096];
    let mut space = nix::cmsg_space!([i32; 64]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let (length, descriptors) = {
        let message =
            recvmsg::<()>(manager.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
        let rights = message.cmsgs().unwrap().flat_map(|one| match one {
            ControlMessageOwned::ScmRights(descriptors) => descriptors,
            _ => Vec::new(),
        });
        (message.bytes, rights.collect::<Vec<_>>())
    };
    // SAFETY: the kernel made these descriptors for this process, and nobody else has them.
    let own = descriptors.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    let descriptors = own.collect();
    (String::from_utf8_lossy(&text[..length]).into_owned(), descriptors)
}

#[test]
fn a_service_manager_is_told_and_keeps_the_dns_sockets_over_a_restart() {
    let field = Field::new();
    let host = &field.hosts[0];
    let path = host.state().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let told = format!("NOTIFY_SOCKET={}", path.display());
    let agent = field.begin_by(host, &["env", &told], &[]);
    assert_eq!(next(&manager).0, "READY=1");
    agent.until_ready(host);
    agent.signal(Signal::SIGTERM);
    let mut kept = Vec::new();
    loop {
        let (said, descriptors) = next(&manager);
        match said.as_str() {
            "STOPPING=1" => break,
            said => assert_eq!(said, "FDSTORE=1\nFDNAME=dns\nFDPOLL=0"),
        }
        kept.extend(descriptors);
    }
    let mut agent = agent;
    assert!(agent.ended().success());
    let datagrams = |socket: &OwnedFd| getsockopt(socket, SockType).is_ok_and(|it| it == Datagram);
    let address = |socket: &OwnedFd| UdpSocket::from(socket.try_clone().unwrap()).local_addr();
    let of_dns = |socket: &OwnedFd| {
        datagrams(socket) && FAMILIES.iter().any(|family| address(socket).unwrap() == dns(*family))
    };
    let sockets: Vec<_> = kept.iter().filter(|socket| of_dns(socket)).map(inode).collect();
    assert!(sockets.len() >= FAMILIES.len(), "sockets of cluster DNS");
    // As systemd does it: the descriptors from the third on.
    let handed: Vec<_> = kept.iter().map(|socket| dup_beyond(socket, 100)).collect();
    drop(kept);
    let numbers = || handed.iter().map(AsRawFd::as_raw_fd);
    let moves: Vec<_> = (3..).zip(numbers()).map(|(to, from)| format!("{to}<&{from}")).collect();
    let closes: Vec<_> = numbers().map(|from| format!("{from}<&-")).collect();
    let (moves, closes) = (moves.join(" "), closes.join(" "));
    let count = handed.len();
    let script = format!("exec {moves} {closes}; LISTEN_PID=$$ LISTEN_FDS={count} exec \"$@\"");
    // Not every shell knows descriptors of two digits.
    let agent = field.begin_by(host, &["env", &told, "bash", "-c", &script, "bash"], &[]);
    drop(handed);
    assert_eq!(next(&manager).0, "FDSTOREREMOVE=1\nFDNAME=dns");
    agent.until_ready(host);
    // It serves by the sockets that were kept, and by no copies of them.
    let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().flatten();
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    let targets: Vec<_> = targets.collect();
    for inode in sockets {
        let socket = format!("socket:[{inode}]");
        let held = targets.iter().filter(|target| target.as_os_str() == socket.as_str()).count();
        assert_eq!(held, 2, "one that is read, and one to be handed on");
    }
    // The kernel divides clients among the sockets: each of them answers.
    for family in FAMILIES {
        for _ in 0..32 {
            let answered = host.node.netns.run(|| {
                let client = UdpSocket::bind((family.any(), 0)).unwrap();
                client.set_read_timeout(Some(LIMIT)).unwrap();
                client.send_to(&question("web.default.svc.cluster.local"), dns(family)).unwrap();
                client.recv(&mut [0; 512])
            });
            assert!(answered.is_ok(), "{family:?}: {answered:?}\n{}", agent.log());
        }
    }
}

/// By which a socket is known to be the same.
fn inode(socket: &OwnedFd) -> u64 {
    nix::sys::stat::fstat(socket).unwrap().st_ino
}

/// The same socket by a number that is not below `least`, and that a program which is started has
/// too.
fn dup_beyond(socket: &OwnedFd, least: i32) -> OwnedFd {
    let number = nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_DUPFD(least)).unwrap();
    // SAFETY: the kernel made this descriptor for this call, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A question for the A records of a name.
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}
