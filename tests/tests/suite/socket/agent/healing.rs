//! R4: what somebody alters in the tables, and the programs that somebody detaches, are found and
//! mended, and counted.

use std::{fs, sync::Arc, time::Duration};

use mizzen_agent::{
    apply::{
        lookup,
        maps::{AddrRange, Maps, SourceRange, Tables},
    },
    datapath::{Datapath, KernelMaps, Outcome},
    model::ObjectKey,
    reconcile::Attach,
    supervisor::TaskError,
};
use mizzen_ebpf_abi::{
    addr::Addr,
    node::{NodeAddr, NodeConfig},
    service::{
        Backend4, Backend6, Frontend, FrontendKey, NO_SET, RANGE_HEADER_WORDS, SetWord,
        frontend_flags, header,
    },
};
use mizzen_tests::wait::until;

use super::super::ask;
use super::{Agent, AttachNothing, Bench, FAMILIES, Family, SocketAddr, cluster};

/// Something that somebody does to the tables, and the map that it shows in.
struct Damage {
    what: &'static str,
    map: &'static str,
    by: fn(&mut KernelMaps, &Tables),
}

const DAMAGES: [Damage; 20] = [
    Damage {
        what: "a frontend removed",
        map: "FRONTENDS",
        by: |maps, held| maps.remove_frontends(&[*a_frontend(held).0]).unwrap(),
    },
    Damage {
        what: "a frontend led elsewhere",
        map: "FRONTENDS",
        by: |maps, held| {
            let (key, value) = a_frontend(held);
            let other = Frontend::new(key, value.set + 1, value.flags);
            maps.put_frontends(&[(*key, other)]).unwrap();
        },
    },
    Damage {
        what: "a frontend added",
        map: "FRONTENDS",
        by: |maps, held| {
            let key = FrontendKey { port: [1, 2], ..*a_frontend(held).0 };
            maps.put_frontends(&[(key, Frontend::new(&key, 1, 0))]).unwrap();
        },
    },
    Damage {
        what: "the mark of a cluster IP removed",
        map: "FRONTENDS",
        by: |maps, held| {
            let mark = held.frontends.keys().find(|key| key.is_guard());
            maps.remove_frontends(&[*mark.unwrap()]).unwrap();
        },
    },
    Damage {
        what: "an address marked that no service has",
        map: "FRONTENDS",
        by: |maps, _| {
            let mark = FrontendKey::guard(Addr::from_v4([10, 96, 0, 99]));
            let value = Frontend::new(&mark, NO_SET, frontend_flags::GUARD);
            maps.put_frontends(&[(mark, value)]).unwrap();
        },
    },
    Damage {
        what: "a set's word removed",
        map: "SETS",
        by: |maps, held| maps.flip(&[(a_set(held).0, SetWord(0))]).unwrap(),
    },
    Damage {
        what: "a set led to another's range",
        map: "SETS",
        by: |maps, held| {
            let other = held.sets.values().next_back().unwrap();
            maps.flip(&[(a_set(held).0, *other)]).unwrap();
        },
    },
    Damage {
        what: "a range without its owner",
        map: "SLOTS",
        by: |maps, held| maps.write_slots(a_set(held).1.offset() + header::OWNER, &[0]).unwrap(),
    },
    Damage {
        what: "a window that is longer than it was",
        map: "SLOTS",
        by: |maps, held| {
            let offset = a_set(held).1.offset();
            maps.write_slots(offset + header::INTERNAL_COUNT, &[1_000_000]).unwrap();
        },
    },
    Damage {
        what: "a slot that names nobody",
        map: "SLOTS",
        by: |maps, held| {
            maps.write_slots(a_set(held).1.offset() + RANGE_HEADER_WORDS, &[77]).unwrap();
        },
    },
    Damage {
        what: "backends that are elsewhere",
        map: "BACKENDS",
        by: |maps, held| {
            alter_backends(maps, held, |four, six| {
                four.addr = [192, 0, 2, 1];
                six.addr[0] = 0x20;
            });
        },
    },
    Damage {
        what: "backends that are nobody's",
        map: "BACKENDS",
        by: |maps, held| {
            alter_backends(maps, held, |four, six| {
                four.set = 0;
                six.set = 0;
            });
        },
    },
    Damage {
        what: "backends removed",
        map: "BACKENDS",
        by: |maps, held| {
            alter_backends(maps, held, |four, six| {
                (*four, *six) = (Backend4::default(), Backend6::default());
            });
        },
    },
    Damage {
        what: "an address of the node removed",
        map: "NODE_ADDRS",
        by: |maps, held| {
            maps.remove_node_addrs(&[*held.node_addrs.keys().next().unwrap()]).unwrap();
        },
    },
    Damage {
        what: "an address of the node added",
        map: "NODE_ADDRS",
        by: |maps, _| {
            let addr = Addr::from_v4([192, 0, 2, 9]);
            maps.put_node_addrs(&[(addr, NodeAddr::default())]).unwrap();
        },
    },
    Damage {
        what: "a range of the cluster added",
        map: "CLUSTER_RANGES",
        by: |maps, _| {
            let range = AddrRange { addr: Addr::from_v4([192, 0, 2, 0]), prefix_len: 120 };
            maps.put_cluster_ranges(&[(range, 1)]).unwrap();
        },
    },
    Damage {
        what: "a source range removed",
        map: "SOURCE_RANGES",
        by: |maps, held| {
            maps.remove_source_ranges(&[*held.source_ranges.first().unwrap()]).unwrap();
        },
    },
    Damage {
        what: "a set opened to others",
        map: "SOURCE_RANGES",
        by: |maps, held| {
            let SourceRange { set, .. } = *held.source_ranges.first().unwrap();
            let range = AddrRange { addr: Addr::from_v4([192, 0, 2, 0]), prefix_len: 120 };
            maps.put_source_ranges(&[SourceRange { set, range }]).unwrap();
        },
    },
    Damage {
        what: "a source range of no set",
        map: "SOURCE_RANGES",
        by: |maps, held| {
            let SourceRange { range, .. } = *held.source_ranges.first().unwrap();
            maps.put_source_ranges(&[SourceRange { set: u32::MAX, range }]).unwrap();
        },
    },
    Damage {
        what: "the node's record cleared",
        map: "NODE_CONFIG",
        by: |maps, _| maps.set_node_config(&NodeConfig::default()).unwrap(),
    },
];

fn a_frontend(held: &Tables) -> (&FrontendKey, &Frontend) {
    held.frontends.first_key_value().unwrap()
}

fn a_set(held: &Tables) -> (u32, SetWord) {
    let (set, word) = held.sets.first_key_value().unwrap();
    (*set, *word)
}

fn alter_backends(
    maps: &mut KernelMaps,
    held: &Tables,
    alter: impl Fn(&mut Backend4, &mut Backend6),
) {
    let (mut four, mut six) = (Backend4::default(), Backend6::default());
    for (id, backend) in &held.backends4 {
        four = *backend;
        alter(&mut four, &mut six);
        maps.write_backends4(&[(*id, four)]).unwrap();
    }
    for (id, backend) in &held.backends6 {
        six = *backend;
        alter(&mut four, &mut six);
        maps.write_backends6(&[(*id, six)]).unwrap();
    }
}

#[test]
fn r04_what_is_altered_in_the_tables_is_mended() {
    for family in [Family::V4, Family::V6] {
        let mut bench = Bench::new(family);
        let vip = SocketAddr::new(family.vip(10), 80);
        let mut snapshot = cluster(family, &[bench.a]);
        let key = ObjectKey::new("default", "hello");
        let service = Arc::make_mut(&mut snapshot.services[&key]);
        service.load_balancer_ips = vec![family.vip(20)];
        let clients = ["10.0.0.0/8", "198.51.100.0/24", "fd00::/8", "2001:db8::/32"];
        service.source_ranges = Some(clients.map(|range| range.parse().unwrap()).into());
        Agent::start(&bench.datapath, family).follow(&snapshot);
        for Damage { what, map, by } in &DAMAGES {
            // A loop's first look is at once, the next ones every few seconds.
            let mut agent = Agent::start(&bench.datapath, family);
            agent.follow(&snapshot);
            let held = bench.tables.maps.dump().unwrap();
            by(&mut bench.tables.maps, &held);
            assert!(bench.tables.maps.dump().unwrap() != held, "{what}: nothing is altered");
            agent.follow(&snapshot);
            let map = match (*map, family) {
                ("BACKENDS", Family::V6) => "BACKENDS6",
                ("BACKENDS", _) => "BACKENDS4",
                (other, _) => other,
            };
            assert!(agent.metrics.tables.healed_of(map) > 0, "{family:?}: {what}: not counted");
            let healed = bench.tables.maps.dump().unwrap();
            let said = |tables| lookup::everything(tables);
            assert_eq!(said(&healed), said(&held), "{family:?}: {what}");
            let marks = |tables: &Tables| -> Vec<FrontendKey> {
                tables.frontends.keys().filter(|key| key.is_guard()).copied().collect()
            };
            assert_eq!(marks(&healed), marks(&held), "{family:?}: {what}");
            assert_eq!(healed.node_addrs, held.node_addrs, "{what}");
            assert_eq!(healed.cluster_ranges, held.cluster_ranges, "{what}");
            assert_eq!(healed.node_config, held.node_config, "{what}");
            assert_eq!(healed.source_ranges, held.source_ranges, "{what}");
            assert_eq!(bench.ask(vip).unwrap(), ("a".to_owned(), vip), "{what}");
            assert_eq!(Agent::start(&bench.datapath, family).follow(&snapshot), (0, 0), "{what}");
        }
    }
}

/// The socket programs, as the agent attaches them.
struct AttachSockets(Arc<Datapath>);

impl Attach for AttachSockets {
    fn attach(&mut self, _: &[std::net::IpAddr]) -> Result<usize, TaskError> {
        let outcomes = self.0.attach_sockets()?;
        Ok(outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Attached).count())
    }
}

#[test]
fn r04_what_is_detached_is_attached_again_without_being_asked() {
    let Bench { family, mut actor, a, datapath, node, tables, _backends, .. } =
        Bench::new(FAMILIES[0]);
    drop(tables);
    let datapath = Arc::new(datapath);
    let vip = SocketAddr::new(family.vip(10), 80);
    let snapshot = cluster(family, &[a]);
    let mut agent = Agent::with(&datapath, family, Box::new(AttachSockets(Arc::clone(&datapath))));
    agent.follow(&snapshot);
    assert_eq!(ask(&mut actor, family, vip).unwrap().0, "a");
    fs::remove_file(datapath.pins().link("connect4")).unwrap();
    until("the program to be attached again", Duration::from_secs(10), || {
        agent.follow(&snapshot);
        match agent.metrics.tables.healed_of("program") {
            0 => Err("nothing is healed".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(agent.metrics.tables.healed_of("program"), 1);
    assert_eq!(ask(&mut actor, family, vip).unwrap().0, "a");
    drop(node);
}

#[test]
fn nothing_is_healed_where_nothing_is_wrong() {
    let bench = Bench::new(Family::V4);
    let attach = Box::new(AttachNothing);
    let mut agent = Agent::with(&bench.datapath, Family::V4, attach);
    for endpoints in [&[bench.a][..], &[bench.a, bench.b], &[], &[bench.b]] {
        agent.follow(&cluster(Family::V4, endpoints));
    }
    let mut text = String::new();
    agent.metrics.tables.write(&mut text);
    assert!(!text.contains("mizzen_healed_total{"), "{text}");
}
