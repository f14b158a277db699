//! Many datagrams by one call of the system: what has arrived is taken together, and answers leave
//! together. The memory for it belongs to the thread.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};

use nix::{
    errno::Errno,
    getsockopt_impl, sockopt_impl,
    sys::socket::{
        ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, getsockopt, recvmmsg, sendmmsg,
        sendmsg, sendto,
    },
};

use super::{
    backlog::{Backlog, Datagram},
    trains,
};
use crate::dns::message::MAX_PAYLOAD;

/// How many are taken together at most.
pub(super) const MANY: usize = 32;
/// More than any question needs; a longer one is malformed.
const DATAGRAM: usize = 4096;
/// What a datagram of IPv4 can hold, and so what can leave together, in octets.
const TOGETHER: usize = 65_507;
const _: () = assert!(MANY * MAX_PAYLOAD as usize <= TOGETHER, "a batch is one train at most");

thread_local! {
    static BATCH: RefCell<Batch> = RefCell::new(Batch::new());
}

/// Datagrams that have arrived, and answers that have not left.
pub(super) struct Batch {
    /// By family: the system notes in them how long addresses are, and takes that for the room
    /// that there is the next time.
    takes: [MultiHeaders<SockaddrStorage>; 2],
    gives: MultiHeaders<SockaddrStorage>,
    questions: Vec<u8>,
    arrived: Vec<Arrived>,
    /// Memory for answers, of which the first few are in use: one for each place in `to`.
    answers: Vec<Vec<u8>>,
    to: Vec<SocketAddr>,
}

/// Whether a socket's answers to one client may leave together: until the kernel, or the device
/// that they leave by, refuses that.
#[derive(Debug)]
pub(super) struct Couples(AtomicBool);

impl Couples {
    /// As it is told, to begin with.
    pub(super) fn new(may: bool) -> Self {
        Self(AtomicBool::new(may))
    }
}

/// A question in the memory for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    length: usize,
    pub(super) source: SocketAddr,
    /// When it was taken from the socket.
    pub(super) since: Instant,
}

/// An answer for which the socket had no room, and whose it is.
pub(super) type Left = (Vec<u8>, SocketAddr);

impl Batch {
    fn new() -> Self {
        Self {
            takes: std::array::from_fn(|_| MultiHeaders::preallocate(MANY, None)),
            gives: MultiHeaders::preallocate(MANY, None),
            questions: vec![0; MANY * DATAGRAM],
            arrived: Vec::with_capacity(MANY),
            answers: (0..MANY).map(|_| Vec::with_capacity(MAX_PAYLOAD.into())).collect(),
            to: Vec::with_capacity(MANY),
        }
    }

    /// Has `work` done with this thread's.
    pub(super) fn with<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        BATCH.with_borrow_mut(work)
    }

    /// Takes what has arrived at a socket of IPv6, or of IPv4, in the place of what is here, and says
    /// how many.
    pub(super) fn take(&mut self, socket: &impl AsRawFd, ipv6: bool) -> io::Result<usize> {
        let mut memory = self.questions.chunks_exact_mut(DATAGRAM);
        let mut slices: [[IoSliceMut<'_>; 1]; MANY] =
            std::array::from_fn(|_| [IoSliceMut::new(memory.next().unwrap_or_default())]);
        self.arrived.clear();
        let (takes, flags) = (&mut self.takes[usize::from(ipv6)], MsgFlags::MSG_DONTWAIT);
        let taken = recvmmsg(socket.as_raw_fd(), takes, &mut slices, flags, None)?;
        // To one without an address, as to port 0, nothing can be sent.
        let nobody = SocketAddr::from(([0; 4], 0));
        let since = Instant::now();
        for message in taken {
            let source = message.address.as_ref().and_then(address).unwrap_or(nobody);
            self.arrived.push(Arrived { length: message.bytes.min(DATAGRAM), source, since });
        }
        Ok(self.arrived.len())
    }

    /// Has all that is here wait.
    pub(super) fn put_off(&mut self, backlog: &mut Backlog) {
        for (place, Arrived { length, source, since }) in self.arrived.drain(..).enumerate() {
            let octets = self.questions[place * DATAGRAM..][..length].to_vec();
            backlog.push(Datagram { octets, source, since });
        }
    }

    /// Has those that waited come after what is here, the newest first, as far as there is room.
    pub(super) fn catch_up(&mut self, backlog: &mut Backlog, now: Instant) {
        while self.arrived.len() < MANY
            && let Some(Datagram { octets, source, since }) = backlog.pop(now)
        {
            let length = octets.len();
            self.questions[self.arrived.len() * DATAGRAM..][..length].copy_from_slice(&octets);
            self.arrived.push(Arrived { length, source, since });
        }
    }

    /// Forgets what is here.
    pub(super) fn clear(&mut self) {
        self.arrived.clear();
    }

    /// How many are here.
    pub(super) fn len(&self) -> usize {
        self.arrived.len()
    }

    /// Has `write` write the answer to one of them, unless it says that there is none.
    pub(super) fn answer(
        &mut self,
        place: usize,
        write: impl FnOnce(&[u8], Arrived, &mut Vec<u8>) -> bool,
    ) -> bool {
        let arrived = self.arrived[place];
        let question = &self.questions[place * DATAGRAM..][..arrived.length];
        let Some(memory) = self.answers.get_mut(self.to.len()) else { return false };
        let written = write(question, arrived, memory);
        if written {
            self.to.push(arrived.source);
        }
        written
    }

    /// Sends what was written; gives back what the socket has no room for.
    pub(super) fn give(&mut self, socket: &impl AsRawFd, couples: &Couples) -> Vec<Left> {
        let left = match self.to[..] {
            [] => return Vec::new(),
            [to] => self.send_only(socket, to),
            _ => self.send_all(socket, couples),
        };
        self.to.clear();
        left
    }

    /// Sends the one answer that there is, as it is mostly while answers keep up with questions.
    fn send_only(&self, socket: &impl AsRawFd, to: SocketAddr) -> Vec<Left> {
        let answer = &self.answers[0];
        let address = SockaddrStorage::from(to);
        loop {
            match sendto(socket.as_raw_fd(), answer, &address, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return vec![(answer.clone(), to)],
                Err(error) => {
                    tracing::debug!(%error, "udp answer not sent");
                    return Vec::new();
                }
                Ok(_) => return Vec::new(),
            }
        }
    }

    fn send_all(&mut self, socket: &impl AsRawFd, couples: &Couples) -> Vec<Left> {
        let mut order: Vec<usize> = (0..self.to.len()).collect();
        let mut alone = Vec::with_capacity(order.len());
        if couples.0.load(Relaxed) {
            let (to, answers) = (&self.to, &self.answers);
            for train in trains::couple(&mut order, |at| to[at], |at| answers[at].len()) {
                let train = &order[train];
                if train.len() == 1 || !self.send_together(socket, train, couples) {
                    alone.extend(train);
                }
            }
        } else {
            alone = order;
        }
        self.send_alone(socket, &alone)
    }

    /// Sends a train of answers; whether it has left, or none of it can.
    fn send_together(&self, socket: &impl AsRawFd, train: &[usize], couples: &Couples) -> bool {
        let [first, ..] = train else { return true };
        let Ok(length) = u16::try_from(self.answers[*first].len()) else { return false };
        let slices: Vec<_> = train.iter().map(|at| IoSlice::new(&self.answers[*at])).collect();
        let to = SockaddrStorage::from(self.to[*first]);
        let beside = [ControlMessage::UdpGsoSegments(&length)];
        let flags = MsgFlags::MSG_DONTWAIT;
        match sendmsg(socket.as_raw_fd(), &slices, &beside, flags, Some(&to)) {
            Ok(_) => true,
            // No checksums in hardware, a narrow link, or an old kernel.
            Err(error @ (Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP)) => {
                tracing::debug!(%error, "answers of this socket leave one by one");
                couples.0.store(false, Relaxed);
                false
            }
            Err(_) => false,
        }
    }

    /// Sends the answers in these places, each as a datagram of its own.
    fn send_alone(&mut self, socket: &impl AsRawFd, places: &[usize]) -> Vec<Left> {
        const NOTHING_BESIDE: [ControlMessage<'_>; 0] = [];
        let to: Vec<_> = places.iter().map(|at| Some(self.to[*at].into())).collect();
        let mut sent = 0;
        while sent < places.len() {
            let mut rest = places[sent..].iter().map(|at| &self.answers[*at][..]);
            let slices: [[IoSlice<'_>; 1]; MANY] =
                std::array::from_fn(|_| [IoSlice::new(rest.next().unwrap_or_default())]);
            let (to, flags) = (&to[sent..], MsgFlags::MSG_DONTWAIT);
            let fd = socket.as_raw_fd();
            match sendmmsg(fd, &mut self.gives, &slices, to, NOTHING_BESIDE, flags) {
                Ok(results) => sent += results.count().max(1),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let behind = places[sent..].iter();
                    return behind.map(|at| (self.answers[*at].clone(), self.to[*at])).collect();
                }
                Err(error) => {
                    // The first of them can't be sent; those behind it may.
                    tracing::debug!(%error, "udp answer not sent");
                    sent += 1;
                }
            }
        }
        Vec::new()
    }
}

/// For how many datagrams a socket had no room since it was opened, modulo 2^32. Asked for when it
/// matters: said with each datagram (`SO_RXQ_OVFL`) it costs every one of them.
pub(super) fn lost(socket: &impl AsFd) -> io::Result<u32> {
    /// `SK_MEMINFO_DROPS`, the last of them.
    const DROPS: usize = 8;
    Ok(getsockopt(socket, MemInfo)?[DROPS])
}

sockopt_impl!(
    /// What a socket holds, and for how much it had no room.
    MemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_MEMINFO,
    [u32; 9]
);

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| SocketAddrV4::from(*address).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| SocketAddrV6::from(*address).into()))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// A socket of ours and one that asks it, at this address.
    fn pair(address: &str) -> (UdpSocket, UdpSocket) {
        let [ours, theirs] = [(); 2].map(|()| UdpSocket::bind((address, 0)).unwrap());
        theirs.connect(ours.local_addr().unwrap()).unwrap();
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        (ours, theirs)
    }

    #[test]
    fn many_of_both_families_are_answered_in_turn() {
        let pairs = ["127.0.0.1", "::1"].map(pair);
        for couples in [true, false].map(Couples::new) {
            for ((ours, theirs), ipv6) in pairs.iter().zip([false, true]) {
                let many = u8::try_from(MANY).unwrap() + 3;
                for number in 0..many {
                    theirs.send(&[number]).unwrap();
                }
                let mut answered = 0;
                while answered < usize::from(many) {
                    Batch::with(|batch| {
                        let count = batch.take(ours, ipv6).unwrap();
                        assert!(count <= MANY);
                        for place in 0..count {
                            assert!(batch.answer(place, |question, arrived, answer| {
                                assert_eq!(arrived.source, theirs.local_addr().unwrap());
                                answer.clear();
                                answer.extend(question);
                                true
                            }));
                        }
                        assert!(batch.give(ours, &couples).is_empty());
                        answered += count;
                    });
                }
                let mut octet = [0];
                for number in 0..many {
                    theirs.recv(&mut octet).unwrap();
                    assert_eq!(octet, [number]);
                }
            }
        }
        let nothing = Batch::with(|batch| batch.take(&pairs[0].0, false)).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn answers_that_leave_together_arrive_each_as_it_is() {
        for address in ["127.0.0.1", "::1"] {
            let (ours, theirs) = pair(address);
            let other = UdpSocket::bind((address, 0)).unwrap();
            other.connect(ours.local_addr().unwrap()).unwrap();
            let lengths = [60, 113, 60, 1232, 1, 113, 1232, 60];
            for (asking, length) in [&theirs, &other].into_iter().cycle().zip(lengths) {
                asking.send(&u16::to_be_bytes(length)).unwrap();
            }
            let couples = Couples::new(true);
            Batch::with(|batch| {
                assert_eq!(batch.take(&ours, address == "::1").unwrap(), lengths.len());
                for place in 0..lengths.len() {
                    batch.answer(place, |question, _, answer| {
                        let length = u16::from_be_bytes(question.try_into().unwrap());
                        answer.clear();
                        answer.resize(length.into(), u8::try_from(place).unwrap());
                        true
                    });
                }
                assert!(batch.give(&ours, &couples).is_empty());
            });
            assert!(couples.0.load(Relaxed), "the loopback device takes trains");
            for (first, asking) in [&theirs, &other].into_iter().enumerate() {
                let mut memory = [0; 2048];
                let mut arrived: Vec<_> = (0..lengths.len() / 2)
                    .map(|_| {
                        let length = asking.recv(&mut memory).unwrap();
                        assert!(memory[..length].iter().all(|octet| *octet == memory[0]));
                        (usize::from(memory[0]), u16::try_from(length).unwrap())
                    })
                    .collect();
                arrived.sort_unstable();
                let asked = lengths.into_iter().enumerate().skip(first).step_by(2);
                assert_eq!(arrived, asked.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_waited_comes_behind_what_has_just_come_newest_first() {
        for address in ["127.0.0.1", "::1"] {
            let (ours, theirs) = pair(address);
            let mut backlog = Backlog::default();
            let many = u8::try_from(MANY).unwrap();
            (0..many + 2).for_each(|number| assert_eq!(theirs.send(&[number]).unwrap(), 1));
            Batch::with(|batch| {
                assert_eq!(batch.take(&ours, address == "::1").unwrap(), MANY);
                batch.put_off(&mut backlog);
                assert_eq!((batch.len(), batch.take(&ours, address == "::1").unwrap()), (0, 2));
                batch.catch_up(&mut backlog, Instant::now());
                let mut order = Vec::new();
                for place in 0..batch.len() {
                    batch.answer(place, |question, arrived, _| {
                        assert_eq!(arrived.source, theirs.local_addr().unwrap());
                        order.push(question[0]);
                        false
                    });
                }
                let expected = [many, many + 1].into_iter().chain((2..many).rev());
                assert_eq!(order, expected.collect::<Vec<_>>());
                assert!(!backlog.is_empty(), "two have no room");
            });
        }
    }

    #[test]
    fn the_socket_says_for_how_many_it_had_no_room() {
        for address in ["127.0.0.1", "::1"] {
            let (ours, theirs) = pair(address);
            socket2::SockRef::from(&ours).set_recv_buffer_size(4096).unwrap();
            assert_eq!(lost(&ours).unwrap(), 0);
            (0..100).for_each(|_| assert_eq!(theirs.send(&[1]).unwrap(), 1));
            let took = Batch::with(|batch| batch.take(&ours, address == "::1").unwrap());
            assert!(took < 100);
            assert_eq!(lost(&ours).unwrap(), 100 - u32::try_from(took).unwrap());
        }
    }
}
