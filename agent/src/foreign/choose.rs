//! Which devices the packets of pods pass, when another CNI plugin connects them: a pure function
//! of the node's links and routes and of the ranges of the cluster's pods.
//!
//! A device with a route into this node's own pod ranges leads to its pods. Where it is a bridge
//! its ports are taken too: what one pod of the node sends to another crosses the bridge and never
//! the node's IP layer, so an answer to a translated packet is met at the port or nowhere. A
//! device with a route into another node's pod range leads to other hosts, whatever the CNI plugin
//! made it for: a tunnel, mostly.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    datapath::{Interface, Leads},
    model::node::Cidr,
};

/// A network interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index and name.
    pub interface: Interface,
    /// Index of the interface that this one is a port of.
    pub controller: Option<u32>,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
}

/// A unicast route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Cidr,
    /// Index of the device.
    pub device: u32,
}

/// What the kernel says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// All links.
    pub links: Vec<Link>,
    /// All routes of the main table.
    pub routes: Vec<Route>,
}

/// Where the cluster's pods have their addresses from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Those of this node.
    pub own: Vec<Cidr>,
    /// Those of all other nodes.
    pub others: Vec<Cidr>,
}

/// Where programs have to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// What each device leads to.
    pub devices: BTreeMap<Interface, Leads>,
    /// What packets pass where no program can be, for people.
    pub problems: Vec<String>,
}

/// The places. `names` are further devices that lead to this node's pods; one that ends in `+`
/// means all that begin so.
pub fn places(seen: &Seen, ranges: &Ranges, names: &[String]) -> Places {
    let links: BTreeMap<u32, &Link> =
        seen.links.iter().map(|link| (link.interface.index, link)).collect();
    let mut pods: BTreeSet<u32> = devices_into(&seen.routes, &ranges.own);
    let named = |link: &&Link| names.iter().any(|name| matches(name, &link.interface.name));
    pods.extend(seen.links.iter().filter(named).map(|link| link.interface.index));
    let ports: Vec<u32> = seen
        .links
        .iter()
        .filter(|link| {
            link.controller.is_some_and(|controller| {
                pods.contains(&controller) && links.get(&controller).is_some_and(|c| c.bridge)
            })
        })
        .map(|link| link.interface.index)
        .collect();
    pods.extend(ports);

    let mut places = Places::default();
    for device in devices_into(&seen.routes, &ranges.others).difference(&pods) {
        place(&mut places, links.get(device).copied(), Leads::ToHosts);
    }
    for device in &pods {
        place(&mut places, links.get(device).copied(), Leads::ToPods);
    }
    places
}

fn place(places: &mut Places, link: Option<&Link>, leads: Leads) {
    let Some(link) = link.filter(|link| !link.loopback) else { return };
    if link.ethernet {
        places.devices.insert(link.interface.clone(), leads);
        return;
    }
    let whose = match leads {
        Leads::ToPods => "pods of this node",
        Leads::ToHosts => "pods of other nodes",
    };
    places.problems.push(format!(
        "interface {} leads to {whose} and has no Ethernet header (as IPIP, WireGuard and TUN \
         devices): packets of services that pass it are not translated; let the CNI plugin use \
         routes or VXLAN",
        link.interface.name
    ));
}

/// The devices with a route that leads into one of the ranges, or is wider than it. The default
/// route leads everywhere, and says nothing.
fn devices_into(routes: &[Route], ranges: &[Cidr]) -> BTreeSet<u32> {
    let mut devices = BTreeSet::new();
    for route in routes {
        let to = route.destination;
        let overlaps = |range: &Cidr| to.contains(range.address) || range.contains(to.address);
        if to.prefix_len > 0 && !devices.contains(&route.device) && ranges.iter().any(overlaps) {
            devices.insert(route.device);
        }
    }
    devices
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            interface: Interface { index, name: name.into() },
            controller: None,
            bridge: false,
            ethernet: true,
            loopback: false,
        }
    }

    fn route(destination: &str, device: u32) -> Route {
        Route { destination: destination.parse().unwrap(), device }
    }

    fn ranges() -> Ranges {
        Ranges {
            own: vec!["10.244.1.0/24".parse().unwrap(), "fd00:244:0:1::/64".parse().unwrap()],
            others: vec!["10.244.2.0/24".parse().unwrap(), "fd00:244:0:2::/64".parse().unwrap()],
        }
    }

    fn chosen(seen: &Seen, names: &[&str]) -> Vec<(String, Leads)> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let places = places(seen, &ranges(), &names);
        places.devices.into_iter().map(|(interface, leads)| (interface.name, leads)).collect()
    }

    #[test]
    fn a_bridge_brings_its_ports_and_nobody_elses() {
        let seen = Seen {
            links: vec![
                link(2, "eth0"),
                Link { bridge: true, ..link(3, "cni0") },
                Link { controller: Some(3), ..link(4, "veth4") },
                Link { bridge: true, ..link(5, "docker0") },
                Link { controller: Some(5), ..link(6, "veth6") },
            ],
            routes: vec![
                route("0.0.0.0/0", 2),
                route("10.244.1.0/24", 3),
                route("172.17.0.0/16", 5),
            ],
        };
        let expected = [("cni0".to_owned(), Leads::ToPods), ("veth4".to_owned(), Leads::ToPods)];
        assert_eq!(chosen(&seen, &[]), expected);
    }

    #[test]
    fn routes_to_single_pods_name_their_devices() {
        let seen = Seen {
            links: vec![link(2, "eth0"), link(7, "cali7"), link(8, "cali8"), link(9, "tap9")],
            routes: vec![route("10.244.1.5/32", 7), route("fd00:244:0:1::5/128", 8)],
        };
        let expected = [("cali7".to_owned(), Leads::ToPods), ("cali8".to_owned(), Leads::ToPods)];
        assert_eq!(chosen(&seen, &[]), expected);
        assert_eq!(chosen(&seen, &["tap+"]).len(), 3, "named");
        assert_eq!(chosen(&seen, &["tap"]).len(), 2, "another name");
    }

    #[test]
    fn tunnels_and_routes_to_other_nodes_lead_to_hosts() {
        let mut seen = Seen {
            links: vec![link(2, "eth0"), link(3, "flannel.1"), link(4, "eth1")],
            routes: vec![
                route("fd00:244:0:2::/64", 2),
                route("10.244.0.0/16", 3),
                route("192.0.2.0/24", 4),
            ],
        };
        // The wide route covers this node's own range as well, but is no narrower than it.
        let all = chosen(&seen, &[]);
        assert!(all.contains(&("eth0".to_owned(), Leads::ToHosts)), "{all:?}");
        assert!(all.iter().any(|(name, _)| name == "flannel.1"), "{all:?}");
        assert!(all.iter().all(|(name, _)| name != "eth1"), "{all:?}");
        seen.links[1].ethernet = false;
        let places = places(&seen, &ranges(), &[]);
        assert_eq!(places.problems.len(), 1, "{places:?}");
        assert!(places.problems[0].contains("flannel.1"), "{places:?}");
    }

    #[test]
    fn loopback_is_no_place() {
        let seen = Seen {
            links: vec![Link { loopback: true, ..link(1, "lo") }],
            routes: vec![route("10.244.1.0/24", 1)],
        };
        assert_eq!(chosen(&seen, &[]), []);
    }
}
