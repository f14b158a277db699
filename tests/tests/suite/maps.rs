//! The kernel's tables against those in memory: the same calls lead to the same contents, counts
//! and errors.

use std::net::IpAddr;

use mizzen_agent::apply::{
    maps::{AddrRange, Capacities, Growing, Maps, MapsError},
    memory::MemoryMaps,
};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    limits,
    node::{NodeAddr, NodeConfig, node_addr_flags},
    service::{Backend4, Backend6, Frontend, FrontendKey, NO_SET, SetWord, frontend_flags},
};
use mizzen_tests::node::TestNode;

fn frontends(count: u16) -> Vec<(FrontendKey, Frontend)> {
    let of = |port| {
        let addr: IpAddr = if port % 2 == 0 { [10, 96, 0, 1].into() } else { [0xfd00; 8].into() };
        let key = FrontendKey::new(Addr::from(addr), port, protocol::TCP);
        (key, Frontend::new(&key, u32::from(port), 0))
    };
    (1..=count).map(of).collect()
}

/// Marks of cluster IPs: three in each of 600 blocks of addresses, more than there is room for at
/// first, and every bit of one more.
fn marks() -> Vec<(FrontendKey, Frontend)> {
    let block = |n: u16| {
        let [high, low] = n.to_be_bytes();
        [0, 31, 255].map(|last| Addr::from_v4([10, 100 + high, low, last]))
    };
    let whole = (0..=u8::MAX).map(|last| Addr::from_v4([10, 99, 0, last]));
    let six = addr("fd00:96::a");
    let mark = |addr| {
        let key = FrontendKey::guard(addr);
        (key, Frontend::new(&key, NO_SET, frontend_flags::GUARD))
    };
    (0..600).flat_map(block).chain(whole).chain([six]).map(mark).collect()
}

fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().unwrap())
}

fn range(text: &str, prefix_len: u8) -> AddrRange {
    AddrRange { addr: addr(text), prefix_len }
}

/// To what the tables are made to grow.
const LARGER: [(Growing, u32); 5] = [
    (Growing::Frontends, 16_384),
    (Growing::Sets, 3_000),
    (Growing::Slots, 30_000),
    (Growing::Backends4, 7_000),
    (Growing::Backends6, 9_000),
];

/// Calls of every kind, those that change nothing included.
fn write(maps: &mut dyn Maps) -> Result<(), MapsError> {
    let entries = frontends(10_000);
    let keys: Vec<FrontendKey> = entries.iter().map(|(key, _)| *key).collect();
    maps.put_frontends(&entries[..1_000])?;
    maps.flip(&[(1, SetWord::new(1, u32::MAX)), (limits::SETS_MIN - 1, SetWord::new(0, 1))])?;
    maps.write_slots(limits::SLOT_WORDS_MIN - 2, &[8, 9])?;
    maps.grow(&LARGER[..2])?;
    maps.grow(&LARGER)?;
    maps.grow(&LARGER.map(|(table, _)| (table, 7)))?;
    maps.put_frontends(&entries)?;
    maps.put_frontends(&marks())?;
    let unmarked: Vec<FrontendKey> = marks().into_iter().map(|(key, _)| key).step_by(3).collect();
    maps.remove_frontends(&unmarked)?;
    maps.remove_frontends(&unmarked[..2])?;
    maps.put_frontends(&entries[..10])?;
    maps.remove_frontends(&keys[5..6])?;
    // Some of these are missing: at the beginning, in the middle and at the end.
    maps.remove_frontends(&[keys[5], keys[6], keys[5], keys[7], keys[6]])?;
    maps.remove_frontends(&keys[9_000..])?;
    maps.write_slots(1, &[7, 1, 2, 3])?;
    maps.write_slots(30_000 - 2, &[8, 9])?;
    let four = Backend4 { addr: [10, 244, 0, 1], port: [0, 80], set: 7, flags: 1 };
    let six = Backend6 { addr: [0xfd; 16], port: [31, 144], set: 8, flags: 2 };
    maps.write_backends4(&[(1, four), (4097, four), (7_000 - 1, four)])?;
    maps.write_backends6(&[(1, six), (4097, six), (9_000 - 1, six)])?;
    maps.flip(&[(3_000 - 1, SetWord::new(0, 1))])?;
    maps.barrier()?;
    let node_addr = NodeAddr { flags: node_addr_flags::NODE_PORTS, ifindex: 3 };
    maps.put_node_addrs(&[(addr("172.30.0.11"), node_addr), (addr("fd00:30::11"), node_addr)])?;
    maps.remove_node_addrs(&[addr("172.30.0.11"), addr("172.30.0.12")])?;
    let pods = [range("10.244.1.0", 120), range("10.244.0.0", 112), range("fd00:244::", 48)];
    maps.put_cluster_ranges(&pods.map(|range| (range, 1)))?;
    maps.put_cluster_ranges(&[(pods[0], 2)])?;
    maps.remove_cluster_ranges(&[pods[1], pods[1]])?;
    let config =
        NodeConfig { snat_port_min: 10_000, snat_port_max: 29_999, ..NodeConfig::default() };
    maps.set_node_config(&config)
}

/// What can't be done.
fn refused(maps: &mut dyn Maps) -> Vec<String> {
    let node_addrs: Vec<(Addr, NodeAddr)> = (0..=u16::try_from(limits::NODE_ADDRS_MAX).unwrap())
        .map(|i| {
            (Addr::from_v4([1, 2, i.to_be_bytes()[0], i.to_be_bytes()[1]]), NodeAddr::default())
        })
        .collect();
    let Capacities { sets, slot_words, backends4, backends6, .. } = maps.capacities();
    [
        maps.write_slots(slot_words - 1, &[1, 2]),
        maps.write_slots(slot_words + 1, &[1]),
        maps.write_backends4(&[(backends4, Backend4::default())]),
        maps.write_backends6(&[(backends6, Backend6::default())]),
        maps.flip(&[(sets, SetWord::default())]),
        maps.put_node_addrs(&node_addrs),
        maps.put_frontends(&frontends(20_000)),
    ]
    .map(|result| match result.unwrap_err() {
        MapsError::Full { map, capacity, .. } => format!("{map} full with {capacity}"),
        MapsError::OutOfRange { map, capacity, .. } => format!("{map} has only {capacity}"),
        other @ MapsError::Kernel { .. } => panic!("{other}"),
    })
    .into()
}

#[test]
fn the_kernel_holds_what_memory_holds() {
    let node = TestNode::new("maps");
    let datapath = node.open();
    let (mut kernel, mut memory) = (datapath.maps().unwrap(), MemoryMaps::default());
    assert_eq!(kernel.capacities(), memory.capacities());
    assert_eq!(kernel.dump().unwrap(), memory.dump().unwrap(), "both are empty");
    write(&mut kernel).unwrap();
    write(&mut memory).unwrap();
    assert!(kernel.dump().unwrap() == memory.dump().unwrap());
    assert_eq!((kernel.calls(), kernel.writes()), (memory.calls(), memory.writes()));
    assert_eq!(kernel.bytes(), memory.bytes());
    assert_eq!(refused(&mut kernel), refused(&mut memory));

    // Whoever opens the pins anew finds the same.
    let held = kernel.dump().unwrap();
    drop((kernel, datapath));
    let mut again = node.open().maps().unwrap();
    assert!(again.dump().unwrap() == held);
    assert_eq!(again.capacities(), memory.capacities());
    assert_eq!(again.capacities().of(Growing::Slots), 30_000);
}
