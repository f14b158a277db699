//! The agent goes and comes back, finds its pins or what somebody did to them, and says what is
//! wrong where it can't start.

use std::{fs, net::SocketAddr, os::fd::AsFd as _, time::Duration};

use mizzen_agent::{
    apply::maps::Maps as _,
    datapath::{
        Datapath, Features, Missing, OpenError, Options, Outcome, PinError, Pins, link_id, probe,
    },
};
use mizzen_ebpf_abi::addr::protocol::{TCP, UDP};
use mizzen_tests::{
    netns::check,
    node::TestNode,
    tables::{TestTables, Windows},
    wait::until,
};

use super::{Bench, FAMILIES, Family, ask};

const PROGRAMS: [&str; 9] = [
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sendmsg4",
    "sendmsg6",
    "tcp_state",
];

fn link_ids(pins: &Pins) -> Vec<u32> {
    PROGRAMS.map(|name| link_id(&pins.link(name)).unwrap()).into()
}

/// What attaching did to each program.
fn attach(datapath: &Datapath) -> Vec<Outcome> {
    datapath.attach_sockets().unwrap().into_iter().map(|(_, outcome)| outcome).collect()
}

#[test]
fn r01_an_agent_that_comes_back_writes_nothing_and_interrupts_nothing() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = bench.service(10, &[bench.a, bench.b]);
        let long_lived = bench.actor.open(family.udp());
        bench.actor.send_to(long_lived, vip, "?");
        let (_, name) = bench.actor.receive_from(long_lived);
        let before = bench.tables.maps.dump().unwrap();
        let ids = link_ids(bench.datapath.pins());
        let mut others = [bench.node.actor(), bench.node.actor()];
        others[0].load(family.tcp(), vip);
        others[1].load(family.udp(), vip);

        let Bench { mut actor, node, mut tables, mut datapath, _backends, .. } = bench;
        for _ in 0..5 {
            drop((datapath, tables));
            assert_eq!(ask(&mut actor, family, vip).unwrap().1, vip, "without an agent");
            datapath = node.open();
            tables = TestTables::new(datapath.maps().unwrap());
            assert_eq!(attach(&datapath), [Outcome::Replaced; 9]);
            assert_eq!(attach(&datapath), [Outcome::Unchanged; 9]);
            assert_eq!(tables.maps.dump().unwrap(), before);
            assert_eq!(tables.maps.calls() + tables.maps.writes(), 0);
            assert_eq!(link_ids(datapath.pins()), ids, "replaced in place");
        }

        for actor in &mut others {
            let load = actor.stop();
            assert_eq!(load.failed, 0, "{}", load.first_failure);
            assert!(load.done > 100, "{load:?}");
        }
        actor.send_to(long_lived, vip, "?");
        assert_eq!(actor.receive_from(long_lived), (vip, name), "keeps its backend");
    }
}

/// Waits for the kernel, which detaches in its own time.
pub(super) fn untranslated(bench: &mut Bench, vip: SocketAddr) {
    until("the link to go", Duration::from_secs(5), || match bench.ask(vip) {
        Ok(_) => Err("still translated".to_owned()),
        Err(_) => Ok(()),
    });
}

#[test]
fn r03_what_is_detached_by_hand_is_attached_again() {
    let mut bench = Bench::new(Family::V4);
    let vip = bench.service(10, &[bench.a]);
    let pin = bench.datapath.pins().link("connect4");
    fs::remove_file(&pin).unwrap();
    untranslated(&mut bench, vip);
    let outcomes = bench.datapath.attach_sockets().unwrap();
    for name in PROGRAMS {
        let expected = if name == "connect4" { Outcome::Attached } else { Outcome::Unchanged };
        assert!(outcomes.contains(&(name, expected)), "{name}: {outcomes:?}");
    }
    assert_eq!(bench.ask(vip).unwrap().0, "a");

    // Detached, but still pinned.
    check(std::process::Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&pin));
    untranslated(&mut bench, vip);
    bench.datapath.attach_sockets().unwrap();
    assert_eq!(bench.ask(vip).unwrap().0, "a");
}

/// The names of the programs that `mizzen check` would miss.
fn missed(datapath: &Datapath) -> Vec<String> {
    let places = datapath.places().read().unwrap();
    assert_eq!(places.len(), PROGRAMS.len(), "{places:?}");
    places.into_iter().filter(|place| !place.in_force).map(|place| place.program).collect()
}

#[test]
fn r03_programs_that_are_not_in_their_places_are_seen() {
    let bench = Bench::new(Family::V4);
    let datapath = &bench.datapath;
    assert!(missed(datapath).is_empty());
    let pins = datapath.pins();
    fs::remove_file(pins.link("connect4")).unwrap();
    check(
        std::process::Command::new("bpftool")
            .args(["link", "detach", "pinned"])
            .arg(pins.link("sendmsg6")),
    );
    assert_eq!(missed(datapath), ["sendmsg6", "connect4"]);
    datapath.attach_sockets().unwrap();
    assert!(missed(datapath).is_empty());

    // Those of an agent that was here before run, but are not this one's until it attaches.
    let Bench { node, datapath, tables, .. } = bench;
    drop((datapath, tables));
    let next = node.open();
    assert_eq!(missed(&next).len(), PROGRAMS.len());
    next.attach_sockets().unwrap();
    assert!(missed(&next).is_empty());
}

#[test]
fn links_move_with_the_cgroup_that_the_agent_is_given() {
    let mut bench = Bench::new(Family::V4);
    let vip = bench.service(10, &[bench.a]);
    let options = bench.node.options();
    let below = options.cgroup_root.clone().unwrap().join("below");
    fs::create_dir(&below).unwrap();
    let Bench { mut actor, node, datapath, tables, _backends, .. } = bench;
    drop((datapath, tables));
    let moved = Options { cgroup_root: Some(below.clone()), ..options };
    let datapath = node.netns.run(|| Datapath::open(&moved)).unwrap();
    assert_eq!(attach(&datapath), [Outcome::Attached; 9]);
    assert!(ask(&mut actor, Family::V4, vip).is_err(), "the actor is not below");
    drop(datapath);
    fs::remove_dir(below).unwrap();
    // The links' cgroup is gone.
    assert_eq!(attach(&node.open()), [Outcome::Attached; 9]);
    assert_eq!(ask(&mut actor, Family::V4, vip).unwrap().0, "a");
}

#[test]
fn there_is_one_agent_per_node() {
    let node = TestNode::new("busy");
    let first = node.open();
    assert!(matches!(node.try_open(), Err(OpenError::Pin(PinError::Busy(_)))));
    drop(first);
    node.open();
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_and_left_alone() {
    let node = TestNode::new("shape");
    let pin = node.open().pins().map("SETS");
    fs::remove_file(&pin).unwrap();
    let create = "map create PIN type array key 4 value 4 entries 7 name SETS";
    let args = create
        .split(' ')
        .map(|word| if word == "PIN" { pin.clone().into_os_string() } else { word.into() });
    check(std::process::Command::new("bpftool").args(args));
    let refused = node.try_open().unwrap_err();
    assert!(matches!(&refused, OpenError::Pin(PinError::Layout { path, .. }) if *path == pin));
    assert!(refused.to_string().contains("--bpffs"), "{refused}");
    assert!(pin.exists());
    fs::remove_file(&pin).unwrap();
    node.open();
}

#[test]
fn without_the_rights_it_says_so() {
    let missing = std::thread::spawn(|| {
        // SAFETY: the bare call changes this thread alone, which ends here.
        let dropped = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(dropped, 0);
        probe()
    });
    let missing = missing.join().unwrap().unwrap_err();
    assert!(matches!(missing, Missing::Permission), "{missing:?}");
    assert!(missing.to_string().contains("root"), "{missing}");
}

#[test]
fn what_an_older_kernel_runs_refuses_and_translates_too() {
    let Bench { mut actor, node, datapath, mut tables, a, b, _backends, .. } =
        Bench::new(Family::V4);
    drop(datapath);
    let (options, older) = (node.options(), Features { loops: false, set_retval: false });
    let datapath = node.netns.run(|| Datapath::open_for(&options, older, &mut None)).unwrap();
    assert_eq!(attach(&datapath), [Outcome::Replaced; 9]);

    let (empty, vip) = ("10.96.0.11:80".parse().unwrap(), "10.96.0.10:80".parse().unwrap());
    let (nothing, set) = (tables.set(), tables.set_of(&[a]));
    tables.frontend(empty, TCP, nothing, 0);
    tables.frontend(vip, UDP, set, 0);
    let refused = ask(&mut actor, Family::V4, empty).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "without bpf_set_retval");

    let socket = actor.open("udp4");
    for (backend, name) in [(a, "a"), (b, "b"), (a, "a")] {
        let id = tables.backend(set, backend);
        let range = tables.range(set, &[id], Windows::all(1));
        tables.flip(set, range);
        actor.send_to(socket, vip, "?");
        assert_eq!(actor.receive_from(socket), (vip, name.to_owned()));
    }
}

#[test]
fn the_kernel_has_what_the_programs_use() {
    let node = TestNode::new("features");
    let datapath = node.open();
    let features = datapath.features();
    assert!(features.loops && features.set_retval, "{features:?}");
    for name in PROGRAMS {
        let program = datapath.programs().get(name).unwrap();
        assert!(program.as_fd().try_clone_to_owned().is_ok());
        println!("{name}: {} instructions verified", program.verified_instructions);
        assert!((1..200_000).contains(&program.verified_instructions), "{name}: {program:?}");
    }
}
