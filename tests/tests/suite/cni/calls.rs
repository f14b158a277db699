//! Each call by itself: what it answers, what it makes, what it leaves.

use std::{collections::BTreeSet, fs::File, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use mizzen_agent::podnet::datapath::{PodDatapath, PodDatapathError, PodLink};
use mizzen_tests::{netns::Netns, wait::until};
use serde_json::{Value, json};

use super::bed::{LIMIT, Node, Pod, addresses, model, plugin, pod_name, reach};

#[test]
fn cni_01_a_person_is_told_what_it_is() {
    let output = std::process::Command::new(plugin()).env_clear().output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("CNI protocol versions supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{text}");
}

#[test]
fn cni_07_errors_go_to_standard_output() {
    let node = Node::new("a", &[]);
    let outcome = node.call_with("ADD", &Pod::new(), &json!({"cniVersion": "0.4.0"}));
    assert!(!outcome.success);
    assert_eq!(outcome.answer["cniVersion"], "0.4.0");
    outcome.expect_code(7);
}

#[test]
fn cni_17_add_makes_the_interface_and_repeats_its_answer() {
    let node = Node::alone();
    let mut pod = Pod::new();
    let result = node.add(&mut pod);
    let held = pod.netns().ip("-o addr show dev eth0");
    assert_eq!(pod.addresses.len(), 2);
    for address in &pod.addresses {
        assert!(held.contains(&address.to_string()), "{held}");
    }
    assert!(!held.contains("tentative"), "{held}");
    // A repeat of what we own and what is whole.
    assert_eq!(node.call("ADD", &pod).expect_success(), result);
    assert_eq!(node.pod_links().len(), 1);
    // A repeat of what was damaged makes it anew.
    pod.netns().ip("link del eth0");
    node.add(&mut pod);
    assert!(pod.netns().ip("-o addr show dev eth0").contains(&pod.addresses[0].to_string()));
}

/// Autopath asks whose address one is: the answer is there with the address and goes with it.
#[test]
fn dns_67_whose_an_address_is_is_known_before_the_pod_runs() {
    let mut node = Node::alone();
    let mut pod = Pod::new();
    node.add(&mut pod);
    assert_eq!(pod.addresses.len(), 2);
    let said = |node: &Node, pod: &Pod| -> Vec<Option<String>> {
        let known = pod.addresses.iter().map(|address| node.local_pods.namespace_of(*address));
        known.map(|namespace| namespace.map(|name| name.to_string())).collect()
    };
    let own = vec![Some("default".to_owned()); 2];
    assert_eq!(said(&node, &pod), own);
    // The next agent has it from the journal.
    node.stop();
    node.start();
    node.wait_ready();
    assert_eq!(said(&node, &pod), own);
    node.call("DEL", &pod).expect_success();
    assert_eq!(said(&node, &pod), [None, None]);
}

#[test]
fn cni_17_an_interface_of_somebody_else_is_an_error() {
    let node = Node::alone();
    let pod = Pod::new();
    pod.netns().ip("link add eth0 type bridge");
    let text = node.call("ADD", &pod).expect_code(100);
    assert!(text.contains("interface eth0 already exists"), "{text}");
    assert_eq!(node.pod_links(), [""; 0]);
    assert!(pod.netns().ip("link show eth0").contains("eth0"));
}

#[test]
fn cni_18_two_sandboxes_of_one_pod_both_work() {
    let node = Node::alone();
    let (mut first, mut second) = (Pod::new(), Pod::new());
    node.add(&mut first);
    node.add(&mut second);
    assert_ne!(first.addresses, second.addresses);
    node.call("DEL", &first).expect_success();
    assert_eq!(node.pod_links().len(), 1);
    node.call("CHECK", &second).expect_success();
}

#[test]
fn cni_19_parallel_adds_get_addresses_of_their_own() {
    let node = Node::alone();
    let pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let calls: Vec<_> = pods
            .iter()
            .map(|pod| {
                scope.spawn(|| {
                    let result = node.call("ADD", pod).expect_success();
                    // Others are still being added.
                    if addresses(&result)[0].to_string().ends_with('5') {
                        node.call("DEL", pod).expect_success();
                        return node.call("ADD", pod).expect_success();
                    }
                    result
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let given: BTreeSet<_> = results.iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 40);
    assert_eq!(node.pod_links().len(), 20);
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| node.call("DEL", pod).expect_success());
        }
    });
    assert_eq!(node.pod_links(), [""; 0]);
}

/// Refuses every pod.
struct Broken;

impl PodDatapath for Broken {
    fn attach(&self, link: &PodLink, _: Option<&File>) -> Result<(), PodDatapathError> {
        let source = Box::from("the test says no");
        Err(PodDatapathError { operation: "attach", ifname: link.ifname.clone(), source })
    }

    fn detach(&self, _: &PodLink) -> Result<(), PodDatapathError> {
        Ok(())
    }
}

#[test]
fn cni_20_a_failed_add_leaves_nothing() {
    let mut node = Node::new("a", &[tiny()]);
    node.start_with(Arc::new(Broken));
    node.wait_ready();
    let pod = Pod::new();
    // More often than there are addresses.
    for _ in 0..7 {
        let text = node.call("ADD", &pod).expect_code(100);
        assert!(text.contains("the test says no"), "{text}");
    }
    assert_eq!(node.pod_links(), [""; 0]);
    assert!(!pod.netns().ip("link show").contains("eth0"));
}

/// A node with room for five pods.
fn tiny() -> mizzen_agent::model::node::Node {
    let mut tiny = model("a", 1);
    tiny.pod_cidrs[0] = "10.244.1.0/29".parse().unwrap();
    tiny
}

#[test]
fn cni_21_exhaustion_is_said_with_range_and_counts() {
    let mut node = Node::new("a", &[tiny()]);
    node.start();
    node.wait_ready();
    let pods: Vec<Pod> = (0..6).map(|_| Pod::new()).collect();
    for pod in &pods[..5] {
        node.call("ADD", pod).expect_success();
    }
    let text = node.call("ADD", &pods[5]).expect_code(11);
    assert!(text.contains("10.244.1.0/29: 5 of 5 usable addresses"), "{text}");
    let text = node.call("STATUS", &pods[5]).expect_code(50);
    assert!(text.contains("10.244.1.0/29"), "{text}");
    node.call("DEL", &pods[0]).expect_success();
    node.call("STATUS", &pods[5]).expect_success();
    node.call("ADD", &pods[5]).expect_success();
}

#[test]
fn cni_22_what_is_asked_for_is_given_or_refused_by_name() {
    let node = Node::alone();
    let (first, second) = (Pod::new(), Pod::new());
    let mut conf = node.conf("1.1.0");
    conf["runtimeConfig"] =
        json!({"ips": ["10.244.1.77", "fd00:244:1::77"], "mac": "02:00:00:00:00:77"});
    let result = node.call_with("ADD", &first, &conf).expect_success();
    let expected: Vec<std::net::IpAddr> =
        ["10.244.1.77", "fd00:244:1::77"].map(|text| text.parse().unwrap()).into();
    assert_eq!(addresses(&result), expected);
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:77");
    assert!(first.netns().ip("link show eth0").contains("02:00:00:00:00:77"));
    let mut third = Pod::new();
    node.add(&mut third);
    for ip in &expected {
        reach(third.netns(), first.netns(), *ip);
    }
    // It is another pod's; it is no pod's of this node.
    let text = node.call_with("ADD", &second, &conf).expect_code(11);
    assert!(text.contains("requested IP not available") && text.contains("10.244.1.77"), "{text}");
    conf["runtimeConfig"] = json!({"ips": ["10.245.0.1"]});
    let text = node.call_with("ADD", &second, &conf).expect_code(7);
    assert!(text.contains("not in range") && text.contains("10.244.1.0/24"), "{text}");
    assert_eq!(node.pod_links().len(), 2);
}

/// A setting of the network in a namespace.
fn sysctl(netns: &Netns, name: &str) -> String {
    let path = Path::new("/proc/sys/net").join(name);
    netns.run(|| std::fs::read_to_string(path).unwrap().trim().to_owned())
}

#[test]
fn cni_23_the_pods_end_has_its_addresses_at_once_and_takes_none_from_routers() {
    let node = Node::alone();
    let mut pod = Pod::new();
    node.add(&mut pod);
    assert_eq!(sysctl(pod.netns(), "ipv6/conf/eth0/accept_ra"), "0");
    assert_eq!(sysctl(pod.netns(), "ipv6/conf/eth0/accept_dad"), "0");
}

#[test]
fn cni_25_the_pods_loopback_is_up() {
    let node = Node::alone();
    let mut pod = Pod::new();
    pod.netns().ip("link set lo down");
    node.add(&mut pod);
    assert!(pod.netns().ip("link show lo").contains("UP"));
}

#[test]
fn cni_26_the_pods_end_is_set_up_for_its_first_packet() {
    let node = Node::alone();
    let mut pod = Pod::new();
    let result = node.add(&mut pod);
    let host_mac = result["interfaces"][0]["mac"].as_str().unwrap();
    let netns = pod.netns();
    let neighbours = netns.ip("neigh show dev eth0") + &netns.ip("-6 neigh show dev eth0");
    for gateway in ["169.254.1.1", "fe80::1"] {
        let entry = format!("{gateway} lladdr {host_mac} PERMANENT");
        assert!(neighbours.contains(&entry), "{neighbours}");
    }
    assert!(netns.ip("route show default").contains("via 169.254.1.1 dev eth0"));
    assert!(netns.ip("-6 route show default").contains("via fe80::1 dev eth0"));
}

#[test]
fn cni_27_the_hosts_end_forwards_filters_by_no_reverse_path_and_says_whose_it_is() {
    let node = Node::alone();
    let mut pod = Pod::new();
    let result = node.add(&mut pod);
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    assert_eq!(sysctl(&node.netns, &format!("ipv4/conf/{host}/rp_filter")), "0");
    for family in ["ipv4", "ipv6"] {
        assert_eq!(sysctl(&node.netns, &format!("{family}/conf/{host}/forwarding")), "1");
    }
    let alias = node.netns.ip(&format!("link show {host}"));
    let name = pod_name(&pod.container_id);
    assert!(alias.contains(&format!("alias mizzen default/{name} eth0")), "{alias}");
}

#[test]
fn cni_24_the_mtu_is_the_uplinks_on_both_ends_and_in_the_result() {
    let mut node = Node::new("a", &[model("a", 1)]);
    node.netns.ip("link add uplink mtu 1400 type bridge");
    node.netns.ip("addr add 172.30.0.11/24 dev uplink");
    node.netns.ip("link set uplink up");
    node.start();
    node.wait_ready();
    let mut pod = Pod::new();
    let result = node.add(&mut pod);
    assert_eq!(result["interfaces"][0]["mtu"], 1400);
    assert_eq!(result["interfaces"][1]["mtu"], 1400);
    assert!(pod.netns().ip("link show eth0").contains("mtu 1400"));
    assert!(node.netns.ip(&format!("link show {}", node.pod_links()[0])).contains("mtu 1400"));
    // An agent that starts without an API server does not know which link that is.
    node.stop();
    node.snapshots.send_replace(Arc::default());
    node.start();
    node.wait_ready();
    let result = node.add(&mut Pod::new());
    assert_eq!(result["interfaces"][1]["mtu"], 1400);
}

/// The loopback interface takes packets that no veth does.
#[test]
fn cni_24_a_node_whose_address_is_on_loopback_connects_pods() {
    let mut node = Node::new("a", &[model("a", 1)]);
    node.netns.ip("addr add 172.30.0.11/32 dev lo");
    node.start();
    node.wait_ready();
    let mut pod = Pod::new();
    assert_eq!(node.add(&mut pod)["interfaces"][1]["mtu"], 1500);
}

#[test]
fn cni_28_a_stale_link_of_that_name_goes() {
    let node = Node::alone();
    let mut pod = Pod::new();
    node.add(&mut pod);
    let ifname = node.pod_links()[0].clone();
    node.call("DEL", &pod).expect_success();
    assert_eq!(node.pod_links(), [""; 0]);
    node.netns.ip(&format!("link add {ifname} type bridge"));
    node.add(&mut pod);
    assert_eq!(node.pod_links(), [ifname], "a veth again");
}

#[test]
fn cni_30_the_result_names_both_ends() {
    let node = Node::alone();
    let pod = Pod::new();
    let result = node.call_with("ADD", &pod, &node.conf("1.0.0")).expect_success();
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(result["interfaces"][0]["name"], node.pod_links()[0]);
    assert_eq!(result["interfaces"][0].get("sandbox"), None);
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    assert_eq!(result["interfaces"][1]["sandbox"], pod.netns().path().to_str().unwrap());
    let shown = pod.netns().ip("link show eth0");
    assert!(shown.contains(result["interfaces"][1]["mac"].as_str().unwrap()), "{shown}");
    assert_eq!(addresses(&result)[0].to_string(), "10.244.1.2");
    assert_eq!(addresses(&result)[1].to_string(), "fd00:244:1::2");
    // The version that the runtime asked for, on the same attachment.
    let result = node.call_with("ADD", &pod, &node.conf("0.3.1")).expect_success();
    assert_eq!(result["cniVersion"], "0.3.1");
    assert_eq!(result["ips"][1]["version"], "6");
}

#[test]
fn cni_35_del_succeeds_however_often_and_whatever_is_missing() {
    let node = Node::alone();
    let mut pod = Pod::new();
    node.call("DEL", &pod).expect_success();
    node.add(&mut pod);
    for _ in 0..2 {
        node.call("DEL", &pod).expect_success();
        assert_eq!(node.pod_links(), [""; 0]);
        assert!(!pod.netns().ip("link show").contains("eth0"));
    }
    // Without a namespace, and with a path that leads nowhere.
    for netns in ["", "/run/netns/mzt-not-there"] {
        node.add(&mut pod);
        let conf = node.conf("1.0.0");
        node.call_in("DEL", &pod.container_id, Path::new(netns), &conf).expect_success();
        assert_eq!(node.pod_links(), [""; 0]);
    }
    // With a previous result that makes no sense.
    node.add(&mut pod);
    let mut conf = node.conf("1.0.0");
    conf["prevResult"] = json!({"ips": 7});
    node.call_with("DEL", &pod, &conf).expect_success();
    assert_eq!(node.pod_links(), [""; 0]);
    // After the namespace itself.
    node.add(&mut pod);
    pod.netns = None;
    node.call("DEL", &pod).expect_success();
    assert_eq!(node.pod_links(), [""; 0]);
}

/// The node's end goes with DEL, not when the kernel gets round to the namespace; and there is no
/// text for runtimes to guess at.
#[test]
fn cni_36_cni_37_del_takes_both_ends_away_and_says_nothing() {
    let node = Node::alone();
    let mut pod = Pod::new();
    node.add(&mut pod);
    let answer = node.call("DEL", &pod).expect_success();
    assert_eq!(answer, Value::Null);
    assert_eq!(node.pod_links(), [""; 0]);
    assert!(!pod.netns().ip("link show").contains("eth0"));
    assert!(!node.netns.ip("route").contains(&pod.addresses[0].to_string()));
    let gone = Path::new("/run/netns/mzt-not-there");
    let answer = node.call_in("DEL", &pod.container_id, gone, &node.conf("1.1.0"));
    assert_eq!(answer.expect_success(), Value::Null);
}

/// When DEL answers nothing reaches the pod, and it reaches nothing; its link goes a moment later, and
/// is in nobody's way meanwhile.
#[test]
fn cni_35_cni_37_a_pod_is_cut_off_when_del_answers_and_may_come_again_at_once() {
    let node = Node::alone();
    let mut pod = Pod::new();
    for _ in 0..5 {
        let result = node.add(&mut pod);
        node.call("DEL", &pod).expect_success();
        let routes = node.netns.ip("route") + &node.netns.ip("-6 route");
        assert!(!pod.addresses.iter().any(|ip| routes.contains(&ip.to_string())), "{routes}");
        let shown = node.netns.ip("-o link show type veth");
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        assert!(!shown.contains(host) || shown.contains("state DOWN"), "{shown}");
        node.call("CHECK", &pod).expect_code(3);
    }
    // The next sandbox may have the same namespace.
    node.add(&mut pod);
    node.call("DEL", &pod).expect_success();
    let mut next = Pod { netns: pod.netns.take(), ..Pod::new() };
    node.add(&mut next);
    node.call("CHECK", &next).expect_success();
    assert_eq!(node.pod_links().len(), 1);
    node.call("DEL", &next).expect_success();
    // Again, and for good.
    node.call("DEL", &next).expect_success();
    assert_eq!(node.pod_links(), [""; 0]);
    node.call("CHECK", &next).expect_code(3);
}

#[test]
fn cni_40_status_of_a_node_that_serves_and_of_one_that_does_not() {
    let mut node = Node::alone();
    let pod = Pod::new();
    node.call("STATUS", &pod).expect_success();
    node.stop();
    node.call("STATUS", &pod).expect_code(50);
}

#[test]
fn cni_40_status_of_a_node_whose_pods_are_cut_off() {
    let node = Node::alone();
    let other = Netns::new("other");
    node.netns.veth("eth0", &other, "eth0");
    node.netns.ip("addr add 172.30.0.11/24 dev eth0");
    let pod = Pod::new();
    let told = |what: &str, code: Option<u64>, text: &str| {
        until(what, LIMIT, || {
            let said = node.call("STATUS", &pod);
            let details = said.answer["details"].as_str().unwrap_or_default();
            if said.answer["code"].as_u64() == code && details.contains(text) {
                Ok(())
            } else {
                Err(format!("{said:?}"))
            }
        });
    };
    told("the link to work", None, "");
    node.netns.ip("link set eth0 down");
    told("a link that is down", Some(51), "ip link set eth0 up");
    node.netns.ip("link set eth0 up");
    told("the link to work again", None, "");
    other.ip("link set eth0 down");
    told("a link without a carrier", Some(51), "no carrier");
    other.ip("link set eth0 up");
    told("the carrier to be back", None, "");
}

#[test]
fn the_socket_is_roots_alone() {
    let node = Node::alone();
    let metadata = std::fs::metadata(node.state_dir().join("cni.sock")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}
