//! Kernel settings of network namespaces and interfaces, under `/proc/sys/net`.
//!
//! These files show the namespace of the thread that opens them.

use std::{fs, io, path::PathBuf};

const ROOT: &str = "/proc/sys/net";

/// A setting could not be written.
#[derive(Debug, thiserror::Error)]
#[error("set sysctl {name} to {value}; is /proc/sys mounted writable for the agent?")]
pub struct SysctlError {
    /// Path below `/proc/sys/net`, such as `ipv4/ip_forward`.
    pub name: String,
    /// What it should be.
    pub value: &'static str,
    /// Why it is not.
    #[source]
    pub source: io::Error,
}

/// Writes `value` unless it is there already: some settings reset others when written. Whether it
/// had to.
pub fn set(name: &str, value: &'static str) -> Result<bool, SysctlError> {
    let path = PathBuf::from(ROOT).join(name);
    let write = || {
        if fs::read_to_string(&path)?.trim() == value {
            return Ok(false);
        }
        fs::write(&path, value).map(|()| true)
    };
    write().map_err(|source| SysctlError { name: name.to_owned(), value, source })
}

/// Whether this kernel, in this namespace, has IPv6 at all.
pub fn has_ipv6() -> bool {
    PathBuf::from(ROOT).join("ipv6/conf/all").exists()
}

/// Makes the node a router between its pods and everybody else.
///
/// A router ignores router advertisements (RFC 4861, 6.2.7), and a node may have its own default
/// route from one: interfaces that listened (1) go on listening (2). How many of the two settings
/// were otherwise.
pub fn make_router() -> Result<usize, SysctlError> {
    let altered = usize::from(set("ipv4/ip_forward", "1")?);
    if !has_ipv6() || reads("ipv6/conf/all/forwarding", "1") {
        return Ok(altered);
    }
    let interfaces = fs::read_dir(PathBuf::from(ROOT).join("ipv6/conf"));
    for interface in interfaces.into_iter().flatten().flatten() {
        let accept_ra = format!("ipv6/conf/{}/accept_ra", interface.file_name().to_string_lossy());
        let template = ["all", "default"].iter().any(|name| interface.file_name() == *name);
        if !template && reads(&accept_ra, "1") {
            set(&accept_ra, "2")?;
        }
    }
    Ok(altered + usize::from(set("ipv6/conf/all/forwarding", "1")?))
}

fn reads(name: &str, value: &str) -> bool {
    fs::read_to_string(PathBuf::from(ROOT).join(name)).is_ok_and(|text| text.trim() == value)
}

/// Of the host's end of a pod's veth, and of the tunnel: a router port without addresses, whose
/// traffic may come back another way (services are translated after the packet has entered).
const OF_ROUTER_PORT: [(&str, &str, &str); 5] = [
    ("ipv4", "rp_filter", "0"),
    ("ipv4", "forwarding", "1"),
    ("ipv6", "disable_ipv6", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "forwarding", "1"),
];

/// The settings of a router port that are there: name, and what each should be.
fn of_router_port(ifname: &str) -> impl Iterator<Item = (String, &'static str)> + '_ {
    let families = if has_ipv6() { &["ipv4", "ipv6"][..] } else { &["ipv4"] };
    let there = OF_ROUTER_PORT.into_iter().filter(|(family, ..)| families.contains(family));
    there.map(move |(family, name, value)| (format!("{family}/conf/{ifname}/{name}"), value))
}

/// Sets up a router port; how many settings were otherwise.
pub fn tune_host_end(ifname: &str) -> Result<usize, SysctlError> {
    let mut altered = 0;
    for (name, value) in of_router_port(ifname) {
        altered += usize::from(set(&name, value)?);
    }
    Ok(altered)
}

/// The settings of a router port that are otherwise, as `sysctl` arguments that would mend them.
pub fn altered_of_host_end(ifname: &str) -> Vec<String> {
    let altered = of_router_port(ifname).filter(|(name, value)| !reads(name, value));
    altered.map(|(name, value)| format!("net/{name}={value}")).collect()
}

/// The pod's end, before it comes up: its IPv6 addresses work at once, and nobody on the link
/// tells it about routers.
pub fn tune_pod_end(ifname: &str, ipv6: bool) -> Result<(), SysctlError> {
    if ipv6 {
        set(&format!("ipv6/conf/{ifname}/disable_ipv6"), "0")?;
        set(&format!("ipv6/conf/{ifname}/accept_dad"), "0")?;
        set(&format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
    }
    Ok(())
}
