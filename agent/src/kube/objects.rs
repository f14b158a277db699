//! API objects as the agent reads them: the fields that it has a use for, straight from the text
//! that the API server sends. What it has no use for (managed fields, most of a Node) is skipped
//! and never allocated, and texts are borrowed where nothing is escaped in them.
//!
//! Fields have the API's names and meanings (Kubernetes 1.35, `core/v1`, `discovery.k8s.io/v1`,
//! `networking.k8s.io/v1`). A field that is missing or null is `None`, a required one too: an odd
//! object is the business of [`super::convert`], and must not end the watch of all others.

#![expect(missing_docs, reason = "fields have the names and meanings of the API")]

use std::{borrow::Cow, fmt, ops::Deref};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

/// A text of an object.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        self
    }
}

/// Labels or annotations: there are few, and one or two are asked for.
#[derive(Debug, Default)]
pub struct Pairs<'a>(Vec<(Text<'a>, Text<'a>)>);

impl Pairs<'_> {
    /// The value under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("texts by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// `ObjectMeta`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub namespace: Option<Text<'a>>,
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
    #[serde(borrow)]
    pub creation_timestamp: Option<Text<'a>>,
    /// Whether it is set is all that is asked.
    pub deletion_timestamp: Option<IgnoredAny>,
    #[serde(borrow)]
    labels: Option<Pairs<'a>>,
    #[serde(borrow)]
    annotations: Option<Pairs<'a>>,
}

impl Meta<'_> {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name)
    }

    /// All labels.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.labels.iter().flat_map(|labels| &labels.0);
        all.map(|(name, value)| (&**name, &**value))
    }

    /// The value of an annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name)
    }
}

/// An object of some kind.
pub trait Object {
    /// Its metadata.
    fn metadata(&self) -> &Meta<'_>;
}

/// Declares which objects there are, each with metadata.
macro_rules! objects {
    ($($(#[$about:meta])* $name:ident { $($(#[$at:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name<'a> {
            #[serde(borrow, default)]
            pub metadata: Meta<'a>,
            $($(#[$at])* pub $field: $type,)*
        }

        impl Object for $name<'_> {
            fn metadata(&self) -> &Meta<'_> {
                &self.metadata
            }
        }
    )*};
}

objects! {
    /// A Service.
    Service {
        #[serde(borrow)]
        spec: Option<ServiceSpec<'a>>,
        #[serde(borrow)]
        status: Option<ServiceStatus<'a>>,
    }

    /// An EndpointSlice.
    EndpointSlice {
        #[serde(borrow)]
        address_type: Option<Text<'a>>,
        #[serde(borrow)]
        ports: Option<Vec<EndpointPort<'a>>>,
        #[serde(borrow)]
        endpoints: Option<Vec<Endpoint<'a>>>,
    }

    /// A Node.
    Node {
        #[serde(borrow)]
        spec: Option<NodeSpec<'a>>,
        #[serde(borrow)]
        status: Option<NodeStatus<'a>>,
    }

    /// A ServiceCIDR.
    ServiceCidr {
        #[serde(borrow)]
        spec: Option<ServiceCidrSpec<'a>>,
    }

    /// A Pod: what its annotations say.
    Pod {}

    /// A Namespace: that it is there, and its labels.
    Namespace {}
}

/// `ServiceSpec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec<'a> {
    #[serde(borrow, rename = "type")]
    pub type_: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIP")]
    pub cluster_ip: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<Text<'a>>>,
    #[serde(borrow, rename = "externalIPs")]
    pub external_ips: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub external_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub external_traffic_policy: Option<Text<'a>>,
    #[serde(borrow)]
    pub internal_traffic_policy: Option<Text<'a>>,
    #[serde(borrow)]
    pub traffic_distribution: Option<Text<'a>>,
    #[serde(borrow)]
    pub load_balancer_source_ranges: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub ports: Option<Vec<ServicePort<'a>>>,
    #[serde(borrow)]
    pub session_affinity: Option<Text<'a>>,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    pub health_check_node_port: Option<i32>,
    pub publish_not_ready_addresses: Option<bool>,
}

/// `SessionAffinityConfig`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `ClientIPConfig`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<i32>,
}

/// `ServicePort`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
    pub port: Option<i32>,
    pub node_port: Option<i32>,
}

/// `ServiceStatus`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus<'a> {
    #[serde(borrow)]
    pub load_balancer: Option<LoadBalancerStatus<'a>>,
}

/// `LoadBalancerStatus`.
#[derive(Debug, Deserialize)]
pub struct LoadBalancerStatus<'a> {
    #[serde(borrow)]
    pub ingress: Option<Vec<LoadBalancerIngress<'a>>>,
}

/// `LoadBalancerIngress`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIngress<'a> {
    #[serde(borrow)]
    pub ip: Option<Text<'a>>,
    #[serde(borrow)]
    pub ip_mode: Option<Text<'a>>,
}

/// `EndpointPort` of an EndpointSlice.
#[derive(Debug, Deserialize)]
pub struct EndpointPort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
    pub port: Option<i32>,
}

/// `Endpoint` of an EndpointSlice.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint<'a> {
    #[serde(borrow)]
    pub addresses: Option<Vec<Text<'a>>>,
    pub conditions: Option<EndpointConditions>,
    #[serde(borrow)]
    pub node_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub hostname: Option<Text<'a>>,
    #[serde(borrow)]
    pub zone: Option<Text<'a>>,
    #[serde(borrow)]
    pub hints: Option<EndpointHints<'a>>,
    #[serde(borrow)]
    pub target_ref: Option<ObjectReference<'a>>,
}

/// `EndpointConditions`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

/// `EndpointHints`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointHints<'a> {
    #[serde(borrow)]
    pub for_zones: Option<Vec<Hint<'a>>>,
    #[serde(borrow)]
    pub for_nodes: Option<Vec<Hint<'a>>>,
}

/// `ForZone` and `ForNode`.
#[derive(Debug, Deserialize)]
pub struct Hint<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

/// `ObjectReference`.
#[derive(Debug, Deserialize)]
pub struct ObjectReference<'a> {
    #[serde(borrow)]
    pub kind: Option<Text<'a>>,
    #[serde(borrow)]
    pub namespace: Option<Text<'a>>,
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

/// `NodeSpec`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec<'a> {
    #[serde(borrow, rename = "podCIDR")]
    pub pod_cidr: Option<Text<'a>>,
    #[serde(borrow, rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub taints: Option<Vec<Taint<'a>>>,
}

/// `Taint`.
#[derive(Debug, Deserialize)]
pub struct Taint<'a> {
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
}

/// `NodeStatus`.
#[derive(Debug, Deserialize)]
pub struct NodeStatus<'a> {
    #[serde(borrow)]
    pub addresses: Option<Vec<NodeAddress<'a>>>,
}

/// `NodeAddress`.
#[derive(Debug, Deserialize)]
pub struct NodeAddress<'a> {
    #[serde(borrow, rename = "type")]
    pub type_: Option<Text<'a>>,
    #[serde(borrow)]
    pub address: Option<Text<'a>>,
}

/// `ServiceCIDRSpec`.
#[derive(Debug, Deserialize)]
pub struct ServiceCidrSpec<'a> {
    #[serde(borrow)]
    pub cidrs: Option<Vec<Text<'a>>>,
}
