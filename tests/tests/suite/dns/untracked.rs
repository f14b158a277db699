//! Connection tracking, switched on in the node's namespace, never sees the resolver.

use std::{io::Write as _, net::UdpSocket, process::Stdio, time::Duration};

use mizzen_tests::{lab::FAMILIES, names::Client, netns::Netns, wait};
use nix::sys::signal::Signal;

use super::{
    field::{API_PORT, Field, NAME, UPSTREAM, dns},
    site::{CLUSTER, NODE_LOCAL, OUTSIDE, Running, Site, config, dig, snapshot},
    upstream::Upstream,
};

/// Rules that ask for the state of connections switch tracking on.
const TRACKING: &str = "
    table inet others {
        chain arriving { type filter hook prerouting priority 0; ct state new counter; }
        chain sent { type filter hook output priority 0; ct state new counter; }
    }";

fn nft(netns: &Netns, rules: &str) -> String {
    let mut command = netns.command("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("nft (nftables)");
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{rules}");
    String::from_utf8(output.stdout).unwrap()
}

/// The resolver's tables, as far as they are there.
fn ours(netns: &Netns) -> String {
    let families = ["ip", "ip6"].map(|family| {
        let mut command = netns.command("nft");
        let output = command.args(["list", "table", family, "mizzen-dns"]).output().expect("nft");
        String::from_utf8(output.stdout).unwrap()
    });
    families.concat()
}

/// What is tracked, a line each.
fn tracked(netns: &Netns) -> Vec<String> {
    let families = ["ipv4", "ipv6"].map(|family| {
        let output = netns.command("conntrack").args(["-L", "-f", family]).output();
        let output = output.expect("conntrack");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    });
    families.iter().flat_map(|said| said.lines()).map(str::to_owned).collect()
}

/// Whether an entry names an address of the resolver.
fn is_ours(entry: &str) -> bool {
    let addresses = CLUSTER.iter().chain(&NODE_LOCAL);
    addresses.clone().any(|address| {
        entry
            .split(' ')
            .any(|word| word.split_once('=').is_some_and(|(_, value)| value == *address))
    })
}

fn ask_all(site: &Site) {
    for netns in [&site.pod, &site.node] {
        for address in CLUSTER.iter().chain(&NODE_LOCAL) {
            for by in ["+notcp", "+tcp"] {
                let said = dig(netns, &format!("@{address} {by} +short www.example.org A"));
                assert_eq!(said, "192.0.2.80\n", "{address} {by}");
            }
        }
    }
}

#[test]
fn no_question_to_the_resolver_is_tracked_and_all_others_are() {
    let site = Site::new();
    nft(&site.node, TRACKING);
    let _upstreams =
        OUTSIDE.map(|address| Upstream::start(&site.outside, &[address.parse().unwrap()]));
    let running = Running::start(&site, config(&OUTSIDE[..1]), snapshot());
    ask_all(&site);
    let entries = tracked(&site.node);
    assert!(entries.iter().any(|entry| entry.contains(OUTSIDE[0])), "tracking is on: {entries:?}");
    let ours: Vec<_> = entries.iter().filter(|entry| is_ours(entry)).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    // Another port at the same address is not ours to hide: others may translate it.
    for (address, any) in CLUSTER.into_iter().zip(["0.0.0.0", "::"]) {
        site.node.run(|| {
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.send_to(b"to nobody", (address, 9)).unwrap();
        });
    }
    wait::until("the other ports", Duration::from_secs(5), || {
        let entries = tracked(&site.node);
        let seen =
            |address: &str| entries.iter().any(|entry| entry.contains(&format!("dst={address} ")));
        if CLUSTER.iter().all(|address| seen(address)) {
            Ok(())
        } else {
            Err(format!("{entries:?}"))
        }
    });
    drop(running);
}

/// The whole agent, whose programs lead pods and the node to it, in a node whose rules ask for states.
#[test]
fn no_question_is_tracked_where_the_whole_agent_runs() {
    let field = Field::new();
    let host = &field.hosts[0];
    let node = &host.node.netns;
    nft(node, TRACKING);
    let _agent = field.agent(host, &[]);
    for netns in [&host.pod, node] {
        for address in FAMILIES.map(|family| dns(family).ip().to_string()) {
            for by in ["+notcp", "+tcp"] {
                for _ in 0..3 {
                    let said = dig(netns, &format!("@{address} {by} {NAME} A"));
                    assert!(said.contains("status: NOERROR"), "{said}");
                }
            }
        }
    }
    let entries = tracked(node);
    let port = format!("dport={API_PORT} ");
    assert!(entries.iter().any(|entry| entry.contains(&port)), "tracking is on: {entries:?}");
    // Its own questions to others are as any.
    let outside = FAMILIES.map(|family| family.wire(UPSTREAM).to_string());
    let of_dns = |entry: &&String| {
        ["port=53 ", "port=8053 "].iter().any(|port| entry.contains(port))
            && !outside.iter().any(|address| entry.contains(&format!("dst={address} ")))
    };
    let of_dns: Vec<_> = entries.iter().filter(of_dns).collect();
    assert!(of_dns.is_empty(), "{of_dns:#?}");
}

/// While the agent is away and other nodes' resolvers answer: what the node's sockets ask and hear
/// passes the hooks of its own stack, and what is between the nodes none of them.
#[test]
fn no_question_of_the_node_is_tracked_while_others_answer() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let node = &host.node.netns;
    nft(node, TRACKING);
    let _other = field.agent(other, &[]);
    let mut agent = field.agent(host, &[]);
    let mut lines = FAMILIES.map(|family| {
        let client = Client::new("udp-stays", dns(family), NAME, 1);
        (client, None)
    });
    let mut ask = || {
        for (client, line) in &mut lines {
            for id in 1..4 {
                node.run(|| client.ask(id * 10, line)).expect("an answer");
            }
        }
    };
    ask();
    agent.signal(Signal::SIGKILL);
    agent.ended();
    ask();
    let entries = tracked(node);
    let port = format!("dport={API_PORT} ");
    assert!(entries.iter().any(|entry| entry.contains(&port)), "tracking is on: {entries:?}");
    let peers = FAMILIES.map(|family| family.wire(12).to_string());
    let led = |entry: &&String| {
        is_ours(entry) || peers.iter().any(|peer| entry.contains(&format!("={peer} ")))
    };
    let led: Vec<_> = entries.iter().filter(led).collect();
    assert!(led.is_empty(), "{led:#?}");
}

#[test]
fn rules_that_are_flushed_come_back_and_those_of_others_stay() {
    let site = Site::new();
    let running = Running::start(&site, config(&[]), snapshot());
    let written = ours(&site.node);
    for family in ["table ip mizzen-dns", "table ip6 mizzen-dns"] {
        assert!(written.contains(family), "{written}");
    }
    let mut nodes = snapshot();
    for damage in [
        "flush ruleset",
        "delete table ip6 mizzen-dns",
        "flush chain ip mizzen-dns to-resolver",
        "add rule ip mizzen-dns prerouting drop",
        "flush chain ip6 mizzen-dns output",
        "flush chain ip mizzen-dns to-resolver
         add rule ip mizzen-dns to-resolver counter
         add rule ip mizzen-dns to-resolver counter",
    ] {
        nft(&site.node, damage);
        nft(&site.node, TRACKING);
        // The next change of a node makes it look, and so does time.
        let all = snapshot().nodes;
        let none = nodes.nodes.is_empty();
        nodes.nodes = all.into_iter().filter(|_| none).collect();
        running.publish(nodes.clone());
        wait::until("the rules", Duration::from_secs(5), || match ours(&site.node) {
            now if now == written => Ok(()),
            now => Err(now),
        });
        let all = nft(&site.node, "list ruleset");
        assert!(all.contains("table inet others"), "{all}");
    }
}

#[test]
fn rules_stay_through_a_kill_and_go_in_the_end() {
    let site = Site::new();
    nft(&site.node, TRACKING);
    let others = nft(&site.node, "list ruleset");
    let listed = || nft(&site.node, "list ruleset");
    Running::start(&site, config(&[]), snapshot()).kill();
    assert!(listed().contains("table ip mizzen-dns"));
    let next = Running::start(&site, config(&[]), snapshot());
    assert_eq!(listed().matches("table ip mizzen-dns").count(), 1);
    drop(next);
    assert_eq!(listed(), others);
    Running::start(&site, config(&[]), snapshot()).kill();
    site.node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(mizzen_agent::dns::release()).unwrap();
    });
    assert_eq!(listed(), others, "an agent without the role removes them too");
}
