//! The same in YAML as in a Corefile, and what is wrong with its place.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::*;
use crate::dns::{
    corefile::{self, Surroundings},
    meaning::{Meaning, Served},
};

/// A machine with these files.
struct Files(BTreeMap<&'static str, String>);

impl Surroundings for Files {
    fn read(&self, path: &Path) -> io::Result<String> {
        let text = path.to_str().and_then(|path| self.0.get(path));
        text.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn matching(&self, _: &Path) -> Vec<PathBuf> {
        Vec::new()
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

fn served() -> Served {
    Served {
        domain: notation::zone("cluster.local").unwrap(),
        port: 53,
        addresses: vec!["10.96.0.10".parse().unwrap()],
        node_local: Vec::new(),
        connects_pods: true,
    }
}

fn files(corefile: &str) -> Files {
    let made = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    Files(BTreeMap::from([
        ("/Corefile", corefile.to_owned()),
        ("/etc/resolv.conf", "nameserver 192.0.2.1\nsearch corp.example\n".to_owned()),
        ("/cert", made.cert.pem()),
        ("/key", made.signing_key.serialize_pem()),
        ("/hosts", "192.0.2.7 table.example\n".to_owned()),
    ]))
}

const COREFILE: &str = include_str!("../corefile/fixtures/everything.Corefile");

const YAML: &str = r#"
- zones: ["."]
  kubernetes:
    pods: verified
    ttl: 30
    fallthrough: [in-addr.arpa, ip6.arpa]
    namespaceLabels: team in (a, b)
    labels: "!hidden"
    endpointPodNames: true
    ignoreEmptyServices: true
  forward:
  - from: corp.example
    to: [tls://192.0.2.9%dns.example, "192.0.2.10:5353", 10.96.0.10]
    policy: sequential
    forceTcp: true
    except: [a.corp.example]
    maxConcurrent: 100
    failover: [NXDOMAIN, notimp]
    next: [REFUSED, NXDOMAIN]
    tls: {caFile: /cert}
  - to: [/etc/resolv.conf]
    policy: random
  cache:
    maxTtl: 40s
    minTtl: 10s
    denialMaxTtl: 20s
    denialMinTtl: 2s
    prefetch: {requests: 3, pause: 1m30s, percent: 20}
    serveStale: 2h
    servfailTtl: 2s
  minimal: true
  hosts:
    file: /hosts
    entries: {192.0.2.33: [a.example, b.example]}
    ttl: 60
    noReverse: true
    fallthrough: ["."]
  rewrite:
  - name: {match: suffix, from: .a.example, to: .b.example, answerAuto: true}
    continue: true
  - name:
      match: regex
      from: (.*)\.c\.example
      to: "{1}.d.example"
      answerName: [{from: '(.*)\.d\.example', to: "{1}.c.example"}]
      answerValue: [{from: x, to: y}]
  - type: {from: ANY, to: HINFO}
  - ttl: {match: prefix, name: x, min: 15, max: 30}
  template:
  - type: A
    zones: [ip.example]
    match: ["^ip-(?P<a>[0-9]+)"]
    answer: ["{{ .Name }} 60 IN A 10.0.0.{{ .Group.a }}"]
    fallthrough: ["."]
  - match: [^never$]
    rcode: NXDOMAIN
    authority: [invalid. 60 IN SOA ns.invalid. hostmaster.invalid. 1 60 60 60 60]
    additional: [ns.invalid. 60 IN A 192.0.2.1]
    ederror: 21
    fallthrough: ["."]
  autopath: {}
  dns64: {prefix: "64:1337::/96", translateAll: true, allowIpv4: true}
  acl:
  - policies:
    - {action: block, types: [A, AAAA], nets: [192.0.2.0/24, "2001:db8::1"]}
    - {action: allow}
  log:
  - {zones: [example.org], format: "{common} x", classes: [denial, error], minDuration: 1s}
  errors:
    consolidate: [{period: 5m, match: timeout$, level: info}]
  bufsize: 700
  tls: {port: 8853, certFile: /cert, keyFile: /key}
"#;

fn meaning(yaml: &str, files: &Files) -> Result<Meaning, String> {
    let blocks: Blocks = yaml.parse().map_err(|error: serde_yaml_ng::Error| error.to_string())?;
    let (blocks, _) = read(&blocks, &served(), files)?;
    Ok(Meaning::of(blocks, &served()))
}

#[test]
fn it_says_the_same_as_a_corefile() {
    let files = files(COREFILE);
    let read = corefile::read(Path::new("/Corefile"), &served(), &files);
    let theirs = Meaning::of(read.unwrap_or_else(|error| panic!("{error}")).blocks, &served());
    let ours = meaning(YAML, &files).unwrap();
    assert_eq!(ours.blocks, theirs.blocks);
    assert_eq!(ours, theirs);
}

#[test]
fn what_is_shown_says_the_same() {
    let blocks: Blocks = YAML.parse().unwrap();
    let shown = serde_json::to_string(&blocks).unwrap();
    assert_eq!(shown.parse::<Blocks>().unwrap(), blocks);
    assert!(!shown.contains("null"), "{shown}");
}

#[test]
fn what_is_not_said_is_the_agents_own() {
    let none = files("");
    let said = meaning(
        "- forward: [{to: [192.0.2.1]}]\n- zones: [b, 10.0.0.0/8]\n  cache: {disabled: true}\n",
        &none,
    );
    let said = said.unwrap();
    let own = crate::dns::Config::default();
    let applied = said.applied(&own);
    assert_eq!((applied.pod_names, applied.ttl), (own.pod_names, own.ttl));
    assert_eq!(applied.addresses_fall_through, own.addresses_fall_through);
    assert_eq!(said.routes[0].keeping, crate::dns::cache::Keeping::default());
    assert_eq!(said.routes[1].keeping, crate::dns::cache::Keeping::NOTHING);
    assert_eq!(said.blocks[1].zones[1].to_string(), "10.in-addr.arpa.");
}

#[test]
fn errors_name_the_field_and_the_line() {
    let none = files("");
    for (yaml, places) in [
        ("- zone: [a]\n", &["unknown field `zone`", "line 1"][..]),
        ("- zones: [a]\n  forward:\n  - {too: []}\n", &["unknown field `too`", "line 3"]),
        ("- zones: [a..b]\n", &["[0].zones", "no zone", "line 1"]),
        (
            "- rewrite:\n  - name: {match: glob, from: a, to: b}\n",
            &["[0].rewrite: ", "must be exact", "line 2"],
        ),
        ("- rewrite:\n  - {}\n", &["[0].rewrite: ", "has one of name, type and ttl"]),
        (
            "- template:\n  - answer: [\"{{ if }}\"]\n",
            &["[0].template: ", "not supported in a template", "line 2"],
        ),
        ("- template:\n  - rcode: X\n", &["[0].template: ", "no response code"]),
        ("- dns64: {prefix: x}\n", &["dns64: ", "no IPv6 prefix"]),
        ("- acl:\n  - policies: [{action: permit}]\n", &["[0].acl: ", "must be allow"]),
        ("- log:\n  - classes: [x]\n", &["[0].log: ", "must be success"]),
        ("- bufsize: 100\n", &["bufsize: ", "no number of octets"]),
        ("- cache: {maxTtl: 1y}\n", &["a time: ", "no duration"]),
        ("- kubernetes: {pods: x}\n", &["pods: ", "must be disabled"]),
        ("- kubernetes: {labels: a b}\n", &["labels: ", "no requirement of labels"]),
        (
            "- kubernetes: {namespaces: [a], namespaceLabels: b}\n",
            &["dnsBlocks[0]: kubernetes", "not both"],
        ),
        (
            "- kubernetes: {ttl: 9}\n- zones: [ip6.arpa]\n  kubernetes: {ttl: 8}\n",
            &["dnsBlocks[1]: kubernetes: ttl", "said otherwise"],
        ),
        ("- forward: [{to: []}]\n", &["dnsBlocks[0]", "to names who is asked"]),
        ("- forward: [{to: [x]}]\n", &["dnsBlocks[0]", "neither an address nor a file"]),
        ("- {}\n- {}\n", &["dnsBlocks[1]", ". has a block already"]),
        (
            "- tls: {certFile: /nothing, keyFile: /key}\n",
            &["dnsBlocks[0]", "/nothing can't be read"],
        ),
        ("- tls: {certFile: /cert, keyFile: /cert}\n", &["dnsBlocks[0]: tls", "no private key"]),
        (
            "- tls: {certFile: /cert, keyFile: /key}\n- zones: [a]\n",
            &["dnsBlocks[1]", "needs the tls"],
        ),
    ] {
        let error = meaning(yaml, &none).expect_err(yaml);
        for place in places {
            assert!(error.contains(place), "{yaml}: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever stands there, it is blocks or an error.
    #[test]
    fn blocks_with_something_gone(from in 0..2600_usize, length in 0..80_usize) {
        let kept = YAML.chars().enumerate().filter(|(at, _)| !(from..from + length).contains(at));
        let _any = meaning(&kept.map(|(_, letter)| letter).collect::<String>(), &files(""));
    }

    #[test]
    fn blocks_of_any_text(text in "[a-z0-9:{}, \n.-]{0,80}") {
        let _any = text.parse::<Blocks>();
    }
}
