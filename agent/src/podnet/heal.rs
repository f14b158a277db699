//! What the agent mends without being asked: pods whose namespace died, calls that an agent did not
//! live to finish, pods' links that somebody deleted, and what somebody altered of a link, its routes,
//! neighbours and settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs::File,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use mizzen_cni::wire::Attachment;

use super::{
    bandwidth,
    datapath::PodLink,
    interface::{self, Interface, Neighbour},
    journal::{Entry, Phase},
    ledger::{link_spec, macs},
    link::{self, LinkSpec},
    message::{
        Via, add_neighbour, delete_link_at, host_route, replace_route, set_mac, set_mtu, set_up,
    },
    netlink::{Change, Netlink, NetlinkError},
    netns,
    pods::{Pods, chain},
    routes, sysctl,
};
use crate::model::node::Cidr;

/// What was healed: how often, by `link`, `route`, `neighbour`, `sysctl` or `pod`.
pub type Healed = BTreeMap<&'static str, usize>;

/// What the kernel has for pods.
struct Present {
    routes: BTreeSet<(Cidr, Option<Via>)>,
    neighbours: BTreeSet<Neighbour>,
}

impl Present {
    /// What a pod's link lacks on the node, and of what kind that is.
    fn missing(&self, spec: &LinkSpec, found: &Interface) -> Vec<(&'static str, Change)> {
        let ifindex = found.ifindex;
        let mut changes = Vec::new();
        if !found.up {
            changes.push(("link", set_up(&spec.host_ifname)));
        }
        if found.mac != Some(spec.host_mac) {
            changes.push(("link", set_mac(&spec.host_ifname, spec.host_mac)));
        }
        if found.mtu != spec.mtu {
            changes.push(("link", set_mtu(&spec.host_ifname, spec.mtu)));
        }
        for address in spec.addresses.iter().copied() {
            let neighbour = Neighbour { ifindex, address, mac: spec.pod_mac };
            if !self.neighbours.contains(&neighbour) {
                changes.push(("neighbour", add_neighbour(ifindex, address, spec.pod_mac)));
            }
            // A link that is down has no routes, whatever the kernel said a moment ago.
            let (range, via) = (host_route(address), Via::Link(ifindex));
            if !found.up || !self.routes.contains(&(range, Some(via))) {
                changes.push(("route", replace_route(range, via)));
            }
        }
        changes
    }
}

impl Pods {
    /// Takes over what an earlier agent left, before anybody is served.
    pub fn restore(&self) -> Result<(), NetlinkError> {
        let mut netlink = Netlink::open()?;
        let known: BTreeSet<_> =
            self.entries().iter().map(|(attachment, _)| attachment.host_ifname()).collect();
        let routes = interface::routes(&mut netlink)?;
        let neighbours = interface::permanent_neighbours(&mut netlink)?;
        for interface in interface::interfaces(&mut netlink)? {
            if interface.is_pod_link() && !known.contains(&interface.ifname) {
                let queued = bandwidth::has_bucket(&mut netlink, interface.ifindex)?;
                self.take_in_stranger(&interface, queued, &routes, &neighbours)?;
            }
        }
        // What one pod refuses has been told, and keeps no other from being served.
        self.reconcile().map(drop)
    }

    /// A link of ours that no record is about, because the state folder was wiped under a running
    /// node. Its pod may be alive: it keeps its network and its addresses until its DEL. One
    /// without addresses was never finished.
    fn take_in_stranger(
        &self,
        interface: &Interface,
        queued: bool,
        routes: &[routes::Present],
        neighbours: &[Neighbour],
    ) -> Result<(), NetlinkError> {
        let Interface { ifname, ifindex, .. } = interface;
        let addresses: Vec<_> = routes
            .iter()
            .filter(|route| route.ours && route.via == Some(Via::Link(*ifindex)))
            .map(|route| route.destination.address)
            .collect();
        if addresses.is_empty() {
            tracing::warn!(ifname, "removing a pod link that was never finished");
            return link::delete(ifname);
        }
        tracing::warn!(ifname, ?addresses, "keeping a pod link that the journal does not know");
        self.ledger().hold(&addresses);
        let (host_mac, pod_mac) = macs(&addresses);
        // It may have been given another.
        let said = neighbours.iter().find(|neighbour| neighbour.ifindex == *ifindex);
        let link = PodLink {
            ifname: ifname.clone(),
            ifindex: *ifindex,
            addresses,
            pod_mac: said.map_or(pod_mac, |neighbour| neighbour.mac).0,
            host_mac: interface.mac.unwrap_or(host_mac).0,
            socket_translation: None,
            queued,
            sends: None,
        };
        if let Err(error) = self.datapath.attach(&link, None) {
            tracing::error!(ifname, error = chain(&error), "attach the datapath to a pod");
        }
        self.strangers().insert(ifname.clone(), link);
        Ok(())
    }

    /// Unmakes pods whose namespace, and so whose link, is gone, and what was not finished; makes
    /// links anew that somebody deleted; tells the datapath of pods that it does not know; sets again
    /// what of links, routes, neighbours and settings somebody altered. What it had to heal, by kind,
    /// and what it could not.
    pub fn reconcile(&self) -> Result<(Healed, Vec<String>), NetlinkError> {
        // First the pods and then what they have: of one that is connected meanwhile nothing is missed.
        let entries = self.entries();
        let mut netlink = Netlink::open()?;
        let routes = interface::routes(&mut netlink)?;
        let present = Present {
            routes: routes.iter().map(|route| (route.destination, route.via)).collect(),
            neighbours: interface::permanent_neighbours(&mut netlink)?.into_iter().collect(),
        };
        let (mut healed, mut refused) = (Healed::new(), Vec::new());
        for (attachment, entry) in entries {
            // Whoever holds the claim is at work on it; afterwards it may be another.
            let Some(_claim) = self.claims.claim(&attachment, Duration::ZERO) else { continue };
            // One that left is gone in a moment.
            let leaves = self.leaving.holds(&attachment);
            if !leaves && self.ledger().get(&attachment) == Some(&entry) {
                // What one pod's link refuses, because it goes at this moment, is nothing to others.
                match self.heal(&attachment, &entry, &present, &mut netlink) {
                    Ok(mended) => {
                        for what in mended {
                            *healed.entry(what).or_default() += 1;
                        }
                    }
                    Err(error) => {
                        let error = chain(&*error);
                        tracing::warn!(%attachment, error, "heal a pod's link");
                        refused.push(format!("heal the link of {attachment}: {error}"));
                    }
                }
            }
        }
        refused.extend(self.forget_strangers(&mut netlink)?);
        Ok((healed, refused))
    }

    /// What there was to do, a word for each thing.
    fn heal(
        &self,
        attachment: &Attachment,
        entry: &Entry,
        present: &Present,
        netlink: &mut Netlink,
    ) -> Result<Vec<&'static str>, Box<dyn Error>> {
        let found = interface::find(netlink, &attachment.host_ifname())?;
        let is_live = entry.phase == Phase::Live;
        let Some(found) = found.filter(|_| is_live) else {
            // A namespace takes its links along when it goes: if it is there, somebody deleted them.
            let alive = || netns::find_numbered(entry.netns, entry.netns_cookie);
            if let Some(netns) = is_live.then(alive).flatten() {
                tracing::warn!(%attachment, "making a pod's link anew, which somebody deleted");
                let ifindex = link::create(&link_spec(attachment, entry), &netns)?;
                self.attach_to(attachment, entry, ifindex, Some(&netns));
                return Ok(vec!["link"]);
            }
            tracing::info!(%attachment, phase = ?entry.phase, "releasing a pod that is gone");
            self.remove(attachment, entry)?;
            return Ok(vec!["pod"]);
        };
        let mut healed = Vec::new();
        if entry.ifindex != found.ifindex {
            let netns = netns::find(entry.netns);
            self.attach_to(attachment, entry, found.ifindex, netns.as_ref());
            healed.push("pod");
        }
        let altered = sysctl::tune_host_end(&found.ifname).unwrap_or_else(|error| {
            tracing::warn!(%attachment, error = chain(&error), "a pod's link keeps its settings");
            0
        });
        healed.extend(std::iter::repeat_n("sysctl", altered));
        let changes = present.missing(&link_spec(attachment, entry), &found);
        healed.extend(changes.iter().map(|(what, _)| *what));
        netlink.apply(changes.into_iter().map(|(_, change)| change).collect())?;
        if !healed.is_empty() {
            tracing::info!(%attachment, ?healed, "healed what a pod has on the node");
        }
        Ok(healed)
    }

    /// Tells the datapath of the device that a pod has now. What fails is tried again: the ledger still
    /// has the former one.
    fn attach_to(
        &self,
        attachment: &Attachment,
        entry: &Entry,
        ifindex: u32,
        netns: Option<&File>,
    ) {
        let former = (entry.ifindex != 0).then(|| self.pod_link(attachment, entry, entry.ifindex));
        let forgotten = former.map_or(Ok(()), |former| self.datapath.forget_device(&former));
        let link = self.pod_link(attachment, entry, ifindex);
        match forgotten.and_then(|()| self.datapath.attach(&link, netns)) {
            Ok(()) => self.ledger().set_ifindex(attachment, ifindex),
            Err(error) => {
                tracing::error!(%attachment, error = chain(&error), "attach the datapath");
            }
        }
    }

    /// Deletes the links of strangers whose name none of `valid` gives: those of pods that the
    /// runtime does not know any more. By their index, for the name may be a new pod's by now. Gives
    /// what the datapath refuses to forget.
    pub(super) fn delete_strangers(
        &self,
        valid: &BTreeSet<&Attachment>,
    ) -> Result<Vec<String>, NetlinkError> {
        let names: BTreeSet<String> =
            valid.iter().map(|attachment| attachment.host_ifname()).collect();
        let mut gone = self.strangers().clone();
        gone.retain(|ifname, _| !names.contains(ifname));
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let mut netlink = Netlink::open()?;
        for link in gone.values() {
            tracing::info!(ifname = link.ifname, "removing a pod link that nobody knows");
        }
        netlink.apply(
            gone.values().map(|link| delete_link_at(link.ifindex, &link.ifname)).collect(),
        )?;
        self.forget_strangers(&mut netlink)
    }

    /// Forgets the strangers whose links are gone. Gives what the datapath refuses to forget.
    fn forget_strangers(&self, netlink: &mut Netlink) -> Result<Vec<String>, NetlinkError> {
        let mut refused = Vec::new();
        let links: Vec<_> = self.strangers().values().cloned().collect();
        for link in links {
            let found = interface::find(netlink, &link.ifname)?;
            if found.is_some_and(|found| found.ifindex == link.ifindex) {
                continue;
            }
            match self.datapath.detach(&link) {
                Ok(()) => {
                    self.strangers().remove(&link.ifname);
                    self.ledger().free(&link.addresses, self.now());
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(ifname = link.ifname, error, "detach a pod");
                    refused.push(error);
                }
            }
        }
        Ok(refused)
    }

    pub(super) fn strangers(&self) -> MutexGuard<'_, BTreeMap<String, PodLink>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use mizzen_cni::wire::{Bandwidth, Mac};

    use super::*;

    const MADE: (Mac, u32) = (Mac([2, 0xff, 10, 244, 1, 2]), 1430);

    fn spec() -> LinkSpec {
        LinkSpec {
            host_ifname: "mz0123456789abc".into(),
            pod_ifname: "eth0".into(),
            host_mac: MADE.0,
            pod_mac: Mac([2, 0, 10, 244, 1, 2]),
            mtu: MADE.1,
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00:244:1::2".parse().unwrap()],
            alias: String::new(),
            bandwidth: Bandwidth::default(),
        }
    }

    /// What is set again where the routes lead there, and the link is like this.
    fn missing(via: Option<Via>, mac: Mac, mtu: u32) -> Vec<&'static str> {
        let (spec, ifindex) = (spec(), 7);
        let to = |address: &IpAddr| (host_route(*address), via);
        let neighbour =
            |address: &IpAddr| Neighbour { ifindex, address: *address, mac: spec.pod_mac };
        let present = Present {
            routes: spec.addresses.iter().map(to).collect(),
            neighbours: spec.addresses.iter().map(neighbour).collect(),
        };
        let (up, carrier, ifname) = (true, true, spec.host_ifname.clone());
        let found = Interface { ifindex, ifname, mac: Some(mac), mtu, up, carrier };
        present.missing(&spec, &found).into_iter().map(|(what, _)| what).collect()
    }

    #[test]
    fn what_is_otherwise_than_it_was_made_is_set_again_and_nothing_else() {
        let (mac, mtu) = MADE;
        let onto = |ifindex| Some(Via::Link(ifindex));
        assert_eq!(missing(onto(7), mac, mtu), [""; 0]);
        assert_eq!(missing(onto(8), mac, mtu), ["route"; 2], "by another link");
        let gateway = Some(Via::Gateway("192.0.2.1".parse().unwrap(), 7));
        assert_eq!(missing(gateway, mac, mtu), ["route"; 2], "by a gateway");
        assert_eq!(missing(None, mac, mtu), ["route"; 2]);
        assert_eq!(missing(onto(7), Mac([2, 0, 0, 0, 0, 1]), mtu), ["link"]);
        assert_eq!(missing(onto(7), mac, 1500), ["link"]);
    }
}
