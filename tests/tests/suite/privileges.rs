//! The agent with the rights that its manifest gives it: it works with exactly these, and each is
//! there for something. Needs root.

use std::{collections::BTreeSet, fs, net::SocketAddr};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use mizzen_agent::kube::watch;
use mizzen_tests::{
    actor::{Actor, Socket},
    echo::{Echo, Transport, ask},
    lab::{FAMILIES, Family, POD_PORT},
    wait,
};
use serde_json::Value;
use xtask::deploy::privileges::{CAPABILITIES, RULES};

use super::{
    dns::field::{Agent, Field, Host, LIMIT, METRICS, binary, on},
    migrate::shop,
};

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
    // The others are for the sockets of other processes: see below.
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

/// A user who is not root.
const NOBODY: u32 = 65_534;
/// What waits for something that can't come any more is told (Linux' `ECONNABORTED`).
const ABORTED: i32 = 103;

/// Makes the Service `shop`, and waits until the node leads to it.
fn open_shop(field: &Field, host: &Host) -> [SocketAddr; 2] {
    let client = field.client.clone();
    let vips = on(&field.runtime, async move { shop(&client).await });
    for vip in vips {
        wait::until("the Service to be there", LIMIT, || {
            ask(&host.pod, Transport::Udp, vip).map(drop).map_err(|error| error.to_string())
        });
    }
    vips
}

/// Deletes it with its endpoints.
fn close_shop(field: &Field) {
    let client = field.client.clone();
    on(&field.runtime, async move {
        let (services, slices): (Api<Service>, Api<EndpointSlice>) =
            (Api::default_namespaced(client.clone()), Api::default_namespaced(client));
        services.delete("shop", &DeleteParams::default()).await.unwrap();
        let of_shop = ListParams::default().labels("kubernetes.io/service-name=shop");
        slices.delete_collection(&DeleteParams::default(), &of_shop).await.unwrap();
    });
}

/// Processes of the node and of its pod that are nobody's, with datagram sockets that were led to
/// the endpoint of the Service, in both families.
fn dial(host: &Host, vips: [SocketAddr; 2]) -> Vec<(Actor, Vec<Socket>)> {
    let mut actors = [host.node.actor(), host.in_pod()];
    for actor in &mut actors {
        actor.become_user(NOBODY);
    }
    let dialled = actors.into_iter().map(|mut actor| {
        let sockets = ["udp4", "udp6"].into_iter().zip(vips).map(|(kind, vip)| {
            let socket = actor.open(kind);
            actor.connect(socket, vip).unwrap();
            actor.send(socket, "?");
            assert!(actor.receive(socket).starts_with("pod-2"), "{vip}");
            socket
        });
        let sockets = sockets.collect();
        (actor, sockets)
    });
    dialled.collect()
}

/// The agent's count of endpoints whose sockets it could not look for.
fn not_looked_for(host: &Host) -> u64 {
    let (_, text) = host.http(METRICS, "/metrics").unwrap();
    let name = "mizzen_socket_destroy_failures_total ";
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// The Service is deleted under sockets of processes that don't run as root. Each is told, but where
/// the agent may not look whose they are.
#[test]
fn without_the_rights_to_look_into_processes_their_sockets_are_left_alone() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let serve = |family: &Family| {
        Echo::start(&other.pod, SocketAddr::new(family.pod(2, 7), POD_PORT), "pod-2")
    };
    let _servers: Vec<_> = FAMILIES.iter().map(serve).collect();
    for missing in [None, Some("DAC_READ_SEARCH"), Some("SYS_PTRACE")] {
        let has = CAPABILITIES.iter().map(|it| it.name).filter(|name| Some(*name) != missing);
        let agent = start(&field, host, &has.collect::<Vec<_>>());
        let vips = open_shop(&field, host);
        let mut dialled = dial(host, vips);
        close_shop(&field);
        if let Some(missing) = missing {
            wait::until(&format!("sockets to be looked for without {missing}"), LIMIT, || {
                let (parts, failures) = (unwell(host), not_looked_for(host));
                let is_told = parts.iter().any(|part| {
                    part.contains("resets") && part.contains(&format!("the capability {missing}"))
                });
                let both = is_told && failures >= 2;
                if both { Ok(()) } else { Err(format!("{parts:?} {failures} {}", agent.log())) }
            });
        }
        for (actor, sockets) in &mut dialled {
            for socket in sockets.iter().copied() {
                if missing.is_some() {
                    actor.send(socket, "?");
                    continue;
                }
                wait::until("the socket to be told", LIMIT, || {
                    actor.begin_receive(socket);
                    match actor.received() {
                        Err(error) if error.raw_os_error() == Some(ABORTED) => Ok(()),
                        other => Err(format!("{other:?} {}", agent.log())),
                    }
                });
            }
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
