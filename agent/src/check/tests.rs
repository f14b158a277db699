//! A healthy node, and each thing that may be wrong with it.

use super::{
    host::{ports, span},
    *,
};
use crate::datapath::Interface;

fn place(program: &str, interface: Option<u32>) -> Place {
    Place { program: program.into(), interface, in_force: true }
}

/// A node of which all is well.
fn healthy() -> Facts {
    let datapath = DatapathFacts {
        features: Features { loops: true, set_retval: true },
        packet_links: true,
        cgroup: "/sys/fs/cgroup".into(),
        places: Ok(vec![
            place("connect4", None),
            place("tc_uplink_ingress", Some(2)),
            place("tc_uplink_egress", Some(2)),
            place("tc_pod_ingress", Some(7)),
            place("tc_pod_egress", Some(7)),
            place("tc_loopback_egress", Some(1)),
        ]),
        uplinks: Ok(Uplinks {
            devices: [Interface { index: 2, name: "eth0".into() }].into(),
            ..Uplinks::default()
        }),
        differences: Ok(0),
        usage: vec![Usage { map: "SETS", used: 10, now: 64, max: 100 }],
        healed: 0,
        counters: vec![(Counter::ForeignRange, 0), (Counter::Rejected, 77)],
        snat_ports: (10_000, 29_999),
        node_ports: [30_080].into(),
        foreign_cni: false,
        resolver: true,
    };
    let host = Host {
        release: "6.18".into(),
        forwarding: [("net.ipv4.ip_forward".to_owned(), Some(true))].into(),
        rp_filter: Some(1),
        local_ports: Some(32_768..=60_999),
        reserved_ports: Vec::new(),
        jit: Some(true),
        statistics: Some(false),
    };
    let parts = [("services", State::Ready)].into();
    Facts { parts, datapath: Some(datapath), host, pod_network: None }
}

/// What is not well after a change: the checks, their verdicts and all that is said.
fn after(change: impl FnOnce(&mut Facts, &mut DatapathFacts)) -> Vec<(String, Verdict, String)> {
    let mut facts = healthy();
    let mut datapath = facts.datapath.take().unwrap();
    change(&mut facts, &mut datapath);
    facts.datapath = Some(datapath);
    judge(&facts)
        .into_iter()
        .filter(|finding| finding.verdict != Verdict::Ok)
        .map(|finding| {
            assert!(!finding.remedy.is_empty(), "{finding:?}");
            (finding.check, finding.verdict, format!("{}; {}", finding.said, finding.remedy))
        })
        .collect()
}

/// That one thing is not well after a change, with these words about it.
fn one(
    check: &str,
    verdict: Verdict,
    words: &[&str],
    change: impl FnOnce(&mut Facts, &mut DatapathFacts),
) {
    let found = after(change);
    let [(name, is, said)] = &found[..] else { panic!("{check}: {found:?}") };
    assert_eq!((&**name, *is), (check, verdict), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

#[test]
fn of_a_healthy_node_all_is_well_and_everything_is_mentioned() {
    let findings = judge(&healthy());
    let checks: Vec<&str> = findings.iter().map(|finding| &*finding.check).collect();
    let all = [
        "agent", "kernel", "sockets", "packets", "tables", "altered", "pressure", "counters",
        "settings", "ports",
    ];
    assert_eq!(checks, all);
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok), "{findings:?}");
    assert!(findings.iter().all(|finding| finding.remedy.is_empty()), "{findings:?}");
}

#[test]
fn without_the_services_role_there_is_no_datapath_to_look_at() {
    let facts = Facts { datapath: None, ..healthy() };
    let checks: Vec<String> = judge(&facts).into_iter().map(|finding| finding.check).collect();
    assert_eq!(checks, ["agent", "services"]);
}

#[test]
fn parts_that_are_not_ready_fail_with_their_reason() {
    one("agent", Verdict::Fail, &["dns waits: no upstream"], |facts, _| {
        facts.parts.insert("dns", State::Waiting("no upstream".into()));
    });
    one("agent", Verdict::Fail, &["cni: full"], |facts, _| {
        facts.parts.insert("cni", State::Degraded("full".into()));
    });
}

#[test]
fn an_older_or_slower_kernel_is_warned_of() {
    use Verdict::Warn;
    one("kernel", Warn, &["UDP", "5.17"], |_, datapath| datapath.features.loops = false);
    one("kernel", Warn, &["EPERM", "5.18"], |_, datapath| datapath.features.set_retval = false);
    one("kernel", Warn, &["filters", "6.6"], |_, datapath| datapath.packet_links = false);
    one("kernel", Warn, &["bpf_jit_enable=1"], |facts, _| facts.host.jit = Some(false));
    one("kernel", Warn, &["stats_enabled=0"], |facts, _| facts.host.statistics = Some(true));
}

#[test]
fn policies_of_another_cni_plugin_are_warned_of() {
    one("policies", Verdict::Warn, &["FORWARD", "loadBalancerSourceRanges"], |_, datapath| {
        datapath.foreign_cni = true;
    });
}

#[test]
fn r03_programs_that_are_not_in_their_places_fail_by_name() {
    use Verdict::Fail;
    let detach = |datapath: &mut DatapathFacts, index: usize| {
        datapath.places.as_mut().unwrap()[index].in_force = false;
    };
    one("sockets", Fail, &["connect4", "/sys/fs/cgroup"], |_, datapath| detach(datapath, 0));
    one("packets", Fail, &["tc_pod_egress of device 7"], |_, datapath| detach(datapath, 4));
    one(
        "packets",
        Fail,
        &["tc_uplink_ingress of eth1", "tc_uplink_egress of eth1"],
        |_, datapath| {
            let more = Interface { index: 3, name: "eth1".into() };
            datapath.uplinks.as_mut().unwrap().devices.insert(more);
        },
    );
    one("packets", Fail, &["tc_loopback_egress of device 1"], |_, datapath| detach(datapath, 5));
    let unpin = |datapath: &mut DatapathFacts| datapath.places.as_mut().unwrap().pop();
    one("packets", Fail, &["tc_loopback_egress of lo"], |_, datapath| drop(unpin(datapath)));
    let without = after(|_, datapath| {
        datapath.resolver = false;
        unpin(datapath);
    });
    assert!(without.is_empty(), "it belongs to the resolver: {without:?}");
    one("packets", Fail, &["--uplink"], |_, datapath| datapath.uplinks = Ok(Uplinks::default()));
    one("packets", Fail, &["wg0 without", "--uplink"], |_, datapath| {
        let more = Interface { index: 4, name: "wg0".into() };
        datapath.uplinks.as_mut().unwrap().without_ethernet.insert(more);
    });
    one("packets", Fail, &["no routes"], |_, datapath| datapath.uplinks = Err("no routes".into()));
    let unreadable = after(|_, datapath| datapath.places = Err("gone".into()));
    assert_eq!(unreadable.len(), 2, "{unreadable:?}");
}

#[test]
fn tables_that_differ_fill_up_or_are_altered_are_told() {
    one("tables", Verdict::Fail, &["3 steps", "mizzen diff"], |_, datapath| {
        datapath.differences = Ok(3);
    });
    one("tables", Verdict::Fail, &["not known yet"], |_, datapath| {
        datapath.differences = Err("not known yet".into());
    });
    one("altered", Verdict::Warn, &["2 elements"], |_, datapath| datapath.healed = 2);
    for (used, verdict) in [(80, Verdict::Warn), (100, Verdict::Fail)] {
        one("pressure", verdict, &["SETS holds", "of at most 100"], |_, datapath| {
            datapath.usage[0].used = used;
        });
    }
    assert!(after(|_, datapath| datapath.usage[0].used = 79).is_empty());
    assert!(after(|_, datapath| datapath.usage.clear()).is_empty());
}

#[test]
fn counters_that_should_not_move_are_told() {
    for (counter, verdict) in [
        (Counter::ForeignRange, Verdict::Fail),
        (Counter::ForeignBackend, Verdict::Fail),
        (Counter::DropFlowTableFull, Verdict::Warn),
        (Counter::DropNoSourcePort, Verdict::Warn),
        (Counter::AffinityTableFull, Verdict::Warn),
    ] {
        one("counters", verdict, &[counter.name(), "= 5"], |_, datapath| {
            datapath.counters = vec![(counter, 5)];
        });
    }
}

#[test]
fn forwarding_that_is_off_fails_by_its_name() {
    one("settings", Verdict::Fail, &["sysctl -w net.ipv6.conf.all.forwarding=1"], |facts, _| {
        facts.host.forwarding.insert("net.ipv6.conf.all.forwarding".into(), Some(false));
    });
    assert!(after(|facts, _| facts.host.forwarding.clear()).is_empty());
}

#[test]
fn u04_ports_that_meet_are_told() {
    one("ports", Verdict::Fail, &["node port 20080", "snatPortMin"], |_, datapath| {
        datapath.node_ports.insert(20_080);
    });
    one("ports", Verdict::Warn, &["node port 30080", "ip_local_reserved_ports"], |facts, _| {
        facts.host.local_ports = Some(30_000..=60_999);
    });
    // What is reserved is given to nobody.
    let reserved = after(|facts, _| {
        facts.host.local_ports = Some(20_000..=60_999);
        facts.host.reserved_ports = vec![20_000..=32_767];
    });
    assert_eq!(reserved, []);
}

#[test]
fn ranges_of_ports_are_read_as_the_kernel_writes_them() {
    assert_eq!(span("32768\t60999"), Some(32_768..=60_999));
    assert_eq!(span(""), None);
    assert_eq!(ports("8080,9000-9010"), [8_080..=8_080, 9_000..=9_010]);
    assert_eq!(ports(""), []);
}
