//! The live tables, for `mizzen why` and `mizzen flows`: read entry by entry, so that a question
//! costs the same however many services there are, and without the loop that writes them.
//!
//! The pins are opened for each question, so that what is read is what programs read, whatever
//! became of a map since the agent started.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io,
    net::SocketAddr,
    ops::ControlFlow,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use aya::Pod;
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    affinity::{Affinity, AffinityKey},
    conntrack::{Flow, FlowKey},
    node::{Endpoint, NodeAddr, NodeConfig, PodNetns},
    select::{self, Window},
    service::{Frontend, FrontendKey, SetWord, frontend_flags},
};

use super::{
    Datapath,
    allocated::AllocatedAddrs,
    growing::GrowingHash,
    layout::{self, MapLayout, PrefixKey, SourceRangeKey},
    maps::KernelMaps,
    pin::{PinError, Pins},
    sock_diag::SockDiag,
    sys, walk, way,
};
use crate::{
    apply::{lookup::Records, maps::Maps as _},
    podnet::netlink::Netlink,
    why::live::{Live, Way},
};

/// From one hash to the next of those that are tried: 64, which spread evenly over all slots.
const HASH_STEP: usize = 1 << 26;

/// Opens the tables for questions.
#[derive(Clone, Debug)]
pub struct TableReaders {
    pins: Arc<Pins>,
}

impl Datapath {
    /// Opens the tables for questions, now and later.
    pub fn table_readers(&self) -> TableReaders {
        TableReaders { pins: Arc::clone(&self.pins) }
    }
}

/// Why the tables can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A map can't be opened.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A map can't be read.
    #[error("read map {map}")]
    Kernel {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl TableReaders {
    /// Those of the tables that are pinned in `bpffs`, whoever writes them; `None` where there are
    /// none of this layout.
    pub fn of_another(bpffs: &Path) -> Option<Self> {
        let pins = Pins::of_another(bpffs);
        pins.map_ids()?;
        Some(Self { pins: Arc::new(pins) })
    }

    /// Where the node's clients of a listener at one of these addresses, UDP, are led while that is
    /// away: some of the other nodes' where there are many.
    pub fn lead_elsewhere(
        &self,
        listeners: &[SocketAddr],
    ) -> Result<BTreeSet<SocketAddr>, ReadError> {
        self.ask(|tables| listeners.iter().flat_map(|at| led_to(tables, *at)).collect())
    }

    /// What `question` makes of the tables as they are while it runs. Blocks for the time of its
    /// system calls.
    pub fn ask<T>(&self, question: impl FnOnce(&TableReader) -> T) -> Result<T, ReadError> {
        let reader = TableReader::open(&self.pins)?;
        let answer = question(&reader);
        match reader.failure.into_inner() {
            None => Ok(answer),
            Some((map, source)) => Err(ReadError::Kernel { map, source }),
        }
    }
}

/// Where clients of a listener at `at`, UDP, are led while that is away.
fn led_to(tables: &TableReader, at: SocketAddr) -> Vec<SocketAddr> {
    let (addr, port) = (Addr::from(at.ip()), at.port().to_be_bytes());
    let frontend = select::frontend(tables, addr, port, protocol::UDP);
    let listens_first = |it: &Frontend| it.flags & frontend_flags::PREFER_LOCAL != 0;
    let Some(frontend) = frontend.filter(listens_first) else { return Vec::new() };
    let Ok(slots) = select::slots(tables, &frontend, Window::nearby(&frontend)) else {
        return Vec::new();
    };
    let hashes = (0..u32::MAX).step_by(HASH_STEP);
    let chosen = hashes.filter_map(|hash| slots.choose(tables, hash, at.is_ipv4()).ok());
    chosen
        .map(|backend| SocketAddr::new(backend.addr.into(), u16::from_be_bytes(backend.port)))
        .collect()
}

/// The tables, for one question. A failed read counts as nothing found, and fails the question.
#[derive(Debug)]
pub struct TableReader {
    /// The arrays.
    maps: KernelMaps,
    frontends: GrowingHash<FrontendKey, Frontend>,
    allocated: AllocatedAddrs,
    node_addrs: OwnedFd,
    cluster_ranges: OwnedFd,
    source_ranges: OwnedFd,
    node_config: OwnedFd,
    endpoints: OwnedFd,
    pod_netns: OwnedFd,
    affinity: OwnedFd,
    flows: OwnedFd,
    /// For questions to the node's routes; none before the first.
    netlink: RefCell<Option<Netlink>>,
    failure: RefCell<Option<(&'static str, io::Error)>>,
}

impl TableReader {
    fn open(pins: &Pins) -> Result<Self, PinError> {
        Ok(Self {
            maps: KernelMaps::open(pins)?,
            frontends: GrowingHash::open(pins, &layout::FRONTENDS)?,
            allocated: AllocatedAddrs::open(pins)?,
            node_addrs: pins.open_map(&layout::NODE_ADDRS)?,
            cluster_ranges: pins.open_map(&layout::CLUSTER_RANGES)?,
            source_ranges: pins.open_map(&layout::SOURCE_RANGES)?,
            node_config: pins.open_map(&layout::NODE_CONFIG)?,
            endpoints: pins.open_map(&layout::ENDPOINTS)?,
            pod_netns: pins.open_map(&layout::POD_NETNS)?,
            affinity: pins.open_map(&layout::AFFINITY)?,
            flows: pins.open_map(&layout::FLOWS)?,
            netlink: RefCell::new(None),
            failure: RefCell::new(None),
        })
    }

    fn get<K: Pod, V: Pod + Default>(
        &self,
        map: &impl AsFd,
        layout: &MapLayout,
        key: &K,
    ) -> Option<V> {
        sys::lookup(map.as_fd(), key).unwrap_or_else(|error| self.failed(layout, error))
    }

    fn failed<T>(&self, layout: &MapLayout, error: io::Error) -> Option<T> {
        self.failure.borrow_mut().get_or_insert((layout.name, error));
        None
    }

    /// Shows every element of a hash until `visit` has seen enough. What comes or goes meanwhile
    /// may be missed or shown twice.
    fn scan<K: Pod + Default, V: Pod + Default>(
        &self,
        map: &OwnedFd,
        layout: &MapLayout,
        mut visit: impl FnMut(&K, &V) -> ControlFlow<()>,
    ) {
        let scanned = walk::visit_until(map.as_fd(), |batch| {
            batch.iter().try_for_each(|(key, value)| visit(key, value))
        });
        if let Err(error) = scanned {
            self.failed::<()>(layout, error);
        }
    }
}

impl select::Tables for TableReader {
    fn frontend(&self, key: &FrontendKey) -> Frontend {
        let found: Option<Frontend> = self.get(&self.frontends, &layout::FRONTENDS.inner, key);
        found.filter(|found| found.is_of(key)).unwrap_or_default()
    }

    fn is_allocated(&self, addr: &Addr) -> bool {
        let held = self.allocated.holds(addr).map(Some);
        held.unwrap_or_else(|error| self.failed(&layout::ALLOCATED.inner, error)) == Some(true)
    }

    fn node_addr_flags(&self, addr: &Addr) -> Option<u32> {
        let found: Option<NodeAddr> = self.get(&self.node_addrs, &layout::NODE_ADDRS, addr);
        found.map(|found| found.flags)
    }

    fn cluster_range_flags(&self, addr: &Addr) -> u32 {
        let key = PrefixKey { prefix_len: 128, addr: *addr };
        self.get(&self.cluster_ranges, &layout::CLUSTER_RANGES, &key).unwrap_or(0)
    }

    fn source_ranges_hold(&self, set: u32, addr: &Addr) -> bool {
        let key = SourceRangeKey { prefix_len: 32 + 128, set, addr: *addr };
        self.get::<_, u32>(&self.source_ranges, &layout::SOURCE_RANGES, &key).is_some()
    }

    fn set_word(&self, set: u32) -> SetWord {
        self.maps.word(set)
    }

    fn slot(&self, index: u32) -> u32 {
        let mut word = [0];
        self.maps.read_slots(index, &mut word);
        word[0]
    }

    fn backend(&self, set: u32, id: u32, v4: bool) -> Option<select::Backend> {
        let (owner, backend) = if v4 {
            let b = self.maps.backend4(id);
            (b.set, select::Backend { id, addr: Addr::from_v4(b.addr), port: b.port })
        } else {
            let b = self.maps.backend6(id);
            (b.set, select::Backend { id, addr: Addr::from_v6(b.addr), port: b.port })
        };
        (owner == set).then_some(backend)
    }
}

impl Records for TableReader {
    fn backend_flags(&self, id: u32, v4: bool) -> u16 {
        if v4 { self.maps.backend4(id).flags } else { self.maps.backend6(id).flags }
    }
}

impl Live for TableReader {
    fn node_config(&self) -> NodeConfig {
        self.get(&self.node_config, &layout::NODE_CONFIG, &0_u32).unwrap_or_default()
    }

    fn is_pod_here(&self, addr: &Addr) -> bool {
        self.get::<_, Endpoint>(&self.endpoints, &layout::ENDPOINTS, addr).is_some()
    }

    fn pod_netns(&self, addr: &Addr) -> Option<PodNetns> {
        let mut found = None;
        self.scan(&self.pod_netns, &layout::POD_NETNS, |_: &u64, pod: &PodNetns| {
            if pod.ipv4.is(addr) || pod.ipv6.is(addr) {
                found = Some(*pod);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.get(&self.affinity, &layout::AFFINITY, key)
    }

    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.get(&self.flows, &layout::FLOWS, key)
    }

    fn each_flow(&self, visit: &mut dyn FnMut(&FlowKey, &Flow) -> ControlFlow<()>) {
        self.scan(&self.flows, &layout::FLOWS, visit);
    }

    fn listens(&self, addr: &Addr, port: u16, protocol: u8) -> bool {
        let at = SocketAddr::new((*addr).into(), port);
        SockDiag::open().and_then(|mut sockets| sockets.listens(at, protocol)).unwrap_or_else(
            |source| {
                self.failure.borrow_mut().get_or_insert(("of listening sockets", source));
                false
            },
        )
    }

    fn way(&self, to: &Addr) -> Option<Way> {
        if !way::is_told_to_programs() {
            return None;
        }
        let mut held = self.netlink.borrow_mut();
        let netlink = match &mut *held {
            Some(netlink) => Ok(netlink),
            none => Netlink::open().map(|opened| none.insert(opened)),
        };
        netlink.and_then(|netlink| way::to(netlink, (*to).into())).unwrap_or_else(|error| {
            let source = io::Error::other(error);
            self.failure.borrow_mut().get_or_insert(("of routes", source));
            None
        })
    }

    fn now_s(&self) -> u32 {
        sys::boot_seconds().unwrap_or(0)
    }
}
