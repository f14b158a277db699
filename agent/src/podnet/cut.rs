//! Whether the pods of this node are cut off from the rest of the cluster, which a container runtime
//! hears of by STATUS (code 51 of the CNI specification). Pure.

use std::net::IpAddr;

use super::interface::{Interface, InterfaceAddress};

/// Why they are: no link of those that have one of the node's addresses works. Where no link has any
/// (a node that tells routers of its address has it on its loopback interface), nothing is known.
pub fn reason(
    interfaces: &[Interface],
    addresses: &[InterfaceAddress],
    internal_ips: &[IpAddr],
) -> Option<String> {
    let mut down = None;
    for held in addresses.iter().filter(|held| internal_ips.contains(&held.address)) {
        let link = interfaces.iter().find(|interface| interface.ifindex == held.ifindex)?;
        if link.is_loopback() || link.up && link.carrier {
            return None;
        }
        let Interface { ifname, .. } = link;
        down.get_or_insert_with(|| {
            let (what, help) = if link.up {
                ("has no carrier", format!("see what it is connected to (ip link show {ifname})"))
            } else {
                ("is down", format!("ip link set {ifname} up"))
            };
            format!("{ifname}, which has this node's address {}, {what}: {help}", held.address)
        });
    }
    down
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, up: bool, carrier: bool) -> Interface {
        let ifname = if ifindex == 1 { "lo".to_owned() } else { format!("eth{ifindex}") };
        Interface { ifindex, ifname, mac: None, mtu: 1_500, up, carrier }
    }

    fn held(ifindex: u32, address: &str) -> InterfaceAddress {
        InterfaceAddress { ifindex, address: address.parse().unwrap(), prefix_len: 24 }
    }

    #[test]
    fn pods_are_cut_off_where_no_link_of_the_nodes_addresses_works() {
        let ips = ["172.30.0.11", "fd00:30::11"].map(|ip| ip.parse().unwrap());
        let addresses = [held(2, "172.30.0.11"), held(3, "fd00:30::11"), held(4, "192.0.2.1")];
        let of = |first, second| {
            reason(&[first, second, link(4, true, true)], &addresses, &ips).unwrap_or_default()
        };
        assert_eq!(of(link(2, true, true), link(3, false, false)), "");
        assert_eq!(of(link(2, true, false), link(3, true, true)), "");
        let text = of(link(2, false, false), link(3, true, false));
        assert!(text.contains("eth2") && text.contains("172.30.0.11, is down"), "{text}");
        let text = of(link(2, true, false), link(3, true, false));
        assert!(text.contains("no carrier"), "{text}");
        // Nothing is known of a node without such a link.
        assert_eq!(reason(&[link(4, false, false)], &addresses[2..], &ips), None);
        assert_eq!(reason(&[link(1, true, true)], &[held(1, "172.30.0.11")], &ips), None);
    }
}
