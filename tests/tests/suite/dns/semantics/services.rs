//! Services with cluster IPs, and what is said in place of other names.

use super::{
    Cluster,
    cluster::{external, snapshot},
};
use crate::dns::site::config;

#[test]
fn dns_01_an_ipv4_service() {
    let cluster = Cluster::new();
    cluster.holds("svc1.testns.svc", "A", &["A 10.0.0.1"]);
}

#[test]
fn dns_02_an_ipv6_service() {
    let cluster = Cluster::new();
    cluster.holds("svc6.testns.svc", "AAAA", &["AAAA 1234:abcd::1"]);
}

#[test]
fn dns_03_a_service_of_both_families() {
    let cluster = Cluster::new();
    let name = "svc-dual-stack.testns.svc";
    cluster.holds(name, "A", &["A 10.0.0.3"]);
    cluster.holds(name, "AAAA", &["AAAA 10::3"]);
    let target = format!("{name}.cluster.local.");
    let said = cluster.holds(name, "SRV", &[&format!("SRV 0 50 80 {target}")]);
    let glue = ["A 10.0.0.3", "AAAA 10::3"].map(|data| format!("{target} 5 IN {data}"));
    assert_eq!(said.additionals, glue);
}

#[test]
fn dns_04_a_service_without_endpoints() {
    let cluster = Cluster::new();
    cluster.holds("svcempty.testns.svc", "A", &["A 10.0.0.2"]);
}

#[test]
fn dns_05_srv_at_the_services_own_name() {
    let cluster = Cluster::new();
    let target = "svc1.testns.svc.cluster.local.";
    let said = cluster.holds("svc1.testns.svc", "SRV", &[&format!("SRV 0 100 80 {target}")]);
    assert_eq!(said.additionals, [format!("{target} 5 IN A 10.0.0.1")]);
    // Every port is there, the one without a name as well; each weighs a third.
    let multi =
        ["9", "53", "80"].map(|port| format!("SRV 0 33 {port} multi.testns.svc.cluster.local."));
    cluster.holds("multi.testns.svc", "SRV", &multi.each_ref().map(String::as_str));
    // As of the Service of cluster DNS: one number by both protocols is one record.
    let target = "both.testns.svc.cluster.local.";
    let said = cluster.holds("both.testns.svc", "SRV", &[&format!("SRV 0 50 53 {target}")]);
    assert_eq!(said.additionals, [format!("{target} 5 IN A 10.0.0.9")]);
}

#[test]
fn dns_06_srv_of_a_named_port() {
    let cluster = Cluster::new();
    let target = "svc1.testns.svc.cluster.local.";
    let name = "_http._tcp.svc1.testns.svc";
    let said = cluster.holds(name, "SRV", &[&format!("SRV 0 100 80 {target}")]);
    assert_eq!(said.additionals, [format!("{target} 5 IN A 10.0.0.1")]);
    let multi = "SRV 0 100 53 multi.testns.svc.cluster.local.";
    cluster.holds("_dns._udp.multi.testns.svc", "SRV", &[multi]);
}

#[test]
fn dns_19_external_names() {
    let cluster = Cluster::new();
    cluster.holds("external.testns.svc", "CNAME", &["CNAME ext.interwebs.test."]);
    let owner = "external-to-service.testns.svc.cluster.local.";
    let said = cluster.ask(owner, "A");
    let target = "svc1.testns.svc.cluster.local.";
    let expected = [format!("{owner} 5 IN CNAME {target}"), format!("{target} 5 IN A 10.0.0.1")];
    assert_eq!((said.status.as_str(), &said.answers[..]), ("NOERROR", &expected[..]));
    // The target exists and has no such type; the alias is said all the same.
    let said = cluster.ask(owner, "AAAA");
    assert_eq!((said.status.as_str(), said.answers.len()), ("NOERROR", 1));
    assert_eq!(said.authorities.len(), 1);
    let said = cluster.ask("external-to-headless.testns.svc", "AAAA");
    assert_eq!(said.answers.len(), 3);
    // And the same where there is no target.
    let said = cluster.ask("external-to-nothing.testns.svc", "A");
    assert_eq!((said.status.as_str(), said.answers.len()), ("NXDOMAIN", 1));
}

#[test]
fn dns_20_nothing_is_below_an_external_name() {
    let cluster = Cluster::new();
    cluster.misses("x.external.testns.svc", "A");
    cluster.misses("a.b.external.testns.svc", "A");
}

#[test]
fn dns_21_an_external_name_has_no_srv() {
    let cluster = Cluster::new();
    cluster.has_none("external.testns.svc", "SRV");
}

#[test]
fn dns_22_external_names_in_a_circle() {
    let mut all = snapshot();
    for link in 0..40 {
        let target = format!("l{}.testns.svc.cluster.local", link + 1);
        external(&mut all, &format!("l{link}"), &target);
    }
    let cluster = Cluster::with(config(&[]), all);
    assert_eq!(cluster.ask("loop-a.testns.svc", "A").answers.len(), 2);
    assert_eq!(cluster.ask("loop-self.testns.svc", "A").answers.len(), 1);
    // Ten are followed, and no more.
    assert_eq!(cluster.ask("l0.testns.svc", "A").answers.len(), 11);
}
