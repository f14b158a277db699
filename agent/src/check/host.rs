//! Settings of the kernel that traffic depends on, as the agent's network namespace has them.

use std::{collections::BTreeMap, fs, ops::RangeInclusive};

use crate::datapath::Interface;

/// The settings. What can't be read is `None`: a kernel may lack it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The kernel's release.
    pub release: String,
    /// `net.ipv4.ip_forward`, and `net.ipv6.conf.all.forwarding` where the node has IPv6 addresses.
    pub forwarding: BTreeMap<String, Option<bool>>,
    /// The strictest `rp_filter` that applies to an uplink.
    pub rp_filter: Option<u8>,
    /// `net.ipv4.ip_local_port_range`: source ports of the node's own sockets.
    pub local_ports: Option<RangeInclusive<u16>>,
    /// `net.ipv4.ip_local_reserved_ports`, which are excepted from these.
    pub reserved_ports: Vec<RangeInclusive<u16>>,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<bool>,
    /// `kernel.bpf_stats_enabled`.
    pub statistics: Option<bool>,
}

impl Host {
    /// Reads them, in the network namespace of this thread. `ipv6` says whether the node has
    /// addresses of that family.
    pub fn read(uplinks: &[Interface], ipv6: bool) -> Self {
        let names = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
        let names = names.into_iter().take(1 + usize::from(ipv6));
        let forwarding = names.map(|name| (name.replace('/', "."), flag(name))).collect();
        let filter = |of: &str| text(&format!("net/ipv4/conf/{of}/rp_filter"))?.parse().ok();
        let devices = uplinks.iter().map(|uplink| uplink.name.as_str());
        Self {
            release: text("kernel/osrelease").unwrap_or_default(),
            forwarding,
            rp_filter: devices.chain(["all"]).filter_map(filter).max(),
            local_ports: text("net/ipv4/ip_local_port_range").and_then(|text| span(&text)),
            reserved_ports: ports(&text("net/ipv4/ip_local_reserved_ports").unwrap_or_default()),
            jit: flag("net/core/bpf_jit_enable"),
            statistics: flag("kernel/bpf_stats_enabled"),
        }
    }

    /// Whether the kernel may give this port to a socket of the node that asks for none.
    pub fn gives_out(&self, port: u16) -> bool {
        let reserved = || self.reserved_ports.iter().any(|range| range.contains(&port));
        self.local_ports.as_ref().is_some_and(|range| range.contains(&port)) && !reserved()
    }
}

/// A setting below `/proc/sys`.
fn text(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|text| text.trim().to_owned())
}

fn flag(name: &str) -> Option<bool> {
    text(name).map(|text| text != "0")
}

/// Reads `32768 60999`.
pub(super) fn span(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next()?, words.next()?) {
        (Ok(first), Ok(last)) => Some(first..=last),
        _ => None,
    }
}

/// Reads `8080,9000-9010`.
pub(super) fn ports(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(range).collect()
}
