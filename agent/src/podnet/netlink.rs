//! A blocking route-netlink socket: batches of changes, and dumps.
//!
//! Blocking, because a pod's end is set up by a thread that has entered the pod's namespace and
//! ends with it; an asynchronous socket would need a runtime there. A socket belongs to the
//! namespace of the thread that opens it.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// How many changes travel in one system call: their acknowledgements fit the receive buffer.
const BATCH: usize = 64;
/// How often a dump that changed under our eyes is repeated.
const DUMP_ATTEMPTS: usize = 5;
/// The kernel answers at once; what takes longer is a fault.
const TIMEOUT_SECONDS: i64 = 5;
/// The kernel fills at most 32 KiB per datagram of a dump.
pub(super) const RECEIVE_BUFFER: usize = 64 << 10;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket, or none that works.
    #[error("{operation} a netlink socket; the agent needs CAP_NET_ADMIN")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change.
    #[error("{what}")]
    Refused {
        /// The change.
        what: String,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// An answer that makes no sense.
    #[error("netlink answer for {what}: {detail}")]
    Malformed {
        /// The request.
        what: String,
        /// What is wrong with the answer.
        detail: String,
    },
}

impl NetlinkError {
    /// The kernel's refusal, if it is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Some(*source),
            Self::Socket { .. } | Self::Malformed { .. } => None,
        }
    }
}

/// One change of the kernel's tables, with the words in which its failure is reported.
#[derive(Clone, Debug)]
pub struct Change {
    /// Such as `add address 10.244.1.2/32 to eth0`.
    pub what: String,
    /// The request.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_CREATE` and the like; request and acknowledgement are implied.
    pub flags: u16,
    /// An answer that means that nothing was left to do.
    pub tolerate: Option<Errno>,
}

/// A socket.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket of the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |operation| move |errno: Errno| socket_error(operation, errno);
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
            .map_err(failed("open"))?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))
            .map_err(failed("set the timeout of"))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Makes `changes` in their order. The kernel goes on after a refusal; the first one is
    /// returned.
    pub fn apply(&mut self, changes: Vec<Change>) -> Result<(), NetlinkError> {
        match self.apply_each(changes)?.into_iter().next() {
            Some((_, refusal)) => Err(refusal),
            None => Ok(()),
        }
    }

    /// Makes `changes` in their order, and gives those that the kernel refused, by their places. An
    /// error says that the kernel was not reached.
    pub fn apply_each(
        &mut self,
        changes: Vec<Change>,
    ) -> Result<Vec<(usize, NetlinkError)>, NetlinkError> {
        let mut changes = VecDeque::from(changes);
        let (mut refused, mut made) = (Vec::new(), 0);
        while !changes.is_empty() {
            let batch: Vec<_> = changes.drain(..changes.len().min(BATCH)).collect();
            let count = batch.len();
            let of_batch = self.apply_batch(batch)?;
            refused.extend(of_batch.into_iter().map(|(index, error)| (made + index, error)));
            made += count;
        }
        Ok(refused)
    }

    /// What of a batch the kernel refused.
    fn apply_batch(
        &mut self,
        changes: Vec<Change>,
    ) -> Result<Vec<(usize, NetlinkError)>, NetlinkError> {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let mut waiting = Vec::with_capacity(changes.len());
        for Change { what, message, flags, tolerate } in changes {
            self.append(&mut bytes, message, NLM_F_ACK | flags);
            waiting.push((what, tolerate));
        }
        self.send(&bytes)?;
        let mut refused = Vec::new();
        let mut acknowledged = 0;
        while acknowledged < waiting.len() {
            for message in self.receive("a change")? {
                let NetlinkPayload::Error(answer) = message.payload else { continue };
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                let Some((what, tolerate)) = waiting.get(index) else { continue };
                acknowledged += 1;
                let errno = answer.code.map(|code| Errno::from_raw(-code.get()));
                if let Some(source) = errno.filter(|errno| Some(*errno) != *tolerate) {
                    refused.push((index, NetlinkError::Refused { what: what.clone(), source }));
                }
            }
        }
        Ok(refused)
    }

    /// Everything of the kind that `request` asks for.
    pub fn dump(
        &mut self,
        what: &str,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(items) = self.ask(what, request.clone(), NLM_F_DUMP)? {
                return Ok(items);
            }
        }
        Err(malformed(what, "it changed faster than it could be read"))
    }

    /// The one object that `request` names, or `None`.
    pub fn get(
        &mut self,
        what: &str,
        request: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        // Qdiscs are told to everybody but the one who asks, unless that one wants the echo.
        match self.ask(what, request, NLM_F_ACK | NLM_F_ECHO) {
            Ok(items) => Ok(items.and_then(|mut items| items.pop())),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one question and reads to the end of its answer; `None`: the answer is not
    /// consistent.
    fn ask(
        &mut self,
        what: &str,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, request, flags);
        self.send(&bytes)?;
        let mut items = Vec::new();
        let mut consistent = true;
        loop {
            for message in self.receive(what)? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(item) => items.push(item),
                    NetlinkPayload::Error(answer) => match answer.code {
                        None => return Ok(Some(items)),
                        Some(code) => {
                            let source = Errno::from_raw(-code.get());
                            return Err(NetlinkError::Refused { what: what.to_owned(), source });
                        }
                    },
                    NetlinkPayload::Done(_) => return Ok(consistent.then_some(items)),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty())
            .map(|_sent_whole| ())
            .map_err(|errno| socket_error("send to", errno))
    }

    fn receive(
        &mut self,
        what: &str,
    ) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetlinkError> {
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(|errno| socket_error("receive from", errno))?,
            }
        };
        parse(&self.buffer[..length]).map_err(|detail| malformed(what, detail))
    }
}

/// The messages of one datagram.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, String> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let message = NetlinkMessage::deserialize(bytes).map_err(|error| error.to_string())?;
        let length = (message.header.length as usize).next_multiple_of(4).min(bytes.len());
        if length == 0 {
            return Err("a message without a length".into());
        }
        bytes = &bytes[length..];
        messages.push(message);
    }
    Ok(messages)
}

fn malformed(what: &str, detail: impl Into<String>) -> NetlinkError {
    NetlinkError::Malformed { what: what.to_owned(), detail: detail.into() }
}

pub(super) fn socket_error(operation: &'static str, errno: Errno) -> NetlinkError {
    NetlinkError::Socket { operation, source: errno.into() }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
