//! Beginning and end, and what changes in between.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use mizzen_agent::{
    dns::{Config, addresses::ROUTE_PROTOCOL, zone::PodNames},
    model::{
        ObjectKey,
        snapshot::{Snapshot, Synced},
    },
    status::State,
};
use mizzen_tests::wait;

use super::{
    site::{
        CLUSTER, NODE_LOCAL, OUTSIDE, POD, Running, Site, add, config, query_time, service,
        snapshot, timed,
    },
    upstream::Upstream,
};

/// The local routes that are ours.
fn routes(site: &Site) -> Vec<String> {
    let of =
        |family| site.node.ip(&format!("{family} route show table local proto {ROUTE_PROTOCOL}"));
    let all = of("-4") + &of("-6");
    let mut addresses: Vec<_> =
        all.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect();
    addresses.sort();
    addresses
}

fn expected() -> Vec<String> {
    let mut all: Vec<_> = CLUSTER.iter().chain(&NODE_LOCAL).map(ToString::to_string).collect();
    all.sort();
    all
}

#[test]
fn addresses_are_held_through_a_kill_and_given_up_at_the_end() {
    let site = Site::new();
    assert_eq!(routes(&site), [""; 0]);
    let first = Running::start(&site, config(&[]), snapshot());
    assert_eq!(routes(&site), expected());
    // Not addresses of an interface: nothing takes them for the node's own.
    assert!(!site.node.ip("addr show").contains(CLUSTER[0]));
    first.kill();
    assert_eq!(routes(&site), expected(), "left in place");
    // Meanwhile a question is refused at once, by whoever holds the address.
    let (took, said) =
        timed(|| site.dig(&format!("@{} web.default.svc.cluster.local", CLUSTER[0])));
    assert!(said.contains("connection refused") && took < Duration::from_secs(5), "{said}");
    let second = Running::start(&site, config(&[]), snapshot());
    assert_eq!(routes(&site), expected(), "taken over");
    drop(second);
    assert_eq!(routes(&site), [""; 0]);
}

#[test]
fn an_agent_without_the_role_gives_up_what_a_killed_one_held() {
    let site = Site::new();
    site.node.ip("route add local 10.96.0.99/32 dev lo table local proto static");
    Running::start(&site, config(&[]), snapshot()).kill();
    assert_eq!(routes(&site), expected());
    site.node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(mizzen_agent::dns::release()).unwrap();
    });
    assert_eq!(routes(&site), [""; 0]);
    assert!(site.node.ip("route show table local").contains("10.96.0.99"), "another's stays");
}

#[test]
fn routes_that_somebody_removes_come_back_and_those_of_others_stay() {
    let site = Site::new();
    site.node.ip(&format!("addr add {}/32 dev lo", CLUSTER[0]));
    let running = Running::start(&site, config(&[]), snapshot());
    let said = site.dig(&format!("@{} +short web.default.svc.cluster.local", CLUSTER[0]));
    assert_eq!(said, "10.96.1.1\n", "the address was there already, and that is as good");
    site.node.ip(&format!("-6 route del local {} table local", CLUSTER[1]));
    // The next change of a node makes it look, and so does time.
    let mut changed = snapshot();
    changed.nodes.clear();
    running.publish(changed);
    wait::until("the route", Duration::from_secs(5), || {
        routes(&site).contains(&CLUSTER[1].to_owned()).then_some(()).ok_or("gone".to_owned())
    });
    drop(running);
    assert!(site.node.ip("addr show dev lo").contains(CLUSTER[0]), "not ours to remove");
}

#[test]
fn dns_37_before_the_first_list_our_names_fail_and_others_do_not() {
    let site = Site::new();
    let _upstream = Upstream::start(&site.outside, &[OUTSIDE[0].parse().unwrap()]);
    let mut early = snapshot();
    early.synced.slices = false;
    let running = Running::begin(&site, config(&[OUTSIDE[0]]), early);
    running
        .until("waiting", |state| matches!(state, State::Waiting(why) if why.contains("listed")));
    for address in CLUSTER {
        for by in ["+notcp", "+tcp"] {
            let said = site.dig(&format!("@{address} {by} nope.default.svc.cluster.local"));
            assert!(said.contains("status: SERVFAIL"), "{said}");
            assert!(said.contains("EDE: 14 (Not Ready)"), "{said}");
            let said = site.dig(&format!("@{address} {by} +short www.example.org"));
            assert_eq!(said, "192.0.2.80\n");
        }
    }
    running.publish(snapshot());
    running.until("ready", |state| *state == State::Ready);
    let said = site.dig(&format!("@{} nope.default.svc.cluster.local", CLUSTER[0]));
    assert!(said.contains("status: NXDOMAIN"), "{said}");
}

#[test]
fn dns_68_dns_69_services_come_and_go() {
    let site = Site::new();
    let running = Running::start(&site, config(&[]), snapshot());
    let ask = || site.dig(&format!("@{} new.default.svc.cluster.local", CLUSTER[1]));
    assert!(ask().contains("status: NXDOMAIN"));
    let mut with: Snapshot = snapshot();
    add(&mut with, service("new", &["10.96.9.9"]), &[]);
    let without = {
        let mut without = with.clone();
        without.services.remove(&ObjectKey::new("default", "new"));
        without
    };
    let until = |text: &str| {
        timed(|| {
            wait::until(text, Duration::from_secs(5), || {
                let said = ask();
                said.contains(text).then_some(()).ok_or(said)
            });
        })
        .0
    };
    running.publish(with);
    // The limit is 100 ms after the event; starting dig takes its share of this, but less than the
    // five seconds for which an answer of a cache would stay.
    assert!(until("10.96.9.9") < Duration::from_secs(3));
    running.publish(without);
    assert!(until("status: NXDOMAIN") < Duration::from_secs(3));
}

#[test]
fn dns_70_a_namespace_goes_with_its_last_service() {
    let site = Site::new();
    let running = Running::start(&site, config(&[]), snapshot());
    let ask = |address: &str, name: &str| site.dig(&format!("@{address} {name} A"));
    for address in CLUSTER {
        assert!(ask(address, "default.svc.cluster.local").contains("status: NOERROR"));
    }
    running.publish(Snapshot { synced: Synced::ALL, ..Snapshot::default() });
    for address in CLUSTER {
        for name in ["default.svc.cluster.local", "10-244-1-7.default.pod.cluster.local"] {
            wait::until("no such name", Duration::from_secs(5), || {
                let said = ask(address, name);
                if said.contains("status: NXDOMAIN") { Ok(()) } else { Err(said) }
            });
        }
    }
}

#[test]
fn dns_75_what_is_under_way_is_answered_before_the_end() {
    let site = Site::new();
    for (address, server) in CLUSTER.iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let running = Running::start(&site, config(&[server]), snapshot());
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| site.dig(&format!("@{address} +short held.example.org A")));
            wait::until("the question", Duration::from_secs(5), || {
                match upstream.times_asked("held.example.org.") {
                    0 => Err("not asked".to_owned()),
                    _ => Ok(()),
                }
            });
            running.tell_to_stop();
            // Who asks now is not kept waiting for those who wait.
            wait::until("somebody to be refused", Duration::from_secs(5), || {
                let said = site.dig(&format!("@{address} +short web.default.svc.cluster.local"));
                if said.contains("connection refused") { Ok(()) } else { Err(said) }
            });
            upstream.release();
            assert_eq!(asking.join().unwrap(), "192.0.2.80\n");
        });
    }
}

#[test]
fn dns_76_the_serial_says_whether_names_changed() {
    let site = Site::new();
    let running = Running::start(&site, config(&[]), snapshot());
    let serial = |address: &str| -> u64 {
        let said = site.dig(&format!("@{address} +short cluster.local SOA"));
        said.split_whitespace().nth(2).and_then(|text| text.parse().ok()).expect("a serial")
    };
    let before = serial(CLUSTER[0]);
    // Another node is no name; another Service is.
    let mut other = snapshot();
    other.nodes.clear();
    running.publish(other.clone());
    add(&mut other, service("new", &["10.96.9.9"]), &[]);
    assert_eq!(serial(CLUSTER[1]), before);
    running.publish(other);
    wait::until("the next serial", Duration::from_secs(5), || match serial(CLUSTER[1]) {
        now if now == before + 1 => Ok(()),
        now => Err(format!("{before} {now}")),
    });
    assert_eq!(serial(CLUSTER[0]), before + 1);
}

/// A pod of this node has its verified name as long as it has its address, and without a Service.
#[test]
fn dns_25_dns_76_verified_names_of_this_nodes_pods_come_and_go() {
    let site = Site::new();
    let verified = Config { pod_names: PodNames::Verified, ..config(&[]) };
    let running = Running::start(&site, verified, snapshot());
    let addresses = POD.map(|address| address.parse().unwrap());
    let serial = |address: &str| -> u64 {
        let said = site.dig(&format!("@{address} +short cluster.local SOA"));
        said.split_whitespace().nth(2).and_then(|text| text.parse().ok()).expect("a serial")
    };
    let names = [("10-244-1-7", "A"), ("fd00-244-0-1--7", "AAAA")];
    let are = |expected: &[&str; 2]| {
        for address in CLUSTER {
            for by in ["+notcp", "+tcp"] {
                for ((name, kind), expected) in names.into_iter().zip(expected) {
                    let name = format!("{name}.default.pod.cluster.local");
                    let said = site.dig(&format!("@{address} {by} {name} {kind}"));
                    assert!(said.contains(expected), "{said}");
                }
            }
        }
    };
    let before = serial(CLUSTER[0]);
    are(&["status: NXDOMAIN"; 2]);
    running.local_pods.add(&addresses, "default");
    are(&POD);
    assert_eq!(serial(CLUSTER[1]), before + 2);
    running.local_pods.remove(&addresses);
    are(&["status: NXDOMAIN"; 2]);
    assert_eq!(serial(CLUSTER[0]), before + 4);
}

#[test]
fn a_port_in_use_is_said_and_taken_once_it_is_free() {
    let site = Site::new();
    site.node.ip(&format!("addr add {}/32 dev lo", CLUSTER[0]));
    let other = site.node.run(|| UdpSocket::bind((CLUSTER[0], 53)).unwrap());
    let running = Running::begin(&site, config(&[]), snapshot());
    let state = running.until("degraded", |state| matches!(state, State::Degraded(_)));
    let State::Degraded(why) = state else { unreachable!() };
    assert!(why.contains("UDP 10.96.0.10:53 is in use"), "{why}");
    assert!(why.contains("--dns=false"), "the remedy: {why}");
    let said = site.dig(&format!("@{} +short web.default.svc.cluster.local", CLUSTER[1]));
    assert_eq!(said, "10.96.1.1\n", "the other addresses are served");
    drop(other);
    running.until("ready", |state| *state == State::Ready);
    let said = site.dig(&format!("@{} +short web.default.svc.cluster.local", CLUSTER[0]));
    assert_eq!(said, "10.96.1.1\n");
}

#[test]
fn dns_65_dns_66_an_upstream_that_is_ourselves_is_said_and_not_asked() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let _upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let running = Running::begin(&site, config(&[address, server]), snapshot());
        let state = running.until("degraded", |state| matches!(state, State::Degraded(_)));
        let State::Degraded(why) = state else { unreachable!() };
        let ourselves = SocketAddr::new(address.parse().unwrap(), 53);
        assert!(why.contains(&format!("{ourselves} is this resolver itself")), "{why}");
        let said = site.dig(&format!("@{address} www.example.org"));
        assert!(said.contains("192.0.2.80"), "{said}");
        assert!(query_time(&said) < Duration::from_millis(800), "{said}");
    }
}
