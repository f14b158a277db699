//! The numbered behaviours 1 to 38 of the DNS reference, as far as they are a function of the zone.

use super::*;
use crate::{
    dns::{
        fixture::{self, settings, zone_with},
        zone::{
            PodNames, Settings, Trees,
            parts::{Part, Parts},
        },
    },
    model::snapshot::Snapshot,
};

const SOA: &str = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 \
                   1800 86400 5";

fn outcome(zone: &Zone, name: &str, kind: RecordType) -> Outcome {
    answer(zone, &Query::query(Name::from_ascii(name).unwrap(), kind), 0)
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> Reply {
    match outcome(zone, name, kind) {
        Outcome::Answer(reply) => reply,
        other => panic!("{name} {kind}: {other:?}"),
    }
}

fn lines(records: &[Record]) -> Vec<String> {
    records.iter().map(ToString::to_string).collect()
}

/// `name` below the cluster domain has exactly these answers, each "TYPE DATA".
#[track_caller]
fn answers(name: &str, kind: RecordType, expected: &[&str]) {
    let owner = format!("{name}.cluster.local.");
    let reply = ask(&zone_with(settings()), &owner, kind);
    let expected: Vec<_> = expected.iter().map(|data| format!("{owner} 5 IN {data}")).collect();
    assert_eq!(lines(&reply.answers), expected);
    assert_eq!((reply.code, reply.authoritative), (ResponseCode::NoError, true));
    assert_eq!(reply.authorities, []);
}

#[track_caller]
fn negative(zone: &Zone, name: &str, kind: RecordType, code: ResponseCode) {
    let reply = ask(zone, name, kind);
    assert_eq!((reply.code, reply.authoritative), (code, true), "{name} {kind}");
    assert_eq!(reply.answers, [], "{name} {kind}");
    assert_eq!(reply.authorities.len(), 1, "{name} {kind}");
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    if name.to_ascii_lowercase().ends_with("cluster.local.") {
        assert_eq!(lines(&reply.authorities)[0].to_ascii_lowercase(), SOA.to_ascii_lowercase());
    }
}

#[track_caller]
fn nodata(name: &str, kind: RecordType) {
    let name = format!("{name}.cluster.local.");
    negative(&zone_with(settings()), &name, kind, ResponseCode::NoError);
}

#[track_caller]
fn nxdomain(name: &str, kind: RecordType) {
    let name = format!("{name}.cluster.local.");
    negative(&zone_with(settings()), &name, kind, ResponseCode::NXDomain);
}

#[track_caller]
fn additionals(name: &str, kind: RecordType, expected: &[&str]) {
    let reply = ask(&zone_with(settings()), &format!("{name}.cluster.local."), kind);
    assert_eq!(lines(&reply.additionals), expected);
}

#[test]
fn dns_01_dns_02_addresses_of_a_service() {
    answers("svc1.testns.svc", RecordType::A, &["A 10.0.0.1"]);
    answers("svc6.testns.svc", RecordType::AAAA, &["AAAA 1234:abcd::1"]);
}

#[test]
fn dns_03_both_families() {
    let name = "svc-dual-stack.testns.svc";
    answers(name, RecordType::A, &["A 10.0.0.3"]);
    answers(name, RecordType::AAAA, &["AAAA 10::3"]);
    answers(name, RecordType::SRV, &["SRV 0 50 80 svc-dual-stack.testns.svc.cluster.local."]);
    let glue = ["A 10.0.0.3", "AAAA 10::3"];
    let glue = glue.map(|data| format!("{name}.cluster.local. 5 IN {data}"));
    additionals(name, RecordType::SRV, &glue.each_ref().map(String::as_str));
}

#[test]
fn dns_04_a_service_without_endpoints() {
    answers("svcempty.testns.svc", RecordType::A, &["A 10.0.0.1"]);
}

#[test]
fn dns_05_dns_06_srv_of_a_service() {
    let srv = ["SRV 0 100 80 svc1.testns.svc.cluster.local."];
    for name in ["svc1.testns.svc", "_http._tcp.svc1.testns.svc"] {
        answers(name, RecordType::SRV, &srv);
        additionals(name, RecordType::SRV, &["svc1.testns.svc.cluster.local. 5 IN A 10.0.0.1"]);
    }
    // Three ports, one of them without a name: all at the bare name, those with a name also there.
    answers(
        "_dns._udp.multi.testns.svc",
        RecordType::SRV,
        &["SRV 0 100 53 multi.testns.svc.cluster.local."],
    );
    answers(
        "multi.testns.svc",
        RecordType::SRV,
        &[
            "SRV 0 33 9 multi.testns.svc.cluster.local.",
            "SRV 0 33 80 multi.testns.svc.cluster.local.",
            "SRV 0 33 53 multi.testns.svc.cluster.local.",
        ],
    );
}

#[test]
fn dns_05_a_port_by_two_protocols_is_said_once() {
    // Two ports at two addresses weigh a quarter each, as CoreDNS has it; what says the same is
    // there once.
    let once = ["SRV 0 25 53 both.testns.svc.cluster.local."];
    answers("both.testns.svc", RecordType::SRV, &once);
    let target = ["A 10.0.0.9", "AAAA 10::9"];
    let glue = target.map(|data| format!("both.testns.svc.cluster.local. 5 IN {data}"));
    additionals("both.testns.svc", RecordType::SRV, &glue.each_ref().map(String::as_str));
    let each = ["SRV 0 50 53 both.testns.svc.cluster.local."];
    answers("_dns._udp.both.testns.svc", RecordType::SRV, &each);
    answers("_dns-tcp._tcp.both.testns.svc", RecordType::SRV, &each);
}

#[test]
fn dns_07_dns_14_headless_addresses_once_each() {
    let a = ["A 172.0.0.2", "A 172.0.0.3", "A 172.0.0.4", "A 172.0.0.5"];
    answers("hdls1.testns.svc", RecordType::A, &a);
    answers("hdls1.testns.svc", RecordType::AAAA, &["AAAA 5678:abcd::1", "AAAA 5678:abcd::2"]);
    let name = Name::from_ascii("hdls1.testns.svc.cluster.local.").unwrap();
    let question = Query::query(name, RecordType::A);
    let Outcome::Answer(reply) = answer(&zone_with(settings()), &question, 4 * 7 + 3) else {
        panic!("an answer")
    };
    let rotated: Vec<_> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(rotated, ["172.0.0.5", "172.0.0.2", "172.0.0.3", "172.0.0.4"]);
}

#[test]
fn dns_08_headless_of_the_other_family_only() {
    nodata("hdls6.testns.svc", RecordType::A);
    answers("hdls6.testns.svc", RecordType::AAAA, &["AAAA 2001:db8::"]);
}

#[test]
fn dns_09_srv_of_a_headless_service() {
    let name = "_http._tcp.hdls1.testns.svc";
    let target = |host: &str| format!("SRV 0 16 80 {host}.hdls1.testns.svc.cluster.local.");
    let hosts = ["172-0-0-2", "172-0-0-3", "5678-abcd--1", "5678-abcd--2", "dup-name"];
    let expected = hosts.map(target);
    answers(name, RecordType::SRV, &expected.each_ref().map(String::as_str));
    let glue = [
        ("172-0-0-2", "A 172.0.0.2"),
        ("172-0-0-3", "A 172.0.0.3"),
        ("5678-abcd--1", "AAAA 5678:abcd::1"),
        ("5678-abcd--2", "AAAA 5678:abcd::2"),
        ("dup-name", "A 172.0.0.4"),
        ("dup-name", "A 172.0.0.5"),
    ]
    .map(|(host, data)| format!("{host}.hdls1.testns.svc.cluster.local. 5 IN {data}"));
    additionals(name, RecordType::SRV, &glue.each_ref().map(String::as_str));
}

#[test]
fn dns_10_headless_without_ports() {
    answers("hdlsprtls.testns.svc", RecordType::A, &["A 172.0.0.20"]);
    nodata("hdlsprtls.testns.svc", RecordType::SRV);
}

#[test]
fn dns_11_dns_12_endpoints() {
    answers("172-0-0-2.hdls1.testns.svc", RecordType::A, &["A 172.0.0.2"]);
    answers("dup-name.hdls1.testns.svc", RecordType::A, &["A 172.0.0.4", "A 172.0.0.5"]);
    answers("5678-abcd--2.hdls1.testns.svc", RecordType::AAAA, &["AAAA 5678:abcd::2"]);
    answers("2001-db8--0.hdls6.testns.svc", RecordType::AAAA, &["AAAA 2001:db8::"]);
    nodata("172-0-0-2.hdls1.testns.svc", RecordType::AAAA);
    answers("ep1a.svc1.testns.svc", RecordType::A, &["A 172.0.0.1"]);
    nxdomain("172-0-0-4.hdls1.testns.svc", RecordType::A);
    nxdomain("5678-abcd-0-0-0-0-0-2.hdls1.testns.svc", RecordType::AAAA);
}

/// As CoreDNS has it: whoever was named by one SRV record can be asked for by that name.
#[test]
fn dns_11_dns_12_srv_of_endpoints() {
    let check = |name: &str, srv: &[&str], glue: &[&str]| {
        let target = format!("{name}.cluster.local.");
        let srv: Vec<_> = srv.iter().map(|data| format!("SRV {data} {target}")).collect();
        let srv: Vec<_> = srv.iter().map(String::as_str).collect();
        answers(name, RecordType::SRV, &srv);
        let glue: Vec<_> = glue.iter().map(|data| format!("{target} 5 IN {data}")).collect();
        let glue: Vec<_> = glue.iter().map(String::as_str).collect();
        additionals(name, RecordType::SRV, &glue);
    };
    check("172-0-0-2.hdls1.testns.svc", &["0 100 80"], &["A 172.0.0.2"]);
    check("5678-abcd--2.hdls1.testns.svc", &["0 100 80"], &["AAAA 5678:abcd::2"]);
    // Two addresses, each with its part of the weight, and one name.
    check("dup-name.hdls1.testns.svc", &["0 50 80"], &["A 172.0.0.4", "A 172.0.0.5"]);
    check("ep1a.svc1.testns.svc", &["0 100 80"], &["A 172.0.0.1"]);
    nodata("172-0-0-20.hdlsprtls.testns.svc", RecordType::SRV);
    nxdomain("172-0-0-4.hdls1.testns.svc", RecordType::SRV);
    // The letters of the question are its owner's, the target's are those of the API.
    let reply =
        ask(&zone_with(settings()), "Dup-Name.hdls1.testns.svc.cluster.local.", RecordType::SRV);
    let expected = "Dup-Name.hdls1.testns.svc.cluster.local. 5 IN SRV 0 50 80 \
                    dup-name.hdls1.testns.svc.cluster.local.";
    assert_eq!(lines(&reply.answers), [expected]);
}

/// The ports are the endpoints', not the Service's, and of each only those whose slice has it.
#[test]
fn dns_12_srv_of_endpoints_with_ports_of_their_own() {
    use crate::dns::fixture::{HTTP, add, service, slice};
    use crate::model::service::Protocol;
    let mut all = Snapshot { synced: fixture::snapshot().synced, ..Snapshot::default() };
    let web = service("testns", "web", &["10.0.0.1"], &[HTTP]);
    let both = [("http", Protocol::Tcp, 8080), ("http3", Protocol::Udp, 8080)];
    let slices = vec![
        slice(&web, "a", &[("172.0.0.1", "a"), ("172.0.0.2", "b")], &both),
        slice(&web, "b", &[("172.0.0.3", "b")], &[("http", Protocol::Tcp, 9090)]),
    ];
    add(&mut all, web, slices);
    let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &all);
    let said = |label: &str| {
        let name = format!("{label}.web.testns.svc.cluster.local.");
        let reply = ask(&zone, &name, RecordType::SRV);
        let data = reply.answers.iter().map(|record| record.data.to_string());
        let beside = reply.additionals.iter().map(|record| record.data.to_string());
        (data.collect::<Vec<_>>(), beside.collect::<Vec<_>>())
    };
    let srv = |data: &str, label: &str| format!("{data} {label}.web.testns.svc.cluster.local.");
    let ip = |text: &str| text.to_owned();
    // One number by TCP and UDP is one record.
    assert_eq!(said("a"), (vec![srv("0 50 8080", "a")], vec![ip("172.0.0.1")]));
    let b = vec![srv("0 33 8080", "b"), srv("0 33 9090", "b")];
    assert_eq!(said("b"), (b, vec![ip("172.0.0.2"), ip("172.0.0.3")]));
}

#[test]
fn dns_13_an_endpoint_that_is_not_ready_has_no_name() {
    nxdomain("172-0-0-30.unready.testns.svc", RecordType::A);
}

#[test]
fn dns_15_dns_16_pointers() {
    let zone = zone_with(settings());
    let pointers = |address: &str| {
        let name = Name::from(address.parse::<std::net::IpAddr>().unwrap()).to_string();
        let reply = ask(&zone, &name, RecordType::PTR);
        assert!(reply.authoritative && reply.answers.iter().all(|ptr| ptr.ttl == 5));
        reply.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(pointers("1234:abcd::1"), ["svc6.testns.svc.cluster.local."]);
    assert_eq!(pointers("172.0.0.3"), ["172-0-0-3.hdls1.testns.svc.cluster.local."]);
    assert_eq!(pointers("172.0.0.4"), ["dup-name.hdls1.testns.svc.cluster.local."]);
    assert_eq!(
        pointers("172.0.0.2"),
        ["172-0-0-2.hdls1.testns.svc.cluster.local.", "172-0-0-2.twin.testns.svc.cluster.local.",]
    );
    // Two Services claim one address; each has its pointer.
    assert_eq!(
        pointers("10.0.0.1"),
        ["svc1.testns.svc.cluster.local.", "svcempty.testns.svc.cluster.local.",]
    );
}

#[test]
fn dns_16_a_service_wins_over_an_endpoint() {
    let mut snapshot = fixture::snapshot();
    let service = fixture::service("testns", "aa", &[], &[]);
    let slice = fixture::slice(&service, "a", &[("10.0.0.3", "")], &[]);
    fixture::add(&mut snapshot, service, vec![slice]);
    let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &snapshot);
    let reply = ask(&zone, "3.0.0.10.in-addr.arpa.", RecordType::PTR);
    let owner = "3.0.0.10.in-addr.arpa. 5 IN PTR svc-dual-stack.testns.svc.cluster.local.";
    assert_eq!(lines(&reply.answers), [owner]);
}

#[test]
fn dns_17_dns_38_an_unknown_address_is_the_upstreams_to_answer_where_there_are_any() {
    let unknown = "99.0.0.10.in-addr.arpa.";
    negative(&zone_with(settings()), unknown, RecordType::PTR, ResponseCode::NXDomain);
    let through = zone_with(Settings { reverse_falls_through: Trees::BOTH, ..settings() });
    assert!(matches!(outcome(&through, unknown, RecordType::PTR), Outcome::Foreign));
    // No such type does not fall through, nor does a known address.
    negative(&through, "1.0.0.10.in-addr.arpa.", RecordType::TXT, ResponseCode::NoError);
    assert_eq!(ask(&through, "1.0.0.10.in-addr.arpa.", RecordType::PTR).answers.len(), 2);
    // Each tree for itself.
    let (v6, v4) = (Trees { v4: false, v6: true }, Trees { v4: true, v6: false });
    for (unknown, stays, leaves) in [(unknown, v6, v4), ("1.2.3.ip6.arpa.", v4, v6)] {
        let with = |trees| zone_with(Settings { reverse_falls_through: trees, ..settings() });
        negative(&with(stays), unknown, RecordType::PTR, ResponseCode::NXDomain);
        assert!(matches!(outcome(&with(leaves), unknown, RecordType::PTR), Outcome::Foreign));
    }
}

#[test]
fn dns_17_dns_38_parts_have_rules_of_their_own() {
    let name = |text: &str| Name::from_ascii(text).unwrap();
    let zones = ["0.0.10.in-addr.arpa.", "testns.svc.cluster.local."].map(name);
    let with = |part, through| {
        let parts = Parts::new(zones.iter().map(|zone| (zone, part)));
        let trees = Trees { v4: through, v6: through };
        let reverse_falls_through = trees;
        let names_fall_through = through;
        zone_with(Settings { names_fall_through, reverse_falls_through, parts, ..settings() })
    };
    let unknown = ["99.0.0.10.in-addr.arpa.", "nope.testns.svc.cluster.local."];
    let known = ["1.0.0.10.in-addr.arpa.", "svc1.testns.svc.cluster.local."];
    let is_foreign =
        |zone: &Zone, text| matches!(outcome(zone, text, RecordType::PTR), Outcome::Foreign);
    for through in [false, true] {
        let elsewhere = with(Part::Elsewhere, through);
        assert!(unknown.iter().chain(&known).all(|text| is_foreign(&elsewhere, text)));
        let passes = with(Part::FallsThrough, through);
        assert!(unknown.iter().all(|text| is_foreign(&passes, text)));
        assert!(!known.iter().any(|text| is_foreign(&passes, text)));
        let denied = with(Part::Denied, through);
        assert!(!unknown.iter().chain(&known).any(|text| is_foreign(&denied, text)));
        // Behind the parts all is as it was.
        for beyond in ["99.9.9.10.in-addr.arpa.", "nope.cluster.local."] {
            assert_eq!(is_foreign(&denied, beyond), through, "{beyond}");
        }
    }
    // A range that is kept is a zone of its own, as in CoreDNS.
    let reply = ask(&with(Part::Denied, true), unknown[0], RecordType::PTR);
    assert_eq!(reply.code, ResponseCode::NXDomain);
    assert_eq!(reply.authorities[0].name, zones[0]);
    let reply = ask(&with(Part::Denied, true), "0.0.10.in-addr.arpa.", RecordType::SOA);
    assert_eq!((reply.code, reply.answers.len()), (ResponseCode::NoError, 1));
}

#[test]
fn dns_38_no_such_name_falls_through_and_no_such_type_does_not() {
    let zone = zone_with(Settings { names_fall_through: true, ..settings() });
    let nope = "nope.testns.svc.cluster.local.";
    assert!(matches!(outcome(&zone, nope, RecordType::A), Outcome::Foreign));
    negative(&zone, "svc1.testns.svc.cluster.local.", RecordType::TXT, ResponseCode::NoError);
    negative(&zone, "testns.svc.cluster.local.", RecordType::A, ResponseCode::NoError);
}

#[test]
fn dns_18_pointers_where_there_are_none() {
    nodata("svc1.testns.svc", RecordType::PTR);
    nxdomain("example.org", RecordType::PTR);
    nxdomain("100.0.0.10", RecordType::PTR);
    let zone = zone_with(settings());
    let mixed = "svc1.testns.svc.0.10.in-addr.arpa.";
    negative(&zone, mixed, RecordType::A, ResponseCode::NXDomain);
}

#[test]
fn dns_19_external_names() {
    let target = "CNAME ext.interwebs.test.";
    answers("external.testns.svc", RecordType::CNAME, &[target]);
    let zone = zone_with(settings());
    match outcome(&zone, "external.testns.svc.cluster.local.", RecordType::A) {
        Outcome::Alias(reply, name) => {
            let owner = "external.testns.svc.cluster.local. 5 IN";
            assert_eq!(lines(&reply.answers), [format!("{owner} {target}")]);
            assert_eq!(name.to_string(), "ext.interwebs.test.");
        }
        other => panic!("{other:?}"),
    }
    let owner = "external-to-service.testns.svc.cluster.local.";
    assert_eq!(
        lines(&ask(&zone, owner, RecordType::A).answers),
        [
            format!("{owner} 5 IN CNAME svc1.testns.svc.cluster.local."),
            "svc1.testns.svc.cluster.local. 5 IN A 10.0.0.1".to_owned(),
        ]
    );
    let reply = ask(&zone, "external-to-nothing.testns.svc.cluster.local.", RecordType::A);
    assert_eq!((reply.answers.len(), reply.code), (1, ResponseCode::NXDomain));
    assert_eq!(lines(&reply.authorities), [SOA]);
}

#[test]
fn dns_20_dns_21_nothing_else_at_and_below_an_external_name() {
    nxdomain("x.external.testns.svc", RecordType::A);
    nxdomain("a.b.external.testns.svc", RecordType::A);
    nodata("external.testns.svc", RecordType::SRV);
    nodata("external.testns.svc", RecordType::HTTPS);
}

#[test]
fn dns_22_external_names_in_a_circle() {
    let zone = zone_with(settings());
    let reply = ask(&zone, "loop-a.testns.svc.cluster.local.", RecordType::A);
    assert_eq!(
        lines(&reply.answers),
        [
            "loop-a.testns.svc.cluster.local. 5 IN CNAME loop-b.testns.svc.cluster.local.",
            "loop-b.testns.svc.cluster.local. 5 IN CNAME loop-a.testns.svc.cluster.local.",
        ]
    );
}

#[test]
fn dns_22_a_long_chain_of_external_names_ends() {
    let mut snapshot = fixture::snapshot();
    for link in 0..50 {
        let target = format!("l{}.testns.svc.cluster.local", link + 1);
        let service = fixture::external("testns", &format!("l{link}"), &target);
        fixture::add(&mut snapshot, service, vec![]);
    }
    let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &snapshot);
    let reply = ask(&zone, "l0.testns.svc.cluster.local.", RecordType::A);
    assert_eq!(reply.answers.len(), MAX_ALIASES + 1);
}

#[test]
fn dns_23_dns_35_the_version() {
    let zone = zone_with(settings());
    let version = "dns-version.cluster.local.";
    let reply = ask(&zone, version, RecordType::TXT);
    assert_eq!(lines(&reply.answers), [format!("{version} 28800 IN TXT 1.1.0")]);
    nodata("dns-version", RecordType::A);
    nodata("dns-version", RecordType::AAAA);
    nxdomain("x.dns-version", RecordType::TXT);
}

#[test]
fn dns_24_the_top_of_the_zone() {
    let zone = zone_with(settings());
    let apex = "cluster.local.";
    assert_eq!(lines(&ask(&zone, apex, RecordType::SOA).answers), [SOA]);
    let reply = ask(&zone, apex, RecordType::NS);
    assert_eq!(lines(&reply.answers), ["cluster.local. 5 IN NS ns.dns.cluster.local."]);
    assert_eq!(
        lines(&reply.additionals),
        ["ns.dns.cluster.local. 5 IN A 10.0.0.10", "ns.dns.cluster.local. 5 IN AAAA 1234:abcd::a",]
    );
    for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::HINFO] {
        negative(&zone, apex, kind, ResponseCode::NoError);
    }
    answers("ns.dns", RecordType::A, &["A 10.0.0.10"]);
    answers("ns.dns", RecordType::AAAA, &["AAAA 1234:abcd::a"]);
    nxdomain("x.ns.dns", RecordType::A);
    nxdomain("x.dns", RecordType::A);
}

#[test]
fn dns_24_a_cluster_domain_beside_the_trees_of_addresses() {
    let origin = Name::from_ascii("Lab.home.arpa.").unwrap();
    let zone = zone_with(Settings { origin, ..settings() });
    let reply = ask(&zone, "lab.home.arpa.", RecordType::NS);
    assert_eq!(lines(&reply.answers), ["lab.home.arpa. 5 IN NS ns.dns.lab.home.arpa."]);
    let reply = ask(&zone, "svc1.testns.svc.lab.home.arpa.", RecordType::A);
    assert_eq!(lines(&reply.answers), ["svc1.testns.svc.lab.home.arpa. 5 IN A 10.0.0.1"]);
    assert!(matches!(outcome(&zone, "home.arpa.", RecordType::NS), Outcome::Foreign));
    // The trees of addresses have a top as well, and its names are the cluster's.
    let soa = &ask(&zone, "10.in-addr.arpa.", RecordType::PTR).authorities[0];
    let expected = "in-addr.arpa. 5 IN SOA ns.dns.Lab.home.arpa. hostmaster.Lab.home.arpa. ";
    assert!(soa.to_string().starts_with(expected), "{soa}");
}

#[test]
fn dns_25_pods() {
    answers("10-240-0-1.testns.pod", RecordType::A, &["A 10.240.0.1"]);
    answers("1234-abcd--7.testns.pod", RecordType::AAAA, &["AAAA 1234:abcd::7"]);
    nodata("1234-abcd--7.testns.pod", RecordType::A);
    nxdomain("blah.testns.pod", RecordType::A);
    nxdomain("blah.testns.pod", RecordType::TXT);
    nxdomain("10-240-0-1.pod-nons.pod", RecordType::A);
    nxdomain("x.10-240-0-1.testns.pod", RecordType::A);
    nodata("testns.pod", RecordType::A);
    let disabled = zone_with(Settings { pods: PodNames::Disabled, ..settings() });
    for name in ["10-240-0-1.testns.pod.cluster.local.", "testns.pod.cluster.local."] {
        negative(&disabled, name, RecordType::A, ResponseCode::NXDomain);
    }
}

#[test]
fn dns_26_a_leading_digit() {
    answers("1kubernetes.testns.svc", RecordType::A, &["A 10.0.0.7"]);
}

#[test]
fn dns_28_the_case_of_the_question_is_kept() {
    let zone = zone_with(settings());
    let name = "_HTTP._tCp.SVC1.TestNS.Svc.cLuStEr.LoCaL.";
    let reply = ask(&zone, name, RecordType::SRV);
    let target = "svc1.testns.svc.cLuStEr.LoCaL.";
    assert_eq!(lines(&reply.answers), [format!("{name} 5 IN SRV 0 100 80 {target}")]);
    assert_eq!(lines(&reply.additionals), [format!("{target} 5 IN A 10.0.0.1")]);
    let reply = ask(&zone, "Nope.TestNS.svc.cLuStEr.LoCaL.", RecordType::A);
    assert_eq!(reply.code, ResponseCode::NXDomain);
    assert_eq!(reply.authorities[0].name.to_string(), "cLuStEr.LoCaL.");
}

#[test]
fn dns_29_too_many_labels() {
    nxdomain("a._http._tcp.svc1.testns.svc", RecordType::SRV);
    nxdomain("a.b.c.svc1.testns.svc", RecordType::A);
    nxdomain("x.ep1a.svc1.testns.svc", RecordType::A);
}

#[test]
fn dns_30_the_protocol_counts() {
    nxdomain("_http._udp.svc1.testns.svc", RecordType::SRV);
    nxdomain("http._tcp.svc1.testns.svc", RecordType::SRV);
    nxdomain("_._tcp.multi.testns.svc", RecordType::SRV);
}

#[test]
fn dns_31_names_that_only_have_names_below_them() {
    for kind in [RecordType::A, RecordType::TXT, RecordType::SRV, RecordType::ANY] {
        for name in ["svc", "pod", "testns.svc"] {
            nodata(name, kind);
        }
    }
}

#[test]
fn dns_32_names_that_are_not() {
    for name in [
        "svc1.nowhere.svc",
        "nowhere.svc",
        "nothing.testns.svc",
        "ep9.svc1.testns.svc",
        "nope",
        "svc1.testns",
        "svc1.testns.svcs",
    ] {
        nxdomain(name, RecordType::A);
    }
}

#[test]
fn dns_33_types_that_are_not() {
    for kind in [
        RecordType::AAAA,
        RecordType::TXT,
        RecordType::MX,
        RecordType::HINFO,
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::ANY,
        RecordType::CNAME,
        RecordType::Unknown(65_280),
    ] {
        nodata("svc1.testns.svc", kind);
    }
    nodata("svc6.testns.svc", RecordType::A);
    nodata("_http._tcp.svc1.testns.svc", RecordType::A);
}

#[test]
fn dns_34_empty_non_terminals_exist() {
    nodata("_tcp.svc1.testns.svc", RecordType::A);
    nodata("_tcp.hdls1.testns.svc", RecordType::SRV);
    nodata("dns", RecordType::A);
    nxdomain("_udp.svc1.testns.svc", RecordType::A);
    let zone = zone_with(settings());
    negative(&zone, "0.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NoError);
    negative(&zone, "9.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain);
    negative(&zone, "d.c.b.a.4.3.2.1.ip6.arpa.", RecordType::PTR, ResponseCode::NoError);
}

#[test]
fn dns_36_headless_with_no_ready_endpoint() {
    nxdomain("unready.testns.svc", RecordType::A);
    nxdomain("_http._tcp.unready.testns.svc", RecordType::SRV);
}

#[test]
fn dns_37_before_everything_is_listed_our_names_fail_and_others_do_not() {
    let mut partly = fixture::snapshot();
    partly.synced.slices = false;
    let through = Settings { reverse_falls_through: Trees::BOTH, ..settings() };
    let zone = Zone::new(through, 0).advance(&Snapshot::default(), &partly);
    for name in ["svc1.testns.svc.cluster.local.", "nope.cluster.local.", "99.0.0.10.in-addr.arpa."]
    {
        assert_eq!(
            ask(&zone, name, RecordType::A),
            Reply::failure(Explanation::NotReady),
            "{name}"
        );
    }
    assert!(matches!(outcome(&zone, "example.org.", RecordType::A), Outcome::Foreign));
    assert!(matches!(outcome(&zone, "cluster.localhost.", RecordType::A), Outcome::Foreign));
}
