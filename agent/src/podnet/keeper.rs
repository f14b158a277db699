//! Keeps the node's pod network as the snapshot says: ranges, routes to other nodes, healing, and
//! the files that the runtime waits for. One pass does all of it and may be repeated at any time.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Config,
    between::{Between, Outcome},
    conflist::{self, PLUGIN, Plugin},
    cut,
    heal::Healed,
    interface::{self, Interface, InterfaceAddress},
    mtu,
    netlink::{Netlink, NetlinkError},
    pods::{Pods, chain},
    sysctl,
    ways::{self, OnLink},
};
use crate::{
    metrics::Metrics,
    model::{
        node::{Cidr, Node},
        snapshot::Snapshot,
    },
    status::State,
};

/// All that a pass needs.
pub struct Keeper {
    config: Config,
    plugin: Plugin,
    pods: Arc<Pods>,
    /// The folder of configurations, as it was when ours was written.
    conf_dir: Mutex<Option<(u64, u64)>>,
    metrics: Arc<Metrics>,
    between: Between,
    is_router: AtomicBool,
    /// Nothing was lacking once: what is lacking now is a damage, and no reason to keep pods away.
    served: AtomicBool,
}

impl Keeper {
    /// For this node.
    pub fn new(config: Config, pods: Arc<Pods>, metrics: Arc<Metrics>) -> Self {
        let beside = || {
            let agent = std::env::current_exe().unwrap_or_default();
            agent.with_file_name(PLUGIN)
        };
        let plugin = Plugin::new(config.plugin.clone().unwrap_or_else(beside));
        let between = Between::new(config.vxlan_port);
        let (conf_dir, is_router, served) = Default::default();
        Self { config, plugin, pods, conf_dir, metrics, between, is_router, served }
    }

    /// One pass; how the pod network is after it.
    pub fn converge(&self, snapshot: &Snapshot) -> State {
        let own = snapshot.nodes.get(self.config.node_name.as_str()).map(Arc::as_ref);
        // Without these no pod is ever connected.
        let mut lacks: Vec<String> = self.make_router().err().into_iter().collect();
        let mut problems = Vec::new();
        let mut note = |outcome: Result<(), String>| problems.extend(outcome.err());
        note(self.learn_ranges(own));
        note(match self.pods.drain_noted(None) {
            Ok(false) => Ok(()),
            // Asked again soon, as after every fault.
            Ok(true) => Err("DELs are noted of pods that a call is at work on".to_owned()),
            Err(error) => Err(chain(&error)),
        });
        note(self.heal_pods());
        note(self.pods.follow_annotations(snapshot));
        match self.sync_links(snapshot, own) {
            Ok(found) => problems.extend(found),
            Err(error) => problems.push(chain(&error)),
        }
        if self.pods.ranges().is_empty() {
            let reason = self.why_no_ranges(snapshot, own);
            self.pods.set_waiting(Some(reason.clone()));
            return State::Waiting(reason);
        }
        self.pods.set_waiting(None);
        lacks.extend(self.install_files());
        if lacks.is_empty() {
            self.served.store(true, Ordering::Relaxed);
        } else if !self.served.load(Ordering::Relaxed) {
            return State::Waiting(lacks.join("; "));
        }
        lacks.extend(problems);
        if lacks.is_empty() { State::Ready } else { State::Degraded(lacks.join("; ")) }
    }

    /// Ranges that are known stay: the journal has them when there is no API server, and a Node
    /// that is deleted by mistake must not cost the pods their network.
    fn learn_ranges(&self, own: Option<&Node>) -> Result<(), String> {
        let Some(node) = own.filter(|node| !node.pod_cidrs.is_empty()) else { return Ok(()) };
        self.pods
            .set_ranges(&node.pod_cidrs)
            .map_err(|error| format!("write the journal of pod addresses: {error}"))
    }

    fn why_no_ranges(&self, snapshot: &Snapshot, own: Option<&Node>) -> String {
        let name = &self.config.node_name;
        match own {
            _ if !snapshot.synced.nodes => "the API server has not listed the nodes yet".into(),
            None => format!(
                "the cluster has no Node {name}; is --node-name right, and has its kubelet \
                 registered it?"
            ),
            Some(_) => format!(
                "node {name} has no podCIDRs; give the controller manager a --cluster-cidr, or set \
                 spec.podCIDRs of the node"
            ),
        }
    }

    fn heal_pods(&self) -> Result<(), String> {
        let (healed, refused) = self.pods.reconcile().map_err(|error| chain(&error))?;
        self.count(&healed);
        if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) }
    }

    /// Makes the node a router, again where somebody turned that off.
    fn make_router(&self) -> Result<(), String> {
        let altered = sysctl::make_router().map_err(|error| chain(&error))?;
        if self.is_router.swap(true, Ordering::Relaxed) && altered > 0 {
            self.count(&Healed::from([("sysctl", altered)]));
        }
        Ok(())
    }

    /// MTU, and what leads to other nodes; what can't be reached.
    fn sync_links(
        &self,
        snapshot: &Snapshot,
        own: Option<&Node>,
    ) -> Result<Vec<String>, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let interfaces = interface::interfaces(&mut netlink)?;
        let addresses = interface::addresses(&mut netlink)?;
        let internal_ips = own.map(|node| node.internal_ips.as_slice()).unwrap_or_default();
        let uplink = mtu::of_uplink(&interfaces, &addresses, internal_ips);
        self.pods.set_cut(cut::reason(&interfaces, &addresses, internal_ips));
        // Before the list of nodes is complete, a route that is not wanted yet may be tomorrow's.
        if !snapshot.synced.nodes {
            // Nor is it known which link is the uplink, and whether pods need a tunnel.
            let mtu = self.config.mtu.or_else(|| self.pods.last_mtu());
            self.pods.set_mtu(mtu.unwrap_or(uplink));
            return Ok(Vec::new());
        }
        let on_link = on_link(&interfaces, &addresses);
        let tunnels = self.between.has_tunnels(&self.pods);
        let ways = ways::ways(&snapshot.nodes, &self.config.node_name, &on_link, tunnels);
        let of_pods =
            if ways.need_tunnel() { mtu::of_tunnel(uplink, ways.overhead()) } else { uplink };
        self.pods.set_mtu(self.config.mtu.unwrap_or(of_pods));
        let Outcome { mut problems, healed } =
            self.between.sync(&mut netlink, &self.pods, &ways, uplink);
        self.count(&healed);
        match self.pods.follow_mtu() {
            Ok(0) => {}
            Ok(pods) => tracing::info!(pods, mtu = of_pods, "gave pods another MTU"),
            Err(error) => problems.push(error),
        }
        Ok(problems)
    }

    /// Counts what somebody else had altered.
    fn count(&self, healed: &Healed) {
        for (what, count) in healed {
            self.metrics.tables.healed(what, *count as u64);
        }
        if !healed.is_empty() {
            tracing::warn!(?healed, "healed the pod network");
        }
    }

    fn install_files(&self) -> Vec<String> {
        let Config { conf_dir, bin_dir, state_dir, port_mappings, .. } = &self.config;
        let installed = self
            .plugin
            .install(bin_dir)
            .and_then(|()| conflist::write(conf_dir, state_dir, *port_mappings));
        self.notice_new_folder();
        let overruled = conflist::overruled_by(conf_dir).map(|other| {
            let folder = conf_dir.display();
            format!("the runtime takes {folder}/{other} instead of ours; remove it")
        });
        let failed = installed.err().map(|error| chain(&error));
        failed.into_iter().chain(overruled).collect()
    }

    /// Whether the runtime's configuration was written, and is not there any more.
    pub fn lacks_configuration(&self) -> bool {
        let written = self.conf_dir.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        written && !conflist::is_there(&self.config.conf_dir)
    }

    /// A runtime that watches the folder watches the one that was deleted (containerd#11209).
    fn notice_new_folder(&self) {
        let now = conflist::identity(&self.config.conf_dir);
        let mut known = self.conf_dir.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = std::mem::replace(&mut *known, now)
            && now.is_some_and(|now| now != before)
        {
            tracing::warn!(
                folder = %self.config.conf_dir.display(),
                "the folder of network configurations was made anew; ours is in it again, but a \
                 runtime that watched the old one has to be restarted to see changes"
            );
        }
    }
}

/// The prefixes on the node's links that are up, loopback, host and link-local addresses apart.
pub fn on_link(interfaces: &[Interface], addresses: &[InterfaceAddress]) -> Vec<OnLink> {
    let up =
        |ifindex| interfaces.iter().any(|interface| interface.ifindex == ifindex && interface.up);
    let prefixes = addresses.iter().filter(|held| up(held.ifindex)).filter_map(|held| {
        let link_local = matches!(held.address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let prefix = Cidr::holding(held.address, held.prefix_len)?;
        let shared = prefix.host_bits() > 0 && !held.address.is_loopback() && !link_local;
        shared.then_some(OnLink { prefix, ifindex: held.ifindex })
    });
    prefixes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(ifindex: u32, mtu: u32, up: bool) -> Interface {
        Interface { ifindex, ifname: format!("eth{ifindex}"), mac: None, mtu, up, carrier: up }
    }

    fn held(ifindex: u32, address: &str, prefix_len: u8) -> InterfaceAddress {
        InterfaceAddress { ifindex, address: address.parse().unwrap(), prefix_len }
    }

    #[test]
    fn only_shared_links_that_are_up_count() {
        let interfaces =
            [interface(1, 65536, true), interface(2, 1500, true), interface(3, 1500, false)];
        let addresses = [
            held(1, "127.0.0.1", 8),
            held(2, "172.30.0.11", 24),
            held(2, "fd00:30::11", 64),
            held(2, "fe80::1", 64),
            held(2, "10.244.1.1", 32),
            held(3, "192.0.2.1", 24),
        ];
        let prefixes: Vec<_> = on_link(&interfaces, &addresses)
            .iter()
            .map(|link| (link.prefix.to_string(), link.ifindex))
            .collect();
        assert_eq!(prefixes, [("172.30.0.0/24".into(), 2), ("fd00:30::/64".into(), 2)]);
    }
}
