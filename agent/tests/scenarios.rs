//! Scenarios as files: Kubernetes objects in, what the tables say to clients out.
//!
//! Each file of `scenarios/` has steps; a step applies or deletes objects, one event at a time,
//! and names what the tables shall say afterwards. Every file is played with the events of each
//! step in the order written and in reverse. After each step a restarted agent must find nothing
//! to do; after the last one everything is deleted, and the tables must be empty. Those of
//! `rows/` are of one row of the reference each, and have a test of its number.
//!
//! What is expected is written by hand from the reference, never recorded.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use mizzen_agent::{
    apply::{
        apply,
        lookup::{self, Found},
        maps::{Maps, Room, Tables},
        memory::MemoryMaps,
    },
    desired::{Desired, NodeFacts, Settings, WithoutLocalEndpoints},
    diff::{Known, diff_and_settle, plan::FrontendName, restore::restore},
    kube::{
        seen::{Modelled, Seen},
        state::{Change, ClusterState, Event},
    },
    model::ObjectKey,
};
use mizzen_ebpf_abi::{
    node::{cluster_range_flags, node_addr_flags},
    service::{Frontend, frontend_flags, range_flags},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_yaml_ng::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows, with the reference's numbers.
    about: String,
    /// The node whose tables are looked at.
    node: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// Objects that are added or changed.
    #[serde(default)]
    apply: Vec<Value>,
    /// Objects that go, as `Kind/namespace/name` or `Kind/name`.
    #[serde(default)]
    delete: Vec<String>,
    /// What the tables say, a line for each frontend, node address and pod range.
    expect: String,
    /// Sets without local endpoints under a Local policy: internal, external; both families.
    #[serde(default)]
    without_local: Option<(u64, u64)>,
    /// The addresses that are marked as allocated.
    #[serde(default)]
    guards: Option<Vec<String>>,
    /// What operators are told, as `service: message`.
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// An object, which must be one that the API knows, as the agent reads it.
fn parse<T: Modelled>(object: &Value) -> T
where
    T::Kind: DeserializeOwned + Serialize,
{
    let object: T::Kind = serde_yaml_ng::from_value(object.clone()).expect("an object of its kind");
    let text = serde_json::to_string(&object).expect("an object can be written");
    let seen: Seen<T> = serde_json::from_str(&text).expect("the agent can read it");
    seen.value.expect("an object that concerns the agent")
}

fn change_of(object: &Value) -> Change {
    match object["kind"].as_str().expect("an object has a kind") {
        "Service" => Change::Services(Event::Apply(parse(object))),
        "EndpointSlice" => Change::Slices(Event::Apply(parse(object))),
        "Node" => Change::Nodes(Event::Apply(parse(object))),
        "ServiceCIDR" => Change::ServiceCidrs(Event::Apply(parse(object))),
        other => panic!("scenarios have no {other}"),
    }
}

fn deletion_of(name: &str) -> Change {
    match name.split('/').collect::<Vec<_>>()[..] {
        ["Service", namespace, name] => {
            Change::Services(Event::Delete(ObjectKey::new(namespace, name)))
        }
        ["EndpointSlice", namespace, name] => {
            Change::Slices(Event::Delete(ObjectKey::new(namespace, name)))
        }
        ["Node", name] => Change::Nodes(Event::Delete(name.into())),
        ["ServiceCIDR", name] => Change::ServiceCidrs(Event::Delete(name.into())),
        _ => panic!("{name} is neither Kind/namespace/name nor Kind/name"),
    }
}

/// An agent on tables in memory.
struct Agent {
    cluster: ClusterState,
    settings: Settings,
    desired: Desired,
    known: Known,
    maps: MemoryMaps,
}

impl Agent {
    fn new(node: &str) -> Self {
        let mut cluster = ClusterState::default();
        cluster.apply(Change::Services(Event::Replace(Vec::new())));
        cluster.apply(Change::Slices(Event::Replace(Vec::new())));
        cluster.apply(Change::Nodes(Event::Replace(Vec::new())));
        cluster.apply(Change::ServiceCidrs(Event::Replace(Vec::new())));
        let settings = Settings {
            node_name: node.into(),
            snat_ports: (10_000, 29_999),
            ..Settings::default()
        };
        Self {
            cluster,
            desired: Desired::new(settings.clone()),
            settings,
            known: Known::empty(Room::default()),
            maps: MemoryMaps::default(),
        }
    }

    fn take(&mut self, change: Change) {
        self.cluster.apply(change);
        let change = self.desired.update(self.cluster.snapshot(), &NodeFacts::default());
        let plan = diff_and_settle(&change, &mut self.known);
        apply(&plan, &mut self.maps).expect("tables in memory");
    }

    /// A restarted agent, which learns everything before it writes, finds nothing to do.
    fn assert_restart_is_silent(&mut self) {
        let mut desired = Desired::new(self.settings.clone());
        let _ = desired.update(self.cluster.snapshot(), &NodeFacts::default());
        let tables = self.maps.dump().expect("tables in memory");
        let everything = desired.everything();
        let room = Room { now: self.maps.capacities(), ..Room::default() };
        let plan = diff_and_settle(&everything, &mut restore(&tables, &everything, room));
        assert!(plan.is_empty(), "a restart writes:\n{plan}");
    }

    /// Marks of addresses and warnings are as the step says.
    fn assert_marks(&self, step: &Step, title: &str) {
        let frontends = self.maps.tables().frontends.iter();
        let guards = frontends.filter(|(key, _)| key.is_guard()).map(|(key, value)| {
            assert!(value.is_of(key) && value.flags == frontend_flags::GUARD, "{title}");
            key.addr.to_string()
        });
        let guards: Vec<String> = guards.collect();
        assert_eq!(guards, step.guards.clone().unwrap_or_else(|| guards.clone()), "{title}");
        let warnings = self.desired.warnings().into_iter();
        let warnings: Vec<String> =
            warnings.map(|w| format!("{}: {}", w.service, w.message)).collect();
        assert_eq!(warnings, step.warnings.clone().unwrap_or_else(|| warnings.clone()), "{title}");
    }

    /// What the tables say of the node itself: it counts on when its object is deleted.
    fn of_own_node(&self) -> String {
        let snapshot = self.cluster.snapshot();
        let own = snapshot.nodes.get(&self.settings.node_name);
        let ranges = own.map_or(&[][..], |node| &node.pod_cidrs);
        let ranges: Vec<String> = ranges.iter().map(|range| format!("pods {range}")).collect();
        let said = say(self.maps.tables());
        let stays = |line: &&str| line.starts_with("node ") || ranges.iter().any(|own| own == line);
        said.lines().filter(stays).collect::<Vec<_>>().join("\n")
    }

    fn everything(&self) -> Vec<Change> {
        let snapshot = self.cluster.snapshot();
        let services = snapshot.services.keys().cloned().map(Event::Delete).map(Change::Services);
        let slices = snapshot.slices.values().map(|slice| Event::Delete(slice.key.clone()));
        let nodes = snapshot.nodes.keys().cloned().map(Event::Delete).map(Change::Nodes);
        let ranges = snapshot.service_cidrs.keys().cloned().map(Event::Delete);
        let ranges = ranges.map(Change::ServiceCidrs);
        services.chain(slices.map(Change::Slices)).chain(nodes).chain(ranges).collect()
    }
}

/// What the tables say, a line each, sorted.
fn say(tables: &Tables) -> String {
    let mut lines = BTreeSet::new();
    for (key, found) in lookup::everything(tables) {
        let line = match found {
            Ok(found) => {
                let admitted = say_admitted(tables, &tables.frontends[&key]);
                format!("{}{admitted}{}", FrontendName(&key), say_found(&found))
            }
            Err(fault) => format!("{} FAULT {fault}", FrontendName(&key)),
        };
        lines.insert(line);
    }
    for (addr, value) in &tables.node_addrs {
        let ports = value.flags & node_addr_flags::NODE_PORTS != 0;
        lines.insert(format!("node {addr}{}", if ports { " takes node ports" } else { "" }));
    }
    for (range, uses) in &tables.cluster_ranges {
        let names =
            [(cluster_range_flags::PODS, "pods"), (cluster_range_flags::SERVICES, "services")];
        let names = names.into_iter().filter(|(bit, _)| uses & bit != 0).map(|(_, name)| name);
        let names = names.collect::<Vec<_>>().join(" and ");
        lines.insert(if names.is_empty() {
            format!("left alone {range}")
        } else {
            format!("{names} {range}")
        });
    }
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

/// Who may use a frontend, where not everyone may.
fn say_admitted(tables: &Tables, frontend: &Frontend) -> String {
    if frontend.flags & frontend_flags::SOURCE_RANGES == 0 {
        return String::new();
    }
    let held = tables.source_ranges.iter().filter(|held| held.set == frontend.set);
    let ranges: Vec<String> = held.map(|held| held.range.to_string()).collect();
    format!(" only from {},", ranges.join(" "))
}

fn say_found(found: &Found) -> String {
    let mut text = String::new();
    let names = [
        (frontend_flags::KEEP_SOURCE, "keeps the source"),
        (frontend_flags::PREFER_LOCAL, "prefers a local listener"),
    ];
    for (bit, name) in names {
        if found.frontend_flags & bit != 0 {
            let _ = write!(text, " {name},");
        }
    }
    if found.affinity_s != 0 {
        let _ = write!(text, " keeps clients for {} s,", found.affinity_s);
    }
    let window = |backends: &[lookup::Backend], drops: bool| {
        let names: Vec<String> = backends.iter().map(|backend| backend.at.to_string()).collect();
        match (names.is_empty(), drops) {
            (true, true) => "drop".to_owned(),
            (true, false) => "reject".to_owned(),
            (false, _) => names.join(" "),
        }
    };
    let drops = |bit| found.range_flags & bit != 0;
    let external = found.frontend_flags & frontend_flags::EXTERNAL != 0;
    if external {
        let outside = window(&found.external, drops(range_flags::EXTERNAL_DROP));
        let nearby = window(&found.nearby, false);
        if outside == nearby {
            let _ = write!(text, " -> {outside}");
        } else {
            let _ = write!(text, " -> from outside {outside}, from here {nearby}");
        }
    } else {
        let _ = write!(text, " -> {}", window(&found.internal, drops(range_flags::INTERNAL_DROP)));
    }
    text
}

fn play(path: &Path, reverse: bool) {
    let text = fs::read_to_string(path).expect("a scenario");
    let scenario: Scenario = serde_yaml_ng::from_str(&text)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut agent = Agent::new(&scenario.node);
    for (number, step) in (1..).zip(&scenario.steps) {
        let mut changes: Vec<Change> = step.apply.iter().map(change_of).collect();
        changes.extend(step.delete.iter().map(|name| deletion_of(name)));
        if reverse {
            changes.reverse();
        }
        for change in changes {
            agent.take(change);
        }
        let order = if reverse { "reversed" } else { "as written" };
        let title = format!("{} ({}), step {number}, {order}", path.display(), scenario.about);
        let mut expected: Vec<&str> =
            step.expect.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        expected.sort_unstable();
        let said = say(agent.maps.tables());
        assert_eq!(said, expected.join("\n"), "{title}\n--- the tables say:\n{said}\n---");
        let without = agent.desired.without_local_endpoints();
        let without = (without.internal.iter().sum(), without.external.iter().sum());
        assert_eq!(without, step.without_local.unwrap_or(without), "{title}");
        agent.assert_marks(step, &title);
        agent.assert_restart_is_silent();
    }
    let stays = agent.of_own_node();
    let mut deletions = agent.everything();
    if reverse {
        deletions.reverse();
    }
    for deletion in deletions {
        agent.take(deletion);
    }
    let without = agent.desired.without_local_endpoints();
    assert_eq!(without, WithoutLocalEndpoints::default(), "{}", path.display());
    let title = format!("{}: what is left at the end", path.display());
    assert_eq!(say(agent.maps.tables()), stays, "{title}");
    if stays.is_empty() {
        agent.assert_restart_is_silent(); // one that never heard of its node takes it for gone
    }
}

#[test]
fn every_scenario_in_both_orders() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .expect("scenarios")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 10, "scenarios are missing from {}", folder.display());
    for path in paths {
        play(&path, false);
        play(&path, true);
    }
}

/// Plays the scenario of one row of the reference, which is of both families.
fn play_row(row: &str) {
    let rows = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rows");
    let path = rows.join(row).with_extension("yaml");
    play(&path, false);
    play(&path, true);
}

#[test]
fn b18_an_endpoint_without_a_node_is_remote() {
    play_row("b18");
}

#[test]
fn b85_what_terminates_and_does_not_serve_is_no_backend() {
    play_row("b85");
}

#[test]
fn b111_services_come_up_and_go_down() {
    play_row("b111");
}

#[test]
fn b112_a_service_that_is_made_again_serves() {
    play_row("b112");
}

#[test]
fn b115_an_external_name_becomes_another_type_and_back() {
    play_row("b115");
}

#[test]
fn b116_each_change_of_type_leaves_nothing_behind() {
    play_row("b116");
}

#[test]
fn b119_unready_addresses_are_published_on_demand() {
    play_row("b119");
}

#[test]
fn b124_services_of_evicted_pods_refuse() {
    play_row("b124");
}

#[test]
fn b126_ports_are_renamed_and_renumbered() {
    play_row("b126");
}

#[test]
fn b128_names_that_collide_are_told_apart() {
    play_row("b128");
}
