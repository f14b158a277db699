//! kube-proxy's nftables mode: verdict maps from address, protocol and port to a chain per service
//! port, which picks a chain per endpoint at random.

use std::fmt::{self, Write};

use super::{
    super::catalogue::{Port, Service},
    Node,
};

/// The rules that do not depend on services: the hooks, and the mark that asks for masquerading.
const FRAME: &str = "
  chain filter-input {
    type filter hook input priority -110; policy accept;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-forward {
    type filter hook forward priority -110; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-output {
    type filter hook output priority -110; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
  }
  chain filter-output-post-dnat {
    type filter hook output priority -90; policy accept;
    ct state new jump cluster-ips-check
  }
  chain filter-prerouting {
    type filter hook prerouting priority -110; policy accept;
    ct state new jump firewall-check
  }
  chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
  chain nat-output { type nat hook output priority -100; policy accept; jump services; }
  chain nat-postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    jump masquerading
  }
  chain nodeport-endpoints-check {
    ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
  }
  chain service-endpoints-check {
    ip daddr . meta l4proto . th dport vmap @no-endpoint-services
  }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain cluster-ips-check { ip daddr @cluster-ips reject; }
  chain masquerading {
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }
  chain mark-for-masquerade { mark set mark or 0x4000; }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
}
";

/// The whole set, as input of `nft -f`.
pub fn ruleset(services: &[Service], node: &Node) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write_table(&mut text, services, node);
    text
}

fn write_table(text: &mut String, services: &[Service], node: &Node) -> fmt::Result {
    writeln!(text, "add table ip kube-proxy\ndelete table ip kube-proxy")?;
    writeln!(text, "table ip kube-proxy {{")?;
    for (name, key) in [
        ("service-ips", "ipv4_addr . inet_proto . inet_service"),
        ("no-endpoint-services", "ipv4_addr . inet_proto . inet_service"),
        ("firewall-ips", "ipv4_addr . inet_proto . inet_service"),
        ("service-nodeports", "inet_proto . inet_service"),
        ("no-endpoint-nodeports", "inet_proto . inet_service"),
    ] {
        writeln!(text, "  map {name} {{ type {key} : verdict; }}")?;
    }
    writeln!(text, "  set cluster-ips {{ type ipv4_addr; }}")?;
    let address = node.address;
    writeln!(text, "  set nodeport-ips {{ type ipv4_addr; elements = {{ {address} }}; }}")?;
    text.push_str(FRAME.trim_start_matches('\n'));
    for service in services {
        for port in service.ports {
            write_port(text, service, port, node)?;
        }
        let ip = service.cluster_ip;
        writeln!(text, "add element ip kube-proxy cluster-ips {{ {ip} }}")?;
    }
    Ok(())
}

fn write_port(text: &mut String, service: &Service, port: &Port, node: &Node) -> fmt::Result {
    const ADD: &str = "add rule ip kube-proxy";
    let (number, ip) = (port.number, service.cluster_ip);
    let protocol = port.protocol.lower();
    let name = format!("{:05}/{}", service.number, port.name).replace('/', "-");
    let chain = format!("service-{name}");
    let mut picks = Vec::new();
    for (nth, endpoint) in service.endpoints.iter().enumerate() {
        let chain = format!("endpoint-{name}-{nth}");
        writeln!(text, "add chain ip kube-proxy {chain}")?;
        writeln!(text, "{ADD} {chain} ip saddr {endpoint} jump mark-for-masquerade")?;
        writeln!(text, "{ADD} {chain} meta l4proto {protocol} dnat to {endpoint}:{number}")?;
        picks.push(format!("{nth} : goto {chain}"));
    }
    let (range, bits) = node.pods;
    let from_elsewhere = format!("ip saddr != {range}/{bits} jump mark-for-masquerade");
    writeln!(text, "add chain ip kube-proxy {chain}")?;
    writeln!(text, "{ADD} {chain} ip daddr {ip} {protocol} dport {number} {from_elsewhere}")?;
    let (count, picks) = (picks.len(), picks.join(" , "));
    writeln!(text, "{ADD} {chain} numgen random mod {count} vmap {{ {picks} }}")?;
    let element = format!("{ip} . {protocol} . {number} : goto {chain}");
    writeln!(text, "add element ip kube-proxy service-ips {{ {element} }}")?;
    if let Some(node_port) = port.node_port {
        let external = format!("external-{name}");
        writeln!(text, "add chain ip kube-proxy {external}")?;
        writeln!(text, "{ADD} {external} jump mark-for-masquerade")?;
        writeln!(text, "{ADD} {external} goto {chain}")?;
        let element = format!("{protocol} . {node_port} : goto {external}");
        writeln!(text, "add element ip kube-proxy service-nodeports {{ {element} }}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::super::catalogue, *};

    #[test]
    fn every_port_has_an_element_and_a_choice_of_its_endpoints() {
        let node = Node { address: [172, 29, 0, 11].into(), pods: ([10, 244, 0, 0].into(), 16) };
        let services: Vec<_> = catalogue::services(10).collect();
        let text = ruleset(&services, &node);
        assert_eq!(text.matches("add element ip kube-proxy service-ips").count(), 13);
        assert_eq!(text.matches("numgen random mod 2 vmap").count(), 13);
        assert_eq!(text.matches(" dnat to ").count(), 26);
        assert!(text.contains("service-nodeports { udp . 30999 : goto external-00000-sink }"));
        assert!(text.contains("endpoint-00000-echo-1 meta l4proto tcp dnat to 10.244.2.3:7777"));
    }
}
