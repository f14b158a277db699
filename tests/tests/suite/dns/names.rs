//! Names of the cluster, asked with `dig` from a pod.

use super::site::{CLUSTER, NODE_LOCAL, Running, Site, config, dig, snapshot};

/// Every address of the resolver by every transport.
fn ways() -> Vec<String> {
    let addresses = CLUSTER.iter().chain(&NODE_LOCAL);
    addresses.flat_map(|at| ["+notcp", "+tcp"].map(|by| format!("@{at} {by}"))).collect()
}

#[test]
fn dns_01_dns_02_dns_03_pods_and_the_node_reach_the_resolver() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    for way in ways() {
        for host in [&site.pod, &site.node] {
            let short = |question: &str| dig(host, &format!("{way} +short {question}"));
            assert_eq!(short("web.default.svc.cluster.local A"), "10.96.1.1\n", "{way}");
            assert_eq!(short("web.default.svc.cluster.local AAAA"), "fd00:96::101\n", "{way}");
        }
    }
}

#[test]
fn dns_05_dns_09_dns_16_dns_23_other_types() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    for way in ways() {
        let short = |question: &str| {
            let said = site.dig(&format!("{way} +short {question}"));
            let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(
            short("_http._tcp.web.default.svc.cluster.local SRV"),
            ["0 50 80 web.default.svc.cluster.local."],
            "{way}"
        );
        assert_eq!(
            short("_http._tcp.db.default.svc.cluster.local SRV"),
            [
                "0 50 8080 db-0.db.default.svc.cluster.local.",
                "0 50 8080 db-1.db.default.svc.cluster.local.",
            ]
        );
        assert_eq!(short("db-1.db.default.svc.cluster.local A"), ["10.244.9.21"]);
        assert_eq!(short("-x 10.96.1.1"), ["web.default.svc.cluster.local."]);
        assert_eq!(short("-x fd00:96::101"), ["web.default.svc.cluster.local."]);
        assert_eq!(short("-x 10.244.9.20"), ["db-0.db.default.svc.cluster.local."]);
        assert_eq!(short("dns-version.cluster.local TXT"), ["\"1.1.0\""]);
        assert_eq!(short("10-244-1-7.default.pod.cluster.local A"), ["10.244.1.7"]);
        assert_eq!(short("cluster.local NS"), ["ns.dns.cluster.local."]);
        assert_eq!(short("ns.dns.cluster.local"), ["10.96.0.10"]);
    }
}

#[test]
fn dns_31_dns_32_dns_33_dns_46_what_there_is_not() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    for way in ways() {
        for (question, status) in [
            ("web.default.svc.cluster.local TXT", "NOERROR"),
            ("web.default.svc.cluster.local HTTPS", "NOERROR"),
            ("svc.cluster.local A", "NOERROR"),
            ("default.svc.cluster.local A", "NOERROR"),
            ("nope.default.svc.cluster.local A", "NXDOMAIN"),
            ("web.nowhere.svc.cluster.local A", "NXDOMAIN"),
        ] {
            let said = site.dig(&format!("{way} {question}"));
            assert!(said.contains(&format!("status: {status}")), "{way} {question}: {said}");
            assert!(said.contains("flags: qr aa rd ra;"), "{said}");
            assert!(said.contains("ANSWER: 0, AUTHORITY: 1, ADDITIONAL: 1"), "{said}");
            assert!(
                said.contains("SOA\tns.dns.cluster.local. hostmaster.cluster.local."),
                "{said}"
            );
        }
    }
}

#[test]
fn dns_28_the_case_of_the_question_is_kept() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    for way in ways() {
        let said = site.dig(&format!("{way} +noall +answer WeB.deFAULT.svc.CLUSTER.local A"));
        assert!(said.starts_with("WeB.deFAULT.svc.CLUSTER.local."), "{said}");
    }
}
