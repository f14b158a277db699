//! The agent with the rights that its manifest gives it: it works with exactly these, and each is
//! there for something. Needs root.

use std::{collections::BTreeSet, fs};

use mizzen_agent::kube::watch;
use mizzen_tests::wait;
use serde_json::Value;
use xtask::deploy::privileges::{CAPABILITIES, RULES};

use super::dns::field::{Agent, Field, Host, LIMIT, binary};

/// How to become a program that has these capabilities alone.
fn with(capabilities: &[&str]) -> Vec<String> {
    let set = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase()));
    vec!["setpriv".into(), format!("--bounding-set=-all{}", set.collect::<String>())]
}

fn start(field: &Field, host: &Host, capabilities: &[&str]) -> Agent {
    let by = with(capabilities);
    let by: Vec<_> = by.iter().map(String::as_str).collect();
    field.begin_by(host, &by, &[])
}

/// The parts that are not as they should be, with the reason.
fn unwell(host: &Host) -> Vec<String> {
    let (_, said) = host.mizzen(&["status", "-o", "json"]);
    let status: Value = serde_json::from_str(&said).unwrap_or_default();
    let parts = status["parts"].as_array().cloned().unwrap_or_default();
    let unwell = parts.iter().filter(|part| part["state"] != "ready");
    unwell.map(|part| format!("{}: {}", part["name"], part["reason"])).collect()
}

#[test]
fn the_agent_works_with_the_capabilities_of_its_manifest_and_no_others() {
    let field = Field::new();
    let host = &field.hosts[0];
    let all: Vec<_> = CAPABILITIES.iter().map(|capability| capability.name).collect();
    let agent = start(&field, host, &all);
    agent.until_ready(host);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let count = u64::from_str_radix(effective.trim(), 16).unwrap().count_ones();
    assert_eq!(count as usize, all.len(), "{effective}");
    wait::until("every part to be ready", LIMIT, || match unwell(host) {
        parts if parts.is_empty() => Ok(()),
        parts => Err(format!("{parts:?}\n{}", agent.log())),
    });
    let (code, said) = host.mizzen(&["check"]);
    assert!(!said.contains("FAIL"), "{code:?}: {said}");
}

/// The sets of a process' threads, as the kernel prints them: those in force, those that a program
/// could have, and whether it may gain any.
fn rights(agent: &Agent) -> BTreeSet<[String; 3]> {
    let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let of = |text: String| {
        ["CapEff:", "CapBnd:", "NoNewPrivs:"].map(|name| {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap_or_default().trim().to_owned()
        })
    };
    texts.map(of).collect()
}

#[test]
fn an_agent_that_is_started_with_all_rights_keeps_those_of_its_roles() {
    let field = Field::new();
    // Bits of capability.h: 2, 10, 12, 19 and 21.
    let (all, dns) = ("0000000000281404", "0000000000001400");
    for (host, flags, rights_of) in [
        (&field.hosts[0], &["--services=true"][..], all),
        (&field.hosts[1], &["--services=false"][..], dns),
    ] {
        let agent = field.agent(host, flags);
        let expected = [rights_of, rights_of, "1"].map(str::to_owned);
        assert_eq!(rights(&agent), BTreeSet::from([expected]), "{flags:?} {}", agent.log());
        let (_, said) = host.mizzen(&["dns", "web.default.svc.cluster.local"]);
        assert!(said.contains("10.96."), "{said}");
    }
}

/// As the kernel loads them: at any address, nothing both writable and executable, and what the
/// loader fills in read-only before the program begins.
#[test]
fn binaries_are_hardened() {
    for name in ["mizzen-agent", "mizzen", "mizzen-cni", "mizzen-control-plane"] {
        let read = std::process::Command::new("readelf").args(["-hldW", &binary(name)]).output();
        let said = String::from_utf8(read.unwrap().stdout).unwrap();
        let has = |words: [&str; 2]| {
            said.lines().any(|line| words.into_iter().all(|word| line.contains(word)))
        };
        assert!(has(["Type:", "DYN (Position-Independent Executable file)"]), "{name}: {said}");
        assert!(has(["GNU_RELRO", " R "]), "{name}: {said}");
        assert!(has(["FLAGS_1", "NOW"]) || has(["FLAGS", "BIND_NOW"]), "{name}: {said}");
        assert!(has(["GNU_STACK", " RW "]) && !said.contains(" RWE "), "{name}: {said}");
    }
}

#[test]
fn without_a_capability_is_lost_what_the_manifest_says() {
    let field = Field::new();
    let host = &field.hosts[0];
    // The others are for the sockets of other processes: see the agent's `resets`.
    for (capability, ends, said) in [
        ("NET_ADMIN", true, "NET_ADMIN"),
        ("SYS_ADMIN", true, "SYS_ADMIN"),
        ("NET_BIND_SERVICE", false, "NET_BIND_SERVICE"),
    ] {
        let others: Vec<_> =
            CAPABILITIES.iter().map(|it| it.name).filter(|name| *name != capability).collect();
        assert_eq!(others.len() + 1, CAPABILITIES.len());
        let mut agent = start(&field, host, &others);
        if ends {
            assert!(!agent.ended().success(), "{capability}");
            assert!(agent.log().contains(said), "{capability}: {}", agent.log());
        } else {
            wait::until(&format!("what is lost without {capability}"), LIMIT, || {
                let parts = unwell(host);
                let told = parts.iter().any(|part| part.contains(said));
                if told { Ok(()) } else { Err(format!("{parts:?}\n{}", agent.log())) }
            });
        }
    }
}

#[test]
fn the_role_allows_what_the_agent_watches_and_nothing_more() {
    let watched = [
        &watch::SERVICES,
        &watch::ENDPOINT_SLICES,
        &watch::NODES,
        &watch::SERVICE_CIDRS,
        &watch::PODS,
        &watch::NAMESPACES,
    ];
    let watched: BTreeSet<_> = watched.iter().map(|kind| kind.plural).collect();
    let with = |verb: &str| -> BTreeSet<_> {
        let rules = RULES.iter().filter(|rule| rule.verbs.contains(&verb));
        rules.flat_map(|rule| rule.resources).copied().collect()
    };
    assert_eq!(with("watch"), watched);
    assert_eq!(with("list"), watched);
    assert_eq!(with("get"), BTreeSet::from(["nodes"]));
    assert_eq!(with("patch"), BTreeSet::from(["events", "nodes", "nodes/status"]));
    assert_eq!(with("create"), BTreeSet::from(["events"]));
    let known = ["create", "get", "list", "patch", "watch"];
    assert!(RULES.iter().flat_map(|rule| rule.verbs).all(|verb| known.contains(verb)));
}
