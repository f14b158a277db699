//! What may be asked of an interface, and in which words it is refused.

use serde_json::{Value, json};

use super::*;
use crate::protocol::{
    env::Verb,
    result,
    tests::{invocation, link, minimal, parse_conf},
};

/// What an ADD with this `runtimeConfig` asks for.
#[expect(clippy::needless_pass_by_value, reason = "written in place")]
fn asked(config: Value) -> Result<Requested, CniError> {
    asked_by(json!({"runtimeConfig": config}), |_| {})
}

#[expect(clippy::needless_pass_by_value, reason = "written in place")]
fn asked_by(more: Value, change: impl Fn(&mut Invocation)) -> Result<Requested, CniError> {
    let mut value = minimal("1.1.0");
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut invocation = invocation("ADD");
    change(&mut invocation);
    requested(&parse_conf(Verb::Add, &value)?, &invocation)
}

#[track_caller]
fn refused(config: Value, words: &[&str]) {
    let error = asked(config).unwrap_err();
    assert_eq!(error.code, 7, "{error}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn cni_31_port_mappings_and_resolvers_are_read_as_containerd_writes_them() {
    let requested = asked(json!({"portMappings": [
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
        {"HostPort": 53, "ContainerPort": 53, "Protocol": "udp", "HostIP": "192.0.2.1"},
    ]}));
    let mappings = requested.unwrap().port_mappings;
    let read: Vec<_> = mappings.iter().map(|of| (of.host_ip, of.host_port, of.protocol)).collect();
    let address = "192.0.2.1".parse().ok();
    assert_eq!(read, [(None, 8080, Protocol::Tcp), (address, 53, Protocol::Udp)]);
    let config = json!({"dns": {"Servers": ["10.96.0.10"], "Searches": ["x"], "Options": null}});
    let said = dns(config.as_object().unwrap()).unwrap();
    assert_eq!(said, json!({"nameservers": ["10.96.0.10"], "search": ["x"]}));
}

#[test]
fn cni_31_port_mappings_are_read() {
    let requested = asked(json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "::"},
        {"hostPort": 8080, "containerPort": 80},
    ]}));
    let mapping = |host_ip: &str, host_port, container_port, protocol| PortMapping {
        host_ip: host_ip.parse().ok(),
        host_port,
        container_port,
        protocol,
    };
    let expected = [
        mapping("", 8080, 80, Protocol::Tcp),
        mapping("192.0.2.1", 53, 5353, Protocol::Udp),
        mapping("::", 53, 5353, Protocol::Udp),
    ];
    assert_eq!(requested.unwrap().port_mappings, expected);
    assert!(asked(json!({"portMappings": null})).unwrap().is_empty());
}

#[test]
fn cni_16_cni_31_port_mappings_that_make_no_sense_are_named() {
    let one =
        |mapping: Value| json!({"portMappings": [{"hostPort": 1, "containerPort": 2}, mapping]});
    refused(json!({"portMappings": 8080}), &["portMappings", "list"]);
    refused(one(json!("8080:80")), &["[1]", "object"]);
    refused(one(json!({"containerPort": 80})), &["[1]", "hostPort", "null"]);
    refused(one(json!({"hostPort": 65536, "containerPort": 80})), &["hostPort", "65536"]);
    refused(one(json!({"hostPort": 0, "containerPort": 80})), &["hostPort: 0"]);
    refused(one(json!({"hostPort": 80, "containerPort": -1})), &["containerPort", "-1"]);
    let protocol = |name| json!({"hostPort": 1, "containerPort": 1, "protocol": name});
    refused(one(protocol(json!("sctp"))), &["protocol", "sctp", "tcp and udp"]);
    refused(one(protocol(json!(6))), &["protocol", "6 is not a string"]);
    let address = json!({"hostPort": 1, "containerPort": 1, "hostIP": "node-1"});
    refused(one(address), &["hostIP", "node-1"]);
    let many: Vec<_> = (0..1025).map(|_| json!({"hostPort": 1, "containerPort": 2})).collect();
    refused(json!({"portMappings": many}), &["1025", "1024"]);
}

#[test]
fn cni_32_bandwidth_is_read_and_what_makes_no_sense_is_named() {
    let limits = |rate, burst, other, other_burst| {
        json!({"bandwidth": {
            "ingressRate": rate, "ingressBurst": burst,
            "egressRate": other, "egressBurst": other_burst,
        }})
    };
    let limit = |rate, burst| Some(Limit { rate, burst });
    let read = |config| asked(config).unwrap().bandwidth;
    let both = Bandwidth { ingress: limit(1_000_000, 80_000), egress: limit(2_000_000, 90_000) };
    assert_eq!(read(limits(1_000_000, 80_000, 2_000_000, 90_000)), both);
    assert_eq!(read(limits(0, 0, 8, 1)), Bandwidth { ingress: None, egress: limit(8, 1) });
    assert_eq!(
        read(json!({"bandwidth": {"ingressRate": 8, "ingressBurst": 34_359_738_367_u64}})),
        Bandwidth { ingress: limit(8, Limit::BURST_MAX), egress: None }
    );
    // As containerd writes it.
    let containerds = json!({"bandwidth": {
        "IngressRate": 8, "IngressBurst": u32::MAX, "EgressRate": 0, "EgressBurst": 0,
    }});
    let ingress = limit(8, u32::MAX.into());
    assert_eq!(read(containerds), Bandwidth { ingress, egress: None });
    assert!(read(json!({"bandwidth": {}})).is_unlimited());
    refused(limits(0, 1, 0, 0), &["ingressBurst without ingressRate"]);
    refused(limits(0, 0, 1000, 0), &["egressRate without egressBurst"]);
    refused(limits(7, 1, 0, 0), &["ingressRate: 7"]);
    refused(
        json!({"bandwidth": {"egressRate": 8, "egressBurst": 34_359_738_368_u64}}),
        &["egressBurst", "4 GiB"],
    );
    refused(json!({"bandwidth": {"egressRate": "8M"}}), &["egressRate", "8M"]);
    refused(json!({"bandwidth": [8]}), &["bandwidth", "object"]);
}

#[test]
fn cni_22_addresses_are_asked_for_in_three_ways_of_which_the_newest_goes_first() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let config = json!({"runtimeConfig": {"ips": ["10.244.1.9/24", "fd00:244:1::9"]}});
    let args = json!({"args": {"cni": {"ips": ["10.244.1.8"]}, "other": 1}});
    let old = |invocation: &mut Invocation| invocation.ip = Some("10.244.1.7,fd00:244:1::7".into());
    let read = |more| asked_by(more, old).unwrap().addresses;
    let mut both = config.clone();
    both["args"] = args["args"].clone();
    assert_eq!(read(both), [ip("10.244.1.9"), ip("fd00:244:1::9")]);
    assert_eq!(read(args), [ip("10.244.1.8")]);
    assert_eq!(read(json!({})), [ip("10.244.1.7"), ip("fd00:244:1::7")]);
    refused(json!({"ips": ["10.244.1.9", "10.244.1.10"]}), &["ips", "10.244.1.10", "family"]);
    refused(json!({"ips": ["web-0"]}), &["ips", "web-0"]);
    refused(json!({"ips": "10.244.1.9"}), &["ips", "list"]);
}

#[test]
fn cni_22_a_link_layer_address_is_asked_for() {
    let mac = Some(Mac([2, 0, 0, 0, 0, 9]));
    assert_eq!(asked(json!({"mac": "02:00:00:00:00:09"})).unwrap().mac, mac);
    let args = json!({"args": {"cni": {"mac": "02:00:00:00:00:09"}}});
    assert_eq!(asked_by(args, |_| {}).unwrap().mac, mac);
    let old = |invocation: &mut Invocation| invocation.mac = Some("02:00:00:00:00:09".into());
    assert_eq!(asked_by(json!({}), old).unwrap().mac, mac);
    refused(json!({"mac": "01:00:5e:00:00:01"}), &["mac", "one interface"]);
    refused(json!({"mac": "02:00"}), &["mac", "02:00"]);
    refused(json!({"mac": 2}), &["mac", "2 is not a string"]);
}

#[test]
fn cni_30_the_result_says_the_resolver_only_where_the_runtime_did() {
    let mut value = minimal("1.1.0");
    let dns = |value: &Value| {
        let conf = parse_conf(Verb::Add, value).unwrap();
        result::added(&conf, &invocation("ADD"), &link())["dns"].clone()
    };
    assert_eq!(dns(&value), json!({}));
    value["prevResult"] = json!({"dns": {"nameservers": ["192.0.2.53"]}});
    assert_eq!(dns(&value), json!({"nameservers": ["192.0.2.53"]}));
    value["runtimeConfig"] = json!({"dns": {
        "servers": ["10.96.0.10"], "searches": ["default.svc.cluster.local"], "options": [],
    }});
    let expected = json!({"nameservers": ["10.96.0.10"], "search": ["default.svc.cluster.local"]});
    assert_eq!(dns(&value), expected);
}
