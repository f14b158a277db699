//! Netfilter's messages: attributes, batches, and the socket that carries them. Numbers in attributes
//! are big endian, those in headers the machine's (`linux/netfilter/nfnetlink.h`).

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsRawFd as _, OwnedFd},
};

use netlink_packet_core::{
    DecodeError, Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla,
    NlasIterator,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            send, setsockopt, socket,
            sockopt::{ReceiveTimeout, SndBufForce},
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::Family;

/// How long the kernel may take for an answer, in seconds: an answer to a batch comes when all
/// processors have left the rules that it removes.
const ANSWER_SECONDS: i64 = 30;
/// Octets that one read takes: more than the kernel puts into one datagram.
const DATAGRAM: usize = 32 << 10;
/// Octets of an attribute's header.
const HEADER: usize = 4;
/// The first and the last message of a batch.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// An attribute: its number, and octets or others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Octets(u16, Vec<u8>),
    Nested(u16, Vec<Self>),
}

pub(super) fn number(kind: u16, value: u32) -> Attribute {
    Attribute::Octets(kind, value.to_be_bytes().to_vec())
}

pub(super) fn text(kind: u16, value: &str) -> Attribute {
    Attribute::Octets(kind, [value.as_bytes(), b"\0"].concat())
}

pub(super) fn nested(kind: u16, attributes: Vec<Attribute>) -> Attribute {
    Attribute::Nested(kind, attributes)
}

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Octets(_, octets) => octets.len(),
            Self::Nested(_, attributes) => attributes.as_slice().buffer_len(),
        }
    }

    fn kind(&self) -> u16 {
        let (Self::Octets(kind, _) | Self::Nested(kind, _)) = self;
        *kind
    }

    fn is_nested(&self) -> bool {
        matches!(self, Self::Nested(..))
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Octets(_, octets) => buffer[..octets.len()].copy_from_slice(octets),
            Self::Nested(_, attributes) => attributes.as_slice().emit(buffer),
        }
    }
}

/// A message's content: the header that all of netfilter has, and attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    kind: u16,
    pub(super) family: u8,
    /// In batches whom they are for.
    resource: u8,
    pub(super) attributes: Vec<u8>,
}

impl NetlinkSerializable for Body {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        4 + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..4].copy_from_slice(&[self.family, 0, 0, self.resource]);
        buffer[4..].copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Body {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, io::Error> {
        let (head, attributes) =
            payload.split_first_chunk::<4>().ok_or(io::ErrorKind::UnexpectedEof)?;
        let [family, _, _, resource] = *head;
        let kind = header.message_type;
        Ok(Self { kind, family, resource, attributes: attributes.to_vec() })
    }
}

/// Messages that are put together, each with a number of its own.
#[derive(Clone, Debug)]
pub(super) struct Request {
    subsystem: u8,
    octets: Vec<u8>,
    count: u32,
    /// Where the last message begins.
    last: usize,
}

impl Request {
    /// To a subsystem of netfilter (NFNL_SUBSYS_*).
    pub(super) fn to(subsystem: u8) -> Self {
        Self { subsystem, octets: Vec::new(), count: 0, last: 0 }
    }

    /// Adds a question or an order: the subsystem's number of it, and of what it is about.
    pub(super) fn ask(&mut self, verb: u8, family: Family, attributes: &[Attribute], flags: u16) {
        let kind = u16::from(self.subsystem) << 8 | u16::from(verb);
        let mut octets = vec![0; attributes.buffer_len()];
        attributes.emit(&mut octets);
        let body = Body { kind, family: family as u8, resource: 0, attributes: octets };
        self.push(body, flags);
    }

    /// Orders that are followed together or not at all. Only the last is answered where all goes
    /// well: so many answers as there may be orders no socket holds.
    pub(super) fn batch(subsystem: u8, orders: impl FnOnce(&mut Self)) -> Self {
        let mut request = Self::to(subsystem);
        request.edge(BATCH_BEGIN);
        orders(&mut request);
        if let Some([low, high]) = request.octets.get_mut(request.last + 6..request.last + 8) {
            [*low, *high] = (u16::from_ne_bytes([*low, *high]) | NLM_F_ACK).to_ne_bytes();
        }
        request.edge(BATCH_END);
        request
    }

    fn edge(&mut self, kind: u16) {
        let body = Body { kind, family: 0, resource: self.subsystem, attributes: Vec::new() };
        self.push(body, 0);
    }

    fn push(&mut self, body: Body, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.count;
        self.count += 1;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(body));
        message.finalize();
        self.last = self.octets.len();
        self.octets.resize(self.last + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut self.octets[self.last..]);
    }
}

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The socket failed.
    #[error("talk to the kernel over netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refuses.
    #[error("the kernel refuses: {0}")]
    Refused(io::Error),
    /// What was listed changed meanwhile.
    #[error("what the kernel listed changed while it did; try again")]
    Interrupted,
    /// It says what is no message.
    #[error("the kernel's answer can't be read: {0}")]
    Answer(DecodeError),
}

impl TalkError {
    /// Whether the kernel does not know nftables.
    pub fn is_unsupported(&self) -> bool {
        let numbers = [libc::EINVAL, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::ENOENT];
        let (Self::Refused(error) | Self::Socket(error)) = self else { return false };
        error.raw_os_error().is_some_and(|number| numbers.contains(&number))
    }
}

/// A line to the kernel's netfilter.
#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
}

impl Line {
    /// Of this thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(family, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        Ok(Self { socket })
    }

    /// Asks one question that is answered by many messages, until `note` has heard enough: then this
    /// line is good for nothing more.
    pub(super) fn dump(
        &mut self,
        subsystem: u8,
        verb: u8,
        family: Family,
        attributes: &[Attribute],
        note: impl FnMut(&Body) -> ControlFlow<()>,
    ) -> Result<(), TalkError> {
        let mut request = Request::to(subsystem);
        request.ask(verb, family, attributes, NLM_F_DUMP);
        self.put(&request, note)
    }

    /// Sends `request` and waits until its last message is done, or one is refused.
    pub(super) fn put(
        &mut self,
        request: &Request,
        mut note: impl FnMut(&Body) -> ControlFlow<()>,
    ) -> Result<(), TalkError> {
        // One datagram takes it all. Where the buffer may not grow, sending says so.
        let _best_effort = setsockopt(&self.socket, SndBufForce, &(request.octets.len() * 2));
        let sent = send(self.socket.as_raw_fd(), &request.octets, MsgFlags::empty());
        sent.map_err(io::Error::from)?;
        let mut buffer = vec![0; DATAGRAM];
        let mut is_whole = true;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received.map_err(io::Error::from)?,
            };
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<Body>::deserialize(rest).map_err(TalkError::Answer)?;
                is_whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match &message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(TalkError::Refused(error.to_io()));
                    }
                    NetlinkPayload::Done(done) if done.code != 0 => {
                        return Err(TalkError::Refused(io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) if is_whole => return Ok(()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        return Err(TalkError::Interrupted);
                    }
                    NetlinkPayload::InnerMessage(body) if note(body).is_break() => return Ok(()),
                    _ => {}
                }
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

/// How often what changes while it is listed is listed anew.
const TRIES: usize = 8;

/// Asks until an answer is whole, as often as may be hoped for.
pub(super) fn insist<T>(mut ask: impl FnMut() -> Result<T, TalkError>) -> Result<T, TalkError> {
    for _ in 1..TRIES {
        match ask() {
            Err(TalkError::Interrupted) => {}
            outcome => return outcome,
        }
    }
    ask()
}

/// The attributes of a message or of another attribute, up to the first that is malformed: their
/// numbers and their octets.
pub(super) fn attributes(octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(octets).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, length) = (attribute.kind(), attribute.value_length());
        Some((kind, attribute.into_inner().get(HEADER..HEADER + length)?))
    })
}

/// The first attribute with this number.
pub(super) fn attribute(octets: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(octets).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// A number of four octets.
pub(super) fn number_of(octets: &[u8]) -> Option<u32> {
    octets.try_into().ok().map(u32::from_be_bytes)
}

/// A text that ends with a zero octet.
pub(super) fn text_of(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets.strip_suffix(b"\0").unwrap_or(octets)).into_owned()
}
