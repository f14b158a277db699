//! Many datagrams by one call of the system: what has arrived is taken together, and answers leave
//! together. The memory for it belongs to the thread.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg},
};

use crate::dns::message::MAX_PAYLOAD;

/// How many are taken together at most.
pub(super) const MANY: usize = 32;
/// More than any question needs; a longer one is malformed.
const DATAGRAM: usize = 4096;

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
    /// Length and source of each question.
    arrived: Vec<(usize, SocketAddr)>,
    /// Memory for answers, of which the first few are in use: one for each place in `to`.
    answers: Vec<Vec<u8>>,
    to: Vec<Option<SockaddrStorage>>,
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

    /// Takes what has arrived at a socket of IPv6, or of IPv4, and says how many.
    pub(super) fn take(&mut self, socket: &impl AsRawFd, ipv6: bool) -> io::Result<usize> {
        let mut memory = self.questions.chunks_exact_mut(DATAGRAM);
        let mut slices: [[IoSliceMut<'_>; 1]; MANY] =
            std::array::from_fn(|_| [IoSliceMut::new(memory.next().unwrap_or_default())]);
        self.arrived.clear();
        let flags = MsgFlags::MSG_DONTWAIT;
        let takes = &mut self.takes[usize::from(ipv6)];
        let taken = recvmmsg(socket.as_raw_fd(), takes, &mut slices, flags, None)?;
        // To one without an address, as to port 0, nothing can be sent.
        let nobody = SocketAddr::from(([0; 4], 0));
        self.arrived.extend(taken.map(|message| {
            (message.bytes, message.address.as_ref().and_then(address).unwrap_or(nobody))
        }));
        Ok(self.arrived.len())
    }

    /// Has `write` write the answer to one of them, unless it says that there is none.
    pub(super) fn answer(
        &mut self,
        place: usize,
        write: impl FnOnce(&[u8], SocketAddr, &mut Vec<u8>) -> bool,
    ) -> bool {
        let (length, source) = self.arrived[place];
        let start = place * DATAGRAM;
        let question = &self.questions[start..start + length.min(DATAGRAM)];
        let Some(memory) = self.answers.get_mut(self.to.len()) else { return false };
        let written = write(question, source, memory);
        if written {
            self.to.push(Some(source.into()));
        }
        written
    }

    /// Sends what was written; gives back what the socket has no room for.
    pub(super) fn give(&mut self, socket: &impl AsRawFd) -> Vec<Left> {
        const NOTHING_BESIDE: [ControlMessage<'_>; 0] = [];
        let (mut sent, mut left) = (0, Vec::new());
        while sent < self.to.len() {
            let mut rest = self.answers[sent..].iter();
            let slices: [[IoSlice<'_>; 1]; MANY] =
                std::array::from_fn(|_| [IoSlice::new(rest.next().map_or(&[], Vec::as_slice))]);
            let (to, flags) = (&self.to[sent..], MsgFlags::MSG_DONTWAIT);
            let fd = socket.as_raw_fd();
            match sendmmsg(fd, &mut self.gives, &slices, to, NOTHING_BESIDE, flags) {
                Ok(results) => sent += results.count().max(1),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    left = self.behind(sent);
                    break;
                }
                Err(error) => {
                    // The first of them can't be sent; those behind it may.
                    tracing::debug!(%error, "udp answer not sent");
                    sent += 1;
                }
            }
        }
        self.to.clear();
        left
    }

    /// The answers that were not sent.
    fn behind(&self, sent: usize) -> Vec<Left> {
        let all = self.answers.iter().zip(&self.to).skip(sent);
        all.filter_map(|(answer, to)| Some((answer.clone(), address(to.as_ref()?)?))).collect()
    }
}

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
        for _round in 0..2 {
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
                            assert!(batch.answer(place, |question, source, answer| {
                                assert_eq!(source, theirs.local_addr().unwrap());
                                answer.clear();
                                answer.extend(question);
                                true
                            }));
                        }
                        assert!(batch.give(ours).is_empty());
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
}
