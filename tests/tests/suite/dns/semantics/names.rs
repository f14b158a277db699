//! The zone's own names, pods' names, and how names are written.

use std::sync::Arc;

use mizzen_agent::{
    dns::{Config, zone::PodNames},
    model::{labels::Labels, namespace::Namespace},
};

use super::{
    Cluster, Said,
    cluster::{slice, snapshot},
};
use crate::dns::site::config;

#[test]
fn dns_23_the_version() {
    let cluster = Cluster::new();
    let said = cluster.ask("dns-version", "TXT");
    assert_eq!(said.answers, ["dns-version.cluster.local. 28800 IN TXT \"1.1.0\""]);
    assert_eq!(said.flags, "qr aa rd ra");
}

#[test]
fn dns_24_the_top_of_the_zone() {
    let cluster = Cluster::new();
    let said = cluster.ask("", "SOA");
    let [soa] = &said.answers[..] else { panic!("{said:?}") };
    let start = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. ";
    assert!(soa.starts_with(start) && soa.ends_with(" 7200 1800 86400 5"), "{soa}");
    let said = cluster.ask("", "NS");
    assert_eq!(said.answers, ["cluster.local. 5 IN NS ns.dns.cluster.local."]);
    let addresses = ["A 10.96.0.10", "AAAA fd00:96::a"];
    let glue = addresses.map(|data| format!("ns.dns.cluster.local. 5 IN {data}"));
    assert_eq!(said.additionals, glue);
    for kind in ["A", "AAAA", "SRV", "HINFO"] {
        cluster.has_none("", kind);
    }
    cluster.holds("ns.dns", "A", &["A 10.96.0.10"]);
    cluster.holds("ns.dns", "AAAA", &["AAAA fd00:96::a"]);
}

#[test]
fn dns_25_pods_insecure() {
    let cluster = Cluster::new();
    cluster.holds("10-240-0-1.testns.pod", "A", &["A 10.240.0.1"]);
    cluster.holds("1234-abcd--7.testns.pod", "AAAA", &["AAAA 1234:abcd::7"]);
    cluster.has_none("1234-abcd--7.testns.pod", "A");
    cluster.has_none("testns.pod", "A");
    for kind in ["A", "TXT", "SRV"] {
        cluster.misses("blah.testns.pod", kind);
    }
    cluster.misses("10-240-0-1.pod-nons.pod", "A");
}

#[test]
fn dns_25_dns_31_a_namespace_without_services() {
    let mut all = snapshot();
    let empty = Namespace { name: "emptyns".into(), labels: Labels::default() };
    all.namespaces.insert("emptyns".into(), Arc::new(empty));
    let cluster = Cluster::with(config(&[]), all);
    for kind in ["A", "AAAA", "TXT", "SRV"] {
        cluster.has_none("emptyns.svc", kind);
        cluster.has_none("emptyns.pod", kind);
        cluster.misses("svc1.emptyns.svc", kind);
    }
    cluster.holds("10-240-0-1.emptyns.pod", "A", &["A 10.240.0.1"]);
    cluster.holds("1234-abcd--7.emptyns.pod", "AAAA", &["AAAA 1234:abcd::7"]);
}

#[test]
fn dns_25_pods_disabled() {
    let config = Config { pod_names: PodNames::Disabled, ..config(&[]) };
    let cluster = Cluster::with(config, snapshot());
    for name in ["10-240-0-1.testns.pod", "172-0-0-2.testns.pod", "testns.pod"] {
        cluster.misses(name, "A");
    }
}

#[test]
fn dns_25_pods_verified() {
    let config = Config { pod_names: PodNames::Verified, ..config(&[]) };
    let mut all = snapshot();
    slice(&mut all, "svc1", "b", &[("5678:abcd::9", "ep1b")]);
    let cluster = Cluster::with(config, all);
    // The pods that are known are those behind Services; ready or not they are pods.
    cluster.holds("172-0-0-2.testns.pod", "A", &["A 172.0.0.2"]);
    cluster.holds("172-0-0-1.testns.pod", "A", &["A 172.0.0.1"]);
    cluster.holds("172-0-0-30.testns.pod", "A", &["A 172.0.0.30"]);
    cluster.holds("5678-abcd--9.testns.pod", "AAAA", &["AAAA 5678:abcd::9"]);
    cluster.has_none("172-0-0-2.testns.pod", "AAAA");
    cluster.has_none("testns.pod", "A");
    cluster.misses("10-240-0-1.testns.pod", "A");
    // A Service's address is no pod's.
    cluster.misses("10-0-0-1.testns.pod", "A");
    cluster.misses("172-0-0-2.pod-nons.pod", "A");
    cluster.misses("blah.testns.pod", "A");
}

#[test]
fn dns_26_a_leading_digit() {
    let cluster = Cluster::new();
    cluster.holds("1kubernetes.testns.svc", "A", &["A 10.0.0.7"]);
}

#[test]
fn dns_27_what_odd_search_domains_make_of_names() {
    let cluster = Cluster::new();
    // The search list ". under_score.cluster.local", as kubelet may write it.
    cluster.misses("svc1.testns.under_score", "A");
    cluster.misses("under_score", "A");
    let Said { status, flags, answers, .. } = cluster.ask("svc1.", "A");
    // Not ours, and nobody is configured to be asked.
    assert_eq!((status.as_str(), flags.as_str(), answers.len()), ("SERVFAIL", "qr rd ra", 0));
}

#[test]
fn dns_28_the_case_of_the_question_is_kept() {
    let cluster = Cluster::new();
    let name = "_HTTP._tCp.SVC1.TestNS.Svc.cLuStEr.LoCaL.";
    let target = "svc1.testns.svc.cLuStEr.LoCaL.";
    let said = cluster.holds(name, "SRV", &[&format!("SRV 0 100 80 {target}")]);
    assert_eq!(said.additionals, [format!("{target} 5 IN A 10.0.0.1")]);
    let said = cluster.ask("Nope.TestNS.svc.cLuStEr.LoCaL.", "A");
    assert_eq!(said.status, "NXDOMAIN");
    assert!(said.authorities[0].starts_with("cLuStEr.LoCaL. 5 IN SOA"), "{said:?}");
}
