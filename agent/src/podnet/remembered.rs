//! Compares what a runtime remembers of a pod with what ADD told it, and says what of that has to be
//! found in the pod. Pure.

use std::net::IpAddr;

use mizzen_cni::wire::{GATEWAY4, GATEWAY6, Link, Mac, Remembered, RememberedPrefix};

use super::message::host_route;
use crate::model::node::Cidr;

/// What has to be in a pod beside its interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InPod {
    /// Addresses of the interface.
    pub addresses: Vec<IpAddr>,
    /// Routes of the main table.
    pub routes: Vec<PodRoute>,
}

/// A route of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// Where to.
    pub destination: Cidr,
    /// The next hop; `None`: any way.
    pub gateway: Option<IpAddr>,
}

impl InPod {
    /// What ADD makes for these addresses.
    pub fn made(addresses: &[IpAddr]) -> Self {
        let routes = addresses.iter().map(|address| {
            let (destination, gateway) = default_route(*address);
            PodRoute { destination, gateway: Some(gateway) }
        });
        Self { addresses: addresses.to_vec(), routes: routes.collect() }
    }

    /// What the runtime remembers. Addresses may have been added since by plugins that were called
    /// later, and routes added and taken away.
    pub fn remembered(remembered: &Remembered) -> Self {
        let routes = remembered.routes.iter().filter_map(|route| {
            let destination = Cidr::holding(route.address, route.prefix_len)?;
            Some(PodRoute { destination, gateway: route.gateway })
        });
        let addresses = remembered.addresses.iter().map(|held| held.address);
        Self { addresses: addresses.collect(), routes: routes.collect() }
    }
}

/// Where everything of the address's family goes, and the next hop that leads there.
pub fn default_route(address: IpAddr) -> (Cidr, IpAddr) {
    let (any, gateway): (IpAddr, IpAddr) = match address {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED.into(), GATEWAY4.into()),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED.into(), GATEWAY6.into()),
    };
    (Cidr { address: any, prefix_len: 0 }, gateway)
}

/// The first thing that the runtime remembers otherwise than ADD told it.
pub fn differs(remembered: &Remembered, told: &Link) -> Option<String> {
    let macs = [
        (told.host_ifname.as_str(), remembered.host_mac, told.host_mac),
        ("the pod's interface", remembered.pod_mac, told.pod_mac),
    ];
    let mac = macs.into_iter().find_map(|(ifname, said, told)| other_mac(ifname, said, told));
    mac.or_else(|| told.addresses.iter().find_map(|one| other_address(&remembered.addresses, *one)))
}

fn other_mac(ifname: &str, said: Option<Mac>, told: Mac) -> Option<String> {
    let said = said.filter(|said| *said != told)?;
    Some(format!("{ifname} has the link-layer address {said} in it, and was given {told}"))
}

fn other_address(said: &[RememberedPrefix], told: IpAddr) -> Option<String> {
    let Some(held) = said.iter().find(|held| held.address == told) else {
        return Some(format!("{told} is not in it"));
    };
    if held.prefix_len != host_route(told).prefix_len {
        return Some(format!("{told} has a prefix of {} bits in it", held.prefix_len));
    }
    let (_, gateway) = default_route(told);
    let other = held.gateway.filter(|said| *said != gateway)?;
    Some(format!("the gateway of {told} is {other} in it, and was {gateway}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn prefix(address: &str, prefix_len: u8, gateway: &str) -> RememberedPrefix {
        RememberedPrefix { address: ip(address), prefix_len, gateway: gateway.parse().ok() }
    }

    fn told() -> Link {
        Link {
            host_ifname: "mz0".into(),
            host_mac: Mac([2, 0, 0, 0, 0, 1]),
            pod_mac: Mac([2, 0, 0, 0, 0, 2]),
            mtu: 1500,
            addresses: vec![ip("10.244.1.2"), ip("fd00:244:1::2")],
        }
    }

    fn kept() -> Remembered {
        Remembered {
            host_mac: Some(told().host_mac),
            pod_mac: Some(told().pod_mac),
            addresses: vec![
                prefix("10.244.1.2", 32, "169.254.1.1"),
                prefix("fd00:244:1::2", 128, "fe80::1"),
            ],
            routes: vec![prefix("0.0.0.0", 0, "169.254.1.1"), prefix("::", 0, "fe80::1")],
        }
    }

    #[test]
    fn cni_38_what_the_runtime_remembers_otherwise_is_named() {
        assert_eq!(differs(&kept(), &told()), None);
        let said = |change: fn(&mut Remembered)| {
            let mut remembered = kept();
            change(&mut remembered);
            differs(&remembered, &told()).unwrap_or_default()
        };
        assert_eq!(said(|all| all.addresses.push(prefix("192.0.2.1", 24, ""))), "");
        assert_eq!(said(|all| (all.host_mac, all.pod_mac) = (None, None)), "");
        assert_eq!(said(|all| all.addresses[1].gateway = None), "");
        assert!(said(|all| all.host_mac = Some(Mac([2; 6]))).starts_with("mz0 has the link-layer"));
        assert!(said(|all| all.pod_mac = Some(Mac([2; 6]))).starts_with("the pod's interface"));
        assert_eq!(said(|all| all.addresses.truncate(1)), "fd00:244:1::2 is not in it");
        assert!(said(|all| all.addresses[0].prefix_len = 24).contains("a prefix of 24 bits"));
        let gateway = said(|all| all.addresses[1].gateway = Some(ip("fe80::2")));
        assert!(gateway.contains("is fe80::2 in it, and was fe80::1"), "{gateway}");
    }

    #[test]
    fn cni_38_what_is_remembered_of_add_is_what_add_made() {
        assert_eq!(InPod::remembered(&kept()), InPod::made(&told().addresses));
        // A plugin that was called later has taken them away.
        let routes = Vec::new();
        assert_eq!(InPod::remembered(&Remembered { routes, ..kept() }).routes, []);
    }
}
