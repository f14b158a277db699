//! Headless Services, endpoints, and addresses back to names.

use super::Cluster;

#[test]
fn dns_07_an_address_for_each_ready_endpoint() {
    let cluster = Cluster::new();
    let v4 = ["A 172.0.0.2", "A 172.0.0.3", "A 172.0.0.4", "A 172.0.0.5"];
    cluster.holds("hdls1.testns.svc", "A", &v4);
    cluster.holds("hdls1.testns.svc", "AAAA", &["AAAA 5678:abcd::1", "AAAA 5678:abcd::2"]);
    cluster.holds("hdls-two-ports.testns.svc", "A", &["A 172.0.0.40"]);
}

#[test]
fn dns_08_endpoints_of_the_other_family_only() {
    let cluster = Cluster::new();
    cluster.has_none("hdls6.testns.svc", "A");
    cluster.holds("hdls6.testns.svc", "AAAA", &["AAAA 2001:db8::"]);
}

#[test]
fn dns_09_srv_names_each_host_once() {
    let cluster = Cluster::new();
    let hosts = ["172-0-0-2", "172-0-0-3", "5678-abcd--1", "5678-abcd--2", "dup-name"];
    let expected = hosts.map(|host| format!("SRV 0 16 80 {host}.hdls1.testns.svc.cluster.local."));
    let expected = expected.each_ref().map(String::as_str);
    let said = cluster.holds("_http._tcp.hdls1.testns.svc", "SRV", &expected);
    let glue = [
        "172-0-0-2.hdls1.testns.svc.cluster.local. 5 IN A 172.0.0.2",
        "172-0-0-3.hdls1.testns.svc.cluster.local. 5 IN A 172.0.0.3",
        "5678-abcd--1.hdls1.testns.svc.cluster.local. 5 IN AAAA 5678:abcd::1",
        "5678-abcd--2.hdls1.testns.svc.cluster.local. 5 IN AAAA 5678:abcd::2",
        "dup-name.hdls1.testns.svc.cluster.local. 5 IN A 172.0.0.4",
        "dup-name.hdls1.testns.svc.cluster.local. 5 IN A 172.0.0.5",
    ];
    assert_eq!(said.additionals, glue);
    let two = [443, 80]
        .map(|port| format!("SRV 0 50 {port} 172-0-0-40.hdls-two-ports.testns.svc.cluster.local."));
    let two = two.each_ref().map(String::as_str);
    cluster.holds("hdls-two-ports.testns.svc", "SRV", &two);
}

#[test]
fn dns_10_a_headless_service_without_ports() {
    let cluster = Cluster::new();
    cluster.holds("hdlsprtls.testns.svc", "A", &["A 172.0.0.20"]);
    cluster.has_none("hdlsprtls.testns.svc", "SRV");
}

#[test]
fn dns_11_names_of_endpoints() {
    let cluster = Cluster::new();
    cluster.holds("172-0-0-2.hdls1.testns.svc", "A", &["A 172.0.0.2"]);
    cluster.holds("dup-name.hdls1.testns.svc", "A", &["A 172.0.0.4", "A 172.0.0.5"]);
    cluster.holds("5678-abcd--2.hdls1.testns.svc", "AAAA", &["AAAA 5678:abcd::2"]);
    cluster.holds("2001-db8--0.hdls6.testns.svc", "AAAA", &["AAAA 2001:db8::"]);
    cluster.has_none("172-0-0-2.hdls1.testns.svc", "AAAA");
    // Who has a hostname is not called by its address.
    cluster.misses("172-0-0-4.hdls1.testns.svc", "A");
}

#[test]
fn dns_12_endpoints_of_a_service_with_a_cluster_ip() {
    let cluster = Cluster::new();
    cluster.holds("ep1a.svc1.testns.svc", "A", &["A 172.0.0.1"]);
}

#[test]
fn dns_11_dns_12_srv_of_endpoints() {
    let cluster = Cluster::new();
    for (name, weight, glue) in [
        ("172-0-0-2.hdls1.testns.svc", 100, &["A 172.0.0.2"][..]),
        ("5678-abcd--2.hdls1.testns.svc", 100, &["AAAA 5678:abcd::2"]),
        ("dup-name.hdls1.testns.svc", 50, &["A 172.0.0.4", "A 172.0.0.5"]),
        ("ep1a.svc1.testns.svc", 100, &["A 172.0.0.1"]),
    ] {
        let srv = format!("SRV 0 {weight} 80 {name}.cluster.local.");
        let said = cluster.holds(name, "SRV", &[&srv]);
        let glue: Vec<_> =
            glue.iter().map(|data| format!("{name}.cluster.local. 5 IN {data}")).collect();
        assert_eq!(said.additionals, glue);
    }
    let two = [443, 80]
        .map(|port| format!("SRV 0 50 {port} 172-0-0-40.hdls-two-ports.testns.svc.cluster.local."));
    let two = two.each_ref().map(String::as_str);
    cluster.holds("172-0-0-40.hdls-two-ports.testns.svc", "SRV", &two);
    cluster.has_none("172-0-0-20.hdlsprtls.testns.svc", "SRV");
    cluster.misses("172-0-0-4.hdls1.testns.svc", "SRV");
}

#[test]
fn dns_13_ready_is_what_counts() {
    let cluster = Cluster::new();
    cluster.holds("partly.testns.svc", "A", &["A 172.0.0.32"]);
    cluster.misses("172-0-0-31.partly.testns.svc", "A");
    cluster.misses("31.0.0.172.in-addr.arpa.", "PTR");
}

#[test]
fn dns_14_an_address_in_two_slices_is_said_once() {
    let cluster = Cluster::new();
    let target = "172-0-0-2.hdls1.testns.svc.cluster.local.";
    cluster.holds("2.0.0.172.in-addr.arpa.", "PTR", &[&format!("PTR {target}")]);
    cluster.holds("172-0-0-2.hdls1.testns.svc", "A", &["A 172.0.0.2"]);
}

#[test]
fn dns_15_an_address_in_two_services_has_two_names() {
    let cluster = Cluster::new();
    let names = ["hdls1", "twin"]
        .map(|service| format!("PTR 172-0-0-3.{service}.testns.svc.cluster.local."));
    let names = names.each_ref().map(String::as_str);
    cluster.holds("3.0.0.172.in-addr.arpa.", "PTR", &names);
}

#[test]
fn dns_16_addresses_back_to_names() {
    let cluster = Cluster::new();
    for (address, name) in [
        ("1.0.0.10.in-addr.arpa.", "svc1"),
        // A Service wins over an endpoint with its address.
        ("3.0.0.10.in-addr.arpa.", "svc-dual-stack"),
        ("4.0.0.172.in-addr.arpa.", "dup-name.hdls1"),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.4.3.2.1.ip6.arpa.", "svc6"),
        (
            "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.8.7.6.5.ip6.arpa.",
            "5678-abcd--2.hdls1",
        ),
    ] {
        let target = format!("PTR {name}.testns.svc.cluster.local.");
        cluster.holds(address, "PTR", &[&target]);
    }
}

#[test]
fn dns_17_an_address_that_nobody_has() {
    let cluster = Cluster::new();
    cluster.misses("99.0.0.10.in-addr.arpa.", "PTR");
}

#[test]
fn dns_18_pointers_where_there_are_none() {
    let cluster = Cluster::new();
    cluster.has_none("svc1.testns.svc", "PTR");
    cluster.misses("example.org", "PTR");
    cluster.misses("100.0.0.10", "PTR");
    cluster.misses("svc1.testns.svc.0.10.in-addr.arpa.", "A");
    cluster.has_none("1.0.0.10.in-addr.arpa.", "A");
}

#[test]
fn dns_36_a_headless_service_without_a_ready_endpoint() {
    let cluster = Cluster::new();
    cluster.misses("unready.testns.svc", "A");
    cluster.misses("_http._tcp.unready.testns.svc", "SRV");
}
