//! Route-netlink requests, made from our own terms. Pure.

use std::net::IpAddr;

use mizzen_cni::wire::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan,
        LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteScope, RouteType,
    },
};
use nix::errno::Errno;

use super::netlink::Change;
use crate::model::node::Cidr;

/// Our routes' protocol number ('M'), by which we know them again; iproute2's `rt_protos` leaves
/// it free.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(77);

/// One end of a veth to be made.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    /// Its name.
    pub ifname: &'a str,
    /// Its address. Set in the request that makes it, so that udev leaves it alone.
    pub mac: Mac,
    /// In bytes.
    pub mtu: u32,
}

impl VethEnd<'_> {
    fn attributes(&self) -> Vec<LinkAttribute> {
        vec![
            LinkAttribute::IfName(self.ifname.to_owned()),
            LinkAttribute::Address(self.mac.0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
        ]
    }
}

/// Makes a veth whose far end is born in the namespace `netns`, an open file descriptor.
pub fn add_veth(host: &VethEnd<'_>, pod: &VethEnd<'_>, netns: i32) -> Change {
    let mut peer = LinkMessage::default();
    peer.attributes = pod.attributes();
    peer.attributes.push(LinkAttribute::NetNsFd(netns));
    let mut link = LinkMessage::default();
    link.attributes = host.attributes();
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Change {
        what: format!("add veth {} with {} in the pod's namespace", host.ifname, pod.ifname),
        message: RouteNetlinkMessage::NewLink(link),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        tolerate: None,
    }
}

/// Makes a device that tunnels (VXLAN) to whatever node a program says for each packet, and that
/// asks nobody for link-layer addresses: all its neighbours have `mac`, which is its own.
pub fn add_vxlan(ifname: &str, mac: Mac, mtu: u32, port: u16) -> Change {
    let mut link = named(ifname);
    link.header.flags = LinkFlags::Noarp;
    link.header.change_mask = LinkFlags::Noarp;
    link.attributes.extend([
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(port),
            ])),
        ]),
    ]);
    Change {
        what: format!("add the VXLAN device {ifname} at UDP port {port}"),
        message: RouteNetlinkMessage::NewLink(link),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        tolerate: None,
    }
}

/// Sets the size of an interface's packets, in bytes.
pub fn set_mtu(ifname: &str, mtu: u32) -> Change {
    let mut link = named(ifname);
    link.attributes.push(LinkAttribute::Mtu(mtu));
    set_link(format!("set the MTU of {ifname} to {mtu}"), link)
}

/// Sets an interface's link-layer address.
pub fn set_mac(ifname: &str, mac: Mac) -> Change {
    let mut link = named(ifname);
    link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    set_link(format!("set the link-layer address of {ifname} to {mac}"), link)
}

/// Deletes an interface by name, and the other end of a veth with it.
pub fn delete_link(ifname: &str) -> Change {
    Change {
        what: format!("delete interface {ifname}"),
        message: RouteNetlinkMessage::DelLink(named(ifname)),
        flags: 0,
        tolerate: Some(Errno::ENODEV),
    }
}

/// The same by its index; `ifname` is for people.
pub fn delete_link_at(ifindex: u32, ifname: &str) -> Change {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    Change {
        what: format!("delete interface {ifname} (index {ifindex})"),
        message: RouteNetlinkMessage::DelLink(link),
        flags: 0,
        tolerate: Some(Errno::ENODEV),
    }
}

/// The group of pods' links that are to be deleted ("Mz" twice): one that nobody else has.
const LEAVING: u32 = 0x4d7a_4d7a;

/// Takes an interface down, and puts it among those that [`delete_leaving`] deletes.
pub fn set_leaving(ifname: &str) -> Change {
    let mut link = named(ifname);
    link.header.change_mask = LinkFlags::Up;
    link.attributes.push(LinkAttribute::Group(LEAVING));
    let mut change = set_link(format!("put interface {ifname} down, to be deleted"), link);
    // It went with the pod's namespace.
    change.tolerate = Some(Errno::ENODEV);
    change
}

/// Whether an interface is among those.
pub fn is_leaving(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::Group(LEAVING))
}

/// Deletes all interfaces that leave, for the time that one takes.
pub fn delete_leaving() -> Change {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::Group(LEAVING));
    Change {
        what: "delete the interfaces of pods that left".to_owned(),
        message: RouteNetlinkMessage::DelLink(link),
        flags: 0,
        tolerate: Some(Errno::ENODEV),
    }
}

/// Brings an interface up.
pub fn set_up(ifname: &str) -> Change {
    let mut link = named(ifname);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    set_link(format!("set interface {ifname} up"), link)
}

/// Describes an interface to people (`ip link` shows it).
pub fn describe(ifname: &str, alias: &str) -> Change {
    let mut link = named(ifname);
    link.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    set_link(format!("describe interface {ifname}"), link)
}

/// Keeps the kernel from giving an interface a link-local address when it comes up.
pub fn without_link_local(ifname: &str) -> Change {
    let mut link = named(ifname);
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
    set_link(format!("set addrgenmode none on {ifname}"), link)
}

fn set_link(what: String, link: LinkMessage) -> Change {
    Change { what, message: RouteNetlinkMessage::SetLink(link), flags: 0, tolerate: None }
}

fn named(ifname: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(ifname.to_owned()));
    link
}

/// Asks for one interface by name, without its statistics.
pub fn get_link(ifname: &str) -> RouteNetlinkMessage {
    let mut link = named(ifname);
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(link)
}

/// Asks for all interfaces, without their statistics.
pub fn get_links() -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(link)
}

/// Asks for all addresses.
pub fn get_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

/// Asks for all routes of a family.
pub fn get_routes(v4: bool) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    RouteNetlinkMessage::GetRoute(route)
}

/// Gives an interface the address in `held`, on a link with the prefix there, usable at once: no
/// duplicate address detection, for the node is the only other host on the link, and knows whose
/// it is.
pub fn add_address(ifindex: u32, held: Cidr) -> Change {
    let address = held.address;
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = held.prefix_len;
    message.header.scope = if link_local { AddressScope::Link } else { AddressScope::Universe };
    message.header.index = ifindex;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    Change {
        what: format!("add address {held}"),
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        tolerate: None,
    }
}

/// Says who has `address` on a link, for good: no packet ever waits for an answer.
pub fn add_neighbour(ifindex: u32, address: IpAddr, mac: Mac) -> Change {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::from(address)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        // By which it is known when it goes: its state is then another.
        NeighbourAttribute::Protocol(PROTOCOL),
    ];
    Change {
        what: format!("add permanent neighbour {address}"),
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        tolerate: None,
    }
}

/// Asks for all neighbours of a family.
pub fn get_neighbours(v4: bool) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// To a neighbour on the link with this index, whether or not its address is on that link.
    Gateway(IpAddr, u32),
    /// Straight onto the link with this index.
    Link(u32),
    /// The same, the node's own packets from this address of it.
    From(u32, IpAddr),
    /// Nowhere: the sender is told at once.
    Unreachable,
}

/// Makes the route to `dst` in the main table lead there, whatever it was before.
pub fn replace_route(dst: Cidr, via: Via) -> Change {
    let mut message = route(dst);
    match via {
        Via::Gateway(gateway, ifindex) => {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
            message.attributes.push(RouteAttribute::Oif(ifindex));
        }
        Via::Link(ifindex) => {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(ifindex));
        }
        Via::From(ifindex, source) => {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(ifindex));
            message.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
        }
        Via::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    Change {
        what: format!("set route {dst} to {via:?}"),
        message: RouteNetlinkMessage::NewRoute(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        tolerate: None,
    }
}

/// Removes our route to `dst` from the main table.
pub fn delete_route(dst: Cidr, via: Via) -> Change {
    let mut message = route(dst);
    match via {
        Via::Gateway(gateway, ifindex) => {
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
            message.attributes.push(RouteAttribute::Oif(ifindex));
        }
        Via::Link(ifindex) | Via::From(ifindex, _) => {
            message.attributes.push(RouteAttribute::Oif(ifindex));
        }
        Via::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    // Removal matches any scope only where it asks for none.
    message.header.scope = RouteScope::NoWhere;
    Change {
        what: format!("delete route {dst}"),
        message: RouteNetlinkMessage::DelRoute(message),
        flags: 0,
        tolerate: Some(Errno::ESRCH),
    }
}

fn route(dst: Cidr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(dst.address);
    message.header.destination_prefix_length = dst.prefix_len;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = PROTOCOL;
    message.header.kind = RouteType::Unicast;
    if dst.prefix_len > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(dst.address)));
    }
    message
}

/// The range that holds nothing but `address`.
pub fn host_route(address: IpAddr) -> Cidr {
    Cidr { address, prefix_len: if address.is_ipv4() { 32 } else { 128 } }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
