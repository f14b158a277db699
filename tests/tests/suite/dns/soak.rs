//! The fault tests of the resolver: upgrades and kills under questions, and large clusters.

use futures::StreamExt as _;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client, api::PostParams};
use mizzen_tests::{actor::Actor, lab::FAMILIES, soak::share};
use nix::sys::signal::Signal;
use serde_json::json;

use super::field::{Agent, Field, Host, NAME, dns, on};

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
            for slice in (number..slices).step_by(usize::try_from(services).unwrap()) {
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
    futures::stream::iter((0..services).map(of_service))
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
    // What CoreDNS would take for so many (its own formula), in octets.
    let objects = services + slices * SLICE;
    let bound = (objects / 1_000 + 54) << 20;
    let resident: u64 = host.metric("process_resident_memory_bytes").parse().unwrap();
    assert!(resident < bound, "{resident} of {bound} octets for {objects} objects");
}
