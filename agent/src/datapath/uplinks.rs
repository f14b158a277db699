//! Which interfaces lead to other hosts: those that are named, else those that carry the node's
//! addresses or a default route.
//!
//! Asked of the thread's own network namespace by system calls and `/proc/thread-self/net`:
//! `/sys/class/net` shows the namespace of its mount, which is another where a node is a
//! namespace on a shared machine.

use std::{collections::BTreeSet, fs, io, net::IpAddr};

use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Its index in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// Why interfaces can't be told.
#[derive(Debug, thiserror::Error)]
pub enum UplinksError {
    /// The addresses can't be listed.
    #[error("list the addresses of this network namespace")]
    Addresses(#[source] io::Error),
    /// The routes can't be read.
    #[error("read the routes of this network namespace from {path}")]
    Routes {
        /// The file.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The uplinks that there are at present, ordered by index. `names` are taken where any are given,
/// absent ones left out: they may still appear. `addresses` are those by which others reach the node.
pub fn find_uplinks(
    names: &[String],
    addresses: &[IpAddr],
) -> Result<BTreeSet<Interface>, UplinksError> {
    let mut found: BTreeSet<String> = names.iter().cloned().collect();
    if found.is_empty() {
        found = carriers(addresses)?;
        found.extend(default_route_devices()?);
    }
    found.remove("lo");
    let known = |name: String| {
        let index = if_nametoindex(name.as_str()).ok()?;
        Some(Interface { index, name })
    };
    Ok(found.into_iter().filter_map(known).collect())
}

/// The interfaces that carry one of the addresses.
fn carriers(addresses: &[IpAddr]) -> Result<BTreeSet<String>, UplinksError> {
    let all = getifaddrs().map_err(|errno| UplinksError::Addresses(errno.into()))?;
    let carries = |held: nix::ifaddrs::InterfaceAddress| {
        let address = held.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        addresses.contains(&ip).then_some(held.interface_name)
    };
    Ok(all.filter_map(carries).collect())
}

/// The interfaces with a default route of either family.
fn default_route_devices() -> Result<BTreeSet<String>, UplinksError> {
    const V4: &str = "/proc/thread-self/net/route";
    const V6: &str = "/proc/thread-self/net/ipv6_route";
    let read = |path| match fs::read_to_string(path) {
        // No such file: the kernel or the namespace is without that family.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|source| UplinksError::Routes { path, source }),
    };
    let (v4, v6) = (read(V4)?, read(V6)?);
    Ok(defaults_v4(&v4).chain(defaults_v6(&v6)).map(str::to_owned).collect())
}

/// Devices of default routes in `/proc/net/route`: name, destination, …, mask at field 7.
fn defaults_v4(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_default = fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
        is_default.then(|| fields[0])
    })
}

/// Devices of default routes in `/proc/net/ipv6_route`: destination, its length, …, flags at
/// field 8, name. The kernel's own "unreachable" defaults are flagged so (`RTF_REJECT`).
fn defaults_v6(text: &str) -> impl Iterator<Item = &str> {
    const RTF_REJECT: u32 = 0x200;
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        let is_default = fields[0].bytes().all(|byte| byte == b'0') && fields[1] == "00";
        (is_default && flags & RTF_REJECT == 0).then(|| fields.get(9).copied())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_default_routes_of_ipv4() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth1\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                    eth2\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n";
        assert_eq!(defaults_v4(text).collect::<Vec<_>>(), ["eth0"]);
        assert_eq!(defaults_v4("").count(), 0);
    }

    #[test]
    fn reads_default_routes_of_ipv6() {
        let zero = "00000000000000000000000000000000";
        let text = format!(
            "fd000030000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth1\n\
             {zero} 00 {zero} 00 fd000030000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(defaults_v6(&text).collect::<Vec<_>>(), ["eth0"]);
    }

    #[test]
    fn names_win_and_absent_ones_are_left_out() {
        let found = find_uplinks(&["no-such-device".into()], &[]).unwrap();
        assert!(found.is_empty());
    }

    #[test]
    fn loopback_is_no_uplink() {
        let found = find_uplinks(&[], &["127.0.0.1".parse().unwrap()]).unwrap();
        assert!(found.iter().all(|interface| interface.name != "lo"));
    }
}
