//! Which of the kernel's notices make a pass over the pod network necessary. What ADD and DEL do to
//! pods' links all day does not, but for links that go: a namespace may have died.

use mizzen_cni::wire::Mac;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkFlags, LinkMessage},
    neighbour::NeighbourAttribute,
    route::{RouteHeader, RouteMessage},
};

use super::{
    interface::{self, is_host_ifname},
    ledger::macs,
    message::{self, PROTOCOL, host_route},
    pods::Pods,
};
use crate::model::node::Cidr;

/// What the links and routes of pods should be.
pub trait Known {
    /// Link-layer address and MTU of the host's end with this index, where it is that of a pod that
    /// is connected.
    fn link(&self, ifindex: u32) -> Option<(Mac, u32)>;
    /// The MTU that pods shall have.
    fn mtu(&self) -> u32;
    /// The node's ranges.
    fn ranges(&self) -> Vec<Cidr>;
}

impl Known for Pods {
    fn link(&self, ifindex: u32) -> Option<(Mac, u32)> {
        self.ledger().find_live(ifindex).map(|entry| (macs(&entry.addresses).0, entry.mtu))
    }

    fn mtu(&self) -> u32 {
        self.mtu.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn ranges(&self) -> Vec<Cidr> {
        Pods::ranges(self)
    }
}

/// Whether something that the kernel tells of can make a pass necessary.
pub fn matters(told: &RouteNetlinkMessage, known: &dyn Known) -> bool {
    match told {
        RouteNetlinkMessage::DelRoute(route) => route.header.protocol == PROTOCOL,
        RouteNetlinkMessage::NewRoute(route) => leads_to_a_pod(route, known),
        RouteNetlinkMessage::DelNeighbour(neighbour) => {
            neighbour.attributes.contains(&NeighbourAttribute::Protocol(PROTOCOL))
        }
        RouteNetlinkMessage::NewLink(link) => {
            let is_of_pod = is_host_ifname(&interface::interface(link).ifname);
            let is_damaged = || was_set_down(link) || is_altered(link, known);
            !is_of_pod || is_damaged() && !message::is_leaving(link)
        }
        RouteNetlinkMessage::DelLink(_)
        | RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_) => true,
        _ => false,
    }
}

/// Whether somebody else set a route to an address of ours: of one that takes the place of ours, the
/// kernel tells nothing but this.
fn leads_to_a_pod(route: &RouteMessage, known: &dyn Known) -> bool {
    if route.header.protocol == PROTOCOL || route.header.table != RouteHeader::RT_TABLE_MAIN {
        return false;
    }
    let Some(to) = interface::destination(route) else { return false };
    host_route(to.address) == to && known.ranges().iter().any(|range| range.contains(to.address))
}

/// Whether a notice is about a link that was up until now. One about a new link says that
/// everything of it changed.
fn was_set_down(link: &LinkMessage) -> bool {
    let changed = link.header.change_mask;
    changed.contains(LinkFlags::Up)
        && changed.bits() != u32::MAX
        && !link.header.flags.contains(LinkFlags::Up)
}

/// Whether a pod's link has another link-layer address or MTU than it was made with, but for the MTU
/// that pods shall have: that is our own change, or what it came to.
fn is_altered(link: &LinkMessage, known: &dyn Known) -> bool {
    let found = interface::interface(link);
    let wanted = known.mtu();
    known
        .link(found.ifindex)
        .is_some_and(|(mac, mtu)| found.mac != Some(mac) || ![mtu, wanted].contains(&found.mtu))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{link::LinkAttribute, route::RouteProtocol};

    use super::*;
    use crate::podnet::message::{Via, replace_route};

    const MAC: Mac = Mac([2, 0xff, 10, 244, 1, 2]);

    /// One pod with link 7.
    struct Node;

    impl Known for Node {
        fn link(&self, ifindex: u32) -> Option<(Mac, u32)> {
            (ifindex == 7).then_some((MAC, 1430))
        }

        fn mtu(&self) -> u32 {
            1450
        }

        fn ranges(&self) -> Vec<Cidr> {
            ["10.244.1.0/24", "fd00:244:1::/64"].map(|text| text.parse().unwrap()).into()
        }
    }

    fn link(ifindex: u32, mac: Mac, mtu: u32) -> RouteNetlinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = ifindex;
        link.attributes = vec![
            LinkAttribute::IfName("mz0123456789abc".into()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
        ];
        RouteNetlinkMessage::NewLink(link)
    }

    #[test]
    fn a_pods_link_matters_when_it_is_otherwise_than_it_was_made() {
        let other = Mac([2, 0, 0, 0, 0, 1]);
        for (ifindex, mac, mtu, expected) in [
            (7, MAC, 1430, false),
            (7, other, 1430, true),
            (7, MAC, 1500, true),
            (7, MAC, 1450, false),   // what pods shall have: our own doing
            (8, other, 1500, false), // its ADD is at work
        ] {
            assert_eq!(matters(&link(ifindex, mac, mtu), &Node), expected, "{ifindex} {mac} {mtu}");
        }
    }

    #[test]
    fn a_route_of_others_matters_when_it_leads_to_an_address_of_pods() {
        let told = |to: &str, protocol| {
            let message = replace_route(to.parse().unwrap(), Via::Link(2)).message;
            let RouteNetlinkMessage::NewRoute(mut route) = message else { panic!("a route") };
            route.header.protocol = protocol;
            matters(&RouteNetlinkMessage::NewRoute(route), &Node)
        };
        assert!(told("10.244.1.2/32", RouteProtocol::Boot));
        assert!(told("fd00:244:1::2/128", RouteProtocol::Static));
        assert!(!told("10.244.1.2/32", PROTOCOL), "an ADD's");
        assert!(!told("10.244.2.2/32", RouteProtocol::Boot), "another node's");
        assert!(!told("192.0.2.0/24", RouteProtocol::Bgp));
    }
}
