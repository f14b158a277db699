//! What the kernel says about interfaces, addresses and routes, in our own terms.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mizzen_cni::wire::{HOST_IFNAME_PREFIX, Mac};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressAttribute,
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::{
    message::{self, Via},
    netlink::{Netlink, NetlinkError},
    routes::Present,
};
use crate::model::node::Cidr;

/// An interface, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub ifname: String,
    /// Its link-layer address, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// In bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether there is something at the other end.
    pub carrier: bool,
}

impl Interface {
    /// Whether it leads nowhere but to the node itself.
    pub fn is_loopback(&self) -> bool {
        self.ifname == "lo"
    }

    /// Whether it is the host's end of a pod's veth.
    pub fn is_pod_link(&self) -> bool {
        is_host_ifname(&self.ifname)
    }
}

/// Whether [`mizzen_cni::wire::Attachment::host_ifname`] makes such names.
pub fn is_host_ifname(ifname: &str) -> bool {
    ifname.len() == 15 && ifname.starts_with(HOST_IFNAME_PREFIX)
}

/// The interface of that name.
pub fn find(netlink: &mut Netlink, ifname: &str) -> Result<Option<Interface>, NetlinkError> {
    let what = format!("get interface {ifname}");
    Ok(netlink.get(&what, message::get_link(ifname))?.and_then(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(interface(&link)),
        _ => None,
    }))
}

/// All interfaces.
pub fn interfaces(netlink: &mut Netlink) -> Result<Vec<Interface>, NetlinkError> {
    let links = netlink.dump("list interfaces", &message::get_links())?;
    Ok(links
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(interface(link)),
            _ => None,
        })
        .collect())
}

/// Reads an interface from the kernel's message.
pub fn interface(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        ifindex: link.header.index,
        ifname: String::new(),
        mac: None,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        carrier: link.header.flags.contains(LinkFlags::LowerUp),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.ifname.clone_from(name),
            LinkAttribute::Address(bytes) => {
                interface.mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            _ => {}
        }
    }
    interface
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix that is on the link.
    pub prefix_len: u8,
}

/// All addresses of all interfaces.
pub fn addresses(netlink: &mut Netlink) -> Result<Vec<InterfaceAddress>, NetlinkError> {
    let messages = netlink.dump("list addresses", &message::get_addresses())?;
    Ok(messages
        .iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            // IPv4 has the own address in `Local` and the peer's in `Address`; IPv6 has `Address`.
            let find = |local| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(ip) if local => Some(*ip),
                    AddressAttribute::Address(ip) if !local => Some(*ip),
                    _ => None,
                })
            };
            Some(InterfaceAddress {
                ifindex: message.header.index,
                address: find(true).or_else(|| find(false))?,
                prefix_len: message.header.prefix_len,
            })
        })
        .collect())
}

/// All routes of the main table, of both families.
pub fn routes(netlink: &mut Netlink) -> Result<Vec<Present>, NetlinkError> {
    let mut found = Vec::new();
    for v4 in [true, false] {
        for message in netlink.dump("list routes", &message::get_routes(v4))? {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            if route.header.table == RouteHeader::RT_TABLE_MAIN {
                found.extend(present(&route));
            }
        }
    }
    Ok(found)
}

/// Where the unicast routes of the main table lead, and by which devices: by several where a route has
/// several next hops.
pub fn route_devices(netlink: &mut Netlink) -> Result<Vec<(Cidr, u32)>, NetlinkError> {
    let mut found = Vec::new();
    for v4 in [true, false] {
        for message in netlink.dump("list routes", &message::get_routes(v4))? {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            if route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast
                && let Some(destination) = destination(&route)
            {
                found.extend(devices(&route).map(|device| (destination, device)));
            }
        }
    }
    Ok(found)
}

fn devices(route: &RouteMessage) -> impl Iterator<Item = u32> {
    route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(device) => vec![*device],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    })
}

fn present(route: &RouteMessage) -> Option<Present> {
    let mut oif = None;
    let mut gateway = None;
    let mut source = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => oif = Some(*ifindex),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::from(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(IpAddr::from(*ip)),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(IpAddr::from(*ip)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => source = Some(IpAddr::from(*ip)),
            _ => {}
        }
    }
    let via = match (route.header.kind, gateway, oif, source) {
        (RouteType::Unreachable, ..) => Some(Via::Unreachable),
        (RouteType::Unicast, Some(gateway), Some(oif), _) => Some(Via::Gateway(gateway, oif)),
        (RouteType::Unicast, None, Some(oif), Some(source)) => Some(Via::From(oif, source)),
        (RouteType::Unicast, None, Some(oif), None) => Some(Via::Link(oif)),
        _ => None,
    };
    let ours = route.header.protocol == message::PROTOCOL;
    Some(Present { destination: destination(route)?, via, ours })
}

/// Where a route leads to; the whole family where it says nothing.
pub fn destination(route: &RouteMessage) -> Option<Cidr> {
    let any: IpAddr = match route.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let stated = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
        _ => None,
    });
    Cidr::holding(stated.unwrap_or(any), route.header.destination_prefix_length)
}

/// A neighbour that somebody said for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The interface.
    pub ifindex: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
}

/// All neighbours that somebody said for good, of both families.
pub fn permanent_neighbours(netlink: &mut Netlink) -> Result<Vec<Neighbour>, NetlinkError> {
    let mut found = Vec::new();
    for v4 in [true, false] {
        for message in netlink.dump("list neighbours", &message::get_neighbours(v4))? {
            let RouteNetlinkMessage::NewNeighbour(message) = message else { continue };
            found.extend(permanent_neighbour(&message));
        }
    }
    Ok(found)
}

fn permanent_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::from(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::from(*ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    permanent.then_some(Neighbour { ifindex: message.header.ifindex, address: address?, mac: mac? })
}
