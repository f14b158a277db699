//! Sockets that stay connected to cluster DNS, of a pod and of the node itself, and the program of its
//! loopback interface, which leads the node's to other resolvers while its own is away (ADR 45).

use std::{
    fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    path::PathBuf,
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, api::DeleteParams};
use mizzen_agent::{datapath::leads_at_loopback, dns::addresses::ROUTE_PROTOCOL};
use mizzen_tests::{
    lab::FAMILIES,
    names::{Client, Line},
    netns::Netns,
    wait,
};
use nix::sys::signal::Signal;

use super::{
    field::{Agent, Field, Host, LIMIT, METRICS, NAME, dns, on},
    upgrade::{OTHERS_ANSWER, begin_without_server},
};

/// A socket that is connected to cluster DNS once, and asks by it to the end.
struct Connected<'a> {
    netns: &'a Netns,
    server: SocketAddr,
    line: Option<Line>,
    asked: u16,
}

/// One of each family, which have heard an answer.
fn connected(netns: &Netns) -> Vec<Connected<'_>> {
    let connect = |family| {
        let mut socket = Connected { netns, server: dns(family), line: None, asked: 0 };
        socket.ask(0).expect("an answer");
        socket
    };
    FAMILIES.map(connect).into()
}

impl Connected<'_> {
    /// Asks, and again so many times where no answer comes.
    fn ask(&mut self, retries: u32) -> io::Result<()> {
        let Self { netns, server, line, asked } = self;
        *asked += 10;
        let client = Client::new("udp-stays", *server, NAME, retries);
        netns.run(|| client.ask(*asked, line))
    }

    /// Where its datagrams come from.
    fn local(&self) -> SocketAddr {
        match &self.line {
            Some(Line::Udp(socket)) => socket.local_addr().unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// All are answered at once, time and again, by the sockets that they have.
fn all_are_answered(sockets: &mut [Connected<'_>], logs: &[&Agent]) {
    for socket in sockets {
        let local = socket.local();
        for _ in 0..5 {
            if let Err(error) = socket.ask(0) {
                let logs: Vec<_> = logs.iter().map(|agent| agent.log()).collect();
                panic!("{local}: {error}\n{}", logs.join("\n--\n"));
            }
        }
        assert_eq!(socket.local(), local, "the same socket");
    }
}

/// All are answered, by the sockets that they have, when they ask again.
fn all_are_answered_by_a_retry(sockets: &mut [Connected<'_>]) {
    for socket in sockets {
        socket.ask(1).unwrap_or_else(|error| panic!("{}: {error}", socket.local()));
    }
}

/// How many questions a node's agent has answered.
fn answered(host: &Host) -> u64 {
    let (_, text) = host.http(METRICS, "/metrics").unwrap();
    let of = |line: &str| {
        line.strip_prefix("coredns_dns_responses_total{")?.split_once("} ")?.1.parse::<u64>().ok()
    };
    text.lines().filter_map(of).sum::<u64>()
}

/// A pod's, too: their flow to the other node ends when the node's own resolver is back, and does not
/// lead to one that has gone since.
#[test]
fn dns_73_connected_sockets_are_their_own_resolvers_again_when_it_is_back() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let mut others = field.agent(other, &[]);
    let mut agent = field.agent(host, &[]);
    let mut sockets = connected(&host.pod);
    sockets.extend(connected(&host.node.netns));
    agent.signal(Signal::SIGKILL);
    agent.ended();
    all_are_answered_by_a_retry(&mut sockets);
    agent = field.agent(host, &[]);
    for socket in &mut sockets {
        wait::until("its own resolver", LIMIT, || {
            let before = answered(host);
            socket.ask(1).map_err(|error| error.to_string())?;
            if answered(host) > before { Ok(()) } else { Err(format!("{}", socket.local())) }
        });
    }
    others.signal(Signal::SIGKILL);
    others.ended();
    all_are_answered(&mut sockets, &[&agent]);
}

#[test]
fn dns_73_connected_sockets_of_the_node_are_answered_by_others_while_its_agent_is_away() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let mut others = field.agent(other, &[]);
    let mut agent = field.agent(host, &[]);
    let mut sockets = connected(&host.node.netns);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        agent.signal(signal);
        agent.ended();
        all_are_answered_by_a_retry(&mut sockets);
        all_are_answered(&mut sockets, &[&others]);
        agent = field.agent(host, &[]);
        all_are_answered(&mut sockets, &[&agent]);
    }
    // By its own: there is no other.
    others.signal(Signal::SIGKILL);
    others.ended();
    all_are_answered(&mut sockets, &[&agent]);
    // And when there is none at all they are told: by the other node's stack.
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        agent.signal(signal);
        agent.ended();
        for socket in &mut sockets {
            let refused = socket.ask(0).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{}", socket.local());
        }
        agent = field.agent(host, &[]);
        all_are_answered(&mut sockets, &[&agent]);
    }
}

/// Its predecessor's sockets are there and nobody reads them: they are made deaf.
#[test]
fn dns_73_connected_sockets_of_the_node_are_answered_by_others_while_its_agent_knows_nothing() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let _other = field.agent(other, &[]);
    let mut agent = field.agent(host, &[]);
    let mut sockets = connected(&host.node.netns);
    let waits = begin_without_server(&field, host);
    agent.until_logged("another agent has the sockets");
    waits.until_logged(OTHERS_ANSWER);
    agent.signal(Signal::SIGKILL);
    agent.ended();
    waits.until_logged("this agent serves by the sockets of the one before");
    all_are_answered_by_a_retry(&mut sockets);
    all_are_answered(&mut sockets, &[&waits]);
    drop(waits);
    all_are_answered_by_a_retry(&mut sockets);
    // One that starts without sockets to take over leaves the addresses to others as well.
    let waits = begin_without_server(&field, host);
    waits.until_logged(OTHERS_ANSWER);
    all_are_answered(&mut sockets, &[&waits]);
    drop(waits);
    let agent = field.agent(host, &[]);
    all_are_answered(&mut sockets, &[&agent]);
}

/// Where nobody can be asked they are refused, as by any port at which nobody listens.
#[test]
fn connected_sockets_of_the_node_are_refused_where_the_tables_lead_nowhere() {
    let field = Field::new();
    let host = &field.hosts[0];
    let client = field.client.clone();
    on(&field.runtime, async move {
        let slices: Api<EndpointSlice> = Api::namespaced(client, "kube-system");
        for name in ["kube-dns-ipv4", "kube-dns-ipv6"] {
            slices.delete(name, &DeleteParams::default()).await.unwrap();
        }
    });
    let mut agent = field.agent(host, &[]);
    let mut sockets = connected(&host.node.netns);
    agent.signal(Signal::SIGKILL);
    agent.ended();
    for socket in &mut sockets {
        let refused = socket.ask(0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{}", socket.local());
    }
}

/// The pin of the link at the loopback interface.
fn pin(host: &Host) -> Option<PathBuf> {
    let layouts = fs::read_dir(host.node.bpffs()).unwrap();
    let pins = layouts.map(|layout| layout.unwrap().path().join("links/tc_loopback_egress-1"));
    pins.into_iter().find(|pin| pin.exists())
}

#[test]
fn the_program_of_the_loopback_interface_is_there_with_the_resolver_and_is_put_back() {
    let field = Field::new();
    let host = &field.hosts[0];
    let mut agent = field.agent(host, &[]);
    fs::remove_file(pin(host).expect("a pin")).unwrap();
    wait::until("the program", LIMIT, || pin(host).map(drop).ok_or_else(|| agent.log()));
    let (_, said) = host.mizzen(&["check"]);
    assert!(said.contains("ok    packets"), "{said}");
    let bpffs = host.node.bpffs();
    let leads = || host.node.netns.run(|| leads_at_loopback(&bpffs));
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        agent.signal(signal);
        agent.ended();
        assert!(pin(host).is_some() && leads(), "{signal}: it stays without an agent");
        assert_eq!(addresses(host), 4, "{signal}: and so do the addresses");
        agent = field.agent(host, &[]);
    }
    agent.signal(Signal::SIGTERM);
    agent.ended();
    // Whoever answers for cluster DNS from now on, this program is none of its.
    let mut without = field.agent(host, &["--dns=false"]);
    assert_eq!(pin(host), None, "{}", without.log());
    assert!(!leads());
    assert_eq!(addresses(host), 0, "{}", without.log());
    let (_, said) = host.mizzen(&["check"]);
    assert!(said.contains("ok    packets"), "{said}");
    without.signal(Signal::SIGTERM);
    without.ended();
    // Where nothing leads elsewhere they are the agent's, and go with it.
    let mut alone = field.agent(host, &["--services=false"]);
    assert_eq!(addresses(host), 4, "{}", alone.log());
    alone.signal(Signal::SIGTERM);
    alone.ended();
    assert_eq!(addresses(host), 0, "{}", alone.log());
}

/// How many addresses the node has for its resolver.
fn addresses(host: &Host) -> usize {
    let netns = &host.node.netns;
    let of = |family| netns.ip(&format!("{family} route show table local proto {ROUTE_PROTOCOL}"));
    ["-4", "-6"].map(|family| of(family).lines().count()).iter().sum()
}
