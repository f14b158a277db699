//! What the index is after changes, in any order and any portions.

use std::{net::IpAddr, str::FromStr};

use proptest::prelude::*;

use super::*;
use crate::{
    dns::fixture::{self, HTTP, add, service, settings, slice},
    model::{
        endpoints::{EndpointSlice, Hints, Site, SliceNames},
        labels::Labels,
        namespace,
        service::Service,
        snapshot::Synced,
    },
};

fn listed() -> Snapshot {
    Snapshot { synced: Synced::ALL, ..Snapshot::default() }
}

fn at(zone: &Zone, name: &str) -> String {
    let name = LowerName::of(&Name::from_str(name).unwrap());
    format!("{:?}", zone.look_up(&name))
}

#[test]
fn dns_68_dns_69_dns_70_services_come_and_go() {
    let empty = listed();
    let start = Zone::new(settings(), 7).advance(&Snapshot::default(), &empty);
    let mut one = empty.clone();
    add(&mut one, service("ns", "web", &["10.0.0.5"], &[HTTP]), vec![]);
    let zone = start.advance(&empty, &one);
    assert!(at(&zone, "web.ns.svc.cluster.local.").contains("10.0.0.5"));
    assert!(at(&zone, "ns.svc.cluster.local.").contains("Empty"));
    assert!(at(&zone, "5.0.0.10.in-addr.arpa.").contains("Pointers"));
    let gone = zone.advance(&one, &empty);
    for name in ["web.ns.svc.cluster.local.", "ns.svc.cluster.local.", "5.0.0.10.in-addr.arpa."] {
        assert!(at(&gone, name).contains("Missing"), "{name}");
    }
}

#[test]
fn a_namespace_stays_while_it_has_a_service() {
    let empty = listed();
    let mut two = empty.clone();
    add(&mut two, service("ns", "a", &["10.0.0.5"], &[]), vec![]);
    add(&mut two, service("ns", "b", &["10.0.0.6"], &[]), vec![]);
    let mut one = two.clone();
    one.services.remove(&ObjectKey::new("ns", "a"));
    let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &two).advance(&two, &one);
    assert!(at(&zone, "ns.svc.cluster.local.").contains("Empty"));
    let zone = zone.advance(&one, &empty);
    assert!(at(&zone, "ns.svc.cluster.local.").contains("Missing"));
}

#[test]
fn dns_76_the_serial_grows_when_and_only_when_names_change() {
    let empty = listed();
    let zone = Zone::new(settings(), 7).advance(&Snapshot::default(), &empty);
    assert_eq!(zone.serial(), 7, "nothing to say is no change");
    let mut one = empty.clone();
    let web = service("ns", "web", &["10.0.0.5"], &[HTTP]);
    let web_slice = slice(&web, "a", &[("172.0.0.9", "")], &[HTTP]);
    add(&mut one, web.clone(), vec![web_slice.clone()]);
    let zone = zone.advance(&empty, &one);
    assert_eq!(zone.serial(), 8);

    // What names don't depend on: hints, nodes, policies.
    let mut hinted = one.clone();
    let mut other = web_slice;
    let hints = Hints { zones: vec!["z".into()], nodes: Vec::new() };
    other.endpoints[0].site = Arc::new(Site { node: Some("node-1".into()), hints });
    add(&mut hinted, web, vec![other.clone()]);
    let zone = zone.advance(&one, &hinted);
    assert_eq!(zone.serial(), 8);

    let mut unready = hinted.clone();
    other.endpoints[0].ready = false;
    let key = (ObjectKey::new("ns", "web"), other.key.name.clone());
    unready.slices.insert(key, Arc::new(other));
    let zone = zone.advance(&hinted, &unready);
    assert_eq!(zone.serial(), 9);
}

/// Names of pods are data of the zone where they are verified: whoever says that there is one.
#[test]
fn dns_76_the_serial_grows_when_and_only_when_verified_names_of_pods_change() {
    let local = Arc::new(LocalPods::default());
    let settings = Settings { pods: PodNames::Verified, ..settings() };
    let empty = listed();
    let zone = Zone::new(settings, 7).knowing(Arc::clone(&local)).advance(&empty, &empty);
    let mut one = empty.clone();
    let web = service("ns", "web", &["10.0.0.5"], &[HTTP]);
    add(&mut one, web.clone(), vec![]);
    let zone = zone.advance(&empty, &one);
    assert_eq!(zone.serial(), 8);
    // An endpoint that is not ready is no name of the Service, but one of a pod.
    let with = |addresses: &[&str]| {
        let mut all = one.clone();
        let hosts: Vec<_> = addresses.iter().map(|address| (*address, "")).collect();
        let mut slice = slice(&web, "a", &hosts, &[HTTP]);
        of_pods(&mut slice, &vec!["pod"; hosts.len()]);
        slice.endpoints.iter_mut().for_each(|endpoint| endpoint.ready = false);
        add(&mut all, web.clone(), vec![slice]);
        all
    };
    let there = |zone: &Zone| !at(zone, "172-0-0-9.ns.pod.cluster.local.").contains("Missing");
    let behind = with(&["172.0.0.9"]);
    let after = zone.advance(&one, &behind);
    assert_eq!((after.serial(), there(&after)), (9, true));
    let gone = after.advance(&behind, &one);
    assert_eq!((gone.serial(), there(&gone)), (10, false));
    // This node's own pod, without a Service and then behind it.
    local.add(&["172.0.0.9".parse().unwrap()], "ns");
    assert_eq!((gone.serial(), there(&gone)), (11, true));
    let both = gone.advance(&one, &behind);
    assert_eq!((both.serial(), there(&both)), (11, true), "it had its name");
    let alone = both.advance(&behind, &one);
    assert_eq!((alone.serial(), there(&alone)), (11, true));
    local.remove(&["172.0.0.9".parse().unwrap()]);
    assert_eq!((alone.serial(), there(&alone)), (12, false));
}

#[test]
fn dns_25_a_pod_of_this_node_has_its_verified_name_without_a_service() {
    let local = Arc::new(LocalPods::default());
    let addresses = ["10.244.1.7", "fd00:244:0:1::7"].map(|text| text.parse().unwrap());
    let mut all = listed();
    show(&mut all, "ns", &[]);
    show(&mut all, "other", &[]);
    let names = ["10-244-1-7.ns", "fd00-244-0-1--7.ns", "10-244-1-7.other", "10-244-1-8.ns"];
    let there = |pods: PodNames| {
        let zone = Zone::new(Settings { pods, ..settings() }, 0).knowing(Arc::clone(&local));
        let zone = zone.advance(&Snapshot::default(), &all);
        names.map(|name| !at(&zone, &format!("{name}.pod.cluster.local.")).contains("Missing"))
    };
    assert_eq!(there(PodNames::Verified), [false; 4]);
    local.add(&addresses, "ns");
    assert_eq!(there(PodNames::Verified), [true, true, false, false]);
    assert_eq!(there(PodNames::Disabled), [false; 4]);
    assert_eq!(there(PodNames::Insecure), [true; 4]);
}

#[test]
fn slices_may_come_before_their_service() {
    let empty = listed();
    let web = service("ns", "web", &[], &[HTTP]);
    let mut early = empty.clone();
    add(&mut early, web.clone(), vec![slice(&web, "a", &[("172.0.0.9", "")], &[HTTP])]);
    let both = early.clone();
    early.services.remove(&web.key);
    let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &early);
    assert!(at(&zone, "web.ns.svc.cluster.local.").contains("Missing"));
    let zone = zone.advance(&early, &both);
    assert!(at(&zone, "web.ns.svc.cluster.local.").contains("172.0.0.9"));
}

/// Has the endpoints be these pods, in order.
fn of_pods(slice: &mut EndpointSlice, names: &[&str]) {
    let hostname = |endpoint| slice.hostname(endpoint).unwrap_or_default().to_owned();
    let hostnames: Vec<_> = slice.endpoints.iter().map(hostname).collect();
    let mut all = SliceNames::default();
    for ((endpoint, name), hostname) in slice.endpoints.iter_mut().zip(names).zip(hostnames) {
        endpoint.names = all.add(name, &hostname);
    }
    slice.names = all.complete();
}

/// The zone of three Services in two namespaces, two of whose endpoints are pods.
fn named(naming: Naming) -> Zone {
    let mut all = listed();
    let with_pods = |service: &Service, hosts: &[(&str, &str)]| {
        let mut slice = slice(service, "a", hosts, &[HTTP]);
        of_pods(&mut slice, &["pod-0", "pod-1", "pod-2"]);
        slice
    };
    let web = service("ns", "web", &["10.0.0.5"], &[HTTP]);
    let web_slice = with_pods(&web, &[("172.0.0.1", ""), ("172.0.0.2", "host")]);
    add(&mut all, web, vec![web_slice]);
    let db = service("other", "db", &[], &[HTTP]);
    let mut db_slice = with_pods(&db, &[("172.0.0.3", ""), ("172.0.0.4", ""), ("172.0.0.5", "")]);
    // Names that are no labels are none of a host.
    of_pods(&mut db_slice, &["pod-0", "a.b", &"x".repeat(64)]);
    add(&mut all, db, vec![db_slice]);
    let empty = service("ns", "empty", &["10.0.0.6"], &[HTTP]);
    let mut unready = with_pods(&empty, &[("172.0.0.6", "")]);
    unready.endpoints[0].ready = false;
    add(&mut all, empty, vec![unready]);
    add(&mut all, fixture::external("ns", "ext", "example.org"), vec![]);
    let settings = Settings { pods: PodNames::Verified, naming, ..settings() };
    Zone::new(settings, 0).advance(&Snapshot::default(), &all)
}

/// Which of these names are there, with the options of `kubernetes`.
fn there(naming: Naming, names: &[&str]) -> Vec<bool> {
    let zone = named(naming);
    let name = |name: &&str| match *name {
        name if name.ends_with(".arpa.") => name.to_owned(),
        name => format!("{name}.cluster.local."),
    };
    names.iter().map(|it| !at(&zone, &name(it)).contains("Missing")).collect()
}

#[test]
fn only_the_namespaces_that_are_named_have_names() {
    let names = [
        "web.ns.svc",
        "ns.svc",
        "172-0-0-1.ns.pod",
        "1.0.0.172.in-addr.arpa.",
        "db.other.svc",
        "other.svc",
        "172-0-0-3.other.pod",
        "3.0.0.172.in-addr.arpa.",
    ];
    assert_eq!(there(Naming::default(), &names), [true; 8]);
    let naming = Naming { namespaces: ["ns".into()].into(), ..Naming::default() };
    assert_eq!(there(naming, &names), [[true; 4], [false; 4]].concat());
}

/// Has the API server show a namespace with these labels.
fn show(snapshot: &mut Snapshot, name: &str, labels: &[(&str, &str)]) {
    let labels = labels.iter().copied().collect();
    let namespace = namespace::Namespace { name: name.into(), labels };
    snapshot.namespaces.insert(name.into(), Arc::new(namespace));
}

#[test]
fn dns_25_dns_31_dns_70_a_namespace_without_services_is_there() {
    let empty = listed();
    let mut shown = empty.clone();
    show(&mut shown, "ns", &[]);
    let start = Zone::new(settings(), 7).advance(&Snapshot::default(), &empty);
    let names =
        ["ns.svc.cluster.local.", "ns.pod.cluster.local.", "10-0-0-1.ns.pod.cluster.local."];
    let there = |zone: &Zone| names.map(|name| !at(zone, name).contains("Missing"));
    assert_eq!(there(&start), [false; 3]);
    let zone = start.advance(&empty, &shown);
    assert_eq!((there(&zone), zone.serial()), ([true; 3], 8));
    assert!(at(&zone, "web.ns.svc.cluster.local.").contains("Missing"));
    // With a Service in it, it comes and goes without a word; without both it is gone.
    let mut both = shown.clone();
    add(&mut both, service("ns", "web", &["10.0.0.5"], &[HTTP]), vec![]);
    let zone = zone.advance(&shown, &both);
    let mut unshown = both.clone();
    unshown.namespaces.remove("ns");
    let hidden = zone.advance(&both, &unshown);
    assert_eq!((there(&hidden), hidden.serial()), ([true; 3], 9));
    let gone = hidden.advance(&unshown, &empty);
    assert_eq!((there(&gone), gone.serial()), ([false; 3], 10));
    let without = zone.advance(&both, &shown);
    assert_eq!(there(&without), [true; 3]);
    let gone = without.advance(&shown, &empty);
    assert_eq!((there(&gone), gone.namespaces.is_empty()), ([false; 3], true));
}

#[test]
fn before_namespaces_are_listed_nothing_is_said_of_names() {
    let mut early = listed();
    early.synced.namespaces = false;
    let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &early);
    assert!(!zone.synced());
    assert!(zone.advance(&early, &listed()).synced());
}

#[test]
fn objects_are_selected_by_their_labels_which_may_change() {
    let naming = Naming {
        namespace_labels: Some("team=a".parse().unwrap()),
        labels: "!hidden".parse().unwrap(),
        ..Naming::default()
    };
    let settings = Settings { naming, pods: PodNames::Verified, ..settings() };
    let start = Zone::new(settings, 0);
    let mut all = listed();
    show(&mut all, "ns", &[("team", "a")]);
    show(&mut all, "other", &[("team", "b")]);
    for (namespace, address) in [("ns", "172.0.0.1"), ("other", "172.0.0.2")] {
        let web = service(namespace, "web", &["10.0.0.5"], &[HTTP]);
        let mut slice = slice(&web, "a", &[(address, "")], &[HTTP]);
        of_pods(&mut slice, &["pod-0"]);
        add(&mut all, web, vec![slice]);
        let labels = [("hidden", "")].into_iter().collect();
        let hidden = Service { labels, ..service(namespace, "hidden", &["10.0.0.6"], &[HTTP]) };
        add(&mut all, hidden, vec![]);
    }
    let names = ["web.ns.svc", "172-0-0-1.ns.pod", "hidden.ns.svc", "ns.svc"];
    let others = ["web.other.svc", "172-0-0-2.other.pod", "hidden.other.svc", "other.svc"];
    let there = |zone: &Zone, names: [&str; 4]| {
        names.map(|name| !at(zone, &format!("{name}.cluster.local.")).contains("Missing"))
    };
    let zone = start.advance(&Snapshot::default(), &all);
    assert_eq!(there(&zone, names), [true, true, false, true]);
    assert_eq!(there(&zone, others), [false; 4]);
    let mut changed = all.clone();
    show(&mut changed, "ns", &[("team", "b")]);
    show(&mut changed, "other", &[("team", "a")]);
    let key = ObjectKey::new("other", "hidden");
    let service = Service { labels: Labels::default(), ..(*changed.services[&key]).clone() };
    changed.services.insert(key, Arc::new(service));
    let zone = zone.advance(&all, &changed);
    assert_eq!(there(&zone, names), [false; 4]);
    assert_eq!(there(&zone, others), [true; 4]);
    let gone = zone.advance(&changed, &listed());
    assert!(gone.services.is_empty() && gone.namespaces.is_empty() && gone.pointers.is_empty());
}

#[test]
fn endpoints_are_called_as_their_pods_where_they_have_no_hostname() {
    let names = [
        "172-0-0-1.web.ns.svc",
        "172-0-0-4.db.other.svc",
        "172-0-0-5.db.other.svc",
        "host.web.ns.svc",
        "pod-0.web.ns.svc",
        "pod-0.db.other.svc",
        "pod-1.web.ns.svc",
    ];
    let spec = [true, true, true, true, false, false, false];
    assert_eq!(there(Naming::default(), &names), spec);
    let naming = Naming { endpoint_pod_names: true, ..Naming::default() };
    assert_eq!(there(naming.clone(), &names), [false, true, true, true, true, true, false]);
    let ports = at(&named(naming.clone()), "_http._tcp.db.other.svc.cluster.local.");
    assert!(ports.contains("Hosts([0, 1, 2])"), "each has its place: {ports}");
    let pointer = at(&named(naming), "3.0.0.172.in-addr.arpa.");
    assert!(pointer.contains("pod-0"), "{pointer}");
}

#[test]
fn without_endpoints_there_are_cluster_ips_alone() {
    let names = [
        "web.ns.svc",
        "empty.ns.svc",
        "5.0.0.10.in-addr.arpa.",
        "db.other.svc",
        "host.web.ns.svc",
        "1.0.0.172.in-addr.arpa.",
    ];
    let naming = Naming { no_endpoints: true, ..Naming::default() };
    assert_eq!(there(naming, &names), [true, true, true, false, false, false]);
}

#[test]
fn a_service_without_a_ready_endpoint_is_ignored_where_that_is_said() {
    let names =
        ["web.ns.svc", "db.other.svc", "ext.ns.svc", "empty.ns.svc", "6.0.0.10.in-addr.arpa."];
    assert_eq!(there(Naming::default(), &names), [true; 5]);
    let naming = Naming { ignore_empty_services: true, ..Naming::default() };
    assert_eq!(there(naming, &names), [true, true, true, false, false]);
}

#[test]
fn names_that_are_no_labels_harm_nobody() {
    let mut odd = listed();
    add(&mut odd, service("ns", &"x".repeat(64), &["10.0.0.5"], &[]), vec![]);
    add(&mut odd, service("ns", "", &["10.0.0.6"], &[]), vec![]);
    add(&mut odd, fixture::external("ns", "bad", "not..a.name"), vec![]);
    let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &odd);
    assert!(at(&zone, "bad.ns.svc.cluster.local.").contains("Missing"));
    assert_eq!(zone.serial(), 0);
}

/// A change: which of a few Services, and what it is then (`None`: gone).
type Step = (u8, Option<(bool, Vec<(u8, bool)>)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let endpoints = prop::collection::vec((0..4_u8, any::<bool>()), 0..4);
    prop::collection::vec((0..4_u8, prop::option::of((any::<bool>(), endpoints))), 0..24)
}

fn apply(snapshot: &Snapshot, (which, what): &Step) -> Snapshot {
    let mut next = snapshot.clone();
    // Two namespaces, and addresses that several Services share.
    let (namespace, name) = (["n1", "n2"][usize::from(which % 2)], format!("s{which}"));
    let key = ObjectKey::new(namespace, &name);
    let gone: Vec<_> = next.slices.keys().filter(|(owner, _)| *owner == key).cloned().collect();
    for slice in gone {
        next.slices.remove(&slice);
    }
    next.services.remove(&key);
    if let Some((headless, endpoints)) = what {
        let ips: &[&str] = if *headless { &[] } else { &["10.0.0.1", "10::1"] };
        let service = service(namespace, &name, ips, &[HTTP]);
        let hosts: Vec<_> = endpoints
            .iter()
            .map(|(host, named)| (format!("172.0.0.{host}"), if *named { "h" } else { "" }))
            .collect();
        let hosts: Vec<_> = hosts.iter().map(|(address, name)| (&**address, *name)).collect();
        let slices = vec![slice(&service, "a", &hosts, &[HTTP])];
        add(&mut next, service, slices);
    }
    next
}

/// All that a zone says of every name and address that the steps can make.
fn everything(zone: &Zone) -> Vec<String> {
    let mut names = vec!["n1.svc.cluster.local.".to_owned(), "n2.svc.cluster.local.".to_owned()];
    for service in 0..4 {
        let service = format!("s{service}.n{}.svc.cluster.local.", service % 2 + 1);
        for prefix in ["", "h.", "_tcp.", "_http._tcp.", "172-0-0-0.", "172-0-0-1."] {
            names.push(format!("{prefix}{service}"));
        }
    }
    let addresses = ["10.0.0.1", "10::1", "172.0.0.0", "172.0.0.1", "172.0.0.2", "172.0.0.3"];
    names.extend(
        addresses.map(|address| Name::from(address.parse::<IpAddr>().unwrap()).to_string()),
    );
    names.push("172.in-addr.arpa.".to_owned());
    names.iter().map(|name| format!("{name} {}", at(zone, name))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Step by step and all at once lead to the same zone.
    #[test]
    fn advancing_is_the_same_as_building_anew(steps in steps()) {
        let mut snapshot = listed();
        let mut zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &snapshot);
        for step in &steps {
            let next = apply(&snapshot, step);
            zone = zone.advance(&snapshot, &next);
            snapshot = next;
        }
        let anew = Zone::new(settings(), 0).advance(&Snapshot::default(), &snapshot);
        prop_assert_eq!(everything(&zone), everything(&anew));
        let emptied = zone.advance(&snapshot, &listed());
        prop_assert!(emptied.services.is_empty());
        prop_assert!(emptied.namespaces.is_empty());
        prop_assert!(emptied.pointers.is_empty());
    }

    /// No name makes the look-up panic.
    #[test]
    fn any_name_is_looked_up(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..63), 0..4), suffix in 0..4_usize) {
        let suffix = ["cluster.local.", "svc.cluster.local.", "in-addr.arpa.", "ip6.arpa."][suffix];
        let labels = labels.iter().map(Vec::as_slice);
        if let Ok(name) = Name::from_labels(labels).and_then(|name| name.append_domain(&Name::from_str(suffix).unwrap())) {
            let zone = fixture::zone_with(settings());
            prop_assert!(zone.look_up(&LowerName::of(&name)).is_some());
        }
    }
}
