//! The hosts' namespaces and the bridge between them.

use anyhow::Result;

use super::{Layout, layout::Host};
use crate::invoke;

/// Makes what is missing.
pub fn make(layout: &Layout) -> Result<()> {
    make_bridge(layout)?;
    for host in layout.hosts() {
        if !netns_exists(&host.netns) {
            make_host(layout, &host)?;
        }
    }
    Ok(())
}

/// Removes what is there, hosts that an earlier run had included.
pub fn remove(layout: &Layout) -> Result<()> {
    let ours = format!("{}-", layout.prefix());
    for netns in netns_names()?.iter().filter(|name| name.starts_with(&ours)) {
        ip(&format!("netns del {netns}"))?;
    }
    if link_exists(&layout.bridge()) {
        ip(&format!("link del {}", layout.bridge()))?;
    }
    Ok(())
}

/// Whether a namespace of this name is there.
pub fn netns_exists(name: &str) -> bool {
    std::path::Path::new("/run/netns").join(name).exists()
}

fn make_bridge(layout: &Layout) -> Result<()> {
    let bridge = layout.bridge();
    if link_exists(&bridge) {
        return Ok(());
    }
    let (v4, v6) = layout.machine();
    ip(&format!("link add {bridge} type bridge forward_delay 0 mcast_snooping 0"))?;
    ip(&format!("addr add {v4}/24 dev {bridge}"))?;
    ip(&format!("addr add {v6}/64 dev {bridge} nodad"))?;
    ip(&format!("link set {bridge} up"))
}

fn make_host(layout: &Layout, host: &Host) -> Result<()> {
    let Host { netns, port, ipv4, ipv6, .. } = host;
    let (gateway4, gateway6) = layout.machine();
    ip(&format!("netns add {netns}"))?;
    if link_exists(port) {
        ip(&format!("link del {port}"))?;
    }
    ip(&format!("link add {port} type veth peer name eth0 netns {netns}"))?;
    ip(&format!("link set {port} master {} up", layout.bridge()))?;
    for line in [
        "link set lo up".to_owned(),
        format!("addr add {ipv4}/24 dev eth0"),
        format!("addr add {ipv6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via {gateway4}"),
        format!("-6 route add default via {gateway6}"),
    ] {
        ip(&format!("-n {netns} {line}"))?;
    }
    Ok(())
}

fn netns_names() -> Result<Vec<String>> {
    let list = invoke::capture(&mut invoke::command("ip", ["netns", "list"]))?;
    Ok(list.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn link_exists(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

fn ip(line: &str) -> Result<()> {
    invoke::capture(&mut invoke::command("ip", line.split(' '))).map(drop)
}
