//! What the agent mends without being asked: pods whose namespace died, calls that an agent did not
//! live to finish, routes that somebody removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use mizzen_cni::wire::Attachment;

use super::{
    datapath::PodLink,
    interface::{self, Interface},
    journal::{Entry, Phase},
    ledger::macs,
    link,
    message::{Via, host_route, replace_route},
    netlink::{Netlink, NetlinkError},
    netns,
    pods::{Pods, chain},
    routes::Present,
};
use crate::model::node::Cidr;

impl Pods {
    /// Takes over what an earlier agent left, before anybody is served.
    pub fn restore(&self) -> Result<(), NetlinkError> {
        let mut netlink = Netlink::open()?;
        let known: BTreeSet<_> =
            self.entries().iter().map(|(attachment, _)| attachment.host_ifname()).collect();
        let routes = interface::routes(&mut netlink)?;
        for interface in interface::interfaces(&mut netlink)? {
            if interface.is_pod_link() && !known.contains(&interface.ifname) {
                self.take_in_stranger(&interface, &routes)?;
            }
        }
        self.reconcile().map(|_healed| ())
    }

    /// A link of ours that no record is about, because the state folder was wiped under a running
    /// node. Its pod may be alive: it keeps its network and its addresses until its DEL. One
    /// without addresses was never finished.
    fn take_in_stranger(
        &self,
        interface: &Interface,
        routes: &[Present],
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
        let link = PodLink {
            ifname: ifname.clone(),
            ifindex: *ifindex,
            addresses,
            pod_mac: pod_mac.0,
            host_mac: host_mac.0,
            socket_translation: None,
        };
        if let Err(error) = self.datapath.attach(&link, None) {
            tracing::error!(ifname, error = chain(&error), "attach the datapath to a pod");
        }
        self.strangers().insert(ifname.clone(), link);
        Ok(())
    }

    /// Unmakes pods whose namespace, and so whose link, is gone, and what was not finished; tells
    /// the datapath of pods that it does not know; sets again the routes to pods that somebody
    /// removed. How many things it had to heal.
    pub fn reconcile(&self) -> Result<usize, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let present: BTreeSet<Cidr> =
            interface::routes(&mut netlink)?.iter().map(|route| route.destination).collect();
        let mut healed = 0;
        for (attachment, entry) in self.entries() {
            // Whoever holds the claim is at work on it; afterwards it may be another.
            let Some(_claim) = self.claims.claim(&attachment, Duration::ZERO) else { continue };
            if self.ledger().get(&attachment) == Some(&entry) {
                healed += usize::from(self.heal(&attachment, &entry, &present, &mut netlink)?);
            }
        }
        self.forget_strangers(&mut netlink)?;
        Ok(healed)
    }

    /// Whether there was something to do.
    fn heal(
        &self,
        attachment: &Attachment,
        entry: &Entry,
        present: &BTreeSet<Cidr>,
        netlink: &mut Netlink,
    ) -> Result<bool, NetlinkError> {
        let found = interface::find(netlink, &attachment.host_ifname())?;
        let Some(found) = found.filter(|_| entry.phase == Phase::Live) else {
            tracing::info!(%attachment, phase = ?entry.phase, "releasing a pod that is gone");
            self.remove(attachment, entry);
            return Ok(true);
        };
        let known = entry.ifindex == found.ifindex;
        if !known {
            let link = self.pod_link(attachment, entry, found.ifindex);
            match self.datapath.attach(&link, netns::find(entry.netns).as_ref()) {
                Ok(()) => self.ledger().set_ifindex(attachment, found.ifindex),
                Err(error) => {
                    tracing::error!(%attachment, error = chain(&error), "attach the datapath");
                }
            }
        }
        let routes = entry.addresses.iter().map(|address| host_route(*address));
        let lost: Vec<_> = routes
            .filter(|route| !present.contains(route))
            .map(|route| replace_route(route, Via::Link(found.ifindex)))
            .collect();
        let all_there = lost.is_empty();
        netlink.apply(lost)?;
        Ok(!known || !all_there)
    }

    fn forget_strangers(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
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
                    tracing::warn!(ifname = link.ifname, error = chain(&error), "detach a pod");
                }
            }
        }
        Ok(())
    }

    pub(super) fn strangers(&self) -> MutexGuard<'_, BTreeMap<String, PodLink>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
