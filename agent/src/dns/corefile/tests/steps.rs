//! Directives that do something beside looking names up.

use std::net::IpAddr;

use hickory_proto::{op::ResponseCode, rr::RecordType};

use super::*;
use crate::dns::{
    chain::{
        Chain,
        acl::Action,
        autopath::Search,
        dns64::Dns64,
        query_log::{Class, Format},
        rewrite::{self, Change},
        template,
    },
    forward::error_log::Level,
};

fn chain(lines: &str) -> Chain {
    meaning(&format!("example.org {{\n{lines}\n}}\n")).blocks[0].chain.clone()
}

fn query(text: &str, kind: RecordType) -> hickory_proto::op::Query {
    hickory_proto::op::Query::query(name(text), kind)
}

#[test]
fn rewrites_in_all_their_forms() {
    let rules = chain(
        "rewrite name a.example.org b.example.org\n\
         rewrite continue name suffix .c.example.org .d.example.org answer auto\n\
         rewrite stop {\n name regex (.*)\\.e\\.example\\.org {1}.f.example.org\n \
         answer name (.*)\\.f\\.example\\.org {1}.e.example.org\n \
         answer value (.*)\\.f\\.example\\.org {1}.e.example.org\n}\n\
         rewrite type ANY HINFO\n rewrite continue {\n ttl regex (.*)\\.g\\.example\\.org 15\n}\n\
         rewrite ttl h.example.org 30-\n",
    )
    .rewrites;
    assert_eq!(rules.len(), 6);
    let goes_on: Vec<_> = rules.iter().map(|rule| rule.goes_on).collect();
    assert_eq!(goes_on, [false, true, false, false, true, false]);
    let asked = |text: &str| {
        let rewritten = rewrite::rewritten(&rules, &query(text, RecordType::A)).unwrap().unwrap();
        (rewritten.query.name().to_string(), rewritten.undo.len())
    };
    assert_eq!(asked("a.example.org."), ("b.example.org.".into(), 1));
    assert_eq!(asked("x.c.example.org."), ("x.d.example.org.".into(), 1));
    assert_eq!(asked("x.e.example.org."), ("x.f.example.org.".into(), 2));
    let Change::Ttl { least, most, .. } = &rules[5].change else { panic!("{rules:?}") };
    assert_eq!((*least, *most), (30, i32::MAX as u32));
}

#[test]
fn templates_with_all_that_they_have() {
    let templates = chain(
        "template IN A {\n match \"^ip-(?P<a>\\d+)\\.\" (zzz)\n answer \"{{ .Name }} 60 IN A 10.0.0.{{ .Group.a }}\"\n \
         fallthrough\n}\ntemplate ANY ANY invalid {\n rcode NXDOMAIN\n \
         authority \"invalid. 60 {{ .Class }} SOA ns.invalid. hostmaster.invalid. (1 60 60 60 60)\"\n \
         ederror 21 \"Blocked according to RFC2606\"\n}",
    )
    .templates;
    let said = |text: &str| {
        template::answer(&templates, &query(text, RecordType::A), IpAddr::from([192, 0, 2, 1]))
    };
    let reply = said("ip-7.example.org.").unwrap();
    assert_eq!(reply.answers[0].to_string(), "ip-7.example.org. 60 IN A 10.0.0.7");
    assert_eq!(said("www.example.org."), None, "falls through");
    assert_eq!(said("a.invalid.").unwrap().code, ResponseCode::NXDomain);
    assert_eq!(said("www.example.com."), None, "not the block's zone");
}

#[test]
fn access_rules() {
    let access = chain(
        "acl {\n allow net 192.0.2.1\n BLOCK type A AAAA net 192.0.2.0/24 2001:db8::/32\n filter net *\n drop type *\n}\n\
         acl a.example.org {\n block\n}",
    )
    .access;
    assert_eq!(
        (&access[0].zones, &access[1].zones),
        (&vec![name("example.org.")], &vec![name("a.example.org.")])
    );
    let actions: Vec<_> = access[0].policies.iter().map(|policy| policy.action).collect();
    assert_eq!(actions, [Action::Allow, Action::Block, Action::Filter, Action::Drop]);
    let policy = &access[0].policies[1];
    assert_eq!(policy.kinds, Some(vec![RecordType::A, RecordType::AAAA]));
    assert_eq!(policy.sources.as_ref().map(Vec::len), Some(2));
    let all = &access[0].policies[2..];
    assert!(all.iter().all(|policy| policy.kinds.is_none() && policy.sources.is_none()));
}

#[test]
fn the_others() {
    let all = chain("bufsize\ndns64 64:1337::/96 {\n translate_all\n allow_ipv4\n}\nlog");
    assert_eq!(all.payload, Some(1232));
    let mut dns64 = Dns64::default();
    (dns64.translate_all, dns64.allow_ipv4) = (true, true);
    dns64.set_prefix("64:1337::/96").unwrap();
    assert_eq!(all.dns64, Some(dns64));
    let [log] = &all.log[..] else { panic!("{all:?}") };
    assert_eq!((&log.zones, &log.classes), (&vec![Name::root()], &vec![Class::All]));
    assert_eq!(*log.format, Format::default());
    let all = chain(
        "bufsize 4096\ndns64 {\n prefix 2001:db8::/64\n}\n\
         log a.example.org b.example.org \"{common} x\" {\n class denial error\n minDuration 1s\n}",
    );
    assert_eq!(all.payload, Some(4096));
    let [log] = &all.log[..] else { panic!("{all:?}") };
    assert_eq!(log.zones, [name("a.example.org."), name("b.example.org.")]);
    assert_eq!(
        (&log.classes[..], log.slow),
        (&[Class::Denial, Class::Error][..], Some(seconds(1)))
    );
    assert!(chain("errors\ncache").is_empty(), "nothing to do for those that need nothing");
}

#[test]
fn errors_that_are_said_together() {
    let said = meaning(
        ". {\nforward . 192.0.2.1\nerrors {\n consolidate 5m \".* i/o timeout$\" warning\n \
         consolidate 30s \"^Failed to .+\"\n}\n}\na {\nforward . 192.0.2.1\n}\n",
    );
    let errors = said.routes[0].errors.as_ref().unwrap();
    let rules: Vec<_> = errors
        .consolidated
        .iter()
        .map(|rule| (rule.period, rule.pattern.as_str(), rule.level))
        .collect();
    let expected = [
        (seconds(300), ".* i/o timeout$", Level::Warning),
        (seconds(30), "^Failed to .+", Level::Error),
    ];
    assert_eq!(rules, expected);
    assert_eq!(said.routes[1].errors, None);
}

#[test]
fn dns_67_autopath_of_the_cluster_and_of_a_file() {
    let files = [("/etc/resolv.conf", "search corp.example\n"), ("/lists/mine", "search a b.\n")];
    let autopath = |lines: &str| {
        let text = format!("cluster.local {{\n{lines}\n}}");
        read_with(&text, &files).unwrap().blocks[0].chain.autopath.clone().unwrap()
    };
    let pods = autopath("autopath @kubernetes");
    assert_eq!(pods.zones, [name("cluster.local.")]);
    assert_eq!(pods.search, Search::Pods(vec![name("corp.example.")]));
    let list = autopath("autopath a.cluster.local /lists/mine");
    assert_eq!(list.zones, [name("a.cluster.local.")]);
    assert_eq!(list.search, Search::List(vec![name("a."), name("b.")]));
}

#[test]
fn addresses_that_are_not_ours_are_warned_of() {
    let said = meaning(". {\n bind 10.96.0.10 169.254.20.10\n bind eth0 192.0.2.1\n}");
    let warnings: Vec<_> = said.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("/Corefile:3:7: bind: eth0 is not answered at"));
    assert!(warnings[1].contains("192.0.2.1"));
}

#[test]
fn addresses_that_are_excepted_and_not_ours_change_nothing() {
    let said = meaning(". {\n bind lo {\n  except 127.0.0.1 ::1\n }\n}");
    assert_eq!(said.warnings.len(), 1, "{:?}", said.warnings);
}

#[test]
fn addresses_are_said_in_turns_where_the_block_says_so() {
    for (line, is) in [("loadbalance", true), ("loadbalance round_robin", true), ("loop", false)] {
        let said = meaning(&format!(". {{\n forward . 192.0.2.1\n hosts\n {line}\n}}"));
        let table = said.blocks[0].hosts.as_ref().unwrap();
        assert_eq!((said.routes[0].loadbalance, table.loadbalance), (is, is), "{line}");
    }
    assert!(chain("minimal").minimal && !chain("").minimal);
}

/// As CoreDNS has it of those that a block may have more than once.
#[test]
fn a_step_that_is_said_twice() {
    assert_eq!(chain("bufsize 700\nbufsize 800").payload, Some(700));
    let mut dns64 = Dns64::default();
    (dns64.translate_all, dns64.allow_ipv4) = (true, true);
    dns64.set_prefix("2001:db8::/64").unwrap();
    let said = chain(
        "dns64 64:1337::/96 {\n translate_all\n}\ndns64 2001:db8::/64\ndns64 {\n allow_ipv4\n}",
    );
    assert_eq!(said.dns64, Some(dns64));
    let autopath = |lines: &str| {
        let text = format!(". {{\n{lines}\n}}\n");
        let files = [("/lists/a", "search a.example\n"), ("/lists/b", "search b.example\n")];
        read_with(&text, &files).unwrap().blocks[0].chain.autopath.clone().unwrap()
    };
    let last = autopath("autopath a.example /lists/a\nautopath b.example /lists/b");
    assert_eq!(last, autopath("autopath b.example /lists/b"));
    let pods = autopath("autopath a.example @kubernetes\nautopath b.example /lists/b");
    assert_eq!(pods, autopath("autopath b.example @kubernetes"));
    assert_eq!(chain("acl {\n block\n}\nacl {\n allow\n}").access.len(), 2);
    assert_eq!(chain("log a.example\nlog b.example").log.len(), 2);
}

#[test]
fn errors_of_steps_say_where_and_what() {
    for (line, place, why) in [
        ("rewrite", "2:1", "names what it rewrites"),
        ("rewrite class CH IN", "2:9", "\"class\" is not supported"),
        ("rewrite edns0 local set 0xffee abcd", "2:9", "\"edns0\" is not supported"),
        ("rewrite name a", "2:9", "followed by a name"),
        ("rewrite name glob a b", "2:14", "must be exact"),
        ("rewrite name suffix a b answer", "2:25", "answer is followed by"),
        ("rewrite name suffix a b answer name x", "2:32", "answer name FROM TO"),
        ("rewrite name suffix a b answer auto answer name x y", "2:44", "do not go together"),
        ("rewrite type A ALL", "2:16", "no type"),
        ("rewrite ttl a 9-3", "2:15", "no TTL"),
        ("template IN", "2:1", "a class and a type"),
        ("template CH TXT", "2:10", "class CH are refused"),
        ("template IN A {\n match (\n}", "3:8", "no pattern"),
        ("template IN A {\n answer \"{{ if .Name }}\"\n}", "3:9", "not supported in a template"),
        ("template IN A {\n answer \"{{ .Group.x }} A ::\"\n}", "3:9", "no match has a group"),
        ("template IN A {\n answer \"a 60 IN A ::\"\n}", "3:9", "is no record"),
        ("template IN A {\n rcode MAYBE\n}", "3:8", "no response code"),
        ("template IN A {\n match\n}", "3:2", "has an argument"),
        ("acl {\n permit\n}", "3:2", "must be allow"),
        ("acl {\n block from 192.0.2.1\n}", "3:8", "followed by type TYPES"),
        ("acl {\n block net 192.0.2.0/33\n}", "3:12", "no range"),
        ("dns64 64:ff9b::/95", "2:7", "no IPv6 prefix"),
        ("dns64 {\n suffix 1\n}", "3:2", "not supported in"),
        ("log . \"{local}\"", "2:7", "not supported in a log line"),
        ("log {\n class some\n}", "3:8", "must be success"),
        ("errors {\n consolidate 5m\n}", "3:2", "a duration, a pattern"),
        ("errors {\n consolidate 5m ( error\n}", "3:17", "no pattern"),
        ("errors {\n consolidate 5m x loud\n}", "3:19", "must be error"),
        ("bufsize 100", "2:9", "no number from 512"),
        ("bind 10.96.0.10 {\n except ::1 169.254.20.10\n}", "3:13", "is answered at"),
        ("bind 10.96.0.10 {\n only ::1\n}", "3:2", "not supported in"),
        ("autopath", "2:1", "names @kubernetes"),
        ("autopath @etcd", "2:10", "has no search list"),
        ("autopath /nothing", "2:10", "neither @kubernetes nor a file"),
    ] {
        let error = error(&format!(". {{\n{line}\n}}\n"));
        assert!(error.starts_with(&format!("/Corefile:{place}: ")), "{line}: {error}");
        assert!(error.contains(why), "{line}: {error}");
    }
}
