//! Names outside the cluster: from upstreams that answer, that don't, and that lie.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use hickory_proto::rr::Name;
use mizzen_agent::{
    dns::{
        Config,
        route::{Policy, Route},
    },
    status::State,
};
use mizzen_tests::wait;

use super::{
    site::{
        CLUSTER, NODE, OUTSIDE, OUTSIDE_TOO, Running, Site, add, config, query_time, service,
        snapshot,
    },
    upstream::{BIG, Relay, Upstream},
};

/// What a client waits before it gives up (glibc, musl).
const CLIENT: Duration = Duration::from_secs(5);

fn upstream(site: &Site) -> Upstream {
    Upstream::start(&site.outside, &OUTSIDE.map(|address| address.parse().unwrap()))
}

/// Sockets that take questions and never answer.
fn black_hole(site: &Site) -> Vec<UdpSocket> {
    let open = |address| site.outside.run(|| UdpSocket::bind((address, 53)).unwrap());
    OUTSIDE_TOO.into_iter().map(open).collect()
}

#[test]
fn foreign_names_by_every_family_and_transport() {
    let site = Site::new();
    let _upstream = upstream(&site);
    for server in OUTSIDE {
        let _running = Running::start(&site, config(&[server]), snapshot());
        for address in CLUSTER {
            for by in ["+notcp", "+tcp"] {
                let short =
                    |question: &str| site.dig(&format!("@{address} {by} +short {question}"));
                assert_eq!(short("www.example.org A"), "192.0.2.80\n");
                assert_eq!(short("www.example.org AAAA"), "2001:db8::50\n");
                let said = site.dig(&format!("@{address} {by} nope.example.org A"));
                assert!(said.contains("status: NXDOMAIN") && said.contains("SOA"), "{said}");
                assert!(said.contains("flags: qr rd ra;"), "{said}");
            }
        }
    }
}

#[test]
fn dns_19_an_external_name_is_followed_and_stays_where_its_target_fails() {
    let site = Site::new();
    let name = "ext.default.svc.cluster.local A";
    {
        let _upstream = upstream(&site);
        let _running = Running::start(&site, config(&[OUTSIDE[0]]), snapshot());
        for address in CLUSTER {
            let said = site.dig(&format!("@{address} +short {name}"));
            assert_eq!(said, "ext.interwebs.test.\n192.0.2.80\n");
        }
    }
    let _running = Running::start(&site, config(&[OUTSIDE[0]]), snapshot());
    for address in CLUSTER {
        let said = site.dig(&format!("@{address} {name}"));
        assert!(said.contains("status: SERVFAIL") && said.contains("CNAME"), "{said}");
    }
}

#[test]
fn dns_52_dns_53_answers_are_kept_and_age() {
    let site = Site::new();
    let upstream = upstream(&site);
    let _running = Running::start(&site, config(&[OUTSIDE[1]]), snapshot());
    for _ in 0..3 {
        for address in CLUSTER {
            let said = site.dig(&format!("@{address} +noall +answer WWW.example.org A"));
            assert!(said.starts_with("WWW.example.org."), "{said}");
            let ttl: u32 = said.split_whitespace().nth(1).unwrap().parse().unwrap();
            assert!(
                (20..=30).contains(&ttl),
                "the upstream says 300, we say no more than 30: {said}"
            );
            site.dig(&format!("@{address} nope.example.org A"));
        }
    }
    assert_eq!(upstream.times_asked("www.example.org."), 1);
    assert_eq!(upstream.times_asked("nope.example.org."), 1);
}

#[test]
fn dns_47_without_rd_only_what_is_there_already_is_said() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let _running = Running::start(&site, config(&[server]), snapshot());
        let ask = |options: &str| site.dig(&format!("@{address} {options} www.example.org A"));
        assert!(ask("+norecurse").contains("status: REFUSED"));
        assert_eq!(upstream.times_asked("www.example.org."), 0);
        assert!(ask("+recurse").contains("192.0.2.80"));
        let said = ask("+norecurse");
        assert!(said.contains("status: NOERROR") && said.contains("192.0.2.80"), "{said}");
        assert!(said.contains("flags: qr ra;"), "{said}");
    }
}

#[test]
fn dns_19_an_answer_behind_an_external_name_that_does_not_fit_says_so() {
    let site = Site::new();
    let _upstream = upstream(&site);
    let _running = Running::start(&site, config(&[OUTSIDE[0]]), {
        let mut all = snapshot();
        let mut external = service("many", &["10.0.0.1"]);
        external.cluster_ips.clear();
        external.external_name = Some("big.example.org".into());
        add(&mut all, external, &[]);
        all
    });
    let name = "many.default.svc.cluster.local A";
    for address in CLUSTER {
        let said = site.dig(&format!("@{address} +notcp +ignore {name}"));
        assert!(said.contains("flags: qr aa tc rd ra;"), "{said}");
        let said = site.dig(&format!("@{address} +short {name}"));
        assert_eq!(said.lines().count(), BIG + 1);
    }
}

#[test]
fn dns_54_a_failure_is_not_asked_for_again_at_once() {
    let site = Site::new();
    let upstream = upstream(&site);
    let _running = Running::start(&site, config(&[OUTSIDE[0]]), snapshot());
    for address in CLUSTER {
        let said = site.dig(&format!("@{address} broken.example.org A"));
        assert!(said.contains("status: SERVFAIL"), "{said}");
    }
    assert_eq!(upstream.times_asked("broken.example.org."), 1);
    let said = site.dig(&format!("@{} broken.example.org A", CLUSTER[0]));
    assert!(said.contains("EDE: 13 (Cached Error)"), "{said}");
    // Silence is a failure as well.
    for address in CLUSTER {
        let said = site.dig(&format!("@{address} silent.example.org A"));
        assert!(said.contains("status: SERVFAIL"), "{said}");
    }
    assert_eq!(upstream.times_asked("silent.example.org."), 4, "the tries of one question");
}

#[test]
fn dns_58_while_upstreams_are_away_what_was_known_is_still_said() {
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let site = Site::new();
        let live = || Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let mut config = config(&[server]);
        // Short, so that the answer's time is soon up.
        config.routes[0].keeping.ttl = (Duration::ZERO, Duration::from_secs(1));
        config.routes[0].keeping.negative_ttl = (Duration::ZERO, Duration::from_secs(1));
        let before = live();
        let _running = Running::start(&site, config, snapshot());
        let ask = |name: &str| site.dig(&format!("@{address} {name} A"));
        assert!(ask("www.example.org").contains("192.0.2.80"));
        assert!(ask("nope.example.org").contains("status: NXDOMAIN"));
        drop(before);
        for (name, status, code) in [
            ("www.example.org", "NOERROR", "EDE: 3 (Stale Answer)"),
            ("nope.example.org", "NXDOMAIN", "EDE: 19 (Stale NXDOMAIN Answer)"),
        ] {
            let said = wait::until("an old answer", CLIENT, || {
                let said = ask(name);
                if said.contains("EDE") { Ok(said) } else { Err(said) }
            });
            assert!(said.contains(code) && said.contains(&format!("status: {status}")), "{said}");
            assert!(query_time(&said) < Duration::from_secs(4), "{said}");
            if status == "NOERROR" {
                assert!(said.contains("30\tIN\tA\t192.0.2.80"), "{said}");
            }
            // Having failed, it is not tried again for a while, though it is back.
            let back = live();
            assert!(ask(name).contains(code));
            assert_eq!(back.times_asked(&format!("{name}.")), 0);
        }
    }
}

#[test]
fn dns_65_a_loop_is_found_while_it_runs_and_only_its_upstream_is_dropped() {
    for (place, address) in CLUSTER.into_iter().enumerate() {
        let site = Site::new();
        let (good, bad) = (OUTSIDE[place], OUTSIDE_TOO[place]);
        let _live = Upstream::start(&site.outside, &[good.parse().unwrap()]);
        let (family, bits) = [("-4", 32), ("-6", 128)][place];
        site.outside.ip(&format!("{family} route add {address}/{bits} via {}", NODE[place]));
        let loops = Relay::start(&site.outside, bad, address);
        let running = Running::begin(&site, config(&[bad, good]), snapshot());
        let state = running.until("the loop", |state| matches!(state, State::Degraded(_)));
        let State::Degraded(why) = state else { unreachable!() };
        let named = SocketAddr::new(bad.parse().unwrap(), 53);
        assert!(why.contains(&format!("{named} leads back to this resolver")), "{why}");
        let before = loops.passed();
        let said = site.dig(&format!("@{address} +short www.example.org A"));
        assert_eq!((said.as_str(), loops.passed()), ("192.0.2.80\n", before));
    }
}

#[test]
fn stub_domains_have_upstreams_of_their_own() {
    let site = Site::new();
    let live = upstream(&site);
    let other = Upstream::start(&site.outside, &OUTSIDE_TOO.map(|text| text.parse().unwrap()));
    for (address, too) in CLUSTER.into_iter().zip(OUTSIDE_TOO) {
        let mut config = config(&[too]);
        config.routes.push(Route {
            zone: "example.org.".parse().unwrap(),
            except: vec!["any-secret.example.org.".parse().unwrap()],
            policy: Policy::RoundRobin,
            ..Route::to(
                OUTSIDE.map(|address| (address.parse::<IpAddr>().unwrap(), 53).into()).to_vec(),
            )
        });
        let _running = Running::start(&site, config, snapshot());
        for by in ["+notcp", "+tcp"] {
            for name in ["WWW.Example.org", "any-secret.example.org"] {
                let said = site.dig(&format!("@{address} {by} +short {name} A"));
                assert_eq!(said, "192.0.2.80\n", "{name}");
            }
        }
    }
    assert_eq!(live.times_asked("www.example.org."), CLUSTER.len());
    assert_eq!(other.times_asked("www.example.org."), 0);
    assert_eq!(live.times_asked("any-secret.example.org."), 0);
    assert_eq!(other.times_asked("any-secret.example.org."), CLUSTER.len(), "passed over");
}

#[test]
fn dns_62_an_answer_that_was_cut_is_asked_for_by_tcp() {
    let site = Site::new();
    let _upstream = upstream(&site);
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let _running = Running::start(&site, config(&[server]), snapshot());
        let said = site.dig(&format!("@{address} +short big.example.org A"));
        assert_eq!(said.lines().filter(|line| line.starts_with("10.0.0.")).count(), BIG);
    }
}

#[test]
fn dns_63_forged_answers_are_passed_over() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let _upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let running = Running::start(&site, config(&[server]), snapshot());
        let said = site.dig(&format!("@{address} +short liar.example.org A"));
        assert_eq!(said, "192.0.2.80\n");
        let mut text = String::new();
        running.metrics.write(&mut text);
        let drops = text.lines().find(|line| line.starts_with("coredns_cache_drops_total{"));
        assert!(drops.is_some_and(|line| line.ends_with(" 3")), "{text}");
    }
}

/// Some upstreams don't keep the letters of a question: what they say counts once it came by TCP,
/// where nobody else can have said it.
#[test]
fn dns_63_an_answer_in_other_letters_is_asked_for_by_tcp() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let _running = Running::start(&site, config(&[server]), snapshot());
        let said = site.dig(&format!("@{address} +short capitals.example.org A"));
        assert_eq!(said, "192.0.2.80\n");
        assert_eq!(upstream.times_asked("capitals.example.org."), 2, "by UDP, and by TCP");
    }
}

/// Aliases that lead back to themselves are the upstream's to say and the client's to give up on.
#[test]
fn aliases_in_a_circle_are_passed_on_and_not_followed() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let _running = Running::start(&site, config(&[server]), snapshot());
        for by in ["+notcp", "+tcp"] {
            let said = site.dig(&format!("@{address} {by} circle.example.org A"));
            assert!(said.contains("status: NOERROR"), "{said}");
            assert!(said.contains("ANSWER: 2, "), "{said}");
        }
        assert_eq!(upstream.times_asked("circle.example.org."), 1, "kept as any answer is");
        assert_eq!(upstream.times_asked("round.example.org."), 0);
    }
}

#[test]
fn dns_60_dns_61_a_dead_upstream_is_left_for_one_that_lives() {
    let site = Site::new();
    let live = upstream(&site);
    let _deaf = black_hole(&site);
    for (address, (dead, good)) in CLUSTER.into_iter().zip(OUTSIDE_TOO.iter().zip(OUTSIDE)) {
        let _running = Running::start(&site, config(&[dead, good]), snapshot());
        let ask = |name: &str| {
            let said = site.dig(&format!("@{address} {name} A"));
            assert!(said.contains("192.0.2.80"), "{said}");
            query_time(&said)
        };
        let first = ask("www.example.org");
        assert!(first < CLIENT, "{first:?}");
        let second = ask("liar.example.org");
        assert!(second < Duration::from_millis(800), "the dead one is not tried first: {second:?}");
    }
    assert!(live.times_asked("www.example.org.") >= 2);
}

#[test]
fn dns_60_nobody_answers_and_the_client_hears_of_it_in_time() {
    let site = Site::new();
    let _deaf = black_hole(&site);
    for (address, dead) in CLUSTER.into_iter().zip(OUTSIDE_TOO) {
        let _running = Running::start(&site, config(&[dead]), snapshot());
        let said = site.dig(&format!("@{address} www.example.org A"));
        assert!(said.contains("status: SERVFAIL"), "{said}");
        let took = query_time(&said);
        assert!(said.contains("EDE: 22 (No Reachable Authority)"), "{said}");
        assert!(took < CLIENT, "{took:?}");
        // Names of the cluster don't care.
        let said = site.dig(&format!("@{address} +short web.default.svc.cluster.local A"));
        assert_eq!(said, "10.96.1.1\n");
    }
}

#[test]
fn dns_64_no_more_wait_than_may() {
    let site = Site::new();
    let _deaf = black_hole(&site);
    for (address, dead) in CLUSTER.into_iter().zip(OUTSIDE_TOO) {
        let mut config = config(&[dead]);
        config.forward.max_in_flight = 1;
        let _running = Running::start(&site, config, snapshot());
        std::thread::scope(|scope| {
            let ask = |name: &str| site.dig(&format!("@{address} {name} A"));
            let waiting = [
                scope.spawn(move || ask("a.example.org")),
                scope.spawn(move || ask("b.example.org")),
            ];
            let said = waiting.map(|thread| thread.join().unwrap());
            let told = |text| said.iter().filter(|said| said.contains(text)).count();
            assert_eq!(told("status: SERVFAIL"), 2, "{said:?}");
            assert_eq!(told("too many questions"), 1, "{said:?}");
        });
    }
}

#[test]
fn one_question_is_under_way_for_many_who_ask() {
    let site = Site::new();
    let upstream = upstream(&site);
    let _running = Running::start(&site, config(&[OUTSIDE[0]]), snapshot());
    let tries = |together: usize, name: &str| {
        std::thread::scope(|scope| {
            for _ in 0..together {
                scope.spawn(|| site.dig(&format!("@{} {name} A", CLUSTER[0])));
            }
        });
        upstream.times_asked(&format!("{name}."))
    };
    // Never answered, so that all of them meet: four tries, whoever asked.
    let tries = tries(6, "silent.example.org");
    assert_eq!(tries, 4);
}

#[test]
fn without_upstreams_the_reason_is_said() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    for address in CLUSTER {
        let said = site.dig(&format!("@{address} www.example.org A"));
        assert!(said.contains("status: SERVFAIL"), "{said}");
        assert!(said.contains("(no upstream resolver is configured)"), "{said}");
    }
}

#[test]
fn dns_17_dns_38_unknown_addresses_are_asked_of_the_upstream() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let _running = Running::start(&site, config(&[server]), snapshot());
        for unknown in ["192.0.2.1", "2001:db8::1"] {
            let said = site.dig(&format!("@{address} -x {unknown}"));
            assert!(said.contains("status: NXDOMAIN"), "{said}");
            assert_eq!(upstream.times_asked(&reverse(unknown)), 1);
        }
        for known in ["10.96.1.1", "fd00:96::101"] {
            let said = site.dig(&format!("@{address} +short -x {known}"));
            assert_eq!(said, "web.default.svc.cluster.local.\n");
            assert_eq!(upstream.times_asked(&reverse(known)), 0);
        }
    }
}

/// The name of an address in its tree.
fn reverse(address: &str) -> String {
    Name::from(address.parse::<IpAddr>().unwrap()).to_string()
}

/// Only what does not exist is looked for elsewhere: not what exists and has no such type.
#[test]
fn dns_38_what_has_no_such_type_does_not_fall_through() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let config = Config { names_fall_through: true, ..config(&[server]) };
        let _running = Running::start(&site, config, snapshot());
        let web = "web.default.svc.cluster.local.".to_owned();
        let addresses = ["10.96.1.1", "fd00:96::101"].map(reverse);
        for by in ["+notcp", "+tcp"] {
            for name in addresses.iter().chain([&web]) {
                let said = site.dig(&format!("@{address} {by} {name} TXT"));
                assert!(said.contains("status: NOERROR"), "{said}");
                assert!(said.contains("flags: qr aa rd ra;"), "{said}");
                assert!(said.contains("ANSWER: 0, AUTHORITY: 1"), "{said}");
                assert_eq!(upstream.times_asked(name), 0);
            }
            let said = site.dig(&format!("@{address} {by} nope.default.svc.cluster.local TXT"));
            assert!(said.contains("status: NXDOMAIN"), "{said}");
        }
        assert_eq!(upstream.times_asked("nope.default.svc.cluster.local."), 1);
    }
}

#[test]
fn answers_are_counted_under_the_names_of_coredns() {
    let site = Site::new();
    let _upstream = upstream(&site);
    let running = Running::start(&site, config(&[OUTSIDE[0]]), snapshot());
    for (place, address) in CLUSTER.iter().enumerate() {
        for by in ["+notcp", "+tcp"] {
            let ask = |question: &str| site.dig(&format!("@{address} {by} {question}"));
            ask("web.default.svc.cluster.local A");
            ask("nope.default.svc.cluster.local AAAA");
            ask("www.example.org A");
            ask(&format!("{place}.cluster.local TYPE65280"));
        }
    }
    let mut text = String::new();
    running.metrics.write(&mut text);
    let zone = |zone: &str| format!("server=\"dns://.:53\",zone=\"{zone}\",view=\"\"");
    let (ours, others) = (zone("cluster.local."), zone("."));
    for (family, proto) in [(1, "udp"), (1, "tcp"), (2, "udp"), (2, "tcp")] {
        for (zone, kind) in [(&ours, "A"), (&ours, "AAAA"), (&ours, "other"), (&others, "A")] {
            let labels = format!("{zone},proto=\"{proto}\",family=\"{family}\",type=\"{kind}\"");
            let line = format!("coredns_dns_requests_total{{{labels}}} 1\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
    let responses = |labels: &str| format!("coredns_dns_responses_total{{{labels}");
    for line in [
        responses(&format!("{ours},rcode=\"NOERROR\",plugin=\"kubernetes\"}} 4\n")),
        responses(&format!("{ours},rcode=\"NXDOMAIN\",plugin=\"kubernetes\"}} 8\n")),
        responses(&format!("{others},rcode=\"NOERROR\",plugin=\"forward\"}} 1\n")),
        responses(&format!("{others},rcode=\"NOERROR\",plugin=\"cache\"}} 3\n")),
        "coredns_cache_entries{server=\"dns://.:53\",type=\"success\",zones=\".\",view=\"\"} 1\n"
            .to_owned(),
        "coredns_cache_entries{server=\"dns://.:53\",type=\"denial\",zones=\".\",view=\"\"} 0\n"
            .to_owned(),
        format!("to=\"{}:53\",rcode=\"NOERROR\"}} 1\n", OUTSIDE[0]),
    ] {
        assert!(text.contains(&line), "{line}{text}");
    }
}
