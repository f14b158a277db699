//! The configuration of each role, from the agent's.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{Config, ConfigError};
use crate::{
    datapath, desired, dns,
    kube::convert::{parse_cidr, parse_ip},
    podnet,
};

/// Where name servers are found when none is configured.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The port of a name server that names none.
const NAME_SERVER_PORT: u16 = 53;

/// None where it is empty.
fn given(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_path_buf())
}

impl Config {
    /// Whether all values can be. Looks at nothing but the values.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.node_name.is_empty() {
            let why = "name this machine's Node object by --node-name or the variable NODE_NAME";
            return Err(ConfigError::value("node_name", why));
        }
        self.node_port_ranges()?;
        if self.snat_port_min == 0 || self.snat_port_min >= self.snat_port_max {
            let why = format!("must be below snatPortMax, which is {}", self.snat_port_max);
            return Err(ConfigError::value("snat_port_min", why));
        }
        if !["text", "json"].contains(&self.log_format.as_str()) {
            return Err(ConfigError::value("log_format", "must be text or json"));
        }
        self.named_upstreams()?;
        Ok(())
    }

    /// The kubeconfig, where there is one.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        given(&self.kubeconfig)
    }

    fn node_port_ranges(&self) -> Result<desired::NodePortAddresses, ConfigError> {
        if self.node_port_addresses == ["primary"] {
            return Ok(desired::NodePortAddresses::Primary);
        }
        let range = |text: &String| {
            parse_cidr(text).ok_or_else(|| {
                let why = format!("{text:?} is no range such as 192.0.2.0/24, nor `primary` alone");
                ConfigError::value("node_port_addresses", why)
            })
        };
        let ranges: Result<Vec<_>, _> = self.node_port_addresses.iter().map(range).collect();
        Ok(desired::NodePortAddresses::Within(ranges?))
    }

    /// What the tables depend on.
    pub fn tables(&self) -> Result<desired::Settings, ConfigError> {
        let dns = self.dns();
        let served = if self.dns { dns::served_addresses(&dns) } else { Vec::new() };
        Ok(desired::Settings {
            node_name: self.node_name.as_str().into(),
            node_port_addresses: self.node_port_ranges()?,
            prefer_local: served.into_iter().map(|ip| (ip, dns.port).into()).collect(),
            masquerade_all: self.masquerade_all,
            snat_ports: (self.snat_port_min, self.snat_port_max),
        })
    }

    /// Where the datapath is.
    pub fn datapath(&self) -> datapath::Options {
        datapath::Options { bpffs: self.bpffs.clone(), cgroup_root: given(&self.cgroup_root) }
    }

    /// The pod network.
    pub fn podnet(&self) -> podnet::Config {
        podnet::Config {
            node_name: self.node_name.clone(),
            state_dir: self.state_dir.clone(),
            conf_dir: self.cni_conf_dir.clone(),
            bin_dir: self.cni_bin_dir.clone(),
            plugin: None,
            mtu: (self.mtu != 0).then_some(self.mtu),
        }
    }

    /// The resolver.
    pub fn dns(&self) -> dns::Config {
        let mut upstreams = self.named_upstreams().unwrap_or_default();
        if upstreams.is_empty() {
            upstreams = name_servers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
        }
        dns::Config {
            cluster_domain: self.cluster_domain.clone(),
            cluster_addresses: self.cluster_dns.clone(),
            node_local_addresses: self.node_local_dns.clone(),
            port: self.dns_port,
            node_name: self.node_name.clone(),
            peer_port: (self.dns_peer_port != 0).then_some(self.dns_peer_port),
            upstreams,
            ..dns::Config::default()
        }
    }

    fn named_upstreams(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let upstream = |text: &String| -> Result<SocketAddr, ConfigError> {
            let bare = text.parse::<IpAddr>().map(|ip| (ip, NAME_SERVER_PORT).into());
            bare.or_else(|_| text.parse()).map_err(|_| {
                let why =
                    format!("{text:?} is no address such as 192.0.2.53 or [2001:db8::53]:5353");
                ConfigError::value("dns_upstream", why)
            })
        };
        self.dns_upstream.iter().map(upstream).collect()
    }
}

/// The name servers of a `resolv.conf`, in order.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        parse_ip(address).map(|ip| (ip, NAME_SERVER_PORT).into())
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_from_resolv_conf() {
        let text = "# nameserver 192.0.2.1\nsearch a b\nnameserver 192.0.2.2\nnameserver ::1 # x\n";
        let servers: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.2:53", "[::1]:53"]);
    }

    #[test]
    fn bad_values_are_named_with_field_and_flag() {
        let node_name = "n".to_owned();
        let good = Config { node_name, ..Config::default() };
        assert!(good.check().is_ok());
        let bad = [
            Config { node_port_addresses: vec!["10.0.0.0".into()], ..good.clone() },
            Config { snat_port_min: 30_000, ..good.clone() },
            Config { log_format: "xml".into(), ..good.clone() },
            Config { dns_upstream: vec!["dns.example".into()], ..good.clone() },
        ];
        for (config, flag) in
            bad.iter().zip(["node-port-addresses", "snat-port-min", "log-format", "dns-upstream"])
        {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(&format!("(--{flag})")), "{error}");
        }
    }

    #[test]
    fn served_dns_addresses_prefer_the_local_listener() {
        let config = Config { node_name: "n".into(), ..Config::default() };
        let prefer = config.tables().unwrap().prefer_local;
        assert!(prefer.contains(&"10.96.0.10:53".parse().unwrap()), "{prefer:?}");
        let without = Config { dns: false, ..config };
        assert!(without.tables().unwrap().prefer_local.is_empty());
    }
}
