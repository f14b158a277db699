//! What is written straight from the index, against what the long way says.

use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{DNSClass, Name},
};
use proptest::prelude::*;

use super::*;
use crate::dns::{
    answer::Outcome,
    fixture::{HTTP, add, service, settings, slice, snapshot, zone_with},
    message::{self, Received},
    zone::{
        PodNames, Settings, Trees,
        parts::{Part, Parts},
    },
};
use crate::model::{service::Protocol, snapshot::Snapshot};

/// What the long way says, where it needs nobody else.
fn at_length(zone: &Zone, query: &[u8]) -> Option<Vec<u8>> {
    let Received::Question(question) = message::read(query, Transport::Udp) else { return None };
    match crate::dns::answer::answer(zone, &question.query, usize::from(question.id)) {
        Outcome::Answer(reply) => Some(message::write(&question, &reply)),
        _ => None,
    }
}

fn directly(zone: &Zone, query: &[u8]) -> Option<(Said, Vec<u8>)> {
    let mut octets = Vec::new();
    answer(zone, query, Scope::All, &mut octets).map(|said| (said, octets))
}

fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.edns = Some(edns);
    }
    message.to_vec().unwrap()
}

/// The direct way has an answer, and it is the long way's.
#[track_caller]
fn same(zone: &Zone, query: &[u8]) -> Said {
    let (said, octets) = directly(zone, query).expect("an answer");
    assert_eq!(Some(octets), at_length(zone, query));
    said
}

#[test]
fn what_is_asked_most_goes_this_way() {
    let zone = zone_with(settings());
    for edns in [None, Some(512), Some(1232), Some(4096)] {
        for (name, kind, code) in [
            ("svc1.testns.svc.cluster.local.", RecordType::A, ResponseCode::NoError),
            ("SVC1.testns.svc.Cluster.Local.", RecordType::AAAA, ResponseCode::NoError),
            ("svc-dual-stack.testns.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError),
            ("hdls1.testns.svc.cluster.local.", RecordType::A, ResponseCode::NoError),
            ("testns.svc.cluster.local.", RecordType::A, ResponseCode::NoError),
            ("cluster.local.", RecordType::A, ResponseCode::NoError),
            ("_tcp.svc1.testns.svc.cluster.local.", RecordType::A, ResponseCode::NoError),
            ("www.example.org.testns.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
            ("www.example.org.Cluster.local.", RecordType::AAAA, ResponseCode::NXDomain),
        ] {
            let said = same(&zone, &query(name, kind, edns));
            assert_eq!(said, Said { kind, dnssec_ok: false, code }, "{name}");
        }
    }
}

#[test]
fn what_is_not_plain_is_left() {
    let zone = zone_with(settings());
    for (name, kind) in [
        ("svc1.testns.svc.cluster.local.", RecordType::SRV),
        ("external.testns.svc.cluster.local.", RecordType::A),
        ("ns.dns.cluster.local.", RecordType::A),
        ("x.dns.cluster.local.", RecordType::A),
        ("hostmaster.cluster.local.", RecordType::A),
        ("1.0.0.10.in-addr.arpa.", RecordType::A),
        ("www.example.org.", RecordType::A),
    ] {
        assert_eq!(directly(&zone, &query(name, kind, None)), None, "{name} {kind}");
    }
    let plain = query("svc1.testns.svc.cluster.local.", RecordType::A, None);
    let mut octets = Vec::new();
    assert!(answer(&zone, &plain, Scope::Existing, &mut octets).is_some());
    let missing = query("none.testns.svc.cluster.local.", RecordType::A, None);
    assert_eq!(
        answer(&zone, &missing, Scope::Existing, &mut octets),
        None,
        "others are to be asked"
    );
    assert_eq!(answer(&zone, &plain, Scope::Nothing, &mut octets), None);
    assert_eq!(directly(&Zone::new(settings(), 0), &plain), None, "nothing is known yet");
    let mut other_class =
        Query::query(Name::from_ascii("svc1.testns.svc.cluster.local.").unwrap(), RecordType::A);
    other_class.set_query_class(DNSClass::CH);
    let mut message = Message::query();
    message.add_query(other_class);
    assert_eq!(directly(&zone, &message.to_vec().unwrap()), None);
}

/// The cluster with a Service of so many endpoints.
fn large(endpoints: u8) -> Snapshot {
    let mut all = snapshot();
    let large = service("testns", "large", &[], &[HTTP]);
    let addresses: Vec<String> = (0..endpoints).map(|n| format!("172.1.0.{n}")).collect();
    let hosts: Vec<_> = addresses.iter().map(|address| (address.as_str(), "")).collect();
    let slices = vec![slice(&large, "a", &hosts, &[HTTP])];
    add(&mut all, large, slices);
    all
}

#[test]
fn dns_39_dns_49_what_does_not_fit_is_left_to_be_cut() {
    let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &large(60));
    let name = "large.testns.svc.cluster.local.";
    let mut octets = Vec::new();
    for payload in [None, Some(900)] {
        let query = query(name, RecordType::A, payload);
        assert_eq!(answer(&zone, &query, Scope::All, &mut octets), None);
        assert!(octets.is_empty(), "it is seen before any is written");
    }
    same(&zone, &query(name, RecordType::A, Some(1232)));
    // To the octet: 60 records of 16 beside the name, and OPT.
    let beside = 12 + name.len() + 1 + 4 + 11;
    let exact = u16::try_from(beside + 60 * 16).unwrap();
    same(&zone, &query(name, RecordType::A, Some(exact)));
    assert_eq!(directly(&zone, &query(name, RecordType::A, Some(exact - 1))), None);
}

/// Of what can't be said no more is made than shows that it can't.
#[test]
fn dns_49_what_is_cut_is_the_same_however_little_is_made() {
    use crate::dns::answer::{answer, answer_within};
    let shared = service("testns", "shared", &[], &[HTTP, ("dns", Protocol::Udp, 80)]);
    let addresses: Vec<String> = (0..200).map(|n| format!("172.2.0.{n}")).collect();
    let hosts: Vec<_> = addresses.iter().map(|address| (address.as_str(), "one")).collect();
    let slices = vec![slice(&shared, "a", &hosts, &[HTTP, ("dns", Protocol::Udp, 80)])];
    // Of 18 the targets fit, and not their addresses.
    for endpoints in [1, 10, 18, 25, 200] {
        let mut all = large(endpoints);
        add(&mut all, shared.clone(), slices.clone());
        let zone = Zone::new(settings(), 0).advance(&Snapshot::default(), &all);
        for (name, kind) in [
            ("large", RecordType::A),
            ("large", RecordType::SRV),
            ("_http._tcp.large", RecordType::SRV),
            ("shared", RecordType::SRV),
            ("one.shared", RecordType::SRV),
        ] {
            for payload in [None, Some(700), Some(1232)] {
                let name = format!("{name}.testns.svc.cluster.local.");
                let octets = query(&name, kind, payload);
                let Received::Question(question) = message::read(&octets, Transport::Udp) else {
                    panic!("a question")
                };
                let most = message::most_records(&question);
                let made = |outcome| match outcome {
                    Outcome::Answer(reply) => {
                        let sections = [reply.answers.len(), reply.additionals.len()];
                        (sections, message::write(&question, &reply))
                    }
                    other => panic!("{other:?}"),
                };
                let (_, whole) = made(answer(&zone, &question.query, 7));
                let ([answers, beside], within) =
                    made(answer_within(&zone, &question.query, 7, most));
                assert_eq!(whole, within, "{name} {kind} {endpoints}");
                assert!(
                    answers + beside <= most && most <= 78,
                    "{name} {kind}: {answers} {beside}"
                );
            }
        }
    }
}

/// Names of the fixture, near them, and beside them.
fn names() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec![
        "svc1",
        "SVC1",
        "svc6",
        "hdls1",
        "hdls6",
        "unready",
        "svc-dual-stack",
        "external",
        "multi",
        "172-0-0-2",
        "dup-name",
        "_http",
        "_tcp",
        "ns",
        "dns",
        "hostmaster",
        "dns-version",
        "testns",
        "Testns",
        "other",
        "svc",
        "pod",
        "10-0-0-1",
        "x",
        "cluster",
        "local",
    ]);
    let apex =
        prop::sample::select(vec!["cluster.local", "CLUSTER.local", "local", "in-addr.arpa", ""]);
    let middle = prop::sample::select(vec!["", "testns.svc", "TestNS.svc", "svc", "pod", "dns"]);
    (prop::collection::vec(label, 0..4), middle, apex).prop_map(|(labels, middle, apex)| {
        let parts = labels.into_iter().chain([middle, apex]).filter(|part| !part.is_empty());
        parts.fold(String::new(), |name, part| name + part + ".")
    })
}

fn zones() -> impl Strategy<Value = Settings> {
    let pods =
        prop::sample::select(vec![PodNames::Disabled, PodNames::Insecure, PodNames::Verified]);
    let trees = (any::<bool>(), any::<bool>()).prop_map(|(v4, v6)| Trees { v4, v6 });
    let kinds = prop::sample::select(vec![Part::Elsewhere, Part::Denied, Part::FallsThrough]);
    let parts = prop::option::of(kinds).prop_map(|kind| {
        let zone = Name::from_ascii("testns.svc.cluster.local.").unwrap();
        Parts::new(kind.map(|kind| (&zone, kind)))
    });
    (pods, any::<bool>(), trees, parts, 0..600_u32).prop_map(
        |(pods, names_fall_through, reverse_falls_through, parts, ttl)| Settings {
            ttl,
            pods,
            names_fall_through,
            reverse_falls_through,
            parts,
            ..settings()
        },
    )
}

proptest! {
    /// Where the direct way answers, it says what the long way says, to the octet.
    #[test]
    fn both_ways_say_the_same(
        settings in zones(),
        name in names(),
        kind in prop::sample::select(vec![1_u16, 28, 33, 255]),
        edns in prop::option::of((any::<u16>(), any::<u8>())),
        id in any::<u16>(),
        flags in any::<(u8, u8)>(),
        change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        tail in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let zone = zone_with(settings);
        let name = if name.is_empty() { "." } else { &name };
        let mut octets = query(name, RecordType::from(kind), edns.map(|(payload, _)| payload));
        octets[..2].copy_from_slice(&id.to_be_bytes());
        // Opcode and QR stay plain in most: otherwise nothing would go the direct way.
        octets[2] = if flags.0 < 16 { flags.0 << 4 } else { flags.0 & 7 };
        octets[3] = flags.1;
        if let Some((_, dnssec)) = edns {
            let at = octets.len() - 4;
            octets[at] = dnssec;
        }
        if let Some((at, octet)) = change {
            let at = at.index(octets.len());
            octets[at] = octet;
        }
        if tail.len() == 2 {
            octets.extend(tail);
        }
        if let Some((_, said)) = directly(&zone, &octets) {
            prop_assert_eq!(Some(said), at_length(&zone, &octets));
        }
    }

    /// Any octets are looked at without harm.
    #[test]
    fn any_octets(octets in prop::collection::vec(any::<u8>(), 0..80)) {
        directly(&zone_with(settings()), &octets);
    }
}
