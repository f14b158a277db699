//! Properties of plans, over random clusters on tables in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use mizzen_ebpf_abi::{
    addr::Addr,
    select,
    service::{Frontend, FrontendKey, NO_SET, RANGE_HEADER_WORDS, SetWord, reserved_for},
};
use proptest::{prelude::*, sample::Index};

use super::{
    Known, diff_and_settle,
    plan::Plan,
    restore::{records, restore},
    world::{Moments, World, clients, recording, world},
};
use crate::{
    apply::{
        apply,
        lookup::{self, Found, Records},
        maps::{Capacities, Maps, Room, Tables},
        memory::MemoryMaps,
    },
    desired::{Change, Desired, LocalAddress, NodeFacts, NodePortAddresses, Settings},
    model::{
        node::{Cidr, Node},
        service::ServiceCidr,
        snapshot::Snapshot,
    },
};

mod gone;
mod late;
mod limbo;
mod numbers;
mod restricted;
mod unserving;

fn settings() -> Settings {
    Settings { node_name: "node-0".into(), ..Settings::default() }
}

/// An agent without its shell.
struct Agent {
    desired: Desired,
    known: Known,
    maps: MemoryMaps,
}

impl Agent {
    /// One that finds `maps` as they are and knows `snapshot`, before its first plan.
    fn start(mut maps: MemoryMaps, snapshot: &Snapshot) -> Self {
        let mut desired = Desired::new(settings());
        let _ = desired.update(snapshot, &NodeFacts::default());
        let tables = maps.dump().unwrap();
        let room = Room { now: maps.capacities(), ..Room::default() };
        let known = restore(&tables, &desired.everything(), room);
        Self { desired, known, maps }
    }

    fn plan(&mut self, change: &Change) -> Plan {
        diff_and_settle(change, &mut self.known)
    }

    fn follow(&mut self, snapshot: &Snapshot) {
        let change = self.desired.update(snapshot, &NodeFacts::default());
        let plan = self.plan(&change);
        apply(&plan, &mut self.maps).unwrap();
    }

    fn resync(&mut self) -> Plan {
        let plan = self.plan(&self.desired.everything());
        apply(&plan, &mut self.maps).unwrap();
        plan
    }
}

/// What clients shall find, by the desired state alone.
fn expected(desired: &Desired) -> BTreeMap<FrontendKey, Found> {
    let everything = desired.everything();
    let mut expected = BTreeMap::new();
    for (key, target) in everything.frontends.iter().filter(|(key, _)| !key.is_guard()) {
        let (set, frontend_flags) = target.clone().expect("a frontend that exists");
        let set = everything.sets[&set].clone().expect("a set that has a frontend");
        let window = |window: crate::desired::windows::Window| {
            set.slots[window.start as usize..][..window.count as usize]
                .iter()
                .map(|slot| lookup::Backend {
                    at: (slot.addr, slot.port).into(),
                    flags: slot.flags,
                })
                .collect()
        };
        let empty = set.slots.is_empty() && set.windows.flags == 0;
        let found = Found {
            frontend_flags,
            range_flags: set.windows.flags,
            affinity_s: if empty { 0 } else { set.affinity_s },
            internal: window(set.windows.internal),
            external: window(set.windows.external),
            nearby: window(set.windows.nearby),
        };
        expected.insert(*key, found);
    }
    expected
}

/// The tables say what is desired, and hold nothing else.
fn assert_exact(agent: &Agent) {
    let tables = agent.maps.tables();
    let said: BTreeMap<FrontendKey, Found> =
        lookup::everything(tables).into_iter().map(|(key, found)| (key, found.unwrap())).collect();
    assert_eq!(said, expected(&agent.desired));

    let everything = agent.desired.everything();
    assert_eq!(tables.frontends.len(), everything.frontends.len(), "marks are missing or left");
    let sets: Vec<_> = everything.sets.values().flatten().collect();
    let slots: usize = sets.iter().map(|set| set.slots.len()).sum();
    let is_live = |set: u32| set != NO_SET && reserved_for(set).is_none();
    let live = records(tables).filter(|record| is_live(record.owner)).count();
    assert_eq!(live, slots, "backends leaked");
    let ranges = sets.iter().filter(|set| !set.slots.is_empty() || set.windows.flags != 0).count();
    let live = tables.sets.values().filter(|word| word.offset() != 0).count();
    assert_eq!(live, ranges, "ranges leaked");
    let restricted: usize = sets.iter().map(|set| set.source_ranges.len()).sum();
    assert_eq!(tables.source_ranges.len(), restricted, "source ranges leaked");
    assert_eq!(agent.known.source_ranges, restricted, "source ranges are miscounted");
    let words = RANGE_HEADER_WORDS as usize * ranges + slots;
    let free = agent.known.slots.free_words() as usize;
    assert_eq!(free, agent.known.slots.capacity() as usize - 1 - words, "slots leaked");
}

/// Tables that have to grow for almost everything.
const TINY: Capacities = Capacities {
    frontends: 1,
    sets: 2,
    slot_words: 12,
    backends4: 2,
    backends6: 2,
    ..Capacities::MAX
};

/// What readers may meet: for each frontend, the contents of its set before and after.
struct Legitimate {
    contents: BTreeSet<(u32, Vec<String>)>,
    frontends: BTreeMap<FrontendKey, BTreeSet<Option<u32>>>,
    /// Whether a frontend of a set lets a client in.
    admits: BTreeSet<(u32, IpAddr, bool)>,
}

/// Whether a client may use a frontend with this value.
fn admits(tables: &Tables, frontend: &Frontend, client: IpAddr) -> bool {
    let nobody = Addr::default();
    select::admits(tables, frontend, (&client.into(), &nobody), None)
}

/// What they may meet while the tables go from one of these to the next.
fn legitimate(stages: &[Tables]) -> Legitimate {
    let (mut contents, mut admitted) = (BTreeSet::new(), BTreeSet::new());
    let mut frontends: BTreeMap<FrontendKey, BTreeSet<Option<u32>>> = BTreeMap::new();
    for tables in stages {
        for (key, found) in lookup::everything(tables) {
            let set = tables.frontends[&key].set;
            contents.insert((set, content(&found.expect("a sound table"))));
            for client in clients(!key.addr.is_v4()) {
                admitted.insert((set, client, admits(tables, &tables.frontends[&key], client)));
            }
        }
        for key in stages.iter().flat_map(|tables| tables.frontends.keys()) {
            let set = tables.frontends.get(key).map(|frontend| frontend.set);
            frontends.entry(*key).or_default().insert(set);
        }
    }
    Legitimate { contents, frontends, admits: admitted }
}

/// The windows, without flags: those of a backend and a frontend change by themselves.
fn content(found: &Found) -> Vec<String> {
    let window = |backends: &Vec<lookup::Backend>| {
        let names: Vec<String> = backends.iter().map(|backend| backend.at.to_string()).collect();
        names.join(" ")
    };
    vec![
        window(&found.internal),
        window(&found.external),
        window(&found.nearby),
        found.range_flags.to_string(),
        found.affinity_s.to_string(),
    ]
}

/// The tables as a slow reader meets them: each of its steps later than the one before.
struct Slow<'a> {
    frontends: &'a Tables,
    words: &'a Tables,
    slots: &'a Tables,
    backends: &'a Tables,
}

impl select::Tables for Slow<'_> {
    fn frontend(&self, key: &FrontendKey) -> Frontend {
        self.frontends.frontend(key)
    }

    fn node_addr_flags(&self, addr: &Addr) -> Option<u32> {
        self.frontends.node_addr_flags(addr)
    }

    fn cluster_range_flags(&self, addr: &Addr) -> u32 {
        self.frontends.cluster_range_flags(addr)
    }

    fn source_ranges_hold(&self, set: u32, addr: &Addr) -> bool {
        self.frontends.source_ranges_hold(set, addr)
    }

    fn set_word(&self, set: u32) -> SetWord {
        self.words.set_word(set)
    }

    fn slot(&self, index: u32) -> u32 {
        self.slots.slot(index)
    }

    fn backend(&self, set: u32, id: u32, v4: bool) -> Option<select::Backend> {
        self.backends.backend(set, id, v4)
    }
}

impl Records for Slow<'_> {
    fn backend_flags(&self, id: u32, v4: bool) -> u16 {
        self.backends.backend_flags(id, v4)
    }
}

/// A reader that is slow: each of its steps may happen any number of writes after the one before,
/// but no barrier that begins after it does is over before it.
fn assert_readers_are_safe(moments: &Moments, legitimate: &Legitimate) {
    let states = &moments.states;
    for (first, start) in states.iter().enumerate() {
        let waited = moments.barriers.iter().filter(|(begun, _)| *begun > first);
        let end = waited.map(|(_, over)| *over).min().unwrap_or(states.len());
        for (key, sets) in &legitimate.frontends {
            let Some(frontend) = start.frontends.get(key) else {
                assert!(sets.contains(&None), "{key:?} is missing after {first} writes");
                continue;
            };
            assert!(sets.contains(&Some(frontend.set)), "{key:?} leads to a foreign set");
            if key.is_guard() {
                continue;
            }
            for second in first..end {
                for client in clients(!key.addr.is_v4()) {
                    let seen = (frontend.set, client, admits(&states[second], frontend, client));
                    assert!(legitimate.admits.contains(&seen), "{key:?} admits otherwise {seen:?}");
                }
                for third in [second, (second + end - 1) / 2, end - 1] {
                    let slow = Slow {
                        frontends: start,
                        words: &states[second],
                        slots: &states[third],
                        backends: &states[end - 1],
                    };
                    let found = lookup::lookup(&slow, key).unwrap().unwrap();
                    let seen = (frontend.set, content(&found));
                    assert!(legitimate.contents.contains(&seen), "{key:?} finds {seen:?}");
                }
            }
        }
    }
}

/// Applies a plan with readers at every write.
fn apply_under_readers(plan: &Plan, maps: &mut MemoryMaps) {
    let mut recording = recording(maps.clone());
    apply(plan, &mut recording).unwrap();
    let legitimate = legitimate(&[maps.tables().clone(), recording.maps.tables().clone()]);
    assert_readers_are_safe(&recording.witness, &legitimate);
    *maps = recording.maps;
}

/// A small part in each run; `PROPTEST_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn increments_reach_what_is_desired(worlds in prop::collection::vec(world(), 1..6)) {
        let mut agent = Agent::start(MemoryMaps::new(TINY), &Snapshot::default());
        for world in &worlds {
            agent.follow(&world.snapshot());
            assert_exact(&agent);
            prop_assert!(agent.resync().is_empty(), "a resync of what is there writes");
        }
        agent.follow(&Snapshot { revision: 99, ..Snapshot::default() });
        assert_exact(&agent);
        prop_assert!(agent.maps.tables().frontends.is_empty());
    }

    #[test]
    fn any_order_of_events_reaches_the_same_tables(
        world in world(), earlier in world(), seeds in prop::collection::vec(any::<Index>(), 40)
    ) {
        let reference = {
            let mut agent = Agent::start(MemoryMaps::default(), &world.snapshot());
            let _ = agent.resync();
            lookup::everything(agent.maps.tables())
        };
        let mut agent = Agent::start(MemoryMaps::default(), &earlier.snapshot());
        let _ = agent.resync();
        for snapshot in World::steps(&earlier, &world, &seeds) {
            agent.follow(&snapshot);
            assert_exact(&agent);
        }
        prop_assert_eq!(lookup::everything(agent.maps.tables()), reference);
    }

    #[test]
    fn readers_see_the_old_or_the_new(before in world(), after in world()) {
        let mut agent = Agent::start(MemoryMaps::default(), &before.snapshot());
        let _ = agent.resync();
        let change = agent.desired.update(&after.snapshot(), &NodeFacts::default());
        let plan = agent.plan(&change);
        apply_under_readers(&plan, &mut agent.maps);
        assert_exact(&agent);
    }

    #[test]
    fn a_restart_with_unchanged_input_writes_nothing(before in world(), after in world()) {
        let mut agent = Agent::start(MemoryMaps::default(), &before.snapshot());
        let _ = agent.resync();
        agent.follow(&after.snapshot());
        let mut restarted = Agent::start(agent.maps, &after.snapshot());
        let writes = restarted.maps.writes();
        let plan = restarted.resync();
        prop_assert!(plan.is_empty(), "{plan}");
        prop_assert_eq!(restarted.maps.writes(), writes);
        assert_exact(&restarted);
    }

    #[test]
    fn an_abort_at_any_write_heals_at_the_next_start(
        before in world(), after in world(), later in world(), at in any::<Index>()
    ) {
        let mut agent = Agent::start(MemoryMaps::default(), &before.snapshot());
        let _ = agent.resync();
        let change = agent.desired.update(&after.snapshot(), &NodeFacts::default());
        let plan = agent.plan(&change);
        let mut whole = agent.maps.clone();
        apply(&plan, &mut whole).unwrap();
        let writes = whole.writes() - agent.maps.writes();
        prop_assume!(writes > 0);
        agent.maps.fail_after(Some(at.index(usize::try_from(writes).unwrap()) as u64));
        prop_assert!(apply(&plan, &mut agent.maps).is_err());
        agent.maps.fail_after(None);

        let mut restarted = Agent::start(agent.maps, &later.snapshot());
        let plan = restarted.plan(&restarted.desired.everything());
        apply_under_readers(&plan, &mut restarted.maps);
        assert_exact(&restarted);
        prop_assert!(restarted.resync().is_empty());
    }
}

/// A service with one frontend and `endpoints` remote endpoints.
fn one_service(endpoints: u8) -> World {
    World::of_one_service(endpoints, false)
}

#[test]
fn b131_one_endpoint_change_costs_the_same_whatever_else_exists() {
    for others in [0u16, 500] {
        let mut snapshot = World::many_services(others);
        World::add_to(&mut snapshot, &one_service(5));
        let mut agent = Agent::start(MemoryMaps::default(), &snapshot);
        let _ = agent.resync();
        // One endpoint more: its record, a header and six slots, a flip; and one less.
        for (endpoints, writes) in [(6, 1 + 9 + 6 + 1), (5, 9 + 5 + 1 + 1)] {
            World::add_to(&mut snapshot, &one_service(endpoints));
            let before = (agent.maps.calls(), agent.maps.writes());
            agent.follow(&snapshot);
            assert_eq!(agent.maps.calls() - before.0, 1, "the barrier, among {others} services");
            assert_eq!(agent.maps.writes() - before.1, writes, "among {others} services");
        }
        assert_exact(&agent);
    }
}

#[test]
fn a_full_table_is_named_and_everything_else_goes_on() {
    let limits = Capacities { backends4: 4, ..Capacities::default() };
    let mut snapshot = one_service(3).snapshot();
    let mut desired = Desired::new(settings());
    let mut known = Known::empty(Room::fixed(limits));
    let mut maps = MemoryMaps::new(limits);
    let plan = diff_and_settle(&desired.update(&snapshot, &NodeFacts::default()), &mut known);
    assert!(plan.refused.is_empty());
    apply(&plan, &mut maps).unwrap();

    World::add_to(&mut snapshot, &one_service(4));
    let plan = diff_and_settle(&desired.update(&snapshot, &NodeFacts::default()), &mut known);
    assert_eq!(plan.refused.len(), 1);
    let text = plan.refused[0].to_string();
    assert!(text.contains("BACKENDS4 is full with its 4 entries"), "{text}");
    assert!(text.contains("default/only"), "{text}");
    assert!(plan.is_empty(), "the set keeps what it had");

    World::add_to(&mut snapshot, &one_service(2));
    let plan = diff_and_settle(&desired.update(&snapshot, &NodeFacts::default()), &mut known);
    assert!(plan.refused.is_empty());
    apply(&plan, &mut maps).unwrap();
    let found = lookup::everything(maps.tables());
    assert_eq!(found.values().next().unwrap().as_ref().unwrap().internal.len(), 2);
}

#[test]
fn full_tables_of_the_node_do_not_hold_up_services() {
    let limits = Capacities { node_addrs: 2, cluster_ranges: 1, ..Capacities::default() };
    let local = |last: u8| LocalAddress { addr: [192, 0, 2, last].into(), ifindex: 2 };
    let facts = |lasts: &[u8]| NodeFacts {
        addresses: lasts.iter().copied().map(local).collect(),
        ..NodeFacts::default()
    };
    let settings = Settings {
        node_port_addresses: NodePortAddresses::Within(vec!["192.0.2.9/32".parse().unwrap()]),
        ..settings()
    };
    let mut snapshot = one_service(3).snapshot();
    for name in ["node-1", "node-2"] {
        let range = Cidr { address: [10, 0, name.as_bytes()[5], 0].into(), prefix_len: 24 };
        let pod_cidrs = vec![range];
        let node = Node { pod_cidrs, ..Node::named(name) };
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    }
    let mut desired = Desired::new(settings);
    let mut known = Known::empty(Room::fixed(limits));
    let mut maps = MemoryMaps::new(limits);
    let plan = diff_and_settle(&desired.update(&snapshot, &facts(&[1, 2, 3, 9])), &mut known);
    apply(&plan, &mut maps).unwrap();
    let texts: Vec<_> = plan.refused.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    let lacks = "map NODE_ADDRS is full with its 2 entries, node address 192.0.2.2 and 1 more are \
                 left out";
    assert_eq!(texts[0], lacks);
    assert!(texts[1].contains("CLUSTER_RANGES") && texts[1].contains("is left out"), "{texts:?}");
    let held = |maps: &MemoryMaps| -> Vec<String> {
        maps.tables().node_addrs.keys().map(ToString::to_string).collect()
    };
    assert_eq!(held(&maps), ["192.0.2.1", "192.0.2.9"], "where node ports are taken comes first");
    assert_eq!(lookup::everything(maps.tables()).len(), 1, "services are served");

    // What goes makes room, for the plan after the one that removes it.
    snapshot.nodes.remove("node-1");
    let plan = diff_and_settle(&desired.update(&snapshot, &facts(&[2, 9])), &mut known);
    apply(&plan, &mut maps).unwrap();
    let plan = diff_and_settle(&desired.everything(), &mut known);
    apply(&plan, &mut maps).unwrap();
    assert!(plan.refused.is_empty(), "{:?}", plan.refused);
    assert_eq!(held(&maps), ["192.0.2.2", "192.0.2.9"]);
    assert_eq!(maps.tables().cluster_ranges.len(), 1);
    assert!(diff_and_settle(&desired.everything(), &mut known).is_empty());
}

/// Without a service's range, what is dialled there in vain would leave the node (B10).
#[test]
fn b10_ranges_of_services_come_before_those_of_pods() {
    let limits = Capacities { cluster_ranges: 2, ..Capacities::default() };
    let range = |third: u8| Cidr { address: [10, 0, third, 0].into(), prefix_len: 24 };
    let mut snapshot = one_service(3).snapshot();
    for third in 1..=3 {
        let mut node = Node::named(&format!("node-{third}"));
        node.pod_cidrs = vec![range(third)];
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    }
    let cidr = ServiceCidr { name: "more".into(), cidrs: vec![range(9)] };
    // As the agent starts, and while it runs with a full table.
    for late in [false, true] {
        let mut snapshot = snapshot.clone();
        let mut desired = Desired::new(settings());
        let mut known = Known::empty(Room::fixed(limits));
        let mut maps = MemoryMaps::new(limits);
        if late {
            let plan =
                diff_and_settle(&desired.update(&snapshot, &NodeFacts::default()), &mut known);
            apply(&plan, &mut maps).unwrap();
            snapshot.revision += 1;
        }
        snapshot.service_cidrs.insert(cidr.name.clone(), Arc::new(cidr.clone()));
        let plan = diff_and_settle(&desired.update(&snapshot, &NodeFacts::default()), &mut known);
        apply(&plan, &mut maps).unwrap();
        let held: Vec<_> = maps.tables().cluster_ranges.keys().map(ToString::to_string).collect();
        assert_eq!(held, ["10.0.1.0/24", "10.0.9.0/24"], "late: {late}");
        assert_eq!(plan.refused.len(), 1, "{:?}", plan.refused);
        let again = diff_and_settle(&desired.everything(), &mut known);
        assert_eq!((again.ops.len(), again.refused.len()), (0, 1), "{again:?}");
    }
}

#[test]
fn d4_of_two_sets_with_one_id_one_moves_before_anything_breaks() {
    let mut snapshot = World::many_services(2);
    snapshot.revision = 1;
    let mut agent = Agent::start(MemoryMaps::default(), &snapshot);
    let _ = agent.resync();
    let mut tables = agent.maps.tables().clone();
    let dialled = tables.frontends.iter().filter(|(key, _)| !key.is_guard());
    let ids: Vec<u32> = dialled.map(|(_, frontend)| frontend.set).collect();
    assert_eq!(ids.len(), 2);
    for (key, frontend) in tables.frontends.iter_mut().filter(|(key, _)| !key.is_guard()) {
        *frontend = Frontend::new(key, ids[0], frontend.flags);
    }
    let mut restarted = Agent::start(MemoryMaps::with_tables(tables), &snapshot);
    let plan = restarted.plan(&restarted.desired.everything());
    apply_under_readers(&plan, &mut restarted.maps);
    assert_exact(&restarted);
}

#[test]
fn d4_a_foreign_range_is_not_believed() {
    let mut snapshot = World::many_services(2);
    snapshot.revision = 1;
    let mut agent = Agent::start(MemoryMaps::default(), &snapshot);
    let _ = agent.resync();
    let mut tables = agent.maps.tables().clone();
    let words: Vec<_> = tables.sets.values().copied().collect();
    *tables.sets.values_mut().next().unwrap() = words[1];
    let mut restarted = Agent::start(MemoryMaps::with_tables(tables), &snapshot);
    let _ = restarted.resync();
    assert_exact(&restarted);
}

#[test]
fn nothing_is_shared_between_the_pieces_of_a_snapshot() {
    // A change of one service is all that a diff of snapshots sees.
    let mut snapshot = World::many_services(300);
    let mut desired = Desired::new(settings());
    let _ = desired.update(&snapshot, &NodeFacts::default());
    World::add_to(&mut snapshot, &one_service(1));
    let change = desired.update(&snapshot, &NodeFacts::default());
    assert_eq!((change.sets.len(), change.frontends.len()), (1, 2), "a frontend and a mark");
    let same = Arc::new(snapshot);
    assert!(desired.update(&same, &NodeFacts::default()).is_empty());
}
