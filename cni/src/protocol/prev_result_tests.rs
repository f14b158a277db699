//! What a runtime remembers, and in which words it is refused.

use serde_json::json;

use super::*;
use crate::protocol::{
    Version,
    env::Verb,
    result,
    tests::{invocation, link, minimal, parse_conf},
};

/// What becomes of an answer to ADD.
type Change = fn(&mut Value);

/// What ADD answers in this version, and what CHECK reads of it after `change`.
fn remembered(
    version: Version,
    runtime_config: &Value,
    change: impl Fn(&mut Value),
) -> Result<Option<PrevResult>, CniError> {
    let invocation = invocation("CHECK");
    let mut conf = minimal(version.as_str());
    conf["runtimeConfig"] = runtime_config.clone();
    let mut link = link();
    link.host_ifname = invocation.attachment.host_ifname();
    let mut told = result::added(&parse_conf(Verb::Add, &conf)?, &invocation, &link);
    change(&mut told);
    conf["prevResult"] = told;
    read(&parse_conf(Verb::Check, &conf)?, &invocation)
}

fn prefix(text: &str, gateway: &str) -> RememberedPrefix {
    let (address, prefix_len) = text.split_once('/').unwrap();
    RememberedPrefix {
        address: address.parse().unwrap(),
        prefix_len: prefix_len.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
    }
}

#[test]
fn cni_38_the_answer_to_add_is_read_back_in_every_version() {
    for version in [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0] {
        let read = remembered(version, &json!({}), |_| {}).unwrap().unwrap();
        assert_eq!(read.sandbox, "/run/netns/c1");
        let expected = Remembered {
            host_mac: Some(link().host_mac),
            pod_mac: Some(link().pod_mac),
            addresses: vec![
                prefix("10.244.1.7/32", "169.254.1.1"),
                prefix("fd00:244:1::7/128", "fe80::1"),
            ],
            routes: vec![prefix("0.0.0.0/0", "169.254.1.1"), prefix("::/0", "fe80::1")],
        };
        assert_eq!(read.remembered, expected);
    }
    let silent = parse_conf(Verb::Check, &minimal("1.1.0")).unwrap();
    assert_eq!(read(&silent, &invocation("CHECK")), Ok(None));
}

#[test]
fn cni_38_what_other_plugins_of_the_chain_made_is_theirs() {
    let read = remembered(Version::V1_1_0, &json!({}), |told| {
        let interfaces = told["interfaces"].as_array_mut().unwrap();
        interfaces.insert(0, json!({"name": "eth0"}));
        interfaces.push(json!({"name": "tun0", "sandbox": "/run/netns/c1"}));
        let ips = told["ips"].as_array_mut().unwrap();
        for ip in ips.iter_mut() {
            ip["interface"] = json!(2);
        }
        ips.push(json!({"address": "192.0.2.1/24", "interface": 3}));
        let routes = told["routes"].as_array_mut().unwrap();
        routes.push(json!({"dst": "192.0.2.0/24", "table": 100}));
        told["dns"]["nameservers"] = json!(["192.0.2.53"]);
    });
    let read = read.unwrap().unwrap().remembered;
    assert_eq!((read.addresses.len(), read.routes.len()), (2, 2));
}

#[test]
fn cni_38_what_add_answered_and_is_not_remembered_is_named() {
    let dns = json!({"dns": {"servers": ["10.96.0.10"], "options": ["ndots:5"]}});
    assert!(remembered(Version::V1_1_0, &dns, |_| {}).unwrap().is_some());
    let lost: [(Change, &str); 6] = [
        (|told| told["interfaces"][1]["name"] = json!("eth1"), "no interface eth0 of a sandbox"),
        (|told| told["interfaces"][1]["sandbox"] = json!(""), "no interface eth0 of a sandbox"),
        (|told| told["interfaces"][0]["name"] = json!("mz0"), "of the node in it"),
        (|told| told["interfaces"][0]["sandbox"] = json!("/run/netns/c1"), "of the node in it"),
        (|told| told["dns"] = json!({"nameservers": ["10.96.0.10"]}), "\"ndots:5\" of runtime"),
        (|told| told["dns"] = Value::Null, "\"10.96.0.10\" of runtimeConfig.dns"),
    ];
    for (change, said) in lost {
        let error = remembered(Version::V1_1_0, &dns, change).unwrap_err();
        assert_eq!(error.code, 101, "{error}");
        assert!(error.details.contains(said), "{error}");
    }
}

#[test]
fn cni_38_a_field_that_cannot_be_read_is_named() {
    let broken: [(Change, &str); 8] = [
        (|told| told["interfaces"][0]["mac"] = json!("02:00"), "interfaces[].mac"),
        (|told| told["interfaces"][1]["mac"] = json!(7), "interfaces[].mac"),
        (|told| told["ips"][0]["address"] = json!("10.244.1.7"), "ips[].address"),
        (|told| told["ips"][0]["address"] = json!("10.244.1.7/33"), "ips[].address"),
        (|told| told["ips"][1]["interface"] = json!(2), "ips[].interface"),
        (|told| told["ips"][1]["gateway"] = json!("router"), "ips[].gateway"),
        (|told| told["routes"][0] = json!("default"), "routes[].dst"),
        (|told| told["routes"][1]["gw"] = json!(["fe80::1"]), "routes[].gw"),
    ];
    for (change, said) in broken {
        let error = remembered(Version::V1_1_0, &json!({}), change).unwrap_err();
        assert_eq!(error.code, 7, "{error}");
        assert!(error.details.contains(&format!("prevResult.{said}")), "{error}");
    }
}
