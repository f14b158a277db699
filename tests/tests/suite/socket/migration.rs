//! R2: an agent that meets another layout of the maps takes over from it without a gap, or says
//! what to do and touches nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mizzen_agent::{
    apply::maps::{Maps as _, Tables},
    datapath::{Datapath, OpenError, Outcome, PinError, link_id},
};
use mizzen_ebpf_abi::{counters::Counter, maps::ABI_VERSION, service::SetWord};
use mizzen_tests::{netns::check, node::TestNode};
use nix::fcntl::{Flock, FlockArg};

use super::{
    Bench, FAMILIES, SocketAddr,
    agent::{Agent, cluster},
    ask,
};

/// The folder of a layout's pins.
fn layout(node: &TestNode, version: u32) -> PathBuf {
    node.bpffs().join(format!("v{version}"))
}

fn bpftool(args: &str, pin: &Path) {
    let pin = pin.to_str().unwrap();
    let args = args.split_whitespace().map(|word| if word == "PIN" { pin } else { word });
    check(Command::new("bpftool").args(args));
}

/// A map of layout 1, as its agent made it.
fn old_map(pin: &Path, shape: &str) {
    let name = pin.file_name().unwrap().to_str().unwrap();
    bpftool(&format!("map create PIN {shape} name {name}"), pin);
}

/// Writes an element of it.
fn put(pin: &Path, key: &[u8], value: &[u8]) {
    let hex =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bpftool(&format!("map update pinned PIN key hex {} value hex {}", hex(key), hex(value)), pin);
}

/// Bytes of a record made of integers and octets alone.
fn bytes<T: Copy>(record: &T) -> &[u8] {
    // SAFETY: records of maps have no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
}

/// Makes of a node's pins those of an agent of layout 1 with the same contents and numbers, whose
/// programs run on.
pub(crate) fn age(node: &TestNode, held: &Tables) {
    let (new, old) = (layout(node, ABI_VERSION), layout(node, 1));
    let maps = old.join("maps");
    fs::create_dir_all(&maps).unwrap();
    fs::rename(new.join("links"), old.join("links")).unwrap();
    for same in ["FLOWS", "SOCKET_PEERS", "ENDPOINTS"] {
        fs::rename(new.join("maps").join(same), maps.join(same)).unwrap();
    }
    // The programs that run on are this layout's, and keep TCP connections apart from datagrams;
    // those of layout 1 had both in what both layouts share.
    fs::rename(new.join("maps/TCP_PEERS"), old.join("TCP_PEERS")).unwrap();
    fs::remove_dir_all(&new).unwrap();
    fs::create_dir_all(new.join("maps")).unwrap();
    fs::rename(old.join("TCP_PEERS"), new.join("maps/TCP_PEERS")).unwrap();
    let pin = |name: &str, shape: &str| {
        let pin = maps.join(name);
        old_map(&pin, shape);
        pin
    };
    let frontends = pin("FRONTENDS", "type hash key 20 value 12 entries 131072 flags 0x1");
    for (key, value) in &held.frontends {
        put(&frontends, bytes(key), bytes(value));
    }
    let sets = pin("SETS", "type array key 4 value 8 entries 65536 flags 0x400");
    for (set, word) in &held.sets {
        put(&sets, &set.to_ne_bytes(), bytes(word));
    }
    let backends = pin("BACKENDS4", "type array key 4 value 16 entries 262144 flags 0x400");
    for (id, backend) in &held.backends4 {
        put(&backends, &id.to_ne_bytes(), &[bytes(backend), &[0; 4]].concat());
    }
    let backends = pin("BACKENDS6", "type array key 4 value 24 entries 262144 flags 0x400");
    for (id, backend) in &held.backends6 {
        put(&backends, &id.to_ne_bytes(), bytes(backend));
    }
    pin("SLOTS", "type array key 4 value 4 entries 1048576 flags 0x400");
}

fn generation(tables: &Tables) -> Vec<(u32, u32)> {
    let word = |(set, word): (&u32, &SetWord)| (*set, word.generation());
    tables.sets.iter().map(word).collect()
}

#[test]
fn b138_r02_an_older_layout_is_taken_over_with_traffic_going_on() {
    for family in FAMILIES {
        let bench = Bench::new(family);
        let vip = family.dialled(SocketAddr::new(family.vip(10), 80));
        let snapshot = cluster(family, &[bench.a, bench.b]);
        Agent::start(&bench.datapath, family).follow(&snapshot);
        let Bench { mut actor, node, mut tables, datapath, _backends, .. } = bench;
        // A socket that is not connected has a backend of its own.
        let long_lived = actor.open(family.udp());
        actor.send_to(long_lived, vip, "?");
        let (_, name) = actor.receive_from(long_lived);
        let held = tables.maps.dump().unwrap();
        let link = |datapath: &Datapath| link_id(&datapath.pins().link("connect4")).unwrap();
        let before = link(&datapath);
        let mut others = [node.actor(), node.actor()];
        others[0].load(family.tcp(), vip);
        others[1].load(family.udp(), vip);
        drop((tables, datapath));
        age(&node, &held);
        assert_eq!(ask(&mut actor, family, vip).unwrap().1, vip, "the older programs run on");

        let datapath = node.open();
        let mut maps = datapath.maps().unwrap();
        let taken = maps.dump().unwrap();
        assert_eq!(taken.frontends, held.frontends);
        assert_eq!((&taken.backends4, &taken.backends6), (&held.backends4, &held.backends6));
        assert_eq!(generation(&taken), generation(&held), "and no ranges yet");
        assert!(!layout(&node, 1).exists());

        Agent::start(&datapath, family).follow(&snapshot);
        let outcomes = datapath.attach_sockets().unwrap();
        assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Replaced), "{outcomes:?}");
        assert_eq!(link(&datapath), before, "the very link");
        let after = datapath.maps().unwrap().dump().unwrap();
        assert_eq!(after.frontends, held.frontends, "sets keep their numbers");
        assert_eq!((&after.backends4, &after.backends6), (&held.backends4, &held.backends6));
        for _ in 0..10 {
            actor.send_to(long_lived, vip, "?");
            assert_eq!(actor.receive_from(long_lived), (vip, name.clone()), "keeps its backend");
        }
        for other in &mut others {
            let load = other.stop();
            assert_eq!(load.failed, 0, "{family:?}: {}", load.first_failure);
            assert!(load.done > 10, "{load:?}");
        }
    }
}

/// The kernel's number of a pinned map.
fn map_id(pin: &Path) -> String {
    let output = Command::new("bpftool").args(["-j", "map", "show", "pinned"]).arg(pin).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.split("\"id\":").nth(1).unwrap().split(',').next().unwrap().to_owned()
}

#[test]
fn r02_flows_and_what_sockets_remember_stay_where_they_are() {
    let node = TestNode::new("old");
    let datapath = node.open();
    let names = ["FLOWS", "SOCKET_PEERS", "ENDPOINTS"];
    let ids = |datapath: &Datapath| names.map(|name| map_id(&datapath.pins().map(name)));
    let before = ids(&datapath);
    drop(datapath);
    age(&node, &Tables::default());
    // A crash on the way: the folder is there, and so is what was moved first.
    let half = layout(&node, ABI_VERSION).join("maps");
    fs::create_dir_all(&half).unwrap();
    fs::rename(layout(&node, 1).join("maps/FLOWS"), half.join("FLOWS")).unwrap();
    assert_eq!(ids(&node.open()), before);
    assert!(!layout(&node, 1).exists());
}

#[test]
fn r02_a_newer_layout_is_refused_with_both_versions_and_left_alone() {
    let node = TestNode::new("newer");
    drop(node.open());
    let newer = layout(&node, ABI_VERSION + 1);
    fs::create_dir_all(newer.join("maps")).unwrap();
    let refused = node.try_open().unwrap_err();
    let OpenError::Pin(PinError::Newer { path, found }) = &refused else { panic!("{refused}") };
    assert_eq!((path, *found), (&newer, ABI_VERSION + 1));
    let text = refused.to_string();
    for part in [format!("layout {found}"), format!("layout {ABI_VERSION}")] {
        assert!(text.contains(&part), "{text}");
    }
    assert!(newer.join("maps").exists());
    fs::remove_dir_all(&newer).unwrap();
    drop(node.open());
}

/// An agent that knew fewer counters, or more, was here: what was counted stays, and traffic goes on
/// all the while.
#[test]
fn r02_counters_are_appended_to_what_was_counted() {
    let known = u32::try_from(Counter::ALL.len()).unwrap();
    let (first, last) = (Counter::ALL[0], Counter::ALL[Counter::ALL.len() - 1]);
    assert_eq!((first as u32, last as u32), (0, known - 1));
    for (family, entries) in FAMILIES.into_iter().zip([known - 3, known + 5]) {
        let mut bench = Bench::new(family);
        let vip = bench.service(10, &[bench.a]);
        let Bench { mut actor, node, datapath, tables, _backends, .. } = bench;
        drop((datapath, tables));
        let pin = layout(&node, ABI_VERSION).join("maps/COUNTERS");
        let mut load = node.actor();
        load.load(family.tcp(), vip);
        fs::remove_file(&pin).unwrap();
        old_map(&pin, &format!("type percpu_array key 4 value 8 entries {entries}"));
        // The same on each CPU.
        put(&pin, &0_u32.to_ne_bytes(), &1_000_u64.to_ne_bytes());
        let before = map_id(&pin);
        let datapath = node.open();
        assert_eq!(map_id(&pin) == before, entries > known, "one that is enough stays");
        let counted = |counter| datapath.counters().unwrap().get(counter).unwrap();
        let kept = counted(first);
        assert!(kept >= 1_000 && kept.is_multiple_of(1_000), "{entries}: {kept}");
        assert_eq!(counted(last), 0, "{entries}");
        let outcomes = datapath.attach_sockets().unwrap();
        assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Replaced));
        let before = counted(first);
        assert_eq!(ask(&mut actor, family, vip).unwrap().1, vip);
        assert!(counted(first) > before, "{entries}: the programs count there");
        let load = load.stop();
        assert_eq!(load.failed, 0, "{}", load.first_failure);
    }
}

#[test]
fn an_older_agent_that_still_runs_is_not_taken_over() {
    let node = TestNode::new("busy");
    drop(node.open());
    age(&node, &Tables::default());
    let folder = layout(&node, 1);
    let older = fs::File::open(&folder).unwrap();
    let older = Flock::lock(older, FlockArg::LockExclusiveNonblock).unwrap();
    let refused = node.try_open().unwrap_err();
    assert!(matches!(&refused, OpenError::Pin(PinError::Busy(path)) if *path == folder));
    assert!(folder.join("maps/FRONTENDS").exists());
    drop(older);
    drop(node.open());
}
