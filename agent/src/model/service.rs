//! Services as the dataplane and the resolver need them.

use std::{net::IpAddr, sync::Arc};

use super::{ObjectKey, labels::Labels, node::Cidr};

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Which endpoints may take traffic that arrives in a given way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// Every usable endpoint of the cluster.
    #[default]
    Cluster,
    /// Those of this node only.
    Local,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name; empty where the service has a single unnamed port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port that clients dial at the service's addresses, host byte order.
    pub port: u16,
    /// The port at the node's addresses, where there is one.
    pub node_port: Option<u16>,
}

/// A Service of the cluster.
#[expect(clippy::struct_excessive_bools, reason = "as many yes-or-no questions as the API has")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 where it is not set.
    pub created_s: i64,
    /// `spec.clusterIPs`, parsed; empty where headless or ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `spec.externalName` of a service of that type.
    pub external_name: Option<Arc<str>>,
    /// `spec.externalIPs`, parsed.
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses that this node shall translate (`ipMode` VIP or unset).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`: who may use the load balancer addresses; `None` is
    /// everyone.
    pub source_ranges: Option<Vec<Cidr>>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// Seconds for which a client keeps its backend (`sessionAffinity: ClientIP` and its timeout);
    /// 0 where it does not.
    pub affinity_s: u32,
    /// Whether the topology hints of its endpoints count: `spec.trafficDistribution` or the
    /// annotation that came before it asks for them.
    pub topology: bool,
    /// `spec.healthCheckNodePort` of a load balancer with the external policy Local.
    pub health_check_node_port: Option<u16>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Whether flows to deleted endpoints are reset; else they are left to their timeouts
    /// (annotation `mizzen.dev/reset-on-delete: "false"`).
    pub reset_on_delete: bool,
    /// Another proxy is named for it, so the datapath leaves it alone; names still resolve.
    pub foreign_proxy: bool,
    /// Its labels.
    pub labels: Labels,
}

impl Service {
    /// A service of which nothing is known but its key.
    pub fn new(key: ObjectKey) -> Self {
        Self {
            key,
            created_s: 0,
            cluster_ips: Vec::new(),
            headless: false,
            external_name: None,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: None,
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_s: 0,
            topology: false,
            health_check_node_port: None,
            publish_not_ready: false,
            reset_on_delete: true,
            foreign_proxy: false,
            labels: Labels::default(),
        }
    }
}

/// A ServiceCIDR: ranges that services have their cluster IPs from (KEP-1880).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: Arc<str>,
    /// `spec.cidrs`: one of each family at most.
    pub cidrs: Vec<Cidr>,
}
