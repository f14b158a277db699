//! Corefiles as clusters have them, and as they should not be.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

use super::*;
use crate::dns::{
    config::Config,
    meaning::{Meaning, Served},
    route::{Policy, Upstream},
    tls::Peer,
    vitals::Places,
    zone::{PodNames, Trees, naming::Naming},
};

mod parts;
mod steps;
mod tables;
mod tls;

/// A machine with these files.
struct Files(BTreeMap<&'static str, String>);

impl Surroundings for Files {
    fn read(&self, path: &Path) -> io::Result<String> {
        let text = path.to_str().and_then(|path| self.0.get(path));
        text.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        let fits = |path: &&&str| surroundings::fits(pattern.to_str().unwrap(), path);
        self.0.keys().filter(fits).map(PathBuf::from).collect()
    }

    fn variable(&self, name: &str) -> Option<String> {
        (name == "UPSTREAM").then(|| "192.0.2.9".to_owned())
    }
}

const RESOLV_CONF: &str = "nameserver 192.0.2.1\nnameserver 192.0.2.2\n";

/// What a Corefile comes to, and what of it is left out.
#[derive(Debug)]
struct Said {
    meaning: Meaning,
    warnings: Vec<Warning>,
}

impl std::ops::Deref for Said {
    type Target = Meaning;

    fn deref(&self) -> &Meaning {
        &self.meaning
    }
}

impl Said {
    fn pods(&self) -> Option<PodNames> {
        self.kubernetes.as_ref().map(|kubernetes| kubernetes.pods)
    }

    fn ttl(&self) -> Option<u32> {
        self.kubernetes.as_ref().map(|kubernetes| kubernetes.ttl)
    }

    /// Whether names of the cluster fall through, and whether addresses do.
    fn falls_through(&self) -> (bool, Trees) {
        let config = self.applied(&Config::default());
        (config.names_fall_through, config.addresses_fall_through)
    }
}

fn read_with(text: &str, more: &[(&'static str, &str)]) -> Result<Said, CorefileError> {
    let mut files = BTreeMap::from([
        ("/Corefile", text.to_owned()),
        ("/etc/resolv.conf", RESOLV_CONF.to_owned()),
    ]);
    files.extend(more.iter().map(|(path, text)| (*path, (*text).to_owned())));
    let served = Served {
        domain: name("cluster.local."),
        port: 53,
        addresses: vec!["10.96.0.10".parse().unwrap(), "169.254.20.10".parse().unwrap()],
        node_local: vec!["169.254.20.10".parse().unwrap()],
        connects_pods: true,
    };
    let Corefile { blocks, warnings } = read(Path::new("/Corefile"), &served, &Files(files))?;
    Ok(Said { meaning: Meaning::of(blocks, &served), warnings })
}

fn meaning(text: &str) -> Said {
    read_with(text, &[]).unwrap_or_else(|error| panic!("{error}"))
}

fn config_of(text: &str) -> Config {
    meaning(text).applied(&Config::default())
}

fn error(text: &str) -> String {
    read_with(text, &[]).expect_err(text).to_string()
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn at(texts: &[&str]) -> Vec<Upstream> {
    let address = |text: &&str| format!("{text}:53").parse::<SocketAddr>().unwrap().into();
    texts.iter().map(address).collect()
}

fn zones(meaning: &Meaning) -> Vec<String> {
    meaning.routes.iter().map(|route| route.zone.to_string()).collect()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_corefile_of_kubeadm() {
    // Its names come from the index and never through the cache.
    let text = include_str!("fixtures/kubeadm.Corefile");
    let meaning = meaning(text);
    assert_eq!((meaning.pods(), meaning.ttl()), (Some(PodNames::Insecure), Some(30)));
    assert_eq!(meaning.falls_through(), (false, Trees::BOTH));
    let [route] = &meaning.routes[..] else { panic!("{meaning:?}") };
    assert_eq!(route.max_concurrent, Some(1000));
    assert_eq!((&route.zone, &route.upstreams), (&Name::root(), &at(&["192.0.2.1", "192.0.2.2"])));
    assert_eq!((route.policy, route.by_tcp), (Policy::Random, false));
    assert_eq!(route.keeping.ttl, (seconds(5), seconds(30)));
    let warnings: Vec<_> = meaning.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, [""; 0]);
    let config = meaning.applied(&Config::default());
    assert_eq!(config.lameduck, seconds(5));
    let own = |port| -> BTreeSet<SocketAddr> {
        let addresses = Config::default().node_local_addresses;
        addresses.into_iter().map(|ip| (ip, port).into()).collect()
    };
    let Places { health, ready, metrics } = config.vitals;
    assert_eq!((health, ready, metrics), (own(8080), own(8181), own(9153)));
    let done = [
        (".", "cache"),
        (".", "errors"),
        (".", "forward"),
        (".", "loadbalance"),
        ("cluster.local.", "kubernetes"),
    ];
    let plugins = config_of(text).plugins();
    assert_eq!(plugins, done.map(|(zone, name)| (zone.to_owned(), name)).into());
}

#[test]
fn the_addresses_at_which_it_is_told_how_the_resolver_is() {
    let text = ".:53 {\n health 169.254.20.10:8088 {\n  lameduck 1m\n }\n ready localhost:1\n \
                prometheus 0.0.0.0:9253\n}\nlab:53 {\n prometheus [::1]:9254\n}\n";
    let before = Config { lameduck: seconds(9), ..Config::default() };
    let config = meaning(text).applied(&before);
    let at = |texts: &[&str]| -> BTreeSet<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let Places { health, ready, metrics } = config.vitals;
    assert_eq!(health, at(&["169.254.20.10:8088"]));
    assert_eq!(ready, at(&["127.0.0.1:1"]));
    assert_eq!(metrics, at(&["169.254.20.10:9253", "[fd00:20::10]:9253", "[::1]:9254"]));
    assert_eq!(config.lameduck, seconds(60));
    let kept = meaning(". {\n forward . 192.0.2.1\n}\n").applied(&before);
    assert_eq!((kept.vitals, kept.lameduck), (before.vitals, seconds(9)));
}

#[test]
fn the_corefile_of_k3s() {
    let hosts = "192.0.2.31 server-1\n";
    let more = "lab.example:53 {\n  forward . 192.0.2.7\n}\n";
    let files = [
        ("/etc/coredns/NodeHosts", hosts),
        ("/etc/coredns/custom/a.override", "pprof\n"),
        ("/etc/coredns/custom/b.server", more),
    ];
    let text = include_str!("fixtures/k3s.Corefile");
    let meaning = read_with(text, &files).unwrap();
    assert_eq!(zones(&meaning), [".", "lab.example."]);
    assert_eq!((meaning.pods(), meaning.ttl()), (Some(PodNames::Insecure), Some(5)));
    let hosts = meaning.blocks[0].hosts.as_ref().unwrap();
    let query = hickory_proto::op::Query::query(name("server-1."), RecordType::A);
    let reply = hosts.answer(&query).unwrap();
    assert_eq!(reply.answers[0].to_string(), "server-1. 60 IN A 192.0.2.31");
    assert_eq!(hosts.fallthrough, [Name::root()]);
    assert_eq!(meaning.routes[1].upstreams, at(&["192.0.2.7"]));
    assert_eq!(meaning.routes[1].keeping.ttl.1, Duration::ZERO, "no cache, nothing kept");
    let said: Vec<_> = meaning.warnings.iter().map(|warning| &*warning.at.file).collect();
    assert!(said.contains(&"/etc/coredns/custom/a.override"), "{said:?}");
    // Neither the folder nor the table has to be there.
    assert_eq!(zones(&read_with(text, &[]).unwrap()), ["."]);
}

#[test]
fn the_machines_own_table_is_read_beside_lines() {
    let own = [("/etc/hosts", "192.0.2.8 own.example\n"), ("/table", "192.0.2.9 other.example\n")];
    let has = |arguments: &str, of: &str| {
        let text = format!(". {{\n hosts {arguments} {{\n  192.0.2.7 line.example\n }}\n}}\n");
        let said = read_with(&text, &own).unwrap();
        let query = hickory_proto::op::Query::query(name(of), RecordType::A);
        let reply = said.blocks[0].hosts.as_ref().unwrap().answer(&query).unwrap();
        reply.answers.len()
    };
    for (arguments, found) in [("", [1, 1, 0]), ("/table", [1, 0, 1]), ("/nothing", [1, 0, 0])] {
        let names = ["line.example.", "own.example.", "other.example."];
        assert_eq!(names.map(|of| has(arguments, of)), found, "{arguments}");
    }
}

#[test]
fn the_corefile_of_nodelocal() {
    let text = include_str!("fixtures/nodelocal.Corefile");
    let meaning = meaning(text);
    // What went to cluster DNS is answered here; the agent's own settings of names stay.
    assert_eq!(zones(&meaning), ["."]);
    assert_eq!(meaning.routes[0].upstreams, at(&["192.0.2.1", "192.0.2.2"]));
    assert_eq!((meaning.pods(), meaning.ttl()), (None, None));
    // So addresses that nobody here has are asked of the node's upstreams and of no other agent.
    assert_eq!(meaning.falls_through().1, Trees::BOTH);
    let ourselves = "10.96.0.10:53 is this agent itself";
    let said = meaning.warnings.iter().filter(|warning| warning.what.contains(ourselves));
    assert_eq!(said.map(|warning| warning.at.line).collect::<Vec<_>>(), [12, 24, 35]);
    assert_eq!(meaning.warnings.len(), 3, "{:?}", meaning.warnings);
    let health = meaning.applied(&Config::default()).vitals.health;
    assert_eq!(health, ["169.254.20.10:8080".parse().unwrap()].into());
    // The same where whoever applied it, and node-cache, have filled it in.
    let filled = [
        ("__PILLAR__DNS__DOMAIN__", "cluster.local"),
        ("__PILLAR__LOCAL__DNS__", "169.254.20.10"),
        ("__PILLAR__DNS__SERVER__", "10.96.0.10"),
        ("__PILLAR__CLUSTER__DNS__", "10.96.0.10"),
        ("__PILLAR__UPSTREAM__SERVERS__", "/etc/resolv.conf"),
    ];
    let filled = filled.iter().fold(text.to_owned(), |text, (word, by)| text.replace(word, by));
    assert!(!filled.contains("__PILLAR__"));
    assert_eq!(*self::meaning(&filled), *meaning);
}

#[test]
fn stub_domains_as_blocks_and_as_forwards() {
    let meaning = meaning(
        ".:53 {\n forward corp.example 192.0.2.5:5353 [2001:db8::1] {\n  policy sequential\n\
         \x20 force_tcp\n  except a.corp.example\n }\n forward . {$UPSTREAM}\n cache\n}\n\
         dns://lab.example., 10.0.0.0/8 {\n forward . dns://192.0.2.6\n}\n",
    );
    assert_eq!(zones(&meaning), ["corp.example.", ".", "lab.example.", "10.in-addr.arpa."]);
    let stub = &meaning.routes[0];
    let upstreams: Vec<_> =
        stub.upstreams.iter().map(|upstream| upstream.address.to_string()).collect();
    assert_eq!(upstreams, ["192.0.2.5:5353", "[2001:db8::1]:53"]);
    assert_eq!((stub.policy, stub.by_tcp), (Policy::Sequential, true));
    assert_eq!(stub.except, [name("a.corp.example.")]);
    assert_eq!(meaning.routes[1].upstreams, at(&["192.0.2.9"]), "a variable");
    assert_eq!(meaning.routes[1].keeping.ttl.1, seconds(3600));
    assert_eq!(meaning.routes[3].upstreams, at(&["192.0.2.6"]));
}

#[test]
fn upstreams_over_tls() {
    let said = meaning(
        ". {\n forward . tls://192.0.2.1 tls://[2001:db8::1]:8853 192.0.2.2 {\n  tls_servername a.example\n }\n \
         forward b tls://192.0.2.3%c.example:10853 tls://192.0.2.3%d.example {\n  tls\n }\n}\n",
    );
    let named = |name: &str| Peer { server_name: Some(name.into()), ..Peer::default() };
    let expected = [
        ("192.0.2.1:853", Some(named("a.example"))),
        ("[2001:db8::1]:8853", Some(named("a.example"))),
        ("192.0.2.2:53", None),
        ("192.0.2.3:10853", Some(named("c.example"))),
        ("192.0.2.3:853", Some(named("d.example"))),
    ];
    let upstreams = said.routes.iter().flat_map(|route| &route.upstreams);
    let upstreams: Vec<_> = upstreams
        .map(|upstream| (upstream.address.to_string(), upstream.tls.as_deref().cloned()))
        .collect();
    assert_eq!(upstreams, expected.map(|(address, tls)| (address.to_owned(), tls)));
}

#[test]
fn all_that_cache_says() {
    let text = ". {\n forward . 192.0.2.1\n cache 60 {\n  success 100 40 10\n  denial 100 4\n\
                \x20 prefetch 3 1m30s 20%\n  serve_stale 2h verify\n  servfail 2s\n }\n}\n";
    let keeping = meaning(text).routes[0].keeping;
    assert_eq!(keeping.ttl, (seconds(10), seconds(40)));
    assert_eq!(keeping.negative_ttl, (seconds(4), seconds(4)), "the floor is not above the roof");
    let prefetch = keeping.prefetch.unwrap();
    assert_eq!((prefetch.hits, prefetch.pause, prefetch.percent), (3, seconds(90), 20));
    assert_eq!((keeping.stale, keeping.failure_ttl), (seconds(7200), seconds(2)));
    let stale = meaning(". {\n cache {\n  serve_stale\n }\n}\n").routes[0].keeping.stale;
    assert_eq!(stale, seconds(3600));
}

#[test]
fn all_that_kubernetes_says() {
    let with = |body: &str| meaning(&format!(". {{\n kubernetes cluster.local {{\n{body}\n}}\n}}"));
    assert_eq!(with("").pods(), Some(PodNames::Disabled), "as CoreDNS has it");
    assert_eq!(with("pods verified").pods(), Some(PodNames::Verified));
    assert_eq!(with("").falls_through().1, Trees::BOTH, "addresses are not this block's");
    assert!(with("fallthrough").falls_through().0);
    assert!(!with("fallthrough in-addr.arpa").falls_through().0);
    assert_eq!(with("endpoint https://192.0.2.1").warnings.len(), 1);
    let naming = |body: &str| with(body).applied(&Config::default()).naming;
    assert_eq!(naming(""), Naming::default());
    let all = naming("namespaces one two\nendpoint_pod_names\nnoendpoints\nnamespaces three");
    let expected = Naming {
        namespaces: ["one", "two", "three"].map(Into::into).into(),
        endpoint_pod_names: true,
        no_endpoints: true,
        ..Naming::default()
    };
    assert_eq!(all, expected);
    let by_labels = naming("labels tier in (web, db),!old\nnamespace_labels team = a");
    assert_eq!(by_labels.labels.to_string(), "tier in (db,web),!old");
    let namespaces = by_labels.namespace_labels.map(|selector| selector.to_string());
    assert_eq!(namespaces.as_deref(), Some("team in (a)"));
    assert!(naming("ignore empty_service").ignore_empty_services);
    let kept = meaning("cluster.local in-addr.arpa {\n kubernetes\n}\n");
    let other = Trees { v4: false, v6: true };
    assert_eq!(kept.falls_through().1, other, "unknown addresses of the tree are denied");
    let both = |through: &str| {
        let zones = "cluster.local in-addr.arpa ip6.arpa";
        let text = format!(". {{\n kubernetes {zones} {{\n  {through}\n }}\n}}\n");
        meaning(&text).falls_through().1
    };
    assert_eq!(both("fallthrough in-addr.arpa"), Trees { v4: true, v6: false });
    assert_eq!(both("fallthrough in-addr.arpa ip6.arpa"), Trees::BOTH);
    assert_eq!(both("ttl 5"), Trees::default());
}

/// As kubeadm's range of Services, which ends within a label.
#[test]
fn a_range_may_be_several_zones() {
    let said = meaning(
        "cluster.local 10.96.0.0/12 {\n kubernetes cluster.local 10.96.0.0/12 {\n  \
         fallthrough 10.96.0.0/12\n }\n}\n10.0.0.0/15 {\n forward . 192.0.2.6\n}\n",
    );
    assert_eq!(said.blocks[0].zones.len(), 17);
    assert_eq!(said.blocks[0].zones[16], name("111.10.in-addr.arpa."));
    // The first has nobody to ask.
    let asks = said.routes.iter().filter(|route| !route.upstreams.is_empty());
    let asks: Vec<_> = asks.map(|route| route.zone.to_string()).collect();
    assert_eq!(asks, ["0.10.in-addr.arpa.", "1.10.in-addr.arpa."]);
}

#[test]
fn several_blocks_may_have_kubernetes() {
    let said = meaning(
        "cluster.local {\n kubernetes cluster.local {\n  pods verified\n  ttl 30\n  fallthrough\n }\n}\n\
         in-addr.arpa {\n kubernetes cluster.local in-addr.arpa {\n  ttl 30\n }\n}\n\
         ip6.arpa {\n kubernetes cluster.local ip6.arpa {\n  fallthrough ip6.arpa\n }\n}\n",
    );
    // Names as their own block has it, whatever the others do not say; addresses as theirs do.
    assert_eq!((said.pods(), said.ttl()), (Some(PodNames::Verified), Some(30)));
    assert_eq!(said.falls_through(), (true, Trees { v4: false, v6: true }));
    // Whatever the order.
    let said = meaning(
        "in-addr.arpa ip6.arpa {\n kubernetes\n}\n. {\n kubernetes cluster.local {\n  pods insecure\n }\n}\n",
    );
    assert_eq!((said.pods(), said.ttl()), (Some(PodNames::Insecure), Some(5)));
    assert_eq!(said.falls_through(), (false, Trees::default()));
    // A tree that another block has is that block's.
    let said = meaning(
        "cluster.local {\n kubernetes cluster.local in-addr.arpa\n}\n. {\n forward . 192.0.2.1\n}\n",
    );
    assert_eq!(said.falls_through().1, Trees::BOTH);
}

#[test]
fn snippets_and_imports_take_the_place_of_their_name() {
    let text = "(kept) {\n cache 9\n errors\n}\n. {\n import kept\n forward . 192.0.2.1\n}\n";
    assert_eq!(meaning(text).routes[0].keeping.ttl.1, seconds(9));
    let files = [("/more", "forward . 192.0.2.3 {\n policy sequential\n}")];
    let meaning = read_with(". {\n import more\n}\n", &files).unwrap();
    assert_eq!(meaning.routes[0].upstreams, at(&["192.0.2.3"]));
    let doubling: String = (0..40).fold(String::new(), |all, at| {
        all + &format!("(s{}) {{\n import s{at}\n import s{at}\n}}\n", at + 1)
    });
    let text = format!("(s0) {{\n errors\n}}\n{doubling}. {{\n import s40\n}}\n");
    assert!(read_with(&text, &[]).unwrap_err().why.contains("more than 100000 lines"));
    let endless = read_with(". {\n import /more\n}\n", &[("/more", "import /more\n")]);
    assert!(endless.unwrap_err().why.contains("levels"));
}

/// Each text is an error at that place, which says why.
fn are_errors(all: &[(&str, &str, &str)]) {
    for (text, place, why) in all {
        let error = error(text);
        assert!(error.starts_with(&format!("/Corefile:{place}: ")), "{text}: {error}");
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn errors_of_kubernetes_say_where_and_what() {
    are_errors(&[
        (". {\n kubernetes other.local\n}\n", "2:2", "other.local. is not the cluster domain"),
        (". {\n kubernetes {\n  noendpoints\n }\n}\n", "2:2", ". is not the cluster domain"),
        (
            ". {\n kubernetes cluster.local {\n  labels a of (b)\n }\n}\n",
            "3:3",
            "no requirement of labels",
        ),
        (
            ". {\n kubernetes cluster.local {\n  namespaces a\n  namespace_labels b\n }\n}\n",
            "2:2",
            "not both",
        ),
        (". {\n kubernetes cluster.local {\n  namespaces\n }\n}\n", "3:3", "not supported in"),
        (". {\n kubernetes cluster.local {\n  ignore all\n }\n}\n", "3:3", "not supported in"),
        (
            ". {\n kubernetes cluster.local {\n  noendpoints\n  ignore empty_service\n }\n}\n",
            "2:2",
            "every Service is empty",
        ),
        (
            ". {\n kubernetes cluster.local {\n  ttl 3601\n }\n}\n",
            "3:7",
            "no number from 0 to 3600",
        ),
        (
            ". {\n kubernetes cluster.local\n kubernetes in-addr.arpa\n}\n",
            "3:2",
            "has kubernetes already",
        ),
        (
            "cluster.local {\n kubernetes {\n  ttl 30\n }\n}\nip6.arpa {\n kubernetes {\n  \
             fallthrough\n  ttl 5\n }\n}\n",
            "9:3",
            "said otherwise where the cluster domain is",
        ),
        (
            "ip6.arpa {\n kubernetes {\n  noendpoints\n }\n}\n. {\n kubernetes cluster.local\n}\n",
            "3:3",
            "said otherwise where the cluster domain is",
        ),
    ]);
}

#[test]
fn errors_say_where_and_what() {
    are_errors(&[
        (". {\n forward . 192.0.2.1\n", "1:1", "has no closing brace"),
        (". {\n}\n}\n", "3:1", "nothing is open here"),
        ("{\n}\n", "1:1", "has no zone"),
        (".", "1:1", "has no opening brace"),
        (". {\n cache \"30\n}\n", "2:8", "has no end"),
        (". {\n  route53 a {\n }\n}\n", "2:3", "\"route53\" is not supported"),
        (". {\n forward . https://192.0.2.1\n}\n", "2:12", "https:// is not supported"),
        (". {\n forward . tls://dns.example\n}\n", "2:12", "is no address"),
        (". {\n forward . tls://192.0.2.1%a_b!\n}\n", "2:12", "is no name"),
        (". {\n forward . tls://192.0.2.1 {\n  tls /nothing\n }\n}\n", "3:7", "can't be read"),
        (". {\n forward . 192.0.2.1 {\n  tls /etc/resolv.conf\n }\n}\n", "3:3", "no certificate"),
        (
            ". {\n forward . tls://192.0.2.1%a.example {\n  tls_servername b.example\n }\n}\n",
            "2:12",
            "do not go together",
        ),
        (". {\n forward . nowhere.example\n}\n", "2:12", "neither an address nor a file"),
        (". {\n forward . 192.0.2.1 {\n  next\n }\n}\n", "3:3", "names response codes"),
        (". {\n forward . 192.0.2.1 {\n  next NOPE\n }\n}\n", "3:8", "no response code such as"),
        (". {\n forward . 192.0.2.1 {\n  failover NOERROR\n }\n}\n", "3:12", "nobody else"),
        (". {\n forward .\n}\n", "2:10", "who is asked"),
        (". {\n forward . 192.0.2.1 {\n  policy best\n }\n}\n", "3:10", "must be random"),
        (".:5353 {\n}\n", "1:1", "answers on port 53"),
        ("https://. {\n}\n", "1:1", "https:// is not supported"),
        (".:53 tls://.:853 {\n}\n", "1:6", "needs tls CERT KEY"),
        ("tls://.:70000 {\n}\n", "1:1", "no port"),
        ("10.0.0.0/33 {\n}\n", "1:1", "no range such as"),
        (". {\n forward 10.0.0.0/9 192.0.2.1\n}\n", "2:10", "is 128 zones, and one is wanted"),
        (". {\n health 8080\n}\n", "2:9", "no address such as"),
        (". {\n health :0\n}\n", "2:9", "no address such as"),
        (". {\n ready a b\n}\n", "2:2", "one address at most"),
        (". {\n health {\n  lameduck 61s\n }\n}\n", "3:3", "60 s at most"),
        (". {\n prometheus {\n  x\n }\n}\n", "3:3", "not supported in"),
        ("a. {\n}\nA {\n}\n", "3:1", "has a server block already"),
        (". {\n cache {\n  prefetch 1 1y\n }\n}\n", "3:14", "no duration"),
        (". {\n loadbalance weighted\n}\n", "2:14", "\"weighted\" is not supported"),
        (
            ". {\n loadbalance round_robin {\n  prefer 10.0.0.0/8\n }\n}\n",
            "3:3",
            "\"prefer\" is not",
        ),
        (". {\n import nothing\n}\n", "2:9", "no file and no snippet"),
        (". {\n hosts {\n  unknown 1\n }\n}\n", "3:3", "neither an address nor an option"),
    ]);
    let unreadable = read(
        Path::new("/nothing"),
        &Served {
            domain: Name::root(),
            port: 53,
            addresses: vec![],
            node_local: vec![],
            connects_pods: false,
        },
        &Files(BTreeMap::new()),
    );
    assert!(unreadable.unwrap_err().why.contains("can't be read"));
}

#[test]
fn a_configuration_keeps_what_the_file_does_not_say() {
    let own = Config { ttl: 7, ..Config::default() };
    let applied = meaning(". {\n forward . 192.0.2.1\n}\n").applied(&own);
    assert_eq!((applied.ttl, applied.pod_names), (7, PodNames::Insecure));
    assert_eq!(applied.forward, own.forward);
    assert_eq!(applied.routes.len(), 1);
    assert_eq!(applied.routes[0].upstreams, at(&["192.0.2.1"]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a file holds, it is a meaning or an error that says where.
    #[test]
    fn any_text(text in "[ \n\t{}\"#\\\\$%a-z.:/*0-9()é-]{0,200}") {
        match read_with(&text, &[]) {
            Ok(_) => {}
            Err(error) => prop_assert!(error.at.line <= text.lines().count().max(1)),
        }
    }

    /// The same for files that are almost right.
    #[test]
    fn a_corefile_with_something_gone(which in 0..4_usize, from in 0..2000_usize, length in 0..60_usize) {
        let text = [
            include_str!("fixtures/kubeadm.Corefile"),
            include_str!("fixtures/k3s.Corefile"),
            include_str!("fixtures/nodelocal.Corefile"),
            include_str!("fixtures/everything.Corefile"),
        ][which];
        let kept = text.chars().enumerate().filter(|(at, _)| !(from..from + length).contains(at));
        let text: String = kept.map(|(_, letter)| letter).collect();
        if let Err(error) = read_with(&text, &[]) {
            prop_assert!(error.at.line <= text.lines().count().max(1));
        }
    }
}
