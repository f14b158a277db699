//! The agent's ports: beside a program that has them, as a kube-proxy that it is to take the place
//! of, and what load balancers are told at them. Needs root.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    process::Command,
};

use mizzen_tests::wait;
use serde_json::Value;

use super::dns::field::{Field, Host, LIMIT, METRICS, binary};

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
