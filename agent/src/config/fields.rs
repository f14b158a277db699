//! The one table of the agent's settings: each line is a field of the file, a flag, a field of
//! [`Config`], its default and its help; and of each the reference page has a row.

use std::{net::SocketAddr, path::PathBuf};

use super::Origin;

/// A part of the table.
pub(super) struct Section {
    /// What its fields have in common.
    pub(super) title: &'static str,
    /// Its fields.
    pub(super) fields: &'static [Field],
}

/// What the table says of a field, but for its default.
pub(super) struct Field {
    /// As in [`Config`].
    pub(super) name: &'static str,
    /// Its type in Rust.
    pub(super) form: &'static str,
    /// The lines of its help, each with the space that comments begin with.
    pub(super) help: &'static [&'static str],
}

impl Field {
    /// Its name in the file: `node_name` as `nodeName`.
    pub(super) fn key(&self) -> String {
        super::camel_case(self.name)
    }
}

/// Every field, in the order of the table.
pub(super) fn all() -> impl Iterator<Item = &'static Field> {
    SECTIONS.iter().flat_map(|section| section.fields)
}

/// Makes, of the table, the file's structure, the flags, the resolved configuration, and what the
/// reference page says.
macro_rules! fields {
    ($( $section:literal { $( $(#[doc = $help:literal])+ $name:ident : $type:ty = $default:expr; )* } )*) => {
        /// The configuration file as it is written: every field may be missing.
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(super) struct File {
            pub(super) api_version: Option<String>,
            pub(super) kind: Option<String>,
            $($( pub(super) $name: Option<$type>, )*)*
        }

        /// The flags: every field of the file.
        #[derive(Clone, Debug, Default, clap::Args)]
        pub struct Flags {
            $($(
                $(#[doc = $help])+
                #[arg(long)]
                pub $name: Option<$type>,
            )*)*
        }

        /// The configuration in force.
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        pub struct Config {
            $($( $(#[doc = $help])+ pub $name: $type, )*)*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($( $name: $default, )*)* }
            }
        }

        /// The sections of the table, and their fields in its order.
        pub(super) const SECTIONS: &[Section] = &[$( Section {
            title: $section,
            fields: &[$( Field {
                name: stringify!($name),
                form: stringify!($type),
                help: &[$($help),+],
            }, )*],
        }, )*];

        /// Puts flags over the file over kube-proxy's over the defaults, and notes where each value
        /// is from, in the order of the table.
        pub(super) fn layer(flags: Flags, file: File, kube_proxy: File) -> (Config, Vec<Origin>) {
            let mut config = Config::default();
            let mut origins = Vec::new();
            $($(
                let given = [
                    (flags.$name, Origin::Flag),
                    (file.$name, Origin::File),
                    (kube_proxy.$name, Origin::KubeProxy),
                ];
                let first = given.into_iter().find_map(|(value, origin)| Some((value?, origin)));
                origins.push(match first {
                    Some((value, origin)) => { config.$name = value; origin }
                    None => Origin::Default,
                });
            )*)*
            (config, origins)
        }

        /// Every value as JSON, in the order of the table.
        pub(super) fn values(config: &Config) -> Vec<String> {
            vec![$($( serde_json::to_string(&config.$name).unwrap_or_default(), )*)*]
        }
    };
}

fields! {
    "Cluster" {
        /// Kubeconfig of the agent; empty: the service account of the pod that it runs in
        kubeconfig: PathBuf = PathBuf::new();
        /// Address of an API server (repeatable); empty: the one that the credentials name
        api_server: Vec<String> = Vec::new();
        /// KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1) whose settings are taken over,
        /// as far as no flag and no field of the file says otherwise; empty: none
        kube_proxy_config: PathBuf = PathBuf::new();
        /// Name of this machine's Node object; empty: the variable NODE_NAME
        node_name: String = String::new();
    }
    "Roles" {
        /// Balance Services in the kernel (takes the place of kube-proxy)
        services: bool = true;
        /// Connect pods (takes the place of another CNI plugin)
        cni: bool = true;
        /// Answer cluster DNS (takes the place of CoreDNS)
        dns: bool = true;
    }
    "Places on the node" {
        /// Cgroup below which the node's processes and pods are; empty: the cgroup2 mount
        cgroup_root: PathBuf = PathBuf::new();
        /// Folder for pinned eBPF objects, in a bpf file system; where there is none, an agent that
        /// is no pod mounts one
        bpffs: PathBuf = "/sys/fs/bpf/mizzen".into();
        /// Folder for sockets and journals
        state_dir: PathBuf = "/run/mizzen".into();
        /// Folder for what outlives a reboot: the last known addresses of the API servers, and
        /// copies of kube-proxy's configuration and of the resolver's files; empty: none is kept
        data_dir: PathBuf = "/var/lib/mizzen".into();
        /// Folder where the container runtime reads CNI configurations
        cni_conf_dir: PathBuf = "/etc/cni/net.d".into();
        /// Folder where the container runtime finds CNI plugins
        cni_bin_dir: PathBuf = "/opt/cni/bin".into();
    }
    "Pod network" {
        /// MTU of the pods' interfaces in bytes; 0: that of the node's uplink, less what tunnels
        /// need where some node is reached by one
        mtu: u32 = 0;
        /// Range of addresses that no pod is given (repeatable), out of the node's podCIDRs
        pod_address_exclude: Vec<String> = Vec::new();
        /// UDP port of the tunnels (VXLAN) to nodes that share no link with this one, the same on
        /// all nodes; 0: no tunnels
        vxlan_port: u16 = mizzen_ebpf_abi::tunnel::PORT;
        /// Let what pods send out of the cluster leave under the node's address; without, the
        /// network around the cluster has to know the way back to pods
        masquerade_pods: bool = true;
        /// Range outside of the cluster where pods are known by their own addresses (repeatable):
        /// what they send there keeps its source
        non_masquerade_cidrs: Vec<String> = Vec::new();
    }
    "Services" {
        /// Where /healthz and /livez are served, with services on: load balancers ask who balances
        /// them
        healthz_bind_address: SocketAddr = "[::]:10256".parse().expect("an address");
        /// Where /metrics, /proxyMode, /configz and /readyz are served
        metrics_bind_address: SocketAddr = "127.0.0.1:10249".parse().expect("an address");
        /// Which of the node's addresses take node ports (repeatable): `primary`, or ranges such as
        /// 192.0.2.0/24
        node_port_addresses: Vec<String> = vec!["primary".to_owned()];
        /// Open node ports on 127.0.0.1 and ::1 too, for the node's own sockets; ranges in
        /// nodePortAddresses that hold these addresses do the same
        localhost_node_ports: bool = false;
        /// How pods are told from others by their addresses: `PodCIDRs`, the pod ranges of all
        /// nodes, `ClusterCIDR`, those of clusterCidr, or `None`, not at all; whatever it says,
        /// externalTrafficPolicy Local binds the pods of other nodes
        detect_local: String = "PodCIDRs".to_owned();
        /// Range of pod addresses (repeatable), for detectLocal ClusterCIDR; who is in one is
        /// answered at dnsPeerPort
        cluster_cidr: Vec<String> = Vec::new();
        /// Range of cluster IPs (repeatable), for clusters without ServiceCIDR objects
        service_cidrs: Vec<String> = Vec::new();
        /// Interface that leads to other hosts (repeatable); empty: those with the node's
        /// addresses, with addresses that take node ports, or with a default route
        uplink: Vec<String> = Vec::new();
        /// Device that leads to this node's pods where another CNI plugin connects them
        /// (repeatable; a last `+` means all that begin so); those behind the routes to the node's
        /// podCIDRs are found
        pod_device: Vec<String> = Vec::new();
        /// Masquerade all translated traffic, not only what needs it
        masquerade_all: bool = false;
        /// First source port of masqueraded flows
        snat_port_min: u16 = mizzen_ebpf_abi::limits::SNAT_PORT_MIN;
        /// Last source port of masqueraded flows
        snat_port_max: u16 = mizzen_ebpf_abi::limits::SNAT_PORT_MAX;
        /// Connections that the packet path remembers at a time; 0: 32768 for each CPU, at least
        /// 131072 and at most 262144. Its table takes 320 bytes for each at once, when it is made:
        /// a node's first agent does that
        flow_table_max: u32 = 0;
    }
    "Cluster DNS" {
        /// Domain below which Services have names
        cluster_domain: String = "cluster.local".to_owned();
        /// Address of cluster DNS (repeatable): those of the Service kube-dns
        cluster_dns: Vec<std::net::IpAddr> = crate::dns::Config::default().cluster_addresses;
        /// Address that means the own node's resolver on every node (repeatable)
        node_local_dns: Vec<std::net::IpAddr> = crate::dns::Config::default().node_local_addresses;
        /// Port of cluster DNS
        dns_port: u16 = crate::dns::Config::default().port;
        /// Port at the node's address for other nodes' pods whose resolver is away; 0: none
        dns_peer_port: u16 = crate::dns::Config::default().peer_port.unwrap_or_default();
        /// Threads that answer cluster DNS by UDP; 0: one for each CPU, four at most
        dns_threads: u8 = 0;
        /// Port of the resolver's /health at nodeLocalDns; 0: none
        dns_health_port: u16 = 8080;
        /// Port of the resolver's /ready at nodeLocalDns; 0: none
        dns_ready_port: u16 = 8181;
        /// Port of the resolver's /metrics at nodeLocalDns; 0: none
        dns_metrics_port: u16 = 9153;
        /// Seconds for which everything goes on when the agent is told to stop, while /ready says
        /// no; 60 at most
        dns_lameduck_seconds: u16 = 0;
        /// Name server for names outside of the cluster (repeatable), as 192.0.2.53 or
        /// 192.0.2.53:5353; empty: those of /etc/resolv.conf
        dns_upstream: Vec<String> = Vec::new();
        /// Corefile (as CoreDNS has it) that says how names are answered, in the place of
        /// dnsUpstream; empty: none
        corefile: PathBuf = PathBuf::new();
        /// Server blocks that say how names are answered, as a Corefile does, in the place of
        /// dnsUpstream (as a flag: YAML); empty: none
        dns_blocks: crate::dns::native::Blocks = crate::dns::native::Blocks::default();
    }
    "Log" {
        /// What is logged, as a tracing filter such as `info` or `mizzen_agent::dns=debug`; the
        /// variable RUST_LOG goes first
        log_filter: String = "info".to_owned();
        /// How it is logged: `text` or `json`
        log_format: String = "text".to_owned();
    }
}
