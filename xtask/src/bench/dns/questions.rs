//! What is asked, and what the answer must be. Pure.

use std::{fmt::Write, net::Ipv4Addr};

use crate::bench::{catalogue, objects};

/// How many services have names while servers are compared.
pub const SERVICES: u32 = 1_000;
/// The cluster domain.
pub const DOMAIN: &str = "cluster.local";
/// The SOA record that negative answers carry, less its serial and what follows.
pub const SOA: &str = "ns.dns.cluster.local. hostmaster.cluster.local.";
/// How long answers may be kept, in seconds.
pub const TTL: u32 = 5;
/// A name of the cluster that does not exist.
pub const MISSING: &str = "missing.default.svc.cluster.local";

/// Names outside.
pub const FOREIGN: u32 = 100;
/// What a pod's resolver puts behind a name with few dots, in this order; the name itself comes
/// last. The fourth is the machine's own, as clouds have it.
pub const SEARCH: [&str; 4] =
    ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"];

/// A service's name.
pub fn name(number: u32) -> String {
    format!("{}.default.svc.{DOMAIN}", objects::name(number))
}

/// Names and addresses of the services that are asked for.
pub fn services() -> impl Iterator<Item = (String, Ipv4Addr)> {
    (0..SERVICES).map(|number| (name(number), catalogue::cluster_ip(number)))
}

/// A name outside.
pub fn foreign(number: u32) -> String {
    format!("www-{number:02}.example.org")
}

/// The address of all names outside.
pub const FOREIGN_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

/// The names that a client asks for one after the other until one has an address.
pub fn search_path(name: &str) -> Vec<String> {
    let behind = SEARCH.iter().map(|domain| format!("{name}.{domain}"));
    behind.chain([name.to_owned()]).collect()
}

/// The questions for addresses as `dnsperf` reads them.
pub fn data(names: impl IntoIterator<Item = String>) -> String {
    let mut text = String::new();
    for name in names {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name} A");
    }
    text
}

/// The cluster's zone as a file, for servers that read such.
pub fn zone_file() -> String {
    let mut text = format!(
        "$ORIGIN {DOMAIN}.\n$TTL {TTL}\n@ SOA {SOA} 1 7200 1800 86400 {TTL}\n@ NS ns.dns\nns.dns A \
         10.96.0.10\n"
    );
    for (name, address) in services() {
        let _ = writeln!(text, "{name}. A {address}");
    }
    text
}

/// The names outside as a root zone.
pub fn foreign_zone_file() -> String {
    let mut text = String::from(
        "$ORIGIN .\n$TTL 300\n@ SOA ns.example. root.example. 1 7200 1800 86400 300\n@ NS \
         ns.example.\nns.example. A 192.0.2.53\n",
    );
    for number in 0..FOREIGN {
        let _ = writeln!(text, "{}. A {FOREIGN_ADDRESS}", foreign(number));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_name_costs_four_misses_and_a_hit() {
        let path = search_path("www-00.example.org");
        assert_eq!(path.len(), 5);
        assert_eq!(path[0], "www-00.example.org.default.svc.cluster.local");
        assert_eq!(path[4], "www-00.example.org");
        assert_eq!(data(path[4..].to_vec()), "www-00.example.org A\n");
    }

    #[test]
    fn zones_have_every_name_once() {
        assert_eq!(zone_file().matches("bench-").count(), SERVICES as usize);
        assert_eq!(foreign_zone_file().matches("www-").count(), FOREIGN as usize);
    }
}
