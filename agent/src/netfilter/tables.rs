//! Tables of our own in nftables (`linux/netfilter/nf_tables.h`): as much of its language as a few rules
//! take that let every packet pass.

use std::{io, net::IpAddr, ops::ControlFlow};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use super::{
    Family, TalkError,
    wire::{self, Attribute, Body, Line, Request, attributes, nested, number, text},
};

/// The verdict that leads to another chain and back (NFT_JUMP).
pub(super) const JUMP: u32 = (-3_i32).cast_unsigned();
/// The subsystem (NFNL_SUBSYS_NFTABLES).
pub(super) const SUBSYSTEM: u8 = 10;

/// What is asked for (NFT_MSG_*).
#[derive(Clone, Copy)]
pub(super) enum Verb {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    GetChains = 4,
    DeleteChain = 5,
    NewRule = 6,
    GetRules = 7,
    DeleteRule = 8,
    GetSets = 10,
    GetElements = 13,
}

/// Where the kernel enters a chain (NF_INET_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What has arrived.
    Prerouting = 0,
    /// What this machine sends.
    LocalOut = 3,
}

/// What a chain that the kernel enters is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Packets, each by itself.
    Filter,
    /// Connections' first packets, and with them that the translations of all connections are in
    /// force.
    Nat,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// A chain that the kernel enters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub chain: &'static str,
    /// Where.
    pub hook: Hook,
    /// Before or behind others there.
    pub priority: i32,
    /// What for.
    pub kind: Kind,
}

/// A table that does nothing but let packets pass, some of them untracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Of these packets.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// Chains that the kernel enters.
    pub hooks: Vec<Base>,
    /// Chains that rules lead to.
    pub chains: Vec<&'static str>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain that it is in.
    pub chain: &'static str,
    /// What has to hold, and what is done then.
    pub expressions: Vec<Expression>,
    /// What it is for, as `nft list ruleset` shows it.
    pub comment: String,
}

/// A condition, or what is done where all before it hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// The packet has these octets there.
    Holds {
        /// From the beginning of this header.
        base: Header,
        /// In octets.
        offset: u32,
        /// What is there.
        octets: Vec<u8>,
    },
    /// The transport is this one.
    Protocol(u8),
    /// Goes through that chain, and on behind it where nothing there ends the way.
    Jump(&'static str),
    /// Connection tracking does not see the packet.
    NoTrack,
    /// Looks at the packet's connection, which has connection tracking see all packets.
    Tracked,
}

/// From where an offset counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The IP header (NFT_PAYLOAD_NETWORK_HEADER).
    Network = 1,
    /// The header behind it (NFT_PAYLOAD_TRANSPORT_HEADER).
    Transport = 2,
}

impl Expression {
    /// The packet goes to this address, or comes from it.
    pub fn address(address: IpAddr, to: bool) -> Self {
        let (offset, octets) = match address {
            IpAddr::V4(address) => (if to { 16 } else { 12 }, address.octets().to_vec()),
            IpAddr::V6(address) => (if to { 24 } else { 8 }, address.octets().to_vec()),
        };
        Self::Holds { base: Header::Network, offset, octets }
    }

    /// The same of a port of UDP or TCP.
    pub fn port(port: u16, to: bool) -> Self {
        let offset = if to { 2 } else { 0 };
        Self::Holds { base: Header::Transport, offset, octets: port.to_be_bytes().to_vec() }
    }

    /// As the kernel's expressions: a value is loaded to a register and compared there.
    fn attributes(&self) -> Vec<Attribute> {
        const REGISTER: u32 = 1;
        const VERDICT: u32 = 0;
        const L4PROTO: u32 = 16;
        const EQUAL: u32 = 0;
        const CT_STATE: u32 = 0;
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
            Self::Tracked => {
                vec![named("ct", vec![number(1, REGISTER), number(2, CT_STATE)])]
            }
        }
    }
}

/// An element of a list of expressions.
fn named(name: &str, data: Vec<Attribute>) -> Attribute {
    nested(1, vec![text(1, name), nested(2, data)])
}

impl Table {
    /// What makes it anew in the place of one of its name, whatever that holds.
    fn replacing(&self) -> Request {
        Request::batch(SUBSYSTEM, |request| {
            self.ask_to_remove(request);
            let mut add = |verb: Verb, attributes: &[Attribute], flags| {
                request.ask(verb as u8, self.family, attributes, NLM_F_CREATE | flags);
            };
            add(Verb::NewTable, &[text(1, self.name)], 0);
            for Base { chain, hook, priority, kind } in &self.hooks {
                let hook = vec![number(1, *hook as u32), number(2, priority.cast_unsigned())];
                let attributes =
                    [text(1, self.name), text(3, chain), nested(4, hook), text(7, kind.name())];
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
        })
    }

    /// Added before, so that its absence is no error.
    fn ask_to_remove(&self, request: &mut Request) {
        let name = [text(1, self.name)];
        request.ask(Verb::NewTable as u8, self.family, &name, NLM_F_CREATE);
        request.ask(Verb::DeleteTable as u8, self.family, &name, 0);
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
    for (kind, value) in attributes(&body.attributes) {
        match kind {
            2 => chain = wire::text_of(value),
            7 => said = comment(value).unwrap_or_default(),
            _ => {}
        }
    }
    (chain, said)
}

/// A line to the kernel's nftables.
#[derive(Debug)]
pub struct NfTables(pub(super) Line);

impl NfTables {
    /// Of this thread's network namespace.
    pub fn open() -> io::Result<Self> {
        Line::open().map(Self)
    }

    /// The rules of the table: chain and comment of each, in order; none where there is no table.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<(String, String)>, TalkError> {
        let (verb, name) = (Verb::GetRules as u8, [text(1, table.name)]);
        let mut rules = Vec::new();
        self.0.dump(SUBSYSTEM, verb, table.family, &name, |body| {
            rules.push(told(body));
            ControlFlow::Continue(())
        })?;
        Ok(rules)
    }

    /// Puts the table in the place of the one with its name: the kernel takes all of it or nothing.
    pub fn replace(&mut self, table: &Table) -> Result<(), TalkError> {
        self.0.put(&table.replacing(), |_| ControlFlow::Continue(()))
    }

    /// Removes the table, if there is one.
    pub fn remove(&mut self, table: &Table) -> Result<(), TalkError> {
        let request = Request::batch(SUBSYSTEM, |request| table.ask_to_remove(request));
        self.0.put(&request, |_| ControlFlow::Continue(()))
    }
}
