//! The size of pods' packets: what the uplink takes, less what a tunnel needs beside them. It is
//! followed while pods live.

use std::{net::IpAddr, sync::atomic::Ordering};

use super::{
    DEFAULT_MTU,
    interface::{Interface, InterfaceAddress},
    journal::Phase,
    ledger::link_spec,
    link, netns,
    pods::{Pods, chain},
};

/// IPv6 needs links of at least this many bytes (RFC 8200, 5).
pub const MIN_MTU: u32 = 1280;

/// The most that a veth takes; loopback interfaces take a byte more.
pub const MAX_MTU: u32 = 65_535;

/// The MTU of the interface that has the node's address. Where that is the loopback interface (a node
/// that tells routers of its address), it is the least of those that have an address on a link.
pub fn of_uplink(
    interfaces: &[Interface],
    addresses: &[InterfaceAddress],
    internal_ips: &[IpAddr],
) -> u32 {
    let of = |held: &InterfaceAddress| {
        let is_it = |interface: &&Interface| interface.ifindex == held.ifindex;
        interfaces.iter().find(is_it).filter(|interface| !interface.is_loopback())
    };
    let least = |wanted: &dyn Fn(&InterfaceAddress) -> bool| {
        addresses.iter().filter(|held| wanted(held)).filter_map(of).map(|found| found.mtu).min()
    };
    let on_a_link = |held: &InterfaceAddress| {
        let length = if held.address.is_ipv4() { 32 } else { 128 };
        let link_local = matches!(held.address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        held.prefix_len < length && !link_local
    };
    let has_address = addresses.iter().any(|held| internal_ips.contains(&held.address));
    let mtu = least(&|held| internal_ips.contains(&held.address))
        .or_else(|| least(&on_a_link).filter(|_| has_address));
    mtu.unwrap_or(DEFAULT_MTU).clamp(MIN_MTU, MAX_MTU)
}

/// The MTU in a tunnel that needs `overhead` bytes beside each packet.
pub fn of_tunnel(uplink: u32, overhead: u32) -> u32 {
    uplink.saturating_sub(overhead).max(MIN_MTU)
}

impl Pods {
    /// The MTU of the pod that was connected last; none where there is no pod.
    pub fn last_mtu(&self) -> Option<u32> {
        let entries = self.entries().into_iter().map(|(_, entry)| entry);
        let live = entries.filter(|entry| entry.phase == Phase::Live);
        live.max_by_key(|entry| entry.serial).map(|entry| entry.mtu)
    }

    /// Gives pods that were connected under another MTU the one that pods have now. How many.
    pub fn follow_mtu(&self) -> Result<usize, String> {
        let mtu = self.mtu.load(Ordering::Relaxed);
        let (mut resized, mut failed) = (0, Vec::new());
        for (attachment, entry) in self.entries() {
            if entry.mtu == mtu || entry.phase != Phase::Live {
                continue;
            }
            // Whoever holds the claim is at work on it; the next look comes.
            let Some(_claim) = self.claims.claim(&attachment, std::time::Duration::ZERO) else {
                continue;
            };
            if self.ledger().get(&attachment) != Some(&entry) {
                continue;
            }
            let Some(netns) = netns::find(entry.netns) else { continue };
            let outcome = link::resize(&link_spec(&attachment, &entry), &netns, mtu)
                .map_err(|error| chain(&error))
                .and_then(|()| {
                    self.ledger().set_mtu(&attachment, mtu).map_err(|error| error.to_string())
                });
            match outcome {
                Ok(()) => resized += 1,
                Err(error) => {
                    failed.push(format!("the link of {attachment} keeps its MTU: {error}"));
                }
            }
        }
        if failed.is_empty() { Ok(resized) } else { Err(failed.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(ifindex: u32, mtu: u32) -> Interface {
        Interface {
            ifindex,
            ifname: format!("eth{ifindex}"),
            mac: None,
            mtu,
            up: true,
            carrier: true,
        }
    }

    fn held(ifindex: u32, address: &str) -> InterfaceAddress {
        InterfaceAddress { ifindex, address: address.parse().unwrap(), prefix_len: 24 }
    }

    #[test]
    fn cni_24_the_mtu_is_the_uplinks() {
        let interfaces = [interface(2, 1400), interface(3, 9000)];
        let addresses = [held(2, "172.30.0.11"), held(3, "192.0.2.1")];
        let ip = "172.30.0.11".parse().unwrap();
        assert_eq!(of_uplink(&interfaces, &addresses, &[ip]), 1400);
        assert_eq!(of_uplink(&interfaces, &addresses, &[]), DEFAULT_MTU);
        assert_eq!(of_uplink(&[interface(2, 576)], &addresses, &[ip]), MIN_MTU);
    }

    /// A node whose address is on `lo`, which takes more than any veth.
    #[test]
    fn cni_24_the_mtu_of_a_node_whose_address_is_on_loopback_is_that_of_its_links() {
        let lo = Interface { ifname: "lo".into(), ..interface(1, 65_536) };
        let interfaces = [lo, interface(2, 9000), interface(3, 1500), interface(4, 1400)];
        let ip = "192.0.2.7".parse().unwrap();
        let on_lo = InterfaceAddress { prefix_len: 32, ..held(1, "192.0.2.7") };
        let loopback = InterfaceAddress { prefix_len: 8, ..held(1, "127.0.0.1") };
        // The last one has an address on no link: a pod's, or a tunnel's.
        let alone = InterfaceAddress { prefix_len: 32, ..held(4, "10.0.0.1") };
        let addresses = [loopback, on_lo, held(2, "198.51.100.2"), held(3, "203.0.113.2"), alone];
        assert_eq!(of_uplink(&interfaces, &addresses, &[ip]), 1500);
        assert_eq!(of_uplink(&interfaces, &addresses[..2], &[ip]), DEFAULT_MTU);
        assert_eq!(
            of_uplink(&[interface(2, 70_000)], &addresses[2..], &[addresses[2].address]),
            MAX_MTU
        );
    }

    #[test]
    fn cni_24_a_tunnel_leaves_less_and_never_too_little_for_ipv6() {
        assert_eq!((of_tunnel(1500, 50), of_tunnel(9000, 70)), (1450, 8930));
        assert_eq!(of_tunnel(1300, 50), MIN_MTU);
    }
}
