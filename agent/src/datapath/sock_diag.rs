//! Sockets of a network namespace, as the kernel lists and destroys them: netlink's
//! `NETLINK_SOCK_DIAG` (`<linux/inet_diag.h>`, `<linux/sock_diag.h>`).
//!
//! The kernel filters by destination, so that a list costs a walk over its table and a copy of
//! what matches. Of TCP sockets it gives what
//! [`TCP_PEERS`](mizzen_ebpf_abi::maps::TCP_PEERS) says of each (Linux 5.8), by which a
//! connection to a service is told from one that was dialled to the pod itself. A netlink socket
//! belongs to the namespace of the thread that opens it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use mizzen_ebpf_abi::{addr::protocol, socket::SocketPeer};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::{
    layout,
    pin::{PinError, Pins},
};
use crate::model::service::Protocol;

/// `nlmsg_type`s.
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `nlmsg_flags`.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// Attributes of a request.
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
/// Attributes of an answer, each inside of the one before.
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
/// Operations of a filter.
const INET_DIAG_BC_JMP: u8 = 1;
const INET_DIAG_BC_D_COND: u8 = 8;

/// States of sockets that have a peer (`enum` in `<net/tcp_states.h>`): a connected UDP socket is
/// ESTABLISHED. Not those whose socket is gone or not there yet: `TIME_WAIT`, `SYN_RECV`.
pub(super) const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Those that anybody reaches: LISTEN of TCP, CLOSE of UDP.
const LISTENING: u32 = 1 << 10;
const UNCONNECTED: u32 = 1 << 7;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct inet_diag_sockid`, and where its cookie begins.
pub(super) const SOCKET_ID: usize = 48;
/// Bytes of `struct inet_diag_msg`, and where the socket's identity begins.
pub(super) const MESSAGE: usize = 72;
const IDENTITY_AT: usize = 4;
/// Where its inode is.
const INODE_AT: usize = 68;
/// The kernel fills at most 32 KiB per datagram of a dump.
const RECEIVE_BUFFER: usize = 64 << 10;
/// How many requests travel in one system call: their acknowledgements fit the receive buffer.
const BATCH: usize = 64;
/// The kernel answers at once; what takes longer is a fault.
const TIMEOUT_SECONDS: i64 = 5;
/// Destinations of one filter; its jumps have 16 bits.
pub const DESTINATIONS_MAX: usize = 256;

/// Identity of a socket: `struct inet_diag_sockid`, the kernel's cookie included, so that no other
/// is ever meant by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    family: u8,
    id: [u8; SOCKET_ID],
}

/// A socket with a peer.
#[derive(Clone, Copy, Debug)]
pub struct Connected {
    /// Which.
    pub id: SocketId,
    /// Its inode.
    pub inode: u64,
    /// What its connection was translated to; of TCP sockets only, and where it ever was.
    pub peer: Option<SocketPeer>,
}

/// What is known of sockets' translations.
#[derive(Debug)]
pub struct Translations {
    tcp: OwnedFd,
    udp: OwnedFd,
}

impl Translations {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        Ok(Self {
            tcp: pins.open_map(&layout::TCP_PEERS)?,
            udp: pins.open_map(&layout::SOCKET_PEERS)?,
        })
    }

    /// The attribute that asks for those of TCP sockets.
    pub(super) fn request(&self) -> Vec<u8> {
        let map = self.tcp.as_raw_fd().to_ne_bytes();
        let map = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map);
        attribute(INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED, &map)
    }

    /// The map of UDP sockets'.
    pub(super) fn udp(&self) -> BorrowedFd<'_> {
        self.udp.as_fd()
    }
}

/// A netlink socket.
#[derive(Debug)]
pub struct SockDiag {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl SockDiag {
    /// One of the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let kind = SockProtocol::NetlinkSockDiag;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, kind)?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))?;
        Ok(Self { fd, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The sockets that are connected to one of these addresses: at most [`DESTINATIONS_MAX`], of
    /// one family; those of IPv4 are found in IPv6 sockets too.
    pub fn connected(
        &mut self,
        protocol: Protocol,
        to: &[SocketAddr],
        translations: &Translations,
    ) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        let Some(number) = number(protocol) else { return Ok(found) };
        let families: &[i32] = match to.first() {
            None => return Ok(found),
            Some(SocketAddr::V4(_)) => &[libc::AF_INET, libc::AF_INET6],
            Some(SocketAddr::V6(_)) => &[libc::AF_INET6],
        };
        for family in families {
            let family = u8::try_from(*family).unwrap_or_default();
            self.send(&dump_request(family, number, to, translations))?;
            self.read_dump(|body| found.extend(connected(family, body)))?;
        }
        Ok(found)
    }

    /// Whether a socket takes what comes to `at` from anyone.
    pub fn listens(&mut self, at: SocketAddr, protocol: u8) -> io::Result<bool> {
        let state = if protocol == protocol::TCP { LISTENING } else { UNCONNECTED };
        let (mut found, mut octets) = (false, [0; 16]);
        let families: &[i32] = match at.ip() {
            IpAddr::V4(ip) => {
                octets[..4].copy_from_slice(&ip.octets());
                &[libc::AF_INET, libc::AF_INET6]
            }
            IpAddr::V6(ip) => {
                octets = ip.octets();
                &[libc::AF_INET6]
            }
        };
        for family in families {
            let family = u8::try_from(*family).unwrap_or_default();
            let body = request(family, protocol, state, &[0; SOCKET_ID]);
            self.send(&message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &body))?;
            self.read_dump(|body| {
                let Some(id) = body.get(IDENTITY_AT..IDENTITY_AT + SOCKET_ID) else { return };
                let any = id[4..20].iter().all(|octet| *octet == 0);
                found |= id[..2] == at.port().to_be_bytes() && (any || id[4..20] == octets);
            })?;
        }
        Ok(found)
    }

    /// Calls `visit` with the body of each socket of the answer to a dump.
    pub(super) fn read_dump(&mut self, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let length = self.receive()?;
            for (kind, body) in messages(&self.buffer[..length]) {
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => return status(body),
                    SOCK_DIAG_BY_FAMILY => visit(body),
                    _ => {}
                }
            }
        }
    }

    /// Destroys sockets: whoever uses one of them gets `ECONNABORTED`, and TCP's peer a reset.
    /// Gives how many there were; one that was closed meanwhile is none.
    pub fn destroy(&mut self, protocol: Protocol, sockets: &[SocketId]) -> io::Result<usize> {
        let Some(number) = number(protocol) else { return Ok(0) };
        let mut destroyed = 0;
        for batch in sockets.chunks(BATCH) {
            let requests = batch.iter().flat_map(|socket| destroy_request(number, socket));
            self.send(&requests.collect::<Vec<u8>>())?;
            let mut answered = 0;
            let mut outcome = Ok(());
            while answered < batch.len() {
                let length = self.receive()?;
                for (kind, body) in messages(&self.buffer[..length]) {
                    if kind != NLMSG_ERROR {
                        continue;
                    }
                    answered += 1;
                    match status(body) {
                        Ok(()) => destroyed += 1,
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                        Err(error) => outcome = Err(error),
                    }
                }
            }
            outcome?;
        }
        Ok(destroyed)
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                received => return Ok(received?),
            }
        }
    }
}

/// The number of a protocol whose sockets are translated.
fn number(of: Protocol) -> Option<u8> {
    match of {
        Protocol::Tcp => Some(protocol::TCP),
        Protocol::Udp => Some(protocol::UDP),
        Protocol::Sctp => None,
    }
}

/// A message: `struct nlmsghdr`, a body.
pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]); // sequence, port
    bytes.extend(body);
    pad(&mut bytes);
    bytes
}

/// An attribute: `struct nlattr`, a value.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len());
    bytes.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    pad(&mut bytes);
    bytes
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// `struct inet_diag_req_v2`.
pub(super) fn request(family: u8, protocol: u8, states: u32, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut bytes = vec![family, protocol, 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

fn dump_request(
    family: u8,
    protocol: u8,
    to: &[SocketAddr],
    translations: &Translations,
) -> Vec<u8> {
    let mut body = request(family, protocol, CONNECTED, &[0; SOCKET_ID]);
    body.extend(translations.request());
    body.extend(attribute(INET_DIAG_REQ_BYTECODE, &filter(to)));
    message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &body)
}

fn destroy_request(protocol: u8, socket: &SocketId) -> Vec<u8> {
    let body = request(socket.family, protocol, CONNECTED, &socket.id);
    message(SOCK_DESTROY, NLM_F_ACK, &body)
}

/// The program that accepts sockets whose peer is one of these: for each a condition, behind which
/// stands a jump to the end, which accepts. The last condition, not met, jumps four bytes beyond
/// the end, which refuses.
fn filter(to: &[SocketAddr]) -> Vec<u8> {
    const OP: usize = 4;
    let conditions: Vec<Vec<u8>> = to.iter().map(host_condition).collect();
    let mut left: usize = conditions.iter().map(|condition| OP + condition.len() + OP).sum();
    let mut bytes = Vec::with_capacity(left);
    let op = |code: u8, yes: usize, no: usize| {
        let (yes, no) = (u8::try_from(yes).unwrap_or(0), u16::try_from(no).unwrap_or(0));
        let [low, high] = no.to_ne_bytes();
        [code, yes, low, high]
    };
    for (index, condition) in conditions.iter().enumerate() {
        let own = OP + condition.len();
        let refuse = if index + 1 == conditions.len() { OP } else { 0 };
        bytes.extend(op(INET_DIAG_BC_D_COND, own, own + OP + refuse));
        bytes.extend(condition);
        left -= own;
        bytes.extend(op(INET_DIAG_BC_JMP, OP, left));
        left -= OP;
    }
    bytes
}

/// `struct inet_diag_hostcond`.
fn host_condition(to: &SocketAddr) -> Vec<u8> {
    let (family, prefix_len, octets) = match to.ip() {
        IpAddr::V4(v4) => (libc::AF_INET, 32, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, 128, v6.octets().to_vec()),
    };
    let mut bytes = vec![u8::try_from(family).unwrap_or_default(), prefix_len, 0, 0];
    bytes.extend(i32::from(to.port()).to_ne_bytes());
    bytes.extend(octets);
    bytes
}

/// The types and bodies of the messages of a datagram.
fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes([*rest.get(4)?, *rest.get(5)?]);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The types and values of attributes.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & !NLA_F_NESTED;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The outcome that ends an answer: a negative `errno` or 0.
fn status(body: &[u8]) -> io::Result<()> {
    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(()) }
}

/// A socket of an answer.
fn connected(family: u8, body: &[u8]) -> Option<Connected> {
    let id = *body.get(IDENTITY_AT..)?.first_chunk::<SOCKET_ID>()?;
    let inode = u32::from_ne_bytes(*body.get(INODE_AT..)?.first_chunk()?).into();
    Some(Connected { id: SocketId { family, id }, inode, peer: translation(body) })
}

pub(super) fn translation(body: &[u8]) -> Option<SocketPeer> {
    let storages = find(body.get(MESSAGE..)?, INET_DIAG_SK_BPF_STORAGES)?;
    let storage = find(storages, SK_DIAG_BPF_STORAGE)?;
    let value = find(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE)?;
    if value.len() < size_of::<SocketPeer>() {
        return None;
    }
    // SAFETY: as many bytes as the record has, any of which are one; they need not be aligned.
    Some(unsafe { value.as_ptr().cast::<SocketPeer>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(filter: &[u8], peer: SocketAddr) -> bool {
        let mut at = 0_usize;
        while at < filter.len() {
            let (code, yes) = (filter[at], usize::from(filter[at + 1]));
            let no = usize::from(u16::from_ne_bytes([filter[at + 2], filter[at + 3]]));
            let met = code == INET_DIAG_BC_D_COND
                && filter[at + 4..at + yes] == host_condition(&peer)[..];
            at += if met { yes } else { no };
        }
        at == filter.len()
    }

    /// What the kernel demands of a filter: jumps forward to beginnings of operations, at most
    /// four bytes beyond the end, and a `yes` that leads to the next.
    fn audit(filter: &[u8]) {
        let mut starts = vec![filter.len(), filter.len() + 4];
        let mut at = 0;
        while at < filter.len() {
            starts.push(at);
            at += usize::from(filter[at + 1]);
        }
        assert_eq!(at, filter.len());
        for at in starts.iter().skip(2) {
            let no = usize::from(u16::from_ne_bytes([filter[at + 2], filter[at + 3]]));
            assert!(no >= 4 && no.is_multiple_of(4) && starts.contains(&(at + no)), "{at} to {no}");
        }
    }

    #[test]
    fn a_filter_accepts_its_destinations_and_no_other() {
        for family in ["10.0.0.", "fd00::"] {
            let addr = |n: usize| {
                SocketAddr::new(
                    format!("{family}{}", n % 250).parse().unwrap(),
                    u16::try_from(8000 + n / 250).unwrap(),
                )
            };
            for count in [1, 2, 5, DESTINATIONS_MAX] {
                let to: Vec<_> = (0..count).map(addr).collect();
                let filter = filter(&to);
                audit(&filter);
                for (n, peer) in to.iter().enumerate() {
                    assert!(run(&filter, *peer), "{n} of {count}");
                }
                assert!(!run(&filter, addr(count)), "one more than {count}");
            }
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_is_no_socket() {
        let peer = SocketPeer { generation: 7, ..SocketPeer::default() };
        // SAFETY: a live record without padding.
        let value: [u8; size_of::<SocketPeer>()] = unsafe { std::mem::transmute(peer) };
        let inner = attribute(SK_DIAG_BPF_STORAGE_MAP_VALUE, &value);
        let storage = attribute(SK_DIAG_BPF_STORAGE | NLA_F_NESTED, &inner);
        let mut body = vec![5; MESSAGE];
        body.extend(attribute(8, &[1]));
        body.extend(attribute(INET_DIAG_SK_BPF_STORAGES | NLA_F_NESTED, &storage));
        let found = connected(2, &body).unwrap();
        assert_eq!((found.peer, found.inode), (Some(peer), 0x0505_0505));
        assert_eq!(found.id, SocketId { family: 2, id: [5; SOCKET_ID] });
        for length in 0..body.len() {
            let found = connected(2, &body[..length]);
            assert_eq!(found.is_some(), length >= MESSAGE, "{length}");
            assert!(found.is_none_or(|found| found.peer.is_none()), "{length}");
        }
    }

    #[test]
    fn the_outcome_of_an_answer_is_its_first_word() {
        let answer = message(NLMSG_ERROR, 0, &(-libc::ENOENT).to_ne_bytes());
        let (kind, body) = messages(&answer).next().unwrap();
        assert_eq!(kind, NLMSG_ERROR);
        assert_eq!(status(body).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(status(&0_i32.to_ne_bytes()).is_ok());
        assert_eq!(messages(&answer[..answer.len() - 1]).count(), 0);
    }
}
