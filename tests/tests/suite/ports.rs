//! The agent's ports: beside a program that has them, as a kube-proxy that it is to take the place
//! of, after another agent, which gives them, and what load balancers are told at them. Needs root.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    process::Command,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client, api::PostParams};
use mizzen_tests::{
    lab::{FAMILIES, Family},
    wait,
};
use serde_json::{Value, json};

use super::dns::field::{Field, Host, LIMIT, METRICS, binary, on};

const HEALTH_PORT: u16 = 10256;

/// Has both ports of a node as kube-proxy does.
fn stand_in(host: &Host) -> [TcpListener; 2] {
    let health = SocketAddr::from((Ipv6Addr::UNSPECIFIED, HEALTH_PORT));
    host.node.netns.run(|| [health, METRICS].map(|at| TcpListener::bind(at).unwrap()))
}

/// The parts of the agent that are not ready, and how the ports are.
fn parts(host: &Host) -> (Vec<String>, String) {
    let (_, said) = host.mizzen(&["status", "-o", "json"]);
    let status: Value = serde_json::from_str(&said).unwrap_or_default();
    let parts = status["parts"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let unwell = parts.iter().filter(|part| part["state"] != "ready");
    let unwell = unwell.map(|part| text(&part["name"])).collect();
    let ports = parts.iter().find(|part| part["name"] == "ports");
    let said = ports.map(|part| format!("{}: {}", text(&part["state"]), text(&part["reason"])));
    (unwell, said.unwrap_or_default())
}

fn until_without_ports(host: &Host, log: impl Fn() -> String) {
    wait::until("all but the ports to be ready", LIMIT, || match parts(host) {
        (unwell, said) if unwell == ["ports"] && said.starts_with("degraded") => {
            for word in ["10256", "10249", "kube-proxy"] {
                assert!(said.contains(word), "{said}");
            }
            Ok(())
        }
        other => Err(format!("{other:?} {}", log())),
    });
}

/// Whether a probe of a container succeeds, as one of the agent's or of another container.
fn probe(host: &Host, verb: &str, by: &[&str]) -> bool {
    let agent = binary("mizzen-agent");
    let words = [by, &[&agent, verb, "--state-dir"]].concat();
    let mut command: Command = host.node.netns.command(words[0]);
    command.args(&words[1..]).arg(host.state()).output().unwrap().status.success()
}

#[test]
fn an_agent_serves_while_kube_proxy_has_its_ports_and_takes_them_when_that_ends() {
    let field = Field::new();
    let host = &field.hosts[0];
    assert!(!probe(host, "live", &[]), "no agent runs");
    let theirs = stand_in(host);
    let mut before = field.begin(host, &[]);
    until_without_ports(host, || before.log());
    assert!(probe(host, "ready", &[]) && probe(host, "live", &[]), "{}", before.log());
    // A roll-out meanwhile; the container that rests is alive as the one that goes on is.
    let agent = field.begin(host, &[]);
    assert!(before.ended().success(), "{}", agent.log());
    until_without_ports(host, || agent.log());
    let another = ["unshare", "--mount"];
    assert!(probe(host, "live", &another) && !probe(host, "ready", &another), "{}", agent.log());

    drop(theirs);
    agent.until_ready(host);
    wait::until("the health port", LIMIT, || {
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            for path in ["/healthz", "/livez"] {
                let (code, said) = host.http(SocketAddr::new(ip, HEALTH_PORT), path)?;
                if code != 200 {
                    return Err(said);
                }
            }
        }
        Ok(())
    });
    assert_eq!(parts(host).1, "ready: ");
    drop(agent);
    assert!(!probe(host, "live", &[]), "an agent that is killed answers no more");
}

/// What the health port says, by both families: the same.
fn health(host: &Host, path: &str) -> Result<u16, String> {
    let ask = |ip| host.http(SocketAddr::new(ip, HEALTH_PORT), path);
    let (v4, v6) = (ask(Ipv4Addr::LOCALHOST.into())?, ask(Ipv6Addr::LOCALHOST.into())?);
    if v4.0 == v6.0 { Ok(v4.0) } else { Err(format!("{v4:?} {v6:?}")) }
}

/// The API server is away: load balancers go on with a node whose tables an agent before filled, and
/// use none that has none.
#[test]
fn f21_an_agent_that_is_killed_keeps_its_node_in_load_balancers_and_a_new_node_waits() {
    let mut field = Field::new();
    let served = field.agent(&field.hosts[0], &[]);
    wait::until("load balancers to use the node", LIMIT, || {
        match health(&field.hosts[0], "/healthz") {
            Ok(200) => Ok(()),
            other => Err(format!("{other:?} {}", served.log())),
        }
    });
    field.stop_server();
    drop(served);
    for (host, balanced) in field.hosts.iter().zip([200, 503]) {
        let agent = field.begin(host, &[]);
        agent.until_logged("started");
        wait::until("the health port", LIMIT, || health(host, "/livez").map(drop));
        let codes = ["/healthz", "/livez"].map(|path| health(host, path));
        assert_eq!(codes, [Ok(balanced), Ok(200)], "{}", agent.log());
        assert_ne!(host.http(METRICS, "/readyz").unwrap().0, 200, "nothing is known");
    }
}

/// Where kube-proxy stays, load balancers ask it.
#[test]
fn an_agent_without_services_leaves_the_health_port_to_kube_proxy() {
    let field = Field::new();
    let host = &field.hosts[0];
    let agent = field.agent(host, &["--services=false"]);
    let health = SocketAddr::from((Ipv6Addr::UNSPECIFIED, HEALTH_PORT));
    let bound = host.node.netns.run(|| TcpListener::bind(health));
    assert!(bound.is_ok(), "{bound:?} {}", agent.log());
}

/// The health check port of the service below.
const SERVICE_PORT: u16 = 32100;

/// A service that load balancers ask `node-1` about, with an endpoint there.
async fn balanced(client: Client) {
    let service = json!({
        "metadata": {"name": "balanced"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": SERVICE_PORT, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": 80}],
        },
    });
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service = serde_json::from_value(service).unwrap();
    services.create(&PostParams::default(), &service).await.unwrap();
    let slice = json!({
        "metadata": {
            "name": "balanced-1", "labels": {"kubernetes.io/service-name": "balanced"},
        },
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{
            "addresses": [Family::V4.pod(1, 7)], "nodeName": "node-1",
            "conditions": {"ready": true},
        }],
    });
    let slices: Api<EndpointSlice> = Api::default_namespaced(client);
    let slice = serde_json::from_value(slice).unwrap();
    slices.create(&PostParams::default(), &slice).await.unwrap();
}

/// What load balancers and Prometheus ask.
fn asked_all_along() -> Vec<(SocketAddr, &'static str)> {
    let of_node = |port| FAMILIES.map(|family| SocketAddr::new(family.wire(11), port));
    let health = of_node(HEALTH_PORT).map(|at| (at, "/healthz"));
    let service = of_node(SERVICE_PORT).map(|at| (at, "/"));
    health.into_iter().chain(service).chain([(METRICS, "/metrics")]).collect()
}

/// Asks again and again until `done`, and counts good answers; what was not one.
fn ask(
    host: &Host,
    (at, path): (SocketAddr, &str),
    done: &AtomicBool,
    answered: &AtomicUsize,
) -> Vec<String> {
    let mut failures = Vec::new();
    while !done.load(Ordering::Relaxed) {
        match host.http(at, path) {
            Ok((200, _)) => _ = answered.fetch_add(1, Ordering::Relaxed),
            other => failures.push(format!("{at}{path}: {other:?}")),
        }
    }
    failures
}

#[test]
fn nobody_who_asks_for_health_or_metrics_is_refused_in_a_roll_out() {
    let field = Field::new();
    let host = &field.hosts[0];
    on(&field.runtime, balanced(field.client.clone()));
    let mut agent = field.agent(host, &[]);
    let asked = asked_all_along();
    for (at, path) in &asked {
        wait::until("the ports", LIMIT, || match host.http(*at, path) {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{at}{path} {other:?}")),
        });
    }
    let done = AtomicBool::new(false);
    let answered: Vec<_> = asked.iter().map(|_| AtomicUsize::new(0)).collect();
    let counts = || answered.iter().map(|one| one.load(Ordering::Relaxed)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let (told, failed) = mpsc::channel();
        for (of, answered) in asked.iter().zip(&answered) {
            let (told, done) = (told.clone(), &done);
            scope.spawn(move || told.send(ask(host, *of, done, answered)));
        }
        drop(told);
        let end = Done(&done);
        for _ in 0..2 {
            agent = field.agent_after_with(host, &mut agent, &[]);
            let before = counts();
            wait::until("answers by the next agent", LIMIT, || {
                let now = counts();
                let more = before.iter().zip(&now).all(|(before, now)| *now > before + 2);
                if more { Ok(()) } else { Err(format!("{before:?} {now:?}")) }
            });
        }
        drop(end);
        let failures: Vec<_> = failed.iter().flatten().collect();
        assert!(failures.is_empty(), "{failures:#?}\n{}", agent.log());
    });
}

/// Says at its end, also when a test fails, that those who ask are to end.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
