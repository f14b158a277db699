//! A pod's link: a veth whose far end is born in the pod's namespace, its addresses and routes.
//!
//! ```text
//!  pod's namespace                            node's namespace
//!  eth0  10.244.1.2/32, fd00:244:1::2/128 ──── mz…  (no address)
//!  default via 169.254.1.1, fe80::1            10.244.1.2/32, fd00:244:1::2/128 dev mz…
//! ```
//! The next hops are nobody's addresses: permanent neighbour entries on both ends say where
//! packets go, so that no first packet waits for ARP or neighbour discovery. No bridge, no
//! proxying, and every packet meets exactly one device of the node.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd,
};

use mizzen_cni::wire::{Bandwidth, GATEWAY4, GATEWAY6, Mac};
use nix::errno::Errno;

use super::{
    bandwidth::{self, End},
    interface::{self, Neighbour, addresses, find, permanent_neighbours},
    message::{
        self, VethEnd, Via, add_address, add_neighbour, add_veth, delete_link, host_route,
        replace_route, set_mtu, set_up,
    },
    netlink::{Netlink, NetlinkError},
    netns::inside,
    remembered::{InPod, PodRoute, default_route},
    routes::Present,
    sysctl::{self, SysctlError},
};
use crate::model::node::Cidr;

/// What a pod's link shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// Name of the host's end.
    pub host_ifname: String,
    /// Name of the pod's end.
    pub pod_ifname: String,
    /// Link-layer address of the host's end.
    pub host_mac: Mac,
    /// Link-layer address of the pod's end.
    pub pod_mac: Mac,
    /// Of both ends, in bytes.
    pub mtu: u32,
    /// The pod's.
    pub addresses: Vec<IpAddr>,
    /// What `ip link` on the node says about it.
    pub alias: String,
    /// How much the pod may receive and send.
    pub bandwidth: Bandwidth,
}

/// Why a link could not be made, unmade or verified.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The pod has such an interface already, not from us.
    #[error("interface {ifname} already exists in the pod's network namespace")]
    PodInterfaceExists {
        /// The interface.
        ifname: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting could not be made.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The pod's namespace could not be entered.
    #[error("enter the pod's network namespace")]
    Netns(#[from] io::Error),
    /// Something is missing or not as it was made.
    #[error("{0}")]
    NotAsMade(String),
}

/// Makes the link and returns the index of the host's end. A link that is left over under its name
/// goes first; on an error nothing stays.
pub fn create(spec: &LinkSpec, netns: &File) -> Result<u32, LinkError> {
    let mut node = Netlink::open()?;
    node.apply(vec![delete_link(&spec.host_ifname)])?;
    let host = VethEnd { ifname: &spec.host_ifname, mac: spec.host_mac, mtu: spec.mtu };
    let pod = VethEnd { ifname: &spec.pod_ifname, mac: spec.pod_mac, mtu: spec.mtu };
    node.apply(vec![add_veth(&host, &pod, netns.as_raw_fd())]).map_err(|error| {
        // The host's name is free, so it is the pod's that exists.
        match error.errno() {
            Some(Errno::EEXIST) => {
                LinkError::PodInterfaceExists { ifname: spec.pod_ifname.clone() }
            }
            _ => error.into(),
        }
    })?;
    configure(spec, netns, &mut node).inspect_err(|_| {
        if let Err(error) = node.apply(vec![delete_link(&spec.host_ifname)]) {
            tracing::warn!(%error, "undo a pod's link");
        }
    })
}

fn configure(spec: &LinkSpec, netns: &File, node: &mut Netlink) -> Result<u32, LinkError> {
    let ifindex = find(node, &spec.host_ifname)?
        .ok_or_else(|| LinkError::NotAsMade(format!("{} vanished", spec.host_ifname)))?
        .ifindex;
    sysctl::tune_host_end(&spec.host_ifname)?;
    let mut changes = vec![message::describe(&spec.host_ifname, &spec.alias)];
    if sysctl::has_ipv6() {
        changes.push(message::without_link_local(&spec.host_ifname));
    }
    changes.extend(bandwidth::shape(spec, End::Host, ifindex));
    changes.push(set_up(&spec.host_ifname));
    node.apply(changes)?;
    inside(netns, || configure_pod_end(spec))?;
    let changes = spec.addresses.iter().flat_map(|address| {
        [
            add_neighbour(ifindex, *address, spec.pod_mac),
            replace_route(host_route(*address), Via::Link(ifindex)),
        ]
    });
    node.apply(changes.collect())?;
    Ok(ifindex)
}

/// In the pod's namespace.
fn configure_pod_end(spec: &LinkSpec) -> Result<(), LinkError> {
    let mut pod = Netlink::open()?;
    let missing = || LinkError::NotAsMade(format!("{} vanished", spec.pod_ifname));
    let ifindex = find(&mut pod, &spec.pod_ifname)?.ok_or_else(missing)?.ifindex;
    let ipv6 = spec.addresses.iter().any(IpAddr::is_ipv6);
    sysctl::tune_pod_end(&spec.pod_ifname, ipv6)?;
    let mut changes = vec![set_up("lo")];
    if ipv6 {
        // The kernel's own link-local address would be tentative until it notices the carrier.
        changes.push(message::without_link_local(&spec.pod_ifname));
        changes.push(add_address(ifindex, link_local(spec.pod_mac)));
    }
    changes.extend(bandwidth::shape(spec, End::Pod, ifindex));
    changes.push(set_up(&spec.pod_ifname));
    for address in &spec.addresses {
        let (default, gateway) = default_route(*address);
        changes.push(add_address(ifindex, host_route(*address)));
        changes.push(add_neighbour(ifindex, gateway, spec.host_mac));
        changes.push(replace_route(default, Via::Gateway(gateway, ifindex)));
    }
    Ok(pod.apply(changes)?)
}

/// The address that an interface gives itself (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Cidr {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0xfe, 0x80]);
    address[8..11].copy_from_slice(&mac.0[..3]);
    address[11..13].copy_from_slice(&[0xff, 0xfe]);
    address[13..].copy_from_slice(&mac.0[3..]);
    address[8] ^= 2;
    Cidr { address: Ipv6Addr::from(address).into(), prefix_len: 64 }
}

/// Gives both ends of a link another MTU. The end that sends what would be too large for the other
/// goes first.
pub fn resize(spec: &LinkSpec, netns: &File, mtu: u32) -> Result<(), LinkError> {
    let host = || Netlink::open()?.apply(vec![set_mtu(&spec.host_ifname, mtu)]);
    let pod = || -> Result<(), LinkError> {
        Ok(Netlink::open()?.apply(vec![set_mtu(&spec.pod_ifname, mtu)])?)
    };
    if mtu < spec.mtu {
        inside(netns, pod)?;
        return Ok(host()?);
    }
    host()?;
    inside(netns, pod)
}

/// Unmakes the link. Success where there is none.
pub fn delete(host_ifname: &str) -> Result<(), NetlinkError> {
    Netlink::open()?.apply(vec![delete_link(host_ifname)])
}

/// Everything that can be different from how [`create`] left it, and what of `in_pod` is not there;
/// the index of the host's end where nothing is. What others added is fine.
pub fn verify(spec: &LinkSpec, in_pod: &InPod, netns: &File) -> Result<u32, LinkError> {
    let mut node = Netlink::open()?;
    let end = (spec.host_ifname.as_str(), spec.host_mac);
    let host = expect_end(&mut node, end, spec.mtu, "the node")?;
    let (routes, neighbours) = (interface::routes(&mut node)?, permanent_neighbours(&mut node)?);
    for address in spec.addresses.iter().copied() {
        if !leads(&routes, host_route(address), Via::Link(host)) {
            return Err(LinkError::NotAsMade(format!("the node has no route to {address}")));
        }
        let neighbour = Neighbour { ifindex: host, address, mac: spec.pod_mac };
        if !neighbours.contains(&neighbour) {
            return Err(LinkError::NotAsMade(format!("the node has no neighbour {address}")));
        }
    }
    expect_shape(spec, End::Host, host, &mut node)?;
    verify_inside(spec, in_pod, netns)?;
    Ok(host)
}

/// As [`verify`], of the pod's end alone.
pub fn verify_inside(spec: &LinkSpec, in_pod: &InPod, netns: &File) -> Result<(), LinkError> {
    inside(netns, || verify_pod_end(spec, in_pod))
}

/// In the pod's namespace.
fn verify_pod_end(spec: &LinkSpec, in_pod: &InPod) -> Result<(), LinkError> {
    let mut pod = Netlink::open()?;
    let end = (spec.pod_ifname.as_str(), spec.pod_mac);
    let ifindex = expect_end(&mut pod, end, spec.mtu, "the pod")?;
    expect_shape(spec, End::Pod, ifindex, &mut pod)?;
    let held = addresses(&mut pod)?;
    let (routes, neighbours) = (interface::routes(&mut pod)?, permanent_neighbours(&mut pod)?);
    let missing = |what: String| {
        Err(LinkError::NotAsMade(format!("{} in the pod has no {what}", spec.pod_ifname)))
    };
    for address in spec.addresses.iter().chain(&in_pod.addresses) {
        if !held.iter().any(|held| held.address == *address && held.ifindex == ifindex) {
            return missing(format!("address {address}"));
        }
    }
    for address in &spec.addresses {
        let (_, gateway) = default_route(*address);
        let neighbour = Neighbour { ifindex, address: gateway, mac: spec.host_mac };
        if !neighbours.contains(&neighbour) {
            return missing(format!("neighbour {gateway}"));
        }
    }
    match in_pod.routes.iter().find(|route| !is_there(&routes, route, ifindex)) {
        None => Ok(()),
        Some(PodRoute { destination, gateway }) => {
            let via = gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
            missing(match destination.prefix_len {
                0 => format!("default route{via}"),
                _ => format!("route to {destination}{via}"),
            })
        }
    }
}

/// Whether a pod has a route. Ours leads through our interface, another plugin's through any.
fn is_there(routes: &[Present], wanted: &PodRoute, ifindex: u32) -> bool {
    let is_ours =
        wanted.gateway.is_some_and(|via| [GATEWAY4.into(), GATEWAY6.into()].contains(&via));
    routes.iter().filter(|route| route.destination == wanted.destination).any(|route| {
        match (wanted.gateway, route.via) {
            (None, _) => true,
            (Some(wanted), Some(Via::Gateway(via, device))) => {
                wanted == via && (device == ifindex || !is_ours)
            }
            _ => false,
        }
    })
}

fn expect_end(
    netlink: &mut Netlink,
    (ifname, mac): (&str, Mac),
    mtu: u32,
    place: &str,
) -> Result<u32, LinkError> {
    match find(netlink, ifname)? {
        None => Err(LinkError::NotAsMade(format!("{place} has no interface {ifname}"))),
        Some(end) if end.mac != Some(mac) => {
            Err(LinkError::NotAsMade(format!("{ifname} has another link-layer address than {mac}")))
        }
        Some(end) if end.mtu != mtu => {
            let said = format!("{ifname} takes packets of {} bytes, not of {mtu}", end.mtu);
            Err(LinkError::NotAsMade(said))
        }
        Some(end) if !end.up => Err(LinkError::NotAsMade(format!("{ifname} is down"))),
        Some(end) => Ok(end.ifindex),
    }
}

fn expect_shape(
    spec: &LinkSpec,
    end: End,
    ifindex: u32,
    netlink: &mut Netlink,
) -> Result<(), LinkError> {
    if bandwidth::is_shaped(spec, end, ifindex, netlink)? {
        return Ok(());
    }
    let ifname = if end == End::Host { &spec.host_ifname } else { &spec.pod_ifname };
    Err(LinkError::NotAsMade(format!("{ifname} is not limited to the pod's bandwidth")))
}

/// Whether one of the routes leads there by this way.
fn leads(routes: &[Present], destination: Cidr, via: Via) -> bool {
    routes.iter().any(|route| route.destination == destination && route.via == Some(via))
}
