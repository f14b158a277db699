//! What leads to other nodes' pods, as the kernel and the datapath shall have it: the tunnel's
//! device, the tables of peers and of what is tunnelled, and routes.
//! One pass does all of it in an order in which nothing is sent where nobody would take it:
//!
//! ```text
//! device and its programs -> peers -> device up -> what is tunnelled -> routes
//! ```
//! Peers are known whichever way leads to them. So a node that moves from one way to the other is
//! one route that is replaced, and what comes by the old way meanwhile is still taken. What the
//! kernel refuses of one node's is said, and keeps nothing from the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use mizzen_ebpf_abi::maps;

use super::{
    heal::Healed,
    interface,
    message::{Via, delete_route, replace_route},
    mtu,
    netlink::{Change, Netlink, NetlinkError},
    pods::{Pods, chain},
    routes,
    tunnel::{self, TunnelError, TunnelSpec},
    ways::{OVERHEAD_V4, Ways},
};
use crate::model::node::Cidr;

/// So many refusals of the kernel are said one by one.
const REFUSALS_SAID: usize = 8;

/// What the last pass wanted: what is otherwise now, though it is wanted still, was altered by
/// somebody else.
#[derive(Debug, Default)]
struct Wanted {
    routes: BTreeMap<Cidr, Via>,
    peers: BTreeMap<Cidr, IpAddr>,
    tunnelled: BTreeMap<Cidr, u32>,
    /// Index of the tunnel's device, when it was up.
    tunnel: Option<u32>,
}

/// Keeps all of it.
#[derive(Debug)]
pub struct Between {
    /// UDP port of the tunnels; 0: there are none.
    port: u16,
    before: Mutex<Wanted>,
}

/// What came of a pass.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What could not be done, for people.
    pub problems: Vec<String>,
    /// What somebody else had altered.
    pub healed: Healed,
}

impl Between {
    /// With tunnels at this UDP port; 0: without.
    pub fn new(port: u16) -> Self {
        Self { port, before: Mutex::default() }
    }

    /// Whether there can be tunnels.
    pub fn has_tunnels(&self, pods: &Pods) -> bool {
        self.port != 0 && pods.datapath.has_tunnels()
    }

    /// One pass. `uplink` is the uplink's MTU.
    pub fn sync(&self, netlink: &mut Netlink, pods: &Pods, ways: &Ways, uplink: u32) -> Outcome {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = Outcome::default();
        outcome.problems.extend(ways.problems().cloned());
        let tunnel = self.tunnel(netlink, pods, ways, uplink, (&before, &mut outcome));
        let tunnel = tunnel.unwrap_or_else(|error| {
            outcome.problems.push(format!("tunnels to other nodes: {error}"));
            None
        });
        let mut now = Wanted {
            routes: ways.routes(tunnel),
            peers: ways.peers.clone(),
            tunnelled: ways.tunnelled(tunnel),
            tunnel,
        };
        sync_tunnelled(pods, &now, &before, &mut outcome);
        if let Err(error) = sync_routes(netlink, &mut now, &before, &mut outcome) {
            outcome.problems.push(chain(&error));
        }
        *before = now;
        outcome
    }

    /// The tunnel's device, its programs and the table of peers; the device's index. There is one
    /// as soon as a node needs it; it stays, for others may still take that way to this node.
    fn tunnel(
        &self,
        netlink: &mut Netlink,
        pods: &Pods,
        ways: &Ways,
        uplink: u32,
        (before, outcome): (&Wanted, &mut Outcome),
    ) -> Result<Option<u32>, String> {
        if !self.has_tunnels(pods) {
            return Ok(None);
        }
        let text = |error: TunnelError| chain(&error);
        let found = tunnel::find(netlink, self.port).map_err(|error| chain(&error))?;
        let spec = TunnelSpec {
            port: self.port,
            mtu: mtu::of_tunnel(uplink, ways.overhead().max(OVERHEAD_V4)),
        };
        let mut device = None;
        if ways.need_tunnel() || found.is_some() {
            let (ifindex, is_new) = tunnel::prepare(netlink, &spec).map_err(text)?;
            let attached = pods.datapath.attach_tunnel(tunnel::IFNAME, ifindex);
            let attached = attached.map_err(|error| chain(&error))?;
            if is_new {
                tracing::info!(ifindex, mtu = spec.mtu, "made the tunnel's device");
            } else if attached > 0 && before.tunnel == Some(ifindex) {
                *outcome.healed.entry("program").or_default() += attached;
            }
            if is_new && before.tunnel.is_some() {
                *outcome.healed.entry("link").or_default() += 1;
            }
            device = Some(ifindex);
        }
        let written = pods.datapath.sync_peers(&ways.peers).map_err(|error| chain(&error))?;
        if written > 0 && before.peers == ways.peers {
            *outcome.healed.entry("PEERS").or_default() += written;
        }
        if uplink < mtu::MIN_MTU + ways.overhead() {
            outcome.problems.push(format!(
                "the uplink takes packets of {uplink} bytes, which leaves less than the {} that \
                 IPv6 needs in a tunnel: packets to nodes behind it go in fragments",
                mtu::MIN_MTU
            ));
        }
        if let Some(ifindex) = device {
            let was_down = tunnel::bring_up(netlink, self.port).map_err(text)?;
            if was_down && before.tunnel == Some(ifindex) {
                *outcome.healed.entry("link").or_default() += 1;
            }
        }
        Ok(device)
    }
}

/// What pods send past the routes.
fn sync_tunnelled(pods: &Pods, now: &Wanted, before: &Wanted, outcome: &mut Outcome) {
    match pods.datapath.sync_tunnelled(&now.tunnelled) {
        Ok(written) if written > 0 && before.tunnelled == now.tunnelled => {
            *outcome.healed.entry(maps::TUNNELLED).or_default() += written;
        }
        Ok(_) => {}
        Err(error) => outcome.problems.push(chain(&error)),
    }
}

/// Makes what is to be added, each by what it is about, and then the other changes. Gives what the
/// kernel refused of the former; all refusals are said.
fn apply(
    netlink: &mut Netlink,
    added: Vec<(Cidr, Change)>,
    others: Vec<Change>,
    outcome: &mut Outcome,
) -> Result<BTreeSet<Cidr>, NetlinkError> {
    let (ranges, added): (Vec<Cidr>, Vec<Change>) = added.into_iter().unzip();
    let refused = netlink.apply_each(added.into_iter().chain(others).collect())?;
    let said = refused.iter().take(REFUSALS_SAID).map(|(_, error)| chain(error));
    outcome.problems.extend(said);
    let more = refused.len().saturating_sub(REFUSALS_SAID);
    if more > 0 {
        outcome.problems.push(format!("the kernel refused {more} more changes of this kind"));
    }
    Ok(refused.iter().filter_map(|(place, _)| ranges.get(*place).copied()).collect())
}

/// How many of the routes that are set were wanted before, too.
fn count_healed(set: &[(Cidr, Via)], before: &BTreeMap<Cidr, Via>, outcome: &mut Outcome) {
    let again = set.iter().filter(|(range, via)| before.get(range) == Some(via)).count();
    if again > 0 {
        *outcome.healed.entry("route").or_default() += again;
    }
}

/// Has the routes be those that are wanted now. What is refused is wanted no longer.
fn sync_routes(
    netlink: &mut Netlink,
    now: &mut Wanted,
    before: &Wanted,
    outcome: &mut Outcome,
) -> Result<(), NetlinkError> {
    let mut plan = routes::plan(&now.routes, &interface::routes(netlink)?);
    if !plan.set.is_empty() || !plan.remove.is_empty() {
        let (set, remove) = (plan.set.len(), plan.remove.len());
        tracing::info!(set, remove, "changing node routes");
    }
    outcome.problems.append(&mut plan.problems);
    let set = |(range, via): &(Cidr, Via)| (*range, replace_route(*range, *via));
    let remove = |(range, via): &(Cidr, Via)| delete_route(*range, *via);
    let (set, remove) =
        (plan.set.iter().map(set).collect(), plan.remove.iter().map(remove).collect());
    let refused = apply(netlink, set, remove, outcome)?;
    plan.set.retain(|(range, _)| !refused.contains(range));
    now.routes.retain(|range, _| !refused.contains(range));
    count_healed(&plan.set, &before.routes, outcome);
    Ok(())
}
