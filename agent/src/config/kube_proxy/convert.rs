//! The settings that a KubeProxyConfiguration's values become. Pure.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use super::{File, Values, listen_address};
use crate::kube::convert::{parse_cidr, parse_ip};

/// From this verbosity on klog tells what is for debugging.
const VERBOSITY_DEBUG: i64 = 4;
/// Where kube-proxy has its metrics.
const METRICS_PORT: u16 = 10249;
/// All addresses; loopback ones too.
const ALL: [&str; 2] = ["0.0.0.0/0", "::/0"];
/// Loopback addresses.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// All addresses that a node may have, but for loopback ones.
const ALL_BUT_LOOPBACK: [&str; 11] = [
    "0.0.0.0/2",
    "64.0.0.0/3",
    "96.0.0.0/4",
    "112.0.0.0/5",
    "120.0.0.0/6",
    "124.0.0.0/7",
    "126.0.0.0/8",
    "128.0.0.0/1",
    // Global, unique local, link-local: RFC 4291, 4193.
    "2000::/3",
    "fc00::/7",
    "fe80::/10",
];
/// Stands where no address takes node ports: no node has it.
const NOWHERE: &str = "0.0.0.0/32";

/// What the values of a file become.
pub(super) fn settings(values: &Values) -> File {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let (detect_local, cluster_cidr, pod_device) = local_pods(values);
    let verbose = values.integer("logging.verbosity").unwrap_or(0) >= VERBOSITY_DEBUG;
    let masquerade_all = match mode(values) {
        "nftables" => values.flag("nftables.masqueradeAll"),
        _ => values.flag("iptables.masqueradeAll"),
    };
    File {
        kubeconfig: values.text("clientConnection.kubeconfig").map(PathBuf::from),
        node_name: values.text("hostnameOverride").map(|name| name.trim().to_lowercase()),
        healthz_bind_address: address(values, "healthzBindAddress", 10256),
        metrics_bind_address: metrics_address(values),
        node_port_addresses: Some(node_port_addresses(values)),
        detect_local: Some(detect_local.to_owned()),
        cluster_cidr: (!cluster_cidr.is_empty()).then(|| texts(&cluster_cidr)),
        pod_device: pod_device.map(|device| vec![device]),
        masquerade_all,
        log_format: values.text("logging.format").map(str::to_owned),
        log_filter: verbose.then(|| "debug".to_owned()),
        ..File::default()
    }
}

/// The mode: on Linux, iptables where none is named.
fn mode(values: &Values) -> &str {
    values.text("mode").unwrap_or("iptables")
}

fn address(values: &Values, path: &str, port: u16) -> Option<SocketAddr> {
    listen_address(values.text(path)?, port)
}

/// Where metrics are. Where nothing says it, kube-proxy has them at the loopback address of the
/// family of `bindAddress`; that of IPv4 is our default too.
fn metrics_address(values: &Values) -> Option<SocketAddr> {
    let at_ipv6 = || {
        let bind = parse_ip(values.text("bindAddress")?)?;
        bind.is_ipv6().then(|| SocketAddr::from((Ipv6Addr::LOCALHOST, METRICS_PORT)))
    };
    address(values, "metricsBindAddress", METRICS_PORT).or_else(at_ipv6)
}

/// Which loopback addresses take node ports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loopback {
    /// None.
    Closed,
    /// Those that are named themselves.
    Named,
    /// Those, and IPv4's as a part of a larger range.
    Ipv4,
}

fn node_port_addresses(values: &Values) -> Vec<String> {
    let mode = mode(values);
    let named = values.texts("nodePortAddresses");
    let is_primary = if named.is_empty() { mode == "nftables" } else { named == ["primary"] };
    if is_primary {
        return vec!["primary".to_owned()];
    }
    let loopback = match (mode, values.flag("iptables.localhostNodePorts")) {
        ("iptables", Some(false)) => Loopback::Closed,
        ("iptables", _) => Loopback::Ipv4,
        _ => Loopback::Named,
    };
    let meant = named.iter().flat_map(|word| match word.as_str() {
        "all" => ALL.to_vec(),
        "localhost" => LOOPBACK.to_vec(),
        range => vec![range],
    });
    let mut ranges: Vec<&str> = meant.collect();
    // kube-proxy has a list for each family: one that is empty means all addresses.
    for all in ALL {
        if !ranges.iter().any(|range| range.contains(':') == all.contains(':')) {
            ranges.push(all);
        }
    }
    let open = ranges.into_iter().flat_map(|range| open(range, loopback));
    let open: Vec<String> = open.map(str::to_owned).collect();
    if open.is_empty() { vec![NOWHERE.to_owned()] } else { open }
}

/// What of a range takes node ports, as ranges: kube-proxy opens loopback addresses only where its
/// mode can, and those of IPv6 never by a range that holds others too.
fn open(range: &str, loopback: Loopback) -> Vec<&str> {
    let Some(cidr) = parse_cidr(range) else { return vec![range] };
    let is_whole = if cidr.address.is_loopback() {
        loopback != Loopback::Closed
    } else if cidr.contains(Ipv4Addr::LOCALHOST.into()) {
        loopback == Loopback::Ipv4
    } else {
        !cidr.contains(Ipv6Addr::LOCALHOST.into())
    };
    if is_whole {
        return vec![range];
    }
    // A range holds each of these wholly or not at all, for none of them holds a loopback address.
    let within = |part: &&str| parse_cidr(part).is_some_and(|part| cidr.contains(part.address));
    ALL_BUT_LOOPBACK.into_iter().filter(within).collect()
}

/// How pods are told from others, the ranges for it, and the device that leads to them.
fn local_pods(values: &Values) -> (&'static str, Vec<&str>, Option<String>) {
    let ranges = values.text("clusterCIDR").unwrap_or_default().split(',').map(str::trim);
    let ranges: Vec<&str> = ranges.filter(|range| !range.is_empty()).collect();
    match values.text("detectLocalMode").unwrap_or("ClusterCIDR") {
        "ClusterCIDR" if ranges.is_empty() => ("None", Vec::new(), None),
        "ClusterCIDR" => ("ClusterCIDR", ranges, None),
        "BridgeInterface" => {
            let device = values.text("detectLocal.bridgeInterface").map(str::to_owned);
            ("PodCIDRs", Vec::new(), device)
        }
        "InterfaceNamePrefix" => {
            let prefix = values.text("detectLocal.interfaceNamePrefix");
            ("PodCIDRs", Vec::new(), prefix.map(|prefix| format!("{prefix}+")))
        }
        _ => ("PodCIDRs", Vec::new(), None),
    }
}
