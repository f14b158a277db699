//! CHECK: what it finds in the pod, on the node, and in what the runtime remembers.

use mizzen_tests::wait::until;
use serde_json::{Value, json};

use super::bed::{LIMIT, Node, Pod};

#[test]
fn cni_38_check_finds_damage() {
    let node = Node::alone();
    let mut pod = Pod::new();
    node.call("CHECK", &pod).expect_code(3);
    // By `ip` in the pod, and what CHECK says of it.
    let damages = [
        ("link set eth0 down", "is down"),
        ("link set eth0 address 02:00:00:00:00:99", "another link-layer address"),
        ("link set eth0 mtu 1300", "packets of 1300 bytes, not of"),
        ("addr del ADDRESS4/32 dev eth0", "no address"),
        ("-6 addr del ADDRESS6/128 dev eth0", "no address"),
        ("route del default", "no default route"),
        ("-6 route del default", "no default route"),
        ("route replace default dev eth0", "no default route via 169.254.1.1"),
        ("-6 route replace default via fe80::99 dev eth0", "no default route via fe80::1"),
        ("neigh del 169.254.1.1 dev eth0", "no neighbour 169.254.1.1"),
        ("-6 neigh del fe80::1 dev eth0", "no neighbour fe80::1"),
    ];
    for (damage, said) in damages {
        let conf = sound(&node, &mut pod);
        pod.netns().ip(&with_addresses(damage, &pod, ""));
        let text = node.call_with("CHECK", &pod, &conf).expect_code(101);
        assert!(text.contains(said), "{damage}: {text}");
    }
}

/// A pod that is connected anew, and what the runtime says of it when it asks for CHECK.
fn sound(node: &Node, pod: &mut Pod) -> Value {
    node.call("DEL", pod).expect_success();
    let mut conf = node.conf("1.0.0");
    conf["prevResult"] = node.add(pod);
    node.call_with("CHECK", pod, &conf).expect_success();
    pod.netns().ip("route add 192.0.2.0/24 dev eth0");
    node.call_with("CHECK", pod, &conf).expect_success();
    conf
}

fn with_addresses(command: &str, pod: &Pod, link: &str) -> String {
    let [v4, v6] = [0, 1].map(|index| pod.addresses[index].to_string());
    command.replace("ADDRESS4", &v4).replace("ADDRESS6", &v6).replace("LINK", link)
}

#[test]
fn cni_38_check_finds_damage_on_the_node() {
    let node = Node::alone();
    let mut pod = Pod::new();
    let damages = [
        ("link set LINK address 02:00:00:00:00:99", "another link-layer address"),
        ("link set LINK mtu 1300", "packets of 1300 bytes, not of"),
        ("route replace ADDRESS4 dev lo", "no route to"),
        ("-6 route replace ADDRESS6 dev lo", "no route to"),
        ("neigh replace ADDRESS4 lladdr 02:00:00:00:00:99 dev LINK nud permanent", "no neighbour"),
        (
            "-6 neigh replace ADDRESS6 lladdr 02:00:00:00:00:99 dev LINK nud permanent",
            "no neighbour",
        ),
    ];
    for (damage, said) in damages {
        let conf = sound(&node, &mut pod);
        let link = node.pod_links().remove(0);
        // The agent may mend it before CHECK looks.
        until(damage, LIMIT, || {
            node.netns.ip(&with_addresses(damage, &pod, &link));
            match node.call_with("CHECK", &pod, &conf) {
                outcome if outcome.success => Err("CHECK noticed nothing".to_owned()),
                outcome => {
                    let text = outcome.expect_code(101);
                    assert!(text.contains(said), "{damage}: {text}");
                    Ok(())
                }
            }
        });
    }
}

/// What a runtime remembers has to be what ADD answered, and what of it is in the pod has to be there.
#[test]
fn cni_38_check_finds_what_the_runtime_remembers_otherwise() {
    let node = Node::alone();
    let mut pod = Pod::new();
    let conf = sound(&node, &mut pod);
    let other = Pod::new();
    let elsewhere = other.netns().path().display().to_string();
    let changes = [
        ("/interfaces/0/mac", json!("02:00:00:00:00:99"), "link-layer address 02:00:00:00:00:99"),
        ("/interfaces/1/mac", json!("02:00:00:00:00:99"), "the pod's interface has the link-layer"),
        ("/interfaces/1/sandbox", json!(elsewhere), "its sandbox is"),
        ("/interfaces/1/name", json!("eth1"), "no interface eth0 of a sandbox"),
        ("/ips/0/address", json!("10.244.1.99/32"), "is not in it"),
        ("/ips/1/address", json!("fd00:244:1::99/128"), "is not in it"),
        ("/ips/0/gateway", json!("169.254.1.9"), "is 169.254.1.9 in it, and was 169.254.1.1"),
        ("/ips/1/gateway", json!("fe80::9"), "is fe80::9 in it, and was fe80::1"),
        ("/ips/1/interface", json!(0), "is not in it"),
        ("/ips/2", json!({"address": "192.0.2.7/32", "interface": 1}), "no address 192.0.2.7"),
        ("/routes/0/gw", json!("169.254.1.9"), "no default route via 169.254.1.9"),
        ("/routes/1/dst", json!("2001:db8::/32"), "no route to 2001:db8::/32 via fe80::1"),
    ];
    for (pointer, value, said) in changes {
        let mut changed = conf.clone();
        let result = &mut changed["prevResult"];
        match result.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => result["ips"].as_array_mut().unwrap().push(value),
        }
        let text = node.call_with("CHECK", &pod, &changed).expect_code(101);
        assert!(text.contains(said), "{pointer}: {text}");
    }
    let mut broken = conf.clone();
    broken["prevResult"]["ips"][0]["address"] = json!("10.244.1.2");
    let text = node.call_with("CHECK", &pod, &broken).expect_code(7);
    assert!(text.contains("prevResult.ips[].address"), "{text}");
    // The same namespace by another path.
    let other_path = node.folder.path().join("netns");
    std::os::unix::fs::symlink(pod.netns().path(), &other_path).unwrap();
    let mut renamed = conf.clone();
    renamed["prevResult"]["interfaces"][1]["sandbox"] = json!(other_path);
    node.call_with("CHECK", &pod, &renamed).expect_success();
}

/// Routes are what a plugin that is called later may take over.
#[test]
fn cni_38_check_leaves_what_later_plugins_made() {
    let node = Node::alone();
    let mut pod = Pod::new();
    let mut conf = sound(&node, &mut pod);
    pod.netns().ip("addr add 192.0.2.7/32 dev eth0");
    pod.netns().ip("route replace default dev eth0");
    conf["prevResult"]["routes"] = json!([
        {"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fe80::1"}, {"dst": "192.0.2.0/24"},
    ]);
    let ips = conf["prevResult"]["ips"].as_array_mut().unwrap();
    ips.push(json!({"address": "192.0.2.7/32", "interface": 1}));
    node.call_with("CHECK", &pod, &conf).expect_success();
    pod.netns().ip("route del 192.0.2.0/24");
    let text = node.call_with("CHECK", &pod, &conf).expect_code(101);
    assert!(text.contains("no route to 192.0.2.0/24"), "{text}");
}
