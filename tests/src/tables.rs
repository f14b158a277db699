//! Writes a node's tables by hand, for tests of the datapath alone. The agent's own way to them is
//! `mizzen_agent::desired`.

use std::net::{IpAddr, SocketAddr};

use mizzen_agent::{
    apply::maps::{AddrRange, Growing, Maps as _, SourceRange},
    datapath::KernelMaps,
};
use mizzen_ebpf_abi::{
    addr::Addr,
    node::{NodeAddr, node_addr_flags},
    service::{
        Backend4, Backend6, Frontend, FrontendKey, NO_SET, RANGE_HEADER_WORDS, SetWord,
        backend_flags, frontend_flags, header,
    },
};

/// What marks name as their set: none that any other frontend has.
const GUARDS: u32 = u32::MAX;

/// The windows of a range, each (start, count), and its flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct Windows {
    /// For ClusterIPs.
    pub internal: (u32, u32),
    /// For external frontends, from outside.
    pub external: (u32, u32),
    /// For external frontends, from the node and its pods.
    pub nearby: (u32, u32),
    /// Bits of `range_flags`.
    pub flags: u32,
    /// Seconds for which a client keeps its backend; 0 where it does not.
    pub affinity_s: u32,
}

impl Windows {
    /// The first `count` slots for everyone.
    pub fn all(count: usize) -> Self {
        let all = (0, u32::try_from(count).expect("a few"));
        Self { internal: all, external: all, nearby: all, ..Self::default() }
    }
}

/// Tables being written: ids count up and are never used again.
#[derive(Debug)]
pub struct TestTables {
    /// The kernel's.
    pub maps: KernelMaps,
    sets: u32,
    slots: u32,
    backends: u32,
    generation: u32,
}

impl TestTables {
    /// Starts to write.
    pub fn new(maps: KernelMaps) -> Self {
        Self { maps, sets: 0, slots: 1, backends: 0, generation: 0 }
    }

    /// A set without a range.
    pub fn set(&mut self) -> u32 {
        self.sets += 1;
        self.sets
    }

    /// A backend of a set.
    pub fn backend(&mut self, set: u32, addr: SocketAddr) -> u32 {
        self.backends += 1;
        self.write_backend(self.backends, set, addr);
        self.backends
    }

    /// Writes a backend; to no set, it is freed.
    pub fn write_backend(&mut self, id: u32, set: u32, addr: SocketAddr) {
        self.write_record(id, set, addr, 0);
    }

    /// Frees a backend whose endpoint was deleted.
    pub fn backend_is_gone(&mut self, id: u32, addr: SocketAddr) {
        self.write_record(id, NO_SET, addr, backend_flags::FREED | backend_flags::GONE);
    }

    fn write_record(&mut self, id: u32, set: u32, addr: SocketAddr, flags: u16) {
        let port = addr.port().to_be_bytes();
        let table = if addr.is_ipv4() { Growing::Backends4 } else { Growing::Backends6 };
        self.room(table, id + 1);
        match addr.ip() {
            IpAddr::V4(ip) => {
                let addr = ip.octets();
                let backend = Backend4 { addr, port, set, flags };
                self.maps.write_backends4(&[(id, backend)]).unwrap();
            }
            IpAddr::V6(ip) => {
                let backend = Backend6 { addr: ip.octets(), port, set, flags };
                self.maps.write_backends6(&[(id, backend)]).unwrap();
            }
        }
    }

    /// Frees a backend: it belongs to no set.
    pub fn free_backend(&mut self, id: u32, addr: SocketAddr) {
        self.write_backend(id, NO_SET, addr);
    }

    /// Writes a range behind all others; its offset.
    pub fn range(&mut self, set: u32, backends: &[u32], windows: Windows) -> u32 {
        let offset = self.slots;
        self.write_range(offset, set, backends, windows);
        self.slots += RANGE_HEADER_WORDS + u32::try_from(backends.len()).expect("a few");
        offset
    }

    /// Writes a range at an offset that nothing points to.
    pub fn write_range(&mut self, offset: u32, set: u32, backends: &[u32], windows: Windows) {
        let mut words = [0; RANGE_HEADER_WORDS as usize];
        let mut put = |at: u32, (start, count): (u32, u32)| {
            words[at as usize] = start;
            words[at as usize + 1] = count;
        };
        put(header::INTERNAL_START, windows.internal);
        put(header::EXTERNAL_START, windows.external);
        put(header::NEARBY_START, windows.nearby);
        words[header::OWNER as usize] = set;
        words[header::FLAGS as usize] = windows.flags;
        words[header::AFFINITY_S as usize] = windows.affinity_s;
        let words = [&words, backends].concat();
        self.room(Growing::Slots, offset + u32::try_from(words.len()).expect("a few"));
        self.maps.write_slots(offset, &words).unwrap();
    }

    /// Lets a table grow as far as needed, at once by a good deal.
    fn room(&mut self, table: Growing, needed: u32) {
        if needed > self.maps.capacities().of(table) {
            self.maps.grow(&[(table, needed.next_power_of_two())]).unwrap();
        }
    }

    /// Lets a set's word name a range.
    pub fn flip(&mut self, set: u32, offset: u32) {
        self.room(Growing::Sets, set + 1);
        self.generation += 1;
        self.maps.flip(&[(set, SetWord::new(offset, self.generation))]).unwrap();
    }

    /// How often sets were flipped.
    pub fn flips(&self) -> u32 {
        self.generation
    }

    /// Lets an address lead to a set. [`IpAddr`] unspecified is any address of the node.
    pub fn frontend(&mut self, addr: SocketAddr, protocol: u8, set: u32, flags: u32) {
        let key = FrontendKey::new(Addr::from(addr.ip()), addr.port(), protocol);
        self.maps.put_frontends(&[(key, Frontend::new(&key, set, flags))]).unwrap();
    }

    /// A set with these backends in every window.
    pub fn set_of(&mut self, backends: &[SocketAddr]) -> u32 {
        let set = self.set();
        let ids: Vec<u32> = backends.iter().map(|addr| self.backend(set, *addr)).collect();
        let offset = self.range(set, &ids, Windows::all(ids.len()));
        self.flip(set, offset);
        set
    }

    /// Marks an address as the cluster IP of a service.
    pub fn guard(&mut self, addr: IpAddr) {
        let key = FrontendKey::guard(Addr::from(addr));
        let value = Frontend::new(&key, GUARDS, frontend_flags::GUARD);
        self.maps.put_frontends(&[(key, value)]).unwrap();
    }

    /// Lets only clients of these prefixes use a set's frontends that check it.
    pub fn source_ranges(&mut self, set: u32, ranges: &[(IpAddr, u8)]) {
        let range = |(addr, length): &(IpAddr, u8)| SourceRange {
            set,
            range: AddrRange {
                addr: Addr::from(*addr),
                prefix_len: length + if addr.is_ipv4() { 96 } else { 0 },
            },
        };
        let ranges: Vec<SourceRange> = ranges.iter().map(range).collect();
        self.maps.put_source_ranges(&ranges).unwrap();
    }

    /// Makes an address one that node ports answer on.
    pub fn node_address(&mut self, addr: IpAddr) {
        let node_addr = NodeAddr { flags: node_addr_flags::NODE_PORTS, ifindex: 1 };
        self.maps.put_node_addrs(&[(Addr::from(addr), node_addr)]).unwrap();
    }
}
