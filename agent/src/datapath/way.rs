//! Where the node's routes lead and from which of its addresses, asked of the kernel by netlink as
//! programs ask it by `bpf_fib_lookup` with `BPF_FIB_LOOKUP_SRC`.

use std::{fs, net::IpAddr};

use mizzen_ebpf_abi::addr::Addr;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia},
};
use nix::errno::Errno;

use crate::{
    podnet::netlink::{Netlink, NetlinkError},
    why::live::Way,
};

/// The first kernel that tells programs the source address of a route.
const TELLS_SOURCE: (u32, u32) = (6, 7);

/// Whether programs on this kernel learn from which address a route leads.
pub(super) fn is_told_to_programs() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version(&release).is_some_and(|version| version >= TELLS_SOURCE)
}

/// The version in a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// The way to an address from the calling thread's network namespace; none where there is no route.
pub(super) fn to(netlink: &mut Netlink, destination: IpAddr) -> Result<Option<Way>, NetlinkError> {
    let found = netlink.get(&format!("get the route to {destination}"), question(destination));
    match found {
        Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(way(&route, destination)),
        Ok(_) => Ok(None),
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn question(destination: IpAddr) -> RouteNetlinkMessage {
    let (address_family, length, address) = match destination {
        IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
    };
    let mut route = RouteMessage::default();
    route.header.address_family = address_family;
    route.header.destination_prefix_length = length;
    route.attributes.push(RouteAttribute::Destination(address));
    RouteNetlinkMessage::GetRoute(route)
}

/// What the answer says: without a gateway the destination is on the link.
fn way(route: &RouteMessage, destination: IpAddr) -> Option<Way> {
    let (mut next_hop, mut source) = (destination, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => next_hop = ip(address)?,
            RouteAttribute::Via(RouteVia::Inet6(ip)) => next_hop = (*ip).into(),
            RouteAttribute::Via(RouteVia::Inet(ip)) => next_hop = (*ip).into(),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    Some(Way { next_hop: Addr::from(next_hop), source: Addr::from(source?) })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_their_release() {
        for (release, told) in [
            ("6.7.0\n", true),
            ("6.18.44-fc-v657", true),
            ("10.0-rc1", true),
            ("6.6.99-generic", false),
            ("5.15.0-1-amd64", false),
            ("", false),
        ] {
            assert_eq!(version(release).is_some_and(|of| of >= TELLS_SOURCE), told, "{release}");
        }
    }
}
