//! What there is not: no such name, or no such type.

use super::Cluster;

const TYPES: [&str; 8] = ["AAAA", "TXT", "MX", "HINFO", "HTTPS", "SVCB", "ANY", "TYPE65280"];

#[test]
fn dns_29_more_labels_than_any_name_has() {
    let cluster = Cluster::new();
    cluster.misses("a._http._tcp.svc1.testns.svc", "SRV");
    cluster.misses("a.b.c.svc1.testns.svc", "A");
    cluster.misses("x.ep1a.svc1.testns.svc", "A");
}

#[test]
fn dns_30_a_port_of_another_protocol() {
    let cluster = Cluster::new();
    cluster.misses("_http._udp.svc1.testns.svc", "SRV");
    cluster.misses("http._tcp.svc1.testns.svc", "SRV");
    cluster.misses("_._tcp.multi.testns.svc", "SRV");
}

#[test]
fn dns_31_names_that_only_have_names_below_them() {
    let cluster = Cluster::new();
    for name in ["svc", "pod", "testns.svc", ""] {
        for kind in ["A", "AAAA", "TXT", "SRV", "ANY"] {
            cluster.has_none(name, kind);
        }
    }
}

#[test]
fn dns_32_names_that_are_not() {
    let cluster = Cluster::new();
    for name in [
        "svc1.nowhere.svc",
        "nowhere.svc",
        "nothing.testns.svc",
        "ep9.svc1.testns.svc",
        "nope",
        "svc1.testns",
    ] {
        cluster.misses(name, "A");
        cluster.misses(name, "HTTPS");
    }
}

#[test]
fn dns_33_types_that_are_not() {
    let cluster = Cluster::new();
    for kind in TYPES {
        cluster.has_none("svc1.testns.svc", kind);
    }
    cluster.has_none("svc6.testns.svc", "A");
    cluster.has_none("hdls1.testns.svc", "HTTPS");
    cluster.has_none("_http._tcp.svc1.testns.svc", "A");
}

#[test]
fn dns_34_empty_non_terminals_exist() {
    let cluster = Cluster::new();
    cluster.has_none("_tcp.svc1.testns.svc", "A");
    cluster.has_none("_tcp.hdls1.testns.svc", "SRV");
    cluster.has_none("dns", "A");
    cluster.misses("_udp.svc1.testns.svc", "A");
    cluster.has_none("0.10.in-addr.arpa.", "PTR");
    cluster.misses("9.10.in-addr.arpa.", "PTR");
}

#[test]
fn dns_35_the_version_has_no_address() {
    let cluster = Cluster::new();
    cluster.has_none("dns-version", "A");
    cluster.has_none("dns-version", "AAAA");
    cluster.misses("x.dns-version", "TXT");
}
