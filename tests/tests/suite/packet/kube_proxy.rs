//! Beside kube-proxy and after it: what its rules began goes on, and they can be removed.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    process::{Child, Stdio},
    time::Duration,
};

use mizzen_agent::{
    apply::maps::Maps as _,
    datapath::Adopted,
    migrate::{
        carry_out::{carry_out, verify},
        hold,
        leftovers::Leftovers,
        look::{Agent, Seen},
        plan::Plan,
    },
    netfilter,
};
use mizzen_ebpf_abi::{counters::Counter, node::cluster_range_flags::SERVICES};
use mizzen_tests::{
    echo::{Client, TRANSPORTS, Transport, ask},
    lab::{FAMILIES, Family, Lab},
    netns::{Netns, check},
    wait::until,
};

use super::{EXTERNAL, NODE_PORT, PORT, cluster_ip, node_port, sane};

/// The rules of kube-proxy's nftables mode for one service, as far as these packets meet them.
pub(crate) fn rules(
    family: Family,
    [vip, node_port]: [SocketAddr; 2],
    backend: SocketAddr,
) -> String {
    let (ip, kind) = if family == Family::V4 { ("ip", "ipv4") } else { ("ip6", "ipv6") };
    let (cluster_ip, node) = (vip.ip(), node_port.ip());
    let translate = |protocol: &str| {
        format!(
            "{ip} daddr {node} {protocol} dport {NODE_PORT} meta mark set 0x4000 dnat to {backend}\n"
        )
    };
    let known = |protocol: &str| format!("{cluster_ip} . {protocol} . {PORT} : goto of-{protocol}");
    let leads = |protocol: &str| {
        format!("chain of-{protocol} {{ meta l4proto {protocol} dnat to {backend}\n}}\n")
    };
    format!(
        "table {ip} kube-proxy {{\n{}{}\
         map service-ips {{ type {kind}_addr . inet_proto . inet_service : verdict;\n\
         elements = {{ {}, {} }}\n}}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat;\n\
         {ip} daddr . meta l4proto . th dport vmap @service-ips\n{}{}}}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat;\n\
         meta mark 0x4000 masquerade\n}}\n}}\n",
        leads("tcp"),
        leads("udp"),
        known("tcp"),
        known("udp"),
        translate("tcp"),
        translate("udp")
    )
}

/// kube-proxy's rules lead to the pod on the other node, Mizzen's tables to one on this node. What
/// kube-proxy's connections have stays theirs; what is new is Mizzen's, with the rules in place.
#[test]
fn b139_r11_connections_of_kube_proxys_rules_go_on_when_mizzen_takes_over() {
    let mut lab = Lab::new([2, 1]);
    let services = lab.nodes[0].tables.maps.node_tables().unwrap().cluster_ranges;
    let services = services.into_iter().filter(|(_, uses)| *uses == SERVICES);
    let services: Vec<_> = services.collect();
    let ranges: Vec<_> = services.iter().map(|(range, _)| *range).collect();
    for family in FAMILIES {
        lab.nodes[0].tables.maps.remove_cluster_ranges(&ranges).unwrap();
        let vip = SocketAddr::new(family.service(10), PORT);
        let port = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let theirs = lab.nodes[1].pods[0].server(family);
        nft(&lab.nodes[0].node.netns, &rules(family, [vip, port], theirs));
        let before = lab.nodes[0].counted(Counter::FlowCreated);
        let pod = &lab.nodes[0].pods[0].netns;
        let direct = Client::dial(pod, Transport::Tcp, theirs, 0).unwrap();
        let mut old = Vec::new();
        for transport in TRANSPORTS {
            for (from, to) in [(pod, vip), (&lab.client, port)] {
                let client = Client::dial(from, transport, to, 0).unwrap();
                assert_eq!(client.ask().unwrap().name, "pod-2-1", "{transport:?} {to}");
                old.push((transport, client));
            }
        }
        assert_eq!(lab.nodes[0].counted(Counter::FlowCreated), before, "kube-proxy's alone");

        let ours = lab.nodes[0].pods[1].server(family);
        lab.nodes[0].tables.maps.put_cluster_ranges(&services).unwrap();
        for transport in TRANSPORTS {
            cluster_ip(&mut lab.nodes[0], family, transport, &[ours]);
            node_port(&mut lab.nodes[0], family, transport, &[ours], EXTERNAL);
        }
        for _ in 0..3 {
            assert_eq!(direct.ask().unwrap().name, "pod-2-1");
            for (transport, client) in &old {
                // A datagram has nothing to go on with: it is a service's as it comes.
                let name = if *transport == Transport::Tcp { "pod-2-1" } else { "pod-1-2" };
                assert_eq!(client.ask().unwrap().name, name, "{family:?} {transport:?}");
            }
        }
        for transport in TRANSPORTS {
            for (from, to) in [(&lab.nodes[0].pods[0].netns, vip), (&lab.client, port)] {
                assert_eq!(ask(from, transport, to).unwrap().name, "pod-1-2", "{transport:?} {to}");
            }
        }
    }
    sane(&lab);
}

/// Feeds a program of netfilter's in a namespace.
fn feed(netns: &Netns, program: &str, arguments: &[&str], text: &str) {
    let mut command = netns.command(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().expect(program);
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}: {text}");
}

/// Loads rules in a namespace.
pub(crate) fn nft(netns: &Netns, rules: &str) {
    feed(netns, "nft", &["-f", "-"], rules);
}

/// The same of its iptables mode, with a rule of a kubelet's and one of the operator's beside it.
fn chains([vip, node_port]: [SocketAddr; 2], backend: SocketAddr) -> String {
    let (svc, sep) = ("KUBE-SVC-ABCDEFGHIJKLMNO1", "KUBE-SEP-ABCDEFGHIJKLMNO2");
    let (vip_ip, node) = (vip.ip(), node_port.ip());
    let of = |protocol: &str| {
        format!(
            "-A KUBE-SERVICES -d {vip_ip} -p {protocol} --dport {PORT} -j {svc}\n\
             -A KUBE-NODEPORTS -p {protocol} --dport {NODE_PORT} -j KUBE-MARK-MASQ\n\
             -A KUBE-NODEPORTS -p {protocol} --dport {NODE_PORT} -j {svc}\n\
             -A {sep} -p {protocol} -j DNAT --to-destination {backend}\n"
        )
    };
    let chains =
        ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", svc, sep];
    let made = chains.map(|name| format!(":{name} - [0:0]\n")).concat();
    format!(
        "*nat\n{made}\
         -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         {}{}-A KUBE-SERVICES -d {node} -j KUBE-NODEPORTS\n-A {svc} -j {sep}\n\
         -A PREROUTING -p tcp --dport 1 -j ACCEPT\nCOMMIT\n\
         *filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n\
         -A OUTPUT -j KUBE-FIREWALL\n-A FORWARD -j KUBE-FORWARD\n\
         -A KUBE-FIREWALL -p tcp --dport 1 -j DROP\n-A KUBE-FORWARD -j ACCEPT\nCOMMIT\n",
        of("tcp"),
        of("udp")
    )
}

/// A process that bears kube-proxy's name.
pub(crate) struct KubeProxy(Child, std::path::PathBuf);

impl KubeProxy {
    pub(crate) fn start(netns: &Netns) -> Self {
        let folder = std::env::temp_dir().join(format!("mizzen-{}", netns.name()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join("kube-proxy");
        // A copy could not be started while another thread's child has it open for writing.
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        Self(netns.command(program.to_str().unwrap()).arg("600").spawn().unwrap(), folder)
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _gone = (self.0.kill(), self.0.wait(), fs::remove_dir_all(&self.1));
    }
}

fn look(netns: &Netns) -> Seen {
    netns.run(|| Seen::now(Agent::Serves { node: "node-1".to_owned() })).unwrap()
}

pub(crate) fn listed(netns: &Netns) -> String {
    String::from_utf8(check(netns.command("nft").args(["list", "ruleset"])).stdout).unwrap()
}

/// What kube-proxy makes its rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Nftables,
    /// `iptables` that is nftables'.
    Iptables,
    /// `iptables-legacy`.
    Legacy,
}

impl Mode {
    /// Loads its rules on a node.
    fn load(self, node: &Netns, family: Family, to: [SocketAddr; 2], backend: SocketAddr) {
        let restore = match (self, family) {
            (Self::Nftables, _) => return nft(node, &rules(family, to, backend)),
            (Self::Iptables, Family::V4) => "iptables-restore",
            (Self::Iptables, Family::V6) => "ip6tables-restore",
            (Self::Legacy, Family::V4) => "iptables-legacy-restore",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-restore",
        };
        feed(node, restore, &["--noflush"], &chains(to, backend));
    }
}

/// Connections by kube-proxy's rules, in a mode of its; then Mizzen has the services too.
fn old_connections(lab: &mut Lab, family: Family, mode: Mode) -> Vec<Client> {
    let vip = SocketAddr::new(family.service(10), PORT);
    let port = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
    let theirs = lab.nodes[1].pods[0].server(family);
    let node = &lab.nodes[0].node.netns;
    mode.load(node, family, [vip, port], theirs);
    // The programs pass what is of no service of theirs.
    let maps = &mut lab.nodes[0].tables.maps;
    let ranges = maps.node_tables().unwrap().cluster_ranges;
    let ranges: Vec<_> = ranges.into_iter().filter(|(_, uses)| *uses == SERVICES).collect();
    let names: Vec<_> = ranges.iter().map(|(range, _)| *range).collect();
    maps.remove_cluster_ranges(&names).unwrap();
    let mut old = Vec::new();
    for (from, to) in [(&lab.nodes[0].pods[0].netns, vip), (&lab.client, port)] {
        for transport in TRANSPORTS {
            let client = Client::dial(from, transport, to, 0).unwrap();
            assert_eq!(client.ask().unwrap().name, "pod-2-1", "{transport:?} {to}");
            old.push(client);
        }
    }
    lab.nodes[0].tables.maps.put_cluster_ranges(&ranges).unwrap();
    // Of datagrams a backend that they have too, beside one that most new flows are led to.
    let ours = lab.nodes[0].pods[1].server(family);
    for (transport, backends) in
        [(Transport::Tcp, vec![ours]), (Transport::Udp, vec![ours, ours, ours, theirs])]
    {
        cluster_ip(&mut lab.nodes[0], family, transport, &backends);
        node_port(&mut lab.nodes[0], family, transport, &backends, EXTERNAL);
    }
    old
}

/// Nothing is planned but where no process of its name runs.
fn refused_while_it_runs(node: &Netns) {
    let running = KubeProxy::start(node);
    until("the process to have its name", Duration::from_secs(10), || {
        let obstacles = Plan::apply(&look(node), true).obstacles;
        let expected = format!("(process {})", running.0.id());
        if obstacles.iter().any(|obstacle| obstacle.what.contains(&expected)) {
            Ok(())
        } else {
            Err(format!("{obstacles:?}"))
        }
    });
}

/// Rules of somebody else's, with a set and a map of verdicts.
const OTHERS: &str = "\
table inet others {
    set ports { type inet_service; elements = { 1, 2 } }
    map ways { type inet_service : verdict; elements = { 3 : goto end } }
    chain end { drop comment \"of others\"
    }
    chain input { type filter hook input priority 5; policy accept;
        tcp dport @ports drop
        tcp dport vmap @ways
    }
}
";

/// All rules that are not kube-proxy's, with their numbers where they have some.
fn foreign(node: &Netns) -> Vec<String> {
    let said = |words: &[&str]| {
        let output = check(node.command(words[0]).args(&words[1..]));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut lines = vec![said(&["nft", "--handle", "list", "table", "inet", "others"])];
    let own = [
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-SVC-",
        "KUBE-SEP-",
        "KUBE-FORWARD",
    ];
    for program in
        ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"]
    {
        let saved = said(&[program]);
        let others = saved
            .lines()
            .filter(|line| !line.starts_with('#') && !own.iter().any(|name| line.contains(name)));
        // Without what was counted.
        lines.extend(others.map(|line| line.split(" [").next().unwrap().to_owned()));
    }
    lines
}

/// The rules go, and those of others stay, to the letter.
fn removed(node: &Netns, mode: Mode) {
    let has_others = mode != Mode::Nftables;
    nft(node, OTHERS);
    let before = foreign(node);
    assert_eq!(before.iter().any(|line| line.contains("KUBE-FIREWALL")), has_others, "{before:#?}");
    let plan = Plan::apply(&look(node), true);
    assert_eq!((plan.obstacles.len(), plan.steps.len()), (0, 2), "{plan:?}");
    let mut done = 0;
    node.run(|| carry_out(&plan, "".as_ref(), |_| done += 1)).unwrap();
    assert_eq!(done, 2);
    node.run(|| verify(Agent::Serves { node: String::new() })).unwrap();
    let left = format!("{}{}", listed(node), legacy(node));
    assert!(!left.contains("kube-proxy {") && !left.contains("KUBE-S"), "{left}");
    for others in ["KUBE-FIREWALL", "dport 1 "] {
        assert_eq!(left.contains(others), has_others, "{others}: {left}");
    }
    assert_eq!(foreign(node), before);
    assert!(Plan::apply(&look(node), true).is_done());
}

/// All rules of `iptables-legacy`, without what they counted.
fn legacy(node: &Netns) -> String {
    let saved = ["iptables-legacy-save", "ip6tables-legacy-save"]
        .map(|program| check(&mut node.command(program)).stdout);
    String::from_utf8(saved.concat()).unwrap()
}

/// What is new is Mizzen's.
fn new_connections(lab: &Lab, family: Family) {
    let (pod, vip) = (&lab.nodes[0].pods[0].netns, SocketAddr::new(family.service(10), PORT));
    assert_eq!(ask(pod, Transport::Tcp, vip).unwrap().name, "pod-1-2", "{family:?}");
    until("a new flow to lead to Mizzen's backend", Duration::from_secs(10), || {
        match ask(pod, Transport::Udp, vip).unwrap().name.as_str() {
            "pod-1-2" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
}

/// Tables as kube-proxy makes them before it knows a service are no reason for Mizzen to go.
#[test]
fn r11_rules_that_know_no_service_are_none() {
    let netns = Netns::new("empty");
    let serves = || Leftovers::of(&look(&netns).ruleset).serves;
    for family in FAMILIES {
        let [vip, port] = [10, 11].map(|last| SocketAddr::new(family.service(last), PORT));
        let full = rules(family, [vip, port], SocketAddr::new(family.pod(2, 2), 80));
        let (before, rest) = full.split_once("elements").unwrap();
        let (_, after) = rest.split_once("}\n").unwrap();
        nft(&netns, &format!("{before}{after}"));
        assert_eq!(serves(), [], "{family:?}");
    }
    for (family, is) in
        FAMILIES.into_iter().zip([&netfilter::Family::ALL[..1], &netfilter::Family::ALL[..]])
    {
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let element = format!("{} . tcp . 80 : goto of-tcp", family.service(10));
        nft(&netns, &format!("add element {ip} kube-proxy service-ips {{ {element} }}\n"));
        assert_eq!(serves(), is, "{family:?}");
    }
}

/// In each of its modes: nothing is touched while kube-proxy runs; then its rules go, others'
/// stay, its connections go on for as long as they like, and nothing of ours stays behind them.
#[test]
fn r11_what_kube_proxy_left_is_removed_and_its_connections_go_on() {
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Legacy] {
        let mut lab = Lab::new([2, 1]);
        let old: Vec<Client> =
            FAMILIES.iter().flat_map(|f| old_connections(&mut lab, *f, mode)).collect();
        let node = &lab.nodes[0].node.netns;
        let adopted = node.run(|| lab.nodes[0].datapath.adopt()).unwrap();
        assert_eq!(adopted.flows, 2 * FAMILIES.len());
        let again = node.run(|| lab.nodes[0].datapath.adopt()).unwrap();
        assert_eq!(again, Adopted::default(), "once is enough");

        let back = Plan::rollback(&look(node), Some(&netfilter::Family::ALL), false);
        let missing = back.obstacles.iter().find(|it| it.what.contains("rules for services"));
        assert_eq!(missing, None, "{mode:?}: its services are seen");
        refused_while_it_runs(node);
        removed(node, mode);
        for _ in 0..3 {
            for client in &old {
                assert_eq!(client.ask().unwrap().name, "pod-2-1", "{mode:?}");
            }
        }
        for family in FAMILIES {
            new_connections(&lab, family);
        }

        // Held while they live, and let go afterwards.
        assert!(!node.run(hold::release_if_idle).unwrap());
        drop(old);
        check(node.command("conntrack").arg("-F"));
        assert!(node.run(hold::release_if_idle).unwrap());
        assert!(!listed(node).contains(hold::TABLE));
        sane(&lab);
    }
}

/// What others' rules counted before kube-proxy's went, they go on to count from; and where somebody
/// changed the table after it was looked at, it is left as it is.
#[test]
fn r11_rules_of_others_in_iptables_legacy_keep_what_they_counted() {
    let netns = Netns::new("legacy");
    let text = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:OTHERS - [0:0]\n\
                [0:0] -A PREROUTING -j KUBE-SERVICES\n\
                [7:700] -A PREROUTING -p tcp -m tcp --dport 1 -j OTHERS\n\
                [0:0] -A KUBE-SERVICES -p tcp -m tcp --dport 2 -j ACCEPT\n\
                [8:800] -A OTHERS -m comment --comment \"of others\" -j RETURN\nCOMMIT\n";
    let programs = ["iptables-legacy", "ip6tables-legacy"];
    for program in programs {
        feed(&netns, &format!("{program}-restore"), &["--counters"], text);
    }
    let saved = || {
        let of = |program: &str| {
            let mut command = netns.command(&format!("{program}-save"));
            String::from_utf8(check(command.arg("--counters")).stdout).unwrap()
        };
        let lines = programs.map(of).concat();
        lines.lines().filter(|line| line.contains(" -A ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = saved();
    let outdated = Plan::apply(&look(&netns), true);
    let [_, remove] = &outdated.steps[..] else { panic!("{outdated:?}") };
    let words = remove.words();
    for program in programs {
        let said = format!("1 chains of {program} and 1 rules that lead into them (table nat)");
        assert!(words.contains(&said), "{words}");
    }
    check(netns.command("iptables-legacy").args(["-t", "nat", "-A", "OTHERS", "-j", "ACCEPT"]));
    let refused = netns.run(|| carry_out(&outdated, "".as_ref(), |_| {})).unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(refused)).contains("changed meanwhile"));
    check(netns.command("iptables-legacy").args(["-t", "nat", "-D", "OTHERS", "-j", "ACCEPT"]));
    assert_eq!(saved(), before);

    let plan = Plan::apply(&look(&netns), true);
    netns.run(|| carry_out(&plan, "".as_ref(), |_| {})).unwrap();
    let expected: Vec<_> =
        before.into_iter().filter(|line| !line.contains("KUBE-SERVICES")).collect();
    assert_eq!(saved(), expected);
    assert!(expected.iter().any(|line| line.starts_with("[7:700] ")), "{expected:?}");
    assert!(Plan::apply(&look(&netns), true).is_done());
    netns.run(hold::release).unwrap();
}

/// A rule of somebody else's that leads to one of kube-proxy's chains is not broken.
#[test]
fn r11_what_others_need_of_kube_proxys_rules_stays() {
    let netns = Netns::new("others");
    let text = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
                :CNI-HOSTPORT-SETMARK - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
                -A POSTROUTING -j KUBE-POSTROUTING\n-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\n\
                COMMIT\n";
    for program in ["iptables-restore", "ip6tables-restore"] {
        feed(&netns, program, &[], text);
    }
    let plan = Plan::apply(&look(&netns), true);
    assert_eq!(plan.notes.len(), 2, "one for each family: {:?}", plan.notes);
    netns.run(|| carry_out(&plan, "".as_ref(), |_| {})).unwrap();
    let left = listed(&netns);
    for (name, stays) in [("KUBE-SERVICES", false), ("KUBE-MARK-MASQ", true), ("KUBE-POST", true)] {
        assert_eq!(left.contains(name), stays, "{name}: {left}");
    }
    netns.run(hold::release).unwrap();
}

/// With a range of one port, which a masqueraded connection of kube-proxy's has: no flow of Mizzen's
/// to the same backend gets it, and the connection goes on.
#[test]
fn r11_u14_source_ports_of_old_connections_are_given_to_nobody() {
    const ONLY: u16 = 20_000;
    let mut lab = Lab::new([1, 1]);
    lab.nodes[0].source_ports(ONLY, ONLY);
    let mut old = Vec::new();
    for family in FAMILIES {
        let port = SocketAddr::new(lab.address_of_node(0, family), NODE_PORT);
        let backend = lab.nodes[1].pods[0].server(family);
        let any = SocketAddr::new(family.service(10), PORT);
        let rules = rules(family, [any, port], backend);
        let fixed = format!("meta l4proto tcp masquerade to :{ONLY}");
        nft(&lab.nodes[0].node.netns, &rules.replace("masquerade", &fixed));
        let client = Client::dial(&lab.client, Transport::Tcp, port, 0).unwrap();
        let seen = client.ask().unwrap().client;
        assert_eq!(seen, SocketAddr::new(lab.address_of_node(0, family), ONLY));
        old.push((client, backend, port));
    }
    for (family, (_, backend, _)) in FAMILIES.into_iter().zip(&old) {
        node_port(&mut lab.nodes[0], family, Transport::Tcp, &[*backend], EXTERNAL);
    }
    let node = &lab.nodes[0].node.netns;
    let adopted = node.run(|| lab.nodes[0].datapath.adopt()).unwrap();
    assert_eq!(adopted, Adopted { flows: 0, ports: FAMILIES.len() });
    for (client, _, port) in &old {
        let before = lab.nodes[0].counted(Counter::DropNoSourcePort);
        assert!(Client::dial_in_vain(&lab.client, Transport::Tcp, *port).is_err(), "no port");
        assert!(lab.nodes[0].counted(Counter::DropNoSourcePort) > before);
        for _ in 0..3 {
            assert_eq!(client.ask().unwrap().name, "pod-2-1");
        }
    }
    sane(&lab);
}
