//! How this node reaches the pods of each other node. Pure: from the snapshot and the node's own
//! addresses to one way for each range of pods.
//!
//! A node on one of our links is the next hop of its own `podCIDRs`. Where there is none a tunnel
//! leads to the node's address. Both are chosen range by range, from what is known now, so that a
//! node that moves is led to another way with the next look.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;

use super::message::{Via, host_route};
use crate::model::node::{Cidr, Node};

/// Octets that the tunnel puts before a packet: outer IPv4 header, UDP, VXLAN, inner Ethernet
/// header (RFC 7348 section 5).
pub const OVERHEAD_V4: u32 = 20 + 8 + 8 + 14;
/// The same with an outer IPv6 header.
pub const OVERHEAD_V6: u32 = OVERHEAD_V4 + 20;

/// What is on the links of this node: a prefix of one of its addresses, and the link's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnLink {
    /// The prefix.
    pub prefix: Cidr,
    /// The link.
    pub ifindex: u32,
}

/// Which kind of way it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The node is on one of our links.
    Direct {
        /// Its address there.
        gateway: IpAddr,
        /// The link.
        link: OnLink,
    },
    /// It is not: packets go to its address in packets of their own.
    Tunnel {
        /// The address.
        endpoint: IpAddr,
    },
}

/// The way to one range of a node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The node.
    pub node: Arc<str>,
    /// The range.
    pub range: Cidr,
    /// How it is reached, or why it is not.
    pub kind: Result<Kind, String>,
}

impl Way {
    /// Whether it is a tunnel.
    pub fn is_tunnel(&self) -> bool {
        matches!(self.kind, Ok(Kind::Tunnel { .. }))
    }
}

/// The ways to all other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// In the order of the nodes' names.
    pub ways: Vec<Way>,
    /// This node's own ranges.
    pub own_ranges: Vec<Cidr>,
    /// Behind which node an address is, by that node's end of the tunnel, however it is reached:
    /// whichever way a node takes to this one, its packets are known.
    pub peers: BTreeMap<Cidr, IpAddr>,
    /// This node's address of each family, as others know it.
    pub own: BTreeMap<bool, IpAddr>,
    /// Addresses of the nodes that are reached by a tunnel. What pods send there goes through it,
    /// for the network in between knows no pods.
    pub tunnelled_nodes: BTreeSet<IpAddr>,
}

/// The ways from node `own_name`; `tunnels` says whether there can be any.
pub fn ways(
    nodes: &OrdMap<Arc<str>, Arc<Node>>,
    own_name: &str,
    on_link: &[OnLink],
    tunnels: bool,
) -> Ways {
    let own = nodes.get(own_name).map(Arc::as_ref);
    let mut found = Ways {
        own_ranges: own.map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
        ..Ways::default()
    };
    for address in own.into_iter().flat_map(|node| &node.internal_ips) {
        found.own.entry(address.is_ipv4()).or_insert(*address);
    }
    let mut taken: BTreeSet<Cidr> = found.own_ranges.iter().copied().collect();
    for node in nodes.values().filter(|node| &*node.name != own_name) {
        let theirs = own.map_or(Cow::Borrowed(&**node), |own| without_addresses_of(own, node));
        for range in &node.pod_cidrs {
            let kind = if !taken.insert(*range) {
                Err(format!("node {} has the podCIDR {range} of another node", node.name))
            } else if let Some(address) = only_ours(node, &theirs, *range) {
                Err(format!(
                    "node {} has the InternalIP {address} of this node, {own_name}: its pods in \
                     {range} can't be reached; delete it if it is this one under an earlier name",
                    node.name
                ))
            } else {
                kind(&theirs, *range, on_link, &found.own, tunnels)
            };
            found.note(&theirs, *range, kind);
        }
    }
    found
}

/// A node without the addresses that this one has: whatever is sent to those stays here. A host that
/// was given another name leaves such a node behind.
fn without_addresses_of<'a>(own: &Node, node: &'a Node) -> Cow<'a, Node> {
    let is_ours = |address: &IpAddr| own.internal_ips.contains(address);
    if !node.internal_ips.iter().any(is_ours) {
        return Cow::Borrowed(node);
    }
    let mut theirs = node.clone();
    theirs.internal_ips.retain(|address| !is_ours(address));
    Cow::Owned(theirs)
}

/// The address of the range's family that is not the node's alone, where it has no other.
fn only_ours(node: &Node, theirs: &Node, range: Cidr) -> Option<IpAddr> {
    let alike = |address: &&IpAddr| address.is_ipv4() == range.address.is_ipv4();
    let all = node.internal_ips.iter().find(alike).copied();
    all.filter(|_| !theirs.internal_ips.iter().any(|address| alike(&address)))
}

impl Ways {
    fn note(&mut self, node: &Node, range: Cidr, kind: Result<Kind, String>) {
        let is_v4 = range.address.is_ipv4();
        if kind.is_ok()
            && let Some(endpoint) = endpoint(node, is_v4, &self.own)
        {
            self.peers.insert(range, endpoint);
            let of_family = node.internal_ips.iter().filter(|ip| ip.is_ipv4() == is_v4);
            for address in of_family {
                self.peers.insert(host_route(*address), endpoint);
                if matches!(kind, Ok(Kind::Tunnel { .. })) {
                    self.tunnelled_nodes.insert(*address);
                }
            }
        }
        self.ways.push(Way { node: node.name.clone(), range, kind });
    }

    /// Whether any is a tunnel.
    pub fn need_tunnel(&self) -> bool {
        self.ways.iter().any(Way::is_tunnel)
    }

    /// Octets that the tunnels in use need on the uplink beside a packet; 0 where none is in use.
    pub fn overhead(&self) -> u32 {
        let overhead = |way: &Way| match way.kind {
            Ok(Kind::Tunnel { endpoint }) if endpoint.is_ipv4() => OVERHEAD_V4,
            Ok(Kind::Tunnel { .. }) => OVERHEAD_V6,
            _ => 0,
        };
        self.ways.iter().map(overhead).max().unwrap_or(0)
    }

    /// What can't be reached, and why, for people.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.ways.iter().filter_map(|way| way.kind.as_ref().err())
    }

    /// The routes that all packets take. This node's own ranges lead nowhere, so that packets for
    /// an address that no pod has come back at once and don't wander between the node and its
    /// router. `tunnel` is the index of the tunnel's device.
    pub fn routes(&self, tunnel: Option<u32>) -> BTreeMap<Cidr, Via> {
        let own = self.own_ranges.iter().map(|range| (*range, Via::Unreachable));
        let others = self.ways.iter().filter_map(|way| {
            let via = match way.kind.as_ref().ok()? {
                Kind::Direct { gateway, link } => Via::Gateway(*gateway, link.ifindex),
                Kind::Tunnel { .. } => self.by_tunnel(way.range, tunnel?)?,
            };
            Some((way.range, via))
        });
        own.chain(others).collect()
    }

    /// What pods send through the tunnel, by the index of its device: what the routes say of the
    /// nodes' ranges, and what goes to those nodes themselves, which the network in between would see
    /// under a pod's address.
    pub fn tunnelled(&self, tunnel: Option<u32>) -> BTreeMap<Cidr, u32> {
        let Some(ifindex) = tunnel else { return BTreeMap::new() };
        let ranges = self.ways.iter().filter(|way| way.is_tunnel()).map(|way| way.range);
        let nodes = self.tunnelled_nodes.iter().map(|address| host_route(*address));
        let is_led = |range: &Cidr| self.by_tunnel(*range, ifindex).is_some();
        ranges.chain(nodes).filter(is_led).map(|range| (range, ifindex)).collect()
    }

    /// What the node itself sends there is from the address that others know it by: another would
    /// be none of this node's to its peer.
    fn by_tunnel(&self, range: Cidr, ifindex: u32) -> Option<Via> {
        let source = self.own.get(&range.address.is_ipv4())?;
        Some(Via::From(ifindex, *source))
    }
}

/// The way to `range` of `node`: by its first address of the range's family that is on a link.
fn kind(
    node: &Node,
    range: Cidr,
    on_link: &[OnLink],
    own: &BTreeMap<bool, IpAddr>,
    tunnels: bool,
) -> Result<Kind, String> {
    let is_v4 = range.address.is_ipv4();
    let family = if is_v4 { "IPv4" } else { "IPv6" };
    let mut addresses = node.internal_ips.iter().filter(|ip| ip.is_ipv4() == is_v4).peekable();
    let direct = addresses.clone().find_map(|address| {
        let links = on_link.iter().filter(|link| link.prefix.contains(*address));
        let link = *links.max_by_key(|link| link.prefix.prefix_len)?;
        Some(Kind::Direct { gateway: *address, link })
    });
    if let Some(direct) = direct {
        return Ok(direct);
    }
    let name = &node.name;
    if !tunnels {
        if addresses.peek().is_none() {
            return Err(format!("node {name} has podCIDR {range} and no {family} InternalIP"));
        }
        return Err(format!(
            "node {name} shares no link with this node, and this agent makes no tunnels (it needs \
             --services, and --vxlan-port other than 0): its pods in {range} can't be reached"
        ));
    }
    if !own.contains_key(&is_v4) {
        return Err(format!(
            "node {name} has podCIDR {range}, and this node no {family} InternalIP"
        ));
    }
    let endpoint = endpoint(node, is_v4, own).ok_or_else(|| {
        format!("node {name} has podCIDR {range} and no InternalIP of a family that this node has")
    })?;
    Ok(Kind::Tunnel { endpoint })
}

/// The node's end of the tunnel: its first address of that family, else of the other, where this
/// node has one of it. Both nodes come to the same family.
fn endpoint(node: &Node, is_v4: bool, own: &BTreeMap<bool, IpAddr>) -> Option<IpAddr> {
    [is_v4, !is_v4].into_iter().filter(|family| own.contains_key(family)).find_map(|family| {
        node.internal_ips.iter().copied().find(|address| address.is_ipv4() == family)
    })
}

#[cfg(test)]
mod tests;
