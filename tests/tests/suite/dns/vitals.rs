//! How the resolver says that it is: ready, stopping, cut off from the API server.

use std::net::{SocketAddr, TcpListener};

use k8s_openapi::api::core::v1::Service;
use kube::{Api, api::DeleteParams};
use mizzen_agent::{
    dns::{Config, vitals::Places},
    status::State,
};
use mizzen_tests::{
    lab::{FAMILIES, Family},
    wait,
};
use nix::sys::signal::Signal;

use super::{
    field::{API_PORT, Field, Host, LIMIT, NAME, dns, http, on},
    site::{CLUSTER, NODE_LOCAL, Running, Site, config, dig, snapshot},
};

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn says(host: &Host, family: Family, by: &str) -> String {
    dig(&host.pod, &format!("@{} {by} {NAME}", dns(family).ip()))
}

fn all_answered(host: &Host) {
    for family in FAMILIES {
        for by in ["+notcp", "+tcp"] {
            let said = says(host, family, by);
            assert!(said.contains("status: NOERROR") && said.contains("ANSWER: 1"), "{said}");
        }
    }
}

#[test]
fn dns_75_an_agent_that_is_told_to_stop_is_not_ready_and_answers_through_lameduck() {
    let field = Field::new();
    let host = &field.hosts[0];
    let mut agent = field.agent(host, &["--dns-lameduck-seconds", "60"]);
    let told = |port: u16, path: &str| {
        NODE_LOCAL.map(|address| host.http(at(address, port), path).map(|(status, _)| status))
    };
    assert_eq!(told(8181, "/ready"), [Ok(200), Ok(200)]);
    assert_eq!(told(8080, "/health"), [Ok(200), Ok(200)]);
    assert_eq!(told(8080, "/ready"), [Ok(404), Ok(404)]);
    let (_, text) = host.http(at(NODE_LOCAL[0], 9153), "/metrics").unwrap();
    assert!(text.contains("coredns_dns_requests_total"), "{text}");

    agent.signal(Signal::SIGTERM);
    wait::until("not ready", LIMIT, || match told(8181, "/ready") {
        [Ok(503), Ok(503)] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(told(8080, "/health"), [Ok(200), Ok(200)]);
    all_answered(host);
    // Told again it has no patience.
    agent.signal(Signal::SIGTERM);
    assert!(agent.ended().success());
    assert!(told(8080, "/health").iter().all(Result::is_err));
}

#[test]
fn a_port_that_another_has_is_said_and_taken_once_it_is_free() {
    let site = Site::new();
    site.node.ip(&format!("addr add {}/32 dev lo", NODE_LOCAL[0]));
    let other = site.node.run(|| TcpListener::bind((NODE_LOCAL[0], 9153)).unwrap());
    let metrics = NODE_LOCAL.map(|address| at(address, 9153)).into();
    let vitals = Places { metrics, ..Places::default() };
    let running = Running::begin(&site, Config { vitals, ..config(&[]) }, snapshot());
    let state = running.until("degraded", |state| matches!(state, State::Degraded(_)));
    let State::Degraded(why) = state else { unreachable!() };
    assert!(why.contains("TCP 169.254.20.10:9153 is in use"), "{why}");
    let said = site.dig(&format!("@{} +short web.default.svc.cluster.local", CLUSTER[0]));
    assert_eq!(said, "10.96.1.1\n");
    assert_eq!(http(&site.node, at(NODE_LOCAL[1], 9153), "/metrics").unwrap().0, 200);
    drop(other);
    running.until("ready", |state| *state == State::Ready);
    assert_eq!(http(&site.node, at(NODE_LOCAL[0], 9153), "/metrics").unwrap().0, 200);
}

#[test]
fn dns_71_dns_72_what_is_known_is_answered_while_the_api_server_is_away() {
    let mut field = Field::new();
    let agent = field.agent(&field.hosts[0], &[]);
    let stale = "mizzen_watch_stale_seconds{kind=\"services\"}";
    assert_eq!(field.hosts[0].metric(stale), "0.000");

    field.stop_server();
    let host = &field.hosts[0];
    let age = wait::until("a watch that fails", LIMIT, || {
        let age: f64 = host.metric(stale).parse().unwrap();
        if age > 0.0 { Ok(age) } else { Err(format!("{age}")) }
    });
    all_answered(host);
    for address in NODE_LOCAL {
        assert_eq!(host.http(at(address, 8181), "/ready").unwrap().0, 200);
    }
    assert!(host.metric(stale).parse::<f64>().unwrap() > age, "it grows");

    // What goes while nobody can say so is gone afterwards.
    let elsewhere = field.start_server(API_PORT + 1);
    on(&field.runtime, async move {
        let services: Api<Service> = Api::default_namespaced(elsewhere);
        services.delete("web", &DeleteParams::default()).await.unwrap();
    });
    all_answered(&field.hosts[0]);
    field.stop_server();
    field.start_server(API_PORT);
    let host = &field.hosts[0];
    for family in FAMILIES {
        wait::until("the name to vanish", LIMIT, || match says(host, family, "+notcp") {
            said if said.contains("status: NXDOMAIN") => Ok(()),
            said => Err(format!("{said}\n{}", agent.log())),
        });
    }
    assert_eq!(host.metric(stale), "0.000");
}
