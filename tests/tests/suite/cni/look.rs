//! What `mizzen check` says of a pod network: nothing where all is well, and each damage with what
//! mends it; and what the agent mends of pods itself.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mizzen_agent::{
    check::{Facts, Finding, Host, PodNetworkFacts, Verdict, judge},
    podnet::{
        look::{self, Place},
        probe::{Answers, Heard},
    },
};
use mizzen_tests::{lab::set, soak::in_full, wait::until};

use super::{
    bed::{LIMIT, Node, Pod, model, reach, snapshot, two_nodes},
    tunnel::Bed,
};

fn place(node: &Node) -> Place {
    Place {
        node: node.name.clone(),
        state_dir: node.state_dir(),
        vxlan_port: mizzen_ebpf_abi::tunnel::PORT,
        mtu: None,
    }
}

/// The findings that are not well, of the node's network as it is now. What its pods lack where no
/// programs are ([`super::alone`]) is not asked here.
fn findings(node: &Node) -> Vec<Finding> {
    let place = place(node);
    let snapshot = Arc::clone(&node.snapshots.borrow());
    let seen = node.netns.run(|| look::look(&place, &snapshot)).unwrap();
    let reached = node.netns.run(|| look::reach(&seen, &Answers::default()));
    let nodes = snapshot.nodes.values();
    let addresses = nodes.map(|node| (node.name.clone(), node.internal_ips.clone())).collect();
    let pod_network = PodNetworkFacts { seen, reached, addresses };
    let facts = Facts {
        parts: BTreeMap::new(),
        datapath: None,
        host: Host::default(),
        pod_network: Some(Ok(pod_network)),
    };
    let mut findings = judge(&facts);
    assert_eq!(findings.iter().filter(|found| found.check == "peers").count().min(1), 1);
    findings.retain(|found| found.verdict != Verdict::Ok && found.check != "pod programs");
    findings
}

/// Damage to a node whose agent is away: that the finding `check` says `said` and to do `remedy`.
fn damaged(node: &Node, commands: &[&str], check: &str, said: &str, remedy: &str) {
    for command in commands {
        node.netns.ip(command);
    }
    let found = findings(node);
    let is_it = |finding: &&Finding| {
        finding.check == check && finding.said.contains(said) && finding.remedy.contains(remedy)
    };
    assert!(found.iter().any(|finding| is_it(&finding)), "{said} / {remedy} in {found:#?}");
}

#[test]
fn nodes_that_are_asked_again_and_again_do_not_fall_silent() {
    let (a, _b) = two_nodes();
    let snapshot = Arc::clone(&a.snapshots.borrow());
    let seen = a.netns.run(|| look::look(&place(&a), &snapshot)).unwrap();
    let answers = Answers::default();
    for _ in 0..10 {
        let reached = a.netns.run(|| look::reach(&seen, &answers));
        assert_eq!(reached.len(), 2);
        for (range, reached) in reached {
            let both = [reached.small, reached.large];
            assert!(both.iter().all(|heard| matches!(heard, Heard::From(_))), "{range}: {both:?}");
        }
    }
}

#[test]
fn a_sound_pod_network_has_no_findings_by_either_way() {
    let (a, _b) = two_nodes();
    let mut pod = Pod::new();
    a.add(&mut pod);
    assert_eq!(findings(&a), []);
    let far = Bed::new();
    let _pod = far.a.add();
    assert_eq!(findings(&far.a.node), []);
    assert_eq!(findings(&far.b.node), []);
}

#[test]
fn each_damage_is_named_with_what_mends_it() {
    let mut bed = Bed::new();
    let pod = bed.a.add();
    bed.a.node.stop();
    let node = &bed.a.node;
    let link = node.pod_links().pop().unwrap();
    let (v4, v6) = (pod.addresses[0], pod.addresses[1]);

    let neigh = format!("neigh del {v4} dev {link}");
    let remedy = format!("ip neigh replace {v4}");
    damaged(node, &[&neigh], "pods", "no neighbour", &remedy);
    let route = format!("-6 route del {v6} dev {link}");
    damaged(node, &[&route], "pods", &format!("no route to {v6}"), "ip route replace");
    set(&node.netns, &format!("ipv4/conf/{link}/rp_filter"), "1");
    damaged(node, &[], "pods", "rp_filter=0 does not hold", "sysctl -w");
    let inside = |command: &str, said: &str| {
        pod.netns().ip(command);
        damaged(node, &[], "pods", said, "delete the pod");
    };
    // What is told is the first that is found, each of these before the one above it.
    inside("-6 route del default", "eth0 in the pod has no default route via fe80::1");
    inside("neigh del 169.254.1.1 dev eth0", "eth0 in the pod has no neighbour 169.254.1.1");
    inside("link set eth0 mtu 1300", "eth0 takes packets of 1300 bytes, not of 1430");
    damaged(node, &[&format!("link set {link} mtu 1300")], "pods", "packets of 1300", "mtu 1430");
    damaged(node, &[&format!("link set {link} down")], "pods", "is down", "ip link set");
    damaged(node, &["route del 10.244.2.0/24"], "routes", "no route to 10.244.2.0/24", "src 192");
    set(&node.netns, "ipv4/conf/mizzen.vxlan/rp_filter", "1");
    damaged(node, &[], "tunnel", "mizzen.vxlan/rp_filter=0 does not hold", "sysctl -w");
    damaged(node, &["link set mizzen.vxlan mtu 1300"], "tunnel", "1300 bytes", "mtu 1430");
    damaged(node, &["link set mizzen.vxlan down"], "tunnel", "is down", "up");
    damaged(node, &["link del mizzen.vxlan"], "tunnel", "no device mizzen.vxlan", "--vxlan-port");
}

#[test]
fn nodes_that_are_not_reached_are_named() {
    let bed = Bed::new();
    // The way between them takes less than their own links say.
    bed.router.ip("link set to-b mtu 1300");
    damaged(&bed.a.node, &[], "peers", "those of 1430 bytes do not", "--mtu");
    bed.router.ip("link set to-b down");
    damaged(&bed.a.node, &[], "peers", "10.244.2.0/24", "see");
}

/// A host under another name than before, whose earlier Node is still there; and a Node with an
/// address of this host that is not one of its own Node's, so that the kernel refuses the routes.
#[test]
fn nodes_with_this_nodes_addresses_are_named_and_keep_nothing_from_the_others() {
    let (a, _b) = two_nodes();
    let mut pod = Pod::new();
    a.add(&mut pod);
    let link = a.pod_links().pop().unwrap();
    a.netns.ip("addr add 172.30.0.99/24 dev eth0");
    a.netns.ip("addr add fd00:30::99/64 dev eth0 nodad");
    let others = ["172.30.0.99", "fd00:30::99"].map(|ip| ip.parse().unwrap());
    let mut refused = model("b0", 9);
    refused.internal_ips = others.into();
    let mut stale = model("earlier", 8);
    stale.internal_ips = model("a", 1).internal_ips;
    a.snapshots.send_replace(Arc::new(snapshot(&[
        model("a", 1),
        model("b", 2),
        refused,
        stale,
        model("c", 3),
    ])));
    a.wait_state("both to be said", |state| {
        let said = format!("{state:?}");
        let refused = ["10.244.9.0/24", "fd00:244:9::/64"].map(|to| format!("set route {to} "));
        let stale = ["172.30.0.11", "fd00:30::11"]
            .map(|ip| format!("node earlier has the InternalIP {ip} of this node, a"));
        refused.iter().chain(&stale).all(|text| said.contains(text))
    });
    for (ip, range) in [("", "10.244.3.0/24"), ("-6 ", "fd00:244:3::/64")] {
        let shown = a.netns.ip(&format!("{ip}route show {range}"));
        assert!(shown.contains("dev eth0"), "{range}: {shown:?}");
    }
    // What comes after the routes is done as well: pods follow the uplink's MTU.
    a.netns.ip("link set eth0 mtu 1400");
    until("the pod's MTU", LIMIT, || {
        let shown = a.netns.ip(&format!("link show {link}"));
        if shown.contains("mtu 1400") { Ok(()) } else { Err(shown) }
    });
}

#[test]
fn what_somebody_alters_of_a_pods_link_is_mended_and_counted() {
    let (a, b) = two_nodes();
    let mut pod = Pod::new();
    a.add(&mut pod);
    let link = a.pod_links().pop().unwrap();
    let healed = |what: &str| a.metrics.tables.healed_of(what);
    let is_healed = |what: &str, before: u64| {
        let start = Instant::now();
        until(what, LIMIT, || {
            if healed(what) > before { Ok(()) } else { Err(format!("{what} is as it was")) }
        });
        // Told how long it takes where nothing else runs.
        println!("{what}: healed after {:?}", start.elapsed());
        assert!(!in_full() || start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    };
    for flush in ["route flush", "-6 route flush"] {
        let before = healed("route");
        a.netns.ip(&format!("{flush} dev {link}"));
        is_healed("route", before);
    }
    for address in pod.addresses.clone() {
        let before = healed("neighbour");
        a.netns.ip(&format!("neigh del {address} dev {link}"));
        is_healed("neighbour", before);
    }
    for key in ["ipv4/conf", "ipv6/conf"] {
        let before = healed("sysctl");
        set(&a.netns, &format!("{key}/{link}/forwarding"), "0");
        is_healed("sysctl", before);
    }
    let before = healed("sysctl");
    set(&a.netns, &format!("ipv4/conf/{link}/rp_filter"), "1");
    is_healed("sysctl", before);
    let before = healed("sysctl");
    set(&a.netns, "ipv4/ip_forward", "0");
    is_healed("sysctl", before);
    for change in ["down", "address 02:00:00:00:00:01", "mtu 1300"] {
        let before = healed("link");
        a.netns.ip(&format!("link set {link} {change}"));
        is_healed("link", before);
    }
    // Routes that take the place of ours, of which the kernel tells otherwise than of those that go.
    for address in pod.addresses.clone() {
        let (before, ip) = (healed("route"), if address.is_ipv6() { "-6 " } else { "" });
        a.netns.ip(&format!("{ip}route replace {address} dev eth0"));
        is_healed("route", before);
    }
    until("a sound pod network", LIMIT, || match findings(&a) {
        found if found.is_empty() => Ok(()),
        found => Err(format!("{found:?}")),
    });
    for address in pod.addresses.clone() {
        reach(&a.netns, pod.netns(), address);
    }
    // A link that is deleted by hand, at either end, is made anew: the pod keeps its addresses.
    for delete in [&|| a.netns.ip(&format!("link del {link}")), &|| pod.netns().ip("link del eth0")]
        as [&dyn Fn() -> String; 2]
    {
        let before = healed("link");
        delete();
        is_healed("link", before);
        a.call("CHECK", &pod).expect_success();
        for address in pod.addresses.clone() {
            reach(&a.netns, pod.netns(), address);
            assert_eq!(reach(&b.netns, pod.netns(), address).is_ipv4(), address.is_ipv4());
        }
    }
    assert!(!a.journal().contains("\"released\""), "{}", a.journal());
    // A namespace that is deleted takes its pod along.
    let before = healed("pod");
    pod.netns = None;
    is_healed("pod", before);
    assert_eq!(a.pod_links(), [""; 0]);
}
