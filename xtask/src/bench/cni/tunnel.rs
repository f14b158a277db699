//! `vxlan-throughput`: a stream between pods of nodes that share no link, beside the kernel's own
//! VXLAN with static entries.
//!
//! ```text
//!  client ── host A ── (VXLAN over the cluster's bridge) ── host B ── server
//! ```
//! The hosts know each other by addresses that are on no link.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::{
    plugin::{MIZZEN, Plugin},
    ways::{Way, ratios},
};
use crate::{
    bench::{Figure, triple::ip, turns, world::World},
    cluster::{Layout, layout::Host, up},
    load::Measured,
};

/// One stream.
pub const NAME: &str = "vxlan-throughput";

/// Octets of packets in the tunnel, for both: as on a link of 1,500 with IPv4 outside.
const MTU: u32 = 1_450;

/// Measures it. The reference takes part twice.
pub fn measure(world: &mut World, rounds: u32) -> Result<Vec<Figure>> {
    let mut ways = Vec::new();
    for number in 0..2 {
        let hosts = apart(world, number)?;
        ways.push(kernel(&world.layout, &hosts, number)?);
    }
    let hosts = apart(world, 2)?;
    ways.push(mizzen(world, hosts)?);
    let rate = |measured: &Measured| measured.rate;
    let taken = turns::quiet(NAME, &ways, rounds, rate, Way::throughput)?;
    Ok(ratios(NAME, &ways, &taken, rounds, (rate, 0.98)))
}

/// The address by which a host is known.
fn address(pair: u8, end: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 241, pair, end)
}

/// Two hosts that know each other by addresses on no link.
fn apart(world: &mut World, pair: u8) -> Result<[Host; 2]> {
    let hosts = [world.next_host()?, world.next_host()?];
    for (end, host) in (1..).zip(&hosts) {
        let netns = &host.netns;
        let (other, at) = (&hosts[usize::from(2 - end)], address(pair, 3 - end));
        ip(&format!("-n {netns} addr add {}/32 dev eth0", address(pair, end)))?;
        ip(&format!("-n {netns} route add {at} via {} src {}", other.ipv4, address(pair, end)))?;
    }
    Ok(hosts)
}

/// A device for the two, and static entries for all that is behind the other.
fn kernel(layout: &Layout, hosts: &[Host; 2], pair: u8) -> Result<Way> {
    const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
    let mut ends = Vec::new();
    for (end, host) in (1_u8..).zip(hosts) {
        let (netns, pod) = (&host.netns, format!("{}-v", host.netns));
        let other = usize::from(2 - end);
        let (local, remote) = (address(pair, end), address(pair, 3 - end));
        ip(&format!("netns add {pod}"))?;
        for line in [
            "link set lo up".to_owned(),
            format!("link add veth0 type veth peer name eth0 netns {pod}"),
            format!("link set veth0 mtu {MTU} up"),
            "addr add 169.254.1.1/32 dev veth0".to_owned(),
            format!("route add 10.240.{end}.2 dev veth0"),
            format!(
                "link add vxlan0 address {} mtu {MTU} type vxlan id 1 local {local} dstport 4790 \
                 nolearning",
                MACS[usize::from(end - 1)]
            ),
            "link set vxlan0 up".to_owned(),
            format!("route add 10.240.{}.0/24 via {remote} dev vxlan0 onlink", 3 - end),
            format!("neigh add {remote} lladdr {} dev vxlan0 nud permanent", MACS[other]),
        ] {
            ip(&format!("-n {netns} {line}"))?;
        }
        fdb(netns, &format!("append {} dev vxlan0 dst {remote}", MACS[other]))?;
        let forward = ["sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1"];
        let inside = format!("--net=/run/netns/{netns}");
        let args = std::iter::once(inside.as_str()).chain(forward);
        crate::invoke::capture(&mut crate::invoke::command("nsenter", args))?;
        for line in [
            "link set lo up".to_owned(),
            format!("addr add 10.240.{end}.2/32 dev eth0"),
            format!("link set eth0 mtu {MTU} up"),
            "route add 169.254.1.1 dev eth0".to_owned(),
            "route add default via 169.254.1.1 dev eth0".to_owned(),
        ] {
            ip(&format!("-n {pod} {line}"))?;
        }
        ends.push(pod);
    }
    Way::to_server(layout, "kernel", &ends[0], &ends[1], Ipv4Addr::new(10, 240, 2, 2))
}

fn fdb(netns: &str, line: &str) -> Result<()> {
    let line = format!("-n {netns} fdb {line}");
    crate::invoke::capture(&mut crate::invoke::command("bridge", line.split(' '))).map(drop)
}

/// Two agents, and a pod of each.
fn mizzen(world: &World, hosts: [Host; 2]) -> Result<Way> {
    let layout = &world.layout;
    let mut ends = Vec::new();
    for (end, host) in (1..).zip(hosts) {
        let plugin = Plugin::start_mizzen(world, layout, host, address(2, end))?;
        ends.push((plugin.pods(1)?, plugin));
    }
    for (_, plugin) in &ends {
        let netns = &plugin.host.netns;
        up::wait(layout, "the tunnel", || {
            let made = ip(&format!("-n {netns} link show dev mizzen.vxlan up"));
            Ok(made.map_err(|error| format!("{error:#}")))
        })?;
    }
    let [(clients, from), (servers, to)] = ends.as_slice() else {
        anyhow::bail!("two nodes were made")
    };
    from.connect(&clients[0])?;
    let target = to.connect(&servers[0])?;
    Way::to_server(layout, MIZZEN, &clients[0].netns, &servers[0].netns, target)
        .context("pods behind a tunnel")
}
