//! What a reader of the tables finds. The walk itself is `mizzen_ebpf_abi::select`, which the
//! programs run too; here is what it needs to read a dump, and the whole of what a frontend leads
//! to: `mizzen backends` shows it, `mizzen why` explains it, and tests hold plans to it.

use std::net::{IpAddr, SocketAddr};

use mizzen_ebpf_abi::{
    addr::Addr,
    select::{self, NoBackend, Window},
    service::{Frontend, FrontendKey, NO_SET, SetWord, backend_flags, frontend_flags, header},
};

use super::maps::{AddrRange, Tables};

/// The tables with what is kept beside a backend's address.
pub trait Records: select::Tables {
    /// Bits of [`mizzen_ebpf_abi::service::backend_flags`] of a backend's record; 0 where there is
    /// none.
    fn backend_flags(&self, id: u32, v4: bool) -> u16;

    /// Whether the record with this id says that the endpoint with this address and port, network
    /// byte order, was deleted.
    fn is_gone(&self, id: u32, addr: &Addr, port: [u8; 2]) -> bool {
        let v4 = addr.is_v4();
        self.backend_flags(id, v4) & backend_flags::GONE != 0
            && self.backend(NO_SET, id, v4).is_some_and(|freed| freed.is_at(addr, port))
    }
}

impl select::Tables for Tables {
    fn frontend(&self, key: &FrontendKey) -> Frontend {
        self.frontends.get(key).filter(|found| found.is_of(key)).copied().unwrap_or_default()
    }

    fn node_addr_flags(&self, addr: &Addr) -> Option<u32> {
        self.node_addrs.get(addr).map(|found| found.flags)
    }

    fn cluster_range_flags(&self, addr: &Addr) -> u32 {
        let holding = self.cluster_ranges.iter().filter(|(range, _)| range.holds(addr));
        holding.max_by_key(|(range, _)| range.prefix_len).map_or(0, |(_, flags)| *flags)
    }

    fn source_ranges_hold(&self, set: u32, addr: &Addr) -> bool {
        self.source_ranges.iter().any(|held| held.set == set && held.range.holds(addr))
    }

    fn set_word(&self, set: u32) -> SetWord {
        self.sets.get(&set).copied().unwrap_or_default()
    }

    fn slot(&self, index: u32) -> u32 {
        self.slots.get(index as usize).copied().unwrap_or(0)
    }

    fn backend(&self, set: u32, id: u32, v4: bool) -> Option<select::Backend> {
        let (owner, backend) = if v4 {
            let record = self.backends4.get(&id)?;
            let addr = Addr::from_v4(record.addr);
            (record.set, select::Backend { id, addr, port: record.port })
        } else {
            let record = self.backends6.get(&id)?;
            let addr = Addr::from_v6(record.addr);
            (record.set, select::Backend { id, addr, port: record.port })
        };
        (owner == set).then_some(backend)
    }
}

impl Records for Tables {
    fn backend_flags(&self, id: u32, v4: bool) -> u16 {
        if v4 {
            self.backends4.get(&id).map_or(0, |record| record.flags)
        } else {
            self.backends6.get(&id).map_or(0, |record| record.flags)
        }
    }
}

impl AddrRange {
    /// Whether `addr` is inside.
    pub fn holds(&self, addr: &Addr) -> bool {
        let bits = |addr: &Addr| u128::from_be_bytes(addr.octets);
        let host_bits = 128_u32.saturating_sub(self.prefix_len.into());
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        bits(&self.addr) & mask == bits(addr) & mask
    }
}

/// What a frontend leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Bits of [`mizzen_ebpf_abi::service::frontend_flags`].
    pub frontend_flags: u32,
    /// Bits of [`mizzen_ebpf_abi::service::range_flags`].
    pub range_flags: u32,
    /// Seconds for which a client keeps its backend; 0 where it does not.
    pub affinity_s: u32,
    /// Backends of the window for ClusterIP traffic.
    pub internal: Vec<Backend>,
    /// Backends of the window for traffic from outside of the cluster.
    pub external: Vec<Backend>,
    /// Backends of the window for external frontends as seen from this node and its pods.
    pub nearby: Vec<Backend>,
}

/// A backend of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Address and port.
    pub at: SocketAddr,
    /// Bits of [`mizzen_ebpf_abi::service::backend_flags`].
    pub flags: u16,
}

/// Tables that lead astray. A plan never shows any of this to a reader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The frontend's value was written for another key.
    #[error("the frontend's value belongs to another frontend")]
    ForeignFrontend,
    /// A set's word names the range of another.
    #[error("set {set} is led to the range of another set")]
    ForeignRange {
        /// The set.
        set: u32,
    },
    /// A slot names a backend that is another set's, or nobody's.
    #[error("set {set} is led to backend {backend}, which is not its own")]
    ForeignBackend {
        /// The set.
        set: u32,
        /// The backend's id.
        backend: u32,
    },
}

/// What `key` leads to: `None` where it is no frontend, or the mark of an allocated address.
pub fn lookup(tables: &impl Records, key: &FrontendKey) -> Option<Result<Found, Fault>> {
    let frontend = tables.frontend(key);
    if frontend.set == NO_SET || frontend.flags & frontend_flags::GUARD != 0 {
        return None;
    }
    Some(found(tables, &frontend, key.addr.is_v4()))
}

fn found(tables: &impl Records, frontend: &Frontend, v4: bool) -> Result<Found, Fault> {
    let offset = tables.set_word(frontend.set).offset();
    let header = |word: u32| if offset == 0 { 0 } else { tables.slot(offset + word) };
    Ok(Found {
        frontend_flags: frontend.flags,
        range_flags: header(header::FLAGS),
        affinity_s: header(header::AFFINITY_S),
        internal: window(tables, frontend, Window::Internal, v4)?,
        external: window(tables, frontend, Window::External, v4)?,
        nearby: window(tables, frontend, Window::Nearby, v4)?,
    })
}

/// The backends of one window.
fn window(
    tables: &impl Records,
    frontend: &Frontend,
    window: Window,
    v4: bool,
) -> Result<Vec<Backend>, Fault> {
    match select::slots(tables, frontend, window) {
        Ok(slots) => backends(tables, &slots, v4),
        Err(NoBackend::ForeignRange | NoBackend::ForeignBackend) => {
            Err(Fault::ForeignRange { set: frontend.set })
        }
        Err(NoBackend::Reject | NoBackend::Drop | NoBackend::Proxy) => Ok(Vec::new()),
    }
}

/// The backends that slots name, in their order.
pub fn backends(
    tables: &impl Records,
    slots: &select::Slots,
    v4: bool,
) -> Result<Vec<Backend>, Fault> {
    let named = ids(tables, slots).map(|id| {
        let fault = Fault::ForeignBackend { set: slots.set, backend: id };
        let backend = tables.backend(slots.set, id, v4).ok_or(fault)?;
        let at = (IpAddr::from(backend.addr), u16::from_be_bytes(backend.port)).into();
        Ok(Backend { at, flags: tables.backend_flags(id, v4) })
    });
    named.collect()
}

/// The ids of backends that slots name, in their order.
pub fn ids(tables: &impl Records, slots: &select::Slots) -> impl Iterator<Item = u32> {
    (0..slots.count).map(|index| tables.slot(slots.first + index))
}

/// Everything that the tables say to readers, without ids: two tables that say the same are equal
/// for every client.
pub fn everything(
    tables: &Tables,
) -> std::collections::BTreeMap<FrontendKey, Result<Found, Fault>> {
    let found = |(key, value): (&FrontendKey, &Frontend)| {
        if !value.is_of(key) {
            return Some((*key, Err(Fault::ForeignFrontend)));
        }
        Some((*key, lookup(tables, key)?))
    };
    tables.frontends.iter().filter_map(found).collect()
}
