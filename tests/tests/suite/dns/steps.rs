//! Server blocks that do something beside looking names up: what a foreign client sees of it.

use std::{fs, path::Path, time::Duration};

use mizzen_agent::dns::{Config, Source};
use mizzen_tests::wait;
use tempfile::TempDir;

use super::{
    site::{CLUSTER, OUTSIDE, OUTSIDE_TOO, POD, Running, Site, config, dig, snapshot},
    upstream::Upstream,
};

const SOON: Duration = Duration::from_secs(10);
const BY: [&str; 2] = ["+notcp", "+tcp"];

/// A site, an upstream outside, and a resolver with this Corefile.
struct Served {
    running: Running,
    upstream: Upstream,
    site: Site,
    _folder: TempDir,
}

fn following(path: &Path) -> Config {
    Config { source: Source::Corefile(path.to_owned()), ..config(&[]) }
}

fn serve(corefile: &str) -> Served {
    let site = Site::new();
    let upstream = Upstream::start(&site.outside, &[OUTSIDE[0].parse().unwrap()]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    fs::write(&path, corefile).unwrap();
    let running = Running::start(&site, following(&path), snapshot());
    Served { running, upstream, site, _folder: folder }
}

/// One block for all names, with these lines.
fn block(lines: &str) -> String {
    let upstream = OUTSIDE[0];
    format!(". {{\nkubernetes cluster.local\nforward . {upstream}\ncache 30\n{lines}\n}}\n")
}

/// The lines of `said` with one blank between words.
fn words(said: &str) -> String {
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n";
    said.lines().map(line).collect()
}

impl Served {
    /// What `dig` says in the pod, at each address and by each transport; the same each time. One
    /// blank stands between words.
    #[track_caller]
    fn is(&self, question: &str, expected: &str) {
        for address in CLUSTER {
            for by in BY {
                let said = self.site.dig(&format!("@{address} {by} {question}"));
                assert_eq!(words(&said), expected, "{by} @{address} {question}");
            }
        }
    }

    /// The same of something that it says among more.
    #[track_caller]
    fn says(&self, question: &str, expected: &str) {
        for address in CLUSTER {
            for by in BY {
                let said = self.site.dig(&format!("@{address} {by} {question}"));
                assert!(said.contains(expected), "{by} @{address} {question}: {said}");
            }
        }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        self.running.metrics.write(&mut text);
        text
    }
}

#[test]
fn names_are_rewritten_and_answers_brought_back() {
    let served = serve(&block(
        "bind 10.96.0.10 169.254.20.10\n\
         rewrite name exact old.example.com www.example.org\n\
         rewrite name suffix .corp.example .default.svc.cluster.local answer auto\n\
         rewrite type MX A",
    ));
    served.is("+noall +answer Old.example.com A", "Old.example.com. 30 IN A 192.0.2.80\n");
    served.is("+short old.example.com AAAA", "2001:db8::50\n");
    served.is("+noall +answer web.corp.example A", "web.corp.example. 5 IN A 10.96.1.1\n");
    served.is(
        "+short _http._tcp.db.corp.example SRV",
        "0 50 8080 db-0.db.corp.example.\n0 50 8080 db-1.db.corp.example.\n",
    );
    served.says("nope.corp.example A", "status: NXDOMAIN");
    assert_eq!(served.upstream.times_asked("old.example.com."), 0);
}

#[test]
fn the_agents_own_configuration_says_the_same() {
    let site = Site::new();
    let _upstream = Upstream::start(&site.outside, &[OUTSIDE[0].parse().unwrap()]);
    let blocks = format!(
        "[{{forward: [{{to: [{}]}}], autopath: {{}}, \
          hosts: {{entries: {{192.0.2.33: [table.example]}}, fallthrough: ['.']}}, \
          rewrite: [{{name: {{match: suffix, from: .corp.example, \
          to: .default.svc.cluster.local, answerAuto: true}}}}]}}]",
        OUTSIDE[0]
    );
    let follows = Config { source: Source::Blocks(blocks.parse().unwrap()), ..config(&[]) };
    let running = Running::start(&site, follows, snapshot());
    running.local_pods.add(&POD.map(|address| address.parse().unwrap()), "default");
    for address in CLUSTER {
        for by in BY {
            let ask = |name: &str| site.dig(&format!("@{address} {by} +short {name} A"));
            assert_eq!(ask("table.example"), "192.0.2.33\n");
            assert_eq!(ask("web.corp.example"), "10.96.1.1\n");
            let completed = ask(&format!("www.example.org.{FIRST}"));
            assert_eq!(completed, "www.example.org.\n192.0.2.80\n");
        }
    }
}

#[test]
fn a_rewritten_name_is_asked_of_the_upstream_of_its_block() {
    let upstream = OUTSIDE[0];
    let served = serve(&format!(
        ". {{\nforward . 192.0.2.200\n}}\n\
         in.example {{\nrewrite name suffix .in.example .example.org answer auto\nforward . {upstream}\n}}\n"
    ));
    served.is("+noall +answer www.in.example A", "www.in.example. 300 IN A 192.0.2.80\n");
    assert!(served.upstream.times_asked("www.example.org.") > 0);
}

/// As k3s has it: the nodes' names are in a table of hosts.
#[test]
fn dns_19_an_external_name_may_lead_to_a_table_of_hosts() {
    let served = serve(&block(
        "hosts {\n 192.0.2.33 ext.interwebs.test\n 2001:db8::33 ext.interwebs.test\n fallthrough\n}",
    ));
    let name = "ext.default.svc.cluster.local";
    served.is(&format!("+short {name} A"), "ext.interwebs.test.\n192.0.2.33\n");
    served.is(&format!("+short {name} AAAA"), "ext.interwebs.test.\n2001:db8::33\n");
    assert_eq!(served.upstream.times_asked("ext.interwebs.test."), 0);
}

#[test]
fn dns_19_an_external_name_goes_through_the_steps_of_its_targets_block() {
    let upstream = OUTSIDE[0];
    let served = serve(&format!(
        "cluster.local {{\nkubernetes\n}}\n\
         . {{\nforward . {upstream}\n}}\n\
         interwebs.test {{\nrewrite name ext.interwebs.test www.example.org\nforward . {upstream}\n}}\n"
    ));
    let name = "ext.default.svc.cluster.local";
    served.is(&format!("+short {name} A"), "ext.interwebs.test.\n192.0.2.80\n");
    served.is(&format!("+short {name} AAAA"), "ext.interwebs.test.\n2001:db8::50\n");
    assert_eq!(served.upstream.times_asked("ext.interwebs.test."), 0);
}

#[test]
fn a_table_of_hosts_is_for_the_names_of_its_block() {
    let upstream = OUTSIDE[0];
    let table = "192.0.2.33 table.example web.default.svc.cluster.local";
    let served = serve(&format!(
        "cluster.local {{\nkubernetes\n}}\n. {{\nhosts {{\n {table}\n}}\nforward . {upstream}\n}}\n"
    ));
    served.is("+short table.example A", "192.0.2.33\n");
    served.is("+short web.default.svc.cluster.local A", "10.96.1.1\n");
    served.says("nope.default.svc.cluster.local A", "status: NXDOMAIN");
    served.says("nope.example A", "(the name is not in the table of hosts)");
}

#[test]
fn templates_answer_by_the_name() {
    let served = serve(&block(
        "template IN A ip.example {\n match ^ip-(?P<a>[0-9]+)-(?P<b>[0-9]+)[.]\n \
         answer \"{{ .Name }} 60 IN A 10.9.{{ .Group.a }}.{{ .Group.b }}\"\n fallthrough\n}\n\
         template ANY ANY invalid {\n rcode NXDOMAIN\n \
         authority \"invalid. 60 IN SOA ns.invalid. hostmaster.invalid. (1 60 60 60 60)\"\n}\n\
         template IN ANY alias.example {\n answer \"alias.example 60 IN CNAME web.default.svc.cluster.local\"\n}",
    ));
    served.is("+noall +answer ip-7-8.ip.example A", "ip-7-8.ip.example. 60 IN A 10.9.7.8\n");
    served.says("www.ip.example A", "status: NXDOMAIN");
    assert!(served.upstream.times_asked("www.ip.example.") > 0, "it fell through");
    served.says("x.invalid MX", "status: NXDOMAIN");
    assert_eq!(served.upstream.times_asked("x.invalid."), 0);
    served.is("+short alias.example A", "web.default.svc.cluster.local.\n10.96.1.1\n");
    served.says("ip-7-800.ip.example A", "(no template makes an answer of the question)");
}

#[test]
fn dns64_makes_addresses_for_those_who_ask_over_ipv6() {
    let served = serve(&block("dns64\nhosts {\n 192.0.2.33 table.example\n fallthrough\n}"));
    for by in BY {
        let ask = |address: &str, name: &str| {
            served.site.dig(&format!("@{address} {by} +short {name} AAAA"))
        };
        let [v4, v6] = CLUSTER;
        assert_eq!(ask(v6, "v4.example.org"), "64:ff9b::c000:250\n");
        assert_eq!(ask(v6, "table.example"), "64:ff9b::c000:221\n");
        assert_eq!(ask(v6, "www.example.org"), "2001:db8::50\n", "it has one");
        assert_eq!(ask(v4, "v4.example.org"), "");
    }
    served.says("nope.example.org AAAA", "status: NXDOMAIN");
    let counted = "coredns_dns64_requests_translated_total{server=\"dns://.:53\"} 4\n";
    assert!(served.metrics().contains(counted), "{}", served.metrics());
}

#[test]
fn access_rules_look_at_the_client() {
    let [v4, v6] = POD;
    let served = serve(&block(&format!(
        "acl blocked.example.org {{\n block type A net {v4} {v6}\n}}\n\
         acl filtered.example.org {{\n filter net {v4}/32 {v6}/64\n}}\n\
         acl dropped.example.org {{\n drop\n}}\n\
         acl secret.example {{\n block\n}}\n\
         rewrite name secret.example www.example.org\n\
         rewrite name open.example blocked.example.org",
    )));
    // The client's own words are judged, before they become others and not after.
    served.says("secret.example A", "status: REFUSED");
    served.says("open.example A", "status: NXDOMAIN");
    served.says("blocked.example.org A", "EDE: 15 (Blocked)");
    served.says("blocked.example.org A", "status: REFUSED");
    served.says("blocked.example.org TXT", "status: NXDOMAIN");
    served.says("www.filtered.example.org A", "EDE: 17 (Filtered)");
    served.says("www.filtered.example.org A", "status: NOERROR");
    let elsewhere = dig(&served.site.node, &format!("@{} blocked.example.org A", CLUSTER[0]));
    assert!(elsewhere.contains("status: NXDOMAIN"), "{elsewhere}");
    assert_eq!(served.upstream.times_asked("dropped.example.org."), 0);
    for address in CLUSTER {
        let question = format!("@{address} +notcp +time=1 dropped.example.org A");
        assert!(served.site.dig(&question).contains("timed out"), "{question}");
    }
    let metrics = served.metrics();
    for line in [
        "coredns_acl_blocked_requests_total{server=\"dns://.:53\"} 12\n",
        "coredns_acl_filtered_requests_total{server=\"dns://.:53\"} 8\n",
        "coredns_acl_dropped_requests_total{server=\"dns://.:53\"} 2\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
}

#[test]
fn bufsize_bounds_datagrams_below_what_clients_offer() {
    let served = serve(&block("bufsize 600"));
    for address in CLUSTER {
        let question = format!("@{address} +notcp +ignore hdls.default.svc.cluster.local A");
        let said = served.site.dig(&question);
        let size = said.lines().find_map(|line| line.strip_prefix(";; MSG SIZE  rcvd: "));
        let size: usize = size.expect(&said).parse().unwrap();
        assert!(said.contains(" tc ") && (400..=600).contains(&size), "{said}");
    }
}

#[test]
fn the_query_log_has_a_line_for_each_answer_of_its_class() {
    let served = serve(&block(
        "log example.org {\n class denial\n}\nlog cluster.local \"{type} {name} {rcode}\"",
    ));
    let [v4, v6] = POD;
    served.says("nope.example.org A", "NXDOMAIN");
    served.says("www.example.org A", "NOERROR");
    served.says("web.default.svc.cluster.local A", "NOERROR");
    let mut expected = Vec::new();
    for (pod, proto) in [(v4, "udp"), (v4, "tcp"), (v6, "udp"), (v6, "tcp")] {
        let pod = if pod.contains(':') { format!("[{pod}]:") } else { format!("{pod}:") };
        expected.push((pod, format!("\"A IN nope.example.org. {proto} ")));
    }
    wait::until("the lines", SOON, || {
        let logged = served.running.logged();
        let has = |(pod, question): &(String, String)| {
            logged.lines().any(|line| {
                let place = line.find(&**pod).and_then(|at| line[at..].find(&**question));
                place.is_some() && line.contains(" NXDOMAIN qr,rd,ra ")
            })
        };
        let own = logged.matches(" A web.default.svc.cluster.local. NOERROR\n").count();
        if expected.iter().all(has) && own == 4 { Ok(()) } else { Err(logged) }
    });
    assert!(!served.running.logged().contains("www.example.org."), "another class");
}

#[test]
fn questions_that_nobody_answers_are_said_or_counted() {
    let served = serve(&block(
        "errors {\n consolidate 1s \"too many.*\" warning\n consolidate 1s \".* i/o timeout$\" info\n}",
    ));
    for address in CLUSTER {
        let said = served.site.dig(&format!("@{address} silent.example.org A"));
        assert!(said.contains("SERVFAIL"), "{said}");
    }
    wait::until("the lines", SOON, || {
        let logged = served.running.logged();
        let line =
            "INFO mizzen_agent::dns::errors: 1 errors like '.* i/o timeout$' occurred in last 1s";
        if logged.contains(line) { Ok(()) } else { Err(logged) }
    });
    let served = serve(&block("errors"));
    served.site.dig(&format!("@{} silent.example.org A", CLUSTER[1]));
    wait::until("the line", SOON, || {
        let logged = served.running.logged();
        let line = "ERROR mizzen_agent::dns::errors: 2 silent.example.org. A: no upstream resolver \
                    answered in time: i/o timeout";
        if logged.contains(line) { Ok(()) } else { Err(logged) }
    });
}

/// As kubelet writes it for pods of `default`.
const FIRST: &str = "default.svc.cluster.local";

#[test]
fn dns_67_dns_56_a_pods_search_list_is_gone_through_in_one_answer() {
    let served = serve(&block("autopath @kubernetes"));
    let addresses = POD.map(|address| address.parse().unwrap());
    let at_first = format!("www.example.org.{FIRST} A");
    served.says(&at_first, "status: NXDOMAIN");
    served.running.local_pods.add(&addresses, "default");
    let alias = |kind: &str| {
        format!("www.example.org.{FIRST}. IN CNAME www.example.org.\nwww.example.org. IN {kind}\n")
    };
    // Without the TTLs, which may have aged by a second.
    let answers = |question: &str, expected: &str| {
        served.is(&format!("+nottlid +noall +answer {question}"), expected);
    };
    answers(&at_first, &alias("A 192.0.2.80"));
    answers(&format!("www.example.org.{FIRST} AAAA"), &alias("AAAA 2001:db8::50"));
    // What has no address of that family has the name all the same.
    answers(
        &format!("v4.example.org.{FIRST} AAAA"),
        &format!("v4.example.org.{FIRST}. IN CNAME v4.example.org.\n"),
    );
    // The names of Services come first, and by the list's order.
    answers(&format!("web.{FIRST} A"), &format!("web.{FIRST}. IN A 10.96.1.1\n"));
    answers(
        &format!("web.default.{FIRST} A"),
        &format!(
            "web.default.{FIRST}. IN CNAME web.default.svc.cluster.local.\nweb.default.svc.cluster.local. IN A 10.96.1.1\n"
        ),
    );
    served.says(&format!("nope.example.org.{FIRST} A"), "status: NXDOMAIN");
    served.says(&format!("broken.example.org.{FIRST} A"), "status: SERVFAIL");
    // Nobody else: another namespace's list, the node's own network, and pods that are not here.
    served.says("www.example.org.other.svc.cluster.local A", "status: NXDOMAIN");
    let node = dig(&served.site.node, &format!("@{} {at_first}", CLUSTER[0]));
    assert!(node.contains("status: NXDOMAIN"), "{node}");
    served.running.local_pods.remove(&addresses);
    served.running.local_pods.add(&addresses, "other");
    served.says(&at_first, "status: NXDOMAIN");
    served.is("+short www.example.org.other.svc.cluster.local A", "www.example.org.\n192.0.2.80\n");
    let metrics = served.metrics();
    assert!(!metrics.contains("coredns_autopath_success_total{server=\"dns://.:53\"} 0\n"));
    assert!(metrics.contains("rcode=\"NOERROR\",plugin=\"autopath\""), "{metrics}");
}

#[test]
fn dns_67_a_list_from_a_file_is_everyones() {
    let lists = tempfile::tempdir().unwrap();
    let list = lists.path().join("resolv.conf");
    fs::write(&list, "search corp.example default.svc.cluster.local\n").unwrap();
    let served = serve(&block(&format!("autopath {}", list.display())));
    served.is("+short web.corp.example A", "web.default.svc.cluster.local.\n10.96.1.1\n");
    served.is("+short www.example.org.corp.example A", "www.example.org.\n192.0.2.80\n");
}

/// Where a name further on would itself begin the list, it is gone through once all the same.
#[test]
fn dns_67_a_list_is_gone_through_once() {
    let lists = tempfile::tempdir().unwrap();
    let list = lists.path().join("resolv.conf");
    fs::write(&list, "search example.org corp.example.org example.org\n").unwrap();
    let served = serve(&block(&format!("autopath example.org {}", list.display())));
    served.says("nope.example.org A", "status: NXDOMAIN");
    let asked = ["nope.corp.example.org.", "nope.corp.corp.example.org."]
        .map(|name| served.upstream.times_asked(name));
    assert_eq!(asked, [1, 0]);
}

/// A name further on in the list is answered as when a client asks for it: by its own server block,
/// with that one's rules, table and upstreams, which may be the only ones that may hear of it.
#[test]
fn dns_67_a_name_of_the_list_is_its_own_blocks() {
    let site = Site::new();
    for (place, address) in CLUSTER.into_iter().enumerate() {
        let servers = [OUTSIDE[place], OUTSIDE_TOO[place]];
        let [everyones, own] =
            servers.map(|at| Upstream::start(&site.outside, &[at.parse().unwrap()]));
        let [first, second] = servers;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Corefile");
        let text = format!(
            ". {{\nkubernetes cluster.local\nautopath @kubernetes\nacl hidden.example {{\nblock\n}}\n\
             forward . {first}\n}}\n\
             example.org {{\nacl secret.example.org {{\nblock\n}}\n\
             hosts {{\n192.0.2.33 table.example.org\nfallthrough\n}}\nforward . {second}\ncache 30\n}}\n"
        );
        fs::write(&path, text).unwrap();
        let running = Running::start(&site, following(&path), snapshot());
        running.local_pods.add(&POD.map(|address| address.parse().unwrap()), "default");
        for by in BY {
            for (name, expected) in [
                ("www.example.org", "192.0.2.80"),
                ("table.example.org", "192.0.2.33"),
                ("secret.example.org", "status: REFUSED"),
                ("hidden.example", "status: REFUSED"),
                ("nope.example.org", "status: NXDOMAIN"),
            ] {
                for name in [format!("{name}.{FIRST}"), name.to_owned()] {
                    let said = site.dig(&format!("@{address} {by} {name} A"));
                    assert!(said.contains(expected), "{by} {name}: {said}");
                }
            }
        }
        for (name, times) in [
            ("www.example.org.", 1),
            ("nope.example.org.", 1),
            ("table.example.org.", 0),
            ("secret.example.org.", 0),
        ] {
            let asked = [&everyones, &own].map(|upstream| upstream.times_asked(name));
            assert_eq!(asked, [0, times], "{name}");
        }
    }
}

/// A list whose names take longer, one after the other, than a client waits: it hears so.
#[test]
fn dns_67_a_list_that_takes_too_long_is_given_up_in_time() {
    let lists = tempfile::tempdir().unwrap();
    let list = lists.path().join("resolv.conf");
    let domains: Vec<_> = (1..=10).map(|number| format!("d{number}.example")).collect();
    let search = format!("search {FIRST} {}\n", domains.join(" "));
    fs::write(&list, search).unwrap();
    let served = serve(&block(&format!("autopath {}", list.display())));
    let (site, upstream, domains) = (&served.site, &served.upstream, &domains);
    std::thread::scope(|scope| {
        for (place, address) in CLUSTER.into_iter().enumerate() {
            for (by, base) in BY.into_iter().zip([place, place + 2]) {
                scope.spawn(move || {
                    let name = format!("slow-{base}.{FIRST}");
                    let said = site.dig(&format!("@{address} {by} {name} A"));
                    assert!(said.contains("status: SERVFAIL"), "{said}");
                    assert!(said.contains("EDE: 22 (No Reachable Authority)"), "{said}");
                    let asked =
                        |at: usize| upstream.times_asked(&format!("slow-{base}.{}.", domains[at]));
                    assert!(asked(0) > 0 && asked(9) == 0, "{said}");
                });
            }
        }
    });
}

#[test]
fn what_is_beside_an_answer_is_left_out_where_the_block_says_so() {
    let srv = "_http._tcp.db.default.svc.cluster.local SRV";
    for (line, beside) in [("minimal", 1), ("", 3)] {
        let served = serve(&block(line));
        served.says(srv, &format!("ANSWER: 2, AUTHORITY: 0, ADDITIONAL: {beside}"));
        served.says("nope.default.svc.cluster.local A", "ANSWER: 0, AUTHORITY: 1, ADDITIONAL: 1");
    }
}

/// The same as a client outside sees it: two resolvers, of which the first has no such name.
#[test]
fn the_next_forward_is_tried_where_the_first_says_so() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Corefile");
        let nobody = OUTSIDE_TOO[usize::from(server.contains(':'))];
        let table = Upstream::start(&site.outside, &[nobody.parse().unwrap()]);
        let text = format!(
            ". {{\nkubernetes cluster.local\nforward example.org {nobody} {{\nnext REFUSED\n}}\n\
             forward . {server}\ncache 30\n}}\n"
        );
        fs::write(&path, text).unwrap();
        let _running = Running::start(&site, following(&path), snapshot());
        for by in BY {
            let ask = |name: &str| site.dig(&format!("@{address} {by} {name} A"));
            assert!(ask("refused.example.org").contains("status: REFUSED"));
            assert!(ask("www.example.org").contains("192.0.2.80"));
        }
        let asked = |name: &str| [&table, &upstream].map(|by| by.times_asked(name));
        assert_eq!(asked("refused.example.org."), [1, 1], "both, and then it is kept");
        assert_eq!(asked("www.example.org."), [1, 0]);
    }
}
