//! The configuration of each role, from the agent's.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use mizzen_ebpf_abi::limits;

use super::{Config, ConfigError};
use crate::{
    datapath, desired, dns,
    kube::{bootstrap::ServiceAddresses, convert::parse_cidr, is_in_a_pod},
    model::node::Cidr,
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
        self.api_servers()?;
        self.node_port_ranges()?;
        self.pod_detection()?;
        ranges("service_cidrs", &self.service_cidrs)?;
        ranges("non_masquerade_cidrs", &self.non_masquerade_cidrs)?;
        if self.snat_port_min == 0 || self.snat_port_min >= self.snat_port_max {
            let why = format!("must be below snatPortMax, which is {}", self.snat_port_max);
            return Err(ConfigError::value("snat_port_min", why));
        }
        let flows = limits::FLOWS_LEAST_CONFIGURED..=limits::FLOWS_MAX;
        if self.flow_table_max != 0 && !flows.contains(&self.flow_table_max) {
            let why = format!("must be 0, or {} to {}", flows.start(), flows.end());
            return Err(ConfigError::value("flow_table_max", why));
        }
        if !["text", "json"].contains(&self.log_format.as_str()) {
            return Err(ConfigError::value("log_format", "must be text or json"));
        }
        self.named_upstreams()?;
        ranges("pod_address_exclude", &self.pod_address_exclude)?;
        if self.dns_lameduck_seconds > 60 {
            return Err(ConfigError::value("dns_lameduck_seconds", "must be 60 at most"));
        }
        if given(&self.corefile).is_some() && !self.dns_blocks.0.is_empty() {
            let why = "a Corefile and dnsBlocks both say how names are answered; give one";
            return Err(ConfigError::value("dns_blocks", why));
        }
        Ok(())
    }

    /// The kubeconfig, where there is one.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        given(&self.kubeconfig)
    }

    /// Where is kept what outlives a reboot.
    pub fn data_dir(&self) -> Option<PathBuf> {
        given(&self.data_dir)
    }

    /// What is known of Services' addresses before anything was asked.
    pub fn service_addresses(&self) -> Result<ServiceAddresses, ConfigError> {
        let ranges = ranges("service_cidrs", &self.service_cidrs)?;
        Ok(ServiceAddresses::of_process(ranges, &self.cluster_domain))
    }

    /// As `https://host[:port]`: without a scheme there is no client for it.
    fn api_servers(&self) -> Result<(), ConfigError> {
        let is_whole = |text: &str| {
            let url: hyper::Uri = text.parse().ok()?;
            let (host, scheme) = (url.host()?, url.scheme_str()?);
            let authority = url.authority()?.as_str();
            let port = authority.strip_prefix(host)?;
            let has_port = url.port_u16().is_some_and(|number| port == format!(":{number}"));
            let whole = scheme == "https" && !host.is_empty() && (port.is_empty() || has_port);
            (whole && url.path() == "/" && url.query().is_none()).then_some(())
        };
        match self.api_server.iter().find(|text| is_whole(text).is_none()) {
            Some(text) => {
                let why = format!("{text:?} is no URL such as https://192.0.2.1:6443");
                Err(ConfigError::value("api_server", why))
            }
            None => Ok(()),
        }
    }

    fn node_port_ranges(&self) -> Result<desired::NodePortAddresses, ConfigError> {
        let words = self.node_port_addresses.iter().filter(|text| *text == "primary").count();
        if words == self.node_port_addresses.len() {
            return Ok(desired::NodePortAddresses::Primary);
        }
        if words > 0 {
            let why = "`primary` stands alone: name ranges, or the word";
            return Err(ConfigError::value("node_port_addresses", why));
        }
        let ranges = ranges("node_port_addresses", &self.node_port_addresses)?;
        Ok(desired::NodePortAddresses::Within(ranges))
    }

    fn pod_detection(&self) -> Result<desired::PodDetection, ConfigError> {
        let cluster = ranges("cluster_cidr", &self.cluster_cidr)?;
        match (self.detect_local.as_str(), cluster.is_empty()) {
            ("PodCIDRs", _) => Ok(desired::PodDetection::PodCidrs),
            ("ClusterCIDR", false) => Ok(desired::PodDetection::ClusterCidrs(cluster)),
            ("ClusterCIDR", true) => {
                let why = "detectLocal ClusterCIDR needs a range of pod addresses here";
                Err(ConfigError::value("cluster_cidr", why))
            }
            ("None", _) => Ok(desired::PodDetection::Nothing),
            (other, _) => {
                let why = format!("{other:?} must be PodCIDRs, ClusterCIDR or None");
                Err(ConfigError::value("detect_local", why))
            }
        }
    }

    /// What the tables depend on.
    pub fn tables(&self) -> Result<desired::Settings, ConfigError> {
        let dns = self.dns();
        let served = if self.dns { dns::served_addresses(&dns) } else { Vec::new() };
        Ok(desired::Settings {
            node_name: self.node_name.as_str().into(),
            node_port_addresses: self.node_port_ranges()?,
            localhost_node_ports: self.localhost_node_ports,
            pod_detection: self.pod_detection()?,
            service_cidrs: ranges("service_cidrs", &self.service_cidrs)?,
            prefer_local: served.into_iter().map(|ip| (ip, dns.port).into()).collect(),
            own_resolver_port: dns.peer_port.filter(|_| self.dns),
            masquerade_all: self.masquerade_all,
            snat_ports: (self.snat_port_min, self.snat_port_max),
            masquerade_pods: self.cni && self.masquerade_pods,
            tunnel_port: if self.cni { self.vxlan_port } else { 0 },
            non_masquerade_cidrs: ranges("non_masquerade_cidrs", &self.non_masquerade_cidrs)?,
        })
    }

    /// Where the datapath is.
    pub fn datapath(&self) -> datapath::Options {
        datapath::Options {
            bpffs: self.bpffs.clone(),
            mounts: !is_in_a_pod(),
            cgroup_root: given(&self.cgroup_root),
            flows: (self.flow_table_max != 0).then_some(self.flow_table_max),
        }
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
            // Checked before.
            excluded: ranges("pod_address_exclude", &self.pod_address_exclude).unwrap_or_default(),
            port_mappings: self.services,
            at_step: podnet::steps::unobserved,
            vxlan_port: self.vxlan_port,
        }
    }

    /// The pod network as the command line looks at it, where this agent has one.
    pub fn looked_at(&self) -> Option<podnet::look::Place> {
        let podnet::Config { node_name: node, state_dir, mtu, vxlan_port, .. } = self.podnet();
        // Without the programs there are no tunnels.
        let vxlan_port = if self.services { vxlan_port } else { 0 };
        self.cni.then_some(podnet::look::Place { node, state_dir, vxlan_port, mtu })
    }

    /// The resolver.
    pub fn dns(&self) -> dns::Config {
        let upstreams = self.named_upstreams().unwrap_or_default();
        let source = match given(&self.corefile) {
            Some(path) => dns::Source::Corefile(path),
            None if !self.dns_blocks.0.is_empty() => dns::Source::Blocks(self.dns_blocks.clone()),
            None if upstreams.is_empty() => dns::Source::ResolvConf(RESOLV_CONF.into()),
            None => dns::Source::Here,
        };
        let at = |port: u16| {
            let addresses = self.node_local_dns.iter().filter(|_| port != 0);
            addresses.map(|ip| (*ip, port).into()).collect()
        };
        let vitals = dns::vitals::Places {
            health: at(self.dns_health_port),
            ready: at(self.dns_ready_port),
            metrics: at(self.dns_metrics_port),
        };
        dns::Config {
            vitals,
            lameduck: Duration::from_secs(self.dns_lameduck_seconds.into()),
            cluster_domain: self.cluster_domain.clone(),
            cluster_addresses: self.cluster_dns.clone(),
            node_local_addresses: self.node_local_dns.clone(),
            port: self.dns_port,
            node_name: self.node_name.clone(),
            peer_port: (self.dns_peer_port != 0).then_some(self.dns_peer_port),
            // Checked before.
            pod_ranges: ranges("cluster_cidr", &self.cluster_cidr).unwrap_or_default(),
            routes: vec![dns::route::Route::to(upstreams)],
            connects_pods: self.cni,
            source,
            data_dir: self.data_dir(),
            threads: match self.dns_threads {
                0 => dns::config::default_threads(),
                threads => threads.into(),
            },
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

/// The ranges that the field `name` lists.
fn ranges(name: &str, texts: &[String]) -> Result<Vec<Cidr>, ConfigError> {
    let range = |text: &String| {
        parse_cidr(text).ok_or_else(|| {
            let why = format!("{text:?} is no range such as 192.0.2.0/24 or 2001:db8::/64");
            ConfigError::value(name, why)
        })
    };
    texts.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_the_resolver_follows() {
        let source = |config: Config| config.dns().source;
        let resolv_conf = dns::Source::ResolvConf("/etc/resolv.conf".into());
        assert_eq!(source(Config::default()), resolv_conf);
        let named = Config { dns_upstream: vec!["192.0.2.1".into()], ..Config::default() };
        assert_eq!(source(named.clone()), dns::Source::Here);
        let corefile = Config { corefile: "/etc/coredns/Corefile".into(), ..named };
        assert_eq!(source(corefile.clone()), dns::Source::Corefile("/etc/coredns/Corefile".into()));
        let dns_blocks: dns::native::Blocks = "[{zones: [a]}]".parse().unwrap();
        let blocks = Config { dns_blocks: dns_blocks.clone(), ..Config::default() };
        assert_eq!(source(blocks), dns::Source::Blocks(dns_blocks.clone()));
        let both = Config { dns_blocks, node_name: "n".into(), ..corefile };
        assert!(both.check().unwrap_err().to_string().contains("--dns-blocks"));
    }

    #[test]
    fn f46_an_api_server_is_named_by_a_whole_url() {
        let of = |text: &str| Config { api_server: vec![text.into()], ..Config::default() }.check();
        for good in [
            "https://192.0.2.1:6443",
            "https://192.0.2.1/",
            "https://[2001:db8::1]:6443",
            "https://api.example",
        ] {
            assert!(of(good).is_ok(), "{good}");
        }
        for bad in [
            "192.0.2.1:6443",
            "192.0.2.1",
            "[2001:db8::1]:6443",
            "api.example",
            "",
            "http://192.0.2.1:6443",
            "https://",
            "https://:6443",
            "https://192.0.2.1:",
            "https://192.0.2.1:99999",
            "https://user:secret@192.0.2.1",
            "https://192.0.2.1:6443/prefix",
            "https://192.0.2.1?x",
            "https://192.0.2.1 ",
        ] {
            let error = of(bad).expect_err(bad).to_string();
            assert!(error.starts_with("apiServer (--api-server):"), "{error}");
            assert!(error.contains("https://192.0.2.1:6443"), "{error}");
        }
    }

    #[test]
    fn bad_values_are_named_with_field_and_flag() {
        let node_name = "n".to_owned();
        let good = Config { node_name, ..Config::default() };
        assert!(good.check().is_ok());
        let bad = [
            Config { node_port_addresses: vec!["10.0.0.0".into()], ..good.clone() },
            Config {
                node_port_addresses: vec!["primary".into(), "10.0.0.0/8".into()],
                ..good.clone()
            },
            Config { detect_local: "NodeCIDR".into(), ..good.clone() },
            Config { detect_local: "ClusterCIDR".into(), ..good.clone() },
            Config { cluster_cidr: vec!["10.0.0.0/33".into()], ..good.clone() },
            Config { service_cidrs: vec!["10.96.0.0".into()], ..good.clone() },
            Config { non_masquerade_cidrs: vec!["10.0.0.0".into()], ..good.clone() },
            Config { snat_port_min: 30_000, ..good.clone() },
            Config { flow_table_max: 1_000, ..good.clone() },
            Config { log_format: "xml".into(), ..good.clone() },
            Config { dns_upstream: vec!["dns.example".into()], ..good.clone() },
            Config { dns_lameduck_seconds: 61, ..good.clone() },
        ];
        let flags = [
            "node-port-addresses",
            "node-port-addresses",
            "detect-local",
            "cluster-cidr",
            "cluster-cidr",
            "service-cidrs",
            "non-masquerade-cidrs",
            "snat-port-min",
            "flow-table-max",
            "log-format",
            "dns-upstream",
            "dns-lameduck-seconds",
        ];
        assert_eq!(bad.len(), flags.len());
        for (config, flag) in bad.iter().zip(flags) {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(&format!("(--{flag})")), "{error}");
        }
    }

    #[test]
    fn what_the_tables_depend_on_is_read() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let config = Config {
            node_port_addresses: texts(&["127.0.0.0/8", "2001:db8::/64"]),
            localhost_node_ports: true,
            detect_local: "ClusterCIDR".into(),
            cluster_cidr: texts(&["10.244.0.0/16"]),
            service_cidrs: texts(&["10.96.0.0/12"]),
            ..Config::default()
        };
        let settings = config.tables().unwrap();
        let range = |text: &str| text.parse::<Cidr>().unwrap();
        let within = vec![range("127.0.0.0/8"), range("2001:db8::/64")];
        assert_eq!(settings.node_port_addresses, desired::NodePortAddresses::Within(within));
        assert!(settings.localhost_node_ports);
        let pods = vec![range("10.244.0.0/16")];
        assert_eq!(config.dns().pod_ranges, pods);
        assert_eq!(settings.pod_detection, desired::PodDetection::ClusterCidrs(pods));
        assert_eq!(settings.service_cidrs, [range("10.96.0.0/12")]);
        let primary = [texts(&[]), texts(&["primary"])];
        for node_port_addresses in primary {
            let settings = Config { node_port_addresses, ..Config::default() }.tables().unwrap();
            assert_eq!(settings.node_port_addresses, desired::NodePortAddresses::Primary);
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
