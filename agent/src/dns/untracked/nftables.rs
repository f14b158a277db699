//! As much of the kernel's language for nftables (`linux/netfilter/nf_tables.h`) as a table of a few
//! stateless rules takes: the messages, and a socket that puts them. Numbers in attributes are big
//! endian, those in headers the machine's.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use netlink_packet_core::{
    Emitable as _, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla,
    NlasIterator,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            send, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

/// Hooks of the kernel: what has arrived, and what this machine sends.
pub(super) const PREROUTING: u32 = 0;
pub(super) const LOCAL_OUT: u32 = 3;

/// How long the kernel may take for an answer, in seconds.
const ANSWER_SECONDS: i64 = 5;
/// Octets that one read takes: more than the kernel puts into one datagram.
const DATAGRAM: usize = 32 << 10;
/// The subsystem that is spoken to (NFNL_SUBSYS_NFTABLES), in messages' types and batches.
const SUBSYSTEM: u8 = 10;
/// The first and the last message of a batch.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// What is asked for (NFT_MSG_*).
#[derive(Clone, Copy)]
enum Verb {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    GetRules = 7,
}

/// A table that does nothing but let packets pass, some of them untracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) ipv6: bool,
    pub(super) name: &'static str,
    /// Chains that the kernel enters, and where.
    pub(super) hooks: Vec<(&'static str, u32)>,
    /// Chains that rules lead to.
    pub(super) chains: Vec<&'static str>,
    /// Of all its hooks.
    pub(super) priority: i32,
    /// In order.
    pub(super) rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: &'static str,
    pub(super) expressions: Vec<Expression>,
    pub(super) comment: String,
}

/// A condition, or what is done where all before it hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// The packet has these octets there.
    Holds { base: Base, offset: u32, octets: Vec<u8> },
    /// The transport is this one.
    Protocol(u8),
    /// Goes through that chain, and on behind it where nothing there ends the way.
    Jump(&'static str),
    /// Connection tracking does not see the packet.
    NoTrack,
}

/// From where an offset counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// The IP header (NFT_PAYLOAD_NETWORK_HEADER).
    Network = 1,
    /// The header behind it (NFT_PAYLOAD_TRANSPORT_HEADER).
    Transport = 2,
}

impl Expression {
    /// The packet goes to this address, or comes from it.
    pub(super) fn address(address: IpAddr, to: bool) -> Self {
        let (offset, octets) = match address {
            IpAddr::V4(address) => (if to { 16 } else { 12 }, address.octets().to_vec()),
            IpAddr::V6(address) => (if to { 24 } else { 8 }, address.octets().to_vec()),
        };
        Self::Holds { base: Base::Network, offset, octets }
    }

    /// The same of a port of UDP or TCP.
    pub(super) fn port(port: u16, to: bool) -> Self {
        let offset = if to { 2 } else { 0 };
        Self::Holds { base: Base::Transport, offset, octets: port.to_be_bytes().to_vec() }
    }

    /// As the kernel's expressions: a value is loaded to a register and compared there.
    fn attributes(&self) -> Vec<Attribute> {
        const REGISTER: u32 = 1;
        const VERDICT: u32 = 0;
        const JUMP: u32 = (-3_i32).cast_unsigned();
        const L4PROTO: u32 = 16;
        const EQUAL: u32 = 0;
        let compare = |octets: &[u8]| {
            let value = nested(3, vec![Attribute::Octets(1, octets.to_vec())]);
            named("cmp", vec![number(1, REGISTER), number(2, EQUAL), value])
        };
        match self {
            Self::Holds { base, offset, octets } => {
                let length = u32::try_from(octets.len()).unwrap_or_default();
                let base = *base as u32;
                let load = vec![
                    number(1, REGISTER),
                    number(2, base),
                    number(3, *offset),
                    number(4, length),
                ];
                vec![named("payload", load), compare(octets)]
            }
            Self::Protocol(protocol) => {
                let load = vec![number(1, REGISTER), number(2, L4PROTO)];
                vec![named("meta", load), compare(&[*protocol])]
            }
            Self::Jump(chain) => {
                let verdict = nested(2, vec![number(1, JUMP), text(2, chain)]);
                vec![named("immediate", vec![number(1, VERDICT), nested(2, vec![verdict])])]
            }
            Self::NoTrack => vec![named("notrack", Vec::new())],
        }
    }
}

/// An attribute: its number, and octets or others.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attribute {
    Octets(u16, Vec<u8>),
    Nested(u16, Vec<Self>),
}

fn number(kind: u16, value: u32) -> Attribute {
    Attribute::Octets(kind, value.to_be_bytes().to_vec())
}

fn text(kind: u16, value: &str) -> Attribute {
    Attribute::Octets(kind, [value.as_bytes(), b"\0"].concat())
}

fn nested(kind: u16, attributes: Vec<Attribute>) -> Attribute {
    Attribute::Nested(kind, attributes)
}

/// An element of a list of expressions.
fn named(name: &str, data: Vec<Attribute>) -> Attribute {
    nested(1, vec![text(1, name), nested(2, data)])
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
struct Body {
    kind: u16,
    family: u8,
    /// In batches whom they are for.
    resource: u8,
    attributes: Vec<u8>,
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
#[derive(Default)]
struct Request {
    octets: Vec<u8>,
    count: u32,
}

impl Request {
    fn push(&mut self, body: Body, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.count;
        self.count += 1;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(body));
        message.finalize();
        let start = self.octets.len();
        self.octets.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut self.octets[start..]);
    }

    fn batch(&mut self, kind: u16) {
        let body = Body { kind, family: 0, resource: SUBSYSTEM, attributes: Vec::new() };
        self.push(body, 0);
    }

    fn ask(&mut self, verb: Verb, ipv6: bool, attributes: &[Attribute], flags: u16) {
        let kind = u16::from(SUBSYSTEM) << 8 | verb as u16;
        let mut octets = vec![0; attributes.buffer_len()];
        attributes.emit(&mut octets);
        self.push(Body { kind, family: family(ipv6), resource: 0, attributes: octets }, flags);
    }
}

/// NFPROTO_IPV4 or NFPROTO_IPV6.
fn family(ipv6: bool) -> u8 {
    if ipv6 { 10 } else { 2 }
}

impl Table {
    /// What makes it anew in the place of one of its name, whatever that holds.
    fn replacing(&self) -> Request {
        let mut request = Request::default();
        request.batch(BATCH_BEGIN);
        self.ask_to_remove(&mut request);
        let mut add = |verb, attributes: &[Attribute], flags| {
            request.ask(verb, self.ipv6, attributes, NLM_F_ACK | NLM_F_CREATE | flags);
        };
        add(Verb::NewTable, &[text(1, self.name)], 0);
        for (chain, hook) in &self.hooks {
            let hook = vec![number(1, *hook), number(2, self.priority.cast_unsigned())];
            let attributes =
                [text(1, self.name), text(3, chain), nested(4, hook), text(7, "filter")];
            add(Verb::NewChain, &attributes, 0);
        }
        for chain in &self.chains {
            add(Verb::NewChain, &[text(1, self.name), text(3, chain)], 0);
        }
        for Rule { chain, expressions, comment } in &self.rules {
            let expressions = expressions.iter().flat_map(Expression::attributes).collect();
            let attributes = [
                text(1, self.name),
                text(2, chain),
                nested(4, expressions),
                Attribute::Octets(7, user_data(comment)),
            ];
            add(Verb::NewRule, &attributes, NLM_F_APPEND);
        }
        request.batch(BATCH_END);
        request
    }

    fn removing(&self) -> Request {
        let mut request = Request::default();
        request.batch(BATCH_BEGIN);
        self.ask_to_remove(&mut request);
        request.batch(BATCH_END);
        request
    }

    /// Added before, so that its absence is no error.
    fn ask_to_remove(&self, request: &mut Request) {
        let name = [text(1, self.name)];
        request.ask(Verb::NewTable, self.ipv6, &name, NLM_F_ACK | NLM_F_CREATE);
        request.ask(Verb::DeleteTable, self.ipv6, &name, NLM_F_ACK);
    }
}

/// A comment as `nft` shows it: a kind (0), a length and the text with a zero behind it.
fn user_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut octets = vec![0, length];
    octets.extend_from_slice(&comment.as_bytes()[..usize::from(length) - 1]);
    octets.push(0);
    octets
}

fn comment(user_data: &[u8]) -> Option<String> {
    let [0, length, rest @ ..] = user_data else { return None };
    let text = rest.get(..usize::from(length.checked_sub(1)?))?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The chain of a rule that is told, and its comment; empty where it has none.
fn told(body: &Body) -> (String, String) {
    let (mut chain, mut said) = (String::new(), String::new());
    for attribute in NlasIterator::new(body.attributes.as_slice()).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            2 => {
                let name = value.strip_suffix(b"\0").unwrap_or(value);
                chain = String::from_utf8_lossy(name).into_owned();
            }
            7 => said = comment(value).unwrap_or_default(),
            _ => {}
        }
    }
    (chain, said)
}

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum TalkError {
    /// The socket failed.
    #[error("talk to the kernel over netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refuses.
    #[error("the kernel refuses: {0}")]
    Refused(io::Error),
    /// It says what is no message.
    #[error("the kernel's answer can't be read: {0}")]
    Answer(netlink_packet_core::DecodeError),
}

impl TalkError {
    /// Whether the kernel does not know nftables.
    pub(super) fn is_unsupported(&self) -> bool {
        let numbers = [libc::EINVAL, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::ENOENT];
        let (Self::Refused(error) | Self::Socket(error)) = self else { return false };
        error.raw_os_error().is_some_and(|number| numbers.contains(&number))
    }
}

/// A line to the kernel.
pub(super) struct NfTables {
    socket: OwnedFd,
}

impl NfTables {
    /// Of this thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(family, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        Ok(Self { socket })
    }

    /// The rules of the table: chain and comment of each, in order; none where there is no table.
    pub(super) fn rules(&mut self, table: &Table) -> Result<Vec<(String, String)>, TalkError> {
        let mut request = Request::default();
        request.ask(Verb::GetRules, table.ipv6, &[text(1, table.name)], NLM_F_DUMP);
        let mut rules = Vec::new();
        self.put(&request, 1, |body| rules.push(told(body)))?;
        Ok(rules)
    }

    /// Puts the table in the place of the one with its name: the kernel takes all of it or nothing.
    pub(super) fn replace(&mut self, table: &Table) -> Result<(), TalkError> {
        let request = table.replacing();
        // All but the two around them are answered.
        self.put(&request, request.count - 2, |_| {})
    }

    /// Removes the table.
    pub(super) fn remove(&mut self, table: &Table) -> Result<(), TalkError> {
        let request = table.removing();
        self.put(&request, request.count - 2, |_| {})
    }

    /// Sends `request` and waits until so many of its messages are done, or one is refused.
    fn put(
        &mut self,
        request: &Request,
        mut answers: u32,
        mut note: impl FnMut(&Body),
    ) -> Result<(), TalkError> {
        let sent = send(self.socket.as_raw_fd(), &request.octets, MsgFlags::empty());
        sent.map_err(io::Error::from)?;
        let mut buffer = vec![0; DATAGRAM];
        while answers > 0 {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received.map_err(io::Error::from)?,
            };
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<Body>::deserialize(rest).map_err(TalkError::Answer)?;
                match &message.payload {
                    NetlinkPayload::Error(error) => {
                        if error.code.is_some() {
                            return Err(TalkError::Refused(error.to_io()));
                        }
                        answers = answers.saturating_sub(1);
                    }
                    NetlinkPayload::Done(_) => answers = answers.saturating_sub(1),
                    NetlinkPayload::InnerMessage(body) => note(body),
                    _ => {}
                }
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
        Ok(())
    }
}
