//! The node's links and routes, as the kernel lists them.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
};

use super::choose::{Link, Route, Seen};
use crate::{
    datapath::Interface,
    podnet::{
        interface, message,
        netlink::{Netlink, NetlinkError},
    },
};

/// Reads both; of the network namespace of the calling thread.
pub fn read() -> Result<Seen, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.dump("list interfaces", &message::get_links())?;
    let links = links
        .iter()
        .filter_map(|told| match told {
            RouteNetlinkMessage::NewLink(told) => Some(link(told)),
            _ => None,
        })
        .collect();
    let routes = interface::route_devices(&mut netlink)?;
    let routes =
        routes.into_iter().map(|(destination, device)| Route { destination, device }).collect();
    Ok(Seen { links, routes })
}

fn link(told: &LinkMessage) -> Link {
    let mut link = Link {
        interface: Interface { index: told.header.index, name: String::new() },
        controller: None,
        bridge: false,
        ethernet: told.header.link_layer_type == LinkLayerType::Ether,
        loopback: told.header.link_layer_type == LinkLayerType::Loopback,
    };
    for attribute in &told.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.interface.name.clone_from(name),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    link
}

/// Whether a change of the kernel's tables may change where packets of pods pass.
pub fn matters(told: &RouteNetlinkMessage) -> bool {
    matches!(
        told,
        RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
    )
}
