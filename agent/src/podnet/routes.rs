//! Which routes the node shall have to other nodes' pods. Pure: from the snapshot and the node's
//! own addresses to wanted routes, and from wanted and present ones to a plan.
//!
//! A node on one of our links is the next hop of its own `podCIDRs`. One that is not on any needs
//! a tunnel, which does not exist yet: it is reported, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;

use super::message::Via;
use crate::model::node::{Cidr, Node};

/// What is on the links of this node: a prefix of one of its addresses, and the link's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnLink {
    /// The prefix.
    pub prefix: Cidr,
    /// The link.
    pub ifindex: u32,
}

/// The routes that the node shall have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By destination.
    pub routes: BTreeMap<Cidr, Via>,
    /// What can't be reached, and why, for people.
    pub problems: Vec<String>,
}

/// The routes that node `own_name` shall have. Its own ranges lead nowhere, so that packets for
/// an address that no pod has come back at once and don't wander between the node and its router.
pub fn wanted(nodes: &OrdMap<Arc<str>, Arc<Node>>, own_name: &str, on_link: &[OnLink]) -> Wanted {
    let mut wanted = Wanted::default();
    let own = nodes.get(own_name);
    for range in own.into_iter().flat_map(|node| &node.pod_cidrs) {
        wanted.routes.insert(*range, Via::Unreachable);
    }
    for node in nodes.values().filter(|node| &*node.name != own_name) {
        for range in &node.pod_cidrs {
            match next_hop(node, *range, on_link) {
                _ if wanted.routes.contains_key(range) => {
                    let problem =
                        format!("node {} has the podCIDR {range} of another node", node.name);
                    wanted.problems.push(problem);
                }
                Ok(via) => {
                    wanted.routes.insert(*range, via);
                }
                Err(problem) => wanted.problems.push(problem),
            }
        }
    }
    wanted
}

/// The way to `range` of `node`: its first address of the range's family that is on a link.
fn next_hop(node: &Node, range: Cidr, on_link: &[OnLink]) -> Result<Via, String> {
    let of_family = |ip: &&IpAddr| ip.is_ipv4() == range.address.is_ipv4();
    let mut addresses = node.internal_ips.iter().filter(of_family).peekable();
    let family = if range.address.is_ipv4() { "IPv4" } else { "IPv6" };
    if addresses.peek().is_none() {
        return Err(format!("node {} has podCIDR {range} and no {family} InternalIP", node.name));
    }
    let via = addresses.find_map(|address| {
        let longest = on_link
            .iter()
            .filter(|link| link.prefix.contains(*address))
            .max_by_key(|link| link.prefix.prefix_len)?;
        Some(Via::Gateway(*address, longest.ifindex))
    });
    via.ok_or_else(|| {
        format!(
            "node {} shares no link with this node, and tunnels between nodes are not built yet: \
             its pods in {range} can't be reached",
            node.name
        )
    })
}

/// A route that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Present {
    /// Where to.
    pub destination: Cidr,
    /// Which way; `None`: one that we never set.
    pub via: Option<Via>,
    /// Whether it has our protocol number.
    pub ours: bool,
}

/// What to do about the difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Routes to set, new or to another place.
    pub set: Vec<(Cidr, Via)>,
    /// Our routes to remove.
    pub remove: Vec<(Cidr, Via)>,
    /// Wanted routes that somebody else holds, for people.
    pub problems: Vec<String>,
}

/// The plan that turns `present` into `wanted`. Routes straight onto a link are pods' and are
/// left to their ADD and DEL; those of others are left alone.
pub fn plan(wanted: &BTreeMap<Cidr, Via>, present: &[Present]) -> Plan {
    let mut plan = Plan::default();
    let mut held = BTreeSet::new();
    for route in present {
        match (wanted.get(&route.destination), route.via) {
            (Some(_), _) if !route.ours => {
                let text = format!(
                    "a route to {} exists that is not ours; remove it (ip route show {0})",
                    route.destination
                );
                plan.problems.push(text);
                held.insert(route.destination);
            }
            (Some(want), Some(via)) if *want == via => {
                held.insert(route.destination);
            }
            (None, Some(via)) if route.ours && !matches!(via, Via::Link(_)) => {
                plan.remove.push((route.destination, via));
            }
            // Ours that leads elsewhere is replaced by the one that is set.
            _ => {}
        }
    }
    let missing = wanted.iter().filter(|(destination, _)| !held.contains(destination));
    plan.set = missing.map(|(destination, via)| (*destination, *via)).collect();
    plan
}

#[cfg(test)]
mod tests;
