//! The fault tests of the resolver: upgrades and kills under questions, large clusters, and an API
//! server that is away for long.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use futures::StreamExt as _;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client, api::PostParams};
use mizzen_tests::{
    actor::Actor,
    lab::FAMILIES,
    soak::{in_full, share},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    field::{API_PORT, Agent, Field, Host, LIMIT, NAME, dns, on},
    site::NODE_LOCAL,
};

const KINDS: [&str; 4] = ["udp", "udp-kept", "tcp", "tcp-kept"];

/// Questions a second of those that ask at a rate, all together.
const RATE: u32 = 5_000;

/// Clients that ask 5,000 questions a second together, in the host's pod and on the host itself.
fn steady_clients(host: &Host, retries: u32) -> Vec<(String, Actor)> {
    let mut clients = Vec::new();
    for family in FAMILIES {
        for (place, mut actor) in [("pod", host.in_pod()), ("node", host.node.actor())] {
            actor.rate_of_names(dns(family), NAME, RATE / 4, retries);
            clients.push((format!("rate {family:?} from the {place}"), actor));
        }
    }
    clients
}

/// Clients of every kind in the host's pod and on the host itself.
fn clients(host: &Host, retries: u32) -> Vec<(String, Actor)> {
    let mut clients = Vec::new();
    for family in FAMILIES {
        for kind in KINDS {
            for (place, mut actor) in [("pod", host.in_pod()), ("node", host.node.actor())] {
                actor.load_of_names(kind, dns(family), NAME, retries);
                clients.push((format!("{kind} {family:?} from the {place}"), actor));
            }
        }
        // One socket from the first question to the last, whoever answers. The node's own hears
        // nothing from an agent's end in order to the next one's start (ADR 45), other than of a
        // hand-over.
        let mut places = vec![("pod", host.in_pod())];
        if retries == 0 {
            places.push(("node", host.node.actor()));
        }
        for (place, mut actor) in places {
            actor.load_of_names("udp-stays", dns(family), NAME, retries);
            clients.push((format!("udp-stays {family:?} from the {place}"), actor));
        }
    }
    clients
}

/// Ends them; how many questions were answered: all.
fn check(clients: Vec<(String, Actor)>, agents: &[&Agent]) -> u64 {
    let mut answered = 0;
    for (what, mut actor) in clients {
        let load = actor.stop();
        let logs = || agents.iter().map(|agent| agent.log()).collect::<Vec<_>>().join("\n--\n");
        assert_eq!(load.failed, 0, "{what}: {load:?}\n{}", logs());
        assert!(load.done > 20, "{what}: {load:?}");
        answered += load.done;
    }
    answered
}

#[test]
fn dns_73_an_upgrade_loses_no_question() {
    let field = Field::new();
    let host = &field.hosts[0];
    let mut agent = field.agent(host, &[]);
    let clients = clients(host, 0);
    for _ in 0..share(60) {
        let next = field.agent_after(host, &mut agent);
        assert!(next.log().contains("taking over from it"), "{}", next.log());
        assert_eq!(host.metric("mizzen_map_writes_total"), "0", "nothing had changed");
        agent = next;
    }
    assert!(check(clients, &[&agent]) > 0);
}

/// An agent that is killed hands nothing over: its node's clients are answered by the others at
/// once, or when they ask again.
#[test]
fn dns_73_the_resolvers_of_other_nodes_answer_for_one_that_was_killed() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let _other = field.agent(other, &[]);
    let mut agent = field.agent(host, &[]);
    let clients = clients(host, 1);
    for signal in [Signal::SIGKILL, Signal::SIGTERM].repeat(usize::try_from(share(20)).unwrap()) {
        agent.signal(signal);
        agent.ended();
        for (place, mut actor) in [("pod", host.in_pod()), ("node", host.node.actor())] {
            for family in FAMILIES {
                for kind in ["udp", "tcp"] {
                    let asked = actor.ask_name(kind, dns(family), NAME, 1);
                    asked.unwrap_or_else(|error| panic!("{place} {kind} {signal}: {error}"));
                }
            }
        }
        agent = field.agent(host, &[]);
    }
    assert!(check(clients, &[&agent]) > 0);
}

#[test]
fn dns_73_at_5000_questions_a_second_an_upgrade_loses_none() {
    let field = Field::new();
    let host = &field.hosts[0];
    let mut agent = field.agent(host, &[]);
    let clients = steady_clients(host, 0);
    for _ in 0..share(40) {
        agent = field.agent_after(host, &mut agent);
    }
    let answered = check(clients, &[&agent]);
    println!("{answered} questions through {} upgrades", share(40));
}

#[test]
fn dns_73_at_5000_questions_a_second_a_kill_costs_one_retry() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let _other = field.agent(other, &[]);
    let mut agent = field.agent(host, &[]);
    let clients = steady_clients(host, 1);
    for signal in [Signal::SIGKILL, Signal::SIGTERM].repeat(usize::try_from(share(20)).unwrap()) {
        agent.signal(signal);
        agent.ended();
        agent = field.agent(host, &[]);
    }
    let answered = check(clients, &[&agent]);
    println!("{answered} questions through {} ends", 2 * share(20));
}

/// Endpoints of a slice, as the controller fills them.
const SLICE: u64 = 100;
/// Objects that are made at once.
const AT_ONCE: usize = 32;

/// Services, and slices of them.
async fn fill(client: Client, services: u64, slices: u64) {
    fill_between(client, 0..services, 0..slices).await;
}

/// The same of those with these numbers.
async fn fill_between(client: Client, services: Range<u64>, slices: Range<u64>) {
    let count = usize::try_from(services.end).unwrap();
    let (first, last) = (slices.start, slices.end);
    let of_service = move |number: u64| {
        let client = client.clone();
        async move {
            let name = format!("many-{number}");
            let object = json!({
                "metadata": {"name": name},
                "spec": {"ports": [{"port": 80}]},
            });
            let api: Api<Service> = Api::default_namespaced(client.clone());
            let object = serde_json::from_value(object).unwrap();
            api.create(&PostParams::default(), &object).await.unwrap();
            let api: Api<EndpointSlice> = Api::default_namespaced(client);
            for slice in (first + number..last).step_by(count) {
                let address = |last| format!("10.{}.{}.{last}", 128 + slice / 256, slice % 256);
                let endpoints: Vec<_> =
                    (0..SLICE).map(|last| json!({"addresses": [address(last)]})).collect();
                let object = json!({
                    "metadata": {
                        "name": format!("many-{slice}"),
                        "labels": {"kubernetes.io/service-name": name},
                    },
                    "addressType": "IPv4",
                    "ports": [{"port": 8080}],
                    "endpoints": endpoints,
                });
                let object = serde_json::from_value(object).unwrap();
                api.create(&PostParams::default(), &object).await.unwrap();
            }
        }
    };
    futures::stream::iter(services.map(of_service))
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
}

#[test]
fn dns_74_every_name_of_a_large_cluster_resolves_within_bounded_memory() {
    let (services, slices) = (share(10_000), share(150_000) / SLICE);
    let field = Field::new();
    let host = &field.hosts[0];
    let client = field.client.clone();
    on(&field.runtime, fill(client, services, slices));
    let _agent = field.agent(host, &["--services=false"]);
    every_name_resolves(host, services);
    is_bounded(host, services + slices * SLICE);
}

/// Asks for each Service by every family and transport.
fn every_name_resolves(host: &Host, services: u64) {
    for family in FAMILIES {
        let mut actor = host.in_pod();
        for number in 0..services {
            let name = format!("many-{number}.default.svc.cluster.local");
            for kind in ["udp", "tcp"] {
                let asked = actor.ask_name(kind, dns(family), &name, 0);
                asked.unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
            }
        }
    }
}

/// The agent takes less than CoreDNS would for so many objects (its own formula).
fn is_bounded(host: &Host, objects: u64) {
    let bound = (objects / 1_000 + 54) << 20;
    let resident: u64 = host.metric("process_resident_memory_bytes").parse().unwrap();
    assert!(resident < bound, "{resident} of {bound} octets for {objects} objects");
}

/// As long as it takes, no name is forgotten, the resolver says that it is ready,
/// and how old what it knows is; what came meanwhile is there once the API server is.
#[test]
fn dns_71_every_name_of_a_large_cluster_outlives_the_api_server() {
    const STALE: &str = "mizzen_watch_stale_seconds{kind=\"endpointslices\"}";
    let (services, slices) = (share(10_000), share(150_000) / SLICE);
    let mut field = Field::new();
    let client = field.client.clone();
    on(&field.runtime, fill(client, services, slices));
    let _agent = field.agent(&field.hosts[0], &["--services=false"]);
    field.stop_server();
    let host = &field.hosts[0];
    let age = || host.metric(STALE).parse::<f64>().unwrap();
    wait::until("the watch to fail", LIMIT, || match age() {
        age if age > 0.0 => Ok(()),
        age => Err(format!("{age}")),
    });
    // An hour in full; what a twentieth of that would show a quarter of a minute does.
    let (away, mut before) = (if in_full() { 3_600.0 } else { 15.0 }, 0.0);
    while before < away {
        every_name_resolves(host, services);
        for address in NODE_LOCAL {
            let ready = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 8181);
            assert_eq!(host.http(ready, "/ready").unwrap().0, 200);
        }
        let now = age();
        assert!(now > before, "{now} after {before}");
        before = now;
    }
    is_bounded(host, services + slices * SLICE);
    let again = field.start_server(API_PORT);
    on(&field.runtime, fill_between(again, services..services + 1, slices..slices));
    let host = &field.hosts[0];
    for family in FAMILIES {
        let name = format!("many-{services}.default.svc.cluster.local");
        wait::until("what came later", LIMIT, || {
            let asked = host.in_pod().ask_name("udp", dns(family), &name, 0);
            asked.map_err(|error| error.to_string())
        });
    }
    every_name_resolves(host, services + 1);
}
