//! kube-proxy's iptables mode: one list of services that is walked rule by rule, a chain per
//! service port that picks an endpoint by `statistic`, a chain per endpoint.

use std::fmt::{self, Write};

use super::{
    super::catalogue::{Port, Service},
    Node,
};

/// Marks what is to be masqueraded.
const MARK: &str = "0x4000";

/// The whole set, as input of `iptables-restore`.
pub fn ruleset(services: &[Service], node: &Node) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write_filter(&mut text).and_then(|()| write_nat(&mut text, services, node));
    text
}

fn write_filter(text: &mut String) -> fmt::Result {
    let new = "-m conntrack --ctstate NEW";
    writeln!(text, "*filter")?;
    for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS"] {
        writeln!(text, ":{chain} - [0:0]")?;
    }
    for (hook, chain) in [
        ("INPUT", "KUBE-NODEPORTS"),
        ("INPUT", "KUBE-EXTERNAL-SERVICES"),
        ("FORWARD", "KUBE-SERVICES"),
        ("FORWARD", "KUBE-EXTERNAL-SERVICES"),
        ("OUTPUT", "KUBE-SERVICES"),
    ] {
        writeln!(text, "-A {hook} {new} -j {chain}")?;
    }
    writeln!(text, "-A FORWARD -j KUBE-FORWARD")?;
    writeln!(text, "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP")?;
    writeln!(text, "-A KUBE-FORWARD -m mark --mark {MARK}/{MARK} -j ACCEPT")?;
    writeln!(text, "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")?;
    writeln!(text, "COMMIT")
}

fn write_nat(text: &mut String, services: &[Service], node: &Node) -> fmt::Result {
    let ports =
        || services.iter().flat_map(|service| service.ports.iter().map(move |p| (service, p)));
    writeln!(text, "*nat")?;
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        writeln!(text, ":{chain} - [0:0]")?;
    }
    for (service, port) in ports() {
        writeln!(text, ":{} - [0:0]", service_chain(service, port))?;
        if port.node_port.is_some() {
            writeln!(text, ":{} - [0:0]", external_chain(service, port))?;
        }
        for nth in 0..service.endpoints.len() {
            writeln!(text, ":{} - [0:0]", endpoint_chain(service, port, nth))?;
        }
    }
    writeln!(text, "-A PREROUTING -j KUBE-SERVICES")?;
    writeln!(text, "-A OUTPUT -j KUBE-SERVICES")?;
    writeln!(text, "-A POSTROUTING -j KUBE-POSTROUTING")?;
    writeln!(text, "-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN")?;
    writeln!(text, "-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}")?;
    writeln!(text, "-A KUBE-POSTROUTING -j MASQUERADE --random-fully")?;
    writeln!(text, "-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}")?;
    for (service, port) in ports() {
        let (ip, number, protocol) = (service.cluster_ip, port.number, port.protocol.lower());
        let chain = service_chain(service, port);
        let here = format!("-d {ip}/32 -p {protocol} -m {protocol} --dport {number}");
        writeln!(text, "-A KUBE-SERVICES {here} -j {chain}")?;
    }
    let (address, (range, bits)) = (node.address, node.pods);
    writeln!(text, "-A KUBE-SERVICES -d {address}/32 -j KUBE-NODEPORTS")?;
    for (service, port) in ports() {
        write_port(text, service, port, &format!("{range}/{bits}"))?;
    }
    writeln!(text, "COMMIT")
}

fn write_port(text: &mut String, service: &Service, port: &Port, pods: &str) -> fmt::Result {
    let (ip, number, protocol) = (service.cluster_ip, port.number, port.protocol.lower());
    let chain = service_chain(service, port);
    if let Some(node_port) = port.node_port {
        let external = external_chain(service, port);
        let here = format!("-p {protocol} -m {protocol} --dport {node_port}");
        writeln!(text, "-A KUBE-NODEPORTS {here} -j {external}")?;
        writeln!(text, "-A {external} -j KUBE-MARK-MASQ")?;
        writeln!(text, "-A {external} -j {chain}")?;
    }
    let here = format!("-d {ip}/32 -p {protocol} -m {protocol} --dport {number}");
    writeln!(text, "-A {chain} ! -s {pods} {here} -j KUBE-MARK-MASQ")?;
    let mut left = service.endpoints.len();
    for (nth, endpoint) in service.endpoints.iter().enumerate() {
        let to = endpoint_chain(service, port, nth);
        // The last takes what is left.
        let chance = match left {
            1 => String::new(),
            n => format!(
                " -m statistic --mode random --probability 0.{:010}",
                10_u64.pow(10) / n as u64
            ),
        };
        writeln!(text, "-A {chain}{chance} -j {to}")?;
        writeln!(text, "-A {to} -s {endpoint}/32 -j KUBE-MARK-MASQ")?;
        let dnat = format!("-p {protocol} -m {protocol} -j DNAT --to-destination");
        writeln!(text, "-A {to} {dnat} {endpoint}:{number}")?;
        left -= 1;
    }
    Ok(())
}

fn service_chain(service: &Service, port: &Port) -> String {
    format!("KUBE-SVC-{:05}-{}", service.number, port.name)
}

fn external_chain(service: &Service, port: &Port) -> String {
    format!("KUBE-EXT-{:05}-{}", service.number, port.name)
}

fn endpoint_chain(service: &Service, port: &Port, nth: usize) -> String {
    format!("KUBE-SEP-{:05}-{}-{nth}", service.number, port.name)
}

#[cfg(test)]
mod tests {
    use super::{super::super::catalogue, *};

    #[test]
    fn the_last_endpoint_takes_what_is_left() {
        let node = Node { address: [172, 29, 0, 11].into(), pods: ([10, 244, 0, 0].into(), 16) };
        let services: Vec<_> = catalogue::services(10).collect();
        let text = ruleset(&services, &node);
        assert_eq!(text.matches("--probability 0.5000000000").count(), 13);
        assert_eq!(text.matches("-j DNAT").count(), 26);
        assert!(text.contains("-A KUBE-SVC-00000-echo -j KUBE-SEP-00000-echo-1\n"), "{text}");
        assert!(
            text.contains("-A KUBE-NODEPORTS -p udp -m udp --dport 30999 -j KUBE-EXT-00000-sink")
        );
        // netfilter's own limit on the names of chains
        let names = text.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
        assert!(names.into_iter().all(|name| name.len() <= 28));
    }
}
