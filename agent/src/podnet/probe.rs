//! Whether packets reach other nodes' pods: a datagram to the address of a range that no pod has,
//! its first, goes the way of all others, and the node whose range it is answers that nobody has it
//! (RFC 792, RFC 4443): it keeps a route to nowhere for all of its range. One datagram is as small as
//! can be, one as large as pods may send.

use std::{
    collections::BTreeMap,
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
        sockopt::{Ipv4RecvErr, Ipv6RecvErr},
    },
};

use crate::model::node::Cidr;

/// Ranges that are asked at a time: each takes two sockets.
const AT_A_TIME: usize = 64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(700);
/// How often it is tried: a lost packet is no lost way, and hosts limit how often they answer.
const TRIES: usize = 2;
/// Ranges that are asked in all, so that the whole takes seconds.
pub const ASKED_MAX: usize = 256;
/// The discard service (RFC 863), in case that somebody has the address after all.
const PORT: u16 = 9;

/// What came of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// This host answered that nobody there has the address.
    From(IpAddr),
    /// It was too large for a link on the way.
    TooBig,
    /// It could not be sent.
    NotSent(String),
    /// Nothing.
    Nothing,
}

/// What came of both datagrams to a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Of the small one.
    pub small: Heard,
    /// Of the large one.
    pub large: Heard,
}

/// For how long answers count: Linux tells a host once a second at most that an address is nobody's
/// (`icmp_ratelimit`), after a few at once, and each range takes two.
const FRESH: Duration = Duration::from_secs(6);

/// The last answers, for those who ask again and again: the nodes would fall silent.
#[derive(Debug, Default)]
pub struct Answers {
    last: Mutex<Option<Last>>,
}

#[derive(Debug)]
struct Last {
    at: Instant,
    ranges: Vec<Cidr>,
    mtu: u32,
    reached: BTreeMap<Cidr, Reached>,
}

impl Answers {
    /// Asks the nodes behind `ranges`, of which the first [`ASKED_MAX`], unless somebody asked the same
    /// a moment ago. One asks at a time. `mtu` is that of pods.
    pub fn ask(&self, ranges: &[Cidr], mtu: u32) -> BTreeMap<Cidr, Reached> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && last.at.elapsed() < FRESH
            && (last.mtu, &*last.ranges) == (mtu, ranges)
        {
            return last.reached.clone();
        }
        let reached = ask(ranges, mtu);
        let kept = reached.clone();
        *last = Some(Last { at: Instant::now(), ranges: ranges.to_vec(), mtu, reached: kept });
        reached
    }
}

fn ask(ranges: &[Cidr], mtu: u32) -> BTreeMap<Cidr, Reached> {
    let mut reached = BTreeMap::new();
    for some in ranges[..ranges.len().min(ASKED_MAX)].chunks(AT_A_TIME) {
        let sizes = |range: &Cidr| {
            let headers = if range.address.is_ipv4() { 28 } else { 48 };
            [1, mtu.saturating_sub(headers) as usize]
        };
        let questions = some.iter().flat_map(|range| sizes(range).map(|size| (*range, size)));
        let heard = ask_some(&questions.collect::<Vec<_>>());
        for (range, heard) in some.iter().zip(heard.as_chunks::<2>().0) {
            let [small, large] = heard.clone();
            reached.insert(*range, Reached { small, large });
        }
    }
    reached
}

/// Asks for some ranges with datagrams of some sizes at once.
fn ask_some(questions: &[(Cidr, usize)]) -> Vec<Heard> {
    let mut heard = vec![Heard::Nothing; questions.len()];
    let mut sockets: Vec<Option<UdpSocket>> = Vec::new();
    for ((range, _), heard) in questions.iter().zip(&mut heard) {
        sockets.push(match open(*range) {
            Ok(socket) => Some(socket),
            Err(error) => {
                *heard = Heard::NotSent(error.to_string());
                None
            }
        });
    }
    for _ in 0..TRIES {
        for (at, socket) in sockets.iter().enumerate() {
            let Some(socket) = socket.as_ref().filter(|_| heard[at] == Heard::Nothing) else {
                continue;
            };
            // An error of the last one is told here, too.
            if let Err(error) = socket.send(&vec![0; questions[at].1]) {
                heard[at] = said(socket).unwrap_or_else(|| not_sent(&error));
            }
        }
        listen(&sockets, &mut heard);
    }
    heard
}

fn not_sent(error: &std::io::Error) -> Heard {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => Heard::TooBig,
        _ => Heard::NotSent(error.to_string()),
    }
}

fn open(range: Cidr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = match range.address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.set_nonblocking(true)?;
    if range.address.is_ipv4() {
        setsockopt(&socket, Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    socket.connect(SocketAddr::new(range.address, PORT))?;
    Ok(socket)
}

/// Hears what is said until all have, or patience ends.
fn listen(sockets: &[Option<UdpSocket>], heard: &mut [Heard]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let waiting: Vec<usize> = (0..sockets.len())
            .filter(|at| sockets[*at].is_some() && heard[*at] == Heard::Nothing)
            .collect();
        let left = deadline.saturating_duration_since(Instant::now());
        if waiting.is_empty() || left.is_zero() {
            return;
        }
        let mut polled: Vec<PollFd<'_>> = waiting
            .iter()
            .filter_map(|at| sockets[*at].as_ref())
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLERR))
            .collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut polled, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => {
                for (at, polled) in waiting.iter().zip(&polled) {
                    let socket = sockets[*at].as_ref().filter(|_| polled.any() == Some(true));
                    if let Some(answer) = socket.and_then(said) {
                        heard[*at] = answer;
                    }
                }
            }
            Err(_) => return,
        }
    }
}

/// The next of the errors that a socket was told of.
fn said(socket: &UdpSocket) -> Option<Heard> {
    let mut data = [0; 64];
    let mut space = cmsg_space!([u8; 128]);
    let mut parts = [IoSliceMut::new(&mut data)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
    message.cmsgs().ok()?.find_map(|control| {
        let (error, from) = match control {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                let from = from.map(|from| from.sin_addr.s_addr.to_ne_bytes());
                (error, from.map(IpAddr::from))
            }
            ControlMessageOwned::Ipv6RecvErr(error, from) => {
                (error, from.map(|from| IpAddr::from(from.sin6_addr.s6_addr)))
            }
            _ => return None,
        };
        match (i32::try_from(error.ee_errno).unwrap_or(0), from) {
            (libc::EMSGSIZE, _) => Some(Heard::TooBig),
            (_, Some(from)) if !from.is_unspecified() => Some(Heard::From(from)),
            (number, _) => Some(Heard::NotSent(Errno::from_raw(number).to_string())),
        }
    })
}
