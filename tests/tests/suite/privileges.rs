//! The agent with the rights that its manifest gives it: it works with exactly these, and each is
//! there for something. Needs root.

use std::{collections::BTreeSet, fs};

use mizzen_agent::kube::watch;
use mizzen_tests::wait;
use serde_json::Value;
use xtask::deploy::privileges::{CAPABILITIES, RULES};

use super::dns::field::{Agent, Field, Host, LIMIT};

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
    assert_eq!(with("patch"), BTreeSet::from(["nodes", "nodes/status"]));
    let known = ["get", "list", "patch", "watch"];
    assert!(RULES.iter().flat_map(|rule| rule.verbs).all(|verb| known.contains(verb)));
}
