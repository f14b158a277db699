//! Rules of kube-proxy's shape for the Service `hello`, in each of its modes, as far as its packets meet
//! them; and what is left of them.

use std::{fmt::Write as _, io::Write as _, net::SocketAddr, process::Stdio};

use anyhow::{Context, Result, ensure};
use xtask::cluster::exec::{self, Place};

use super::{NODE, World, capture, hello};

/// What kube-proxy makes its rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Nftables,
    /// `iptables` that is nftables'.
    Iptables,
    /// `iptables-legacy`.
    Legacy,
}

/// `hello` in one family.
struct Service {
    is_ipv6: bool,
    cluster_ip: String,
    node: String,
    node_port: u64,
    backends: Vec<SocketAddr>,
}

impl Mode {
    pub(super) const ALL: [Self; 3] = [Self::Nftables, Self::Iptables, Self::Legacy];

    /// Loads the rules on the node.
    pub(super) fn load(self, world: &World) -> Result<()> {
        for service in services(world)? {
            let restore = match (self, service.is_ipv6) {
                (Self::Nftables, _) => {
                    feed(world, &["nft", "-f", "-"], &service.table())?;
                    continue;
                }
                (Self::Iptables, false) => "iptables-restore",
                (Self::Iptables, true) => "ip6tables-restore",
                (Self::Legacy, false) => "iptables-legacy-restore",
                (Self::Legacy, true) => "ip6tables-legacy-restore",
            };
            feed(world, &[restore, "--noflush"], &service.chains())?;
        }
        ensure!(!self.left(world)?.is_empty(), "nothing is there of {self:?}");
        Ok(())
    }

    /// What is there of them.
    pub(super) fn left(self, world: &World) -> Result<Vec<String>> {
        let (listings, sign): (&[&[&str]], _) = match self {
            Self::Nftables => (&[&["nft", "list", "tables"]], " kube-proxy"),
            Self::Iptables => (&[&["iptables-save"], &["ip6tables-save"]], "KUBE-"),
            Self::Legacy => (&[&["iptables-legacy-save"], &["ip6tables-legacy-save"]], "KUBE-"),
        };
        let mut left = Vec::new();
        for argv in listings {
            let listed = capture(world, argv)?;
            left.extend(listed.lines().filter(|line| line.contains(sign)).map(str::to_owned));
        }
        Ok(left)
    }
}

impl Service {
    /// Of the nftables mode.
    fn table(&self) -> String {
        let Self { cluster_ip, node, node_port, .. } = self;
        let (ip, kind) = if self.is_ipv6 { ("ip6", "ipv6") } else { ("ip", "ipv4") };
        let backends = self.backends.iter().enumerate();
        let picks: Vec<_> =
            backends.map(|(nth, at)| format!("{nth} : {} . {}", at.ip(), at.port())).collect();
        let (many, picks) = (picks.len(), picks.join(", "));
        let dnat = format!("dnat {ip} to numgen random mod {many} map {{ {picks} }}");
        let of = |protocol: &str| {
            format!("{ip} daddr {node} {protocol} dport {node_port} meta mark set 0x4000 {dnat}\n")
        };
        let leads =
            |protocol: &str| format!("chain of-{protocol} {{ meta l4proto {protocol} {dnat}\n}}\n");
        let known = |protocol: &str| format!("{cluster_ip} . {protocol} . 80 : goto of-{protocol}");
        let map = format!(
            "map service-ips {{ type {kind}_addr . inet_proto . inet_service : verdict;\n\
             elements = {{ {}, {} }}\n}}\n",
            known("tcp"),
            known("udp")
        );
        let services = format!(
            "{ip} daddr . meta l4proto . th dport vmap @service-ips\n{}{}",
            of("tcp"),
            of("udp")
        );
        format!(
            "table {ip} kube-proxy {{\n{}{}{map}\
             chain nat-prerouting {{ type nat hook prerouting priority dstnat;\n{services}}}\n\
             chain nat-output {{ type nat hook output priority -100;\n{services}}}\n\
             chain nat-postrouting {{ type nat hook postrouting priority srcnat;\n\
             meta mark 0x4000 masquerade\n}}\n}}\n",
            leads("tcp"),
            leads("udp")
        )
    }

    /// Of the iptables mode.
    fn chains(&self) -> String {
        let Self { cluster_ip, node, node_port, backends, .. } = self;
        let svc = "KUBE-SVC-ABCDEFGHIJKLMNO1";
        let own = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", svc];
        let mut made = own.map(|name| format!(":{name} - [0:0]\n")).concat();
        let mut rules = String::new();
        for protocol in ["tcp", "udp"] {
            let _is_string = write!(
                rules,
                "-A KUBE-SERVICES -d {cluster_ip} -p {protocol} --dport 80 -j {svc}\n\
                 -A KUBE-NODEPORTS -p {protocol} --dport {node_port} -j KUBE-MARK-MASQ\n\
                 -A KUBE-NODEPORTS -p {protocol} --dport {node_port} -j {svc}\n"
            );
        }
        for (nth, backend) in backends.iter().enumerate() {
            let chain = format!("KUBE-SEP-ABCDEFGHIJKLM{nth:03}");
            let _is_string = writeln!(made, ":{chain} - [0:0]");
            // One in so many as there are yet.
            let share = match backends.len() - nth {
                1 => String::new(),
                left => format!("-m statistic --mode nth --every {left} --packet 0 "),
            };
            let _is_string = write!(
                rules,
                "-A {svc} {share}-j {chain}\n\
                 -A {chain} -p tcp -j DNAT --to-destination {backend}\n\
                 -A {chain} -p udp -j DNAT --to-destination {backend}\n"
            );
        }
        format!(
            "*nat\n{made}\
             -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n\
             -A POSTROUTING -j KUBE-POSTROUTING\n\
             -A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\n\
             -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
             {rules}-A KUBE-SERVICES -d {node} -j KUBE-NODEPORTS\nCOMMIT\n"
        )
    }
}

/// `hello` in both families.
fn services(world: &World) -> Result<Vec<Service>> {
    let (ips, node_port) = hello(world)?;
    let host = world.layout.node_hosts().into_iter().next().context("no node")?;
    let nodes = [host.ipv4.to_string(), host.ipv6.to_string()];
    let families = [false, true].into_iter().zip(ips.iter().zip(nodes));
    families
        .map(|(is_ipv6, (cluster_ip, node))| {
            let (cluster_ip, backends) = (cluster_ip.clone(), backends(world, is_ipv6)?);
            Ok(Service { is_ipv6, cluster_ip, node, node_port, backends })
        })
        .collect()
}

/// The endpoints of `hello` in a family.
fn backends(world: &World, ipv6: bool) -> Result<Vec<SocketAddr>> {
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                  ?labelSelector=kubernetes.io%2Fservice-name%3Dhello";
    let list = world.api.get(slices)?;
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let mut found = Vec::new();
    for slice in list["items"].as_array().into_iter().flatten() {
        if slice["addressType"] != family {
            continue;
        }
        let port = slice["ports"][0]["port"].as_u64().context("an endpoint without a port")?;
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let address = endpoint["addresses"][0].as_str().context("no address")?;
            found.push(SocketAddr::new(address.parse()?, u16::try_from(port)?));
        }
    }
    ensure!(!found.is_empty(), "hello has no endpoints of {family}");
    Ok(found)
}

fn feed(world: &World, argv: &[&str], rules: &str) -> Result<()> {
    let argv: Vec<_> = argv.iter().map(|&word| word.to_owned()).collect();
    let mut command = exec::command(&world.layout, &Place::Host(NODE.into()), &argv)?;
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("no input")?.write_all(rules.as_bytes())?;
    ensure!(child.wait()?.success(), "{argv:?} refuses {rules}");
    Ok(())
}
