//! A resolver that follows a Corefile.

use std::{fs, path::Path, time::Duration};

use mizzen_agent::{
    dns::{Config, Source},
    status::State,
};
use mizzen_tests::wait;

use super::{
    site::{CLUSTER, OUTSIDE, OUTSIDE_TOO, Running, Site, config, snapshot},
    upstream::Upstream,
};

const SOON: Duration = Duration::from_secs(20);

fn following(path: &Path) -> Config {
    Config { source: Source::Corefile(path.to_owned()), ..config(&[]) }
}

/// A Corefile as kubeadm's clusters have it, with this upstream and these lines.
fn corefile(upstream: &str, more: &str) -> String {
    format!(
        ".:53 {{\n    errors\n    kubernetes cluster.local in-addr.arpa ip6.arpa {{\n        \
         pods verified\n        fallthrough in-addr.arpa ip6.arpa\n        ttl 30\n    }}\n    \
         forward . {upstream}\n    cache 30\n    loop\n    reload\n    {more}\n}}\n"
    )
}

#[test]
fn names_are_answered_as_the_corefile_says() {
    let site = Site::new();
    let upstream = Upstream::start(&site.outside, &[OUTSIDE[0].parse().unwrap()]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    let hosts = "hosts {\n 192.0.2.33 table.example\n fallthrough\n }";
    fs::write(&path, corefile(OUTSIDE[0], hosts)).unwrap();
    let _running = Running::start(&site, following(&path), snapshot());
    for address in CLUSTER {
        for by in ["+notcp", "+tcp"] {
            let ask = |question: &str| site.dig(&format!("@{address} {by} {question}"));
            let said = ask("+noall +answer web.default.svc.cluster.local A");
            assert!(said.contains(" 30 IN\tA\t10.96.1.1"), "{said}");
            assert!(ask("10-244-1-9.default.pod.cluster.local A").contains("NXDOMAIN"));
            assert_eq!(ask("+short www.example.org A"), "192.0.2.80\n");
            assert_eq!(ask("+short table.example A"), "192.0.2.33\n");
            assert_eq!(ask("+short -x 192.0.2.33"), "table.example.\n");
        }
    }
    assert_eq!(upstream.times_asked("table.example."), 0);
    // Names that are not in it fail where none falls through; addresses are looked for elsewhere.
    let deaf = "hosts {\n 192.0.2.33 table.example\n }";
    fs::write(&path, corefile(OUTSIDE[0], deaf)).unwrap();
    for address in CLUSTER {
        let ask = |question: &str| site.dig(&format!("@{address} {question}"));
        wait::until("the table to be deaf", SOON, || match ask("www.example.org A") {
            said if said.contains("(the name is not in the table of hosts)") => Ok(()),
            said => Err(said),
        });
        assert_eq!(ask("+short -x 10.96.1.1"), "web.default.svc.cluster.local.\n");
        assert!(ask("-x 198.51.100.1").contains("status: NXDOMAIN"));
        assert!(ask("-x 2001:db8::1").contains("status: NXDOMAIN"));
    }
    assert_eq!(upstream.times_asked("1.100.51.198.in-addr.arpa."), 1);
}

#[test]
fn a_changed_corefile_is_put_in_force_and_a_bad_one_is_not() {
    let site = Site::new();
    let addresses = [OUTSIDE[0], OUTSIDE_TOO[0]].map(|address| address.parse().unwrap());
    let _upstream = Upstream::start(&site.outside, &addresses);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    fs::write(&path, corefile(OUTSIDE[0], "")).unwrap();
    let running = Running::start(&site, following(&path), snapshot());
    let ask = |name: &str| site.dig(&format!("@{} +short {name} A", CLUSTER[0]));
    assert_eq!(ask("www.example.org"), "192.0.2.80\n");

    fs::write(&path, corefile(OUTSIDE[0], "route53 a b")).unwrap();
    let state = running.until("the error", |state| matches!(state, State::Degraded(_)));
    let State::Degraded(why) = state else { unreachable!() };
    assert!(why.contains("Corefile:12:5: \"route53\" is not supported"), "{why}");
    assert!(why.contains("stays in force"), "{why}");
    assert_eq!(ask("www.example.org"), "192.0.2.80\n");
    assert_eq!(ask("web.default.svc.cluster.local"), "10.96.1.1\n");

    let table = "hosts {\n 192.0.2.34 www.example.org\n fallthrough\n }";
    fs::write(&path, corefile(OUTSIDE_TOO[0], table)).unwrap();
    running.until("ready", |state| *state == State::Ready);
    wait::until("the table", SOON, || match ask("www.example.org") {
        said if said == "192.0.2.34\n" => Ok(()),
        said => Err(said),
    });
    assert_eq!(ask("ext.interwebs.test"), "192.0.2.80\n");
    assert_eq!(ask("web.default.svc.cluster.local"), "10.96.1.1\n");
}

/// A table that is gone, or can't be read, takes no name from anybody, and it is said.
#[test]
fn a_table_of_hosts_that_is_gone_stays_in_force() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let _upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Corefile");
        let table = folder.path().join("NodeHosts");
        fs::write(&table, "192.0.2.34 table.example\n").unwrap();
        let root = folder.path().display();
        fs::write(
            &path,
            corefile(server, &format!("root {root}\n hosts NodeHosts {{\n fallthrough\n }}")),
        )
        .unwrap();
        let running = Running::start(&site, following(&path), snapshot());
        let is = |expected: &str| {
            for by in ["+notcp", "+tcp"] {
                let said = site.dig(&format!("@{address} {by} +short table.example A"));
                assert_eq!(said, expected, "{by} @{address}");
            }
        };
        let said_to_be = |what: &str| {
            running.until(
                what,
                |state| matches!(state, State::Degraded(why) if why.contains(what) && why.contains("stays in force")),
            );
        };
        is("192.0.2.34\n");
        fs::remove_file(&table).unwrap();
        said_to_be("it was there and is gone");
        is("192.0.2.34\n");
        fs::create_dir(&table).unwrap();
        said_to_be("NodeHosts can't be read");
        is("192.0.2.34\n");
        fs::remove_dir(&table).unwrap();
        said_to_be("it was there and is gone");
        fs::write(&table, "192.0.2.34 table.example\n").unwrap();
        running.until("ready", |state| *state == State::Ready);
        is("192.0.2.34\n");
    }
}

#[test]
fn what_a_changed_corefile_does_not_keep_is_not_given() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Corefile");
        let kept = corefile(server, "");
        fs::write(&path, &kept).unwrap();
        let _running = Running::start(&site, following(&path), snapshot());
        let ask = || {
            assert!(site.dig(&format!("@{address} www.example.org A")).contains("192.0.2.80"));
            upstream.times_asked("www.example.org.")
        };
        assert_eq!([ask(), ask()], [1, 1]);
        fs::write(&path, kept.replace("    cache 30\n", "")).unwrap();
        // The answer that is there would be good for half a minute.
        wait::until("it to be forgotten", SOON, || match ask() {
            1 => Err("from memory".to_owned()),
            _ => Ok(()),
        });
        let before = ask();
        assert_eq!(ask(), before + 1, "nothing is kept any more");
    }
}

#[test]
fn dns_66_the_nodes_own_resolv_conf_is_followed() {
    let site = Site::new();
    let _upstream = Upstream::start(&site.outside, &OUTSIDE.map(|text| text.parse().unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    // The resolver's own address is among them, as it is where the node itself asks it.
    fs::write(&path, format!("nameserver {}\n", CLUSTER[0])).unwrap();
    let follows = Config { source: Source::ResolvConf(path.clone()), ..config(&[]) };
    let running = Running::begin(&site, follows, snapshot());
    running.until(
        "degraded",
        |state| matches!(state, State::Degraded(why) if why.contains("is this resolver itself")),
    );
    let ask = || site.dig(&format!("@{} +short www.example.org A", CLUSTER[0]));
    fs::write(&path, format!("nameserver {}\n", OUTSIDE[1])).unwrap();
    running.until("ready", |state| *state == State::Ready);
    assert_eq!(ask(), "192.0.2.80\n");
}

#[test]
fn a_node_without_a_resolv_conf_is_told_of_and_served() {
    let site = Site::new();
    let folder = tempfile::tempdir().unwrap();
    let follows =
        Config { source: Source::ResolvConf(folder.path().join("resolv.conf")), ..config(&[]) };
    let running = Running::begin(&site, follows, snapshot());
    let is =
        |state: &State| matches!(state, State::Degraded(why) if why.contains("nobody is asked"));
    running.until("degraded", is);
    let said = site.dig(&format!("@{} +short web.default.svc.cluster.local A", CLUSTER[0]));
    assert_eq!(said, "10.96.1.1\n");
}

/// As the manifest has it: what it sends to cluster DNS is answered here, addresses of others by the
/// node's upstreams, and nothing by other nodes' resolvers, which would send it on likewise.
#[test]
fn the_corefile_of_nodelocal_is_used_as_it_is() {
    let site = Site::new();
    let fixture = include_str!("../../../../agent/src/dns/corefile/fixtures/nodelocal.Corefile");
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Corefile");
        // The machine's own upstreams are no part of a test.
        fs::write(&path, fixture.replace("__PILLAR__UPSTREAM__SERVERS__", server)).unwrap();
        let _running = Running::start(&site, following(&path), snapshot());
        for by in ["+notcp", "+tcp"] {
            let ask = |question: &str| site.dig(&format!("@{address} {by} {question}"));
            assert_eq!(ask("+short web.default.svc.cluster.local A"), "10.96.1.1\n");
            assert_eq!(ask("+short -x 10.96.1.1"), "web.default.svc.cluster.local.\n");
            assert_eq!(ask("+short -x fd00:96::101"), "web.default.svc.cluster.local.\n");
            assert_eq!(ask("+short www.example.org A"), "192.0.2.80\n");
            assert!(ask("-x 198.51.100.1").contains("status: NXDOMAIN"));
            assert!(ask("-x 2001:db8::1").contains("status: NXDOMAIN"));
        }
        assert_eq!(upstream.times_asked("1.100.51.198.in-addr.arpa."), 1);
    }
}

/// A Corefile is looked through as CoreDNS does it, whether its blocks have steps (`log`) or none:
/// the block with the longest zone has the name, and in it the first `forward` that does not pass
/// over it.
fn is_asked(blocks: impl Fn(&str, &str) -> String, expected: &[(&str, Option<bool>)]) {
    let site = Site::new();
    for (place, address) in CLUSTER.into_iter().enumerate() {
        let [first, second] = [OUTSIDE, OUTSIDE_TOO].map(|of| of[place]);
        for log in ["", "log"] {
            let [one, other] = [first, second]
                .map(|server| Upstream::start(&site.outside, &[server.parse().unwrap()]));
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("Corefile");
            fs::write(&path, blocks(first, second).replace("log", log)).unwrap();
            let _running = Running::start(&site, following(&path), snapshot());
            for (name, by_first) in expected {
                let said = site.dig(&format!("@{address} {name} A"));
                let answered = said.contains("192.0.2.80");
                assert_eq!(answered, by_first.is_some(), "{name} {log:?}: {said}");
                let asked = [&one, &other].map(|upstream| upstream.times_asked(name));
                let times = by_first.map_or([0, 0], |by| [usize::from(by), usize::from(!by)]);
                assert_eq!(asked, times, "{name} {log:?}");
            }
        }
    }
}

#[test]
fn the_block_has_a_name_before_the_longest_forward() {
    let blocks = |first: &str, second: &str| {
        format!(
            ". {{\nlog\nforward . {first}\nforward any-a.org {second}\n}}\n\
             any-b.org {{\nlog\nforward any-x.any-b.org {first}\nforward . {second}\n}}\n\
             any-c.org {{\nlog\nforward any-x.any-c.org {first}\n}}\n"
        )
    };
    let expected = [
        ("any-y.any-a.org.", Some(true)),
        ("any-y.any-b.org.", Some(false)),
        ("any-z.any-x.any-b.org.", Some(true)),
        ("any-z.any-x.any-c.org.", Some(true)),
        ("any-z.any-c.org.", None),
    ];
    is_asked(blocks, &expected);
}

#[test]
fn what_a_forward_passes_over_is_the_next_ones() {
    let blocks = |first: &str, second: &str| {
        format!(
            ". {{\nlog\nforward . {first} {{\nexcept any-a.org any-b.org\n}}\n\
             forward . {second} {{\nexcept any-b.org\n}}\n}}\n\
             any-c.org {{\nlog\nforward . {first} {{\nexcept any-x.any-c.org\n}}\n}}\n"
        )
    };
    let expected = [
        ("any-z.org.", Some(true)),
        ("any-y.any-a.org.", Some(false)),
        ("any-y.any-b.org.", None),
        ("any-y.any-c.org.", Some(true)),
        ("any-y.any-x.any-c.org.", None),
    ];
    is_asked(blocks, &expected);
}

/// Blocks for parts of the cluster's names and of the trees of addresses, and ranges that are kept.
#[test]
fn dns_17_parts_are_answered_by_the_blocks_that_have_them() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Corefile");
        let text = format!(
            ". {{\nkubernetes cluster.local 10.96.0.0/12 fd00:96::/112 {{\nfallthrough any-x.cluster.local\n}}\n\
             forward . {server}\n}}\n\
             any-lab.svc.cluster.local 10.96.1.0/24 {{\nforward . {server}\n}}\n"
        );
        fs::write(&path, text).unwrap();
        let _running = Running::start(&site, following(&path), snapshot());
        for by in ["+notcp", "+tcp"] {
            let ask = |question: &str| site.dig(&format!("@{address} {by} {question}"));
            assert_eq!(ask("+short web.default.svc.cluster.local A"), "10.96.1.1\n");
            assert_eq!(ask("+short any-web.any-lab.svc.cluster.local A"), "192.0.2.80\n");
            assert_eq!(ask("+short any-web.any-x.cluster.local A"), "192.0.2.80\n");
            assert!(ask("any-web.default.svc.cluster.local A").contains("status: NXDOMAIN"));
            // The index has this one, and another block the range.
            assert!(ask("-x 10.96.1.1").contains("status: NXDOMAIN"));
            assert_eq!(ask("+short -x fd00:96::101"), "web.default.svc.cluster.local.\n");
            for kept in ["10.96.2.9", "10.111.255.1", "fd00:96::9"] {
                let said = ask(&format!("-x {kept}"));
                assert!(
                    said.contains("status: NXDOMAIN") && said.contains("flags: qr aa"),
                    "{said}"
                );
            }
            assert!(ask("-x 10.112.0.1").contains("flags: qr rd ra;"));
        }
        for (name, times) in [
            ("1.1.96.10.in-addr.arpa.", 2),
            ("1.0.112.10.in-addr.arpa.", 2),
            ("any-web.any-lab.svc.cluster.local.", 2),
            ("any-web.default.svc.cluster.local.", 0),
            ("9.2.96.10.in-addr.arpa.", 0),
            ("1.255.111.10.in-addr.arpa.", 0),
        ] {
            assert_eq!(upstream.times_asked(name), times, "{name}");
        }
    }
}

/// As CoreDNS has it: no name of a block leaves by the upstreams of another one.
#[test]
fn dns_17_dns_38_what_falls_through_a_block_without_upstreams_fails() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Corefile");
        let text = format!(
            "10.0.0.0/8 fd00::/16 {{\nhosts /nothing {{\nfallthrough\n}}\n}}\n\
             cluster.local {{\nkubernetes {{\nfallthrough\n}}\n}}\n. {{\nforward . {server}\n}}\n"
        );
        fs::write(&path, text).unwrap();
        let _running = Running::start(&site, following(&path), snapshot());
        for by in ["+notcp", "+tcp"] {
            let ask = |question: &str| site.dig(&format!("@{address} {by} {question}"));
            for question in ["-x 10.9.9.9", "-x fd00:9::9", "any-nope.default.svc.cluster.local A"]
            {
                let said = ask(question);
                assert!(said.contains("status: SERVFAIL"), "{question}: {said}");
                assert!(said.contains("(no upstream resolver is configured)"), "{said}");
            }
            assert_eq!(ask("+short web.default.svc.cluster.local A"), "10.96.1.1\n");
            assert_eq!(ask("+short -x 10.96.1.1"), "web.default.svc.cluster.local.\n");
            assert_eq!(ask("+short any-www.example.org A"), "192.0.2.80\n");
            assert!(ask("-x 198.51.100.1").contains("flags: qr rd ra;"));
        }
        for (name, times) in [
            ("9.9.9.10.in-addr.arpa.", 0),
            ("any-nope.default.svc.cluster.local.", 0),
            ("1.100.51.198.in-addr.arpa.", 2),
        ] {
            assert_eq!(upstream.times_asked(name), times, "{name}");
        }
    }
}

/// What is beyond a table's bounds is said as long as it is so, and the rest is answered.
#[test]
fn a_table_that_is_too_long_is_said_and_serves_as_far_as_it_goes() {
    let site = Site::new();
    let folder = tempfile::tempdir().unwrap();
    let (path, table) = (folder.path().join("Corefile"), folder.path().join("table"));
    let write = |addresses: u16| {
        let line = |at| format!("10.9.{}.{} many.example\n", at / 256, at % 256);
        fs::write(&table, (0..addresses).map(line).collect::<Vec<_>>().concat()).unwrap();
    };
    write(257);
    let hosts = format!("hosts {} {{\n fallthrough\n }}", table.display());
    fs::write(&path, corefile(OUTSIDE[0], &hosts)).unwrap();
    let running = Running::begin(&site, following(&path), snapshot());
    let cut = "its table of hosts leaves out 1 of its pairs";
    running.until("degraded", |state| matches!(state, State::Degraded(why) if why.contains(cut)));
    assert!(running.logged().contains(cut), "{}", running.logged());
    for address in CLUSTER {
        let said = site.dig(&format!("@{address} +tcp +short many.example A"));
        assert_eq!(said.lines().count(), 256, "{said}");
    }
    write(256);
    running.until("ready", |state| *state == State::Ready);
}
