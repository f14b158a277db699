//! What a reader of the tables finds: the datapath's way from a frontend to its backends, walked
//! in user space. `mizzen services` and `mizzen backends` show it, and tests hold plans to it.

use std::net::{IpAddr, SocketAddr};

use mizzen_ebpf_abi::service::{Frontend, FrontendKey, RANGE_HEADER_WORDS, SetWord, header};

use super::maps::Tables;

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
    #[error("set {set} is led to range {offset}, which belongs to set {owner}")]
    ForeignRange {
        /// The set.
        set: u32,
        /// The range.
        offset: u32,
        /// Whose it is.
        owner: u32,
    },
    /// A slot names a backend that is another set's, or nobody's.
    #[error("set {set} is led to backend {backend}, which belongs to set {owner}")]
    ForeignBackend {
        /// The set.
        set: u32,
        /// The backend's id.
        backend: u32,
        /// Whose it is.
        owner: u32,
    },
}

/// What `key` leads to: `None` where it is no frontend.
pub fn lookup(tables: &Tables, key: &FrontendKey) -> Option<Result<Found, Fault>> {
    let frontend = tables.frontends.get(key)?;
    if !frontend.is_of(key) {
        return Some(Err(Fault::ForeignFrontend));
    }
    let word = tables.sets.get(&frontend.set).copied().unwrap_or_default();
    let ipv6 = !key.addr.is_v4();
    Some(read_range(tables, frontend, word).and_then(|range| range.resolve(tables, ipv6)))
}

/// A range as read through a set's word.
#[derive(Clone, Debug)]
pub struct RangeRead {
    set: u32,
    frontend_flags: u32,
    range_flags: u32,
    affinity_s: u32,
    windows: [Vec<u32>; 3],
}

/// The second step of a lookup: the slots behind a set's word.
pub fn read_range(tables: &Tables, frontend: &Frontend, word: SetWord) -> Result<RangeRead, Fault> {
    let (set, frontend_flags) = (frontend.set, frontend.flags);
    let offset = word.offset();
    if offset == 0 {
        let (range_flags, affinity_s, windows) = (0, 0, Default::default());
        return Ok(RangeRead { set, frontend_flags, range_flags, affinity_s, windows });
    }
    let read = |n: u32| tables.slots.get((offset + n) as usize).copied().unwrap_or(0);
    let owner = read(header::OWNER);
    if owner != set {
        return Err(Fault::ForeignRange { set, offset, owner });
    }
    let window = |start: u32, count: u32| -> Vec<u32> {
        let first = RANGE_HEADER_WORDS + read(start);
        (first..first + read(count)).map(read).collect()
    };
    let windows = [
        window(header::INTERNAL_START, header::INTERNAL_COUNT),
        window(header::EXTERNAL_START, header::EXTERNAL_COUNT),
        window(header::NEARBY_START, header::NEARBY_COUNT),
    ];
    let (range_flags, affinity_s) = (read(header::FLAGS), read(header::AFFINITY_S));
    Ok(RangeRead { set, frontend_flags, range_flags, affinity_s, windows })
}

impl RangeRead {
    /// The last step of a lookup: the backends that the slots name.
    pub fn resolve(self, tables: &Tables, ipv6: bool) -> Result<Found, Fault> {
        let set = self.set;
        let backend = |id: &u32| -> Result<Backend, Fault> {
            let (owner, addr, port, flags) = if ipv6 {
                let record = tables.backends6.get(id).copied().unwrap_or_default();
                (record.set, IpAddr::from(record.addr), record.port, record.flags)
            } else {
                let record = tables.backends4.get(id).copied().unwrap_or_default();
                (record.set, IpAddr::from(record.addr), record.port, record.flags)
            };
            if owner != set {
                return Err(Fault::ForeignBackend { set, backend: *id, owner });
            }
            Ok(Backend { at: (addr, u16::from_be_bytes(port)).into(), flags })
        };
        let resolve = |ids: &Vec<u32>| ids.iter().map(backend).collect::<Result<Vec<_>, _>>();
        Ok(Found {
            frontend_flags: self.frontend_flags,
            range_flags: self.range_flags,
            affinity_s: self.affinity_s,
            internal: resolve(&self.windows[0])?,
            external: resolve(&self.windows[1])?,
            nearby: resolve(&self.windows[2])?,
        })
    }
}

/// Everything that the tables say to readers, without ids: two tables that say the same are equal
/// for every client.
pub fn everything(
    tables: &Tables,
) -> std::collections::BTreeMap<FrontendKey, Result<Found, Fault>> {
    let found = |key: &FrontendKey| Some((*key, lookup(tables, key)?));
    tables.frontends.keys().filter_map(found).collect()
}
