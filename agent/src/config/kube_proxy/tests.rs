//! Tests of kube-proxy's configuration: files as installers write them, each field of the table, and
//! what is not valid.

use super::{
    table::{FIELDS, Field, Form, Meaning},
    *,
};
use crate::config::{Config, Flags, fields};

/// As kubeadm 1.35 writes it into the ConfigMap `kube-proxy`.
const KUBEADM: &str = include_str!("fixtures/kubeadm.yaml");
/// As kind makes it.
const KIND_S: &str = include_str!("fixtures/kind.yaml");
/// With what kops and people set: every field that kube-proxy has.
const EVERYTHING: &str = include_str!("fixtures/everything.yaml");

/// All addresses in mode iptables: of loopback, IPv4's alone.
const ALL: [&str; 4] = ["0.0.0.0/0", "2000::/3", "fc00::/7", "fe80::/10"];

fn config(text: &str) -> Config {
    let taken = take(text).unwrap();
    fields::layer(Flags::default(), File::default(), taken.settings).0
}

fn notes(text: &str) -> Vec<String> {
    take(text).unwrap().notes.into_iter().map(|note| note.field).collect()
}

#[test]
fn f45_kubeadms_file_is_taken_as_it_is() {
    let expected = Config {
        kubeconfig: "/var/lib/kube-proxy/kubeconfig.conf".into(),
        node_port_addresses: ALL.map(str::to_owned).into(),
        detect_local: "ClusterCIDR".into(),
        cluster_cidr: vec!["10.244.0.0/16".into(), "fd00:244::/48".into()],
        ..Config::default()
    };
    assert_eq!(config(KUBEADM), expected);
    // It names every field that it has, most with nothing: nothing is told of these.
    assert_eq!(notes(KUBEADM), [""; 0]);
}

#[test]
fn f45_kinds_file_is_taken_as_it_is() {
    let config = config(KIND_S);
    assert_eq!(config.cluster_cidr, ["10.244.0.0/16"]);
    let said = ["conntrack.maxPerCore", "iptables.minSyncPeriod"];
    let notes = notes(KIND_S);
    // Zero leaves the kernel's limit alone, which is what happens.
    assert!(!notes.contains(&said[0].to_owned()), "{notes:?}");
    assert!(notes.contains(&said[1].to_owned()), "{notes:?}");
}

#[test]
fn f45_every_field_is_in_the_table_once_and_in_the_file_with_everything() {
    let values = read::read(EVERYTHING).unwrap();
    for field in FIELDS {
        assert_eq!(FIELDS.iter().filter(|other| other.path == field.path).count(), 1);
        assert!(values.0.contains_key(field.path), "{} is not in the file", field.path);
    }
    let told = notes(EVERYTHING);
    for field in FIELDS {
        let without = matches!(field.meaning, Meaning::NoEffect(_));
        assert_eq!(told.contains(&field.path.to_owned()), without, "{}", field.path);
    }
}

/// A file with one value.
fn with(path: &str, value: &str) -> String {
    let mut text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
    let parts: Vec<_> = path.split('.').collect();
    for (depth, part) in parts.iter().enumerate() {
        let end = if depth + 1 == parts.len() { format!(" {value}") } else { String::new() };
        text.extend([&"  ".repeat(depth), *part, ":", &end, "\n"]);
    }
    text
}

/// A file with a value of the field that says something, and what else has to be said for it to.
fn saying(field: &Field) -> String {
    let (value, rest) = match (field.path, field.form) {
        ("detectLocal.bridgeInterface", _) => ("cni0", "detectLocalMode: BridgeInterface"),
        ("detectLocal.interfaceNamePrefix", _) => ("cali", "detectLocalMode: InterfaceNamePrefix"),
        ("bindAddress", _) => ("'::'", ""),
        ("clusterCIDR", _) => ("10.0.0.0/8", ""),
        ("detectLocalMode", _) => ("NodeCIDR", ""),
        ("mode", _) => ("nftables", ""),
        ("iptables.localhostNodePorts", _) => ("false", ""),
        ("nftables.masqueradeAll", _) => ("true", "mode: nftables"),
        ("logging.format", _) => ("json", ""),
        ("logging.verbosity", _) => ("4", ""),
        (_, Form::Bool) => ("true", ""),
        (_, Form::Integer { .. } | Form::Number) => ("1", ""),
        (_, Form::Duration | Form::DurationOrNumber) => ("1m", ""),
        (_, Form::ListenAddress(_)) => ("192.0.2.1:1", ""),
        (_, Form::NodePortAddresses) => ("[192.0.2.0/24]", ""),
        (_, Form::Texts) => ("[a]", ""),
        (_, Form::Gates) => ("{A: true}", ""),
        _ => ("some", ""),
    };
    format!("{}{rest}\n", with(field.path, value))
}

#[test]
fn f45_what_the_table_says_of_a_field_is_what_happens() {
    let mode = |text: &str| text.lines().find(|line| line.starts_with("mode:")).map(str::to_owned);
    for field in FIELDS.iter().filter(|field| field.meaning != Meaning::Header) {
        let text = saying(field);
        let bare = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
        let bare = match (field.path, mode(&text)) {
            ("mode", _) | (_, None) => bare,
            (_, Some(mode)) => format!("{bare}{mode}\n"),
        };
        let changed: Vec<_> = fields::all()
            .zip(fields::values(&config(&text)).iter().zip(&fields::values(&config(&bare))))
            .filter_map(|(field, (now, before))| (now != before).then_some(field.name))
            .collect();
        match field.meaning {
            Meaning::Header => {}
            Meaning::NoEffect(_) => {
                assert!(changed.is_empty(), "{} changes {changed:?}", field.path);
                assert_eq!(notes(&text), [field.path]);
            }
            Meaning::Becomes(settings, _) => {
                for setting in settings {
                    assert!(changed.contains(setting), "{}: {setting}, {changed:?}", field.path);
                }
                assert!(notes(&text).is_empty());
            }
        }
    }
}

/// Whether an address is in one of these ranges.
fn holds(ranges: &[String], ip: &str) -> bool {
    let ip = ip.parse().unwrap();
    let range = |text: &String| crate::kube::convert::parse_cidr(text).unwrap();
    ranges.iter().map(range).any(|range| range.contains(ip))
}

#[test]
fn f06_an_empty_list_of_node_port_addresses_means_what_the_mode_says() {
    let of = |rest: &str| {
        config(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}\n")).node_port_addresses
    };
    assert_eq!(of("mode: nftables"), ["primary"]);
    for all in ["", "mode: iptables", "mode: ''\nnodePortAddresses: null", "nodePortAddresses: []"]
    {
        assert_eq!(of(all), ALL, "{all}");
    }
    for without_loopback in ["mode: ipvs", "iptables: {localhostNodePorts: false}"] {
        let ranges = of(without_loopback);
        let holds = |ip: &str| holds(&ranges, ip);
        for out in ["127.0.0.1", "127.255.255.255", "::1"] {
            assert!(!holds(out), "{without_loopback}: {out}");
        }
        for within in ["126.255.255.255", "128.0.0.0", "0.0.0.0", "10.0.0.1", "255.255.255.255"] {
            assert!(holds(within), "{without_loopback}: {within}");
        }
        assert!(holds("2001:db8::1") && holds("fd00::1") && holds("fe80::1"));
    }
    assert_eq!(of("nodePortAddresses: [primary]"), ["primary"]);
    assert_eq!(of("nodePortAddresses: [localhost]"), ["127.0.0.0/8", "::1/128"]);
}

#[test]
fn f06_a_family_of_which_no_node_port_address_is_named_has_all() {
    for mode in ["iptables", "ipvs", "nftables"] {
        for (named, given, more) in [
            ("192.0.2.0/24", "192.0.2.1", "2001:db8::1"),
            ("2001:db8::/64", "2001:db8::1", "192.0.2.1"),
            ("127.0.0.0/8", "127.0.0.1", "fd00::1"),
        ] {
            let rest = format!("mode: {mode}\nnodePortAddresses: ['{named}']");
            let of_both = config(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}\n"));
            let of_both = of_both.node_port_addresses;
            assert_eq!(of_both[0], named);
            assert!(holds(&of_both, given) && holds(&of_both, more), "{rest}: {of_both:?}");
            let other = if more.contains(':') { "198.51.100.1" } else { "2001:db8:1::1" };
            assert!(!holds(&of_both, other), "{rest}: {of_both:?}");
        }
        let rest = format!("mode: {mode}\nnodePortAddresses: [192.0.2.0/24, 'fd00::/64']");
        let named = config(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}\n"));
        assert_eq!(named.node_port_addresses, ["192.0.2.0/24", "fd00::/64"], "{mode}");
    }
}

#[test]
fn f06_v04_loopback_addresses_take_node_ports_where_kube_proxys_mode_can_or_they_are_named() {
    const NEVER: &str = "iptables: {localhostNodePorts: false}";
    for (rest, named, ipv4, ipv6) in [
        ("", "[]", true, false),
        ("", "[0.0.0.0/0, '::/0']", true, false),
        ("", "[all]", true, false),
        ("", "[64.0.0.0/2]", true, false),
        ("", "[localhost]", true, true),
        ("", "['::1/128']", true, true),
        (NEVER, "[]", false, false),
        (NEVER, "[0.0.0.0/0]", false, false),
        (NEVER, "['0.0.0.0/1', '::/1']", false, false),
        (NEVER, "[127.0.0.0/8]", false, false),
        (NEVER, "[localhost]", false, false),
        ("mode: ipvs", "[0.0.0.0/0, '::/0']", false, false),
        ("mode: ipvs", "[127.0.0.1/32]", true, false),
        ("mode: nftables", "[]", false, false),
        ("mode: nftables", "[all]", false, false),
        ("mode: nftables", "[localhost, 10.0.0.0/8]", true, true),
    ] {
        let text = format!("{rest}\nnodePortAddresses: {named}\n");
        let config = config(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}"));
        let ranges = config.node_port_addresses;
        if ranges == ["primary"] {
            assert!(!ipv4 && !ipv6, "{text}");
            continue;
        }
        assert!(!ranges.is_empty(), "{text}: nothing would mean `primary`");
        assert_eq!(holds(&ranges, "127.0.0.1"), ipv4, "{text}: {ranges:?}");
        assert_eq!(holds(&ranges, "::1"), ipv6, "{text}: {ranges:?}");
    }
}

#[test]
fn f06_a_range_without_its_loopback_addresses_holds_all_others_and_no_more() {
    let of = |named: &str| {
        let text = format!("mode: ipvs\nnodePortAddresses: ['{named}']\n");
        config(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}")).node_port_addresses
    };
    for (named, within, without) in [
        ("64.0.0.0/2", ["64.0.0.0", "96.0.0.1", "126.255.255.255"], ["63.0.0.1", "128.0.0.1"]),
        ("126.0.0.0/7", ["126.0.0.0", "126.1.2.3", "126.255.255.255"], ["125.0.0.1", "128.0.0.1"]),
        ("::/2", ["2000::", "2001:db8::1", "3fff::1"], ["fd00::1", "fe80::1"]),
    ] {
        let ranges = of(named);
        for ip in within {
            assert!(holds(&ranges, ip), "{named}: {ip}, {ranges:?}");
        }
        for ip in without {
            assert!(!holds(&ranges, ip), "{named}: {ip}, {ranges:?}");
        }
    }
}

#[test]
fn f45_local_pods_are_told_as_kube_proxy_tells_them() {
    let of = |rest: &str| {
        let config = config(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}\n"));
        (config.detect_local, config.cluster_cidr, config.pod_device)
    };
    let none = Vec::<String>::new;
    assert_eq!(of(""), ("None".into(), none(), none()));
    let both = ("ClusterCIDR".into(), vec!["10.0.0.0/8".into(), "fd00::/8".into()], none());
    assert_eq!(of("clusterCIDR: 10.0.0.0/8,fd00::/8"), both);
    let node = ("PodCIDRs".into(), none(), none());
    assert_eq!(of("clusterCIDR: 10.0.0.0/8\ndetectLocalMode: NodeCIDR"), node);
    let prefix = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}";
    assert_eq!(of(prefix), ("PodCIDRs".into(), none(), vec!["cali+".into()]));
}

#[test]
fn addresses_to_listen_at_have_kube_proxys_meaning() {
    let at = |text: &str| listen_address(text, 10256).map(|it| it.to_string());
    for (text, expected) in [
        ("0.0.0.0:10256", "[::]:10256"),
        ("0.0.0.0", "[::]:10256"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("::1", "[::1]:10256"),
        ("[::1]", "[::1]:10256"),
        ("[::]:1", "[::]:1"),
    ] {
        assert_eq!(at(text).as_deref(), Some(expected), "{text}");
    }
    assert_eq!(at("localhost:1"), None);
}

#[test]
fn f45_metrics_are_at_the_loopback_address_of_the_family_of_the_bind_address() {
    let of = |rest: &str| {
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}\n");
        let config = config(&text);
        (config.metrics_bind_address.to_string(), config.healthz_bind_address.to_string())
    };
    for (rest, metrics) in [
        ("", "127.0.0.1:10249"),
        ("bindAddress: 0.0.0.0", "127.0.0.1:10249"),
        ("bindAddress: '::ffff:192.0.2.1'", "127.0.0.1:10249"),
        ("bindAddress: '::'", "[::1]:10249"),
        ("bindAddress: 2001:db8::1", "[::1]:10249"),
        ("bindAddress: '::'\nmetricsBindAddress: ''", "[::1]:10249"),
        ("bindAddress: '::'\nmetricsBindAddress: 127.0.0.1", "127.0.0.1:10249"),
        ("bindAddress: '::'\nmetricsBindAddress: 0.0.0.0:10249", "[::]:10249"),
    ] {
        let healthz = "[::]:10256".to_owned();
        assert_eq!(of(rest), (metrics.to_owned(), healthz), "{rest}");
    }
}

#[test]
fn f45_what_is_not_valid_is_named_with_line_and_column() {
    let head = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
    for (rest, expected) in [
        ("modes: x", "unknown field `modes`, expected one of: apiVersion, "),
        ("mode: ebpf", "mode: invalid value: string \"ebpf\", expected one of iptables, ipvs"),
        ("iptables:\n  masqueradeBits: 14", "iptables: unknown field `masqueradeBits`"),
        ("iptables:\n  masqueradeBit: 32", "iptables.masqueradeBit: invalid value: integer `32`"),
        ("iptables:\n  syncPeriod: 30", "iptables.syncPeriod: invalid type: integer `30`"),
        ("iptables:\n  syncPeriod: 30 s", "expected a duration such as 30s or 1h30m"),
        ("clusterCIDR: 10.0.0.0/8,x", "expected ranges such as 10.244.0.0/16"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", "or `primary` alone"),
        ("nodePortAddresses: [eth0]", "nodePortAddresses[0]: invalid value: string \"eth0\""),
        ("healthzBindAddress: all", "expected an address such as 0.0.0.0:10256"),
        ("bindAddress: '[::]:80'", "expected an address such as 0.0.0.0 or ::"),
        ("winkernel: {enableDSR: 1}", "winkernel.enableDSR: invalid type: integer `1`"),
        ("oomScoreAdj: -1001", "expected a number from -1000 to 1000"),
        ("featureGates: {A: 1}", "expected a boolean"),
        ("iptables: []", "iptables: invalid type: sequence, expected named values: localhost"),
        ("portRange: ''\nportRange: ''", "the field `portRange` is there twice"),
    ] {
        let error = take(&format!("{head}{rest}\n")).unwrap_err().to_string();
        let line = 2 + rest.lines().count();
        assert!(error.contains(expected), "{rest}: {error}");
        assert!(error.contains(&format!("at line {line} column ")), "{rest}: {error}");
    }
    for (text, expected) in [
        ("kind: KubeProxyConfiguration", "apiVersion is missing"),
        ("apiVersion: kubeproxy.config.k8s.io/v1alpha2", "must be \"kubeproxy.config.k8s.io/v1a"),
        ("", "apiVersion is missing"),
        (&format!("{head}detectLocalMode: BridgeInterface"), "needs detectLocal.bridgeInterface"),
        (&format!("{head}---\n{head}"), "more than one document"),
    ] {
        let error = take(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
