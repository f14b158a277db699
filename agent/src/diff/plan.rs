//! A plan: what is to be written to the tables, in order, as data.
//!
//! The order makes every moment of its execution a consistent one for those who read meanwhile:
//! what is new is written where nobody looks yet, then what points to it is changed by one atomic
//! store or one hash entry each. What nothing points to then is released by a later plan, when
//! programs that still hold it were waited for ([`super::limbo`]).

use std::{fmt, net::SocketAddr};

use mizzen_ebpf_abi::{
    addr::Addr,
    maps,
    node::{NodeAddr, NodeConfig},
    service::{
        Backend4, Backend6, Frontend, FrontendKey, NO_SET, SetWord, backend_flags, reserved_for,
    },
};

use crate::{
    apply::maps::{AddrRange, Growing, SourceRange},
    desired::SetKey,
    model::service::Protocol,
};

/// One step: one call of [`crate::apply::maps::Maps`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Gives tables room for so many elements each.
    Grow(Vec<(Growing, u32)>),
    /// Adds or replaces addresses of the node.
    PutNodeAddrs(Vec<(Addr, NodeAddr)>),
    /// Adds or replaces the cluster's address ranges.
    PutClusterRanges(Vec<(AddrRange, u32)>),
    /// Adds source ranges of sets, before a frontend asks for them.
    PutSourceRanges(Vec<SourceRange>),
    /// Removes source ranges of sets, after no frontend asks for them.
    RemoveSourceRanges(Vec<SourceRange>),
    /// Writes the node's record.
    SetNodeConfig(NodeConfig),
    /// Writes IPv4 backends: new ids, the flags of live ones, or freed ones behind a barrier.
    WriteBackends4(Vec<(u32, Backend4)>),
    /// Writes IPv6 backends, likewise.
    WriteBackends6(Vec<(u32, Backend6)>),
    /// Writes a fresh slot range.
    WriteRange {
        /// The first word.
        offset: u32,
        /// Header and backend ids.
        words: Vec<u32>,
    },
    /// Stores words of sets.
    Flip(Vec<(u32, SetWord)>),
    /// Adds or replaces frontends.
    PutFrontends(Vec<(FrontendKey, Frontend)>),
    /// Removes frontends.
    RemoveFrontends(Vec<FrontendKey>),
    /// Waits for running programs.
    Barrier,
    /// Removes addresses of the node.
    RemoveNodeAddrs(Vec<Addr>),
    /// Removes the cluster's address ranges.
    RemoveClusterRanges(Vec<AddrRange>),
}

/// Something that there was no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What that means, and for whom.
    pub consequence: String,
    /// The map that is full.
    pub map: &'static str,
    /// How many entries that map has.
    pub capacity: u32,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { consequence, map, capacity } = self;
        write!(f, "map {map} is full with its {capacity} entries, {consequence}")
    }
}

impl Refused {
    /// A set that keeps what it had.
    pub(super) fn set(set: &SetKey, map: &'static str, capacity: u32) -> Self {
        Self { consequence: format!("{set} keeps what it had"), map, capacity }
    }

    /// Source ranges of a set that there was no room for.
    pub(super) fn source_ranges(
        set: &SetKey,
        left_out: &[AddrRange],
        capacity: u32,
    ) -> Option<Self> {
        let first = left_out.first()?;
        let more = left_out.len() - 1;
        let more = if more > 0 { format!(" and {more} more ranges") } else { String::new() };
        let consequence = format!("{set} is closed to clients in {first}{more}");
        Some(Self { consequence, map: maps::SOURCE_RANGES, capacity })
    }

    /// Elements that are left out of a map.
    pub(super) fn left_out(names: &[String], map: &'static str, capacity: u32) -> Option<Self> {
        let first = names.first()?;
        let more = names.len() - 1;
        let more = if more > 0 { format!(" and {more} more are") } else { " is".to_owned() };
        Some(Self { consequence: format!("{first}{more} left out"), map, capacity })
    }
}

/// A deleted endpoint, as the sockets that were translated to it know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// The set that it was chosen from.
    pub set: u32,
    /// The set's protocol.
    pub protocol: Protocol,
    /// Its address and port.
    pub endpoint: SocketAddr,
    /// The generation of the set's word up to which this address was the deleted endpoint's. What
    /// was chosen in a later one is another endpoint that has the address now.
    pub generation: u32,
    /// The id of its record, which flows of the packet path name; none where it had none.
    pub backend: Option<u32>,
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, protocol, endpoint, generation, backend: _ } = self;
        write!(f, "reset {protocol} to {endpoint} of set {set} up to generation {generation}")
    }
}

/// Steps in the order in which they are to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Plan {
    /// The steps.
    pub ops: Vec<Op>,
    /// What could not be planned for want of room.
    pub refused: Vec<Refused>,
    /// Sets that have their numbers from now on.
    pub new_sets: Vec<u32>,
    /// Whose flows are to be reset when the steps are made.
    pub resets: Vec<Reset>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for op in &self.ops {
            write!(f, "{op}")?;
        }
        for reset in &self.resets {
            writeln!(f, "{reset}")?;
        }
        for refused in &self.refused {
            writeln!(f, "refused: {refused}")?;
        }
        Ok(())
    }
}

/// A line for each element.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grow(tables) => tables.iter().try_for_each(|(table, capacity)| {
                writeln!(f, "grow {} to {capacity} entries", table.name())
            }),
            Self::PutNodeAddrs(addrs) => addrs.iter().try_for_each(|(addr, value)| {
                let NodeAddr { flags, ifindex } = value;
                writeln!(f, "put node address {addr} interface {ifindex} flags {flags:#x}")
            }),
            Self::PutClusterRanges(ranges) => ranges
                .iter()
                .try_for_each(|(r, flags)| writeln!(f, "put range {r} flags {flags:#x}")),
            Self::PutSourceRanges(ranges) => ranges.iter().try_for_each(|r| {
                let SourceRange { set, range } = r;
                writeln!(f, "put source range {range} of set {set}")
            }),
            Self::RemoveSourceRanges(ranges) => ranges.iter().try_for_each(|r| {
                let SourceRange { set, range } = r;
                writeln!(f, "remove source range {range} of set {set}")
            }),
            Self::SetNodeConfig(config) => {
                writeln!(f, "set node config ipv4 {} ipv6 {}", config.ipv4, config.ipv6)
            }
            Self::WriteBackends4(backends) => backends.iter().try_for_each(|(id, b)| {
                let addr = std::net::Ipv4Addr::from(b.addr);
                write_backend(f, *id, b.set, b.flags, (addr, b.port).into())
            }),
            Self::WriteBackends6(backends) => backends.iter().try_for_each(|(id, b)| {
                let addr = std::net::Ipv6Addr::from(b.addr);
                write_backend(f, *id, b.set, b.flags, (addr, b.port).into())
            }),
            Self::WriteRange { offset, words } => writeln!(f, "write range {offset} {words:?}"),
            Self::Flip(words) => words.iter().try_for_each(|(set, word)| {
                let (offset, generation) = (word.offset(), word.generation());
                writeln!(f, "flip set {set} to range {offset} generation {generation}")
            }),
            Self::PutFrontends(entries) => entries.iter().try_for_each(|(key, value)| {
                let Frontend { set, flags, .. } = value;
                writeln!(f, "put frontend {} -> set {set} flags {flags:#x}", FrontendName(key))
            }),
            Self::RemoveFrontends(keys) => {
                keys.iter().try_for_each(|key| writeln!(f, "remove frontend {}", FrontendName(key)))
            }
            Self::Barrier => writeln!(f, "barrier"),
            Self::RemoveNodeAddrs(addrs) => {
                addrs.iter().try_for_each(|addr| writeln!(f, "remove node address {addr}"))
            }
            Self::RemoveClusterRanges(ranges) => {
                ranges.iter().try_for_each(|r| writeln!(f, "remove range {r}"))
            }
        }
    }
}

/// Address and port of a backend, for a line of a plan.
struct BackendName(SocketAddr);

impl<A: Into<std::net::IpAddr>> From<(A, [u8; 2])> for BackendName {
    fn from((addr, port): (A, [u8; 2])) -> Self {
        Self((addr.into(), u16::from_be_bytes(port)).into())
    }
}

fn write_backend(
    f: &mut fmt::Formatter<'_>,
    id: u32,
    set: u32,
    flags: u16,
    BackendName(at): BackendName,
) -> fmt::Result {
    if let Some(set) = reserved_for(set) {
        writeln!(f, "free backend {id}: it stays {at}'s of set {set}, flags {flags:#x}")
    } else if set == NO_SET && flags & backend_flags::GONE != 0 {
        writeln!(f, "free backend {id}: {at} is gone")
    } else if set == NO_SET {
        writeln!(f, "free backend {id}")
    } else {
        writeln!(f, "write backend {id} = {at} of set {set} flags {flags:#x}")
    }
}

/// How a frontend is written for people: `10.96.0.1:443/TCP`, `*:30080/TCP` for IPv4 node ports
/// and `[*]:30080/TCP` for IPv6 ones; `10.96.0.1 is allocated` for the mark of an address.
pub struct FrontendName<'a>(pub &'a FrontendKey);

impl fmt::Display for FrontendName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use mizzen_ebpf_abi::addr::protocol;
        let key = self.0;
        match key.addr {
            Addr::ANY_V4 => write!(f, "*")?,
            Addr::ANY_V6 => write!(f, "[*]")?,
            addr if addr.is_v4() => write!(f, "{addr}")?,
            addr => write!(f, "[{addr}]")?,
        }
        if key.is_guard() {
            return write!(f, " is allocated");
        }
        write!(f, ":{}/", u16::from_be_bytes(key.port))?;
        match key.protocol {
            protocol::TCP => write!(f, "TCP"),
            protocol::UDP => write!(f, "UDP"),
            protocol::SCTP => write!(f, "SCTP"),
            other => write!(f, "{other}"),
        }
    }
}
