//! Which interfaces lead to other hosts: those that are named, else those that carry the node's
//! addresses or a default route.
//!
//! Asked of the thread's own network namespace by netlink: `/sys/class/net` shows the namespace of its
//! mount, which is another where a node is a namespace on a shared machine.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkLayerType, LinkMessage},
};
use nix::ifaddrs::getifaddrs;

use crate::{
    model::node::Cidr,
    podnet::{
        interface, message,
        netlink::{Netlink, NetlinkError},
    },
};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Its index in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// Why interfaces can't be told.
#[derive(Debug, thiserror::Error)]
pub enum UplinksError {
    /// The addresses can't be listed.
    #[error("list the addresses of this network namespace")]
    Addresses(#[source] io::Error),
    /// Links or routes can't be listed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What leads to other hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// The devices that programs can be at, ordered by index.
    pub devices: BTreeSet<Interface>,
    /// Those whose packets begin with no Ethernet header, as WireGuard's, PPP's and TUN's do: no
    /// program reads them.
    pub without_ethernet: BTreeSet<Interface>,
}

/// The uplinks that there are at present. `names` are taken where any are given, absent ones left
/// out: they may still appear. `addresses` are those by which others reach the node.
pub fn find_uplinks(names: &[String], addresses: &[IpAddr]) -> Result<Uplinks, UplinksError> {
    let mut netlink = Netlink::open()?;
    let told = netlink.dump("list interfaces", &message::get_links())?;
    let links: Vec<Link> = told
        .iter()
        .filter_map(|told| match told {
            RouteNetlinkMessage::NewLink(told) => link(told),
            _ => None,
        })
        .collect();
    let (mut carriers_of, mut routes) = (BTreeSet::new(), Vec::new());
    if names.is_empty() {
        carriers_of = carriers(addresses)?;
        routes = interface::route_devices(&mut netlink)?;
    }
    Ok(choose(&links, names, &carriers_of, &routes))
}

/// A link of the node.
struct Link {
    interface: Interface,
    ethernet: bool,
}

/// A link of the kernel's list; none where it is the loopback interface, which leads nowhere.
fn link(told: &LinkMessage) -> Option<Link> {
    let kind = told.header.link_layer_type;
    let name = told.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let interface = Interface { index: told.header.index, name };
    let ethernet = kind == LinkLayerType::Ether;
    (kind != LinkLayerType::Loopback).then_some(Link { interface, ethernet })
}

/// Those that are named; else those that carry the node's addresses, and those of default routes.
fn choose(
    links: &[Link],
    names: &[String],
    carriers: &BTreeSet<String>,
    routes: &[(Cidr, u32)],
) -> Uplinks {
    let defaults: BTreeSet<u32> =
        routes.iter().filter(|(to, _)| to.prefix_len == 0).map(|(_, device)| *device).collect();
    let mut uplinks = Uplinks::default();
    for Link { interface, ethernet } in links {
        let wanted = if names.is_empty() {
            carriers.contains(&interface.name) || defaults.contains(&interface.index)
        } else {
            names.contains(&interface.name)
        };
        if wanted {
            let of_kind =
                if *ethernet { &mut uplinks.devices } else { &mut uplinks.without_ethernet };
            of_kind.insert(interface.clone());
        }
    }
    uplinks
}

/// The interfaces that carry one of the addresses.
fn carriers(addresses: &[IpAddr]) -> Result<BTreeSet<String>, UplinksError> {
    let all = getifaddrs().map_err(|errno| UplinksError::Addresses(errno.into()))?;
    let carries = |held: nix::ifaddrs::InterfaceAddress| {
        let address = held.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        addresses.contains(&ip).then_some(held.interface_name)
    };
    Ok(all.filter_map(carries).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, ethernet: bool) -> Link {
        Link { interface: Interface { index, name: name.into() }, ethernet }
    }

    fn chosen(names: &[&str], carriers: &[&str], routes: &[(&str, u32)]) -> (Vec<u32>, Vec<u32>) {
        let links = [
            link(2, "eth0", true),
            link(3, "eth1", true),
            link(4, "wg0", false),
            link(5, "eth2", true),
        ];
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let carriers = carriers.iter().map(|&name| name.into()).collect();
        let routes: Vec<_> =
            routes.iter().map(|(to, device)| (to.parse().unwrap(), *device)).collect();
        let uplinks = choose(&links, &names, &carriers, &routes);
        let indices = |of: BTreeSet<Interface>| of.into_iter().map(|one| one.index).collect();
        (indices(uplinks.devices), indices(uplinks.without_ethernet))
    }

    #[test]
    fn every_next_hop_of_a_default_route_and_every_carrier_is_one() {
        let routes = [("0.0.0.0/0", 2), ("0.0.0.0/0", 3), ("192.0.2.0/24", 5)];
        assert_eq!(chosen(&[], &[], &routes), (vec![2, 3], vec![]));
        assert_eq!(chosen(&[], &["eth2"], &[("::/0", 2)]), (vec![2, 5], vec![]));
    }

    #[test]
    fn names_win_and_absent_ones_are_left_out() {
        assert_eq!(chosen(&["eth1", "later0"], &["eth2"], &[("::/0", 2)]), (vec![3], vec![]));
        let found = find_uplinks(&["no-such-device".into()], &[]).unwrap();
        assert_eq!(found, Uplinks::default());
    }

    #[test]
    fn what_has_no_ethernet_header_is_told_apart() {
        assert_eq!(chosen(&[], &["wg0"], &[("0.0.0.0/0", 2)]), (vec![2], vec![4]));
        assert_eq!(chosen(&["wg0"], &[], &[]), (vec![], vec![4]));
    }

    #[test]
    fn loopback_is_no_uplink() {
        let found = find_uplinks(&["lo".into()], &[]).unwrap();
        assert_eq!(found, Uplinks::default());
    }
}
