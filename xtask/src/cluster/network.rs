//! The hosts' namespaces and the bridge between them.
//!
//! What was begun and not finished is finished by the next run: the last step of each part is the
//! one that tells whether it is whole, and the steps before it can be repeated.

use std::{
    fs, io,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Layout, layout::Host};
use crate::invoke;

/// Makes what is missing.
pub fn make(layout: &Layout) -> Result<()> {
    make_bridge(layout)?;
    for host in layout.hosts() {
        if !host_is_whole(&host) {
            make_host(layout, &host)?;
        }
    }
    Ok(())
}

/// Removes what is there, hosts that an earlier run had included.
pub fn remove(layout: &Layout) -> Result<()> {
    // Links first: what goes with its namespace goes some time after it.
    let ports = format!("{}-", layout.bridge());
    for port in names_in("/sys/class/net")?.iter().filter(|name| name.starts_with(&ports)) {
        remove_link(port)?;
    }
    let ours = format!("{}-", layout.prefix());
    for netns in names_in("/run/netns")?.iter().filter(|name| name.starts_with(&ours)) {
        ip(&format!("netns del {netns}"))?;
    }
    remove_link(&layout.bridge())
}

/// Whether a namespace of this name is there.
pub fn netns_exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

/// Being switched on is the last step.
fn bridge_is_whole(bridge: &str) -> bool {
    const IFF_UP: u32 = 1;
    fs::read_to_string(link(bridge).join("flags"))
        .ok()
        .and_then(|flags| u32::from_str_radix(flags.trim().strip_prefix("0x")?, 16).ok())
        .is_some_and(|flags| flags & IFF_UP != 0)
}

/// Being joined to the bridge is the last step.
fn host_is_whole(host: &Host) -> bool {
    netns_exists(&host.netns) && link(&host.port).join("master").exists()
}

fn make_bridge(layout: &Layout) -> Result<()> {
    let bridge = layout.bridge();
    if bridge_is_whole(&bridge) {
        return Ok(());
    }
    let (v4, v6) = layout.machine();
    if !link_exists(&bridge) {
        ip(&format!("link add {bridge} type bridge forward_delay 0 mcast_snooping 0"))?;
    }
    ip(&format!("addr replace {v4}/24 dev {bridge}"))?;
    ip(&format!("addr replace {v6}/64 dev {bridge} nodad"))?;
    ip(&format!("link set {bridge} addrgenmode none"))?;
    ip(&format!("addr replace {}/64 dev {bridge} nodad", link_local(v6)))?;
    ip(&format!("link set {bridge} up"))
}

/// The link-local address with the interface identifier of `address` (RFC 4291, 2.5.6).
fn link_local(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c, d] = address.segments();
    Ipv6Addr::from([0xfe80, 0, 0, 0, a, b, c, d])
}

fn make_host(layout: &Layout, host: &Host) -> Result<()> {
    let Host { netns, port, ipv4, ipv6, .. } = host;
    let (gateway4, gateway6) = layout.machine();
    let link_local = link_local(*ipv6);
    if !netns_exists(netns) {
        ip(&format!("netns add {netns}"))?;
    }
    // Of a namespace that is gone or going, or of a run that did not come to its end.
    remove_link(port)?;
    ip(&format!("link add {port} type veth peer name eth0 netns {netns}"))?;
    for line in [
        "link set lo up".to_owned(),
        format!("addr add {ipv4}/24 dev eth0"),
        format!("addr add {ipv6}/64 dev eth0 nodad"),
        // Of our own and not tentative: neighbours are asked for from this address, and the one
        // that the kernel makes could not ask for its first two seconds.
        "link set eth0 addrgenmode none".to_owned(),
        format!("addr add {link_local}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via {gateway4}"),
        format!("-6 route add default via {gateway6}"),
    ] {
        ip(&format!("-n {netns} {line}"))?;
    }
    ip(&format!("link set {port} master {} up", layout.bridge()))
}

/// Removes a link; one that is not there, or goes by itself meanwhile, is success.
fn remove_link(name: &str) -> Result<()> {
    if !link_exists(name) {
        return Ok(());
    }
    ip(&format!("link del {name}")).or_else(
        |error| {
            if link_exists(name) { Err(error) } else { Ok(()) }
        },
    )
}

fn names_in(dir: &str) -> Result<Vec<String>> {
    let folder = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folder => folder.with_context(|| format!("can't read {dir}"))?,
    };
    Ok(folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn link_exists(name: &str) -> bool {
    link(name).exists()
}

fn link(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn ip(line: &str) -> Result<()> {
    invoke::capture(&mut invoke::command("ip", line.split(' '))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolchain;

    fn layout() -> Layout {
        Layout {
            name: "net".into(),
            subnet: (28, 0),
            nodes: 1,
            runtime: crate::cluster::Runtime::Process,
            dir: "/nonexistent".into(),
            bin_dir: "/nonexistent".into(),
            loopback_api: false,
        }
    }

    #[test]
    fn what_was_begun_is_finished_and_all_of_it_goes() {
        if !toolchain::is_root() {
            println!("skipped: namespaces need root");
            return;
        }
        let layout = layout();
        remove(&layout).expect("remove what an earlier run left");
        // As far as a run came that was interrupted: a bridge without addresses, a namespace
        // without links, and a host that is not joined to the bridge.
        let (node, client) = (&layout.node_hosts()[0], layout.client());
        ip(&format!("link add {} type bridge", layout.bridge())).expect("a bare bridge");
        ip(&format!("netns add {}", node.netns)).expect("a bare namespace");
        ip(&format!("netns add {}", client.netns)).expect("another");
        let veth = format!("link add {} type veth peer name eth0 netns", client.port);
        ip(&format!("{veth} {}", client.netns)).expect("a link");

        let made = make(&layout);
        let again = make(&layout);
        let whole = bridge_is_whole(&layout.bridge()) && layout.hosts().iter().all(host_is_whole);
        let routed: Vec<_> = [layout.machine().0.to_string(), layout.machine().1.to_string()]
            .iter()
            .map(|address| ip(&format!("-n {} route get {address}", client.netns)))
            .collect();
        let removed = remove(&layout);

        made.expect("finish it");
        again.expect("do nothing");
        assert!(whole);
        assert!(routed.iter().all(Result::is_ok), "{routed:?}");
        removed.expect("remove it");
        assert!(!link_exists(&layout.bridge()) && !netns_exists(&node.netns));
        assert!(!layout.hosts().iter().any(|host| link_exists(&host.port)));
        remove(&layout).expect("removing nothing is success");
    }
}
